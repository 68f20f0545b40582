"""What a run of many questions takes to start, to go on and to be looked at: `python -m tests.benchmarks.large_set`.

Rollouts of all questions but a few are written as a search makes them, with `M=2 N=4 K=4`. Then each thing that a run
does with them, but training, is done in a process of its own, whose time and greatest memory are measured; and so is
each command (`--commands`), of which `run` is ended when it has begun to train. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from genius_lite.evaluate.guard import round_metrics
from genius_lite.pipeline.job import prepare
from genius_lite.pipeline.round import Round
from genius_lite.pipeline.stages import pair, sample
from genius_lite.recipe import Recipe
from genius_lite.recipe.reader import load
from genius_lite.records import Candidate, Completion, Finish, Step
from genius_lite.report.page import write_report
from genius_lite.report.status import look
from genius_lite.run import open_run
from genius_lite.rundir.reader import RunFolder
from genius_lite.weights.retained import one_of_each
from tests.benchmarks.machine import in_words, measured_on

_MISSING = 4  # questions that are still to be searched when the run goes on
_DIFFERENT = 50  # searches that are made; the rest repeats them about other questions
_TRAINS = "run/round-1/training/precision.json"  # which is there when a run has begun to
_LOOK_EVERY = 0.02  # seconds
_CHARACTERS = (32, 127)  # the tokens of the tiny model that are read as text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, nargs="+", default=[100, 25_000])
    parser.add_argument("--characters", type=int, default=120, help="of a question, each a token")
    parser.add_argument("--step-tokens", type=int, default=25, help="mean")
    parser.add_argument("--future-tokens", type=int, default=60, help="mean, of the first step's")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument(
        "--commands", action="store_true", help="instead of what a run does, commands as they are typed"
    )
    parser.add_argument("--phase", choices=[*PHASES], help="do this in the folder, and print what it took")
    args = parser.parse_args()
    if args.phase:
        print(json.dumps(measured(PHASES[args.phase], args.folder)))
        return
    print(in_words(machine := measured_on()), flush=True)
    found = {}
    for count in args.queries:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write(Path(folder), count, args)
            if args.commands:
                found[count] = {name: _typed(name, Path(folder)) for name in COMMANDS}
            else:
                found[count] = {name: _in_a_process(name, Path(folder)) for name in PHASES}
    print(f"{'':12}" + "".join(f"{count:>12,} questions" for count in found))
    for name in found[args.queries[0]]:
        figures = (found[count][name] for count in found)
        print(f"{name:12}" + "".join(f"{f['seconds']:>12.1f} s {f['mb']:>5.0f} MB" for f in figures))
    print(json.dumps({"machine": machine, "questions": found}))


def measured(phase: Callable[[Path], None], folder: Path) -> dict[str, float]:
    """Seconds of a phase, and the most that its process has held, MB."""
    start = time.perf_counter()
    phase(folder)
    return _took(start, _peak("self"))


def _took(start: float, peak: float) -> dict[str, float]:
    return {"seconds": round(time.perf_counter() - start, 2), "mb": round(peak, 1)}


def _peak(process: int | str) -> float:
    """MB that a process has held at most, 0 of one that has ended; what its parent held is in `ru_maxrss`."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


def _in_a_process(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.large_set", "--phase", name, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def _typed(name: str, folder: Path) -> dict[str, float]:
    """Run a command in the folder; the figures of its own process. A run is ended once it trains."""
    start, arguments, peak, stopped = time.perf_counter(), COMMANDS[name], 0.0, False
    command = [sys.executable, *(("-m", "genius_lite", *arguments) if arguments else ("-c", _LEARNER))]
    environment, trains = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, folder / _TRAINS
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _peak(process.pid))
            if name == "run" and not stopped and trains.exists():
                process.terminate()
                stopped = True
            time.sleep(_LOOK_EVERY)
    assert process.returncode == (143 if stopped else 0), (process.returncode, (folder / "said").read_text())
    print(name, took := _took(start, peak), flush=True)
    return took


# -- what is measured --------------------------------------------------------------------------------------


def _start(folder: Path) -> None:
    with open_run(_recipe(folder)):
        pass


def _go_on(folder: Path) -> None:
    with open_run(_recipe(folder)) as session:
        r = session.round(1)
        assert len(sample(r, session.own)) == len(r.queries)


def _pairs(folder: Path) -> None:
    with open_run(_recipe(folder)) as session:
        _paired(session.round(1))


def _again(folder: Path) -> None:
    """As a run that goes on after its pairs were made, up to where training begins."""
    with open_run(_recipe(folder)) as session:
        assert _paired(session.round(1)) > 0


def _paired(r: Round) -> int:
    return len(pair(r, sample(r, r.own)))


def _figures(folder: Path) -> None:
    """As at the end of a round."""
    here = RunFolder(folder / "run").round(1)
    here.made()
    round_metrics(None, here.rollouts, here.pairs, 0.5, 0.0)
    one_of_each(here.pairs)


def _status(folder: Path) -> None:
    look(folder / "run")


def _report(folder: Path) -> None:
    write_report(folder / "run", folder / "run")


_LEARNER = "import genius_lite.run, genius_lite.learner.train, transformers.models.llama.modeling_llama"
COMMANDS = {
    "the learner": (), "validate": ("validate", "r.yaml"), "plan": ("plan", "r.yaml", "--temporary"),
    "run": ("run", "r.yaml"), "status": ("status", "run"), "watch": ("watch", "run"),
    "report": ("report", "run", "--to", "shown"),
}  # fmt: skip
"""What is typed; the learner is what its libraries take alone."""
PHASES = {
    "start": _start, "go on": _go_on, "pairs": _pairs, "start again": _again, "figures": _figures, "status": _status,
    "report": _report,
}  # fmt: skip


# -- the run that they are given ---------------------------------------------------------------------------


_RECIPE = """
out: {folder}/run
model: {{gguf: {folder}/tiny.gguf}}
queries: {{source: {folder}/questions.jsonl}}
rounds: 1
foresight: {{beams: 2, candidates: 4, steps: 4, max_tokens: 24}}
sampler: {{slots: 8, context: 512}}
"""


def _recipe(folder: Path) -> Recipe:
    return load(folder / "r.yaml")


def write(folder: Path, count: int, args: argparse.Namespace) -> None:
    """A tiny model, so many questions, and the log of the searches of all of them but a few."""
    from tests.support.models import tiny_gguf

    tiny_gguf(folder / "tiny.gguf", "llama")
    (folder / "r.yaml").write_text(_RECIPE.format(folder=folder))
    rng = np.random.default_rng(0)
    with (folder / "questions.jsonl").open("w") as file:
        for number in range(count):
            text = f"Question {number}: {_text(rng, args.characters)}"[: args.characters]
            file.write(json.dumps({"prompt": text}) + "\n")
    job = prepare(_recipe(folder))
    trees = [msgspec.json.encode(steps(rng, args)) for _ in range(_DIFFERENT)]
    (folder / "run").mkdir()
    with open_run(_recipe(folder)) as session, (session.round(1).here / "rollouts.jsonl").open("wb") as log:
        for number, query in enumerate(job.searched(1)[:-_MISSING]):
            log.write(b'{"query":%s,"steps":%s}\n' % (msgspec.json.encode(query), trees[number % _DIFFERENT]))


def _text(rng: np.random.Generator, characters: int) -> str:
    return "".join(chr(c) for c in rng.integers(*_CHARACTERS, characters))


def steps(rng: np.random.Generator, args: argparse.Namespace) -> list[Step]:
    """A search whose beams live until its last step; later steps leave shorter futures."""

    def completion(mean: float, finish: Finish) -> Completion:
        tokens = rng.integers(*_CHARACTERS, 1 + rng.poisson(mean)).tolist()
        return Completion(tokens, [round(-float(x), 6) for x in rng.exponential(0.4, len(tokens))], finish)

    def candidate(beam: int, index: int) -> Candidate:
        future = completion(args.future_tokens * (1 - index / 4), "end")
        value = future.mean_logprob
        return Candidate(beam, completion(args.step_tokens, "step"), future, value, value - float(rng.normal()))

    made, kept = list[Step](), [0]
    for index in range(4):
        found = [candidate(beam, index) for beam in range(len(kept)) for _ in range(4)]
        kept = sorted(rng.permutation(len(found))[:2].tolist())
        made.append(Step(index, found, kept))
    return made


if __name__ == "__main__":
    main()
