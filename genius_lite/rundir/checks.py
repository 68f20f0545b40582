"""Whether what a folder says can be: records are checked before anything is computed from them.

A folder may come from an archive, another machine or a careless editor. What is decoded has the right types; here its
indices, tokens and numbers are looked at. Each check gives a complaint, as in "round-1/rollouts.jsonl:7: ...", or
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from genius_lite.errors import UserError
from genius_lite.records import Completion, PreferencePair, Query, Rollout, Step
from genius_lite.rundir.lines import Lines

_LEAST, _MOST = -1e4, 1e-2  # nats of a token; rounding may lift it above 0


def check_rollouts(
    rollouts: Lines[Rollout], queries: Mapping[str, Query] | None = None, vocabulary: int | None = None
) -> None:
    """See that each rollout is one, of another of these queries; a UserError names the first that is not.

    The run's queries, by id, and the number of tokens in its vocabulary are None where they are not known.
    """
    seen = set[str]()

    def fault(rollout: Rollout) -> str:
        known = rollout.query.id
        if known in seen:
            return f"query {known} has a rollout before"
        seen.add(known)
        if queries is not None and queries.get(known) != rollout.query:
            return f"query {known} is not this run's" if known not in queries else f"query {known} is asked otherwise"
        return rollout_fault(rollout, vocabulary)

    _check(rollouts, fault)


def check_pairs(pairs: Lines[PreferencePair], queries: Mapping[str, Query], vocabulary: int) -> None:
    """See that each pair can be one of these queries, of another step each; a UserError names the first that cannot."""
    seen = set[tuple[str, int]]()

    def fault(pair: PreferencePair) -> str:
        query, known = queries.get(pair.query_id), (pair.query_id, pair.step)
        if known in seen:
            return f"query {pair.query_id} has a pair of step {pair.step} before"
        seen.add(known)
        if not query or query.tokens != pair.prompt_tokens:
            return f"query {pair.query_id} is not this run's, or asked otherwise"
        numbers = (pair.chosen_advantage, pair.rejected_advantage, pair.chosen_value, pair.rejected_value)
        if not all(abs(number) <= -2 * _LEAST for number in numbers):
            return "a value is out of range"
        if not 0 < pair.lead <= 1:
            return f"its weight is {pair.lead}"
        if not all(_are_tokens(tokens, vocabulary) for tokens in (pair.chosen_tokens, pair.rejected_tokens)):
            return "a response is empty, or not of this vocabulary"
        return ""

    _check(pairs, fault)


def rollout_fault(rollout: Rollout, vocabulary: int | None = None) -> str:
    """Say why this cannot be a rollout; empty if it can."""
    if not _are_tokens(rollout.query.tokens, vocabulary):
        return "its prompt is empty, or not of this vocabulary"
    if not rollout.steps:
        return "it has no step"
    beams = 1
    for number, step in enumerate(rollout.steps):
        if complaint := next(_step_faults(step, number, beams, vocabulary), ""):
            return f"step {number}: {complaint}"
        beams = len(step.kept)
    return ""


def _step_faults(step: Step, number: int, beams: int, vocabulary: int | None) -> Iterator[str]:
    if step.index != number:
        yield f"it is numbered {step.index}"
    if not step.candidates:
        yield "it has no candidate"
    if not all(0 <= kept < len(step.candidates) for kept in step.kept):
        yield f"it keeps one of {len(step.candidates)} candidates that is not there"
    for candidate in step.candidates:
        if candidate.times < 1:
            yield f"a candidate was drawn {candidate.times} times"
        if not 0 <= candidate.beam < beams:
            yield f"a candidate grew from beam {candidate.beam} of {beams}"
        if not (_LEAST <= candidate.value <= _MOST and abs(candidate.advantage) <= -2 * _LEAST):
            yield "a value is out of range"
        for part in filter(None, (candidate.step, candidate.future)):
            yield from completion_faults(part, vocabulary)


def completion_faults(part: Completion, vocabulary: int | None) -> Iterator[str]:
    """Yield why this cannot be a completion."""
    if not _are_tokens(part.tokens, vocabulary):
        yield "a completion is empty, or not of this vocabulary"
    if len(part.tokens) != len(part.logprobs):
        yield f"{len(part.tokens)} tokens have {len(part.logprobs)} log-probabilities"
    if part.logprobs and not (min(part.logprobs) >= _LEAST and max(part.logprobs) <= _MOST):
        yield "a log-probability is out of range"


def _are_tokens(tokens: Sequence[int], vocabulary: int | None) -> bool:
    return bool(tokens) and min(tokens) >= 0 and max(tokens) < (vocabulary or 1 << 31)


def _check(lines: Lines, fault: Callable) -> None:
    for number, record in enumerate(lines, 1):
        if complaint := fault(record):
            raise UserError(f"{lines.path}:{number}: {complaint}; it was not sampled here, or changed: delete the line")
