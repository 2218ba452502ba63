"""The procedure catalogue."""

import urllib.parse
from collections.abc import Iterable, Mapping

from minris.interchange.csv_tables import export_procedures, import_procedures
from minris.orders.catalogue import (
    PROCEDURE_COLUMNS,
    all_procedures,
    retire_procedure,
    save_procedure,
)
from minris.pages.forms import FORM_PAGE, UPLOAD_PAGE, Field
from minris.pages.frame import Frame
from minris.standard.status import Message, Problem, Refusal
from minris.web.request import enter


class CataloguePages(Frame):
    """The procedure catalogue."""

    def catalogue(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /catalogue: the procedures, and a form for one."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        listed = self.web.read(all_procedures)
        code = self.request.query.getunicode("code") or ""
        form = form or next(
            ({k: str(getattr(p, k)) for k in PROCEDURE_COLUMNS} for p in listed if p.code == code),
            PROCEDURE_COLUMNS,
        )
        labels = (t("Code"), t("Coding scheme"), t("Exam"), t("Modality"), t("Device"), t("Minutes"),
                  t("Protocol code"), t("Protocol"))  # fmt: skip
        fields = [
            Field(key, label, "text", form.get(key, ""), key in ("code", "meaning"), "", ())
            for key, label in zip(PROCEDURE_COLUMNS, labels, strict=True)
        ]
        after = [
            (
                f"/catalogue?code={urllib.parse.quote(p.code)}",
                f"{p.code} {p.meaning}{' · ' + t('retired') if p.retired else ''}",
            )
            for p in listed
        ]
        return self.page(
            FORM_PAGE,
            "Catalogue",
            login,
            action="/catalogue",
            submit=t("Save"),
            csrf=login.form_token,
            hidden=[],
            groups=[(t("Procedure"), fields)],
            problems=[t(problem.words) for problem in problems],
            after=[
                ("/catalogue.csv", "CSV"),
                ("/catalogue/import", t("Import a CSV file")),
                *after,
            ],
            extra=[("retire", t("Retire")), ("delete", t("Delete"))] if code else [],
        )

    def catalogue_csv(self) -> bytes:
        """GET /catalogue.csv: the catalogue for a spreadsheet."""
        enter(self.web, self.request, "technologist")
        return self._csv("catalogue.csv", self.web.read(export_procedures))

    def import_catalogue_page(self, problems: Iterable[str] = ()) -> str:
        """GET /catalogue/import."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        words = t("Columns: {columns}. Procedures are known by their codes.",
                  columns=", ".join((*PROCEDURE_COLUMNS, "retired")))  # fmt: skip
        return self.page(
            UPLOAD_PAGE, "Import a CSV file", login, action="/catalogue/import", intro=words,
            csrf=login.form_token, problems=list(problems),
        )  # fmt: skip

    def import_catalogue(self) -> str:
        """POST /catalogue/import: all rows or none."""
        _, ctx = enter(self.web, self.request, "technologist")
        t, upload = self.translator(), self.request.files.get("upload")
        if not upload:
            return self.import_catalogue_page([t("Nothing was chosen")])
        try:
            count = self.web.write(import_procedures, ctx, upload.file.read())
        except Refusal as refusal:
            self.bottle.response.status = 422
            words = [problem.words for problem in refusal.problems] or [refusal.detail]
            return self.import_catalogue_page(map(t, words))
        return self.tell("/catalogue", t("{count} imported", count=count))

    def save_catalogue(self) -> str:
        """POST /catalogue: save, retire or delete a procedure."""
        _, ctx = enter(self.web, self.request, "technologist")
        form = {key: self.form(key) for key in PROCEDURE_COLUMNS}
        try:
            if (event := self.form("event")) in ("retire", "delete"):
                self.web.write(retire_procedure, ctx, form["code"], event == "delete")
            else:
                self.web.write(save_procedure, ctx, form)
        except Refusal as refusal:
            self.bottle.response.status = 422
            problems = refusal.problems or [Problem(0, Message(refusal.detail))]
            return self.catalogue(form, problems)
        return self.tell("/catalogue", self.translator()("Saved."))
