"""Login, logout, password and language."""

import json
import urllib.parse
from collections.abc import Iterable

from minris.access.context import Actor
from minris.access.users import (
    Proof,
    authenticate,
    change_password,
    end_session,
    note_login_failure,
    open_session,
)
from minris.pages.after_exam.workitems import WORKITEM_FIELDS
from minris.pages.asking import RESUME_PAGE
from minris.pages.forms import NOT_KEPT, Field, decoded, encoded_form, show_form
from minris.pages.frame import PageRequest, safe_path
from minris.pages.reception import REGISTER_FIELDS
from minris.pages.template import template
from minris.standard.status import HttpRefusal, Message, Problem, Refusal, Status
from minris.store.condition import StoreTrouble
from minris.web.answers import note_reason
from minris.web.request import check_kept, check_origin, client_address

LOGIN_PAGE = template("login.html")


def login_page(p: PageRequest, problem: str = "", kept: str = "") -> str:
    """GET /login: the login form.

    kept  a form that was sent without a session, encoded by encoded_form; offered after the login
    """
    following = safe_path(p.query("next") or p.form("next"))
    name = "" if kept else p.form("name")
    kept = kept or p.form("kept")
    return p.show(LOGIN_PAGE, "Log in", problem=problem, next=following, name=name, kept=kept)


def ask_to_log_in(p: PageRequest) -> str:
    """Answer a request without a session: go to the login; keep a form that was sent."""
    request = p.request
    asked = (request.path + "?" + request.query_string).rstrip("?")
    if request.method != "POST" or request.content_type.startswith("multipart"):
        return p.redirect(f"/login?next={urllib.parse.quote(asked)}")
    try:
        check_origin(p.web, request)
    except Refusal:
        return p.redirect("/login")
    fields = [pair for pair in request.forms.decode().allitems() if pair[0] not in NOT_KEPT]
    p.response.status = 401
    if not fields:  # nobody of ours has sent it: it was not read
        return login_page(p, Message("Log in first"))
    kept = encoded_form([asked, fields])
    words = Message(
        "Your session has ended, and nothing was saved yet. Log in: what you typed is kept."
    )
    return login_page(p, words, kept)


def resume_page(p: PageRequest, secret: str, kept: str) -> str:
    """Show a form that was sent after the session had ended, to be sent again with one click."""
    try:
        path, fields = json.loads(decoded(kept))
        fields = [(str(name), str(value)) for name, value in fields]
    except (ValueError, TypeError, RecursionError):
        return p.redirect("/")
    p.login = p.web.session(secret)
    labels = {row.name: row.label for row in (*WORKITEM_FIELDS, *REGISTER_FIELDS)}
    shown = [(p.t(labels[name]), value) for name, value in fields
             if name in labels and value and len(value) < 100]  # fmt: skip
    return p.show(
        RESUME_PAGE, "Your unsaved entry", action=safe_path(str(path)), fields=fields, shown=shown,
        sentences=[], button=p.t("Submit"), back="/",
    )  # fmt: skip


def keep_secret(p: PageRequest, secret: str) -> None:
    """Set the cookie of a session."""
    p.set_cookie("minris", secret, max_age=p.web.config.web.session_hours * 3600)


def proof_of(p: PageRequest, name: str) -> Proof:
    """The proof of a user with the password of the form; a wrong one is counted. Refuses 0124, 0213."""
    try:
        p.web.unsaved.check(p.ctx, name)
        return p.read(authenticate, p.ctx, name, p.form("password"))
    except Refusal as refusal:
        if refusal.status is Status.NOT_AUTHORIZED:
            try:
                p.write(note_login_failure, name)
            except StoreTrouble:
                p.web.unsaved.failed(p.ctx, name)
        raise


def open_for(p: PageRequest, proof: Proof) -> str:
    """Open a session, of this run alone where the store cannot keep it; the secret of its cookie."""
    try:
        return p.write(open_session, *proof)
    except StoreTrouble:  # the worklist is shown all the same
        return p.web.unsaved.open(p.ctx, proof)


def post_login(p: PageRequest) -> str:
    """POST /login: check name and password and open a session."""
    name = p.form("name").strip()
    p.ctx = p.ctx.by(Actor(name[:64] or "nobody", client_address(p.request)))
    try:
        check_origin(p.web, p.request)
        check_kept(p.web, p.request)
        secret = open_for(p, proof_of(p, name))
    except Refusal as refusal:
        note_reason(p.request, refusal)
        codes = {Status.RESOURCE_LIMITATION: 429, Status.NOT_AUTHORIZED: 403}
        own = refusal.http if isinstance(refusal, HttpRefusal) else 0
        p.response.status = own or codes.get(refusal.status, 403)
        return login_page(p, refusal.detail)
    keep_secret(p, secret)
    if p.form("kept"):
        return resume_page(p, secret, p.form("kept"))
    return p.redirect(safe_path(p.form("next")))


def post_logout(p: PageRequest) -> str:
    """POST /logout: end the session."""
    if cookie := p.cookie("minris"):
        p.web.unsaved.end(cookie)
        p.write(end_session, cookie)
    p.set_cookie("minris", "", max_age=0)
    return p.redirect("/login")


def password_page(p: PageRequest, problems: Iterable[Problem] = ()) -> str:
    """GET /password: the form to change one's own password."""
    fields = [
        Field("password", p.t("Current password"), "password", required=True),
        Field("new_password", p.t("New password"), "password", required=True),
    ]
    groups = [(p.login.name, fields)]
    return show_form(
        p, "Change the password", groups, problems, submit=p.t("Save"),
        hidden=[("next", p.query("next") or p.form("next"))],
    )  # fmt: skip


def post_password(p: PageRequest) -> str:
    """POST /password: change the password; the user's other sessions end."""
    name = p.login.name
    try:
        proof = proof_of(p, name)
    except Refusal as refusal:
        return password_page(p, p.again(refusal))
    cookie = p.cookie("minris")
    try:
        keep_secret(p, p.write(change_password, cookie, proof, p.form("new_password")))
    except Refusal as refusal:
        if refusal.status is Status.NOT_AUTHORIZED:  # the session has ended meanwhile
            p.login = None
            raise
        return password_page(p, p.again(refusal))
    return p.tell(safe_path(p.form("next"), "/password"), p.t("Saved."))


def choose_page_language(p: PageRequest) -> str:
    """GET /language: remember the chosen language."""
    wanted = p.query("language")
    if wanted in p.site.catalogues:
        p.set_cookie("language", wanted, max_age=365 * 86400)
    return p.redirect(safe_path(p.query("back")))
