"""What all pages share: the layout, the menu, lists, sending and answering."""

import time
import urllib.parse
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.access.users import Login, permit
from minris.config.ini import Device
from minris.orders.undo import undoable
from minris.pages.language import (
    LANGUAGES,
    Translator,
    choose_language,
    shown_instant,
)
from minris.pages.static import load_catalogues
from minris.pages.template import template
from minris.standard.mpps import TAKEN_ANSWERS
from minris.standard.status import Message, Refusal, Status
from minris.standard.tables import body_rows
from minris.web.request import Web

LAYOUT = template("layout.html")
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


NAVIGATION = body_rows("""
    path          | words          | role         | group
    /             | Board          | desk         | The day
    /calendar     | Calendar       | desk         | The day
    /waiting      | Waiting room   | desk         | The day
    /leftovers    | Leftovers      | desk         | The day
    /unscheduled  | Unscheduled    | desk         | The day
    /figures      | Figures        | technologist | The day
    /register     | Register       | desk         | Patients
    /patients     | Patients       | desk         | Patients
    /import       | Import         | desk         | Patients
    /catalogue    | Catalogue      | technologist | Patients
    /workitems    | Workitems      | desk         | After the exam
    /commitments  | Are they safe? | technologist | After the exam
    /watchers     | Watchers       | technologist | After the exam
    /passed-on    | Passed on      | technologist | After the exam
    /why          | Why not there? | desk         | Machines
    /devices      | Devices        | technologist | Machines
    /associations | Associations   | technologist | Machines
    /orphans      | Stuck          | technologist | Machines
    /statuses     | Statuses       | technologist | Machines
    /box          | The box        | admin        | The box
    /users        | Users          | admin        | The box
    /audit        | Audit log      | admin        | The box
    /settings     | Settings       | admin        | The box
    """)


def group_of(here: str) -> str:
    """The group of pages that a path belongs to: /patient/3 is of /patients, /step/1 of the day."""
    found = [
        (len(path), group)
        for path, _, _, group in NAVIGATION[1:]
        if f"{here}/".startswith((f"{path}/", f"{path.removesuffix('s')}/"))
    ]
    return max(found)[1] if found else NAVIGATION[0][3]


LIGHTS = {"good": "\N{BLACK CIRCLE}", "warning": "\N{BLACK UP-POINTING TRIANGLE}",
          "bad": "\N{BLACK SQUARE}"}  # fmt: skip
LIGHT_SAYS = {
    "good": Message("in order"),
    "warning": Message("look at it"),
    "bad": Message("does not work"),
}


def safe_path(path: str | None, default: str = "/") -> str:
    """A path of this site to go back to; never another site."""
    parts = urllib.parse.urlsplit(path or "")
    if not parts.path.startswith("/") or parts.path.startswith(("//", "/\\")):
        return default
    return parts.path + (f"?{parts.query}" if parts.query else "")


class Frame:
    """What all pages share: the layout, the menu, lists, sending and answering."""

    def __init__(self, web: Web) -> None:
        import bottle

        self.web, self.bottle = web, bottle
        self.catalogues = load_catalogues()
        self.light_until, self.worst = 0.0, "good"

    @property
    def request(self) -> Any:
        """The request being served."""
        return self.bottle.request

    def translator(self) -> Translator:
        """The language of the one who asks."""
        request = self.request
        language = choose_language(
            self.catalogues,
            request.get_cookie("language") or "",
            request.get_header("Accept-Language", ""),
            self.web.config.clinic.language,
        )
        return Translator(language, self.catalogues[language])

    def page(self, template: str, title: str, login: Login | None = None, **values: Any) -> str:
        """A whole page around a template."""
        t = self.translator()
        here = self.request.path
        role = login.role if login else ""
        seen = [row for row in NAVIGATION if permit(role, row[2])]
        group, first = group_of(here), {}
        for path, _, _, name in seen:
            first.setdefault(name, path)
        notices = [t(notice) for notice in self.web.box.notices()] if login else []
        told = values.pop("told", "") or (self.told() if login else "")
        shared = {"t": t, "here": here, "login": login, "told": told}
        return self.bottle.template(
            LAYOUT,
            **shared,
            base=self.bottle.template(template, **shared, **values),
            title=t(title),
            clinic=self.web.config.clinic.name,
            refresh=values.get("refresh", False),
            bare=values.get("bare", False),
            group=t(group),
            groups=[(path, t(name), name == group) for name, path in first.items()],
            navigation=[(path, t(words)) for path, words, _, name in seen if name == group],
            light=self._light(t) if permit(role, "admin") else None,
            notices=notices,
            languages=[(code, LANGUAGES.get(code, code)) for code in self.catalogues],
        )

    def _light(self, t: Translator) -> tuple[str, str, str]:
        """The worst of the box's lights, looked at each ten seconds: kind, sign, words."""
        now = time.monotonic()
        if now > self.light_until:
            self.light_until = now + 10
            order = list(LIGHTS)
            self.worst = max((light for _, light, _ in self.web.box.lights()), key=order.index)
        return self.worst, LIGHTS[self.worst], t(LIGHT_SAYS[self.worst])

    def form(self, name: str) -> str:
        """A field of the form that was sent, as text."""
        return self.request.forms.getunicode(name) or ""

    def redirect(self, path: str) -> str:
        """Answer with 303, so that the back button repeats nothing."""
        response = self.bottle.response
        response.status = 303
        response.set_header("Location", path)
        return ""

    def set_cookie(self, name: str, value: str, **options: Any) -> None:
        """A cookie that scripts cannot read, for this site alone."""
        secure = self.request.urlparts.scheme == "https" or (
            self.web.config.web.public_url.startswith("https")
        )
        self.bottle.response.set_cookie(
            name, value, path="/", httponly=True, samesite="lax", secure=secure, **options
        )

    def _stations(self) -> list[tuple[str, str]]:
        """AE title and name of the devices that exams are scheduled for."""
        return [(d.ae_title, d.name) for d in self.web.access().devices if d.role == "modality"]

    def listing(self, title: str, login: Login, parts: list[Part], **values: Any) -> str:
        """A list page."""
        settings = {"told": "", "intro": "", "search": None, "query": "", "links": [],
                    "filters": []} | values  # fmt: skip
        return self.page(LIST_PAGE, title, login, parts=parts, csrf=login.form_token, **settings)

    def told(self) -> str:
        """What the action before this page says of itself, once, from a cookie."""
        text = self.request.get_cookie("told")
        if not text:
            return ""
        self.bottle.response.delete_cookie("told", path="/")
        return urllib.parse.unquote(text)

    def tell(self, path: str, text: str) -> str:
        """Go to a page that says what has been done."""
        self.set_cookie("told", urllib.parse.quote(text[:1000]), max_age=60)
        return self.redirect(path)

    def _undo_button(self, ctx: Context, t: Translator, about: str) -> list[tuple[str, str]]:
        """The button that takes back the last change of a patient or an exam, if there is one."""
        note, problem = self.web.read(undoable, ctx, about)
        if problem:
            return []
        at = shown_instant(note.at, ctx.config.zone)[:-3]
        words = t("Take back: {what} ({who}, {at})", what=t(note.what), who=note.who, at=at)
        return [("undo", words)]

    def number(self, name: str) -> int:
        """A field that holds the number of a row. Refuses 0106."""
        if not self.form(name).isdigit():
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("Nothing was chosen"))
        return int(self.form(name))

    @staticmethod
    def _passing_words(t: Translator, answer: str, sent_at: str, given_up_at: str) -> str:
        """What came of passing something on."""
        if given_up_at:
            return t("given up, {answer}", answer=answer) if answer else t("given up")
        if not sent_at:
            return t("waits")
        taken = answer.startswith(TAKEN_ANSWERS)
        return (
            t("taken, {answer}", answer=answer) if taken else t("refused, {answer}", answer=answer)
        )

    def _csv(self, name: str, text: str) -> bytes:
        """A CSV file to be kept, with the mark by which spreadsheets know UTF-8."""
        response = self.bottle.response
        response.content_type = "text/csv; charset=utf-8"
        response.set_header("Content-Disposition", f'attachment; filename="{name}"')
        return b"\xef\xbb\xbf" + text.encode()

    def _device(self, name: str) -> Device:
        """A device by its name. Refuses 0112."""
        device = next((one for one in self.web.access().devices if one.name == name), None)
        if not device:
            raise Refusal(
                Status.NO_SUCH_SOP_INSTANCE, Message("There is no device {name}", name=name)
            )
        return device
