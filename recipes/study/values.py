"""Does the foresight value know what is right? The rollouts of a GSM8K run, set beside the answers it never saw.

    python recipes/study/values.py runs/study/gsm8k

`auc`: how often, within a step, the value of a right response is above that of a wrong one (0.5: it tells nothing),
with its standard error over steps; `auc_shorter`: the same for being shorter. The answers come from PyPI as in
`prepare.py`. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from prepare import gsm8k_test

from genius_lite.evaluate.checkers import check
from genius_lite.lines import read_records
from genius_lite.prompts import Vocabulary
from genius_lite.records import PreferencePair, Rollout

Candidate = tuple[float, int, bool]
"""Its value, the length of its response, whether that is right."""


def main(run: Path) -> None:
    answers = {d["question"]: d["short_answer"] for d in gsm8k_test()}
    here, model = run / "round-1", json.loads((run / "master" / "source.json").read_text())["path"]
    rollouts = read_records(here / "rollouts.jsonl", Rollout)
    question = {rollout.query.id: rollout.query.prompt for rollout in rollouts}
    with Vocabulary.open(Path(model)) as vocabulary:

        def right(query: str, tokens: list[int]) -> bool:
            return check("numeric", vocabulary.decode(tokens), answers[question[query]]) == 1

        steps: list[list[Candidate]] = []
        for rollout in rollouts:
            for k, step in enumerate(rollout.steps):
                responses = [rollout.response(k, n) for n in range(len(step.candidates))]
                values = [candidate.value for candidate in step.candidates]
                steps.append([(v, len(r), right(rollout.query.id, r)) for v, r in zip(values, responses, strict=True)])
        pairs = read_records(here / "pairs.jsonl", PreferencePair)
        chosen = [right(pair.query_id, pair.chosen_tokens) for pair in pairs]
        rejected = [right(pair.query_id, pair.rejected_tokens) for pair in pairs]
    auc, error = _auc(steps, lambda candidate: candidate[0])
    shorter, _ = _auc(steps, lambda candidate: -candidate[1])
    result = {
        "questions": len(rollouts),
        "steps": len(steps),
        "right": float(np.mean([ok for step in steps for *_, ok in step])),
        "right_of_the_best": float(np.mean([max(step)[2] for step in steps])),
        "auc": auc,
        "auc_error": error,
        "auc_shorter": shorter,
        "pairs": len(pairs),
        "chosen_right": float(np.mean(chosen)),
        "rejected_right": float(np.mean(rejected)),
    }
    print(json.dumps(result))


def _auc(
    steps: list[list[tuple[float, int, bool]]], key: Callable[[tuple[float, int, bool]], float]
) -> tuple[float, float]:
    """Mean over the steps that have both kinds, and its standard error."""
    found = []
    for step in steps:
        kinds = [[key(candidate) for candidate in step if candidate[2] == ok] for ok in (True, False)]
        if all(kinds):
            found.append(np.mean([(a > b) + 0.5 * (a == b) for a, b in product(*kinds)]))
    return float(np.mean(found)), float(np.std(found, ddof=1) / len(found) ** 0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
