"""An adapter as a LoRA GGUF, which llama.cpp applies while it runs: nothing is merged, nothing is quantized."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from genius_lite.weights.importing import Base
from genius_lite.weights.merge import Adapter


def write_lora(base: Base, adapter: Path, out: Path) -> None:
    """Write a peft adapter folder as the GGUF that `llama_adapter_lora_init` (and `llama-cli --lora`) reads.

    The factors are F32; rows of B stand in the GGUF's order.

    Raises:
        UserError: the adapter was trained on another model.
    """
    loaded = Adapter.load(adapter, base)
    writer = gguf.GGUFWriter(out, base.gguf.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(loaded.alpha))
    for name, (b, a) in loaded.factors.items():
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
