"""The waiting room: numbers, calling, and a screen with a token of its own."""

import datetime

import httpx
import pytest
from conftest import item
from test_pages import csrf_of, employ, visiting, words_of

from minris.access.users import delete_token, make_token
from minris.orders.waiting import call_patient, known_number, number_of, waiting_on
from minris.standard.status import Refusal, Status
from minris.store.models import WaitingNumber


@pytest.fixture
def waiting(appliance):
    """Three exams of today; Ouyang Na has two of them."""
    today = {"ScheduledProcedureStepStartDate": appliance.context().today()}
    appliance.schedule(item("Ouyang^Na=欧阳^娜", PatientID="P1", **today))
    appliance.schedule(item("Miller^Anna", PatientID="P2", **today))
    appliance.schedule(
        item("Ouyang^Na=欧阳^娜", PatientID="P1", ScheduledStationAETitle="DX1", **today), same_id="join"
    )  # fmt: skip
    return appliance


@pytest.fixture
def desk(waiting):
    with visiting(waiting) as client:
        yield employ(waiting, client)


def step(client, row_id, event):
    return client.post(
        f"/step/{row_id}", data={"csrf": csrf_of(client.get("/").text), "event": event}
    )


@pytest.fixture
def screen(waiting):
    """A screen that was opened with its token."""
    secret = waiting.write(make_token, waiting.context(), "screen", "kiosk")
    with httpx.Client(base_url=waiting.url, trust_env=False) as client:
        answer = client.get(f"/screen?token={secret}")
        assert (answer.status_code, answer.headers["Location"]) == (303, "/screen")
        yield client


def test_a_patient_has_one_number_for_a_day(waiting):
    numbers = [waiting.write(number_of, waiting.context(), row_id) for row_id in (1, 2, 3, 1)]
    assert numbers == [1, 2, 1, 1]


def test_another_day_begins_with_one_and_old_days_are_dropped(waiting):
    context = waiting.context()
    tomorrow = f"{context.local_now().date() + datetime.timedelta(days=1):%Y%m%d}"
    for row_id, date in ((4, "20260101"), (5, tomorrow)):
        waiting.schedule(item(f"Other^{date}", ScheduledProcedureStepStartDate=date))
        assert waiting.write(number_of, context, row_id) == 1
    days = waiting.read(lambda: [row.day for row in WaitingNumber.select()])
    assert days == [tomorrow]


def test_who_checks_in_has_a_number(desk, waiting):
    assert waiting.read(known_number, 2) == 0
    step(desk, 2, "arrive")
    assert waiting.read(known_number, 2) == 1


def test_slip_and_label_have_the_number(desk):
    assert "Your number in the waiting room: 1" in words_of(desk.get("/step/1/slip"))
    assert "No. 1" in words_of(desk.get("/step/1/label"))
    assert "No. 2" in words_of(desk.get("/step/2/label"))


def test_who_is_called_stands_first_on_the_screen(desk, waiting, screen):
    for row_id in (1, 2):
        step(desk, row_id, "arrive")
    assert "1 欧阳* CT room" in words_of(screen.get("/screen?part=board"))
    assert "Call" in words_of(desk.get("/"))
    step(desk, 2, "call")
    shown = words_of(screen.get("/screen"))
    assert "2 M*** A Please go to CT room 1 欧阳* CT room Waiting" in shown
    assert "called " in words_of(desk.get("/"))
    assert waiting.read(waiting_on, waiting.context().today())[2].called_at
    assert "Please go to" in words_of(desk.get("/waiting"))


def test_only_who_waits_is_called(waiting):
    with pytest.raises(Refusal) as refusal:
        waiting.write(call_patient, waiting.context(), 1)
    assert refusal.value.status is Status.PROCESSING_FAILURE


def test_who_has_gone_in_is_called_no_more(desk, waiting, screen):
    step(desk, 2, "arrive")
    step(desk, 2, "call")
    step(desk, 2, "cancel")
    assert "Please go to" not in words_of(screen.get("/screen"))


@pytest.mark.parametrize(
    "path", ["/", "/waiting", "/step/1", "/patients", "/users", "/api/worklist"]
)
def test_a_screen_sees_its_page_alone(screen, path):
    answer = screen.get(path)
    assert answer.status_code in (303, 401, 405)
    assert "Miller" not in answer.text


def test_the_token_of_a_screen_is_no_token_of_a_program(waiting):
    secret = waiting.write(make_token, waiting.context(), "screen", "kiosk")
    headers = {"Authorization": f"Bearer {secret}"}
    for path in ("/", "/waiting", "/dicom-web/workitems", "/step/1"):
        answer = httpx.get(waiting.url + path, headers=headers, trust_env=False)
        assert answer.status_code in (303, 401, 403), path


def test_a_screen_without_its_token_sees_nothing(waiting, screen):
    assert screen.get("/screen").status_code == 200
    waiting.write(delete_token, waiting.context(), "screen")
    for path in ("/screen", "/screen?part=board", "/screen?token=guessed"):
        answer = screen.get(path)
        assert answer.status_code == 401
        assert "no valid token" in words_of(answer)


def test_a_screen_hears_of_changes(screen, desk):
    with screen.stream("GET", "/events") as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert next(lines).startswith("retry")
        step(desk, 1, "arrive")
        assert any(line.startswith("data:") for line in lines)


def test_the_users_page_gives_the_address_of_a_screen(appliance):
    with visiting(appliance) as client:
        employ(appliance, client, "admin")
        form = {"do": "save", "name": "Room 1", "kind": "token", "role": "kiosk"}
        page = client.get("/users/new").text
        known = page.partition('name="known" value="')[2].partition('"')[0]
        words = words_of(client.post("/users", data=form | {"csrf": csrf_of(page), "known": known}))
        address = words.partition("shown this once: ")[2].split()[0]
        assert address.startswith(f"{appliance.url}/screen?token=")
        assert httpx.get(address, trust_env=False).status_code == 303
