"""Who has viewed which patient; error pages that name the thing; the import page helps along."""

import re

import pytest
from conftest import item
from test_pages import employ, visiting, words_of

from minris.interchange.csv_tables import names_of_columns, sample_list
from minris.orders.patients import merge_patients
from minris.orders.views import note_view, views_of


@pytest.fixture
def noted(run_appliance):
    running = run_appliance("[web]\naccess_log = yes\n")
    running.schedule(item("Li^Na", PatientID="P1"), item("Wang^Fang", PatientID="P2"))
    return running


def seen(running, patient=1):
    running.write(lambda: None)  # what was submitted before is done
    return [(one.who, one.what) for one in running.read(views_of, patient)]


def test_who_opens_pages_about_a_patient_is_noted_once_in_a_while(noted):
    with visiting(noted) as client:
        employ(noted, client)
        for path in (
            "/patient/1",
            "/step/1",
            "/step/1/label",
            "/step/1",
            "/",
            "/patients",
            "/step/99",
        ):
            client.get(path)
    expected = [("anna", "/step/*/label"), ("anna", "/step/*"), ("anna", "/patient/*")]
    assert seen(noted) == expected
    assert seen(noted, 2) == []


def test_administrators_see_it_on_the_page_of_the_patient(noted):
    with visiting(noted) as client:
        employ(noted, client, "admin")
        page = client.get("/patient/1")
        assert "Who has viewed this patient" in words_of(page)
        seen(noted)
        words = words_of(client.get("/patient/1/views"))
        assert re.search(r"anna 127\.0\.0\.1 Patient", words)


def test_others_do_not(noted):
    with visiting(noted) as client:
        employ(noted, client, "technologist")
        assert "Who has viewed" not in words_of(client.get("/patient/1"))
        assert client.get("/patient/1/views").status_code == 403


def test_without_the_setting_nothing_is_noted(appliance):
    appliance.schedule(item("Li^Na"))
    with visiting(appliance) as client:
        employ(appliance, client, "admin").get("/patient/1")
        assert seen(appliance) == []
        assert "set [web] access_log" in words_of(client.get("/patient/1/views"))


def test_views_go_with_a_patient_who_is_merged(noted):
    noted.write(note_view, noted.context(), "/patient/*", 1)
    noted.write(merge_patients, noted.context(), 1, "P2", "the same")
    assert seen(noted, 2) == [("desk", "/patient/*")]


def test_no_more_than_a_bound_are_kept(noted, monkeypatch):
    monkeypatch.setattr("minris.orders.views.MOST_VIEWS", 3)
    for n in range(6):
        noted.write(note_view, noted.context(f"user{n}"), "/patient/*", 1)
    assert [who for who, _ in seen(noted)] == ["user5", "user4", "user3"]


@pytest.mark.parametrize(
    ("path", "status", "title", "words"),
    [
        ("/nowhere", 404, "Page not found", "There is nothing at this address"),
        ("/step/99", 404, "Page not found", ""),
        ("/audit", 403, "Not allowed", "may open this page; you are logged in as"),
    ],
)
def test_an_error_page_names_the_thing(appliance, path, status, title, words):
    with visiting(appliance) as client:
        answer = employ(appliance, client).get(path)
    assert answer.status_code == status
    assert f"<h1>{title}</h1>" in answer.text
    assert words in words_of(answer)


def test_the_import_page_names_columns_and_has_a_sample_that_it_takes(appliance):
    assert {"patient_id", "birth_date", "physician"} <= set(names_of_columns())
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/import")
        assert "birth_date, sex" in words_of(page)
        sample = client.get("/import/sample.csv")
        assert sample.content.decode("utf-8-sig") == sample_list()
        shown = client.post(
            "/import",
            data={"csrf": re.search(r'name="csrf" value="([^"]+)"', page.text)[1]},
            files={"upload": ("sample.csv", sample.content, "text/csv")},
            follow_redirects=True,
        )
        assert "Preview of sample.csv" in words_of(shown)
        assert "Miller" in shown.text
