"""The conformance statement (PS3.2), printed from the tables."""

import collections
import html
import json
import re

from pydicom.uid import UID

from minris import __version__
from minris.config.ini import Config
from minris.config.settings import DEVICE_SETTINGS, SETTINGS
from minris.conformance.document import (
    statement_blocks,
    statement_html,
    statement_markdown,
    statement_table,
)
from minris.conformance.services import DIMSE_PARTS, IMAGE_PARTS
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
from minris.web.bodies import FORM
from minris.web.request import BASE, BEARER
from minris.web.server import WebServer
from minris.web.sockets import EventSocket


def statement_overview(config: Config) -> str:
    """What is supported, in a table of yes and no."""
    services: dict[str, list[str]] = collections.defaultdict(list)
    for service in SERVICES:
        services[service.sop_class].append(service.operation)
    for uid in (UPS_EVENT, MPPS_NOTIFICATION):
        services[uid].append("N-EVENT-REPORT, on associations of ours")
    as_user = {uid: "Yes, passed on" for uid, scp in PASSED_ON.values() if not scp}
    as_user[STORAGE_COMMITMENT] = "Yes, passed on to the archive"
    head = ("SOP class", "UID", "Provider (SCP)", "User (SCU)", "Operations")
    lines = [
        (UID(uid).name, uid, "Yes", as_user.get(uid, "No"), ", ".join(operations))
        for uid, operations in services.items()
    ] + [
        (UID(VERIFICATION).name, VERIFICATION, "", "Yes, from the page of devices", "C-ECHO"),
        (UID(STUDY_ROOT_FIND).name, STUDY_ROOT_FIND, "", "Yes, in the archive", "C-FIND"),
    ]
    return f"""
        ## 1 Conformance statement overview
        minris registers patients and exams, offers them to modalities as a modality worklist, and
          receives the performed procedure steps that modalities report. It manages workitems
          (unified procedure steps) for post-processing and notifies their subscribers. It stores no
          images.
        {statement_table(head, *lines)}
        [contents]
        """


def statement_model(config: Config) -> str:
    """What the product is, and what the application entity does and when."""
    product = (
        ("Item", "Value"),
        ("Product", f"minris {__version__}"),
        ("Implementation class UID", IMPLEMENTATION_CLASS_UID),
        ("Implementation version name", IMPLEMENTATION_VERSION_NAME),
        ("AE title", config.dicom.ae_title),
    )
    wrong = f"DISCONTINUED, reason {INCORRECT_WORKLIST_ENTRY} (DCM)"
    before = (wrong, "as it was before the performed step began")
    after = statement_table(("Performed step", "Scheduled step"), *STEP_STATUS_AFTER, before)
    attempts = "; else by ".join(
        f"{how} ({', '.join(columns).replace('_', ' ')})" for how, *columns in STEP_ATTEMPTS
    )
    return f"""
        ## 3 Introduction
        {statement_table(*product)}
        ## 4 Implementation model
        One application entity, {config.dicom.ae_title}, waits for associations. A worklist query is
          answered from the exams registered on the page, by the JSON API or by import. A performed
          procedure step changes the state of the scheduled steps that it names; the answer follows
          the commit to disk.
        ### 4.1 What a performed step does to a scheduled one
        {after}
        A scheduled step is found by: {attempts}. If several match, none is linked, and a person
          decides.
        ## 5 Service and interoperability description
        """


def statement_dicomweb(config: Config) -> str:
    """DICOMweb: its transactions and choices."""
    lines = [(r.method, BASE + r.path, r.clause, r.role) for r in DICOM_ROUTES]
    return f"""
        ### 5.4 DICOMweb (PS3.18 chapters 11, 14, 15)
        {statement_table(("Method", "Path", "Source", "Least role"), *lines)}
        Media types: {", ".join(MEDIA_TYPES)}. Without an Accept header {DICOM_JSON} is answered. A
          document type in XML is refused.
        A workitem's UID is taken from ?workitem=, ?AffectedSOPInstanceUID=, a bare ?UID or the data
          set; without any, one is assigned. The Transaction UID of an update is taken from
          ?{", ?".join(sorted(LOCK_PARAMETERS))} in any case, a bare ?UID or the data set.
        Requesting AE is ?requester= or the last part of the path, else the AE title that the token
          speaks for, else that of this system. A token may subscribe, open WebSockets and make
          requests only for its own AE titles (else 403); an administrator's token for any.
        An unknown attribute is refused with 400; other unknown parameters are ignored. Fuzzy, empty
          value and multiple value matching are not supported. Matches are sorted by start; a page
          ends after limit, or after {config.dicom.answer_limit} matches.
        TimezoneOffsetFromUTC applies to keys of VR DT; to dates and times it does not, and a
          Warning says so if the offset is not ours. A charset parameter without UTF-8 is refused
          with 400; Accept-Charset is ignored. Content-Encoding may be gzip in both directions.
        Limits: 429 after {config.web.requests_per_second or "any number of"} requests a second from
          one address, 413 after {config.web.maximum_body} bytes (unpacked, too), 16 levels of
          sequences, 503 with Retry-After while {WebServer.BODIES >> 20} MiB of bodies are being
          worked at. More than {FORM >> 10} KiB are read of a body once its token is known.
        #### 5.4.1 Notification channel (PS3.18 8.10, 11.13)
        Content-Location (and Location) of a subscription name the WebSocket of the AE's events,
          {BASE}/subscribers/{{AE title}}; {BASE}/ws/subscribers/{{AE title}} works too. It may be
          opened before or after the subscription, by a token in the Authorization header or in a
          subprotocol {BEARER}TOKEN, or by a session's cookie from our own pages. The first other
          subprotocol is taken. Refusals: 400, 401, 403, 404, 426 without upgrade, 429, 503 past
          {config.web.maximum_websockets} WebSockets.
        An AE receives events by WebSocket after its first subscription over HTTP or its first
          WebSocket, by DIMSE after its first subscription over DIMSE, or as the setting events of
          its device says. Each event is one text message with one object, with the UPS Push SOP
          class.
        An event is delivered when a pong has followed it on one of the AE's WebSockets; until then
          it is sent again on the next one, with the same Message ID. The first WebSocket of an AE
          first receives the events that are pending, any further one only later events. Events are
          discarded if not delivered after {config.housekeeping.give_up_events_hours} hours.
        A ping is sent every {SocketDelivery.KEEP_ALIVE:.0f} s; without a pong for
          {EventSocket.PONG_WITHIN:.0f} s the connection is cut. It is closed with 1008 when its
          login ends, with 1001 when the appliance stops. After {EventSocket.MOST_UNHEARD} events
          without a pong, sending pauses until one comes. Messages from clients are ignored.
        """


def statement_web(config: Config) -> str:
    """The JSON API, and the statuses."""
    head = ("Method", "Path", "Meaning", "Least role", "Success")
    lines = [(r.method, r.path, r.operation, r.role, *r.success) for r in ROUTES]
    outcomes = [(o, f"{s:04X}", cell.http, cell.text) for (o, s), cell in OUTCOMES.items()]
    return f"""
        ### 5.5 Web interface (not DICOMweb: the product's own)
        {statement_table(head, *lines)}
        ### 5.6 Statuses
        {statement_table(("Operation", "Status", "HTTP", "Text"), *outcomes)}
        """


def statement_configuration(config: Config) -> str:
    """The settings, and the devices of the file."""
    lines = [
        (f"[{s.section}] {s.key}", s.default, s.meaning) for s in (*SETTINGS, *DEVICE_SETTINGS)
    ]
    return f"""
        ## 6 Configuration
        {statement_table(("Setting", "Default", "Meaning"), *lines)}
        """


def statement_network(config: Config) -> str:
    """Contexts, syntaxes, limits."""
    dicom = config.dicom
    head = (
        "Abstract syntax",
        "Transfer syntaxes",
        "Role",
        "Role selection",
        "Extended negotiation",
    )
    syntaxes = f"{EXPLICIT_VR_LITTLE_ENDIAN}, {IMPLICIT_VR_LITTLE_ENDIAN}"
    contexts = [
        (uid, syntaxes, "SCP", "answered" if roles else "not answered: default roles",
         EXTENDED_NEGOTIATION.get(uid, b"").hex() or "none")
        for uid, roles in PRESENTATION_CONTEXTS.items()
    ]  # fmt: skip
    limits = [
        (s.key, getattr(dicom, s.key), s.meaning)
        for s in SETTINGS
        if s.section == "dicom"
        and s.key.startswith(("maximum_", "answer_limit")) | s.key.endswith("_timeout")
    ]
    sets = sorted({*CHARACTER_SETS_ALONE, *(f"ISO_IR {n}" for n in REPERTOIRES if n not in
                   ("87", "159", "149", "58")), *(f"ISO 2022 IR {n}" for n in REPERTOIRES)})  # fmt: skip
    return f"""
        ## 7 Network communication details
        ### 7.1 Association acceptance
        {statement_table(head, *contexts)}
        Application context {APPLICATION_CONTEXT}. One operation at a time; further requests wait
          for the answer. Explicit VR is chosen where both are proposed.
        {statement_table(("Limit", "Value", "Meaning"), *limits)}
        Associations are opened for events, one for each receiver, kept for {DimseSender.KEEP:.0f} s
          after the last of a burst, with the context {UPS_EVENT} in both transfer syntaxes, role
          SCP, calling AE title {dicom.ae_title}; likewise for forwarded messages, results of
          storage commitment, archive queries and C-ECHO.
        ### 7.2 Character sets
        {", ".join(sets)}
        Answers are in the device's set, else in that of the request, else in ISO_IR 192. Name
          groups that the set cannot encode are omitted if the alphabetic group remains; else the
          answer is in the device's fallback set. Bytes that contradict the declared set are read as
          UTF-8 or GB18030 where that is certain, and logged; so are letters of Windows under
          ISO_IR 100, 138, 148 and 166, and misspelt terms such as ISO IR 100.
        """


def statement_security(config: Config) -> str:
    """Who may associate, TLS."""
    unknown = "accepted" if config.dicom.accept_unknown_devices else "rejected (1, 1, 3)"
    other = "rejected (1, 1, 7)" if config.dicom.check_called_ae_title else "accepted"
    tls = f"on port {config.dicom.tls_port}" if config.dicom.tls_port else "off"
    if config.dicom.port == "off":
        tls += " alone"
    lines = (
        ("Item", "Value"),
        ("Calling AE titles that are not registered", unknown),
        ("Another called AE title", other),
        ("TLS", f"{tls}; 1.2 and later, PS3.15 B.12 (BCP 195 RFC 8996, 9325): ECDHE with AES-GCM or"
         " ChaCha20-Poly1305"),
        ("TLS to devices", "as each device is set; with the same versions and cipher suites"),
        ("Client certificates", "required" if config.dicom.tls_client_ca else "not asked for"),
        ("User identity negotiation", "accepted, not verified, no answer"),
        ("Audit log", "kept in the store, never changed; each line has the SHA-256 digest of itself"
         " and the digest before it"),
    )  # fmt: skip
    return f"""
        ## 8 Security
        {statement_table(*lines)}
        """


STATEMENT = (
    statement_overview, statement_model, *DIMSE_PARTS, statement_dicomweb, statement_web,
    *IMAGE_PARTS, statement_configuration, statement_network, statement_security,
)  # fmt: skip


def conformance_statement(config: Config, form: str = "md") -> str:
    """The DICOM conformance statement of a configuration, as `md`, `html` or `json`."""
    title = f"DICOM conformance statement of minris {__version__}"
    source = f"# {title}\n" + "\n".join(part(config) for part in STATEMENT)
    sections = re.findall(r"(?m)^ *#{2,3} (.*)", source)
    contents = statement_table(("Section",), *([section] for section in sections))
    blocks = statement_blocks(source.replace("[contents]", f"## 2 Contents\n{contents}"))
    if form == "json":
        return json.dumps([block._asdict() for block in blocks], indent=1) + "\n"
    if form == "md":
        return "".join(map(statement_markdown, blocks))
    head = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    body = "".join(map(statement_html, blocks))
    return f"{head}<title>{html.escape(title)}</title></head>\n<body>\n{body}</body></html>\n"
