"""A round's rollouts on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from genius_lite.cluster.handout import Handout
from genius_lite.cluster.host import Work
from genius_lite.cluster.ray import connected, recruit
from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import first_of
from genius_lite.records import Query, Rollout
from genius_lite.sampler.process import SamplerError
from genius_lite.stopping import Stop


async def sample_on_cluster(
    address: str,
    queries: Iterable[Query],
    work: Work,
    files: dict[str, Path],
    finished: Callable[[Rollout], None],
    failed: Callable[[Query, str], None],
    say: Callable[[str], None],
    stop: Stop,
) -> dict[str, int]:
    """Search these queries on the nodes of a Ray cluster; how many each host did.

    Args:
        address: `auto`, `ray://HOST:PORT` or `HOST:PORT`.
        files: of the policy, by the hashes that `work` names.
        finished, failed, stop: as in `foresight.rollouts.sample_rollouts`.
        say: told in one line which hosts take part, and which are lost.

    Raises:
        UserError: there is no such cluster, or the model does not load there.
        SamplerError: no host was there for as long as the recipe's watchdog waits.
    """
    handout = Handout(queries, finished, failed, say, stop)
    with connected(address) as ray:
        try:
            async with asyncio.TaskGroup() as group:
                recruiting = group.create_task(recruit(ray, work, files, say, handout.serve))
                await handout.over(work.sampler.watchdog)
                recruiting.cancel()
        except ExceptionGroup as failures:
            cause = first_of(failures)
            if isinstance(cause, (UserError, SamplerError)):
                raise cause from None
            raise
    return dict(handout.done)
