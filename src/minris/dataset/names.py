"""Person names: search keys, pinyin, initials, display; resident identity numbers."""

import re
import unicodedata

from minris.dataset.spelling import plain_signs, script_group, tidy_name
from minris.standard.dictionary import is_date


def plain(text: str) -> str:
    """The text in lower case, without accents and tones, its signs those of a keyboard."""
    if text.isascii():
        return text.replace("`", "'").casefold()
    decomposed = unicodedata.normalize("NFKD", plain_signs(text))
    bare = "".join(c for c in decomposed if not "\u0300" <= c <= "\u036f")
    return unicodedata.normalize("NFC", bare).casefold()


def name_key(name: str) -> str:
    """The search key of a name: each group as plain letters and digits, without spaces.

    Pinyin writes lü as lü, lv, lyu or lu; all become lu here, and likewise nu.
    """
    groups = []
    for group in name.split("="):
        letters = "".join(c for c in plain(group) if c.isalnum())
        groups.append(re.sub("([ln])(yu|v)", r"\1u", letters))
    return "=".join(groups)


# Family names of two characters, to split a Chinese name that is written without a space.
COMPOUND_SURNAMES = frozenset(
    "欧阳 太史 端木 上官 司马 东方 独孤 南宫 万俟 闻人 夏侯 诸葛 尉迟 公羊 赫连 澹台 皇甫 宗政 濮阳 公冶 太叔 申屠"
    " 公孙 慕容 仲孙 钟离 长孙 宇文 司徒 鲜于 司空 令狐 百里 呼延 东郭 南门 西门".split()
)
# Readings of family names that differ from the usual reading of the character.
SURNAMES = dict(
    pair.split("=")
    for pair in (
        "单=shan 仇=qiu 曾=zeng 覃=qin 解=xie 朴=piao 查=zha 区=ou 盖=ge 华=hua 任=ren 宁=ning 尉迟=yuchi"
        " 万俟=moqi 澹台=tantai 长孙=zhangsun 单于=chanyu 尉=wei 黑=he 繁=po 召=shao 员=yun 乐=yue 种=chong"
        " 折=she 逄=pang 晟=cheng 冼=xian 宓=fu 郗=xi 缪=miao 瞿=qu 翟=zhai 臧=zang 卜=bu 车=che 贾=jia"
        " 俞=yu 沈=shen 薄=bo 秘=bi 应=ying 纪=ji 那=na 洗=xian 阙=que 隗=wei 谌=chen 吕=lyu 鲜于=xianyu"
    ).split()
)


def latin_name(components: str) -> str:
    """The pinyin of a Chinese name, Wang^XiaoDong for 王^小东; empty without pypinyin.

    ü becomes yu, as in passports.
    """
    try:
        from pypinyin import lazy_pinyin
    except ImportError:
        return ""
    family, _, given = components.partition("^")
    syllables = lazy_pinyin(given.replace("^", ""), errors="ignore")
    read = SURNAMES.get(family) or "".join(lazy_pinyin(family, errors="ignore"))
    parts = [read.capitalize(), "".join(one.capitalize() for one in syllables)]
    return "^".join(parts).rstrip("^").replace("v", "yu")


_KANA = re.compile("[\u3041-\u30fa\uff66-\uff9d]")


def chinese_name(text: str) -> str:
    """The components `王^小东` of `王小东` or `王 小东`."""
    parts = plain_signs(text).replace("^", " ").replace("·", " ").split()
    if len(parts) == 1 and len(parts[0]) > 1 and script_group(parts[0]) and not _KANA.search(text):
        name = parts[0]
        cut = 2 if name[:2] in COMPOUND_SURNAMES and len(name) > 2 else 1
        parts = [name[:cut], name[cut:]]
    return "^".join(parts)


def initials(name: str) -> str:
    """The initials of a name, one per word or capital: wxd for Wang^XiaoDong.

    A name without Latin letters gets the initials of its pinyin.
    """
    latin, _, rest = name.partition("=")
    if not re.search("[^\\W\\d_\u3400-\u9fff]", latin):
        latin = latin_name(chinese_name(rest.partition("=")[0] or latin)) or latin
    words = re.findall("[^\\W\\d_]+", latin)
    parts = [part for word in words for part in re.findall("[A-Z][^A-Z]*|[^A-Z]+|[A-Z]+", word)]
    shouted = latin.isupper()
    return "".join(plain(part[0]) for part in (words if shouted else parts))


# GB 11643: weights of the first 17 digits, and the check character by the sum modulo 11.
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_RESIDENT_CHECKS = "10X98765432"


def resident_number(text: str) -> tuple[str, str] | None:
    """Birth date (DA) and sex from a Chinese resident identity number; None if it is not valid."""
    number = text.strip().upper()
    if not re.fullmatch("[0-9]{17}[0-9X]", number):
        return None
    total = sum(int(c) * weight for c, weight in zip(number[:17], _RESIDENT_WEIGHTS, strict=True))
    if number[17] != _RESIDENT_CHECKS[total % 11] or not is_date(number[6:14]):
        return None
    return number[6:14], "M" if int(number[16]) % 2 else "F"


def shown_groups(name: str) -> list[str]:
    """The three component groups of a name, without carets."""
    return [group.replace("^", " ").strip() for group in f"{name}==".split("=")[:3]]


def shown_name(name: str) -> str:
    """A PN value for display: 王小东 Wang XiaoDong."""
    latin, ideographic, phonetic = shown_groups(name)
    ideographic = ideographic or ("" if latin else phonetic)
    return " ".join(filter(None, (ideographic.replace(" ", ""), " ".join(latin.split()))))


def masked_name(name: str) -> str:
    """A PN value for a public screen: 王*东, W*** X."""
    groups = [group.split("^") for group in f"{name}==".split("=")]
    east = groups[1] if any(groups[1]) or any(groups[0]) else groups[2]
    surname, given = (part.replace(" ", "") for part in (east[0], "".join(east[1:])))
    if len(surname + given) > 1:
        if not given:  # written as one
            parts = 2 if surname[:2] in COMPOUND_SURNAMES else 1
            surname, given = surname[:parts], surname[parts:]
        return surname + "*" * max(1, len(given) - 1) + given[1:][-1:]
    family, given = (groups[0] + [""])[:2]
    masked = f"{family[:1]}***" if family else ""
    return f"{masked} {given[:1]}".strip()


def name_groups(text: str) -> list[str]:
    """The component groups of a name, plain, without trailing empty components."""
    return [plain(group).strip(" ").rstrip("^ ") for group in text.split("=")]


def name_chunk(name: str) -> str:
    """The longest part of a name key that every matching name has in its `name_key`."""
    # name_key turns yu and v after l or n into u: a chunk may begin or end within them
    edges = re.compile(r"^(yu|y|v)|(?<=[ln])y$")
    chunks = [edges.sub("", name_key(chunk)) for chunk in re.split(r"[*?=^ vyu]", plain(name))]
    return max(chunks, key=len)


def person_name(family: str, given: str, chinese: str) -> str:
    """A PN value from the fields of a form: `Wang^XiaoDong=王^小东`.

    Each part goes to the group of its letters, wherever it was typed; see `script_group`.
    """
    family, given, chinese = (tidy_name(part).strip() for part in (family, given, chinese))
    latin = f"{family}^{given}".strip("^") if family else given
    groups = ["", "", ""]
    groups[script_group(latin)] = latin
    east = chinese_name(chinese)
    group = script_group(east) or (1 if latin else 0)
    groups[group] = groups[group] or east
    groups[0] = groups[0] or latin_name(groups[1])
    return "=".join(groups).rstrip("=")


def typed_name(text: str) -> str:
    """A PN value from one line; hanzi without `=` become the ideographic group."""
    text = tidy_name(text)
    return person_name("", "", text) if script_group(text) and "=" not in text else text


def listed_name(text: str) -> str:
    """A PN value from a cell of a list, where a name in Latin letters has its given name first."""
    text = typed_name(text).strip()
    if {"^", "="} & set(text):
        return text
    family, comma, given = text.partition(",")
    if comma and family.strip() and "," not in given:
        return f"{family.strip()}^{given.strip()}".rstrip("^")
    return "^".join(reversed(text.rsplit(" ", 1)))
