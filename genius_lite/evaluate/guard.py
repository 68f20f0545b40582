"""The collapse guard: signals of a round against their limits, a warning first and then a halt.

Self-training feeds a policy with what it prefers already. It can end in one answer for everything, in loops, in
responses that never end or hardly begin, or far from the model that it was. Each of these has a signal here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import msgspec

from genius_lite.recipe import Guard, Limit
from genius_lite.records import PreferencePair, Rollout
from genius_lite.results.evaluation import Alarm, RoundMetrics, Signals
from genius_lite.results.rounds import RoundReport

OF_RESPONSES = ("entropy", "distinct", "loops", "shorter", "longer", "ended", "unique", "kl")
"""The limits of signals that responses to held-out queries show; without such a query there are none."""

_OF_PAIRS = ("length_gap", "accuracy", "margin")
_OF_STEPS = ("value", "spread")
TO_HALT_FOR = 16
"""Responses, pairs or steps that a signal must be of, at least, to halt a run; of fewer it only warns."""


@dataclass(frozen=True)
class SignalValue:
    """A signal put as its limits are, and what was `measured` for it."""

    signal: str
    value: float
    measured: tuple[float, ...]
    line: str  # with {value} and {limit}

    @property
    def low(self) -> bool:
        """Whether less is worse."""
        return Guard.low(self.signal)


def round_metrics(
    seen: Signals | None, rollouts: Sequence[Rollout], pairs: Sequence[PreferencePair], accuracy: float, margin: float
) -> RoundMetrics:
    """What a round shows; `value`, `spread` and `length_gap` are 0 where nothing shows them.

    Steps without foresight are left out, as they have no values of their own. The spread is that of a sample (n - 1),
    so that it does not shrink where a step has fewer distinct candidates; a single candidate has none.
    """
    steps = [[c.value for c in step.candidates] for r in rollouts for step in r.steps if step.foreseen]
    values = [value for step in steps for value in step]
    spreads = [_deviation(step) for step in steps if len(step) > 1]
    chosen, rejected = sum(len(p.chosen_tokens) for p in pairs), sum(len(p.rejected_tokens) for p in pairs)
    gap = 2 * (chosen - rejected) / (chosen + rejected) if chosen + rejected else 0.0
    value, spread = fmean(values) if values else 0.0, fmean(spreads) if spreads else 0.0
    return RoundMetrics(seen, value, spread, gap, accuracy, margin, len(pairs), len(steps))


def alarms(cfg: Guard, now: RoundMetrics, base: Signals | None, first: RoundMetrics | None) -> list[Alarm]:
    """Every signal that is beyond a limit, each once, at its worse level; halts come first.

    A limit that is exactly reached gives no alarm. What is not a finite number halts, also where a signal has no limit.
    What fewer than 16 responses, pairs or steps show only warns.

    Args:
        base: the base model's signals.
        first: round 1; None in round 1 itself, which is compared with itself.
    """
    judged = (_judge(reading, getattr(cfg, reading.signal)) for reading in signal_values(now, base, first))
    found = [_within_reason(alarm, now) for alarm in judged if alarm]
    return sorted(found, key=lambda alarm: alarm.level != "halt")


def _within_reason(alarm: Alarm, now: RoundMetrics) -> Alarm:
    """Of a handful of responses one more or less that ends, or repeats, is chance: no reason to halt a run for."""
    count, what = now.signals.responses if now.signals else 0, "responses"
    if alarm.signal in _OF_PAIRS:
        count, what = now.pairs, "pairs"
    elif alarm.signal in _OF_STEPS:
        count, what = now.steps, "steps"
    if count >= TO_HALT_FOR or alarm.level == "warn" or math.isinf(alarm.limit):
        return alarm
    line = f"{alarm.line} (of {count} {what}; {TO_HALT_FOR} would halt the run)"
    return msgspec.structs.replace(alarm, level="warn", line=line)


def signal_values(now: RoundMetrics, base: Signals | None, first: RoundMetrics | None) -> list[SignalValue]:
    """Every signal of a round, put as its limits are; the arguments are those of `alarms`."""
    found = _of_training(now) + _of_values(now, first or now)
    return found + _of_responses(now.signals, base or now.signals) if now.signals else found


def _judge(reading: SignalValue, limit: Limit) -> Alarm | None:
    for measured in reading.measured:
        if not math.isfinite(measured):
            line = (
                f"{reading.signal} was measured as {measured}, no finite number: training has broken down; {_GENTLER}"
            )
            return Alarm(reading.signal, "halt", measured, math.inf, line)
    levels: tuple[tuple[Literal["halt", "warn"], float | None], ...] = (("halt", limit.halt), ("warn", limit.warn))
    for level, bound in levels:
        if bound is not None and _beyond(reading.value, bound, reading.low):
            line = reading.line.format(value=reading.value, limit=bound)
            return Alarm(reading.signal, level, reading.value, bound, line)
    return None


def _beyond(value: float, bound: float, low: bool) -> bool:
    # 0.4 - 0.3 is a little more than 0.1: what is reached but for rounding is not exceeded.
    exceeded = value < bound if low else value > bound
    return exceeded and not math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12)


_GENTLER = "lower learner.lr, train fewer rounds or on more queries"


def _of_training(now: RoundMetrics) -> list[SignalValue]:
    than = "longer" if now.length_gap > 0 else "shorter"
    return [
        SignalValue(
            "length_gap",
            abs(now.length_gap),
            (now.length_gap,),
            f"chosen responses are {than} than rejected ones by {{value:.1%}} of their mean length (limit {{limit:.1%}}"
            "): the policy will learn length instead of content; try pairs.max_length_ratio, or a larger "
            "foresight.max_tokens",
        ),
        SignalValue(
            "accuracy",
            now.accuracy,
            (now.accuracy,),
            "after training the policy ranks {value:.1%} of its pairs right (limit {limit:.1%}): it does not learn "
            "what they say; try another learner.lr, or more pairs an update (learner.batch_pairs)",
        ),
        SignalValue(
            "margin",
            now.margin,
            (now.margin,),
            "the learned margin is {value:.3g} nats (limit {limit:.3g}): training went the wrong way; lower learner.lr",
        ),
    ]


def _of_values(now: RoundMetrics, first: RoundMetrics) -> list[SignalValue]:
    if not now.steps:
        return []
    return [
        SignalValue(
            "value",
            first.value - now.value,
            (now.value, first.value),
            "foresight values are {value:.3g} nats per token below round 1's (limit {limit:.3g}): the policy is less "
            "sure of all that it says; lower learner.lr, or train fewer rounds",
        ),
        SignalValue(
            "spread",
            _ratio(now.spread, first.spread),
            (now.spread, first.spread),
            "the values of a step spread {value:.3g} times as far as in round 1 (limit {limit:.3g}): its candidates "
            "look alike, and pairs tell little; raise foresight.temperature, or train fewer rounds",
        ),
    ]


def _of_responses(now: Signals, base: Signals) -> list[SignalValue]:
    length = _ratio(now.length, base.length)
    varied = None if now.unique is None or base.unique is None else (now.unique, base.unique)
    found = [
        SignalValue(
            "entropy",
            _ratio(now.entropy, base.entropy),
            (now.entropy, base.entropy),
            "token entropy is {value:.3g} times the base model's (limit {limit:.3g}): the policy hardly varies what it "
            f"says; {_GENTLER}",
        ),
        SignalValue(
            "distinct",
            _ratio(now.distinct, base.distinct),
            (now.distinct, base.distinct),
            "the share of different 2-grams is {value:.3g} times the base model's (limit {limit:.3g}): responses "
            "repeat themselves; try pairs.looping: either, and a lower learner.lr",
        ),
        SignalValue(
            "loops",
            now.loops - base.loops,
            (now.loops, base.loops),
            "{value:.1%} more of all responses than of the base model's end in a repetition (limit {limit:.1%}): "
            "foresight rewards loops; try pairs.looping: either, and a lower learner.lr",
        ),
        SignalValue(
            "shorter",
            length,
            (),  # "longer" says it
            "responses are {value:.3g} times as long as the base model's (limit {limit:.3g}): they leave out the work; "
            "try pairs.max_length_ratio, and a lower learner.lr",
        ),
        SignalValue(
            "longer",
            length,
            (now.length, base.length),
            "responses are {value:.3g} times as long as the base model's (limit {limit:.3g}): they ramble; try "
            "pairs.truncated: chosen, or pairs.max_length_ratio",
        ),
        SignalValue(
            "ended",
            base.ended - now.ended,
            (now.ended, base.ended),
            "{value:.1%} more of all responses than of the base model's come to no end (limit {limit:.1%}): the policy "
            "forgets to stop; try pairs.truncated: chosen, or a larger foresight.max_tokens",
        ),
        SignalValue(
            "kl",
            now.kl,
            (now.kl,),
            "the policy is {value:.3g} nats per token from the base model (limit {limit:.3g}): it drifts from what it "
            "knew; lower learner.lr, raise learner.beta, or train fewer rounds",
        ),
    ]
    if varied:
        line = (
            "answers to a query are {value:.3g} times as varied as the base model's (limit {limit:.3g}): the policy "
            f"gives one answer, right or wrong; {_GENTLER}"
        )
        found.insert(-1, SignalValue("unique", _ratio(*varied), varied, line))
    return found


def _ratio(now: float, before: float) -> float:
    """1 where both are 0: nothing changed. Above 0 everything is infinitely more than 0, and so never too little."""
    if before == 0:
        return 1.0 if now == 0 else math.inf
    return now / before


def _deviation(values: list[float]) -> float:
    # statistics.stdev cannot take infinities or NaN, which are to reach the guard.
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def guard_status(guard: Guard, report: RoundReport) -> dict[str, str]:
    """Each signal that the guard watches in a round: ok, or the level of its alarm."""
    raised: dict[str, str] = {alarm.signal: alarm.level for alarm in report.alarms}
    seen = bool(report.metrics and report.metrics.signals)
    watched = [
        name for name in Guard.model_fields if getattr(guard, name) != Limit() and (seen or name not in OF_RESPONSES)
    ]
    return {name: raised.get(name, "ok") for name in dict.fromkeys([*watched, *raised])}
