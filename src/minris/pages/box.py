"""Users and tokens, audit log."""

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
from minris.config.values import ROLES, SCREEN_ROLE, TOKEN_ROLES
from minris.pages.asking import ask_if_sure, is_sure
from minris.pages.forms import Field, show_form
from minris.pages.frame import Action, Page, PageRequest, Row, no_such_action, row_number
from minris.seen import ChangedMeanwhile, as_seen, state_mark
from minris.standard.status import Message, Problem, Refusal
from minris.standard.tables import body_rows
from minris.web.request import host_of, scheme_of

# What the roles may do, and on which pages (* for a part of the path). The first page gives the
# minimum role; "-": actions on other pages that check for an administrator.
RIGHTS = body_rows("""
    what                                                          | pages
    See today's exams and the calendar, print the day's list     | / /calendar /slots /blocked /waiting /print /step /logout /password
    Register, find and correct patients; merge duplicates         | /register /find /patients /patient /search
    Check in, no-show, cancel, mark as done                       | /leftovers
    Create, claim and finish workitems                            | /workitems /workitem
    Link unmatched exams; patient not on the machine; import      | /unscheduled /unmatch /why /import
    Devices and who has called, statuses, catalogue               | /devices /associations /statuses /catalogue /catalogue.csv
    Subscriptions, forwarding, images in the archive              | /watchers /passed-on /commitments /commitment
    Statistics                                                    | /figures /figures.csv /figures.svg
    See what needs attention, settle exams without order          | /orphans
    Close what needs attention, end subscriptions of others       | -
    Erase a patient's data                                        | /patient/*/erase /patient/*/views
    Users, tokens, audit log, settings, backup                    | /box /backups /users /audit /settings /restored /welcome
    """)
USER_DEEDS = {"end": end_sessions, "delete": delete_user, "delete token": delete_token}
DELETING = {
    "delete": Message("Delete the user {name}? All their logins end. This cannot be undone."),
    "delete token": Message("Delete the token {name}? Programs that use it will be rejected. "
                            "This cannot be undone."),
}  # fmt: skip
DONE_TO_USER = {
    "end": Message("All sessions of {name} have ended."),
    "delete": Message("{name} was deleted."),
    "delete token": Message("{name} was deleted."),
}
KNOWN_LOGIN = {
    "user": Message("There is a user {name}: save again to change role and password"),
    "token": Message("There is a token {name}: save again to replace it by a new one"),
}


def words_of_token(p: PageRequest, secret: str) -> str:
    """Return the sentence that shows a new token: that of a screen as an address."""
    if p.form("role") != SCREEN_ROLE:
        return p.t("The token, shown this once: {secret}", secret=secret)
    ours = p.web.config.web.public_url or f"{scheme_of(p.request)}://{host_of(p.request)}"
    url = f"{ours}/screen?token={secret}"
    return p.t("Open this address once in the browser of the screen; it is shown this once: {url}",
               url=url)  # fmt: skip


def users_page(p: PageRequest, told: str = "") -> str:
    """GET /users: users, API tokens, and what each role may do."""
    t = p.t
    people = [
        Row((name, t(role), str(count), p.at(at)), f"/users/new?name={urllib.parse.quote(name)}", (
            Action("/users", t("End sessions"), (("do", "end"), ("name", name))),
            Action("/users", t("Delete"), (("do", "delete"), ("name", name),
                                           p.mark(("user", name)))),
        ))
        for name, role, count, at in p.read(logins_of, p.ctx)
    ]  # fmt: skip
    programs = [
        Row((name, t(role), titles.replace("\\", ", "), p.at(at)), "", (
            Action("/users", t("Delete"), (("do", "delete token"), ("name", name),
                                           p.mark(("token", name)))),
        ))
        for name, role, titles, at in p.read(tokens_of)
    ]  # fmt: skip
    rights = [
        Row((t(words), *(t("yes") if permit(role, least) else "" for role in ROLES)))
        for words, least in roles_of_rights(p.site.pages)
    ]
    parts = [
        p.listed("User name | Role | Sessions | Last login", people, "", t("Users")),
        p.listed("Name | Role | AE titles | Created", programs, "No API tokens. A program needs one for the API or DICOMweb.",
                 t("API tokens")),
        p.listed(" | ".join(["What", *ROLES]), rights, "", t("What each role may do")),
    ]  # fmt: skip
    links = [("/users/new", t("New user or token"))]
    return p.listing("Users", parts, told=told, links=links)


def roles_of_rights(pages: Iterable[Page]) -> list[tuple[str, str]]:
    """Return the rows of RIGHTS: words and minimum role."""
    roles = {page.rule: page.role for page in pages}
    return [(words, roles.get(paths.split()[0], "admin")) for words, paths in RIGHTS]


def new_user_page(p: PageRequest, problems: Iterable[Problem] = (), known: str = "") -> str:
    """GET /users/new: the form for a user or token; ?name=: for a user who is there.

    known  the mark of one who was found to exist
    """
    t, name = p.t, p.form("name") or p.query("name")
    roles_now = {who: role for who, role, _, _ in p.read(logins_of, p.ctx)}
    is_there = name in roles_now and p.form("kind") != "token"
    opened = is_there and bool(p.query("name"))
    kinds = (("person", t("User")), ("token", t("API token")))
    roles = tuple((role, t(role)) for role in TOKEN_ROLES)
    role = p.form("role") or roles_now.get(name, "desk")
    kept = t("Left empty, the password stays.") if is_there else t("At least 8 characters.")
    fields = [
        Field("name", t("User name"), "text", name, True, locked=opened),
        Field("role", t("Role"), "select", role, True, "", roles),
        Field("password", t("Password"), "password", help=kept),
    ]
    if not opened:
        fields.insert(
            1, Field("kind", t("Type"), "select", p.form("kind") or "person", True, "", kinds)
        )
        fields.append(Field("ae_titles", t("AE titles (of a token)"), "text", p.form("ae_titles")))
    mark = known or p.form("known") or p.read(state_mark, ("user", name))
    hidden = [("do", "save"), ("known", mark)] + [("name", name)] * opened
    title = name if opened else Message("New user or token")
    return show_form(
        p, title, [(t("Add or change"), fields)], problems, submit=t("Save"), action="/users",
        hidden=hidden, after=[("/users", t("Users"))],
    )  # fmt: skip


def post_users(p: PageRequest) -> str:
    """POST /users: save a user, create a token, end sessions, or delete."""
    name, deed = p.form("name").strip(), p.form("do")
    try:
        if deed == "save":
            secret = save_login(p, name)
            return (
                users_page(p, words_of_token(p, secret))
                if secret
                else p.tell("/users", p.t("{name} was saved.", name=name))
            )
        if deed not in USER_DEEDS:
            raise no_such_action()
        if deed != "end" and not is_sure(p):
            return ask_if_sure(p, "Delete", p.t(Message(DELETING[deed], name=name)), p.t("Delete"))
        kind = "token" if deed == "delete token" else "user"
        p.write_seen((kind, name), deed, USER_DEEDS[deed], name)
    except ChangedMeanwhile as changed:
        if deed != "save":
            raise
        p.response.status = 409
        words = Message(KNOWN_LOGIN[changed.about[0]], name=name)
        return new_user_page(p, [Problem(0, words)], changed.mark)
    except Refusal as refusal:
        return new_user_page(p, p.again(refusal))
    return p.tell("/users", p.t(Message(DONE_TO_USER[deed], name=name)))


def save_login(p: PageRequest, name: str) -> str:
    """Save a user, or make a token and return its secret.

    Refuses  ChangedMeanwhile for a name that is known, unless the form says so
    """
    kind = "token" if p.form("kind") == "token" else "user"
    known = [((kind, name), p.form("known"), "")]
    if kind == "user":
        p.write(as_seen, known, make_user, name, p.form("role"), p.form("password"))
        return ""
    titles = [one for one in p.form("ae_titles").split(",") if one.strip()]
    secret: str = p.write(as_seen, known, make_token, name, p.form("role"), titles)
    return secret


def audit_page(p: PageRequest) -> str:
    """GET /audit: search the audit log by any text; says whether its chain is intact."""
    t, text = p.t, p.query("q")
    found = p.read(audit_lines, text, row_number(p.query("before")))
    lines = [
        Row(
            (
                p.at(one.at, seconds=True),
                one.who,
                t(one.what),
                t.said(one.about),
                t.said(one.detail),
            )
        )
        for one in found
    ]
    links = []
    if len(found) == 200:
        older = urllib.parse.urlencode({"q": text, "before": found[-1].id})
        links.append((f"/audit?{older}", t("Older")))
    chain = p.read(check_audit)
    words = t("{count} entries, chain intact; last hash {digest}.", count=chain.count,
              digest=chain.digest[:16])  # fmt: skip
    if chain.broken:
        words = t("The audit log has been tampered with: the entry of {at} does not follow "
                  "the one before it.", at=p.at(chain.broken[1]))  # fmt: skip
    part = p.listed("Time | Who | What | About | Details", lines, "Nothing found.")
    return p.listing("Audit log", [part], intro=words, links=links, search=t("Text"), query=text)
