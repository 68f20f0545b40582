"""A recipe made concrete: its model, queries and tasks are found, and fit together and on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genius_lite.evaluate.measure import Asked, asked, load_tasks
from genius_lite.prompts import Vocabulary
from genius_lite.queries import hold_out, select
from genius_lite.recipe import Recipe
from genius_lite.records import Query, seed_of
from genius_lite.report.tracking import require_trackers
from genius_lite.rundir import require_space
from genius_lite.tuning import context_for
from genius_lite.weights.foreign import read_foreign
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.importing import check_supported, sha256
from genius_lite.weights.merge import merged_bytes
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.source import locate, locate_weights


@dataclass(frozen=True)
class Job:
    """A recipe about which nothing can be refused any more.

    Nothing learns from the pairs of the queries in `held_out` (ids), nor from the tasks; `context` is tokens a branch.
    """

    recipe: Recipe
    source: GGUF
    weights: Path | None
    queries: list[Query]
    duplicates: int
    held_out: frozenset[str]
    tasks: list[Asked]
    context: int

    @property
    def answer_tokens(self) -> int:
        """The longest response to a task or a held-out query."""
        wanted = self.recipe.evaluate.max_tokens
        return self.recipe.foresight.max_tokens if wanted == "auto" else wanted

    @property
    def watched(self) -> list[Query]:
        """The held-out queries whose responses the collapse guard watches."""
        return [q for q in self.queries if q.id in self.held_out][: self.recipe.evaluate.queries]

    def identity(self) -> dict[str, Any]:
        """What a run folder must share with the run that made it: settings, model, queries and tasks by content."""
        ids = [q.id for q in self.queries]
        return {
            **self.recipe.identity(),
            "model": sha256(self.source.files),
            "weights": sha256(sorted(self.weights.glob("*.safetensors"))) if self.weights else None,
            "queries": f"{len(ids)}, {seed_of(*ids, *self.queries[0].tokens):016x}",
            "tasks": [_identity(item) for item in self.tasks],
        }


def prepare(recipe: Recipe) -> Job:
    """Find the model, the queries and the tasks, and check that they fit together and on this machine; writes nothing.

    Raises:
        UserError: whatever of the recipe cannot be used.
    """
    require_trackers(recipe)
    source, weights = read_foreign(locate(recipe.model), quantizer=True), locate_weights(recipe.model)
    check_supported(source)
    tasks = load_tasks(recipe.evaluate.tasks)
    with Vocabulary.open(source.path) as vocabulary:
        queries, duplicates = select(recipe.queries, vocabulary)
        asked_tasks = [asked(task, vocabulary, recipe.queries.system) for task in tasks]
    held_out = hold_out([q.id for q in queries], recipe.learner.holdout, recipe.seed)
    job = Job(recipe, source, weights, queries, duplicates, held_out, asked_tasks, context=0)
    questions = [question for item in asked_tasks for question in item.questions]
    context = context_for(
        recipe.sampler.context,
        source,
        [("foresight.max_tokens", recipe.foresight.max_tokens, queries), ("max_tokens", job.answer_tokens, questions)],
    )
    size = merged_bytes(source)
    require_space(
        Path(recipe.out),
        (6 if weights else 4) * size
        + (recipe.rounds + 2) * sum(quantized_bytes(source, kind) for kind in recipe.quantize.types),
        "the 16-bit master and the rounds' models",
    )
    return Job(recipe, source, weights, queries, duplicates, held_out, asked_tasks, context)


def _identity(item: Asked) -> str:
    content = [part for problem in item.task.problems for part in (problem.prompt, problem.answer)]
    return f"{item.task.name}: {len(item.questions)}, {seed_of(*content):016x}"
