"""Which letter does a response settle on?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from genius_lite.evaluate.answers import bare, first_sentence, marked, one_form, without_verb
from genius_lite.evaluate.numbers import plain
from genius_lite.evaluate.words import WORD, every

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_APART = rf"(?!{WORD}|')"
_NAMED = rf"(?:{every('option')}|{every('answer')})"
# "the option B", "la C", "l'option C"; an article before anything else may be the letter itself: a, l, o.
_ARTICLE = rf"(?:{every('article')}['\u0020]\s*(?={_NAMED}|[(\[*]*[A-Za-z]{_APART}))?"
_MARKUP = r"(?:[\s*_`\"'$:=]|\\[a-z]+(?=\{))*+"
_LEAD = rf"{_MARKUP}(?:{every('adverb')},?{_MARKUP})?{_ARTICLE}(?:{_NAMED}[\s*_`:]*+)?"
_START = re.compile(
    rf"(?i:{_LEAD})(?P<open>[(\[{{]?)[\s*_]*+(?P<letter>[A-Za-z]){_APART}(?P<rest>.*)",
    re.DOTALL,
)
_OR = rf"(?:(?:[,、/&]\s*)?{every('either', 'both')}(?:[\s*_]*{every('maybe')})?|[,、/&])"
_HEDGE = re.compile(rf"[\s()\]}}*_]*+{_OR}\s*(?:{every('option')}\s*)?[(\[*]*(?P<other>[A-Za-z]){_APART}")
_BETWEEN = re.compile(rf"[\s*(]*+{_OR}[\s*]*+")
_MENTION = re.compile(
    rf"\(([A-Z])\)|\*\*\(?([A-Z])(?:[).:]|\*\*)|(?i:{every('option')})\s*\W{{0,3}}([A-Z]){_APART}"
    r"|^[ \t]*([A-Z])[.):](?=\s)|^[ \t*_]*([A-Z])[ \t*_.。]*$",
    re.MULTILINE,
)
_OPTION = re.compile(r"^[ \t]*(?:\*\*)?\(?([A-Z])[.):](?:\*\*)?[ \t]+[^\s*]", re.MULTILINE)  # and a text behind it
_AT_END = re.compile(rf"(?<!{WORD})(?<!['-])([A-Z])$")
_OR_BEFORE = re.compile(rf"(?<!{WORD})[A-Z][)\]*_,\s]*?{_BETWEEN.pattern}[(\[*]*+$")
UNLIKE = re.compile(every("unlike"), re.IGNORECASE)
_DENIED = re.compile(rf"{every('unlike')}\s*$", re.IGNORECASE)
_NEAR = 14  # characters: "n'est pas (C)"


def final_choice(response: str, letters: str = LETTERS, choices: Sequence[str] = ()) -> str | None:
    r"""Return the letter that a response settles on, upper case, one of `letters`; None without one, or if it hedges.

    In this order: a marked answer that starts with a letter (`B`, `(B)`, `**B**`, `B) Paris`, `option B`, `la B`,
    `\text{B}`) or is the text of a choice; a response that starts so with a letter set apart, or is such a text; the
    last mention, which is `(B)`, `**B**`, `option B`, `B)` or `B.` at the start of a line, or a letter alone on its
    line; a capital at the end of the response. Lower case counts in brackets, before `.`, `)` or `:`, and alone: "a
    dog" is not A. "A or B" is a hedge, and a list of the options, also at the very start, chooses none of them.
    """
    response = plain(response)
    by_text = {_key(choice): letter for letter, choice in zip(letters, choices, strict=False) if _key(choice)}
    for segment in marked(response):
        sentence = first_sentence(segment)
        named = next(filter(None, map(by_text.get, map(_key, (segment, sentence, without_verb(bare(sentence)))))), None)
        if found := named or starting_letter(segment, letters):
            return found if found in letters else None
    found = by_text.get(_key(response))
    if not found and not _lists_options(response):
        found = starting_letter(response, letters, apart=True)
    if found:
        return found if found in letters else None
    return _last_mention(response, letters)


def _key(text: str) -> str:
    return one_form(bare(text), ignore_case=True)


def starting_letter(text: str, letters: str, apart: bool = False) -> str | None:
    """Return the letter that a text starts with, "?" if it hedges.

    Args:
        apart: only one that is set apart from what follows.
    """
    found = _START.match(text)
    if not found or found["letter"].upper() not in letters:
        return None
    rest = found["rest"].lstrip("*_`\"'$")
    is_apart = bool(found["open"] or not rest.strip() or rest[0] in ").:]},\r\n。、")
    if not is_apart and (apart or found["letter"].islower()):
        return None
    other = _HEDGE.match(rest)
    return "?" if other and other["other"] in letters else found["letter"].upper()


def _last_mention(text: str, letters: str) -> str | None:
    mentions = [m for m in _MENTION.finditer(text) if not _DENIED.search(text[max(m.start() - _NEAR, 0) : m.start()])]
    # Several letters in front of lines are the options, gone through one by one, and none of them is chosen so.
    lines = {m.start(1): m[1] for m in _OPTION.finditer(text) if m[1] in letters}
    listed = lines if len({*lines.values()}) > 1 else {}
    found = [(m.start(), m.end(), m[i]) for m in mentions if m.start(i := m.lastindex or 0) not in listed]
    found = [mention for mention in found if mention[2] in letters]
    if not found:
        end = _AT_END.search(text.rstrip(" \t\r\n.。!！)]*_`\"'")[-_NEAR:])
        if not end or UNLIKE.search(end.string) or _OR_BEFORE.search(end.string[: end.start()]):
            return None
        return end[1] if end[1] in letters else None
    between = text[found[-2][1] : found[-1][0]] if len(found) > 1 else ""
    return None if _BETWEEN.fullmatch(between) else found[-1][2]


def _lists_options(text: str) -> bool:
    """Say whether a text begins with the options, from the first one on: saying them again chooses none."""
    begins = _OPTION.match(text)
    return bool(begins and begins[1] == LETTERS[0]) and any(m[1] == LETTERS[1] for m in _OPTION.finditer(text))
