"""The sampler that searches the queries of a round: this machine's, a server, or the nodes of a cluster.

A further backend is a file with a `Sampler`, and a case in `open_backend`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from genius_lite.cluster.actor import HostSettings
from genius_lite.cluster.ray import sample_on_cluster
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.pipeline.round import Policy, Round
from genius_lite.pipeline.server_check import open_checked_server
from genius_lite.progress import Advance
from genius_lite.records import FailedQuery, Query, Rollout
from genius_lite.results.rounds import Stats
from genius_lite.rundir.folder import write_json
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import LocalSampler, Sampler, open_sampler
from genius_lite.sampler.messages import Sampling
from genius_lite.weights.gguf_file import sha256


async def search(
    r: Round,
    policy: Policy,
    queries: list[Query],
    log: RecordLog[Rollout],
    failures: RecordLog[FailedQuery],
    advance: Advance,
) -> Stats | None:
    """Search these queries, each into one of the two logs as it ends; what the sampler did if it is here.

    Args:
        advance: called with parts of a query, one for each step.

    Raises:
        UserError: the server or the cluster of the recipe is not there, or cannot take this model.
    """
    cfg = r.job.recipe.foresight
    with Vocabulary.open(r.job.source.path) as vocabulary:

        def stepped(so_far: Rollout) -> None:
            advance(1 / cfg.steps)
            r.progress.stepped(so_far, vocabulary.decode)

        def failed(query: Query, reason: str) -> None:
            failures.append(FailedQuery(query.id, reason))
            r.progress.say(f"warning: query {query.id} failed: {reason}")

        def finished(rollout: Rollout) -> None:
            log.append(rollout)
            advance(1 - len(rollout.steps) / cfg.steps)
            r.progress.searched(rollout)

        def finished_elsewhere(rollout: Rollout) -> None:
            for made in range(len(rollout.steps)):
                stepped(Rollout(rollout.query, rollout.steps[: made + 1]))
            finished(rollout)

        if r.job.recipe.sampler.cluster != "local":
            await _search_on_cluster(r, policy, queries, finished_elsewhere, failed)
            return None
        async with open_backend(r, policy, vocabulary, queries) as (sampler, slots):
            in_flight = searches_in_flight(slots, cfg)
            await sample_rollouts(queries, sampler, cfg, r.key, in_flight, finished, failed, stepped, r.stop)
            return await sampler.drain() if isinstance(sampler, LocalSampler) else None


@asynccontextmanager
async def open_backend(
    r: Round, policy: Policy, vocabulary: Vocabulary, queries: list[Query]
) -> AsyncIterator[tuple[Sampler, int]]:
    """Open the recipe's sampler with the policy in it; gives it with the number of branches that it decodes at once."""
    cfg, sampling = r.job.recipe.sampler, Sampling.of(r.job.recipe.foresight)
    if cfg.server:
        async with open_checked_server(r, policy, cfg.server, vocabulary, sampling, queries) as server:
            yield server, cfg.server.in_flight
        return
    settings, say = policy.settings(r.engine), r.progress.say
    async with open_sampler(policy.gguf, settings, sampling, r.sampler_log, patience=cfg.watchdog, say=say) as sampler:
        yield sampler, r.engine.slots


async def _search_on_cluster(
    r: Round,
    policy: Policy,
    queries: list[Query],
    finished: Callable[[Rollout], None],
    failed: Callable[[Query, str], None],
) -> None:
    if policy.gguf == r.job.source.path and len(r.job.source.files) > 1:
        raise UserError("sampler.cluster takes a model in one file; merge yours with llama-gguf-split --merge")
    cfg = r.job.recipe.sampler
    files = {sha256([path]): path for path in (policy.gguf, policy.lora) if path}
    model, lora = [*files, ""][:2]
    settings = HostSettings(model, lora, cfg, r.job.recipe.foresight, r.job.context, r.key)
    counts = await sample_on_cluster(cfg.cluster, queries, settings, files, finished, failed, r.progress.say, r.stop)
    write_json(r.here / "hosts.json", counts)  # by host; of the last process that sampled this round
