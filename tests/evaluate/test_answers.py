"""What counts of a response."""

from __future__ import annotations

import pytest

from genius_lite.evaluate.answers import after_thought


@pytest.mark.parametrize(
    ("response", "opened", "said"),
    [
        ("The answer is 7.", False, "The answer is 7."),
        ("<think>\nthe answer is 5\n</think>\n\nThe answer is 7.", False, "\n\nThe answer is 7."),
        ("it may be 5\n</think>\nThe answer is 7.", True, "\nThe answer is 7."),
        ("<think>\nFirst 3 + 4 = 7, so after that I could try 12", False, ""),
        ("First 3 + 4 = 7, so after that I could try 12", True, ""),
        ("[THINK]a[/THINK]b", False, "b"),
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("<think>a</think>b<think>c", False, ""),
    ],
)
def test_what_follows_a_thought(response, opened, said):
    assert after_thought(response, opened) == said
