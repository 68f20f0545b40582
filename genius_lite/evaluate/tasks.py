"""Problems with known answers, read from a source or made by the package `reasoning-gym`, and what each is for."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from itertools import compress, islice
from typing import Any, Literal, TypeVar

import msgspec

from genius_lite.data.files import stem_of
from genius_lite.data.questions import COLUMN, Question, checked, columns_for, is_number, question_of, written
from genius_lite.data.rows import Columns, UsableRows, read_rows, row_object
from genius_lite.data.templates import Message
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate import checkers
from genius_lite.evaluate.answers import bare, final_number, first_sentence, marked, numbers, strongly_marked
from genius_lite.evaluate.choices import Options, counts_from, read_options
from genius_lite.evaluate.scoring import Scorer, Verdict, as_literal, fault
from genius_lite.recipe import Prefix, TaskSource, columns_of
from genius_lite.records import Query, query_id, seed_of
from genius_lite.results.evaluation import Use
from genius_lite.text import brief

BY_HAND = "say which in a recipe's evaluate.tasks (prompt, answer, choices)"
"""What helps where columns are not found."""
_DIVIDED = 40  # problems of a task, at least, of which half can choose and half report
T = TypeVar("T")

# The package gives a model's text to Python's or SymPy's eval in some scorers.
_RUNS_ANSWERS = re.compile(r"(?:\beval|\bexec|\bparse_expr|\bsympify)\(\s*(?!entry\b|metadata\b)")


class Problem(msgspec.Struct, frozen=True):
    """A question and its answer, empty where only the task's checker can tell.

    `id` depends on what is asked alone, so that models and rounds can be paired; a repeated one's has its number.
    `choices` are the texts of its options, if it has some; `before` is what was said before the prompt.
    """

    id: str
    prompt: str
    answer: str
    choices: list[str] = []
    before: list[Message] = []


@dataclass(frozen=True)
class Task:
    """Problems, and what is to be said of a response to one of them.

    `check` raises nothing for a response's sake, takes seconds at most, and may be called from any thread. `close` ends
    the process that it may have started for this; the next `check` starts another. `set_aside` says which rows cannot
    be used, and `form` how they were read, if that is known.
    """

    name: str
    problems: list[Problem]
    check: Callable[[Problem, str], Verdict]
    close: Callable[[], None] = lambda: None
    set_aside: str = ""
    form: str = ""


@dataclass(frozen=True)
class TokenizedTask:
    """A task, the prompt tokens of its problems, in their order, and what each problem is for."""

    task: Task
    questions: list[Query]
    uses: Sequence[Use]

    def choosing(self) -> TokenizedTask:
        """With those problems alone that choose between rounds."""
        return self._only([use != "report" for use in self.uses])

    def without(self, problems: Container[str]) -> TokenizedTask:
        """With all problems but some, which are given by their ids."""
        return self._only([problem.id not in problems for problem in self.task.problems])

    def _only(self, taken: list[bool]) -> TokenizedTask:
        task = replace(self.task, problems=list(compress(self.task.problems, taken)))
        return TokenizedTask(task, list(compress(self.questions, taken)), [*compress(self.uses, taken)])


def evenly(items: list[T], limit: int | None) -> list[T]:
    """Return so many of them, from the first to the last: benchmarks stand in the order of their subjects."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def tokenize_task(task: Task, use: Use | Literal["auto"], vocabulary: Vocabulary, system: str | None) -> TokenizedTask:
    """The task's problems as the model is given them.

    Args:
        use: what they are for; `auto`: half of them choose and half report, of fewer than 40 all do both. Which half
            depends on the problems alone.
    """
    questions = [Query(p.id, p.prompt, vocabulary.prompt(p.prompt, system, p.before)) for p in task.problems]
    uses: list[Use] = ["both" if use == "auto" else use] * len(questions)
    if use == "auto" and len(questions) >= _DIVIDED:
        # By what is asked: what is asked twice does not do both.
        asked = [(*(turn for message in p.before for turn in message.items()), p.prompt) for p in task.problems]
        drawn = sorted({*asked}, key=lambda each: seed_of("choose", *map(str, each)))
        if choosing := {*drawn[: len(drawn) // 2]}:
            uses = ["choose" if each in choosing else "report" for each in asked]
    return TokenizedTask(task, questions, uses)


def from_rows(cfg: TaskSource) -> Task:
    """A task from the rows of a source; with the checker `choice` its lettered options are appended to a prompt.

    Raises:
        UserError: the source cannot be read; or, with the first one's place, no more rows can be used than cannot; or
            its answers number options, and it is not clear from where.
    """
    mathematics = Scorer() if cfg.check == "math-verify" else None

    def judge(problem: Problem, response: str) -> Verdict:
        if mathematics:
            return mathematics.verdict(response, problem.answer, mathematics.stated(response) if response else None)
        return checkers.judge(cfg.check, response, problem.answer, cfg.options, problem.choices)

    rows, forms = UsableRows(cfg.source, "problem"), set[str]()
    found = evenly([*islice(_read(cfg, rows), None if cfg.benchmark else cfg.limit)], cfg.limit)
    numbered = [(known, options) for _, (_, known, options) in found if options]
    first = counts_from(numbered, cfg.count_from, cfg.source)

    def problem(read: _Read) -> Problem:
        made = _problem(*read, first)
        # An answer that its checker cannot read would count every response as wrong.
        if mathematics:
            mathematics.read(made.answer)
        else:
            judge(made, "")
        forms.add(read[0].form)
        return made

    problems = problems_of(rows, found, problem)
    close = mathematics.close if mathematics else lambda: None
    name = cfg.benchmark or (cfg.source if Prefix.starts(cfg.source) else stem_of(cfg.source))
    return Task(name, problems, judge, close, str(rows), form=" and ".join(sorted(filter(None, forms))))


def problems_of(rows: UsableRows, found: list[tuple[str, T]], make: Callable[[T], Problem]) -> list[Problem]:
    """Make problems of what was read of some rows, each with its place; those that cannot be made are set aside.

    Raises:
        UserError: no more can be made than not.
    """
    rows.used, problems = len(found), list[Problem]()
    for place, read in found:
        try:
            problems.append(make(read))
        except UserError as e:
            rows.drop(place, str(e))
    rows.check()
    return distinct(problems)


_Read = tuple[Question, str | int | float, Options | None]
"""What is in a row: the question, its answer, and the options if it has some."""


def _read(cfg: TaskSource, rows: UsableRows) -> Iterator[tuple[str, _Read]]:
    """Read the rows of a task that have a question and an answer, and set the others aside."""
    column, template = (COLUMN, cfg.prompt) if "{" in cfg.prompt else (cfg.prompt, None)
    several = cfg.check == "choice" and "{" in cfg.choices
    named = columns_of(cfg.choices) if several else [cfg.choices] if cfg.check == "choice" else []
    needed, more = ([cfg.answer, *named], []) if several else ([cfg.answer], named)
    told = f"{cfg.benchmark} is asked of its own columns" if cfg.benchmark else BY_HAND
    wanted = [Columns((*c.needed, *needed), (*c.optional, *more), told) for c in columns_for(column, template)]

    def read(values: dict[str, Any] | str) -> _Read:
        row = row_object(values)
        question, known = question_of(row, column, template), row[cfg.answer]
        if not question.text.strip():
            raise UserError(f"`{cfg.prompt}` is {question.text!r:.40}, not a question")
        given = [row[name] for name in named if name in row]
        while several and given and given[-1] in ("", None):  # some problems have fewer options than others
            given.pop()
        options = read_options(given if several else given[0], cfg.choices) if given else None
        if cfg.check == "choice" and not options and isinstance(known, bool):
            known, options = ("yes" if known else "no"), Options(["yes", "no"])
        if not isinstance(known, str):
            if not is_number(known):
                raise UserError(f"`{cfg.answer}` is {brief(repr(known))}, neither text nor a number")
            known = str(known) if isinstance(known, Decimal) else known
        elif not known.strip() and cfg.check != "regex":  # whose group may be empty, and is then right
            raise UserError(f"`{cfg.answer}` is empty")
        return question, known, options

    return rows.read(read_rows(cfg.source, wanted, cfg, few=cfg.limit is not None and not cfg.benchmark), read)


def _problem(question: Question, known: str | float, options: Options | None, first: int | None) -> Problem:
    before = list(question.before)
    if not options:
        answer = known.strip() if isinstance(known, str) else written(known)
        return Problem(question.id, question.text, answer, before=before)
    asked = question._replace(text=checked(f"{question.text}\n\n{options}\n\nGive the letter of the right option."))
    return Problem(asked.id, asked.text, options.letter(known, first), options.texts, before)


def from_reasoning_gym(source: str, *, size: int, seed: int, config: dict[str, Any]) -> Task:
    """A task that `reasoning-gym` makes, such as `reasoning_gym:chain_sum`, scored by its own `score_answer`.

    Many scorers give partial credit: only a score of 1 is a right answer.

    Args:
        config: fields of the data set's configuration, such as `max_terms`.

    Raises:
        UserError: the package is missing, has no such data set, or refuses its configuration; or the scorer runs
            answers as code, or calls wrong ones right (`scoring.fault`).
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError(f"{source}: it needs a package: pip install 'reasoning-gym>=0.1.25'") from None
    name = source.removeprefix(Prefix.REASONING_GYM)
    if name not in DATASETS:
        near = "".join(f"; did you mean {other}?" for other in get_close_matches(name, DATASETS, n=1))
        raise UserError(f"{source}: reasoning-gym has no such data set{near}")
    if name == "composite" or _RUNS_ANSWERS.search(inspect.getsource(DATASETS[name][0].score_answer)):
        raise UserError(f"{source}: its scorer may run a model's answer as Python code; choose another data set")
    try:
        dataset = reasoning_gym.create_dataset(name, size=size, seed=seed, **config)
    except (TypeError, ValueError, AssertionError) as e:
        raise UserError(f"{source}: reasoning-gym refuses this configuration: {e}") from None
    entries = list(dataset)
    problems = distinct([Problem(query_id(e["question"]), e["question"], e["answer"] or "") for e in entries])
    entry_of = {problem.id: as_literal(entry) for problem, entry in zip(problems, entries, strict=True)}
    scorer = Scorer({"name": name, "size": size, "seed": seed, **config})

    def judge(problem: Problem, response: str) -> Verdict:
        answer = _submitted(response, problem.answer)
        return scorer.verdict(answer, entry_of[problem.id], answer or None)

    known = {problem.id: entry["answer"] for problem, entry in zip(problems, entries, strict=True)}
    if found := fault(known, lambda problem, answer: scorer.verdict(answer, entry_of[problem]).score == 1):
        scorer.close()
        raise UserError(f"{source}: {found}; choose another data set")
    return Task(source, problems, judge, scorer.close)


def _submitted(response: str, known: str) -> str:
    """What a response marks as its answer; else its last number, where the known answer is one; else all of it."""
    if strong := strongly_marked(response):
        return strong[0].strip()
    if [number.text for number in numbers(known)] == [known.strip()]:
        number = final_number(response)
        return number.text if number else response.strip()
    # Words mark one line at most, which a grid is not.
    said = None if "\n" in known else next(marked(response), None)
    if said is None:
        return response.strip()
    return said.strip() if said.strip() == known.strip() else bare(first_sentence(said))


def distinct(problems: list[Problem]) -> list[Problem]:
    """The same problems with an id each: the second of a prompt ends in -2."""
    seen, named = Counter[str](), list[Problem]()
    for problem in problems:
        seen[problem.id] += 1
        count = seen[problem.id]
        named.append(problem if count == 1 else msgspec.structs.replace(problem, id=f"{problem.id}-{count}"))
    return named
