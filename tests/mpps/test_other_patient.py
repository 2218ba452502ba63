"""A performed step that names another patient than its order."""

import re

import pytest
from conftest import item
from test_mpps import (
    UID,
    change,
    create,
    creation_for,
    ending,
    refused,
    schedule,
    scheduled_item,
    state,
    step_row,
    stored_form,
    unscheduled_item,
)
from test_pages import words_of

from minris.access.context import audit_lines
from minris.dataset.elements import text_elements
from minris.housekeeping.erasing import erase_patient
from minris.interchange.whole_store import export_store
from minris.mpps.linking import (
    accept_patient,
    doubtful_links,
    doubtful_steps,
    link_by_hand,
    unlink_step,
    unscheduled_steps,
)
from minris.mpps.performed import create_mpps, performed_of, set_mpps
from minris.orders.patients import correct_patient, merge_patients
from minris.orders.undo import undo
from minris.standard.status import Refusal, Status
from minris.store.models import FormerIdentity, Patient, database

JOHN = {
    "PatientName": "Doe^John",
    "PatientID": "P7",
    "PatientBirthDate": "19780312",
    "PatientSex": "M",
}


@pytest.fixture
def step(ctx):
    """John's exam."""
    return schedule(ctx, **JOHN)


def performed(step, **changes):
    """What the CT sends of it, with the patient as an operator has edited it."""
    return creation_for(step, **{**JOHN, **changes})


def edited(step):
    return bool(doubtful_steps() & {step_row(step).id})


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientName": "Bloggs^Joe", "PatientID": "P9"},
        {"PatientName": "Doe^Jane"},
        {"PatientID": "P8"},
        {"PatientBirthDate": "19780321"},
        {"PatientSex": "F"},
    ],
)
def test_a_patient_edited_at_the_machine_is_linked_and_flagged(ctx, step, changes):
    create(ctx, performed(step, **changes))
    change(ctx, ending())
    assert (state(step), edited(step)) == ("COMPLETED", True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"PatientName": "DOE^JOHN^^^"},
        {"PatientName": "Doe^J"},
        {"PatientID": " p7"},
        {"PatientName": "", "PatientID": "", "PatientBirthDate": "", "PatientSex": ""},
        {"PatientSex": "O"},
    ],
)
def test_another_spelling_is_not(ctx, step, changes):
    create(ctx, performed(step, **changes))
    assert (state(step), edited(step)) == ("STARTED", False)


def test_found_by_accession_number_it_is_compared_too(ctx, step):
    which = unscheduled_item(AccessionNumber=step.get("AccessionNumber"))
    create(
        ctx, performed(step, ScheduledStepAttributesSequence=[which], PatientID="", PatientSex="F")
    )
    assert (state(step), edited(step)) == ("STARTED", True)


def test_a_person_decides_that_it_is_this_patient(ctx, step):
    create(ctx, performed(step, PatientID="P8"))
    [link] = doubtful_links()
    accept_patient(ctx, link.performed_id, link.step_id)
    assert (edited(step), performed_of(link.step_id)[0][4]) == (False, "accepted")
    change(ctx, ending())
    assert (state(step), edited(step)) == ("COMPLETED", False)


def test_what_is_no_link_cannot_be_accepted(ctx, step):
    with refused(Status.NO_SUCH_SOP_INSTANCE):
        accept_patient(ctx, 1, step_row(step).id)


def test_a_person_decides_that_it_was_another_exam(ctx, step):
    create(ctx, performed(step, PatientID="P8"))
    [link] = doubtful_links()
    unlink_step(ctx, link.performed_id, link.step_id)
    assert (state(step), edited(step), len(unscheduled_steps())) == ("SCHEDULED", False, 1)
    link_by_hand(ctx, link.performed_id, link.step_id)  # whoever does so has seen both names
    assert (edited(step), performed_of(link.step_id)[0][4]) == (False, "accepted")


def test_an_n_set_that_names_another_patient_is_refused_and_flagged(appliance):
    step = appliance.schedule(item("Doe^John", PatientID="P7"))[0]
    ctx = appliance.context()
    appliance.write(create, ctx, creation_for(step))
    with pytest.raises(Refusal) as refusal:
        appliance.write(
            set_mpps, ctx, UID, stored_form(ending(PatientID="P9", PatientName="Bloggs^Joe"))
        )
    assert refusal.value.status is Status.NO_SUCH_ATTRIBUTE
    [link] = appliance.read(doubtful_links)
    assert b"Bloggs" in bytes(link.told)
    assert b"Bloggs" not in bytes(link.data)


# Identities that a patient had.


def test_an_identifier_merged_before_is_the_same(ctx, step):
    schedule(ctx, PatientName="Jones^Jane", PatientID="P9", PatientBirthDate="19780312")
    merge_patients(ctx, Patient.get(patient_id="P9").id, "P7", "one person")
    create(ctx, performed(step, PatientID="P9", PatientName="JONES^JANE"))
    assert not edited(step)


def test_a_chain_of_merged_identifiers_is_the_same(ctx, step):
    for old, new in (("P1", "P2"), ("P2", "P7")):
        for one in {old, new} - {"P7"} - {p.patient_id for p in Patient.select()}:
            schedule(ctx, **{**JOHN, "PatientID": one})
        merge_patients(ctx, Patient.get(patient_id=old).id, new, "one person")
    create(ctx, performed(step, PatientID="P1"))
    assert not edited(step)


def test_a_merged_identifier_finds_the_exam_by_accession_number(ctx, step):
    schedule(ctx, **{**JOHN, "PatientID": "P9"})
    merge_patients(ctx, Patient.get(patient_id="P9").id, "P7", "one person")
    which = unscheduled_item(AccessionNumber=step.get("AccessionNumber"))
    create(ctx, performed(step, ScheduledStepAttributesSequence=[which], PatientID="P9"))
    assert (state(step), edited(step)) == ("STARTED", False)


def test_a_merge_ends_the_doubt_and_its_undoing_brings_it_back(ctx, step):
    schedule(ctx, PatientName="Bloggs^Joe", PatientID="P9")
    create(ctx, performed(step, PatientID="P9", PatientName="Bloggs^Joe"))
    person = ctx.by(ctx.actor._replace(role="desk"))
    merge_patients(person, Patient.get(patient_id="P9").id, "P7", "one person")
    assert not edited(step)
    undo(person, f"patient {Patient.get(patient_id='P7').id}")
    assert edited(step)
    assert FormerIdentity.select().count() == 0


def test_what_a_machine_fetched_before_a_correction_is_the_same(ctx, step):
    row = Patient.get(patient_id="P7").id
    correct_patient(ctx, row, bytes(text_elements(PatientName="Doe^Johann", PatientID="P70")))
    create(ctx, performed(step))
    assert not edited(step)


def test_a_correction_to_what_the_machine_told_ends_the_doubt(ctx, step):
    create(ctx, performed(step, PatientBirthDate="19780321"))
    correct_patient(
        ctx, Patient.get(patient_id="P7").id, bytes(text_elements(PatientBirthDate="19780321"))
    )
    assert not edited(step)


def test_an_emergency_patient_who_was_identified_is_the_same(ctx):
    schedule(ctx, PatientName="Brown^Emma", PatientID="P5", PatientBirthDate="19600101")
    step = schedule(ctx, PatientName="Unknown^Emergency", PatientID="E1")
    told = creation_for(step, PatientBirthDate="", PatientSex="")
    given = text_elements(PatientName="Brown^Emma", PatientID="P5", PatientBirthDate="19600101")
    correct_patient(ctx, Patient.get(patient_id="E1").id, bytes(given))
    create(ctx, told)
    assert not edited(step)


def test_a_former_id_that_another_patient_has_now_is_not_the_same(ctx, step):
    correct_patient(ctx, Patient.get(patient_id="P7").id, bytes(text_elements(PatientID="P70")))
    schedule(ctx, PatientName="Bloggs^Joe", PatientID="P7")
    create(ctx, creation_for(step, **{**JOHN, "PatientID": "P7", "PatientName": "Bloggs^Joe"}))
    assert edited(step)


def test_former_identities_are_bounded(ctx, step):
    row = Patient.get(patient_id="P7").id
    for number in range(60):
        correct_patient(ctx, row, bytes(text_elements(PatientName=f"Doe^John{number}")))
    correct_patient(ctx, row, bytes(text_elements(PatientName="Doe^John59")))
    assert FormerIdentity.select().count() == 50


def test_former_identities_go_with_the_patient(ctx, step):
    row = Patient.get(patient_id="P7").id
    correct_patient(ctx, row, bytes(text_elements(PatientID="P70")))
    assert FormerIdentity.select().count() == 1
    database.execute_sql("DELETE FROM scheduled_station")
    database.execute_sql("DELETE FROM scheduled_procedure_step")
    database.execute_sql("DELETE FROM requested_procedure")
    database.execute_sql("DELETE FROM patient")
    assert FormerIdentity.select().count() == 0


def test_an_export_keeps_the_doubt(ctx, step):
    create(ctx, performed(step, PatientID="P8"))
    [link] = export_store()["performed"][0]["links"]
    assert link[-2:] == ["differs", ""]


def test_of_two_orders_only_that_of_another_patient_is_flagged(ctx, step):
    other = schedule(ctx, PatientName="Li^Na=李^娜", PatientID="P9")
    items = [scheduled_item(one) for one in (step, other)]
    create(ctx, performed(step, ScheduledStepAttributesSequence=items))
    assert doubtful_steps() == {step_row(other).id}


# On the pages.


@pytest.fixture
def doubtful(appliance):
    """Today's exam of John, which the CT reported for Joe; its page."""
    [step] = appliance.schedule(
        item(
            "Doe^John", PatientID="P7", ScheduledProcedureStepStartDate=appliance.context().today()
        )
    )
    told = creation_for(step, PatientName="Bloggs^Joe", PatientID="P9")
    appliance.write(create, appliance.context(), told)
    return f"/step/{appliance.read(step_row, step).id}"


def test_board_exam_and_unscheduled_ask_who_it_is(web, doubtful):
    assert "Other patient?" in web.get("/").text
    for path in (doubtful, "/unscheduled"):
        words = words_of(web.get(path))
        assert "Bloggs Joe, P9, 12 Mar 1978, M" in words.replace("Joe Bloggs", "Bloggs Joe")
        assert "Doe John, P7" in words


@pytest.mark.parametrize("page", ["exam", "/unscheduled"])
@pytest.mark.parametrize("action", ["/unscheduled/accept", "/unmatch"])
def test_a_person_decides_on_both_pages_and_is_told_of_the_images(web, doubtful, page, action):
    text = web.get(doubtful if page == "exam" else page).text
    form = re.search(f'<form method="post" action="{action}">(.*?)</form>', text, re.S)
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[1]))
    answer = web.post(action, data=fields)
    there = f"/unscheduled/match?performed=1&wrong={doubtful.rpartition('/')[2]}"
    there = doubtful if action.endswith("accept") else there
    assert (answer.status_code, answer.headers["location"]) == (303, there)
    assert "The images in the archive still carry" in web.get(there).text
    assert "Other patient?" not in web.get("/").text
    assert "Reported for another patient" not in web.get("/unscheduled").text


def test_after_the_decision_the_exam_says_who_the_images_name(web, doubtful):
    web.post("/unscheduled/accept", data={"performed": "1", "step": doubtful.rpartition("/")[2]})
    words = words_of(web.get(doubtful))
    assert "Patient at the machine Bloggs Joe, P9" in words
    assert "the order is for" not in words
    assert words.count("P7") == 2  # of the page and of its tab


def test_the_menu_counts_it_until_a_person_has_decided(web, doubtful):
    """The way to the page is not hidden while somebody has to decide there."""
    entry = r'<li><a href="/unscheduled"[^>]*>.*?<span class="count">(\d+)</span>'
    assert re.search(entry, web.get("/").text, re.S)[1] == "1"
    web.post("/unscheduled/accept", data={"performed": "1", "step": doubtful.rpartition("/")[2]})
    assert '<li><a href="/unscheduled"' not in web.get("/").text


def test_erasing_whom_a_machine_named_by_mistake_erases_the_name_in_the_report(ctx, step):
    schedule(ctx, PatientName="Bloggs^Joe", PatientID="P9", PatientBirthDate="19500101")
    told = performed(step, PatientID="P9", PatientName="Bloggs^Joe", PatientBirthDate="19500101")
    create_mpps(ctx, UID, stored_form(told), raw=b"Bloggs^Joe")
    assert edited(step)
    erase_patient(ctx, Patient.get(patient_id="P9").id, "asked for it")
    for table in ("performed_procedure_step", "performed_scheduled_step", "outbox"):
        for row in database.execute_sql(f"SELECT * FROM {table}"):
            assert b"Bloggs" not in repr(row).encode()
    assert (state(step), edited(step)) == ("STARTED", False)
    change(ctx, ending())
    assert state(step) == "COMPLETED"
    assert len(audit_lines("erased patient's name removed from report")) == 1


def test_erasing_whom_a_refused_change_named_erases_that_too(ctx, step):
    schedule(ctx, PatientName="Bloggs^Joe", PatientID="P9")
    create(ctx, performed(step))
    told = text_elements(PatientID="P9", PatientName="Bloggs^Joe")
    with pytest.raises(Refusal) as refusal:
        set_mpps(ctx, UID, bytes(told))
    refusal.value.afterwards()
    assert edited(step)
    erase_patient(ctx, Patient.get(patient_id="P9").id, "asked for it")
    assert b"Bloggs" not in repr(performed_of(step_row(step).id)).encode()
    assert not edited(step)
