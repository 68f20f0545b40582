"""Broken run folders and shards from sound ones: a seed says which file is broken, how, and what is then done with it.

JSON is broken as JSON too: other types, numbers that are
none or too large, depth, keys that are there twice or not at all; safetensors and GGUFs in their headers as well.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from genius_lite.errors import Stop
from genius_lite.pipeline.shards import sample_shard
from genius_lite.progress import SILENT
from genius_lite.recipe.reader import load
from genius_lite.run import run
from tests.faults import raw
from tests.faults.mutate import MUTATIONS
from tests.faults.sound import SIZES
from tests.support.models import tiny_gguf

RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 2
policy: adapter
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 16, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-3, batch_pairs: 4, parity_limit: 100, precision: fp32, save_every: 0}
quantize: {type: Q8_0}
sampler: {slots: 4, threads: 1, watchdog: 30}
evaluate: {queries: 2, query_samples: 2, samples: 1, sweep: [], tasks: [{source: t.jsonl, check: exact}]}
guard: {}
"""
_MARK = "@@broken@@"
_OTHERS: tuple[Any, ...] = (None, True, -1, 0, 1.5, "", "x", "../../x", [], {}, [[]], {"a": {}}, [None] * 3, 1 << 40)
_RAW = ("NaN", "Infinity", "1e999", "-1e999", "1e308", "-1e308", "9" * 40, "9" * 6000, "-0.0", "[" * 100_000)
_END = ("summary.json", "best.json", "export", "report.html", "report.md", "progress.json")
# What a run that was interrupted lacks: of each of these, that and all before it.
_MISSING = (
    *("", "round-2", "round-1/report.json", "round-1/adapter.gguf", "round-1/evaluation", "round-1/quantized.json"),
    *("round-1/policy.gguf", "round-1/adapter", "round-1/pairs.jsonl", "round-0/evaluation"),
)
LOOKS = ("status", "watch", "report", "compare")
DEEDS = ("run", "chat", "export peft", "export lora-gguf", "export ollama", "eval", "reuse", "status")


@dataclass(frozen=True)
class BrokenFolder:
    """A folder with one broken file, what was done to it, and what is to be done with it beside looking at it."""

    seed: int
    path: Path
    what: str
    deed: str


def sound_run(project: Path) -> None:
    """Make a finished run (`run`), and a shard of its first round (`shard`)."""
    tiny_gguf(project / "tiny.gguf", "llama")
    (project / "q.txt").write_text("\n".join(f"question {n}" for n in range(12)))
    (project / "t.jsonl").write_text('{"prompt": "Say 1.", "answer": "1"}\n{"prompt": "Say 2.", "answer": "2"}\n')
    (project / "r.yaml").write_text(RECIPE)
    recipe = load(project / "r.yaml", [f"out={project / 'run'}"])
    run(recipe)
    sample_shard(recipe, "1/2", 1, None, SILENT, Stop())
    (project / "run-shard-1-of-2").rename(project / "shard")


def broken_folder(seed: int, project: Path, out: Path) -> BrokenFolder:
    """Copy the run, or every fourth time the shard, and break one file of it."""
    rng = Random(seed)
    kind = "shard" if seed % 4 == 3 else "run"
    shutil.copytree(project / kind, out)
    deed, what = "merge-shards", ""
    if kind == "run":
        deed = DEEDS[seed // 4 % len(DEEDS)]
        if deed == "run":
            missing = _MISSING[: rng.randrange(len(_MISSING)) + 1]
            what = f"without {missing[-1] or 'its end'}, "
            for name in (*_END, *filter(None, missing)):
                _remove(out / name)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    name = files[rng.randrange(len(files))]
    path, ways = out / name, [*_ways(out / name)]
    how = ways[rng.randrange(len(ways))]
    WAYS[how](path, rng)
    return BrokenFolder(seed, out, f"{kind}: {what}{name}: {how}", deed)


def _ways(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from ("gone", "link", "pipe", "file", "beside")
        return
    yield from ("gone", "link", "dangling", "pipe", "folder", "empty", "cut", "bits", "bits", "rubbish", "more")
    if path.suffix in (".json", ".jsonl"):
        yield from ("json", "json", "json", "json", "numbers", "numbers", "twice", "swapped")
    if path.suffix == ".safetensors":
        yield from ("header", "header", "values")
    if path.suffix == ".gguf":
        yield from ("gguf", "gguf", "gguf")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _gone(path: Path, rng: Random) -> None:
    _remove(path)


def _link(path: Path, rng: Random) -> None:
    """What stood there stands elsewhere, and a link leads there."""
    run = next(folder for folder in path.parents if (folder / "recipe.json").exists())
    elsewhere = run.with_name(f"elsewhere-{rng.randrange(1 << 30)}")
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def _dangling(path: Path, rng: Random) -> None:
    _remove(path)
    path.symlink_to(path.parent / "nothing")


def _pipe(path: Path, rng: Random) -> None:
    _remove(path)
    os.mkfifo(path)


def _folder(path: Path, rng: Random) -> None:
    _remove(path)
    path.mkdir()


def _file(path: Path, rng: Random) -> None:
    _remove(path)
    path.write_bytes(rng.randbytes(rng.choice((0, 10))))


def _beside(path: Path, rng: Random) -> None:
    """Another folder beside it, of a name that people or programs give."""
    names = (
        "round-1 (copy)",
        "round-",
        "round-0x1",
        "round-\u0663",
        "round-99999999999999999999",
        "round-3",
        "round-007",
    )
    shutil.copytree(path, path.parent / rng.choice(names))


def _empty(path: Path, rng: Random) -> None:
    path.write_bytes(b"")


def _cut(path: Path, rng: Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def _bits(path: Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 8, 200)) if content else 0):
        most = min(len(content), rng.choice((64, 2000, len(content))))
        content[rng.randrange(most)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _rubbish(path: Path, rng: Random) -> None:
    path.write_bytes(rng.choice((b"", path.read_bytes()[:8], b"[" * 100_000, b"\0" * 40)) + rng.randbytes(200))


def _more(path: Path, rng: Random) -> None:
    with path.open("ab") as file:
        file.write(
            rng.choice((b"\n\n", b"{}\n", b"null\n", b'{"query"', b"\xff\xfe\n", rng.randbytes(100), b"[" * 99_999))
        )


def _json(path: Path, rng: Random) -> None:
    """Another value, of another type, or none."""
    _in_document(path, rng, lambda value: json.dumps(rng.choice(_OTHERS)))


def _numbers(path: Path, rng: Random) -> None:
    _in_document(path, rng, lambda value: rng.choice(_RAW), numbers=True)


def _twice(path: Path, rng: Random) -> None:
    """A key that is there twice."""
    _in_document(path, rng, lambda value: f'{json.dumps(value)}, "twice": 1, "twice": {rng.choice(("2", "[]"))}')


def _swapped(path: Path, rng: Random) -> None:
    """Another document of the folder, or another line first."""
    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*rng.sample(lines, len(lines)), *lines[:1]]))
        return
    others = sorted(file for file in path.parent.parent.rglob("*.json") if file != path)
    path.write_bytes(rng.choice(others or [path]).read_bytes())


def _in_document(path: Path, rng: Random, change: Callable[[Any], str], *, numbers: bool = False) -> None:
    """Change one value of a document, or of one line of a file of lines."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    if not lines:
        return
    at = rng.randrange(len(lines))
    lines[at] = changed(lines[at], rng, change, numbers)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def changed(text: str, rng: Random, change: Callable[[Any], str], numbers: bool = False) -> str:
    """A document with one value changed, one that lies high up as likely as one of many below; or without it."""
    document = json.loads(text)
    holder: Any = {"": document}
    place: Any = ""
    while True:
        inner = holder[place]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        if not keys or (rng.random() < 0.2 and not numbers):
            break
        holder, place = inner, rng.choice(keys)
    if isinstance(holder, dict) and place and rng.random() < 0.2:
        del holder[place]
        return json.dumps(document)
    value, holder[place] = holder[place], _MARK
    document = _MARK if place == "" and holder.get("") == _MARK else document
    return json.dumps(document).replace(f'"{_MARK}"', change(value), 1)


def _header(path: Path, rng: Random) -> None:
    """Another header of safetensors, with the length that it has or another one."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    text = content[8 : 8 + size].decode()
    change: Callable[[Any], str] = lambda value: rng.choice((*map(json.dumps, _OTHERS), *_RAW))  # noqa: E731
    made = changed(text, rng, change).encode()
    length = len(made) if rng.random() < 0.8 else rng.choice((0, 1, size + 1, 1 << 40, (1 << 64) - 1))
    path.write_bytes(struct.pack("<Q", length) + made + content[8 + size :])


def _values(path: Path, rng: Random) -> None:
    """NaN, infinity and large numbers among the weights."""
    content = bytearray(path.read_bytes())
    (size,) = struct.unpack_from("<Q", content)
    for _ in range(rng.choice((1, 50))):
        at = 8 + size + rng.randrange((len(content) - 8 - size) // 4) * 4
        content[at : at + 4] = struct.pack("<I", rng.choice((0x7FC00000, 0x7F800000, 0x7F7FFFFF, 0x7E007E00)))
    path.write_bytes(content)


def _gguf(path: Path, rng: Random) -> None:
    names = [name for name in MUTATIONS if not name.startswith("shard")]
    part = copy.deepcopy(raw.parse(path, SIZES))
    path.write_bytes(MUTATIONS[rng.choice(names)](part, rng) or part.encode())


WAYS: dict[str, Callable[[Path, Random], None]] = {
    "gone": _gone,
    "link": _link,
    "dangling": _dangling,
    "pipe": _pipe,
    "folder": _folder,
    "file": _file,
    "beside": _beside,
    "empty": _empty,
    "cut": _cut,
    "bits": _bits,
    "rubbish": _rubbish,
    "more": _more,
    "json": _json,
    "numbers": _numbers,
    "twice": _twice,
    "swapped": _swapped,
    "header": _header,
    "values": _values,
    "gguf": _gguf,
}
