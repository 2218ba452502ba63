"""Section 14: worklist items from files of others, in what forms they come."""

import json
import re
import subprocess

import peers
import pytest
from conftest import item

from minris.dataset.dicom_json import from_json, to_json
from minris.dataset.elements import ElementIndex
from minris.interchange.files import read_items
from minris.interchange.imports import import_now
from minris.orders.scheduling import schedule
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.store.models import Patient, ScheduledProcedureStep

DUMP = """
(0008,0005) CS [{charset}]
(0008,0050) SH [20260105-007]
(0008,0090) PN [Zhao^Min=赵^敏]
(0010,0010) PN [Wang^Xiaohong=王^小红]
(0010,0020) LO [K100023]
(0010,0030) DA [19840517]
(0010,0040) CS [F]
(0020,000d) UI [2.25.164853397526153207231186904478612417153]
(0032,1060) LO [CT Kopf]
(0040,0100) SQ
(fffe,e000) -
(0008,0060) CS [CT]
(0040,0001) AE [CT1]
(0040,0002) DA [20260105]
(0040,0003) TM [093000]
(0040,0006) PN [Li^Na=李^娜]
(0040,0007) LO [头颅平扫]
(0040,0009) SH [S1]
(fffe,e00d) -
(fffe,e0dd) -
(0040,1001) SH [R1]
"""


def worklist_file(folder, *options, charset="ISO_IR 192", codec="utf-8", dump=DUMP):
    """The content of a .wl file as DCMTK's dump2dcm writes it."""
    source, target = folder / "entry.dump", folder / "entry.wl"
    source.write_bytes(dump.format(charset=charset).encode(codec))
    subprocess.run([peers.dump2dcm(), "-q", *options, source, target], check=True)
    return target.read_bytes()


def only_item(content, name="entry.wl"):
    """The one item of a file."""
    [data] = read_items(name, content)
    return ElementIndex(data)


def stored_steps():
    """How many steps are on the worklist."""
    return ScheduledProcedureStep.select().count()


def imported(ctx, content, name="entry.wl"):
    """Import a file: how many items."""
    return int(re.search(r"\d+", import_now(ctx, name, content))[0])


SYNTAXES = pytest.mark.parametrize("syntax", ["+te", "+ti"], ids=["explicit", "implicit"])


# DICOM files.


@SYNTAXES
@pytest.mark.parametrize("lengths", ["+e", "-e"], ids=["defined", "undefined"])
def test_a_worklist_file_of_dcmtk_is_read(tmp_path, syntax, lengths):
    found = only_item(worklist_file(tmp_path, syntax, lengths))
    step = found.item("ScheduledProcedureStepSequence")
    assert found.get("PatientName") == "Wang^Xiaohong=王^小红"
    assert found.get("PatientBirthDate") == "19840517"
    assert step.get("ScheduledProcedureStepDescription") == "头颅平扫"
    assert step.get("ScheduledStationAETitle") == "CT1"


@SYNTAXES
def test_a_file_without_preamble_is_read(tmp_path, syntax):
    content = worklist_file(tmp_path, syntax)
    assert content[128:132] == b"DICM"
    assert bytes(only_item(content[132:], "entry.dcm")) == bytes(only_item(content))


@SYNTAXES
def test_a_bare_data_set_is_read(tmp_path, syntax):
    bare = worklist_file(tmp_path, syntax, "-F")
    assert bare[:4] == b"\x08\x00\x05\x00"
    assert only_item(bare, "entry.dcm").get("PatientName") == "Wang^Xiaohong=王^小红"


def test_group_lengths_and_padding_are_read_over(tmp_path):
    found = only_item(worklist_file(tmp_path, "+g", "+p", "512", "16"))
    assert found.get("PatientID") == "K100023"
    assert all(tag & 0xFFFF for tag in found)


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        ("ISO_IR 192", "utf-8"),
        ("GB18030", "gb18030"),
        ("GBK", "gbk"),
    ],
)
def test_names_are_read_in_the_set_of_the_file(tmp_path, charset, codec):
    """T-CS-01."""
    found = only_item(worklist_file(tmp_path, charset=charset, codec=codec))
    assert found.get("PatientName") == "Wang^Xiaohong=王^小红"
    assert found.get("ReferringPhysicianName") == "Zhao^Min=赵^敏"


def test_western_names_are_read_in_the_set_of_the_file(tmp_path):
    """T-CS-01."""
    dump = "\n".join(line for line in DUMP.splitlines() if line.isascii())
    dump += "\n(0010,0010) PN [Müller^José]\n"
    found = only_item(
        worklist_file(tmp_path, charset="ISO_IR 100", codec="latin-1", dump=sorted_dump(dump))
    )
    assert found.get("PatientName") == "Müller^José"


def sorted_dump(dump):
    """The lines of a dump with a name at its end, the name put in its place."""
    *lines, name = dump.strip().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("(0010,0020)"))
    return "\n".join([*lines[:at], name, *lines[at:]])


UNDECLARED = "\n".join(line for line in DUMP.splitlines() if "(0008,0005)" not in line)


def test_chinese_in_utf_8_without_a_declared_set_is_recovered(tmp_path):
    """Worklist files made by hand often lack (0008,0005)."""
    found = only_item(worklist_file(tmp_path, dump=UNDECLARED))
    assert found.get("PatientName") == "Wang^Xiaohong=王^小红"


def test_a_name_that_could_only_be_guessed_is_not_taken_in_silence(ctx, tmp_path, caplog):
    """GB18030 without (0008,0005) may be ISO_IR 100 as well."""
    content = worklist_file(tmp_path, codec="gb18030", dump=UNDECLARED)
    try:
        imported(ctx, content)
    except Refusal as refusal:
        assert tag_of("PatientName") in refusal.tags
    else:
        [patient] = Patient.select()
        assert "王^小红" in patient.patient_name or "Patient's Name" in caplog.text


def test_an_imported_file_is_answered_as_wlmscpfs_answers_it(appliance, tmp_path):
    """Whoever comes from DCMTK's worklist server keeps the answers."""
    folder = tmp_path / "wlm" / "MINRIS"
    folder.mkdir(parents=True)
    (folder / "lockfile").touch()
    content = worklist_file(tmp_path)
    (folder / "entry.wl").write_bytes(content)
    appliance.write(import_now, appliance.context(), "a.wl", content)
    keys = peers.WORKLIST_KEYS
    [ours] = peers.run_findscu(appliance.port, "MINRIS", "CT1", keys).datasets
    with peers.serving_worklist(folder.parent) as port:
        [theirs] = peers.run_findscu(port, "MINRIS", "CT1", keys).datasets
    assert ours.to_json_dict() == theirs.to_json_dict()


def test_a_step_without_status_is_scheduled(ctx, tmp_path):
    imported(ctx, worklist_file(tmp_path))
    [step] = ScheduledProcedureStep.select()
    assert step.status == "SCHEDULED"


@pytest.mark.parametrize(
    "options", [["+tb"], ["+td"]], ids=["explicit big endian", "deflated little endian"]
)
def test_another_transfer_syntax_is_refused_by_its_uid(tmp_path, options):
    with pytest.raises(Refusal) as refusal:
        only_item(worklist_file(tmp_path, *options))
    assert "1.2.840.10008.1.2" in refusal.value.detail


# DICOM JSON.


def test_one_json_object_is_one_item(ctx):
    assert imported(ctx, json.dumps(item()).encode(), "list.json") == 1


def test_a_json_array_is_so_many_items(ctx):
    array = [item("Li^Na=李^娜"), item("Miller^Anna"), item("Zhang^Wei=张^伟")]
    assert imported(ctx, json.dumps(array).encode(), "list.json") == 3
    assert stored_steps() == 3


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_as_windows_saves_it(codec):
    """Notepad writes a byte order mark, and has written UTF-16."""
    text = json.dumps([item("Li^Na=李^娜")], ensure_ascii=False, indent=2).replace("\n", "\r\n")
    assert only_item(text.encode(codec), "list.json").get("PatientName") == "Li^Na=李^娜"


@pytest.mark.parametrize("name", ["list.json", "LIST.JSON", "list.txt", "list"])
def test_json_is_known_by_its_name_or_its_first_character(name):
    content = b"\r\n  " + json.dumps([item("Miller^Anna")]).encode()
    assert only_item(content, name).get("PatientName") == "Miller^Anna"


def test_what_the_api_answered_can_be_imported(ctx):
    [stored] = schedule(ctx, from_json(item(PatientID="P7")))
    exported = json.dumps([to_json(ElementIndex(stored))]).encode()
    assert bytes(only_item(exported, "list.json")) == stored


# All of a file, or nothing.


def two_hundred(**wrong):
    """A list of 200 patients, in which some are wrong: number → texts."""
    array = []
    for number in range(1, 201):
        texts = wrong.get(f"item{number}", {})
        array.append(item(f"Patient{number}^Test", PatientID=f"P{number:04}", **texts))
    return json.dumps(array).encode()


def test_two_hundred_good_items_are_imported(ctx):
    assert imported(ctx, two_hundred(), "list.json") == 200
    assert stored_steps() == 200


def test_item_37_of_200_is_wrong_and_nothing_is_imported(ctx):
    wrong = two_hundred(item37={"PatientBirthDate": "19800231"})
    with pytest.raises(Refusal) as refusal:
        imported(ctx, wrong, "list.json")
    assert refusal.value.detail == (
        "item 37: Patient's Birth Date (0010,0030) 19800231 is not a date"
    )
    assert stored_steps() == 0
    assert Patient.select().count() == 0


def test_the_last_item_being_wrong_keeps_the_first_out(ctx):
    with pytest.raises(Refusal, match=r"^item 200: "):
        imported(ctx, two_hundred(item200={"ScheduledProcedureStepStartTime": "2500"}), "list.json")
    assert stored_steps() == 0


def test_every_wrong_item_of_a_file_is_named(ctx):
    """Whoever mends a list of 200 wants to hear of all mistakes at once."""
    wrong = two_hundred(
        item3={"PatientBirthDate": "19800231"}, item150={"AccessionNumber": "A" * 17}
    )
    with pytest.raises(Refusal) as refusal:
        imported(ctx, wrong, "list.json")
    assert "item 3: Patient's Birth Date (0010,0030)" in refusal.value.detail
    assert "item 150: Accession Number (0008,0050)" in refusal.value.detail


def test_all_that_is_wrong_with_an_item_is_said(ctx):
    with pytest.raises(Refusal) as refusal:
        imported(ctx, json.dumps(item("", PatientBirthDate="soon")).encode(), "list.json")
    assert "Patient's Birth Date (0010,0030) soon is not a date" in refusal.value.detail
    assert "Patient's Name (0010,0010) is missing" in refusal.value.detail


def test_a_file_imported_twice_is_there_once(ctx, tmp_path):
    content = worklist_file(tmp_path)
    imported(ctx, content)
    assert "imported already" in import_now(ctx, "entry.wl", content)
    with pytest.raises(Refusal) as refusal:
        import_now(ctx, "entry.wl", content, again=True)
    assert refusal.value.status is Status.DUPLICATE_SOP_INSTANCE
    assert "S1 is on the worklist already" in refusal.value.detail
    assert stored_steps() == 1


def test_one_step_twice_in_a_file_is_refused(ctx):
    same = item(StudyInstanceUID="2.25.7", ScheduledProcedureStepID="S1", PatientID="P7")
    with pytest.raises(Refusal, match=r"^item 2: .*S1 is on the worklist already"):
        imported(ctx, json.dumps([same, same]).encode(), "list.json")
    assert stored_steps() == 0


def test_one_patient_id_with_two_names_makes_two_patients(ctx):
    array = [item("Li^Na", PatientID="P7"), item("Miller^Anna", PatientID="P7")]
    imported(ctx, json.dumps(array).encode(), "list.json")
    names = {patient.patient_name for patient in Patient.select()}
    assert names == {"Li^Na", "Miller^Anna"}


# What is no worklist file.


def truncated(content, fraction):
    """The beginning of a file."""
    return content[: int(len(content) * fraction)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 400,
        b"patient;date\r\nWang;2026-07-05\r\n",
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"PK\x03\x04" + bytes(range(256)),
        bytes(128) + b"DICM",
        bytes(128) + b"DICM" + b"\xff" * 64,
        b"[",
        b"{}",
        b"[]]",
        b'["Wang"]',
        b"[[]]",
        "王小东".encode("gb18030"),
    ],
    ids=lambda content: repr(content[:12]),
)
@pytest.mark.parametrize("name", ["entry.wl", "list.json"])
def test_garbage_is_refused_in_words(ctx, name, content):
    with pytest.raises(Refusal) as refusal:
        imported(ctx, content, name)
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE
    assert len(refusal.value.detail) > 10
    assert stored_steps() == 0


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9, 0.99])
@SYNTAXES
def test_half_a_file_is_refused(ctx, tmp_path, syntax, fraction):
    content = truncated(worklist_file(tmp_path, syntax), fraction)
    with pytest.raises(Refusal) as refusal:
        imported(ctx, content)
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE
    assert stored_steps() == 0


def test_a_picture_is_no_worklist_item(ctx, tmp_path):
    """A CT image has a patient and a study, and no step."""
    dump = "\n".join(
        line for line in DUMP.splitlines() if "(0040," not in line and "fffe" not in line
    )
    dump = "\n".join(line for line in dump.splitlines() if "(0008,0060)" not in line)
    with pytest.raises(Refusal, match="Scheduled Procedure Step Sequence"):
        imported(ctx, worklist_file(tmp_path, dump=dump), "image.dcm")
    assert stored_steps() == 0
