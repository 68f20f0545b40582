"""Measure models on tasks outside a run: what `genius-lite eval` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from genius_lite.data.rows import read_rows
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate.benchmarks import load_tasks, usual_columns
from genius_lite.evaluate.measure import EvalModel, answer_tasks, temperature_of
from genius_lite.evaluate.results import complaints, results
from genius_lite.evaluate.tasks import TokenizedTask, tokenize_task
from genius_lite.machine.engine_settings import context_for, engine_settings
from genius_lite.progress import Progress
from genius_lite.recipe import Auto, BenchmarkName, Evaluate, Prefix, Sampler, TaskSource, benchmark_named
from genius_lite.recipe.reader import load
from genius_lite.records import seed_of
from genius_lite.results.evaluation import Answers, Response, TaskResult, Use
from genius_lite.rundir.disk import require_new, scratch
from genius_lite.rundir.folder import RunDir, remove, write_json
from genius_lite.rundir.lines import RecordLog, write_records
from genius_lite.rundir.lock import hold
from genius_lite.text import amount
from genius_lite.weights import gguf_file

RESULTS = "results.json"
_LOOKED_AT = 100  # rows, by which columns are known


@dataclass(frozen=True)
class NamedModel:
    """A model that is measured."""

    name: str
    gguf: Path


@dataclass(frozen=True)
class PromptConfig:
    """How a run asks; `system` None is the chat template's default, whose variables `template` are."""

    system: str | None = None
    max_tokens: int = 512
    temperature: float | Auto = "auto"
    template: dict[str, Any] = field(default_factory=dict)


def tasks_named(names: Sequence[str]) -> tuple[list[TaskSource], list[PromptConfig]]:
    """The tasks that a command line means, and how the recipes among its names ask.

    A name is a recipe (.yaml), whose tasks are taken; or a benchmark (`gsm8k`); or a source, with a checker behind a
    colon (`held-out.jsonl:numeric`). Columns of a file may be called as they usually are.

    Raises:
        UserError: a recipe cannot be read or has no task; or there is no such checker.
    """
    tasks, ways = list[TaskSource](), list[PromptConfig]()
    for name in names:
        if Path(name).suffix not in (".yaml", ".yml"):
            tasks.append(_task(name))
            continue
        recipe = load(Path(name))
        if not recipe.evaluate.tasks:
            raise UserError(f"{name}: the recipe has no evaluate.tasks")
        tasks += recipe.evaluate.tasks
        cfg = recipe.queries
        ways.append(PromptConfig(cfg.system, recipe.answer_tokens, recipe.evaluate.temperature, cfg.template))
    return tasks, ways


def prompt_config(ways: Sequence[PromptConfig], **given: Any) -> PromptConfig:
    """What is given of its fields (None is not given), and the rest as recipes or runs ask, if there are any.

    Raises:
        UserError: they ask in different ways.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for key in (each.name for each in fields(PromptConfig)):
        if key not in given and any(getattr(way, key) != getattr(ways[0], key) for way in ways):
            told = "measure them apart" if key == "template" else f"say which with --{key.replace('_', '-')}"
            raise UserError(f"the recipes or runs ask in different ways: {key} is not the same; {told}")
    return replace(ways[0] if ways else PromptConfig(), **given)


def _task(name: str) -> TaskSource:
    if (known := benchmark_named(name)) and not Path(name).exists():
        return TaskSource.model_validate({"benchmark": known})
    if not Path(name).exists() and (near := get_close_matches(name, get_args(BenchmarkName), n=1, cutoff=0.75)):
        raise UserError(f"{name}: no such file; did you mean the benchmark {near[0]}?")
    source, colon, check = name.rpartition(":")
    given = {"source": source, "check": check}
    if Path(name).exists() or not source or "/" in check or "\\" in check or f"{source}{colon}" in [*Prefix]:
        given = {"source": name}  # a colon of its own, as hf:OWNER/DATASET and C:/problems.jsonl have
    try:
        return TaskSource.model_validate(_columns(given["source"]) | given)
    except ValidationError as e:
        told = e.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--tasks {name!r:.60}: {told}; a recipe can say more of a task") from None


def _columns(source: str) -> dict[str, str]:
    """Find what questions and answers are called in a file of problems, by its first rows.

    Raises:
        UserError: as `usual_columns`; or it cannot be read.
    """
    if not Path(source).is_file():
        return {}
    first = islice(read_rows(source, (), TaskSource(source=source)), _LOOKED_AT)
    rows = [row.values for row in first if isinstance(row.values, dict)]
    return dict(zip(("prompt", "answer"), usual_columns(rows, source), strict=True)) if rows else {}


def evaluate_models(
    models: Sequence[NamedModel],
    sources: Sequence[TaskSource],
    cfg: Evaluate,
    how: PromptConfig,
    *,
    seed: int,
    progress: Progress,
    keep: Path | None = None,
    chose: Mapping[str, Use] | None = None,
) -> tuple[list[list[TaskResult]], list[list[Response]]]:
    """Results and responses of each model, the results of all but the first with the difference to it.

    Args:
        keep: the folder of the results, which is not there yet. Answers are kept beside it as soon as they are there,
            so that the same call goes on after an interruption.
        chose: problems, by their ids, that chose between the rounds of a run whose model is measured: those that did
            nothing else are left out, as they flatter it.

    Raises:
        UserError: a task or a model cannot be used.
    """
    tasks = load_tasks(sources)
    for task in tasks:
        for note in filter(None, (task.form and f"{task.name}: rows are read as {task.form}", task.set_aside)):
            progress.say(note)
    asked, chose = {problem.id for task in tasks for problem in task.problems}, chose or {}
    only = {problem for problem, use in chose.items() if use == "choose"}
    if left_out := len(asked & only):
        progress.say(f"{amount(left_out, 'problems')} chose between the run's rounds, and are left out")
        if asked <= only:
            raise UserError("all problems chose between the run's rounds; measure it on others")
    if both := len(asked & chose.keys() - only):
        progress.say(f"warning: {amount(both, 'problems')} chose between the run's rounds, so that gains are flattered")
    temperature = temperature_of(how.temperature, gguf_file.read(models[0].gguf))
    answered: list[list[Response]] = []
    for model in models:
        source = gguf_file.read(model.gguf)
        with Vocabulary.open(model.gguf, how.template) as vocabulary:
            whole = [tokenize_task(task, "report", vocabulary, how.system).without(only) for task in tasks]
            items = [item for item in whole if item.questions]
            if note := vocabulary.untemplated:
                progress.say(f"{model.name}: {note}" + (", without a system message" if how.system else ""))
        questions = [question for item in items for question in item.questions]
        context = context_for("auto", source, [("max_tokens", how.max_tokens, questions)])
        settings = engine_settings(Sampler(), source, context, progress)
        asked = (source.sha256, repr(how), repr(temperature), cfg.samples, cfg.greedy, seed)
        with scratch() as folder, _kept(keep, sources, items, asked) if keep else nullcontext(None) as log:
            way = (how.max_tokens, seed, cfg.samples, temperature, cfg.greedy)
            who = EvalModel(model.gguf, settings, *way, folder / "sampler.log", progress.say)
            done = sum(len(one.responses) for one in log.records) if log else 0
            wanted = who.responses * len(questions)
            with progress.stage(model.name, wanted, "responses", done=done, at_once=settings.slots) as advance:
                answers = answer_tasks(who, items, advance, log)
        for line in complaints(answers):
            progress.say(f"warning: {line}")
        answered.append([response for one in answers for response in one.responses])
    if not all(answered):
        raise UserError("llama.cpp survived no problem; genius-lite doctor looks at how it was built")
    first, *others = answered
    return [results(first), *(results(responses, first) for responses in others)], answered


def _kept(
    out: Path, sources: Sequence[TaskSource], items: Sequence[TokenizedTask], asked: tuple[int | str, ...]
) -> closing[RecordLog[Answers]]:
    """Open the log of answers to these problems, asked and checked in this way."""
    told = [source.model_dump_json() for source in sources]
    told += [repr((item.task.problems, [query.tokens for query in item.questions])) for item in items]
    return closing(RecordLog(_beside(out) / f"{seed_of(*asked, *told):016x}.jsonl", Answers))


@contextmanager
def holding(out: Path) -> Iterator[None]:
    """Hold a folder of results for this process alone. Answers are kept beside it, and go when it is there.

    Raises:
        UserError: it is there already, or another process works on it.
    """
    _require_new(out)
    beside = _beside(out)
    held = hold(beside.path, out)  # whoever is refused removes nothing
    try:
        with held:
            _require_new(out)  # by now it may be there
            yield
    finally:
        if out.exists() or not any(beside.path.glob("*.jsonl")):
            remove(beside.path)


def _require_new(out: Path) -> None:
    if (out / RESULTS).is_file():
        raise UserError(f"{out} has results, which are whole; name another folder, or delete it to measure again")
    require_new(out, "folder")


def _beside(out: Path) -> RunDir:
    """Return the folder in which answers are kept until the results are written."""
    return RunDir(out.parent).sub(f"{out.name}.asked")


def write_results(
    folder: Path,
    models: Sequence[NamedModel],
    found: Sequence[Sequence[TaskResult]],
    responses: Sequence[Sequence[Response]],
) -> None:
    """Write `RESULTS`, and a file of responses for each model, to a folder that is there in whole or not at all.

    Modes follow the umask, unlike those of a run folder: the user names the place, and whom it is for.
    """
    summary = [{"model": c.name, "tasks": rows} for c, rows in zip(models, found, strict=True)]

    def write(partial: Path) -> None:
        partial.mkdir()
        write_json(partial / RESULTS, summary, indent=2)
        for number, rows in enumerate(responses):
            write_records(partial / f"responses-{number}.jsonl", rows)

    RunDir(folder.parent).build(folder.name, write)
