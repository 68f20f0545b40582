"""Talk to GGUFs in the terminal, each through its own chat template; two answer every question side by side."""

from __future__ import annotations

import codecs
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genius_lite.errors import UserError
from genius_lite.evaluate.models import NamedModel
from genius_lite.hardware import cores
from genius_lite.records import seed_of
from genius_lite.report.console import terminal
from genius_lite.sampler.llama import EngineError
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.sampling import LogitsError
from genius_lite.sampler.stream import Stream, open_stream
from genius_lite.text import PROSE, visible

_FILTERS = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}  # as llama.cpp's own programs have them
_GREEDY = Sampling(1.0, top_k=1)


@dataclass(frozen=True)
class _Conversation:
    """A loaded model, and what was said with it."""

    name: str
    stream: Stream
    messages: list[dict[str, str]] = field(default_factory=list)

    def tokens(self) -> list[int]:
        """Encode the conversation, up to where the answer begins; a model without a template reads its lines."""
        vocabulary = self.stream.vocabulary
        if vocabulary.template:
            return vocabulary.encode_rendered(vocabulary.render(self.messages))
        text = "".join(f"{message['content']}\n" for message in self.messages)
        return vocabulary.encode(text, special=False, bos=True)


def chat(
    models: Sequence[NamedModel],
    *,
    system: str | None,
    temperature: float,
    max_tokens: int,
    context: int,
    seed: int,
    template: Mapping[str, Any] | None = None,
) -> None:
    """Read questions from standard input until it ends, and stream the answers; the conversations are kept.

    Several models answer one after the other below headings, which can be read at any width and in a pipe. The
    same question has the same seed for each, and each goes on from its own answers.

    Args:
        template: variables of the chat templates.
        temperature: 0 gives the likeliest answer.

    Raises:
        UserError: a model cannot be loaded, or a conversation is longer than the context.
    """
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)
    sampling = Sampling(temperature, **_FILTERS) if temperature > 0 else _GREEDY
    opening = [{"role": "system", "content": system}] if system else []
    interactive = sys.stdin.isatty()
    with ExitStack() as stack:
        conversations = [_Conversation(m.name, _open(m.gguf, context, template, stack), list(opening)) for m in models]
        if interactive:
            told = [f"System message: {visible(system, PROSE)}"] if system else []
            print(*(visible(m.name) for m in models), *told, "End with Ctrl-D.", sep="\n")
        turn = 0
        while (question := _ask(interactive)) is not None:
            for conversation in conversations:
                if len(conversations) > 1:
                    _heading(conversation.name)
                _answer(conversation, question, sampling, seed_of(seed, "chat", turn), max_tokens)
            turn += 1


def _open(gguf: Path, context: int, template: Mapping[str, Any] | None, stack: ExitStack) -> Stream:
    try:
        return stack.enter_context(open_stream(gguf, context, cores(), template))
    except EngineError:
        raise UserError(
            f"{gguf}: llama.cpp cannot load it with room for {context} tokens; give --context less"
        ) from None


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


def _answer(conversation: _Conversation, question: str, sampling: Sampling, seed: int, max_tokens: int) -> None:
    """Print the answer as it comes, and keep it."""
    conversation.messages.append({"role": "user", "content": question})
    path, stream = conversation.tokens(), conversation.stream
    if len(path) >= stream.context:
        raise UserError(
            f"the conversation with {conversation.name} takes {len(path)} tokens, more than the context of "
            f"{stream.context}; start again, or give a larger --context"
        )
    characters, words = codecs.getincrementaldecoder("utf-8")("replace"), _Words()
    parts = []
    try:
        for token in stream.sample(path, sampling, seed, max_tokens):
            parts.append(characters.decode(stream.vocabulary.pieces[token]))
            words.write(parts[-1])
    except LogitsError as e:
        raise UserError(f"{conversation.name}: {e}") from None
    parts.append(characters.decode(b"", final=True))
    words.write(f"{parts[-1]}\n")
    conversation.messages.append({"role": "assistant", "content": "".join(parts)})


class _Words:
    """Prints text as it comes; on a terminal no word is broken at its edge."""

    def __init__(self) -> None:
        self.width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self.column = 0
        self.word = ""

    def write(self, text: str) -> None:
        """Print all but a last word that may go on; a line break ends it."""
        text = visible(text, PROSE)
        if self.width is None:
            print(text, end="", flush=True)
            return
        for character in text:
            self.word += character
            if character.isspace():
                self._flush(self.width)
        sys.stdout.flush()

    def _flush(self, width: int) -> None:
        if self.column and self.column + len(self.word.rstrip()) > width:
            print()
            self.column = 0
        print(self.word, end="")
        self.column = 0 if self.word.endswith("\n") else self.column + len(self.word)
        self.word = ""
