"""From a question to prompt tokens.

The model's own file decides both: its chat template is rendered apart (`templates.py`), its vocabulary (through
llama.cpp, without loading the weights) turns text into tokens.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from genius_lite.data import thoughts
from genius_lite.data.steps import StepDelimiter
from genius_lite.data.templates import DATE, Message, Renderer, in_parts, opening
from genius_lite.errors import UserError
from genius_lite.hardware.system import with_stack
from genius_lite.text import brief

_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
_PLACEHOLDERS = re.compile(rf"{_MARK}text(\d+){_MARK}")
# llama.cpp cuts text by std::regex, which calls itself for each character of a run: 30,000 letters need some 10 MB.
_ON_ANY_STACK, _STACK_PER_CHARACTER = 4_000, 2_048  # characters; bytes
_LONGEST_MARK = 32  # tokens, where each of its bytes is one, and white space after it


class Vocabulary:
    """The vocabulary and chat template of a llama.cpp model (`llama_model *`).

    Args:
        variables: what the template finds besides the conversation: `queries.template` of a recipe.
    """

    def __init__(self, model: Any, variables: Mapping[str, Any] | None = None):
        self._model = model
        self.variables = dict(variables or {})
        self.handle: Any = llama_cpp.llama_model_get_vocab(model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.handle)
        # By system message, and by the roles of what a question's row says.
        self._arounds: dict[tuple[str | None, tuple[str, ...]], tuple[list[str], list[int]]] = {}

    @classmethod
    @contextmanager
    def open(cls, path: Path, variables: Mapping[str, Any] | None = None) -> Iterator[Vocabulary]:
        """Open the vocabulary of a GGUF file, without its weights.

        Raises:
            UserError: llama.cpp cannot read it.
            OSError: this process gets no memory for it.
        """
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            # Of a process that may have no more memory llama.cpp says no more than that; the system says why.
            with path.open("rb") as file, suppress(ValueError, FileNotFoundError):  # of an empty one
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()
            raise UserError(f"{path}: llama.cpp cannot read this file's vocabulary; is it a language model?")
        vocabulary = cls(model, variables)
        try:
            yield vocabulary
        finally:
            vocabulary.close()
            llama_cpp.llama_model_free(model)

    @cached_property
    def template(self) -> str | None:
        """The chat template (Jinja), or None for a model that has none."""
        found = llama_cpp.llama_model_chat_template(self._model, None)
        return found.decode("utf-8", errors="replace") if found else None

    def prompt(self, question: str, system: str | None = None, before: Sequence[Message] = ()) -> list[int]:
        """Return the tokens of a conversation that waits for the assistant's answer to `question`.

        A model without a template gets the question as it is. Text that looks like a special token, or becomes one
        together with what the template writes beside it, is kept as text: the question is then tokenized apart from the
        template around it. (Tokens that a model's maker added as plain text are no special ones: they are text.)

        Args:
            system: the recipe's system message; a question's own stands in its place.
            before: what was said before the question, as much a stranger's text as that.

        Raises:
            UserError: the template cannot be rendered, or drops or changes the question, or what stands before it; or
                there is none, and something does.
        """
        if not self.template and before:
            raise UserError("the model has no chat template, which a question with a conversation before it needs")
        if not self.template:
            return self.encode(question, special=False, bos=True)
        system = None if before and before[0]["role"] == "system" else system
        turns = [*before, {"role": "user", "content": question}]
        texts, roles = [turn["content"] for turn in turns], tuple(turn["role"] for turn in turns)
        around, specials = self._around(system, roles)
        if not any(special in text for text in texts for special in self._special_texts):
            rendered = self.render([*opening(system), *turns])
            # One that writes a mark may drop, cut or escape other texts. Of earlier answers makers drop the thoughts.
            for role, text in zip(roles, texts, strict=True):
                if role == "user" and text.strip() not in rendered:
                    raise UserError(f"the model's chat template drops or changes the question `{brief(text)}`")
            tokens = self.encode_rendered(rendered)
            if [token for token in tokens if token in self._specials] == specials:
                return tokens
        return self._joined(around, texts)

    def _around(self, system: str | None, roles: tuple[str, ...]) -> tuple[list[str], list[int]]:
        """Return what the template writes, with the numbers of turns between, and the special tokens there."""
        if (system, roles) not in self._arounds:
            turns = [{"role": role, "content": _placeholder(number)} for number, role in enumerate(roles)]
            around = _PLACEHOLDERS.split(self.render([*opening(system), *turns]))
            if missing := {*range(len(roles))} - {int(number) for number in around[1::2]}:
                which = "the question" if len(roles) - 1 in missing else f"a message of the {roles[min(missing)]}"
                raise UserError(f"the model's chat template drops or changes {which}; use another model")
            unsaid = system and system.strip() not in "".join(around[::2])
            if unsaid and around == _PLACEHOLDERS.split(self.render(turns)):
                raise UserError("the chat template drops the system message; leave it out (queries.system, --system)")
            specials = [token for token in self._joined(around, [""] * len(roles)) if token in self._specials]
            self._arounds[system, roles] = around, specials
        return self._arounds[system, roles]

    def _joined(self, around: list[str], texts: list[str]) -> list[int]:
        """Return the tokens of what the template writes, with those of the turns between, each tokenized apart."""
        tokens = self.encode_rendered(around[0])
        for number, after in zip(around[1::2], around[2::2], strict=True):
            for text, special in ((texts[int(number)], False), (after, True)):
                line = self._line if tokens[-1:] and tokens[-1] not in self._specials else []
                found = self.encode("\n" * bool(line) + text, special=special)
                tokens += found[len(line) :] if found[: len(line)] == line else self.encode(text, special=special)
        return tokens

    @cached_property
    def _line(self) -> list[int]:
        """A line feed, behind which a text begins without the space that sentencepieces begin with; else nothing."""
        return self.encode("\n", special=False) if self.decode(self.encode("a", special=False)) == " a" else []

    def render(self, messages: list[Message], *, generation: bool = True) -> str:
        """Return a conversation as the model's chat template writes it; `generation` opens the assistant's answer.

        Raises:
            UserError: there is no template, it is broken, or it refuses these messages.
        """
        return self._renderer.render(in_parts(messages) if self.takes_parts else messages, generation=generation)

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template wants a content in parts, as models that see have it, and finds nothing in a text."""
        asked = [{"role": "user", "content": _placeholder(0)}]

        def finds(messages: list[Message]) -> bool:
            try:
                return _placeholder(0) in self._renderer.render(messages)
            except UserError:
                return False

        return not finds(asked) and finds(in_parts(asked))

    @cached_property
    def _renderer(self) -> Renderer:
        if not self.template:
            raise UserError("the model has no chat template")
        return Renderer(self.template, {**self.variables, "bos_token": self.bos_text, "eos_token": self.eos_text})

    @property
    def untemplated(self) -> str:
        """What is to be told of a model that has no chat template; empty if it has one."""
        return "" if self.template else "the model has no chat template: it goes on from a question as it stands"

    @property
    def template_reads(self) -> list[str]:
        """The names of variables that the chat template reads besides the conversation's own; `today` for a date.

        Raises:
            UserError: the template is broken.
        """
        return [*self._renderer.reads(), *["today"] * self.asks_for_date] if self.template else []

    @property
    def asks_for_date(self) -> bool:
        """Whether the chat template writes a date."""
        return DATE in (self.template or "")

    def close(self) -> None:
        """End the process that renders the chat template, if there is one."""
        if "_renderer" in self.__dict__:
            self._renderer.close()

    def encode_rendered(self, text: str) -> list[int]:
        """Return the token ids of a rendered conversation; the model's BOS is added unless the template wrote it."""
        if self.bos_text and (stripped := text.lstrip()).startswith(self.bos_text):
            return self.encode(stripped, special=True)  # blank lines before it are the template's layout
        return self.encode(text, special=True, bos=True)

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """Return token ids; `special` reads special-token text as the token, `bos` adds it if the model wants one."""
        if len(text) > _ON_ANY_STACK:
            tokens = with_stack(_STACK_PER_CHARACTER * len(text), lambda: self._encode(text, special))
        else:
            tokens = self._encode(text, special)
        # llama.cpp's own way to add BOS adds EOS too where the file wants one, which would end a prompt.
        return [int(llama_cpp.llama_vocab_bos(self.handle))] * (bos and self.adds_bos) + tokens

    def _encode(self, text: str, special: bool) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.handle, raw, len(raw), buffer, room, False, special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize wants {-count} tokens for {len(raw)} bytes")
        return list(buffer[:count])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; special tokens have none, but for the marks of a thought."""
        return b"".join(self.pieces[t] for t in tokens).decode("utf-8", errors="replace")

    def said(self, prompt: Sequence[int], response: Sequence[int]) -> thoughts.Said:
        """Read what a response to a prompt says once its thoughts are over."""
        return thoughts.read(self.decode(response), thoughts.opens(self._end(prompt)))

    def closes_thought(self, prompt: Sequence[int]) -> bool:
        """Say whether a prompt ends the thought itself, as with `enable_thinking: false`."""
        return thoughts.closes(self._end(prompt))

    def may_think(self, prompt: Sequence[int]) -> bool:
        """Say whether the model may think before it answers a prompt."""
        return thoughts.may_follow(self._end(prompt), self.template or "")

    def _end(self, prompt: Sequence[int]) -> str:
        return "".join(map(self.special_text, prompt[-_LONGEST_MARK:]))

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every token; of special ones only those that mark a thought have any."""
        pieces = (self._piece(token, special=False) for token in range(self.size))
        return [piece or self._mark(token) for token, piece in enumerate(pieces)]

    def _mark(self, special: int) -> bytes:
        text = self.special_text(special)
        return text.encode() if text in thoughts.MARK_TOKENS else b""

    @cached_property
    def ends(self) -> np.ndarray:
        """Which tokens end a response, bool (vocabulary,)."""
        return np.array([llama_cpp.llama_vocab_is_eog(self.handle, token) for token in range(self.size)], dtype=bool)

    @cached_property
    def delimiter(self) -> StepDelimiter:
        """What ends a step of a response. The marks of a thought are no text: a line of one alone is no step."""
        return StepDelimiter([b"" if p.decode(errors="replace") in thoughts.MARK_TOKENS else p for p in self.pieces])

    @property
    def bos_text(self) -> str:
        """The text of the beginning-of-sequence token, empty if there is none."""
        return self.special_text(int(llama_cpp.llama_vocab_bos(self.handle)))

    @property
    def eos_text(self) -> str:
        """The text of the end-of-sequence token, empty if there is none."""
        return self.special_text(int(llama_cpp.llama_vocab_eos(self.handle)))

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp begins a text with the beginning-of-sequence token by itself."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.handle))

    def special_text(self, token: int) -> str:
        """Return the text of a token, a special one's too; empty for a negative id, which is none."""
        return self._piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    @cached_property
    def _specials(self) -> frozenset[int]:
        """The tokens that llama.cpp reads from their text only if it is told to."""
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        return frozenset(t for t in range(self.size) if llama_cpp.llama_vocab_get_attr(self.handle, t) & special)

    @cached_property
    def _special_texts(self) -> list[str]:
        return [text for text in map(self.special_text, self._specials) if text]

    def _piece(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = llama_cpp.llama_token_to_piece(self.handle, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length


def _placeholder(number: int) -> str:
    return f"{_MARK}text{number}{_MARK}"
