"""The records that flow through a run. On disk each is one JSON line with its token ids in it.

Text is derived from the token ids, never the other way round: a response is not tokenized twice.
Log-probabilities are in nats, of the raw distribution (temperature 1, no truncation).
"""

from __future__ import annotations

import hashlib
import math
import threading
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec

K = TypeVar("K")

LARGEST = 1e30
"""Of numbers that are set or measured; bytes and nats are far below."""

_MOST_EXPONENT = 80.0  # of a weight in fp32: an infinite one times a gain of 0 is no number

Finish = Literal["step", "end", "length"]
"""Why a completion stopped: a step delimiter, an end-of-generation token, or the token limit."""


class Query(msgspec.Struct, frozen=True):
    """An unlabelled question and the prompt tokens that the model is given for it."""

    id: str
    prompt: str
    tokens: list[int]


class Completion(msgspec.Struct, frozen=True):
    """Sampled tokens, one log-probability (nats) for each, the end token included."""

    tokens: list[int]
    logprobs: list[float]
    finish: Finish

    @property
    def mean_logprob(self) -> float:
        """Nats per token."""
        return sum(self.logprobs) / len(self.logprobs)


class Candidate(msgspec.Struct, frozen=True):
    """A next step and the future that was simulated from it.

    `beam` indexes the previous step's `kept` (0 at the first step); `future` is None where the step ended
    the response; `value` is f of Eq. 1 in nats per token; `advantage` is A of Eq. 6. `times` is how often its step was
    drawn from its beam: the repeats have no future of their own.
    """

    beam: int
    step: Completion
    future: Completion | None
    value: float
    advantage: float
    times: int = 1

    @property
    def tokens(self) -> list[int]:
        """Tokens of the step and its future."""
        return self.step.tokens + (self.future.tokens if self.future else [])

    @property
    def last(self) -> Completion:
        """The completion that ended the response."""
        return self.future or self.step


class Step(msgspec.Struct, frozen=True):
    """One foresight step: its distinct candidates, and which of them were kept; none of answers without a search.

    Where `foreseen` is False no future was simulated: the candidates have their beam's value, and make no pair.
    """

    index: int
    candidates: list[Candidate]
    kept: list[int]
    foreseen: bool = True

    @property
    def values(self) -> list[float]:
        """Foresight values of its candidates; none where no future was simulated."""
        return [candidate.value for candidate in self.candidates] if self.foreseen else []

    @property
    def repeats(self) -> int:
        """Draws of a step that was drawn before."""
        return sum(candidate.times - 1 for candidate in self.candidates)

    @property
    def sampled_tokens(self) -> int:
        """Tokens of its steps, those of repeats too, and of their futures."""
        return sum(len(c.tokens) + (c.times - 1) * len(c.step.tokens) for c in self.candidates)


class Rollout(msgspec.Struct, frozen=True):
    """The whole search for one query."""

    query: Query
    steps: list[Step]

    def path(self, step: int, candidate: int) -> list[Completion]:
        """List the completed response in pieces: the steps of its beam, the candidate's own, and its future."""
        chosen = self.steps[step].candidates[candidate]
        pieces = [chosen.step, *([chosen.future] if chosen.future else [])]
        beam = chosen.beam
        for earlier in reversed(self.steps[:step]):
            parent = earlier.candidates[earlier.kept[beam]]
            pieces.insert(0, parent.step)
            beam = parent.beam
        return pieces

    def response(self, step: int, candidate: int) -> list[int]:
        """Join the tokens of the completed response."""
        return [token for piece in self.path(step, candidate) for token in piece.tokens]

    def logprobs(self, step: int, candidate: int) -> list[float]:
        """Join the sampler's log-probabilities of them, nats."""
        return [logprob for piece in self.path(step, candidate) for logprob in piece.logprobs]

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the sampler generated for this query, those of steps that only repeated another one too."""
        return sum(step.sampled_tokens for step in self.steps)


class FailedQuery(msgspec.Struct, frozen=True):
    """A query whose search the sampler does not survive, and why."""

    query_id: str
    reason: str


class PreferencePair(msgspec.Struct, frozen=True):
    """The quintuple (x, T_w, A_w, T_l, A_l) of one step, and what decides whether the pair is learned from.

    The values are f of Eq. 1, nats per token; `ended` is False where the response was cut off at a token limit. `lead`
    is the pair's weight: by which share of the votes the chosen answer leads, 1 where votes do not weigh.
    """

    query_id: str
    step: int
    prompt_tokens: list[int]
    chosen_tokens: list[int]
    rejected_tokens: list[int]
    chosen_advantage: float
    rejected_advantage: float
    chosen_value: float
    rejected_value: float
    chosen_ended: bool
    rejected_ended: bool
    lead: float = 1.0

    def calibration_weight(self, alpha: float | None, calibration: str) -> float:
        """Return w of Eq. 11: min(exp(-(A_l - A_w) / alpha), 1), or of the `floor` max(.., 1).

        `alpha` is in nats per token; None, as JSON writes it, is infinite.
        """
        exponent = (self.chosen_advantage - self.rejected_advantage) / (math.inf if alpha is None else alpha)
        return math.exp(min(exponent, 0.0) if calibration == "cap" else min(max(exponent, 0.0), _MOST_EXPONENT))


def query_id(prompt: str) -> str:
    """Take the first 16 hexadecimal digits of the prompt's SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def seed_of(*key: int | str) -> int:
    """Derive a 64-bit seed that depends on every part of `key` and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def held_count(queries: int, share: float, most: int) -> int:
    """Count the queries to hold out: one at least where there are ten, and never all of them."""
    return min(max(round(share * queries), 1 if share and queries >= 10 else 0), queries - 1, most)


_ALONE = threading.Lock()


def prepared(kind: K) -> K:
    """Have msgspec look at a type before anything is decoded as it, and return the type.

    msgspec (0.22) keeps what it finds out of a Struct in the class, from the moment when it begins: a second thread
    that decodes such a Struct meanwhile follows a null pointer, and the process is gone. Whoever decodes or converts
    asks here first, so that a type, and those within it, are known whole before any other thread meets them.
    """
    with _ALONE:
        _look_at(kind)
    return kind


@cache
def _look_at(kind: Any) -> None:
    msgspec.json.Decoder(kind)
