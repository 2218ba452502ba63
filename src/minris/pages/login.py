"""Login, logout, password, language."""

import base64
import json
import urllib.parse
from collections.abc import Iterable

from minris.access.context import Actor
from minris.access.users import (
    authenticate,
    end_session,
    find_session,
    make_user,
    note_login_failure,
    open_session,
)
from minris.pages.forms import FORM_PAGE, NOT_KEPT, Field, decoded
from minris.pages.frame import Frame, safe_path
from minris.pages.template import template
from minris.standard.status import Message, Refusal, Status
from minris.web.request import check_origin, client_address, enter

LOGIN_PAGE = template("login.html")
RESUME_PAGE = template("resume.html")


class LoginPages(Frame):
    """Login, logout, password, language."""

    def login_page(self, problem: str = "", kept: str = "") -> str:
        """GET /login.

        kept  a form that was sent without a login, as encoded_form has it: it is sent after it
        """
        following = safe_path(self.request.query.getunicode("next") or self.form("next"))
        name = "" if kept else self.form("name")
        kept = kept or self.form("kept")
        return self.page(
            LOGIN_PAGE, "Log in", problem=problem, next=following, name=name, kept=kept
        )

    def ask_to_log_in(self) -> str:
        """For who asks for a page without a login; what a form of ours had is kept meanwhile."""
        request = self.request
        asked = (request.path + "?" + request.query_string).rstrip("?")
        if request.method != "POST" or request.content_type.startswith("multipart"):
            return self.redirect(f"/login?next={urllib.parse.quote(asked)}")
        try:
            check_origin(self.web, request)
        except Refusal:
            return self.redirect("/login")
        fields = [pair for pair in request.forms.decode().allitems() if pair[0] not in NOT_KEPT]
        kept = base64.b64encode(json.dumps([asked, fields]).encode()).decode()
        self.bottle.response.status = 401
        words = Message(
            "Your session has ended, and nothing was saved yet. Log in: what you typed is kept."
        )
        return self.login_page(words, kept)

    def _resume(self, secret: str, kept: str) -> str:
        """What was typed before the session ended, to be sent with one click."""
        try:
            path, fields = json.loads(decoded(kept))
            fields = [(str(name), str(value)) for name, value in fields]
        except (ValueError, TypeError, RecursionError):
            return self.redirect("/")
        login = self.web.read(find_session, self.web.context(Actor("web")), secret)
        shown = [(name, value) for name, value in fields if value and len(value) < 100]
        return self.page(
            RESUME_PAGE, "What you had typed", login, action=safe_path(str(path)), fields=fields,
            shown=shown, csrf=login.form_token,
        )  # fmt: skip

    def log_in(self) -> str:
        """POST /login."""
        web, name = self.web, self.form("name").strip()
        ctx = web.context(Actor(name[:64] or "nobody", client_address(self.request)))
        try:
            check_origin(web, self.request)
            user_id = web.read(authenticate, ctx, name, self.form("password"))
        except Refusal as refusal:
            if refusal.status is Status.NOT_AUTHORIZED:
                web.write(note_login_failure, ctx, name)
            self.bottle.response.status = (
                429 if refusal.status is Status.RESOURCE_LIMITATION else 403
            )
            return self.login_page(refusal.detail)
        secret = web.write(open_session, ctx, user_id)
        self.set_cookie("minris", secret, max_age=web.config.web.session_hours * 3600)
        if self.form("kept"):
            return self._resume(secret, self.form("kept"))
        return self.redirect(safe_path(self.form("next")))

    def log_out(self) -> str:
        """POST /logout."""
        _, ctx = enter(self.web, self.request, "desk")
        if cookie := self.request.get_cookie("minris"):
            self.web.write(end_session, ctx, cookie)
        self.bottle.response.delete_cookie("minris", path="/")
        return self.redirect("/login")

    def password_page(self, problems: Iterable[Message] = ()) -> str:
        """GET /password: one's own."""
        login, _ = enter(self.web, self.request, "desk")
        t = self.translator()
        fields = [
            Field("password", t("Password until now"), "password", "", True, "", ()),
            Field("new_password", t("New password"), "password", "", True, "", ()),
        ]
        return self.page(
            FORM_PAGE, "Change the password", login, action="/password", submit=t("Save"),
            csrf=login.form_token, hidden=[], problems=list(map(t, problems)),
            groups=[(login.name, fields)],
        )  # fmt: skip

    def change_password(self) -> str:
        """POST /password: the other sessions of the user end."""
        login, ctx = enter(self.web, self.request, "desk")
        try:
            user_id = self.web.read(authenticate, ctx, login.name, self.form("password"))
            new = self.form("new_password")
            self.web.write(make_user, ctx, login.name, login.role, new)
        except Refusal as refusal:
            if refusal.status is Status.NOT_AUTHORIZED:
                self.web.write(note_login_failure, ctx, login.name)
            self.bottle.response.status = 422
            return self.password_page([refusal.detail])
        secret = self.web.write(open_session, ctx, user_id)
        self.set_cookie("minris", secret, max_age=self.web.config.web.session_hours * 3600)
        return self.tell("/password", self.translator()("Saved."))

    def language(self) -> str:
        """GET /language: remember the language chosen."""
        wanted = self.request.query.getunicode("language") or ""
        if wanted in self.catalogues:
            self.set_cookie("language", wanted, max_age=365 * 86400)
        return self.redirect(safe_path(self.request.query.getunicode("back")))
