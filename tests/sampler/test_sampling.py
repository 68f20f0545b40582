from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from genius_lite.recipe import Foresight
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.sampling import LogitsError, Rows, uniform

PLAIN = Sampling(1.0)


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def _draws(logits: list[float], sampling: Sampling, n: int = 4000) -> np.ndarray:
    rows = Rows(np.array([logits], dtype=np.float32))
    drawn = [rows.draw(0, (i + 0.5) / n, sampling) for i in range(n)]
    return np.bincount(drawn, minlength=len(logits)) / n


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
def test_logprobs_equal_a_float64_softmax(vocabulary):
    logits = (np.random.default_rng(0).standard_normal((4, vocabulary)) * 6).astype(np.float32)
    rows = Rows(logits.copy())
    for r in range(4):
        exact = np.log(_softmax(logits[r].astype(np.float64)))
        for token in (0, vocabulary - 1, int(logits[r].argmax()), int(logits[r].argmin())):
            assert rows.logprob(r, token) == pytest.approx(exact[token], abs=1e-4)


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0, 1.7])
def test_draws_follow_the_tempered_distribution(temperature):
    logits = [1.0, 0.0, -1.0, 3.0, 2.5]
    expected = _softmax(np.array(logits) / temperature)
    assert _draws(logits, Sampling(temperature)) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=2), [3, 4]),
        (Sampling(1.0, top_k=1), [3]),
        (Sampling(1.0, top_p=0.5), [3]),
        (Sampling(1.0, top_p=0.6), [3, 4]),
        (Sampling(1.0, min_p=0.1), [0, 3, 4]),
        (Sampling(1.0, top_k=3, min_p=0.2), [3, 4]),
    ],
)
def test_filters_keep_the_likeliest_and_renormalize(sampling, kept):
    logits = np.array([1.0, 0.0, -1.0, 3.0, 2.5])
    expected = np.zeros(5)
    expected[kept] = _softmax(logits[kept])
    assert _draws(logits.tolist(), sampling) == pytest.approx(expected, abs=5e-4)


def test_uniforms_are_splitmix64():
    # The reference values of the generator for seed 1234567 (Vigna's splitmix64.c).
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [uniform(1234567, i) for i in range(3)] == [(r >> 11) / (1 << 53) for r in reference]


def test_uniforms_are_uniform():
    drawn = np.array([uniform(s, p) for s in range(100) for p in range(100)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.histogram(drawn, 10)[0] == pytest.approx(1000, abs=130)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    logits = np.zeros((2, 8), dtype=np.float32)
    logits[1, 3] = bad
    with pytest.raises(LogitsError) as e:
        Rows(logits)
    assert e.value.row == 1


def test_single_tokens_may_be_impossible_but_not_all_of_them():
    logits = np.full((1, 8), -np.inf, dtype=np.float32)
    with pytest.raises(LogitsError):
        Rows(logits)
    logits[0, 2] = -3.0
    assert Rows(logits).draw(0, 0.99, PLAIN) == 2
    assert Rows(logits).logprob(0, 2) == 0.0


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(0.6), Sampling(1.0, top_k=1), Sampling(0.8, top_k=40)])
@pytest.mark.parametrize("vocabulary", [1, 511, 49_152, 151_936])
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(vocabulary, sampling):
    logits = (np.random.default_rng(1).standard_normal(vocabulary) * 4).astype(np.float32)
    logits[-1] = -np.inf if vocabulary > 1 else 0.0
    weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    order = np.arange(vocabulary)
    if sampling.top_k:
        order = np.argsort(-weights, kind="stable")[: sampling.top_k]
    cumulative = np.cumsum(weights[order]) / weights[order].sum()
    rows = Rows(logits[None])
    place = {int(token): i for i, token in enumerate(order)}
    for at in (0.0, *np.random.default_rng(2).random(200), 1 - 2**-53):
        i = place[rows.draw(0, float(at), sampling)]
        assert weights[order[i]] > 0
        assert (cumulative[i - 1] if i else 0.0) - 1e-6 <= at <= cumulative[i] + 1e-6


def test_threads_change_no_row():
    logits = np.random.default_rng(3).standard_normal((13, 5_000)).astype(np.float32)
    with ThreadPoolExecutor(3) as threads:
        together = Rows(logits, threads, 3)
        one = Rows(logits)
        assert (together.log_norm_R == one.log_norm_R).all()
        assert all(together.draw(r, 0.3, Sampling(0.6)) == one.draw(r, 0.3, Sampling(0.6)) for r in range(13))


def test_what_a_recipe_says_of_sampling_is_what_is_drawn_by():
    cfg = Foresight(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02)
    assert Sampling.of(cfg) == Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02)
