"""What is asked, and how the answers are searched."""

from __future__ import annotations

import re
from enum import StrEnum
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from genius_lite.recipe.types import AboveZero, Count, LocalPath, Positive, Section, Seed, Text, key

AnswerKind = Literal["stated", "numeric", "choice"]
"""What is known of the final answers to unlabelled questions."""

STDIN = "-"
"""The source that is read from standard input."""


def columns_of(template: str, key: str = "prompt") -> list[str]:
    """Return the columns that a template such as `{context} {question}` names, which stands under this key.

    Raises:
        ValueError: it names none, or has a brace that belongs to no name; `{{` is one that is written.
    """
    try:
        fields = [(name, form or conversion) for _, name, form, conversion in Formatter().parse(template)]
    except ValueError:  # a brace alone
        fields = [("", None)]
    if any(name == "" or more for name, more in fields):
        raise ValueError(f"{key} {template!r} has braces without the name of a column; write {{column}}, or {{{{")
    names = [name for name, _ in fields if name]
    if not names:
        raise ValueError(f"{key} {template!r} names no column; write '{{context}} {{question}}', or use `column`")
    return list(dict.fromkeys(names))


class Prefix(StrEnum):
    """How a source begins that is no local path; every other one is looked for beside the recipe."""

    HUB = "hf:"
    PACKAGE = "python:"
    REASONING_GYM = "reasoning_gym:"

    @classmethod
    def starts(cls, source: str) -> bool:
        """Return whether a source begins with any of them."""
        return source.startswith(tuple(cls))

    @classmethod
    def public(cls, source: str) -> str:
        """Return a source as others may see it: of a local path, which may name its owner, the last part."""
        return source if cls.starts(source) else re.split(r"[/\\]", source.rstrip("/\\"))[-1]


class Model(Section):
    """Which GGUF is trained."""

    gguf: LocalPath = Field(
        description="The model: a path, hf:OWNER/REPO/FILE.gguf, or python:PACKAGE/FILE.gguf. Of one in several files, "
        "the first",
        examples=["hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf"],
    )
    revision: Text | None = key(None, "Commit, tag or branch, for an hf: model")
    weights: LocalPath | None = key(
        None,
        "The same model's own safetensors in 16 or 32 bits, a folder or hf:OWNER/REPO, of any architecture that "
        "transformers knows: learned on and merged onto, so that the GGUF only answers the first round",
    )
    weights_revision: Text | None = key(None, "Commit, tag or branch, for hf: weights")

    @model_validator(mode="after")
    def _possible(self) -> Model:
        if self.weights_revision and not self.weights:
            raise ValueError("weights_revision needs model.weights; for the GGUF's own write model.revision")
        return self


class Queries(Section):
    """Which unlabelled questions are answered. Repeats and blank ones are dropped."""

    source: LocalPath = Field(
        description="The questions: a path (.jsonl .ndjson .json .csv .tsv .parquet .txt, the last with a question a "
        "line; .gz and .zst of them), a folder of them, a pattern such as 'data/*.jsonl', '-' for standard input, or "
        "hf:OWNER/DATASET",
        examples=["questions.jsonl"],
    )
    column: Text = key(
        "prompt",
        "Column that holds the question, a text or a conversation; a .txt has none. Where there is no `prompt`, or one "
        "of them is named, conversations (`messages`, `conversations`) and `instruction` with `input` are recognized",
    )
    prompt: Text | None = key(
        None,
        "The question put together of several columns, instead of `column`",
        examples=["'{context}\\n\\n{question}'"],
    )
    subset: Text | None = key(None, "Configuration, for hub datasets that have several")
    split: Text = key("train", "Split, for hub datasets")
    revision: Text | None = key(None, "Commit, tag or branch, for hub datasets")
    limit: Positive | None = key(None, "Use at most this many, after shuffling", unit="questions")
    max_tokens: Positive | None = key(
        None, "Leave out questions whose prompt has more tokens than that; null: none", unit="tokens"
    )
    shuffle: bool = key(False, "Shuffle with `queries.seed` before `limit`")
    seed: Seed = key(0, "Of the shuffling")
    answers: AnswerKind = key(
        "stated",
        "What a response's final answer is, for votes and the guard's agreement. stated: what it marks as that, or "
        "says alone; numeric, choice: the number or letter that it comes to, as the checker of that name reads it, "
        "where every question has such an answer",
    )
    system: str | None = key(None, "System message of every prompt; null leaves the chat template's own default")
    template: dict[str, Any] = key(
        {},
        "Variables that the chat template reads, such as `enable_thinking: false`; `validate` lists them. `today` is "
        "the date (YYYY-MM-DD) that a template which asks for it is told; without it that of the run's beginning",
    )

    @model_validator(mode="after")
    def _possible(self) -> Queries:
        if self.prompt:
            columns_of(self.prompt)
        return self


class Foresight(Section):
    """Stepwise foresight search, Eq. 1 to 6 of the paper; M, N and K are its `beams`, `candidates`, `steps`."""

    beams: Positive = key(2, "M: partial responses that are kept at each step")
    candidates: Positive = key(4, "N: next steps that are sampled from each beam")
    steps: Count = key(
        4,
        "K: steps (lines) that are searched; what follows the last one is its simulated future. 0: no search, but "
        "M x N answers that share nothing, for pairs.choose: agreed",
    )
    tau: AboveZero = key(
        0.1,
        "Temperature of F = softmax(f / tau), Eq. 2: low draws the best candidates, high any",
        unit="nats per token",
    )
    temperature: AboveZero = key(
        1.0,
        "Sampling temperature of steps and futures; at 0.6, the paper's, and lr 1e-4 a small model learned "
        "nothing that showed by value; votes do learn at 0.6",
    )
    top_k: Count = key(0, "Sample among so many likeliest tokens; 0: among all", unit="tokens")
    top_p: Annotated[float, Field(gt=0, le=1)] = key(
        1.0, "Sample among the likeliest tokens that hold this share of the probability; 1.0: all"
    )
    min_p: Annotated[float, Field(ge=0, lt=1)] = key(
        0.0, "Sample no token below this share of the likeliest one's probability; 0.0: any"
    )
    max_tokens: Positive = key(512, "Longest response, kept steps included", unit="tokens")
    thought_tokens: Count = key(
        0,
        "For a thought, beside max_tokens, in rollouts and evaluation; a response that still thinks when both are used "
        "up is cut off, and has no answer",
        unit="tokens",
    )
    skip_agreeing: Annotated[float, Field(gt=0, le=1)] | None = key(
        None,
        "Light mode: no foresight where candidate steps share this much of their tokens; null: always",
        unit="share",
    )
    future_tokens: Positive | None = key(
        None,
        "Longest simulated future; null: up to max_tokens. It wants pairs.truncated: keep, as what it cuts off is else "
        "never chosen",
        unit="tokens",
    )
    value: Literal["future", "step"] = key(
        "future", "f is the mean log-probability of the simulated future (Eq. 1), or of the step itself"
    )
    select: Literal["resample", "greedy"] = key(
        "resample", "The next beams are drawn from F (Eq. 3), or are those of the highest f"
    )

    @model_validator(mode="after")
    def _possible(self) -> Foresight:
        if self.beams * self.candidates < 2:
            raise ValueError("candidates x beams is 1, and a pair needs two responses; write candidates: 2 or more")
        for name in ("skip_agreeing", "future_tokens", "value", "select"):
            if not self.steps and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is about a search, and steps: 0 is none; leave it out, or write more steps")
        if self.skip_agreeing is not None and self.value == "step":
            raise ValueError("skip_agreeing saves futures, which value: step does not look at; write one of the two")
        if self.future_tokens is not None and self.future_tokens > self.response_tokens:
            limit = f"max_tokens{' and thought_tokens' if self.thought_tokens else ''}, {self.response_tokens}"
            raise ValueError(f"future_tokens is more than {limit}; write less, or leave it out")
        return self

    @property
    def most_steps(self) -> int:
        """Steps of a rollout: K, or the only one of answers without a search."""
        return max(self.steps, 1)

    @property
    def response_tokens(self) -> int:
        """The longest response, its thought included."""
        return self.max_tokens + self.thought_tokens
