"""How fast this machine is at what a run does, and how that is known: measured, remembered, or reckoned."""

from __future__ import annotations

from typing import Literal

import msgspec

from genius_lite.planning.shape import Shape

How = Literal["measured", "remembered", "earlier round", "estimated"]

# Defaults, where nothing was measured: Qwen2.5-0.5B and SmolLM2-135M on two cores of an AVX-512 server.
_TOKEN = 1 / 12e9  # seconds a core takes for a parameter of a sampled token
_TICK = 1 / 8e9  # for a byte of the weights in each decode, however small: they are read once
_PREFILL = 0.5  # of a sampled token's time takes a prompt's, whose logits are not wanted
_LEARN = {
    "bf16": 1 / 25e9,
    "fp32": 1 / 14e9,
    "nf4": 1 / 14e9,
}  # seconds a core takes for a parameter of a token, forward
_BACKWARD = 2.2  # an update's time over that of the forward pass
_START = 2.0  # a worker's start, beside reading its file
_READ = 1 / 1e9  # a byte, from disk or page cache
IMPORT_BY_MERGE = 0.8  # importing a weight takes so many times what merging one does
_MERGE, _QUANTIZE = 90e-9, 40e-9  # seconds a core takes for a weight: merging, llama.cpp's quantizer


class Decode(msgspec.Struct, frozen=True):
    """Seconds that a file takes at the run's settings: to start, for every decode, and for each token in it.

    `prefilled` is a token of a prompt, `scored` one whose log-probability is looked up.
    """

    start: float
    tick: float
    sampled: float
    prefilled: float
    scored: float

    def per_second(self, slots: int) -> float:
        """Tokens a second with every slot busy."""
        return slots / (self.tick + slots * self.sampled)


class Learn(msgspec.Struct, frozen=True):
    """Seconds that the learner takes: to load, for a token forward, for a token forward and backward."""

    load: float
    forward: float
    update: float


class Convert(msgspec.Struct, frozen=True):
    """Seconds for a weight: to import it, to merge and round it, to quantize the base's."""

    imported: float
    merged: float
    quantized: float


class Rates(msgspec.Struct, frozen=True):
    """Everything that time is reckoned from, and how each is known.

    `decode` has the base file as `base`, and files that a round makes by their type.
    """

    decode: dict[str, Decode]
    learn: Learn
    convert: Convert
    how: dict[str, How]

    def of_file(self, kind: str) -> Decode:
        """Of a type; the base file's stand for one that was not measured."""
        return self.decode.get(kind, self.decode["base"])


def reckoned_decode(shape: Shape, file_bytes: int, cores: int) -> Decode:
    """Without measuring: by the number of parameters, and the bytes that each decode reads."""
    sampled = _TOKEN * shape.parameters / cores
    return Decode(
        start=_START + _READ * file_bytes,
        tick=_TICK * file_bytes,
        sampled=sampled,
        prefilled=_PREFILL * sampled,
        scored=sampled,
    )


def reckoned_learn(shape: Shape, precision: str, cores: int, *, checkpointing: bool) -> Learn:
    """Without measuring: by the number of parameters."""
    forward = _LEARN[precision] * shape.parameters / cores
    return Learn(_START + 2 * _READ * 2 * shape.parameters, forward, forward * (1 + _BACKWARD + checkpointing))


def reckoned_convert(cores: int) -> Convert:
    """Without measuring."""
    return Convert(IMPORT_BY_MERGE * _MERGE / cores, _MERGE / cores, _QUANTIZE / cores)
