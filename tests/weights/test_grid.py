from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import dequantize

from genius_lite.weights.grid import _LAYOUTS, grid, has_grid
from genius_lite.weights.quantize import quantize_rows

KINDS = [*_LAYOUTS, T.F16, T.BF16]
ROWS, COLUMNS = 64, 512
# Where a block's 16-bit floats lie, by ggml-common.h of llama.cpp; all other bytes may be anything.
HALVES = {
    **dict.fromkeys((T.Q4_0, T.Q5_0, T.Q8_0, T.IQ4_NL, T.IQ4_XS), (0,)),
    **dict.fromkeys((T.Q4_1, T.Q5_1, T.Q4_K, T.Q5_K), (0, 2)),
    T.Q2_K: (80, 82),
    T.Q3_K: (108,),
    T.Q6_K: (208,),
}

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def random_bytes(kind: T) -> np.ndarray:
    """Bytes that no quantizer wrote: any codes, scales of any size and sign, none at all among them."""
    rng = np.random.default_rng(kind)
    if kind == T.BF16:
        bits = rng.integers(0, 1 << 16, (ROWS, COLUMNS), np.uint16)
        return np.where(bits & 0x7F80 == 0x7F80, bits ^ 0x4000, bits).view(np.uint8).reshape(-1)
    halves = rng.integers(0, 1 << 16, ROWS * COLUMNS, np.uint16)
    halves = np.where(halves & 0x7C00 == 0x7C00, halves ^ 0x4000, halves)
    if kind == T.F16:
        return halves.view(np.uint8)
    weights, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * COLUMNS // weights, size), np.uint8)
    for at in HALVES[kind]:
        blocks[:, at : at + 2] = rng.choice(halves, (len(blocks), 1)).view(np.uint8)
    for number, at in enumerate(HALVES[kind]):
        blocks[number, at : at + 2] = 0
    return blocks.reshape(-1)


def weights() -> np.ndarray:
    """Rows as a model has them, a few weights far out, and a block of nothing."""
    found = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32) * 0.05
    found[::7, ::101] *= 20
    found[3, :256] = 0
    return found


def quantized(kind: T) -> np.ndarray:
    return quantize_rows(weights(), kind)


each_raw = pytest.mark.parametrize("raw", [random_bytes, quantized])


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint32)


@each_kind
@each_raw
def test_values_and_bytes_are_those_of_the_file(kind, raw):
    written = raw(kind)
    held = grid(kind, written, COLUMNS)
    assert held.codes.shape == (ROWS, COLUMNS)
    assert held.lowest <= held.codes.min() < held.codes.max() <= held.highest
    expected = dequantize(written, kind).reshape(ROWS, COLUMNS)
    different = bits(held.values(held.codes)) != bits(expected)
    if kind in (T.F16, T.BF16):
        different &= expected != 0  # there is no code for minus zero
    assert not different.any()
    back = held.encode(held.codes)
    assert back.dtype == np.uint8
    if kind in (T.F16, T.BF16):
        back, written = (np.where(bits16 & 0x7FFF, bits16, 0) for bits16 in (back.view("u2"), written.view("u2")))
    assert np.array_equal(back, written)


@each_kind
@each_raw
def test_any_code_is_written_and_read_back(kind, raw):
    held = grid(kind, raw(kind), COLUMNS)
    codes = np.random.default_rng(2).integers(held.lowest, held.highest + 1, held.codes.shape).astype(held.codes.dtype)
    written = held.encode(codes)
    assert np.array_equal(grid(kind, written, COLUMNS).codes, codes)
    assert np.array_equal(dequantize(written, kind).reshape(codes.shape), held.values(codes))


@each_kind
@each_raw
def test_the_nearest_value_to_a_value_is_itself(kind, raw):
    held = grid(kind, raw(kind), COLUMNS)
    values = held.values(held.codes)
    with np.errstate(invalid="raise"):  # where the scale is zero, too
        assert np.array_equal(held.values(held.nearest(values)), values)


@each_kind
def test_nearest_is_as_near_as_the_quantizer_and_nearer_than_the_codes_beside(kind):
    wanted = weights()
    held = grid(kind, quantize_rows(wanted, kind), COLUMNS)
    own = np.square(held.values(held.codes) - wanted)
    codes = held.nearest(wanted)
    assert codes.dtype == held.codes.dtype
    found = np.square(held.values(codes) - wanted)
    assert found.sum() <= own.sum() * 1.001
    for step in (-1, 1):
        beside = np.clip(codes + codes.dtype.type(step), held.lowest, held.highest)
        assert (np.sqrt(found) <= np.abs(held.values(beside) - wanted) + 1e-6).all()


@pytest.mark.parametrize("kind", [T.F16, T.BF16], ids=lambda kind: kind.name)
def test_floats_are_rounded_as_torch_rounds_them_and_halves_to_the_even_one(kind):
    sixteen = torch.float16 if kind == T.F16 else torch.bfloat16
    held = grid(kind, quantized(kind), COLUMNS)
    values = held.values(held.codes)
    middles = (values + held.values(held.codes + 1)) / 2
    for wanted in (weights(), middles, weights() * np.float32(1e-5)):
        expected = torch.from_numpy(wanted).to(sixteen).float().numpy()
        assert np.array_equal(held.values(held.nearest(wanted)), expected)
        assert not np.array_equal(expected, wanted)


@each_kind
def test_out_of_range_is_the_last_value(kind):
    held = grid(kind, quantized(kind), COLUMNS)
    shape = held.codes.shape
    ends = [held.values(np.full(shape, code, held.codes.dtype)) for code in (held.lowest, held.highest)]
    largest = np.finfo(np.float32).max if kind in (T.F16, T.BF16) else 1e6
    assert np.array_equal(held.values(held.nearest(np.full(shape, largest, np.float32))), np.maximum(*ends))
    assert np.array_equal(held.values(held.nearest(np.full(shape, -largest, np.float32))), np.minimum(*ends))


@each_kind
def test_codes_rise_where_it_says_so(kind):
    held = grid(kind, quantized(kind), COLUMNS)
    codes = np.clip(held.codes, held.lowest, held.highest - 1)
    rise = held.values(codes + codes.dtype.type(1)) - held.values(codes)
    assert np.array_equal(np.sign(rise), np.broadcast_to(held.rising, rise.shape))


def test_types_that_share_codes_among_weights_have_no_grid():
    assert all(has_grid(kind) for kind in KINDS)
    for kind in (T.IQ2_XS, T.IQ3_S, T.IQ1_M, T.F32):
        assert not has_grid(kind)
        with pytest.raises(KeyError):
            grid(kind, np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), GGML_QUANT_SIZES[kind][0])
