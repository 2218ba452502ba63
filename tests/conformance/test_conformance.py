"""The conformance statement is true: what it says is what a running appliance does."""

import contextlib
import html.parser
import json
import re

import peers
import pytest
from conftest import item, write_config
from pydicom import datadict
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary
from pynetdicom import AE, build_context, evt, sop_class
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation, SOPClassExtendedNegotiation
from test_dimse import Wire, find_request, pdus

from minris.cli import main
from minris.config.ini import load_config
from minris.config.values import read_character_set
from minris.conformance.statement import conformance_statement
from minris.dataset.elements import ElementIndex, encode_element
from minris.dataset.search import Search
from minris.dimse.services import PRESENTATION_CONTEXTS
from minris.standard.dictionary import tag_of, vr_of
from minris.standard.status import Status
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MODALITY_WORKLIST,
    MPPS,
    MPPS_NOTIFICATION,
    MPPS_RETRIEVE,
    VERIFICATION,
)
from minris.standard.worklist import MWL_ATTRIBUTES

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


def statement(config):
    """The statement of a configuration, as blocks."""
    return json.loads(conformance_statement(config, "json"))


def table_under(config, heading, number=0):
    """The rows of a table under a heading, each by the names of its columns."""
    blocks = statement(config)
    start = next(i for i, b in enumerate(blocks) if b["text"].startswith(heading))
    tables = [block["rows"] for block in blocks[start:] if block["kind"] == "table"]
    head, *body = tables[number]
    return [dict(zip(head, row, strict=True)) for row in body]


def paragraphs(config):
    return " ".join(block["text"] for block in statement(config) if block["kind"] == "paragraph")


# The three forms


class Page(html.parser.HTMLParser):
    """What stands in an HTML text: headings, paragraphs, rows of cells; and whether it is closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag in ("h1", "h2", "h3", "h4", "p"):
            self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3", "h4", "p"):
            self.texts[-1] += data


def test_html_says_what_json_says(config):
    page = Page(conformance_statement(config, "html"))
    blocks = statement(config)
    assert page.rows == [row for block in blocks for row in block["rows"]]
    assert page.texts == [block["text"] for block in blocks if block["text"]]
    assert page.open == []


def test_html_is_a_page_of_its_own_that_says_its_encoding(config):
    """Opened from a folder there is no server to say that it is UTF-8."""
    text = conformance_statement(config, "html")
    assert text.lower().startswith("<!doctype html>")
    assert re.search(r'<meta charset="?utf-8', text[:1024].lower())
    assert "<title>" in text


def test_markdown_says_what_json_says(config):
    text = conformance_statement(config, "md")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "| --- |" not in line]
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    blocks = statement(config)
    assert rows == [[cell.strip() for cell in row] for b in blocks for row in b["rows"]]
    assert all(block["text"] in text for block in blocks)


def test_markup_in_a_setting_is_text_in_every_form(tmp_path):
    path = write_config(tmp_path, "[dicom]\nae_title = A<b>|B\n")
    config = load_config(path)
    assert "A&lt;b&gt;|B" in conformance_statement(config, "html")
    assert "| A<b>\\|B |" in conformance_statement(config, "md")


def test_sections_are_those_of_annex_n_in_order(config):
    """PS3.2 annex N."""
    found = [block["text"] for block in statement(config) if block["level"] == 2]
    assert found == [
        "1 Conformance statement overview",
        "2 Contents",
        "3 Introduction",
        "4 Implementation model",
        "5 Service and interoperability description",
        "6 Configuration",
        "7 Network communication details",
        "8 Security",
    ]


def test_the_contents_name_every_section(config):
    headings = {b["text"] for b in statement(config) if b["level"] in (2, 3)} - {"2 Contents"}
    assert {row["Section"] for row in table_under(config, "2 Contents")} == headings


@pytest.mark.parametrize("form", ["md", "html", "json"])
def test_the_command_prints_the_statement_of_the_configuration(config, capsys, form):
    arguments = ["conformance", "--format", form, "--config", str(config.path)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == conformance_statement(config, form)


SAID = {
    "[dicom]\nae_title = LAKESIDE": "LAKESIDE",
    "[dicom]\nhide_steps = CANCELED": "whatever the status key says: CANCELED.",
    "[dicom]\nanswer_limit = 17": "More than 17 matches end with A700",
    "[dicom]\nstrict_mpps = yes": "An absent type 2 attribute is refused with 0120.",
    "[dicom]\naccept_unknown_devices = yes": "| Calling AE titles that are not registered | accepted |",
    "[dicom]\ncheck_called_ae_title = no": "| Another called AE title | accepted |",
    "[dicom]\nmaximum_pdu_length = 16384": "| maximum_pdu_length | 16384 |",
}


@pytest.mark.parametrize("text", SAID)
def test_a_setting_that_changes_the_behaviour_changes_the_statement(tmp_path, config, text):
    changed = load_config(write_config(tmp_path, text))
    assert SAID[text] in conformance_statement(changed)
    assert SAID[text] not in conformance_statement(config)


# Negotiation, against a running appliance

EVERY_SOP_CLASS = sorted(
    {
        value
        for name in dir(sop_class)
        if (value := getattr(sop_class, name)) and isinstance(value, sop_class.SOPClass)
    }
)


@contextlib.contextmanager
def association(appliance, contexts, calling="CT1", called="MINRIS", **how):
    ae = AE(calling)
    found = ae.associate(peers.HOST, appliance.port, contexts=contexts, ae_title=called, **how)
    try:
        yield found
    finally:
        found.abort()


def accepted(appliance, contexts):
    """The contexts that are accepted of many, and the transfer syntax of each."""
    found = []
    for start in range(0, len(contexts), 128):
        with association(appliance, contexts[start : start + 128]) as one:
            found += [(c.abstract_syntax, *c.transfer_syntax) for c in one.accepted_contexts]
    return sorted(found)


def test_the_sop_classes_of_pynetdicom_are_many():
    assert len(EVERY_SOP_CLASS) > 200


def test_of_every_sop_class_those_of_the_statement_are_accepted(appliance):
    """T-GEN-03. Issue: a test compares it with the contexts that a live server accepts."""
    rows = table_under(appliance.config, "7.1 Association acceptance")
    stated = sorted(row["Abstract syntax"] for row in rows)
    found = accepted(appliance, [build_context(uid) for uid in EVERY_SOP_CLASS])
    assert [uid for uid, _ in found] == stated


def test_the_overview_has_the_same_sop_classes(config):
    rows = table_under(config, "1 Conformance statement overview")
    overview = {row["UID"] for row in rows if row["Provider (SCP)"] == "Yes"}
    contexts = table_under(config, "7.1 Association acceptance")
    ours_to_open = {MPPS_NOTIFICATION}  # nobody asks us for it (PS3.4 F.2.1)
    assert overview == {row["Abstract syntax"] for row in contexts} | ours_to_open


def test_of_every_transfer_syntax_those_of_the_statement_are_accepted(appliance):
    """T-GEN-04."""
    rows = table_under(appliance.config, "7.1 Association acceptance")
    syntaxes = [uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"]
    for row in rows:
        contexts = [build_context(row["Abstract syntax"], syntax) for syntax in syntaxes]
        found = [syntax for _, syntax in accepted(appliance, contexts)]
        assert found == sorted(row["Transfer syntaxes"].split(", "))


def test_explicit_vr_is_chosen_where_both_are_proposed(appliance):
    assert "Explicit VR is chosen where both are proposed" in paragraphs(appliance.config)
    both = [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN]
    for uid in PRESENTATION_CONTEXTS:
        found = accepted(appliance, [build_context(uid, both)])
        assert found == [(uid, EXPLICIT_VR_LITTLE_ENDIAN)]


def answered_items(appliance, uid, negotiated):
    """What of the user information is answered for a SOP class."""
    with association(appliance, [build_context(uid)], ext_neg=[negotiated]) as one:
        assert one.is_established
        return [
            one_item
            for one_item in one.acceptor.user_information
            if isinstance(one_item, type(negotiated))
        ]


@pytest.mark.parametrize("uid", PRESENTATION_CONTEXTS)
def test_role_selection_is_answered_where_the_statement_says_so(appliance, uid):
    """T-GEN-05."""
    rows = table_under(appliance.config, "7.1 Association acceptance")
    [stated] = [row["Role selection"] for row in rows if row["Abstract syntax"] == uid]
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = uid, True, True
    found = answered_items(appliance, uid, role)
    assert bool(found) is (stated == "answered")
    offered = PRESENTATION_CONTEXTS[uid] or (False, False)
    assert all(one.scp_role is offered[1] for one in found)


@pytest.mark.parametrize("uid", PRESENTATION_CONTEXTS)
def test_extended_negotiation_is_answered_as_the_statement_says(appliance, uid):
    rows = table_under(appliance.config, "7.1 Association acceptance")
    [stated] = [row["Extended negotiation"] for row in rows if row["Abstract syntax"] == uid]
    asked = SOPClassExtendedNegotiation()
    asked.sop_class_uid, asked.service_class_application_information = uid, b"\1\1\1\1"
    found = answered_items(appliance, uid, asked)
    values = [one.service_class_application_information.hex() for one in found]
    assert (values or ["none"]) == [stated]


SOMETHING = Dataset.from_json({"00400253": {"vr": "SH", "Value": ["PPS0930"]}})
OPERATIONS = {
    "N-CREATE": lambda one, uid: one.send_n_create(SOMETHING, uid, "2.25.1")[0],
    "N-SET": lambda one, uid: one.send_n_set(SOMETHING, uid, "2.25.1")[0],
    "N-GET": lambda one, uid: one.send_n_get([], uid, "2.25.1")[0],
    "N-ACTION": lambda one, uid: one.send_n_action(SOMETHING, 1, uid, "2.25.1")[0],
    "N-DELETE": lambda one, uid: one.send_n_delete(uid, "2.25.1"),
}


@pytest.mark.parametrize("uid", [VERIFICATION, MPPS, MPPS_RETRIEVE])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_known_where_the_overview_has_it(appliance, operation, uid):
    rows = table_under(appliance.config, "1 Conformance statement overview")
    [stated] = [r["Operations"] for r in rows if r["UID"] == uid and r["Provider (SCP)"]]
    with association(appliance, [build_context(uid)]) as one:
        status = OPERATIONS[operation](one, uid).Status
    known = operation in stated.split(", ")
    assert (status != Status.UNRECOGNIZED_OPERATION) is known


# Whom the statement says is turned away


@pytest.mark.parametrize(
    ("who", "calling", "called"),
    [
        ("Calling AE titles that are not registered", "NOBODY", "MINRIS"),
        ("Another called AE title", "CT1", "OTHER"),
    ],
)
def test_who_is_rejected_is_told_as_the_statement_says(appliance, who, calling, called):
    """T-GEN-02."""
    rows = table_under(appliance.config, "8 Security")
    [stated] = [row["Value"] for row in rows if row["Item"] == who]
    received = []
    handlers = [(evt.EVT_PDU_RECV, lambda event: received.append(event.pdu))]
    contexts = [build_context(VERIFICATION)]
    with association(appliance, contexts, calling, called, evt_handlers=handlers) as one:
        assert not one.is_established
    [answer] = received
    assert stated == f"rejected ({answer.result}, {answer.source}, {answer.reason_diagnostic})"


# Worklist keys, against a running appliance


def nested(path, value):
    """A data set with one value at a path of tags; an empty one for None."""
    ds = Dataset()
    tag, *rest = path
    vr = vr_of(tag)
    if rest:
        ds.add_new(tag, vr, [nested(rest, value)])
    else:
        ds.add_new(tag, vr, value if value is not None else [] if vr == "SQ" else "")
    return ds


def stated_keys(config):
    """The keys of the statement: path of tags, and row."""
    path, found = [], {}
    for row in table_under(config, "5.1 Modality worklist"):
        depth = row["Attribute"].count(">")
        tag = int(row["Tag"][1:-1].replace(",", ""), 16)
        assert datadict.keyword_for_tag(tag) == row["Attribute"].lstrip(">")
        path = [*path[:depth], tag]
        found[tuple(path)] = row
    return found


CONFIG = load_config(None)
KEYS = stated_keys(CONFIG)
# A believable value for each VR, and one that nothing here has.
VALUES = {
    "AE": ("CT1", "MR9"),
    "AS": ("046Y", "001M"),
    "CS": ("ROUTINE", "ZZ"),
    "DA": ("20260705", "20200101"),
    "DS": ("71.5", "12"),
    "LO": ("Room 3", "Zz"),
    "LT": ("Bring the old films", "Zz"),
    "PN": ("Zhao^Min", "Zz"),
    "SH": ("S2607050007", "Zz"),
    "ST": ("Long Street 1", "Zz"),
    "TM": ("093000", "2200"),
    "UC": ("71388002", "Zz"),
    "UI": ("2.25.42", "1.2.3"),
    "UR": ("urn:loinc:24627-2", "urn:zz"),
    "US": (1, 4),
    "UT": ("Cough for six weeks", "Zz"),
}
GIVEN = {
    "ScheduledProcedureStepStatus": "ARRIVED", "Modality": "CT", "PatientSex": "M",
    "PatientSize": "1.72",
}  # fmt: skip


def value_at(path):
    """The value that the rich step has at a path."""
    return GIVEN.get(datadict.keyword_for_tag(path[-1]), VALUES[vr_of(path[-1])][0])


def is_leaf(path):
    return vr_of(path[-1]) != "SQ"


def rich_step():
    """A step with a value for every key of the statement, as DICOM JSON."""
    ds = Dataset()
    for path in KEYS:
        if not is_leaf(path) or path[-1] in (0x00080005, 0x00080201):
            continue
        at = ds
        for tag in path[:-1]:
            if tag not in at:
                at.add_new(tag, "SQ", [Dataset()])
            at = at[tag].value[0]
        at.add_new(path[-1], vr_of(path[-1]), value_at(path))
    return ds.to_json_dict()


class Asker:
    """A machine that asks one worklist question after the other.

    On a bare socket: of hundreds of answers pynetdicom 3.0.4 loses one now and then, when its own
    reactor takes a response that its caller waits for.
    """

    def __init__(self, wire):
        self.wire = wire

    def ask(self, ds):
        """The statuses and the answers."""
        ds.SpecificCharacterSet = "ISO_IR 192"
        self.wire.send(pdus(find_request(encode(ds, True, True))))
        statuses, answers = set(), []
        while True:
            command, answer = self.wire.answer()
            statuses.add(command.Status)
            if answer is None:
                return statuses, answers
            answers.append(answer)

    def count(self, path, value):
        """How many answers a key has."""
        statuses, answers = self.ask(nested(path, value))
        assert 0 in statuses, f"{path} {value}: {statuses}"
        return len(answers)


@pytest.fixture
def asker(appliance):
    """A machine, and one step on its worklist that has everything."""
    appliance.schedule(rich_step())
    with Wire(appliance.port) as wire:
        yield Asker(wire)


def named(path):
    return ">".join(datadict.keyword_for_tag(tag) for tag in path)


def test_each_key_of_the_statement_is_supported(asker):
    """T-MWL-17. Issue: a test compares it with the keys that a live server accepts."""
    wrong = {}
    for path in KEYS:
        statuses, answers = asker.ask(nested(path, None))
        if statuses != {0, Status.PENDING} or len(answers) != 1:
            wrong[named(path)] = statuses
    assert wrong == {}


def test_each_key_of_the_statement_is_returned(asker):
    wrong = []
    for path, row in KEYS.items():
        if not is_leaf(path) and row["Return type"] not in ("1", "2"):
            continue  # a sequence that the step may do without
        _, [answer] = asker.ask(nested(path, None))
        for tag in path:
            if tag not in answer:
                wrong.append(named(path))
                break
            element = answer[tag]
            answer = element.value[0] if element.VR == "SQ" and element.value else answer
    assert wrong == []


# Keys that a machine may ask for and that the statement does not have.
FOREIGN = [
    ("StationName",),
    ("BodyPartExamined",),
    ("PatientMotherBirthName",),
    ("ScheduledProcedureStepSequence", "BodyPartExamined"),
    ("ScheduledProcedureStepSequence", "PatientID"),
    ("ScheduledStationAETitle",),
    ("RequestedProcedureCodeSequence", "ContextIdentifier"),
]


@pytest.mark.parametrize("keywords", FOREIGN, ids=">".join)
def test_a_key_that_the_statement_does_not_have_is_not_supported(asker, keywords):
    """T-MWL-17."""
    path = tuple(tag_of(keyword) for keyword in keywords)
    assert path not in KEYS
    statuses, answers = asker.ask(nested(path, None))
    assert statuses == {0, Status.PENDING_OPTIONAL_KEYS_UNSUPPORTED}
    assert len(answers) == 1


def test_of_all_attributes_of_dicom_those_of_the_statement_are_supported():
    """The same without a network, for the whole dictionary."""
    supported = set()
    for tag in datadict.DicomDictionary:
        keys = encode_element(tag, vr_of(tag).encode(), b"")
        search = Search(ElementIndex(keys), MWL_ATTRIBUTES)
        if search.status is Status.PENDING:
            supported.add(tag)
    exceptions = {tag_of("QueryRetrieveLevel")}  # a slip of old devices, forgiven
    assert supported - exceptions == {path[0] for path in KEYS if len(path) == 1}


def test_what_is_forgiven_is_in_the_statement(config):
    """Query/Retrieve Level is in no table and makes no answer FF01."""
    assert "Query/Retrieve Level" in paragraphs(config)


def test_a_key_is_matched_as_the_statement_says(asker):
    """Each kind of matching of each key: what it has is found, what it has not is not."""
    wrong = []
    for path, row in KEYS.items():
        if not is_leaf(path) or path[-1] in (0x00080005, 0x00080201):
            continue
        has, other = value_at(path), VALUES[vr_of(path[-1])][1]
        kind = row["Matching"].partition(": ")[2]
        queries = [(has, 1), (other, 0)] if kind else [(other, 1)]
        if "wildcard" in kind:
            queries += [(f"{has[:3]}*", 1), (f"?{has[1:]}", 1), (f"{other}*", 0)]
        if "range" in kind:
            before, after = {"DA": ("20260701", "20260731"), "TM": ("0800", "1200")}[
                vr_of(path[-1])
            ]
            queries += [(f"{before}-{after}", 1), (f"-{before}", 0), (f"{after}-", 0)]
        if "list" in kind:
            queries += [([other, has], 1)]
        wrong += [
            f"{named(path)}={value}: not {count}"
            for value, count in queries
            if asker.count(path, value) != count
        ]
    assert wrong == []


def test_names_match_as_the_statement_says(appliance):
    """T-MWL-08."""
    appliance.schedule(item("Lyu^XiaoDong=吕^小东"), item("Müller^Jörg"))
    with Wire(appliance.port) as wire:
        machine = Asker(wire)
        path = (tag_of("PatientName"),)
        for key in ("lyu xiao dong", "LÜ^XIAODONG", "lv^xiaodong", "Muller^Jorg", "mül*rg"):
            assert machine.count(path, key) == 1, key
        assert machine.count(path, "Lyu^XiaoDon") == 0


# Character sets

SETS = next(
    block["text"] for block in statement(CONFIG) if "GB18030" in block["text"]
    and "ISO_IR 100" in block["text"]
).split(", ")  # fmt: skip


@pytest.mark.parametrize("term", SETS)
def test_each_set_of_the_statement_can_be_set_for_a_device(term):
    assert read_character_set(term) == (term,)


@pytest.mark.parametrize(
    "term",
    [
        *("ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 144", "ISO_IR 127"),
        *("ISO_IR 126", "ISO_IR 138", "ISO_IR 148", "ISO_IR 203", "ISO_IR 13", "ISO_IR 166"),
        *("ISO 2022 IR 6", "ISO 2022 IR 100", "ISO 2022 IR 101", "ISO 2022 IR 109"),
        *("ISO 2022 IR 110", "ISO 2022 IR 144", "ISO 2022 IR 127", "ISO 2022 IR 126"),
        *("ISO 2022 IR 138", "ISO 2022 IR 148", "ISO 2022 IR 203", "ISO 2022 IR 13"),
        *("ISO 2022 IR 166", "ISO 2022 IR 87", "ISO 2022 IR 159", "ISO 2022 IR 149"),
        *("ISO 2022 IR 58", "ISO_IR 192", "GB18030", "GBK"),
    ],
)
def test_each_set_of_dicom_is_in_the_statement(term):
    """PS3.3 Tables C.12-2 to C.12-5."""
    assert term in SETS


@pytest.mark.parametrize("term", SETS)
def test_each_set_of_the_statement_is_taken_in_a_query(appliance, term):
    """An ASCII name is found whatever set the query declares, and answered in it.

    ISO_IR 6 is no term of DICOM's: the default repertoire has none (PS3.3 Table C.12-2).
    """
    appliance.schedule(item("Wang^Fang"))
    query = Dataset()
    query.PatientName = "Wang^Fang"
    with association(appliance, [build_context(MODALITY_WORKLIST)]) as one:
        query.SpecificCharacterSet = term
        [(status, answer), (last, _)] = one.send_c_find(query, MODALITY_WORKLIST)
    assert (status.Status, last.Status) == (Status.PENDING, Status.SUCCESS)
    assert answer.PatientName == "Wang^Fang"
    assert answer.get("SpecificCharacterSet") == (term if term != "ISO_IR 6" else None)
