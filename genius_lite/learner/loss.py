"""Advantage-calibrated optimization (ACO): Genius, arXiv 2504.08672, Eq. 10 to 12.

    z    = beta * [ log pi(T_w|x)/ref(T_w|x)  -  w * log pi(T_l|x)/ref(T_l|x) ]
    w    = min( exp(-(A_l - A_w) / alpha), 1 )
    loss = -log sigmoid(z)

Log-probabilities are summed over the response. w is below 1 only where the rejected step gained more advantage
than the chosen one: the rejected response is then pushed down less. It carries no gradient, so

    d loss / d log pi(T_w|x) = -beta     * sigmoid(-z)
    d loss / d log pi(T_l|x) =  beta * w * sigmoid(-z)                                      (Eq. 13 to 16)

alpha -> infinity gives w = 1, which is DPO (Rafailov et al., arXiv 2305.18290).

Departure, on request only: the authors' released code takes max(1, exp(..)), which never relaxes
(`calibration="floor"`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.functional import logsigmoid


def calibration_weight(
    chosen_advantage_B: torch.Tensor,
    rejected_advantage_B: torch.Tensor,
    alpha: float,
    calibration: Literal["cap", "floor"] = "cap",
) -> torch.Tensor:
    """w of Eq. 11, shape (B,). Advantages and alpha are in nats per token; alpha may be infinite."""
    raw_B = torch.exp(-(rejected_advantage_B - chosen_advantage_B) / alpha)
    return raw_B.clamp(max=1.0) if calibration == "cap" else raw_B.clamp(min=1.0)


def margin(
    chosen_logps_B: torch.Tensor,
    rejected_logps_B: torch.Tensor,
    chosen_ref_logps_B: torch.Tensor,
    rejected_ref_logps_B: torch.Tensor,
    weight_B: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The bracket of Eq. 10 in nats, shape (B,); with weight 1 it is the preference margin that was learned."""
    chosen_B = chosen_logps_B - chosen_ref_logps_B
    rejected_B = rejected_logps_B - rejected_ref_logps_B
    return chosen_B - weight_B * rejected_B


def aco_loss(margin_B: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid(beta * margin) of each pair (Eq. 12), shape (B,), in nats."""
    return -logsigmoid(beta * margin_B)
