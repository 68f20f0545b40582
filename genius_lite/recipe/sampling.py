"""What is asked, and how the answers are sampled."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from genius_lite.recipe.types import NATS_PER_TOKEN, SECONDS, SHARE, TOKENS, Auto, KVType, Positive, Section, Seed, Text

MOST_SEQUENCES = 256
"""That llama.cpp holds at once (LLAMA_MAX_SEQ): slots and parked paths together."""


class Model(Section):
    """Which GGUF is trained."""

    gguf: Text = Field(
        description="The model: a path, hf:OWNER/REPO/FILE.gguf, or python:PACKAGE/FILE.gguf. Of one in several files, "
        "the first",
        examples=["hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf"],
    )
    revision: Text | None = Field(default=None, description="Commit, tag or branch, for an hf: model")
    weights: Text | None = Field(
        default=None,
        description="Full-precision safetensors of the same model, a folder or hf:OWNER/REPO: learned on and merged "
        "onto, so that the GGUF only answers the first round",
    )
    weights_revision: Text | None = Field(default=None, description="Commit, tag or branch, for hf: weights")

    @model_validator(mode="after")
    def _possible(self) -> Model:
        if self.weights_revision and not self.weights:
            raise ValueError("weights_revision needs model.weights; for the GGUF's own write model.revision")
        return self


class Queries(Section):
    """Which unlabelled questions are answered. Repeats and blank ones are dropped."""

    source: Text = Field(
        description="The questions: a path (.jsonl .json .csv .parquet .txt, the last with a question a line), or "
        "hf:OWNER/DATASET",
        examples=["questions.jsonl"],
    )
    column: Text = Field(default="prompt", description="Column that holds the question; a .txt has none")
    subset: Text | None = Field(default=None, description="Configuration, for hub datasets that have several")
    split: Text = Field(default="train", description="Split, for hub datasets")
    revision: Text | None = Field(default=None, description="Commit, tag or branch, for hub datasets")
    limit: Positive | None = Field(
        default=None, description="Use at most this many, after shuffling", json_schema_extra={"unit": "questions"}
    )
    shuffle: bool = Field(default=False, description="Shuffle with `queries.seed` before `limit`")
    seed: Seed = Field(default=0, description="Of the shuffling")
    system: str | None = Field(
        default=None, description="System message of every prompt; null leaves the chat template's own default"
    )


class Foresight(Section):
    """Stepwise foresight search, Eq. 1 to 6 of the paper; M, N and K are its `beams`, `candidates`, `steps`."""

    beams: Positive = Field(default=2, description="M: partial responses that are kept at each step")
    candidates: Positive = Field(default=4, description="N: next steps that are sampled from each beam")
    steps: Positive = Field(
        default=4, description="K: steps (lines) that are searched; what follows the last one is its simulated future"
    )
    tau: Annotated[float, Field(gt=0)] = Field(
        default=0.1,
        description="Temperature of F = softmax(f / tau), Eq. 2: low draws the best candidates, high any",
        json_schema_extra=NATS_PER_TOKEN,
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=1.0,
        description="Sampling temperature of steps and futures; at 0.6, the paper's, unlikely tokens are not seen, and "
        "small models learned nothing that showed",
    )
    top_k: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Sample among so many likeliest tokens; 0: among all", json_schema_extra=TOKENS
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Sample among the likeliest tokens that hold this share of the probability; 1.0: all"
    )
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Sample no token below this share of the likeliest one's probability; 0.0: any"
    )
    max_tokens: Positive = Field(
        default=512, description="Longest response, kept steps included", json_schema_extra=TOKENS
    )
    skip_agreeing: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Light mode: no foresight where candidate steps share this much of their tokens; null: always",
        json_schema_extra=SHARE,
    )
    future_tokens: Positive | None = Field(
        default=None, description="Longest simulated future; null: up to max_tokens", json_schema_extra=TOKENS
    )
    drop_below: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Give up futures whose candidate no draw from F can take with this probability; 0.0: none. Needs "
        "pairs.negatives: foresight and choose: best",
    )
    value: Literal["future", "step"] = Field(
        default="future",
        description="f is the mean log-probability of the simulated future (Eq. 1), or of the step itself",
    )
    select: Literal["resample", "greedy"] = Field(
        default="resample", description="The next beams are drawn from F (Eq. 3), or are those of the highest f"
    )

    @model_validator(mode="after")
    def _possible(self) -> Foresight:
        if self.beams * self.candidates < 2:
            raise ValueError("candidates x beams is 1, and a pair needs two responses; write candidates: 2 or more")
        if self.drop_below and (self.value, self.select) != ("future", "resample"):
            raise ValueError("drop_below needs value: future and select: resample; leave it at 0 otherwise")
        if self.skip_agreeing is not None and self.value == "step":
            raise ValueError("skip_agreeing saves futures, which value: step does not look at; write one of the two")
        if self.future_tokens is not None and self.future_tokens > self.max_tokens:
            raise ValueError(f"future_tokens is more than max_tokens, {self.max_tokens}; write less, or leave it out")
        return self


class Server(Section):
    """A llama-server that samples the rollouts; it has to hold the model that the round samples from.

    Its key, if it wants one, is read from the environment variable `GENIUS_LITE_SERVER_KEY`, and is not for a recipe.
    """

    url: Text = Field(description="Where it listens", examples=["http://127.0.0.1:8080"])
    model: Text | None = Field(default=None, description="Which of its models; null: the first that it lists")
    in_flight: Positive = Field(
        default=32, description="Branches that it is asked for at once; as many as it decodes together"
    )
    timeout: Annotated[float, Field(gt=0)] = Field(
        default=300.0, description="Longest wait for the next token", json_schema_extra=SECONDS
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        default=5, description="How often a branch that failed is asked again, after 1, 2, 4, ... seconds"
    )
    tolerance: Annotated[float, Field(gt=0)] = Field(
        default=0.02,
        description="How far its log-probabilities may be from those of the round's model, on average, beyond what "
        "rounding does here",
        json_schema_extra=NATS_PER_TOKEN,
    )

    @model_validator(mode="after")
    def _possible(self) -> Server:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", self.url):
            raise ValueError("url is no address such as http://127.0.0.1:8080; write one, without a key or a password")
        return self


class Sampler(Section):
    """llama.cpp settings. They change speed and memory; what is sampled from only as rounding does, `kv_type` the most.

    `sampler: auto` measures slots, kv_unified and threads on this machine, once for each model.
    """

    slots: Annotated[int, Field(ge=1, le=128)] | Auto = Field(
        default=32, description="Branches decoded together; auto: measured on this machine"
    )
    kv_unified: bool | Auto = Field(
        default=False, description="One KV buffer for all branches instead of one each; auto: measured"
    )
    threads: Positive | Auto = Field(
        default="auto", description="auto: measured with the other two, else the cores this process may use"
    )
    parked: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto", description="Paths kept in the KV cache beside the slots; auto: as many as slots"
    )
    context: Positive | Auto = Field(
        default="auto",
        description="Room of a branch, prompt and response; auto: what the queries need",
        json_schema_extra=TOKENS,
    )
    kv_type: KVType = Field(default="F16", description="Type of the KV cache; quantized ones need flash attention")
    flash_attention: bool | Auto = Field(default="auto", description="auto: llama.cpp decides")
    gpu_layers: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto",
        description="Layers on the GPU, where llama.cpp has one; auto: as many as fit its memory",
        json_schema_extra={"unit": "layers"},
    )
    prefill_chunk: Positive = Field(
        default=128, description="Prompt tokens that ride along in one decode", json_schema_extra=TOKENS
    )

    watchdog: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="Seconds without a sign of life after which the sampler's process is replaced"
    )
    cluster: str = Field(
        default="local",
        description="Who samples rollouts. local: this machine; auto: the nodes of the Ray cluster that it belongs to; "
        "ray://HOST:PORT or HOST:PORT: those of another one",
    )
    server: Server | None = Field(
        default=None, description="A server that samples the rollouts instead of this machine; all else stays here"
    )

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
    """`sampler: auto` is short for all that can be measured."""
    return {"slots": "auto", "kv_unified": "auto", "threads": "auto"} if value == "auto" else value
