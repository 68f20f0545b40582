"""The questions of a run: distinct ones of its source, as the model is given them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from genius_lite.data.questions import COLUMN, Question, columns_for, question_of
from genius_lite.data.rows import UsableRows, read_rows
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.recipe import Queries
from genius_lite.records import Query, held_count, seed_of
from genius_lite.text import brief

_IN_MEMORY = 64_000_000  # bytes of questions that are shuffled
_LOOKED_AT = 100  # rows of which the columns of text are told


class Selected(NamedTuple):
    """Hold the recipe's queries in order; questions beyond its limit; and what was left out: repeats, too long ones.

    `set_aside` says in a line which rows are blank or cannot be used, and `form` how they were read, if that was
    recognized; empty if not.
    """

    queries: list[Query]
    beyond: list[Query]
    duplicates: int
    overlong: int
    set_aside: str
    form: str


class Questions:
    """The distinct questions of a recipe's source, read as they are asked for, and what was left out until then."""

    def __init__(self, cfg: Queries):
        self.cfg, self.rows = cfg, UsableRows(cfg.source, "question")
        self.duplicates, self.forms = 0, set[str]()

    def __iter__(self) -> Iterator[tuple[str, Question]]:
        """Yield each question with its place; blank ones and repeats are left out.

        Raises:
            UserError: as `read_rows`; or there is no question, or more rows without one than with one.
        """
        cfg, seen = self.cfg, set[str]()
        wanted, few = columns_for(cfg.column, cfg.prompt), cfg.limit is not None and not cfg.shuffle
        made = partial(question_of, column=cfg.column, template=cfg.prompt)
        for place, question in self.rows.read(read_rows(cfg.source, wanted, cfg, few=few), made):
            if not (text := question.text.strip()):
                self.rows.drop_blank(place)
                continue
            question = question._replace(text=text)
            if question.id in seen:
                self.duplicates += 1
                continue
            seen.add(question.id)
            self.forms.add(question.form)
            yield place, question
        self.rows.check()


def select(cfg: Queries, vocabulary: Vocabulary, beyond: int = 0) -> Selected:
    """Select the recipe's queries, and up to `beyond` further questions of the source, which nothing is learned from.

    Shuffling comes before `limit`; without it nothing is read beyond what is selected.

    Raises:
        UserError: the source cannot be read, lacks the column, or holds no question.
    """
    source, overlong, queries, numbers = Questions(cfg), 0, list[Query](), dict[int, int]()
    for place, question in _shuffled(source, cfg.seed) if cfg.shuffle else source:
        try:
            tokens = vocabulary.prompt(question.text, cfg.system, question.before)
        except UserError as e:
            if not question.before:  # else it is this conversation that the template refuses
                raise UserError(f"{place}: {e}") from None
            source.rows.drop(place, str(e))
            continue
        if cfg.max_tokens and len(tokens) > cfg.max_tokens:
            overlong += 1
            continue
        # A Python number takes 28 bytes, and those of many questions are the same few.
        queries.append(Query(question.id, question.text, [*map(numbers.setdefault, tokens, tokens)]))
        if cfg.limit and len(queries) == cfg.limit + beyond:
            break
    source.rows.check()
    if not queries:
        raise UserError(f"{cfg.source}: every question has more than {cfg.max_tokens} tokens; raise queries.max_tokens")
    form = " and ".join(sorted(filter(None, source.forms)))
    return Selected(
        queries[: cfg.limit], queries[cfg.limit :] if cfg.limit else [], source.duplicates, overlong,
        str(source.rows), form,
    )  # fmt: skip


def _shuffled(questions: Iterable[tuple[str, Question]], seed: int) -> Iterator[tuple[str, Question]]:
    """Yield them in another order; where they are many they lie in a temporary file meanwhile."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as held:
        order = list[int]()
        for found in questions:
            order.append(held.tell())
            held.write(json.dumps(found).encode() + b"\n")
        np.random.default_rng(seed).shuffle(order)
        for offset in order:
            held.seek(offset)
            place, (text, before, form) = json.loads(held.readline())
            yield place, Question(text, tuple(before), form)


def hold_out(ids: list[str], share: float, seed: int, most: int) -> frozenset[str]:
    """Choose about `share` of the queries, which nothing learns from: the same ones in every round, `most` at most."""
    count = held_count(len(ids), share, most)
    return frozenset(sorted(ids, key=lambda query: seed_of(seed, "holdout", query))[:count])


def text_columns(source: str) -> dict[str, str]:
    """Return the columns of a source that hold text, each with the first; `text` where there are no columns.

    The first rows that can be used are looked at. Where a form of conversation is recognized, `prompt` stands before
    the others.

    Raises:
        UserError: it cannot be read, or no row has text.
    """
    rows, found = UsableRows(source, "question"), dict[str, str]()
    for _, texts in islice(rows.read(read_rows(source, ()), _texts), _LOOKED_AT):
        found = found | {name: text for name, text in texts.items() if not found.get(name)}
    if not found:
        rows.check()
    return found


def _texts(row: dict[str, Any] | str) -> dict[str, str]:
    values = {"text": row} if isinstance(row, str) else row
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if any(form.among([*values]) for form in columns_for(COLUMN)):
        texts = {COLUMN: question_of(values, COLUMN).text} | texts
    if not texts:
        raise UserError(f"no column of text; it has {brief(', '.join(values), 200)}")
    return texts
