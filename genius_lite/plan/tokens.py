"""How much a round samples and learns from, in tokens: expected values, from lengths of responses.

Of a search, M beams and N candidates wide, the first step has N candidates and every later one N of each live beam,
M x N at most; what has repeated another or ended the response is sampled no further. None of this is written down here:
the search runs, with the pairs and packs that follow, on a sampler that only counts. It is told how long responses are
and where their steps end; later rounds are taken to be like the first. Of the recipe's filters the one of truncated
responses counts.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import msgspec

from genius_lite.foresight.pairs import preference_pairs
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.learner.footprint import MERGED_ON_CPU
from genius_lite.learner.packing import Group, Pack, by_query, chosen_alone, packs
from genius_lite.plan.counting_sampler import CountingSampler
from genius_lite.plan.lengths import Lengths
from genius_lite.recipe import Foresight, Pairs, Recipe
from genius_lite.records import PreferencePair, Query, Rollout

ANY_PAIRS = Pairs(min_gap=0.0, looping="keep", truncated="keep")
"""Responses of which only the length matters: there is nothing to vote on, and no loop to look for."""
_SEARCHED = 32  # queries; of more, so many stand for all, and fewer are searched that often
_WIDEST = 128  # candidates of a step; of more, so many stand for all: each takes 0.1 ms, and memory for its tokens
_KEY = (0, "plan")


@dataclass(frozen=True)
class SamplingWork:
    """What a sampler does in one session: tokens that it draws, prompts' that it prefills, and decodes."""

    sampled: float
    prefilled: float
    ticks: float


@dataclass(frozen=True)
class Learned:
    """What a training goes through: pairs, and tokens of all their packs; `updated` of those that updates compute.

    `passes` are tokens of some of the latter, `counted` those of the largest whose log-probability is wanted.
    """

    pairs: float
    tokens: float
    updated: float
    passes: list[int]
    counted: int


@dataclass(frozen=True)
class Work:
    """What a round is expected to do."""

    rollouts: SamplingWork
    learned: Learned


def expected_work(
    recipe: Recipe, queries: Sequence[Query], lengths: Lengths, slots: int, *, trees: bool, on_cpu: bool
) -> Work:
    """Search, pair and pack the queries at these lengths.

    Args:
        trees: responses share prefixes in the learner, else each takes a padded row.
        on_cpu: the learner's device.
    """
    times, wanted = max(1, _SEARCHED // len(queries)), recipe.foresight
    some = [msgspec.structs.replace(q, id=f"{q.id}, {n}") for n in range(times) for q in queries[:_SEARCHED]]
    candidates = min(wanted.candidates, _WIDEST)
    beams = min(wanted.beams, _WIDEST // candidates)
    narrow = wanted.model_copy(update={"beams": beams, "candidates": candidates})
    rollouts, counted = asyncio.run(_search(narrow, some, lengths, slots))
    scale, later = len(queries) / len(some), wanted.beams * wanted.candidates / (beams * candidates)
    first = wanted.candidates / candidates if wanted.steps else later
    steps = [step for rollout in rollouts for step in rollout.steps]
    sampled = sum(step.sampled_tokens * (later if step.index else first) for step in steps)
    drawn = ANY_PAIRS.model_copy(update={"negatives": recipe.pairs.negatives, "truncated": recipe.pairs.truncated})
    pairs, _ = preference_pairs(rollouts, drawn, wanted.tau, _KEY, lambda response: None)
    cfg = recipe.learner
    whole, made = (
        packed(some, cfg.max_pack_tokens, cfg.batch_pairs, trees=trees, on_cpu=on_cpu)
        for some in (pairs, chosen_alone(pairs) if cfg.chosen_alone else pairs)
    )
    largest = max(made, key=lambda pack: pack.tokens, default=None)
    learned = Learned(
        pairs=scale * len(pairs),
        tokens=scale * sum(pack.tokens for pack in whole),
        updated=scale * sum(pack.tokens for pack in made),
        passes=[pack.tokens for pack in made],
        counted=len(largest.inputs().targets_S) if largest else 0,
    )
    ticks = counted.ticks * (sampled / counted.sampled)
    return Work(SamplingWork(scale * sampled, scale * counted.prefilled, scale * ticks), learned)


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


def packed(
    pairs: Sequence[PreferencePair], max_tokens: int, batch_pairs: int, *, trees: bool, on_cpu: bool
) -> list[Pack]:
    """Pack an epoch's pairs: updates take queries until they have their pairs, and pack each batch for itself."""
    merged = min(max_tokens, MERGED_ON_CPU) if on_cpu else max_tokens
    found: list[Pack] = []
    batch = list[Group]()
    for group in by_query(pairs):
        batch.append(group)
        if sum(map(len, batch)) >= batch_pairs:
            found += packs(batch, max_tokens, merged, trees)
            batch = []
    return [*found, *packs(batch, max_tokens, merged, trees)]


def answered(prompts: Sequence[int], samples: int, lengths: Lengths, slots: int) -> SamplingWork:
    """Count so many responses to each prompt, of so many tokens, asked all at once: a free slot takes the next."""
    known = [response.length for row in lengths.responses for response in row]
    responses = list(islice(cycle(known), len(prompts) * samples))
    ends = [0] * slots
    for length in responses:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return SamplingWork(sum(responses), sum(prompts), max(ends))
