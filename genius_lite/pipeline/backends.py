"""Who searches the queries of a round: this machine, or what the recipe names in its place.

A further backend is a file of its own with a `Sampler`, and here a function that opens it, and its key in `REMOTE`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from genius_lite.cluster.actor import HostSettings
from genius_lite.cluster.ray import sample_on_cluster
from genius_lite.cluster.work_queue import WorkQueue
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import first_of, sample_rollouts, searches_in_flight
from genius_lite.pipeline.round import Policy, Round
from genius_lite.pipeline.stand_in import apart, continuations, scores
from genius_lite.progress import Advance
from genius_lite.recipe import Server
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
            await _check_server(s.r, s.policy, cfg, server, s.queries)
            return await s.sample_with(server, cfg.in_flight)
    except ExceptionGroup as failures:
        if refused := failures.subgroup(UserError):
            raise first_of(refused) from None
        raise


async def _check_server(r: Round, policy: Policy, cfg: Server, server: Sampler, queries: Sequence[Query]) -> None:
    """Compare what a server samples with the policy's scores of it, which are computed here: it says no hash.

    They have to agree as far as llama.cpp agrees with itself: products with quantized weights round activations to 8
    bits, so that the same file, computed in another order, is 0.002 (F16) to 0.05 (Q4_1 of a 135M model) nats per token
    off, in absolute value. It is therefore scored in two ways, and twice their difference is allowed for.

    A round may have moved its model by less than that. So the base model scores the same tokens, and more than half of
    them may not surely (by two standard errors) be nearer to its scores: tokens are counted because rounding alone
    moves a few of them by half a nat, which would decide any mean.

    Raises:
        UserError: it is another model, or the base model still; or nothing that it says can be compared.
    """
    if not (nodes := await continuations(r, server, queries)):
        raise UserError(f"the server at {cfg.url} survives none of the questions that it was tried with")
    ours_T, again_T = await scores(r, policy, nodes), await scores(r, policy, nodes, reordered=True)
    theirs_T = np.concatenate([node.completion.logprobs for node in nodes if node.completion])
    known_T = np.isfinite(ours_T) & np.isfinite(again_T)
    if not known_T.any():
        raise UserError(f"round {r.number}: llama.cpp survives none of what {cfg.url} sampled; see {r.sampler_log}")
    off, rounding = apart(theirs_T, ours_T, known_T), apart(again_T, ours_T, known_T)
    remedy = f"load {_files(policy)} there and give the same command again"
    if off > (allowed := cfg.tolerance + 2 * rounding):
        raise UserError(
            f"round {r.number}: the server at {cfg.url} holds another model: {off:.3f} nats per token from this "
            f"round's, and {allowed:.3f} is allowed; {remedy}"
        )
    base = Policy(policy.gguf if policy.lora else r.job.source.path)
    if base != policy:
        base_T = await scores(r, base, nodes)
        known_T &= np.isfinite(base_T)
        nearer, doubt = (np.abs(theirs_T - base_T) < np.abs(theirs_T - ours_T))[known_T], known_T.sum() ** -0.5
        if nearer.mean() > 0.5 + doubt:
            raise UserError(f"round {r.number}: the server at {cfg.url} holds {_files(base)} still; {remedy}")
        if nearer.mean() > 0.5 - doubt:
            r.progress.say(
                f"warning: round {r.number}: whether {cfg.url} holds this round's model or {_files(base)} cannot be "
                f"told, so alike are they; it has to be {_files(policy)}"
            )
    r.progress.say(
        f"round {r.number}: {cfg.url} samples; its log-probabilities are {off:.4f} nats per token from ours, "
        f"and ours {rounding:.4f} from each other"
    )


def _files(policy: Policy) -> str:
    return f"{policy.gguf}{f' with the adapter {policy.lora}' if policy.lora else ''}"


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
