"""Problems with known answers: from a JSONL file, or made by the package `reasoning-gym`."""

from __future__ import annotations

import codecs
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.errors import UserError
from genius_lite.evaluate.answers import bare, final_number, first_sentence, marked, numbers, strongly_marked
from genius_lite.evaluate.checkers import DEFAULT_OPTIONS, LETTERS, check, extract_answer, submitted
from genius_lite.evaluate.decoys import fault
from genius_lite.evaluate.scoring import MathVerify, ReasoningGym, Verdict, as_literal
from genius_lite.prompts import check_text
from genius_lite.recipe import Check, CheckOptions, Prefix
from genius_lite.records import query_id
from genius_lite.visible import brief

_CHOICES = "choices"  # in a problem's metadata
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


def from_jsonl(
    path: Path,
    kind: Check,
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    choices: str = "choices",
    options: CheckOptions = DEFAULT_OPTIONS,
) -> Task:
    """A task from a file with one JSON object a line; blank lines are passed over.

    With the checker `choice`, a row's list `choices` is appended to the prompt as lettered options, and its answer is
    the letter, the option's text, or its index from 0. What else a row holds becomes the problem's metadata.

    Args:
        kind: the checker, with its `options`.
        prompt, answer, choices: the names of the columns.

    Raises:
        UserError: the file cannot be read; or, with the line's number, a row or an answer that cannot be used.
    """
    mathematics = MathVerify() if kind == "math-verify" else None

    def score(problem: Problem, response: str) -> Verdict:
        if mathematics:
            return mathematics.verdict(response, problem.answer)
        try:
            return Verdict(check(kind, response, problem.answer, options, problem.metadata.get(_CHOICES, ())))
        except TimeoutError:
            return Verdict(0.0, timed_out=True)

    problems = []
    for number, row in read_rows(path):
        try:
            problem = _problem(row, prompt, answer, choices if kind == "choice" else None)
            # An answer that its checker cannot read would count every response as wrong.
            if mathematics:
                mathematics.read(problem.answer)
            else:
                score(problem, "")
        except UserError as e:
            raise UserError(f"{path}, line {number}: {e}") from None
        problems.append(problem)

    def stated(problem: Problem, response: str) -> str | None:
        return submitted(kind, response, problem.metadata.get(_CHOICES, ()))

    return Task(path.stem, _distinct(problems), score, mathematics.close if mathematics else lambda: None, stated)


def from_reasoning_gym(source: str, *, size: int, seed: int, config: dict[str, Any]) -> Task:
    """A task that `reasoning-gym` makes, such as `reasoning_gym:chain_sum`, scored by its own `score_answer`.

    That scorer is given what the response marks as its answer (`answers.marked`); unmarked, the last number where the
    known answer is one, and the whole response otherwise. Many give partial credit: only a score of 1 is a right
    answer.

    Args:
        config: fields of the data set's configuration, such as `max_terms`.

    Raises:
        UserError: the package is missing, has no such data set, or refuses its configuration; or the scorer runs
            answers as code, or calls wrong ones right (`decoys.fault`).
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError(f"{source}: it needs a package: pip install 'genius-lite[eval]'") from None
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
    scorer = ReasoningGym(name, size=size, seed=seed, config=config)

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
            row = _row(line)
        except UserError as e:
            raise UserError(f"{path}, line {number}: {e}") from None
        yield number, row


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line.removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"not JSON: {e}") from None
    if not isinstance(row, dict):
        raise UserError(f"a row is a JSON object, not {row!r:.40}")
    return row


def _problem(row: dict[str, Any], prompt: str, answer: str, choices: str | None) -> Problem:
    """The problem of a row; `choices` is the column of its options, where the row may have one."""
    for column in (prompt, answer):
        if column not in row:
            known = brief(", ".join(row), 200)
            raise UserError(f"no column `{column}`; it has {known}; name the columns in the recipe")
    question, known = row[prompt], row[answer]
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"`{prompt}` is {question!r:.40}, not a question")
    check_text(question)
    if isinstance(known, bool) or not isinstance(known, str | int | float):
        raise UserError(f"`{answer}` is {known!r:.40}, neither text nor a number")
    rest = {name: value for name, value in row.items() if name not in (prompt, answer, choices)}
    if choices not in row:
        return Problem(query_id(question), question, str(known).strip(), rest)
    options = row[choices]
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise UserError(f"`{choices}` is {options!r:.40}, not a list of texts")
    if not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"`{choices}` has {len(options)} options; 2 to {len(LETTERS)} can be lettered")
    lettered = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    text = f"{question}\n\n{lettered}\n\nGive the letter of the right option."
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
