"""What a file keeps of an update, and how far it is from the exact merge, by source type, target type and size.

    python -m tests.benchmarks.kept RUN [--sizes 1e-4,3e-4,1e-3] [--layers 4] [--texts 12] [--no-kl] [--out TABLE.md]

RUN is a finished run: its model is made into a file of every source type, and the adapter of its first round, scaled so
that B has the wanted root mean square, is merged into each. For every pair of types stands what `merge` says the file
keeps of the update, and KL(exact || file) in nats a token beside that of plain quantization: llama.cpp's quantizer on
the exact merge of the F16 source. Both use the run's importance matrix. The divergence is of whole distributions, over
the tokens of chosen responses. A table that was begun is gone on with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
from gguf.constants import GGMLQuantizationType as T

from genius_lite.hardware.system import cores
from genius_lite.records import PreferencePair
from genius_lite.rundir.lines import read_records
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.importing import Base
from genius_lite.weights.merge import requantize, write
from genius_lite.weights.quantize import file_metadata, types_of
from tests.benchmarks.machine import in_words, measured_on
from tests.support.llama import without_broken_amx

SOURCES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q4_1")
TARGETS = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")


def scaled(adapter: Adapter, rms: float, layers: int | None) -> Adapter:
    """The adapter with B of this root mean square over all matrices, of so many layers, spread evenly, or all."""
    numbers = sorted({int(name.split(".")[1]) for name in adapter.factors})
    chosen = set(
        np.array(numbers)[np.linspace(0, len(numbers) - 1, layers or len(numbers)).round().astype(int)].tolist()
    )
    factors = {name: f for name, f in adapter.factors.items() if int(name.split(".")[1]) in chosen}
    squares = sum(float(np.square(b).sum()) for b, _ in adapter.factors.values())
    scale = np.float32(rms / (squares / sum(b.size for b, _ in adapter.factors.values())) ** 0.5)
    return replace(adapter, factors={name: (b * scale, a) for name, (b, a) in factors.items()})


def exact(source: GGUF, adapter: Adapter, out: Path) -> None:
    """Source + adapter in float32."""
    write(source, adapter, {t.name: T.F32 for t in source.tensors}, {"general.file_type": 0}, out)


class Judge:
    """Log-probabilities that a file gives to the tokens of some responses, (tokens, vocabulary) for each."""

    def __init__(self, pairs: list[PreferencePair], tokens: int = 160, count: int = 12):
        first = {pair.query_id: pair for pair in pairs}
        self.texts = [(p.prompt_tokens, p.chosen_tokens[:tokens]) for p in list(first.values())[:count]]

    def logprobs(self, file: Path) -> list[np.ndarray]:
        longest = max(len(prompt) + len(response) for prompt, response in self.texts)
        model = llama_cpp.Llama(
            str(file), n_ctx=longest, n_batch=longest, n_ubatch=longest, n_gpu_layers=0, n_threads=cores(),
            n_threads_batch=cores(), logits_all=True, verbose=False,
        )  # fmt: skip
        found = []
        for prompt, response in self.texts:
            model.reset()
            model.eval([*prompt, *response])
            logits = model.scores[len(prompt) - 1 : len(prompt) + len(response) - 1].astype(np.float32)
            logits = logits - logits.max(1, keepdims=True)
            found.append(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
        model.close()
        return found

    @staticmethod
    def divergence(exact_: list[np.ndarray], other: list[np.ndarray]) -> float:
        """KL(exact || other), nats a token."""
        sums = [(np.exp(p) * (p - q)).sum(1) for p, q in zip(exact_, other, strict=True)]
        return float(np.concatenate(sums).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sizes", default="1e-4,3e-4,1e-3", help="root mean squares of B")
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--layers", type=int, help="layers that get the update; all if not given")
    parser.add_argument("--texts", type=int, default=12, help="responses that the divergence is over")
    parser.add_argument("--no-kl", action="store_true", help="only what is kept")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    before = asked.out.read_text(encoding="utf-8").splitlines() if asked.out and asked.out.exists() else []
    done = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in before}
    out = asked.out.open("a", encoding="utf-8") if asked.out else sys.stdout
    with without_broken_amx():
        for line in table(asked, done):
            print(line, file=out, flush=True)


def table(asked: argparse.Namespace, done: set[tuple[str, ...]]):
    base = Base.of(asked.run / "hf-checkpoint")
    adapter = Adapter.load(asked.run / "round-1" / "adapter", base)
    pairs = read_records(asked.run / "round-1" / "pairs.jsonl", PreferencePair)
    targets = asked.targets.split(",")
    cell = "kept" if asked.no_kl else "kept; KL of this file / KL of plain quantization from F16"
    if not done:
        yield in_words(measured_on())
        yield f"{base.name}, {cell}"
        yield ""
        yield f"| rms of B | source | {' | '.join(targets)} |"
        yield "|" + "---|" * (len(targets) + 2)
    with tempfile.TemporaryDirectory(dir=asked.run.parent) as name:
        work = Path(name)
        judge = Judge(pairs, count=asked.texts)
        for source in ["F16", *(kind for kind in asked.sources.split(",") if kind != "F16")]:
            requantize(base.gguf, source, work / f"{source}.gguf")
        for size in map(float, asked.sizes.split(",")):
            update, plain = scaled(adapter, size, asked.layers), dict[str, float]()
            for source in asked.sources.split(","):
                over = (f"{size:g}", source) in done
                if over and (asked.no_kl or source != "F16"):  # of F16 the plain quantizations are needed anyway
                    continue
                file = gguf_file.read(work / f"{source}.gguf")
                if not asked.no_kl:
                    exact(file, update, work / "exact.gguf")
                    truth = judge.logprobs(work / "exact.gguf")
                    if source == "F16":
                        plain = {kind: _plain(work, update, kind, judge, truth) for kind in targets}
                if over:
                    continue
                cells = []
                for kind in targets:
                    types = types_of(file, kind)
                    kept = write(file, update, types, file_metadata(file, kind, types), work / "out.gguf")
                    said = f"{kept.share:.3f}"
                    if not asked.no_kl:
                        divergence = judge.divergence(truth, judge.logprobs(work / "out.gguf"))
                        said += f"; {divergence:.5f} / {plain[kind]:.5f}" if plain else f"; {divergence:.5f}"
                    cells.append(said)
                yield f"| {size:g} | {source} | {' | '.join(cells)} |"


def _plain(work: Path, update: Adapter, kind: str, judge: Judge, truth: list[np.ndarray]) -> float:
    """Divergence of llama.cpp's quantization of the exact merge of the F16 source."""
    merged = gguf_file.read(work / "exact.gguf")
    types = types_of(gguf_file.read(work / "F16.gguf"), kind)
    without = replace(update, factors={})
    write(merged, without, types, file_metadata(merged, kind, types), work / "plain.gguf")
    return judge.divergence(truth, judge.logprobs(work / "plain.gguf"))


if __name__ == "__main__":
    main()
