"""How long responses are, and where their steps end: of a few that the base model gave, or assumed."""

from __future__ import annotations

import statistics
from itertools import combinations

import msgspec

from genius_lite.data.vocabulary import StepDelimiter
from genius_lite.recipe import Foresight

ASSUMED, MEASURED = "assumed", "probe"
_ASSUMED_LENGTH, _ASSUMED_STEP = 0.75, 0.25  # of the token limit; of a response
_SHORT = 48  # tokens
_CUT = 0.1
_UNKNOWN, _DRIFT = 0.6, 0.25  # how far off a length may be that is assumed; by which rounds differ from each other


class Response(msgspec.Struct, frozen=True):
    """The length of a response in tokens, and the lengths of it at which a step has just ended."""

    length: int
    steps: list[int]

    @property
    def ends(self) -> list[int]:
        """Where its steps end, the last one with the response."""
        return [*self.steps, self.length]


class Probe(msgspec.Struct, frozen=True):
    """Responses to some queries, a list for each, and the chances that two steps from the same place are the same.

    `repeats` is that of first steps, which often begin alike, `later` that of others. `source` is `probe`, `assumed` or
    `round 1`.
    """

    responses: list[list[Response]]
    repeats: float
    source: str
    later: float = 0.0

    @property
    def mean_length(self) -> float:
        """Tokens of a response."""
        return statistics.fmean(r.length for rows in self.responses for r in rows)

    def cut_off(self, limit: int) -> str | None:
        """A warning, where more than a tenth of the responses ran into the limit, which is `foresight.max_tokens`.

        What is cut off teaches a model not to end: it has been seen to learn longer and longer responses.
        """
        lengths = [r.length for rows in self.responses for r in rows]
        return (
            None
            if self.source == ASSUMED
            else too_short(statistics.fmean(length >= limit for length in lengths), limit)
        )

    @property
    def uncertainty(self) -> float:
        """By which share the tokens of a run may be off, in about two cases of three.

        The standard error of the mean over queries, and what rounds differ by: the quickstart's second took 0.79 and
        0.96 of the first one's tokens.
        """
        if self.source == ASSUMED:
            return _UNKNOWN
        means = [statistics.fmean(r.length for r in rows) for rows in self.responses]
        spread = statistics.stdev(means) / len(means) ** 0.5 / self.mean_length if len(means) > 1 else _UNKNOWN
        return min(_UNKNOWN, (spread**2 + _DRIFT**2) ** 0.5)


def too_short(cut: float, limit: int) -> str | None:
    """The warning that this share of the base model's responses is cut off, if it is more than a tenth."""
    if cut <= _CUT:
        return None
    return (
        f"{cut:.0%} of the base model's responses are cut off at {limit} tokens, where a tenth is the most to learn "
        f"from; write foresight.max_tokens: {2 * limit}, or ask for shorter answers in queries.system"
    )


def assumed(cfg: Foresight) -> Probe:
    """Without a look at the model: three quarters of the limit, in four steps."""
    length = max(1, round(_ASSUMED_LENGTH * cfg.max_tokens))
    step = max(1, round(_ASSUMED_STEP * length))
    return Probe([[Response(length, list(range(step, length, step)))]], 0.0, ASSUMED)


def short(cfg: Foresight) -> Probe:
    """Responses as short as they may well be, for what must not be overrated."""
    return Probe([[Response(min(_SHORT, cfg.max_tokens), [])]], 0.0, ASSUMED)


def described(responses: list[list[list[int]]], delimiter: StepDelimiter, source: str) -> Probe:
    """Of responses as token ids, a list of them for each query."""
    rows = [[_response(tokens, delimiter) for tokens in row] for row in responses]
    first, later = _Chance(), _Chance()
    for row, lengths in zip(responses, rows, strict=True):
        for (a, of_a), (b, of_b) in combinations(zip(row, lengths, strict=True), 2):
            ends = [end for end in of_a.ends if end in of_b.ends and a[:end] == b[:end]]
            first.seen(bool(ends))
            for nth, _ in enumerate(ends[:-1] if a == b else ends, 1):
                later.seen(nth < len(ends))
    return Probe(rows, first.share, source, later.share)


class _Chance:
    """How often something was so."""

    def __init__(self):
        self._so = self._all = 0

    def seen(self, so: bool) -> None:
        self._so, self._all = self._so + so, self._all + 1

    @property
    def share(self) -> float:
        return self._so / self._all if self._all else 0.0


def _response(tokens: list[int], delimiter: StepDelimiter) -> Response:
    steps, has_text = [], False
    for place, token in enumerate(tokens[:-1], 1):
        if delimiter.ends_step(token, has_text):
            steps.append(place)
            has_text = False
        else:
            has_text = has_text or bool(delimiter.has_text[token])
    return Response(len(tokens), steps)
