from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genius_lite.learner.model import response_logps
from genius_lite.learner.packing import Pack, by_query, packs
from genius_lite.records import PreferencePair

short = st.lists(st.integers(0, 3), min_size=1, max_size=6)


def pair(query: str, step: int, prompt: list[int], chosen: list[int], rejected: list[int]) -> PreferencePair:
    return PreferencePair(query, step, prompt, chosen, rejected, 0.0, 0.0)


def test_a_tree_by_hand():
    pack = Pack()
    pack.add_tree([pair("q", 0, [7, 8], [1, 2], [1, 3])])
    assert pack.tokens_T == [7, 8, 1, 2, 3]
    assert pack.parent_T == [-1, 0, 1, 2, 2]
    assert pack.depth_T == [0, 1, 2, 3, 3]
    assert pack.responses == [[2, 3], [2, 4]]
    assert pack.targets.tolist() == [2, 3, 4]
    assert pack.unshared_tokens == 8
    assert pack.attention_TT().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]


@given(st.lists(st.tuples(st.sampled_from("ab"), short, short), min_size=1, max_size=5), st.integers(1, 40))
def test_packs_hold_every_pair_once_and_read_back(drawn, max_tokens):
    prompts = {"a": [9, 9], "b": [9]}
    pairs = [pair(q, i, prompts[q], chosen, rejected) for i, (q, chosen, rejected) in enumerate(drawn)]
    made = packs(by_query(pairs), max_tokens)
    assert [p for pack in made for p in pack.pairs] == [p for group in by_query(pairs) for p in group]
    for pack in made:
        assert len(pack.tokens_T) <= max_tokens or len(pack.pairs) == 1
        wanted = [tokens for p in pack.pairs for tokens in (p.chosen_tokens, p.rejected_tokens)]
        assert [[pack.tokens_T[t] for t in places] for places in pack.responses] == wanted


class _Policy:
    """What `response_logps` needs of a peft model."""

    def __init__(self, model):
        self.model = model

    def get_base_model(self):
        return self.model


def _alone(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    rows = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logits[list(rows), response].sum()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), short, short), min_size=1, max_size=4))
def test_packed_equals_one_at_a_time(tiny, drawn):
    prompts = {"a": [5, 6, 7], "b": [5]}
    pairs = [pair(q, i, prompts[q], chosen, rejected) for i, (q, chosen, rejected) in enumerate(drawn)]
    (pack,) = packs(by_query(pairs), 10_000)
    model = tiny.model
    packed = response_logps(_Policy(model), pack, "cpu")
    alone = torch.stack(
        [_alone(model, p.prompt_tokens, r) for p in pack.pairs for r in (p.chosen_tokens, p.rejected_tokens)]
    )
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-5)
    weights = torch.linspace(-1, 1, len(packed))
    inputs = [p for n, p in model.named_parameters() if "proj.weight" in n]
    ours = torch.autograd.grad((packed * weights).sum(), inputs)
    theirs = torch.autograd.grad((alone * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
