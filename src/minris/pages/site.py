"""The table of pages: which function answers which path."""

import contextlib
import json
from typing import Any

from minris import log
from minris.access.users import Login
from minris.dicomweb.routes import add_dicomweb
from minris.orders.views import note_view
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
from minris.pages.asking import ask_changed
from minris.pages.box import (
    audit_page,
    new_user_page,
    post_users,
    users_page,
)
from minris.pages.day.blocked import blocked_page, post_blocked
from minris.pages.day.board import Boards
from minris.pages.day.calendar import calendar_page
from minris.pages.day.exam import edit_page, post_edit, post_step, step_page
from minris.pages.day.figures import figures_csv, figures_page, figures_svg
from minris.pages.day.leftovers import (
    leftovers_page,
    match_page,
    post_accept,
    post_leftovers,
    post_match,
    post_settle,
    post_unmatch,
    unscheduled_page,
)
from minris.pages.day.moving import move_page, post_move
from minris.pages.day.paper import (
    accession_svg,
    appointment_ics,
    appointment_svg,
    label_page,
    patient_svg,
    print_page,
    slip_page,
)
from minris.pages.day.slots import slots_part
from minris.pages.day.waiting import screen_page, waiting_page
from minris.pages.frame import ERROR_PAGE, Answer, Page, PageRequest, Site
from minris.pages.login import (
    ask_to_log_in,
    choose_page_language,
    login_page,
    password_page,
    post_login,
    post_logout,
    post_password,
)
from minris.pages.machines.device_form import device_page, post_device
from minris.pages.machines.devices import (
    associations_page,
    devices_page,
    doctor_page,
    post_adopt,
    post_echo,
    sheet_page,
    sheet_svg,
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
from minris.pages.patients.files import import_page, post_import, sample_csv
from minris.pages.patients.patients import (
    erase_page,
    merge_page,
    patient_page,
    patients_page,
    post_erase,
    post_merge,
    post_patient,
    views_page,
)
from minris.pages.patients.register import find_part, post_register, register_page
from minris.pages.patients.search import search_page
from minris.pages.settings import post_settings, settings_page
from minris.pages.static import static_answer
from minris.pages.system import (
    backups_page,
    box_page,
    download_backup,
    post_box,
    post_restore,
    post_restored,
    restore_page,
    restored_page,
)
from minris.pages.welcome import home_page, post_welcome, welcome_page
from minris.seen import ChangedMeanwhile
from minris.standard.status import HttpRefusal, Message, Refusal, Status, http_status
from minris.store.condition import StoreTrouble
from minris.web.answers import ROW_NUMBER, note_reason
from minris.web.api import add_api
from minris.web.request import Web, find_login, problem_json

# Path; minimum role ("": no login needed); functions for GET and POST; menu text; menu group, or the
# page whose tab it is; who has it in the menu, if not all who may open it.
PAGES = tuple(Page(*row) for row in (
    ("/login",                          "",             login_page,            post_login),
    ("/logout",                         "desk",         None,                  post_logout),
    ("/password",                       "desk",         password_page,         post_password),
    ("/language",                       "",             choose_page_language,  None),
    ("/",                               "desk",         home_page,             None,                  "Today",                 "Front desk"),
    ("/calendar",                       "desk",         calendar_page,         None,                  "Calendar",              "Front desk"),
    ("/blocked",                        "desk",         blocked_page,          post_blocked),
    ("/slots",                          "desk",         slots_part,            None),
    ("/patients",                       "desk",         patients_page,         None,                  "Patients",              "Front desk"),
    ("/patient/<row_id:row>",           "desk",         patient_page,          post_patient),
    ("/patient/<row_id:row>/merge",     "desk",         merge_page,            post_merge),
    ("/patient/<row_id:row>/erase",     "admin",        erase_page,            post_erase),
    ("/patient/<row_id:row>/views",     "admin",        views_page,            None),
    ("/register",                       "desk",         register_page,         post_register),
    ("/find",                           "desk",         find_part,             None),
    ("/search",                         "desk",         search_page,           None),
    ("/waiting",                        "desk",         waiting_page,          None,                  "Waiting room",          "Front desk"),
    ("/screen",                         "",             screen_page,           None),
    ("/print",                          "desk",         print_page,            None),
    ("/step/<row_id:row>",              "desk",         step_page,             post_step),
    ("/step/<row_id:row>/edit",         "desk",         edit_page,             post_edit),
    ("/step/<row_id:row>/move",         "desk",         move_page,             post_move),
    ("/step/<row_id:row>/slip",         "desk",         slip_page,             None),
    ("/step/<row_id:row>/label",        "desk",         label_page,            None),
    ("/step/<row_id:row>/code128.svg",  "desk",         accession_svg,         None),
    ("/step/<row_id:row>/qr.svg",       "desk",         patient_svg,           None),
    ("/step/<row_id:row>/appointment.svg", "desk",      appointment_svg,       None),
    ("/step/<row_id:row>/appointment.ics", "desk",      appointment_ics,       None),
    ("/unscheduled",                    "desk",         unscheduled_page,      None,                  "Unmatched exams",       "Needs attention"),
    ("/unscheduled/match",              "desk",         match_page,            post_match),
    ("/unscheduled/settle",             "desk",         None,                  post_settle),
    ("/unscheduled/accept",             "desk",         None,                  post_accept),
    ("/unmatch",                        "desk",         None,                  post_unmatch),
    ("/leftovers",                      "desk",         leftovers_page,        post_leftovers,        "Unfinished exams",      "Needs attention"),
    ("/orphans",                        "technologist", stuck_page,            post_orphans,          "Other problems",        "Needs attention"),
    ("/workitems",                      "desk",         workitems_page,        None,                  "Post-processing",       "Imaging", "technologist"),
    ("/workitems/new",                  "desk",         new_workitem_page,     post_new_workitem),
    ("/workitem/<uid:re:[0-9.]+>",      "desk",         workitem_page,         post_workitem),
    ("/watchers",                       "technologist", watchers_page,         post_watchers,         "Subscriptions",         "/workitems"),
    ("/commitments",                    "technologist", commitments_page,      post_commitments,      "Images in the archive", "Imaging"),
    ("/commitment/<uid>",               "technologist", commitment_page,       None),
    ("/devices",                        "technologist", devices_page,          None,                  "Devices",               "Devices"),
    ("/devices/edit",                   "technologist", device_page,           None),
    ("/devices/save",                   "technologist", None,                  post_device),
    ("/devices/echo",                   "technologist", None,                  post_echo),
    ("/devices/adopt",                  "technologist", None,                  post_adopt),
    ("/devices/sheet",                  "technologist", sheet_page,            None),
    ("/devices/sheet.svg",              "technologist", sheet_svg,             None),
    ("/devices/doctor",                 "technologist", doctor_page,           None),
    ("/passed-on",                      "technologist", passed_on_page,        post_passed_on,        "Forwarding",            "/devices"),
    ("/why",                            "desk",         why_page,              None,                  "Not on the machine?",   "Devices"),
    ("/why/mend",                       "desk",         None,                  post_mend),
    ("/associations",                   "technologist", associations_page,     None,                  "Connections",           "Devices"),
    ("/statuses",                       "technologist", statuses_page,         None,                  "DICOM status codes",    "/associations"),
    ("/box",                            "admin",        box_page,              post_box,              "System",                "Administration"),
    ("/backups",                        "admin",        backups_page,          post_box,              "Backups",               "/box"),
    ("/backups/<name:re:[-.0-9a-z]+>",  "admin",        download_backup,       None),
    ("/backups/<name:re:[-.0-9a-z]+>/restore", "admin", restore_page,          post_restore),
    ("/restored",                       "admin",        restored_page,         post_restored),
    ("/users",                          "admin",        users_page,            post_users,            "Users",                 "Administration"),
    ("/users/new",                      "admin",        new_user_page,         None),
    ("/catalogue",                      "technologist", catalogue_page,        post_catalogue,        "Catalogue",             "Administration", "admin"),
    ("/catalogue.csv",                  "technologist", catalogue_csv,         None),
    ("/catalogue/import",               "technologist", catalogue_import_page, post_catalogue_import),
    ("/import",                         "desk",         import_page,           post_import,           "Import",                "Administration", "technologist"),
    ("/import/sample.csv",              "desk",         sample_csv,            None),
    ("/figures",                        "technologist", figures_page,          None,                  "Statistics",            "Administration", "admin"),
    ("/figures.csv",                    "technologist", figures_csv,           None),
    ("/figures.svg",                    "technologist", figures_svg,           None),
    ("/audit",                          "admin",        audit_page,            None,                  "Audit log",             "Administration"),
    ("/welcome",                        "admin",        welcome_page,          post_welcome,          "First day",             "Administration"),
    ("/settings",                       "admin",        settings_page,         post_settings,         "Settings",              "Administration"),
))  # fmt: skip


def known_login(p: PageRequest) -> Login | None:
    """The login of a request that failed, None also if that is what failed."""
    with contextlib.suppress(Exception):
        return find_login(p.web, p.request)
    return None


FAILURES = {  # titles of pages that say what failed
    403: Message("Not allowed"),
    404: Message("Page not found"),
    500: Message("Something went wrong"),
    503: Message("Not available now"),
}


FAILED_WORDS = {
    404: Message("There is nothing at this address. It may have been deleted."),
    405: Message("This cannot be done here."),
    500: Message("Something went wrong; details are in the log."),
}


def show_failure(p: PageRequest, words: str, http: int) -> str:
    """Return the page that says what failed."""
    return p.show(ERROR_PAGE, FAILURES.get(http, Message("Not done")), words=words)


# Pages about one patient: who opens them is noted where [web] access_log says so.
VIEWED = {"/patient/*", "/step/*", "/step/*/edit", "/step/*/label", "/step/*/slip"}


def note_viewed(p: PageRequest, rule: str, row_id: int = 0, **_: Any) -> None:
    """Note who has opened a page about a patient; nobody waits for it."""
    if p.request.method == "POST" or rule not in VIEWED or not p.web.config.web.access_log:
        return
    with contextlib.suppress(StoreTrouble):
        p.web.writer.submit(note_view, p.ctx, rule, row_id)


def why_refused(p: PageRequest, role: str, refusal: Refusal) -> str:
    """Return the sentence of a refusal; of a page for a higher role, who may open it."""
    if role and p.login and not p.may(role):
        return p.t("{role} may open this page; you are logged in as {own}.",
                   role=p.t(role), own=p.t(p.login.role))  # fmt: skip
    return p.t(refusal.detail)


def add_pages(app: Any, web: Web) -> None:
    """Add the pages, static files and error pages to a bottle application."""
    import bottle

    site = Site(web, PAGES, Boards(web))

    def answer(page: Page, function: Answer) -> Answer:
        def view(**arguments: Any) -> str | bytes:
            p = PageRequest(site)
            p.response.set_header("X-Alarm", p.alarm)
            try:
                if page.role:
                    p.enter(page.role)
                shown = function(p, **arguments)
                note_viewed(p, page.rule, **arguments)
                return shown
            except ChangedMeanwhile as changed:
                return ask_changed(p, changed)
            except Refusal as refusal:
                p.login = p.login or known_login(p)
                note_reason(p.request, refusal)
                if refusal.status is Status.NOT_AUTHORIZED and not p.login:
                    return ask_to_log_in(p)
                p.response.status = http_status("page", refusal)
                return show_failure(p, why_refused(p, page.role, refusal), p.response.status_code)

        return view

    for page in site.pages:
        for method, function in (("GET", page.get), ("POST", page.post)):
            if function:
                app.route(page.path, method, answer(page, function))

    @app.get("/static/<name:path>")
    def static_file(name: str) -> Any:
        return static_answer(name, bottle.request)

    def failed(error: Any) -> str:
        if error.status_code == 404 and has_moved(app):
            return ""
        refusal = error.exception
        if isinstance(refusal, HttpRefusal):
            bottle.response.status = refusal.http
        elif error.status_code >= 500:
            asked = f"{bottle.request.method} {bottle.request.path}"
            log.error("web: %s failed", asked, exc_info=error.exception)
        p = PageRequest(site)
        text = p.t(FAILED_WORDS.get(error.status_code, FAILED_WORDS[500]))
        text = p.t(refusal.detail) if isinstance(refusal, HttpRefusal) else text
        if bottle.request.path.startswith(("/api", "/dicom-web")):
            bottle.response.content_type = "application/json"
            return json.dumps(problem_json(Refusal(Status.PROCESSING_FAILURE, text)))
        p.login = known_login(p)
        http = refusal.http if isinstance(refusal, HttpRefusal) else error.status_code
        return show_failure(p, text, http)

    app.default_error_handler = failed


def has_moved(app: Any) -> bool:
    """Answer a request whose path has a last slash too many, if there is something without it."""
    import bottle

    path = without_slash(app, bottle.request)
    if path:
        bottle.response.status = 301 if bottle.request.method in ("GET", "HEAD") else 308
        bottle.response.set_header("Location", path)
    return bool(path)


def without_slash(app: Any, request: Any) -> str:
    """Return path and query of a request without a last slash, if there is something; else ""."""
    import bottle

    raw: str = request.environ["asgi.scope"]["raw_path"].decode("ascii", "replace")
    path = request.path.rstrip("/")
    if not path or not raw.endswith("/"):
        return ""
    try:
        app.match(request.environ | {"PATH_INFO": path})
    except bottle.HTTPError:
        return ""
    return raw.rstrip("/") + (f"?{request.query_string}" if request.query_string else "")


def build_app(web: Web) -> Any:
    """Return the bottle application: API, DICOMweb and pages."""
    import bottle

    bottle.BaseRequest.MEMFILE_MAX = web.config.web.maximum_body
    app = bottle.Bottle()
    app.router.add_filter("row", lambda _: (ROW_NUMBER, int, str))

    @app.hook("before_request")
    def refused_before() -> None:  # a browser is told so on a page
        if refusal := bottle.request.environ["asgi.scope"].get("minris.refused"):
            note_reason(bottle.request, refusal)
            raise refusal

    add_api(app, web)
    add_dicomweb(app, web)
    add_pages(app, web)
    return app
