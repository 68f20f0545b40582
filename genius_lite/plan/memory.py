"""The most memory that each stage of a run holds at once, from the GGUF's header and the recipe alone.

A run is one process (`main`) and, while it samples or scores, a worker with llama.cpp. What counts is their resident
memory together; pages that both map count twice. Constants that are no arithmetic were measured on Linux, with Python
3.11, llama-cpp-python 0.3.36, torch 2.13 and transformers 5.23; `tests/benchmarks/plan.py` sets all beside a real run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from gguf.constants import GGMLQuantizationType as T

from genius_lite.hardware.device import Device, Precision, fitting_precision
from genius_lite.learner.footprint import HELD, SLICE_BYTES, kept_bytes, layers_twice
from genius_lite.plan.shape import Machine, Shape
from genius_lite.progress import Stage
from genius_lite.recipe import Learner, Recipe
from genius_lite.sampler.engine import SCORE_ROWS
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights.footprint import kv_bytes
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import BLOCK
from genius_lite.weights.merge import THREADS
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.retained import SCORING_SLOTS

BASE = "base model"  # its evaluation, which is no round's

# Resident memory, in bytes.
_MAIN = 404e6  # a run whose recipe is prepared: interpreter, numpy, llama.cpp, datasets, transformers, torch
_IMPORTED = 105e6  # transformers' modelling modules, from the import on
_LEARNER = 170e6  # peft, accelerate, bitsandbytes, while training
_TRAINED = 110e6  # the same, from the first training on
_STAYS, _STAYS_OF_EACH = 290e6, 3  # what torch and malloc keep then, at most: bytes, and bytes for each parameter
_WORKER = 65e6  # interpreter, numpy and llama.cpp of the workers of SmolLM2 and Qwen2.5, less all that follows
_PER_TOKEN = 350  # of a vocabulary in llama.cpp and its pieces in Python: 50 MB of 49,152 tokens, 84 MB of 151,936
_MERGED = 60  # of a weight in a block of rows, while it is rounded; malloc keeps its place while files are scored
# Bytes that a weight takes while gguf-py dequantizes its tensor and it becomes 16 bits, the mapped file not counted.
_CONVERTED = {T.F32: 6, T.F16: 6, T.BF16: 6, T.Q8_0: 8}
_CONVERTED_BLOCKS = 11  # of other types, whose temporaries break the heap into pieces
_COMPUTED_AGAIN = 150_000_000  # beside what is kept: SmolLM2 0.21, Qwen2.5-0.5B 0.13 GB
_SLICES = 2  # of the head at once: logits and the rows that they come from, forward; logits and their slopes, backward
_NF4_BYTES = 0.5 + 4 / 64  # a weight, and the scale of 64 of them


@dataclass(frozen=True)
class Training:
    """Hold how a recipe's learner section comes out on a machine.

    `in_bf16`: what is computed in, else fp32; `tokens` of the largest forward pass, `counted` of them whose
    log-probability is wanted, `twice`: layers whose activations it computes twice. `again` is how much of another
    forward pass that makes, over all tokens.
    """

    precision: Precision
    in_bf16: bool
    tokens: int
    counted: int
    twice: int
    again: float


@dataclass(frozen=True)
class Use:
    """Hold what a recipe uses memory for on a machine: a model, engine settings, and how training comes out.

    `evaluated` says whether anything is sampled or scored besides the rollouts.
    """

    recipe: Recipe
    source: GGUF
    shape: Shape
    engine: EngineSettings
    training: Training
    machine: Machine
    evaluated: bool = True


@dataclass(frozen=True)
class Peak:
    """Hold what a stage takes at its fullest, bytes by part: of main memory, and of the GPU's own."""

    stage: str
    parts: dict[str, int]
    gpu: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def gpu_total(self) -> int:
        return sum(self.gpu.values())


def fullest(peaks: Iterable[Peak]) -> Peak:
    """Return the one that takes the most main memory."""
    return max(peaks, key=lambda peak: peak.total)


def peaks(use: Use, *, first: bool) -> list[Peak]:
    """Estimate every stage, in order: of the first round, in which nothing was trained before, or of a later one."""
    untrained = int(_MAIN + _IMPORTED)
    trained = untrained + int(_TRAINED + min(_STAYS, _STAYS_OF_EACH * use.shape.parameters))
    before = untrained if first else trained
    base, made = use.shape.tensor_bytes, quantized_bytes(use.source, use.recipe.quantize.type)
    found = [Peak(Stage.IMPORT, _import(use))]
    if use.evaluated:
        found.append(_sampling(use, BASE, untrained, base))
    found.append(_sampling(use, Stage.ROLLOUTS, before, base if first else made))
    found += [_training(use, max(before, untrained + int(_LEARNER))), _quantizing(use, trained, made)]
    if use.evaluated:  # the policy answers, then the base model scores what it said
        found.append(fullest(_sampling(use, Stage.EVALUATE, trained, made, scores=scores) for scores in (False, True)))
    return [*found, Peak(Stage.EXPORT, {"libraries": trained})]


def worker(shape: Shape, source: GGUF, engine: EngineSettings, file: int, rows: int) -> dict[str, int]:
    """Estimate what a sampler's process holds, bytes by part.

    Args:
        file: bytes of the tensors of the file that it has mapped.
        rows: of logits that one decode gives, at most.
    """
    sequences = engine.slots + engine.parked
    return {
        "libraries": int(_WORKER + _PER_TOKEN * shape.vocabulary),
        "weights": file,
        "kv": sequences * engine.context * shape.layers * kv_bytes(source, engine.kv_type),
        # The buffer that rows are handed over in, which has room for one of each sequence, and the graph's own.
        "compute": 4 * shape.vocabulary * (max(sequences, rows) + rows),
    }


def _sampling(use: Use, stage: str, main: int, file: int, *, scores: bool = False) -> Peak:
    """Add the run to its sampler, whose layers may be on a GPU."""
    engine = use.engine
    rows = min(engine.slots * SCORE_ROWS, engine.slots + engine.prefill_chunk) if scores else engine.slots
    parts = worker(use.shape, use.source, engine, file, rows)
    parts["libraries"] += main
    share = 1.0 if engine.gpu_layers < 0 else min(1.0, engine.gpu_layers / use.shape.layers)
    if not share or all(gpu.shared for gpu in use.machine.gpus):  # the main memory is theirs, as Apple's
        return Peak(stage, parts)
    moved = {"weights": share, "kv": share, "compute": float(engine.gpu_layers < 0)}
    gpu = {part: int(of_it * parts[part]) for part, of_it in moved.items()}
    return Peak(stage, {part: size - gpu.get(part, 0) for part, size in parts.items()}, gpu)


def _import(use: Use) -> dict[str, int]:
    """Find the fullest moment, tensor by tensor: those before are held in 16 bits, their part of the file is mapped."""
    held = mapped = conversion = 0
    fullest = (0, 0)
    for tensor in use.source.tensors:
        weights, mapped = tensor.rows * tensor.columns, mapped + tensor.nbytes
        conversion = mapped + _CONVERTED.get(tensor.type, _CONVERTED_BLOCKS) * weights
        fullest = max(fullest, (held, conversion), key=sum)
        held += 2 * weights
    held, conversion = max(fullest, (held, mapped), key=sum)
    return {"libraries": int(_MAIN + _IMPORTED), "weights": held, "conversion": conversion}


def _training(use: Use, main: int) -> Peak:
    """Take the fuller one of an update and of loading, when the tables in 16 bits stand beside what is made of them."""
    device, cfg = use.machine.device, use.recipe.learner
    update, tables = training_parts(cfg, use.shape, use.training, device), 2 * use.shape.tables
    if device == "cuda":
        return Peak(Stage.TRAIN, {"libraries": main, "conversion": tables}, update)
    loading = {"weights": update["weights"], "conversion": tables}
    return fullest(Peak(Stage.TRAIN, {"libraries": main, **parts}) for parts in (update, loading))


def _quantizing(use: Use, main: int, made: int) -> Peak:
    """Take the fuller one of merging, and of the worker that scores with the file."""
    factors = 2 * 4 * use.shape.adapter_weights(use.recipe.learner)
    blocks = _MERGED * min(use.machine.cores, THREADS) * min(BLOCK, use.shape.largest)
    merging = Peak(Stage.MERGE, {"libraries": main, "optimizer": factors, "conversion": blocks})
    if use.recipe.quantize.check == "never":
        return merging
    few = replace(use, engine=use.engine.with_slots(SCORING_SLOTS))
    scoring = _sampling(few, Stage.MERGE, main, made, scores=True)
    scoring.parts["conversion"] = blocks
    return fullest([merging, scoring])


def resolve_training(cfg: Learner, shape: Shape, machine: Machine, passes: Sequence[int], counted: int) -> Training:
    """Decide what `auto` comes to, as `learner_precision` and the training itself do.

    Args:
        passes: tokens of each forward pass.
        counted: those of the largest whose log-probability is wanted.
    """
    fitting = fitting_precision(machine.bf16, 2 * shape.parameters, machine.learner_memory)
    precision = fitting if cfg.precision == "auto" else cfg.precision
    in_bf16 = precision == "bf16" or (precision == "nf4" and machine.bf16)
    left = machine.learner_memory - frozen_bytes(shape, precision, in_bf16)
    twice = partial(layers_twice, cfg.gradient_checkpointing, left, shape.layers, shape.width, shape.inner, in_bf16)
    largest, every = max(passes, default=0), max(1, shape.layers * sum(passes))
    again = sum(tokens * twice(tokens) for tokens in passes) / every
    return Training(precision, in_bf16, largest, counted, twice(largest), again)


def training_parts(cfg: Learner, shape: Shape, training: Training, device: Device) -> dict[str, int]:
    """Estimate the bytes on the learner's device, by part, at the fullest moment of an update."""
    sizes = shape.layers, shape.width, shape.inner
    kept = kept_bytes(training.tokens, *sizes, training.in_bf16, twice=training.twice)
    held = 1.0 if training.twice == shape.layers else HELD
    logits = min(SLICE_BYTES[device], 4 * training.counted * shape.vocabulary)
    rows = min(SLICE_BYTES[device], 4 * shape.vocabulary * shape.width)
    trained = shape.adapter_weights(cfg)
    return {
        "weights": frozen_bytes(shape, training.precision, training.in_bf16),
        "activations": int(held * kept) + _COMPUTED_AGAIN * (training.twice > 0),
        "head": _SLICES * max(logits, rows),
        # The adapter and its gradient in fp32, and Adam's two moments of each number.
        "optimizer": trained * (4 + 4 + (2 if cfg.optimizer == "paged_adamw_8bit" else 8)),
    }


def frozen_bytes(shape: Shape, precision: Precision, in_bf16: bool) -> int:
    if precision != "nf4":
        return (2 if precision == "bf16" else 4) * shape.parameters
    scales = 4 * shape.vocabulary * (1 if shape.tied else 2)
    return int(_NF4_BYTES * shape.matrices) + shape.tables + scales + (2 if in_bf16 else 4) * shape.vectors
