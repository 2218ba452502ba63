"""Whether two patients are one: name, Patient ID, birth date and sex, whatever their spelling."""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable

from minris.dataset.elements import ElementIndex
from minris.dataset.names import chinese_name, latin_name, plain
from minris.standard.dictionary import tag_of

IDENTITY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_TRUNCATED = 14  # letters of a name that is taken for the beginning of a longer one


def identity_of(index: ElementIndex) -> ElementIndex:
    """Those of a data set's attributes that say who the patient is."""
    others = (tag_of("OtherPatientIDsSequence"),)
    return index.only([*map(tag_of, IDENTITY), *others]).with_values()


def contradictions(told: ElementIndex, known: Iterable[ElementIndex]) -> list[str]:
    """The keywords of IDENTITY in which a patient agrees with nothing known of another one.

    What is empty, cut off or spelt otherwise contradicts nothing.
    """
    known, found = list(known), []
    for keyword, (values_of, agree) in _COMPARED.items():
        theirs, ours = (
            values_of(told, keyword),
            [v for one in known for v in values_of(one, keyword)],
        )
        if theirs and ours and not any(agree(a, b) for a in theirs for b in ours):
            found.append(keyword)
    return found


def _names(index: ElementIndex, keyword: str) -> list[str]:
    name = index.get(keyword)
    return [name] if _scripts(name) else []


def _ids(index: ElementIndex, keyword: str) -> list[str]:
    items = (index, *index.items(tag_of("OtherPatientIDsSequence")))
    return list(filter(None, ("".join(plain(one.get(keyword)).split()) for one in items)))


def _dates(index: ElementIndex, keyword: str) -> list[str]:
    """A date as digits, without a month or a day of zeros; nothing for zeros alone."""
    digits = re.sub("(00)+$", "", re.sub(r"\D", "", index.get(keyword)))
    return [digits] if digits else []


def _sexes(index: ElementIndex, keyword: str) -> list[str]:
    """M or F: other values are given for somebody whose sex is not known, too."""
    return [sex for sex in [index.get(keyword).upper()] if sex in ("M", "F")]


def _begins(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


# Latin letters that are not decomposed, and how the machine of another country writes letters.
_LETTERS = {"ø": "o", "œ": "o", "æ": "a", "đ": "d", "ð": "d", "ł": "l", "ı": "i", "þ": "th",
            "'": "", "\u2019": "", "`": "", "\N{REPLACEMENT CHARACTER}": "?"}  # fmt: skip
_DIGRAPHS = re.compile("([aou])e|(a)a|([ln])(?:yu|v)")


def _words(text: str) -> list[str]:
    """The words of a name, plain; ü, ue and u are one letter, `?` is a letter that was lost."""
    folded = "".join(_LETTERS.get(c, c) for c in plain(text))
    folded = _DIGRAPHS.sub(lambda found: found[1] or found[2] or f"{found[3]}u", folded)
    return re.findall(r"(?:[^\W_]|\?)+", folded)


def _scripts(name: str) -> dict[str, str]:
    """The family, given and middle name of each group, by script; prefix and suffix are left out."""
    found: dict[str, str] = {}
    for group in unicodedata.normalize("NFKC", name).split("="):
        text = "^".join(group.split("^")[:3])
        letters = [c for c in text if c.isalpha()] or [c for c in text if c.isalnum()]
        if letters:
            scripts = {unicodedata.name(c, "").partition(" ")[0] for c in letters}
            found.setdefault("CJK" if "CJK" in scripts else min(scripts), text)
    return found


def same_name(one: str, other: str) -> bool:
    """Whether two PN values may be one name: by a script that both have, Chinese first.

    Chinese characters are compared with Latin letters by pinyin; names in other scripts that
    differ are not compared.
    """
    ours, theirs = _scripts(one), _scripts(other)
    if "CJK" in ours and "CJK" in theirs:
        a, b = ("".join(_words(names["CJK"])) for names in (ours, theirs))
        return _alike(a, b) or a.strip("?") in b or b.strip("?") in a
    if both := ours.keys() & theirs.keys():
        return any(_same_words(_words(ours[each]), _words(theirs[each])) for each in both)
    for names, others in ((ours, theirs), (theirs, ours)):
        if "CJK" in names and "LATIN" in others and len(names) == 1:
            pinyin = latin_name(chinese_name(names["CJK"]))
            return not pinyin or _same_words(_words(pinyin), _words(others["LATIN"]))
    return True


def _alike(one: str, other: str) -> bool:
    """Whether two words are one, where `?` may be one or two letters."""
    if "?" not in one + other:
        return one == other
    patterns = (re.escape(word).replace(r"\?", "..?") for word in (one, other))
    return any(map(re.fullmatch, patterns, (other, one)))


def _same_words(one: list[str], other: list[str]) -> bool:
    """Whether the words are the same: in any order, run together, some missing or as initials."""
    joined, whole = "".join(one), "".join(other)
    if _alike(joined, whole):
        return True
    if len(min(joined, whole, key=len)) >= _TRUNCATED and _begins(joined, whole):
        return True
    if sorted(joined) == sorted(whole) and len(one) <= 5:
        return any("".join(order) == whole for order in itertools.permutations(one))
    few, many = sorted((one, other), key=len)
    left, full = list(many), 0
    for word in sorted(few, key=len, reverse=True):
        found = next((each for each in left if _alike(word, each)), None)
        full += found is not None
        found = found or next((each for each in left if 1 in (len(word), len(each))
                               and _begins(word, each)), None)  # fmt: skip
        if not found:
            return False
        left.remove(found)
    return full > 0


_Reader = Callable[[ElementIndex, str], list[str]]
_COMPARED: dict[str, tuple[_Reader, Callable[[str, str], bool]]] = {
    "PatientName": (_names, same_name),
    "PatientID": (_ids, str.__eq__),
    "PatientBirthDate": (_dates, _begins),
    "PatientSex": (_sexes, str.__eq__),
}
