"""The importance matrix: from the learner's activations to a GGUF, which llama.cpp's tools read too."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from genius_lite.weights import gguf_file
from genius_lite.weights.mapping import TensorMap

IMATRIX_FILE = "imatrix.gguf"  # beside an adapter
_SUM, _COUNT = ".in_sum2", ".counts"
Matrix = dict[str, np.ndarray]
"""GGUF tensor name -> mean squared input of each column, float32."""


def write(sums: Path, tensor_map: TensorMap, dataset: str, out: Path) -> None:
    """Write what the learner gathered as a GGUF that `llama-quantize --imatrix` reads (llama.cpp, tools/imatrix).

    Args:
        sums: safetensors with the summed squared inputs by learner name, and how many `tokens` they are of.
        dataset: what the tokens were, for whoever looks into the file.
    """
    gathered = load_file(sums)
    tokens = int(gathered.pop("tokens"))
    writer = gguf.GGUFWriter(out, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", tokens)
    # Row order does not matter: columns are meant.
    for gguf_name, (name, _) in sorted(tensor_map.tensors.items()):
        if name in gathered:
            writer.add_tensor(f"{gguf_name}{_SUM}", gathered[name].astype(np.float32)[None])
            writer.add_tensor(f"{gguf_name}{_COUNT}", np.array([[tokens]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path: Path) -> Matrix:
    """Load the importance in such a file, ours or that of llama.cpp's own llama-imatrix."""
    file = gguf_file.read(path)
    values = {t.name: file.dequantized(t) for t in file.tensors}
    return {
        name.removesuffix(_SUM): (sums / values[f"{name.removesuffix(_SUM)}{_COUNT}"].reshape(-1, 1)).reshape(-1)
        for name, sums in values.items()
        if name.endswith(_SUM)
    }
