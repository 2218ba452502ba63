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
from minris.pages.asking import ask_if_sure, is_sure
from minris.pages.day.board import stations_of
from minris.pages.forms import UPLOAD_PAGE, Field, show_form
from minris.pages.frame import PageRequest
from minris.seen import ChangedMeanwhile
from minris.standard.encodings import ENCODINGS
from minris.standard.status import Problem, Refusal


def catalogue_page(
    p: PageRequest, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
) -> str:
    """GET /catalogue: the list of procedures, and a form for one."""
    t, code = p.t, p.query("code")
    mark, listed = p.mark(("procedure", code)), p.read(all_procedures)
    chosen = [one for one in listed if one.code == code]
    shown = [{k: str(getattr(one, k)) for k in PROCEDURE_COLUMNS} for one in chosen]
    form = form or (shown or [PROCEDURE_COLUMNS])[0]
    labels = (t("Code"), t("Coding scheme"), t("Exam"), t("Modality"), t("Device"), t("Minutes"),
              t("Protocol code"), t("Protocol"), t("Preparation"))  # fmt: skip
    kinds = {"ae_title": "select", "preparation": "area"}
    titles = {"": "", form["ae_title"]: form["ae_title"], **dict(stations_of(p))}
    fields = [
        Field(key, label, kinds.get(key, "text"), form.get(key, ""), key in ("code", "meaning"), "",
              tuple(titles.items()) if key == "ae_title" else ())
        for key, label in zip(PROCEDURE_COLUMNS, labels, strict=True)
    ]  # fmt: skip
    after = [("/catalogue.csv", "CSV"), ("/catalogue/import", t("Import a CSV file"))]
    for one in listed:
        words = f"{one.code} {one.meaning}{' · ' + t('retired') if one.retired else ''}"
        after.append((f"/catalogue?code={urllib.parse.quote(one.code)}", words))
    return show_form(
        p, "Catalogue", [(t("Procedure"), fields)], problems, submit=t("Save"), after=after,
        hidden=[mark],
        extra=[("retire", t("Retire")), ("delete", t("Delete"))] if code else [],
    )  # fmt: skip


def post_catalogue(p: PageRequest) -> str:
    """POST /catalogue: save, retire or delete a procedure."""
    form = {key: p.form(key) for key in PROCEDURE_COLUMNS}
    event, about = p.form("event"), ("procedure", form["code"].strip())
    if event == "delete" and not is_sure(p):
        words = p.t("Delete {name} from the catalogue? This cannot be undone.",
                    name=f"{form['code']} {form['meaning']}")  # fmt: skip
        return ask_if_sure(p, "Delete", words, p.t("Delete"))
    try:
        if event in ("retire", "delete"):
            p.write_seen(about, event, retire_procedure, form["code"], event == "delete")
        else:
            p.write_seen(about, event, save_procedure, form)
    except ChangedMeanwhile:
        raise
    except Refusal as refusal:
        return catalogue_page(p, form, p.again(refusal))
    return p.tell("/catalogue", p.t("Saved."))


def catalogue_csv(p: PageRequest) -> bytes:
    """GET /catalogue.csv: the catalogue as CSV."""
    return p.csv("catalogue.csv", p.read(export_procedures))


def catalogue_import_page(p: PageRequest, problems: Iterable[str] = ()) -> str:
    """GET /catalogue/import: the form to choose a CSV file."""
    words = p.t("Columns: {columns}. Procedures are known by their codes.",
                columns=", ".join((*PROCEDURE_COLUMNS, "retired")))  # fmt: skip
    return p.show(
        UPLOAD_PAGE, "Import a CSV file", action="/catalogue/import", intro=words,
        problems=list(problems),
        encodings=[(name, f"{name} ({p.t(one.use)})") for name, one in ENCODINGS.items()],
    )  # fmt: skip


def post_catalogue_import(p: PageRequest) -> str:
    """POST /catalogue/import: import all rows or none."""
    upload = p.request.files.get("upload")
    if not upload:
        return catalogue_import_page(p, [p.t("Nothing was chosen")])
    try:
        encoding = p.form("encoding") if p.form("encoding") in ENCODINGS else ""
        count = p.write(import_procedures, upload.file.read(), encoding)
    except Refusal as refusal:
        return catalogue_import_page(p, [p.t(problem.words) for problem in p.again(refusal)])
    return p.tell("/catalogue", p.t("Imported: {count}", count=count))
