"""How plausible a reading of bytes is: as Chinese, as words that somebody writes."""

import itertools
import re
import unicodedata

# Usual characters of Chinese names, of examinations, and of the headings of lists.
COMMON_HANZI = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪"
    "范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤欧阳伟芳娜秀英敏静丽强磊军洋勇艳杰娟"
    "涛明超兰霞平刚桂红玉文华建国春梅海东晓小云志永飞宇浩然婷雪倩俊峰辉鹏凤琴珍素淑德福荣新生成立少光振天大宝子佳思雨欣怡梓涵"
    "轩泽豪亮斌鑫波凯胸部头颅腹盆腔平扫增强片位正侧超声检查心脏肝胆脾肾上下肢关节颈腰椎骨血管男女年月日姓名性别科门诊住院号编出"
    "时间设备申请医生备注中"
)


def _weight(character: str) -> float:
    """The logarithm of how much likelier a character is in Chinese than in other bytes."""
    if character in COMMON_HANZI:
        return 2
    if "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef":
        return 0
    if not "\u4e00" <= character <= "\u9fff":
        return -10
    try:
        character.encode("gb2312")
    except UnicodeEncodeError:
        return -2
    return -0.85


def is_convincing_chinese(text: str) -> bool:
    """Whether a text that was read as GB18030 is Chinese, and hardly another language.

    Of what is Korean, Japanese or Cyrillic, one hanzi in twelve is a usual one; of Chinese, three
    in five.
    """
    return sum(_weight(character) for character in text if not character.isascii()) >= 4


def reads_as_chinese(raw: bytes) -> bool:
    """Whether bytes are GB18030, and convincing Chinese."""
    try:
        return is_convincing_chinese(raw.decode("gb18030"))
    except UnicodeDecodeError:
        return False


# Signs that stand behind a letter in some language.
SIGNS_IN_TEXT = frozenset("«»·'’‘“”„…–—°ªº²³¹®™\xa0\xad")
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")


def _script(letter: str) -> str:
    """The script of a letter, "" for one of no script of its own."""
    name = unicodedata.name(letter, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    first = name.partition(" ")[0]
    if first in ("MICRO", "FEMININE", "MASCULINE", "MODIFIER", "COMBINING", ""):
        return ""
    return "EAST ASIAN" if first in EAST_ASIAN else first


def is_odd(text: str) -> bool:
    """Whether some word is one that nobody writes, as when bytes are read in a wrong set.

    Such are letters of two scripts, a sign behind a letter beyond ASCII, or a capital beyond ASCII
    behind a letter where small ones follow: `MÃ¼ller`, `M眉ller`, `MĂźller`.
    """
    for word in re.split(r"[\s^=\\.,;/()\-]+", text):
        if word.isascii():
            continue
        scripts = {_script(c) for c in word if c.isalpha()} - {""}
        if len(scripts) > 1 and (scripts != {"LATIN", "EAST ASIAN"} or _has_lone_hanzi(word)):
            return True
        for before, one in itertools.pairwise(word):
            beyond = not before.isascii() and before.isalpha()
            if beyond and not (one.isalnum() or one.isascii() or one in SIGNS_IN_TEXT):
                return not unicodedata.combining(one)
            if before.isalpha() and not one.isascii() and one.isupper() and not word.isupper():
                return True
    return False


def _has_lone_hanzi(word: str) -> bool:
    """Whether a hanzi stands alone among small letters, unlike in 胸部CT and x线."""
    lone = re.search(
        r"[a-z][\u3400-\u9fff](?![\u3400-\u9fff])|(?<![\u3400-\u9fff])[\u3400-\u9fff][a-z]", word
    )
    return bool(lone) and len(re.findall("[A-Za-z]", word)) > 1


def is_proper(text: str) -> bool:
    """Whether all beyond ASCII in a text are letters and signs of writing, in words of one script."""
    more = [c for c in text if not c.isascii() and c not in SIGNS_IN_TEXT]
    letters = all(c.isalpha() or unicodedata.combining(c) for c in more)
    return bool(more) and letters and not is_odd(text)


def has_no_plain_letters(text: str) -> bool:
    """Whether the words with letters beyond ASCII have no others, in four letters or more.

    In the alphabets of Europe that is no word: the bytes are of another set.
    """
    words = [word for word in re.split(r"[ ^=\\,;]+", text) if not word.isascii()]
    more = sum(not c.isascii() for word in words for c in word)
    return more > 3 and not any(c.isascii() and c.isalpha() for word in words for c in word)
