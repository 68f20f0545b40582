"""A short measurement of the learner on this machine, before there is a model that it could load.

What stands in is a model of random weights with the same widths, heads and vocabulary and two layers. Their time and
that of the head are measured apart, and the layers' is taken as often as the model has them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genius_lite.hardware import Device
from genius_lite.planning.learner import Training
from genius_lite.planning.rates import Learn
from genius_lite.planning.shape import Shape
from genius_lite.recipe import Learner
from genius_lite.weights.gguf_file import GGUF

_LAYERS = 2
_REPEATS = 2  # of each; the shorter time counts
_PROMPT, _BRANCHES = 64, 4  # tokens that responses share; responses of a tree


def measure_learner(source: GGUF, shape: Shape, cfg: Learner, training: Training, device: Device) -> Learn:
    """Load, score and differentiate a pack of about as many tokens as the run's."""
    from genius_lite.learner.model import enable_gradient_checkpointing, load_policy

    with tempfile.TemporaryDirectory(prefix="genius-lite-") as folder:
        _write_stand_in(source, shape, Path(folder))
        anything = cfg.model_copy(update={"targets": "auto"})  # the recipe's may be names of another family
        began = time.perf_counter()
        policy = load_policy(Path(folder), None, anything, device, training.precision, 0)
        loading = time.perf_counter() - began
        if training.checkpointing:
            enable_gradient_checkpointing(policy)
        inputs = _pack(training.tokens, shape.vocabulary)
        tokens = inputs.tokens_BT.size
        head_forward, head_update = _head_seconds(policy, inputs, device)
        forward = _least(lambda: _forward(policy, inputs))
        policy.train()
        update = _least(lambda: _update(policy, inputs))
    layers = shape.layers / _LAYERS
    return Learn(
        load=loading * shape.parameters / (shape.tables + shape.matrices / layers),
        forward=(max(0.0, forward - head_forward) * layers + head_forward) / tokens,
        update=(max(0.0, update - head_update) * layers + head_update) / tokens,
    )


def _write_stand_in(source: GGUF, shape: Shape, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def count(name: str, default: int) -> int:
        return source.count(f"{source.architecture}.{name}") or default

    heads = count("attention.head_count", max(1, shape.width // 64))
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=_LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=count("attention.head_count_kv", heads),
        head_dim=count("attention.key_length", shape.width // heads),
        tie_word_embeddings=shape.tied,
        dtype=torch.float16,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model = model.half().to_empty(device="cpu")
    model.tie_weights()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            parameter.data.fill_(1.0) if "norm" in name else parameter.data.uniform_(-0.05, 0.05)
    model.save_pretrained(folder)


def _pack(tokens: int, vocabulary: int) -> Any:
    """A tree of responses to one prompt, with about so many tokens."""
    import numpy as np

    from genius_lite.learner.packing import Response, trees

    rng = np.random.default_rng(0)
    each = max(1, (tokens - _PROMPT) // _BRANCHES)
    prompt = rng.integers(vocabulary, size=_PROMPT).tolist()
    responses: list[Response] = [(prompt, rng.integers(vocabulary, size=each).tolist()) for _ in range(_BRANCHES)]
    return trees([responses])


def _least(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _forward(policy: Any, inputs: Any) -> None:
    import torch

    from genius_lite.learner.model import response_logps

    with torch.no_grad():
        response_logps(policy, inputs).sum().item()


def _update(policy: Any, inputs: Any) -> None:
    from genius_lite.learner.model import response_logps

    response_logps(policy, inputs).sum().backward()
    next(policy.parameters()).sum().item()  # a GPU is not done before something is asked of it


def _head_seconds(policy: Any, inputs: Any, device: Device) -> tuple[float, float]:
    """Of the output layer alone: forward, and forward and backward."""
    import torch

    from genius_lite.learner.head import Head, token_logps

    head = Head.of(policy.get_base_model())
    tokens_S = torch.from_numpy(inputs.tokens_BT.reshape(-1)[inputs.targets_S]).to(device)
    hidden_SD = torch.zeros(len(tokens_S), head.width, device=device, requires_grad=True)

    def forward() -> None:
        with torch.no_grad():
            token_logps(head, hidden_SD, tokens_S).sum().item()

    def update() -> None:
        token_logps(head, hidden_SD, tokens_S).sum().backward()

    return _least(forward), _least(update)
