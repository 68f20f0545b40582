"""A policy as a GGUF: the source with an adapter merged onto it, at a quantization type that keeps what was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.recipe import Quantize, QuantType
from genius_lite.records import PreferencePair
from genius_lite.rundir import remove
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights import imatrix
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.importing import Base
from genius_lite.weights.lora import write_lora
from genius_lite.weights.merge import Adapter, merge, merged_bytes
from genius_lite.weights.quantize import quantize, quantized_bytes
from genius_lite.weights.retained import Probe, Retained, Scores, compare, probe, scores

SCORING_SLOTS = 4  # branches that a file's scores are asked on
_DECIDED = 4.0  # standard errors
_UNQUANTIZED = ("F16", "BF16")

Advance = Callable[[int], None]


def policy_gguf(
    base: Base, adapter: Path | None, kind: QuantType, out: Path, advance: Advance = lambda n: None
) -> None:
    """Write base + adapter as a GGUF of type `kind`; the 16-bit file in between is deleted.

    Args:
        adapter: a peft adapter folder, whose importance matrix is used if it has one; None writes the base model.
        advance: called with bytes as they are written, `policy_bytes` in all (about).

    Raises:
        UserError: the adapter was trained on another model.
    """
    sixteen = out.with_name(f"{out.name}.merged")
    _merge(base, adapter, sixteen, advance)
    if kind in _UNQUANTIZED:
        sixteen.rename(out)
        return
    quantize(sixteen, kind, base.gguf, out, _matrix(adapter), advance)
    sixteen.unlink()


def policy_bytes(source: GGUF, kind: QuantType) -> int:
    """About how many bytes `policy_gguf` writes: the merged file, and the quantized one twice."""
    return merged_bytes(source) + (0 if kind in _UNQUANTIZED else 2 * quantized_bytes(source, kind))


def measured_policy(
    base: Base,
    adapter: Path,
    cfg: Quantize,
    pairs: list[PreferencePair],
    settings: EngineSettings,
    sampled: Path,
    speed: Callable[[Path], float],
    out: Path,
    log: Path,
    advance: Advance,
) -> dict[str, Any]:
    """Write the policy at the recipe's type, or at the fastest that keeps enough, and measure what each type keeps.

    Where `auto` finds none that does, the type closest to the F16 merge is written, and the adapter applied at run
    time, which rounds nothing, is measured beside them.

    Args:
        pairs: that are scored, with the policy and with the base model, in 16 bits and at every type; eight of them
            where these decide it.
        settings: of the sampler that scores them.
        sampled: the base model as llama.cpp samples it, which an unmerged adapter is applied to.
        speed: measures a file's tokens a second.
        advance: called with bytes as they are written, `measured_bytes` in all (about).

    Returns:
        The `type` that was written, whether it `loses` too much for sure, whether it `keeps` enough for sure, and a row
        for each that was tried, the unmerged adapter as type `adapter`.
    """
    work = out.with_name(f"{out.name}.work")
    remove(work)
    work.mkdir()
    merged, unlearned = work / "merged.gguf", work / "base.gguf"
    _merge(base, adapter, merged, advance)
    _merge(base, None, unlearned, advance)
    scoring = msgspec.structs.replace(settings, slots=SCORING_SLOTS, parked=0)
    compared = _Compared(merged, unlearned, scoring, probe(merged, scoring, pairs, log).parts(), cfg, log)
    tried: list[tuple[Retained, float, Path]] = []
    for kind in cfg.types:
        for with_matrix in (True, False) if cfg.ablate_imatrix else (cfg.imatrix,):
            file = work / f"{kind}-{with_matrix}.gguf"
            matrix = _matrix(adapter) if with_matrix else None
            with _quantized(unlearned, kind, base.gguf, work / "unlearned.gguf", matrix, advance) as same_type:
                _quantize_or_link(merged, kind, base.gguf, file, matrix, advance)
                row = compared.row(kind, (file, scoring), (same_type, scoring), with_matrix)
            tried.append((row, speed(file) if cfg.type == "auto" else 0.0, file))
    chosen = _choose([t for t in tried if t[0].importance == cfg.imatrix], cfg)
    keeps = _keeps(chosen[0], cfg)
    chosen[2].rename(out)
    rows = [{**row.as_dict(), "tokens_per_s": rate or None} for row, rate, _ in tried]
    if cfg.type == "auto" and not keeps:
        lora = work / "adapter.gguf"
        write_lora(base, adapter, lora)
        applied = msgspec.structs.replace(scoring, lora=str(lora))
        beside = compared.row("adapter", (sampled, applied), (sampled, scoring), importance=False)
        rows.append({**beside.as_dict(), "tokens_per_s": None})
    remove(work)
    return {"type": chosen[0].type, "loses": _loses(chosen[0], cfg), "keeps": keeps, "tried": rows}


@dataclass
class _Compared:
    """Files beside the F16 merge and the F16 base, on no more pairs than it takes to tell whether they keep enough."""

    merged: Path
    unlearned: Path
    settings: EngineSettings
    parts: list[Probe]
    cfg: Quantize
    log: Path
    exact: list[list[Scores]] = field(default_factory=list)  # by the two 16-bit files, for each part that was needed

    def row(
        self, kind: str, policy: tuple[Path, EngineSettings], base: tuple[Path, EngineSettings], importance: bool
    ) -> Retained:
        """What a policy keeps, against the base model in the same form."""
        found, number = self._scores(0, policy, base), 1
        while not _decided(row := compare(kind, *found, importance=importance), self.cfg) and number < len(self.parts):
            found = [some + more for some, more in zip(found, self._scores(number, policy, base), strict=True)]
            number += 1
        return row

    def _scores(self, number: int, *files: tuple[Path, EngineSettings]) -> list[Scores]:
        """Of a part: by these files, and by the two that they are set beside."""
        part = self.parts[number]
        if number == len(self.exact):
            self.exact.append([scores(f, self.settings, part, self.log) for f in (self.merged, self.unlearned)])
        return [*(scores(file, way, part, self.log) for file, way in files), *self.exact[number]]


def measured_bytes(source: GGUF, cfg: Quantize) -> int:
    """About how many bytes `measured_policy` writes."""
    times = 2 if cfg.ablate_imatrix else 1
    types = sum(2 * quantized_bytes(source, kind) for kind in cfg.types if kind not in _UNQUANTIZED)
    return 2 * (merged_bytes(source) + times * types)


def _choose(tried: list[tuple[Retained, float, Path]], cfg: Quantize) -> tuple[Retained, float, Path]:
    """The fastest of those that keep enough, else the one closest to the F16 merge."""
    enough = [t for t in tried if _keeps(t[0], cfg)]
    return max(enough, key=lambda t: t[1]) if enough else min(tried, key=lambda t: t[0].kl)


def _keeps(row: Retained, cfg: Quantize) -> bool:
    """Whether it keeps enough, by one standard error at least; where nothing was learned nothing can be lost.

    A file that more than keeps the margin has not kept it either: what is added is rounding, not learning.
    """
    return row.kept is None or abs(row.kept - 1) + row.error <= 1 - cfg.keep


def _loses(row: Retained, cfg: Quantize) -> bool:
    """Whether it surely keeps too little or adds too much, by two standard errors."""
    return row.kept is not None and abs(row.kept - 1) - 2 * row.error > 1 - cfg.keep


def _decided(row: Retained, cfg: Quantize) -> bool:
    """Whether more pairs can hardly change what is said of it; of few pairs the standard error is itself uncertain."""
    return row.kept is not None and abs(abs(row.kept - 1) - (1 - cfg.keep)) > _DECIDED * row.error


def _merge(base: Base, adapter: Path | None, out: Path, advance: Advance) -> None:
    merge(base.gguf, Adapter.load(adapter, base) if adapter else None, out, advance)


def _matrix(adapter: Path | None) -> imatrix.Matrix | None:
    file = adapter / imatrix.IMATRIX_FILE if adapter else None
    return imatrix.load(file) if file and file.exists() else None


def _quantize_or_link(
    merged: Path, kind: QuantType, source: GGUF, out: Path, matrix: imatrix.Matrix | None, advance: Advance
) -> None:
    if kind in _UNQUANTIZED:
        out.hardlink_to(merged)
    else:
        quantize(merged, kind, source, out, matrix, advance)


@contextmanager
def _quantized(
    merged: Path, kind: QuantType, source: GGUF, out: Path, matrix: imatrix.Matrix | None, advance: Advance
) -> Iterator[Path]:
    _quantize_or_link(merged, kind, source, out, matrix, advance)
    yield out
    out.unlink()
