"""What was decided from a state that is no more is asked about, never done in silence."""

import html.parser
import re

import pytest
from conftest import item
from test_pages import employ, visiting, words_of

from minris.access.context import Actor
from minris.access.users import make_token, make_user
from minris.dataset.elements import ElementIndex, text_elements
from minris.orders.catalogue import find_procedure, save_procedure
from minris.orders.lookup import step_key, step_row
from minris.orders.patients import correct_patient, get_patient
from minris.orders.steps import change_step
from minris.store.models import Audit, DeviceRecord, User, database
from minris.ups.people import assign_workitem
from minris.ups.workitems import create_workitem


class Forms(html.parser.HTMLParser):
    """The forms of a page: action, fields, and buttons as (words, name, value, action)."""

    def __init__(self, text):
        super().__init__()
        self.forms, self.form, self.button, self.select = [], None, None, None
        self.area = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        had = dict(attrs)
        if tag == "form":
            self.form = {"id": had.get("id"), "action": had.get("action"), "fields": [],
                         "method": had.get("method"), "buttons": []}  # fmt: skip
            self.forms.append(self.form)
        elif tag == "input" and self.form and had.get("type") not in ("checkbox", "radio"):
            self.form["fields"].append((had.get("name"), had.get("value") or ""))
        elif tag == "textarea" and self.form:
            self.area = had.get("name")
            self.form["fields"].append((self.area, ""))
        elif tag == "select":
            self.select = had.get("name")
        elif tag == "option" and self.form and "selected" in had:
            self.form["fields"].append((self.select, had.get("value") or ""))
        elif tag == "button":
            of = had.get("form")
            owner = next((one for one in self.forms if of and one["id"] == of), self.form)
            self.button = [owner, "", had.get("name"), had.get("value"), had.get("formaction")]

    def handle_data(self, data):
        if self.button:
            self.button[1] += data
        if self.area:
            self.form["fields"][-1] = self.area, data

    def handle_endtag(self, tag):
        if tag == "form":
            self.form = None
        elif tag == "textarea":
            self.area = None
        elif tag == "button" and self.button:
            owner, *button = self.button
            if owner is not None:
                owner["buttons"].append(button)
            self.button = None


def buttons_of(text):
    """All buttons of the forms of a page that change something: words, action, fields."""
    found = []
    for form in Forms(text).forms:
        for words, name, value, action in form["buttons"]:
            fields = dict(form["fields"]) | ({name: value} if name else {})
            if form["method"] == "post":
                found.append((words, action or form["action"], fields))
    return found


def button(text, words, number=0, **fields):
    """A button as it was made: its address and its fields, some of them typed in."""
    found = [one for one in buttons_of(text) if one[0].startswith(words)]
    assert found, words
    _, path, sent = found[number]
    return path, sent | fields


def press(client, made):
    path, fields = made
    return client.post(path, data=fields)


@pytest.fixture
def desk(appliance):
    with visiting(appliance) as client:
        yield employ(appliance, client)


@pytest.fixture
def admin(appliance):
    with visiting(appliance) as client:
        yield employ(appliance, client, "admin")


def mary(appliance, core, *arguments):
    """What a colleague does meanwhile."""
    ctx = appliance.context().by(Actor("mary", "10.0.0.7", "desk"))
    return appliance.write(core, ctx, *arguments)


def cancelled(appliance, row_id=1, event="cancel", remark="Patient phoned"):
    mary(appliance, change_step, event, *appliance.read(step_key, row_id), remark)


def status(appliance, row_id=1):
    return appliance.read(step_row, row_id).status


# An exam.


def test_a_cancelled_exam_does_not_come_back_by_the_form_of_another(appliance, desk):
    appliance.schedule(item(RequestedProcedureDescription="CT chest"))
    save = button(desk.get("/step/1/edit").text, "Save", comment="Claustrophobic")
    cancelled(appliance)
    answer = press(desk, save)
    assert answer.status_code == 409
    words = words_of(answer)
    assert re.search(
        r"Wang XiaoDong 王小东, CT chest.*: Cancelled, by mary at .*\d\d:\d\d\.", words
    )
    assert "Put it back on the list?" in words
    assert status(appliance) == "CANCELED"


def test_it_comes_back_when_that_is_answered_and_nothing_of_the_cancelling_stays(appliance, desk):
    appliance.schedule(item())
    save = button(desk.get("/step/1/edit").text, "Save", comment="Claustrophobic")
    cancelled(appliance)
    press(desk, button(press(desk, save).text, "Put back on the worklist"))
    row = appliance.read(step_row, 1)
    assert (row.status, row.remark) == ("SCHEDULED", "")
    assert ElementIndex(row.data).get("RequestedProcedureComments") == "Claustrophobic"
    lines = appliance.read(
        lambda: [one.detail for one in Audit.select().where(Audit.what == "step")]
    )
    assert [line.partition(" ")[2] for line in lines] == ["CANCELED", "SCHEDULED"]


def test_the_form_of_a_cancelled_exam_says_what_saving_does(appliance, desk):
    appliance.schedule(item())
    cancelled(appliance)
    page = desk.get("/step/1/edit").text
    assert "The exam is Cancelled: saving puts it back on the list." in page
    save = button(page, "Save, and put it back on the list", comment="New")
    assert press(desk, save).status_code == 303
    assert status(appliance) == "SCHEDULED"


@pytest.mark.parametrize(
    ("meanwhile", "pressed"),
    [("cancel", "Check in"), ("arrive", "Mark as no-show"), ("arrive", "Cancel"),
     ("no show", "Cancel"), ("no show", "Check in")],
)  # fmt: skip
@pytest.mark.parametrize("page", ["/", "/step/1"])
def test_a_button_of_a_state_that_is_no_more_asks(appliance, desk, page, meanwhile, pressed):
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    made = button(desk.get(page).text, pressed)
    cancelled(appliance, event=meanwhile)
    before = status(appliance)
    answer = press(desk, made)
    assert answer.status_code == 409
    assert "by mary at" in words_of(answer)
    assert status(appliance) == before


def test_a_second_click_and_what_does_no_harm_pass(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    page = desk.get("/").text
    assert press(desk, button(page, "Check in")).status_code == 303
    assert press(desk, button(page, "Check in")).status_code == 303
    save = button(desk.get("/step/1/edit").text, "Save", time="11:00")
    cancelled(appliance, event="ready")
    assert press(desk, save).status_code == 303
    assert status(appliance) == "READY"


def test_what_can_no_longer_be_done_is_said_with_who_and_offers_nothing(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    made = button(desk.get("/").text, "Cancel")
    cancelled(appliance, event="finish")
    answer = press(desk, made)
    assert answer.status_code == 409
    assert "Done, by mary" in words_of(answer)
    assert not [one for one in buttons_of(answer.text) if one[1].startswith("/step/1")]


def test_to_take_back_means_the_change_that_was_shown(appliance, desk):
    appliance.schedule(item())
    press(desk, button(desk.get("/step/1").text, "Check in"))
    made = button(desk.get("/step/1").text, "Undo: Waiting")
    cancelled(appliance)
    answer = press(desk, made)
    assert answer.status_code == 409
    assert status(appliance) == "CANCELED"
    assert press(desk, button(answer.text, "Undo: Cancelled")).status_code == 303
    assert status(appliance) == "ARRIVED"


def test_a_row_with_the_number_of_an_erased_one_is_another_exam(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    made = button(desk.get("/").text, "Check in")

    def replaced(ctx):
        for table in ("undo_note", "scheduled_station", "scheduled_procedure_step",
                      "requested_procedure"):  # fmt: skip
            database.execute_sql(f"DELETE FROM {table}")

    mary(appliance, replaced)
    appliance.schedule(item(PatientID="P2", PatientName="Li^Na"))
    assert press(desk, made).status_code == 409
    assert status(appliance) == "SCHEDULED"


def test_leftovers_are_settled_as_they_were_seen_or_none_is(appliance, desk):
    for number in range(2):
        appliance.schedule(item(PatientID=f"P{number}", PatientName=f"Leftover{number}",
                                ScheduledProcedureStepStartDate="20200101"))  # fmt: skip
    page = desk.get("/leftovers").text
    cancelled(appliance, 2, "arrive", "")
    path, fields = button(page, "Mark as no-show")
    marks = re.findall(r'name="step_state" value="([^"]*)"', page)
    answer = desk.post(path, data=fields | {"row": ["1", "2"], "step_state": marks})
    assert answer.status_code == 409
    assert re.search("Leftover1.*Waiting, by mary", words_of(answer))
    assert [status(appliance, row) for row in (1, 2)] == ["SCHEDULED", "ARRIVED"]


# Patients.


def test_what_was_corrected_meanwhile_is_not_undone_by_a_registration(appliance, desk):
    known = {"PatientBirthDate": "19780312", "PatientSex": "F"}
    appliance.schedule(item(PatientTelephoneNumbers="111", **known))
    made = button(desk.get("/register?patient=1").text, "Register", device="CT1", procedure="CT")
    given = bytes(text_elements(PatientTelephoneNumbers="222"))
    mary(appliance, correct_patient, 1, given)
    answer = press(desk, made)
    assert answer.status_code == 409
    assert "was changed to 222" in words_of(answer)
    assert press(desk, button(answer.text, "Register")).status_code == 303
    assert ElementIndex(appliance.read(get_patient, 1)).get("PatientTelephoneNumbers") == "222"


@pytest.mark.parametrize(
    ("path", "words", "typed"),
    [("/patient/1/merge", "Search", {"choose": "2", "sure": "yes", "event": "", "reason": "Twice"}),
     ("/patient/1/erase", "Erase", {"patient_id": "P1", "reason": "Wish"})],
)  # fmt: skip
def test_who_has_become_another_person_is_neither_merged_nor_erased(
    appliance, admin, path, words, typed
):
    appliance.schedule(item(PatientID="P1"), item(PatientID="P2", PatientName="Li^Na"))
    made = button(admin.get(path).text, words, **typed)
    mary(appliance, correct_patient, 1, bytes(text_elements(PatientName="Zhao^Min")))
    answer = press(admin, made)
    assert answer.status_code == 409
    assert "Zhao Min P1: patient corrected, by mary" in words_of(answer)
    assert appliance.read(get_patient, 1)


# Workitems, devices, users, the catalogue.


def test_a_workitem_that_was_assigned_meanwhile_is_asked_about(appliance, desk):
    def made_one(ctx):
        from minris.pages.after_exam.workitems import WORKITEM_FIELDS, workitem_from_form

        form = {row.name: "" for row in WORKITEM_FIELDS} | {
            "label": "3D", "code": "110005", "priority": "MEDIUM", "readiness": "READY",
            "date": "2030-01-01", "time": "10:00"}  # fmt: skip
        return create_workitem(ctx, "2.25.7", workitem_from_form(form))

    mary(appliance, made_one)
    made = button(desk.get("/workitem/2.25.7").text, "Assign it", performer="Tom")
    mary(appliance, assign_workitem, "2.25.7", "", "Mary")
    answer = press(desk, made)
    assert answer.status_code == 409
    assert "workitem assigned, by mary" in words_of(answer)
    assert press(desk, button(answer.text, "Do it all the same")).status_code == 303


def test_a_device_that_another_has_saved_is_not_overwritten_in_silence(appliance, admin):
    path, fields = button(admin.get("/devices/edit").text, "Save", name="New CT", ae_title="CT7")
    admin.post(path, data=fields)
    edit = "/devices/edit?name=New+CT"
    mine = button(admin.get(edit).text, "Save", host="10.0.0.1")
    gone = button(admin.get(edit).text, "Delete")
    press(admin, button(admin.get(edit).text, "Save", host="10.0.0.2"))
    answer = press(admin, mine)
    assert answer.status_code == 409
    assert "New CT: device saved, by anna" in words_of(answer)
    sure = button(press(admin, gone).text, "Delete")
    assert press(admin, sure).status_code == 409
    assert "10.0.0.2" in appliance.read(lambda: DeviceRecord.get().settings)


def test_a_new_procedure_does_not_replace_one_of_the_same_code(appliance, admin):
    made = button(admin.get("/catalogue").text, "Save", code="CTC", meaning="CT cranium")
    mary(appliance, save_procedure, {"code": "CTC", "meaning": "CT chest"})
    assert press(admin, made).status_code == 409
    assert appliance.read(find_procedure, "CTC").meaning == "CT chest"


def test_a_new_user_does_not_replace_one_of_the_same_name(appliance, admin):
    mary(appliance, make_user, "tom", "technologist", "correct horse")
    mary(appliance, make_token, "pacs", "desk")
    page = admin.get("/users/new").text
    answer = press(admin, button(page, "Save", name="tom", role="admin", password="battery staple",
                                 kind="person"))  # fmt: skip
    assert answer.status_code == 409
    assert "There is a user tom" in words_of(answer)
    assert appliance.read(lambda: User.get(User.name == "tom").role) == "technologist"
    again = button(answer.text, "Save", role="admin", password="battery staple", kind="person")
    assert press(admin, again).status_code == 303
    assert appliance.read(lambda: User.get(User.name == "tom").role) == "admin"
    answer = press(admin, button(page, "Save", name="pacs", kind="token", role="desk", password=""))
    assert "There is a token pacs" in words_of(answer)


# What cannot be taken back is asked in a sentence that names it.


def test_a_user_is_deleted_after_a_question_that_names_the_user(appliance, admin):
    mary(appliance, make_user, "tom", "desk", "correct horse")
    made = button(admin.get("/users").text, "Delete", 2)
    answer = press(admin, made)
    assert "Delete the user tom?" in words_of(answer)
    assert appliance.read(lambda: User.select().where(User.name == "tom").count()) == 1
    assert press(admin, button(answer.text, "Delete")).status_code == 303
    assert "tom was deleted." in words_of(admin.get("/users"))
    assert appliance.read(lambda: User.select().where(User.name == "tom").count()) == 0


def test_a_question_is_asked_anew_of_a_user_who_has_become_another(appliance, admin):
    mary(appliance, make_user, "tom", "desk", "correct horse")
    sure = button(press(admin, button(admin.get("/users").text, "Delete", 2)).text, "Delete")
    mary(appliance, make_user, "tom", "admin", "correct horse")
    assert press(admin, sure).status_code == 409
    assert appliance.read(lambda: User.select().where(User.name == "tom").count()) == 1


@pytest.mark.parametrize(
    ("event", "words"), [("Cancel", "Cancelled"), ("Mark as no-show", "No-show")]
)
def test_a_button_of_the_board_is_answered_with_who_and_what_and_how_to_undo(
    appliance, desk, event, words
):
    appliance.schedule(item(RequestedProcedureDescription="CT chest",
                            ScheduledProcedureStepStartDate=appliance.context().today()))  # fmt: skip
    press(desk, button(desk.get("/").text, event))
    board = desk.get("/")
    assert re.search(f"Wang XiaoDong 王小东, CT chest, .*: {words}.", words_of(board))
    if event == "Cancel":
        press(desk, button(board.text, "Keep the reason", remark="Patient phoned"))
        assert appliance.read(step_row, 1).remark == "Patient phoned"
        board = desk.get("/")
    undo = button(board.text, f"Undo: {words}")
    assert press(desk, undo).status_code == 303
    assert (status(appliance), appliance.read(step_row, 1).remark) in (
        ("SCHEDULED", ""), ("CANCELED", ""))  # fmt: skip


# Every button carries what it was made from.

FREE = {  # what depends on no state
    "/logout", "/register", "/workitems/new", "/box", "/devices/echo", "/import", "/password",
    "/users", "/devices/save", "/passed-on", "/watchers", "/orphans", "/why/mend",
}  # fmt: skip


def test_every_button_carries_the_state_it_was_made_from(appliance, admin):
    today = appliance.context().today()
    appliance.schedule(item(ScheduledProcedureStepStartDate=today),
                       item(PatientID="P2", ScheduledProcedureStepStartDate="20200101"))  # fmt: skip
    press(admin, button(admin.get("/step/1").text, "Check in"))
    paths = ["/", "/step/1", "/step/1/edit", "/patient/1", "/patient/1/merge", "/patient/1/erase",
             "/leftovers", "/users", "/users/new", "/catalogue", "/unscheduled"]  # fmt: skip
    for page in paths:
        for words, path, fields in buttons_of(admin.get(page).text):
            carried = [
                name for name in fields if name.endswith("_state") or name in ("seen", "known")
            ]
            bare = path.partition("?")[0]
            if bare not in FREE or fields.get("do") == "delete":
                assert carried or "_state=" in path, (page, words, path, fields)
