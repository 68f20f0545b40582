"""Where answers are sampled, and with what of a machine."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from genius_lite.recipe.types import AboveZero, Auto, Count, KVType, Positive, Section, Text, Threads, key

MOST_SEQUENCES = 256
"""That llama.cpp holds at once (LLAMA_MAX_SEQ): slots and parked paths together."""


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


ADDRESSES = "auto, ray://HOST:PORT or HOST:PORT"
"""How a cluster is named."""


def is_address(text: str) -> bool:
    """Say whether a text is HOST:PORT or ray://HOST:PORT."""
    return bool(re.fullmatch(r"(ray://)?([\w.-]+|\[[\da-fA-F:]+\]):\d{1,5}", text))


class Sampler(Section):
    """llama.cpp settings. They change speed and memory; what is sampled from only as rounding does, `kv_type` the most.

    `sampler: auto` measures slots, kv_unified and threads on this machine, once for each model.
    """

    slots: Annotated[int, Field(ge=1, le=128)] | Auto = key(
        32, "Branches decoded together; auto: measured on this machine"
    )
    kv_unified: bool | Auto = key(False, "One KV buffer for all branches instead of one each; auto: measured")
    threads: Threads | Auto = key("auto", "auto: measured with the other two, else the cores this process may use")
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
        elsewhere=True,
    )
    server: Server | None = key(
        None, "A server that samples the rollouts instead of this machine; all else stays here", elsewhere=True
    )

    @classmethod
    def places(cls) -> dict[str, Any]:
        """Return the keys that name another place to sample in, with the defaults by which it is this machine."""
        return {name: field.default for name, field in cls.model_fields.items() if "elsewhere" in cls.extra(name)}

    @property
    def elsewhere(self) -> list[str]:
        """The keys that name one here: one key, or none."""
        return [name for name, here in self.places().items() if getattr(self, name) != here]

    @property
    def measured(self) -> bool:
        """Whether something here is to be measured."""
        return "auto" in (self.slots, self.kv_unified)

    @model_validator(mode="after")
    def _possible(self) -> Sampler:
        if self.cluster not in ("local", "auto") and not is_address(self.cluster):
            raise ValueError(f"cluster {self.cluster} is no address; write local, {ADDRESSES}")
        if len(named := self.elsewhere) > 1:
            raise ValueError(f"{named[1]} and sampler.{named[0]} are two places to sample in; write one of the two")
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
