"""Bytes by hand. The tiny Llama has 2 layers, width 64, inner 96, 260 tokens, 4 heads of 16, 2 of keys and values."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest
import torch

from genius_lite.hardware.gpus import Gpu
from genius_lite.learner.activations import Activations
from genius_lite.learner.footprint import SLICE_BYTES, kept_bytes, layers_twice
from genius_lite.learner.model import load_base, load_policy, response_logps, weight_bytes
from genius_lite.learner.packing import rows
from genius_lite.plan import memory
from genius_lite.plan.shape import Machine, Shape
from genius_lite.recipe import Learner, Model, Quantize, Queries, Recipe
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node
from genius_lite.weights import gguf_file
from genius_lite.weights.quantize import quantized_bytes

MACHINE = Machine(
    memory=8_000_000_000, disk=10**10, gpus=[], device="cpu", learner_memory=8_000_000_000, bf16=False, cores=2
)
ENGINE = EngineSettings(slots=8, context=256, threads=2, parked=8, gpu_layers=0)
TRAINING = memory.Training("fp32", in_bf16=False, tokens=100, counted=60, twice=0, again=0.0)


def recipe(**sections) -> Recipe:
    return Recipe(out="runs/r", model=Model(gguf="m.gguf"), queries=Queries(source="q.txt"), **sections)


def use(path, **changes) -> memory.Use:
    source = gguf_file.read(path)
    found = memory.Use(recipe(), source, Shape.of(source), ENGINE, TRAINING, MACHINE)
    return memory.Use(**{**{name: getattr(found, name) for name in found.__dataclass_fields__}, **changes})


def test_a_models_shape(tiny):
    shape = Shape.of(gguf_file.read(tiny.gguf))
    assert (shape.layers, shape.width, shape.inner, shape.vocabulary) == (2, 64, 96, 260)
    # Each layer: q 64 x 64, k and v 32 x 64, output 64 x 64, gate and up 96 x 64, down 64 x 96.
    assert shape.matrices == 2 * (4096 + 2 * 2048 + 4096 + 3 * 6144)
    tied = tiny.architecture == "llama"
    assert shape.tied == tied
    assert shape.tables == (1 if tied else 2) * 260 * 64
    assert shape.parameters == shape.matrices + shape.tables + shape.vectors
    assert not shape.recurrent
    # Rank 4: rows and columns of each adapted matrix.
    every = 2 * ((64 + 64) + 2 * (32 + 64) + (64 + 64) + 3 * (96 + 64))
    assert shape.adapter_weights(Learner(rank=4)) == 4 * every
    assert shape.adapter_weights(Learner(rank=4, targets=["q_proj", "v_proj"])) == 4 * 2 * (128 + 96)


def test_the_adapter_is_as_large_as_reckoned(tiny):
    policy = load_policy(tiny.hf_checkpoint, None, Learner(rank=4), "cpu", "fp32", seed=0)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert trained == Shape.of(gguf_file.read(tiny.gguf)).adapter_weights(Learner(rank=4))


def test_the_learner_computes_as_much_twice_as_reckoned(tiny):
    shape = Shape.of(gguf_file.read(tiny.gguf))
    policy = load_policy(tiny.hf_checkpoint, None, Learner(rank=4), "cpu", "fp32", seed=0)
    layers = policy.get_base_model().model.layers
    for free, expected in ((10**9, 0), (1_300_000, 1), (100_000, 2)):
        activations = Activations(policy, "auto", free, largest=100)
        sizes = shape.layers, shape.width, shape.inner
        assert activations.most == expected == layers_twice("auto", free, *sizes, in_bf16=False, tokens=100)
        activations.keep_for(100)
        assert [layer.gradient_checkpointing for layer in layers] == [n < expected for n in range(2)]
        activations.keep_for(1)
        assert not any(layer.gradient_checkpointing for layer in layers)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
def test_frozen_weights(tiny, precision):
    shape = Shape.of(gguf_file.read(tiny.gguf))
    base = load_base(tiny.hf_checkpoint, "cpu", precision)
    base.get_base_model = lambda: base
    in_bf16 = next(p for n, p in base.named_parameters() if "norm" in n).dtype == torch.bfloat16
    # Besides: rotary frequencies, and the table of NF4's 16 levels.
    assert weight_bytes(base) == pytest.approx(memory.frozen_bytes(shape, precision, in_bf16), rel=0.03)


def test_what_autograd_keeps():
    # fp32: of a token in a layer 27 bytes for each of 64 numbers and 8 for each of 96.
    assert kept_bytes(100, 2, 64, 96, in_bf16=False) == 100 * 2 * (27 * 64 + 8 * 96)
    assert kept_bytes(100, 2, 64, 96, in_bf16=True) == 100 * 2 * (14 * 64 + 4 * 96)
    # Twice: each layer's input (4 bytes a number) and one layer.
    assert kept_bytes(100, 2, 64, 96, in_bf16=False, twice=2) == 100 * 2 * 64 * 4 + 100 * (27 * 64 + 8 * 96)
    # Of the first layer only its input, of the two others all.
    assert kept_bytes(100, 3, 64, 96, in_bf16=False, twice=1) == 100 * 64 * 4 + 2 * 100 * (27 * 64 + 8 * 96)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_autograd_keeps_is_what_it_really_keeps(tiny, precision):
    policy = load_policy(tiny.hf_checkpoint, None, Learner(rank=4), "cpu", precision, seed=0).train()
    own = {t.untyped_storage().data_ptr() for t in [*policy.parameters(), *policy.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = rows([([100, 101, 102], np.arange(150, 250).tolist())])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        response_logps(policy, inputs)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert found == pytest.approx(kept_bytes(103, 2, 64, 96, in_bf16=precision == "bf16"), rel=0.25)


def test_parts_of_training(tiny_llama):
    shape = Shape.of(gguf_file.read(tiny_llama))
    parts = memory.training_parts(Learner(rank=4), shape, TRAINING, "cpu")
    assert parts["weights"] == 4 * 78_400
    assert parts["activations"] == int(2.2 * 100 * 2 * (27 * 64 + 8 * 96))
    # The head's rows are larger than the logits of 60 positions.
    assert parts["head"] == 2 * 4 * 260 * 64
    # The adapter, its gradient and two moments, 4 bytes each.
    assert parts["optimizer"] == 16 * 4 * 2 * 928
    eight_bit = memory.training_parts(Learner(rank=4, optimizer="paged_adamw_8bit"), shape, TRAINING, "cpu")
    assert eight_bit["optimizer"] == 10 * 4 * 2 * 928


def test_the_heads_logits_are_bounded():
    sizes = {"parameters": 10**9, "tensor_bytes": 10**9, "layers": 1, "width": 4096, "inner": 1, "vocabulary": 150_000}
    counts = {"tables": 4096 * 150_000, "matrices": 1, "vectors": 1, "adapted": {}, "recurrent": False}
    shape = Shape(**sizes, **counts, largest=4096 * 150_000)
    for device, size in SLICE_BYTES.items():
        assert memory.training_parts(Learner(), shape, TRAINING, device)["head"] == 2 * size


@pytest.mark.parametrize(
    ("free", "bf16", "expected"),
    [(2 * 4 * 78_400, False, "fp32"), (int(1.8 * 4 * 78_400), False, "nf4"), (2 * 2 * 78_400, True, "bf16")],
)
def test_precision_goes_by_free_memory(tiny_llama, free, bf16, expected):
    shape = Shape.of(gguf_file.read(tiny_llama))
    machine = Machine(free, 0, [], "cpu", free, bf16, 1)
    assert memory.resolve_training(Learner(), shape, machine, [100], 60).precision == expected


def test_activations_are_computed_twice_where_memory_is_short(tiny_llama):
    shape = Shape.of(gguf_file.read(tiny_llama))
    layer = 100 * (27 * 64 + 8 * 96)
    frozen = 4 * 78_400  # lie in memory by then
    for kept, twice in ((2 * layer, 0), (2 * layer - 20, 1), (layer + 100 * 64 * 4, 1), (layer, 2)):
        free = frozen + int(2.2 * kept / 0.75) + 2
        machine = Machine(free, 0, [], "cpu", free, False, 1)
        found = memory.resolve_training(Learner(), shape, machine, [100, 50, 50], 60)
        assert (found.tokens, found.twice) == (100, twice)
        # Passes of half as many tokens keep theirs.
        assert found.again == 0.5 * twice / 2
    every = memory.resolve_training(Learner(gradient_checkpointing=True), shape, MACHINE, [100, 50], 60)
    assert (every.twice, every.again) == (2, 1.0)


def test_a_workers_parts(tiny_llama):
    source = gguf_file.read(tiny_llama)
    parts = memory.worker(Shape.of(source), source, ENGINE, file=157_440, rows=8)
    assert parts["weights"] == 157_440
    # 8 + 8 sequences of 256 tokens in 2 layers, keys and values of 2 heads of 16 numbers in 2 bytes.
    assert parts["kv"] == 16 * 256 * 2 * (2 * 2 * 16 * 2)
    # Room for the logits of 16 sequences, and those of 8 rows.
    assert parts["compute"] == 4 * 260 * (16 + 8)
    halved = memory.worker(Shape.of(source), source, msgspec.structs.replace(ENGINE, kv_type="Q8_0"), 1, 8)
    assert halved["kv"] == 16 * 256 * 2 * (64 * 34 // 32)


def test_stages_of_a_run(tiny_llama):
    found = {peak.stage: peak for peak in memory.peaks(use(tiny_llama), first=True)}
    assert list(found) == ["import", "base model", "rollouts", "train", "merge", "evaluate", "export"]
    # In F16 a weight takes 6 bytes on the way: fullest is the last matrix, of 64 x 96, which three norms of 64 follow.
    # Those before it are held, and the file is mapped up to it.
    tensors = gguf_file.read(tiny_llama).tensors
    assert [tensor.rows * tensor.columns for tensor in tensors[-4:]] == [64 * 96, 64, 64, 64]
    assert found["import"].parts["weights"] == 2 * (78_400 - 64 * 96 - 3 * 64)
    assert found["import"].parts["conversion"] == sum(tensor.nbytes for tensor in tensors[:-3]) + 6 * 64 * 96
    assert found["evaluate"].total > found["export"].total
    assert found["train"].parts["optimizer"] == 16 * 16 * 2 * 928
    later = {peak.stage: peak for peak in memory.peaks(use(tiny_llama), first=False)}
    assert later["rollouts"].parts["libraries"] > found["rollouts"].parts["libraries"]
    without = memory.peaks(use(tiny_llama, evaluated=False), first=True)
    assert [peak.stage for peak in without] == ["import", "rollouts", "train", "merge", "export"]


def test_a_merge_holds_some_blocks_and_the_adapter(tiny_llama):
    unchecked = use(tiny_llama, recipe=recipe(quantize=Quantize(check="never")))
    (found,) = [peak for peak in memory.peaks(unchecked, first=True) if peak.stage == "merge"]
    # Each of the machine's cores rounds rows; the largest matrix, 260 x 64, is one block. Factors of rank 16, twice.
    assert found.parts["conversion"] == 60 * MACHINE.cores * 260 * 64
    assert found.parts["optimizer"] == 2 * 4 * 16 * 2 * 928
    assert set(found.parts) == {"libraries", "optimizer", "conversion"}
    # llama.cpp's scores are asked of a worker, which holds the file that was made.
    checked = use(tiny_llama, recipe=recipe(quantize=Quantize(type="Q8_0")))
    (found,) = [peak for peak in memory.peaks(checked, first=True) if peak.stage == "merge"]
    assert found.parts["weights"] == quantized_bytes(checked.source, "Q8_0")


def test_a_gpu_takes_its_share(tiny_llama):
    machine = Machine(8 * 10**9, 10**10, [Gpu("a", 10**10, 10**10)], "cuda", 10**10, True, 8)
    whole = use(tiny_llama, machine=machine, engine=msgspec.structs.replace(ENGINE, gpu_layers=-1))
    found = {peak.stage: peak for peak in memory.peaks(whole, first=True)}
    assert found["rollouts"].gpu["kv"] == 16 * 256 * 2 * 128
    assert found["rollouts"].parts["kv"] == 0
    assert found["train"].gpu["weights"] == 4 * 78_400
    assert "activations" not in found["train"].parts
    half = use(tiny_llama, machine=machine, engine=msgspec.structs.replace(ENGINE, gpu_layers=1))
    rollouts = next(peak for peak in memory.peaks(half, first=True) if peak.stage == "rollouts")
    assert rollouts.gpu["kv"] == rollouts.parts["kv"] == 16 * 256 * 128
    assert "compute" not in rollouts.gpu or rollouts.gpu["compute"] == 0


def test_the_real_models_worker_holds_what_is_reckoned(smollm2, tmp_path):
    """A hundred million weights, and 0.75 GB of keys and values: here the libraries are the least."""
    source = gguf_file.read(smollm2)
    engine = EngineSettings(slots=32, context=1024, threads=2, parked=0, gpu_layers=0)

    async def peak() -> int:
        async with open_sampler(smollm2, engine, Sampling(1.0), tmp_path / "log") as sampler:
            await asyncio.gather(*sampler.extend(Node(None, [1] * 8, (0,)), 32, until="end", limit=8))
            return (await sampler.drain()).peak

    parts = memory.worker(Shape.of(source), source, engine, quantized_bytes(source, "source"), rows=32)
    assert parts["libraries"] < 0.2 * sum(parts.values()), "or this shows nothing"
    assert asyncio.run(peak()) == pytest.approx(sum(parts.values()), rel=0.25)
