"""Export a round of a run as a folder: the model in the wanted format, a card, and checksums."""

from __future__ import annotations

import fnmatch
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate.models import PromptConfig
from genius_lite.export import FormatName
from genius_lite.export.card import llama_options, model_card
from genius_lite.export.ollama import modelfile
from genius_lite.export.transformers import python_lines, write_peft, write_safetensors
from genius_lite.progress import SILENT, Advance, Progress
from genius_lite.recipe import QuantType, TargetType, answer_tokens
from genius_lite.results.rounds import Quantized
from genius_lite.rundir.disk import require_new, scratch, settled, sync
from genius_lite.rundir.folder import CHECKPOINT, follow_umask, write_text
from genius_lite.rundir.reader import RunFolder
from genius_lite.text import percent, visible
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter, write_lora
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import Base
from genius_lite.weights.merge import merge, planned_types
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.untrusted import prove


@dataclass(frozen=True)
class RunRound:
    """A finished round of a run folder; number 0 is the base model."""

    run: RunFolder
    number: int

    @staticmethod
    def of(path: Path, number: int | None) -> RunRound:
        """Choose round `number`; if not given the best one, or the last finished one of a run that goes on.

        Raises:
            UserError: not a run folder, or one with a link in it; or the round is not finished.
        """
        run = RunFolder(path)
        run.require("foresight.max_tokens", "evaluate.temperature", "quantize.keep")
        finished = [0, *(report.round for report in run.reports)]
        if number is None:
            number = finished[-1] if run.best is None else run.best
        if number not in finished:
            done = ", ".join(map(str, finished[1:])) or "none"
            raise UserError(f"{path}: round {number} is not finished (finished: {done}; 0 is the base model)")
        return RunRound(run, number)

    @cached_property
    def base(self) -> Base:
        base = Base.of(self.run.path / CHECKPOINT)
        prove(base.gguf.path)
        return base

    @property
    def file_name(self) -> str:
        """What the names of its files begin with."""
        return f"{self.base.name}.genius"

    @property
    def why_base(self) -> str:
        """Say why the base model is what was chosen, where no round was asked for."""
        name = visible(str(self.run.path))
        if self.run.best is None and not self.run.reports:
            return f"no round of {name} is finished; this is the base model"
        return f"the best round of {name} is the base model itself"

    @property
    def asked(self) -> PromptConfig:
        """How the run asked."""
        recipe, cfg, foresight = self.run.recipe, self.run.recipe["evaluate"], self.run.recipe["foresight"]
        longest = answer_tokens(
            cfg.get("max_tokens", "auto"), foresight["max_tokens"], foresight.get("thought_tokens", 0)
        )
        return PromptConfig(recipe.get("system"), longest, cfg["temperature"], recipe.get("template", {}))

    @property
    def adapter(self) -> Path | None:
        return self.run.round(self.number).adapter if self.number else None

    @property
    def gguf(self) -> Path:
        """The file that was evaluated: of the base model the one that went through the rounding of the rounds."""
        if self.number:
            return self.run.round(self.number).policy
        return self.run.rounded_base or self.base.gguf.path

    @property
    def made(self) -> Quantized | None:
        """What the run says of `gguf`; None of the base model."""
        return self.run.round(self.number).quantized if self.number else None


def export(
    run: Path,
    number: int | None,
    to_format: FormatName,
    kinds: list[QuantType],
    out: Path,
    progress: Progress = SILENT,
    *,
    force: bool = False,
    named: str | None = None,
) -> list[str]:
    """Write a folder with a round's model, its card (README.md) and SHA256SUMS.

    Its modes follow the umask, unlike those of a run folder: it is made to be given to somebody, where the user says.

    Args:
        kinds: quantization types of GGUFs; none takes the one that the run made.
        force: try it even where the disk says that it has no room.
        named: what the model is to be called in Ollama.

    Returns:
        What a reader of the files should know, a line each.

    Raises:
        UserError: as `RunRound`; or `out` exists, or has no room; or the base model has no adapter to export.
    """
    chosen, wanted = RunRound.of(run, number), FORMATS[to_format]
    require_new(out, "folder")
    if chosen.adapter is None and wanted.of_adapter:
        raise UserError(f"{run}: the base model has no adapter; export another --round")
    if kinds and not wanted.of_types:
        able = " and ".join(name for name, each in FORMATS.items() if each.of_types)
        raise UserError(f"--type is for {able}; {to_format} is not quantized")
    out.parent.mkdir(parents=True, exist_ok=True)
    types: Sequence[TargetType] = (kinds or ["source"]) if wanted.of_types else ["F16"]
    size = 0 if wanted.of_adapter else sum(quantized_bytes(chosen.base.gguf, kind) for kind in types)
    if wanted.of_types and not kinds and not _is_part(chosen):
        size = chosen.gguf.stat().st_size
    with (
        scratch(out.parent, 0 if force else size, "the export") as folder,
        progress.stage("export", size, "MB", 1e-6) as advance,
    ):
        partial = folder / "export"
        partial.mkdir()
        notes = wanted.write(chosen, kinds, partial, advance)
        sums = {p.name: sha256([p]) for p in sorted(partial.iterdir())}
        usage = f"```{'sh' if wanted.usage else 'python'}\n{usage_of(chosen, to_format, sums, '.', named)}\n```\n"
        # Every other type, and an adapter beside another file, may answer otherwise.
        other = f"the run's own {chosen.made.type} file" if chosen.made and (kinds or not wanted.of_types) else ""
        reports = [report for report in chosen.run.reports if report.round <= chosen.number]
        card = model_card(chosen.base, chosen.number, reports, chosen.run.recipe, sums, notes, usage, other)
        write_text(partial / "README.md", card)
        sums["README.md"] = sha256([partial / "README.md"])
        write_text(partial / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        follow_umask(partial)
        for file in [*partial.iterdir(), partial]:
            sync(file)
        settled(lambda: partial.rename(out))
        sync(out.parent)
    return notes


def usage_of(
    chosen: RunRound, to_format: FormatName, names: Iterable[str], folder: str, named: str | None = None
) -> str:
    """Write what runs an export in a shell, or in Python (a format without `usage`); of several types the first.

    Args:
        names: of the files in the folder.
        named: what the model is called in Ollama, where of several types each becomes a tag; `genius` if not given.
    """
    wanted, asked = FORMATS[to_format], (chosen.asked.system, chosen.asked.template)
    if not wanted.usage:
        return python_lines(chosen.base, wanted.of_adapter, *asked)
    gguf, modelfile = (next(iter(fnmatch.filter(sorted(names), each)), "") for each in ("*.gguf", "Modelfile*"))
    called = f"{named}{tag_of(modelfile)}" if named else "genius"
    paths = {"gguf": shlex.quote(f"{folder}/{gguf}"), "modelfile": shlex.quote(f"{folder}/{modelfile}")}
    return wanted.usage.format(**paths, asked=llama_options(*asked), name=shlex.quote(called))


def tag_of(modelfile: str) -> str:
    """Return the tag that the model of `Modelfile.Q8_0` gets beside others in Ollama, `:q8_0`; none of the only one."""
    return modelfile.removeprefix("Modelfile").replace(".", ":").lower()


def _write_ggufs(chosen: RunRound, kinds: list[QuantType], out: Path, advance: Advance) -> list[str]:
    made = chosen.made
    if not kinds:
        prove(chosen.gguf)
        file = out / f"{chosen.file_name}-{made.type if made else 'base'}.gguf"
        if _is_part(chosen):  # copied under another name it would load nowhere
            merge(chosen.base, None, "source", file, advance)
            return []
        shutil.copyfile(chosen.gguf, file)
        if made and sha256([file]) != made.sha256:
            raise UserError(f"{chosen.gguf} is not the file that was evaluated any more; export it with --type")
        advance(file.stat().st_size)
        return []
    adapter, notes = Adapter.load(chosen.adapter, chosen.base) if chosen.adapter else None, list[str]()
    held = {tensor.name: tensor.type for tensor in gguf_file.read(chosen.gguf).tensors} if made else {}
    for kind in kinds:
        file = out / f"{chosen.file_name}-{kind}.gguf"
        if made and held == planned_types(chosen.base, adapter, kind) and sha256([chosen.gguf]) == made.sha256:
            shutil.copyfile(chosen.gguf, file)  # which was evaluated
            advance(file.stat().st_size)
            continue
        kept = merge(chosen.base, adapter, kind, file, advance)
        if kept.loses(chosen.run.recipe["quantize"]["keep"]):
            raise UserError(f"{kind} keeps {kept.share or 0:.1%} of what was learned; export a larger --type, or F16")
        if kept.share:
            share = f"{file.name} keeps {percent(kept.share, 1)} of the update"
            notes.append(f"{share}; it was not evaluated, the round's own file was")
    return notes


def _is_part(chosen: RunRound) -> bool:
    """Say whether the round is the user's own model as it came, in several files."""
    return len(chosen.base.gguf.files) > 1 and chosen.gguf == chosen.base.gguf.path


def _write_ollama(chosen: RunRound, kinds: list[QuantType], out: Path, advance: Advance) -> list[str]:
    """Write GGUFs with a Modelfile for each, whose name has the type where there are several."""
    notes = _write_ggufs(chosen, kinds, out, advance)
    context = chosen.base.gguf.own("context_length")
    for file in (files := sorted(out.glob("*.gguf"))):
        name = "Modelfile" if len(files) == 1 else f"Modelfile.{file.stem.rpartition('-')[2]}"
        with Vocabulary.open(file, chosen.asked.template) as vocabulary:
            text, comments = modelfile(vocabulary, file.name, context=context, system=chosen.asked.system)
        write_text(out / name, text)
        notes += [f"{name}: {comment}" for comment in comments]
    return notes


def _write_lora(chosen: RunRound, kinds: list[QuantType], out: Path, advance: Advance) -> list[str]:
    assert chosen.adapter
    write_lora(chosen.base, chosen.adapter, out / f"{chosen.file_name}-lora.gguf")
    return []


def _write_peft(chosen: RunRound, kinds: list[QuantType], out: Path, advance: Advance) -> list[str]:
    assert chosen.adapter
    return write_peft(chosen.base, chosen.adapter, out)


def _write_safetensors(chosen: RunRound, kinds: list[QuantType], out: Path, advance: Advance) -> list[str]:
    return write_safetensors(chosen.base, chosen.adapter, out)


@dataclass(frozen=True)
class Format:
    """How a round is written into a folder.

    `usage` runs it in a shell: {gguf} and {modelfile} stand for paths, {name} for the model's in Ollama, {asked} for
    what llama-cli is told of how it was asked. In Python `python_lines` do.
    """

    write: Callable[[RunRound, list[QuantType], Path, Advance], list[str]]
    usage: str = ""
    of_types: bool = False  # the user may choose quantization types
    of_adapter: bool = False  # the base model has none


_GGUF = "llama-cli -m {gguf}{asked}\nlms import {gguf} --copy    # LM Studio; without --copy it moves the file"
_OLLAMA = f"{_GGUF}\nollama create {{name}} -f {{modelfile}} && ollama run {{name}}"
_LORA = "llama-cli -m BASE.gguf --lora {gguf}{asked}"

FORMATS: dict[FormatName, Format] = {
    "gguf": Format(_write_ggufs, _GGUF, of_types=True),
    "ollama": Format(_write_ollama, _OLLAMA, of_types=True),
    "lora-gguf": Format(_write_lora, _LORA, of_adapter=True),
    "peft": Format(_write_peft, of_adapter=True),
    "safetensors": Format(_write_safetensors),
}
