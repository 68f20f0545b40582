"""Tasks as a recipe names them: rows, generated problems, and benchmarks that lm-evaluation-harness defines."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import msgspec

from genius_lite.data.questions import COLUMN, CONVERSATIONS, checked, is_number
from genius_lite.data.rows import ANSWERS, QUESTIONS, Columns, UsableRows, read_rows, row_object
from genius_lite.errors import UserError
from genius_lite.evaluate.checkers import judge
from genius_lite.evaluate.choices import read_options
from genius_lite.evaluate.harness import Definition, Harness
from genius_lite.evaluate.scoring import DECOYS, Verdict, as_literal, fault
from genius_lite.evaluate.tasks import BY_HAND, Problem, Task, evenly, from_reasoning_gym, from_rows, problems_of
from genius_lite.recipe import HARNESS, BenchmarkName, Prefix, TaskSource
from genius_lite.records import prepared, query_id
from genius_lite.text import brief

DEFINITIONS = msgspec.convert(HARNESS, prepared(dict[str, Definition]))
"""Those that lm-evaluation-harness asks and judges."""
_PLAIN = r"[\s$]*-?(?=[\d.,]*\d)(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?\s*%?\s*"  # no version, date, or decimal comma
NUMBER = re.compile(rf"(?:.*####)?{_PLAIN}", re.DOTALL)
"""A text that is a number, or a solution that ends in one as GSM8K's do."""


def load_tasks(sources: Sequence[TaskSource]) -> list[Task]:
    """The tasks that a recipe names. The second one of a source, asked in another way, ends in -2.

    Raises:
        UserError: as `load_task`; or two of different sources have the same name, or two are the same.
    """
    tasks, seen, places = list[Task](), Counter[tuple[str, str]](), list[TaskSource]()
    for source in sources:
        where = source.source if Prefix.starts(source.source) else os.path.realpath(source.source)
        if (place := source.model_copy(update={"source": where})) in places:
            raise UserError(f"{source.source} is named twice, to be asked in the same way; take one out")
        places.append(place)
        task = load_task(source)
        seen[task.name, where] += 1
        count = seen[task.name, where]
        tasks.append(task if count == 1 else replace(task, name=f"{task.name}-{count}"))
    if repeated := [name for name, count in Counter(task.name for task in tasks).items() if count > 1]:
        raise UserError(f"two tasks are named {repeated[0]}; give their files different names")
    return tasks


def guess_task(path: str) -> TaskSource:
    """Guess of a file of problems how its columns are called, and of all their answers who judges them.

    Raises:
        UserError: it cannot be read, has no problem, or as `usual_columns`.
    """
    rows = [row.values for row in read_rows(path, (), TaskSource(source=path)) if isinstance(row.values, dict)]
    if not rows:
        raise UserError(f"{path}: no problem in it; one is needed at least")
    prompt, answer = usual_columns(rows, path)
    known = [row[answer] for row in rows if row.get(answer) not in (None, "")]
    numbers = all(is_number(each) or NUMBER.fullmatch(str(each)) for each in known)
    letters = all(re.fullmatch("[A-J]", str(each)) for each in known)
    choice = all(row.get("choices") for row in rows) or letters
    check = "choice" if choice else "numeric" if numbers else "exact"
    fields = {"source": path, "check": check, "prompt": prompt, "answer": answer}
    if letters and len(columns := [f"{{{letter}}}" for letter in "ABCDEFGHIJ" if any(letter in r for r in rows)]) > 1:
        fields["choices"] = " ".join(columns)
    return TaskSource.model_validate(fields)


def usual_columns(rows: Sequence[Mapping[str, object]], path: str) -> tuple[str, str]:
    """Find the columns of questions and answers in some rows of a file by what they are usually called, in any case.

    Raises:
        UserError: none is called so.
    """
    columns = dict[str, str]()
    for name in chain.from_iterable(rows):
        columns.setdefault(name.strip().casefold(), name)

    def first(names: Iterable[str]) -> str:
        found = [columns[name] for name in names if name in columns]
        if not found:
            known = brief(", ".join(columns.values()), 200)
            raise UserError(f"{path}: no column such as {', '.join(names)}; it has {known}; {BY_HAND}")
        return found[0]

    talks = COLUMN not in columns and CONVERSATIONS.keys() & {*columns.values()}
    return COLUMN if talks else first(QUESTIONS), first(ANSWERS)


def load_task(cfg: TaskSource) -> Task:
    """One of them.

    Raises:
        UserError: as `from_rows`, `from_harness` and `from_reasoning_gym`.
    """
    if cfg.source.startswith(Prefix.REASONING_GYM):
        return from_reasoning_gym(cfg.source, size=cfg.size, seed=cfg.seed, config=cfg.config)
    if cfg.benchmark and cfg.benchmark in DEFINITIONS:
        return from_harness(cfg, cfg.benchmark)
    return from_rows(cfg)


def from_harness(cfg: TaskSource, name: BenchmarkName) -> Task:
    """A benchmark as lm-evaluation-harness asks it, without examples; its rows are those of `cfg`.

    What a model answers is judged by the package too, or as the letter of an option (`final_choice`).

    Raises:
        UserError: the package is missing, or the rows cannot be read, or no more of them can be used than cannot; or
            the package's metric calls wrong answers right, or right ones wrong (`scoring.fault`).
    """
    definition, rows, written = DEFINITIONS[name], UsableRows(cfg.source, "problem"), list[str]()
    wanted = Columns(definition.columns, help=f"{name} is asked of its own columns")
    found = evenly([*rows.read(read_rows(cfg.source, [wanted], cfg), row_object)], cfg.limit)
    harness = Harness(definition, name)

    def problem(row: dict[str, Any]) -> Problem:
        literal = as_literal(row)
        made = _problem(harness, definition, literal)
        written.append(literal)
        return made

    problems = problems_of(rows, found, problem)
    if not definition.metric:
        harness.close()
        return Task(name, problems, _by_letter, set_aside=str(rows))
    row_of = {problem.id: literal for problem, literal in zip(problems, written, strict=True)}
    known = {problem.id: definition.told.format(problem.answer) if definition.told else None for problem in problems}
    # Instructions may well be followed by "0".
    decoys = DECOYS if definition.told else DECOYS[:1]
    found = fault(known, lambda problem, response: harness.judge(row_of[problem], response).score == 1, decoys)
    harness.close()  # it idles through no training
    if found:
        raise UserError(f"benchmark {name}: {found}; another version of lm-eval may not")
    return Task(
        name, problems, lambda problem, response: harness.judge(row_of[problem.id], response), harness.close, str(rows)
    )


def _problem(harness: Harness, definition: Definition, literal: str) -> Problem:
    asked, answer, options = harness.asked(literal)
    if definition.metric:
        return Problem(query_id(asked), checked(asked), answer if definition.told else "")
    problem = Problem(query_id(asked), checked(asked), answer, read_options(options, "choices").texts)
    _by_letter(problem, "")  # an answer that is no letter would count every response as wrong
    return problem


def _by_letter(problem: Problem, response: str) -> Verdict:
    return judge("choice", response, problem.answer, choices=problem.choices)
