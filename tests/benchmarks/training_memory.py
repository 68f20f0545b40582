"""What a training takes in memory, by the number of its questions: `python -m tests.benchmarks.training_memory`.

A tiny model learns from synthetic pairs, which lie in a file as a run keeps them, by all that a training does: they
are read, packed, ordered, scored by the base model and learned from, and the margin is taken. Each number of questions
is a process of its own, whose greatest memory is measured. Questions differ in length, but those of many no more than
those of few. `--updates 50` ends each training after so many. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from genius_lite.hardware.system import memory_held, peak_memory
from genius_lite.records import PreferencePair
from genius_lite.rundir.lines import Lines, write_records
from tests.benchmarks.machine import in_words, measured_on

_DIFFERENT = 50  # lengths of questions and responses; the rest repeats them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, nargs="+", default=[100, 1_000, 25_000])
    parser.add_argument("--pairs", type=int, default=2, help="of a question")
    parser.add_argument("--tokens", type=int, default=60, help="of a prompt and of a response, at most")
    parser.add_argument("--updates", type=int, default=0, help="that are made; 0: all of an epoch")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.only is not None:
        print(json.dumps(measured(a.folder, a.only, a.updates)))
        return
    print(in_words(machine := measured_on()), flush=True)
    found = {}
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        _write_model(Path(folder))
        for count in a.questions:
            write_records(Path(folder, f"{count}.jsonl"), _pairs(count, a.pairs, a.tokens))
            command = [sys.executable, "-m", "tests.benchmarks.training_memory", "--only", str(count)]
            command += ["--folder", folder, "--updates", str(a.updates)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[count] = json.loads(done.stdout.splitlines()[-1])
            row = found[count]
            print(
                f"{count:>8,} questions {row['updates']:>6,} updates {row['seconds']:>8.1f} s "
                f"{row['peak_mb']:>7.1f} MB, {row['before_mb']:.1f} before",
                flush=True,
            )
    peaks = [row["peak_mb"] for row in found.values()]
    print(f"The most is {max(peaks) / min(peaks):.3f} times the least.")
    print(json.dumps({"machine": machine, "questions": found}))


def measured(folder: Path, count: int, updates: int) -> dict[str, float]:
    """Train on so many questions; seconds, updates, and what this process has held at most, and before, MB."""
    from genius_lite.errors import Stop, Stopped
    from genius_lite.learner.train import Training, train_adapter
    from genius_lite.recipe import Learner
    from genius_lite.rundir.folder import RunDir

    began, before, stop, made = time.monotonic(), memory_held()[0], Stop(), 0
    pairs = Lines(folder / f"{count}.jsonl", PreferencePair)
    work = RunDir(folder).sub(f"work-{count}")
    cfg = Learner(rank=4, lora_alpha=8)
    job = Training(folder / "hf-checkpoint", None, pairs, [], cfg, "cpu", "fp32", (0, 1), work)

    def updated(number: int, row: dict[str, float]) -> None:
        nonlocal made
        made, stop.asked = number + 1, number + 1 == updates

    try:
        assert train_adapter(job, folder / f"adapter-{count}", updated=updated, stop=stop).pairs == len(pairs)
    except Stopped:
        assert made == updates
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "updates": made, "before_mb": before / 1e6, "peak_mb": peak_memory() / 1e6}


def _write_model(folder: Path) -> None:
    from genius_lite.weights import gguf_file
    from genius_lite.weights.importing import import_checkpoint
    from tests.support.models import tiny_gguf

    tiny_gguf(folder / "tiny.gguf", "llama")
    import_checkpoint(gguf_file.read(folder / "tiny.gguf"), folder / "hf-checkpoint", lambda n: None)


def _pairs(count: int, each: int, tokens: int) -> Iterator[PreferencePair]:
    """Pairs of a question share its prompt; the later one's responses begin as its chosen one before does."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(tokens // 4, tokens, (_DIFFERENT, 1 + 2 * each), endpoint=True)
    for number in range(count):
        prompt, *responses = (rng.integers(3, 250, n).tolist() for n in lengths[number % _DIFFERENT])
        known: list[int] = []
        for step in range(each):
            chosen, rejected = ([*known, *response] for response in responses[2 * step : 2 * step + 2])
            yield PreferencePair(f"{number:016x}", step, prompt, chosen, rejected, 0.1, 0.0, -0.5, -0.6, True, True)
            known = chosen[: len(chosen) // 2]


if __name__ == "__main__":
    main()
