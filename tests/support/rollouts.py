"""Rollouts as hypothesis draws them: any that a search could make, of few tokens and values, so that some are equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import strategies as st
from msgspec.structs import replace

from genius_lite.foresight.filters import Answer
from genius_lite.foresight.pairs import draw_pairs
from genius_lite.recipe import Pairs
from genius_lite.records import Candidate, Completion, PreferencePair, Query, Rollout, Step


def preference_pairs(
    rollouts: Iterable[Rollout], cfg: Pairs, tau: float, key: tuple[int | str, ...], answer: Answer
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs, and what each filter left without one."""
    left_out = Counter[str]()
    return [*draw_pairs(rollouts, cfg, tau, key, answer, left_out)], dict(left_out)


def last_digit(tokens: list[int]) -> str | None:
    """A response of these tests answers with its last token; 0 and 3 state nothing."""
    return None if tokens[-1] in (0, 3) else str(tokens[-1])


logprobs = st.sampled_from([-0.125, -0.25, -0.5, -1.0, -2.0, -30.0])


@st.composite
def completions(draw, *finishes: str) -> Completion:
    tokens = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)) * draw(st.sampled_from([1, 1, 1, 9]))  # loops
    return Completion(tokens, [draw(logprobs) for _ in tokens], draw(st.sampled_from(finishes)))


@st.composite
def rollouts(draw, query: str = "q") -> Rollout:
    """Two to three steps at most; some of a later step's candidates ended with their step."""
    steps: list[Step] = []
    live, values = [0], [0.0]  # beams that go on, and the value of each
    for index in range(draw(st.integers(1, 3))):
        candidates = []
        for beam in live:
            for _ in range(draw(st.integers(1, 3))):
                step = draw(completions("step", "end", "length"))
                future = draw(completions("end", "length")) if step.finish == "step" else None
                value = (future or step).mean_logprob
                candidates.append(Candidate(beam, step, future, value, value - values[beam]))
        drawn = Counter((c.beam, *c.step.tokens) for c in candidates)
        first = {(c.beam, *c.step.tokens): c for c in reversed(candidates)}
        distinct = [replace(first[path], times=times) for path, times in drawn.items()]
        places = range(len(distinct))
        kept = sorted(draw(st.lists(st.sampled_from(places), min_size=1, max_size=2, unique=True)))
        foreseen = draw(st.booleans()) or not steps
        steps.append(Step(index, distinct, kept, foreseen))
        values = [distinct[i].value for i in kept]
        live = [place for place, i in enumerate(kept) if distinct[i].step.finish == "step"]
        if not live:
            break
    return Rollout(Query(query, "x", [8, 9]), steps)
