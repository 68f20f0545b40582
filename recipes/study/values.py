"""Does the foresight value know what is right, and does a vote? A run's rollouts, set beside answers it never saw.

    python recipes/study/values.py runs/study/gsm8k

For each kind of question that was asked: `auc` is how often, within a step, the value of a right response is above that
of a wrong one (0.5: it tells nothing), with its standard error over steps; `auc_shorter` the same for being shorter,
`auc_votes` for how many other responses to the question give the same answer (`pairs.choose: agreed`).
The answers are those of `prepare.py`. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from prepare import gsm8k_test, reasoning_tasks

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.evaluate.checkers import judge, read_answer
from genius_lite.evaluate.tasks import Problem, Task
from genius_lite.foresight.filters import Vote
from genius_lite.recipe import AnswerKind
from genius_lite.records import PreferencePair, Rollout, query_id
from genius_lite.rundir.lines import read_records
from genius_lite.rundir.reader import RunFolder

Candidate = tuple[float, int, int, bool]
"""Its value, the length of its response, the votes for its answer, whether that is right."""


def main(run: Path) -> None:
    here, source = run / "round-1", (run / "hf-checkpoint" / "source.json").read_text(encoding="utf-8")
    rollouts = read_records(here / "rollouts.jsonl", Rollout)
    pairs = read_records(here / "pairs.jsonl", PreferencePair)
    answers = RunFolder(run).recipe.get("answers", "stated")  # as the run's own vote read them
    with Vocabulary.open(Path(json.loads(source)["path"])) as vocabulary:
        tasks = [gsm8k(), *reasoning_tasks()]
        print(
            json.dumps(
                {t.name: found for t in tasks if (found := measured(t, rollouts, pairs, vocabulary.decode, answers))}
            )
        )


def gsm8k() -> Task:
    problems = [Problem(query_id(d["question"]), d["question"], d["short_answer"]) for d in gsm8k_test()]
    return Task("gsm8k", problems, lambda problem, response: judge("numeric", response, problem.answer))


def measured(
    task: Task,
    rollouts: list[Rollout],
    pairs: list[PreferencePair],
    decode: Callable[[list[int]], str],
    answers: AnswerKind = "stated",
) -> dict[str, float] | None:
    """What the rollouts and pairs of the task's questions show; None if there are none."""
    problems = {problem.id: problem for problem in task.problems}

    def right(query: str, tokens: list[int]) -> bool:
        return task.check(problems[query], decode(tokens)).score == 1

    steps: list[list[Candidate]] = []
    for rollout in rollouts:
        if rollout.query.id in problems:
            vote = Vote(rollout, lambda response: read_answer(answers, decode(response)))
            for step in (step for step in rollout.steps if step.foreseen):
                responses = [rollout.response(step.index, n) for n in range(len(step.candidates))]
                values = [candidate.value for candidate in step.candidates]
                asked_of = zip(values, responses, strict=True)
                steps.append([(v, len(r), vote.votes(r), right(rollout.query.id, r)) for v, r in asked_of])
    if not steps:
        return None
    asked = [pair for pair in pairs if pair.query_id in problems]
    auc, error = _auc(steps, lambda candidate: candidate[0])
    shorter, _ = _auc(steps, lambda candidate: -candidate[1])
    votes, _ = _auc(steps, lambda candidate: candidate[2])
    return {
        "questions": sum(rollout.query.id in problems for rollout in rollouts),
        "steps": len(steps),
        "right": float(np.mean([ok for step in steps for *_, ok in step])),
        "right_of_the_best": float(np.mean([max(step)[-1] for step in steps])),
        "auc": auc,
        "auc_error": error,
        "auc_shorter": shorter,
        "auc_votes": votes,
        "pairs": len(asked),
        "chosen_right": float(np.mean([right(pair.query_id, pair.chosen_tokens) for pair in asked])),
        "rejected_right": float(np.mean([right(pair.query_id, pair.rejected_tokens) for pair in asked])),
        "chosen_tokens": float(np.mean([len(pair.chosen_tokens) for pair in asked])),
        "rejected_tokens": float(np.mean([len(pair.rejected_tokens) for pair in asked])),
    }


def _auc(steps: list[list[Candidate]], key: Callable[[Candidate], float]) -> tuple[float, float]:
    """Mean over the steps that have both kinds, and its standard error."""
    found = []
    for step in steps:
        kinds = [[key(candidate) for candidate in step if candidate[-1] == ok] for ok in (True, False)]
        if all(kinds):
            found.append(np.mean([(a > b) + 0.5 * (a == b) for a, b in product(*kinds)]))
    return float(np.mean(found)), float(np.std(found, ddof=1) / len(found) ** 0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
