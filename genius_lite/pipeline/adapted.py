"""What the next round samples from: the round's GGUF, or the base with the adapter at its side."""

from __future__ import annotations

from pathlib import Path

import msgspec

from genius_lite.machine.bench import file_speed
from genius_lite.pipeline.round import Policy, Round
from genius_lite.pipeline.trust import drop_foreign
from genius_lite.rundir import folder
from genius_lite.weights.adapter import write_lora
from genius_lite.weights.quantize import type_name
from genius_lite.weights.untrusted import vouch


class _Speeds(msgspec.Struct):
    """Tokens a second."""

    merged: float
    adapter: float


def to_sample(r: Round, tuned: Policy) -> Policy:
    """Choose what the next round samples from: the round's GGUF, or its adapter at the side of the base.

    The recipe's `policy` says which; `auto` takes the faster one, measured after the first round. Where the wanted type
    does not keep what was learned, and a wider file was made, it is the adapter.
    """
    assert tuned.adapter
    adapter, mode, quantized = tuned.adapter, r.job.recipe.policy, r.folder.round(r.number).quantized
    lost = not quantized or quantized.widened or not quantized.keeps
    if r.last or (mode == "merge" and not lost):
        return tuned
    if lost:
        wanted = type_name(r.job.source, r.job.recipe.quantize.type)
        r.progress.say(f"round {r.number + 1} samples with the adapter at run time, as {wanted} loses too much")
    drop_foreign(r.here / folder.LORA)

    def make(out: Path) -> None:
        write_lora(r.base, adapter, out)
        vouch(out)

    lora = r.here.build(folder.LORA, make)
    adapted = Policy(r.baseline.gguf, adapter, lora)
    if lost or mode == "adapter":
        return adapted

    def measure() -> _Speeds:
        merged, beside = (file_speed(policy.gguf, policy.settings(r.engine)) for policy in (tuned, adapted))
        r.progress.say(f"{beside:.0f} tokens/s with the adapter at run time, {merged:.0f} merged")
        return _Speeds(merged, beside)

    speeds: _Speeds = r.rounded.build_json("speeds.json", measure, _Speeds)
    return adapted if speeds.adapter > speeds.merged else tuned
