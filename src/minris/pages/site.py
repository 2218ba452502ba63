"""Which function answers which path."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

from minris import log
from minris.dicomweb.routes import add_dicomweb
from minris.pages.after_exam.commitments import commitment_page, commitments_page, post_commitments
from minris.pages.after_exam.watchers import (
    passed_on_page,
    post_passed_on,
    post_watchers,
    watchers_page,
)
from minris.pages.after_exam.workitems import (
    new_workitem_page,
    post_new_workitem,
    post_workitem,
    workitem_page,
    workitems_page,
)
from minris.pages.box import (
    audit_page,
    box_page,
    new_user_page,
    post_box,
    post_users,
    settings_page,
    users_page,
)
from minris.pages.day.board import Boards, board_page, print_page, waiting_page
from minris.pages.day.calendar import calendar_page, slots_part
from minris.pages.day.exam import edit_page, post_edit, post_step, step_page
from minris.pages.day.figures import figures_csv, figures_page, figures_svg
from minris.pages.day.leftovers import (
    leftovers_page,
    post_leftovers,
    post_match,
    post_settle,
    post_unmatch,
    unscheduled_page,
)
from minris.pages.day.paper import accession_svg, label_page, patient_svg, slip_page
from minris.pages.frame import ERROR_PAGE, Page, PageRequest, Site
from minris.pages.login import (
    ask_to_log_in,
    choose_page_language,
    login_page,
    password_page,
    post_login,
    post_logout,
    post_password,
)
from minris.pages.machines.devices import (
    associations_page,
    device_page,
    devices_page,
    doctor_page,
    post_adopt,
    post_device,
    post_echo,
    statuses_page,
)
from minris.pages.machines.stuck import post_orphans, stuck_page
from minris.pages.machines.why import post_mend, why_page
from minris.pages.patients.catalogue import (
    catalogue_csv,
    catalogue_import_page,
    catalogue_page,
    post_catalogue,
    post_catalogue_import,
)
from minris.pages.patients.files import import_page, post_import
from minris.pages.patients.patients import (
    erase_page,
    merge_page,
    patient_page,
    patients_page,
    post_erase,
    post_merge,
    post_patient,
)
from minris.pages.patients.register import find_part, post_register, register_page
from minris.pages.static import static_answer
from minris.standard.status import Message, Refusal, Status, http_status
from minris.web.api import add_api
from minris.web.request import Web, find_login, problem_json

# Which function answers a method and a path; the least role that may ask ("": nobody need be logged
# in); the words and the group of the menu, for what is in it.
PAGES = tuple(Page(*row) for row in (
    ("GET",  "/login",                         "",             login_page),
    ("POST", "/login",                         "",             post_login),
    ("POST", "/logout",                        "desk",         post_logout),
    ("GET",  "/password",                      "desk",         password_page),
    ("POST", "/password",                      "desk",         post_password),
    ("GET",  "/language",                      "",             choose_page_language),
    ("GET",  "/",                              "desk",         board_page,            "Board",          "The day"),
    ("GET",  "/calendar",                      "desk",         calendar_page,         "Calendar",       "The day"),
    ("GET",  "/slots",                         "desk",         slots_part),
    ("GET",  "/waiting",                       "desk",         waiting_page,          "Waiting room",   "The day"),
    ("GET",  "/print",                         "desk",         print_page),
    ("GET",  "/leftovers",                     "desk",         leftovers_page,        "Leftovers",      "The day"),
    ("POST", "/leftovers",                     "desk",         post_leftovers),
    ("GET",  "/unscheduled",                   "desk",         unscheduled_page,      "Unscheduled",    "The day"),
    ("POST", "/unscheduled/match",             "desk",         post_match),
    ("POST", "/unscheduled/settle",            "desk",         post_settle),
    ("POST", "/unmatch",                       "desk",         post_unmatch),
    ("GET",  "/figures",                       "technologist", figures_page,          "Figures",        "The day"),
    ("GET",  "/figures.csv",                   "technologist", figures_csv),
    ("GET",  "/figures.svg",                   "technologist", figures_svg),
    ("GET",  "/step/<row_id:int>",             "desk",         step_page),
    ("POST", "/step/<row_id:int>",             "desk",         post_step),
    ("GET",  "/step/<row_id:int>/edit",        "desk",         edit_page),
    ("POST", "/step/<row_id:int>/edit",        "desk",         post_edit),
    ("GET",  "/step/<row_id:int>/slip",        "desk",         slip_page),
    ("GET",  "/step/<row_id:int>/label",       "desk",         label_page),
    ("GET",  "/step/<row_id:int>/code128.svg", "desk",         accession_svg),
    ("GET",  "/step/<row_id:int>/qr.svg",      "desk",         patient_svg),
    ("GET",  "/register",                      "desk",         register_page,         "Register",       "Patients"),
    ("POST", "/register",                      "desk",         post_register),
    ("GET",  "/find",                          "desk",         find_part),
    ("GET",  "/patients",                      "desk",         patients_page,         "Patients",       "Patients"),
    ("GET",  "/patient/<row_id:int>",          "desk",         patient_page),
    ("POST", "/patient/<row_id:int>",          "desk",         post_patient),
    ("GET",  "/patient/<row_id:int>/merge",    "desk",         merge_page),
    ("POST", "/patient/<row_id:int>/merge",    "desk",         post_merge),
    ("GET",  "/patient/<row_id:int>/erase",    "admin",        erase_page),
    ("POST", "/patient/<row_id:int>/erase",    "admin",        post_erase),
    ("GET",  "/import",                        "desk",         import_page,           "Import",         "Patients"),
    ("POST", "/import",                        "desk",         post_import),
    ("GET",  "/catalogue",                     "technologist", catalogue_page,        "Catalogue",      "Patients"),
    ("POST", "/catalogue",                     "technologist", post_catalogue),
    ("GET",  "/catalogue.csv",                 "technologist", catalogue_csv),
    ("GET",  "/catalogue/import",              "technologist", catalogue_import_page),
    ("POST", "/catalogue/import",              "technologist", post_catalogue_import),
    ("GET",  "/workitems",                     "desk",         workitems_page,        "Workitems",      "After the exam"),
    ("GET",  "/workitems/new",                 "desk",         new_workitem_page),
    ("POST", "/workitems/new",                 "desk",         post_new_workitem),
    ("GET",  "/workitem/<uid:re:[0-9.]+>",     "desk",         workitem_page),
    ("POST", "/workitem/<uid:re:[0-9.]+>",     "desk",         post_workitem),
    ("GET",  "/commitments",                   "technologist", commitments_page,      "Are they safe?", "After the exam"),
    ("POST", "/commitments",                   "technologist", post_commitments),
    ("GET",  "/commitment/<uid>",              "technologist", commitment_page),
    ("GET",  "/watchers",                      "technologist", watchers_page,         "Watchers",       "After the exam"),
    ("POST", "/watchers",                      "technologist", post_watchers),
    ("GET",  "/passed-on",                     "technologist", passed_on_page,        "Passed on",      "After the exam"),
    ("POST", "/passed-on",                     "technologist", post_passed_on),
    ("GET",  "/why",                           "desk",         why_page,              "Why not there?", "Machines"),
    ("POST", "/why/mend",                      "desk",         post_mend),
    ("GET",  "/devices",                       "technologist", devices_page,          "Devices",        "Machines"),
    ("GET",  "/devices/edit",                  "technologist", device_page),
    ("POST", "/devices/save",                  "technologist", post_device),
    ("POST", "/devices/echo",                  "technologist", post_echo),
    ("POST", "/devices/adopt",                 "technologist", post_adopt),
    ("GET",  "/devices/doctor",                "technologist", doctor_page),
    ("GET",  "/associations",                  "technologist", associations_page,     "Associations",   "Machines"),
    ("GET",  "/orphans",                       "technologist", stuck_page,            "Stuck",          "Machines"),
    ("POST", "/orphans",                       "technologist", post_orphans),
    ("GET",  "/statuses",                      "technologist", statuses_page,         "Statuses",       "Machines"),
    ("GET",  "/box",                           "admin",        box_page,              "The box",        "The box"),
    ("POST", "/box",                           "admin",        post_box),
    ("GET",  "/users",                         "admin",        users_page,            "Users",          "The box"),
    ("POST", "/users",                         "admin",        post_users),
    ("GET",  "/users/new",                     "admin",        new_user_page),
    ("GET",  "/audit",                         "admin",        audit_page,            "Audit log",      "The box"),
    ("GET",  "/settings",                      "admin",        settings_page,         "Settings",       "The box"),
))  # fmt: skip


def add_pages(app: Any, web: Web) -> None:
    """Put the pages into a bottle application."""
    import bottle

    site = Site(web, PAGES, Boards(web))

    def answer(page: Page) -> Callable[..., str | bytes]:
        def view(**arguments: Any) -> str | bytes:
            p = PageRequest(site)
            try:
                if any(isinstance(one, int) and one >> 63 for one in arguments.values()):
                    words = Message("There is no such page.")
                    raise Refusal(Status.NO_SUCH_SOP_INSTANCE, words)
                if page.role:
                    p.enter(page.role)
                return page.function(p, **arguments)
            except Refusal as refusal:
                p.login = p.login or find_login(web, p.request)
                if refusal.status is Status.NOT_AUTHORIZED and not p.login:
                    return ask_to_log_in(p)
                p.response.status = http_status("page", refusal)
                return p.show(ERROR_PAGE, "That did not work", words=p.t(refusal.detail))

        return view

    for page in site.pages:
        app.route(page.path, page.method, answer(page))

    @app.get("/static/<name:path>")
    def static_file(name: str) -> Any:
        return static_answer(name, bottle.request)

    def failed(error: Any) -> str:
        if error.status_code >= 500:
            asked = f"{bottle.request.method} {bottle.request.path}"
            log.error("web: %s failed", asked, exc_info=error.exception)
        p = PageRequest(site)
        words = {404: p.t("There is no such page."), 405: p.t("This cannot be done here.")}
        text = words.get(error.status_code, p.t("Something went wrong. It is in the log."))
        if bottle.request.path.startswith(("/api", "/dicom-web")):
            bottle.response.content_type = "application/json"
            return json.dumps(problem_json(Refusal(Status.PROCESSING_FAILURE, text)))
        with contextlib.suppress(Exception):  # it may be what has failed
            p.login = find_login(web, p.request)
        return p.show(ERROR_PAGE, "That did not work", words=text)

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
