"""How much a round samples and learns from, in tokens: expected values, from lengths of responses.

How a search goes on is not written down here: it runs, with the pairs and packs that follow, on a sampler that only
counts, and is told how long responses are and where their steps end. Later rounds are taken to be like the first. Of
the recipe's filters the one of truncated responses counts.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import msgspec
import numpy as np

from genius_lite.foresight.pairs import draw_pairs
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.learner.footprint import merged_tokens
from genius_lite.learner.packing import Group, Pack, by_query, computed, packs
from genius_lite.plan.lengths import Lengths, ResponseLength
from genius_lite.recipe import Foresight, Learner, Pairs, Recipe
from genius_lite.records import Completion, Finish, PreferencePair, Query, Rollout
from genius_lite.sampler.interface import run_until_complete
from genius_lite.sampler.messages import Until
from genius_lite.sampler.tree import Node

ANY_PAIRS = Pairs(min_gap=0.0, looping="keep", truncated="keep")
"""Responses of which only the length matters: there is nothing to vote on, and no loop to look for."""
_SEARCHED = 32  # queries; of more, so many stand for all, and fewer are searched that often
# Candidates of a step; of more, so many stand for all: each takes 0.1 ms, and memory for its tokens. Those that repeat
# another one, and are not foreseen, become more with their number: 512 with a chance of 0.05 come out a fifth too high.
_WIDEST = 128
_KEY = (0, "plan")
_QUIET = 12  # turns of the event loop after which every search waits for the sampler
_SPREAD = 0.1  # nats a token, by which responses that begin like one differ from it


@dataclass(frozen=True)
class SamplingWork:
    """What a sampler does in one session: tokens that it draws, prompts' that it prefills, and decodes."""

    sampled: float
    prefilled: float
    ticks: float


@dataclass(frozen=True)
class Work:
    """What a round is expected to do: its rollouts, then a training on so many pairs.

    `learned` are tokens of all their packs, `updated` those of packs that updates compute. `passes` are tokens of some
    of the latter packs, `counted` those of the largest whose log-probability is wanted.
    """

    rollouts: SamplingWork
    pairs: float
    learned: float
    updated: float
    passes: list[int]
    counted: int


def expected_work(
    recipe: Recipe, queries: Sequence[Query], lengths: Lengths, slots: int, *, trees: bool, on_cpu: bool
) -> Work:
    """Search, pair and pack the queries at these lengths.

    Args:
        trees: responses share prefixes in the learner, else each takes a padded row; it is `on_cpu`, or not.
    """
    times, wanted = max(1, _SEARCHED // len(queries)), recipe.foresight
    some = [msgspec.structs.replace(q, id=f"{q.id}, {n}") for n in range(times) for q in queries[:_SEARCHED]]
    candidates = min(wanted.candidates, _WIDEST)
    beams = min(wanted.beams, _WIDEST // candidates)
    narrow = wanted.model_copy(update={"beams": beams, "candidates": candidates})
    rollouts, counted = run_until_complete(_search(narrow, some, lengths, slots))
    scale, later = len(queries) / len(some), wanted.beams * wanted.candidates / (beams * candidates)
    first = wanted.candidates / candidates if wanted.steps else later
    steps = [step for rollout in rollouts for step in rollout.steps]
    sampled = sum(step.sampled_tokens * (later if step.index else first) for step in steps)
    drawn = ANY_PAIRS.model_copy(update={"negatives": recipe.pairs.negatives, "truncated": recipe.pairs.truncated})
    pairs = [*draw_pairs(rollouts, drawn, wanted.tau, _KEY, lambda response: None, Counter())]
    cfg = recipe.learner
    whole = made = _packed(pairs, cfg, trees=trees, on_cpu=on_cpu)
    if cfg.chosen_alone:
        made = _packed(computed(pairs, cfg), cfg, trees=trees, on_cpu=on_cpu)
    largest = max(made, key=lambda pack: pack.tokens, default=None)
    ticks = counted.ticks * (sampled / counted.sampled)
    return Work(
        SamplingWork(scale * sampled, scale * counted.prefilled, scale * ticks),
        pairs=scale * len(pairs),
        learned=scale * sum(pack.tokens for pack in whole),
        updated=scale * sum(pack.tokens for pack in made),
        passes=[pack.tokens for pack in made],
        counted=len(largest.inputs().targets_S) if largest else 0,
    )


async def _search(
    cfg: Foresight, queries: list[Query], lengths: Lengths, slots: int
) -> tuple[list[Rollout], CountingSampler]:
    sampler, found = CountingSampler(lengths, slots), []

    def failed(query: Query, reason: str) -> None:
        raise AssertionError(f"{query.id}: {reason}")

    work = asyncio.ensure_future(
        sample_rollouts(queries, sampler, cfg, _KEY, searches_in_flight(slots, cfg), found.append, failed)
    )
    await sampler.serve(work)
    await work
    return found, sampler


def _packed(pairs: Sequence[PreferencePair], cfg: Learner, *, trees: bool, on_cpu: bool) -> list[Pack]:
    """Pack an epoch's pairs: updates take queries until they have their pairs, and pack each batch for itself."""
    merged = merged_tokens(cfg.max_pack_tokens, on_cpu)
    found: list[Pack] = []
    batch = list[Group]()
    for group in by_query(pairs):
        batch.append(group)
        if sum(map(len, batch)) >= cfg.batch_pairs:
            found += packs(batch, cfg.max_pack_tokens, merged, trees)
            batch = []
    return [*found, *packs(batch, cfg.max_pack_tokens, merged, trees)]


def answered(prompts: Sequence[int], samples: int, lengths: Lengths, slots: int) -> SamplingWork:
    """Count so many responses to each prompt, of so many tokens, asked all at once: a free slot takes the next."""
    known = [response.length for row in lengths.responses for response in row]
    responses = list(islice(cycle(known), len(prompts) * samples))
    ends = [0] * slots
    for length in responses:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return SamplingWork(sum(responses), sum(prompts), max(ends))


_Branch = tuple[int, Node, Completion, asyncio.Future[Node]]
"""Its number among all that were asked for; what it goes on from, what it will say, and who waits for it."""


class CountingSampler:
    """Offers what a search needs of a sampler (`Sampler`), at given lengths of responses and in no time.

    So what is expected of a round follows from the search's own code, whatever the recipe changes in it. Its clock
    ticks as the engine does, once for each decode, in which every busy branch gets a token.

    `sampled` are tokens, repeats included; `prefilled` those of prompts; `ticks` decodes. Of four runs (SmolLM2 with 64
    and 96 tokens, Qwen2.5-0.5B with 128, 1.5B with 256) what is counted comes to 0.94 to 1.06 of what they sampled.

    Args:
        lanes: branches that decode together.
    """

    def __init__(self, lengths: Lengths, lanes: int):
        self.sampled = self.prefilled = self.ticks = 0
        self._lengths, self._free, self._rng = lengths, lanes, np.random.default_rng(0)
        self._rows: dict[tuple[int | str, ...], int] = {}  # of the lengths, by search
        self._every = [response for row in lengths.responses for response in row]
        self._drawn: dict[int, ResponseLength] = {}  # what each token's completion was drawn from
        self._soon: deque[_Branch] = deque()  # futures, which go on in the lane of their step
        self._later: deque[_Branch] = deque()
        self._running: list[tuple[int, _Branch]] = []  # a heap by the tick at which they end, then by number
        self._asked = self._tokens = 0

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        if node.parent is None:
            self.prefilled += len(node.tokens)
        made: list[Completion] = []
        alike = self._lengths.later if node.parent else self._lengths.repeats
        for _ in range(n):
            again = until == "step" and made and self._rng.random() < 1 - (1 - alike) ** len(made)
            made.append(made[0] if again else self._completion(node, until, limit))
        futures: list[asyncio.Future[Node]] = [asyncio.get_running_loop().create_future() for _ in made]
        waiting = self._soon if until == "end" else self._later
        for completion, future in zip(made, futures, strict=True):
            self._asked += 1
            waiting.append((self._asked, node, completion, future))
        return futures

    def release(self, nodes: Iterable[Node]) -> None:
        """Nothing is held."""

    async def drain(self) -> None:
        """There is no time here to tell of."""

    async def serve(self, work: asyncio.Future[Any]) -> None:
        """Answer whatever `work` asks for, until it is done."""
        while True:
            await self._settle()
            if work.done():
                return
            self._admit()
            if not self._running:
                raise AssertionError("the searches wait for something that is no branch")
            self.ticks = self._running[0][0]
            while self._running and self._running[0][0] == self.ticks:
                _, (_, node, completion, future) = heapq.heappop(self._running)
                self._free += 1
                if not future.done():
                    future.set_result(node.child(completion))

    async def _settle(self) -> None:
        quiet, seen = 0, self._asked
        while quiet < _QUIET:
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._asked == seen else 0
            seen = self._asked

    def _admit(self) -> None:
        while self._free and (queue := self._soon or self._later):
            branch = queue.popleft()
            tokens = len(branch[2].tokens)
            self.sampled += tokens
            self._free -= 1
            heapq.heappush(self._running, (self.ticks + tokens, branch))

    def _completion(self, node: Node, until: Until, limit: int) -> Completion:
        """Go on as the known responses to one query do, drawn for each search, from the length of the node.

        A future is the rest of the response that its step was drawn from.
        """
        start = len(node.response)
        if until == "end" and node.completion:
            response = self._drawn[node.completion.tokens[-1]]
        else:
            response = self._draw(node, start)
        end = response.length
        finish: Finish = "end"
        if until == "step" and (steps := [step for step in response.steps if step > start]):
            end, finish = steps[0], "step"
        if end - start >= limit:  # what is as long as the limit was cut off there
            end, finish = start + limit, "length"
        self._tokens += 1  # no two branches say the same, but for repeats
        self._drawn[self._tokens] = response
        mean = min(0.0, float(self._rng.normal(response.value, _SPREAD)))
        return Completion([self._tokens] * (end - start), [mean] * (end - start), finish)

    def _draw(self, node: Node, start: int) -> ResponseLength:
        """Choose a response that goes on beyond a place: of the same query if one does."""
        rows = self._lengths.responses
        own = rows[self._rows.setdefault(node.key, len(self._rows)) % len(rows)]
        some = _going_on(own, start) or _going_on(self._every, start)
        return some[int(self._rng.integers(len(some)))] if some else ResponseLength(start + 1, [])


def _going_on(row: list[ResponseLength], start: int) -> list[ResponseLength]:
    """Choose the responses that reach beyond a place; after a step those that have one before it too."""
    longer = [r for r in row if r.length > start]
    return [r for r in longer if r.steps and r.steps[0] <= start] if start else longer
