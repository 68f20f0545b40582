"""Drawing tokens from logits, for all rows of a batch together.

The log-probability of a token is that of the raw distribution, whatever it was drawn from. A draw takes one
uniform number and the inverse of the cumulative distribution; tokens over e^20 times less likely than the
likeliest (after temperature) are never drawn, so only a short tail is ever sorted or summed.
"""

from __future__ import annotations

import numpy as np

from genius_lite.sampler.messages import Sampling

_TAIL = 20.0  # nats below the likeliest token, after temperature; loses under 1e-4 of the mass at 50K tokens
_BLOCK = 4  # rows normalized together: 800 KB of logits at 49K tokens of vocabulary, which stay in the cache


class LogitsError(RuntimeError):
    """The model's logits are not finite: NaN, or an infinity as the largest one. `row` is the first such."""

    def __init__(self, row: int, whose: str = ""):
        super().__init__(f"the model gave logits that are not finite{whose}; its file or its settings are broken")
        self.row = row


class Rows:
    """Logits (rows, vocabulary) of one decode, and what every draw from them needs.

    Raises:
        LogitsError: a row's largest logit is NaN or infinite.
    """

    def __init__(self, logits_RV: np.ndarray):
        self.logits_RV = logits_RV
        self.top_R = logits_RV.max(axis=1)
        if not (finite_R := np.isfinite(self.top_R)).all():
            raise LogitsError(int(finite_R.argmin()))
        blocks = (slice(start, start + _BLOCK) for start in range(0, len(logits_RV), _BLOCK))
        self.log_norm_R = np.concatenate([self._log_norm(block) for block in blocks])

    def _log_norm(self, block: slice) -> np.ndarray:
        """Log of the sum of exponentials of a few rows."""
        exp_BV = self.logits_RV[block] - self.top_R[block, None]
        np.exp(exp_BV, out=exp_BV)
        return self.top_R[block] + np.log(exp_BV.sum(axis=1))

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
        logits_V, top = self.logits_RV[row], self.top_R[row]
        tokens = np.flatnonzero(logits_V >= top - _TAIL * sampling.temperature)
        weights = np.exp((logits_V[tokens] - top) / np.float32(sampling.temperature))
        if sampling.top_k or sampling.top_p < 1 or sampling.min_p > 0:
            tokens, weights = _filter(tokens, weights, sampling)
        if among is not None:
            tokens, weights = tokens[among[tokens]], weights[among[tokens]]
        cumulative = np.cumsum(weights, dtype=np.float64)
        return int(tokens[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])


def _filter(tokens: np.ndarray, weights: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that survive, likeliest first; the likeliest always does."""
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
