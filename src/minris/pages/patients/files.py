"""Import of worklist files."""

import json
import re
from typing import Any

from minris.access.context import Actor
from minris.interchange.csv_tables import names_of_columns, sample_list
from minris.interchange.decoding import ReadAs
from minris.interchange.files import encodings_to_choose, left_out, preview_lines
from minris.interchange.imports import (
    NO_IMPORT,
    UNDER_WAY,
    How,
    enter_file,
    how_of,
    imported_before,
    imported_content,
    imported_words,
    want_import,
)
from minris.pages.frame import PageRequest, Row
from minris.pages.template import template
from minris.standard.encodings import ENCODINGS
from minris.standard.status import Message, Refusal, Status

IMPORT_PAGE = template("patients/import.html")
PATIENCE_S = 5.0  # seconds that a page waits for the end; then it shows how far it is
DOING = {
    "checking": Message("Checking {file}"),
    "importing": Message("Importing {file}: {done} of {count} rows"),
    "taking back": Message("Taking back what was imported of {file}"),
}


def import_page(p: PageRequest) -> str:
    """GET /import: the form to choose a file; with `number`, what has become of one."""
    number = p.query("number")
    return show_file(p, read_id(number)) if number else show_import(p)


def show_import(p: PageRequest, **values: Any) -> str:
    """Return the page with what is known of a file."""
    settings: dict[str, Any] = {"problems": [], "lines": [], "count": 0, "number": 0, "file": "",
                                "encoding": "", "encodings": (), "before": "", "doing": "",
                                "leave_out": False, "unknown": False}  # fmt: skip
    known = ", ".join(names_of_columns())
    return p.show(IMPORT_PAGE, "Import", known=known, **settings | values)


def sample_csv(p: PageRequest) -> bytes:
    """GET /import/sample.csv: a list of one exam, to be filled in."""
    return p.csv("sample.csv", sample_list())


def post_import(p: PageRequest) -> str:
    """POST /import: look at a file; with `confirmed`, import all rows or none."""
    encoding = p.form("encoding") if p.form("encoding") in ENCODINGS else ""
    how = How(ReadAs("" if p.form("again") else encoding, bool(p.form("leave_out"))))
    imports = p.web.box.imports
    if upload := p.request.files.get("upload"):
        content, name = upload.file.read(), upload.raw_filename or "file"
        number = p.write(enter_file, name, content, how, False)
    else:
        number = read_id(p.form("number"))
        name = file_of(p, number, 0).name
        if p.form("confirmed"):
            number = p.write(want_import, number)
        else:
            number = p.write(enter_file, name, p.read(imported_content, number), how, False)
    imports.start(number)
    return show_file(p, number)


def read_id(text: str) -> int:
    """Return the number of a file that was sent. Refuses 0112."""
    if not re.fullmatch("[0-9]{1,15}", text):
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, NO_IMPORT)
    return int(text)


def file_of(p: PageRequest, number: int, seconds: float) -> Any:
    """Return a file of this user, after its import or some seconds. Refuses 0112."""
    one = p.web.box.imports.wait(number, seconds)
    if Actor(*json.loads(one.who)).name != p.ctx.actor.name:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, NO_IMPORT)
    return one


def show_file(p: PageRequest, number: int) -> str:
    """Show what has become of a file: it is checked, right, wrong, or imported."""
    t, one = p.t, file_of(p, number, PATIENCE_S)
    if one.state in UNDER_WAY:
        p.response.set_header("Refresh", f"1; url=/import?number={number}")
        doing = t(DOING[one.state].key, file=one.name, done=one.done, count=one.total)
        return show_import(p, doing=doing)
    if one.state == "done":
        return p.tell("/import", t(imported_words(one)))
    found: dict[str, Any] = {"file": one.name}
    if one.state != "checked":
        found["problems"] = t(p.web.box.imports.refusal_of(one).detail).split("\n")
        p.response.status = 422
    return show_import(p, **found) if one.wanted else show_import(p, **found | looked_at(p, one))


def looked_at(p: PageRequest, one: Any) -> dict[str, Any]:
    """Return what a person sees of a file that was checked: its lines, or how it may be read."""
    content, read_as = p.read(imported_content, one.id), how_of(one.how).read_as
    found: dict[str, Any] = {"encoding": read_as.encoding, "leave_out": read_as.leave_out}
    try:
        usual = p.ctx.config.clinic.import_encoding
        lines, found["count"] = preview_lines(one.name, content, read_as, usual)
        found["lines"] = [Row(line) for line in lines]
        found["unknown"] = not read_as.leave_out and bool(
            left_out(one.name, content, read_as, usual)
        )
        p.response.status = 200
    except Refusal:
        choices = encodings_to_choose(one.name, content)
        found["encodings"] = tuple(
            (each.encoding, f"{each.sample} ({encoding_words(p, each.encoding)})")
            for each in choices
        )
    if one.state == "checked" or any(
        found.get(key) for key in ("encoding", "encodings", "unknown")
    ):
        found["number"] = one.id
    if before := p.read(imported_before, one.id):
        found["before"] = p.at(before)
    return found


def encoding_words(p: PageRequest, name: str) -> str:
    """Return the name of an encoding with its use."""
    return f"{name}, {p.t(ENCODINGS[name].use)}"
