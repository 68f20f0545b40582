"""What is asked, and how the answers are sampled."""

from __future__ import annotations

import re
from enum import StrEnum
from string import Formatter
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from genius_lite.recipe.types import AboveZero, Auto, Count, KVType, LocalPath, Positive, Section, Seed, Text, key

MOST_SEQUENCES = 256
"""That llama.cpp holds at once (LLAMA_MAX_SEQ): slots and parked paths together."""


AnswerKind = Literal["stated", "numeric", "choice"]
"""What is known of the final answers to unlabelled questions."""

STDIN = "-"
"""The source that is read from standard input."""


def columns_of(template: str, key: str = "prompt") -> list[str]:
    """Return the columns that a template such as `{context} {question}` names, which stands under this key.

    Raises:
        ValueError: it names none, or has a brace that belongs to no name; `{{` is one that is written.
    """
    names = list[str]()
    for _, name, form, conversion in Formatter().parse(template):
        if name == "" or form or conversion:
            raise ValueError(f"{key} {template!r} has braces without the name of a column; write {{column}}, or {{{{")
        names += [name] if name else []
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
        "Sampling temperature of steps and futures; at 0.6, the paper's, unlikely tokens are not seen, and small "
        "models learned nothing that showed",
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
    future_tokens: Positive | None = key(None, "Longest simulated future; null: up to max_tokens", unit="tokens")
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


class Server(Section):
    """A llama-server that samples the rollouts; it has to hold the model that the round samples from.

    Its key, if it wants one, is read from the environment variable `GENIUS_LITE_SERVER_KEY`, and goes to the server
    that `GENIUS_LITE_SERVER_URL` names: neither is for a recipe. No proxy is asked.
    """

    url: Text = Field(description="Where it listens", examples=["http://127.0.0.1:8080"])
    model: Text | None = key(None, "Which of its models; null: the first that it lists")
    in_flight: Positive = key(32, "Branches that it is asked for at once; as many as it decodes together")
    timeout: AboveZero = key(300.0, "Longest wait for the next token", unit="seconds")
    retries: Count = key(5, "How often a branch that failed is asked again, after 1, 2, 4, ... seconds")
    tolerance: AboveZero = key(
        0.02,
        "How far its log-probabilities may be from those of the round's model, on average, beyond what rounding does "
        "here",
        unit="nats per token",
    )

    @model_validator(mode="after")
    def _possible(self) -> Server:
        try:
            there = urlsplit(self.url)
            is_address = bool(there.hostname) and there.port != 0
        except ValueError:  # brackets or a port that are none
            is_address = False
        if not is_address or not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", self.url):
            raise ValueError("url is no address such as http://127.0.0.1:8080; write one, without a key or a password")
        return self


class Sampler(Section):
    """llama.cpp settings. They change speed and memory; what is sampled from only as rounding does, `kv_type` the most.

    `sampler: auto` measures slots, kv_unified and threads on this machine, once for each model.
    """

    slots: Annotated[int, Field(ge=1, le=128)] | Auto = key(
        32, "Branches decoded together; auto: measured on this machine"
    )
    kv_unified: bool | Auto = key(False, "One KV buffer for all branches instead of one each; auto: measured")
    threads: Positive | Auto = key("auto", "auto: measured with the other two, else the cores this process may use")
    parked: Count | Auto = key("auto", "Paths kept in the KV cache beside the slots; auto: as many as slots")
    context: Positive | Auto = key(
        "auto", "Room of a branch, prompt and response; auto: what the queries need", unit="tokens"
    )
    kv_type: KVType = key("F16", "Type of the KV cache; quantized ones need flash attention")
    flash_attention: bool | Auto = key("auto", "auto: llama.cpp decides")
    gpu_layers: Count | Auto = key(
        "auto", "Layers on the GPU, where llama.cpp has one; auto: as many as fit its memory", unit="layers"
    )
    draw: Literal["auto", "host", "device"] = key(
        "auto",
        "Where tokens are drawn. host: from logits in this machine's memory; device: by llama.cpp, where the logits "
        "are; auto: with a GPU what is measured to be faster, else host",
    )
    prefill_chunk: Positive = key(128, "Prompt tokens that ride along in one decode", unit="tokens")
    watchdog: AboveZero = key(600.0, "Seconds without a sign of life after which the sampler's process is replaced")
    cluster: str = key(
        "local",
        "Who samples rollouts. local: this machine; auto: the nodes of the Ray cluster that it belongs to; "
        "ray://HOST:PORT or HOST:PORT: those of another one",
    )
    server: Server | None = key(None, "A server that samples the rollouts instead of this machine; all else stays here")

    @property
    def measured(self) -> bool:
        """Whether something here is to be measured."""
        return "auto" in (self.slots, self.kv_unified)

    @model_validator(mode="after")
    def _possible(self) -> Sampler:
        if not re.fullmatch(r"local|auto|(ray://)?([\w.-]+|\[[\da-fA-F:]+\]):\d{1,5}", self.cluster):
            raise ValueError(f"cluster {self.cluster} is no address; write local, auto, ray://HOST:PORT or HOST:PORT")
        if self.server and self.cluster != "local":
            raise ValueError("server and sampler.cluster are two places to sample in; write one of the two")
        if self.flash_attention is False and self.kv_type not in ("F32", "F16", "BF16"):
            raise ValueError(f"kv_type {self.kv_type} needs flash attention; take `flash_attention: false` out")
        slots = self.slots if self.slots != "auto" else 1
        if self.parked != "auto" and slots + self.parked > MOST_SEQUENCES:
            raise ValueError(
                f"parked and slots are {slots + self.parked} together, llama.cpp holds {MOST_SEQUENCES} at most; "
                "write fewer"
            )
        return self


def sampler_section(value: Any) -> Any:
    """Resolve `sampler: auto`, which is short for all that can be measured."""
    return {"slots": "auto", "kv_unified": "auto", "threads": "auto"} if value == "auto" else value
