from __future__ import annotations

import random

import pytest

from genius_lite.foresight.repetition import loops

HEAD = [500, 17, 333, 41, 8, 290, 77]  # what was said before
END = [2]


def unit(length: int) -> list[int]:
    return list(range(1000, 1000 + length))


@pytest.mark.parametrize("length", [1, 2, 3, 6, 7, 8, 13, 31, 32])
def test_a_unit_loops_from_its_least_stretch_on(length):
    least = max(24, 3 * length)
    said = (unit(length) * 24)[:least]
    assert loops(HEAD + said)
    assert loops(HEAD + said + END)
    assert not loops(HEAD + said[1:])
    assert not loops(HEAD + said[1:] + END)


@pytest.mark.parametrize("cut", range(5))
def test_a_loop_may_be_cut_within_a_unit(cut):
    assert loops(HEAD + unit(5) * 6 + unit(5)[:cut])


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [5],
        [5, 9] * 3,  # "1, 1, 1"
        HEAD + [5] * 20 + END,  # a ruler
        HEAD + [5] * 60 + HEAD,  # a ruler with text after it
        HEAD + [7, 8] * 8 + [9],  # a table's separator of eight columns
        HEAD + unit(12) * 2,  # a sentence said twice
        HEAD + unit(33) * 4,  # a paragraph: its unit is too long to be looked for
        HEAD + unit(5) * 10 + [1, 2],  # left behind
        [token for n in range(20) for token in (60, n + 100, 61, 62)],  # a list whose numbers count on
        list(range(200)),
    ],
)
def test_what_is_no_loop(tokens):
    assert not loops(tokens)


def test_text_of_few_tokens_does_not_loop_by_chance():
    draw = random.Random(0)
    assert not any(loops([draw.randrange(4) for _ in range(200)]) for _ in range(500))


class _Counted(list):
    """Counts how many tokens are looked at."""

    looked_at = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        self.looked_at += len(found) if isinstance(at, slice) else 1
        return found


def test_a_long_response_takes_no_longer():
    tokens = _Counted([1] * 200_000 + [2, 3])
    assert not loops(tokens)
    assert tokens.looked_at < 100
