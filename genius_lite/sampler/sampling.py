"""Drawing tokens from logits, for all rows of a batch together.

The log-probability of a token is that of the raw distribution, whatever it was drawn from. A draw takes one uniform
number and the inverse of the cumulative distribution. That is looked up in two steps, first among sums over spans of
the vocabulary and then within one span, so that nothing as long as the vocabulary is sorted or accumulated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np

from genius_lite.sampler.messages import Sampling

_TAIL = 20.0  # nats below the likeliest token, after temperature: what filters never look at
_BLOCK = 4  # rows taken together: 800 KB of logits at 49K tokens of vocabulary, which stay in the cache

T = TypeVar("T")

_RAW = Sampling(1.0)
Draw = tuple[int, float]
"""A token, and its log-probability in the raw distribution, nats."""
DRAWS = 16
"""Tokens that one row may be asked for, at most: also here, so that both ways decode the same batches."""
SPAN = 512
"""Tokens whose weights are summed together: float32 sums of few numbers are exact enough."""


@dataclass(frozen=True)
class RowRequest:
    """What is asked of a row of logits of a `sequence`: a token for each uniform number, or what one `given` has.

    Where a number is None, that is the likeliest token.
    """

    sequence: int
    sampling: Sampling = _RAW
    uniforms: list[float | None] = field(default_factory=list)
    given: int | None = None


class LogitsError(RuntimeError):
    """The model's logits are not finite: NaN, or an infinity as the largest one. `row` is the first such."""

    def __init__(self, row: int, whose: str = ""):
        mend = "its file is broken, or its settings are: take another file of it, and sampler.kv_type F16 or F32"
        super().__init__(f"the model gave logits that are not finite{whose}; {mend}")
        self.row = row


class OnHost:
    """Draws from `logits` of the last decode (rows, vocabulary) in this machine's memory, with `count` threads."""

    def __init__(self, logits: Callable[[], np.ndarray], threads: Executor, count: int):
        self._logits, self._threads, self._count = logits, threads, count

    def ask(self, asked: list[RowRequest]) -> None:
        """Take what the rows of the next decode are asked: here nothing needs to be known before."""

    def read(self, asked: list[RowRequest]) -> list[list[Draw]]:
        """Return what is drawn for these rows, or the token that is given, with log-probabilities.

        Raises:
            LogitsError: a row's logits are not finite.
        """
        rows = Rows(self._logits(), self._threads, self._count)
        drawn = []
        for number, row in enumerate(asked):
            if row.given is not None:
                tokens = [row.given]
            else:
                tokens = [rows.draw(number, uniform, row.sampling) for uniform in row.uniforms]
            drawn.append([(token, rows.logprob(number, token)) for token in tokens])
        return drawn


class Rows:
    """Logits (rows, vocabulary) of one decode, and what every draw from them needs; `count` threads, if any, help.

    Raises:
        LogitsError: a row's largest logit is NaN or infinite.
    """

    def __init__(self, logits_RV: np.ndarray, threads: Executor | None = None, count: int = 1):
        self.logits_RV, self._threads, self._count = logits_RV, threads, count
        tops, spans = zip(*self._through(self._first_look), strict=True)
        self.top_R = np.concatenate(tops)
        self._spans = {1.0: np.concatenate(spans)}
        self.log_norm_R = self.top_R + np.log(self._spans[1.0][:, -1])

    def logprob(self, row: int, token: int) -> float:
        """Return nats of `token` in the raw distribution of `row`."""
        return float(self.logits_RV[row, token] - self.log_norm_R[row])

    def draw(self, row: int, uniform: float | None, sampling: Sampling, among: np.ndarray | None = None) -> int:
        """Draw the token at `uniform` (in [0, 1)) of the row's filtered and tempered distribution; None: the likeliest.

        Filters go by probability after temperature, in the order top-k, top-p, min-p. Of what then is left only tokens
        `among` these, bool (vocabulary,), are drawn.

        Raises:
            IndexError: none is left.
        """
        logits_V, top, temperature = self.logits_RV[row], self.top_R[row], sampling.temperature
        if uniform is None or (sampling.top_k == 1 and among is None):
            return int(logits_V.argmax())
        if not sampling.filtered and among is None:
            spans = self._spans_at(temperature)[row]
            at = uniform * spans[-1]
            span = _passes(spans, at)
            start, before = span * SPAN, spans[span - 1] if span else 0.0
            weights = _weigh(logits_V[start : start + SPAN], top, temperature)
            return start + _passes(weights.cumsum(dtype=np.float64), at - before)
        tokens = np.flatnonzero(logits_V >= top - _TAIL * temperature)
        weights = _weigh(logits_V[tokens], top, temperature)
        if sampling.filtered:
            tokens, weights = _filter(tokens, weights, sampling)
        if among is not None:
            tokens, weights = tokens[among[tokens]], weights[among[tokens]]
        cumulative = weights.cumsum(dtype=np.float64)
        return int(tokens[_passes(cumulative, uniform * cumulative[-1])])

    def _first_look(self, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest logits of a few rows, and their spans at temperature 1, while they are in the cache."""
        logits_BV = self.logits_RV[block]
        top_B = logits_BV.max(axis=1)
        if not (finite_B := np.isfinite(top_B)).all():
            raise LogitsError(block.start + int(finite_B.argmin()))
        return top_B, _cumulative(logits_BV, top_B, 1.0)

    def _spans_at(self, temperature: float) -> np.ndarray:
        """Return every row's cumulative weight up to the end of each span, (rows, spans); computed once."""
        if temperature not in self._spans:
            logits_RV, top_R = self.logits_RV, self.top_R
            found = self._through(lambda block: _cumulative(logits_RV[block], top_R[block], temperature))
            self._spans[temperature] = np.concatenate(list(found))
        return self._spans[temperature]

    def _through(self, what: Callable[[slice], T]) -> Iterator[T]:
        """Yield what comes of every block, in order; each thread goes through its part of them in one go."""
        rows = len(self.logits_RV)
        blocks = [slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]
        part = -(-len(blocks) // self._count)
        parts = [blocks[i : i + part] for i in range(0, len(blocks), part)]
        each = self._threads.map if self._threads and len(parts) > 1 else map
        return chain.from_iterable(each(lambda part: [what(block) for block in part], parts))


def _cumulative(logits_BV: np.ndarray, top_B: np.ndarray, temperature: float) -> np.ndarray:
    """Return the weight up to the end of each span, (rows, spans), float64."""
    vocabulary = logits_BV.shape[1]
    spans = -(-vocabulary // SPAN)
    room_BV = _room(spans * SPAN)[: len(top_B)]
    _weigh(logits_BV, top_B[:, None], temperature, out=room_BV[:, :vocabulary])
    # einsum sums as fast as anything in numpy, and unlike `add.reduceat` without holding Python's lock.
    return np.einsum("bsv->bs", room_BV.reshape(-1, spans, SPAN)).cumsum(axis=1, dtype=np.float64)


def _weigh(logits: np.ndarray, top: np.ndarray, temperature: float, out: np.ndarray | None = None) -> np.ndarray:
    """Return probabilities after temperature, up to a factor: the likeliest token has 1."""
    weights = np.subtract(logits, top, out=out)
    if temperature != 1:
        weights /= np.float32(temperature)
    return np.exp(weights, out=weights)


_own = threading.local()


def _room(width: int) -> np.ndarray:
    """Return a block of this thread's own, (rows, width), kept between calls; zero where nothing was ever written."""
    if getattr(_own, "room", None) is None or _own.room.shape[1] != width:
        _own.room = np.zeros((_BLOCK, width), dtype=np.float32)
    return _own.room


def _passes(cumulative: np.ndarray, at: float) -> int:
    """Find where it first is above `at`; however `at` was rounded, nowhere that adds nothing."""
    return min(int(cumulative.searchsorted(at, side="right")), int(cumulative.searchsorted(cumulative[-1])))


def _filter(tokens: np.ndarray, weights: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Keep the tokens that survive, likeliest first; the likeliest always does."""
    if 0 < sampling.top_k < len(weights):
        likely = weights >= np.partition(weights, -sampling.top_k)[-sampling.top_k]  # and others as likely as the last
        tokens, weights = tokens[likely], weights[likely]
    order = np.argsort(-weights, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        before = np.cumsum(weights[order]) - weights[order]
        order = order[before < sampling.top_p * weights[order].sum()]
    if sampling.min_p > 0:
        order = order[weights[order] >= sampling.min_p * weights[order[0]]]
    return tokens[order], weights[order]


_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """Return number `position` of the generator `seed`, in [0, 1).

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) read by counter: a branch needs no generator state, so one
    that was evicted or moved goes on with the numbers it would have had.
    """
    z = (seed + (position + 1) * _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
