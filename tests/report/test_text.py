from __future__ import annotations

import math

from genius_lite.text import cut, plain, prose


def test_what_is_hidden_is_written_out():
    assert prose("a\x07b\x9f\u202ec\ufeff\u2028") == r"a\x07b\x9f\u202ec\ufeff\u2028"
    assert prose("\ud800") == r"\ud800"


def test_what_is_text_stays():
    family = "\U0001f469\u200d\U0001f467"
    assert prose(f"one\ttwo\n{family} é 中 <b>") == f"one\ttwo\n{family} é 中 <b>"


def test_long_text_is_cut_and_says_so():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdef", 4) == "abcd… [2 more characters]"


def test_json_gets_only_what_it_knows():
    assert plain({"a\x00": [1, 0.5, math.nan, math.inf, "x\x00", None, True]}) == {
        r"a\x00": [1, 0.5, None, None, r"x\x00", None, True]
    }
