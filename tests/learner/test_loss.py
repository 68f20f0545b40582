from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from torch.nn.functional import logsigmoid

from genius_lite.learner.loss import (
    LOSSES,
    PairLogps,
    aco,
    dpo,
    ipo,
    pair_logps,
    pair_loss,
    ropo,
    sft,
    simpo,
)
from genius_lite.learner.packing import by_query, packs
from genius_lite.recipe import READ_BY_LOSS, Learner, Loss
from genius_lite.records import PreferencePair

F64 = torch.float64
# One pair: log pi(w) = -10, ref -12, log pi(l) = -20, ref -19: gains +2 and -1; 5 and 8 tokens.
VALUES = {"chosen_B": -10.0, "rejected_B": -20.0, "chosen_ref_B": -12.0, "rejected_ref_B": -19.0}
LENGTHS = {"chosen_length_B": 5.0, "rejected_length_B": 8.0}


def pair(weight: float = 1.0, **changed) -> PairLogps:
    values = VALUES | LENGTHS | {"weight_B": weight, "lead_B": 1.0}
    return PairLogps(**{k: torch.tensor([v], dtype=F64) for k, v in values.items()} | changed)


def weight(chosen: float, rejected: float, alpha: float, calibration="cap") -> float:
    pair = PreferencePair("q", 0, [1], [2], [3], chosen, rejected, 0.0, 0.0, True, True)
    return pair.calibration_weight(alpha, calibration)


def test_calibration_by_hand():
    # exp(-(A_l - A_w) / alpha): A_l - A_w = 0.5 and -0.5
    assert weight(0.1, 0.6, 1.0) == pytest.approx(math.exp(-0.5))
    assert weight(0.1, 0.6, 2.0) == pytest.approx(math.exp(-0.25))
    assert weight(0.6, 0.1, 1.0) == 1.0
    assert weight(0.1, 0.6, 1.0, "floor") == 1.0
    assert weight(0.6, 0.1, 1.0, "floor") == pytest.approx(math.exp(0.5))


def test_a_weight_beyond_fp32_leaves_the_loss_a_number():
    raised = torch.tensor([weight(0.9, 0.0, 0.01, "floor")])
    nothing = torch.zeros(1)
    columns = {name: nothing for name in VALUES} | {name: torch.ones(1) for name in LENGTHS}
    found = aco(PairLogps(**columns, weight_B=raised, lead_B=torch.ones(1)), Learner())
    assert found.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("w", [math.exp(-0.5), 1.0, math.exp(0.5)])
def test_aco_by_hand(w):
    z = 0.1 * (2.0 - w * -1.0)
    assert aco(pair(w), Learner(beta=0.1)).item() == pytest.approx(math.log(1 + math.exp(-z)), rel=1e-12)


def test_the_others_by_hand():
    cfg = Learner(beta=0.3, simpo_gamma=0.5, ropo_alpha=14)
    sigmoid = 1 / (1 + math.exp(-0.3 * 3))
    assert dpo(pair(), cfg).item() == pytest.approx(-math.log(sigmoid))
    assert ipo(pair(), cfg).item() == pytest.approx((3 - 1 / 0.6) ** 2)
    assert simpo(pair(), cfg).item() == pytest.approx(math.log(1 + math.exp(-(0.3 * (-2 + 2.5) - 0.5))))
    assert ropo(pair(), cfg).item() == pytest.approx(56 / 225 * (14 * (1 - sigmoid) - math.log(sigmoid)))
    assert sft(pair(), cfg).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("written", "strength", "target"),
    [
        ({}, 0.1, 0.04),
        ({"loss": "ipo"}, 0.1, 0.04),
        ({"loss": "simpo"}, 2.5, 1.0),
        ({"loss": "simpo", "beta": 10.0}, 10.0, 4.0),
        ({"loss": "simpo", "beta": 2.0, "simpo_gamma": 0.5}, 2.0, 0.5),
        ({"length_normalize": True}, 2.5, 1.0),
        ({"length_normalize": True, "beta": 20.0}, 20.0, 8.0),
    ],
)
def test_beta_and_gamma_go_by_the_loss(written, strength, target):
    cfg = Learner(**written)
    assert (cfg.strength, cfg.target) == pytest.approx((strength, target))


def test_simpo_saturates_at_its_own_settings():
    """A nat a token beyond its target of 0.4 the weight of a pair has fallen to a tenth; at -0.4 it is nearly whole."""
    cfg = Learner(loss="simpo")

    def slope(margin: float) -> float:
        ahead = torch.tensor([5 * (-2.5 + margin)], dtype=F64, requires_grad=True)  # the rejected one has -2.5 a token
        pair_loss(pair(chosen_B=ahead), cfg).sum().backward()
        assert ahead.grad is not None
        return -ahead.grad.item() * 5 / cfg.strength

    assert slope(1.4) < 0.1
    assert slope(-0.4) > 0.85


def test_ipos_target_is_five_nats_or_a_fifth_of_one_a_token():
    assert ipo(pair(chosen_B=torch.tensor([-8.0], dtype=F64)), Learner(loss="ipo")).item() == pytest.approx(0)
    per_token = pair(**{name: torch.zeros(1, dtype=F64) for name in VALUES})
    gained = replace(per_token, chosen_B=torch.tensor([0.2 * 5], dtype=F64))
    assert pair_loss(gained, Learner(loss="ipo", length_normalize=True)).item() == pytest.approx(0)


def test_ropos_gradient_is_one_at_its_largest():
    margins = torch.linspace(-20, 20, 2001, dtype=F64).requires_grad_()
    ropo(replace(pair(), chosen_B=margins - 10), Learner(beta=1.0)).sum().backward()
    assert margins.grad is not None
    assert margins.grad.abs().max().item() == pytest.approx(1, abs=1e-3)
    assert margins.grad.abs()[0] < 0.3  # a pair that the policy contradicts strongly is taken for noise


@pytest.mark.parametrize("kind", sorted(set(LOSSES) - {"sft"}))
def test_length_normalization_and_sft_term(kind):
    cfg = Learner(loss=kind, beta=0.3)
    per_token = pair_loss(pair(), cfg.model_copy(update={"length_normalize": True}))
    by_hand = {"chosen_B": -2.0, "rejected_B": -2.5, "chosen_ref_B": -2.4, "rejected_ref_B": -19 / 8}
    ones = {"chosen_length_B": 1.0, "rejected_length_B": 1.0}
    expected = pair(**{k: torch.tensor([v], dtype=F64) for k, v in (by_hand | ones).items()})
    torch.testing.assert_close(per_token, LOSSES[kind](expected, cfg))
    with_sft = pair_loss(pair(), cfg.model_copy(update={"sft_weight": 0.5}))
    assert with_sft.item() == pytest.approx(pair_loss(pair(), cfg).item() + 0.5 * 2.0)


def test_infinite_alpha_is_dpo():
    rng = torch.Generator().manual_seed(0)
    columns = {f.name: torch.randn(64, generator=rng, dtype=F64) * 20 for f in fields(PairLogps)}
    advantages = torch.randn(64, 2, generator=rng, dtype=F64).tolist()
    for calibration in ("cap", "floor"):
        exact, nearly = (
            PairLogps(**columns | {"weight_B": torch.tensor([weight(a, b, alpha, calibration) for a, b in advantages])})
            for alpha in (math.inf, 1e9)
        )
        cfg = Learner(beta=0.1)
        by_hand = -logsigmoid(0.1 * exact.margin_B)
        assert (aco(exact, cfg) - by_hand).abs().max() < 1e-12
        assert (aco(nearly, cfg) - by_hand).abs().max() < 1e-6
        assert torch.equal(dpo(exact, cfg), by_hand)


def test_gradients_are_those_of_eq_15():
    cfg, w = Learner(beta=0.3), weight(0.1, 0.6, 1.0)
    z = 0.3 * (2.0 + w)
    expected = {"chosen_B": -0.3 / (1 + math.exp(z)), "rejected_B": 0.3 * w / (1 + math.exp(z))}
    for name, slope in expected.items():
        column = torch.tensor([VALUES[name]], dtype=F64, requires_grad=True)
        aco(pair(w, **{name: column}), cfg).sum().backward()
        assert column.grad is not None
        assert column.grad.item() == pytest.approx(slope, rel=1e-9)
        shifted = [aco(pair(w, **{name: column.detach() + shift}), cfg).item() for shift in (1e-5, -1e-5)]
        assert (shifted[0] - shifted[1]) / 2e-5 == pytest.approx(slope, rel=1e-7)


def test_a_gaining_negative_is_punished_less():
    slopes = []
    for rejected in (0.0, 0.5, 1.0):
        column = torch.tensor([-20.0], dtype=F64, requires_grad=True)
        aco(pair(weight(0.0, rejected, 1.0), rejected_B=column), Learner(beta=0.1)).sum().backward()
        assert column.grad is not None
        slopes.append(column.grad.item())
    assert slopes[0] > slopes[1] > slopes[2] > 0


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_extreme_margins_stay_finite(kind):
    for far in (-1e4, 1e4):
        p = PairLogps(**{f.name: torch.tensor([1.0]) for f in fields(PairLogps)} | {"chosen_B": torch.tensor([far])})
        assert torch.isfinite(pair_loss(p, Learner(loss=kind))).all()


def test_a_vote_weighs_the_whole_loss():
    cfg = Learner(beta=0.1, sft_weight=0.5)
    lead = torch.tensor([0.25], dtype=F64)
    assert pair_loss(pair(), cfg).item() == pytest.approx(math.log(1 + math.exp(-0.3)) + 0.5 * 2.0)
    assert pair_loss(pair(lead_B=lead), cfg).item() == pytest.approx(0.25 * pair_loss(pair(), cfg).item())


def test_the_losses_are_those_that_a_recipe_may_name():
    assert {*LOSSES} == {*get_args(Loss)}


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_loss_reads_the_keys_that_it_is_said_to(kind):
    changed = {"beta": 0.7, "length_normalize": True, "sft_weight": 0.5, "alpha": 3.0, "calibration": "floor"}
    changed |= {"simpo_gamma": 2.0, "ropo_alpha": 5.0}
    chosen = PreferencePair("q", 0, [1], [2, 3], [4], 0.1, 0.6, -0.5, -0.6, True, True)
    (pack,) = packs(by_query([chosen]), 100, 100)

    def loss(cfg: Learner) -> float:
        return pair_loss(pair_logps(pack, torch.tensor([[-1.0, -2.0]]), [[-1.5, -2.7]], cfg), cfg).item()

    plain = loss(Learner(loss=kind))
    read = {key for key, value in changed.items() if loss(Learner(loss=kind, **{key: value})) != pytest.approx(plain)}
    assert {*changed} == {key for keys in READ_BY_LOSS.values() for key in keys}
    assert read == {*READ_BY_LOSS[kind]}


def test_what_a_pair_says_reaches_its_loss():
    gained = PreferencePair("q", 0, [1], [2, 3], [4], 0.1, 0.6, -0.5, -0.6, True, True, lead=0.25)
    chosen_alone = PreferencePair("q", 1, [1], [2], [], 0.6, 0.1, -0.5, -0.6, True, True)
    (pack,) = packs(by_query([gained, chosen_alone]), 100, 100)
    logps, reference = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), [[-1.5, -2.5], [-3.5, -9.0]]
    cap, floor = (pair_logps(pack, logps, reference, Learner(alpha=2.0, calibration=c)) for c in ("cap", "floor"))
    # exp(-(A_l - A_w) / alpha): A_l - A_w is 0.5, and -0.5.
    assert cap.weight_B.tolist() == pytest.approx([math.exp(-0.25), 1.0])
    assert floor.weight_B.tolist() == pytest.approx([1.0, math.exp(0.25)])
    assert cap.lead_B.tolist() == [0.25, 1.0]
    assert (cap.chosen_length_B.tolist(), cap.rejected_length_B.tolist()) == ([2, 1], [1, 0])
    assert cap.margin_B.tolist() == pytest.approx([0.0, 0.5]), "of a response that is not computed the reference is 0"
