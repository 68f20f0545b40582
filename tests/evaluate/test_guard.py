from __future__ import annotations

import math
import random

import msgspec
import pytest

from genius_lite.evaluate.guard import alarms, round_metrics
from genius_lite.evaluate.signals import Observed, signals
from genius_lite.recipe import Guard, Limit
from genius_lite.records import Candidate, Completion, Finish, PreferencePair, Query, Rollout, Step
from genius_lite.results.evaluation import RoundMetrics, Signals

PAIRS = [(100, 100), (90, 90)]  # lengths of chosen and rejected
ENOUGH = 64  # pairs and steps
STEPS = [[-1.25, -0.75], [-1.0, -1.5, -0.5]]  # values of candidates: 1 in the mean, deviations of 0.354 and 0.5


def step(values: list[float], *, foreseen: bool = True) -> Step:
    done = [
        Candidate(0, Completion([n], [v], "step"), Completion([9], [v], "end"), v, 0.0) for n, v in enumerate(values)
    ]
    return Step(0, done, [0], foreseen=foreseen)


def rollout(*steps: Step) -> Rollout:
    return Rollout(Query("q", "x", [1, 2]), list(steps))


def pair(chosen: int, rejected: int) -> PreferencePair:
    return PreferencePair("q", 0, [1], [3] * chosen, [4] * rejected, 0.0, 0.0, -0.1, -0.2, True, True)


def responses(
    *,
    answers: tuple[str, ...] = ("1", "2", "3", "4"),
    length: int = 100,
    logprob: float = -1.0,
    base: float | None = None,
    finish: Finish = "end",
    tail: tuple[int, int] | None = None,
    body: tuple[int, int] | None = None,
    share: float = 1.0,
) -> list[Observed]:
    """Four responses to each of eight queries; `finish`, `tail` and `body` are those of a share of them.

    `tail` and `body` are a unit and its repeats: a response ends with it, or starts with it.
    """
    found = []
    for number in range(32):
        query, sample = divmod(number, 4)
        tokens, ended = random.Random(number).sample(range(1000, 9000), length), "end"
        if number % 8 < 8 * share:
            ended = finish
            if tail:
                tokens[-tail[0] * tail[1] :] = list(range(tail[0])) * tail[1]
            if body:
                tokens[: body[0] * body[1]] = list(range(body[0])) * body[1]
        logprobs = [logprob] * length
        of_base = [logprob if base is None else base] * length
        found.append(Observed(f"q{query}", tokens, logprobs, of_base, ended, answers[(sample + query) % len(answers)]))
    return found


def watched(
    steps: list[list[float]] = STEPS,
    pairs: list[tuple[int, int]] = PAIRS,
    accuracy: float = 0.75,
    margin: float = 0.5,
    **said,
) -> RoundMetrics:
    rollouts, drawn = [rollout(step(values)) for values in steps], [pair(*lengths) for lengths in pairs]
    found = round_metrics(signals(responses(**said)), rollouts, drawn, accuracy, margin)
    return msgspec.structs.replace(found, pairs=ENOUGH, steps=ENOUGH)


BASE = signals([msgspec.structs.replace(response, base_logprobs=[]) for response in responses()])
FIRST = watched()


def raised(now: RoundMetrics, cfg: Guard | None = None, first: RoundMetrics | None = FIRST) -> dict[str, str]:
    found = alarms(cfg or Guard(), now, BASE, first)
    assert len({alarm.signal for alarm in found}) == len(found)
    return {alarm.signal: alarm.level for alarm in found}


def test_a_healthy_round_raises_none():
    assert (BASE.kl, BASE.entropy, BASE.length, BASE.unique, BASE.loops) == (0.0, 1.0, 100.0, 1.0, 0.0)
    assert raised(FIRST) == raised(FIRST, first=None) == {}
    learned = watched(
        answers=("1", "1", "2", "3"),
        length=120,
        logprob=-0.8,
        base=-0.9,
        steps=[[-0.75, -0.5], [-1.0, -0.75, -0.25]],
        pairs=[(100, 90), (80, 100)],
    )
    assert raised(learned) == {}


NAN, INF = math.nan, math.inf
SAME = ("7",)
COLLAPSES = {
    "entropy collapse": ({"logprob": -0.4}, {"entropy": "warn"}),
    "entropy collapse, worse": ({"logprob": -0.1}, {"entropy": "halt"}),
    "looping": ({"tail": (20, 3), "share": 0.25}, {"loops": "warn"}),
    "looping, worse": ({"tail": (20, 3), "share": 0.5}, {"loops": "halt"}),
    "repeating without a loop at the end": ({"body": (10, 9), "share": 0.5}, {"distinct": "warn"}),
    "repeating without a loop at the end, worse": ({"body": (10, 9)}, {"distinct": "halt"}),
    "never ending": ({"finish": "length", "share": 0.25}, {"ended": "warn"}),
    "never ending, worse": ({"finish": "length", "share": 0.75}, {"ended": "halt"}),
    "shrinking": ({"length": 40}, {"shorter": "warn"}),
    "shrinking, worse": ({"length": 15}, {"shorter": "halt"}),
    "growing": ({"length": 250}, {"longer": "warn"}),
    "growing, worse": ({"length": 450}, {"longer": "halt"}),
    "few answers": ({"answers": ("1", "1", "1", "1", "2")}, {"unique": "warn", "same": "warn"}),
    "one answer for everything": ({"answers": SAME}, {"unique": "halt", "same": "halt"}),
    "drift from the base": ({"base": -2.5}, {"kl": "warn"}),
    "drift from the base, worse": ({"base": -4.0}, {"kl": "halt"}),
    "value collapse": ({"steps": [[v - 0.75 for v in s] for s in STEPS]}, {"value": "warn"}),
    "value collapse, worse": ({"steps": [[v - 2.0 for v in s] for s in STEPS]}, {"value": "halt"}),
    "little spread": ({"steps": [[-1.05, -0.95], [-1.0, -1.1, -0.9]]}, {"spread": "warn"}),
    "hardly any spread": ({"steps": [[-1.01, -0.99], [-1.0, -1.01, -0.99]]}, {"spread": "halt"}),
    "no spread": ({"steps": [[-1.0, -1.0], [-1.0]]}, {"spread": "halt"}),
    "one candidate everywhere": ({"steps": [[-1.0], [-1.0]]}, {"spread": "halt"}),
    "chosen is longer": ({"pairs": [(120, 80)]}, {"length_gap": "warn"}),
    "chosen is much longer": ({"pairs": [(220, 80)]}, {"length_gap": "halt"}),
    "chosen is shorter": ({"pairs": [(80, 120)]}, {"length_gap": "warn"}),
    "chosen is much shorter": ({"pairs": [(80, 220)]}, {"length_gap": "halt"}),
    "pairs ranked wrong": ({"accuracy": 0.4}, {"accuracy": "warn"}),
    "most pairs ranked wrong": ({"accuracy": 0.2}, {"accuracy": "halt"}),
    "negative margin": ({"margin": -0.1}, {"margin": "warn"}),
    "very negative margin": ({"margin": -50.0}, {"margin": "warn"}),  # it has no other limit
    "NaN in training": ({"margin": NAN, "accuracy": NAN}, {"accuracy": "halt", "margin": "halt"}),
    "infinite margin": ({"margin": INF}, {"margin": "halt"}),
    "NaN in the policy": ({"logprob": NAN}, {"entropy": "halt", "kl": "halt"}),
    "NaN in the base": ({"base": NAN}, {"kl": "halt"}),
    "impossible in the base": ({"base": -INF}, {"kl": "halt"}),
    "NaN in the values": ({"steps": [[NAN, -1.0], [-1.0, -0.5]]}, {"value": "halt", "spread": "halt"}),
    "infinite value": ({"steps": [[-INF, -1.0], [-1.0, -0.5]]}, {"value": "halt", "spread": "halt"}),
}


@pytest.mark.parametrize("kind", COLLAPSES)
def test_each_collapse_raises_its_alarm_and_no_other(kind):
    change, expected = COLLAPSES[kind]
    assert raised(watched(**change)) == expected


def test_every_limit_has_a_collapse_that_warns_and_one_that_halts():
    seen = {(signal, level) for _, expected in COLLAPSES.values() for signal, level in expected.items()}
    assert seen >= {(name, level) for name in Guard.model_fields for level in ("warn", "halt")}


def test_an_alarm_says_what_was_measured_and_what_to_try():
    (alarm,) = alarms(Guard(), watched(logprob=-0.4), BASE, FIRST)
    assert (alarm.signal, alarm.level, alarm.limit) == ("entropy", "warn", 0.5)
    assert alarm.value == pytest.approx(0.4)
    assert alarm.line.startswith("token entropy is 0.4 times the base model's (limit 0.5): ")
    assert "learner.lr" in alarm.line
    (alarm,) = alarms(Guard(), watched(pairs=[(80, 120)]), BASE, FIRST)
    assert (alarm.value, alarm.limit) == (0.4, 0.3)
    assert alarm.line.startswith(
        "chosen responses are shorter than rejected ones by 40.0% of their mean length (limit 30"
    )
    (alarm,) = alarms(Guard(), watched(tail=(20, 3), share=0.25), BASE, FIRST)
    assert (alarm.value, alarm.limit) == (0.25, 0.1)
    assert "25.0% more of all responses" in alarm.line and "pairs.looping: either" in alarm.line
    (alarm,) = alarms(Guard(), watched(margin=NAN), BASE, FIRST)
    assert math.isnan(alarm.value) and alarm.limit == math.inf and "margin was measured as nan" in alarm.line


@pytest.mark.parametrize("kind", COLLAPSES)
def test_every_line_is_one_sentence_without_a_placeholder(kind):
    for alarm in alarms(Guard(), watched(**COLLAPSES[kind][0]), BASE, FIRST):
        assert "{" not in alarm.line and "\n" not in alarm.line and not alarm.line.endswith(".")
        assert "learner." in alarm.line or "pairs." in alarm.line or "foresight." in alarm.line


def test_the_halts_come_first():
    found = alarms(Guard(), watched(accuracy=0.4, logprob=-0.1, margin=-1.0), BASE, FIRST)
    assert [(alarm.signal, alarm.level) for alarm in found] == [
        ("entropy", "halt"),
        ("accuracy", "warn"),
        ("margin", "warn"),
    ]


EXACTLY = Signals(
    entropy=0.5,
    distinct=0.35,
    loops=0.4,
    length=50,
    ended=0.5,
    unique=0.75,
    agreement=0.5,
    parsed=1.0,
    kl=0.5,
    responses=64,
)
BEFORE = Signals(
    entropy=1.0,
    distinct=0.5,
    loops=0.3,
    length=100,
    ended=0.7,
    unique=1.0,
    agreement=0.5,
    parsed=1.0,
    kl=0.0,
    responses=64,
)


def test_a_limit_that_is_exactly_reached_gives_no_alarm():
    assert EXACTLY.loops - BEFORE.loops > 0.1  # by rounding
    now = RoundMetrics(EXACTLY, -1.5, 0.3, -0.3, 0.5, 0.0, ENOUGH, ENOUGH)
    first = RoundMetrics(BEFORE, -1.0, 1.0, 0.0, 0.9, 1.0, ENOUGH, ENOUGH)
    assert alarms(Guard(), now, BEFORE, first) == []
    nearly = msgspec.structs.replace(now, accuracy=0.4999, margin=-0.0001)
    assert [alarm.signal for alarm in alarms(Guard(), nearly, BEFORE, first)] == ["accuracy", "margin"]
    doubled = msgspec.structs.replace(now, signals=msgspec.structs.replace(EXACTLY, length=200))
    assert alarms(Guard(), doubled, BEFORE, first) == []


def test_a_base_value_of_zero_makes_no_false_alarm():
    none = msgspec.structs.replace(BASE, entropy=0.0, distinct=0.0, unique=0.0)
    still = msgspec.structs.replace(FIRST, spread=0.0)
    assert alarms(Guard(), FIRST, none, still) == []
    nothing = msgspec.structs.replace(FIRST, signals=none, spread=0.0)
    assert alarms(Guard(), nothing, none, still) == []


def test_without_held_out_queries_the_rest_is_still_watched():
    now = msgspec.structs.replace(FIRST, signals=None, accuracy=0.2)
    assert [alarm.signal for alarm in alarms(Guard(), now, None, FIRST)] == ["accuracy"]
    assert [alarm.signal for alarm in alarms(Guard(), watched(base=-4.0), None, FIRST)] == ["kl"]


def test_round_1_has_no_round_1_to_compare_with():
    assert raised(watched(steps=[[-9.0, -9.0]]), first=None) == {}
    assert raised(watched(steps=[[NAN, -9.0]]), first=None) == {"value": "halt", "spread": "halt"}


def test_a_limit_can_be_moved_and_switched_off_but_nan_halts():
    off = Guard(margin=Limit(), entropy=Limit(halt=0.5))
    assert raised(watched(margin=-9.0, logprob=-0.4), off) == {"entropy": "halt"}
    assert raised(watched(margin=-9.0, logprob=-0.6), off) == {}
    assert raised(watched(margin=NAN), off) == {"margin": "halt"}
    assert raised(watched(logprob=-0.1), Guard(entropy=Limit(warn=0.5))) == {"entropy": "warn"}


@pytest.mark.parametrize("signal", ["entropy", "distinct", "loops", "ended", "unique", "kl"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_signal_that_is_no_number_halts_once(signal, bad):
    assert FIRST.signals
    broken = msgspec.structs.replace(FIRST, signals=msgspec.structs.replace(FIRST.signals, **{signal: bad}))
    found = alarms(Guard(), broken, BASE, FIRST)
    assert [(a.signal, a.level) for a in found if a.level == "halt"] == [(signal, "halt")]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_length_that_is_no_number_is_said_once(bad):
    broken = msgspec.structs.replace(FIRST, signals=msgspec.structs.replace(BASE, length=bad))
    assert raised(broken) == {"longer": "halt"}


def test_values_of_records():
    foreseen = [step([-1.25, -0.75]), step([-3.0])]
    copied = step([-8.0, -8.0], foreseen=False)
    now = seen([rollout(*foreseen, copied), rollout(step([-1.0, -2.0, -3.0]))], [pair(30, 10)])
    assert now.value == pytest.approx((-1.25 - 0.75 - 3 - 1 - 2 - 3) / 6)
    assert now.spread == pytest.approx((math.sqrt(0.125) + 1.0) / 2)
    assert now.length_gap == 1.0
    assert (now.pairs, now.steps) == (1, 3)
    assert seen([], [pair(10, 10), pair(10, 50)]).length_gap == -1.0


def seen(rollouts: list[Rollout], pairs: list[PreferencePair]) -> RoundMetrics:
    return round_metrics(None, rollouts, pairs, 0.5, 0.0)


def test_records_without_anything_to_see_give_zeros():
    for rollouts, pairs, value in (
        ([], [], 0.0),
        ([rollout(step([-8.0, -9.0], foreseen=False))], [], 0.0),
        ([rollout(step([-2.0]))], [pair(0, 0)], -2.0),
    ):
        now = seen(rollouts, pairs)
        assert (now.value, now.spread, now.length_gap) == (value, 0.0, 0.0)


@pytest.mark.parametrize("count", [4, 15, 16])
@pytest.mark.parametrize(
    ("signal", "what", "worse"),
    [("accuracy", "pairs", {"accuracy": 0.1}), ("length_gap", "pairs", {"length_gap": 0.9}),
     ("value", "steps", {"value": -9.0}), ("spread", "steps", {"spread": 0.0})],
)  # fmt: skip
def test_what_a_handful_of_pairs_or_steps_shows_is_no_reason_to_halt(signal, what, worse, count):
    now = msgspec.structs.replace(FIRST, **worse, **{what: count})
    (alarm,) = alarms(Guard(), now, BASE, FIRST)
    assert (alarm.signal, alarm.level) == (signal, "halt" if count == 16 else "warn")
    assert (f"{count} {what}; 16 would halt" in alarm.line) == (count < 16)


def test_a_round_without_foresight_shows_no_values():
    none = msgspec.structs.replace(FIRST, value=0.0, spread=0.0, steps=0)
    assert alarms(Guard(), none, BASE, FIRST) == []


def test_answers_that_were_not_measured_are_not_judged():
    unseen = msgspec.structs.replace(BEFORE, unique=None, agreement=None)
    assert "unique" not in [alarm.signal for alarm in alarms(Guard(), FIRST, unseen, None)]


@pytest.mark.parametrize(("responses", "level"), [(4, "warn"), (15, "warn"), (16, "halt")])
def test_what_a_handful_of_responses_shows_is_no_reason_to_halt(responses, level):
    base = msgspec.structs.replace(BEFORE, ended=0.75, responses=responses)
    now = RoundMetrics(msgspec.structs.replace(base, ended=0.0), -0.5, 0.1, 0.0, 1.0, 1.0, ENOUGH, ENOUGH)
    (alarm,) = alarms(Guard(), now, base, None)
    assert (alarm.signal, alarm.level) == ("ended", level)
    assert ("4 responses; 16 would halt" in alarm.line) == (responses == 4)


@pytest.mark.parametrize(("signal", "of"), [("unique", "compared"), ("same", "stated")])
@pytest.mark.parametrize("model", ["now", "base"])
def test_what_few_that_ended_show_is_no_reason_to_halt(signal, of, model):
    """Of 64 responses 15 came to an end and state an answer."""
    base = msgspec.structs.replace(BEFORE, unique=1.0, same=0.0, compared=64, stated=64)
    now = msgspec.structs.replace(base, **{signal: {"unique": 0.0, "same": 1.0}[signal]})
    judged = RoundMetrics(now, -0.5, 0.1, 0.0, 1.0, 1.0, ENOUGH, ENOUGH)
    assert [(alarm.signal, alarm.level) for alarm in alarms(Guard(), judged, base, None)] == [(signal, "halt")]
    few = {"now": now, "base": base}
    few[model] = msgspec.structs.replace(few[model], **{of: 15})
    judged = msgspec.structs.replace(judged, signals=few["now"])
    assert [(alarm.signal, alarm.level) for alarm in alarms(Guard(), judged, few["base"], None)] == [(signal, "warn")]


def test_a_breakdown_halts_whatever_it_is_seen_in():
    now = RoundMetrics(
        msgspec.structs.replace(BEFORE, entropy=math.nan, responses=4), -0.5, 0.1, 0.0, 1.0, 1.0, ENOUGH, ENOUGH
    )
    assert alarms(Guard(), now, BEFORE, None)[0].level == "halt"
