"""What a run folder takes on disk, stage by stage, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from genius_lite.planning.memory import EXPORT, IMPORT, QUANTIZING, ROLLOUTS, TRAINING
from genius_lite.planning.shape import Shape
from genius_lite.recipe import Recipe
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.quantize import quantized_bytes

_SAMPLED = 14  # a token in rollouts.jsonl, with its log-probability, as text
_SMALL = 5_000_000  # logs, reports, pairs


@dataclass(frozen=True)
class Written:
    """Bytes that a stage leaves, those that it deletes before it ends, and what only the first round leaves."""

    kept: int
    passing: int = 0
    once: int = 0


def written(recipe: Recipe, source: GGUF, shape: Shape, sampled: float, *, weights: bool) -> dict[str, Written]:
    """Of every stage that writes models.

    Args:
        sampled: tokens of a round.
        weights: full-precision safetensors replace the GGUF's.
    """
    sixteen, adapter = 2 * shape.parameters, 4 * shape.adapter_weights(recipe.learner)
    made = quantized_bytes(source, recipe.quantize.type)
    rounded = made if recipe.quantize.type != "source" or weights else 0  # the base model in the types of the rounds
    return {
        IMPORT: Written(sixteen * (2 if weights else 1), passing=sixteen if weights else shape.tensor_bytes),
        ROLLOUTS: Written(int(_SAMPLED * sampled) + _SMALL),
        # The state holds the adapter and two moments of each number, and the one before it goes when it is there.
        TRAINING: Written(adapter, passing=2 * 3 * adapter),
        # An adapter at run time stands beside the file that is merged.
        QUANTIZING: Written(made + (recipe.policy != "merge") * adapter, passing=adapter, once=rounded),
        EXPORT: Written(made, passing=made),
    }


def needed(by_stage: dict[str, Written], rounds: int) -> dict[str, int]:
    """What the folder holds at its fullest in each stage, of the last round where a stage is in every one."""
    in_a_round = (ROLLOUTS, TRAINING, QUANTIZING)
    each_round = sum(by_stage[stage].kept for stage in in_a_round)
    held = by_stage[IMPORT].kept
    full = {IMPORT: held + by_stage[IMPORT].passing}
    held += (rounds - 1) * each_round + (rounds > 1) * by_stage[QUANTIZING].once
    for stage in (*in_a_round, EXPORT):
        held += by_stage[stage].kept + (rounds == 1) * by_stage[stage].once
        full[stage] = held + by_stage[stage].passing
    return full
