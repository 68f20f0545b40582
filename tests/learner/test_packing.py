from __future__ import annotations

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genius_lite.learner.attention import tree_mask
from genius_lite.learner.loss import pair_logps, pair_loss
from genius_lite.learner.model import response_logps, takes_trees
from genius_lite.learner.packing import Inputs, Pack, by_query, computed, packs, rows, trees, unshared_tokens
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.lines import Lines, write_records
from tests.support.training import Unadapted

short = st.lists(st.integers(0, 3), min_size=1, max_size=6)
drawn_pairs = st.lists(st.tuples(st.sampled_from("ab"), short, short), min_size=1, max_size=5)


def pair(query: str, step: int, prompt: list[int], chosen: list[int], rejected: list[int]) -> PreferencePair:
    return PreferencePair(query, step, prompt, chosen, rejected, 0.1 * step, 0.2, -0.5, -0.6, True, True)


def made_of(drawn) -> list[PreferencePair]:
    prompts = {"a": [5, 6, 7], "b": [5]}
    return [pair(q, i, prompts[q], chosen, rejected) for i, (q, chosen, rejected) in enumerate(drawn)]


def seen_by(inputs: Inputs) -> torch.Tensor:
    """Which token (row) sees which (column), bool (T, T)."""
    return tree_mask(torch.from_numpy(inputs.end_BT), inputs.trees, torch.float32)[0, 0] == 0


def test_a_tree_by_hand():
    inputs = trees([[([7, 8], [1, 2]), ([7, 8], [1, 3])]])
    assert inputs.tokens_BT.tolist() == [[7, 8, 1, 2, 3]]
    assert inputs.depth_BT.tolist() == [[0, 1, 2, 3, 3]]
    assert inputs.targets_S.tolist() == [2, 3, 4]
    assert inputs.parents_S.tolist() == [1, 2, 2]
    assert [indices.tolist() for indices in inputs.responses] == [[0, 1], [0, 2]]
    assert seen_by(inputs).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]


def test_rows_by_hand():
    inputs = rows([([7, 8], [1, 2]), ([7], [3])])
    assert inputs.tokens_BT.tolist() == [[7, 8, 1, 2], [7, 3, 0, 0]]
    assert (inputs.end_BT > 0).astype(int).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert inputs.targets_S.tolist() == [2, 3, 5]
    assert inputs.parents_S.tolist() == [1, 2, 4]
    assert [indices.tolist() for indices in inputs.responses] == [[0, 1], [2]]


@given(drawn_pairs, st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_packs_hold_every_pair_once_and_read_back(drawn, max_tokens, merged, shared):
    pairs = made_of(drawn)
    made = list(packs(by_query(pairs), max_tokens, min(merged, max_tokens), shared))
    assert [p for pack in made for p in pack.pairs] == [p for group in by_query(pairs) for p in group]
    for pack in made:
        assert pack.tokens <= max_tokens or len(pack.pairs) == 1
        wanted = [tokens for p in pack.pairs for tokens in (p.chosen_tokens, p.rejected_tokens)]
        inputs = pack.inputs()
        assert inputs.tokens_BT.size == pack.tokens
        flat = inputs.tokens_BT.reshape(-1)[inputs.targets_S]
        assert [flat[indices].tolist() for indices in inputs.responses] == wanted
        if shared:
            assert pack.tokens <= unshared_tokens(pack.pairs)


@given(drawn_pairs, st.integers(1, 40), st.booleans())
def test_what_is_not_computed_takes_no_token(drawn, max_tokens, shared):
    whole = [computed(group, Learner(loss="sft")) for group in by_query(made_of(drawn))]
    for pack in packs(whole, max_tokens, max_tokens, shared):
        inputs = pack.inputs()
        flat = inputs.tokens_BT.reshape(-1)[inputs.targets_S]
        read = [flat[indices].tolist() for indices in inputs.responses]
        assert read == [tokens for p in pack.pairs for tokens in (p.chosen_tokens, [])]
        alone = [len(p.prompt_tokens) + len(p.chosen_tokens) for p in pack.pairs]
        assert unshared_tokens(pack.pairs) == sum(alone)
        assert inputs.tokens_BT.size == pack.tokens
        assert pack.tokens <= sum(alone) if shared else pack.tokens == len(alone) * max(alone)


@given(st.lists(st.lists(st.tuples(short, short), min_size=1, max_size=6), min_size=1, max_size=3))
def test_a_token_of_a_tree_sees_itself_and_what_comes_before_it_in_its_response(groups):
    inputs = trees(groups)
    (tokens,), (depth,), seen = inputs.tokens_BT, inputs.depth_BT, seen_by(inputs)
    for t in range(len(tokens)):
        ancestors = seen[t].nonzero()[:, 0].tolist()
        assert depth[ancestors].tolist() == list(range(depth[t] + 1))
    for (prompt, response), indices in zip((r for group in groups for r in group), inputs.responses, strict=True):
        places, parents = inputs.targets_S[indices], inputs.parents_S[indices]
        assert tokens[seen[places[-1]].numpy()].tolist() == prompt + response
        assert [*places[:-1]] == [*parents[1:]]
    paths = [{tuple((p + r)[: n + 1]) for p, r in group for n in range(len(p + r))} for group in groups]
    assert len(tokens) == sum(map(len, paths)), "each beginning is computed once"


@given(drawn_pairs, st.integers(1, 40))
def test_pairs_in_a_file_are_packed_as_those_in_memory(tmp_path_factory, drawn, max_tokens):
    pairs, path = made_of(drawn), tmp_path_factory.getbasetemp() / "pairs.jsonl"
    write_records(path, pairs)
    made, read = (list(packs(by_query(some), max_tokens, max_tokens)) for some in (pairs, Lines(path, PreferencePair)))
    assert [pack.pairs for pack in made] == [pack.pairs for pack in read]
    assert [pack.tokens for pack in made] == [pack.tokens for pack in read]


def test_many_pairs_in_a_file_are_packed_in_the_memory_of_few(tmp_path):
    """Neither their tokens nor masks are held: a pack's are made when it is computed."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        prompt, response = [*range(100)], [*range(100, 400)]
        write_records(
            path, (
                PreferencePair(f"{n:06x}", step, prompt, [n, *response], [n, 1, *response], 0, 0, 0, 0, True, True)
                for n in range(count)
                for step in range(2)
            ),
        )  # fmt: skip
        tracemalloc.start()
        made = packs(by_query(Lines(path, PreferencePair)), 4096, 4096)
        assert max(pack.inputs().tokens_BT.shape[1] for pack in made) > 3000
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(200) < 1.05 * peak(20)


def _alone(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logits[list(places), response].sum()


def _loss(pack: Pack, logps: torch.Tensor) -> torch.Tensor:
    reference = [[-3.0, -4.0]] * len(pack.pairs)
    return pair_loss(pair_logps(pack, logps.view(-1, 2), reference, Learner(beta=0.1)), Learner(beta=0.1)).mean()


@settings(max_examples=25, deadline=None)
@given(drawn_pairs)
def test_trees_and_rows_equal_one_at_a_time(tiny, drawn):
    """Losses to 1e-5 and gradients to 1e-4, fp32."""
    groups, model = by_query(made_of(drawn)), tiny.model
    weights = [p for n, p in model.named_parameters() if "proj.weight" in n]
    (tree,), (padded,) = packs(groups, 10_000, 10_000), packs(groups, 10_000, 10_000, shared=False)
    responses = [(p.prompt_tokens, r) for p in tree.pairs for r in (p.chosen_tokens, p.rejected_tokens)]
    alone = torch.stack([_alone(model, *response) for response in responses])
    expected = _loss(tree, alone)
    gradients = torch.autograd.grad(expected, weights)
    for pack in (tree, padded):
        logps = response_logps(Unadapted(model), pack.inputs())
        torch.testing.assert_close(logps, alone, atol=1e-4, rtol=1e-5)
        loss = _loss(pack, logps)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
        for ours, theirs in zip(torch.autograd.grad(loss, weights), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_who_takes_trees(tiny, tiny_mamba, monkeypatch):
    assert takes_trees(Unadapted(tiny.model), longest=100)
    assert not takes_trees(Unadapted(tiny_mamba.model), longest=100)
    monkeypatch.setattr(tiny.model.config, "sliding_window", 64, raising=False)
    monkeypatch.setattr(tiny.model.config, "use_sliding_window", True, raising=False)
    assert not takes_trees(Unadapted(tiny.model), longest=100)


@pytest.mark.parametrize("of", ["a branch", "a tree"])
def test_a_leak_between_branches_or_trees_is_seen(tiny, monkeypatch, of):
    """One token sees a part of another branch, or of the other tree."""
    from genius_lite.learner import model

    def unmarked(*arguments) -> torch.Tensor:
        return tree_mask(*arguments).clone()  # without blocks, by which other trees are not looked at in any case

    def leaks(*arguments) -> torch.Tensor:
        mask = unmarked(*arguments)
        # The last token of all predicts none.
        sees, seen = (30, slice(40, 52)) if of == "a branch" else (-2, slice(0, 6))
        assert (mask[0, 0, sees, seen] < 0).all()
        mask[0, 0, sees, seen] = 0.0
        return mask

    monkeypatch.setattr(model, "tree_mask", unmarked)
    assert takes_trees(Unadapted(tiny.model), longest=100)
    monkeypatch.setattr(model, "tree_mask", leaks)
    assert not takes_trees(Unadapted(tiny.model), longest=100)


def test_a_recurrent_model_learns_from_rows(tiny_mamba):
    responses = [([5, 6, 7], [1, 2]), ([5], [3, 1, 2])]
    ours = response_logps(Unadapted(tiny_mamba.model), rows(responses))
    alone = torch.stack([_alone(tiny_mamba.model, *response) for response in responses])
    torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, 3.0)])
def test_the_head_in_slices_is_the_whole_head(scale, cap, monkeypatch):
    from genius_lite.learner import head as module
    from genius_lite.learner.head import Head, token_logps

    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 1000)
    hidden = torch.randn(7, 8, requires_grad=True)
    tokens = torch.tensor([0, 1, 255, 256, 511, 998, 999])
    logits = layer(hidden) * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    expected = logits.log_softmax(-1)[range(7), tokens]
    monkeypatch.setitem(module.SLICE_BYTES, "cpu", 1)
    head = Head(layer.weight, layer.bias, scale, cap)
    assert len(list(head.slices(hidden))) == 4
    got = token_logps(head, hidden, tokens)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, 7)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), hidden)
    (ours,) = torch.autograd.grad((got * weights).sum(), hidden)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
