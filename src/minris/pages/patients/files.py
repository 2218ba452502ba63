"""Import of worklist files."""

import base64
from typing import Any

from minris.interchange.decoding import ReadAs
from minris.interchange.files import encodings_to_choose, import_file, preview_file
from minris.pages.forms import decoded
from minris.pages.frame import PageRequest, Row
from minris.pages.template import template
from minris.standard.encodings import ENCODINGS
from minris.standard.status import Refusal
from minris.web.api import numbers_in

IMPORT_PAGE = template("patients/import.html")


def import_page(p: PageRequest, **values: Any) -> str:
    """GET /import: the form to choose a file, with a preview of one already sent."""
    settings: dict[str, Any] = {"problems": [], "lines": [], "content": "", "file": "",
                                "encoding": "", "encodings": (), "leave_out": False, "unknown": False}  # fmt: skip
    return p.show(IMPORT_PAGE, "Import", **settings | values)


def sent_file(p: PageRequest) -> tuple[str, bytes]:
    """Return name and content of the file that was sent, or shown before; "" without one."""
    if p.form("content"):
        return p.form("file"), decoded(p.form("content"))
    upload = p.request.files.get("upload")
    return (upload.raw_filename or "file", upload.file.read()) if upload else ("", b"")


def post_import(p: PageRequest) -> str:
    """POST /import: preview a file; with `confirmed`, import all rows or none."""
    t, (name, content) = p.t, sent_file(p)
    if not name:
        return import_page(p, problems=[t("Nothing was chosen")])
    encoding = p.form("encoding") if p.form("encoding") in ENCODINGS else ""
    leave_out = bool(p.form("leave_out"))
    read_as = ReadAs("" if p.form("again") else encoding, leave_out)
    try:
        if p.form("confirmed"):
            p.web.box.clear_numbers(numbers_in(content))
            done = p.write(import_file, name, content, read_as)
            return p.tell("/import", t(done))
        lines, problems, unknown = p.write(preview_file, name, content, read_as)
    except Refusal as refusal:
        p.response.status = 422
        found = encodings_to_choose(name, content)
        choices = tuple((one.encoding, f"{one.sample} ({encoding_words(p, one.encoding)})")
                        for one in found)  # fmt: skip
        kept = base64.b64encode(content).decode() if found else ""
        return import_page(p, problems=t(refusal.detail).split("\n"), file=name, content=kept,
                           encodings=choices, encoding=encoding, leave_out=leave_out)  # fmt: skip
    unknown = unknown and not leave_out
    kept = "" if problems and not (encoding or unknown) else base64.b64encode(content).decode()
    return import_page(
        p, lines=[Row(line) for line in lines], content=kept, file=name, encoding=encoding,
        problems=t(problems).split("\n") if problems else [], leave_out=leave_out,
        unknown=unknown,
    )  # fmt: skip


def encoding_words(p: PageRequest, name: str) -> str:
    """Return the name of an encoding with its use."""
    return f"{name}, {p.t(ENCODINGS[name].use)}"
