"""The conformance statement (PS3.2), printed from the tables."""

import collections
import html
import json

from pydicom.uid import UID

from minris import __version__
from minris.config.ini import Config
from minris.config.settings import DEVICE_SETTINGS, SETTINGS
from minris.conformance.document import (
    Block,
    heading,
    paragraphs,
    statement_contents,
    statement_html,
    statement_markdown,
    table_block,
)
from minris.conformance.services import (
    statement_availability,
    statement_commitment,
    statement_mpps,
    statement_workitems,
    statement_worklist,
)
from minris.delivery.sockets import SocketDelivery
from minris.dicomweb.bodies import DICOM_JSON, MEDIA_TYPES
from minris.dicomweb.parameters import LOCK_PARAMETERS
from minris.dicomweb.routes import DICOM_ROUTES
from minris.dimse.senders import DimseSender
from minris.dimse.services import EXTENDED_NEGOTIATION, PRESENTATION_CONTEXTS, SERVICES
from minris.mpps.linking import STEP_ATTEMPTS
from minris.standard.character_sets import CHARACTER_SETS_ALONE, REPERTOIRES
from minris.standard.mpps import INCORRECT_WORKLIST_ENTRY, STEP_STATUS_AFTER
from minris.standard.status import OUTCOMES
from minris.standard.uids import (
    APPLICATION_CONTEXT,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MPPS_NOTIFICATION,
    PASSED_ON,
    STORAGE_COMMITMENT,
    STUDY_ROOT_FIND,
    UPS_EVENT,
    VERIFICATION,
)
from minris.upper_layer.negotiation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from minris.web.api import ROUTES
from minris.web.request import BASE, BEARER
from minris.web.sockets import EventSocket


def statement_overview(config: Config) -> list[Block]:
    """What is supported, in a table of yes and no."""
    services: dict[str, list[str]] = collections.defaultdict(list)
    for service in SERVICES:
        services[service.sop_class].append(service.operation)
    for uid in (UPS_EVENT, MPPS_NOTIFICATION):
        services[uid].append("N-EVENT-REPORT, on associations of ours")
    as_user = {uid: "Yes, passed on" for uid, scp in PASSED_ON.values() if not scp}
    as_user[STORAGE_COMMITMENT] = "Yes, passed on to the archive"
    lines = [
        (UID(uid).name, uid, "Yes", as_user.get(uid, "No"), ", ".join(operations))
        for uid, operations in services.items()
    ]
    head = ("SOP class", "UID", "Provider (SCP)", "User (SCU)", "Operations")
    lines.append(
        (UID(VERIFICATION).name, VERIFICATION, "", "Yes, from the page of devices", "C-ECHO")
    )
    lines.append((UID(STUDY_ROOT_FIND).name, STUDY_ROOT_FIND, "", "Yes, in the archive", "C-FIND"))
    return [
        heading(2, "1 Conformance statement overview"),
        *paragraphs(
            "minris registers patients and exams, offers them to modalities as a modality worklist,"
            " and takes the performed procedure steps that modalities report. It manages the"
            " workitems (unified procedure steps) of what comes after, and tells subscribers what"
            " becomes of them. It stores no images.",
        ),
        table_block(head, *lines),
    ]


def statement_introduction(config: Config) -> list[Block]:
    """What the document is of."""
    return [
        heading(2, "3 Introduction"),
        table_block(
            ("Item", "Value"),
            ("Product", f"minris {__version__}"),
            ("Implementation class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation version name", IMPLEMENTATION_VERSION_NAME),
            ("AE title", config.dicom.ae_title),
        ),
    ]


def statement_model(config: Config) -> list[Block]:
    """What the application entity does and when."""
    return [
        heading(2, "4 Implementation model"),
        *paragraphs(
            f"One application entity, {config.dicom.ae_title}, waits for associations. A worklist"
            " query is answered from what was registered on the page, by the JSON API or by"
            " import. A performed procedure step changes the state of the scheduled steps that it"
            " names; the answer follows the commit to disk.",
        ),
        heading(3, "4.1 What a performed step does to a scheduled one"),
        table_block(
            ("Performed step", "Scheduled step"),
            *STEP_STATUS_AFTER,
            (
                f"DISCONTINUED, reason {INCORRECT_WORKLIST_ENTRY} (DCM)",
                "as it was before the performed step began",
            ),
        ),
        *paragraphs(
            "A scheduled step is found by: "
            + "; else by ".join(
                f"{how} ({', '.join(column.replace('_', ' ') for column in columns)})"
                for how, *columns in STEP_ATTEMPTS
            )
            + ". Of several that fit none is taken, and a person decides.",
        ),
    ]


def statement_dicomweb(config: Config) -> list[Block]:
    """DICOMweb: its transactions and choices."""
    lines = [(r.method, BASE + r.path, r.clause, r.role) for r in DICOM_ROUTES]
    rules = (
        f"Media types: {', '.join(MEDIA_TYPES)}. Without an Accept header {DICOM_JSON} is answered."
        " A document type in XML is refused.",
        "A workitem's UID is taken from ?workitem=, ?AffectedSOPInstanceUID=, a bare ?UID or the data"
        " set; without any, one is made. The Transaction UID of an update is taken from"
        f" ?{', ?'.join(sorted(LOCK_PARAMETERS))} in any case, a bare ?UID or the data set.",
        "Requesting AE is ?requester= or the last part of the path, else the AE title that the token"
        " speaks for, else that of this system. A token subscribes, opens WebSockets and asks in the"
        " name of the AE titles it is made for alone (403); an administrator's for any.",
        "A parameter that looks like an attribute and is none is refused with 400; others are"
        " ignored. Neither fuzzy, empty value nor multiple value matching is offered. Matches come in"
        " the order of their start; a page ends after limit, or after"
        f" {config.dicom.answer_limit} matches.",
        "TimezoneOffsetFromUTC applies to keys of VR DT; to dates and times it does not, with a Warning"
        " where it is another offset than ours. A charset parameter without UTF-8 is refused with 400;"
        " Accept-Charset is not looked at. Content-Encoding is gzip in both directions, where asked.",
        "Limits: 429 after"
        f" {config.web.requests_per_second or 'any number of'} requests a second from one address, 413"
        f" after {config.web.maximum_body} bytes (unpacked, too), 16 levels of sequences.",
    )
    events = (
        f"Content-Location (and Location) of a subscription name the WebSocket of the AE's events,"
        f" {BASE}/subscribers/{{AE title}}; {BASE}/ws/subscribers/{{AE title}} is the same. It may be"
        " opened before or after the subscription, by a token in the Authorization header or in a"
        f" subprotocol {BEARER}TOKEN, or by a session's cookie from our own pages. The first other"
        " subprotocol is taken. Refusals: 400, 401, 403, 404, 426 without upgrade, 429, 503 past"
        f" {config.web.maximum_websockets} WebSockets.",
        "An AE is told by WebSocket from its first subscription over HTTP or its first WebSocket on,"
        " by DIMSE from its first subscription over DIMSE on, or as the setting events of its device"
        " says. Each event is one text with one object, with the UPS Push SOP class.",
        "An event has been heard when a pong has followed it on one of the AE's WebSockets; until"
        " then it is told again on the next one, with the same Message ID. The first WebSocket of an"
        " AE is told first what came while there was none, another one what comes later. What nobody"
        f" has fetched after {config.housekeeping.give_up_events_hours} hours is given up.",
        f"Every {SocketDelivery.KEEP_ALIVE:.0f} s there is a ping; without a pong for"
        f" {EventSocket.PONG_WITHIN:.0f} s the connection is cut. It is closed with 1008 when its login"
        " ends, with 1001 when the appliance stops. After"
        f" {EventSocket.MOST_UNHEARD} events without a pong it is told no more until one comes. What a"
        " client sends is ignored.",
    )
    return [
        heading(3, "5.4 DICOMweb (PS3.18 chapters 11, 14, 15)"),
        table_block(("Method", "Path", "Source", "Least role"), *lines),
        *paragraphs(*rules),
        heading(4, "5.4.1 Notification channel (PS3.18 8.10, 11.13)"),
        *paragraphs(*events),
    ]


def statement_web(config: Config) -> list[Block]:
    """The JSON API."""
    lines = [(r.method, r.path, r.operation, r.role, *r.success) for r in ROUTES]
    return [
        heading(3, "5.5 Web interface (not DICOMweb: the product's own)"),
        table_block(("Method", "Path", "Meaning", "Least role", "Success"), *lines),
        heading(3, "5.6 Statuses"),
        table_block(
            ("Operation", "Status", "HTTP", "Text"),
            *((o, f"{s:04X}", c.http, c.text) for (o, s), c in OUTCOMES.items()),
        ),
    ]


def statement_configuration(config: Config) -> list[Block]:
    """The settings, and the devices of the file."""
    return [
        heading(2, "6 Configuration"),
        table_block(
            ("Setting", "Default", "Meaning"),
            *(
                (f"[{s.section}] {s.key}", s.default, s.meaning)
                for s in (*SETTINGS, *DEVICE_SETTINGS)
            ),
        ),
    ]


def statement_network(config: Config) -> list[Block]:
    """Contexts, syntaxes, limits."""
    dicom = config.dicom
    syntaxes = f"{EXPLICIT_VR_LITTLE_ENDIAN}, {IMPLICIT_VR_LITTLE_ENDIAN}"
    contexts = [
        (uid, syntaxes, "SCP", "answered" if roles else "not answered: default roles",
         EXTENDED_NEGOTIATION.get(uid, b"").hex() or "none")
        for uid, roles in PRESENTATION_CONTEXTS.items()
    ]  # fmt: skip
    head = (
        "Abstract syntax",
        "Transfer syntaxes",
        "Role",
        "Role selection",
        "Extended negotiation",
    )
    limits = [
        (s.key, getattr(dicom, s.key), s.meaning)
        for s in SETTINGS
        if s.section == "dicom"
        and s.key.startswith(("maximum_", "answer_limit")) | s.key.endswith("_timeout")
    ]
    sets = sorted({*CHARACTER_SETS_ALONE, *(f"ISO_IR {n}" for n in REPERTOIRES if n not in
                   ("87", "159", "149", "58")), *(f"ISO 2022 IR {n}" for n in REPERTOIRES)})  # fmt: skip
    return [
        heading(2, "7 Network communication details"),
        heading(3, "7.1 Association acceptance"),
        table_block(head, *contexts),
        *paragraphs(
            f"Application context {APPLICATION_CONTEXT}. One operation at a time; requests that come"
            " before an answer wait. Explicit VR is chosen where both are proposed.",
        ),
        table_block(("Limit", "Value", "Meaning"), *limits),
        *paragraphs(
            "Associations are opened for events, one for each receiver, kept for"
            f" {DimseSender.KEEP:.0f} s after the last of a burst, with the context {UPS_EVENT} in both"
            f" transfer syntaxes, role SCP, calling AE title {dicom.ae_title}; likewise for what is"
            " passed on; for results of storage commitment; for queries of the archive; and for C-ECHO.",
        ),
        heading(3, "7.2 Character sets"),
        *paragraphs(", ".join(sets)),
        *paragraphs(
            "Answers are in the device's set, else in that of the request, else in ISO_IR 192. Of a"
            " name, groups that a set cannot carry are left out if the alphabetic one remains; else"
            " the answer is in the device's fallback set. Bytes that contradict the declared set"
            " are read as UTF-8 or GB18030 where that is certain, and logged.",
        ),
    ]


def statement_security(config: Config) -> list[Block]:
    """Who may associate, TLS."""
    unknown = "accepted" if config.dicom.accept_unknown_devices else "rejected (1, 1, 3)"
    tls = f"on port {config.dicom.tls_port}" if config.dicom.tls_port else "off"
    return [
        heading(2, "8 Security"),
        table_block(
            ("Item", "Value"),
            ("Calling AE titles that are not registered", unknown),
            ("Another called AE title", "rejected (1, 1, 7)" if config.dicom.check_called_ae_title
             else "accepted"),
            ("TLS", f"{tls}; 1.2 and later, PS3.15 B.9 and B.10"),
            ("Client certificates", "required" if config.dicom.tls_client_ca else "not asked for"),
            ("User identity negotiation", "accepted, not verified, no answer"),
            ("Audit log", "kept in the store, never changed; each line has the SHA-256 digest of itself"
             " and the digest before it"),
        ),
    ]  # fmt: skip


STATEMENT = (
    statement_overview,
    lambda config: [Block("contents")],
    statement_introduction,
    statement_model,
    lambda config: [heading(2, "5 Service and interoperability description")],
    statement_worklist,
    statement_mpps,
    statement_workitems,
    statement_dicomweb,
    statement_web,
    statement_commitment,
    statement_availability,
    statement_configuration,
    statement_network,
    statement_security,
)


def conformance_statement(config: Config, form: str = "md") -> str:
    """The DICOM conformance statement of a configuration, as `md`, `html` or `json`."""
    blocks = [heading(1, f"DICOM conformance statement of minris {__version__}")]
    for part in STATEMENT:
        blocks += part(config)
    blocks = [block for one in blocks for block in statement_contents(one, blocks)]
    if form == "json":
        return json.dumps([block._asdict() for block in blocks], indent=1) + "\n"
    if form == "md":
        return "".join(map(statement_markdown, blocks))
    title = html.escape(blocks[0].text)
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
    return f"{head}<body>\n{''.join(map(statement_html, blocks))}</body></html>\n"
