"""Export a round of a run as a folder: the model in the wanted format, a card, and checksums."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.export.card import model_card
from genius_lite.export.ollama import modelfile
from genius_lite.export.transformers import write_peft, write_safetensors
from genius_lite.recipe import QuantType, answer_tokens
from genius_lite.results.rounds import Quantized, RoundReport
from genius_lite.rundir.folder import CHECKPOINT, follow_umask, refuse_links, remove, require_space, write_text
from genius_lite.rundir.reader import RunFolder
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import Base
from genius_lite.weights.lora import write_lora
from genius_lite.weights.merge import Adapter, Kept, merge, merged_bytes
from genius_lite.weights.quantize import quantized_bytes

Format = Literal["gguf", "ollama", "lora-gguf", "peft", "safetensors"]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class RunRound:
    """A finished round of a run folder; number 0 is the base model."""

    run: RunFolder
    number: int

    @staticmethod
    def of(path: Path, number: int | None) -> RunRound:
        """Round `number`; if not given the best one, or the last finished one of a run that goes on.

        Raises:
            UserError: not a run folder, or one with a link in it; or the round is not finished.
        """
        run = RunFolder(path)
        refuse_links(path)
        finished = [0, *(report.round for report in run.reports)]
        if number is None:
            number = finished[-1] if run.best is None else run.best
        if number not in finished:
            done = ", ".join(map(str, finished[1:])) or "none"
            raise UserError(f"{path}: round {number} is not finished (finished: {done}; 0 is the base model)")
        return RunRound(run, number)

    @cached_property
    def base(self) -> Base:
        return Base.of(self.run.path / CHECKPOINT)

    @property
    def system(self) -> str | None:
        """The system message before every question; None is the chat template's own default."""
        return self.run.recipe.get("system")

    @property
    def answer_tokens(self) -> int:
        """The longest response to a task."""
        recipe = self.run.recipe
        return answer_tokens(recipe["evaluate"]["max_tokens"], recipe["foresight"]["max_tokens"])

    @property
    def temperature(self) -> float:
        """At which it answered tasks, beside the likeliest response."""
        return self.run.recipe["evaluate"]["temperature"]

    @property
    def adapter(self) -> Path | None:
        return self.run.round(self.number).adapter if self.number else None

    @property
    def gguf(self) -> Path:
        """The file that was evaluated: of the base model the one that went through the rounding of the rounds."""
        if self.number:
            return self.run.round(self.number).policy
        return self.run.rounded_base or self.base.gguf.path

    @cached_property
    def reports(self) -> list[RoundReport]:
        """Of the rounds up to this one."""
        return [report for report in self.run.reports if report.round <= self.number]

    @property
    def made(self) -> Quantized | None:
        """What the run says of `gguf`; None of the base model."""
        return self.run.round(self.number).quantized if self.number else None


def export(
    run: Path,
    number: int | None,
    to_format: Format,
    kinds: list[QuantType],
    out: Path,
    advance: Advance = lambda n: None,
) -> dict[str, Kept]:
    """Write a folder with a round's model, its card (README.md) and SHA256SUMS.

    Its modes follow the umask, unlike those of a run folder: it is made to be given to somebody, where the user says.

    Args:
        kinds: quantization types of GGUFs; none takes the one that the run made.
        advance: called with bytes of GGUFs as they are written, `export_bytes` in all (about).

    Returns:
        File name -> what it keeps of the update, of those whose types were asked for.

    Raises:
        UserError: as `RunRound`; or `out` exists, or has no room; or the base model has no adapter to export.
    """
    chosen = RunRound.of(run, number)
    if out.exists():
        raise UserError(f"{out} exists; name another folder, or delete it")
    if chosen.adapter is None and to_format in ("lora-gguf", "peft"):
        raise UserError(f"{run}: the base model has no adapter; export another --round")
    if kinds and to_format not in ("gguf", "ollama"):
        raise UserError(f"--type is for gguf and ollama; {to_format} is not quantized")
    out.parent.mkdir(parents=True, exist_ok=True)
    require_space(out.parent, 2 * export_bytes(run, number, to_format, kinds), "the export")
    partial = out.with_name(f"{out.name}.exporting")
    remove(partial)
    partial.mkdir()
    try:
        kept = _write(chosen, to_format, kinds, partial, advance)
        sums = {p.name: sha256([p]) for p in sorted(partial.iterdir())}
        card = model_card(chosen.base, chosen.number, chosen.reports, chosen.run.recipe, sums, kept)
        write_text(partial / "README.md", card)
        sums["README.md"] = sha256([partial / "README.md"])
        write_text(partial / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        follow_umask(partial)
        partial.rename(out)
    finally:
        remove(partial)
    return kept


def export_bytes(run: Path, number: int | None, to_format: Format, kinds: list[QuantType]) -> int:
    """About how many bytes `export` writes."""
    chosen = RunRound.of(run, number)
    if to_format in ("gguf", "ollama"):
        return sum(quantized_bytes(chosen.base.gguf, kind) for kind in kinds) or chosen.gguf.stat().st_size
    return merged_bytes(chosen.base.gguf) if to_format == "safetensors" else 0


def _write(chosen: RunRound, to_format: Format, kinds: list[QuantType], out: Path, advance: Advance) -> dict[str, Kept]:
    name, kept = f"{chosen.base.name}.genius", dict[str, Kept]()
    if to_format == "safetensors":
        write_safetensors(chosen.base, chosen.adapter, out)
    elif to_format == "peft" and chosen.adapter:
        write_peft(chosen.base, chosen.adapter, out)
    elif to_format == "lora-gguf" and chosen.adapter:
        write_lora(chosen.base, chosen.adapter, out / f"{name}-lora.gguf")
    else:
        files, kept = _write_ggufs(chosen, kinds, out, name, advance)
        if to_format == "ollama":
            for file in files:
                target = "Modelfile" if len(files) == 1 else f"Modelfile.{file.stem.rpartition('-')[2]}"
                context = chosen.base.gguf.metadata.get(f"{chosen.base.gguf.architecture}.context_length")
                with Vocabulary.open(file) as vocabulary:
                    text = modelfile(vocabulary, file.name, context=context, system=chosen.system)
                    write_text(out / target, text)
    return kept


def _write_ggufs(
    chosen: RunRound, kinds: list[QuantType], out: Path, name: str, advance: Advance
) -> tuple[list[Path], dict[str, Kept]]:
    if not kinds:
        file = out / f"{name}-{chosen.made.type if chosen.made else 'base'}.gguf"
        shutil.copyfile(chosen.gguf, file)
        if chosen.made and sha256([file]) != chosen.made.sha256:
            raise UserError(f"{chosen.gguf} is not the file that was evaluated any more; export it with --type")
        advance(file.stat().st_size)
        return [file], {}
    adapter = Adapter.load(chosen.adapter, chosen.base) if chosen.adapter else None
    files, found = list[Path](), dict[str, Kept]()
    for kind in kinds:
        files.append(out / f"{name}-{kind}.gguf")
        found[files[-1].name] = kept = merge(chosen.base, adapter, kind, files[-1], advance)
        if kept.loses(chosen.run.recipe["quantize"]["keep"]):
            raise UserError(f"{kind} keeps {kept.share or 0:.1%} of what was learned; export a larger --type, or F16")
    return files, found
