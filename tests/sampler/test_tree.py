from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genius_lite.records import Completion, seed_of
from genius_lite.sampler.tree import Node

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=4)
paths = st.lists(tokens, max_size=4)
prompts = st.lists(st.integers(0, 3), max_size=3)
keys = st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["a", "b"]))
labels = st.sampled_from(["step", "end", "limit"])


def grown(prompt: list[int], key: tuple[int | str, ...], pieces: list[list[int]]) -> Node:
    node = Node(None, prompt, key)
    for piece in pieces:
        node = node.child(Completion(piece, [-0.5] * len(piece), "step"))
    return node


@given(prompts, keys, paths)
def test_a_path_is_its_pieces(prompt, key, pieces):
    node, flat = grown(prompt, key, pieces), [token for piece in pieces for token in piece]
    assert node.path == prompt + flat
    assert node.response == flat
    assert node.key == key
    if pieces:
        assert node.completion and node.completion.tokens == node.tokens == pieces[-1]
        assert node.parent and node.parent.response == flat[: -len(pieces[-1])]


@given(prompts, prompts, keys, tokens, st.data(), labels, st.integers(0, 4))
def test_draws_depend_on_what_was_said_and_not_on_how_it_was_cut(prompt, other, key, said, data, label, n):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(said) - 1)))) if len(said) > 1 else []
    pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    seeds = grown(prompt, key, [said]).seeds(label, n)
    assert grown(other, key, pieces).seeds(label, n) == seeds
    assert grown(prompt, key, [said]).seeds(label, n + 1)[:n] == seeds


@given(st.sets(st.tuples(keys, st.lists(st.integers(0, 3), max_size=3).map(tuple), labels), min_size=2, max_size=6))
def test_no_two_branches_share_their_numbers(places):
    nodes = [(grown([1], key, [list(said)] if said else []), label) for key, said, label in places]
    seeds = [seed for node, label in nodes for seed in node.seeds(label, 3)]
    assert len({*seeds}) == len(seeds)


def test_a_seed_by_hand():
    assert grown([9], (0, 1, "q"), [[5], [6, 7]]).seeds("end", 2) == [
        seed_of(0, 1, "q", 5, 6, 7, "end", 0),
        seed_of(0, 1, "q", 5, 6, 7, "end", 1),
    ]
