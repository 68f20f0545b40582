"""Records that cannot be: each kind of fault is found and named, and what is sound passes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from genius_lite.errors import UserError
from genius_lite.records import PreferencePair, Rollout
from genius_lite.rundir.checks import check_pairs, check_rollouts, rollout_fault
from genius_lite.rundir.lines import Lines, write_records
from tests.support.runs import pairs, rollout

SOUND = rollout("first")
QUERIES = {SOUND.query.id: SOUND.query}
VOCABULARY = 260


def changed(record: Any, *place: str | int, to: Any) -> Any:
    """The record with another value at a place."""
    plain = holder = msgspec.to_builtins(record)
    for part in place[:-1]:
        holder = holder[part]
    holder[place[-1]] = to
    return msgspec.convert(plain, type(record))


FIRST = ("steps", 0, "candidates", 0)
FAULTS = [
    (("steps",), [], "it has no step"),
    (("query", "tokens"), [], "its prompt is empty"),
    (("query", "tokens"), [260], "not of this vocabulary"),
    (("query", "tokens"), [-1], "not of this vocabulary"),
    (("steps", 1, "index"), 0, "step 1: it is numbered 0"),
    (("steps", 0, "kept"), [], "step 1: a candidate grew from beam 1 of 0"),
    (("steps", 0, "kept"), [0, 2], "step 0: it keeps one of 2 candidates that is not there"),
    (("steps", 0, "kept"), [-1], "it keeps one of 2 candidates that is not there"),
    (("steps", 1, "candidates", 0, "beam"), 2, "step 1: a candidate grew from beam 2 of 2"),
    (("steps", 0, "candidates", 0, "beam"), -1, "a candidate grew from beam -1 of 1"),
    ((*FIRST, "times"), 0, "a candidate was drawn 0 times"),
    ((*FIRST, "value"), 1e300, "a value is out of range"),
    ((*FIRST, "advantage"), -1e300, "a value is out of range"),
    ((*FIRST, "step", "tokens"), [], "a completion is empty"),
    ((*FIRST, "future", "tokens"), [10**30], "not of this vocabulary"),
    ((*FIRST, "future", "logprobs"), [-0.5], "3 tokens have 1 log-probabilities"),
    ((*FIRST, "step", "logprobs"), [-1e308] * 4, "a log-probability is out of range"),
    ((*FIRST, "step", "logprobs"), [0.5] * 4, "a log-probability is out of range"),
]


@pytest.mark.parametrize(("place", "value", "complaint"), FAULTS, ids=[f"{n}" for n in range(len(FAULTS))])
def test_what_cannot_be_a_rollout(tmp_path, place, value, complaint):
    broken = changed(SOUND, *place, to=value)
    assert complaint in rollout_fault(broken, VOCABULARY)
    write_records(tmp_path / "rollouts.jsonl", [rollout("second"), broken])
    with pytest.raises(UserError, match=r"rollouts\.jsonl:2: ") as e:
        check_rollouts(Lines(tmp_path / "rollouts.jsonl", Rollout), None, VOCABULARY)
    assert "\n" not in str(e.value)


def test_what_is_sound_passes_and_belongs_to_the_run(tmp_path):
    log = tmp_path / "rollouts.jsonl"
    write_records(log, [SOUND])
    check_rollouts(Lines(log, Rollout), QUERIES, VOCABULARY)
    check_rollouts(Lines(tmp_path / "none.jsonl", Rollout), QUERIES, VOCABULARY)
    for records, complaint in (
        ([SOUND, SOUND], ":2: .* has a rollout before"),
        ([rollout("other")], ":1: query .* is not this run's"),
        ([changed(SOUND, "query", "tokens", to=[1])], ":1: query .* is asked otherwise"),
    ):
        write_records(log, records)
        with pytest.raises(UserError, match=complaint):
            check_rollouts(Lines(log, Rollout), QUERIES, VOCABULARY)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("query_id", "0123", "is not this run's"),
        ("prompt_tokens", [1], "asked otherwise"),
        ("chosen_tokens", [], "a response is empty"),
        ("rejected_tokens", [260], "not of this vocabulary"),
        ("chosen_value", 1e200, "a value is out of range"),
    ],
)
def test_what_cannot_be_a_pair(tmp_path, name, value, complaint):
    sound, file = pairs(SOUND), tmp_path / "pairs.jsonl"
    write_records(file, sound)
    check_pairs(Lines(file, PreferencePair), QUERIES, VOCABULARY)
    write_records(file, [sound[0], changed(sound[1], name, to=value)])
    with pytest.raises(UserError, match=rf"pairs\.jsonl:2: .*{complaint}"):
        check_pairs(Lines(file, PreferencePair), QUERIES, VOCABULARY)


def test_a_step_has_one_pair(tmp_path):
    """By query and step the learner finds a pair's place and its reference: two of one would share them."""
    write_records(tmp_path / "pairs.jsonl", [*pairs(SOUND), pairs(SOUND)[0]])
    with pytest.raises(UserError, match=r"pairs\.jsonl:3: query .* has a pair of step 0 before"):
        check_pairs(Lines(tmp_path / "pairs.jsonl", PreferencePair), QUERIES, VOCABULARY)
