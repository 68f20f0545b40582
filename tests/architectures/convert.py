"""Convert folders to GGUF with llama.cpp's own converter: `convert.py SOURCES FOLDER...`.

A process of its own, because the converter brings a gguf of its own. One for all models, because imports take most of
the time. llama.cpp recognizes a tokenizer by what it makes of a certain text, and reads that of some families only
with SentencePiece. All models here have the same one, of bytes, and the converter is told so.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch

NAME = "Tiny"  # llama.cpp looks for Phi's special tokens where a model's name has `phi3` in it


def main(sources: str, *folders: str) -> None:
    """Write FOLDER.gguf, in F32, beside each folder; why one cannot be converted goes to standard error."""
    sys.path[:0] = [sources, f"{sources}/gguf-py"]
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import TextModel
    from gguf import LlamaFileType

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    for folder in map(Path, folders):
        print(f"== {folder.name}", file=sys.stderr)
        try:
            with torch.inference_mode():
                hparams = ModelBase.load_hparams(folder, False)
                family = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
                family.set_vocab = TextModel._set_vocab_gpt2
                family(folder, LlamaFileType.ALL_F32, folder.with_suffix(".gguf"), model_name=NAME).write()
        except Exception:  # noqa: BLE001 - the others are still to be converted
            traceback.print_exc()


if __name__ == "__main__":
    main(*sys.argv[1:])
