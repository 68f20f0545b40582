"""The numbers in a text: in digits of any script, with separators, scale words or percent, or spelled in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal, NamedTuple

from genius_lite.evaluate.words import (
    COUNTED,
    COUNTERS,
    GLUED,
    HUNDREDS,
    LETTER,
    LINKS,
    TIMES,
    UNITS,
    WORD,
    any_of,
    every,
    phrases,
)

Decimal = Literal[".", ","]

_LONGEST = 64  # characters of a number: a model that loops on a digit has given none
_FRACTIONS = str.maketrans({"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⁄": "/"})
# Full-width forms but for the marks that end a sentence, which no space follows.
_PLAIN = {0xFF01 + n: 0x21 + n for n in range(94) if chr(0x21 + n) not in "!?"}
for _characters, _as in (
    ("“”„‟«»「」『』", '"'),
    ("‘’‚‹›", "'"),
    ("【〔〖", "["),
    ("】〕〗", "]"),
    ("−﹣‐‑", "-"),
    ("\u3000", " "),
    ("٪", "%"),
    ("٫", "."),
    ("٬", ","),
    ("￥", "¥"),
    ("￡", "£"),
    ("￦", "₩"),
):
    _PLAIN |= dict.fromkeys(map(ord, _characters), ord(_as))
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")

_THIN = r"\\,|[\u00a0\u2009\u202f]|'"  # thousands are set apart so in any language


def _decimals(decimal: Decimal) -> str:
    """Return the pattern of a number without sign; all its repetitions are taken whole, so that time is linear."""
    mark, other = (r"\.", ",") if decimal == "." else (",", r"\.")
    more = r"|\{,\}" if decimal == "." else "|[ ]"
    grouped = rf"[0-9]{{1,3}}(?:(?:{other}|{_THIN}{more})[0-9]{{3}}(?![0-9]))++"
    # Groups of the other kind, where there are several, or where decimals follow: nothing else is meant by them.
    foreign = rf"""[1-9][0-9]{{0,2}}(?:
        (?:{mark}[0-9]{{3}}(?![0-9])){{2,}}+(?:{other}[0-9]++)?
      | {mark}[0-9]{{3}}{other}[0-9]++(?![.,]?[0-9])
    )"""
    if decimal == ".":
        return rf"(?>{foreign}|(?:{grouped}|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
    # Points before other than three digits, or behind a zero or four digits, part no thousands.
    pointed = r"(?:0|[0-9]{4,}+)\.[0-9]++|[0-9]++\.(?![0-9]{3}(?![0-9]))[0-9]++(?!\.[0-9])"
    return rf"(?>{foreign}|{pointed}|(?:{grouped}|[0-9]++)(?:(?:,|\{{,\}})[0-9]++)?|(?<![0-9]),[0-9]++)"


_TEN_TO = r"10\s?(?:\^|\*\*)\s?\{?"
_SCALES = (word for times, words in TIMES.items() if times >= 1000 for word in phrases([words]))
_GLUED_SCALE = r"""(?:
    (?:[百万萬亿億兆]|千(?![克米瓦卡]))
  | [만억천백](?:(?![\uac00-\ud7af])|(?=[원명개년천백]))
)"""
_NO_MORE = "(?![0-9]|[.,][0-9])"
_SCALE = rf"""(?:
    [ ]?[万萬亿億兆]{_GLUED_SCALE}?+ (?:[0-9]{{1,4}}{_GLUED_SCALE}++)*+ (?:[0-9]{{1,4}}{_NO_MORE})?
  | {_GLUED_SCALE}++ (?:[ ]?[0-9]{{1,4}}{_GLUED_SCALE}++)*+ (?:[ ]?[0-9]{{1,4}}{_NO_MORE})?
  | (?:[ \u00a0]?{any_of(*(word for word in _SCALES if re.search(LETTER, word)))}){{1,2}}
)"""


def _number(decimal: Decimal) -> re.Pattern[str]:
    number = _decimals(decimal)
    # The digits of a name (x2), an exponent (m^2, x^{2}) or a version (1.2.3) are no numbers of their own; a minus
    # right after an operand is a subtraction.
    return re.compile(
        rf"""(?=[-–+0-9.,√\\$£¥฿\u20a0-\u20bf百]) (?<![A-Za-z0-9_^]) (?<![\^_]\{{) (?<![0-9]\.)
        (?P<hundredths>百分之\s?)?
        (?P<sign>(?<!{WORD})(?<![)\]}}%$])[-–+])?
        (?:\\?[$£¥฿\u20a0-\u20bf]\s?(?P<inner>[-–+])?)?
        (?P<body>
            (?:(?P<whole>[0-9]++)\s?)? \\[dt]?frac\s?
                (?:\{{\s?(?P<above>[-–])?(?P<top>{number})\s?\}}|(?P<top1>[0-9]))\s?
                (?:\{{\s?(?P<below>[-–])?(?P<bottom>{number})\s?\}}|(?P<bottom1>[0-9]))
          | (?<!/) (?:(?P<whole2>[0-9]++)[ ])? (?P<top2>{number})\s?/\s?(?P<bottom2>{number}) (?!\s?/)
          | (?:(?P<factor>{number})\s?(?:\\cdot\s?|[*·×]\s?)?)?
                (?:\\sqrt(?:\[(?P<index>[2-9])\])?\s?|√\s?) (?:[{{(]\s?(?P<root>{number})\s?[}})]|(?P<root1>{number}))
          | (?P<of_pi>{number})\s?(?:\\pi(?![A-Za-z])|π)
          | {_TEN_TO}(?P<ten>[+-]?[0-9]{{1,2}})(?![0-9])\}}?
          | (?P<plain>{number}) (?:
                [eE](?P<e>[+-]?[0-9]{{1,2}})(?![0-9A-Za-z])
              | \s?(?:[x×*]|\\times|\\cdot)\s?{_TEN_TO}(?P<e2>[+-]?[0-9]{{1,2}})(?![0-9])\}}?
              | (?P<scale>{_SCALE})
            )?
        )
        (?P<percent>\s?(?:\\?%|{every("percent")}))?""",
        re.VERBOSE | re.IGNORECASE,
    )


_NUMBER = {decimal: _number(decimal) for decimal in (".", ",")}
_DECIMALS = {decimal: re.compile(_decimals(decimal), re.VERBOSE) for decimal in (".", ",")}
_UNIT = re.compile(rf"0\s?(?:{UNITS})(?:\^?\{{?[23]\}}?|[²³])?(?:/(?:{UNITS}))?(?![A-Za-z])")
_NOT_ALONE = re.compile(r"[-+*/^=<>\\(]|0[A-Za-z]")


# "No 5" and "si 5" say more in other languages than those in which they deny.
_DENIED = re.compile(rf"(?<!{WORD})(?!(?:no|si)(?!{WORD})){every('unlike')}[\s*_($]*$", re.IGNORECASE)
_NEAR = 16  # characters in front of a number that may deny it
# "5 or 6", "5 km or perhaps 6 km"; "of" is Dutch for it, but "5 of 6" is English too.
_OR = re.compile(rf"(?:\s*[^\W\d]++)?[\s,*_]*(?!of\s){every('either')}[\s*_]*(?:{every('maybe')}[\s*_]*)?", re.I)


class Number(NamedTuple):
    """A number as it was written: the text of "$1,234.50" is "1234.50"; the value of "50%" is 50.

    `scale` is what words multiply it by; the value of "5 million" is 5,000,000. `joined`: an "or" stands between the
    number before and it.
    """

    value: Fraction
    percent: bool
    text: str
    scale: int = 1
    joined: bool = False

    @property
    def canonical(self) -> str:
        """One spelling for equal values, to ten digits where it is not whole."""
        whole = self.value.denominator == 1
        return str(self.value.numerator) if whole else f"{float(self.value):.10g}"

    def is_like(self, other: Number) -> bool:
        """Say whether two numbers may mean the same: 50% is 50 as well as 0.5."""
        own, theirs = ({n.value, n.value / (100 if n.percent else 1)} for n in (self, other))
        return not own.isdisjoint(theirs)


def plain(text: str) -> str:
    """Return a text with ordinary digits, quotes, minus signs and widths, each character in its place."""
    if text.isascii():
        return text
    return _OTHER_DIGIT.sub(lambda digit: str(int(digit[0])), text.translate(_PLAIN))


def numbers(text: str, decimal: Decimal = ".", *, denied: bool = True) -> Iterator[Number]:
    """Yield the numbers of a text that are in digits (docs/answers.md), in order; those that are too long are none.

    Args:
        decimal: the mark before decimals. Where "." is it, "," parts thousands and the other way round, and plain
            spaces do so where "," is it. What can only be meant in the other way (1.234,5) is read so.
        denied: also those of which the text says that they are not meant: "not 5".
    """
    end = 0
    for found in _NUMBER[decimal].finditer(plain(text).translate(_FRACTIONS)):
        joined, end = bool(end and _OR.fullmatch(found.string, end, found.start())), found.end()
        if not denied and _DENIED.search(found.string[max(found.start() - _NEAR, 0) : found.start()]):
            continue
        if len(found[0]) > _LONGEST or (value := _value(found, decimal)) is None:
            continue
        minus = any(sign in "-–" for sign in (found["sign"], found["inner"]) if sign)
        scale = int(value / (_decimal(found["plain"], decimal) or value)) if found["scale"] and value else 1
        body = _DECIMALS[decimal].sub(lambda part: _ungrouped(part[0], decimal), found["body"])
        percent = bool(found["percent"] or found["hundredths"])
        yield Number(-value if minus else value, percent, "-" * minus + body, scale, joined)


def unit_number(text: str) -> Number | None:
    """Return the number of a text that is one with a unit at most: "18 dollars", and neither "x + 1" nor "2x"."""
    text = plain(text).replace("**", "")
    found = list(numbers(text))
    if not found:
        said = spelled(text)
        return said[0] if said and len(said[1].split()) <= 1 else None
    around = _UNIT.sub("0", _NUMBER["."].sub("0", text))
    return found[0] if len(found) == 1 and not _NOT_ALONE.search(around) else None


def spelled(text: str) -> tuple[Number, str] | None:
    """Return the number that a text begins with in words ("seventy-two", 七十二), and what follows it."""
    text = plain(text)
    begin = _BEGIN.match(text)
    at, parts = begin.end() if begin else 0, list[tuple[int, bool]]()
    while found := _NUMBER_WORD.match(text, at):
        times, link = found["times"] is not None, found["link"] is not None
        value = (_TIMES if times else _COUNTED)[found["word"].lower()]
        if (link or (parts and not times)) and not (parts and _continues(parts[-1][0], value, link)):
            break
        parts.append((value, times))
        at = found.end()
    rest = text[at:]
    if not parts or _IN_A_WORD.match(rest) or (text[at - 1] in _HAN and not _AFTER_HAN.match(rest)):
        return None
    value = _composed((Fraction(value), times) for value, times in parts)
    if begin and begin["minus"]:
        value = -value
    return Number(value, False, str(value)), rest.strip(" \t\r\n.,;:!?。！？*_`\"'")


def _continues(before: int, value: int, link: bool) -> bool:
    """Say whether a number word goes on with another: twenty, seven; fünf und vierzig; soixante, dix; hundred, two."""
    if link and before < 10:
        return 20 <= value < 100
    return value < before and before % 10 == 0


def _composed(parts: Iterable[tuple[Fraction, bool]]) -> Fraction:
    """Return what values and multipliers come to: a multiplier takes all since the last one that is as large."""
    sums = list[Fraction]()
    for value, times in parts:
        taken = list[Fraction]()
        while times and sums and sums[-1] < value:
            taken.append(sums.pop())
        sums.append(sum(taken) * value if taken else value)
    return sum(sums, Fraction(0))


def _value(found: re.Match[str], decimal: Decimal) -> Fraction | None:
    if found["of_pi"]:
        return _decimal(found["of_pi"], decimal) * Fraction(math.pi)
    if inside := found["root"] or found["root1"]:
        root = round(float(_decimal(inside, decimal)) ** (1 / int(found["index"] or 2)), 12)
        return _decimal(found["factor"] or "1", decimal) * Fraction(root)
    if found["ten"]:
        return Fraction(10) ** int(found["ten"])
    if found["scale"]:
        parts = _SCALE_PART.finditer(found["scale"])
        scaled = ((Fraction(part["digits"] or _TIMES[part[0].lower()]), not part["digits"]) for part in parts)
        return _composed([(_decimal(found["plain"], decimal), False), *scaled])
    if found["plain"]:
        return _decimal(found["plain"], decimal) * Fraction(10) ** int(found["e"] or found["e2"] or 0)
    bottom = _decimal(found["bottom"] or found["bottom1"] or found["bottom2"], decimal)
    if not bottom:
        return None
    whole = found["whole"] or found["whole2"] or "0"
    part = _decimal(found["top"] or found["top1"] or found["top2"], decimal) / bottom
    return int(whole) + (-part if bool(found["above"]) != bool(found["below"]) else part)


def _decimal(text: str, decimal: Decimal) -> Fraction:
    return Fraction(_ungrouped(text, decimal))


def _ungrouped(text: str, decimal: Decimal) -> str:
    """Return a number of the pattern `_decimals` without separators, and with a point before its decimals."""
    kept = re.sub(r"[^0-9.,]", "", text.replace("\\,", ""))
    at = max(kept.rfind("."), kept.rfind(","))
    if at < 0:
        return kept
    mark = kept[at]
    other_too = ("," if mark == "." else ".") in kept
    grouped = mark != decimal and re.fullmatch(r"[1-9][0-9]{0,2}[.,][0-9]{3}", kept)
    is_decimal = kept.count(mark) == 1 and (other_too or mark == decimal or not grouped)
    whole, part = (kept[:at], kept[at:]) if is_decimal else (kept, "")
    return re.sub("[.,]", "", whole) + part.replace(",", ".")


def _counted() -> dict[str, int]:
    found = {word.lower(): value for value, listed in HUNDREDS.items() for word in phrases([listed])}
    for of in COUNTED:
        values = [*enumerate(of.ones.split(",")), *((10 * n, words) for n, words in enumerate(of.tens.split(","), 2))]
        found |= {word.lower(): value for value, words in values for word in phrases(words.split("/"))}
    return found


_COUNTED = _counted()
_TIMES = {word.lower(): value for value, words in TIMES.items() for word in phrases([words])}
_HAN = {word for word in (*_COUNTED, *_TIMES) if re.fullmatch(f"[{GLUED}]", word)}
_AFTER_HAN = re.compile(rf"[{COUNTERS}]|[^{GLUED}]|$")
_IN_A_WORD = re.compile(LETTER)


def _one_of(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


_NUMBER_WORD = re.compile(
    rf"[\s-]*(?P<link>(?:{_one_of(phrases([LINKS]))})[\s-]*)?"
    rf"(?P<word>{_one_of(_COUNTED)}|(?P<times>{_one_of(_TIMES)}))",
    re.IGNORECASE,
)
_SCALE_PART = re.compile(rf"(?P<digits>[0-9]+)|{_one_of(_TIMES)}", re.IGNORECASE)
_BEGIN = re.compile(
    rf"[\s*_`\"'$(\[:=]*+(?P<minus>{every('minus')}\s*)?(?:an?\s+(?=hundred|thousand|million|billion))?", re.IGNORECASE
)
