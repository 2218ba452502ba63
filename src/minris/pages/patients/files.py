"""Import of files."""

import base64
from typing import Any

from minris.interchange.files import import_file, preview_file
from minris.pages.forms import decoded
from minris.pages.frame import Frame
from minris.pages.template import template
from minris.standard.status import Refusal
from minris.web.request import enter

IMPORT_PAGE = template("patients/import.html")


class ImportPages(Frame):
    """Import of files."""

    def import_page(self, **values: Any) -> str:
        """GET /import."""
        login, _ = enter(self.web, self.request, "desk")
        settings: dict[str, Any] = {"problems": [], "lines": [], "content": "",
                                    "file": ""}  # fmt: skip
        return self.page(IMPORT_PAGE, "Import", login, csrf=login.form_token, **settings | values)

    def import_file(self) -> str:
        """POST /import: show what a file holds; with `confirmed`, import all of it or nothing."""
        _, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        if self.form("confirmed"):
            name, content = self.form("file"), decoded(self.form("content"))
        else:
            upload = self.request.files.get("upload")
            if not upload:
                return self.import_page(problems=[t("Nothing was chosen")])
            name, content = upload.raw_filename or "file", upload.file.read()
        try:
            if self.form("confirmed"):
                done = self.web.write(import_file, ctx, name, content)
                return self.tell("/import", t("{count} imported", count=done))
            lines, problems = self.web.write(preview_file, ctx, name, content)
        except Refusal as refusal:
            self.bottle.response.status = 422
            return self.import_page(problems=t(refusal.detail).split("\n"), file=name)
        kept = "" if problems else base64.b64encode(content).decode()
        listed = t(problems).split("\n") if problems else []
        return self.import_page(lines=lines, problems=listed, content=kept, file=name)
