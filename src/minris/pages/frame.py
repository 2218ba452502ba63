"""What all pages share: a request and how it is answered, the layout, the menu, lists."""

import functools
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

from minris.access.context import Actor, Context
from minris.access.users import Login, permit
from minris.config.ini import Device
from minris.pages.language import LANGUAGES, Translator, choose_language, shown_instant
from minris.pages.static import load_catalogues
from minris.pages.template import template
from minris.standard.dictionary import is_date
from minris.standard.status import Message, Problem, Refusal, Status
from minris.store.writer import Core
from minris.web.request import Web, enter

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
    """A line of such a table: cells, where the first one leads, what can be done."""

    cells: tuple[str, ...]
    link: str = ""
    actions: tuple["Action", ...] = ()
    light: str = ""  # a key of LIGHTS, for the first cell


class Action(NamedTuple):
    """A small form of one button, perhaps with a choice or a text."""

    path: str
    words: str
    fields: tuple[tuple[str, str], ...] = ()
    name: str = ""
    label: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    get: bool = False  # it only shows something


LIGHTS = {"good": "\N{BLACK CIRCLE}", "warning": "\N{BLACK UP-POINTING TRIANGLE}",
          "bad": "\N{BLACK SQUARE}"}  # fmt: skip
LIGHT_SAYS = {
    "good": Message("in order"),
    "warning": Message("look at it"),
    "bad": Message("does not work"),
}


Answer = Callable[..., str | bytes]  # a function of pages: PageRequest and parts of the path


class Page(NamedTuple):
    """A row of the table of pages: what answers at a path.

    role   the least that may ask for it; "" where nobody need be logged in
    words  in the menu, and its group there; "" for what is not in the menu
    """

    path: str
    role: str
    get: Answer | None
    post: Answer | None
    words: str = ""
    group: str = ""

    @property
    def rule(self) -> str:
        """The path, with * for a part that varies."""
        return re.sub("<[^>]*>", "*", self.path)


def group_of(menu: list[Page], here: str) -> str:
    """The group of pages that a path belongs to: /patient/3 is of /patients, /step/1 of the day."""
    found = [
        (len(page.path), page.group)
        for page in menu
        if f"{here}/".startswith((f"{page.path}/", f"{page.path.removesuffix('s')}/"))
    ]
    return max(found)[1] if found else menu[0].group


def safe_path(path: str | None, default: str = "/") -> str:
    """A path of this site to go back to; never another site."""
    parts = urllib.parse.urlsplit(path or "")
    if not parts.path.startswith("/") or parts.path.startswith(("//", "/\\")):
        return default
    return parts.path + (f"?{parts.query}" if parts.query else "")


class Site:
    """What all requests share: the table of pages, the catalogues, the boards, the box's light."""

    def __init__(self, web: Web, pages: tuple[Page, ...], boards: Any) -> None:
        self.web, self.pages, self.boards = web, pages, boards
        self.menu = [page for page in self.pages if page.words]
        self.catalogues = load_catalogues()
        self.light_until, self.worst = 0.0, "good"

    def light(self) -> str:
        """The worst of the box's lights, looked at each ten seconds."""
        now = time.monotonic()
        if now > self.light_until:
            self.light_until = now + 10
            order = list(LIGHTS)
            self.worst = max((light for _, light, _ in self.web.box.lights()), key=order.index)
        return self.worst


class PageRequest:
    """A request for a page: who asks, in which language, what was sent, and how it is answered.

    login  who asks; None where that is not known, or not asked
    ctx    the circumstances that core functions are given
    """

    def __init__(self, site: Site) -> None:
        import bottle

        self.site, self.web = site, site.web
        self.request, self.response = bottle.request, bottle.response
        self.login: Login | None = None
        self.ctx: Context = self.web.context(Actor("web"))

    def enter(self, least: str) -> None:
        """Find who asks. Refuses who may not do what `least` may (0124), or has no login (401)."""
        self.login, self.ctx = enter(self.web, self.request, least)

    def may(self, least: str) -> bool:
        """Whether who asks may do what `least` may."""
        return permit(self.login.role if self.login else "", least)

    def need(self, least: str) -> None:
        """Refuse (0124) a deed that asks for more than its page does."""
        if not self.may(least):
            raise Refusal(Status.NOT_AUTHORIZED, Message("Your role may not do this"))

    # What was sent.

    @functools.cached_property
    def t(self) -> Translator:
        """The language of the one who asks."""
        language = choose_language(
            self.site.catalogues,
            self.request.get_cookie("language") or "",
            self.request.get_header("Accept-Language", ""),
            self.web.config.clinic.language,
        )
        return Translator(language, self.site.catalogues[language])

    def query(self, name: str) -> str:
        """A parameter of the address, as text."""
        return self.request.query.getunicode(name) or ""

    def day(self, name: str) -> str:
        """A day in the address as DA; nothing for what is none."""
        date = self.query(name).replace("-", "")
        return date if is_date(date) else ""

    def form(self, name: str) -> str:
        """A field of the form that was sent, as text."""
        return self.request.forms.getunicode(name) or ""

    def number(self, name: str) -> int:
        """A field that holds the number of a row. Refuses 0106."""
        if not self.form(name).isdigit():
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("Nothing was chosen"))
        return int(self.form(name))

    def came_from(self, default: str) -> str:
        """The page of ours that it was sent from."""
        return safe_path(self.request.get_header("Referer"), default)

    # The store and the clinic.

    def read(self, core: Core, *arguments: Any) -> Any:
        """Call a core function that only reads."""
        return self.web.read(core, *arguments)

    def write(self, core: Core, *arguments: Any) -> Any:
        """Call a core function in the store thread, for who asks, and wait for its commit."""
        return self.web.write(core, self.ctx, *arguments)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices of the moment."""
        return self.web.access().devices

    def device(self, ae_title: str) -> Device | None:
        """The device of an AE title."""
        return self.web.access().device(ae_title)

    def at(self, stamp: str) -> str:
        """A time of the store as the clinic's clock shows it."""
        return shown_instant(stamp, self.web.config.zone)

    # The answer.

    def show(
        self, template: str, title: str, refresh: bool = False, bare: bool = False, told: str = "",
        **values: Any,
    ) -> str:  # fmt: skip
        """A whole page around a template.

        refresh  load it anew by itself; bare: without the head of a page
        told     what the action before says of itself
        """
        t, login, here, site = self.t, self.login, self.request.path, self.site
        seen = [page for page in site.menu if self.may(page.role)]
        group, first = group_of(site.menu, here), {}
        for page in seen:
            first.setdefault(page.group, page.path)
        shared = {
            "here": here, "login": login, "refresh": refresh,
            "bare": bare, "told": told or (self._told() if login else ""),
            "csrf": login.form_token if login else "",
        }  # fmt: skip
        return self.part(
            LAYOUT,
            **shared,
            base=self.part(SHARED_PART + template, **shared, **values),
            title=t(title),
            clinic=self.web.config.clinic.name,
            group=t(group),
            groups=[(path, t(name), name == group) for name, path in first.items()],
            navigation=[(page.path, t(page.words)) for page in seen if page.group == group],
            light=self._light() if self.may("admin") else None,
            notices=[t(notice) for notice in self.web.box.notices()] if login else [],
            languages=[(code, LANGUAGES.get(code, code)) for code in site.catalogues],
        )

    def part(self, template: str, **values: Any) -> str:
        """A template alone."""
        import bottle

        return bottle.template(template, t=self.t, **values)

    def listed(self, columns: str, rows: list[Row], empty: str = "", heading: str = "") -> Part:
        """A table of a list page: the heads of its columns, in English and separated by |, and in
        the language of the page its heading."""
        heads = tuple(self.t(words) for words in columns.split(" | "))
        return Part(heading, heads, rows, self.t(empty))

    def listing(self, title: str, parts: list[Part], **values: Any) -> str:
        """A list page.

        values  intro; search, the label of a field, and query, what is in it; links below (path,
                words); filters (path, words, whether chosen)
        """
        return self.show(LIST_PAGE, title, parts=parts, **values)

    def _light(self) -> tuple[str, str, str]:
        """The box's light: kind, sign, words."""
        worst = self.site.light()
        return worst, LIGHTS[worst], self.t(LIGHT_SAYS[worst])

    def _told(self) -> str:
        """What the action before this page says of itself, once, from a cookie."""
        text = self.request.get_cookie("told")
        if not text:
            return ""
        self.response.delete_cookie("told", path="/")
        return urllib.parse.unquote(text)

    def tell(self, path: str, text: str) -> str:
        """Go to a page that says what has been done."""
        self.set_cookie("told", urllib.parse.quote(text[:1000]), max_age=60)
        return self.redirect(path)

    def redirect(self, path: str) -> str:
        """Answer with 303, so that the back button repeats nothing."""
        self.response.status = 303
        self.response.set_header("Location", path)
        return ""

    def again(self, refusal: Refusal) -> list[Problem]:
        """Why a form is shown again (422): what is wrong with its fields, or one sentence."""
        self.response.status = 422
        detail = refusal.detail
        words = detail if isinstance(detail, Message) else Message(detail)
        return list(refusal.problems) or [Problem(0, words)]

    def set_cookie(self, name: str, value: str, **options: Any) -> None:
        """A cookie that scripts cannot read, for this site alone."""
        secure = self.request.urlparts.scheme == "https" or (
            self.web.config.web.public_url.startswith("https")
        )
        self.response.set_cookie(
            name, value, path="/", httponly=True, samesite="lax", secure=secure, **options
        )

    def csv(self, name: str, text: str) -> bytes:
        """A CSV file to be kept, with the mark by which spreadsheets know UTF-8."""
        self.response.content_type = "text/csv; charset=utf-8"
        self.response.set_header("Content-Disposition", f'attachment; filename="{name}"')
        return b"\xef\xbb\xbf" + text.encode()

    def svg(self, drawing: str | bytes) -> str | bytes:
        """A drawing."""
        self.response.content_type = "image/svg+xml"
        return drawing


def no_such_action() -> Refusal:
    """What a form is refused with that asks for a deed that there is not (0106)."""
    return Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
