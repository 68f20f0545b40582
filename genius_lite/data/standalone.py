"""Which of a model's questions stand alone: simple rules over their words, most of them for English."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

RULES = {
    "lost": "llama.cpp did not survive the passage",
    "cut off": "no question within --max-tokens",
    "no question": "no question mark in it",
    "answer": "an answer stands behind the question",
    "short": "fewer than 4 words",
    "long": "more than 60 words",
    "text": "asks about its text (the passage, the author, mentioned above)",
    "pronoun": "speaks of something without a name (it, this, they)",
    "repeat": "asked before",
    "near repeat": "asked before in nearly the same words",
}
"""Why a question is left out, in the order in which that is looked at."""
_LEAST, _MOST = 4, 60  # words
_ALIKE = 0.8  # of the words that tell two questions apart, and all numbers: the same question

_LABEL = re.compile(r"^(?:[\s\d.)#>*_-]*(?:question|q|frage|pregunta|问题)\b\s*\d*\s*[:：.)]|\d+[.)])\s*", re.I)
_OPENING = re.compile(r"^(?:here|sure|certainly|of course|okay|ok|the question|one question)\b[^?:]*[:!]\s*", re.I)
_MARKS = "?？؟"  # how a question ends
_AROUND = " \t\"'“”„«»*_`"


def question_in(response: str) -> str:
    """Return the line of a response that asks, without labels, quotes and marks around it; the first one if none does.

    What stands behind the question in its line is still there.
    """
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    line = next((line for line in lines if any(mark in line for mark in _MARKS)), lines[0] if lines else "")
    for label in (_OPENING, _LABEL):
        line = label.sub("", line.strip(_AROUND)).strip(_AROUND)
    return " ".join(line.split())


_TEXTS = r"(?:text|passage|part|document|paragraph|excerpt|article|section|chapter|snippet|author|writer)"
_OF_ITS_TEXT = re.compile(
    rf"\b(?:the|this|that|these|given|provided|above|following|our)\s+(?:\w+\s+)?{_TEXTS}s?\b"
    r"|\b(?:mentioned|described|discussed|shown|listed|stated|above|below)\s*(?:here|above|below)?\s*\?"
    r"|\b(?:as|the|shown|listed|described|mentioned|code|table|example|list|command|image|figure) (?:above|below)\b"
    r"|\b(?:above|following) (?:code|table|example|list|command|image|figure|output|steps?)\b"
    r"|^(?:what|which) (?:is|are) the questions?\b|\b(?:the|this) (?:information|description) (?:given|provided)\b",
    re.I,
)
_CLAUSE = re.compile(
    r"[,;:(]|\b(?:and|or|but|if|when|while|because|so|before|after|once|that|which|who|than|as)\b", re.I
)
_PRONOUN = re.compile(r"\b(?:it|they|them|he|she|him)\b", re.I)
_POSSESSIVE = re.compile(r"\b(?:its|their|his|her|theirs)\b", re.I)
_POINTING = re.compile(r"\b(?:this|these|those)\b", re.I)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_LITTLE = (
    "a an and any are as at be been but by can could did do does done for from had has have i if in into is it its may "
    "me might my no not of on or our shall should so some such than that the their them then there they to too us was "
    "we were will with would you your"
)
_ASKED_WITH = "about happen happened happens how many mean means much use used what when where which who whom whose why"
_FUNCTION = frozenset(_LITTLE.split())  # words that tell no two questions apart
_NAMELESS = _FUNCTION | {*_ASKED_WITH.split()}  # words that name nothing


def fault(question: str, was_cut: bool = False) -> str | None:
    """Return the rule (of `RULES`) by which a question is left out whatever else was asked; None if there is none."""
    end = max(map(question.rfind, _MARKS))
    if end < 0:
        return "cut off" if was_cut else "no question"
    if question[end + 1 :].strip(_AROUND + ")."):
        return "answer"
    words = _WORD.findall(question)
    if len(words) < _LEAST:
        return "short"
    if len(words) > _MOST:
        return "long"
    if _OF_ITS_TEXT.search(question):
        return "text"
    return "pronoun" if _nameless(question) else None


def _nameless(question: str) -> bool:
    """Say whether a pronoun refers to nothing: those of a first clause, or with no noun before it, cannot."""
    if _POINTING.search(question):
        return True
    clause = _CLAUSE.search(question)
    for found in _PRONOUN.finditer(question):
        if not clause or clause.start() > found.start() or not _names(question[: found.start()]):
            return True
    return any(not _names(question[: found.start()]) for found in _POSSESSIVE.finditer(question))


def _names(text: str) -> bool:
    return any(word.casefold() not in _NAMELESS for word in _WORD.findall(text))


class Before:
    """The questions that were asked before, by the words that tell them apart."""

    def __init__(self) -> None:
        self._all = list[tuple[list[str], frozenset[str]]]()
        self._with = defaultdict[str, list[int]](list)

    def repeats(self, question: str) -> str | None:
        """Return the rule by which a question is left out for those before it; else it is one of them from now on."""
        words = [word.casefold() for word in _WORD.findall(question)]
        telling = frozenset(word for word in words if word not in _FUNCTION) or frozenset(words)
        for other in dict.fromkeys(self._near(telling)):
            theirs, their_telling = self._all[other]
            if theirs == words:
                return "repeat"
            alike = len(telling & their_telling) >= _ALIKE * len(telling | their_telling)
            if alike and not any(char.isdigit() for word in telling ^ their_telling for char in word):
                return "near repeat"
        for word in telling:
            self._with[word].append(len(self._all))
        self._all.append((words, telling))
        return None

    def _near(self, telling: frozenset[str]) -> Iterator[int]:
        """Yield those that share one of the rarest words: alike ones lack at most a fifth of them."""
        rarest = sorted(telling, key=lambda word: (len(self._with.get(word, ())), word))
        for word in rarest[: 1 + int(len(rarest) * (1 - _ALIKE))]:
            yield from self._with.get(word, ())
