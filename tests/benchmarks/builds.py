"""How much faster llama.cpp samples when it is compiled for this processor: builds of it, interleaved.

    python -m tests.benchmarks.builds native=FOLDER portable=FOLDER --repeats 3 --model F.gguf --queries F.jsonl

A FOLDER has a build's libraries: `llama_cpp/lib` of an installed wheel, or of one that was only unpacked. Each is
measured by `tests.benchmarks.rollouts`, which takes all further options. The last line is one JSON object: medians,
and what the first build's speed is in terms of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from tests.benchmarks.machine import in_words


def _rollouts(options: list[str], folder: str) -> dict[str, Any]:
    """Return what the benchmark of rollouts says last when it loads llama.cpp from a folder."""
    command = [sys.executable, "-m", "tests.benchmarks.rollouts", *options]
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": folder}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("builds", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--repeats", type=int, default=1)
    a, others = parser.parse_known_args()
    builds = dict(build.split("=", 1) for build in a.builds)
    machines: dict[str, dict[str, Any]] = {}
    speeds: dict[str, dict[str, list[float]]] = {name: {"search": [], "plain": []} for name in builds}
    for repeat in range(a.repeats):
        for name, folder in builds.items():
            measured = _rollouts(others, folder)
            if name not in machines:
                machines[name] = measured["machine"]
                print(f"{name}: {in_words(machines[name])}", flush=True)
            for what, found in speeds[name].items():
                found.append(measured["median"][what]["tokens_per_s"])
            print(
                f"{repeat} {name}: {json.dumps({what: found[-1] for what, found in speeds[name].items()})}", flush=True
            )
    median = {name: {what: statistics.median(found) for what, found in rows.items()} for name, rows in speeds.items()}
    first, *rest = builds
    ratios = {
        f"{what}, {first} / {name}": round(median[first][what] / median[name][what], 3)
        for name in rest
        for what in median[name]
    }
    print(json.dumps({"machine": machines, "median": median, "ratios": ratios}))


if __name__ == "__main__":
    main()
