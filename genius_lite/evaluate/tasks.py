"""Problems with known answers, from a JSONL file or made by the package `reasoning-gym`, and what each is for."""

from __future__ import annotations

import codecs
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import msgspec

from genius_lite.data.vocabulary import Vocabulary, check_text
from genius_lite.errors import UserError
from genius_lite.evaluate.answers import bare, final_number, first_sentence, marked, numbers, strongly_marked
from genius_lite.evaluate.checkers import LETTERS, check, extract_answer, submitted
from genius_lite.evaluate.scoring import Scorer, Verdict, as_literal, fault
from genius_lite.recipe import Prefix, TaskSource
from genius_lite.records import Query, query_id, seed_of
from genius_lite.results.evaluation import Use
from genius_lite.text import brief

_CHOICES = "choices"  # in a problem's metadata
_DIVIDED = 40  # problems of a task, at least, of which half can choose and half report
# The package gives a model's text to Python's or SymPy's eval in some scorers.
_RUNS_ANSWERS = re.compile(r"(?:\beval|\bexec|\bparse_expr|\bsympify)\(\s*(?!entry\b|metadata\b)")


class Problem(msgspec.Struct, frozen=True):
    """A question and its answer, empty where only the task's checker can tell.

    `id` depends on the prompt alone, so that models and rounds can be paired; a repeated prompt's has its number.
    """

    id: str
    prompt: str
    answer: str
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Task:
    """Problems, and what is to be said of a response to one of them.

    `check` raises nothing for a response's sake, takes seconds at most, and may be called from any thread. `close` ends
    the process that it may have started for this; the next `check` starts another. `stated` is the answer that it
    reads, which votes among responses count.
    """

    name: str
    problems: list[Problem]
    check: Callable[[Problem, str], Verdict]
    close: Callable[[], None] = lambda: None
    stated: Callable[[Problem, str], str | None] = lambda problem, response: extract_answer(response)


@dataclass(frozen=True)
class TokenizedTask:
    """A task, the prompt tokens of its problems, in their order, and what each problem is for."""

    task: Task
    questions: list[Query]
    uses: Sequence[Use]

    def choosing(self) -> TokenizedTask:
        """With those problems alone that choose between rounds."""
        taken = [use != "report" for use in self.uses]
        task = replace(self.task, problems=list(compress(self.task.problems, taken)))
        return TokenizedTask(task, list(compress(self.questions, taken)), [*compress(self.uses, taken)])


def load_tasks(sources: Sequence[TaskSource]) -> list[Task]:
    """The tasks that a recipe names.

    Raises:
        UserError: as `load_task`; or two have the same name.
    """
    tasks = [load_task(source) for source in sources]
    if repeated := [name for name, count in Counter(task.name for task in tasks).items() if count > 1]:
        raise UserError(f"two tasks are named {repeated[0]}; give their files different names")
    return tasks


def load_task(cfg: TaskSource) -> Task:
    """One of them.

    Raises:
        UserError: as `from_jsonl` and `from_reasoning_gym`.
    """
    if cfg.source.startswith(Prefix.REASONING_GYM):
        return from_reasoning_gym(cfg.source, size=cfg.size, seed=cfg.seed, config=cfg.config)
    task = from_jsonl(cfg)
    return replace(task, problems=task.problems[: cfg.limit])


def tokenize_task(task: Task, use: Use | Literal["auto"], vocabulary: Vocabulary, system: str | None) -> TokenizedTask:
    """The task's problems as the model is given them.

    Args:
        use: what they are for; `auto`: half of them choose and half report, of fewer than 40 all do both. Which half
            depends on the problems alone, so that all seeds and recipes report on the same ones.
    """
    questions = [Query(p.id, p.prompt, vocabulary.prompt(p.prompt, system)) for p in task.problems]
    uses: list[Use]
    if use != "auto":
        uses = [use for _ in questions]
    elif len(questions) < _DIVIDED:
        uses = ["both" for _ in questions]
    else:
        # By prompt: what is asked twice does not do both.
        drawn = sorted({problem.prompt for problem in task.problems}, key=lambda prompt: seed_of("choose", prompt))
        choosing = {*drawn[: len(drawn) // 2]}
        uses = ["choose" if problem.prompt in choosing else "report" for problem in task.problems]
    return TokenizedTask(task, questions, uses)


def from_jsonl(cfg: TaskSource) -> Task:
    """A task from a file with one JSON object a line; blank lines are passed over.

    With the checker `choice`, a row's list `choices` is appended to the prompt as lettered options, and its answer is
    the letter, the option's text, or its index from 0. What else a row holds becomes the problem's metadata.

    Raises:
        UserError: the file cannot be read; or, with the line's number, a row or an answer that cannot be used.
    """
    path = Path(cfg.source)
    mathematics = Scorer() if cfg.check == "math-verify" else None

    def score(problem: Problem, response: str) -> Verdict:
        if mathematics:
            return mathematics.verdict(response, problem.answer)
        try:
            return Verdict(check(cfg.check, response, problem.answer, cfg.options, problem.metadata.get(_CHOICES, ())))
        except TimeoutError:
            return Verdict(0.0, timed_out=True)

    def stated(problem: Problem, response: str) -> str | None:
        return submitted(cfg.check, response, problem.metadata.get(_CHOICES, ()))

    problems = []
    for number, row in read_rows(path):
        try:
            problem = _problem(row, cfg)
            # An answer that its checker cannot read would count every response as wrong.
            if mathematics:
                mathematics.read(problem.answer)
            else:
                score(problem, "")
        except UserError as e:
            raise UserError(f"{path}, line {number}: {e}") from None
        problems.append(problem)
    return Task(path.stem, _distinct(problems), score, mathematics.close if mathematics else lambda: None, stated)


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
    problems = _distinct(
        [Problem(query_id(e["question"]), e["question"], e["answer"] or "", e["metadata"]) for e in entries]
    )
    entry_of = {problem.id: as_literal(entry) for problem, entry in zip(problems, entries, strict=True)}
    scorer = Scorer({"name": name, "size": size, "seed": seed, **config})

    def score(problem: Problem, response: str) -> Verdict:
        return scorer.verdict(_submitted(response, problem.answer), entry_of[problem.id])

    known = {problem.id: entry["answer"] for problem, entry in zip(problems, entries, strict=True)}
    if found := fault(known, lambda problem, answer: scorer.verdict(answer, entry_of[problem]).score == 1):
        scorer.close()
        raise UserError(f"{source}: {found}; choose another data set")
    return Task(
        source, problems, score, scorer.close, lambda problem, response: _submitted(response, problem.answer) or None
    )


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


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a task's file, each with the number of its line.

    Raises:
        UserError: it cannot be read or has none; or, with the line's number, a row is no JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such task file")
    lines = [(number, line) for number, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: no problem in it; one is needed at least")
    for number, line in lines:
        try:
            row = msgspec.json.decode(line.removeprefix(codecs.BOM_UTF8))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise UserError(f"{path}, line {number}: not JSON: {e}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a row is a JSON object, not {row!r:.40}")
        yield number, row


def _problem(row: dict[str, Any], cfg: TaskSource) -> Problem:
    for column in (cfg.prompt, cfg.answer):
        if column not in row:
            known = brief(", ".join(row), 200)
            raise UserError(f"no column `{column}`; it has {known}; name the columns in the recipe")
    question, known = row[cfg.prompt], row[cfg.answer]
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"`{cfg.prompt}` is {question!r:.40}, not a question")
    check_text(question)
    if isinstance(known, bool) or not isinstance(known, str | int | float):
        raise UserError(f"`{cfg.answer}` is {known!r:.40}, neither text nor a number")
    lettered = cfg.check == "choice" and cfg.choices in row
    read = {cfg.prompt, cfg.answer, *([cfg.choices] if lettered else [])}
    rest = {name: value for name, value in row.items() if name not in read}
    if not lettered:
        return Problem(query_id(question), question, str(known).strip(), rest)
    options = row[cfg.choices]
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise UserError(f"`{cfg.choices}` is {options!r:.40}, not a list of texts")
    if not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"`{cfg.choices}` has {len(options)} options; 2 to {len(LETTERS)} can be lettered")
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    text = f"{question}\n\n{lines}\n\nGive the letter of the right option."
    return Problem(query_id(text), text, _letter(known, options), rest | {_CHOICES: options})


def _letter(known: str | int | float, options: list[str]) -> str:
    letters = LETTERS[: len(options)]
    if isinstance(known, str):
        wanted = known.strip()
        meant = {letters[i] for i, option in enumerate(options) if wanted in (letters[i], str(i), option.strip())}
    else:
        meant = {letters[i] for i in range(len(options)) if i == known}
    if len(meant) != 1:
        wrong = "more than one" if meant else "none"
        raise UserError(
            f"the answer {known!r:.60} is {wrong} of the {len(options)} options; give the letter, or the index from 0"
        )
    return meant.pop()


def _distinct(problems: list[Problem]) -> list[Problem]:
    """The same problems with an id each: the second of a prompt ends in -2."""
    seen: Counter[str] = Counter()
    distinct = []
    for problem in problems:
        seen[problem.id] += 1
        count = seen[problem.id]
        distinct.append(problem if count == 1 else msgspec.structs.replace(problem, id=f"{problem.id}-{count}"))
    return distinct
