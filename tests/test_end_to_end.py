"""The loop on the real SmolLM2-135M-Instruct, at the smallest useful settings."""

from __future__ import annotations

import io
import json

import llama_cpp
from rich.console import Console

from genius_lite.recipe import Foresight, Learner, Model, Queries, Recipe
from genius_lite.report.progress import Progressor
from genius_lite.report.summary import print_summary
from genius_lite.run import run
from tests.conftest import SMOLLM2


def test_smollm2_trains_itself_and_answers(smollm2, tmp_path):
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=SMOLLM2),
        queries=Queries(source="recipes/quickstart-queries.jsonl", limit=2),
        rounds=2,
        foresight=Foresight(candidates=2, steps=2, max_tokens=40),
        learner=Learner(lr=2e-4, batch_pairs=1),
    )
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    summary = run(recipe, Progressor(console))
    print_summary(summary, console)
    first, second = summary["rounds"]
    assert first["queries"] == second["queries"] == 2
    assert first["training"]["margin"] > 0.05, "training on two queries must at least move their own pairs"
    assert first["training"]["shared_tokens"] > 0.3
    assert -3 < second["mean_value"] < 0
    assert "Tuned model:" in shown.getvalue()
    for line in (tmp_path / "run" / "round-1" / "pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        assert pair["chosen_tokens"] != pair["rejected_tokens"]
        assert pair["chosen_advantage"] >= pair["rejected_advantage"] or pair["step"] > 0
    llama = llama_cpp.Llama(summary["exported"], n_ctx=256, verbose=False)
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    answer = llama.create_chat_completion(question, max_tokens=24, temperature=0)
    assert "4" in answer["choices"][0]["message"]["content"]
