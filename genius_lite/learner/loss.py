"""Losses over preference pairs; ACO is the method's own (Genius, arXiv 2504.08672, Eq. 10 to 12).

    z    = beta * [ log pi(T_w|x)/ref(T_w|x)  -  w * log pi(T_l|x)/ref(T_l|x) ]
    w    = min( exp(-(A_l - A_w) / alpha), 1 )
    loss = -log sigmoid(z)

Log-probabilities are summed over the response. w is below 1 only where the rejected step gained more advantage
than the chosen one: the rejected response is then pushed down less. It carries no gradient, and is
`PreferencePair.calibration_weight`, so

    d loss / d log pi(T_w|x) = -beta     * sigmoid(-z)
    d loss / d log pi(T_l|x) =  beta * w * sigmoid(-z)                                      (Eq. 13 to 16)

alpha -> infinity gives w = 1, which is DPO. The others are those of the paper's Table 4, on the same tensors.

beta, and SimPO's gamma, are `Learner.strength` and `Learner.target`: what is written, or what suits the loss.

Departures, on request only: the authors' released code takes max(1, exp(..)), which never relaxes
(`calibration: floor`); `length_normalize` divides every log-probability by its response's length first;
`sft_weight` adds that share of the SFT loss. Where votes weigh (`pairs.weigh`), the loss of a pair, that of SFT too, is
multiplied by the lead of the chosen answer (as in ScPO, Prasad et al., arXiv 2411.04109).

SFT looks at the chosen response alone. Of a pair whose rejected response is not computed (it is empty) the margin is
what the chosen one gained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import logsigmoid

from genius_lite.learner.packing import Pack
from genius_lite.recipe import Learner, Loss


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probabilities of B pairs' responses, nats; their lengths in tokens; w of Eq. 11; leads. All (B,).

    A response that is not computed has length 0, and log-probability 0 in policy and base model.
    """

    chosen_B: torch.Tensor
    rejected_B: torch.Tensor
    chosen_ref_B: torch.Tensor
    rejected_ref_B: torch.Tensor
    chosen_length_B: torch.Tensor
    rejected_length_B: torch.Tensor
    weight_B: torch.Tensor
    lead_B: torch.Tensor

    @property
    def chosen_gain_B(self) -> torch.Tensor:
        """log pi(T_w|x) / ref(T_w|x)."""
        return self.chosen_B - self.chosen_ref_B

    @property
    def rejected_gain_B(self) -> torch.Tensor:
        """log pi(T_l|x) / ref(T_l|x)."""
        return self.rejected_B - self.rejected_ref_B

    @property
    def margin_B(self) -> torch.Tensor:
        """The preference margin that was learned, nats."""
        return self.chosen_gain_B - self.rejected_gain_B

    def per_token(self) -> PairLogps:
        """The same in nats per token."""
        return replace(
            self,
            chosen_B=self.chosen_B / self.chosen_length_B,
            rejected_B=self.rejected_B / self.rejected_length_B,
            chosen_ref_B=self.chosen_ref_B / self.chosen_length_B,
            rejected_ref_B=self.rejected_ref_B / self.rejected_length_B,
            chosen_length_B=torch.ones_like(self.chosen_length_B),
            rejected_length_B=torch.ones_like(self.rejected_length_B),
        )


def aco(p: PairLogps, cfg: Learner) -> torch.Tensor:
    """Eq. 12."""
    return -logsigmoid(cfg.strength * (p.chosen_gain_B - p.weight_B * p.rejected_gain_B))


def dpo(p: PairLogps, cfg: Learner) -> torch.Tensor:
    """Rafailov et al., arXiv 2305.18290, Eq. 7."""
    return -logsigmoid(cfg.strength * p.margin_B)


def ipo(p: PairLogps, cfg: Learner) -> torch.Tensor:
    """Azar et al., arXiv 2310.12036, Eq. 17, beta being their tau: the margin is drawn to 1 / (2 beta), nats.

    Their tau weighs the same divergence from the reference that DPO's beta does, so that one number serves for both.
    """
    return (p.margin_B - 1 / (2 * cfg.strength)) ** 2


def simpo(p: PairLogps, cfg: Learner) -> torch.Tensor:
    """Meng et al., arXiv 2405.14734, Eq. 6: mean log-probabilities, a target margin, no reference."""
    mean = p.per_token()
    return -logsigmoid(cfg.strength * (mean.chosen_B - mean.rejected_B) - cfg.target)


def ropo(p: PairLogps, cfg: Learner) -> torch.Tensor:
    """Liang et al., arXiv 2404.04102: DPO and the bounded sigmoid(-u), with u DPO's argument.

    Their gradient in u is sigmoid(-u) * (1 + a * sigmoid(u)) * 4a / (1 + a)^2, which is 1 at its largest and falls for
    pairs that the policy contradicts most: those are taken for noise.
    """
    a, u_B = cfg.ropo_alpha, cfg.strength * p.margin_B
    return 4 * a / (1 + a) ** 2 * (a * torch.sigmoid(-u_B) - logsigmoid(u_B))


def sft(p: PairLogps, cfg: Learner) -> torch.Tensor:
    """Negative log-likelihood of the chosen response, nats per token."""
    return -p.chosen_B / p.chosen_length_B


LOSSES: dict[Loss, Callable[[PairLogps, Learner], torch.Tensor]] = {
    "aco": aco,
    "dpo": dpo,
    "ipo": ipo,
    "simpo": simpo,
    "ropo": ropo,
    "sft": sft,
}


def pair_loss(p: PairLogps, cfg: Learner) -> torch.Tensor:
    """The recipe's loss of each pair, shape (B,)."""
    loss_B = LOSSES[cfg.loss](p.per_token() if cfg.length_normalize else p, cfg)
    return p.lead_B * (loss_B + cfg.sft_weight * sft(p, cfg) if cfg.sft_weight else loss_B)


def pair_logps(pack: Pack, logps_B2: torch.Tensor, reference_B2: list[list[float]], cfg: Learner) -> PairLogps:
    """The tensors that a loss takes, of a pack's pairs; both log-probabilities are (chosen, rejected)."""
    device = logps_B2.device

    def column(values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    reference, rejected_length_B = column(reference_B2), column([len(p.rejected_tokens) for p in pack.pairs])
    return PairLogps(
        chosen_B=logps_B2[:, 0],
        rejected_B=logps_B2[:, 1],
        chosen_ref_B=reference[:, 0],
        rejected_ref_B=reference[:, 1] * (rejected_length_B > 0),
        chosen_length_B=column([len(p.chosen_tokens) for p in pack.pairs]),
        rejected_length_B=rejected_length_B,
        weight_B=column([p.calibration_weight(cfg.alpha, cfg.calibration) for p in pack.pairs]),
        lead_B=column([p.lead for p in pack.pairs]),
    )
