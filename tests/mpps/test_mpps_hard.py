"""What modalities report when it is not simple: retrieved, grouped, split, unscheduled, in two sets."""

import contextlib
import html
import re
import threading

import peers
import pytest
from conftest import item
from pydicom.dataset import Dataset
from pynetdicom import AE
from test_mpps import (
    UID,
    as_json,
    code,
    complete,
    creation,
    creation_for,
    dataset,
    discontinuation,
    ending,
    modality,
    scheduled_item,
    series,
    state,
    unscheduled_item,
)

from minris.dataset.text import SPECIFIC_CHARACTER_SET
from minris.mpps.performed import _kept_raw
from minris.orders.lookup import step_key, step_known
from minris.orders.steps import change_step
from minris.pages.day.exam import DOSE_FACTS
from minris.standard.dictionary import tag_of
from minris.standard.mpps import MPPS_ATTRIBUTES, MPPS_STATES
from minris.standard.status import Status
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MPPS_RETRIEVE,
    new_uid,
)
from minris.store.models import Audit, PerformedScheduledStep
from minris.store.rows import fetch_rows

TOP = MPPS_ATTRIBUTES.children()


# MPPS Retrieve (PS3.4 F.8)


@contextlib.contextmanager
def retrieving(appliance, syntax=EXPLICIT_VR_LITTLE_ENDIAN, calling="CT1"):
    """Gives a function that asks for a performed step: status and data set."""
    ae = AE(calling)
    ae.add_requested_context(MPPS_RETRIEVE, syntax)
    association = ae.associate(peers.HOST, appliance.port, ae_title="MINRIS")
    assert association.is_established
    peers.leave_answers(association)

    def get(*keywords, uid=UID):
        tags = [k if isinstance(k, int) else tag_of(k) for k in keywords]
        status, ds = association.send_n_get(tags, MPPS_RETRIEVE, uid)
        return status.Status, ds

    try:
        yield get
    finally:
        association.release()


@pytest.fixture
def performed(appliance):
    """A performed step with a value for every row of the table."""
    with modality(appliance) as call:
        ds = complete()
        ds.PerformedProcedureStepStatus = "IN PROGRESS"
        assert call.create(ds).status == Status.SUCCESS
    return ds


SYNTAXES = pytest.mark.parametrize(
    "syntax",
    [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN],
    ids=["implicit", "explicit"],
)


@SYNTAXES
def test_without_a_list_all_is_retrieved_as_it_was_sent(appliance, performed, syntax):
    """T-MPPS-20."""
    with retrieving(appliance, syntax) as get:
        status, found = get()
    assert status == Status.SUCCESS
    assert found == performed


@SYNTAXES
def test_of_a_list_just_what_it_names_is_retrieved(appliance, performed, syntax):
    """T-MPPS-20."""
    wanted = ["PatientID", "PerformedSeriesSequence", "PerformedProcedureStepStatus"]
    with retrieving(appliance, syntax) as get:
        status, found = get(*wanted)
    del found[SPECIFIC_CHARACTER_SET]
    assert status == Status.SUCCESS
    assert [element.keyword for element in found] == sorted(wanted, key=tag_of)
    assert all(found[keyword] == performed[keyword] for keyword in wanted)


@pytest.mark.parametrize("attribute", TOP, ids=lambda attribute: attribute.keyword)
def test_every_attribute_of_the_table_is_retrieved_alone(appliance, performed, attribute):
    """T-MPPS-20."""
    with retrieving(appliance) as get:
        status, found = get(attribute.keyword, "PatientName")
    assert status == Status.SUCCESS
    assert found[attribute.keyword] == performed[attribute.keyword]


@pytest.mark.parametrize(
    "attribute",
    [attribute for attribute in TOP if attribute.cells["get"] == "3/2"],
    ids=lambda attribute: attribute.keyword,
)
def test_what_may_be_empty_is_retrieved_empty_where_it_was_never_told(appliance, attribute):
    """Table F.8.2-1: type 2 for us."""
    with modality(appliance) as call:
        ds = creation()
        if attribute.keyword in ds:
            del ds[attribute.keyword]
        call.create(ds)
    with retrieving(appliance) as get:
        status, found = get(attribute.keyword)
    assert status == Status.SUCCESS
    assert not found[attribute.keyword].value


UNSUPPORTED = {
    "an attribute that is not kept": "InstitutionName",
    "an attribute within a sequence": "SeriesInstanceUID",
    "an attribute nobody knows": 0x00091001,
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_with_something_unsupported_the_rest_is_retrieved_with_a_warning(
    appliance, performed, what
):
    """T-MPPS-21."""
    with retrieving(appliance) as get:
        status, found = get(UNSUPPORTED[what], "PatientID")
    assert status == Status.OPTIONAL_ATTRIBUTES_NOT_SUPPORTED
    assert [element.keyword for element in found] == ["PatientID"]


def test_an_attribute_beyond_the_table_that_was_sent_is_retrieved(appliance):
    with modality(appliance) as call:
        call.create(creation(CommentsOnRadiationDose="Pregnancy excluded"))
    with retrieving(appliance) as get:
        status, found = get("CommentsOnRadiationDose")
    assert (status, found.CommentsOnRadiationDose) == (Status.SUCCESS, "Pregnancy excluded")


def test_an_unknown_instance_cannot_be_retrieved(appliance, performed):
    """T-MPPS-21."""
    with retrieving(appliance) as get:
        status, found = get(uid="2.25.404")
    assert status == Status.NO_SUCH_SOP_INSTANCE
    assert not found


@pytest.mark.parametrize("status", MPPS_STATES)
def test_a_performed_step_is_retrieved_in_every_state(appliance, status):
    with modality(appliance) as call:
        call.create(creation())
        if status != "IN PROGRESS":
            call.set(ending(status))
    with retrieving(appliance) as get:
        answer = get("PerformedProcedureStepStatus")
    assert answer[1].PerformedProcedureStepStatus == status


def test_any_device_may_retrieve_what_another_reported(appliance, performed):
    with retrieving(appliance, calling="US1") as get:
        assert get("PatientID")[1].PatientID == performed.PatientID


def test_a_latin_report_changed_in_utf_8_is_retrieved_right_in_one_set(appliance):
    """T-MPPS-19."""
    with modality(appliance, "DX1") as call:
        call.create(creation(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"))
        call.set(ending(PerformedSeriesSequence=[series(OperatorsName="Li^Na=李^娜")]))
    with retrieving(appliance, calling="DX1") as get:
        status, found = get()
    assert status == Status.SUCCESS
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.PatientName == "Müller^Jörg"
    assert found.PerformedSeriesSequence[0].OperatorsName == "Li^Na=李^娜"


def test_dcmjs_reports_in_gb18030_and_utf_8_and_retrieves_all_of_it(appliance):
    """T-MPPS-19, T-MPPS-20."""
    create = {"op": "n-create", "instance": UID, "charset": "GB18030"}
    change = {"op": "n-set", "instance": UID, "charset": "ISO_IR 192"}
    create["dataset"] = as_json(creation())
    change["dataset"] = as_json(ending(PerformedProcedureStepDescription="胸部 CT ä"))
    get = {"op": "n-get", "sopClass": MPPS_RETRIEVE, "instance": UID}
    answers = peers.run_dimse(appliance.port, [[create], [change], [get]], calling="CT1")
    assert [answer.get("status") for answer in answers] == [0, 0, 0]
    found = answers[2]["dataset"]
    assert found["PerformedProcedureStepDescription"] == "胸部 CT ä"
    [name] = found["PatientName"]
    assert (name["Alphabetic"], name["Ideographic"].rstrip()) == ("Wang^XiaoDong", "王^小东")


def test_dcmjs_retrieves_what_it_names(appliance):
    """T-MPPS-20, T-MPPS-21."""
    create = {"op": "n-create", "instance": UID, "dataset": as_json(creation())}
    get = {"op": "n-get", "sopClass": MPPS_RETRIEVE, "instance": UID}
    wanted = ["PatientID", "Modality"]
    script = [[create], [get | {"attributes": wanted}], [get | {"instance": "2.25.404"}]]
    answers = peers.run_dimse(appliance.port, script, calling="CT1")
    assert sorted(answers[1]["dataset"]) == sorted(wanted)
    assert answers[2]["status"] == Status.NO_SUCH_SOP_INSTANCE


# Over several messages and orders, as a machine sends them.


def report(appliance, *messages, uid=UID, calling="CT1"):
    """Send an N-CREATE and the N-SETs that follow: all are taken."""
    with modality(appliance, calling) as call:
        statuses = [call.create(messages[0], uid).status]
        statuses += [call.set(ds, uid).status for ds in messages[1:]]
    assert statuses == [Status.SUCCESS] * len(messages)


def on_worklist(appliance, calling="CT1"):
    """The names that a machine is shown."""
    keys = ["PatientName", "ScheduledProcedureStepSequence[0].ScheduledProcedureStepID"]
    found = peers.run_findscu(appliance.port, "MINRIS", calling, keys)
    return [str(ds.PatientName) for ds in found.datasets]


def test_one_scan_for_two_orders_takes_both_off_the_worklist(appliance):
    """T-MPPS-16."""
    steps = appliance.schedule(
        item("Wang^Fang", PatientID="P1", RequestedProcedureDescription="CT chest"),
        item("Wang^Fang", PatientID="P1", RequestedProcedureDescription="CT abdomen"),
        item("Li^Na", PatientID="P2"),
    )
    report(appliance, creation_for(*steps[:2]), ending())
    assert on_worklist(appliance) == ["Li^Na"]


def test_a_group_under_a_study_of_the_machine_s_own_is_found_by_accession_numbers(appliance):
    """T-MPPS-16. PS3.4 F.7.2.1.2: one new study, the original ones in Referenced Study Sequence."""
    steps = appliance.schedule(
        item("Wang^Fang", PatientID="P1", AccessionNumber="A1"),
        item("Wang^Fang", PatientID="P1", AccessionNumber="A2"),
    )
    items = [
        scheduled_item(
            step,
            StudyInstanceUID="2.25.20260705",
            ReferencedStudySequence=[
                dataset(
                    ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
                    ReferencedSOPInstanceUID=step.get("StudyInstanceUID"),
                )
            ],
        )
        for step in steps
    ]
    sent = creation(*items, PatientName="Wang^Fang", PatientID="P1")
    report(appliance, sent, ending())
    assert [appliance.read(state, step) for step in steps] == ["COMPLETED", "COMPLETED"]


def test_an_order_done_in_two_parts_is_done_when_both_are(appliance):
    """T-MPPS-18: chest today, the contrast series after lunch."""
    [step] = appliance.schedule(item())
    report(appliance, creation_for(step), uid="2.25.1")
    report(appliance, creation_for(step), uid="2.25.2")
    with modality(appliance) as call:
        call.set(ending(), "2.25.1")
        assert appliance.read(state, step) == "STARTED"
        call.set(ending(), "2.25.2")
    assert appliance.read(state, step) == "COMPLETED"


def test_a_part_added_after_the_end_is_shown_with_the_first(appliance, web):
    """T-MPPS-18: appended."""
    [step] = appliance.schedule(item())
    for uid in ("2.25.1", "2.25.2"):
        report(appliance, creation_for(step), ending(), uid=uid)
    assert appliance.read(state, step) == "COMPLETED"
    words = words_of(step_page(appliance, web, step))
    assert words.count("Performed on CT room") == 2


def test_one_of_two_steps_of_a_procedure_done_leaves_the_other(appliance):
    """Split: two rooms, one order."""
    given = item("Wang^Fang", PatientID="P1")
    sequence = given["ScheduledProcedureStepSequence"]["Value"]
    sequence.append(dict(sequence[0]))
    first, second = appliance.schedule(given)
    report(appliance, creation_for(first), ending())
    assert [appliance.read(state, step) for step in (first, second)] == ["COMPLETED", "SCHEDULED"]


def test_an_exam_under_another_study_uid_is_found_by_its_accession_number(appliance):
    """Some machines make a study UID of their own whatever the worklist says."""
    [step] = appliance.schedule(item())
    changed = scheduled_item(step, StudyInstanceUID="2.25.999", RequestedProcedureID="")
    texts = {k: step.get(k) for k in ("PatientName", "PatientID")}
    report(appliance, creation(changed, **texts), ending())
    assert appliance.read(state, step) == "COMPLETED"


def test_in_progress_again_and_again_grows_the_series(appliance, web):
    [step] = appliance.schedule(item())
    done, messages = [], [creation_for(step)]
    for number in range(3):
        done.append(series(images=number + 1, SeriesDescription=f"Series {number + 1}"))
        messages.append(ending("IN PROGRESS", PerformedSeriesSequence=list(done)))
    report(appliance, *messages)
    assert appliance.read(state, step) == "STARTED"
    words = words_of(step_page(appliance, web, step))
    counts = re.findall(r"Series \d Chest routine, Series \d, .*?, (\d) images?", words)
    assert counts == ["1", "2", "3"]


def test_ten_reports_at_once_for_one_order_are_all_linked(appliance):
    """T-MPPS-18."""
    [step] = appliance.schedule(item())
    uids = [f"2.25.{number}" for number in range(10)]
    threads = [
        threading.Thread(target=report, args=(appliance, creation_for(step), ending()),
                         kwargs={"uid": uid})
        for uid in uids
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    count = appliance.read(lambda: PerformedScheduledStep.select().count())
    assert (count, appliance.read(state, step)) == (10, "COMPLETED")


def test_an_order_begun_and_given_up_by_mistake_on_a_cancelled_exam_stays_cancelled(appliance):
    """The wrong line of an old list: the exam had been cancelled since."""
    [step] = appliance.schedule(item())
    inner = step.item("ScheduledProcedureStepSequence")
    keys = step.get("StudyInstanceUID"), inner.get("ScheduledProcedureStepID")
    appliance.write(change_step, appliance.context(), "cancel", *keys)
    report(appliance, creation_for(step), discontinuation("110514"))
    assert appliance.read(state, step) == "CANCELED"


# The step's page


def words_of(text):
    """What a person reads of a page, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def row_in(appliance, step):
    return appliance.read(step_known, step.get("StudyInstanceUID"))


def step_page(appliance, web, step):
    answer = web.get(f"/step/{row_in(appliance, step)}")
    assert answer.status_code == 200
    return answer.text


def facts(text):
    """What the lists of a page say: label and value."""
    pairs = re.findall(r"<dt>(.*?)</dt><dd><bdi[^>]*>(.*?)</bdi></dd>", text, re.S)
    return {html.unescape(label): html.unescape(value) for label, value in pairs}


def test_series_and_their_counts_are_read_on_the_exam_s_page(appliance, web):
    """Issue: performed series and image counts readable on the step's page."""
    [step] = appliance.schedule(item())
    report_sr = dataset(
        ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.88.67",
        ReferencedSOPInstanceUID=new_uid(),
    )
    first = series(images=312, SeriesDescription="Axial 5 mm")
    second = series(
        images=0,
        SeriesDescription="Dose",
        ReferencedNonImageCompositeSOPInstanceSequence=[report_sr],
    )
    report(appliance, creation_for(step), ending(PerformedSeriesSequence=[first, second]))
    found = facts(step_page(appliance, web, step))
    assert found["Series 1"] == "Chest routine, Axial 5 mm, Li Na 李娜, 312 images"
    assert found["Series 2"] == "Chest routine, Dose, Li Na 李娜, 1 other object"


DOSE = {
    "TotalNumberOfExposures": (3, "Exposures", "3"),
    "TotalTimeOfFluoroscopy": (95, "Fluoroscopy (s)", "95"),
    "ImageAndFluoroscopyAreaDoseProduct": ("12.5", "Dose area product (dGy·cm²)", "12.5"),
    "EntranceDose": (7, "Entrance dose (dGy)", "7"),
    "EntranceDoseInmGy": ("700.5", "Entrance dose (mGy)", "700.5"),
    "DistanceSourceToDetector": ("1150", "Distance source to detector (mm)", "1150"),
    "CommentsOnRadiationDose": ("Two repeats", "Comments on dose", "Two repeats"),
}


@pytest.mark.parametrize("keyword", DOSE)
def test_a_dose_value_is_read_on_the_exam_s_page(appliance, web, keyword):
    """Issue: dose values readable on the step's page."""
    value, label, shown = DOSE[keyword]
    [step] = appliance.schedule(item())
    report(appliance, creation_for(step), ending(**{keyword: value}))
    assert facts(step_page(appliance, web, step))[label] == shown


def test_every_dose_value_of_the_page_is_looked_at():
    assert {keyword for _, keyword in DOSE_FACTS} == set(DOSE)


def test_each_number_of_an_exposure_says_what_it_is(appliance, web):
    """120, 250000, 500 tells nobody which is the voltage."""
    [step] = appliance.schedule(item())
    exposure = Dataset()
    exposure.RadiationMode, exposure.KVP = "CONTINUOUS", "120"
    exposure.XRayTubeCurrentInuA, exposure.ExposureTime = "250000", "500"
    report(appliance, creation_for(step), ending(ExposureDoseSequence=[exposure]))
    shown = facts(step_page(appliance, web, step))["Exposure"]
    assert re.search(r"KVP\W*120", shown)
    assert re.search(r"Exposure time\W*(\(ms\))?\W*500", shown)


def test_the_reason_of_an_end_in_part_is_read_on_the_exam_s_page(appliance, web):
    [step] = appliance.schedule(item())
    report(appliance, creation_for(step), discontinuation("110515"))
    found = facts(step_page(appliance, web, step))
    assert found["Reason"] == "Patient condition prevented continuing (110515)"


def test_a_reason_of_the_site_s_own_is_read_in_its_words(appliance, web):
    [step] = appliance.schedule(item())
    keyword = "PerformedProcedureStepDiscontinuationReasonCodeSequence"
    reason = [code("LAMP", "99LAKE", "Lamp failure")]
    report(appliance, creation_for(step), ending("DISCONTINUED", **{keyword: reason}))
    assert facts(step_page(appliance, web, step))["Reason"] == "Lamp failure (LAMP)"


def test_markup_of_a_machine_in_a_series_is_shown_as_text(appliance, web):
    [step] = appliance.schedule(item())
    tagged = series(SeriesDescription="<b>Axial</b>")
    report(appliance, creation_for(step), ending(PerformedSeriesSequence=[tagged]))
    assert "<b>Axial" not in step_page(appliance, web, step)


def test_how_an_exam_was_found_is_read_on_its_page_where_it_was_not_by_its_study(appliance, web):
    """Somebody must be able to doubt a match by accession number alone, or by hand."""
    [step] = appliance.schedule(item())
    changed = scheduled_item(step, StudyInstanceUID="2.25.999", RequestedProcedureID="")
    texts = {k: step.get(k) for k in ("PatientName", "PatientID")}
    report(appliance, creation(changed, **texts))
    text = step_page(appliance, web, step).partition("<h2>")[2]
    assert "accession number" in words_of(text).lower()


@pytest.mark.parametrize(
    ("known", "came", "kept"),
    [
        (None, None, None),
        (None, b"new", b"new"),
        (b"old", None, b"old"),
        (b"old", b"new", b"oldnew"),
        (b"o" * 65534, b"new", b"new"),
    ],
)
def test_bytes_as_received_are_kept_and_do_not_grow_without_end(run_appliance, known, came, kept):
    """A modality may send N-SET for as long as it likes."""
    appliance = run_appliance("[dicom]\nmaximum_dataset_length = 65536\n")
    assert _kept_raw(appliance.context(), known, came) == kept


# Without an order: matched or left by a person on the page.


def day_of_clinic(appliance):
    return appliance.context().today()


def begun_today(appliance, **texts):
    """A report without an order, of today."""
    texts = {"PerformedProcedureStepStartDate": day_of_clinic(appliance), **texts}
    return creation(unscheduled_item(), **texts)


def unscheduled(web):
    """The page of reports without an order: its words, and its forms by path."""
    text = web.get("/unscheduled").text
    return words_of(text), text


def choices(web):
    """The exams that may be chosen for the one report: the fields of the button, by words."""
    number = only_report(unscheduled(web)[1])
    text = web.get(f"/unscheduled/match?performed={number}").text
    found = {}
    for line in re.findall(r"<tr>(.*?)</tr>", text, re.S):
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', line))
        if "step" in fields:
            cells = [" ".join(re.sub("<[^>]*>", " ", cell).split())
                     for cell in re.findall(r"<td[^>]*>(.*?)</td>", line, re.S)]  # fmt: skip
            found[html.unescape(" | ".join(cells[:-1]))] = fields
    return found


def only_report(text):
    """The number of the one report on the page."""
    [number] = set(re.findall(r'name="performed" value="(\d+)"', text))
    return number


def test_a_report_without_an_order_is_listed_for_a_person(appliance, web):
    """T-MPPS-17."""
    report(appliance, begun_today(appliance), ending())
    words, _ = unscheduled(web)
    assert re.search("Wang XiaoDong 王小东 P000042 .*CT1", words)
    assert "CT chest Done" in words


def test_a_person_matches_a_report_to_an_order(appliance, web):
    """Issue: unscheduled (kept and matched by a person)."""
    [step] = appliance.schedule(item(ScheduledProcedureStepStartDate=day_of_clinic(appliance)))
    report(appliance, begun_today(appliance), ending())
    [fields] = choices(web).values()
    answer = web.post("/unscheduled/match", data=fields)
    assert answer.status_code == 303
    assert appliance.read(state, step) == "COMPLETED"
    assert "No unmatched exams." in unscheduled(web)[0]


def test_orders_of_the_same_patient_are_offered_first(appliance, web):
    day = day_of_clinic(appliance)
    appliance.schedule(
        item(
            "Li^Na=李^娜", ScheduledProcedureStepStartDate=day, ScheduledProcedureStepStartTime="08"
        ),
        item(PatientID="P000042", ScheduledProcedureStepStartDate=day,
             ScheduledProcedureStepStartTime="1700"),
    )  # fmt: skip
    report(appliance, begun_today(appliance))
    first, second = choices(web)
    assert ("王小东" in first, "李娜" in second) == (True, True)
    assert first.startswith("same Patient ID, same name, same device")
    assert second.startswith("same device")


def test_an_exam_to_choose_is_shown_whole_and_none_is_chosen_before_a_person_does(appliance, web):
    day = day_of_clinic(appliance)
    appliance.schedule(item(PatientID="P000042", PatientBirthDate="19780312", ScheduledProcedureStepStartDate=day,
                            RequestedProcedureDescription="CT abdomen"))  # fmt: skip
    report(appliance, begun_today(appliance, PatientID="OTHER", PatientName="Li^Na"))
    assert not re.search("<select|<option|checked|selected", unscheduled(web)[1])
    [words] = choices(web)
    for part in (
        "Wang XiaoDong 王小东",
        "P000042",
        "12 Mar 1978",
        "CT abdomen",
        "CT room",
        "Scheduled",
    ):
        assert part in words
    text = words_of(web.get("/unscheduled/match?performed=1").text)
    assert "not the images" in text


def test_after_a_match_it_is_said_what_the_images_still_carry_and_where_to_correct_it(
    appliance, web
):
    day = day_of_clinic(appliance)
    appliance.schedule(item(PatientID="P000042", ScheduledProcedureStepStartDate=day))
    report(appliance, begun_today(appliance, PatientID="OTHER", PatientName="Li^Na"))
    [fields] = choices(web).values()
    where = web.post("/unscheduled/match", data=fields).headers["location"]
    words = words_of(web.get(where).text)
    assert re.search("The images still carry Li Na OTHER. Correct them to Wang XiaoDong 王小东 P000042,"
                     r" \w+: at CT1, if they have not been sent, else in the archive.", words)  # fmt: skip


def test_a_report_that_another_has_matched_is_asked_about(appliance, web):
    day = day_of_clinic(appliance)
    appliance.schedule(item(ScheduledProcedureStepStartDate=day),
                       item("Li^Na", ScheduledProcedureStepStartDate=day))  # fmt: skip
    report(appliance, begun_today(appliance))
    first, second = choices(web).values()
    assert web.post("/unscheduled/match", data=second).status_code == 303
    answer = web.post("/unscheduled/match", data=first)
    assert answer.status_code == 409
    assert "performed step matched, by" in words_of(answer.text)


def test_an_exam_that_was_cancelled_meanwhile_is_not_matched_in_silence(appliance, web):
    [step] = appliance.schedule(item(ScheduledProcedureStepStartDate=day_of_clinic(appliance)))
    report(appliance, begun_today(appliance))
    [fields] = choices(web).values()
    appliance.write(change_step, appliance.context(), "cancel", *appliance.read(step_key, 1))
    assert web.post("/unscheduled/match", data=fields).status_code == 409
    assert appliance.read(state, step) == "CANCELED"


def test_an_order_of_the_day_the_report_is_of_is_offered(appliance, web):
    """The emergencies of the weekend are matched on Monday."""
    appliance.schedule(item(ScheduledProcedureStepStartDate="20260705"))
    report(appliance, begun_today(appliance, PerformedProcedureStepStartDate="20260705"))
    assert any("王小东" in words for words in choices(web))


def test_a_match_can_be_undone_from_the_exam_s_page(appliance, web):
    [step] = appliance.schedule(item(ScheduledProcedureStepStartDate=day_of_clinic(appliance)))
    report(appliance, begun_today(appliance))
    [fields] = choices(web).values()
    web.post("/unscheduled/match", data=fields)
    page = step_page(appliance, web, step)
    form = re.search(r'<form method="post" action="/unmatch">(.*?)</form>', page, re.S)
    assert form, "the page offers no way to undo the match"
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[1]))
    assert web.post("/unmatch", data=fields).status_code == 303
    assert appliance.read(state, step) == "SCHEDULED"


def test_a_report_is_left_without_an_order_for_a_reason(appliance, web):
    report(appliance, begun_today(appliance))
    fields = {"performed": only_report(unscheduled(web)[1]), "reason": "Phantom, weekly check"}
    assert web.post("/unscheduled/settle", data=fields).status_code == 303
    assert "No unmatched exams." in unscheduled(web)[0]
    [line] = appliance.read(fetch_rows, Audit, "what = ?", "performed step settled")
    assert line.detail == "Phantom, weekly check"


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_report_is_not_left_without_a_reason(appliance, web, reason):
    report(appliance, begun_today(appliance))
    fields = {"performed": only_report(unscheduled(web)[1]), "reason": reason}
    assert web.post("/unscheduled/settle", data=fields).status_code == 422
    assert "王小东" in unscheduled(web)[0]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/unscheduled/match", {"performed": "1", "step": "404"}),
        ("/unscheduled/match", {"performed": "404", "step": "1"}),
        ("/unscheduled/match", {"performed": "1"}),
        ("/unscheduled/settle", {"performed": "404", "reason": "Phantom"}),
        ("/unscheduled/settle", {"reason": "Phantom"}),
        ("/unmatch", {"performed": "1", "step": "1"}),
    ],
    ids=str,
)
def test_what_is_not_there_is_neither_matched_nor_left(appliance, web, path, fields):
    appliance.schedule(item())
    report(appliance, begun_today(appliance))
    assert web.post(path, data=fields).status_code in (422, 404)
    assert "王小东" in unscheduled(web)[0]


def test_a_report_matched_by_hand_follows_what_the_machine_says_later(appliance, web):
    [step] = appliance.schedule(item(ScheduledProcedureStepStartDate=day_of_clinic(appliance)))
    report(appliance, begun_today(appliance))
    [fields] = choices(web).values()
    web.post("/unscheduled/match", data=fields)
    with modality(appliance) as call:
        call.set(ending())
    assert appliance.read(state, step) == "COMPLETED"
