"""The product's own JSON API: worklist, health, metrics, commands of the command line."""

import json
from collections.abc import Mapping
from typing import Any

from minris.access.context import Actor, Context
from minris.interchange.files import items_from_json, numbered
from minris.interchange.imports import NO_IMPORT, UNDER_WAY, How, enter_file, imported_data
from minris.orders.lookup import data_of_day, step_data
from minris.orders.scheduling import reschedule, schedule
from minris.orders.steps import change_step
from minris.standard.dictionary import value_problem
from minris.standard.status import Refusal, Status
from minris.store.condition import StoreTrouble
from minris.store.writer import Core
from minris.web.answers import Reply, Route, RouteView, data_reply
from minris.web.request import Web, body_of, check_json_type, holds_control

AT_ONCE = 100  # items that are scheduled in one transaction
WAIT_S = 5.0  # seconds to wait for the end of an import


def api_import(
    web: Web, request: Any, ctx: Context, number: int, success: int = 200
) -> list[bytes] | Reply:
    """GET /api/imports/…: the data sets of a large import; 202 while it goes on."""
    one = web.box.imports.wait(number, WAIT_S)
    if Actor(*json.loads(one.who)).name != ctx.actor.name and ctx.actor.role != "admin":
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, NO_IMPORT)
    if one.state in UNDER_WAY:
        told = {"state": one.state, "done": one.done, "total": one.total}
        headers = (("Location", f"/api/imports/{number}"), ("Retry-After", "2"))
        return Reply(202, "application/json", json.dumps(told).encode(), headers)
    if one.state != "done":
        raise web.box.imports.refusal_of(one)
    return data_reply(web.read(imported_data, number), success)


def api_schedule(web: Web, request: Any, ctx: Context) -> list[bytes] | Reply:
    """POST /api/worklist: schedule one item or an array, all or none; many of them in slices.

    What takes longer is answered 202, with the address of its result
    """
    check_json_type(request)
    same_id = request.query.get("patient", "refuse")
    if same_id not in ("refuse", "update", "separate"):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, "patient must be refuse, update or separate")
    content = body_of(request)
    items = items_from_json(content)
    if len(items) > AT_ONCE:
        number = web.write(enter_file, ctx, "items.json", content, How(same_id=same_id), True)
        web.box.imports.start(number)
        return api_import(web, request, ctx, number, 201)

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


STEP_PATH = "/api/worklist/<study:re:[0-9.]+>/<step:path>"
ROUTES = (
    Route("POST", "/api/worklist", api_schedule, "schedule items", "desk", success=(201, 202)),
    Route("GET", "/api/imports/<number:row>", api_import, "one import", "desk", success=(200, 202)),
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


def add_control(
    app: Any, web: Web, commands: Mapping[str, Core], in_slices: Mapping[str, Core]
) -> None:
    """Add the route by which the command line hands store commands to the running appliance.

    in_slices  commands that write in several calls, and may have more to do when they answer
    """
    import bottle

    @app.post("/control/<command>")
    def control(command: str) -> str:
        bottle.response.content_type = "application/json"
        if not holds_control(web, bottle.request) or command not in commands:
            bottle.response.status = 403
            return json.dumps({"error": "forbidden"})
        arguments = json.loads(body_of(bottle.request))
        ctx = web.context(Actor("console", role="admin"))

        def run(ctx: Context) -> str:
            return (in_slices.get(command) or commands[command])(ctx, **arguments)

        try:
            done = run(ctx) if command in in_slices else web.writer.call(run, ctx)
            if isinstance(done, int):
                return json.dumps({"number": done})
            web.box.reload_access()  # an import may bring devices
            return json.dumps({"done": done})
        except Refusal as refusal:
            of_store = isinstance(refusal, StoreTrouble)
            return json.dumps({"refused": refusal.detail, "of_store": of_store})
