"""All searches of a round at once, each written to the log as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from genius_lite.errors import Stop
from genius_lite.foresight.search import foresee
from genius_lite.recipe import Foresight
from genius_lite.records import Query, Rollout
from genius_lite.sampler.interface import QueryFailedError, Sampler, SamplerError


def searches_in_flight(slots: int, cfg: Foresight) -> int:
    """Return twice the searches that the slots hold, three times if none takes a second step.

    Some branches always wait for the rest of their step, and those that say the same share a slot (of a model that has
    learned a round, so many that three was the fastest of two, three and five). More of several steps would evict each
    other's: with three they decode a fifth more of prompts and steps again.
    """
    times = 3 if cfg.steps < 2 else 2
    return max(1, round(times * slots / (cfg.beams * cfg.candidates)))


async def sample_rollouts(
    queries: list[Query],
    sampler: Sampler,
    cfg: Foresight,
    key: tuple[int | str, ...],
    in_flight: int,
    finished: Callable[[Rollout], None],
    failed: Callable[[Query, str], None],
    stepped: Callable[[Rollout], None] = lambda so_far: None,
    stop: Stop | None = None,
) -> None:
    """Search these queries, so many at once.

    Args:
        key: (seed, round); each query adds its id.
        in_flight: searches under way at once. More than the sampler's slots can hold evict each other's cache.
        failed: called, instead of `finished`, where the sampler does not survive a search, and with the reason.
        stepped: called after each step of a search with the rollout so far.
        stop: once it is asked for no other query is begun; those under way go on to their end.

    Raises:
        OSError: `finished` could not write.
        SamplerError: the sampler does nothing any more.
        ExceptionGroup: of other faults.
    """
    waiting = iter(queries)

    async def search_on() -> None:
        for query in waiting:  # which the others take from, too: no task waits for its turn
            if stop and stop.asked:
                return
            try:
                finished(await foresee(query, sampler, cfg, (*key, query.id), stepped))
            except* QueryFailedError as failures:
                failed(query, str(first_of(failures)))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(in_flight, len(queries))):
                group.create_task(search_on())
    except ExceptionGroup as failures:
        # A full disk, and a sampler that does nothing any more, are said in a line by the command line.
        if failures.split((OSError, SamplerError))[1] is None:
            raise first_of(failures) from None
        raise


def first_of(group: BaseExceptionGroup) -> BaseException:
    """Return the first exception in groups of groups."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
