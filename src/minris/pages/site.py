"""Which function answers which path."""

import contextlib
import functools
import json
from collections.abc import Callable
from typing import Any

from minris import log
from minris.dicomweb.routes import add_dicomweb
from minris.pages.after_exam.commitments import CommitmentPages
from minris.pages.after_exam.watchers import WatcherPages
from minris.pages.after_exam.workitems import WorkitemPages
from minris.pages.box import BoxPages
from minris.pages.day.board import BoardPages, Boards
from minris.pages.day.calendar import CalendarPages
from minris.pages.day.exam import ExamPages
from minris.pages.day.figures import FigurePages
from minris.pages.day.leftovers import LeftoverPages
from minris.pages.day.paper import PaperPages
from minris.pages.frame import ERROR_PAGE
from minris.pages.login import LoginPages
from minris.pages.machines.devices import DevicePages
from minris.pages.machines.stuck import StuckPages
from minris.pages.machines.why import WhyPages
from minris.pages.patients.catalogue import CataloguePages
from minris.pages.patients.files import ImportPages
from minris.pages.patients.patients import PatientPages
from minris.pages.patients.register import RegisterPages
from minris.pages.reception import Reception
from minris.pages.static import static_answer
from minris.standard.status import Message, Refusal, Status, http_status
from minris.web.api import add_api
from minris.web.request import Web, find_login, problem_json


class Pages(
    Reception,
    LoginPages,
    BoardPages,
    ExamPages,
    PaperPages,
    CalendarPages,
    LeftoverPages,
    FigurePages,
    RegisterPages,
    PatientPages,
    CataloguePages,
    ImportPages,
    WorkitemPages,
    WatcherPages,
    CommitmentPages,
    DevicePages,
    WhyPages,
    StuckPages,
    BoxPages,
):
    """All pages."""

    def __init__(self, web: Web) -> None:
        super().__init__(web)
        self.boards = Boards(web)


def add_pages(app: Any, web: Web) -> None:
    """Put the pages into a bottle application."""
    import bottle

    pages = Pages(web)
    bindings = (
        ("GET", "/", pages.board),
        ("GET", "/login", pages.login_page),
        ("POST", "/login", pages.log_in),
        ("POST", "/logout", pages.log_out),
        ("GET", "/password", pages.password_page),
        ("POST", "/password", pages.change_password),
        ("GET", "/language", pages.language),
        ("GET", "/register", pages.register_page),
        ("POST", "/register", pages.register),
        ("GET", "/step/<row_id:int>", pages.step),
        ("POST", "/step/<row_id:int>", pages.step_event),
        ("GET", "/step/<row_id:int>/edit", pages.edit_step),
        ("POST", "/step/<row_id:int>/edit", pages.change),
        ("GET", "/step/<row_id:int>/slip", pages.slip),
        ("GET", "/step/<row_id:int>/label", pages.label),
        ("GET", "/calendar", pages.calendar),
        ("GET", "/slots", pages.slots),
        ("GET", "/step/<row_id:int>/code128.svg", pages.accession_svg),
        ("GET", "/step/<row_id:int>/qr.svg", pages.patient_svg),
        ("GET", "/figures", pages.figures),
        ("GET", "/figures.csv", pages.figures_csv),
        ("GET", "/figures.svg", pages.figures_svg),
        ("GET", "/waiting", pages.waiting),
        ("GET", "/print", pages.print_day),
        ("POST", "/unmatch", pages.unmatch),
        ("GET", "/patients", pages.patients),
        ("GET", "/patient/<row_id:int>", pages.patient),
        ("POST", "/patient/<row_id:int>", pages.correct),
        ("GET", "/patient/<row_id:int>/erase", pages.erase_page),
        ("POST", "/patient/<row_id:int>/erase", pages.erase),
        ("GET", "/patient/<row_id:int>/merge", pages.merge_page),
        ("POST", "/patient/<row_id:int>/merge", pages.merge),
        ("GET", "/find", pages.find),
        ("GET", "/workitems", pages.workitems),
        ("GET", "/workitems/new", pages.new_workitem),
        ("POST", "/workitems/new", pages.create_workitem),
        ("GET", "/workitem/<uid:re:[0-9.]+>", pages.workitem),
        ("POST", "/workitem/<uid:re:[0-9.]+>", pages.workitem_event),
        ("GET", "/watchers", pages.watchers_page),
        ("POST", "/watchers", pages.change_watcher),
        ("GET", "/passed-on", pages.passed_on),
        ("POST", "/passed-on", pages.retry_passing_on),
        ("GET", "/commitments", pages.commitments),
        ("POST", "/commitments", pages.try_commitment),
        ("GET", "/commitment/<uid>", pages.commitment),
        ("GET", "/orphans", pages.stuck),
        ("POST", "/orphans", pages.end_stuck),
        ("GET", "/leftovers", pages.leftovers_page),
        ("POST", "/leftovers", pages.end_leftovers),
        ("GET", "/unscheduled", pages.unscheduled),
        ("POST", "/unscheduled/match", pages.match),
        ("POST", "/unscheduled/settle", pages.settle),
        ("GET", "/why", pages.why),
        ("POST", "/why/mend", pages.mend),
        ("GET", "/catalogue", pages.catalogue),
        ("POST", "/catalogue", pages.save_catalogue),
        ("GET", "/catalogue.csv", pages.catalogue_csv),
        ("GET", "/catalogue/import", pages.import_catalogue_page),
        ("POST", "/catalogue/import", pages.import_catalogue),
        ("GET", "/import", pages.import_page),
        ("POST", "/import", pages.import_file),
        ("GET", "/box", pages.box_page),
        ("POST", "/box", pages.box_action),
        ("GET", "/users", pages.users),
        ("POST", "/users", pages.change_user),
        ("GET", "/users/new", pages.new_user),
        ("GET", "/audit", pages.audit_page),
        ("GET", "/settings", pages.settings_page),
        ("GET", "/devices", pages.devices),
        ("GET", "/devices/edit", pages.edit_device),
        ("POST", "/devices/save", pages.save_device_form),
        ("POST", "/devices/echo", pages.echo_device),
        ("GET", "/devices/doctor", pages.doctor),
        ("GET", "/associations", pages.associations),
        ("GET", "/statuses", pages.statuses),
        ("POST", "/devices/adopt", pages.adopt),
    )

    def guarded(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def view(**arguments: Any) -> str:
            try:
                if any(isinstance(one, int) and one >> 63 for one in arguments.values()):
                    words = Message("There is no such page.")
                    raise Refusal(Status.NO_SUCH_SOP_INSTANCE, words)
                return function(**arguments)
            except Refusal as refusal:
                login = find_login(web, bottle.request)
                if refusal.status is Status.NOT_AUTHORIZED and not login:
                    return pages.ask_to_log_in()
                bottle.response.status = http_status("page", refusal)
                t = pages.translator()
                return pages.page(ERROR_PAGE, "That did not work", login, words=t(refusal.detail))

        return view

    for method, path, function in bindings:
        app.route(path, method, guarded(function))

    @app.get("/static/<name:path>")
    def static_file(name: str) -> Any:
        return static_answer(name, bottle.request)

    def failed(error: Any) -> str:
        if error.status_code >= 500:
            asked = f"{bottle.request.method} {bottle.request.path}"
            log.error("web: %s failed", asked, exc_info=error.exception)
        t = pages.translator()
        words = {404: t("There is no such page."), 405: t("This cannot be done here.")}
        text = words.get(error.status_code, t("Something went wrong. It is in the log."))
        if bottle.request.path.startswith(("/api", "/dicom-web")):
            bottle.response.content_type = "application/json"
            return json.dumps(problem_json(Refusal(Status.PROCESSING_FAILURE, text)))
        login = None
        with contextlib.suppress(Exception):  # it may be what has failed
            login = find_login(web, bottle.request)
        return pages.page(ERROR_PAGE, "That did not work", login, words=text)

    app.default_error_handler = failed


def build_app(web: Web) -> Any:
    """The bottle application of both."""
    import bottle

    bottle.BaseRequest.MEMFILE_MAX = web.config.web.maximum_body
    app = bottle.Bottle()
    add_api(app, web)
    add_dicomweb(app, web)
    add_pages(app, web)
    return app
