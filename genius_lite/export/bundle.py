"""Export a round of a run as a folder: the model in the wanted format, a card, and checksums."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from genius_lite.errors import UserError
from genius_lite.export.card import model_card
from genius_lite.export.ollama import modelfile
from genius_lite.export.transformers import write_peft, write_safetensors
from genius_lite.prompts import Vocabulary
from genius_lite.recipe import QuantType, answer_tokens
from genius_lite.rundir import follow_umask, refuse_links, remove, require_space, rounded_base, write_text
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import Base
from genius_lite.weights.lora import write_lora
from genius_lite.weights.merge import Adapter, Kept, merge, merged_bytes
from genius_lite.weights.quantize import quantized_bytes

Format = Literal["gguf", "ollama", "lora-gguf", "peft", "safetensors"]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class RunRound:
    """A finished round of a run folder; number 0 is the base model.

    Raises:
        UserError: not a run folder, or one with a link in it; or the round is not finished.
    """

    run: Path
    number: int

    @staticmethod
    def of(run: Path, number: int | None) -> RunRound:
        """Round `number`; if not given the best one, or the last finished one of a run that goes on."""
        if not (run / "recipe.json").is_file():
            raise UserError(f"{run} is no run folder; name the `out` of a recipe")
        refuse_links(run)
        rounds = sorted(int(p.parent.name.removeprefix("round-")) for p in run.glob("round-*/report.json"))
        if number is None and (run / "best.json").exists():
            number = int(json.loads((run / "best.json").read_text())["round"])
        elif number is None:
            number = rounds[-1] if rounds else 0
        if number not in (0, *rounds):
            done = ", ".join(map(str, rounds)) or "none"
            raise UserError(f"{run}: round {number} is not finished (finished: {done}; 0 is the base model)")
        return RunRound(run, number)

    @cached_property
    def base(self) -> Base:
        return Base.of(self.run / "hf-checkpoint")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What the folder says of the recipe that made it: a run's identity."""
        return json.loads((self.run / "recipe.json").read_text(encoding="utf-8"))

    @property
    def system(self) -> str | None:
        """The system message before every question; None is the chat template's own default."""
        return self.recipe.get("system")

    @property
    def answer_tokens(self) -> int:
        """The longest response to a task."""
        return answer_tokens(self.recipe["evaluate"]["max_tokens"], self.recipe["foresight"]["max_tokens"])

    @property
    def temperature(self) -> float:
        """At which it answered tasks, beside the likeliest response."""
        return self.recipe["evaluate"]["temperature"]

    @property
    def here(self) -> Path:
        return self.run / f"round-{self.number}"

    @property
    def adapter(self) -> Path | None:
        return self.here / "adapter" if self.number else None

    @property
    def gguf(self) -> Path:
        """The file that was evaluated: of the base model the one that went through the rounding of the rounds."""
        if self.number:
            return self.here / "policy.gguf"
        return rounded_base(self.run) or self.base.gguf.path

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Of the rounds up to this one."""
        return [json.loads((self.run / f"round-{n}" / "report.json").read_text()) for n in range(1, self.number + 1)]

    @property
    def own_type(self) -> str:
        """The quantization type of `gguf`, as the run chose it."""
        return self.reports[-1]["quantized"]["type"] if self.number else "base"


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
        card = model_card(chosen.base, chosen.number, chosen.reports, chosen.recipe, sums, kept)
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
        file = out / f"{name}-{chosen.own_type}.gguf"
        shutil.copyfile(chosen.gguf, file)
        if chosen.number and sha256([file]) != chosen.reports[-1]["quantized"]["sha256"]:
            raise UserError(f"{chosen.gguf} is not the file that was evaluated any more; export it with --type")
        advance(file.stat().st_size)
        return [file], {}
    adapter = Adapter.load(chosen.adapter, chosen.base) if chosen.adapter else None
    files, found = list[Path](), dict[str, Kept]()
    for kind in kinds:
        files.append(out / f"{name}-{kind}.gguf")
        found[files[-1].name] = kept = merge(chosen.base, adapter, kind, files[-1], advance)
        if kept.loses(chosen.recipe["quantize"]["keep"]):
            raise UserError(f"{kind} keeps {kept.share or 0:.1%} of what was learned; export a larger --type, or F16")
    return files, found
