"""Do learner and sampler speak of the same model? Both score the same responses, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genius_lite.errors import UserError
from genius_lite.hardware.device import Precision
from genius_lite.learner.model import logps_of
from genius_lite.learner.packing import rows
from genius_lite.learner.process_group import peer_errors
from genius_lite.recipe import Learner

# Of a model that is imported correctly. Measured with SmolLM2-135M: bf16 0.02, beside the sampler's own arithmetic with
# Q4 weights 0.04 to 0.07, NF4 0.42.
_LIMITS: dict[Precision, float] = {"fp32": 0.15, "bf16": 0.15, "nf4": 0.6}
_ROUNDED = 1.0  # where the sampler has a file of fewer bits than the learner


@dataclass(frozen=True)
class Sample:
    """A sampled response and the sampler's log-probabilities of its tokens, nats."""

    prompt: list[int]
    response: list[int]
    logprobs: list[float]


def logprob_mismatch(policy: Any, samples: list[Sample]) -> float:
    """Return the mean absolute difference of a token's log-probability between learner and sampler, nats."""
    differences = []
    with torch.no_grad(), peer_errors():
        for sample in samples:
            logps_S = logps_of(policy, rows([(sample.prompt, sample.response)])).cpu().numpy()
            differences.append(np.abs(logps_S - np.array(sample.logprobs)))
    return float(np.concatenate(differences).mean())


def mismatch_limit(cfg: Learner, precision: Precision, same_weights: bool) -> float:
    """Resolve `learner.parity_limit`, nats a token.

    Unless the sampler's file holds the `same_weights` as the learner, its rounding is part of the disagreement.
    """
    if cfg.parity_limit != "auto":
        return cfg.parity_limit
    return _LIMITS[precision] if same_weights else _ROUNDED


def check(nats: float, limit: float, precision: Precision) -> str | None:
    """Stop where the two models are too far apart for one to learn from the other.

    Returns:
        A word about it from a third of the limit on.

    Raises:
        UserError: the disagreement is over the limit.
    """
    if nats <= limit / 3:
        return None
    if nats <= limit:
        apart = f"learner and sampler differ by {nats:.3f} nats a token"
        return f"{apart}; the run would stop at {limit:g}, learner.parity_limit"
    # NaN comes here too.
    finer = "set learner.precision: bf16, or " if precision == "nf4" else ""
    raise UserError(
        f"the learner and the sampler disagree by {nats:.3f} nats a token, more than learner.parity_limit "
        f"({limit:g}): {finer}sample from a larger quantization type, or with sampler.kv_type: F16; if neither "
        "helps, this model is not imported correctly"
    )
