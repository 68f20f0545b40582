"""Getting the tuned model out of a run folder."""

from typing import Literal

FormatName = Literal["gguf", "ollama", "lora-gguf", "peft", "safetensors"]
"""How `genius-lite export` can write a model; `bundle.FORMATS` says what each is."""
