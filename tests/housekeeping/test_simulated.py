"""The patient that a simulated machine examines."""

import dataclasses
import datetime

import pytest
from test_mpps import create, creation_for, schedule, state

from minris.dataset.elements import ElementIndex
from minris.housekeeping.simulated import erase_simulated, make_simulated
from minris.orders.lookup import find_steps
from minris.standard.status import Refusal
from minris.store.models import Patient, PerformedProcedureStep


def people():
    return {patient.patient_id for patient in Patient.select()}


def test_it_is_clearly_none_and_goes_with_its_report(ctx):
    real = schedule(ctx, PatientID="P7")
    made = make_simulated(ctx, "CT1", "CT")
    [step] = find_steps(made)
    assert ElementIndex(step.data).get("PatientName") == "SIMULATED^NOT A PATIENT"
    create(ctx, creation_for(ElementIndex(step.data)))  # the simulation ends here
    erase_simulated(ctx, made)
    assert (people(), PerformedProcedureStep.select().count()) == ({"P7"}, 0)
    assert state(real) == "SCHEDULED"


@pytest.mark.parametrize("patient_id", ["P7", "", "SIMULATED-404"])
def test_nobody_else_is_erased(ctx, patient_id):
    schedule(ctx, PatientID="P7")
    with pytest.raises(Refusal):
        erase_simulated(ctx, patient_id)
    assert people() == {"P7"}


def test_what_a_killed_simulation_left_goes_after_an_hour(ctx):
    left = make_simulated(ctx, "CT1", "CT")
    beside = make_simulated(ctx, "CT1", "CT")
    assert people() == {left, beside}
    later = dataclasses.replace(ctx, now=lambda: ctx.now() + datetime.timedelta(minutes=61))
    now = make_simulated(later, "CT1", "CT")
    assert people() == {now}
