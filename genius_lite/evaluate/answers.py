"""What a response says, read from free text: the numbers in it, and the answers that it marks as such."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

_LONGEST = 64  # characters of a number: a model that loops on a digit has given none
_FRACTIONS = str.maketrans({"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⁄": "/"})
_MINUS = "-−–"

_SEPARATOR = r"(?:,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_DECIMAL = rf"(?>(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
_TEN_TO = r"10\s?(?:\^|\*\*)\s?\{?"
# The digits of a name (x2), an exponent (m^2, x^{2}) or a version (1.2.3) are no numbers of their own; a minus
# right after an operand is a subtraction.
_NUMBER = re.compile(
    rf"""(?<![A-Za-z0-9_^]) (?<![\^_]\{{) (?<![0-9]\.)
    (?P<sign>(?<![\w)\]}}%$])[-−–+])?
    (?:\\?[$€£¥₹]\s?(?P<inner>[-−–+])?)?
    (?P<body>
        (?:(?P<whole>[0-9]++)\s?)? \\[dt]?frac\s?
            (?:\{{\s?(?P<top>{_DECIMAL})\s?\}}|(?P<top1>[0-9]))\s?
            (?:\{{\s?(?P<bottom>{_DECIMAL})\s?\}}|(?P<bottom1>[0-9]))
      | (?<!/) (?:(?P<whole2>[0-9]++)[ ])? (?P<top2>{_DECIMAL})\s?/\s?(?P<bottom2>{_DECIMAL}) (?!\s?/)
      | {_TEN_TO}(?P<ten>[+-]?[0-9]{{1,2}})(?![0-9])\}}?
      | (?P<plain>{_DECIMAL}) (?:
            [eE](?P<e>[+-]?[0-9]{{1,2}})(?![0-9A-Za-z])
          | \s?(?:[x×*]|\\times|\\cdot)\s?{_TEN_TO}(?P<e2>[+-]?[0-9]{{1,2}})(?![0-9])\}}?
        )?
    )
    (?P<percent>\s?(?:\\?%|percent\b|per[ ]cent\b))?""",
    re.VERBOSE,
)
_BRACES = re.compile(r"\\[{}]|(?P<box>\\(?:boxed|fbox)\s*\{)|[{}]")
_HASHES = re.compile(r"(?<!#)####(?!#)\s*([^\n]*)")
_NO_HEADING = re.compile(r"[*_`(]*(?:(?![0-9]+[.):]\s+\S)[-−–+\\$€£¥₹.]*[0-9]|[A-Z]\W*$)")
_SAID = re.compile(
    r"\banswers?\b[^\n.:=]{0,60}?(?:\b(?:is|would be|should be|equals?)\b|[:=])(?!\s*not\b)[\s:=*_`\"]*", re.IGNORECASE
)
# No emphasis: a power (2**3), a product (2 * 3), a bullet, LaTeX's f^* and f^{*}.
_EMPHASIS = re.compile(r"(?<![\w)\]{}^*\\])(\*{1,3})(?=[^\s*])([^\n*]*[^\s*])\1(?![\w(*])")
_IN_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


class Number(NamedTuple):
    """A number as it was written: the text of "$1,234.50" is "1234.50"; the value of "50%" is 50."""

    value: Fraction
    percent: bool
    text: str

    @property
    def canonical(self) -> str:
        """One spelling for equal values, to ten digits where it is not whole."""
        whole = self.value.denominator == 1
        return str(self.value.numerator) if whole else f"{float(self.value):.10g}"


def numbers(text: str) -> Iterator[Number]:
    """The numbers of a text, in order.

    With thousands separators, currency or percent; fractions (1/2, 2 1/2, LaTeX's); powers of ten (1e5, 3 x 10^5,
    10^5). A division by zero is no number, nor are digits without end.
    """
    for found in _NUMBER.finditer(text.translate(_FRACTIONS)):
        if len(found[0]) > _LONGEST or (value := _value(found)) is None:
            continue
        minus = any(sign in _MINUS for sign in (found["sign"], found["inner"]) if sign)
        body = re.sub(rf"(?<=[0-9]){_SEPARATOR}(?=[0-9]{{3}})", "", found["body"])
        yield Number(-value if minus else value, bool(found["percent"]), "-" * minus + body)


def final_number(text: str) -> Number | None:
    """The number after the last mark that holds one, else the last number of the text.

    Of a marked sentence what follows its last `=` comes first, and there the first number: "The answer is 5 apples for
    3 children." is 5, "The answer is 2 + 3 = 5" too.
    """
    for segment in marked(text):
        if (number := stated_number(segment)) is not None:
            return number
    found = list(numbers(text))
    return found[-1] if found else None


def stated_number(segment: str) -> Number | None:
    """The number that the first sentence of a marked answer states."""
    sentence = first_sentence(segment)
    parts = (re.split(r"=|≈|\\approx", sentence)[-1], sentence)
    return next((number for part in parts for number in numbers(part)), None)


def unit_number(text: str) -> Number | None:
    """The number of a text that is one number with a unit at most: "18 dollars", and neither "x + 1" nor "2x"."""
    text = text.replace("**", "")
    found = list(numbers(text))
    alone = len(found) == 1 and not re.search(r"[-+*/^=<>\\(]|0[A-Za-z]", _NUMBER.sub("0", text))
    return found[0] if alone else None


def marked(text: str) -> Iterator[str]:
    r"""The answers that a text marks, those that count most first.

    Strong marks are `\boxed{..}`, the last `<answer>..</answer>`, and `#### 72` (GSM8K's; `#### Step 2` is a heading).
    After them come the words "answer .. is" and "answer:", up to the end of the line or the next such
    words. Of each sort the last in the text is the first here.
    """
    yield from strongly_marked(text)
    limit = len(text)
    for said in reversed(list(_SAID.finditer(text))):
        end = text.find("\n", said.end(), limit)
        yield text[said.end() : end if end >= 0 else limit]
        limit = said.start()


def strongly_marked(text: str) -> list[str]:
    """The first part of `marked`."""
    found = list(_boxed(text))
    found += [(m.start(), m[1]) for m in _HASHES.finditer(text) if _NO_HEADING.match(m[1])]
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        found.append((start, text[start + len("<answer>") : end]))
    return [segment for _, segment in sorted(found, reverse=True)]


def first_sentence(text: str) -> str:
    """Up to the first full stop, exclamation or question mark before white space."""
    return re.split(r"(?<=[.!?])\s", text.lstrip(), maxsplit=1)[0]


def bare(text: str) -> str:
    """Without Markdown, LaTeX's text commands, quotes and punctuation around it."""
    return _IN_TEXT.sub(r"\1", text).strip(" \t\r\n*_`\"'$.,;:!")


def without_markdown(text: str) -> str:
    """Without the marks of emphasis and code: "**73**" and "`73`" are 73."""
    return _EMPHASIS.sub(r"\2", text.replace("`", ""))


def _value(found: re.Match[str]) -> Fraction | None:
    if found["ten"]:
        return Fraction(10) ** int(found["ten"])
    if found["plain"]:
        return _decimal(found["plain"]) * Fraction(10) ** int(found["e"] or found["e2"] or 0)
    bottom = _decimal(found["bottom"] or found["bottom1"] or found["bottom2"])
    if not bottom:
        return None
    whole = found["whole"] or found["whole2"] or "0"
    return int(whole) + _decimal(found["top"] or found["top1"] or found["top2"]) / bottom


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[^0-9.]", "", text))


def _boxed(text: str) -> Iterator[tuple[int, str]]:
    """Where each box starts, and what it holds; of nested ones the innermost."""
    open_braces, latest = [], -1
    for brace in _BRACES.finditer(text):
        if brace["box"] or brace[0] == "{":
            open_braces.append((brace.end(), bool(brace["box"])))
        elif brace[0] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > latest:
                yield start, text[start : brace.start()]
                latest = start
