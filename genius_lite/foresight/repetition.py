"""Does a response end in a repetition? Such responses are likely to themselves, so that foresight rewards them."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST_UNIT = 32  # tokens: a sentence or two
_REPEATS = 3  # of the unit, the last one perhaps cut off
_STRETCH = 24  # tokens that the repetition must cover, so that a unit of 6 or fewer is said 4 times at least


def loops(tokens: Sequence[int]) -> bool:
    """Whether the response's tail is one unit of up to 32 tokens, said three times or more, over 24 tokens at least.

    Repeating makes the next repetition likelier (Xu et al., "Learning to Break the Loop", arXiv 2206.02369), so that a
    loop seldom stops before the token limit, and the stretch can be asked to be long. "1, 1, 1", "ha ha ha", a ruler
    or a table's separator are shorter; a list whose numbers count on has units that differ. A loop counts wherever the
    limit cut it, also within a unit; one last token may break it, as the end token does. What was said again and again
    but left behind does not count. Only the last 97 tokens are looked at.
    """
    tail = tokens[-_LONGEST_UNIT * _REPEATS - 1 :]
    return _ends_in_loop(tail) or _ends_in_loop(tail[:-1])


def _ends_in_loop(tokens: Sequence[int]) -> bool:
    return any(_repeats(tokens, unit) for unit in range(1, _LONGEST_UNIT + 1))


def _repeats(tokens: Sequence[int], unit: int) -> bool:
    stretch = max(_STRETCH, _REPEATS * unit)
    return len(tokens) >= stretch and all(tokens[-i] == tokens[-i - unit] for i in range(1, stretch - unit + 1))
