"""The path of the weights: GGUF to 16-bit checkpoint, adapter merged onto it, and back to a quantized GGUF."""
