"""Section 9: what people have changed of patients and exams is taken back for a day."""

import dataclasses
import datetime
import re

import pytest
from conftest import item
from test_calendar import edited
from test_mpps import schedule
from test_pages import csrf_of, employ, visiting, words_of

from minris.access.context import Actor, audit_lines
from minris.dataset.elements import ElementIndex, text_elements
from minris.housekeeping.erasing import erase_patient
from minris.housekeeping.retention import purge
from minris.orders.history import visit_of
from minris.orders.lookup import step_key, step_row
from minris.orders.patients import correct_patient, merge_patients
from minris.orders.scheduling import move_step, reschedule
from minris.orders.steps import change_step, enter_state
from minris.orders.undo import undo, undoable
from minris.standard.status import Refusal, Status
from minris.store.models import RequestedProcedure, UndoNote, database
from minris.store.rows import fetch_rows


@pytest.fixture
def desk(ctx):
    """Anna at reception: what programs and machines change is not hers to take back."""
    return dataclasses.replace(ctx, actor=Actor("anna", "127.0.0.1", "desk"))


def texts(**values):
    return bytes(text_elements(**values))


def everything():
    """All rows of patients, orders and steps, without what a change always changes."""
    found = {}
    for table in ("patient", "requested_procedure", "scheduled_procedure_step",
                  "scheduled_station"):  # fmt: skip
        cursor = database.execute_sql(f"SELECT * FROM {table} ORDER BY 1, 2, 3")
        names = [column[0] for column in cursor.description]
        found[table] = [
            {name: value for name, value in zip(names, row, strict=True) if name != "version"}
            for row in cursor
        ]
    return found


def step_data(row_id=1):
    return ElementIndex(bytes(step_row(row_id).data))


def move(ctx, row_id=1, **keywords):
    move_step(ctx, row_id, **keywords)


def correct(ctx, row_id=1, **values):
    correct_patient(ctx, row_id, texts(**values))


# Taking back.


def test_a_correction_of_a_patient_is_taken_back_and_open_exams_follow(desk):
    schedule(desk, PatientID="P1")
    before = everything()
    correct(desk, PatientName="Zhang^Wei=张^伟", PatientWeight="75")
    assert step_data().get("PatientName") == "Zhang^Wei=张^伟"
    undo(desk, "patient 1")
    assert everything() == before
    assert step_data().get("PatientName") == "Wang^XiaoDong=王^小东"


def test_a_change_of_an_exam_is_taken_back(desk):
    schedule(desk, PatientID="P1")
    before = everything()
    move(desk, ScheduledProcedureStepStartDate="20260801", ScheduledStationAETitle="US1",
         Modality="US")  # fmt: skip
    assert step_row(1).start_date == "20260801"
    undo(desk, "step 1")
    assert everything() == before


def test_an_exam_that_has_come_meanwhile_stays_arrived(desk):
    """Another system has told so; what a person has told is the last change, and first to go."""
    schedule(desk)
    move(desk, ScheduledProcedureStepStartTime="1500")
    ris = dataclasses.replace(desk, actor=Actor("RIS"))
    move(ris, ScheduledProcedureStepStatus="ARRIVED")
    undo(desk, "step 1")
    row = step_row(1)
    assert (row.status, row.start_time[:4]) == ("ARRIVED", "0930")


def test_states_and_changes_of_an_exam_are_taken_back_in_turn(desk):
    schedule(desk)
    before = everything()
    move(desk, ScheduledProcedureStepStartTime="1500")
    change_step(desk, "arrive", *step_key(1))
    move(desk, ScheduledProcedureStepStartTime="1600")
    found = []
    for _ in range(3):
        row, (note, _) = step_row(1), undoable(desk, "step 1")
        found.append((note.what, row.status, row.start_time[:4]))
        undo(desk, "step 1")
    assert found == [("Exam changed", "ARRIVED", "1600"), ("ARRIVED", "ARRIVED", "1500"),
                     ("Exam changed", "SCHEDULED", "1500")]  # fmt: skip
    assert everything() == before


def test_an_end_that_is_taken_back_leaves_no_trace_in_the_times_before(desk):
    schedule(desk)
    change_step(desk, "arrive", *step_key(1))
    before = everything()
    change_step(later(desk, minutes=9), "finish", *step_key(1))
    assert step_row(1).told_by == "anna"
    undo(later(desk, minutes=10), "step 1")
    assert everything() == before


def test_an_exam_that_is_open_again_has_the_corrected_name(desk):
    schedule(desk, PatientID="P1")
    change_step(desk, "finish", *step_key(1))
    correct(desk, PatientName="Zhang^Wei=张^伟")
    undo(desk, "step 1")
    assert step_data().get("PatientName") == "Zhang^Wei=张^伟"


def test_a_merge_is_taken_back_with_all_that_was_moved(desk):
    schedule(desk, PatientID="P1")
    schedule(desk, PatientID="P9", PatientName="Wang^X", PatientWeight="70")
    schedule(desk, PatientID="P9", PatientName="Wang^X")
    before = everything()
    merge_patients(desk, 2, "P1", "Typed twice")
    assert len(everything()["patient"]) == 1
    undo(desk, "patient 1")
    assert everything() == before
    assert step_data(2).get("PatientID") == "P9"


def test_orders_that_went_to_another_patient_come_back(desk):
    """The unknown emergency patient was taken for somebody else."""
    schedule(desk, PatientID="P1", PatientBirthDate="19780312")
    schedule(desk, PatientID="P9", PatientName="Unknown^Emergency")
    before = everything()
    correct(desk, 2, PatientID="P1", PatientName="Wang^XiaoDong=王^小东")
    assert step_data(2).get("PatientID") == "P1"
    undo(desk, "patient 1")
    assert everything() == before


def test_each_change_is_taken_back_the_last_one_first(desk):
    schedule(desk)
    for time in ("1000", "1100"):
        move(desk, ScheduledProcedureStepStartTime=time)
    undo(desk, "step 1")
    assert step_row(1).start_time[:4] == "1000"
    undo(desk, "step 1")
    assert step_row(1).start_time[:4] == "0930"
    with pytest.raises(Refusal, match="nothing to undo"):
        undo(desk, "step 1")


# What is not taken back.


def test_what_was_changed_again_by_another_way_stays(desk, ctx):
    schedule(desk)
    move(desk, ScheduledProcedureStepStartTime="1000")
    move(dataclasses.replace(ctx, actor=Actor("RIS")), ScheduledProcedureStepStartTime="1100")
    with pytest.raises(Refusal, match="changed again") as refusal:
        undo(desk, "step 1")
    assert refusal.value.status is Status.PROCESSING_FAILURE
    assert step_row(1).start_time[:4] == "1100"


def test_a_patient_that_was_changed_after_a_merge_stays_merged(desk, ctx):
    schedule(desk, PatientID="P1")
    schedule(desk, PatientID="P9", PatientName="Wang^X", Allergies="Penicillin")
    merge_patients(desk, 2, "P1", "Typed twice")
    machine = dataclasses.replace(ctx, actor=Actor("RIS"))
    correct_patient(machine, 1, texts(PatientWeight="80"))
    with pytest.raises(Refusal, match="changed again"):
        undo(desk, "patient 1")
    assert len(everything()["patient"]) == 1


def test_an_exam_that_has_begun_keeps_its_change(desk):
    schedule(desk)
    move(desk, ScheduledProcedureStepStartTime="1000")
    enter_state(desk, step_row(1), "STARTED", "performed step")
    before = everything()
    with pytest.raises(Refusal, match="progressed"):
        undo(desk, "step 1")
    assert everything() == before


def later(ctx, **span):
    return dataclasses.replace(ctx, now=lambda: ctx.now() + datetime.timedelta(**span))


def test_an_order_does_not_change_behind_an_exam_that_was_done_meanwhile(desk):
    schedule(desk, AccessionNumber="ACC1")
    study, step_id = step_key(1)
    reschedule(desk, study, step_id, texts(AccessionNumber="ACC2"))
    enter_state(later(desk, minutes=9), step_row(1), "COMPLETED", "performed step")
    with pytest.raises(Refusal, match="progressed"):
        undo(desk, "step 1")
    assert undoable(desk, "step 1")[1], "no button is offered"
    [order] = fetch_rows(RequestedProcedure, "1 = 1")
    assert order.accession_number == "ACC2"


def test_a_merge_stays_when_an_exam_was_done_under_the_other_name(desk):
    schedule(desk, PatientID="P1")
    schedule(desk, PatientID="P2", PatientName="Wang^X")
    merge_patients(desk, 1, "P2", "Typed twice")
    change_step(later(desk, minutes=9), "finish", *step_key(1))
    with pytest.raises(Refusal, match="progressed"):
        undo(desk, "patient 2")


def test_who_was_a_no_show_before_the_move_is_one_again(desk):
    schedule(desk)
    change_step(desk, "no show", *step_key(1))
    move(desk, ScheduledProcedureStepStartDate="20260801")
    assert step_row(1).status == "SCHEDULED"
    undo(desk, "step 1")
    row = step_row(1)
    assert (row.status, row.start_date) == ("NO SHOW", "20260705")


def test_a_patient_id_that_somebody_else_has_by_now_does_not_come_back(desk):
    schedule(desk, PatientID="P1")
    correct(desk, PatientID="P2")
    schedule(desk, PatientID="P1", PatientName="Li^Si")
    with pytest.raises(Refusal, match="P1 belongs to another patient"):
        undo(desk, "patient 1")


def test_a_merged_patient_whose_id_was_given_again_does_not_come_back(desk):
    schedule(desk, PatientID="P1")
    schedule(desk, PatientID="P2", PatientName="Wang^X")
    merge_patients(desk, 1, "P2", "Typed twice")
    schedule(desk, PatientID="P1", PatientName="Li^Si")
    with pytest.raises(Refusal, match="P1 belongs to another patient"):
        undo(desk, "patient 2")


def test_an_accession_number_that_somebody_else_has_by_now_does_not_come_back(desk):
    schedule(desk, AccessionNumber="ACC1", PatientID="P1")
    reschedule(desk, *step_key(1), texts(AccessionNumber="ACC2"))
    schedule(desk, AccessionNumber="ACC1", PatientID="P9", PatientName="Li^Si")
    with pytest.raises(Refusal, match="ACC1 belongs to another patient"):
        undo(desk, "step 1")


def test_an_exam_that_the_machine_has_ended_again_stays_ended(desk):
    """The person's word came first; the machine has told of a start and an end since."""
    schedule(desk)
    change_step(desk, "finish", *step_key(1))
    for state in ("STARTED", "COMPLETED"):
        enter_state(later(desk, minutes=9), step_row(1), state, "performed step")
    with pytest.raises(Refusal, match="changed again"):
        undo(desk, "step 1")
    assert step_row(1).told_by == "performed step"


def test_orders_do_not_go_back_to_a_patient_who_is_gone(desk):
    schedule(desk, PatientID="P1", PatientBirthDate="19780312")
    schedule(desk, PatientID="P2", PatientName="Unknown^Emergency")
    schedule(desk, PatientID="P3", PatientName="Li^Si")
    correct(desk, 2, PatientID="P1", PatientName="Wang^XiaoDong=王^小东")
    merge_patients(desk, 2, "P3", "Typed twice")
    with pytest.raises(Refusal, match="changed again"):
        undo(desk, "patient 1")


def test_a_change_whose_patient_was_erased_is_forgotten(desk):
    schedule(desk, PatientID="P1", PatientBirthDate="19780312")
    schedule(desk, PatientID="P2", PatientName="Unknown^Emergency")
    correct(desk, 2, PatientID="P1", PatientName="Wang^XiaoDong=王^小东")
    erase_patient(desk, 2, "Asked for it")
    with pytest.raises(Refusal, match="nothing to undo"):
        undo(desk, "patient 1")


def test_who_was_merged_with_an_erased_patient_is_erased_too(desk):
    schedule(desk, PatientID="P1", PatientName="Secret^Person")
    schedule(desk, PatientID="P2", PatientName="Secret^Person")
    merge_patients(desk, 1, "P2", "Typed twice")
    erase_patient(desk, 2, "Asked for it")
    assert fetch_rows(UndoNote, "1 = 1") == []


def test_after_a_day_a_change_stays_and_is_forgotten(desk):
    schedule(desk)
    move(desk, ScheduledProcedureStepStartTime="1000")
    tomorrow = later(desk, hours=25)
    assert undoable(tomorrow, "step 1")[0] is None
    purge(tomorrow)
    assert fetch_rows(UndoNote, "1 = 1") == []


def test_what_machines_and_jobs_do_is_not_kept(ctx):
    schedule(ctx, PatientID="P1")
    move(ctx, ScheduledProcedureStepStartTime="1000")
    correct(ctx, PatientWeight="75")
    assert fetch_rows(UndoNote, "1 = 1") == []


def test_what_changed_nothing_is_nothing_to_take_back(desk):
    schedule(desk, PatientID="P1", PatientWeight="75")
    correct(desk, PatientWeight="75")
    note, _ = undoable(desk, "patient 1")
    assert note is None or '"P1"' in note.images


def test_an_erased_patient_is_erased_from_here_too(desk):
    schedule(desk, PatientID="P1")
    correct(desk, PatientName="Zhang^Wei=张^伟")
    move(desk, ScheduledProcedureStepStartTime="1000")
    erase_patient(desk, 1, "Asked for it")
    assert fetch_rows(UndoNote, "1 = 1") == []


def test_it_is_in_the_audit_log(desk):
    schedule(desk)
    move(desk, ScheduledProcedureStepStartTime="1000")
    undo(desk, "step 1")
    [line] = audit_lines("change taken back")
    assert (line.who, line.about) == ("anna@127.0.0.1", "step 1")


# The pages.


def test_a_change_is_taken_back_on_the_page_of_the_exam(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        employ(appliance, client)
        client.post("/step/1/edit", data=edited(client, "/step/1/edit", time="11:00"))
        page = client.get("/step/1")
        assert "Undo: Exam changed (anna" in words_of(page)
        answer = client.post("/step/1", data={"csrf": csrf_of(page.text), "event": "undo"})
        assert answer.headers["location"] == "/step/1"
        shown = words_of(client.get("/step/1"))
        assert ("Undone." in shown, "09:30" in shown) == (True, True)


def test_a_correction_is_taken_back_on_the_page_of_the_patient(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        employ(appliance, client)
        client.post("/patient/1", data=edited(client, "/patient/1", family_name="Wong"))
        page = client.get("/patient/1").text
        assert re.search(r'name="event" value="undo">Undo: Patient corrected', page)
        client.post("/patient/1", data={"csrf": csrf_of(page), "event": "undo"})
        assert 'value="Wang"' in client.get("/patient/1").text
        again = client.post("/patient/1", data={"csrf": csrf_of(page), "event": "undo"})
        assert "nothing to undo" in again.text


def identities():
    cursor = database.execute_sql(
        "SELECT id, patient_id, former_id, merged, data FROM former_identity ORDER BY id"
    )
    return cursor.fetchall()


@pytest.mark.parametrize("by", ["merge", "identifying"])
def test_former_identities_come_back_to_the_patient_who_had_them(desk, by):
    schedule(desk, PatientID="P1", PatientBirthDate="19780312")
    schedule(desk, PatientID="P9", PatientName="Doe^Jane", PatientBirthDate="19780312")
    for row, own in ((1, "P10"), (2, "P90")):
        correct(desk, row, PatientID=own)
    before = identities()
    if by == "merge":
        merge_patients(desk, 2, "P10", "Typed twice")
    else:
        correct(desk, 2, PatientID="P10", PatientName="Wang^XiaoDong=王^小东")
    assert {owner for _, owner, *_ in identities()} == {1}
    undo(desk, "patient 1")
    assert identities() == before


def test_an_undone_cancelling_is_on_the_time_line(desk):
    schedule(desk)
    change_step(desk, "cancel", *step_key(1))
    undo(desk, "step 1")
    told = [str(moment.what) for moment in visit_of(1)]
    assert [words for words in told if "undone" in words.casefold()] == ["Undone: CANCELED"], told
    assert "Put back on the worklist" in told
