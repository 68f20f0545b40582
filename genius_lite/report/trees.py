"""The rollout trees of a run as text and figures, for the report's explorer; as many as a page can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from genius_lite.errors import UserError
from genius_lite.foresight.resample import foresight_distribution
from genius_lite.prompts import Vocabulary
from genius_lite.records import PreferencePair, Query, Rollout, Step
from genius_lite.report.text import cut, plain, visible
from genius_lite.weights.importing import SOURCE_FILE

QUERIES = 200
"""Queries whose trees are shown, at most."""

_BYTES = 10_000_000  # of all trees together, as JSON
_PROMPT, _PIECE = 2000, 600  # characters of a prompt, and of a step or a future

T = TypeVar("T")
Decode = Callable[[list[int]], str]


class _Name(msgspec.Struct, frozen=True):
    id: str


class _Named(msgspec.Struct, frozen=True):
    """As much of a rollout as says whose it is."""

    query: _Name


@dataclass(frozen=True)
class Explorer:
    """What the page's script is given.

    `queries` are those shown in any round, `rounds` the trees of each by query id; `note` says what was left out, and
    why where there is no text.
    """

    queries: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    note: str

    def as_dict(self) -> dict[str, Any]:
        return plain({"queries": self.queries, "rounds": self.rounds})


def explore(run: Path, numbers: list[int], recipe: dict[str, Any], most: int = QUERIES) -> Explorer:
    """The trees of the `most` queries of lowest id, the same in every round, as far as they fit."""
    # Ids are hashes, so that the lowest are a random choice; the order of the log favours short responses.
    ids = {n: query_ids(run / f"round-{n}" / "rollouts.jsonl") for n in numbers}
    every = list(dict.fromkeys(query for of_round in ids.values() for query in of_round))
    chosen = sorted(every)[:most]
    queries: dict[str, dict[str, Any]] = {}
    rounds = []
    with _decoder(run) as decode:
        for number in numbers:
            trees: dict[str, Any] = {}
            left = _BYTES // len(numbers)
            for rollout, tree in _trees(run / f"round-{number}", set(chosen), recipe, decode):
                left -= len(json.dumps(tree, ensure_ascii=False).encode())
                if left < 0:
                    break
                trees[rollout.query.id] = tree
                queries.setdefault(rollout.query.id, _query(rollout.query))
            rounds.append({"round": number, "of": len(ids[number]), "trees": trees})
        unread = "" if decode else " The model's file is not there any more, so that tokens cannot be shown as text."
    return Explorer(list(queries.values()), rounds, _note(len(queries), len(every)) + unread)


def pair_weight(pair: PreferencePair, learner: dict[str, Any]) -> float:
    """w of Eq. 11, as `learner.loss.calibration_weight` has it, which needs torch."""
    alpha = math.inf if learner["alpha"] is None else learner["alpha"]
    exponent = (pair.chosen_advantage - pair.rejected_advantage) / alpha
    return math.exp(min(exponent, 0.0) if learner["calibration"] == "cap" else min(max(exponent, 0.0), 700.0))


def query_ids(log: Path) -> list[str]:
    """Of a log's rollouts, in its order."""
    return [named.query.id for named in whole_records(log, _Named)]


def whole_records(file: Path, kind: type[T]) -> Iterator[T]:
    """The records of a JSON-lines file that may be growing: a last line that is not whole yet is left out.

    Raises:
        UserError: another line is damaged; it is named.
    """
    decoder = msgspec.json.Decoder(kind)
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as e:
                raise UserError(f"{file}:{number}: damaged record ({e})") from None


@contextmanager
def _decoder(run: Path) -> Iterator[Decode | None]:
    """Tokens to text by the run's own model; None where no file of it is left."""
    made = sorted([*run.glob("round-*/policy.gguf"), *run.glob("export/*.gguf")])
    source = run / "hf-checkpoint" / SOURCE_FILE
    if source.exists():
        made.append(Path(json.loads(source.read_text(encoding="utf-8"))["path"]))
    file = next((path for path in made if path.is_file()), None)
    if file is None:
        yield None
        return
    with Vocabulary.open(file) as vocabulary:
        yield vocabulary.decode


def _trees(
    folder: Path, chosen: set[str], recipe: dict[str, Any], decode: Decode | None
) -> Iterator[tuple[Rollout, dict[str, Any]]]:
    pairs = {(p.query_id, p.step): p for p in whole_records(folder / "pairs.jsonl", PreferencePair)}
    for rollout in whole_records(folder / "rollouts.jsonl", Rollout):
        if rollout.query.id in chosen:
            yield rollout, _tree(rollout, pairs, recipe, decode)


def _query(query: Query) -> dict[str, Any]:
    text = cut(visible(query.prompt), _PROMPT)
    return {"id": query.id, "prompt": text, "tokens": len(query.tokens)}


def _tree(
    rollout: Rollout, pairs: dict[tuple[str, int], PreferencePair], recipe: dict[str, Any], decode: Decode | None
) -> dict[str, Any]:
    steps = [_step(rollout, step, pairs.get((rollout.query.id, step.index)), recipe, decode) for step in rollout.steps]
    return {"sampled": rollout.sampled_tokens, "steps": steps}


def _step(
    rollout: Rollout, step: Step, pair: PreferencePair | None, recipe: dict[str, Any], decode: Decode | None
) -> dict[str, Any]:
    shares = foresight_distribution([c.value for c in step.candidates], recipe["foresight"]["tau"])
    candidates = [
        {
            "beam": c.beam,
            "step": _text(c.step.tokens, decode),
            "future": _text(c.future.tokens, decode) if c.future else None,
            "tokens": [len(c.step.tokens), len(c.future.tokens) if c.future else 0],
            "end": c.last.finish,
            "value": _round(c.value),
            "share": _round(float(shares[i])),
            "advantage": _round(c.advantage),
        }
        for i, c in enumerate(step.candidates)
    ]
    found = {"kept": step.kept, "repeats": step.duplicates, "dropped": step.dropped, "foreseen": step.foreseen}
    return {**found, "candidates": candidates, "pair": _pair(rollout, step, pair, recipe) if pair else None}


def _pair(rollout: Rollout, step: Step, pair: PreferencePair, recipe: dict[str, Any]) -> dict[str, Any]:
    def place(tokens: list[int], value: float) -> int:
        found = (i for i, c in enumerate(step.candidates) if c.value == value)
        return next(i for i in found if rollout.response(step.index, i) == tokens)

    return {
        "chosen": place(pair.chosen_tokens, pair.chosen_value),
        "rejected": place(pair.rejected_tokens, pair.rejected_value),
        "weight": _round(pair_weight(pair, recipe["learner"])),
    }


def _text(tokens: list[int], decode: Decode | None) -> str | None:
    return cut(visible(decode(tokens)), _PIECE) if decode else None


def _round(value: float) -> float:
    return round(value, 6)


def _note(shown: int, of: int) -> str:
    if shown == of:
        return f"The trees of all {of} queries. Texts of more than {_PIECE} characters are cut."
    return (
        f"The trees of {shown} of {of} queries, chosen by their ids and thus at random. "
        f"Texts of more than {_PIECE} characters are cut."
    )
