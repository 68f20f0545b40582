"""Where a response thinks, and where it answers: by the marks that models put around a thought."""

from __future__ import annotations

from typing import NamedTuple

MARKS = (
    ("<think>", "</think>"),  # Qwen3, SmolLM3, LFM2, DeepSeek-R1
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("<|channel|>", "<|channel|>final<|message|>"),  # gpt-oss: any other channel comes before the answer
)
"""How a thought begins, and how it ends."""
MARK_TOKENS = frozenset({mark for marks in MARKS for mark in marks} | {"<|message|>"})
"""Special tokens that marks are made of: they have to be read, where other special tokens have no text."""
_BEGIN, _END = (tuple(marks) for marks in zip(*MARKS, strict=True))


class Said(NamedTuple):
    """Hold what a response says once its thoughts are over, and whether they are; None where it has none.

    A thought that was cut off is no answer: there is no text then.
    """

    answer: str
    thought_ended: bool | None


def read(response: str, opened: bool = False) -> Said:
    """Find what follows a response's last thought.

    Args:
        opened: the prompt has begun a thought, which the response goes on with.
    """
    ended = None
    for _, end in MARKS:
        if end in response:
            response, opened, ended = response.rpartition(end)[2], False, True
    if opened or any(begin in response for begin in _BEGIN):
        return Said("", False)
    return Said(response, ended)


def end_in(template: str) -> str | None:
    """Return the mark that ends a thought such as one that the template mentions; None if it mentions none."""
    return next((end for begin, end in MARKS if begin in template), None)


def may_follow(prompt: str, template: str) -> bool:
    """Say whether a model may think after a prompt: its chat template knows of thoughts, and the prompt ends none."""
    return any(mark in template for marks in MARKS for mark in marks) and not closes(prompt)


def opens(prompt: str) -> bool:
    """Say whether a prompt leaves the model in a thought that it begins itself."""
    return prompt.rstrip().endswith(_BEGIN)


def closes(prompt: str) -> bool:
    """Say whether a prompt ends the thought itself, so that the model answers at once."""
    return prompt.rstrip().endswith(_END)
