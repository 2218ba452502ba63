"""The product's own JSON API: worklist, health, metrics, commands of the command line."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from minris.access.context import Actor, Context
from minris.interchange.files import items_from_json, numbered
from minris.orders.lookup import data_of_day, step_data
from minris.orders.scheduling import reschedule, schedule
from minris.orders.steps import change_step
from minris.standard.dictionary import value_problem
from minris.standard.status import Refusal, Status
from minris.store.writer import Core
from minris.web.answers import Route, RouteView
from minris.web.request import Web, body_of, check_json_type, holds_control


def api_schedule(web: Web, request: Any, ctx: Context) -> list[bytes]:
    """POST /api/worklist: schedule one item or an array, all or none."""
    check_json_type(request)
    same_id = request.query.get("patient", "refuse")
    if same_id not in ("refuse", "update", "separate"):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, "patient must be refuse, update or separate")
    items = items_from_json(body_of(request))

    def schedule_all(ctx: Context) -> list[bytes]:
        stored: list[bytes] = []
        for number, item in enumerate(items, 1):
            try:
                stored += schedule(ctx, item, same_id)
            except Refusal as refusal:
                raise (numbered(refusal, number) if len(items) > 1 else refusal) from None
        return stored

    web.box.clear_numbers(len(items))
    return web.write(schedule_all, ctx)


def api_list(web: Web, request: Any, ctx: Context) -> list[bytes]:
    """GET /api/worklist?date=YYYYMMDD: the steps of a day, in every state."""
    date = request.query.get("date") or ctx.today()
    if words := value_problem("DA", date):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    return web.read(data_of_day, date)


def api_get(web: Web, request: Any, ctx: Context, study: str, step: str) -> list[bytes]:
    """GET /api/worklist/…: one scheduled step."""
    return [web.read(step_data, study, step)]


def api_put(web: Web, request: Any, ctx: Context, study: str, step: str) -> list[bytes]:
    """PUT /api/worklist/…: change the attributes given."""
    check_json_type(request)
    items = items_from_json(body_of(request))
    if len(items) != 1:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, "Exactly one data set is required")
    return [web.write(reschedule, ctx, study, step, items[0])]


def api_delete(web: Web, request: Any, ctx: Context, study: str, step: str) -> list[bytes]:
    """DELETE /api/worklist/…: cancel the step; nothing is erased."""
    reason = request.query.getunicode("reason") or ""
    return [web.write(change_step, ctx, "cancel", study, step, reason)]


def numbers_in(content: bytes) -> int:
    """Return how many identifiers of a kind a file may need."""
    return min(1 + content.count(b"\n"), 2000)


STEP_PATH = "/api/worklist/<study:re:[0-9.]+>/<step:path>"
ROUTES = (
    Route("POST", "/api/worklist", api_schedule, "schedule items", "desk", success=(201,)),
    Route("GET", "/api/worklist", api_list, "the steps of a day", "desk"),
    Route("GET", STEP_PATH, api_get, "one step", "desk"),
    Route("PUT", STEP_PATH, api_put, "change a step", "desk"),
    Route("DELETE", STEP_PATH, api_delete, "cancel a step", "desk"),
)


def add_api(app: Any, web: Web) -> None:
    """Add the routes of the API, /healthz and /metrics to a bottle application."""
    import bottle

    for route in ROUTES:
        app.route(route.path, route.method, RouteView(web, route, bottle.request, bottle.response))

    @app.get("/healthz")
    def healthz() -> str:
        checks = {name: problem or "ok" for name, problem in web.box.health().items()}
        good = {*checks.values()} == {"ok"}
        bottle.response.status = 200 if good else 503
        bottle.response.content_type = "application/json"
        # not our own health: a restart would not mend it
        others = {name: problem or "ok" for name, problem in web.box.neighbours().items()}
        return json.dumps({"status": "ok" if good else "failing", **checks, **others})

    @app.get("/metrics")
    def metrics() -> str:
        bottle.response.content_type = "text/plain; version=0.0.4; charset=utf-8"
        return "".join(f"{name} {value!r}\n" for name, value in web.box.metrics().items())


def add_control(app: Any, web: Web, commands: Mapping[str, Core]) -> None:
    """Add the route by which the command line hands store commands to the running appliance."""
    import bottle

    @app.post("/control/<command>")
    def control(command: str) -> str:
        bottle.response.content_type = "application/json"
        if not holds_control(web, bottle.request) or command not in commands:
            bottle.response.status = 403
            return json.dumps({"error": "forbidden"})
        arguments = json.loads(body_of(bottle.request))
        if "content" in arguments:
            arguments["content"] = base64.b64decode(arguments["content"])
            web.box.clear_numbers(numbers_in(arguments["content"]))
        ctx = web.context(Actor("console", role="admin"))

        def run(ctx: Context) -> str:
            return commands[command](ctx, **arguments)

        try:
            done = web.writer.call(run, ctx)
            web.box.reload_access()  # an import may bring devices
            return json.dumps({"done": done})
        except Refusal as refusal:
            return json.dumps({"refused": refusal.detail})
