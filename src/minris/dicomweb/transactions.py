"""DICOMweb transactions: each calls one core function (PS3.18 11, 13 to 15)."""

import re
import urllib.parse
from collections.abc import Callable
from typing import Any

from pydicom import datadict

from minris.access.context import Context
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import EMPTY, ElementIndex, text_elements
from minris.dataset.search import AnswerStyle, Search
from minris.dicomweb.bodies import WebAnswer, one_data_set
from minris.dicomweb.parameters import (
    FLAGS,
    LITERAL_ONLY,
    LOCK_PARAMETERS,
    flag,
    match_keys,
    number,
    parameter,
    query_parameters,
    returned_keys,
    split_list,
)
from minris.images.commitment import commitment_by_uid, commitment_result, request_commitment
from minris.mpps.performed import create_mpps, get_mpps, set_mpps
from minris.orders.worklist import page_of_worklist
from minris.standard.attributes import AttributeTable
from minris.standard.dictionary import value_problem
from minris.standard.status import WARNINGS, HttpRefusal, Status
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, WELL_KNOWN_UPS
from minris.standard.ups import TIMEZONE_OFFSET, TRANSACTION_UID, UPS_ATTRIBUTES, UPS_STATE
from minris.standard.worklist import MWL_ATTRIBUTES
from minris.ups.checks import in_own_zone
from minris.ups.search import page_of_workitems
from minris.ups.subscriptions import (
    known_subscription,
    subscribe,
    suspend_global_subscription,
    unsubscribe,
)
from minris.ups.workitems import (
    change_state,
    create_workitem,
    get_workitem,
    request_cancel,
    update_workitem,
)
from minris.web.request import BASE, Web, body_of, is_told_by_dimse_alone


def search_web(
    web: Web, request: Any, ctx: Context, table: AttributeTable, page: Callable[..., Any]
) -> WebAnswer:
    """Return one page of the matches of a search (PS3.18 8.3.4.4)."""
    keys = match_keys(query_parameters(request))
    style = AnswerStyle(zone=ctx.config.zone)
    asked = ElementIndex(from_json(keys))
    search = Search(in_own_zone(asked), table, True, style)
    returned = from_json(returned_keys(request, table, keys))
    shape = Search(ElementIndex(returned), table, True, style)
    offset, limit = number(request, "offset") or 0, number(request, "limit")
    most = ctx.config.dicom.answer_limit
    limit = most if limit is None else min(limit, most)
    warnings = [text for name, text in zip(FLAGS, LITERAL_ONLY, strict=True) if flag(request, name)]
    if search.unmatched:
        names = ", ".join(datadict.keyword_for_tag(tag) or f"{tag:08X}" for tag in search.unmatched)
        warnings.append(f"Not supported for matching: {names}")
    zone = asked.text(TIMEZONE_OFFSET)
    if table is MWL_ATTRIBUTES and zone and zone != f"{ctx.local_now():%z}":
        warnings.append(OTHER_ZONE)
    found, count = web.read(page, ctx, search, shape, offset, limit)
    if (left := count - offset - len(found)) > 0:
        warnings.append(f"There are {left} additional results that can be requested")
    headers = tuple(warning(web, request, text) for text in warnings)
    return WebAnswer(200, tuple(found), headers)


def service_url(web: Web, request: Any) -> str:
    """Return the base URL for the caller; `[web] public_url` behind a proxy."""
    here = f"{request.environ['wsgi.url_scheme']}://{request.get_header('Host', '')}"
    return f"{web.config.web.public_url or here}{BASE}"


def warning(web: Web, request: Any, text: str) -> tuple[str, str]:
    """Return a Warning header (PS3.18 11.4.3 and others)."""
    return "Warning", f"299 {service_url(web, request)}: {text}"


def warned(web: Web, request: Any, http: int, status: Status) -> WebAnswer:
    """Return success, with a Warning header if the status is a warning."""
    text = WARNINGS.get(status)
    return WebAnswer(http, None, (warning(web, request, text),) if text else ())


def web_create(web: Web, request: Any, ctx: Context) -> WebAnswer:
    """POST /workitems: create; UID as ?workitem=, bare query or in the data set (PS3.18 11.4)."""
    data = one_data_set(request)
    given = {parameter(request, name) for name in ("workitem", "AffectedSOPInstanceUID")}
    uid = only_uid(request, given | {ElementIndex(data).get("SOPInstanceUID")}, "UIDs")
    uid, _ = web.write(create_workitem, ctx, uid, data)
    return WebAnswer(201, None, (("Location", f"{service_url(web, request)}/workitems/{uid}"),))


def only_uid(request: Any, given: set[str], what: str) -> str:
    """Return the UID that is given, in a bare query too, or nothing. Refuses 400 for two."""
    names = {name for name, _ in query_parameters(request)}
    found = given - {""} | {name for name in names if re.fullmatch(r"[0-9]+(\.[0-9]+)+", name)}
    if len(found) > 1:
        raise HttpRefusal(400, f"Two different {what} are given")
    return "".join(found)


def web_retrieve(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """GET /workitems/…: retrieve, without the Transaction UID (PS3.18 11.5)."""
    return WebAnswer(200, (web.read(get_workitem, uid)[1],))


def web_update(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """POST /workitems/…: update; Transaction UID as a parameter or in the data set (PS3.18 11.6)."""
    index = ElementIndex(one_data_set(request))
    given = {urllib.parse.unquote(value) for name, value in query_parameters(request)
             if name.lower() in LOCK_PARAMETERS}  # fmt: skip
    transaction_uid = only_uid(request, given | {index.text(TRANSACTION_UID)}, "Transaction UIDs")
    lock = text_elements(TransactionUID=transaction_uid) if transaction_uid else EMPTY
    merged = index.without([TRANSACTION_UID]).merged(lock)
    return warned(web, request, 200, web.write(update_workitem, ctx, uid, bytes(merged)))


def web_change_state(
    web: Web, request: Any, ctx: Context, uid: str, requester: str = ""
) -> WebAnswer:
    """PUT /workitems/…/state: change state; state and Transaction UID in the body (PS3.18 11.7)."""
    index = ElementIndex(one_data_set(request))
    state = index.text(UPS_STATE) if UPS_STATE in index else None
    lock = index.text(TRANSACTION_UID)
    ctx = asked_by(request, ctx, requester)
    return warned(web, request, 200, web.write(change_state, ctx, uid, state, lock))


def web_cancel(web: Web, request: Any, ctx: Context, uid: str, requester: str = "") -> WebAnswer:
    """POST /workitems/…/cancelrequest: reason and contact in an optional body (PS3.18 11.8)."""
    data = one_data_set(request) if body_of(request).strip() else b""
    ctx = asked_by(request, ctx, requester)
    return warned(web, request, 202, web.write(request_cancel, ctx, uid, data))


def asked_by(request: Any, ctx: Context, path: str) -> Context:
    """Return the context of the requesting AE: ?requester= or part of the path. Refuses 400."""
    title = (path or parameter(request, "requester")).strip()
    if value_problem("AE", title):
        raise HttpRefusal(400, "requester is not an AE title")
    return ctx.by(ctx.actor._replace(name=title)) if title else ctx


def web_search(web: Web, request: Any, ctx: Context) -> WebAnswer:
    """GET /workitems: search; without a match an empty list (PS3.18 11.9)."""
    return search_web(web, request, ctx, UPS_ATTRIBUTES, page_of_workitems)


def web_subscribe(web: Web, request: Any, ctx: Context, uid: str, ae_title: str) -> WebAnswer:
    """POST /workitems/…/subscribers/…: subscribe; ?deletionlock=, ?filter= (PS3.18 11.10)."""
    keys = b""
    if uid == UPS_FILTERED_SUBSCRIPTION:
        text = parameter(request, "filter")
        pairs = (one.partition("=") for one in split_list(text))
        found = match_keys([(name.strip(), value) for name, _, value in pairs] if text
                           else query_parameters(request))  # fmt: skip
        keys = from_json(found)
    lock = flag(request, "deletionlock")
    status = web.write(subscribe, ctx, uid, ae_title, lock, keys, "websocket")
    answer = warned(web, request, 201, status)
    if is_told_by_dimse_alone(web, ae_title):
        return answer
    base = "ws" + service_url(web, request).removeprefix("http")  # PS3.18 11.10.3.2
    socket = f"{base}/subscribers/{urllib.parse.quote(ae_title, safe='')}"
    found = (("Content-Location", socket), ("Location", socket))  # Location as dcm4chee-arc
    return answer._replace(headers=(*answer.headers, *found))


def web_unsubscribe(web: Web, request: Any, ctx: Context, uid: str, ae_title: str) -> WebAnswer:
    """DELETE /workitems/…/subscribers/…: unsubscribe; 404 for no subscription (PS3.18 11.11)."""

    def end(ctx: Context) -> None:
        known_subscription(uid, ae_title)
        unsubscribe(ctx, uid, ae_title)

    web.write(end, ctx)
    return WebAnswer(200)


def web_suspend(web: Web, request: Any, ctx: Context, uid: str, ae_title: str) -> WebAnswer:
    """POST /workitems/…/subscribers/…/suspend: 404 for no subscription (PS3.18 11.12)."""

    def end(ctx: Context) -> None:
        if uid in WELL_KNOWN_UPS:
            known_subscription(uid, ae_title, single=False)
        suspend_global_subscription(ctx, uid, ae_title)

    web.write(end, ctx)
    return WebAnswer(200)


def web_worklist(web: Web, request: Any, ctx: Context) -> WebAnswer:
    """GET /modality-scheduled-procedure-steps: search the worklist (PS3.18 14.4)."""
    answer = search_web(web, request, ctx, MWL_ATTRIBUTES, page_of_worklist)
    return answer if answer.data else answer._replace(http=204, data=None)  # PS3.18 14.4.3.1


def web_mpps(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """POST /modality-performed-procedure-steps/…: create; update with ?update (PS3.18 15.4, 15.5)."""
    data = one_data_set(request)
    if parameter(request, "update"):
        raise HttpRefusal(400, "update takes no value")  # PS3.18 15.5.1.2
    if any(name == "update" for name, _ in query_parameters(request)):
        web.write(set_mpps, ctx, uid, data)
        return WebAnswer(200)
    web.write(create_mpps, ctx, uid, data)
    return WebAnswer(201, None, (("Location", f"{service_url(web, request)}{MPPS_PATH}/{uid}"),))


def web_get_mpps(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """GET /modality-performed-procedure-steps/…: retrieve (PS3.18 15.6)."""
    return WebAnswer(200, (web.read(get_mpps, uid)[1],))


def web_commit(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """POST /commitment-requests/…: request storage commitment (PS3.18 13.4)."""
    data = one_data_set(request)
    if TRANSACTION_UID in ElementIndex(data):
        raise HttpRefusal(400, "Send the Transaction UID only in the path")
    web.write(request_commitment, ctx, uid, data, "web")
    return WebAnswer(202, None, RETRY_SOON)


def web_commitment(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """GET /commitment-requests/…: the result, or 202 while it is pending (PS3.18 13.5)."""
    commitment = web.read(commitment_by_uid, uid)
    if commitment.state == "dropped":
        raise HttpRefusal(410, "The result has been deleted")
    if commitment.state == "asked":
        return WebAnswer(202, None, RETRY_SOON)
    return WebAnswer(200, (web.read(commitment_result, commitment).data,))


RETRY_SOON = (("Retry-After", "5"),)
OTHER_ZONE = "TimezoneOffsetFromUTC does not apply to dates and times without an offset."
MPPS_PATH = "/modality-performed-procedure-steps"
