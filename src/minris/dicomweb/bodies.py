"""Media types and the data sets in bodies (PS3.18 8.7)."""

import json
import re
import secrets
from typing import Any, NamedTuple

from minris.dataset.dicom_json import from_json, to_json
from minris.dataset.dicom_xml import from_xml, to_xml
from minris.dataset.elements import ElementIndex
from minris.dicomweb.parameters import parameter, split_list
from minris.interchange.files import items_from_json
from minris.standard.status import HttpRefusal, Refusal, Status
from minris.web.request import body_of

DICOM_JSON, DICOM_XML = "application/dicom+json", "application/dicom+xml"
MEDIA_TYPES = {  # accepted type: form of the answer, multipart
    DICOM_JSON: (DICOM_JSON, False),
    "application/json": (DICOM_JSON, False),
    DICOM_XML: (DICOM_XML, False),
    f"multipart/related; {DICOM_JSON}": (DICOM_JSON, True),
    f"multipart/related; {DICOM_XML}": (DICOM_XML, True),
}
DEFAULT_MEDIA_TYPE = MEDIA_TYPES[DICOM_JSON]


class WebAnswer(NamedTuple):
    """The answer of a transaction: HTTP code, data sets in stored form, headers."""

    http: int
    data: tuple[bytes, ...] | None = None
    headers: tuple[tuple[str, str], ...] = ()


def media_type(text: str) -> str:
    """Return a media type as a key of MEDIA_TYPES: lower case, only the type parameter kept."""
    kind, *parameters = (part.strip() for part in text.split(";"))
    found = dict(p.lower().replace('"', "").partition("=")[::2] for p in parameters)
    if kind.lower() == "multipart/related":
        return f"multipart/related; {found.get('type', DICOM_JSON).strip()}"
    return kind.lower()


def accepted_form(header: str, parameter: str) -> tuple[str, bool]:
    """Return the form of the answer. Refuses 406 (PS3.18 8.7.4, 8.7.7).

    Local: a missing Accept header accepts any type
    """
    if parameter:
        parameter = parameter.replace("dicom ", "dicom+")  # from an unescaped +
        wanted = [MEDIA_TYPES.get(media_type(one)) for one in split_list(parameter)]
        return next(filter(None, wanted), DEFAULT_MEDIA_TYPE)
    ranked = []
    for place, one in enumerate(split_list(header or "*/*")):
        quality = re.search(r";\s*q=([0-9.]+)", one)
        try:
            weight = float(quality[1]) if quality else 1.0
        except ValueError:
            weight = 0.0
        any_type = media_type(one) in ("*/*", "application/*")
        form = DEFAULT_MEDIA_TYPE if any_type else MEDIA_TYPES.get(media_type(one))
        if form and weight > 0:
            ranked.append((-weight, place, form))
    if not ranked:
        raise HttpRefusal(406, f"Cannot answer in any of {header[:100]}; use {DICOM_JSON}")
    return min(ranked)[2]


def rendered(data: tuple[bytes, ...], form: str, in_parts: bool) -> tuple[str, bytes]:
    """Return content type and body of data sets."""
    values = [to_json(ElementIndex(one)) for one in data]
    if form == DICOM_XML:
        bodies = [to_xml(value) for value in values]
        in_parts = in_parts or len(bodies) != 1
    else:
        bodies = [json.dumps(values, ensure_ascii=False).encode()]
    if not in_parts:
        return f"{form}{'' if form == DICOM_XML else '; charset=UTF-8'}", bodies[0]
    boundary = secrets.token_hex(16)
    start = f"--{boundary}\r\nContent-Type: {form}\r\n\r\n".encode()
    parts = [start + body + b"\r\n" for body in bodies]
    head = f'multipart/related; type="{form}"; boundary={boundary}'
    return head, b"".join(parts) + f"--{boundary}--\r\n".encode()


def payload(request: Any) -> list[bytes]:
    """Return the data sets of a request's body in stored form. Refuses 400, 415."""
    header = request.content_type or ""
    kind, content = media_type(header), body_of(request)
    if kind not in MEDIA_TYPES:
        words = f"{kind[:80] or 'A body without Content-Type'} is not supported; use {DICOM_JSON}"
        raise Refusal(Status.MISTYPED_ARGUMENT, words)
    form, in_parts = MEDIA_TYPES[kind]
    charset = re.search(r';\s*charset="?([^";]+)', header, re.IGNORECASE)
    if charset and charset[1].strip().lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Refusal(Status.MISTYPED_ARGUMENT, f"Use UTF-8 instead of charset {charset[1][:40]}")
    if not in_parts:
        return data_sets_of(content, form)
    import email.parser

    head = f"Content-Type: {header}\r\n\r\n".encode("latin-1", "replace")
    message = email.parser.BytesParser().parsebytes(head + content)
    if not message.is_multipart():
        raise HttpRefusal(400, "The body has no parts")
    bodies = (part.get_payload(decode=True) or b"" for part in message.get_payload())
    return [data for body in bodies for data in data_sets_of(body, form)]


def data_sets_of(content: bytes, form: str) -> list[bytes]:
    """Return the data sets of one part. Refuses 0106."""
    if form == DICOM_XML:
        return [from_json(from_xml(content))]
    return items_from_json(content)


def one_data_set(request: Any) -> bytes:
    """Return the only data set of a request's body. Refuses 400 for none or several."""
    data = payload(request)
    if len(data) != 1:
        raise HttpRefusal(400, f"Exactly one data set is required, not {len(data)}")
    return data[0]


def check_charset(request: Any) -> None:
    """Refuse (400) a charset parameter without UTF-8, the only one supported (PS3.18 8.3.3.2).

    Local: Accept-Charset is ignored, as it is deprecated (RFC 9110 12.5.2)
    """
    given = split_list(parameter(request, "charset"))
    wanted = [one.partition(";")[0].strip('" ') for one in given]
    if wanted and not {"utf-8", "iso_ir 192"} & {one.lower() for one in wanted}:
        raise HttpRefusal(400, f"charset {', '.join(wanted)[:80]} is not supported; use UTF-8")
