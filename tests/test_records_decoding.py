"""Several threads may meet a type for the first time at once, as those of `watch --web` do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "genius_lite"

# Without `prepared` this dies of a null pointer at one of its first types.
TOGETHER = """
import sys, threading
import msgspec
from genius_lite.records import prepared

sys.setswitchinterval(1e-6)
KIND = '''
class Inner{n}(msgspec.Struct):
    a: int | str | None = None
    b: dict[str, int] | None = None
class Outer{n}(msgspec.Struct):
    a: dict[str, list[Inner{n}]]
    b: list[Inner{n}] | None = None
'''

def read(n, names, together, found):
    together.wait()
    inner = msgspec.convert({"a": n}, prepared(names[f"Inner{n}"]))
    outer = msgspec.json.decode(b'{"a": {"x": [{"a": "1"}]}, "b": [{}]}', type=prepared(names[f"Outer{n}"]))
    found.append((inner.a, outer.a["x"][0].a, outer.b[0].a))

for n in range(60):
    names, together, found = {"msgspec": msgspec}, threading.Barrier(4), []
    exec(KIND.format(n=n), names)
    threads = [threading.Thread(target=read, args=(n, names, together, found)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [(n, "1", None)] * 4, found
"""


def test_threads_that_meet_a_type_at_once_all_read_it():
    done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_whoever_decodes_asks_first():
    """A type stands in the call as `prepared(...)`; without a type nothing is looked at."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file.name == "records.py":
            continue
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not ast.unparse(call.func).startswith("msgspec."):
                continue
            name, typed = ast.unparse(call.func).rpartition(".")[2], [k.value for k in call.keywords if k.arg == "type"]
            typed += {"convert": call.args[1:2], "Decoder": call.args[:1]}.get(name, [])
            if name in ("convert", "decode", "Decoder") and typed:
                found += [f"{file.relative_to(PACKAGE)}:{call.lineno}"] * (
                    not ast.unparse(typed[0]).startswith("prepared(")
                )
    assert not found
