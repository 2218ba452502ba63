"""The box: its lights, users and tokens, the audit log, settings."""

import itertools
import urllib.parse
from collections.abc import Iterable

from minris.access.context import audit_lines, check_audit
from minris.access.users import (
    delete_token,
    delete_user,
    end_sessions,
    logins_of,
    make_token,
    make_user,
    permit,
    tokens_of,
)
from minris.config.settings import SETTINGS
from minris.config.values import ROLES
from minris.pages.forms import FORM_PAGE, Field
from minris.pages.frame import LIGHT_SAYS, LIGHTS, Action, Frame, Part, Row
from minris.pages.language import shown_instant
from minris.pages.machines.devices import setting_text
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.tables import body_rows
from minris.web.request import enter

# What each role may do: in words, and on which pages (* for a part of the path). The pages ask the
# same with `enter`, and the tests compare; what "-" stands for is asked for by the deed.
RIGHTS = body_rows("""
    what                                                          | least        | pages
    See the board, the calendar and the day on paper             | desk         | / /calendar /slots /waiting /print /step /logout /password
    Register, find and correct patients, merge two who are one    | desk         | /register /find /patients /patient
    Arrived, did not come, cancel, exam is done                   | desk         | /leftovers
    Make, claim and end workitems                                 | desk         | /workitems /workitem
    Match what came without an order; why not there; import       | desk         | /unscheduled /unmatch /why /import
    Devices and who has called, statuses, catalogue               | technologist | /devices /associations /statuses /catalogue /catalogue.csv
    Watchers, what is passed on, are they safe                    | technologist | /watchers /passed-on /commitments /commitment
    Figures                                                       | technologist | /figures /figures.csv /figures.svg
    See what is stuck, settle what has no order                   | technologist | /orphans
    End what is stuck, end subscriptions of others                | admin        | -
    Erase a patient's data                                        | admin        | /patient/*/erase
    Users, tokens, audit log, settings, backup                    | admin        | /box /users /audit /settings
    """)
USER_DEEDS = {"end": end_sessions, "delete": delete_user, "delete token": delete_token}


class BoxPages(Frame):
    """The box: its lights, users and tokens, the audit log, settings."""

    def box_page(self) -> str:
        """GET /box: a light for each thing that may fail, and where the rest of it is."""
        login, _ = enter(self.web, self.request, "admin")
        t, lights = self.translator(), self.web.box.lights()
        rows_ = [
            Row((f"{LIGHTS[light]} {t(LIGHT_SAYS[light])}", t(what), t(said)), light=light)
            for what, light, said in lights
        ]
        part = Part("", (t("Light"), t("What"), t("What is known")), rows_)
        links = [("/users", t("Users")), ("/audit", t("Audit log")), ("/settings", t("Settings"))]
        backup = Action("/box", t("Back up now"), (("do", "backup"),))
        doing = Part("", (t("What"),), [Row((t("Backup"),), "", (backup,))])
        return self.listing("The box", login, [part, doing], links=links)

    def box_action(self) -> str:
        """POST /box: make a backup."""
        enter(self.web, self.request, "admin")
        self.web.box.back_up()
        problem = self.web.box.backup_problem
        t = self.translator()
        words = t("The last backup failed: {problem}", problem=problem) if problem else t("Saved.")
        return self.tell("/box", words)

    def users(self, new_token: str = "") -> str:
        """GET /users: who may log in, which programs may call, and what each role may do."""
        login, ctx = enter(self.web, self.request, "admin")
        t, zone = self.translator(), ctx.config.zone
        people = [
            Row((name, t(role), str(count), shown_instant(at, zone)), "", (
                Action("/users", t("End sessions"), (("do", "end"), ("name", name))),
                Action("/users", t("Delete"), (("do", "delete"), ("name", name))),
            ))
            for name, role, count, at in self.web.read(logins_of, ctx)
        ]  # fmt: skip
        programs = [
            Row((name, t(role), titles.replace("\\", ", "), shown_instant(at, zone)), "", (
                Action("/users", t("Delete"), (("do", "delete token"), ("name", name))),
            ))
            for name, role, titles, at in self.web.read(tokens_of)
        ]  # fmt: skip
        rights = [
            Row((t(words), *(t("yes") if permit(role, least) else "" for role in ROLES)))
            for words, least, _ in RIGHTS
        ]
        parts = [
            Part(t("Persons"), (t("Name"), t("Role"), t("Sessions"), t("Last login")), people),
            Part(t("Programs (API tokens)"), (t("Name"), t("Role"), t("AE titles"), t("Made")),
                 programs, t("There are none.")),
            Part(t("What each role may do"), (t("What"), *(t(role) for role in ROLES)), rights),
        ]  # fmt: skip
        links = [("/users/new", t("New user or token")), ("/box", t("The box"))]
        shown = t("The token, shown this once: {secret}", secret=new_token) if new_token else ""
        return self.listing("Users", login, parts, told=shown, links=links)

    def new_user(self, problems: Iterable[Problem] = ()) -> str:
        """GET /users/new: a form for a person or a token; a known name is changed."""
        login, _ = enter(self.web, self.request, "admin")
        t = self.translator()
        roles = tuple((role, t(role)) for role in ROLES)
        fields = [
            Field("name", t("Name"), "text", self.form("name"), True, "", ()),
            Field("kind", t("What it is"), "select", self.form("kind") or "person", True, "",
                  (("person", t("A person")), ("token", t("A program (API token)")))),
            Field("role", t("Role"), "select", self.form("role") or "desk", True, "", roles),
            Field("password", t("Password (of a person)"), "password", "", False, "", ()),
            Field("ae_titles", t("AE titles (of a token)"), "text", self.form("ae_titles"), False, "",
                  ()),
        ]  # fmt: skip
        return self.page(
            FORM_PAGE, "Users", login, action="/users", submit=t("Save"), csrf=login.form_token,
            hidden=[("do", "save")], groups=[(t("New, or changed"), fields)],
            problems=[t(problem.words) for problem in problems], after=[("/users", t("Users"))],
        )  # fmt: skip

    def change_user(self) -> str:
        """POST /users: set a user or make a token, end sessions, delete."""
        _, ctx = enter(self.web, self.request, "admin")
        name, deed = self.form("name").strip(), self.form("do")
        try:
            if deed == "save" and self.form("kind") != "token":
                self.web.write(make_user, ctx, name, self.form("role"), self.form("password"))
            elif deed == "save":
                titles = [one for one in self.form("ae_titles").split(",") if one.strip()]
                made = self.web.write(make_token, ctx, name, self.form("role"), titles)
                return self.users(new_token=made)
            elif deed in USER_DEEDS:
                self.web.write(USER_DEEDS[deed], ctx, name)
            else:
                raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        except Refusal as refusal:
            self.bottle.response.status = 422
            return self.new_user(refusal.problems or [Problem(0, Message(refusal.detail))])
        return self.tell("/users", self.translator()("Saved."))

    def audit_page(self) -> str:
        """GET /audit: who did what, searched by any text; whether the log is as it was written."""
        login, ctx = enter(self.web, self.request, "admin")
        t, zone = self.translator(), ctx.config.zone
        text, before = (
            self.request.query.getunicode("q") or "",
            self.request.query.get("before", ""),
        )
        found = self.web.read(audit_lines, text, int(before) if before.isdecimal() else 0)
        rows_ = [Row((shown_instant(one.at, zone), one.who, t(one.what), one.about, one.detail))
                 for one in found]  # fmt: skip
        columns = (t("Time"), t("Who"), t("What"), t("About"), t("Detail"))
        links = [("/box", t("The box"))]
        if len(found) == 200:
            older = urllib.parse.urlencode({"q": text, "before": found[-1].id})
            links.insert(0, (f"/audit?{older}", t("Older")))
        chain = self.web.read(check_audit)
        words = t("{count} lines, unbroken; the last digest is {digest}.", count=chain.count,
                  digest=chain.digest[:16])  # fmt: skip
        if chain.broken:
            words = t("The log was changed behind our back: the line of {at} does not follow from the"
                      " one before it.", at=shown_instant(chain.broken[1], zone))  # fmt: skip
        part = Part("", columns, rows_, t("Nothing found."))
        return self.listing("Audit log", login, [part], intro=words, links=links,
                            search=t("Text"), query=text)  # fmt: skip

    def settings_page(self) -> str:
        """GET /settings: each setting, its value and where it comes from."""
        login, ctx = enter(self.web, self.request, "admin")
        t, config = self.translator(), ctx.config
        parts = []
        for section, of_section in itertools.groupby(SETTINGS, key=lambda s: s.section):
            rows_ = [
                Row((one.key, setting_text(config, one),
                     config.sources.get((section, one.key), t("default")), t(one.meaning)))
                for one in of_section
            ]  # fmt: skip
            columns = (t("Setting"), t("Value"), t("From"), t("Meaning"))
            parts.append(Part(f"[{section}]", columns, rows_))
        where = str(config.path) if config.path else t("no file: defaults")
        intro = t(
            "Settings are changed in the file, and taken at the next start: {path}", path=where
        )
        return self.listing("Settings", login, parts, intro=intro, links=[("/box", t("The box"))])
