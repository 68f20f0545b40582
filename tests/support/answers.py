"""Responses as checkers meet them, and what a checker says of one."""

from __future__ import annotations

from hypothesis import strategies as st

from genius_lite.evaluate import checkers
from genius_lite.recipe import CheckOptions

# Arbitrary text seldom holds what the parsers look for; pieces of it do.
PIECES = [
    "answer is ",
    "Answer: ",
    "####",
    r"\boxed{",
    "}",
    "<answer>",
    "</answer>",
    r"\frac{",
    "1",
    "0",
    "9" * 30,
    "/",
    ",",
    ".",
    "-",
    "$",
    "%",
    "e",
    "^",
    "10^",
    " x ",
    "=",
    "(",
    ")",
    "**",
    "A",
    "b",
    " or ",
    "\n",
    " ",
    r"\text{",
    "½",
    "\0",
    "option ",
]
texts = st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def check(kind, response, answer, choices=(), **options):
    return checkers.judge(kind, response, answer, CheckOptions(**options), choices).score
