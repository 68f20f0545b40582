"""Talk to a GGUF in the terminal, through the model's own chat template."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from genius_lite.errors import UserError


def chat(
    model: Path, lora: Path | None, *, system: str | None, temperature: float, max_tokens: int, context: int, seed: int
) -> None:
    """Read questions from standard input until it ends, and stream the answers; the conversation is kept.

    Args:
        lora: a LoRA GGUF that is applied to the model.

    Raises:
        UserError: the model cannot be loaded.
    """
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)
    try:
        llama = llama_cpp.Llama(
            str(model), lora_path=str(lora) if lora else None, n_ctx=context, seed=seed, verbose=False
        )
    except (ValueError, RuntimeError, AssertionError) as e:
        raise UserError(f"{model}: llama.cpp cannot load it: {e}") from None
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{model}\nEnd with Ctrl-D.")
    while (question := _ask(interactive)) is not None:
        messages.append({"role": "user", "content": question})
        try:
            answer = _answer(llama, messages, temperature, max_tokens)
        except ValueError as e:  # llama-cpp-python's word for a conversation longer than the context
            raise UserError(f"{e}; start again, or give --context more than {context}") from None
        messages.append({"role": "assistant", "content": answer})


def _ask(interactive: bool) -> str | None:
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return None
        if line:
            return line


def _answer(llama: Any, messages: list[Any], temperature: float, max_tokens: int) -> str:
    parts = []
    for chunk in llama.create_chat_completion(messages, temperature=temperature, max_tokens=max_tokens, stream=True):
        part = chunk["choices"][0]["delta"].get("content") or ""
        print(part, end="", flush=True)
        parts.append(part)
    print()
    return "".join(parts)
