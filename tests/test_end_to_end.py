"""The loop on the real SmolLM2-135M-Instruct, at the smallest useful settings."""

from __future__ import annotations

import io
import json

import llama_cpp
import numpy as np
import pytest
from rich.console import Console

from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Queries, Recipe
from genius_lite.report.summary import print_summary
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import run
from tests.conftest import SMOLLM2
from tests.support.models import ANY_PAIRS


def test_smollm2_trains_itself_and_answers(smollm2, tmp_path):
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=SMOLLM2),
        queries=Queries(source="recipes/quickstart-queries.jsonl", limit=2),
        rounds=1,
        foresight=Foresight(candidates=2, steps=2, max_tokens=24),
        pairs=ANY_PAIRS,
        learner=Learner(lr=2e-4, batch_pairs=1),
        evaluate=Evaluate(queries=2, query_samples=2),
    )
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    summary = run(recipe, TerminalProgress(console))
    print_summary(summary, console)
    (first,) = summary.rounds
    made = first.quantized
    assert first.rollouts and first.training and made
    assert first.rollouts.queries == 2
    assert first.training.margin > 0.05, "training on two queries must at least move their own pairs"
    assert first.training.shared_tokens > 0.3
    assert -3 < first.rollouts.mean_value < 0
    assert (made.type, made.keeps) == ("Q4_1", True), "the types of the model, that keep a small update too"
    assert made.kept == pytest.approx(1, abs=0.05)
    assert not (tmp_path / "run" / "rounded" / "base.gguf").exists(), "the model's own file is the base"
    assert shown.getvalue().startswith("reading the model and the questions\n"), "what takes longest before any figure"
    assert "Tuned model:" in shown.getvalue()
    for line in (tmp_path / "run" / "round-1" / "pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        assert pair["chosen_tokens"] != pair["rejected_tokens"]
        assert pair["chosen_advantage"] >= pair["rejected_advantage"] or pair["step"] > 0
    # Two updates at a high rate may change an answer, but not the language: a damaged file is ten nats a token off.
    assert _nats_per_token(summary.exported) == pytest.approx(_nats_per_token(str(smollm2)), abs=1)


def _nats_per_token(gguf: str) -> float:
    """Of a right answer, read by llama-cpp-python as another program would."""
    llama = llama_cpp.Llama(gguf, n_ctx=256, logits_all=True, verbose=False)
    question = b"<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    prompt = llama.tokenize(question, special=True)
    answer = llama.tokenize(b"The sum of 2 and 2 is 4.<|im_end|>", add_bos=False, special=True)
    llama.eval(prompt + answer)
    logprobs = llama.logits_to_logprobs(llama.scores[len(prompt) - 1 : len(prompt) + len(answer) - 1])
    return -float(np.mean(logprobs[np.arange(len(answer)), answer]))
