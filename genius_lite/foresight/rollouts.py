"""All searches of a round at once, each written to the log as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from genius_lite.foresight.search import foresee
from genius_lite.recipe import Foresight
from genius_lite.records import Query, Rollout
from genius_lite.rundir import RecordLog
from genius_lite.sampler.client import Sampler


def searches_in_flight(slots: int, cfg: Foresight) -> int:
    """Twice the searches that the slots hold: some branches always wait for the rest of their step."""
    return max(1, round(2 * slots / (cfg.beams * cfg.candidates)))


async def sample_rollouts(
    queries: list[Query],
    sampler: Sampler,
    cfg: Foresight,
    key: tuple[int | str, ...],
    in_flight: int,
    log: RecordLog[Rollout],
    advance: Callable[[int], None],
) -> None:
    """Search the queries that the log does not hold yet.

    Args:
        key: (seed, round); each query adds its id.
        in_flight: searches under way at once. More than the sampler's slots can hold evict each other's cache.
        advance: called with 1 after each query.
    """
    gate = asyncio.Semaphore(in_flight)

    async def search(query: Query) -> None:
        async with gate:
            log.append(await foresee(query, sampler, cfg, (*key, query.id)))
            advance(1)

    done = {rollout.query.id for rollout in log.records}
    async with asyncio.TaskGroup() as group:
        for query in queries:
            if query.id not in done:
                group.create_task(search(query))
