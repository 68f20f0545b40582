"""The five questions of `genius-lite init`. An answer that cannot be used is told at once, and asked for again."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from rich.console import Console
from rich.prompt import Prompt
from rich.text import Text

from genius_lite.errors import UserError
from genius_lite.interview import data, models
from genius_lite.interview.machine import Machine, duration, fit, questions_in, seconds
from genius_lite.interview.models import Chosen
from genius_lite.interview.writing import Answers, recipe_text
from genius_lite.recipe import QuantType, TaskSource

_T = TypeVar("_T")
_TYPICAL = 3 * 3600  # seconds: an evening


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


def interview(given: Given, machine: Machine, out: Path, console: Console) -> str:
    """Ask for what is not given, and write the recipe.

    Returns:
        Its text; nothing is written to disk.

    Raises:
        UserError: a given answer cannot be used; or one is missing, and the input has ended.
    """
    _say(console, f"This machine: {machine}.")
    chosen = _model(given, machine, console)
    asked = _queries(given, console)
    count = _amount(given, machine, chosen, asked, console)
    task = _task(given, asked, console)
    kind = _kind(given, console)
    available = None if asked.texts is None else len(asked.texts)
    answers = Answers(chosen.gguf, asked.source, asked.column, count, available, task, kind)
    took = seconds(machine, chosen.parameters, count)
    return recipe_text(answers, fit(machine, chosen.parameters, count), machine, took, out)


def _model(given: Given, machine: Machine, console: Console) -> Chosen:
    suggested = models.suggestions(machine)

    def check(answer: str) -> Chosen:
        if answer.isdecimal() and 1 <= int(answer) <= len(suggested):
            answer = suggested[int(answer) - 1]
        return models.look_at(answer)

    if not given.model and not given.yes:
        _say(
            console,
            "\n1. Which model? A number, or another GGUF: a path, hf:OWNER/REPO/FILE.gguf",
        )
        for number, name in enumerate(suggested, 1):
            _say(console, f"   {number}  {name}")
    chosen = _answer("Model", given.model, "1", given.yes, check, console)
    _say(console, f"   {chosen.gguf}: {chosen.told}")
    if chosen.parameters * 2 > machine.memory:  # in 16 bits, once, while it is imported
        _say(console, f"   its import takes some {chosen.parameters * 2 / 1e9:.0f} GB of memory, more than is free now")
    return chosen


def _queries(given: Given, console: Console) -> data.Asked:
    here = data.files_here()
    if not given.queries and not given.yes:
        _say(console, "\n2. Which questions? A .jsonl, .csv, .parquet or .txt, or hf:OWNER/DATASET")
    source, columns = _answer(
        "Questions",
        given.queries,
        here[0] if here else None,
        given.yes,
        lambda answer: (answer, data.columns(answer)),
        console,
    )
    sure = given.yes or (len(columns) == 1 and not source.startswith("hf:"))
    if not sure and not given.column:
        _say(console, f"   its columns of text: {', '.join(columns)}")
    asked = _answer("Column", given.column, columns[0], sure, lambda answer: data.look_at(source, answer), console)
    _say(console, f"   {source}: {asked.told}")
    return asked


def _amount(given: Given, machine: Machine, chosen: Chosen, asked: data.Asked, console: Console) -> int:
    available = len(asked.texts) if asked.texts is not None else 10**6

    def check(answer: str) -> int:
        hours = re.fullmatch(r"(?:([\d.]+)\s*h(?:ours?)?)?\s*(?:([\d.]+)\s*m(?:in(?:utes?)?)?)?", answer.strip())
        if re.fullmatch(r"\d{1,7}", answer) and int(answer):
            wanted = int(answer)
        elif hours and (hours[1] or hours[2]):
            wanted = questions_in(machine, chosen.parameters, 3600 * _float(hours[1]) + 60 * _float(hours[2]))
        else:
            raise UserError(f"{answer}: write a time, such as 2h or 45m, or a number of questions, such as 100")
        return min(wanted, available)

    suggested = f"{min(questions_in(machine, chosen.parameters, _TYPICAL), available)}"
    if not given.amount and not given.yes:
        _say(console, "\n3. How long may it take, or how many questions? A time (2h, 45m) or a number")
        _say(console, f"   an evening has time for some {questions_in(machine, chosen.parameters, _TYPICAL)} here")
    count = _answer("Time or number", given.amount, suggested, given.yes, check, console)
    _say(console, f"   {count} questions, {duration(seconds(machine, chosen.parameters, count))} or so")
    return count


def _task(given: Given, asked: data.Asked, console: Console) -> TaskSource | None:
    def check(answer: str) -> tuple[TaskSource, str, list[str]] | None:
        return None if answer.lower() in ("", "none", "no", "-") else data.problems(answer)

    if not given.tasks and not given.yes:
        _say(
            console,
            "\n4. Problems with answers to measure on? A .jsonl, reasoning_gym:NAME or none",
        )
    found = _answer("Problems", given.tasks, "none", given.yes, check, console)
    if found is None:
        return None
    task, told, prompts = found
    _say(console, f"   {task.source}: {told}")
    if shared := len({p.strip() for p in prompts} & set(asked.texts or ())):
        _say(console, f"   {shared} of them are among the questions too: they measure what was practised")
    return task


def _kind(given: Given, console: Console) -> str:
    known = {kind.casefold(): kind for kind in ("source", *get_args(QuantType))}

    def check(answer: str) -> str:
        if answer.casefold() not in known:
            raise UserError(f"{answer}: no type of that name; known are {', '.join(known.values())}")
        return known[answer.casefold()]

    if not given.kind and not given.yes:
        _say(
            console,
            "\n5. Which type for the result? source: the model's own; nothing changes but what is learned",
        )
    return _answer("Type", given.kind, "source", given.yes, check, console)


def _answer(
    name: str, given: str | None, suggested: str | None, yes: bool, check: Callable[[str], _T], console: Console
) -> _T:
    """The checked answer: the given one, the suggested one with `yes`, or what is asked for until it can be used."""
    if given is not None:
        return check(given)
    if yes:
        if suggested is None:
            raise UserError(f"{name.lower()}: there is nothing to suggest in this folder; give --{name.lower()}")
        return check(suggested)
    while True:
        try:
            if suggested is None:
                answer = Prompt.ask(f"   {name}", console=console)
            else:
                answer = Prompt.ask(f"   {name}", console=console, default=suggested)
        except EOFError:
            raise UserError(
                f"the input ended before `{name}` was answered; nothing is written (--yes takes the rest)"
            ) from None
        if not sys.stdin.isatty():
            _say(console, answer or "")
        try:
            return check((answer or "").strip())
        except UserError as e:
            _say(console, f"   {e}")


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=not console.is_terminal)


def _float(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
