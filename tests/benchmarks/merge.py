"""Memory and time of merging a large model: a synthetic 8B-shaped F16 GGUF (a sparse file) and a rank-16 adapter.

    python -m tests.benchmarks.merge --folder /somewhere/with/40/GB

Beside it stands the plain way: copy the file tensor by tensor, and add the adapter to those that it touches. Each
runs in a process of its own; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np

from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.merge import write
from tests.benchmarks.machine import in_words, measured_on

RANK = 16
WIDTH, INNER, KEYS, VOCABULARY, LAYERS = 4096, 14336, 1024, 128_256, 32  # Llama 3.1 8B
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KEYS, WIDTH),
    "attn_v": (KEYS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}


def shapes(layers: int, divided: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of every matrix, by its name; of a smaller model both divided by a number."""
    named = {f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in SHAPES.items()}
    named |= dict.fromkeys(("token_embd.weight", "output.weight"), (VOCABULARY, WIDTH))
    return {name: (rows // divided, columns // divided) for name, (rows, columns) in named.items()}


def write_model(path: Path, named: dict[str, tuple[int, int]]) -> None:
    """The header, and as many zeros as the tensors take."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(1)
    for name, shape in named.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float16), int(np.prod(shape)) * 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = path.stat().st_size
    with path.open("ab") as file:
        file.truncate(header + sum(2 * rows * columns for rows, columns in named.values()) + 64)


def adapter(source: gguf_file.GGUF) -> Adapter:
    rng = np.random.default_rng(0)
    touched = [t for t in source.tensors if t.name.startswith("blk.")]

    def factor(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * 0.01

    return Adapter({t.name: (factor(t.rows, RANK), factor(RANK, t.columns)) for t in touched}, 32, RANK)


def plainly(source: gguf_file.GGUF, learned: Adapter, out: Path) -> None:
    """Whole tensors, in the order of the file."""
    with out.open("wb") as file:
        for tensor in source.tensors:
            raw = np.fromfile(tensor.path, np.float16, tensor.rows * tensor.columns, offset=tensor.offset)
            if tensor.name in learned.factors:
                b, a = learned.factors[tensor.name]
                raw = (raw.reshape(tensor.shape).astype(np.float32) + 2 * (b @ a)).astype(np.float16)
            file.write(raw.data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--divide", type=int, default=1, help="rows and columns of every matrix by this")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--way", choices=["ours", "plain"])
    a = parser.parse_args()
    model, out = a.folder / "synthetic.gguf", a.folder / "merged.gguf"
    if a.way:
        source = gguf_file.read(model)
        learned, start = adapter(source), time.perf_counter()
        if a.way == "ours":
            write(source, learned, {t.name: t.type for t in source.tensors}, {}, out)
        else:
            plainly(source, learned, out)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_MB": peak / 1e6, "GB": out.stat().st_size / 1e9}))
        out.unlink()
        return
    print(in_words(machine := measured_on()), flush=True)
    a.folder.mkdir(parents=True, exist_ok=True)
    write_model(model, shapes(a.layers, a.divide))
    largest = max(t.nbytes for t in gguf_file.read(model).tensors)
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    command = [sys.executable, "-m", "tests.benchmarks.merge", "--folder", str(a.folder), "--way"]
    for _ in range(a.repeat):
        for way, found in rows.items():
            done = subprocess.run([*command, way], check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout))
            print(way, found[-1], flush=True)
    model.unlink()
    seconds = {way: min(row["seconds"] for row in found) for way, found in rows.items()}
    result = {
        "machine": machine,
        "model_GB": rows["ours"][0]["GB"],
        "largest_tensor_MB": largest / 1e6,
        "peak_MB": max(row["peak_MB"] for row in rows["ours"]),
        "plain_peak_MB": max(row["peak_MB"] for row in rows["plain"]),
        "seconds": seconds,
        "time_ratio": seconds["ours"] / seconds["plain"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
