"""What a model is asked: the problems of the recipe's tasks, what each of them is for, and how hot it answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate.tasks import Task, from_jsonl, from_reasoning_gym
from genius_lite.recipe import Auto, Prefix, TaskSource
from genius_lite.records import Query, seed_of
from genius_lite.results.evaluation import Use
from genius_lite.weights.gguf_file import GGUF

_LEAST = 0.01  # temperature that a recommendation has
_USUAL = 0.7  # temperature, where nothing says
_DIVIDED = 40  # problems of a task, at least, of which half can choose and half report


@dataclass(frozen=True)
class TokenizedTask:
    """A task, the prompt tokens of its problems, in their order, and what each problem is for."""

    task: Task
    questions: list[Query]
    uses: Sequence[Use]

    def choosing(self) -> TokenizedTask:
        """With those problems alone that choose between rounds."""
        return self._only([use != "report" for use in self.uses])

    def reporting(self) -> TokenizedTask:
        """With those problems alone that tell of the round that was chosen."""
        return self._only([use != "choose" for use in self.uses])

    def _only(self, taken: list[bool]) -> TokenizedTask:
        task = replace(self.task, problems=list(compress(self.task.problems, taken)))
        return TokenizedTask(task, list(compress(self.questions, taken)), [*compress(self.uses, taken)])


def load_task(cfg: TaskSource) -> Task:
    """The problems that a recipe names.

    Raises:
        UserError: as `from_jsonl` and `from_reasoning_gym`.
    """
    if cfg.source.startswith(Prefix.REASONING_GYM):
        return from_reasoning_gym(cfg.source, size=cfg.size, seed=cfg.seed, config=cfg.config)
    names = {"prompt": cfg.prompt, "answer": cfg.answer, "choices": cfg.choices}
    task = from_jsonl(Path(cfg.source), cfg.check, **names, options=cfg.options)
    return replace(task, problems=task.problems[: cfg.limit])


def load_tasks(sources: Sequence[TaskSource]) -> list[Task]:
    """All of them.

    Raises:
        UserError: as `load_task`; or two have the same name.
    """
    tasks = [load_task(source) for source in sources]
    if repeated := [t.name for n, t in enumerate(tasks) if t.name in [earlier.name for earlier in tasks[:n]]]:
        raise UserError(f"two tasks are named {repeated[0]}; give their files different names")
    return tasks


def tokenize_task(task: Task, use: Use | Literal["auto"], vocabulary: Vocabulary, system: str | None) -> TokenizedTask:
    """The task's problems as the model is given them.

    Args:
        use: what they are for; `auto`: half of them choose and half report, of fewer than 40 all do both. Which half
            depends on the problems alone, so that all seeds and recipes report on the same ones.
    """
    questions = [Query(p.id, p.prompt, vocabulary.prompt(p.prompt, system)) for p in task.problems]
    return TokenizedTask(task, questions, _uses(task, use))


def _uses(task: Task, use: Use | Literal["auto"]) -> list[Use]:
    if use != "auto":
        return [use] * len(task.problems)
    if len(task.problems) < _DIVIDED:
        return ["both"] * len(task.problems)
    # By prompt: what is asked twice does not do both.
    drawn = sorted({problem.prompt for problem in task.problems}, key=lambda prompt: seed_of("choose", prompt))
    choosing = {*drawn[: len(drawn) // 2]}
    return ["choose" if problem.prompt in choosing else "report" for problem in task.problems]


def temperature_of(wanted: float | Auto, model: GGUF, weights: Path | None = None) -> float:
    """The temperature of later use: as wanted, else what the model's file or its weights' folder recommends, else 0.7.

    GGUFs that llama.cpp converts have `general.sampling.temp` from `generation_config.json`. A recommendation of 0, or
    hardly more, is none: the likeliest response is measured anyway.

    Raises:
        UserError: the folder's file is no JSON.
    """
    if wanted != "auto":
        return wanted
    config = weights / "generation_config.json" if weights else None
    try:
        beside = json.loads(config.read_text(encoding="utf-8-sig")) if config and config.is_file() else {}
    except ValueError as e:
        raise UserError(f"{config}: not JSON ({e}); mend it, or write evaluate.temperature") from None
    recommended = beside.get("temperature") if isinstance(beside, dict) else None
    for found in (recommended, model.metadata.get("general.sampling.temp")):
        if isinstance(found, int | float) and _LEAST <= found < math.inf:
            return float(f"{found:.4g}")  # a GGUF's is in float32
    return _USUAL
