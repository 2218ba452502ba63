"""The fields of reception's form: what they fill, and what they show of a data set."""

import contextlib
import datetime
import math
import re
from collections.abc import Mapping

from minris.config.ini import Device
from minris.dataset.elements import (
    EMPTY,
    ElementIndex,
    encode_element,
    encode_items,
    encode_text,
    encoded,
    text_elements,
)
from minris.dataset.names import person_name, resident_number
from minris.dataset.times import shown_date
from minris.interchange.csv_tables import STEP_KEYWORDS
from minris.orders.catalogue import procedures_in_use
from minris.orders.items import split_item
from minris.pages.forms import decoded_form
from minris.pages.frame import PageRequest
from minris.pages.language import shown_time
from minris.standard.dictionary import is_date, tag_of, vr_of
from minris.standard.status import Message, Problem
from minris.standard.tables import body_rows
from minris.standard.worklist import (
    MODALITIES,
    PREGNANCY_STATUS,
    START_DATE,
    START_TIME,
    STEP_SEQUENCE,
)

# The registration form: its fields, what they fill, and how they are shown.
REGISTER_FIELDS = body_rows("""
    name           | group   | keyword                             | kind   | label
    family_name    | patient | PatientName                         | text   | Family name (Latin letters)
    given_name     | patient | PatientName                         | text   | Given name (Latin letters)
    chinese_name   | patient | PatientName                         | text   | Chinese name
    patient_id     | patient | PatientID                           | text   | Patient ID, or identity number (made if empty)
    birth_date     | patient | PatientBirthDate                    | date   | Birth date
    sex            | patient | PatientSex                          | select | Sex
    phone          | patient | PatientTelephoneNumbers             | tel    | Phone
    weight         | patient | PatientWeight                       | text   | Weight (kg)
    height         | patient | PatientSize                         | text   | Height (cm)
    allergies      | patient | Allergies                           | text   | Allergies
    alerts         | patient | MedicalAlerts                       | text   | Medical alerts
    pregnancy      | patient | PregnancyStatus                     | select | Pregnancy
    device         | exam    | ScheduledStationAETitle             | select | Device
    modality       | exam    | Modality                            | select | Modality (that of the device if empty)
    procedure      | exam    | RequestedProcedureDescription       | text   | Exam
    date           | exam    | ScheduledProcedureStepStartDate     | date   | Date
    time           | exam    | ScheduledProcedureStepStartTime     | time   | Time
    priority       | exam    | RequestedProcedurePriority          | select | Priority
    physician      | exam    | ReferringPhysicianName              | text   | Referring physician
    accession      | exam    | AccessionNumber                     | text   | Accession number (made if empty)
    comment        | exam    | RequestedProcedureComments          | area   | Comment
    """)
REQUIRED_FIELDS = frozenset({"device", "procedure", "date"})


def item_from_form(form: Mapping[str, str]) -> tuple[bytes, list[Problem]]:
    """A worklist item from the registration form, and what can be said against it already."""
    problems: list[Problem] = []
    texts = {
        "PatientName": person_name(form["family_name"], form["given_name"], form["chinese_name"]),
        "PatientBirthDate": form["birth_date"].replace("-", ""),
        "ReferringPhysicianName": form["physician"].strip().replace(" ", "^", 1)
        if form["physician"].isascii() or not re.search("[\u3400-\u9fff]", form["physician"])
        else person_name("", "", form["physician"]),
    }
    step = {
        "ScheduledStationAETitle": form["device"],
        "Modality": form["modality"],
        "ScheduledProcedureStepStartDate": form["date"].replace("-", ""),
        "ScheduledProcedureStepStartTime": form["time"].replace(":", ""),
    }
    for name, _, keyword, _, _ in REGISTER_FIELDS:
        if keyword not in texts and keyword not in step and keyword != "PregnancyStatus":
            texts[keyword] = form[name].strip()
    if height := texts["PatientSize"]:
        try:
            texts["PatientSize"] = f"{float(height.replace(',', '.')) / 100:g}"
        except ValueError:
            words = Message("{value} is not a number", value=height)
            problems.append(Problem(tag_of("PatientSize"), words))
            texts["PatientSize"] = ""
    texts["PatientWeight"] = texts["PatientWeight"].replace(",", ".")
    for keyword, low, high in (("PatientWeight", 0.2, 650), ("PatientSize", 0.2, 2.75)):
        with contextlib.suppress(ValueError):
            value = float(texts[keyword] or low)
            if math.isfinite(value) and not low <= value <= high:
                shown = form["weight" if keyword == "PatientWeight" else "height"]
                words = Message("{value} cannot be", value=shown)
                problems.append(Problem(tag_of(keyword), words))
    if resident := resident_number(texts["PatientID"]):
        for keyword, said in zip(("PatientBirthDate", "PatientSex"), resident, strict=True):
            if texts[keyword] not in ("", said):
                words = Message("is not that of the identity number")
                problems.append(Problem(tag_of(keyword), words))
            texts[keyword] = said
    texts["StudyInstanceUID"] = form.get("study", "")
    if not any(form[name].strip() for name in ("family_name", "given_name", "chinese_name")):
        texts["PatientName"] = ""
    for name, _, keyword, kind, _ in REGISTER_FIELDS:
        if name in REQUIRED_FIELDS and not form[name].strip():
            problems.append(Problem(tag_of(keyword), Message("is missing")))
        if kind in ("text", "tel") and set(form[name]) & set(
            "\\=" if vr_of(tag_of(keyword)) == "PN" else "\\"
        ):
            problems.append(Problem(tag_of(keyword), Message("may not have \\ or =")))
    born = texts["PatientBirthDate"]
    if is_date(born) and not "1850" <= born <= f"{datetime.date.today():%Y%m%d}":
        words = Message("{value} is not a birth date", value=form["birth_date"])
        problems.append(Problem(tag_of("PatientBirthDate"), words))
    parts = [text_elements(**texts)]
    if form["pregnancy"] in map(str, PREGNANCY_STATUS):
        value = int(form["pregnancy"]).to_bytes(2, "little")
        parts.append(ElementIndex(encode_element(tag_of("PregnancyStatus"), b"US", value)))
    sequence = encode_items(STEP_SEQUENCE, [bytes(text_elements(**step))])
    return bytes(EMPTY.merged(*parts, ElementIndex(sequence))), problems


def reception_choices(p: PageRequest) -> dict[str, tuple[tuple[str, str], ...]]:
    """What may be chosen in the fields of the registration form, by name."""
    t = p.t
    nothing = ("", "")
    devices = [(d.ae_title, f"{d.name} ({d.ae_title})") for d in p.devices if d.role == "modality"]
    return {
        "sex": (nothing, ("F", t("Female")), ("M", t("Male")), ("O", t("Other"))),
        "pregnancy": (
            nothing,
            *((str(value), t(words)) for value, words in PREGNANCY_STATUS.items()),
        ),
        "device": (nothing, *devices),
        "modality": (nothing, *((m, m) for m in MODALITIES)),
        "priority": (nothing, *((one, t(one)) for one in ("ROUTINE", "HIGH", "STAT"))),
        "procedure": tuple((row.meaning, row.code) for row in p.read(procedures_in_use)),
    }


def changed_meanwhile(
    p: PageRequest, group: str, form: dict[str, str], stored: Mapping[str, str]
) -> list[Problem]:
    """What somebody else has changed since a form was shown (409); the form takes it where it was
    left as it had been."""
    seen, problems = decoded_form(p.form("seen")), []
    for name, of, keyword, _, _ in REGISTER_FIELDS:
        if of != group or name not in seen or seen[name] == stored.get(name, ""):
            continue
        words = Message("was changed meanwhile: {value}", value=stored.get(name, "") or "-")
        problems.append(Problem(tag_of(keyword), words))
        if form[name].strip() == seen[name].strip():
            form[name] = stored.get(name, "")
    if problems:
        p.response.status = 409
    return problems


def form_of_patient(index: ElementIndex) -> dict[str, str]:
    """The patient's fields of the registration form from a data set."""
    latin, _, rest = index.get("PatientName").partition("=")
    family, _, given = latin.partition("^")
    size = index.get("PatientSize")
    return {
        "family_name": family,
        "given_name": given.replace("^", " ").strip(),
        "chinese_name": rest.partition("=")[0].replace("^", " "),
        "patient_id": index.get("PatientID"),
        "birth_date": shown_date(index.get("PatientBirthDate")),
        "sex": index.get("PatientSex"),
        "phone": index.get("PatientTelephoneNumbers").replace("\\", ", "),
        "weight": index.get("PatientWeight"),
        "height": f"{float(size) * 100:g}" if re.fullmatch(r"[\d.]+", size) else "",
        "allergies": index.get("Allergies"),
        "alerts": index.get("MedicalAlerts"),
    }


def form_of_step(index: ElementIndex) -> dict[str, str]:
    """The exam's fields of the registration form from a step's data set."""
    item = index.item("ScheduledProcedureStepSequence")
    return {
        "device": item.get("ScheduledStationAETitle").partition("\\")[0],
        "modality": item.get("Modality"),
        "procedure": index.get("RequestedProcedureDescription"),
        "date": shown_date(item.text(START_DATE)),
        "time": shown_time(item.text(START_TIME)),
        "priority": index.get("RequestedProcedurePriority"),
        "physician": index.get("ReferringPhysicianName").replace("^", " "),
        "accession": index.get("AccessionNumber"),
        "comment": index.get("RequestedProcedureComments"),
    }


def changed_keywords(form: Mapping[str, str], shown: Mapping[str, str], group: str) -> set[str]:
    """What the fields of a group fill that are not as they were shown; the rest stays as it is."""
    return {
        keyword
        for name, of, keyword, _, _ in REGISTER_FIELDS
        if of == group and name in form and form[name].strip() != shown.get(name, "").strip()
    }


def patient_from_form(
    form: Mapping[str, str], shown: Mapping[str, str]
) -> tuple[bytes, list[Problem]]:
    """The patient's attributes that were changed in a form, empty ones too."""
    whole = dict.fromkeys((row[0] for row in REGISTER_FIELDS), "") | dict(form)
    item, problems = item_from_form(whole)
    changed = changed_keywords(form, shown, "patient") - {"PregnancyStatus"}
    required = {tag_of(row[2]) for row in REGISTER_FIELDS if row[1] == "exam"}
    index = split_item(ElementIndex(item))[0]
    empty = ElementIndex(encoded({tag_of(k): encode_text(k, "") for k in changed}))
    given = bytes(empty.merged(index.only(map(tag_of, changed))))
    return given, [problem for problem in problems if problem.tag not in required]


def exam_from_form(
    form: Mapping[str, str], shown: Mapping[str, str], device: Device | None
) -> bytes:
    """The exam's attributes that were changed in a form, empty ones too.

    Another device brings its modality, name and place; another procedure loses the codes of the
    one before.
    """
    changed = changed_keywords(form, shown, "exam")
    physician = form["physician"].strip()
    texts = {
        "RequestedProcedureDescription": form["procedure"],
        "RequestedProcedurePriority": form["priority"],
        "ReferringPhysicianName": physician.replace(" ", "^", 1)
        if physician.isascii()
        else person_name("", "", physician),
        "AccessionNumber": form["accession"].strip(),
        "RequestedProcedureComments": form["comment"],
        "ScheduledStationAETitle": form["device"],
        "Modality": form["modality"] or (device.modality if device else ""),
        "ScheduledProcedureStepStartDate": form["date"].replace("-", ""),
        "ScheduledProcedureStepStartTime": form["time"].replace(":", ""),
    }
    texts = {keyword: text for keyword, text in texts.items() if keyword in changed}
    if "ScheduledStationAETitle" in changed and device:
        texts.setdefault("Modality", device.modality)
        texts["ScheduledStationName"] = device.station_name
        texts["ScheduledProcedureStepLocation"] = device.location
    if "RequestedProcedureDescription" in changed:
        texts["ScheduledProcedureStepDescription"] = form["procedure"]
    outer = {tag_of(k): encode_text(k, v) for k, v in texts.items() if k not in STEP_KEYWORDS}
    inner = {tag_of(k): encode_text(k, v) for k, v in texts.items() if k in STEP_KEYWORDS}
    if "RequestedProcedureDescription" in changed:
        for keyword, where in (
            ("RequestedProcedureCodeSequence", outer),
            ("ScheduledProtocolCodeSequence", inner),
        ):
            where[tag_of(keyword)] = encode_items(tag_of(keyword), [])
    outer[STEP_SEQUENCE] = encode_items(STEP_SEQUENCE, [encoded(inner)])
    return encoded(outer)
