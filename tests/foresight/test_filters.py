from __future__ import annotations

import random

import pytest

from genius_lite.foresight.filters import FILTERS, Answer, Vote, loops, refusal
from genius_lite.recipe import Pairs
from genius_lite.records import Candidate, Completion, Finish, PreferencePair, Query, Rollout, Step
from tests.support.rollouts import last_digit, preference_pairs

NONE = {"gap": 0, "looping": 0, "truncated": 0, "length": 0, "agreement": 0}
PLAIN = [50, 3, 71, 8, 24, 66, 91, 17]
LOOP = [50, 3, 71] + [8, 24, 66] * 60


def pair(
    chosen: list[int],
    rejected: list[int],
    values: tuple[float, float] = (-0.25, -0.5),
    ended: tuple[bool, bool] = (True, True),
    query: str = "q",
) -> PreferencePair:
    return PreferencePair(query, 0, [1, 2], chosen, rejected, 0.0, 0.0, *values, *ended)


def filter_pairs(
    pairs: list[PreferencePair], rollouts: list[Rollout], cfg: Pairs, answer: Answer
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Those that no filter refuses, and how many each does."""
    votes = {rollout.query.id: Vote(rollout, answer) for rollout in rollouts}
    nobody = Vote(Rollout(Query("", "", [1]), []), answer)
    refusals = [refusal(pair, cfg, votes.get(pair.query_id, nobody)) for pair in pairs]
    kept = [pair for pair, refused in zip(pairs, refusals, strict=True) if refused is None]
    return kept, {name: refusals.count(name) for name in FILTERS}


def unasked(tokens: list[int]) -> str | None:
    raise AssertionError(f"no filter needs the answer of {tokens}")


def kept(pairs: list[PreferencePair], **options) -> tuple[list[int], dict[str, int]]:
    """The places of the pairs that stay, and the counts that are not 0."""
    stay, counts = filter_pairs(pairs, [], Pairs(**options), unasked)
    assert list(counts) == list(NONE)
    return [pairs.index(p) for p in stay], {name: n for name, n in counts.items() if n}


def test_by_default_a_chosen_response_neither_loops_nor_is_cut_off_and_is_clearly_better():
    pairs = [
        pair(PLAIN, LOOP, values=(-0.9, -0.1), ended=(False, False)),
        pair(LOOP, PLAIN),
        pair(PLAIN, [7]),
        pair(PLAIN, LOOP, ended=(False, True)),
        pair(PLAIN, LOOP, ended=(True, False)),
    ]
    assert kept(pairs) == ([2, 4], {"gap": 1, "looping": 1, "truncated": 1})
    assert kept(pairs, choose="random") == ([2, 4], {"looping": 1, "truncated": 2}), "chance need not choose the better"
    assert filter_pairs([], [], Pairs(), unasked) == ([], NONE)


def test_min_gap():
    pairs = [pair([3], [4], values) for values in ((-0.25, -0.5), (-0.25, -0.375), (-0.5, -0.25))]
    assert kept(pairs, min_gap=0.25) == ([0], {"gap": 2})  # as much as the least is enough
    assert kept(pairs, min_gap=0.0) == ([0, 1, 2], {})  # a negative gap, of pairs drawn at random, is not judged


@pytest.mark.parametrize(("looping", "stay"), [("keep", [0, 1, 2]), ("chosen", [0, 2]), ("either", [0])])
def test_looping(looping, stay):
    pairs = [pair(PLAIN, PLAIN[1:]), pair(LOOP, PLAIN), pair(PLAIN, LOOP)]
    assert kept(pairs, looping=looping) == (stay, {"looping": 3 - len(stay)} if len(stay) < 3 else {})


@pytest.mark.parametrize(("truncated", "stay"), [("keep", [0, 1, 2]), ("chosen", [0, 2]), ("either", [0])])
def test_truncated(truncated, stay):
    pairs = [pair([3], [4], ended=ended) for ended in ((True, True), (False, True), (True, False))]
    assert kept(pairs, truncated=truncated) == (stay, {"truncated": 3 - len(stay)} if len(stay) < 3 else {})


def test_max_length_ratio():
    pairs = [pair([3] * a, [4] * b) for a, b in ((2, 1), (1, 2), (5, 2), (2, 5))]
    assert kept(pairs, max_length_ratio=2.0, looping="keep") == ([0, 1], {"length": 2})
    assert kept(pairs, looping="keep") == ([0, 1, 2, 3], {})


def candidate(tokens: list[int], future: list[int], beam: int = 0, finish: Finish = "end") -> Candidate:
    ends = Completion(future, [-0.1] * len(future), finish) if future else None
    return Candidate(beam, Completion(tokens, [-1.0] * len(tokens), "step"), ends, -0.1, 0.0)


def voting(*answers: int, query: str = "q") -> Rollout:
    """One step; candidate i responds with [10 + i, its answer]."""
    candidates = [candidate([10 + i], [said]) for i, said in enumerate(answers)]
    return Rollout(Query(query, "x", [1, 2]), [Step(0, candidates, [0])])


@pytest.mark.parametrize(
    ("agreement", "chosen", "rejected", "stays"),
    [
        (0.6, 0, 3, True),  # 7 has 3 of the 5 votes, and 8 is another answer
        (0.61, 0, 3, False),
        (0.2, 3, 0, True),  # 8 has one vote
        (0.21, 3, 0, False),
        (0.2, 0, 1, False),  # both say 7
        (0.2, 0, 5, False),  # the rejected one states nothing
        (0.2, 5, 0, False),  # the chosen one states nothing
    ],
)
def test_agreement_is_a_vote_of_those_that_state_an_answer(agreement, chosen, rejected, stays):
    rollout = voting(7, 7, 7, 8, 9, 0)
    only = pair(rollout.response(0, chosen), rollout.response(0, rejected))
    found = filter_pairs([only], [rollout], Pairs(agreement=agreement), last_digit)
    assert found == ([only] if stays else [], {**NONE, "agreement": not stays})


def test_agreement_is_a_vote_within_a_query_and_silent_where_none_states_an_answer():
    rollouts = [voting(7, 8, 8, query="a"), voting(7, 7, 8, query="b"), voting(0, 0, query="c")]
    pairs = [pair([10, 7], [12, 8], query="a"), pair([10, 7], [12, 8], query="b"), pair([10, 0], [11, 0], query="c")]
    found = filter_pairs(pairs, rollouts, Pairs(agreement=0.5), last_digit)
    assert found == (pairs[1:], {**NONE, "agreement": 1})


def test_a_response_of_two_foreseen_steps_votes_once():
    steps = [
        Step(0, [candidate([3], [4, 7]), candidate([5], [6, 8])], [0, 1]),
        # Not foreseen, so its responses have no end yet: no vote, and the answers of "their" last tokens are not asked.
        Step(1, [candidate([2], [], beam=0), candidate([2], [], beam=1)], [0, 1], foreseen=False),
        Step(2, [candidate([4], [7], beam=0), candidate([9], [8], beam=1)], [0]),
    ]
    # Beam 0 comes by 3 and 2, beam 1 by 5 and 2: four responses, none equal.
    rollout = Rollout(Query("q", "x", [1]), steps)
    asked = []

    def answer(tokens: list[int]) -> str | None:
        asked.append(tokens)
        return last_digit(tokens)

    pairs = [pair([3, 4, 7], [5, 6, 8]), pair([5, 2, 9, 8], [3, 2, 4, 7])]
    assert filter_pairs(pairs, [rollout], Pairs(agreement=0.5), answer) == (pairs, NONE)
    assert asked == [[3, 4, 7], [5, 6, 8], [3, 2, 4, 7], [5, 2, 9, 8]]

    # The same response, found once more at the next step (its step and future cut elsewhere), has no second vote:
    # 7 is said by one of two, not by two of three.
    again = [steps[0], Step(1, [candidate([4], [7], beam=0)], [0])]
    rollout = Rollout(Query("q", "x", [1]), again)
    assert rollout.response(1, 0) == rollout.response(0, 0)
    asked.clear()
    _, counts = filter_pairs(pairs[:1], [rollout], Pairs(agreement=0.6), answer)
    assert counts == {**NONE, "agreement": 1}
    assert asked == [[3, 4, 7], [5, 6, 8]]


def test_a_pair_is_counted_by_the_first_filter_that_refuses_it():
    cfg = {"min_gap": 0.1, "looping": "chosen", "truncated": "chosen", "max_length_ratio": 3.0, "agreement": 0.9}
    rollout = voting(7, 8)
    bad = {"values": (-0.5, -0.5), "ended": (False, False)}
    pairs = [
        pair(LOOP, [10, 7], **bad),
        pair(LOOP, [10, 7], ended=(False, False)),
        pair(PLAIN, [10, 7], ended=(False, False)),
        pair(PLAIN, [10, 7]),
        pair([10, 7], [11, 8]),
    ]
    assert filter_pairs(pairs, [rollout], Pairs(**cfg), last_digit) == ([], dict.fromkeys(NONE, 1))


def test_what_was_cut_off_states_no_final_answer():
    rollout = voting(7, 7, 8, 8, 8)
    cut = [candidate([10 + i], [8], finish="length") for i in (2, 3)]
    step = Step(0, [*rollout.steps[0].candidates[:2], *cut, rollout.steps[0].candidates[4]], [0])
    rollout = Rollout(rollout.query, [step])
    pairs = [pair([10, 7], [14, 8]), pair([10, 7], [12, 8], ended=(True, False)), pair([14, 8], [10, 7])]
    found = filter_pairs(pairs, [rollout], Pairs(agreement=0.5), last_digit)
    assert found == (pairs[:1], {**NONE, "agreement": 2})  # 7 has two of three votes


def test_pairs_of_a_rollout_pass_from_end_to_end():
    candidates = [candidate([3], [7]), candidate([4], [8], finish="length")]
    worse = Candidate(0, candidates[1].step, candidates[1].future, -0.5, -0.4)
    rollout = Rollout(Query("q", "x", [1, 2]), [Step(0, [candidates[0], worse], [0])])

    def found(**options) -> tuple[int, dict[str, int]]:
        pairs, left_out = preference_pairs([rollout], Pairs(**options), 0.1, (0,), unasked)
        return len(pairs), left_out

    assert found() == (1, NONE)
    assert found(min_gap=0.4, truncated="chosen") == (1, NONE)
    assert found(min_gap=0.5) == (0, {**NONE, "gap": 1})
    assert found(truncated="either") == (0, {**NONE, "truncated": 1})


# -- repetition ------------------------------------------------------------------------------------------

HEAD = [500, 17, 333, 41, 8, 290, 77]  # what was said before
END = [2]


def unit(length: int) -> list[int]:
    return list(range(1000, 1000 + length))


@pytest.mark.parametrize("length", [1, 2, 3, 6, 7, 8, 13, 31, 32])
def test_a_unit_loops_from_its_least_stretch_on(length):
    least = max(24, 3 * length)
    said = (unit(length) * 24)[:least]
    assert loops(HEAD + said)
    assert loops(HEAD + said + END)
    assert not loops(HEAD + said[1:])
    assert not loops(HEAD + said[1:] + END)


@pytest.mark.parametrize("cut", range(5))
def test_a_loop_may_be_cut_within_a_unit(cut):
    assert loops(HEAD + unit(5) * 6 + unit(5)[:cut])


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [5],
        [5, 9] * 3,  # "1, 1, 1"
        HEAD + [5] * 20 + END,  # a ruler
        HEAD + [5] * 60 + HEAD,  # a ruler with text after it
        HEAD + [7, 8] * 8 + [9],  # a table's separator of eight columns
        HEAD + unit(12) * 2,  # a sentence said twice
        HEAD + unit(33) * 4,  # a paragraph: its unit is too long to be looked for
        HEAD + unit(5) * 10 + [1, 2],  # left behind
        [token for n in range(20) for token in (60, n + 100, 61, 62)],  # a list whose numbers count on
        list(range(200)),
    ],
)
def test_what_is_no_loop(tokens):
    assert not loops(tokens)


def test_text_of_few_tokens_does_not_loop_by_chance():
    draw = random.Random(0)
    assert not any(loops([draw.randrange(4) for _ in range(200)]) for _ in range(500))


class _Counted(list):
    """Counts how many tokens are looked at."""

    looked_at = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        self.looked_at += len(found) if isinstance(at, slice) else 1
        return found


def test_a_long_response_takes_no_longer():
    tokens = _Counted([1] * 200_000 + [2, 3])
    assert not loops(tokens)
    assert tokens.looked_at < 100
