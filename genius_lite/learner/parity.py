"""Do learner and sampler speak of the same model? Both score the same responses, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genius_lite.errors import UserError
from genius_lite.learner.model import logps_of
from genius_lite.learner.packing import rows
from genius_lite.learner.team import reaching_the_others


@dataclass(frozen=True)
class Sample:
    """A sampled response and the sampler's log-probabilities of its tokens, nats."""

    prompt: list[int]
    response: list[int]
    logprobs: list[float]


def disagreement(policy: Any, samples: list[Sample]) -> float:
    """Mean absolute difference of a token's log-probability between the learner and the sampler, nats."""
    differences = []
    with torch.no_grad(), reaching_the_others():
        for sample in samples:
            logps_S = logps_of(policy, rows([(sample.prompt, sample.response)])).cpu().numpy()
            differences.append(np.abs(logps_S - np.array(sample.logprobs)))
    return float(np.concatenate(differences).mean())


def check(nats: float, limit: float, precision: str) -> None:
    """Stop where the two models are too far apart for one to learn from the other.

    Raises:
        UserError: the disagreement is over the limit.
    """
    if not nats <= limit:  # NaN is over it too
        finer = "set learner.precision: bf16, or " if precision == "nf4" else ""
        raise UserError(
            f"the learner and the sampler disagree by {nats:.3f} nats a token, more than learner.parity_limit "
            f"({limit:g}): {finer}sample from a larger quantization type; if neither helps, this model is not imported "
            "correctly"
        )
