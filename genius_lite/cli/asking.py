"""Questions from documents: a model asks one about each passage; those that nobody could answer alone are left out.

What it asked is kept beside the file until that is whole, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from genius_lite.cli.conversation import FILTERS
from genius_lite.data.documents import Passage, Read, read_documents
from genius_lite.data.standalone import RULES, Before, fault, question_in
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.machine.engine_settings import CONTEXT_STEP, engine_settings
from genius_lite.progress import Progress
from genius_lite.recipe import Sampler
from genius_lite.records import seed_of
from genius_lite.rundir.disk import scratch
from genius_lite.rundir.folder import RunDir, remove
from genius_lite.rundir.lines import RecordLog, write_records
from genius_lite.sampler.client import LocalSampler, QueryFailedError, open_sampler
from genius_lite.sampler.interface import run_until_complete
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.tree import Node
from genius_lite.text import amount
from genius_lite.weights import gguf_file

_ASK = "{text}\n\nWrite one question about this text. Name what it is about: whoever answers does not see the text."
_EXAMPLES = (
    (
        "Animals > Sea otters\n\nSea otters live along the coasts of the northern Pacific. Their fur is the densest of "
        "all animals, with up to 150,000 hairs on a square centimetre.",
        "How many hairs has a sea otter on a square centimetre?",
    ),
    (
        "Options of orbit\n\n--jobs N\n\nBuild so many files at once. The default is the number of cores.",
        "How many files does orbit build at once if --jobs is not given?",
    ),
)
"""Passages, and a question about each, which small models need to see what is wanted."""
_THOUGHT = 512  # tokens, of fewer of which a thought seldom comes to its end
_SHOWN = 20  # files that were set aside


class PassageAnswers(msgspec.Struct, frozen=True):
    """What a model answered when it was to ask about a passage: each response's text, and whether it was cut off."""

    key: str
    responses: list[tuple[str, bool]]


class Row(msgspec.Struct, frozen=True):
    """A question as it is written: a line that `queries.source` reads, and where it came from."""

    prompt: str
    file: str
    passage: int
    below: str


@dataclass(frozen=True)
class Asking:
    """How a model asks: questions of a passage, the tokens of a passage and of a response, how hot, by which seed.

    `limit` passages are asked about, chosen by the seed; `template` are the chat template's variables.
    """

    each: int
    passage_tokens: int
    max_tokens: int
    temperature: float
    limit: int | None
    seed: int
    template: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What came of it: the documents, the passages that were asked about, the questions, and those left out by rule."""

    read: Read
    passages: int
    rows: list[Row]
    left_out: Counter[str]


def questions_from(source: Path, out: Path, gguf: Path, how: Asking, progress: Progress) -> Found:
    """Write the questions that a model asks about documents, all of them or nothing.

    What was asked is kept in `OUT.asked` until then, each question as soon as it is there.

    Raises:
        UserError: there is no document, or no passage or question in any; or a passage does not fit the model.
    """
    model = gguf_file.read(gguf)
    with Vocabulary.open(gguf, how.template) as vocabulary:

        def count(text: str) -> int:
            return len(vocabulary.encode(text, special=False))

        read = read_documents(source, count, how.passage_tokens, progress)
        if not read.passages:
            raise UserError(f"{source}: no document that can be read; {read.set_aside[0]}")
        passages = _chosen(read.passages, how)
        prompts = [_prompt(vocabulary, passage) for passage in passages]
        if vocabulary.may_think(prompts[0]) and how.max_tokens < _THOUGHT:
            progress.say(f"the model thinks before it asks, for which {how.max_tokens} tokens (--max-tokens) are few")
        identity = (model.sha256, how.each, how.max_tokens, repr(how.temperature), how.seed)
        keys = [f"{seed_of(*identity, *prompt):016x}" for prompt in prompts]
        needed = max(map(len, prompts)) + how.max_tokens
        if needed > (most := model.own("context_length", needed)):
            raise UserError(f"a passage and its question take {needed} tokens, of {most}; give fewer --passage-tokens")
        context = -(-needed // CONTEXT_STEP) * CONTEXT_STEP
        settings = engine_settings(Sampler(slots=how.each, parked=0, draw="host"), model, context, progress)
        log = RecordLog(out.with_name(f"{out.name}.asked"), PassageAnswers)
        known = {record.key: record for record in log.records}
        missing = [(key, prompt) for key, prompt in zip(keys, prompts, strict=True) if key not in known]

        async def ask() -> None:
            with scratch() as folder:
                sampling = Sampling(how.temperature, **FILTERS)
                log_file = folder / "sampler.log"
                async with open_sampler(gguf, settings, sampling, log_file, say=progress.say) as sampler:
                    # One after the other: in another company, rounding may let the model draw other words.
                    for key, prompt in missing:
                        known[key] = PassageAnswers(key, await _responses(sampler, vocabulary, prompt, how))
                        log.append(known[key])
                        advance(1)

        done = len(passages) - len(missing)
        with closing(log), progress.stage("questions", len(passages), "passages", done=done) as advance:
            if missing:
                run_until_complete(ask())
    rows, left_out = select([(passage, known[key]) for passage, key in zip(passages, keys, strict=True)])
    if not rows:
        counted = ", ".join(f"{RULES[rule]}: {number}" for rule, number in left_out.items())
        helps = "a larger model asks better ones"
        if max(left_out, key=left_out.__getitem__, default="") == "cut off":
            helps = "give more --max-tokens, or as --model a recipe that switches thoughts off (queries.template)"
        raise UserError(f"{source}: no question is left ({counted}); {helps}")
    RunDir(out.parent).build(out.name, lambda partial: write_records(partial, rows))
    remove(log.path)
    return Found(read, len(passages), rows, left_out)


def summary_lines(found: Found) -> list[str]:
    """Say what was read, set aside, asked, and left out."""
    read, more = found.read, len(found.read.set_aside) - _SHOWN
    others = f", {amount(read.others, 'files')} of other kinds" if read.others else ""
    asked = f"{found.passages} of {len(read.passages)} passages were asked about"
    return [
        f"{amount(read.documents, 'documents')}, {len(read.set_aside)} set aside{others}",
        *(f"  set aside: {file}" for file in read.set_aside[:_SHOWN]),
        *([f"  and {more} more"] if more > 0 else []),
        f"{asked}: {amount(len(found.rows), 'questions')}",
        *(f"  left out: {number} ({RULES[rule]})" for rule, number in found.left_out.items()),
    ]


def _chosen(passages: list[Passage], how: Asking) -> list[Passage]:
    if how.limit is None or how.limit >= len(passages):
        return passages
    places = np.random.default_rng(how.seed).choice(len(passages), how.limit, replace=False)
    return [passages[place] for place in sorted(places.tolist())]


def _prompt(vocabulary: Vocabulary, passage: Passage) -> list[int]:
    asked = _ASK.format(text=f"{passage.below or passage.file}\n\n{passage.text}")
    examples = [(_ASK.format(text=text), question) for text, question in _EXAMPLES]
    if not vocabulary.template:
        shown = "".join(f"{text}\n\nQuestion: {question}\n\n\n" for text, question in examples)
        return vocabulary.prompt(f"{shown}{asked}\n\nQuestion:")
    turns = [({"role": "user", "content": text}, {"role": "assistant", "content": said}) for text, said in examples]
    return vocabulary.prompt(asked, before=[message for turn in turns for message in turn])


async def _responses(
    sampler: LocalSampler, vocabulary: Vocabulary, prompt: list[int], how: Asking
) -> list[tuple[str, bool]]:
    root = Node(None, prompt, (how.seed, "questions", seed_of(*prompt)))
    until = "end" if vocabulary.may_think(prompt) else "step"  # a line is enough
    try:
        nodes = await asyncio.gather(*sampler.extend(root, how.each, until=until, limit=how.max_tokens))
    except QueryFailedError:
        return []
    said = []
    for node in nodes:
        assert node.completion
        answer, thought_ended = vocabulary.said(prompt, node.tokens)
        said.append((answer, node.completion.finish == "length" or thought_ended is False))
    sampler.release([root])
    return said


def select(asked: Sequence[tuple[Passage, PassageAnswers]]) -> tuple[list[Row], Counter[str]]:
    """Return the questions that stand alone, each once, and how many were left out by which of `RULES`."""
    rows, left_out, before = list[Row](), Counter[str](), Before()
    for _, question in _EXAMPLES:
        before.repeats(question)  # small models say them again
    for passage, answered in asked:
        left_out["lost"] += not answered.responses
        for response, was_cut in answered.responses:
            question = question_in(response)
            rule = fault(question, was_cut) or before.repeats(question)
            if rule:
                left_out[rule] += 1
            else:
                rows.append(Row(question, passage.file, passage.number, passage.below))
    return rows, Counter({rule: left_out[rule] for rule in RULES if left_out[rule]})
