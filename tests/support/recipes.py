"""The shipped recipes, and the least that a recipe says."""

from __future__ import annotations

from pathlib import Path

GOOD = "model: {gguf: m.gguf}\nqueries: {source: q.txt}\n"
RECIPES = sorted(Path("recipes").rglob("*.yaml"))
