"""genius-lite: self-train a quantized GGUF model on unlabelled questions, on a laptop."""

__version__ = "0.1.0"
