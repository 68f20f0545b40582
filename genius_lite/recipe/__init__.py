"""The recipe: its types, and the one home of every default.

Nothing heavy is imported here. `reader.py` reads it from YAML.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from genius_lite.recipe.benchmarks import BENCHMARKS, HARNESS, BenchmarkName, benchmark_named
from genius_lite.recipe.evaluation import Check, CheckOptions, Evaluate, Guard, Limit, TaskSource, Tracking
from genius_lite.recipe.learning import OWN_LOSS, READ_BY_LOSS, Learner, Loss, Pairs, Quantize
from genius_lite.recipe.sampler import Sampler, Server, sampler_section
from genius_lite.recipe.sampling import STDIN, AnswerKind, Foresight, Model, Prefix, Queries, columns_of
from genius_lite.recipe.types import (
    Auto,
    LocalPath,
    Positive,
    QuantType,
    Rounds,
    Section,
    Seed,
    TargetType,
    key,
    quant_type,
    section_of,
)

__all__ = [
    "BENCHMARKS", "HARNESS", "OWN_LOSS", "READ_BY_LOSS", "STDIN", "AnswerKind", "Auto", "BenchmarkName", "Check",
    "CheckOptions", "Evaluate", "Foresight", "Guard", "Learner", "Limit", "Loss", "Model", "Pairs", "Prefix",
    "QuantType", "Quantize", "Queries", "Recipe", "Sampler", "Server", "TargetType", "TaskSource", "Tracking",
    "answer_tokens", "benchmark_named", "columns_of", "quant_type",
]  # fmt: skip


def answer_tokens(wanted: int | Auto, searched: int, thought: int) -> int:
    """Return the longest response to a task, by `max_tokens` of `evaluate` and of `foresight`, and `thought_tokens`."""
    return (searched if wanted == "auto" else wanted) + thought


class Recipe(Section):
    """A whole run."""

    out: LocalPath = Field(
        description="Run folder, relative to the working directory; runs/NAME if a recipe does not say",
        examples=["runs/mine"],
    )
    model: Model
    queries: Queries
    seed: Seed = key(0, "Of every random choice of the run but the shuffling of the queries")
    rounds: Rounds = key(2, "Self-training iterations: sample, learn, merge, re-quantize", unit="rounds")
    round_queries: Positive | None = key(
        None,
        "Questions that a round answers, each round the next ones, and after the last the first again; null: all of "
        "them in every round",
        unit="questions",
    )
    policy: Literal["merge", "adapter", "auto"] = key(
        "merge",
        "What a round samples from: the merged and quantized model; the base with the adapter applied while it runs; "
        "auto: whichever of these and of the same model in 16 bits is the fastest here, which `sampler: auto` asks for "
        "too. What is evaluated and exported is always the merged and quantized one",
    )
    foresight: Foresight = Foresight()
    pairs: Pairs = Pairs()
    learner: Learner = Learner()
    quantize: Quantize = Quantize()
    evaluate: Evaluate = Evaluate()
    guard: Guard = Guard()
    tracking: Tracking = Tracking()
    sampler: Annotated[Sampler, BeforeValidator(sampler_section, json_schema_input_type=Sampler | Auto)] = Sampler()

    @model_validator(mode="before")
    @classmethod
    def _measured(cls, written: Any) -> Any:
        """Resolve `sampler: auto`, which is short for all that can be measured."""
        measured = isinstance(written, dict) and written.get("sampler") == "auto"
        return {"policy": "auto", **written} if measured else written

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        context = self.sampler.context
        if context != "auto":
            longest = max(self.foresight.response_tokens, self.answer_tokens)
            if context <= longest:
                raise ValueError(
                    f"sampler.context {context} has no room for a prompt and {longest} tokens of response; write more"
                )
        unjudged = not self.evaluate.tasks and not self.learner.holdout and self.queries.limit is None
        if self.evaluate.patience and unjudged:
            raise ValueError(
                "evaluate.patience needs tasks or held-out queries to judge by; write learner.holdout: 0.1"
            )
        return self

    @property
    def answer_tokens(self) -> int:
        """The longest response to a task or a held-out query."""
        return answer_tokens(self.evaluate.max_tokens, self.foresight.max_tokens, self.foresight.thought_tokens)

    @classmethod
    def section_names(cls) -> set[str]:
        """Return the keys that lead to sections."""
        return {name for name, field in cls.model_fields.items() if section_of(field.annotation)}

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run folder to go on: all but where files lie and what suits the machine.

        The type of the KV cache and the learner's precision are no such thing: they change what is sampled and learned
        by more than the order of sums does. The model, the queries and the tasks are compared by content instead, when
        the folder is opened.
        """
        keys: dict[str, Any] = dict.fromkeys(("out", "model", "queries", "tracking"), True)
        parts = {
            "sampler": set(Sampler.model_fields) - {"kv_type"},
            "learner": {"gradient_checkpointing", "max_pack_tokens", "save_every", "parity_limit"},
            "pairs": {"at_least"},
            "quantize": {"check"},
            "evaluate": {
                "tasks": {"__all__": {"benchmark", "source", "subset", "split", "revision", "count_from"}},
                "remember": True,
            },
        }
        return self.model_dump(mode="json", exclude=keys | parts)
