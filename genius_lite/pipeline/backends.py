"""Who searches the queries of a round: this machine, or what the recipe names in its place.

A further backend is a file of its own with a `Sampler`, and here a function that opens it, and its key in `REMOTE`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from genius_lite.cluster.actor import HostSettings
from genius_lite.cluster.ray import sample_on_cluster
from genius_lite.cluster.work_queue import WorkQueue
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import first_of, sample_rollouts, searches_in_flight
from genius_lite.pipeline.agreement import check_server
from genius_lite.pipeline.round import Policy, Round
from genius_lite.progress import Advance
from genius_lite.records import FailedQuery, Query, Rollout
from genius_lite.results.rounds import Stats
from genius_lite.rundir import folder
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.interface import Sampler
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.server import open_server_sampler
from genius_lite.sampler.server_key import is_open
from genius_lite.weights.gguf_file import sha256


@dataclass(frozen=True)
class Search:
    """Queries to be searched with a policy, and where their searches go: what a backend is given.

    `advance` is called with parts of a query, one for each step.
    """

    r: Round
    policy: Policy
    queries: list[Query]
    vocabulary: Vocabulary
    log: RecordLog[Rollout]
    failures: RecordLog[FailedQuery]
    advance: Advance

    async def sample_with(self, sampler: Sampler, slots: int) -> Stats | None:
        """Search with a sampler that decodes so many branches at once."""
        r, cfg = self.r, self.r.job.recipe.foresight
        in_flight = searches_in_flight(slots, cfg)
        await sample_rollouts(
            self.queries, sampler, cfg, r.key, in_flight, self.finished, self.failed, self.stepped, r.stop
        )
        return await sampler.drain()

    def stepped(self, so_far: Rollout) -> None:
        """Show a search that has made a step."""
        self.advance(1 / self.r.job.recipe.foresight.most_steps)
        self.r.progress.stepped(so_far, self.vocabulary.decode)

    def finished(self, rollout: Rollout) -> None:
        """Keep a search that has ended, whose steps were shown."""
        self.log.append(rollout)
        self.advance(1 - len(rollout.steps) / self.r.job.recipe.foresight.most_steps)
        self.r.progress.searched(rollout)

    def finished_elsewhere(self, rollout: Rollout) -> None:
        """Keep a search of which nothing was shown."""
        for made in range(len(rollout.steps)):
            self.stepped(Rollout(rollout.query, rollout.steps[: made + 1]))
        self.finished(rollout)

    def failed(self, query: Query, reason: str) -> None:
        """Set a query aside."""
        self.failures.append(FailedQuery(query.id, reason))
        self.r.progress.say(f"warning: query {query.id} failed: {reason}")


async def search(s: Search) -> Stats | None:
    """Search the queries, each into one of the two logs as it ends; what the sampler did, if that is known.

    Raises:
        UserError: the backend of the recipe is not there, or cannot take this model.
    """
    there = s.r.job.recipe.sampler.elsewhere
    return await (REMOTE[there[0]] if there else _here)(s)


async def _here(s: Search) -> Stats | None:
    r, settings, sampling = s.r, s.policy.settings(s.r.engine), Sampling.of(s.r.job.recipe.foresight)
    async with open_sampler(s.policy.gguf, settings, sampling, r.sampler_log, say=r.progress.say) as sampler:
        return await s.sample_with(sampler, r.engine.slots)


async def _on_server(s: Search) -> Stats | None:
    """Search on the recipe's server. Raises UserError where it answers no more, too, which loses nothing."""
    cfg, sampling = s.r.job.recipe.sampler.server, Sampling.of(s.r.job.recipe.foresight)
    assert cfg
    try:
        async with open_server_sampler(cfg, s.vocabulary, sampling, s.queries[0].tokens) as server:
            if is_open(cfg.url):
                s.r.progress.say(f"warning: the key goes to {cfg.url} without encryption; take https, or a tunnel")
            await check_server(s.r, s.policy, cfg, server, s.queries)
            return await s.sample_with(server, cfg.in_flight)
    except ExceptionGroup as failures:
        if refused := failures.subgroup(UserError):
            raise first_of(refused) from None
        raise


async def _on_cluster(s: Search) -> None:
    r, cfg = s.r, s.r.job.recipe.sampler
    s.policy.settings(r.engine)  # which proves it: nodes do not
    if s.policy.gguf == r.job.source.path and len(r.job.source.files) > 1:
        raise UserError("sampler.cluster takes a model in one file; merge yours with llama-gguf-split --merge")
    files = {sha256([path]): path for path in (s.policy.gguf, s.policy.lora) if path}
    model, lora = [*files, ""][:2]
    settings = HostSettings(model, lora, cfg, r.job.recipe.foresight, r.job.context, r.key)
    queue = WorkQueue(s.queries, s.finished_elsewhere, s.failed, r.progress.say, r.stop)
    await sample_on_cluster(cfg.cluster, queue, settings, files)
    r.here.put_json(folder.HOSTS, dict(queue.done))


REMOTE: dict[str, Callable[[Search], Awaitable[Stats | None]]] = {"server": _on_server, "cluster": _on_cluster}
"""Every backend but this machine, by the key of the recipe's `sampler` that names it (`Sampler.places`)."""
