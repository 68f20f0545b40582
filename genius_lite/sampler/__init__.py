"""Sampling through llama.cpp: a token tree, and an engine in a process of its own that extends it."""
