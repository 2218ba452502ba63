"""The data dictionary: tag, name and VR of each attribute, and the values a VR allows (PS3.6)."""

import datetime
import functools
import re

from pydicom import datadict

from minris.standard.status import Message, description_of
from minris.standard.tables import body_rows

# Attributes of Supplement 233 that pydicom 3.0's dictionary does not have yet.
# Source: PS3.6; (VR, VM, name, retired, keyword). Remove once pydicom has them.
SUPPLEMENT_233 = {
    int(tag, 16): (vr, "1", name, "", keyword)
    for tag, vr, keyword, name in body_rows("""
    tag      | VR | keyword                                         | name
    00100011 | SQ | PersonNamesToUseSequence                        | Person Names to Use Sequence
    00100012 | LT | NameToUse                                       | Name to Use
    00100013 | UT | NameToUseComment                                | Name to Use Comment
    00100014 | SQ | ThirdPersonPronounsSequence                     | Third Person Pronouns Sequence
    00100015 | SQ | PronounCodeSequence                             | Pronoun Code Sequence
    00100016 | UT | PronounComment                                  | Pronoun Comment
    00100041 | SQ | GenderIdentitySequence                          | Gender Identity Sequence
    00100042 | UT | SexParametersForClinicalUseCategoryComment      | Sex Parameters for Clinical Use Category Comment
    00100043 | SQ | SexParametersForClinicalUseCategorySequence     | Sex Parameters for Clinical Use Category Sequence
    00100044 | SQ | GenderIdentityCodeSequence                      | Gender Identity Code Sequence
    00100045 | UT | GenderIdentityComment                           | Gender Identity Comment
    00100046 | SQ | SexParametersForClinicalUseCategoryCodeSequence | Sex Parameters for Clinical Use Category Code Sequence
    00100047 | UR | SexParametersForClinicalUseCategoryReference    | Sex Parameters for Clinical Use Category Reference
    0040A034 | DT | EffectiveStartDateTime                          | Effective Start DateTime
    0040A035 | DT | EffectiveStopDateTime                           | Effective Stop DateTime
    """)
}
datadict.add_dict_entries(
    {tag: entry for tag, entry in SUPPLEMENT_233.items() if not datadict.dictionary_has_tag(tag)}
)


def tag_of(keyword: str) -> int:
    """The tag of a keyword. Raises KeyError for an unknown keyword."""
    tag = datadict.tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return int(tag)


@functools.lru_cache(4096)
def vrs_of(tag: int) -> str:
    """The VRs that the dictionary allows for a tag, such as `US or SS`; UN for an unknown tag."""
    try:
        return datadict.dictionary_VR(tag)
    except KeyError:
        if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"  # PS3.5 7.8.1: a private creator
        return "UN"


def vr_of(tag: int) -> str:
    """The VR of a tag in the dictionary, UN if unknown; the first one of `US or SS`."""
    return vrs_of(tag)[:2]


def attribute_name(tag: int) -> str:
    """The name and tag of an attribute: `Patient's Birth Date (0010,0030)`."""
    return f"{description_of(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
KNOWN_VRS = LONG_VRS | frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
TEXT_VRS = frozenset(b"SH LO UC ST LT UT PN".split())  # PS3.5 6.1.2.3: (0008,0005) applies
MAY_BE_TEXT = TEXT_VRS | {b"SQ", b"UN"}
ONE_VALUE_VRS = frozenset(b"ST LT UT UR".split())
LED_BY_SPACES = ONE_VALUE_VRS | {b"UC"}  # PS3.5 Table 6.2-1: leading spaces are significant
SPACE_PADDED_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UR UT".split())


def kind_of_vr(vr: bytes) -> str:
    """The kind of a VR's values: `SQ`, `text`, `number` or `bytes`."""
    if vr == b"SQ":
        return "SQ"
    if vr in SPACE_PADDED_VRS or vr == b"UI":
        return "text"
    return "number" if vr in b"US SS UL SL FL FD UV SV".split() else "bytes"


def allows(tag: int, vr: bytes) -> bool:
    """Whether the dictionary allows a VR for an attribute; an unknown attribute may have any VR."""
    known = vrs_of(tag)
    return known == "UN" or vr.decode() in known


BINARY_NUMBERS = {
    b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d", b"UV": "Q", b"SV": "q",
}  # fmt: skip
BINARY_VRS = frozenset(BINARY_NUMBERS) | frozenset(b"AT OB OD OF OL OV OW SQ UN".split())
# Maximum lengths and permitted forms. Source: PS3.5 Table 6.2-1.
VALUE_LENGTHS = {
    "AE": 16, "AS": 4, "CS": 16, "DA": 8, "DS": 16, "DT": 26, "IS": 12, "LO": 64, "LT": 10240,
    "PN": 64, "SH": 16, "ST": 1024, "TM": 16, "UI": 64,
}  # fmt: skip
VALUE_PATTERNS = {
    "AE": (re.compile(r"[ -\[\]-~]*", re.A), "has characters that an AE title may not have"),
    "AS": (re.compile(r"\d{3}[DWMY]", re.A), "is not an age such as 042Y"),
    "CS": (re.compile(r"[A-Z0-9_ ]*", re.A), "has characters other than capitals, digits, space and _"),
    "DA": (re.compile(r"\d{8}", re.A), "is not a date"),
    "DS": (re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.A), "is not a number"),
    "DT": (re.compile(r"\d{4}(\d\d){0,5}(\.\d{1,6})?([+-]\d{4})?", re.A), "is not a date and time"),
    "IS": (re.compile(r"[+-]?\d+", re.A), "is not a whole number"),
    "TM": (re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?(?<=\d{6})(\.\d{1,6})?|[0-5]\d)?", re.A), "is not a time"),
    "UI": (re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*", re.A), "is not a UID"),
}  # fmt: skip


def is_date(text: str) -> bool:
    """Whether a text is eight digits that name a day of the calendar."""
    if not re.fullmatch("[0-9]{8}", text):
        return False
    try:
        datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return True


def is_value(vr: str, pattern: re.Pattern[str] | None, text: str) -> bool:
    """Whether a text has the form of its VR, and a day, time or number in it is in range."""
    if pattern and not pattern.fullmatch(text):
        return False
    if vr == "DA":
        return is_date(text)
    if vr == "IS":
        return len(text) <= 12 and -(2**31) <= int(text) < 2**31
    if vr == "DT":
        digits = re.split(r"\D", text, maxsplit=1)[0]
        day = digits[:8] + "0101"[len(digits[:8]) - 4 :] if len(digits) < 8 else digits[:8]
        hours, rest = digits[8:10], (digits[10:12], digits[12:14])
        return is_date(day) and (hours or "0") < "24" and all((one or "0") < "60" for one in rest)
    return True


def value_problem(vr: str, text: str) -> Message | None:
    """What is wrong with one value of a VR, None if it is valid (PS3.5 Table 6.2-1)."""
    pattern, words = VALUE_PATTERNS.get(vr, (None, ""))
    if not is_value(vr, pattern, text):
        return Message("{value} " + words, value=text)
    groups = text.split("=") if vr == "PN" else [text]
    if vr == "PN" and (len(groups) > 3 or any(group.count("^") > 4 for group in groups)):
        return Message("{value} has more parts than a name", value=text[:80])
    value, longest = text[:80], VALUE_LENGTHS.get(vr)
    if longest and max(map(len, groups)) > longest:
        return Message("{value} is longer than {longest} characters", value=value, longest=longest)
    layout = "" if vr in ("LT", "ST", "UT") else r"\t\n\f\r"
    if re.search(rf"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f{layout}]", text):
        return Message("has a control character")
    return None


def is_ae_title(text: str) -> bool:
    """Whether a text may be an AE title (PS3.5 6.2)."""
    return bool(text) and not value_problem("AE", text) and text.isprintable()
