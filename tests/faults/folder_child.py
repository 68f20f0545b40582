"""What the program does with a run folder, done with broken ones: `python -m tests.faults.folder_child FOLDER PROJECT`.

Folders come in on standard input, a line of JSON each (`path`, `deed`); a line of JSON goes out for each. Commands are
run as they are typed, in this process: whoever reads the lines learns from a missing one what ended it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

from tests.faults.child import memory, typed
from tests.faults.run_folders import LOOKS

_LONGEST = 700  # characters of a clear line
_TOOK = 1_000_000_000  # bytes that one command may take


def main() -> None:
    """Answer until standard input ends."""
    work, project = Path(sys.argv[1]), Path(sys.argv[2])
    out, told = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    os.dup2(2, 1)
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    print("ready", file=out, flush=True)
    for line in told:
        asked = json.loads(line)
        print(json.dumps(_examine(Path(asked["path"]), asked["deed"], work, project)), file=out, flush=True)


def _examine(run: Path, deed: str, work: Path, project: Path) -> dict:
    """Look at a folder in every way, and then do something with it; the first thing that is no clear line counts."""
    start, outcome = time.monotonic(), {"outcome": "accepted", "stage": "", "reason": ""}
    for name in (*LOOKS, deed):
        # Which one ended the process is seen in its log.
        print(f"{run}: {name}", file=sys.stderr, flush=True)
        before, (kind, reason) = memory("VmRSS"), _command(*_arguments(name, run, work, project))
        if memory("VmRSS") - before > _TOOK:
            kind, reason = "unclear", f"{memory('VmRSS') - before} bytes"
        if kind != "accepted":
            outcome = {"outcome": kind, "stage": name, "reason": reason}
        if kind == "unclear":
            break
    return outcome | {"seconds": round(time.monotonic() - start, 2)}


def _arguments(name: str, run: Path, work: Path, project: Path) -> tuple[str, ...]:
    new = str(work / f"out-{time.monotonic_ns()}")
    commands = {
        "status": ("status", str(run), "--json"),
        "watch": ("watch", str(run)),
        "report": ("report", str(run), "--to", new),
        "compare": ("compare", str(run), str(project / "run")),
        "run": ("run", str(project / "r.yaml"), "--out", str(run), "--force"),
        "chat": ("chat", str(run), "--max-tokens", "4", "--context", "256"),
        "eval": ("eval", str(run), "--tasks", f"{project / 't.jsonl'}:exact", "--samples", "0", "--max-tokens", "4"),
        "merge-shards": ("merge-shards", str(run), "--out", new),
        "reuse": ("run", str(project / "r.yaml"), "--out", new, "--reuse", str(run), "--set", "rounds=1", "--force"),
    }
    return commands.get(name) or ("export", str(run), "--to", new, "--format", name.split()[1])


def _command(*arguments: str) -> tuple[str, str]:
    """Run a command as it is typed: accepted; refused in one line, with exit code 2 (or halted: 3); or unclear."""
    try:
        code, _, wrong = typed(*arguments, given="hello\n")
    except BaseException:  # noqa: BLE001 - whatever it is, it is what this looks for
        return "unclear", traceback.format_exc()
    lines = [line for line in wrong.splitlines() if line.strip()]
    if code in (0, 3):
        return "accepted", ""
    if code == 2 and lines and lines[-1].startswith("error: ") and len(lines[-1]) < _LONGEST:
        return "refused", lines[-1]
    return "unclear", f"exit code {code}: {wrong}"


if __name__ == "__main__":
    main()
