"""How much a round samples, scores and learns from, in tokens: expected values, before anything is known but a probe.

Of a search, M beams and N candidates wide, the first step has N candidates and every later one N of each live beam,
M x N at most. A candidate is a step, and a future unless the step ended the response; futures get shorter as steps are
kept. A candidate that repeats another has no future and counts for neither, a beam whose response has ended is not
expanded, and the search ends when none is live or after K steps. None of this is written down here: the search runs,
with the pairs and packs that follow, on a sampler that only counts (`counting.py`). It is told how long responses are
and where their steps end; later rounds are taken to be like the first. Pairs are counted before the recipe's filters.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from genius_lite.foresight.pairs import preference_pairs
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.learner.footprint import MERGED_ON_CPU
from genius_lite.learner.packing import Pack, by_query, packs
from genius_lite.planning.counting import CountingSampler
from genius_lite.planning.probe import Probe
from genius_lite.recipe import Pairs, Recipe
from genius_lite.records import PreferencePair, Query, Rollout

_SEARCHED = 32  # queries; of more, so many are searched and stand for all
_KEY = (0, "plan")


@dataclass(frozen=True)
class Sampled:
    """What a sampler does in one session: tokens that it draws, prompts' that it prefills, and decodes."""

    sampled: float
    prefilled: float
    ticks: float

    def times(self, factor: float) -> Sampled:
        return Sampled(self.sampled * factor, self.prefilled * factor, self.ticks * factor)


@dataclass(frozen=True)
class Learned:
    """What a training goes through: pairs that are learned from, tokens of all their packs, and how many those are.

    `largest` is the biggest pack in tokens, `counted` those of its tokens whose log-probability is wanted.
    """

    pairs: float
    tokens: float
    packs: float
    largest: int
    counted: int


@dataclass(frozen=True)
class Round:
    """What a round is expected to do."""

    rollouts: Sampled
    learned: Learned


def expected(
    recipe: Recipe,
    queries: Sequence[Query],
    probe: Probe,
    slots: int,
    *,
    trees: bool,
    cpu: bool,
) -> Round:
    """Search, pair and pack the queries at the probe's lengths.

    Args:
        trees: responses share prefixes in the learner, else each takes a padded row.
        cpu: the learner's device.
    """
    some = list(queries[:_SEARCHED])
    rollouts, counted = asyncio.run(_search(recipe, some, probe, slots))
    scale = len(queries) / len(some)
    # The probe's responses have lengths and no content: there is nothing to vote on, and no loop to look for.
    drawn = Pairs(negatives=recipe.pairs.negatives, min_gap=0.0, looping="keep", truncated="keep")
    pairs, _ = preference_pairs(rollouts, drawn, recipe.foresight.tau, _KEY, lambda response: None)
    made = packed(pairs, recipe.learner.max_pack_tokens, recipe.learner.batch_pairs, trees=trees, cpu=cpu)
    largest = max(made, key=lambda pack: pack.tokens, default=None)
    learned = Learned(
        pairs=scale * len(pairs),
        tokens=scale * sum(pack.tokens for pack in made),
        packs=scale * len(made),
        largest=largest.tokens if largest else 0,
        counted=len(largest.inputs.targets_S) if largest else 0,
    )
    return Round(Sampled(counted.sampled, counted.prefilled, counted.ticks).times(scale), learned)


async def _search(
    recipe: Recipe, queries: list[Query], probe: Probe, slots: int
) -> tuple[list[Rollout], CountingSampler]:
    sampler, found = CountingSampler(probe, slots), []
    cfg = recipe.foresight

    def failed(query: Query, reason: str) -> None:
        raise AssertionError(f"{query.id}: {reason}")

    work = asyncio.ensure_future(
        sample_rollouts(queries, sampler, cfg, _KEY, searches_in_flight(slots, cfg), found.append, failed)
    )
    await sampler.serve(work)
    await work
    return found, sampler


def packed(pairs: list[PreferencePair], max_tokens: int, batch_pairs: int, *, trees: bool, cpu: bool) -> list[Pack]:
    """The packs of an epoch: updates take queries until they have their pairs, and pack each batch for itself."""
    merged = min(max_tokens, MERGED_ON_CPU) if cpu else max_tokens
    found: list[Pack] = []
    batch: list[list[PreferencePair]] = []
    groups = by_query(pairs)
    for group in groups:
        batch.append(group)
        if sum(map(len, batch)) >= batch_pairs or group is groups[-1]:
            found += packs(batch, max_tokens, merged, trees)
            batch = []
    return found


def answered(prompts: Sequence[int], samples: int, probe: Probe, slots: int) -> Sampled:
    """So many responses to each prompt, asked all at once: every lane is busy until the last ones.

    Args:
        prompts: their lengths in tokens.
    """
    length = probe.mean_length
    sampled = len(prompts) * samples * length
    return Sampled(sampled, sum(prompts), sampled / slots + length)


def mean_tokens(queries: Sequence[Query]) -> float:
    """Of a prompt."""
    return statistics.fmean(len(query.tokens) for query in queries)
