"""The collapse guard: signals of a round against their limits, a warning first and then a halt.

Self-training feeds a policy with what it prefers already. It can end in one answer for everything, in loops, in
responses that never end or hardly begin, or far from the model that it was. Each of these has a signal here.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from genius_lite.recipe import Guard, Limit
from genius_lite.records import PreferencePair, Rollout
from genius_lite.results.evaluation import Alarm, RoundMetrics, Signals
from genius_lite.results.rounds import RoundReport

TO_HALT_FOR = 16
"""Responses, pairs or steps that a signal must be of, at least, to halt a run; of fewer it only warns."""


class Signal(NamedTuple):
    """How a round's figure is set against the base model's, or round 1's (`_PUT`), and what is said beyond a limit.

    `figure` is its field in Signals or RoundMetrics, where that has another name than the limit.
    """

    put: str
    line: str
    figure: str = ""


def _ratio(now: float, before: float) -> float:
    """1 where both are 0: nothing changed. What is above 0 is infinitely more than 0, and so never too little."""
    if before == 0:
        return 1.0 if now == 0 else math.inf
    return now / before


_PUT: dict[str, Callable[[float, float], float]] = {
    "itself": lambda now, before: now,
    "size": lambda now, before: abs(now),
    "rise": lambda now, before: now - before,
    "fall": lambda now, before: before - now,
    "ratio": _ratio,
}
_GENTLER = "lower learner.lr, train fewer rounds or on more queries"

OF_PAIRS = {
    "length_gap": Signal(
        "size",
        "chosen responses are {than} than rejected ones by {value:.1%} of their mean length (limit {limit:.1%}): the "
        "policy will learn length instead of content; try pairs.max_length_ratio, or more room (foresight.max_tokens, "
        "thought_tokens)",
    ),
    "accuracy": Signal(
        "itself",
        "after training the policy ranks {value:.1%} of its pairs right (limit {limit:.1%}): it does not learn what "
        "they say; try another learner.lr, or more pairs an update (learner.batch_pairs)",
    ),
    "margin": Signal(
        "itself",
        "the learned margin is {value:.3g} nats (limit {limit:.3g}): training went the wrong way; lower learner.lr",
    ),
}
OF_STEPS = {
    "value": Signal(
        "fall",
        "foresight values are {value:.3g} nats per token below round 1's (limit {limit:.3g}): the policy is less sure "
        "of all that it says; lower learner.lr, or train fewer rounds",
    ),
    "spread": Signal(
        "ratio",
        "the values of a step spread {value:.3g} times as far as in round 1 (limit {limit:.3g}): its candidates look "
        "alike, and pairs tell little; raise foresight.temperature, or train fewer rounds",
    ),
}
OF_RESPONSES = {
    "entropy": Signal(
        "ratio",
        "token entropy is {value:.3g} times the base model's (limit {limit:.3g}): the policy hardly varies what it "
        f"says; {_GENTLER}",
    ),
    "distinct": Signal(
        "ratio",
        "the share of different 2-grams is {value:.3g} times the base model's (limit {limit:.3g}): responses repeat "
        "themselves; try pairs.looping: either, and a lower learner.lr",
    ),
    "loops": Signal(
        "rise",
        "{value:.1%} more of all responses than of the base model's end in a repetition (limit {limit:.1%}): foresight "
        "rewards loops; try pairs.looping: either, and a lower learner.lr",
    ),
    "shorter": Signal(
        "ratio",
        "responses are {value:.3g} times as long as the base model's (limit {limit:.3g}): they leave out the work; try "
        "pairs.max_length_ratio, and a lower learner.lr",
        "length",
    ),
    "longer": Signal(
        "ratio",
        "responses are {value:.3g} times as long as the base model's (limit {limit:.3g}): they ramble; try "
        "pairs.truncated: chosen, or pairs.max_length_ratio",
        "length",
    ),
    "ended": Signal(
        "fall",
        "{value:.1%} more of all responses than of the base model's come to no end (limit {limit:.1%}): the policy "
        "forgets to stop; try pairs.truncated: chosen, or more room (foresight.max_tokens, "
        "thought_tokens)",
    ),
    "unique": Signal(
        "ratio",
        "answers to a query are {value:.3g} times as varied as the base model's (limit {limit:.3g}): the policy gives "
        f"one answer, right or wrong; {_GENTLER}",
    ),
    "same": Signal(
        "rise",
        "one answer is {value:.1%} more of all that different questions are answered than of the base model's (limit "
        "{limit:.1%}): a vote teaches a model that guesses to guess one thing; look at its answers, ask questions of "
        f"more kinds, {_GENTLER}",
    ),
    "kl": Signal(
        "itself",
        "the policy is {value:.3g} nats per token from the base model (limit {limit:.3g}): it drifts from what it "
        "knew; lower learner.lr, raise learner.beta, or train fewer rounds",
    ),
}


_COUNTED = {"unique": "compared", "same": "stated"}
"""A signal -> the figure that says of how many responses it is, where it is not of all."""


@dataclass(frozen=True)
class SignalValue:
    """A round's `value` of a signal, put as its limits are; its figure `now`, and the one that it is compared with.

    They are of `count` responses, pairs or steps at least, as `of` says.
    """

    signal: str
    value: float
    now: float
    before: float
    count: int
    of: str
    line: str  # as in `Signal`

    @property
    def low(self) -> bool:
        """Whether less is worse."""
        return Guard.low(self.signal)


def round_metrics(
    seen: Signals | None, rollouts: Sequence[Rollout], pairs: Sequence[PreferencePair], accuracy: float, margin: float
) -> RoundMetrics:
    """What a round shows; `value`, `spread` and `length_gap` are 0 where nothing shows them.

    Steps without foresight have no values of their own. The spread is that of a sample (n - 1), so that it does not
    shrink where a step has fewer distinct candidates; a single candidate has none.
    """
    values, spreads, steps, chosen, rejected = array("d"), array("d"), 0, 0, 0
    for found in (step.values for rollout in rollouts for step in rollout.steps if step.foreseen):
        steps += 1
        values.extend(found)
        if len(found) > 1:  # statistics.stdev cannot take infinities or NaN, which are to reach the guard
            mean = fmean(found)
            spreads.append(math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1)))
    for pair in pairs:
        chosen += len(pair.chosen_tokens)
        rejected += len(pair.rejected_tokens)
    gap = 2 * (chosen - rejected) / (chosen + rejected) if chosen + rejected else 0.0
    value, spread = fmean(values) if values else 0.0, fmean(spreads) if spreads else 0.0
    return RoundMetrics(seen, value, spread, gap, accuracy, margin, len(pairs), steps)


def signal_values(now: RoundMetrics, base: Signals | None, first: RoundMetrics | None) -> list[SignalValue]:
    """Every signal of a round that something shows, put as its limits are.

    Args:
        base: the base model's signals.
        first: round 1; None in round 1 itself, which is compared with itself.
    """
    seen = now.signals
    groups = (
        ("pairs", now.pairs, OF_PAIRS, now, now),
        ("steps", now.steps, OF_STEPS if now.steps else {}, now, first or now),
        ("responses", seen.responses if seen else 0, OF_RESPONSES if seen else {}, seen, base or seen),
    )
    found = []
    for of, count, signals, figures, others in groups:
        for name, signal in signals.items():
            figure, other = (getattr(of_one, signal.figure or name) for of_one in (figures, others))
            if figure is not None and other is not None:
                value = _PUT[signal.put](figure, other)
                least = min([count, *(getattr(each, _COUNTED[name]) for each in (figures, others) if name in _COUNTED)])
                found.append(SignalValue(name, value, figure, other, least, of, signal.line))
    return found


def alarms(cfg: Guard, now: RoundMetrics, base: Signals | None, first: RoundMetrics | None) -> list[Alarm]:
    """Every signal that is beyond a limit, each once, at its worse level; halts come first.

    What is not a finite number halts, also where a signal has no limit. What fewer than 16 responses, pairs or steps
    show only warns: of a handful, one more or less that ends, or repeats, is chance.

    Args:
        base, first: as in `signal_values`.
    """
    judged = (_judge(reading, getattr(cfg, reading.signal)) for reading in signal_values(now, base, first))
    return sorted((alarm for alarm in judged if alarm), key=lambda alarm: alarm.level != "halt")


def _judge(reading: SignalValue, limit: Limit) -> Alarm | None:
    broken = [figure for figure in (reading.now, reading.before) if not math.isfinite(figure)]
    if broken and reading.signal != "shorter":  # "longer" says it
        line = f"{reading.signal} was measured as {broken[0]}, no finite number: training has broken down; {_GENTLER}"
        return Alarm(reading.signal, "halt", broken[0], math.inf, line)
    levels: tuple[tuple[Literal["halt", "warn"], float | None], ...] = (("halt", limit.halt), ("warn", limit.warn))
    for level, bound in levels:
        # 0.4 - 0.3 is a little more than 0.1: what is reached but for rounding is not exceeded.
        if bound is None or math.isclose(reading.value, bound, rel_tol=1e-9, abs_tol=1e-12):
            continue
        if not (reading.value < bound if reading.low else reading.value > bound):
            continue
        than = "longer" if reading.now > 0 else "shorter"
        line = reading.line.format(value=reading.value, limit=bound, than=than)
        if level == "halt" and reading.count < TO_HALT_FOR:
            line += f" (of {reading.count} {reading.of}; {TO_HALT_FOR} would halt the run)"
            level = "warn"
        return Alarm(reading.signal, level, reading.value, bound, line)
    return None


def guard_status(guard: Guard, report: RoundReport, base: Signals | None) -> dict[str, str]:
    """Each signal that the guard watches in a round, beside the base model's: ok, or the level of its alarm."""
    raised: dict[str, str] = {alarm.signal: alarm.level for alarm in report.alarms}
    metrics = report.metrics
    shown = {value.signal for value in signal_values(metrics, base, metrics)} if metrics else set[str]()
    watched = [name for name in Guard.model_fields if getattr(guard, name) != Limit() and name in shown]
    return {name: raised.get(name, "ok") for name in dict.fromkeys([*watched, *raised])}
