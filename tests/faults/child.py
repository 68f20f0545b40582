"""What the program does with a model, done with broken ones: `python -m tests.faults.child FOLDER SOUND.gguf`.

Paths come in on standard input, a line each; a line of JSON goes out for each. Whoever reads them learns from a missing
one which file ended this process. Everything that happens in the program's own process happens in this one, and the
sampler's engine too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from genius_lite.errors import UserError
from genius_lite.weights import untrusted

BOUND = 512_000_000  # bytes that a file may take beyond its own size
_NET = 3_000_000_000  # bytes of address space beyond what the libraries take; one file's work ends there
_LONGEST = 600  # characters of a clear line


class _UnclearError(Exception):
    """A refusal that is not one clear line, or a result that is none."""


def main() -> None:
    """Answer until standard input ends."""
    folder, sound = Path(sys.argv[1]), Path(sys.argv[2])
    untrusted._PROBE = "tests.faults.measured_probe"
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    warm = _examine(sound, sound, folder)
    assert warm["outcome"] == "accepted", warm
    _spread_net()
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        print(json.dumps(_measured(path, sound, folder)), file=out, flush=True)


def _spread_net() -> None:
    if size := memory("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (size + _NET, size + _NET))


def _measured(path: Path, sound: Path, folder: Path) -> dict:
    start, before = time.monotonic(), memory("VmRSS")
    _reset_peak()
    found = _examine(path, sound, folder)
    size, took = sum(p.stat().st_size for p in path.parent.iterdir()), memory("VmHWM") - before
    if took > size + BOUND:
        found |= {"outcome": "unclear", "reason": f"{took / 1e6:.0f} MB for a file of {size / 1e6:.1f} MB"}
    return found | {"seconds": round(time.monotonic() - start, 2), "megabytes": round(took / 1e6)}


def memory(name: str) -> int:
    """Of this process, as Linux counts it; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def _reset_peak() -> None:
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _examine(path: Path, sound: Path, folder: Path) -> dict:
    """Take a file through every stage; the first refusal of those that run it is the outcome."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "q.txt").write_text("What is 2 + 2?\nName a colour.\n")
    recipe = {"model": {"gguf": str(path)}, "queries": {"source": "q.txt"}, "foresight": {"max_tokens": 16}}
    (work / "r.yaml").write_text(json.dumps(recipe))
    stages = {
        "inspect": lambda: _command(path, "inspect", str(path), "--json"),
        "tables": lambda: _command(path, "inspect", str(path), "--template"),
        "compare": lambda: _command(path, "inspect", str(sound), str(path)),
        "validate": lambda: _command(path, "validate", str(work / "r.yaml")),
        "import": lambda: _imported(path, work),
        "quantize": lambda: _quantized(path, work),
        "sample": lambda: _sampled(path),
    }
    looked = {name: _stage(stages.pop(name)) for name in ("inspect", "tables", "compare")}
    for name, (outcome, reason) in looked.items():
        if outcome == "unclear":
            return {"outcome": outcome, "stage": name, "reason": reason}
    for name, stage in stages.items():
        print(f"{path}: {name}", file=sys.stderr, flush=True)  # which one ended the process is seen in its log
        outcome, reason = _stage(stage)
        if outcome != "accepted":
            return {"outcome": outcome, "stage": name, "reason": reason}
    if looked["inspect"][0] != "accepted":
        return {"outcome": "unclear", "stage": "inspect", "reason": "refused, and everything else works"}
    return {"outcome": "accepted", "stage": "", "reason": ""}


def _stage(work: Callable[[], None]) -> tuple[str, str]:
    try:
        work()
    except UserError as e:
        line = str(e)
        clear = line.isprintable() and 10 < len(line) < _LONGEST
        return ("refused" if clear else "unclear"), line
    except _UnclearError as e:
        return "unclear", str(e)
    except BaseException:  # noqa: BLE001 - whatever it is, it is what this looks for
        return "unclear", traceback.format_exc()
    return "accepted", ""


def typed(*arguments: str, given: str = "") -> tuple[object, str, str]:
    """Run a command as it is typed, in this process; return its exit code, and what it printed and complained of.

    Args:
        given: its standard input.
    """
    from genius_lite.cli import main as genius_lite

    said, wrong, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["genius-lite", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO(given)),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(wrong),
    ):
        try:
            genius_lite()
        except SystemExit as e:
            code = e.code or 0
    return code, said.getvalue(), wrong.getvalue()


def _command(path: Path, *arguments: str) -> None:
    """A command; a refusal must be one line that names the file, and exit code 2."""
    code, said, wrong = typed(*arguments)
    lines = wrong.splitlines()
    if code == 2 and len(lines) == 1 and lines[0].startswith("error: "):
        raise UserError(lines[0])
    if code:
        raise _UnclearError(f"{arguments[0]}: exit code {code}: {wrong}")
    if "--json" in arguments:
        json.loads(said)


def _imported(path: Path, work: Path) -> None:
    from genius_lite.weights import gguf_file
    from genius_lite.weights.importing import import_checkpoint

    import_checkpoint(gguf_file.read(path), work / "hf-checkpoint", lambda n: None)


def _quantized(path: Path, work: Path) -> None:
    from genius_lite.weights import gguf_file
    from genius_lite.weights.importing import Base
    from genius_lite.weights.merge import merge

    out = work / "policy.gguf"
    merge(Base(gguf_file.read(path), work / "hf-checkpoint"), None, "Q8_0", out)
    gguf_file.read(out)


def _sampled(path: Path) -> None:
    """A few tokens and their probabilities, as the sampler's process gives them."""
    import llama_cpp

    from genius_lite.sampler.engine import Engine
    from genius_lite.sampler.llama import EngineError
    from genius_lite.sampler.messages import EngineSettings, Extend, Extended, Sampling, Score, Scored
    from genius_lite.sampler.sampling import LogitsError

    try:
        engine = Engine(str(path), EngineSettings(slots=2, context=64, threads=1, gpu_layers=0))
    except EngineError as e:
        raise _UnclearError(f"accepted, and then the sampler says: {e}") from e
    try:
        prompt = engine.vocabulary.prompt("What is 2 + 2?")[-40:]
        engine.submit(Extend(1, prompt, [1, 2], "end", 6, Sampling(1.0)))
        engine.submit(Score(2, prompt, prompt[:5]))
        replies = []
        while engine.busy:
            replies += engine.decode_step()
    except LogitsError as e:
        raise UserError(str(e)) from e
    finally:
        llama_cpp.llama_free(engine.ctx)
        llama_cpp.llama_model_free(engine.model)
    kinds = [type(reply) for reply in replies]
    if (kinds.count(Extended), kinds.count(Scored)) != (2, 1):
        raise _UnclearError(f"accepted, and the sampler answered {kinds}")


if __name__ == "__main__":
    main()
