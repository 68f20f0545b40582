"""The output layer: log-probabilities of given tokens, with never more than a slice of the logits in memory.

Logits of a few hundred positions over 152K tokens are hundreds of megabytes, and a loss keeps several copies. Only one
number of each row is wanted, and its gradient, so the vocabulary is walked in slices (the idea of Cut Cross-Entropy,
Wijmans et al., arXiv 2411.09009), once for both.

Logits are summed up and kept in fp32 whatever the weights are in. Rounded to bf16, those of 16 to 32 nats lie 0.125
apart, and a preference that is learned moves them by less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genius_lite.errors import UserError
from genius_lite.learner.footprint import SLICE_BYTES
from genius_lite.learner.products import factors_in_bf16

_LIKE = 0.02  # of their size, that logits may be off: 16 bits make less of it, a factor or a bound more


class Int8Embedding(nn.Module):
    """A frozen matrix of token vectors (vocabulary, width) in 8 bits, each row scaled by its largest number.

    It is looked up as embeddings and multiplied as the head, in rows of `dtype`; finer than NF4, which the other
    matrices are in.
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype):
        super().__init__()
        self.shape, self.dtype = weight.shape, dtype
        self.levels_VD: torch.Tensor
        self.scale_V: torch.Tensor
        self.register_buffer("levels_VD", torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
        self.register_buffer("scale_V", torch.empty(len(weight), device=weight.device))
        # In parts: a large vocabulary in fp32 would be half a gigabyte for a moment.
        for start in range(0, len(weight), 8192):
            part = weight[start : start + 8192].float()
            scale = part.abs().amax(dim=1).clamp(min=1e-12) / 127
            self.levels_VD[start : start + 8192] = (part / scale[:, None]).round().to(torch.int8)
            self.scale_V[start : start + 8192] = scale

    def __getitem__(self, tokens: torch.Tensor | slice) -> torch.Tensor:
        """Return rows of these tokens, (..., width), as indexing a plain matrix does."""
        return (self.levels_VD[tokens] * self.scale_V[tokens][..., None]).to(self.dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return rows of these tokens, (..., width); of hidden states their logits, (..., vocabulary)."""
        if not tokens.is_floating_point():
            return self[tokens]
        starts = range(0, self.shape[0], 8192)
        return torch.cat([tokens @ self[start : start + 8192].T for start in starts], dim=-1)


def matrix_of(layer: Any) -> Any:
    """Return the matrix (vocabulary, width) of embeddings or a head: its weight, or itself if it is in 8 bits."""
    return layer if isinstance(layer, Int8Embedding) else layer.weight


@dataclass(frozen=True)
class Head:
    """The output layer of a model: `cap * tanh(scale * (hidden @ weight.T + bias) / cap)`, weights frozen.

    `matrix` is the weight, see `matrix_of`; Granite and Cohere scale, Gemma 2 caps.
    """

    matrix: Any
    bias: torch.Tensor | None
    scale: float = 1.0
    cap: float | None = None

    @staticmethod
    def of(base: Any) -> Head:
        """Return the head of a transformers causal model."""
        layer, config = base.get_output_embeddings(), base.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(matrix_of(layer), getattr(layer, "bias", None), scale, cap)

    def slices(self, hidden_SD: torch.Tensor) -> Iterator[tuple[int, int]]:
        """Return ranges of the vocabulary whose logits at these positions fit the memory allowed."""
        vocabulary, width = self.matrix.shape
        step = max(256, SLICE_BYTES[hidden_SD.device.type] // (4 * max(len(hidden_SD), width)))
        return ((start, min(start + step, vocabulary)) for start in range(0, vocabulary, step))

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return the slope of the bound at such logits; None where there is no bound."""
        return 1 - (logits / self.cap) ** 2 if self.cap else None

    def logits(self, hidden_SD: torch.Tensor, rows_CD: torch.Tensor, start: int) -> torch.Tensor:
        """Return fp32 logits of a slice, (positions, slice), whatever hidden states and rows are in."""
        narrow = hidden_SD.dtype == rows_CD.dtype != torch.float32
        if narrow and hidden_SD.is_cuda and torch.version.cuda:  # not on ROCm
            logits_SC = torch.mm(hidden_SD, rows_CD.T, out_dtype=torch.float32)
        else:
            logits_SC = hidden_SD.float() @ rows_CD.float().T
        if self.bias is not None:
            logits_SC += self.bias[start : start + len(rows_CD)]
        logits_SC *= self.scale
        return logits_SC.div_(self.cap).tanh_().mul_(self.cap) if self.cap else logits_SC


def require_known(base: Any) -> None:
    """Refuse a model that makes other logits of its hidden states than `Head` does; tried on three tokens.

    Raises:
        UserError: its output layer has a factor or a bound that is not known here.
    """
    tokens_1T = torch.tensor([[100, 101, 102]], device=base.device)
    with torch.no_grad():
        theirs_TV = base(input_ids=tokens_1T, use_cache=False).logits[0].float()
        hidden_TD = base.get_decoder()(input_ids=tokens_1T, use_cache=False).last_hidden_state[0]
        head = Head.of(base)
        parts = [head.logits(hidden_TD, head.matrix[i:j], i) for i, j in head.slices(hidden_TD)]
    apart = float((torch.cat(parts, dim=1) - theirs_TV).norm() / theirs_TV.norm())
    if not apart <= _LIKE:
        raise UserError(
            f"{type(base).__name__} makes its logits in a way that is not known here ({apart:.0%} off), so that its "
            "log-probabilities would be wrong; train another model"
        )


def token_logps(head: Head, hidden_SD: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each token at its position, nats, (S,); differentiable in `hidden_SD`."""
    wanted = hidden_SD.requires_grad and torch.is_grad_enabled()
    return _TokenLogps.apply(hidden_SD, tokens_S, head, wanted)  # pyright: ignore[reportReturnType]


def _walk(
    head: Head, hidden_SD: torch.Tensor, tokens_S: torch.Tensor, mean_SD: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Walk the vocabulary; the largest logit, the sum of exp(logit - largest), and the logits of the tokens, all (S,).

    To `mean_SD`, zeros, the rows are added, each times its exp(logit - largest) and the slope of the bound.
    """
    top_S = torch.full((len(hidden_SD),), -torch.inf, device=hidden_SD.device)
    sum_S, found_S = torch.zeros_like(top_S), torch.zeros_like(top_S)
    for start, stop in head.slices(hidden_SD):
        rows_CD = head.matrix[start:stop]
        if rows_CD.device.type == "cpu":
            rows_CD = rows_CD.float()  # once for both products
        logits_SC = head.logits(hidden_SD, rows_CD, start)
        here = ((tokens_S >= start) & (tokens_S < stop)).nonzero()[:, 0]
        found_S[here] = logits_SC[here, tokens_S[here] - start]
        larger_S = torch.maximum(top_S, logits_SC.amax(dim=1))
        slope_SC = head.slope(logits_SC) if mean_SD is not None else None
        weight_SC, scale_S = logits_SC.sub_(larger_S[:, None]).exp_(), (top_S - larger_S).exp_()
        sum_S = sum_S * scale_S + weight_SC.sum(dim=1)
        if mean_SD is not None:
            if slope_SC is not None:
                weight_SC *= slope_SC
            # Rounded with the weights' type: that makes a gradient a little noisier, and hides nothing from it.
            mean_SD.mul_(scale_S[:, None]).add_(weight_SC.to(rows_CD.dtype) @ rows_CD)
        top_S = larger_S
    return top_S, sum_S, found_S


class _TokenLogps(torch.autograd.Function):
    """The gradient of each log-probability is found along with it, as only a factor is unknown before.

        d logp(token) / d hidden = row(token) - sum of softmax * row

    The sum is taken slice by slice, as the normalizer is, to the largest logit so far; both are scaled down when a
    larger one is met.
    """

    @staticmethod
    def forward(ctx: Any, hidden_SD: torch.Tensor, tokens_S: torch.Tensor, head: Head, wanted: bool) -> torch.Tensor:
        mean_SD = torch.zeros(hidden_SD.shape, device=hidden_SD.device) if wanted else None
        given_SD = hidden_SD.float() if hidden_SD.device.type == "cpu" else hidden_SD
        with factors_in_bf16(hidden_SD.dtype == torch.bfloat16):
            top_S, sum_S, found_S = _walk(head, given_SD, tokens_S, mean_SD)
        if mean_SD is not None:
            slope_S, rows_SD = head.slope(found_S), head.matrix[tokens_S].float()
            gradient_SD = rows_SD if slope_S is None else rows_SD * slope_S[:, None]
            ctx.save_for_backward((gradient_SD - mean_SD.div_(sum_S[:, None])).mul_(head.scale).to(hidden_SD.dtype))
        return found_S - top_S - sum_S.log()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient_SD,) = ctx.saved_tensors
        return (gradient_SD * gradients[0][:, None]).to(gradient_SD.dtype), None, None, None
