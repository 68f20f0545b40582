"""How fast this machine is at what a run does, as a rehearsal found it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from genius_lite.plan.lengths import Lengths
from genius_lite.plan.tokens import Sampled

FOUND = "rehearsal.json"
"""In a run folder: the rates of its rehearsal."""
_IDLE = 1 / 3  # of the cores leaves a rehearsal to others: SmolLM2 and Qwen2.5-1.5B on two cores
PREFILL = 0.5  # of a sampled token's time takes a prompt's, whose logits are not wanted
_RATIOS = (0.0, *(2.0**n for n in range(-1, 8)))  # of a decode's own time to that of a token in it
_USUAL_RATIO = 2.0


class Decode(msgspec.Struct, frozen=True):
    """Seconds that a file takes at the run's settings: to start, for every decode, and for each token in it."""

    start: float
    tick: float
    sampled: float

    def session(self, work: Sampled, scored: float = 0.0) -> float:
        """Add up a worker's seconds from its start to its end; `scored` are tokens that are looked up."""
        return self.start + work.ticks * self.tick + (work.sampled + scored + PREFILL * work.prefilled) * self.sampled


class Rates(msgspec.Struct, frozen=True):
    """Seconds that a rehearsal took.

    `base` is the user's file, `made` one that a round makes. The learner takes `load` once, `forward` and `update` for
    a token, and `scored` for one of the final margin's, in all of its passes. `imported`, `rounded` (the base, in the
    types of the rounds) and `merged` are for the whole model. `others` is the share of this process' cores that other
    programs took meanwhile.
    """

    base: Decode
    made: Decode
    load: float
    forward: float
    update: float
    scored: float
    imported: float
    rounded: float
    merged: float
    others: float
    lengths: Lengths

    @property
    def disturbed(self) -> float:
        """Estimate the share of the rehearsal that was lost to other programs: a third of the cores was free for them.

        The import and loading are done on one core, so that quiet rehearsals leave so much idle.
        """
        return max(0.0, 1 - (1 - self.others) / (1 - _IDLE))

    @staticmethod
    def read(out: Path) -> Rates | None:
        """Read what a rehearsal in this folder came to; None if there is none, or one of another version."""
        try:
            return msgspec.json.decode((out / FOUND).read_bytes(), type=Rates)
        except (OSError, msgspec.DecodeError):
            return None


def fit_decode(events: Sequence[tuple[float, int, int]], prefilled: int) -> Decode:
    """Fit seconds = start + tick x decodes + sampled x tokens, none of the three below 0.

    Args:
        events: ends of searches that were all asked at once: seconds, and decodes and sampled tokens until then. Of
            few a decode takes the usual share.
        prefilled: tokens of their prompts, which are decoded first, and taken off the start.
    """
    best: tuple[float, Decode] | None = None
    for ratio in _RATIOS if len(events) > 3 else (_USUAL_RATIO,):
        points = [(ratio * ticks + tokens, seconds) for seconds, ticks, tokens in events]
        x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
        spread = sum((a - x) ** 2 for a, _ in points)
        slope = sum((a - x) * (b - y) for a, b in points) / spread if spread else 0.0
        if slope <= 0 or y < slope * x:
            slope = sum(a * b for a, b in points) / sum(a * a for a, _ in points)
        start = max(0.0, y - slope * x)
        error = sum((start + slope * a - b) ** 2 for a, b in points)
        if best is None or error < best[0]:
            best = error, Decode(max(0.0, start - PREFILL * slope * prefilled), ratio * slope, slope)
    assert best
    return best[1]


def learner_rates(marks: list[float], seconds: float, tokens: int, twice: bool) -> tuple[float, float, float, float]:
    """Take a training of two updates apart, both of all its pairs.

    Args:
        marks: when the reference, each update and each pass of the final margin were done; the first is the beginning.
        seconds: of the whole training, loading and saving included.
        tokens: of its pairs.
        twice: whether activations are computed twice.

    Returns:
        Seconds to load; for a token forward, in an update, and in all passes of the final margin.
    """
    reference, first, second, end = *marks[1:4], marks[-1]
    update = min(first - reference, second - first) / tokens
    forward = update / (3 if twice else 2)  # the matrices are frozen: backward takes as many products as forward
    load = seconds - forward * tokens - (end - reference)
    return max(0.0, load), forward, update, (end - second) / tokens
