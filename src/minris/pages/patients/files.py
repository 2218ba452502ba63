"""Import of worklist files."""

import base64
from typing import Any

from minris.interchange.files import import_file, preview_file
from minris.pages.forms import decoded
from minris.pages.frame import PageRequest, Row
from minris.pages.template import template
from minris.standard.status import Refusal

IMPORT_PAGE = template("patients/import.html")


def import_page(p: PageRequest, **values: Any) -> str:
    """GET /import: the form to choose a file, with a preview of one already sent."""
    settings: dict[str, Any] = {"problems": [], "lines": [], "content": "", "file": ""}
    return p.show(IMPORT_PAGE, "Import", **settings | values)


def post_import(p: PageRequest) -> str:
    """POST /import: preview a file; with `confirmed`, import all rows or none."""
    t = p.t
    if p.form("confirmed"):
        name, content = p.form("file"), decoded(p.form("content"))
    else:
        upload = p.request.files.get("upload")
        if not upload:
            return import_page(p, problems=[t("Nothing was chosen")])
        name, content = upload.raw_filename or "file", upload.file.read()
    try:
        if p.form("confirmed"):
            done = p.write(import_file, name, content)
            return p.tell("/import", t("{count} imported", count=done))
        lines, problems = p.write(preview_file, name, content)
    except Refusal as refusal:
        p.response.status = 422
        return import_page(p, problems=t(refusal.detail).split("\n"), file=name)
    kept = "" if problems else base64.b64encode(content).decode()
    listed = t(problems).split("\n") if problems else []
    return import_page(
        p, lines=[Row(line) for line in lines], problems=listed, content=kept, file=name
    )
