from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import dequantize

from genius_lite.weights.grid import Grid, grid
from genius_lite.weights.quantize import quantize_rows
from genius_lite.weights.rounding import kept_of, round_keeping

KINDS = [T.F16, T.BF16, T.Q8_0, T.Q6_K, T.Q5_K, T.Q4_K, T.Q4_0, T.Q4_1]
ROWS, COLUMNS = 256, 512
SMALL = 0.04  # of a step: the mean size of an update
UPDATES = 10

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_pair = pytest.mark.parametrize(
    ("source", "kind"),
    [(source, kind) for source in (T.F32, T.Q8_0, T.Q4_1) for kind in KINDS if source != kind],
    ids=lambda kind: kind.name,
)


def weights(rows: int = ROWS) -> np.ndarray:
    """A model's, before any file has them."""
    return np.random.default_rng(0).standard_normal((rows, COLUMNS)).astype(np.float32) * 0.05


@dataclass(frozen=True)
class Written:
    """Weights that a file of some type is made of, and what they become in it."""

    base: np.ndarray
    held: Grid
    values: np.ndarray
    steps: np.ndarray

    def stuck(self, update: np.ndarray) -> np.ndarray:
        """Where an update has nowhere to go: the grid ends there."""
        towards = self.held.codes + np.where(update > 0, 1, -1).astype(np.int16) * self.held.rising
        return (towards < self.held.lowest) | (towards > self.held.highest)

    @staticmethod
    def of(source: T, kind: T, importance: np.ndarray | None = None, rows: int = ROWS) -> Written:
        made = weights(rows)
        raw = quantize_rows(made, source)
        base = dequantize(raw, source).reshape(made.shape)
        held = grid(kind, raw if source == kind else quantize_rows(base, kind, importance), COLUMNS)
        codes, values = held.codes, held.values(held.codes)
        steps = [np.abs(held.values(np.clip(codes + d, held.lowest, held.highest)) - values) for d in (-1, 1)]
        return Written(base, held, values, np.maximum(*steps))

    def update(self, seed: int, size: float = SMALL) -> np.ndarray:
        """A LoRA's, as large beside the steps; floats have steps of all sizes, and it goes with them."""
        rng = np.random.default_rng([seed, 1])
        made = (rng.standard_normal((len(self.base), 4)) @ rng.standard_normal((4, self.base.shape[1]))) / 2
        floats = self.held.highest > 1 << 14
        return (made * size / 0.7 * (self.steps if floats else np.median(self.steps))).astype(np.float32)

    def change(self, update: np.ndarray, seed: int, importance: np.ndarray | None = None) -> np.ndarray:
        codes = round_keeping(self.held, self.base, update, np.random.default_rng(seed), importance)
        return self.held.values(codes) - self.values

    def plain(self, update: np.ndarray) -> np.ndarray:
        return self.held.values(self.held.nearest(self.base + update)) - self.values

    def error(self, update: np.ndarray) -> float:
        """Standard error of what is kept: a weight moves by a step with the probability |D| / step."""
        size = np.abs(update, dtype=np.float64)
        return float(np.sqrt((size**3 * self.steps).sum()) / np.square(size).sum())


def kept(change: np.ndarray, update: np.ndarray, columns: np.ndarray | slice = slice(None)) -> float:
    change, update = change[:, columns].astype(np.float64), update[:, columns].astype(np.float64)
    return float((change * update).sum() / np.square(update).sum())


def mean_kept(written: Written) -> tuple[float, float, float]:
    """Over some updates: what is kept, its standard error, and what the nearest values keep."""
    rows = []
    for seed in range(UPDATES):
        update = written.update(seed)
        found = kept(written.change(update, seed), update)
        rows.append([found, written.error(update), kept(written.plain(update), update)])
    found, error, plain = np.mean(rows, 0)
    return found, error / UPDATES**0.5, plain


@each_kind
def test_on_the_grid_already_all_is_kept_where_nearest_values_keep_nothing(kind):
    written = Written.of(kind, kind)
    assert np.array_equal(written.values, written.base), "the type must be its own source for this to show anything"
    found, error, plain = mean_kept(written)
    assert plain < 0.01
    assert error < 0.015
    assert found == pytest.approx(1, abs=4 * error)


@each_pair
def test_all_is_kept_in_any_other_type(source, kind):
    written = Written.of(source, kind)
    found, error, plain = mean_kept(written)
    # The offsets of a type's own scales are spread only as evenly as weights alike are many.
    assert found == pytest.approx(1, abs=0.03 + 3 * error)
    if kind in (T.Q6_K, T.Q5_K, T.Q4_K):
        assert plain < 0.85


@pytest.mark.parametrize("kind", [T.F16, T.Q8_0, T.Q6_K, T.Q4_K, T.Q4_0, T.Q4_1, T.IQ4_XS], ids=lambda kind: kind.name)
def test_weight_by_weight_the_expectation_is_the_update_with_the_part_of_those_that_are_stuck(kind):
    written = Written.of(kind, kind, rows=8)
    update, times = written.update(0, size=0.2), 2000
    mean = sum(written.change(update, seed) for seed in range(times)) / times
    stuck, squares = written.stuck(update), np.square(update, dtype=np.float64)
    more = squares.sum(1, keepdims=True) / squares.sum(1, keepdims=True, where=~stuck)
    assert np.abs(mean[stuck]).max(initial=0) == 0
    values, direction = written.held.values, np.where(update > 0, 1, -1).astype(np.int16) * written.held.rising
    expected = update * more
    beside = values(np.clip(written.held.codes + direction, written.held.lowest, written.held.highest))
    steps = np.abs(beside - written.values)
    steady = ~stuck & (np.abs(expected) < steps / 2)
    assert steady.mean() > 0.7
    size, steps, away = np.abs(expected)[steady], steps[steady], (mean - expected)[steady]
    away_squared = np.square(away) * times / (size * (steps - size))
    assert away_squared.mean() == pytest.approx(1, abs=6 * (2 / steady.sum()) ** 0.5)


@pytest.mark.parametrize("kind", [T.Q4_K, T.Q5_K, T.Q6_K, T.Q4_0, T.Q4_1], ids=lambda kind: kind.name)
def test_columns_that_matter_keep_all_too(kind):
    rng = np.random.default_rng(5)
    importance = np.exp(2 * rng.standard_normal(COLUMNS)).astype(np.float32)
    importance[rng.choice(COLUMNS, 16, replace=False)] *= 100
    written = Written.of(T.F32, kind, importance)
    most = np.argsort(importance)[-COLUMNS // 8 :]
    found = []
    for seed in range(UPDATES):
        update = written.update(seed)
        alike, mixed = written.change(update, seed, importance), written.change(update, seed)
        found.append([kept(alike, update, most), kept(mixed, update, most)])
    alike, mixed = np.mean(found, 0)
    assert mixed < 0.8, "the quantizer must favour these columns for this to show anything"
    assert alike == pytest.approx(1, abs=0.1)


@each_kind
def test_the_error_off_the_grid_is_hardly_larger_than_that_of_nearest_values(kind):
    written = Written.of(T.F32, kind)
    update = written.update(0)
    wanted = written.base + update - written.values
    ours, least = (np.square(change - wanted).sum() for change in (written.change(update, 0), written.plain(update)))
    assert least <= ours < 1.2 * least


@each_kind
def test_no_update_changes_no_byte(kind):
    made = weights()
    made[3], made[5, :256] = 0, 0
    raw = quantize_rows(made, kind)
    base = dequantize(raw, kind).reshape(made.shape)
    held = grid(kind, raw, COLUMNS)
    for seed in range(4):
        codes = round_keeping(held, base, np.zeros_like(base), np.random.default_rng(seed))
        assert np.array_equal(held.values(codes), base)
        # Where the scale is zero, any code will do: Q6_K's are zeros in the file, which stand for -32.
        written, before = (x.reshape(ROWS, -1) for x in (held.encode(codes), raw))
        assert np.array_equal(np.delete(written, (3, 5), 0), np.delete(before, (3, 5), 0))
        assert kept_of(held.values(codes) - held.held, np.zeros_like(base)).tolist() == [0, 0, 0]


@each_kind
def test_the_seed_alone_decides(kind):
    written = Written.of(kind, kind)
    update = written.update(0)
    first, again, other = (written.change(update, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@each_kind
def test_what_is_kept_is_told_as_it_is(kind):
    written = Written.of(T.F32, kind)
    update = written.update(0)
    codes = round_keeping(written.held, written.base, update, np.random.default_rng(0))
    read_back = dequantize(written.held.encode(codes), kind).reshape(update.shape)
    products = kept_of(written.held.values(codes) - written.held.held, update)
    each = (read_back - written.values) * update.astype(np.float64)
    expected = each.sum(), np.square(update, dtype=np.float64).sum(), np.square(each).sum()
    assert products == pytest.approx(expected, rel=1e-3)


@each_kind
def test_updates_of_many_steps_are_kept_as_far_as_the_grid_reaches(kind):
    written = Written.of(kind, kind)
    update = written.update(0, size=3)
    change = written.change(update, 0)
    ends = [
        written.held.values(np.full_like(written.held.codes, end))
        for end in (written.held.lowest, written.held.highest)
    ]
    reached = np.clip(written.base + update, np.minimum(*ends), np.maximum(*ends)) - written.values
    assert np.square(change - reached).sum() < 0.05 * np.square(reached).sum()


@pytest.mark.parametrize("kind", [T.Q8_0, T.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("inwards", [0, -1e-7])
def test_a_row_at_the_end_of_its_scales_stays_there(kind, inwards):
    base = np.full((1000, 576), 0.5, np.float32)
    held = grid(kind, quantize_rows(base, kind), 576)
    update = np.abs(np.random.default_rng(0).standard_normal(base.shape)).astype(np.float32) * 1e-3
    update[:, 7] = inwards
    with np.errstate(divide="raise", invalid="raise"):
        codes = round_keeping(held, base, update, np.random.default_rng(1))
    assert np.array_equal(np.delete(codes, 7, 1), np.delete(held.codes, 7, 1))


@each_kind
def test_the_error_of_what_is_kept_is_that_of_many_draws(kind):
    written = Written.of(kind, kind)
    update = written.update(0)
    found = np.array([kept_of(written.change(update, seed), update) for seed in range(40)])
    spread, told = found[:, 0].std(), np.sqrt(found[:, 2]).mean()
    assert 0.6 < spread / told < 1.5
