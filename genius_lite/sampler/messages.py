"""What the sampler's two processes say to each other: MessagePack frames, each behind its length.

A request carries the whole path of token ids, so the worker keeps no tree. It can be replaced at any time,
and a sampler elsewhere (another machine, a server) needs no more than these messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from genius_lite.records import Completion, prepared
from genius_lite.results.rounds import Stats

if TYPE_CHECKING:  # the worker does without the recipe and its library, half of what it took to start
    from genius_lite.recipe import Foresight

Until = Literal["step", "end", "limit"]
"""Where a branch stops at the latest: a step delimiter, an end token, or only its token limit (for benchmarks)."""


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are drawn. `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def filtered(self) -> bool:
        """Whether some tokens are never drawn."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0

    @staticmethod
    def of(cfg: Foresight) -> Sampling:
        """Take what the recipe says for the search."""
        return Sampling(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)


class EngineSettings(msgspec.Struct, frozen=True):
    """How llama.cpp is set up.

    `slots` branches decode together, `parked` more paths stay cached; `context` is tokens for each of either;
    `gpu_layers` -1 is all of them; `lora` is the path of a LoRA GGUF that is applied, or empty. After `watchdog`
    seconds without a sign of life a worker that loads, or owes replies or its totals, is replaced. `draw` says where
    tokens are drawn: from logits on the host, or by the device that computed them.
    """

    slots: int
    context: int
    threads: int
    parked: int = 0
    gpu_layers: int = -1
    kv_unified: bool = False
    flash_attention: bool | None = None
    prefill_chunk: int = 128
    kv_type: str = "F16"
    lora: str = ""
    watchdog: float = 600.0
    draw: Literal["host", "device"] = "host"

    def with_slots(self, slots: int) -> EngineSettings:
        """Decode so many branches together, each with the same `room`: by that llama.cpp chooses LongRoPE's table."""
        both = self.slots + self.parked if self.kv_unified else slots
        few = min(slots, both)
        return msgspec.structs.replace(self, slots=few, parked=both - few)

    @property
    def room(self) -> int:
        """Tokens that a branch has room for, as llama.cpp sees it: of one KV buffer for all of them the whole."""
        return self.context * (self.slots + self.parked if self.kv_unified else 1)


class Open(msgspec.Struct, frozen=True, tag=True):
    """First request of a session: load this model."""

    model: str
    settings: EngineSettings


class Extend(msgspec.Struct, frozen=True, tag=True):
    """Sample one completion per seed after `path`, each at most `limit` tokens long; without a seed the likeliest one.

    With `streamed` each token is told when it is drawn, and a finished path stays cached, as a conversation goes on.
    """

    id: int
    path: list[int]
    seeds: list[int | None]
    until: Until
    limit: int
    sampling: Sampling
    streamed: bool = False


class Score(msgspec.Struct, frozen=True, tag=True):
    """Log-probabilities of `response` after `prompt`."""

    id: int
    prompt: list[int]
    response: list[int]


class Release(msgspec.Struct, frozen=True, tag=True):
    """These paths are not extended again; their cache may be reused first. A hint, not an order."""

    paths: list[list[int]]


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Tell the totals once nothing is left to do."""


NOT_FINITE = 3
"""Exit status of a worker whose model gave logits that are not finite; its log names the request."""

Request = Open | Extend | Score | Release | Drain


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be loaded with these settings; the worker ends."""

    reason: str


class Drawn(msgspec.Struct, frozen=True, tag=True):
    """A token of the completion of `Extend.seeds[index]`, which is `streamed`; the first has position 0."""

    id: int
    index: int
    position: int
    token: int


class Extended(msgspec.Struct, frozen=True, tag=True):
    """The completion of `Extend.seeds[index]`."""

    id: int
    index: int
    completion: Completion


class Scored(msgspec.Struct, frozen=True, tag=True):
    """Nats, one for each token of `Score.response`."""

    id: int
    logprobs: list[float]


class Drained(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `Drain`, the first that has none yet."""

    stats: Stats


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Nothing to say for a second, but at work."""


Reply = Ready | Failed | Drawn | Extended | Scored | Drained | Alive

HEADER = 4  # bytes of a frame that say how long the message is
_encode = msgspec.msgpack.Encoder().encode


def frame(message: Request | Reply) -> bytes:
    """Encode a message as it is sent."""
    body = _encode(message)
    return len(body).to_bytes(HEADER, "little") + body


def body_length(header: bytes) -> int:
    """Return the bytes of the message that follows this header."""
    return int.from_bytes(header, "little")


decode_request = msgspec.msgpack.Decoder(prepared(Request)).decode
decode_reply = msgspec.msgpack.Decoder(prepared(Reply)).decode
