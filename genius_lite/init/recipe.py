"""`genius-lite init`: five questions, each answer checked at once, and a commented recipe that fits this machine."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import typer

from genius_lite.errors import UserError
from genius_lite.init.questions import (
    Resources,
    find_model,
    find_problems,
    find_questions,
    problem_files,
    question_columns,
    question_files,
    size_named,
    suggest_models,
)
from genius_lite.init.templates import OPEN, PROBLEMS, RECIPE, SAMPLES, SEARCH, VOTE, VOTERS, WITH_TASK, WITHOUT_TASK
from genius_lite.recipe import Evaluate, Learner, Prefix, TargetType, TaskSource, quant_type
from genius_lite.records import held_count
from genius_lite.report.console import waiting
from genius_lite.text import amount, brief, hours, prose, visible

_T = TypeVar("_T")
_EVENING = 3 * 3600  # seconds
# Parameters x sampled tokens a second. One core: SmolLM2-135M and Qwen2.5-0.5B on an AVX2 server, 11 to 15e9, and more
# than 8 wait for memory. GPUs were not measured; this is far below what llama-batched-bench reports for small cards.
_CORE_RATE, _MOST_CORES, _GPU_RATE = 12e9, 8, 1e12
_SAMPLED = 0.35  # of the most tokens that may be sampled; responses end, and candidates repeat
_ANSWERED = 0.7  # of the most that an answer may have: of small models many are cut off, and none repeats
_SWEPT = 3  # temperatures at which the base model answers half of the problems, too (evaluate.sweep)
_LEAST, _STUDY = 32, 108  # questions of the smallest gain in recipes/RESULTS.md, and of the one shown over three seeds
_RATES = ((3e8, "2e-4", "2e-4"), (4e9, "5e-5", "2e-4"), (math.inf, "2e-5", "1e-4"))
"""Learning rates of models with fewer parameters, of a search and of a vote."""
_LEARNING = 1.8  # time of a round's rollouts, learning and merging over that of the rollouts


@dataclass(frozen=True)
class Given:
    """Answers from the command line; None is asked for, or with `yes` what is suggested."""

    model: str | None = None
    queries: str | None = None
    column: str | None = None
    amount: str | None = None
    tasks: str | None = None
    kind: str | None = None
    yes: bool = False


def recipe_text(given: Given, machine: Resources, out: Path) -> str:
    """Ask for what is not given, and return the text of a recipe for `out`, from whose folder its files are named.

    Raises:
        UserError: a given answer cannot be used; or one is missing, and the input has ended.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    ask = partial(_ask, yes=given.yes)
    _say(f"This machine: {machine}.")
    numbers = {str(number): name for number, name in enumerate(suggest_models(machine), 1)}
    listed = "".join(f"\n   {number}  {name}{_pace(machine, size_named(name))}" for number, name in numbers.items())
    question = f"1. Which model? A number, or another GGUF: a path, hf:OWNER/REPO/FILE.gguf{listed}"
    model = ask("Model", question, given.model, "1", lambda answer: find_model(numbers.get(answer, answer)))
    thinking = model.thinking._asdict()
    _say(f"   {model.gguf}: {model.description}{_pace(machine, model.parameters, model.thinking.tokens)}")
    if model.parameters * 2 > machine.memory:  # in 16 bits, once, while it is imported
        _say(f"   its import takes some {model.parameters * 2 / 1e9:.0f} GB of memory, more than is free now")

    question = (
        "2. Which questions? A .jsonl, .csv, .parquet or .txt, or hf:OWNER/DATASET\n"
        "   (About documents a model asks some: genius-lite questions)"
    )
    here = next(iter(question_files()), None)
    source, columns = ask("Questions", question, given.queries, here, lambda answer: (answer, question_columns(answer)))
    column = given.column or (columns[0] if len(columns) == 1 and not Prefix.starts(source) else None)
    question = f"   Its columns of text: {', '.join(columns)}"
    queries, texts, notes = ask("Column", question, column, columns[0], partial(find_questions, source))
    if texts is None:
        _say(f"   {source}: downloaded when they are first used")
    else:
        _say(f'   {source}: {amount(len(texts), "questions")} in `{queries.column}`, such as "{brief(texts[0])}"')
    for note in notes:
        _say(f"   {note}")

    question = "3. Problems with answers to measure on? A file, a benchmark (gsm8k), reasoning_gym:NAME or none"
    # Of several the first is taken; only where nobody is asked are the others named, and read for it.
    files = [] if given.tasks is not None else [*islice(problem_files(source), None if given.yes else 1)]
    task, prompts = ask("Problems", question, given.tasks, next(iter(files), "none"), find_problems)
    if task:
        if task.benchmark:
            told = f"{task.benchmark}: downloaded when it is first used, and asked as docs/benchmarks.md says"
        elif task.source.startswith(Prefix.REASONING_GYM):
            told = f"{task.source}: {amount(len(prompts), 'problems')}, compared by their own scorer"
        else:
            compared = f"`{task.prompt}` and `{task.answer}`; answers are compared as {task.check}"
            told = f"{task.source}: {amount(len(prompts), 'problems')}, {compared}"
        _say(f"   {told}")
    if given.yes and files:
        which = f"it is the first of {', '.join(files)}" if len(files) > 1 else "it lies"
        _say(f"   taken because {which} in this folder; --tasks names another one, or none")
    if shared := len({prompt.strip() for prompt in prompts} & set(texts or ())):
        _say(f"   {shared} of them are among the questions too: they measure what was practised")
    known = task.check if task and task.check in ("numeric", "choice") else None
    votes = known == "numeric"  # letters are guessed: a vote taught one letter
    if votes:
        _say("   answers to the questions are read in the same way, and vote on what is learned")

    problems = min(len(prompts) or PROBLEMS, PROBLEMS) if task else 0  # a benchmark's are not known yet, and are many
    cost = _cost(machine, model.parameters, problems, votes=votes, thought=model.thinking.tokens)
    available = 10**6 if texts is None else len(texts)
    evening = min(cost.questions_in(_EVENING), available)
    room = f"An evening has time for {evening}" if evening < available else f"All take {hours(cost.of(evening))}"
    question = f"4. How long may it take (2h, 45m), or how many questions? {room} or so here"
    count = ask("Time or number", question, given.amount, f"{evening}", lambda answer: _count(answer, cost, available))
    measuring = f", {hours(cost.measuring)} of it for measuring on the problems" if cost.measuring >= 60 else ""
    _say(f"   {amount(count, 'questions')}, {hours(cost.of(count))} or so{measuring}")
    if count < _LEAST:
        _say(f"   so few show that it works, and are too few to learn from: {_LEAST} is the fewest")
        _say(f"   that any gain was measured with, and the study used {_STUDY} of one kind")
        _say("   (recipes/RESULTS.md)")

    question = "5. Which type for the result? source: the model's own; nothing changes but what is learned"
    kind = ask("Type", question, given.kind, "source", _kind)
    settings = _settings(machine, model.parameters, count, votes=votes)
    return RECIPE.format(
        machine=machine,
        time=hours(cost.of(count)),
        out=visible(shlex.quote(str(out))),
        gguf=_path(model.gguf, out),
        source=_path(queries.source, out),
        column=_text(queries.column),
        limit=count,
        available="" if texts is None else f"of {available}; ",
        kind=kind,
        answers=f"answers: {known}   # as the problems' below" if known else OPEN,
        method=(VOTE if votes else SEARCH).format(voters=VOTERS, round_queries=_a_third(count), **settings, **thinking),
        evaluate=_evaluate(task, out) if task else WITHOUT_TASK,
        **settings,
        **thinking,
    )


@dataclass(frozen=True)
class Cost:
    """Seconds that a whole run takes: for each question, and for measuring on the problems, however many ask."""

    each: float
    measuring: float

    def of(self, questions: int) -> float:
        """Return the seconds of a run of so many questions."""
        return self.measuring + questions * self.each

    def questions_in(self, seconds: float) -> int:
        """Return how many questions a time is enough for, ten at least."""
        return max(10, int((seconds - self.measuring) / self.each) // 10 * 10)


def _ask(
    name: str, question: str, given: str | None, suggested: str | None, check: Callable[[str], _T], *, yes: bool
) -> _T:
    """Check the given answer, the suggested one with `yes`, or what is asked for until it can be used."""

    def checked(answer: str) -> _T:
        if not answer.strip():
            raise UserError(f"{name.lower()}: the answer is empty; write one")
        with waiting(f"looking at {brief(answer)}"):
            return check(answer.strip())

    answer = suggested if given is None and yes else given
    if answer is not None:
        return checked(answer)
    if yes:
        raise UserError(f"{name.lower()}: there is nothing to suggest in this folder; give --{name.lower()}")
    _say(f"\n{question}")
    while True:
        try:
            answer = typer.prompt(f"   {name}", suggested)
        except typer.Abort as e:
            if isinstance(e.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            told = f"the input ended before `{name}` was answered; nothing is written (--yes takes the rest)"
            raise UserError(told) from None
        try:
            return checked(answer)
        except UserError as e:
            _say(f"error: {visible(str(e))}")


def _say(line: str) -> None:
    print(prose(line))


def _count(answer: str, cost: Cost, available: int) -> int:
    """Return how many questions a time is enough for, or the number that is asked for."""
    time = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hm])[a-z]*", answer)
    seconds = float(time[1]) * {"h": 3600, "m": 60}[time[2]] if time else 0
    if not seconds and not re.fullmatch(r"[1-9]\d{0,6}", answer):
        raise UserError(f"{answer}: write a time, such as 2h or 45m, or a number of questions, such as 100")
    return min(cost.questions_in(seconds) if time else int(answer), available)


def _kind(answer: str) -> TargetType:
    return "source" if answer.casefold() == "source" else quant_type(answer)


def _a_third(questions: int) -> int:
    """Return the questions of each of three rounds, where some are watched and not learned from."""
    held = held_count(questions, Learner().holdout, Evaluate().watched(questions))
    return max(1, (questions - held) // 3)


def _settings(machine: Resources, parameters: float, questions: int, *, votes: bool) -> dict[str, Any]:
    """Choose what fits: smaller models take larger learning rates and shorter searches.

    Of a search the two higher rates gained in `recipes/RESULTS.md` at temperature 1 (at 0.5 nothing is shown), where
    higher ones gained less (SmolLM2-135M) or lost greedily (Qwen2.5-Coder-0.5B). What a vote chooses is told again
    (SFT), which takes more. Larger models were not trained.
    """
    lr = next(rates[votes] for least, *rates in _RATES if parameters < least)
    return {
        "steps": 4 if machine.gpu else 3,
        "max_tokens": 384 if machine.gpu else 256 if parameters < 1e9 else 192,
        "lr": lr,
        "batch_pairs": 4 if questions <= 50 or votes else 8 if questions <= 200 else 16 if questions <= 1000 else 32,
        "max_pack_tokens": 2048 if (machine.gpu or machine.memory) > 8e9 else 1024,
    }


def _cost(machine: Resources, parameters: float, problems: int, *, votes: bool, thought: int = 0) -> Cost:
    """Estimate how long a question takes in a whole run, and all problems; `plan` measures it.

    A question is searched in two rounds, 2 x 4 candidates a step; or in one of three, where responses vote. The
    problems are answered by the base model, too. `thought` are the tokens that a response has for a thought.
    """
    cfg = _settings(machine, parameters, 1, votes=votes)
    rounds, responses = (3, VOTERS) if votes else (2, 2 * 2 * 4 * cfg["steps"])
    rate = _GPU_RATE if machine.gpu else _CORE_RATE * min(machine.cores, _MOST_CORES)
    response = (cfg["max_tokens"] + thought) * _SAMPLED * parameters / rate
    answers = (1 + rounds) * (1 + SAMPLES) + _SWEPT * SAMPLES / 2
    return Cost(responses * response * _LEARNING, answers * problems * response * _ANSWERED / _SAMPLED)


def _pace(machine: Resources, parameters: float | None, thought: int = 0) -> str:
    """Say how long a round takes here with as many questions as the study used; nothing of a model of unknown size."""
    if parameters is None:
        return ""
    each = _cost(machine, parameters, 0, votes=False, thought=thought).each / 2
    return f"\n      (about {hours(each * _STUDY)} a round of {_STUDY} questions here)"


def _evaluate(task: TaskSource, out: Path) -> str:
    if task.benchmark:
        source, said, bound = f"benchmark: {task.benchmark}", {}, "limit"
    else:
        source, said = f"source: {_path(task.source, out)}", task.model_dump(exclude_defaults=True, exclude={"source"})
        bound = "size" if task.source.startswith(Prefix.REASONING_GYM) else "limit"
    keys = "".join(f"\n      {key}: {_text(value)}" for key, value in said.items())
    return WITH_TASK.format(source=source, keys=keys, bound=bound, problems=PROBLEMS, samples=SAMPLES)


def _path(source: str, out: Path) -> str:
    """Return a source as the recipe at `out` writes it."""
    if Prefix.starts(source):
        return _text(source)
    path, folder = Path(source).absolute(), out.parent.resolve()  # `..` of a linked folder is above where it leads
    there = path.parent.resolve() / path.name  # a link to a file keeps its name
    near = there.is_relative_to(folder.parent)
    return _text(Path(os.path.relpath(there, folder)).as_posix() if near else str(path))


def _text(text: str) -> str:
    """Quote text so that YAML reads it back: JSON's strings are YAML's, but for controls that it folds or refuses."""
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))
