"""What a round leaves behind: its policy as one GGUF, the base model rounded likewise, and what to sample from next."""

from __future__ import annotations

import time
from pathlib import Path

from genius_lite.machine.bench import file_speed
from genius_lite.pipeline.round import Policy, Round, Session, note_time
from genius_lite.progress import Stage
from genius_lite.recipe import QuantType, TargetType
from genius_lite.records import PreferencePair
from genius_lite.report.summary import kept_lines
from genius_lite.results.rounds import Quantized, ScoredMargin
from genius_lite.rundir.folder import BASELINE, LORA, POLICY, QUANTIZED, remove
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter, write_lora
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.merge import Kept, merge, planned_types, round_base
from genius_lite.weights.quantize import type_name, types_bytes
from genius_lite.weights.retained import check, one_of_each

KEEPING: tuple[QuantType, ...] = ("Q8_0", "F16")
"""Types for a round whose own type lost what was learned; of F16 the least update is left."""


def baseline(r: Session, adapter: Path) -> Policy:
    """The base model as `next_policy` rounds it, which is what rounds are told against; written once a run.

    It is the base's own file where every tensor keeps its type.
    """
    return r.baseline if (r.rounded / BASELINE).exists() else _baseline(r, Adapter.load(adapter, r.base))


def _baseline(r: Session, learned: Adapter) -> Policy:
    kind, like = r.job.recipe.quantize.type, r.job.source

    def make(out: Path) -> None:
        began, size = time.monotonic(), types_bytes(r.base.gguf, types)
        with r.progress.stage(f"base model: {type_name(like, kind)}", size, "MB", 1e-6) as advance:
            round_base(r.base, learned, kind, out, advance, like)
        note_time(r.rounded, Stage.MERGE, time.monotonic() - began, size)

    types = planned_types(r.base, learned, kind, like)
    if types != {t.name: t.type for t in r.base.gguf.tensors}:
        r.rounded.build(BASELINE, make)
    return r.baseline


def next_policy(r: Round, adapter: Path, pairs: list[PreferencePair]) -> Policy:
    """The policy after this round as one GGUF, which is evaluated, and exported if it is the best.

    How much of the update it keeps is known when it is written. In the first round (`quantize.check`) llama.cpp scores
    some pairs with it too.

    Args:
        pairs: of the round.
    """
    r.enter(Stage.MERGE)
    cfg = r.job.recipe.quantize

    def make(out: Path) -> None:
        began, learned = time.monotonic(), Adapter.load(adapter, r.base)
        name, kept = _merged(r, learned, cfg.type, out)
        wider = list(KEEPING)
        while not (keeps := _keeps(r, name, kept)) and wider:
            name, kept = _merged(r, learned, wider.pop(0), out)
        scored = _scored(r, out, adapter, pairs) if cfg.checks(r.number) else None
        note_time(r.here, Stage.MERGE, time.monotonic() - began, out.stat().st_size)
        widened, digest = len(wider) < len(KEEPING), sha256([out])
        found = Quantized(name, kept.share, keeps, widened, kept.error, kept.by_matrix, scored, digest)
        # Before the file has its name: what stands there without it was cut off, and is written anew.
        remove(r.here / QUANTIZED)
        r.here.build_json(QUANTIZED, lambda: found)
        for line in kept_lines(found):
            r.progress.say(line)

    return Policy(r.here.build(POLICY, make), adapter)


def _merged(r: Round, learned: Adapter, kind: TargetType, out: Path) -> tuple[str, Kept]:
    """Write base + adapter in a type; the type's name, and what the file keeps."""
    like, own = r.job.source, kind == r.job.recipe.quantize.type
    rounded = gguf_file.read(_baseline(r, learned).gguf) if own else None
    name, size = type_name(like, kind), types_bytes(r.base.gguf, planned_types(r.base, learned, kind, like))
    with r.progress.stage(f"round {r.number}: {name}", size, "MB", 1e-6) as advance:
        return name, merge(r.base, learned, kind, out, advance, like=like, rounded=rounded)


def _keeps(r: Round, name: str, kept: Kept) -> bool:
    """Whether a file keeps as much of the update as the recipe asks for; if not, it is said."""
    keep = r.job.recipe.quantize.keep
    if not kept.loses(keep):
        return True
    r.progress.say(f"warning: {name} keeps {kept.share or 0:.1%} of what was learned, less than {keep:.0%}")
    return False


def _scored(r: Round, made: Path, adapter: Path, pairs: list[PreferencePair]) -> ScoredMargin | None:
    """What llama.cpp says of the file, beside its base and the adapter at run time."""
    lora, chosen = r.here / f"{LORA}.partial", one_of_each(pairs)
    write_lora(r.base, adapter, lora)
    with r.progress.stage(f"round {r.number}: check", len(chosen), "questions") as advance:
        found = check(made, r.baseline.gguf, lora, chosen, r.engine, r.here / "sampler.log")
        advance(len(chosen))
    remove(lora)
    return found


def to_sample(r: Round, tuned: Policy) -> Policy:
    """What the next round samples from: the round's GGUF, or its adapter at the side of the base.

    The recipe's `policy` says which; `auto` takes the faster one, measured after the first round. Where the wanted type
    does not keep what was learned, and a wider file was made, it is the adapter.
    """
    assert tuned.adapter
    adapter, mode, merged = tuned.adapter, r.job.recipe.policy, r.folder.round(r.number).quantized
    lost = not merged or merged.widened or not merged.keeps
    if r.last or (mode == "merge" and not lost):
        return tuned
    if lost:
        wanted = type_name(r.job.source, r.job.recipe.quantize.type)
        r.progress.say(f"round {r.number + 1} samples with the adapter at run time, as {wanted} loses too much")
    lora = r.here.build(LORA, lambda out: write_lora(r.base, adapter, out))
    beside = Policy(r.baseline.gguf, adapter, lora)
    if lost or mode == "adapter":
        return beside
    speeds = r.rounded.build_json("speeds.json", lambda: _speeds(r, tuned, beside))
    return beside if speeds["adapter"] > speeds["merged"] else tuned


def _speeds(r: Round, merged: Policy, beside: Policy) -> dict[str, float]:
    """Tokens a second of both."""
    found = {n: file_speed(p.gguf, p.settings(r.engine)) for n, p in (("merged", merged), ("adapter", beside))}
    r.progress.say(f"{found['adapter']:.0f} tokens/s with the adapter at run time, {found['merged']:.0f} merged")
    return found
