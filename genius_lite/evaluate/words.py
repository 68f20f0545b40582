"""The words by which answers are read, by language (`words.toml`), and patterns made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from unicodedata import normalize

import msgspec

from genius_lite.records import prepared

GLUED = r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana, Han and Hangul, for a class of characters: no space parts what they stand beside."""
# Whose letters have no case: `re` compiles such a class 30,000 characters at a time unless it is told so.
WORD = rf"(?-i:[^\W{GLUED}])"
"""A letter or digit of a script that parts its words."""
LETTER = rf"(?-i:[^\W\d_{GLUED}])"


class Language(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a language calls an answer, and what stands around it; the head of `words.toml` tells the fields."""

    answer: str
    equals: str = ""
    unlike: str = ""
    denied: str = ""
    ends: str = ""
    option: str = ""
    article: str = ""
    adverb: str = ""
    either: str = ""
    both: str = ""
    maybe: str = ""
    percent: str = ""
    minus: str = ""
    gap: int = 60
    bare: bool = False
    wrong: str = ""


class Counted(msgspec.Struct, frozen=True):
    """Number words of a language, from zero on and from twenty on."""

    language: str
    ones: str
    tens: str = ""


class _Words(msgspec.Struct, frozen=True):
    language: dict[str, Language]
    counted: list[Counted]
    hundreds: dict[int, str]
    times: dict[int, str]


_WORDS = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes(), type=prepared(_Words))
LANGUAGES, COUNTED, HUNDREDS, TIMES = _WORDS.language, _WORDS.counted, _WORDS.hundreds, _WORDS.times
LINKS = "and, und, et, y, e"
"""What may stand between the words of a number."""
UNITS = "km|cm|mm|mi|m|ft|in|kg|mg|g|lbs|lb|oz|ml|mL|l|L|hrs|hr|h|min|sec|ms|s|mph|kWh|USD|EUR|GBP|CNY|JPY|°C|°F|°"
"""Units that may stand right behind digits: 5km is 5, 5x is none."""
COUNTERS = "个個名人元块塊本只隻条條张張次天年月岁歲枚円日件台辆輛页頁分秒点點倍つ"
"""What follows a number in Han characters: before others they may be part of a word."""

_DASHES = "—–-"  # before digits, one is a minus


def phrases(listed: Iterable[str]) -> list[str]:
    """Return the phrases of lists with commas, accents in one character and in two, the longest first."""
    found = {normalize(form, phrase.strip()) for of in listed for phrase in of.split(",") for form in ("NFC", "NFD")}
    return sorted(found - {""}, key=lambda phrase: (-len(phrase), phrase))


def any_of(*listed: str) -> str:
    """Return a pattern of any of these phrases, none of them within a word; of none, one that matches nothing."""
    parted, glued = list[str](), list[str]()
    for phrase in phrases(listed):
        pattern = r"\s+".join(map(re.escape, phrase.split())) + r"(?=\s)" * (phrase in _DASHES)
        (parted if re.search(LETTER, phrase) else glued).append(pattern)
    sorts = [rf"(?<!{LETTER})(?:{'|'.join(parted)})(?!{LETTER})"] * bool(parted) + ["|".join(glued)] * bool(glued)
    return f"(?:{begins(*listed)}(?:{'|'.join(sorts)}))" if sorts else "(?!)"


def begins(*listed: str) -> str:
    """Return a pattern that looks ahead for a phrase's first letter, which is quicker than to try them all."""
    return f"(?=[{''.join(sorted({re.escape(phrase[0]) for phrase in phrases(listed)}))}])"


def every(*fields: str) -> str:
    """Return a pattern of what any language has in these fields."""
    return any_of(*(getattr(language, field) for language in LANGUAGES.values() for field in fields))
