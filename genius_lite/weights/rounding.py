"""Rounding that keeps an update, however small it is beside the steps of the grid that it is written on.

Let W be the base's weights, Q what the file has for them, D the update, and V what is written. What V keeps of D is

    kept = <V - Q, D> / <D, D>

Rounding W + D to the nearest values keeps nothing of it where W lies on the grid already, as the weights of a
quantized file do: a change below half a step is always rounded away. Where W lies anywhere between two values it keeps
all of it on average: of the weights that move by a tenth of a step, a tenth crosses the middle. What llama.cpp's
quantizers make lies in between: they choose scales for which few weights come near a middle, and those in columns that
matter least.

So the offsets of W from Q are spread evenly over a step before W + D is rounded from there: each becomes its rank among
the offsets of weights alike, equal ones in random order. Offsets that are even already hardly change, and nor does the
error. Where all are zero this is a dither (L. Roberts, "Picture coding using pseudo-random noise", 1962), whose error
is small while updates are. The expectation of V - Q is D, weight by weight, but for weights at the end of their scale:
these cannot follow, and the others of their row make up for it.

Moving the weights of the largest updates instead has the least squared error among all roundings with kept = 1, and
keeps something else: a LoRA's largest entries are where the gradient is, and the learned margin of SmolLM2 in Q8_0
became 3.7 times as large as with the adapter at run time.
"""

from __future__ import annotations

import numpy as np

from genius_lite.weights.grid import Grid

_BINS = 256  # parts of a step; offsets within one are as good as equal
_OCTAVE = 2  # classes of importance for each doubling


def round_keeping(
    held: Grid, base: np.ndarray, update: np.ndarray, rng: np.random.Generator, importance: np.ndarray | None = None
) -> np.ndarray:
    """Choose the codes (rows, columns) to write for base + update.

    Args:
        held: the grid, with the codes that the base has in the file.
        base: W, float32 (rows, columns).
        update: D, likewise.
        rng: orders equal offsets, and places each within its part of a step.
        importance: of the columns (columns,), all above 0, if the base was quantized by it; 16-bit floats are not.
    """
    offsets, steps = _offsets(held, held.codes, held.held, base)
    shift = _spread(offsets, steps, rng, importance)
    merged = base + _without_ends(held, update)
    codes = held.nearest(merged)
    moves = np.rint(_offsets(held, codes, held.values(codes), merged)[0] + shift)
    return np.clip(codes + moves.astype(codes.dtype) * held.rising, held.lowest, held.highest).astype(codes.dtype)


def _without_ends(held: Grid, update: np.ndarray) -> np.ndarray:
    """Make up for what weights at the ends of their scales cannot follow of the update by others of their row.

    Two weights in 32 are at an end, where the scale was made for them: 3 % of an update in four bits.
    """
    towards = held.codes + np.sign(update).astype(held.codes.dtype) * held.rising
    stuck = (towards < held.lowest) | (towards > held.highest)
    if not stuck.any():
        return update
    squares = np.square(update)
    lost = np.sum(squares, axis=1, where=stuck, keepdims=True)
    others = squares.sum(1, keepdims=True) - lost
    more = np.divide(lost, others, out=np.zeros_like(lost), where=others > 0)
    return update * (1 + np.minimum(more, 1))


def kept_of(change: np.ndarray, update: np.ndarray) -> np.ndarray:
    """Return <V - Q, D>, <D, D>, and the first's variance, of some rows whose V - Q is `change`; (3,), float64.

    Each weight moves by chance, apart from the others, so that the sum of squared products estimates the variance.
    """
    kept = (change * update).ravel()
    return np.array([kept.sum(dtype=np.float64), np.vdot(update, update), np.vdot(kept, kept)])


def _offsets(held: Grid, codes: np.ndarray, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far weights are from some codes' values, in steps towards the next value, and these steps.

    Both are 0 where there is no next value, or no distance.
    """
    off = weights - values
    if not off.any():
        return off, off
    beside = codes + np.sign(off).astype(codes.dtype) * held.rising
    steps = np.abs(held.values(np.clip(beside, held.lowest, held.highest)) - values)
    return np.divide(off, steps, out=np.zeros_like(off), where=steps > 0), steps


def _spread(
    offsets: np.ndarray, steps: np.ndarray, rng: np.random.Generator, importance: np.ndarray | None
) -> np.ndarray:
    """Return what makes offsets even between -1/2 and 1/2, in their order, when it is added to them.

    They are even among weights alike: in columns of about the same importance, with steps of the same power of two. A
    scale unlike its neighbours', and another binade of a float, may have its offsets at places of its own.
    """
    drawn = rng.random(offsets.shape, np.float32)
    if not offsets.any():
        return drawn - np.float32(0.5)
    alike = np.frexp(steps)[1]
    alike -= alike.min()
    if importance is not None:
        octaves = np.round(_OCTAVE * np.log2(importance)).astype(np.int32)
        alike = alike * (np.ptp(octaves) + 1) + (octaves - octaves.min())
    parts = np.clip((offsets + np.float32(0.5)) * _BINS, 0, _BINS - 1).astype(np.int32) + _BINS * alike
    counts = np.bincount(parts.reshape(-1), minlength=_BINS * (int(alike.max()) + 1)).reshape(-1, _BINS)
    every = np.maximum(counts.sum(1, keepdims=True), 1)
    below = ((np.cumsum(counts, axis=1) - counts) / every).astype(np.float32).reshape(-1)
    width = (counts / every).astype(np.float32).reshape(-1)
    return below[parts] + width[parts] * drawn - np.float32(0.5) - offsets
