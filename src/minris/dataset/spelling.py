"""The same letters in other forms: compositions, widths, spaces, apostrophes, hyphens."""

import re
import unicodedata

from minris.standard.dictionary import tag_of, vr_of


def sign_table(plain: str, others: str) -> dict[int, str]:
    """Each of some signs with the one that is meant, for str.translate."""
    return dict.fromkeys(map(ord, others), plain)


def letter_table(first: int, letters: str) -> dict[int, str]:
    """Letters by the code of their form, from `first` on, for str.translate."""
    return dict(enumerate(letters, first))


SPACES = sign_table(
    " ",
    "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t",
)
# Signs without a shape: marks of direction and width, soft hyphens. Joiners (200C, 200D) have one.
SHAPELESS = sign_table(
    "", "\xad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)
APOSTROPHES = sign_table("'", "’‘‛ʼʹʻ′＇´`")
HYPHENS = sign_table("-", "‐‑‒–—―−－﹣﹘")
MIDDLE_DOTS = sign_table("·", "・•‧∙⋅･")
OTHER_SIGNS = sign_table('"', "“”„‟″«»") | {0x2026: "..."}
FULL_WIDTH = (
    letter_table(0xFF10, "0123456789")
    | letter_table(0xFF21, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    | letter_table(0xFF41, "abcdefghijklmnopqrstuvwxyz")
)
WIDE_SIGNS = sign_table("'", "＇") | sign_table("-", "－")
_TIDY = SPACES | SHAPELESS
_TIDY_NAME = _TIDY | FULL_WIDTH | WIDE_SIGNS
_PLAIN_SIGNS = _TIDY | APOSTROPHES | HYPHENS | MIDDLE_DOTS
_CARRIED_SIGNS = _TIDY | APOSTROPHES | HYPHENS | OTHER_SIGNS | FULL_WIDTH


def tidy(text: str) -> str:
    """A text as it is meant: composed letters, plain spaces, without signs that have no shape."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text).translate(_TIDY)


def tidy_name(text: str) -> str:
    """A name as it is meant: as `tidy`, its letters and digits in their usual width."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text).translate(_TIDY_NAME)


def tidy_code(text: str) -> str:
    """An identifier, number or date as it is meant: all signs in their usual width."""
    if text.isascii():
        return text
    text = text.translate(SHAPELESS | HYPHENS)
    return unicodedata.normalize("NFKC", text).translate(SPACES)


CODE_VRS = frozenset("AE AS CS DA DS DT IS SH TM UI".split())


def typed_value(keyword: str, text: str) -> str:
    """The value of an attribute as a person means it who has typed or pasted it."""
    if text.isascii():
        return text
    vr = vr_of(tag_of(keyword))
    if vr == "PN":
        return tidy_name(text)
    return tidy_code(text) if vr in CODE_VRS or keyword.endswith("ID") else tidy(text)


def plain_signs(text: str) -> str:
    """A text with the apostrophes, hyphens, dots and spaces of a keyboard, for comparison."""
    return text.translate(_PLAIN_SIGNS)


def carried_signs(text: str) -> str:
    """A text in the letters and signs that more character sets carry."""
    return unicodedata.normalize("NFC", text).translate(_CARRIED_SIGNS)


IDEOGRAPHS = re.compile("[\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
SYLLABLES = re.compile(
    "[\u1100-\u11ff\u3041-\u30fa\u3130-\u318f\u31f0-\u31ff\uac00-\ud7ff\uff66-\uff9d]"
)


def script_group(name: str) -> int:
    """The component group of a name: 1 if it has ideographs, 2 for hangul or kana, else 0.

    The first group holds any alphabet. Source: PS3.5 6.2.1.2, H, I
    """
    if IDEOGRAPHS.search(name):
        return 1
    return 2 if SYLLABLES.search(name) else 0
