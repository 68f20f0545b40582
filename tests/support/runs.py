"""A run folder made by hand: one unfinished round of two queries, whose figures are easy to check.

The model is `tests.support.models`'s, in whose vocabulary a token below 256 is a byte.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from genius_lite.recipe import Model, Queries, Recipe
from genius_lite.records import Candidate, Completion, PreferencePair, Query, Rollout, Step, query_id

END = 258  # the tiny model's end token


def tokens(text: str) -> list[int]:
    """Token ids of a text, a byte each."""
    return list(text.encode())


def completion(text: str, finish: str = "end") -> Completion:
    ids = tokens(text) + [END] * (finish == "end")
    return Completion(ids, [-0.5] * len(ids), finish)  # pyright: ignore[reportArgumentType]


def rollout(prompt: str, said: str = "ok") -> Rollout:
    """Two steps. Of the second one candidate 0 comes from the worse beam, and candidate 1, which is better, from the
    better one: its advantage is smaller."""
    first = [
        Candidate(0, completion("one\n", "step"), completion(said), -0.1, -0.1),
        Candidate(0, completion("two\n", "step"), completion("no"), -0.3, -0.3),
    ]
    second = [
        Candidate(1, completion("three\n", "step"), completion("cut", "length"), -0.2, 0.1),
        Candidate(0, completion("four"), None, -0.05, 0.05, times=3),
    ]
    query = Query(query_id(prompt), prompt, tokens(prompt))
    return Rollout(query, [Step(0, first, [0, 1]), Step(1, second, [1])])


def pairs(r: Rollout) -> list[PreferencePair]:
    """Of both steps; the second one's has w = exp(-(0.1 - 0.05) / alpha) below 1."""

    def pair(step: int, chosen: int, rejected: int) -> PreferencePair:
        better, worse = (r.steps[step].candidates[i] for i in (chosen, rejected))
        return PreferencePair(
            r.query.id,
            step,
            r.query.tokens,
            r.response(step, chosen),
            r.response(step, rejected),
            better.advantage,
            worse.advantage,
            better.value,
            worse.value,
            True,
            worse.last.finish == "end",
        )

    return [pair(0, 0, 1), pair(1, 1, 0)]


def write_run(path: Path, model: Path, rollouts: list[Rollout], held_out: int = 0) -> Path:
    """A run in whose first round the pairs have just been made; its recipe has the defaults.

    Args:
        held_out: queries that there are besides, which no round searches: a tenth, by those defaults.
    """
    recipe = Recipe(out=str(path), model=Model(gguf=str(model)), queries=Queries(source="q.jsonl"))
    made = {"model": "0" * 64, "weights": None, "queries": f"{len(rollouts) + held_out}, 00ff", "tasks": []}
    here = path / "round-1"
    (path / "hf-checkpoint").mkdir(parents=True)
    here.mkdir()
    identity = recipe.identity() | made
    identity["evaluate"]["queries"] = recipe.evaluate.watched(64)  # a run writes how many these are
    (path / "recipe.json").write_text(json.dumps(identity))
    source = {"path": str(model), "sha256": "0" * 64, "origin": "python:tiny/tiny.gguf"}
    (path / "hf-checkpoint" / "source.json").write_text(json.dumps(source))
    write_lines(here / "rollouts.jsonl", rollouts)
    write_lines(here / "pairs.jsonl", [pair for r in rollouts for pair in pairs(r)])
    (here / "filtered.json").write_text(json.dumps({"gap": 3, "looping": 0}))
    (here / "timings.jsonl").write_text('{"stage": "rollouts", "seconds": 2.0, "amount": 60}\n')
    return path


def write_lines(path: Path, records: list) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
