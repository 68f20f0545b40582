"""How fast this machine is at what a run does, as a rehearsal found it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from genius_lite.plan.lengths import Lengths
from genius_lite.plan.tokens import SamplingWork
from genius_lite.records import prepared
from genius_lite.results.rounds import Timing

FOUND = "rehearsal.json"
"""In a run folder: the rates of its rehearsal."""
_IDLE = 1 / 3  # of the cores leaves a rehearsal to others: SmolLM2 and Qwen2.5-1.5B on two cores
PREFILL = 0.5  # of a sampled token's time takes a prompt's, whose logits are not wanted
_USUAL_RATIO = 2.0  # of a decode's own time to that of a token in it


class Decode(msgspec.Struct, frozen=True):
    """Seconds that a file takes: to start, for every decode, and in it for each token that is sampled, or looked up."""

    start: float
    tick: float
    sampled: float
    scored: float

    def session(self, work: SamplingWork) -> float:
        """Add up the seconds of a worker that samples, from its start to its end."""
        return self.start + work.ticks * self.tick + (work.sampled + PREFILL * work.prefilled) * self.sampled

    def scoring(self, scored: float, prefilled: float) -> float:
        """Add up those of one that looks tokens up."""
        return self.start + (scored + PREFILL * prefilled) * self.scored

    def times(self, factor: float) -> Decode:
        """Return what a file takes that decodes so many times slower, and starts as fast."""
        return Decode(self.start, factor * self.tick, factor * self.sampled, factor * self.scored)


class Rates(msgspec.Struct, frozen=True):
    """Seconds that a rehearsal took.

    `base` is the user's file, `made` one that a round makes; `lengths` are those of rollouts, `answers` those of
    responses at the temperature of the evaluation. The learner takes `load` once, `forward` for a token in a pass, and
    `scored` for one of the final margin's, in all of its passes. `imported`, `rounded` (the base, in the types of the
    rounds) and `merged` are for the whole model. `others`: the share of the cores that other programs took meanwhile.
    """

    base: Decode
    made: Decode
    load: float
    forward: float
    scored: float
    imported: float
    rounded: float
    merged: float
    others: float
    lengths: Lengths
    answers: Lengths

    @property
    def disturbed(self) -> float:
        """Estimate the share of the rehearsal that was lost to other programs.

        A third of the cores was free for them: a quiet rehearsal, which imports and loads on one core, leaves it idle.
        """
        return max(0.0, 1 - (1 - self.others) / (1 - _IDLE))

    @staticmethod
    def read(out: Path) -> Rates | None:
        """Read what a rehearsal in this folder came to; None if there is none, or one of another version."""
        try:
            return msgspec.json.decode((out / FOUND).read_bytes(), type=prepared(Rates))
        except (OSError, msgspec.DecodeError):
            return None


def decode_rates(session: Timing) -> Decode:
    """Read a session's rates off what its sampler says of its decode steps, the cost of drawing included.

    A line through the steps of branches alone tells what a step takes by itself; without one, it takes what is usual.
    A token that is looked up is taken to cost what a sampled one does.
    """
    stats = session.sampler
    assert stats
    line = stats.branch_steps.line()
    step, token = line if line and line[1] > 0 else (_USUAL_RATIO, 1.0)
    shape = Decode(max(0.0, session.seconds - stats.busy_s), max(0.0, step) / token, 1.0, 1.0)
    units = shape.session(SamplingWork(stats.sampled, stats.prefilled, stats.decode_steps)) - shape.start
    return shape.times(stats.busy_s / units)


def learner_rates(marks: list[float], seconds: float, tokens: int, checkpointing: bool) -> tuple[float, float, float]:
    """Take a training of two updates apart, both of all its pairs.

    Args:
        marks: when the reference, each update and each pass of the final margin were done; the first is the beginning.
        seconds: of the whole training, loading and saving included.
        tokens: of its pairs.
        checkpointing: whether activations are computed twice.

    Returns:
        Seconds to load; for a token forward, and in all passes of the final margin.
    """
    reference, second, end = marks[1], marks[3], marks[-1]
    # The matrices are frozen: backward takes as many products as forward. The first update compiles its products anew,
    # as nearly every one of a run does, whose packs are of other sizes; the second does not.
    forward = (second - reference) / 2 / tokens / (3 if checkpointing else 2)
    load = seconds - forward * tokens - (end - reference)
    return max(0.0, load), forward, (end - second) / tokens
