"""Talk to GGUFs in the terminal, each through its own chat template; two answer every question side by side.

Each model is held by a worker of its own, as in a run: a question that llama.cpp does not survive is set aside.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from genius_lite.data.templates import opening
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate.models import NamedModel, PromptConfig
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.progress import SILENT
from genius_lite.recipe import Sampler
from genius_lite.report.console import terminal
from genius_lite.rundir.disk import scratch
from genius_lite.sampler.client import LocalSampler, QueryFailedError, open_sampler
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.tree import Node
from genius_lite.text import amount, prose, visible
from genius_lite.weights import gguf_file

FILTERS = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}  # as llama.cpp's own programs have them
_END = f"End with {'Ctrl-Z and Enter' if os.name == 'nt' else 'Ctrl-D'}."
_GREEDY = Sampling(1.0, top_k=1)
_CHUNK = 512  # tokens of a conversation that are read together


@dataclass(frozen=True)
class _Conversation:
    """A loaded model, and what was said with it."""

    name: str
    vocabulary: Vocabulary
    sampler: LocalSampler
    context: int
    more: str  # what helps where that is full
    messages: list[dict[str, str]] = field(default_factory=list)

    def tokens(self) -> list[int]:
        """Encode the conversation, up to where the answer begins; a model without a template reads its lines."""
        vocabulary = self.vocabulary
        if vocabulary.template:
            return vocabulary.encode_rendered(vocabulary.render(self.messages))
        text = "".join(f"{message['content']}\n" for message in self.messages)
        return vocabulary.encode(text, special=False, bos=True)


def chat(models: Sequence[NamedModel], how: PromptConfig, *, context: int, seed: int) -> None:
    """Read questions from standard input until it ends, and stream the answers; the conversations are kept.

    Several models answer one after the other below headings, which can be read at any width and in a pipe. The
    same question has the same seed for each, and each goes on from its own answers.

    Args:
        how: at temperature 0 the likeliest answers are given.

    Raises:
        UserError: a model cannot be loaded, or a conversation is longer than the context.
        SamplerError: llama.cpp survives nothing.
    """
    assert how.temperature != "auto"
    sampling = Sampling(how.temperature, **FILTERS) if how.temperature > 0 else _GREEDY
    system = how.system or None  # an empty one is the template's default
    interactive = sys.stdin.isatty()
    # Its event loop stands still while a question is typed.
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            conversations = [runner.run(_open(model, context, how.template, stack)) for model in models]
            for conversation in conversations:
                conversation.messages.extend(opening(system))
                conversation.vocabulary.prompt("?", system)  # refuses what the template drops
                if note := conversation.vocabulary.untemplated:
                    _complain(f"{conversation.name}: {note}")
            if interactive:
                told = [f"System message: {prose(system)}"] if system else []
                print(*(visible(m.name) for m in models), *told, _END, sep="\n")
            turn = 0
            while (question := _ask(interactive)) is not None:
                for conversation in conversations:
                    if len(conversations) > 1:
                        _heading(conversation.name)
                    runner.run(_answer(conversation, question, sampling, (seed, "chat", turn), how.max_tokens))
                turn += 1
        finally:
            runner.run(stack.aclose())


async def _open(model: NamedModel, context: int, template: Mapping[str, Any], stack: AsyncExitStack) -> _Conversation:
    source = gguf_file.read(model.gguf)
    most = source.own("context_length", context)
    cfg = Sampler(slots=1, parked=0, draw="host", prefill_chunk=_CHUNK)
    settings = engine_settings(cfg, source, min(context, most), SILENT)  # with as many layers as its GPU holds
    log = stack.enter_context(scratch()) / "sampler.log"
    try:
        sampler = await stack.enter_async_context(open_sampler(model.gguf, settings, _GREEDY, log, say=_complain))
    except UserError as e:
        raise UserError(
            f"{model.gguf}: llama.cpp cannot load it with room for {context} tokens; give --context less ({e})"
        ) from None
    vocabulary = stack.enter_context(Vocabulary.open(model.gguf, template))
    more = "give a larger --context" if context < most else "the model was trained for no more"
    return _Conversation(model.name, vocabulary, sampler, settings.context, more)


def _complain(line: str) -> None:
    print(f"\n{visible(line)}", file=sys.stderr, flush=True)


def _heading(name: str) -> None:
    console = terminal()
    if console.is_terminal:
        console.rule(visible(name), align="left")
    else:
        print(f"\n{visible(name)}:")


def _ask(interactive: bool) -> str | None:
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return None
        if line:
            return line


async def _answer(
    conversation: _Conversation, question: str, sampling: Sampling, key: tuple[int | str, ...], max_tokens: int
) -> None:
    """Print the answer as it comes, and keep it; a question that llama.cpp does not survive is taken back."""
    conversation.messages.append({"role": "user", "content": question})
    path, vocabulary = conversation.tokens(), conversation.vocabulary
    if len(path) >= conversation.context:
        raise UserError(
            f"the conversation with {conversation.name} takes {len(path)} tokens, more than the context of "
            f"{conversation.context}; start again ({conversation.more})"
        )
    characters, words = codecs.getincrementaldecoder("utf-8")("replace"), _Words()
    parts, ended, count = [], False, 0
    try:
        async for token in conversation.sampler.stream(Node(None, path, key), limit=max_tokens, sampling=sampling):
            count, ended = count + 1, bool(vocabulary.ends[token])
            if not ended:
                parts.append(characters.decode(vocabulary.pieces[token]))
                words.write(parts[-1])
    except QueryFailedError as e:
        conversation.messages.pop()
        _complain(f"warning: {conversation.name}: the question is set aside: {e}")
        return
    parts.append(characters.decode(b"", final=True))
    words.write(f"{parts[-1]}\n")
    if not ended:
        more = "give more --max-tokens" if count == max_tokens else conversation.more
        _complain(f"cut off after {amount(count, 'tokens')}; {more}")
    conversation.messages.append({"role": "assistant", "content": "".join(parts)})


class _Words:
    """Prints text as it comes; on a terminal no word is broken at its edge."""

    def __init__(self) -> None:
        self.width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self.column = 0
        self.word = ""

    def write(self, text: str) -> None:
        """Print all but a last word that may go on; white space ends it."""
        if self.width is None:
            print(prose(text), end="", flush=True)
            return
        *words, self.word = re.split(r"(?<=\s)", self.word + prose(text))
        for word in words:
            if self.column and self.column + len(word.rstrip()) > self.width:
                print()
                self.column = 0
            print(word, end="")
            self.column = 0 if word.endswith("\n") else self.column + len(word)
        sys.stdout.flush()
