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

Ablations of the paper, departures from the method that are off by default:
- `value: step` (without foresight): f is the mean log-probability of the candidate's own step instead of Eq. 1. The
  future is still simulated, because pairs are of complete responses, but does not count.
- `select: greedy` (without re-sampling): the next beams are the M candidates of highest f instead of Eq. 3, of equal
  ones the first.

Cheaper, on request only (each is off by default):
- `skip_agreeing`: where all candidate steps say nearly the same no future is simulated; Q stays that of the parent.
- `future_tokens`: futures end after so many tokens.

Without a search (`steps: 0`), M x N whole responses are drawn that share nothing but the prompt, repeats included: what
a vote wants (self-consistency, Wang et al., arXiv 2203.11171). f is a response's own mean log-probability.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np
from msgspec.structs import replace

from genius_lite.errors import NonFiniteError
from genius_lite.foresight.resample import draw_without_replacement, take_highest
from genius_lite.recipe import Foresight
from genius_lite.records import Candidate, Completion, Query, Rollout, Step, seed_of
from genius_lite.sampler.interface import Sampler, all_or_none
from genius_lite.sampler.tree import Node


@dataclass(frozen=True)
class Beam:
    """A kept partial response: its place among the kept, its node, and its Q."""

    index: int
    node: Node
    value: float


async def foresee(
    query: Query,
    sampler: Sampler,
    cfg: Foresight,
    key: tuple[int | str, ...],
    stepped: Callable[[Rollout], None] = lambda so_far: None,
) -> Rollout:
    """Search one query, or only answer it; hundreds of these run at once and share each decode.

    Args:
        key: names every generator of this search: (seed, round, query id).
        stepped: called after each step with the search so far.

    Raises:
        NonFiniteError: the sampler gave a log-probability that is NaN or infinite.
    """
    root = Node(None, query.tokens, key)
    if not cfg.steps:
        answered = Rollout(query, [Step(0, await _answers(root, sampler, cfg), kept=[])])
        stepped(answered)
        return answered
    rng = np.random.default_rng(seed_of(*key, "resample"))
    beams = [Beam(0, root, value=0.0)]
    steps: list[Step] = []
    for k in range(cfg.steps):
        found = await _expand(beams, sampler, cfg)
        kept = _select([c.value for c in found.candidates], cfg, rng)
        steps.append(Step(k, found.candidates, kept, found.foreseen))
        stepped(Rollout(query, list(steps)))
        sampler.release(node for i, node in enumerate(found.nodes) if i not in kept)
        beams = [
            Beam(place, found.nodes[i], found.candidates[i].value)
            for place, i in enumerate(kept)
            if _is_live(found.nodes[i], cfg)
        ]
        if not beams:
            break
    sampler.release(beam.node for beam in beams)
    return Rollout(query, steps)


async def _answers(root: Node, sampler: Sampler, cfg: Foresight) -> list[Candidate]:
    """Draw whole responses to a prompt, each of which is a step that ends it."""
    branches = sampler.extend(root, cfg.beams * cfg.candidates, until="end", limit=cfg.response_tokens)
    nodes = await all_or_none(branches)
    sampler.release(nodes)
    return [_whole(node) for node in nodes]


def _whole(node: Node) -> Candidate:
    assert node.completion
    _check(node, node.completion)
    value = node.completion.mean_logprob
    return Candidate(beam=0, step=node.completion, future=None, value=value, advantage=value)


def _select(values: list[float], cfg: Foresight, rng: np.random.Generator) -> list[int]:
    """Which candidates become the next beams."""
    if cfg.select == "greedy":
        return take_highest(values, cfg.beams)
    return draw_without_replacement(values, cfg.tau, cfg.beams, rng)


@dataclass(frozen=True)
class Expansion:
    """The distinct candidates of a step with their step nodes."""

    candidates: list[Candidate]
    nodes: list[Node]
    foreseen: bool


async def _expand(beams: list[Beam], sampler: Sampler, cfg: Foresight) -> Expansion:
    """Sample the next steps of all beams, and simulate their futures."""
    branches = [
        (beam, branch)
        for beam in beams
        for branch in sampler.extend(
            beam.node, cfg.candidates, until="step", limit=cfg.response_tokens - len(beam.node.response)
        )
    ]
    foreseen = cfg.skip_agreeing is None or not _agree(await all_or_none(branch for _, branch in branches), cfg)
    seen = set[tuple[int, ...]]()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_candidate(beam, branch, seen, sampler, cfg, foreseen)) for beam, branch in branches]
    found = [task.result() for task in tasks]
    # Which of two equal branches ends first is chance; the order of the distinct ones must not be.
    first = {path: (candidate, node) for path, candidate, node in found if candidate}
    times = Counter(path for path, _, _ in found)
    candidates = [replace(first[path][0], times=drawn) for path, drawn in times.items()]
    return Expansion(candidates, [first[path][1] for path in times], foreseen)


async def _candidate(
    beam: Beam,
    branch: asyncio.Future[Node],
    seen: set[tuple[int, ...]],
    sampler: Sampler,
    cfg: Foresight,
    foreseen: bool,
) -> tuple[tuple[int, ...], Candidate | None, Node]:
    """One candidate: its step and, as soon as that is there, its future; none if it repeats one that was `seen`."""
    node = await branch
    path = (beam.index, *node.tokens)
    assert node.completion
    _check(node, node.completion)
    if path in seen:
        return path, None, node
    seen.add(path)
    if not foreseen:
        return path, Candidate(beam.index, node.completion, None, beam.value, 0.0), node
    future = await _simulate(node, sampler, cfg) if _is_live(node, cfg) else None
    value = (future if future and cfg.value == "future" else node.completion).mean_logprob
    return path, Candidate(beam.index, node.completion, future, value, value - beam.value), node


async def _simulate(node: Node, sampler: Sampler, cfg: Foresight) -> Completion:
    """The future of a step's node."""
    limit = cfg.response_tokens - len(node.response)
    (future,) = sampler.extend(node, 1, until="end", limit=min(limit, cfg.future_tokens or limit))
    completion = (await future).completion
    assert completion
    _check(node, completion)
    return completion


def _check(node: Node, completion: Completion) -> None:
    # A sum is finite only if all that it adds is.
    if not math.isfinite(completion.mean_logprob):
        raise NonFiniteError(
            f"query {node.key[-1]}: the log-probabilities of a completion after {len(node.path)} tokens are not finite"
        )


def _agree(nodes: Sequence[Node], cfg: Foresight) -> bool:
    """Whether all steps go on and two of them share `skip_agreeing` of their tokens on average (Jaccard's index)."""
    if len(nodes) < 2 or not all(_is_live(node, cfg) for node in nodes):
        return False
    sets = [set(node.tokens) for node in nodes]
    shares = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
    return fmean(shares) >= (cfg.skip_agreeing or 0)


def _is_live(node: Node, cfg: Foresight) -> bool:
    """Whether the response goes on after this step."""
    assert node.completion
    return node.completion.finish == "step" and len(node.response) < cfg.response_tokens
