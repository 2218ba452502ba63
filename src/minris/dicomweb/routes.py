"""The table of DICOMweb transactions, their OpenAPI description and their answers."""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from minris import __version__
from minris.access.context import Actor, Context
from minris.dataset.elements import ElementIndex
from minris.dicomweb.bodies import (
    DICOM_JSON,
    DICOM_XML,
    accepted_form,
    check_charset,
    one_data_set,
    rendered,
)
from minris.dicomweb.parameters import FLAGS, parameter
from minris.dicomweb.transactions import (
    MPPS_PATH,
    service_url,
    warning,
    web_cancel,
    web_change_state,
    web_commit,
    web_commitment,
    web_create,
    web_get_mpps,
    web_mpps,
    web_retrieve,
    web_search,
    web_subscribe,
    web_suspend,
    web_unsubscribe,
    web_update,
    web_worklist,
)
from minris.standard.status import OUTCOMES, HttpRefusal, Refusal, outcome, warning_text
from minris.standard.tables import table
from minris.standard.ups import TRANSACTION_UID
from minris.ups.workitems import is_purged
from minris.web.answers import Reply, Route, RouteView, refusal_reply
from minris.web.request import BASE, SLASH, Web, check_speaker, client_address, enter

SEARCH_PARAMETERS = ("limit", "offset", "includefield", *FLAGS)
DICOM_ROUTES = (
    Route("POST", "/workitems", web_create, "create", "desk", "PS3.18 11.4", (201,), "one", ("workitem",)),
    Route("GET", "/workitems", web_search, "search", "desk", "PS3.18 11.9", (200,), "", SEARCH_PARAMETERS),
    Route("GET", "/workitems/{uid}", web_retrieve, "retrieve", "desk", "PS3.18 11.5"),
    Route("POST", "/workitems/{uid}", web_update, "update", "technologist", "PS3.18 11.6", (200,), "one", ("transaction-uid",)),
    Route("PUT", "/workitems/{uid}/state", web_change_state, "change state", "technologist", "PS3.18 11.7", (200,), "one", ("requester",)),
    Route("PUT", "/workitems/{uid}/state/{requester}", web_change_state, "change state", "technologist", "PS3.18 11.7", (200,), "one"),
    Route("POST", "/workitems/{uid}/cancelrequest", web_cancel, "request cancel", "desk", "PS3.18 11.8", (202,), "optional", ("requester",)),
    Route("POST", "/workitems/{uid}/cancelrequest/{requester}", web_cancel, "request cancel", "desk", "PS3.18 11.8", (202,), "optional"),
    Route("POST", "/workitems/{uid}/subscribers/{ae_title}", web_subscribe, "subscribe", "desk", "PS3.18 11.10", (201,), "", ("deletionlock", "filter")),
    Route("DELETE", "/workitems/{uid}/subscribers/{ae_title}", web_unsubscribe, "unsubscribe", "desk", "PS3.18 11.11"),
    Route("POST", "/workitems/{uid}/subscribers/{ae_title}/suspend", web_suspend, "suspend", "desk", "PS3.18 11.12"),
    Route("GET", "/modality-scheduled-procedure-steps", web_worklist, "search", "desk", "PS3.18 14.4", (200, 204), "", SEARCH_PARAMETERS),
    Route("POST", MPPS_PATH + "/{uid}", web_mpps, "update mpps", "technologist", "PS3.18 15.4, 15.5", (200, 201), "one", ("update",)),
    Route("GET", MPPS_PATH + "/{uid}", web_get_mpps, "retrieve mpps", "desk", "PS3.18 15.6"),
    Route("POST", "/commitment-requests/{uid}", web_commit, "request commitment", "technologist", "PS3.18 13.4", (202,), "one"),
    Route("GET", "/commitment-requests/{uid}", web_commitment, "commitment result", "desk", "PS3.18 13.5", (200, 202)),
)  # fmt: skip
WEB_PARAMETERS = {
    row.name: row
    for row in table("""
    name                  | type    | meaning
    accept                | string  | media types of the answer; overrides the Accept header
    charset               | string  | character sets of the answer; UTF-8 must be among them
    workitem              | string  | UID of the new workitem; assigned if missing
    transaction-uid       | string  | Transaction UID of the claimed workitem
    requester             | string  | Requesting AE title
    deletionlock          | boolean | keep the workitem until the lock is released
    filter                | string  | filtered subscription: attribute=value, separated by commas
    update                | flag    | update the performed procedure step instead of creating it
    limit                 | integer | maximum number of matches
    offset                | integer | number of matches to skip
    includefield          | string  | additional attributes to return, or all
    fuzzymatching         | boolean | not supported; true is answered with a Warning
    emptyvaluematching    | boolean | not supported; true is answered with a Warning
    multiplevaluematching | boolean | not supported; true is answered with a Warning
    """)
}


def openapi(server: str) -> dict[str, Any]:
    """Return an OpenAPI 3.1 description of DICOM_ROUTES."""
    paths: dict[str, Any] = {}
    for route in DICOM_ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = described_route(route)
    value = {"type": "object", "required": ["vr"], "properties": {
        "vr": {"type": "string"}, "Value": {"type": "array"},
        "InlineBinary": {"type": "string"}, "BulkDataURI": {"type": "string"}}}  # fmt: skip
    schemas = {
        "DataSets": {"type": "array", "items": {"$ref": "#/components/schemas/DataSet"}},
        "OneDataSet": {"anyOf": [
            {"type": "array", "minItems": 1, "maxItems": 1,
             "items": {"$ref": "#/components/schemas/DataSet"}},
            {"$ref": "#/components/schemas/DataSet"}]},
        "DataSet": {"type": "object", "additionalProperties": False,
                    "patternProperties": {"^[0-9A-F]{8}$": value}},
        "Refusal": {"type": "object", "required": ["status", "error", "problems"], "properties": {
            "status": {"type": "string", "pattern": "^[0-9A-F]{4}$"},
            "error": {"type": "string"}, "problems": {"type": "array"}}},
    }  # fmt: skip
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "minris", "version": __version__},
        "servers": [{"url": server}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": bearer}},
    }


def described_route(route: Route) -> dict[str, Any]:
    """Return a transaction as an OpenAPI operation."""
    kinds = {
        "flag": {"type": "string", "maxLength": 0},
        "integer": {"type": "integer", "minimum": 0},
    }
    parameters = [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}}
                  for one in re.findall(r"{(\w+)}", route.path)]  # fmt: skip
    for name in ("accept", "charset", *route.query):
        kind, meaning = WEB_PARAMETERS[name].type, WEB_PARAMETERS[name].meaning
        schema = kinds.get(kind, {"type": kind})
        parameters.append({"name": name, "in": "query", "schema": schema, "description": meaning})
    if route.operation == "search":
        attribute = {"name": "attribute", "in": "query", "style": "form", "explode": True}
        schema = {"type": "object", "additionalProperties": {"type": "string"}}
        words = "matching keys: keywords or tags, joined by . within sequences"
        parameters.append({**attribute, "schema": schema, "description": words})
    responses: dict[str, Any] = {str(code): {"description": "done"} for code in route.success}
    if route.method == "GET":
        responses["200"]["content"] = content_of("DataSets")
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    for code, words in refusals_of(route).items():
        responses[str(code)] = {"description": words, "content": refused}
    body = {"content": content_of("OneDataSet"), "required": route.body == "one"}
    return {
        "operationId": route.function.__name__ + ("_by" if "{requester}" in route.path else ""),
        "summary": (route.function.__doc__ or "").splitlines()[0],
        "description": f"{route.clause}; role {route.role}",
        "parameters": parameters,
        "responses": responses,
    } | ({"requestBody": body} if route.body else {})


def content_of(schema: str) -> dict[str, Any]:
    """Return the content of data sets for each media type; JSON has the schema."""
    found = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {DICOM_JSON: found, DICOM_XML: {}, "multipart/related": {}}


def refusals_of(route: Route) -> dict[int, str]:
    """Return the HTTP codes that may refuse a transaction, each with its texts."""
    found: dict[int, list[str]] = {
        400: ["The request is invalid."], 401: ["A token is required."], 403: [],
        406: ["None of the accepted media types is supported."],
        410: ["The object has been deleted."] if "{uid}" in route.path else [],
        429: ["Too many requests."],
        507: ["The store cannot be written or read."],
    }  # fmt: skip
    for operation, status in OUTCOMES:
        if operation in (route.operation, "*"):
            code, text = outcome(route.operation, status)
            found.setdefault(code, []).append(text)
    return {code: " ".join(dict.fromkeys(texts)) for code, texts in sorted(found.items()) if texts}


class DicomView(RouteView):
    """Answers the requests of one transaction."""

    def reply(self, arguments: dict[str, str]) -> Reply:
        """Return the data sets of the transaction in the accepted form."""
        request = self.request
        for name in {"ae_title", "requester"} & arguments.keys():
            arguments[name] = arguments[name].replace(SLASH, "/").strip(" ")
        ctx = self._context(arguments)
        check_charset(request)
        form = accepted_form(request.get_header("Accept", ""), parameter(request, "accept"))
        found = self.route.function(self.web, request, ctx, **arguments)
        kind, body = (DICOM_JSON, b"") if found.data is None else rendered(found.data, *form)
        return Reply(found.http, kind, body, found.headers)

    def _context(self, arguments: Mapping[str, str]) -> Context:
        """Return the context; its actor is the token's AE title, else ours. Refuses 0124, 401."""
        login, ctx = enter(self.web, self.request, self.route.role)
        if "ae_title" in arguments:
            check_speaker(login, arguments["ae_title"])
        asked = (arguments.get("requester") or parameter(self.request, "requester")).strip()
        if asked and asked != ctx.config.dicom.ae_title:
            check_speaker(login, asked)
        title = login.ae_titles[0] if login.ae_titles else ctx.config.dicom.ae_title
        return ctx.by(Actor(title, f"{client_address(self.request)} {login.name}"))

    def refused(self, refusal: Refusal, arguments: dict[str, str]) -> Reply:
        """Return the refusal with the text of PS3.18; 410 for a deleted workitem."""
        operation, uid = self.route.operation, arguments.get("uid", "")
        reply = refusal_reply(refusal, operation)
        if reply.http == 404 and uid and self.web.read(is_purged, uid):
            reply = reply._replace(http=410)
        text = warning_text(operation, refusal)
        if operation == "change state" and "incorrect" in text and self._has_no_lock():
            text = "The Transaction UID is missing."
        headers = (*reply.headers, warning(self.web, self.request, text))
        return reply._replace(headers=headers)

    def _has_no_lock(self) -> bool:
        with contextlib.suppress(Refusal):
            return not ElementIndex(one_data_set(self.request)).has_value(TRANSACTION_UID)
        return False


def add_dicomweb(app: Any, web: Web) -> None:
    """Add DICOM_ROUTES and their description to a bottle application."""
    import bottle

    def describe() -> str:
        bottle.response.content_type = "application/json"
        return json.dumps(openapi(service_url(web, bottle.request)))

    def upgrade_needed(ae_title: str) -> bytes:
        reply = refusal_reply(HttpRefusal(426, "Open a WebSocket for events"))
        bottle.response.status, bottle.response.content_type = reply.http, reply.content_type
        bottle.response.set_header("Upgrade", "websocket")
        return reply.body

    for route in DICOM_ROUTES:
        path = re.sub(r"{(\w+)}", r"<\1>", route.path)
        app.route(BASE + path, route.method, DicomView(web, route, bottle.request, bottle.response))
    for path in ("/subscribers/<ae_title>", "/ws/subscribers/<ae_title>"):
        app.route(BASE + path, "GET", upgrade_needed)
    for path in (BASE, BASE + "/"):
        app.route(path, "OPTIONS", describe)
    app.route(BASE + "/openapi.json", "GET", describe)
