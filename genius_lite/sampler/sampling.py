"""Drawing tokens from logits, for all rows of a batch together.

The log-probability of a token is that of the raw distribution, whatever it was drawn from. A draw takes one uniform
number and the inverse of the cumulative distribution. That is looked up in two steps, first among sums over spans of
the vocabulary and then within one span, so that nothing as long as the vocabulary is sorted or accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from genius_lite.sampler.messages import Sampling

_TAIL = 20.0  # nats below the likeliest token, after temperature: what filters never look at
_BLOCK = 4  # rows taken together: 800 KB of logits at 49K tokens of vocabulary, which stay in the cache
_SPAN = 512  # tokens

Each = Callable[[Callable[[slice], np.ndarray], list[slice]], Iterable[np.ndarray]]


class LogitsError(RuntimeError):
    """The model's logits are not finite: NaN, or an infinity as the largest one. `row` is the first such."""

    def __init__(self, row: int, whose: str = ""):
        super().__init__(f"the model gave logits that are not finite{whose}; its file or its settings are broken")
        self.row = row


class Rows:
    """Logits (rows, vocabulary) of one decode, and what every draw from them needs.

    Args:
        each: `map`, or that of a pool of threads, which go through the rows together; numpy lets them.

    Raises:
        LogitsError: a row's largest logit is NaN or infinite.
    """

    def __init__(self, logits_RV: np.ndarray, each: Each = map):
        self.logits_RV, self._each = logits_RV, each
        self._blocks = [slice(start, start + _BLOCK) for start in range(0, len(logits_RV), _BLOCK)]
        self.top_R = self._of_rows(lambda block: logits_RV[block].max(axis=1))
        if not (finite_R := np.isfinite(self.top_R)).all():
            raise LogitsError(int(finite_R.argmin()))
        self._cumulative: dict[float, np.ndarray] = {}
        self.log_norm_R = self.top_R + np.log(self._spans(1.0)[:, -1])

    def logprob(self, row: int, token: int) -> float:
        """Nats of `token` in the raw distribution of `row`."""
        return float(self.logits_RV[row, token] - self.log_norm_R[row])

    def draw(self, row: int, uniform: float, sampling: Sampling, among: np.ndarray | None = None) -> int:
        """The token at `uniform` (in [0, 1)) of the row's filtered and tempered distribution.

        Filters go by probability after temperature, in the order top-k, top-p, min-p.

        Args:
            among: bool (vocabulary,): of what then is left only these.

        Raises:
            IndexError: of these none is left.
        """
        logits_V, top, temperature = self.logits_RV[row], self.top_R[row], sampling.temperature
        if sampling.top_k == 1 and among is None:
            return int(logits_V.argmax())
        filtered = sampling.top_k or sampling.top_p < 1 or sampling.min_p > 0
        if not filtered and among is None:
            spans = self._spans(temperature)[row]
            at = uniform * spans[-1]
            span = _passes(spans, at)
            start, before = span * _SPAN, spans[span - 1] if span else 0.0
            weights = _weights(logits_V[start : start + _SPAN], top, temperature)
            return start + _passes(weights.cumsum(dtype=np.float64), at - before)
        tokens = np.flatnonzero(logits_V >= top - _TAIL * temperature)
        weights = _weights(logits_V[tokens], top, temperature)
        if filtered:
            tokens, weights = _filter(tokens, weights, sampling)
        if among is not None:
            tokens, weights = tokens[among[tokens]], weights[among[tokens]]
        cumulative = weights.cumsum(dtype=np.float64)
        return int(tokens[_passes(cumulative, uniform * cumulative[-1])])

    def _spans(self, temperature: float) -> np.ndarray:
        """Of every row the cumulative weight up to the end of each span, (rows, spans); computed once."""
        if temperature not in self._cumulative:
            starts = np.arange(0, self.logits_RV.shape[1], _SPAN)

            def weigh(block: slice) -> np.ndarray:
                weights_BV = _weights(self.logits_RV[block], self.top_R[block, None], temperature)
                return np.add.reduceat(weights_BV, starts, axis=1).cumsum(axis=1, dtype=np.float64)

            self._cumulative[temperature] = self._of_rows(weigh)
        return self._cumulative[temperature]

    def _of_rows(self, what: Callable[[slice], np.ndarray]) -> np.ndarray:
        return np.concatenate(list(self._each(what, self._blocks)))


def _weights(logits: np.ndarray, top: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities after temperature, up to a factor: the likeliest token has 1."""
    weights = logits - top
    if temperature != 1:
        weights /= np.float32(temperature)
    return np.exp(weights, out=weights)


def _passes(cumulative: np.ndarray, at: float) -> int:
    """Where it first is above `at`; however `at` was rounded, nowhere that adds nothing."""
    return min(int(cumulative.searchsorted(at, side="right")), int(cumulative.searchsorted(cumulative[-1])))


def _filter(tokens: np.ndarray, weights: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that survive, likeliest first; the likeliest always does."""
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
    """Number `position` of the generator `seed`, in [0, 1).

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) read by counter: a branch needs no generator state, so one
    that was evicted or moved goes on with the numbers it would have had.
    """
    z = (seed + (position + 1) * _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
