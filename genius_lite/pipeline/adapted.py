"""What a round leaves to sample from: its GGUF, or the base with the adapter at its side."""

from __future__ import annotations

from pathlib import Path

from genius_lite.pipeline.round import Policy, Round
from genius_lite.pipeline.trust import drop_foreign
from genius_lite.rundir import folder
from genius_lite.weights.adapter import write_lora
from genius_lite.weights.quantize import type_name
from genius_lite.weights.untrusted import vouch


def to_sample(r: Round, tuned: Policy) -> Policy:
    """Return what stands for the round when the next one samples: its GGUF, or its adapter at the side of the base.

    It is the adapter where the recipe's `policy` says so, and where the wanted type does not keep what was learned, and
    a wider file was made.
    """
    assert tuned.adapter
    adapter, quantized = tuned.adapter, r.folder.round(r.number).quantized
    lost = not quantized or quantized.widened or not quantized.keeps
    if r.last or (r.job.recipe.policy != "adapter" and not lost):
        return tuned
    if lost:
        wanted = type_name(r.job.source, r.job.recipe.quantize.type)
        r.progress.say(f"round {r.number + 1} samples with the adapter at run time, as {wanted} loses too much")
    drop_foreign(r.here / folder.LORA)

    def make(out: Path) -> None:
        write_lora(r.base, adapter, out)
        vouch(out)

    return Policy(r.baseline.gguf, adapter, r.here.build(folder.LORA, make))
