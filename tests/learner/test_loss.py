from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from genius_lite.learner.loss import aco_loss, calibration_weight, margin

# One pair: log pi(w) = -10, ref -12, log pi(l) = -20, ref -19: log-ratios +2 and -1.
COLUMNS = [torch.tensor([v], dtype=torch.float64) for v in (-10.0, -20.0, -12.0, -19.0)]
F64 = torch.float64


def weight(chosen: float, rejected: float, alpha: float, calibration="cap") -> float:
    a, b = torch.tensor([chosen], dtype=F64), torch.tensor([rejected], dtype=F64)
    return calibration_weight(a, b, alpha, calibration).item()


def test_calibration_by_hand():
    # exp(-(A_l - A_w) / alpha): A_l - A_w = 0.5 and -0.5
    assert weight(0.1, 0.6, 1.0) == pytest.approx(math.exp(-0.5))
    assert weight(0.1, 0.6, 2.0) == pytest.approx(math.exp(-0.25))
    assert weight(0.6, 0.1, 1.0) == 1.0
    assert weight(0.1, 0.6, 1.0, "floor") == 1.0
    assert weight(0.6, 0.1, 1.0, "floor") == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize(
    ("calibration", "chosen", "rejected", "w"),
    [("cap", 0.1, 0.6, math.exp(-0.5)), ("cap", 0.6, 0.1, 1.0), ("floor", 0.6, 0.1, math.exp(0.5))],
)
def test_loss_by_hand(calibration, chosen, rejected, w):
    z = 0.1 * (2.0 - w * -1.0)
    got = aco_loss(margin(*COLUMNS, weight(chosen, rejected, 1.0, calibration)), beta=0.1).item()
    assert got == pytest.approx(math.log(1 + math.exp(-z)), rel=1e-12)


def test_infinite_alpha_is_dpo():
    rng = torch.Generator().manual_seed(0)
    logps = [torch.randn(64, generator=rng, dtype=F64) * 20 for _ in range(4)]
    advantages = [torch.randn(64, generator=rng, dtype=F64) for _ in range(2)]
    chosen, rejected, ref_chosen, ref_rejected = logps
    dpo = -logsigmoid(0.1 * ((chosen - rejected) - (ref_chosen - ref_rejected)))
    for calibration in ("cap", "floor"):
        exact = aco_loss(margin(*logps, calibration_weight(*advantages, math.inf, calibration)), 0.1)
        nearly = aco_loss(margin(*logps, calibration_weight(*advantages, 1e9, calibration)), 0.1)
        assert (exact - dpo).abs().max() < 1e-12
        assert (nearly - dpo).abs().max() < 1e-6


def test_gradients_are_those_of_eq_15():
    beta, w = 0.3, weight(0.1, 0.6, 1.0)
    z = beta * margin(*COLUMNS, w).item()
    expected = {0: -beta / (1 + math.exp(z)), 1: beta * w / (1 + math.exp(z))}
    for place, slope in expected.items():

        def loss(shift, place=place):
            moved = [c + shift if i == place else c for i, c in enumerate(COLUMNS)]
            return aco_loss(margin(*moved, w), beta).item()

        assert (loss(1e-5) - loss(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-7)
        column = COLUMNS[place].clone().requires_grad_()
        moved = [column if i == place else c for i, c in enumerate(COLUMNS)]
        aco_loss(margin(*moved, w), beta).sum().backward()
        assert column.grad is not None
        assert column.grad.item() == pytest.approx(slope, rel=1e-9)


def test_a_gaining_negative_is_punished_less():
    slopes = []
    for rejected in (0.0, 0.5, 1.0):
        column = COLUMNS[1].clone().requires_grad_()
        aco_loss(margin(COLUMNS[0], column, *COLUMNS[2:], weight(0.0, rejected, 1.0)), 0.1).sum().backward()
        assert column.grad is not None
        slopes.append(column.grad.item())
    assert slopes[0] > slopes[1] > slopes[2] > 0


def test_extreme_margins_stay_finite():
    far = torch.tensor([-1e4, 1e4], dtype=torch.float32)
    assert torch.isfinite(aco_loss(far, 0.1)).all()
