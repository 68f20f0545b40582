"""The learner's model: frozen weights in the chosen precision, and the adapter on top."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from genius_lite.hardware import Device, Precision, compute_in_bf16
from genius_lite.learner.packing import Pack
from genius_lite.recipe import Learner

_HEAD_ROWS = 256  # rows of fp32 logits at once: 156 MB at 152K tokens of vocabulary


def load_policy(
    master: Path, adapter: Path | None, cfg: Learner, device: Device, precision: Precision, seed: int
) -> Any:
    """A peft model: the master frozen in `precision`, and a trainable adapter.

    Args:
        adapter: the adapter to go on from; None begins a new one, whose B is zero, so that the policy is the
            base model at first.
        seed: of the new adapter's A.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    base = load_base(master, device, precision)
    if adapter:
        return PeftModel.from_pretrained(base, adapter, is_trainable=True)
    lora = LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=0.0,
        target_modules=target_modules(base),
        task_type="CAUSAL_LM",
    )
    with _seeded(seed):
        return get_peft_model(base, lora)


def load_base(master: Path, device: Device, precision: Precision) -> Any:
    """The master as a transformers model in `precision`, frozen."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    compute = (
        torch.bfloat16 if precision == "bf16" or (precision == "nf4" and compute_in_bf16(device)) else torch.float32
    )
    options: dict[str, Any] = {"dtype": compute}
    if precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    base = AutoModelForCausalLM.from_pretrained(master, attn_implementation="sdpa", device_map={"": device}, **options)
    base.requires_grad_(False)
    base.config.use_cache = False
    return base


def target_modules(base: nn.Module) -> list[str]:
    """Full names of the linear layers between the embeddings and the head; those two are never adapted."""
    head = base.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return [n for n, m in base.named_modules() if isinstance(m, nn.Linear) and m is not head]


def response_logps(policy: Any, pack: Pack, device: Device) -> torch.Tensor:
    """Summed log-probability of each response in the pack, nats, shape (2 * pairs,), differentiable.

    The head runs only where a response token is predicted, in chunks whose logits are computed again on the
    way back instead of being kept.
    """
    base = policy.get_base_model()
    mask_TT = torch.from_numpy(pack.attention_TT()).to(device)
    hidden_TD = base.get_decoder()(
        input_ids=torch.tensor([pack.tokens_T], device=device),
        attention_mask=_additive(mask_TT, base.dtype),
        position_ids=torch.tensor([pack.depth_T], device=device),
        use_cache=False,
    ).last_hidden_state[0]
    targets_S = torch.from_numpy(pack.targets).to(device)
    parents_S = torch.tensor(pack.parent_T, device=device)[targets_S]
    tokens_S = torch.tensor(pack.tokens_T, device=device)[targets_S]
    head = base.get_output_embeddings()
    logps_S = torch.cat(
        [
            checkpoint(_token_logps, head, hidden_TD[rows], tokens, use_reentrant=False)
            for rows, tokens in zip(parents_S.split(_HEAD_ROWS), tokens_S.split(_HEAD_ROWS), strict=True)
        ]
    )
    logps_T = torch.zeros(len(pack.tokens_T), device=device).index_put((targets_S,), logps_S)
    return torch.stack([logps_T[torch.tensor(places, device=device)].sum() for places in pack.responses])


def _token_logps(head: nn.Module, hidden_SD: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    logits_SV = head(hidden_SD).float()
    return logits_SV.gather(1, tokens_S[:, None])[:, 0] - logits_SV.logsumexp(dim=1)


def _additive(mask_TT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where attention is allowed and the dtype's minimum elsewhere, shape (1, 1, T, T)."""
    bias_TT = torch.zeros(mask_TT.shape, dtype=dtype, device=mask_TT.device)
    return bias_TT.masked_fill(~mask_TT, torch.finfo(dtype).min)[None, None]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's initializers know only the global generator: seed it inside, put it back after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
