"""What a response says, read from free text: the answers that it marks as such, and the number that it ends in."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import islice
from unicodedata import normalize

from genius_lite.evaluate.numbers import Decimal, Number, numbers, plain, spelled
from genius_lite.evaluate.words import GLUED, LANGUAGES, LETTER, WORD, Language, any_of, begins, every, phrases

WORDS = 5  # a longer answer is prose
_BEHIND = rf"\s+(?=[(\[*\"'$-]{{0,4}}(?-i:[A-Z](?!{WORD})|[0-9]))"  # a letter or a number


def _said(of: Language) -> str:
    """Return the pattern of a noun and what joins it to the answer."""
    unlike, equals = any_of(of.unlike), any_of(of.equals)
    within = rf"(?:(?!{unlike}\s*{equals})[^\n.:=。])" if of.unlike else r"[^\n.:=。]"
    joined = rf"{within}{{0,{of.gap}}}?[*_\s]{{0,3}}{equals}(?!\s*{unlike})" if of.equals else "(?!)"
    behind = rf"{_BEHIND}|" if of.bare else ""
    denied = rf"(?![^\n。]{{0,20}}?(?:{'|'.join(phrases([of.denied]))}))" if of.denied else ""
    said = rf"{any_of(of.answer)}(?:{behind}{joined}|{within}{{0,{min(of.gap + 18, 60)}}}?[:=]){denied}"
    if not of.wrong:
        return said
    first = rf"{equals}(?:\s+{LETTER}{{1,20}}){{0,3}}?\s+{any_of(of.answer)}{_BEHIND}"
    return rf"{first}(?![(*]*\w+[)*]*\s+{any_of(of.wrong)})|{said}"


@cache  # half a second to compile, which no command should wait for that reads no response
def _mark() -> re.Pattern[str]:
    """Return a mark in words: "the answer is", "Antwort:", "答案是"; what follows is the answer."""
    marks = "|".join(map(_said, LANGUAGES.values()))
    first = begins(*(of.answer for of in LANGUAGES.values()), *(of.equals for of in LANGUAGES.values() if of.wrong))
    return re.compile(rf"{first}(?:{marks})[\s:=*_`\"、,]*", re.IGNORECASE)


_BRACES = re.compile(r"\\[{}]|(?P<box>\\(?:boxed|fbox)\s*\{)|[{}]")
_HASHES = re.compile(r"(?<!#)####(?!#)\s*([^\n]*)")
_NO_HEADING = re.compile(r"[*_`(]*(?:(?![0-9]+[.):]\s+\S)[-–+\\$€£¥₹.]*[0-9]|[A-Z]\W*$)")
# No emphasis: a power (2**3), a product (2 * 3), a bullet, LaTeX's f^* and f^{*}.
_EMPHASIS = re.compile(r"(?<![\w)\]{}^*\\])(\*{1,3})(?=[^\s*])([^\n*]*[^\s*])\1(?![\w(*])")
_IN_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_SENTENCE = re.compile(r"(?<=[.!?؟۔।])\s|(?<=[。！？])")
_MINUS = re.compile(rf"^([\s*_`\"'(\[:=]*){every('minus')}\s*(?=[0-9.$])", re.IGNORECASE)
_ENDS = re.compile(rf"\s?{every('ends')}$")
_WORD = re.compile(rf"[{GLUED}]{{1,2}}|[^\s{GLUED}]+")


def final_number(text: str, decimal: Decimal = ".") -> Number | None:
    """Return the number after the last mark that holds one, else the last number of the text that it does not deny.

    Of a marked sentence what follows its last `=` comes first, and there the first number: "The answer is 5 apples for
    3 children." is 5, "The answer is 2 + 3 = 5" too. Words count where a mark or a short text begins with them.
    """
    for segment in marked(text):
        if found := _stated(segment, decimal):
            return None if _is_open(found) else found[0]
    last = [*deque(numbers(text, decimal, denied=False), maxlen=2)]
    return None if _is_open(last) else last[-1] if last else _said_in_words(text)


def stated_number(segment: str) -> Number | None:
    """Return the number that the first sentence of a marked answer states."""
    found = _stated(segment, ".")
    return found[0] if found and not _is_open(found) else None


def _stated(segment: str, decimal: Decimal) -> list[Number]:
    """List the number that the first sentence of a marked answer states, and the next one."""
    sentence = _MINUS.sub(r"\1-", plain(first_sentence(segment)))
    for part in (re.split(r"=|≈|\\approx", sentence)[-1], sentence):
        if found := [*islice(numbers(part, decimal), 2)]:
            return found
    said = _said_in_words(sentence)
    return [said] if said else []


def _is_open(found: list[Number]) -> bool:
    """Say whether these are two numbers of which the text says "or"."""
    return len(found) > 1 and found[1].joined and not found[0].is_like(found[1])


def is_several(answer: str, decimal: Decimal = ".") -> bool:
    """Say whether a short answer holds more than one number (5 to 6, 7:30, a date), and says not which one is meant."""
    if count_words(answer) > WORDS or "=" in answer or any(marked(answer)):
        return False
    return len([*numbers(answer, decimal)]) > 1


def _said_in_words(text: str) -> Number | None:
    found = spelled(text)
    return found[0] if found and count_words(found[1]) < WORDS else None


def marked(text: str) -> Iterator[str]:
    r"""Yield the answers that a text marks, those that count most first.

    Strong marks are `\boxed{..}`, the last `<answer>..</answer>`, and `#### 72` (GSM8K's; `#### Step 2` is a heading).
    After them come the words "answer .. is" and "answer:", and what other languages have for them (`words.LANGUAGES`),
    up to the end of the line or the next such words. Of each sort the last in the text is the first here.
    """
    yield from strongly_marked(text)
    limit = len(text)
    for said in reversed(list(_mark().finditer(plain(text)))):
        end = text.find("\n", said.end(), limit)
        yield text[said.end() : end if end >= 0 else limit]
        limit = said.start()


def strongly_marked(text: str) -> list[str]:
    """Return the first part of `marked`."""
    found = list(_boxed(text))
    found += [(m.start(), m[1]) for m in _HASHES.finditer(text) if _NO_HEADING.match(plain(m[1]))]
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        found.append((start, text[start + len("<answer>") : end]))
    return [segment for _, segment in sorted(found, reverse=True)]


def first_sentence(text: str) -> str:
    """Return what comes up to the first full stop, exclamation or question mark before white space."""
    return _SENTENCE.split(text.lstrip(), maxsplit=1)[0]


def bare(text: str) -> str:
    """Return a text without Markdown, LaTeX's text commands, quotes and punctuation around it."""
    return _IN_TEXT.sub(r"\1", text).strip(" \t\r\n*_`\"'$.,;:!。！、「」『』“”„«»")


def without_verb(text: str) -> str:
    """Return a marked answer without the verb that ends its sentence: 東京 of 東京です."""
    return _ENDS.sub("", text)


def without_markdown(text: str) -> str:
    """Return a text without the marks of emphasis and code: "**73**" and "`73`" are 73."""
    return _EMPHASIS.sub(r"\2", text.replace("`", ""))


def one_form(text: str, ignore_case: bool) -> str:
    """Return a text such that texts which say the same are equal."""
    text = " ".join(normalize("NFC", plain(text)).split())
    return text.casefold() if ignore_case else text


def count_words(text: str) -> int:
    """Count words, up to one more than `WORDS`; two characters of a script without spaces are one."""
    return sum(1 for _ in islice(_WORD.finditer(text), WORDS + 1))


def _boxed(text: str) -> Iterator[tuple[int, str]]:
    """Yield where each box starts, and what it holds; of nested ones the innermost."""
    open_braces, latest = [], -1
    for brace in _BRACES.finditer(text):
        if brace["box"] or brace[0] == "{":
            open_braces.append((brace.end(), bool(brace["box"])))
        elif brace[0] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > latest:
                yield start, text[start : brace.start()]
                latest = start
