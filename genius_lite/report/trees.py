"""The rollout trees of a run as text and figures, for the report's explorer; as many as a page can hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.foresight.resample import foresight_distribution
from genius_lite.recipe import OWN_LOSS
from genius_lite.records import PreferencePair, Rollout, Step
from genius_lite.rundir.checks import check_rollouts
from genius_lite.rundir.reader import RoundFolder, RunFolder
from genius_lite.text import amount, cut, plain, prose
from genius_lite.weights.untrusted import prove

_QUERIES = 200  # whose trees are shown, at most
_BYTES = 10_000_000  # of all trees together, as JSON
_PROMPT, _PIECE = 2000, 600  # characters of a prompt, and of a step or a future

Decode = Callable[[list[int]], str]


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


def explore(run: RunFolder) -> Explorer:
    """Read the trees of the 200 queries of lowest id, the same in every round, as far as they fit."""
    # Ids are hashes, so that the lowest are a random choice; the order of the log favours short responses.
    begun = run.rounds  # once: another one may begin meanwhile
    ids = {here.number: here.rollouts.query_ids() for here in begun}
    every = list(dict.fromkeys(query for of_round in ids.values() for query in of_round))
    chosen = sorted(every)[:_QUERIES]
    queries: dict[str, dict[str, Any]] = {}
    rounds = []
    with _decoder(run) as decode:
        for here in begun:
            trees: dict[str, Any] = {}
            left = _BYTES // len(ids)
            for rollout, tree in _trees(here, set(chosen), run.recipe, decode):
                left -= len(json.dumps(tree, ensure_ascii=False).encode())
                if left < 0:
                    break
                trees[rollout.query.id] = tree
                text = cut(prose(rollout.query.prompt), _PROMPT)
                asked = {"id": rollout.query.id, "prompt": text, "tokens": len(rollout.query.tokens)}
                queries.setdefault(rollout.query.id, asked)
            rounds.append({"round": here.number, "of": len(ids[here.number]), "trees": trees})
    note = f"The trees of all {amount(len(every), 'queries')}."
    if len(queries) < len(every):
        note = f"The trees of {len(queries)} of {len(every)} queries, chosen by their ids and thus at random."
    note += f" Texts of more than {_PIECE} characters are cut."
    if not decode:
        note += " The model's file is not there any more, or llama.cpp does not survive it: tokens have no text."
    return Explorer(list(queries.values()), rounds, note)


def calibrates(recipe: dict[str, Any]) -> bool:
    """Say whether the loss uses the calibration weight w (Eq. 11): only the method's own does."""
    return recipe["learner"].get("loss", OWN_LOSS) == OWN_LOSS


def votes_weigh(recipe: dict[str, Any]) -> bool:
    """Say whether a run folder's recipe multiplies a pair's loss by its lead."""
    return recipe.get("pairs", {}).get("weigh") == "votes"


@contextmanager
def _decoder(run: RunFolder) -> Iterator[Decode | None]:
    """Decode tokens by the run's own model; None where no file of it is left."""
    made = [*(here.policy for here in run.rounds), *run.exported, *map(Path, filter(None, [run.source.path]))]
    file = next((path for path in made if path.is_file() and _is_readable(path)), None)
    if file is None:
        yield None
        return
    with Vocabulary.open(file) as vocabulary:
        yield lambda tokens: vocabulary.decode([token for token in tokens if token < vocabulary.size])


def _is_readable(path: Path) -> bool:
    """Say whether llama.cpp survives a file's vocabulary; a report can do without."""
    try:
        prove(path, vocabulary_only=True)
    except UserError:
        return False
    return True


def _trees(
    here: RoundFolder, chosen: set[str], recipe: dict[str, Any], decode: Decode | None
) -> Iterator[tuple[Rollout, dict[str, Any]]]:
    made, log = here.pairs, here.rollouts  # once: they may grow meanwhile
    of_chosen = made.pick(n for n, query in enumerate(made.query_ids()) if query in chosen)
    pairs = {(pair.query_id, pair.step): pair for pair in of_chosen}
    rollouts = log.pick(n for n, query in enumerate(log.query_ids()) if query in chosen)
    check_rollouts(rollouts)
    for rollout in rollouts:
        try:
            steps = [_step(rollout, s, pairs.get((rollout.query.id, s.index)), recipe, decode) for s in rollout.steps]
            yield rollout, {"sampled": rollout.sampled_tokens, "steps": steps}
        except StopIteration:
            raise UserError(
                f"{here.pairs.path}: a pair of query {rollout.query.id} is none of its rollout's responses"
            ) from None


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
            "times": c.times,
        }
        for i, c in enumerate(step.candidates)
    ]
    return {
        "kept": step.kept,
        "repeats": step.repeats,
        "foreseen": step.foreseen,
        "candidates": candidates,
        "pair": _pair(rollout, step, pair, recipe) if pair else None,
    }


def _pair(rollout: Rollout, step: Step, pair: PreferencePair, recipe: dict[str, Any]) -> dict[str, Any]:
    def place(tokens: list[int], value: float) -> int:
        found = (i for i, c in enumerate(step.candidates) if c.value == value)
        return next(i for i in found if rollout.response(step.index, i) == tokens)

    learner = recipe["learner"]
    weight = pair.calibration_weight(learner["alpha"], learner["calibration"])
    return {
        "chosen": place(pair.chosen_tokens, pair.chosen_value),
        "rejected": place(pair.rejected_tokens, pair.rejected_value),
        "weight": _round(weight) if calibrates(recipe) else None,
        "lead": _round(pair.lead) if votes_weigh(recipe) else None,
    }


def _text(tokens: list[int], decode: Decode | None) -> str | None:
    return cut(prose(decode(tokens)), _PIECE) if decode else None


def _round(value: float) -> float:
    return round(value, 6)
