"""Static files: style sheet, script, icons and language catalogues."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minris import FOLDER


def static_folder() -> Path | None:
    """Return the folder static/: in the wheel or beside a lone file, else in the clone."""
    places = (FOLDER / "static", FOLDER.parent.parent / "static")
    return next((place for place in places if place.is_dir()), None)


def static_files(*names: str) -> dict[str, str]:
    """Return the texts of files of static/ by name.

    `src/amalgamate.py` replaces this call with the texts.
    """
    folder = static_folder()
    if not folder:
        raise FileNotFoundError(f"{FOLDER}: static/ is missing")
    return {name: (folder / name).read_text("utf-8") for name in names}


STATIC = static_files(
    "minris.css", "calendar.css", "paper.css", "rtl.css", "waiting.css", "welcome.css", "minris.js", "board.js", "forms.js", "icons.svg",
    "i18n/en.json", "i18n/zh-CN.json",
)  # fmt: skip
STATIC_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def load_catalogues() -> dict[str, Mapping[str, Any]]:
    """Return the catalogues by language: the built-in ones, then others in static/i18n.

    The English one has only the words of codes, and plurals; they stand in for what others lack.
    """
    texts = {name: text for name, text in STATIC.items() if name.startswith("i18n/")}
    folder = static_folder()
    for path in sorted((folder / "i18n").glob("*.json")) if folder else ():
        texts.setdefault(f"i18n/{path.name}", path.read_text("utf-8"))
    english = json.loads(texts["i18n/en.json"])
    return {
        name.removeprefix("i18n/").removesuffix(".json"): english | json.loads(text)
        for name, text in texts.items()
    }


def static_answer(name: str, request: Any) -> Any:
    """GET /static/…: style sheet, script or icons; 304 if the browser has it."""
    import bottle

    kind = STATIC_TYPES.get(name.rpartition(".")[2])
    if name not in STATIC or not kind:
        return bottle.HTTPError(404)
    etag = f'"{hashlib.sha256(STATIC[name].encode()).hexdigest()[:16]}"'
    headers = {"Content-Type": kind, "ETag": etag}
    if request.get_header("If-None-Match") == etag:
        return bottle.HTTPResponse(status=304, **headers)
    return bottle.HTTPResponse(STATIC[name], **headers)
