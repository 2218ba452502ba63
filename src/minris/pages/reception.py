"""The registration form: its fields, and how they are read from and written to data sets."""

from collections.abc import Iterable, Mapping

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
from minris.dataset.resident import (
    OTHER_IDS,
    identity_elements,
    identity_number,
    is_masked,
    masked_number,
)
from minris.interchange.csv_tables import STEP_KEYWORDS
from minris.orders.catalogue import procedures_in_use, referrers
from minris.orders.history import Moment
from minris.orders.items import split_item
from minris.orders.lookup import get_step
from minris.pages.forms import FIELD_KINDS, FieldRow, changed_keywords, field_table, read_fields
from minris.pages.frame import PageRequest
from minris.pages.language import Translator, shown_time
from minris.standard.dictionary import attribute_name, tag_of, vr_of
from minris.standard.status import Message, Problem
from minris.standard.worklist import MODALITIES, PREGNANCY_STATUS, STEP_SEQUENCE

# The fields of the registration form. Those of group `visit` are not shown again.
REGISTER_FIELDS = field_table("""
    name           | keyword                         | kind      | label                          | group
    family_name    | PatientName                     | family    | Family name                    | patient
    given_name     | PatientName                     | given     | Given name                     | patient
    chinese_name   | PatientName                     | chinese   | Name in Chinese characters     | patient
    birth_date     | PatientBirthDate                | date      | Birth date                     | patient
    sex            | PatientSex                      | select    | Sex                            | patient
    phone          | PatientTelephoneNumbers         | phones    | Phone                          | patient
    patient_id     | PatientID                       | text      | Patient ID (leave empty to assign one) | patient
    identity       | OtherPatientIDsSequence         | text      | Identity number (China)        | patient
    weight         | PatientWeight                   | weight    | Weight (kg)                    | patient
    height         | PatientSize                     | height    | Height (cm)                    | patient
    allergies      | Allergies                       | text      | Allergies                      | patient
    alerts         | MedicalAlerts                   | text      | Medical alerts                 | patient
    pregnancy      | PregnancyStatus                 | select    | Pregnancy                      | visit
    procedure      | RequestedProcedureDescription   | text      | Exam *                         | exam
    device         | ScheduledStationAETitle         | select    | Device                         | exam
    date           | ScheduledProcedureStepStartDate | day       | Date *                         | exam
    time           | ScheduledProcedureStepStartTime | time      | Time                           | exam
    priority       | RequestedProcedurePriority      | select    | Priority                       | exam
    physician      | ReferringPhysicianName          | physician | Referring physician            | exam
    modality       | Modality                        | select    | Modality (default: from device)        | exam
    accession      | AccessionNumber                 | text      | Accession number (leave empty to assign one) | exam
    comment        | RequestedProcedureComments      | area      | Comment                        | exam
    """)
# What is folded under *More* of the patient and of the exam.
MORE_FIELDS = frozenset(
    "patient_id identity weight height allergies alerts pregnancy modality accession comment".split()
)
PATIENT_FIELDS = tuple(row for row in REGISTER_FIELDS if row.group == "patient")
EXAM_FIELDS = tuple(row for row in REGISTER_FIELDS if row.group == "exam")


def item_from_form(form: Mapping[str, str]) -> tuple[bytes, list[Problem]]:
    """Return a worklist item from the registration form, and the problems found so far."""
    texts, problems = read_fields(REGISTER_FIELDS, form)
    texts["PatientName"] = person_name(
        form["family_name"], form["given_name"], form["chinese_name"]
    )
    number = texts.pop("OtherPatientIDsSequence").replace(" ", "").upper()
    if number and not is_masked(number) and not resident_number(number):
        words = Message("is not a valid identity number: a digit may be wrong")
        problems.append(Problem(OTHER_IDS, words))
    if resident := resident_number(number or texts["PatientID"]):
        for keyword, said in zip(("PatientBirthDate", "PatientSex"), resident, strict=True):
            if texts[keyword] not in ("", said):
                words = Message("is not that of the identity number")
                problems.append(Problem(tag_of(keyword), words))
            texts[keyword] = said
    problems += typing_problems(form)
    pregnancy = texts.pop("PregnancyStatus")
    step = text_elements(**{k: texts.pop(k) for k in STEP_KEYWORDS if k in texts})
    parts = [
        text_elements(**texts, StudyInstanceUID=form.get("study", "")),
        ElementIndex(encode_items(STEP_SEQUENCE, [bytes(step)])),
    ]
    if resident and number:
        parts.append(identity_elements(EMPTY, number))
    if pregnancy in map(str, PREGNANCY_STATUS):
        value = int(pregnancy).to_bytes(2, "little")
        parts.append(ElementIndex(encode_element(tag_of("PregnancyStatus"), b"US", value)))
    return bytes(EMPTY.merged(*parts)), problems


def typing_problems(form: Mapping[str, str]) -> list[Problem]:
    """Return the problems of the registration form: missing values and separators."""
    problems = []
    for row in REGISTER_FIELDS:
        typed = form[row.name]
        if row.required and not typed.strip():
            problems.append(Problem(row.tag, Message("is missing")))
        strange = "\\=" if vr_of(row.tag) == "PN" else "\\"
        if row.kind.input in ("text", "tel") and set(typed) & set(strange):
            problems.append(Problem(row.tag, Message("may not have \\ or =")))
    return problems


EMERGENCY = "Unknown", "Emergency"  # the name of a patient whom nobody knows yet, before the time


def is_unidentified(index: ElementIndex) -> bool:
    """Tell whether a patient is one who was registered without a name."""
    return index.get("PatientName").startswith("^".join(EMERGENCY))


def in_order(t: Translator, rows: tuple[FieldRow, ...]) -> tuple[FieldRow, ...]:
    """Return fields in the order of a language: in Chinese the name in characters is first."""
    first = "chinese_name" if t.kind == "zh" else ""
    return tuple(sorted(rows, key=lambda row: row.name != first))


def physician(name: str) -> str:
    """Return a referring physician (PN) as it is typed."""
    return FIELD_KINDS["physician"].show(name)


def reception_choices(p: PageRequest) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the choices of the fields of the registration form, by name."""
    t, nothing = p.t, ("", "")
    pregnancies = ((str(value), t(words)) for value, words in PREGNANCY_STATUS.items())
    devices = [(d.ae_title, f"{d.name} ({d.ae_title})") for d in p.devices if d.role == "modality"]
    return {
        "sex": (nothing, ("F", t("Female")), ("M", t("Male")), ("O", t("Other"))),
        "pregnancy": (nothing, *pregnancies),
        "device": (nothing, *devices),
        "modality": (nothing, *((m, m) for m in MODALITIES)),
        "priority": (nothing, *((one, t(one)) for one in ("ROUTINE", "HIGH", "STAT"))),
        "procedure": tuple((row.meaning, row.code) for row in p.read(procedures_in_use)),
        "physician": tuple((name, "") for name in map(physician, p.read(referrers))),
    }


def exam_of(p: PageRequest, row_id: int) -> ElementIndex:
    """Return the data set of an exam. Refuses 0112."""
    return ElementIndex(p.read(get_step, row_id))


def form_of(rows: tuple[FieldRow, ...], index: ElementIndex) -> dict[str, str]:
    """Return the values of fields of the registration form for a data set."""
    step = index.item("ScheduledProcedureStepSequence")
    return {
        row.name: masked_number(identity_number(index)) if row.tag == OTHER_IDS else
        row.kind.show((step if row.keyword in STEP_KEYWORDS else index).get(row.keyword))
        for row in rows
    }  # fmt: skip


def patient_from_form(
    form: Mapping[str, str], shown: Mapping[str, str]
) -> tuple[bytes, list[Problem]]:
    """Return the patient's attributes that a form changes, empty ones too, and the problems."""
    item, problems = item_from_form(dict.fromkeys((row.name for row in REGISTER_FIELDS), "") | form)
    changed = {tag_of(k): k for k in changed_keywords(PATIENT_FIELDS, form, shown)}
    if OTHER_IDS in changed and is_masked(form["identity"].strip()):
        words = Message("is not a valid identity number: a digit may be wrong")
        problems.append(Problem(OTHER_IDS, words))
    empty = ElementIndex(encoded({
        tag: encode_items(tag, []) if tag == OTHER_IDS else encode_text(k, "")
        for tag, k in changed.items()
    }))  # fmt: skip
    told = split_item(ElementIndex(item))[0].only(changed)
    others = {row.tag for row in EXAM_FIELDS}
    return bytes(empty.merged(told)), [problem for problem in problems if problem.tag not in others]


def exam_from_form(
    form: Mapping[str, str], shown: Mapping[str, str], device: Device | None
) -> bytes:
    """Return the exam's attributes that a form changes, empty ones too.

    A new device sets modality, station name and location; a new procedure removes the old codes.
    """
    changed = changed_keywords(EXAM_FIELDS, form, shown)
    texts, _ = read_fields(EXAM_FIELDS, form)
    texts = {keyword: text for keyword, text in texts.items() if keyword in changed}
    if device and "ScheduledStationAETitle" in changed:
        texts.setdefault("Modality", "")
        texts["ScheduledStationName"] = device.station_name
        texts["ScheduledProcedureStepLocation"] = device.location
    if device and "Modality" in texts:
        texts["Modality"] = texts["Modality"] or device.modality
    if "RequestedProcedureDescription" in changed:
        texts["ScheduledProcedureStepDescription"] = texts["RequestedProcedureDescription"]
    elements = {keyword: encode_text(keyword, text) for keyword, text in texts.items()}
    if "RequestedProcedureDescription" in changed:
        for keyword in ("RequestedProcedureCodeSequence", "ScheduledProtocolCodeSequence"):
            elements[keyword] = encode_items(tag_of(keyword), [])
    inner = {tag_of(k): elements.pop(k) for k in STEP_KEYWORDS if k in elements}
    outer = {tag_of(keyword): element for keyword, element in elements.items()}
    return encoded(outer | {STEP_SEQUENCE: encode_items(STEP_SEQUENCE, [encoded(inner)])})


def patient_title(p: PageRequest, index: ElementIndex) -> str:
    """Return a patient as the title of a page: Garcia Luis · M 61 y · P000002."""
    told = (p.t.name(index.get("PatientName")), p.t.of_person(index, p.ctx.local_now().date()),
            index.get("PatientID"))  # fmt: skip
    return p.t.dotted(told)


CHANGE_LABELS = {row.tag: row.label for row in REGISTER_FIELDS} | {
    tag_of("PatientName"): Message("Name"),
    tag_of("PatientID"): Message("Patient ID"),
    tag_of("AccessionNumber"): Message("Accession number"),
    tag_of("Modality"): Message("Modality"),
}
_SHOWN = {"PN": Translator.name, "DA": Translator.date, "CS": Translator.__call__,
          "TM": lambda _, value: shown_time(value)}  # fmt: skip


def shown_history(
    p: PageRequest, moments: Iterable[Moment]
) -> list[tuple[str, str, str, list[str]]]:
    """Return a time line as the template wants it: when, what, by whom, old and new values."""
    t, shown = p.t, []
    for one in moments:
        changes = []
        for tag, *values in one.changes:
            label = t(CHANGE_LABELS.get(tag) or attribute_name(tag))
            show = _SHOWN.get(vr_of(tag), lambda _, value: value.replace("\\", ", "))
            both = (t.placed(show(t, value) if value else t("(empty)")) for value in values)
            changes.append(f"{label}: {t.arrow.join(both)}")
        what = t.dotted((t(one.what), t(one.about)))
        shown.append((p.at(one.at), what, one.who, changes))
    return shown
