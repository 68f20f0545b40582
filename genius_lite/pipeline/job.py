"""A recipe made concrete: its model, queries and tasks are found, and fit together and on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from genius_lite.data.files import files_of
from genius_lite.data.queries import Selected, hold_out, select
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate.benchmarks import load_tasks
from genius_lite.evaluate.measure import temperature_of
from genius_lite.evaluate.tasks import Task, TokenizedTask, tokenize_task
from genius_lite.hardware.device import learner_device
from genius_lite.machine.engine_settings import context_for
from genius_lite.recipe import Prefix, Recipe
from genius_lite.recipe.idle import without_effect
from genius_lite.records import Query, seed_of
from genius_lite.report.tracking import require_trackers
from genius_lite.rundir.folder import RECIPE
from genius_lite.rundir.reader import RunFolder
from genius_lite.text import brief
from genius_lite.weights import gguf_file
from genius_lite.weights.full_precision import read_config
from genius_lite.weights.gguf_file import GGUF, sha256
from genius_lite.weights.importing import check_supported
from genius_lite.weights.meta_model import described_model
from genius_lite.weights.quantize import quantized_twice
from genius_lite.weights.source import check_before_download, locate, locate_weights
from genius_lite.weights.untrusted import load_untrusted

_MANY = 1 << 20  # queries, of which as many are watched as ever
_LONG = 256  # tokens of a question, at least, of which it is said that it alone sets the context


@dataclass(frozen=True)
class Job:
    """A recipe with its model, queries and tasks, about which nothing can be refused any more.

    Nothing learns from the queries in `held_out` (ids), nor from the tasks; `context` is tokens a branch.
    `watched` are the queries that show the collapse guard how the policy responds: held out, or beyond the limit.
    `template` are the chat template's variables, with the run's date if it asks for one. `notes` are what the user
    should know of the queries and tasks before they are used.
    """

    recipe: Recipe
    source: GGUF
    weights: Path | None
    queries: list[Query]
    duplicates: int
    held_out: frozenset[str]
    watched: list[Query]
    tasks: list[TokenizedTask]
    context: int
    template: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def searched(self, number: int) -> list[Query]:
        """List the queries whose rollouts a round learns from: all that are not held out, or the next of them."""
        every = [query for query in self.queries if query.id not in self.held_out]
        each = min(self.recipe.round_queries or len(every), len(every))
        return [every[(each * (number - 1) + place) % len(every)] for place in range(each)]

    @cached_property
    def temperature(self) -> float:
        """At which problems are answered."""
        return temperature_of(self.recipe.evaluate.temperature, self.source, self.weights)

    @property
    def quantized_twice(self) -> str | None:
        """A word of warning, if the recipe makes one file of few bits from another one."""
        return None if self.weights else quantized_twice(self.source, self.recipe.quantize.type)

    def under(self, recipe: Recipe) -> Job:
        """Put the same model, queries and tasks under another recipe that names them.

        Raises:
            UserError: a query leaves no room for a response.
        """
        job = replace(self, recipe=recipe, watched=self.watched[: recipe.evaluate.watched(len(self.queries))])
        questions = [question for item in job.tasks for question in item.questions]
        thought = " + thought_tokens" * (recipe.foresight.thought_tokens > 0)
        uses = [
            (f"foresight.max_tokens{thought}", recipe.foresight.response_tokens, job.queries),
            (f"max_tokens{thought}", recipe.answer_tokens, questions + job.watched),
        ]
        return replace(job, context=context_for(recipe.sampler.context, job.source, uses))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a run folder must share with the run that made it: settings; model, queries and tasks by content.

        It is all that the folder says of its recipe, so the system message and the chat template's variables, which the
        model goes on to need, are there as they are.
        """
        ids = [q.id for q in self.queries]
        identity = self.recipe.identity()
        identity["evaluate"]["temperature"] = self.temperature
        return {
            **identity,
            "model": self.source.sha256,
            "weights": sha256(sorted(self.weights.glob("*.safetensors"))) if self.weights else None,
            "system": self.recipe.queries.system,
            "template": self.template,
            "answers": self.recipe.queries.answers,
            "queries": f"{len(ids)}, {seed_of(*ids):016x}",
            "watched": f"{len(self.watched)}, {seed_of(*(q.id for q in self.watched)):016x}",
            "tasks": [_identity(item) for item in self.tasks],
        }


def require_optimizer(recipe: Recipe) -> None:
    """Refuse, by a UserError, an optimizer without kernels for the device that this machine trains on."""
    if recipe.learner.optimizer == "paged_adamw_8bit" and learner_device() == "mps":
        raise UserError("learner.optimizer: paged_adamw_8bit is for CUDA and CPUs, not for Metal; take it out")


def prepare(recipe: Recipe, reuse: Path | None = None) -> Job:
    """Find the model, the queries and the tasks, and check that they fit together and on this machine; writes nothing.

    Args:
        reuse: another run's folder; a template that writes the date is told the one on which that run began.

    Raises:
        UserError: whatever of the recipe cannot be used.
    """
    require_trackers(recipe)
    for source in (recipe.queries.source, *(task.source for task in recipe.evaluate.tasks)):
        if not Prefix.starts(source):
            files_of(source)  # what is missing is said before a model is downloaded
    check_before_download(recipe.model)
    path = locate(recipe.model)
    # What it says is clearer than llama.cpp's "unknown model", and nothing else is downloaded yet.
    config = check_supported(gguf_file.read(path), with_weights=recipe.model.weights is not None)
    if weights := locate_weights(recipe.model):
        config = read_config(weights)
    source = load_untrusted(path, quantizer=True)
    if recipe.learner.targets != "auto":
        _check_targets(recipe.learner.targets, config, weights or path)
    tasks = load_tasks(recipe.evaluate.tasks)
    with Vocabulary.open(source.path, recipe.queries.template) as vocabulary:
        _check_variables(vocabulary)
        if vocabulary.asks_for_date:
            vocabulary.variables = _begun(Path(recipe.out), reuse) | vocabulary.variables
        untemplated = vocabulary.untemplated
        found = select(recipe.queries, vocabulary, beyond=recipe.evaluate.watched(_MANY))
        _check_thought(recipe, vocabulary, found.queries[0])
        asked_tasks = [
            tokenize_task(task, named.use, vocabulary, recipe.queries.system)
            for task, named in zip(tasks, recipe.evaluate.tasks, strict=True)
        ]
    queries, beyond = found.queries, found.beyond
    watching = recipe.evaluate.watched(len(queries))
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"queries": watching})})
    held_out = hold_out([q.id for q in queries], recipe.learner.holdout, recipe.seed, watching)
    longest = max(len(q.tokens) for q in queries)  # none that was not asked for needs a larger context
    watched = [q for q in queries if q.id in held_out] + [q for q in beyond if len(q.tokens) <= longest]
    if recipe.evaluate.patience and not tasks and not watched:
        raise UserError(
            f"{recipe.queries.source}: evaluate.patience has no queries to judge rounds by: none is held out, and none "
            "lies beyond queries.limit; write a larger learner.holdout, or a smaller limit"
        )
    notes, template = [*_notes(recipe, found, tasks, untemplated)], vocabulary.variables
    job = Job(
        recipe, source, weights, queries, found.duplicates, held_out, watched, asked_tasks, 0, template, notes
    )  # fmt: skip
    return job.under(recipe)


def _notes(recipe: Recipe, found: Selected, tasks: Sequence[Task], untemplated: str) -> Iterator[str]:
    yield from without_effect(recipe)
    yield from (f"rows are read as {each.form}" for each in (found, *tasks) if each.form)
    yield from (each.set_aside for each in (found, *tasks) if each.set_aside)
    if found.overlong:
        limit = recipe.queries.max_tokens
        yield f"left out for more than {limit} tokens (queries.max_tokens): {found.overlong} questions"
    if untemplated:
        yield f"{untemplated}, without queries.system" if recipe.queries.system else untemplated
    second, longest = sorted([0, *(len(query.tokens) for query in found.queries)])[-2:]
    if recipe.foresight.future_tokens and recipe.pairs.truncated != "keep":
        yield (
            "foresight.future_tokens cuts futures off, and what is cut off is chosen in no pair; pairs.truncated: keep "
            "takes it"
        )
    if longest > 2 * second and longest > _LONG:
        yield f"one question of {longest} tokens sets the context of every branch; queries.max_tokens leaves it out"


def _check_variables(vocabulary: Vocabulary) -> None:
    """Refuse a variable that the chat template does not read: misspelled, it would switch nothing."""
    reads = vocabulary.template_reads if vocabulary.variables else []
    if unread := [name for name in vocabulary.variables if name not in reads]:
        known = f"it reads {', '.join(reads)}" if reads else "it reads none"
        raise UserError(f"queries.template: the model's chat template does not read `{brief(unread[0])}`; {known}")


def _check_targets(targets: list[str], config: Any, described: Path) -> None:
    """Refuse names of matrices that the model does not have, before rollouts are sampled for an adapter on them."""
    from genius_lite.learner.targets import target_modules

    any_size = 1 << 62  # its weights were counted with its config
    target_modules(described_model(config, described, "header", any_size), targets)


def _check_thought(recipe: Recipe, vocabulary: Vocabulary, query: Query) -> None:
    """Refuse tokens for a thought that the chat template ends before it begins."""
    if recipe.foresight.thought_tokens and vocabulary.closes_thought(query.tokens):
        reads = ", ".join(vocabulary.template_reads)
        switch = f", or switch thoughts on in queries.template (the chat template reads {reads})" if reads else ""
        raise UserError(
            f"foresight.thought_tokens is {recipe.foresight.thought_tokens}, and the chat template leaves no thought "
            f"to the model: its prompt ends it; take the key out{switch}"
        )


def _begun(out: Path, reuse: Path | None) -> dict[str, str]:
    """Return the date that a run's template is told: the one on which it began, or the run that it takes stages of."""
    begun = next((run for run in (out, reuse) if run and (run / RECIPE).is_file()), None)
    recorded = RunFolder(begun).recipe.get("template", {}) if begun else {}
    return {"today": recorded.get("today") or date.today().isoformat()}


def _identity(item: TokenizedTask) -> str:
    content = [part for problem in item.task.problems for part in (problem.id, problem.answer)]
    return f"{item.task.name}: {len(item.questions)}, {seed_of(*content):016x}"
