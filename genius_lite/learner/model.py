"""The learner's model: frozen weights in the chosen precision, the adapter on top, and what it says of responses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import modeling_utils

from genius_lite.hardware.device import Device, Precision, compute_in_bf16, keep_layout
from genius_lite.hardware.system import cores
from genius_lite.learner.attention import tree_mask
from genius_lite.learner.head import Head, Int8Embedding, matrix_of, require_known, token_logps
from genius_lite.learner.layers import keep_less
from genius_lite.learner.packing import Inputs, Response, rows, trees
from genius_lite.learner.rounding import round_once, widened
from genius_lite.learner.targets import target_modules
from genius_lite.recipe import Learner

_TREE_NATS = 0.02  # that a token of a tree may differ from the same one alone, in fp32


def load_policy(
    hf_checkpoint: Path,
    adapter: Path | None,
    cfg: Learner,
    device: Device,
    precision: Precision,
    seed: int,
    at: Device | None = None,
    room: int = 0,
) -> Any:
    """Load a peft model: the checkpoint frozen in `precision`, and a trainable adapter.

    Args:
        adapter: the adapter to go on from; None begins a new one, whose B is zero, so that the policy is the
            base model at first.
        seed: of the new adapter's A.
        at, room: see `load_base`.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    base = load_base(hf_checkpoint, device, precision, at, room)
    if adapter:
        return _prepared(PeftModel.from_pretrained(base, adapter, is_trainable=True))
    lora = LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=0.0,
        target_modules=target_modules(base, cfg.targets),
        task_type="CAUSAL_LM",
    )
    # peft's initializers know only torch's global generator. It is put back after; of the GPUs only on the current one:
    # on every other it would take memory, which another process of a group may need.
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else None):
        torch.manual_seed(seed)
        return _prepared(get_peft_model(base, lora))


def load_base(
    hf_checkpoint: Path, device: Device, precision: Precision, at: Device | None = None, room: int = 0
) -> Any:
    """Load the checkpoint as a transformers model in `precision`, frozen.

    NF4 is for the matrices between embeddings and head. Those two become an `Int8Embedding`, unless the family has
    layers of its own kind there: then they keep 16 bits.

    Args:
        at: where it is put, if not on the device that it is for.
        room: tokens that a branch of the sampler has room for.

    Raises:
        UserError: how it makes its logits is not known here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())  # a container's quota, of which torch knows nothing, stops more of them together
    if device == "cuda":
        # torch 2.11 to 2.13 prefer it on Hopper and newer, and with a mask of 128 n + 64 tokens its backward pass gives
        # NaN where a head's scores are all far below zero, as some of Qwen2.5's are (pytorch issue 196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    in_bf16 = compute_in_bf16(device) if precision == "nf4" else precision == "bf16"
    loaded = compute = torch.bfloat16 if in_bf16 else torch.float32
    quantization = None
    if precision == "nf4":
        # 16 bits while loading; what stays unquantized and is small is raised to the computing type below.
        loaded = torch.bfloat16 if in_bf16 else torch.float16
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    config = AutoConfig.from_pretrained(hf_checkpoint, trust_remote_code=False)
    _choose_table(config, room)
    with _read_not_mapped():
        base = AutoModelForCausalLM.from_pretrained(
            hf_checkpoint,
            config=config,
            trust_remote_code=False,
            dtype=loaded,
            quantization_config=quantization,
            device_map={"": at or device},
        )
    if precision == "nf4":
        for module in base.modules():
            keep_layout(module)
        _shrink_tables(base, compute)
        for parameter in base.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(compute)
    base.requires_grad_(False)
    base.config.use_cache = False
    require_known(base)
    return base


@contextmanager
def _read_not_mapped() -> Iterator[None]:
    """Have transformers read a checkpoint tensor by tensor, as it does by itself on Windows.

    Elsewhere it maps the file. What was copied from it, to another type, stays in memory beside the copies until the
    last one is made: all weights twice. It opens checkpoints nowhere else, so that all families load as ever.
    """
    before = modeling_utils.safe_open  # pyright: ignore[reportPrivateImportUsage]

    def read(file: Any, **options: Any) -> Any:
        return before(file, **{**options, "backend": "pread"})

    modeling_utils.safe_open = read  # pyright: ignore
    try:
        yield
    finally:
        modeling_utils.safe_open = before  # pyright: ignore[reportPrivateImportUsage]


def _choose_table(config: Any, room: int) -> None:
    """Scale rotations as llama.cpp does: by the room of a branch, not by the longest text of a batch."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope" and room > rope["original_max_position_embeddings"]:
        rope["short_factor"] = rope["long_factor"]


def learn(policy: Any) -> None:
    """Put a policy into training mode, which switches checkpointing on; but nothing draws at random in it.

    Routers of some experts do (PhiMoE's, DBRX's), and then a pair's reference is of another model.
    """
    policy.train()
    for module in policy.modules():
        if not hasattr(module, "gradient_checkpointing"):
            module.training = False


def weight_bytes(policy: Any) -> int:
    """Return the memory of all weights here, the adapter's not counted; shared ones once, of divided ones this part."""
    tensors = [t for n, t in [*policy.named_parameters(), *policy.named_buffers()] if "lora_" not in n]
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
    states = [m.quant_state for m in policy.modules() if getattr(m, "quant_state", None)]
    return sum(storages.values()) + sum(state.absmax.nbytes + state.code.nbytes for state in states)


def _prepared(policy: Any) -> Any:
    """See that nothing is dropped by chance while it learns, and what it adds is not rounded away."""
    for module in policy.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and "dropout" in name:  # of layers that `learn` leaves in training mode
                setattr(module, name, 0.0)
    round_once(policy)
    keep_less(policy.get_base_model())
    return policy


def _shrink_tables(base: Any, compute: torch.dtype) -> None:
    """Replace plain embeddings and a plain head by 8-bit tables; one table where they are tied."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = embeddings.weight is head.weight
    if type(embeddings) is not nn.Embedding or type(head) is not nn.Linear or head.bias is not None:
        return
    table = Int8Embedding(embeddings.weight.data, compute)
    base.set_input_embeddings(table)
    base.set_output_embeddings(table if tied else Int8Embedding(head.weight.data, compute))


def logps_of(policy: Any, inputs: Inputs, in_fp32: bool = False) -> torch.Tensor:
    """Return the log-probability of each counted token, nats, (S,), differentiable. The head runs nowhere else.

    `in_fp32` computes in fp32 with the same weights, whatever they are in; without gradients.
    """
    base = policy.get_base_model()
    device, dtype = base.device, torch.float32 if in_fp32 else compute_dtype(base)
    end_BT = torch.from_numpy(inputs.end_BT).to(device)
    # Of four axes it is taken as it is, of two as the marks of padding.
    mask = tree_mask(end_BT, inputs.trees, dtype) if inputs.trees else (end_BT > 0).long()
    # The adapter's fp32 matrices are rounded for each pass, which is little beside casting what goes through them.
    with (
        widened(base) if in_fp32 else nullcontext(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        hidden_BTD = base.get_decoder()(
            input_ids=torch.from_numpy(inputs.tokens_BT).to(device),
            attention_mask=mask,
            position_ids=torch.from_numpy(inputs.depth_BT).to(device),
            use_cache=False,
        ).last_hidden_state
    parents_S = torch.from_numpy(inputs.parents_S).to(device)
    tokens_S = torch.from_numpy(inputs.tokens_BT.reshape(-1)[inputs.targets_S]).to(device)
    return token_logps(Head.of(base), hidden_BTD.flatten(0, 1)[parents_S], tokens_S)


def response_logps(policy: Any, inputs: Inputs, in_fp32: bool = False) -> torch.Tensor:
    """Return the summed log-probability of each response, nats, (responses,), differentiable; see `logps_of`."""
    logps_S = logps_of(policy, inputs, in_fp32)
    count, device = len(inputs.responses), logps_S.device
    owners = torch.from_numpy(np.repeat(np.arange(count), [len(indices) for indices in inputs.responses]))
    members = torch.from_numpy(np.concatenate(inputs.responses))
    return torch.zeros(count, device=device).index_add(0, owners.to(device), logps_S[members.to(device)])


def takes_trees(policy: Any, longest: int) -> bool:
    """Try on two trees side by side whether the model gives each token what it gives it alone.

    In fp32, where rounding leaves no room for a little that leaks from one branch or tree to another. Where
    the longest response and its prompt, `longest` tokens, go beyond a sliding window, the tree's mask would be wrong.
    """
    config = policy.get_base_model().config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window and longest >= window:
        return False
    # Ordinary tokens: special ones, which often come first, drive activations far out.
    probe = [_branches(stem=100), _branches(stem=110)]
    responses = [response for tree in probe for response in tree]
    together, apart = trees(probe), rows(responses)
    with torch.no_grad():
        try:
            ours_S = logps_of(policy, together, in_fp32=True)
        except (ValueError, TypeError, RuntimeError, IndexError):
            return False  # models refuse a mask of four axes in ways of their own
        alone_S = logps_of(policy, apart, in_fp32=True)
    ours, alone = (
        torch.cat([logps_S[torch.from_numpy(places)] for places in inputs.responses])
        for logps_S, inputs in ((ours_S.cpu(), together), (alone_S.cpu(), apart))
    )
    return bool(torch.allclose(ours, alone, rtol=0.0, atol=_TREE_NATS))


def _branches(stem: int) -> list[Response]:
    """Make three responses of 24 tokens to a prompt of 16; two of them part only half way."""
    prompt = [stem + 7 * i % 23 for i in range(16)]
    first, second, other = ([stem + (k * i + k) % 29 for i in range(24)] for k in (3, 5, 8))
    return [(prompt, first), (prompt, first[:12] + second[:12]), (prompt, other)]


def compute_dtype(base: Any) -> torch.dtype:
    """Return what a transformers model computes in."""
    return matrix_of(base.get_input_embeddings()).dtype
