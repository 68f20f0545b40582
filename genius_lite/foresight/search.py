"""Stepwise foresight search for one query.

For k = 1 .. K, with M beams and N candidates of each (Genius, arXiv 2504.08672):

    f(c) = mean log-probability of the future simulated from candidate c, nats per token    (Eq. 1)
    F    = softmax(f / tau) over the candidates                                             (Eq. 2)
    the next M beams are drawn from F without replacement                                   (Eq. 3)
    Q(beam) = f of the candidate that became it                                             (Eq. 4)
    A(c) = f(c) - Q(parent beam of c)                                                       (Eq. 6)

Where the paper is silent:
- Q is 0 at the first step.
- A candidate whose step ends the response has no future: f is the step's own mean log-probability.
- A finished beam is not expanded, and the search ends early when no beam is live.
- Candidates with the same tokens are one candidate; the repeats are counted.
- Log-probabilities are of the raw distribution, whatever the sampling temperature.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from genius_lite.foresight.resample import draw_without_replacement
from genius_lite.recipe import Foresight
from genius_lite.records import Candidate, Query, Rollout, Step, seed_of
from genius_lite.sampler.client import Sampler
from genius_lite.sampler.tree import Node


@dataclass(frozen=True)
class Beam:
    """A kept partial response: its place among the kept, its node, and its Q."""

    index: int
    node: Node
    value: float


async def foresee(query: Query, sampler: Sampler, cfg: Foresight, key: tuple[int | str, ...]) -> Rollout:
    """Search one query; hundreds of these run at once and share each decode.

    Args:
        key: names every generator of this search: (seed, round, query id).
    """
    rng = np.random.default_rng(seed_of(*key, "resample"))
    beams = [Beam(0, Node(None, query.tokens, key), value=0.0)]
    steps: list[Step] = []
    for k in range(cfg.steps):
        candidates, nodes, duplicates = await _expand(beams, sampler, cfg)
        kept = draw_without_replacement([c.value for c in candidates], cfg.tau, cfg.beams, rng)
        steps.append(Step(k, candidates, kept, duplicates))
        sampler.release(nodes[i] for i in range(len(nodes)) if i not in kept)
        beams = [
            Beam(place, nodes[i], candidates[i].value)
            for place, i in enumerate(kept)
            if _is_live(nodes[i], cfg.max_tokens)
        ]
        if not beams:
            break
    sampler.release(beam.node for beam in beams)
    return Rollout(query, steps)


async def _expand(beams: list[Beam], sampler: Sampler, cfg: Foresight) -> tuple[list[Candidate], list[Node], int]:
    """The distinct candidates of all beams with their step nodes, and the number of repeats."""
    branches = [
        (beam, branch)
        for beam in beams
        for branch in sampler.extend(
            beam.node, cfg.candidates, until="step", limit=cfg.max_tokens - len(beam.node.response)
        )
    ]
    seen: set[tuple[int, ...]] = set()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_simulate(beam, branch, seen, sampler, cfg)) for beam, branch in branches]
    found = [task.result() for task in tasks]
    # Which of two equal branches ends first is chance; the order of the distinct ones must not be.
    simulated = {path: (candidate, node) for path, candidate, node in found if candidate}
    distinct = [simulated[path] for path in dict.fromkeys(path for path, _, _ in found)]
    return [c for c, _ in distinct], [n for _, n in distinct], len(found) - len(distinct)


async def _simulate(
    beam: Beam, branch: asyncio.Future[Node], seen: set[tuple[int, ...]], sampler: Sampler, cfg: Foresight
) -> tuple[tuple[int, ...], Candidate | None, Node]:
    """One candidate: its step and, as soon as that is there, its future; no candidate if it repeats another."""
    node = await branch
    path = (beam.index, *node.tokens)
    if path in seen:
        sampler.release([node])
        return path, None, node
    seen.add(path)
    assert node.completion
    future = None
    if _is_live(node, cfg.max_tokens):
        (simulated,) = sampler.extend(node, 1, until="end", limit=cfg.max_tokens - len(node.response))
        future = (await simulated).completion
    value = (future or node.completion).mean_logprob
    return path, Candidate(beam.index, node.completion, future, value, value - beam.value), node


def _is_live(node: Node, max_tokens: int) -> bool:
    """Whether the response goes on after this step."""
    assert node.completion
    return node.completion.finish == "step" and len(node.response) < max_tokens
