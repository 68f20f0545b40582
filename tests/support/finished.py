"""A finished run of a tiny model, with all that it said, and whether a file is what sampled its rollouts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from rich.console import Console

from genius_lite.recipe import (
    Evaluate,
    Foresight,
    Guard,
    Learner,
    Limit,
    Model,
    Quantize,
    Queries,
    Recipe,
    Sampler,
    TaskSource,
)
from genius_lite.records import Rollout
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import run
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from tests.support.models import ANY_PAIRS, questions, tiny_gguf

Q = gguf.GGMLQuantizationType
UNGUARDED = Guard(**dict.fromkeys(Guard.model_fields, Limit()))


@dataclass(frozen=True)
class Done:
    """A finished run, and all that it said."""

    recipe: Recipe
    folder: Path
    said: list[str]

    def round(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def quantized(self, number: int) -> dict:
        return json.loads((self.round(number) / "quantized.json").read_text())


def done(
    folder: Path,
    quantize: Quantize,
    *,
    kind: Q = Q.F16,
    full: bool = False,
    lr: float = 1e-2,
    holdout: float = 0.0,
    **sections: Any,
) -> Done:
    """A run of a tiny model whose file is of type `kind`: three problems, and twelve queries with a pair each.

    Args:
        full: the recipe names the weights that the file was made from, too.
    """
    model = tiny_gguf(folder / "tiny.gguf", "llama", kind=kind)
    if full:
        model.save_pretrained(folder / "full")
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps({"prompt": f"Say {n}.", "answer": f"{n}"}) + "\n" for n in range(3)))
    # One branch at a time: in other company a sum is rounded in another way.
    default = {
        "rounds": 2,
        "evaluate": Evaluate(tasks=[TaskSource(source=str(problems))], samples=1, queries=0),
        "sampler": Sampler(slots=1, threads=1),
        "guard": UNGUARDED,
        "foresight": Foresight(beams=1, candidates=2, steps=1, max_tokens=12, temperature=1.5),
        "pairs": ANY_PAIRS,
    }
    recipe = Recipe(
        out=str(folder / "run"),
        model=Model(gguf=str(folder / "tiny.gguf"), weights=str(folder / "full") if full else None),
        queries=Queries(source=questions(folder, 12)),
        learner=Learner(
            rank=4, lora_alpha=8, lr=lr, holdout=holdout, batch_pairs=4, parity_limit=100, precision="fp32"
        ),
        quantize=quantize,
        **{**default, **sections},
    )
    progress, said = TerminalProgress(Console(quiet=True)), []
    progress.say = said.append
    run(recipe, progress)
    return Done(recipe, folder / "run", said)


def far_from_sampled(rollouts: list[Rollout], model: Path, settings: EngineSettings, log: Path) -> float:
    """By how many nats a token the model's log-probabilities of sampled responses differ from those noted with them."""

    async def ask() -> list[list[float]]:
        async with open_sampler(model, settings, Sampling(1.0), log) as sampler:
            return await asyncio.gather(*(sampler.score(r.query.tokens, r.response(0, 0)) for r in rollouts))

    noted = np.concatenate([r.logprobs(0, 0) for r in rollouts])
    return float(np.abs(np.concatenate(asyncio.run(ask())) - noted).mean())
