"""What all pages share: the request and its answer, layout, menu, lists."""

import binascii
import functools
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Actor, Context
from minris.access.users import Login, permit
from minris.config.ini import Device
from minris.housekeeping.first_day import lines_left
from minris.housekeeping.stuck import orphans
from minris.mpps.linking import doubtful_steps, unscheduled_steps
from minris.orders.lookup import leftovers
from minris.orders.undo import undoable
from minris.pages.language import Translator, choose_language, local_time
from minris.pages.static import load_catalogues
from minris.pages.template import template
from minris.seen import Thing, as_seen, mark_of, state_mark
from minris.standard.dictionary import is_date
from minris.standard.status import HttpRefusal, Message, Problem, Refusal, Status
from minris.store.writer import Core
from minris.web.answers import ROW_NUMBER, note_reason
from minris.web.request import Web, cookie_name, enter, is_secure, scheme_of

LAYOUT = template("layout.html")
SHARED_PART = template("parts.html")  # functions that the templates of pages call
ERROR_PAGE = template("error.html")
LIST_PAGE = template("list.html")


class Part(NamedTuple):
    """A table of a list page."""

    heading: str
    columns: tuple[str, ...]
    rows: list["Row"]
    empty: str = ""


class Row(NamedTuple):
    """A row of such a table: cells, link of the first cell, actions."""

    cells: tuple[str, ...]
    link: str = ""
    actions: tuple["Action", ...] = ()
    light: str = ""  # a key of LIGHTS: colour of the first cell


class Action(NamedTuple):
    """A form with one button, perhaps with a select or a text field."""

    path: str
    words: str
    fields: tuple[tuple[str, str], ...] = ()
    name: str = ""
    label: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    get: bool = False  # changes nothing


BAD = "bad"  # what a message is about that tells of a failure
LIGHTS = {  # sign and words
    "good": ("\N{BLACK CIRCLE}", Message("OK")),
    "warning": ("\N{BLACK UP-POINTING TRIANGLE}", Message("Check")),
    "bad": ("\N{BLACK SQUARE}", Message("Failed")),
}


# What a list is for, and what to do next, where it has nothing yet: words, path, words of the link.
TEACHING = {
    "/unscheduled": (Message("Exams that a machine reports without an order are matched here with the order that they belong to."), "/", Message("Back to today")),
    "/patients": (Message("Whoever is registered is found here."), "/register", Message("Register a patient")),
    "/workitems": (Message("Work on images after the exam, such as 3D views, is listed here until somebody has done it."), "/workitems/new", Message("New workitem")),
    "/watchers": (Message("Devices that want to be notified of workitems are listed here."), "/devices", Message("Devices")),
    "/passed-on": (Message("What machines report can be forwarded to other systems."), "/devices", Message("Devices")),
    "/commitments": (Message("Machines ask here whether their images are in the archive; exams whose images are not all there are listed too."), "/devices/edit", Message("Add the archive")),
    "/devices": (Message("No machines yet."), "/devices/edit", Message("Add the first one")),
    "/associations": (Message("Each call of a machine is listed here, with what it did and how it ended."), "/devices", Message("Devices")),
}  # fmt: skip
Answer = Callable[..., str | bytes]  # takes a PageRequest and the parts of the path


class Page(NamedTuple):
    """A row of the table of pages: which functions answer a path.

    role          minimum role; "" if no login is needed
    words, group  menu text and menu group; "" if not in the menu; a path as group makes it a tab
                  of that page
    menu_role     minimum role that has it in the menu; "" for all who may open it
    """

    path: str
    role: str
    get: Answer | None
    post: Answer | None
    words: str = ""
    group: str = ""
    menu_role: str = ""

    @property
    def rule(self) -> str:
        """The path, with * for each variable part."""
        return re.sub("<[^>]*>", "*", self.path)


def family_of(page: Page) -> str:
    """Return the path of the menu entry that a page of the menu stands under: its own, or a tab's."""
    return page.group if page.group.startswith("/") else page.path


def page_above(menu: list[Page], here: str) -> Page | None:
    """Return the page of the menu that a path belongs to: /patient/3 to /patients, /step/1 to /."""
    found = [
        (len(page.path), page)
        for page in menu
        if f"{here}/".startswith((f"{page.path}/", f"{page.path.removesuffix('s')}/"))
    ]
    if found:
        return max(found)[1]
    return menu[0] if here.startswith("/step/") else None


def safe_path(path: str | None, default: str = "/") -> str:
    """Return path and query of a URL of this site; `default` for any other URL."""
    try:
        parts = urllib.parse.urlsplit(path or "")
    except ValueError:  # a host in brackets that is none
        return default
    if not parts.path.startswith("/") or parts.path.startswith(("//", "/\\")):
        return default
    return parts.path + (f"?{parts.query}" if parts.query else "")


def quoted(path: str) -> str:
    """Return path and query with what an address may not hold in it quoted; what is quoted stays."""
    return urllib.parse.quote(path, safe="%/?&=#:;,@!$'()*+~[]")


class Site:
    """What all requests share: table of pages, catalogues, cached boards, health."""

    def __init__(self, web: Web, pages: tuple[Page, ...], boards: Any) -> None:
        self.web, self.pages, self.boards = web, pages, boards
        self.menu = [page for page in self.pages if page.words]
        self.catalogues = load_catalogues()
        self.languages = tuple((one, found["English"]) for one, found in self.catalogues.items())
        if (language := web.config.clinic.language) not in self.catalogues:
            log.warning("[clinic] language: there is no static/i18n/%s.json", language)
        self.light_until, self.lights = 0.0, ["good"]
        self.count_until, self.counts, self.first_day_left = 0.0, dict[str, int](), 0

    def light(self) -> tuple[str, int]:
        """Return the worst status of all components, and how many to check, at most 10 s old."""
        now = time.monotonic()
        if now > self.light_until:
            self.light_until = now + 10
            self.lights = [light for _, light, _ in self.web.box.lights()]
        worst = max(self.lights, key=list(LIGHTS).index)
        return worst, len(self.lights) - self.lights.count("good")

    def attention(self, ctx: Context) -> dict[str, int]:
        """Return how many things need attention, by page, at most 15 s old; a person's own act counts at once."""
        now = time.monotonic()
        if now > self.count_until:
            self.count_until, read = now + 15, self.web.read
            self.first_day_left = read(lines_left, ctx)
            self.counts = {
                "/unscheduled": len(read(unscheduled_steps)) + len(read(doubtful_steps)),
                "/leftovers": len(read(leftovers, ctx.today())),
                "/orphans": len(read(orphans, ctx)),
            }
        return self.counts


class PageRequest:
    """A request for a page, and the ways to answer it.

    login  the user; None if unknown, or if the page needs no login
    ctx    the context for core functions
    """

    def __init__(self, site: Site) -> None:
        import bottle

        self.site, self.web = site, site.web
        self.request, self.response = bottle.request, bottle.response
        self.login: Login | None = None
        self.ctx: Context = self.web.context(Actor("web"))

    def enter(self, least: str) -> None:
        """Identify the user. Refuses 0124 for a role below `least`, 401 without a login."""
        self.login, self.ctx = enter(self.web, self.request, least)

    def may(self, least: str) -> bool:
        """Tell whether the user has at least this role."""
        return permit(self.login.role if self.login else "", least)

    def need(self, least: str) -> None:
        """Refuse (0124) an action that needs a higher role than its page."""
        if not self.may(least):
            raise Refusal(
                Status.NOT_AUTHORIZED,
                Message("Your account is not allowed to do this. Ask an administrator."),
            )

    @functools.cached_property
    def alarm(self) -> str:
        """A mark of what is wrong with the box, for pages that are open; "" if nothing is."""
        return "|".join(str(binascii.crc32(words.encode())) for words in self.web.box.alarms())

    # The request.

    @functools.cached_property
    def t(self) -> Translator:
        """The translator for the user's language."""
        wanted = self.cookie("language")
        accepted = self.request.get_header("Accept-Language", "")
        known, default = self.site.catalogues, self.web.config.clinic.language
        language = choose_language(known, wanted, accepted, default)
        return Translator(language, known[language])

    def query(self, name: str) -> str:
        """Return a query parameter as text."""
        return self.request.query.getunicode(name) or ""

    def day(self, name: str) -> str:
        """Return a date of the query as DA, "" if missing. Refuses 0106."""
        text = self.query(name)
        date = re.sub("^([0-9]{4})-([0-9]{2})-([0-9]{2})$", r"\1\2\3", text)
        if text and not is_date(date):
            words = Message("{value} is not a date", value=text[:64])
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
        return date

    def form(self, name: str) -> str:
        """Return a field of the form as text."""
        return self.request.forms.getunicode(name) or ""

    def number(self, name: str) -> int:
        """Return a field of the form as a row ID. Refuses 0106."""
        if not self.form(name):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("Nothing was chosen"))
        return row_number(self.form(name))

    def came_from(self, default: str) -> str:
        """Return the page of this site that sent the form."""
        path = safe_path(self.request.get_header("Referer"), default)
        root = self.web.root
        return path.removeprefix(root) if path.startswith(f"{root}/") else path

    # The store and the clinic.

    def read(self, core: Core, *arguments: Any) -> Any:
        """Call a core function that only reads."""
        return self.web.read(core, *arguments)

    def write(self, core: Core, *arguments: Any) -> Any:
        """Call a core function in the store thread with the user's context; wait for the commit."""
        done = self.web.write(core, self.ctx, *arguments)
        self.site.count_until = 0.0
        return done

    def write_seen(self, about: Thing, event: str, core: Core, *arguments: Any) -> Any:
        """Call a core function likewise, if a thing is as the form or button has it.

        Refuses  ChangedMeanwhile: the wrapper of all pages asks
        """
        return self.write(as_seen, [(about, self.seen(about[0]), event)], core, *arguments)

    def seen(self, kind: str) -> str:
        """Return the mark that the form, or the address of its button, carries for a thing."""
        return self.query(f"{kind}_state") or self.form(f"{kind}_state")

    def mark(self, about: Thing) -> tuple[str, str]:
        """Return the hidden field by which a form carries the present state of a thing.

        A form that comes again, since something in it is wrong, keeps what it carried.
        """
        carried = self.request.method == "POST" and self.seen(about[0])
        return f"{about[0]}_state", carried or self.read(state_mark, about)

    def undo_of(self, about: str) -> tuple[str, str, Any] | None:
        """Return how the last change of `patient 3` or `step 7` is undone: address, words, note."""
        note, problem = self.read(undoable, self.ctx, about)
        if problem:
            return None
        words = self.t("Undo: {what} ({who}, {at})", what=self.t(note.what), who=note.who,
                       at=self.at(note.at))  # fmt: skip
        return f"/{about.replace(' ', '/')}?undo_state={mark_of(note.id)}", words, note

    @property
    def devices(self) -> tuple[Device, ...]:
        """The current devices."""
        return self.web.access().devices

    def device(self, ae_title: str) -> Device | None:
        """Return the device of an AE title, or None."""
        return self.web.access().device(ae_title)

    def at(self, stamp: str, seconds: bool = False) -> str:
        """A time of the store as the clinic's clock shows it; "" for none."""
        if not stamp:
            return ""
        return self.t.moment(local_time(stamp, self.web.config.zone), seconds)

    # The answer.

    def show(
        self, template: str, title: str, refresh: bool = False, bare: bool = False, told: str = "",
        public: bool = False, sheet: str = "", script: str = "forms", **values: Any,
    ) -> str:  # fmt: skip
        """Return a whole page around a template.

        refresh  reload the page regularly
        bare     without header and menu
        told     message about the last action
        public   seen by patients: no message, which names one
        sheet    a further style sheet: paper, calendar, waiting, welcome
        script   beside minris.js: forms, or board for a page that changes by itself
        """
        t, login, here, site = self.t, self.login, self.request.path, self.site
        box = self.web.box
        shared = {
            "here": here, "login": login, "refresh": refresh, "clinic": self.web.config.clinic.name,
            "bare": bare, "sheet": sheet, "script": script, "told": told, "told_bad": False, "told_undo": None,
            "csrf": login.form_token if login else "",
        }  # fmt: skip
        if login and not told and not public:
            shared |= self._told()
        return self.part(
            SHARED_PART + LAYOUT,
            **shared,
            base=self.part(SHARED_PART + template, **shared, **values),
            title=t(title),
            **self._menu(here),
            light=self._light() if self.may("admin") else None,
            alarm=self.alarm,
            notices=[t(words) for words in (*box.alarms(), *(box.notices() if login else ()))],
            languages=site.languages,
        )

    def part(self, template: str, **values: Any) -> str:
        """Render a template alone."""
        import bottle

        return bottle.template(template, t=self.t, **values)

    def listed(self, columns: str, rows: list[Row], empty: str = "", heading: str = "") -> Part:
        """Return a table for a list page.

        columns  their names in English, separated by " | "
        empty    text in English if there are no rows
        heading  as it is shown
        """
        heads = tuple(self.t(words) for words in columns.split(" | "))
        return Part(heading, heads, rows, self.t(empty))

    def listing(self, title: str, parts: list[Part], **values: Any) -> str:
        """Return a list page.

        values  intro; search, the label of the search field, and query, its value; links below
                (path, words); filters (path, words, whether chosen)
        """
        found = values.get("query") or (parts and parts[0].rows)
        teaching = None if found else TEACHING.get(self.request.path)
        return self.show(LIST_PAGE, title, parts=parts, teaching=teaching, **values)

    def _menu(self, here: str) -> dict[str, Any]:
        """Return the menu, by heading, and the tabs of this page: path, words, here or not, count."""
        above = page_above(self.site.menu, here)
        family = family_of(above) if above else ""
        counts = dict(self.site.attention(self.ctx)) if self.login else {}
        counts["/welcome"] = self.site.first_day_left
        menu: dict[str, list[Any]] = {}
        tabs = []
        for page in self.site.menu:
            if not self.may(page.menu_role or page.role):
                continue
            entry = page.path, self.t(page.words), page is above, counts.get(page.path, 0)
            if family_of(page) == family:
                tabs.append(entry)
            if not page.group.startswith("/") and counts.get(page.path) != 0:
                here_below = page.path == family
                menu.setdefault(self.t(page.group), []).append((*entry[:2], here_below, entry[3]))
        return {"menu": list(menu.items()), "tabs": tabs if len(tabs) > 1 else []}

    def _light(self) -> tuple[str, str, str]:
        """Return the overall status: key of LIGHTS, sign, words."""
        worst, count = self.site.light()
        words = self.t("{count} to check", count=count) if count else self.t("All OK")
        return worst, LIGHTS[worst][0], words

    def told_part(self) -> str:
        """Render the message about the last action alone, for a page that stays as it is."""
        shared = {
            "told": "",
            "told_bad": False,
            "told_undo": None,
            "csrf": self.login.form_token if self.login else "",
        }
        return self.part(SHARED_PART + "% tell()\n", **(shared | self._told()))

    def _told(self) -> dict[str, Any]:
        """Return the message of the last action from its cookie, with its undo; delete that."""
        text = self.cookie("told")
        if not text:
            return {}
        self.set_cookie("told", "", max_age=0)
        told, _, about = urllib.parse.unquote(text).partition("\n")
        found = self.undo_of(about) if re.fullmatch("(step|patient) [0-9]{1,18}", about) else None
        if not found or found[2].who != self.ctx.actor.name:
            return {"told": told, "told_bad": about == BAD}
        path, words, note = found
        again = ()  # a reason can be given afterwards
        if note.what == "CANCELED":
            again = self.mark(("step", int(about.partition(" ")[2])))
        return {"told": told, "told_undo": (path, words, again)}

    def tell(self, path: str, text: str, about: str = "") -> str:
        """Redirect to a page that shows a message about what was done.

        about  `step 7` or `patient 3`: the message offers to undo it; BAD: it was in vain
        """
        told = f"{text[:1000]}\n{about}" if about else text[:1000]
        self.set_cookie("told", urllib.parse.quote(told), max_age=60)
        return self.redirect(path)

    def redirect(self, path: str) -> str:
        """Answer 303, so that the back button sends nothing again."""
        self.response.status = 303
        self.response.set_header("Location", quoted(path))
        return ""

    def again(self, refusal: Refusal) -> list[Problem]:
        """Set status 422, or its own, and return the problems to show: those of the fields, or one sentence."""
        self.response.status = refusal.http if isinstance(refusal, HttpRefusal) else 422
        note_reason(self.request, refusal)
        detail = refusal.detail
        words = detail if isinstance(detail, Message) else Message(detail)
        return list(refusal.problems) or [Problem(0, words)]

    def cookie(self, name: str) -> str:
        """Return a cookie of this box, or an empty text."""
        value: str = self.request.get_cookie(
            cookie_name(self.web, scheme_of(self.request), name), ""
        )
        return value

    def set_cookie(self, name: str, value: str, max_age: int) -> None:
        """Set a cookie of this box that scripts cannot read; with a max_age of 0 seconds, delete it."""
        scheme = scheme_of(self.request)
        self.response.set_cookie(
            cookie_name(self.web, scheme, name), value, path=self.web.root or "/", httponly=True,
            samesite="lax", secure=is_secure(self.web, scheme), max_age=max_age,
        )  # fmt: skip

    def csv(self, name: str, text: str) -> bytes:
        """Answer with a CSV file to download; a byte order mark tells spreadsheets it is UTF-8."""
        self.response.content_type = "text/csv; charset=utf-8"
        self.response.set_header("Content-Disposition", f'attachment; filename="{name}"')
        return b"\xef\xbb\xbf" + text.encode()

    def svg(self, drawing: str | bytes) -> str | bytes:
        """Answer with an SVG drawing."""
        self.response.content_type = "image/svg+xml"
        return drawing


def row_number(text: str) -> int:
    """Return a row ID of an address or a form; 0, which no row has, for none. Refuses 0112."""
    if text and not re.fullmatch(ROW_NUMBER, text):
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("Page not found"))
    return int(text or 0)


def no_such_action() -> Refusal:
    """Return the refusal (0106) of a form with an unknown action."""
    return Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
