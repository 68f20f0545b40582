from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from genius_lite.records import Completion
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.llama import EngineError
from genius_lite.sampler.messages import Extend, Extended, Release, Sampling, Score, Scored
from tests.support.adapters import torch_scores
from tests.support.engine import NORMAL, PROMPT, drain, extend, settings

GREEDY = Sampling(1e-4)


def test_logprobs_are_the_models(tiny):
    engine = Engine(str(tiny.gguf), settings())
    for completion in extend(engine, PROMPT, [1, 2, 3], limit=20):
        expected = torch_scores(tiny.model, PROMPT, completion.tokens)
        assert completion.logprobs == pytest.approx(expected, abs=0.02)
        engine.submit(Score(9, PROMPT, completion.tokens))
        (scored,) = (r for r in drain(engine) if isinstance(r, Scored))
        assert scored.logprobs == pytest.approx(expected, abs=0.02)


def test_greedy_branches_are_torchs_greedy_text(tiny):
    engine = Engine(str(tiny.gguf), settings(kv_type="F32"))
    (completion,) = extend(engine, PROMPT, [1], sampling=GREEDY, limit=16)
    tokens = list(PROMPT)
    for token in completion.tokens:
        with torch.no_grad():
            assert tiny.model(torch.tensor([tokens])).logits[0, -1].argmax().item() == token
        tokens.append(token)


@pytest.mark.parametrize("unified", [False, True])
def test_company_slots_and_eviction_do_not_change_a_branch(tiny, unified):
    """More branches than slots, other queries between: what a branch draws depends on its path and seed alone."""
    alone = [
        extend(Engine(str(tiny.gguf), settings(slots=1, kv_unified=unified)), PROMPT, [seed])[0] for seed in range(6)
    ]
    for slots, parked in ((2, 0), (3, 2), (3, 8), (8, 8)):
        engine = Engine(str(tiny.gguf), settings(slots=slots, parked=parked, kv_unified=unified))
        for other in range(3):
            engine.submit(Extend(50 + other, [*PROMPT, other], [other, 7], "end", 9, NORMAL))
        together = extend(engine, PROMPT, list(range(6)))
        assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_a_future_goes_on_from_its_steps_cache(tiny):
    engine = Engine(str(tiny.gguf), settings())
    for seed in range(100):
        (step,) = extend(engine, PROMPT, [seed], until="step", limit=40, sampling=Sampling(2.0))
        if step.finish == "step":
            break
    for _ in range(2):  # the future itself, and the next step from the same node
        before = engine.stats.prefilled
        extend(engine, PROMPT + step.tokens, [3], limit=4)
        assert engine.stats.prefilled - before == 1


def test_a_prompt_is_prefilled_once_for_all_its_branches(tiny):
    engine = Engine(str(tiny.gguf), settings())
    extend(engine, PROMPT, list(range(4)))
    assert engine.stats.prefilled == len(PROMPT)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_of_two_requests_for_a_path_the_second_copies_what_the_first_decodes(tiny, slots):
    path = (PROMPT * 40)[:200]  # several chunks
    alone = [extend(Engine(str(tiny.gguf), settings()), path, [seed])[0].tokens for seed in (1, 2)]
    engine = Engine(str(tiny.gguf), settings(slots=slots, prefill_chunk=64))
    for number, seed in enumerate((1, 2)):
        engine.submit(Extend(number, path, [seed], "end", 12, NORMAL))
    replies = sorted((r for r in drain(engine) if isinstance(r, Extended)), key=lambda r: r.id)
    assert [r.completion.tokens for r in replies] == alone
    assert engine.stats.prefilled == len(path) + 1


COLD = Sampling(0.12)
"""At which completions of the tiny models say some tokens alike, and then part."""


def rows_of(completions) -> int:
    """How many rows a request needs: one for each start of a completion that goes on, and the first draw of each."""
    starts = {tuple(c.tokens[:end]) for c in completions for end in range(1, len(c.tokens))}
    return len(completions) + len(starts)


@pytest.mark.parametrize("draw", ["host", "device"])
def test_what_completions_say_alike_is_decoded_once(tiny, draw):
    engine = Engine(str(tiny.gguf), settings(slots=12, draw=draw))
    found = extend(engine, PROMPT, list(range(12)), until="limit", sampling=COLD)
    assert len({tuple(c.tokens[:2]) for c in found}) < len({tuple(c.tokens) for c in found}) - 1, "they part on the way"
    assert engine.stats.sampled == 12 * 12
    assert engine.stats.sampled - engine.stats.shared == rows_of(found) < 100
    assert engine.stats.prefilled == len(PROMPT)
    for completion in found:
        expected = torch_scores(tiny.model, PROMPT, completion.tokens)
        assert completion.logprobs == pytest.approx(expected, abs=0.02)


def test_the_likeliest_completion_goes_along_with_sampled_ones(tiny):
    (likeliest,) = extend(Engine(str(tiny.gguf), settings()), PROMPT, [7], sampling=Sampling(1.0, top_k=1))
    sampled = extend(Engine(str(tiny.gguf), settings()), PROMPT, [1, 2, 3], sampling=COLD)
    for draw in ("host", "device"):
        engine = Engine(str(tiny.gguf), settings(draw=draw))
        found = extend(engine, PROMPT, [None, 1, 2, 3], sampling=COLD)
        assert [c.tokens for c in found] == [c.tokens for c in (likeliest, *sampled)]
        assert engine.stats.shared > 0


@pytest.mark.parametrize(("model", "sampling"), [("tiny_llama", COLD), ("tiny_mamba", Sampling(2.0))])
@pytest.mark.parametrize(("slots", "parked"), [(1, 0), (2, 0), (2, 4), (8, 8)])
def test_those_that_part_where_no_slot_is_free_wait(request, model, sampling, slots, parked):
    def sampled(engine: Engine, seeds: Sequence[int]) -> list[list[int]]:
        found = extend(engine, PROMPT, seeds, until="limit", sampling=sampling)
        return [completion.tokens for completion in found]

    found = request.getfixturevalue(model)
    gguf = str(getattr(found, "gguf", found))
    alone = [sampled(Engine(gguf, settings(slots=1, kv_type="F32")), [seed])[0] for seed in range(20)]
    engine = Engine(gguf, settings(slots=slots, parked=parked, kv_type="F32"))
    for other in range(3):
        engine.submit(Extend(50 + other, [*PROMPT, other], [other, 7], "end", 9, NORMAL))
    assert sampled(engine, range(20)) == alone
    assert engine.stats.shared > 0 and len({*map(tuple, alone)}) > 4


def test_a_step_that_ends_beside_a_branch_that_goes_on_stays_cached(smollm2):
    engine = Engine(str(smollm2), settings(slots=16, parked=16))
    prompt = engine.vocabulary.prompt("Name three rivers in Europe.")
    tried = (
        (found, completion)
        for first in range(0, 160, 16)
        for found in [extend(engine, prompt, range(first, first + 16), until="step", limit=40, sampling=Sampling(0.6))]
        for completion in found
    )
    ended = next(c for found, c in tried if c.finish == "step" and any(_goes_on(other, c) for other in found))
    before = engine.stats.prefilled
    extend(engine, prompt + ended.tokens, [3], limit=4)
    assert engine.stats.prefilled - before == 1


def _goes_on(other: Completion, ended: Completion) -> bool:
    """Whether the other one parted from it only where it ended."""
    begins = len(ended.tokens) - 1
    return other.tokens[:begins] == ended.tokens[:begins] and begins < len(other.tokens) and other != ended


def test_release_is_only_a_hint(tiny):
    engine = Engine(str(tiny.gguf), settings())
    before = extend(engine, PROMPT, [1, 2])
    engine.submit(Release([PROMPT, PROMPT + before[0].tokens, [1, 2, 3]]))
    assert [c.tokens for c in extend(engine, PROMPT, [1, 2])] == [c.tokens for c in before]


def test_steps_end_at_a_line_break_and_responses_at_the_end_token(tiny):
    engine = Engine(str(tiny.gguf), settings())
    newline, pieces = 0, engine.vocabulary.pieces
    for seed in range(120):
        (completion,) = extend(engine, PROMPT, [seed], until="step", limit=40, sampling=Sampling(2.0))
        text = [pieces[t] for t in completion.tokens]
        joined = b"".join(text)
        if completion.finish == "step":
            newline += 1
            assert text[-1] == b"\n"
            assert b"\n" not in joined[:-1].lstrip()
        elif completion.finish == "end":
            assert engine.vocabulary.ends[completion.tokens[-1]]
            assert not engine.vocabulary.ends[completion.tokens[:-1]].any()
        else:
            assert len(completion.tokens) == 40
    assert newline > 0


def test_a_branch_at_the_end_of_its_context_finishes_as_length(tiny):
    engine = Engine(str(tiny.gguf), settings(slots=2))
    for completion in extend(engine, PROMPT, [1, 2, 3], limit=10_000):
        assert completion.finish in ("length", "end")
        assert len(PROMPT) + len(completion.tokens) <= engine.context
    with pytest.raises(EngineError, match="do not fit"):
        extend(engine, [65] * engine.context, [1])


def test_a_long_prompt_is_prefilled_in_chunks(tiny):
    prompt = (PROMPT * 40)[:200]
    whole = extend(Engine(str(tiny.gguf), settings()), prompt, [5])
    chunked = extend(Engine(str(tiny.gguf), settings(prefill_chunk=16)), prompt, [5])
    assert whole[0].tokens == chunked[0].tokens
    assert whole[0].logprobs == pytest.approx(chunked[0].logprobs, abs=0.02)


def test_a_broken_model_is_an_error(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="cannot load"):
        Engine(str(tmp_path / "x.gguf"), settings())


def _forget_everything(engine: Engine) -> None:
    """Make the engine drop a slot's cache whenever its job ends."""
    keep = engine.cache.free
    engine.cache.free = lambda slot, n, released=False: keep(slot, 0, released)


def test_forced_eviction_of_every_node_changes_nothing(tiny):
    def grow(engine: Engine) -> list[list[int]]:
        found, paths = [], [PROMPT * 4]
        for level in range(3):
            paths = [
                path + c.tokens
                for path in paths
                for c in extend(engine, path, [level, level + 10], limit=6)
                if c.finish == "length"
            ]
            found += paths
        return found

    kept, forgetful = Engine(str(tiny.gguf), settings()), Engine(str(tiny.gguf), settings())
    _forget_everything(forgetful)
    assert grow(kept) == grow(forgetful)
    assert forgetful.stats.prefilled > 1.5 * kept.stats.prefilled


def test_a_recurrent_model_forks_where_its_state_is(tiny_mamba):
    """Its state cannot go back: right log-probabilities, and the same draws whatever was cached, parked or lost."""
    alone = [extend(Engine(str(tiny_mamba.gguf), settings(slots=1)), PROMPT, [seed])[0] for seed in range(6)]
    for completion in alone:
        expected = torch_scores(tiny_mamba.model, PROMPT, completion.tokens)
        assert completion.logprobs == pytest.approx(expected, abs=0.02)
    for slots, parked in ((2, 0), (3, 2), (8, 8)):
        engine = Engine(str(tiny_mamba.gguf), settings(slots=slots, parked=parked))
        assert not engine.cache.truncates
        for other in range(3):
            engine.submit(Extend(50 + other, [*PROMPT, other], [other, 7], "end", 9, NORMAL))
        together = extend(engine, PROMPT, list(range(6)))
        assert [c.tokens for c in together] == [c.tokens for c in alone]
        # Steps and what grows from them, twice, in an engine that has decoded past them in between.
        for seed in range(20):
            (step,) = extend(engine, PROMPT, [seed], until="step", limit=30, sampling=Sampling(2.0))
            grown = [extend(engine, PROMPT + step.tokens, [3, 4], limit=5) for _ in range(2)]
            fresh = extend(Engine(str(tiny_mamba.gguf), settings()), PROMPT + step.tokens, [3, 4], limit=5)
            assert [c.tokens for c in grown[0]] == [c.tokens for c in grown[1]] == [c.tokens for c in fresh]


def test_greedy_text_is_that_of_llama_on_the_real_model(smollm2):
    import llama_cpp

    engine = Engine(str(smollm2), settings(slots=1, kv_type="F32"))
    llama = llama_cpp.Llama(str(smollm2), n_ctx=256, n_threads=2, verbose=False, type_k=0, type_v=0)
    for question in ("What is 2 + 2?", "Name three rivers in Europe.", "Why is the sky blue?"):
        prompt = engine.vocabulary.prompt(question)
        (ours,) = extend(engine, prompt, [1], sampling=GREEDY, limit=48)
        theirs = []
        for token in llama.generate(prompt, top_k=1, temp=0.0):
            theirs.append(int(token))
            if engine.vocabulary.ends[token] or len(theirs) == 48:
                break
        assert ours.tokens == theirs
