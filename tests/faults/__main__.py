"""The long form of the fault tests: runs killed and files broken at random, side by side.

    python -m tests.faults [--kills 500] [--files 2000] [--folders 1000] [--seed 0]

It takes hours on two cores. The last line is one JSON object; the exit code is 1 if anything was lost, damaged or
crashed, or if a run could not go on.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

from tests.faults.hostile import added, many_files
from tests.faults.kills import Tally, many_runs

_WRONG = (
    *("records_lost", "records_doubled", "damaged", "adapters_that_differ", "unexpected_ends", "tracebacks"),
    *("crashes", "unclear"),
)


def main() -> None:
    """Do both, and say what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    with ThreadPoolExecutor() as pool:
        runs, files = pool.submit(many_runs, a.kills, a.seed), pool.submit(many_files, a.files, a.seed)
        killed, tried = runs.result(), files.result()
    broken = many_files(a.folders, a.seed, folders=True)
    tried = added(tried, broken)
    survived = Tally(**killed).harmed
    found = {**killed, **tried, "kills survived": survived, "restarts": survived, "files tried": tried["tried"]}
    found["seconds"] = max(killed["seconds"], tried["seconds"])
    del found["tried"]
    print(json.dumps(found))
    raise SystemExit(any(found[name] for name in _WRONG))


if __name__ == "__main__":
    main()
