"""A faster file of the same model, which a round samples from in its policy's place (`policy: auto`).

With many branches decoding is bound by arithmetic, and weights of few bits have to be unpacked for it. Which type is
the fastest goes by the machine: with bf16 instructions BF16 was nearly or quite the fastest of five, with AMX it had
half the speed of Q4_K_M (`tests/benchmarks/RESULTS.md`); 16 bits are nearest to what the learner computes with. So the
files that a policy can be sampled from are measured, once for a model and its settings, and the one that takes the
least time, its writing included, samples the round. It is gone then: what is evaluated and exported is the policy
itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from genius_lite.errors import UserError
from genius_lite.machine.bench import file_speed
from genius_lite.machine.engine_settings import fits
from genius_lite.measurements import recall, remember
from genius_lite.pipeline.round import Policy, Round, drop_foreign, note_time
from genius_lite.progress import Stage
from genius_lite.recipe import QuantType
from genius_lite.records import Query
from genius_lite.results.rounds import SampledFrom
from genius_lite.rundir import folder
from genius_lite.rundir.disk import free_disk, remove
from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.interface import Sampler, run_until_complete
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.process import SamplerError
from genius_lite.sampler.tree import Node
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.merge import Kept, merge, requantize
from genius_lite.weights.quantize import type_name, types_bytes, types_of
from genius_lite.weights.untrusted import vouch

WORTH = 50_000  # tokens of a round; what measuring takes is not won back by fewer
_SIXTEEN: tuple[QuantType, ...] = ("BF16", "F16")
_SAMPLED = 0.3  # of the most tokens that a search may sample: responses end, and candidates repeat
_CLEARLY = 0.95  # of the time: less is won by chance, as short as the measurements are
_AGREED = 0.02  # nats per token that two files of one model may be apart, beyond what rounding does to either
_PROMPTS, _TOKENS = 8, 64  # on whose continuations, of so many tokens each, two are compared
_ROOM = 1.1  # of a file's bytes that the disk must have left


class _Speed(msgspec.Struct, frozen=True):
    """What was measured of a file: tokens a second, and the seconds that it took to write (0: it is there)."""

    tokens_per_s: float
    written_s: float = 0.0


class _Agreement(msgspec.Struct, frozen=True):
    """How far two files' log-probabilities are apart, and one file's from its own in another order of sums.

    Means of absolute differences, nats per token. `survives` is false where llama.cpp scores less with the other file.
    """

    apart: float
    rounding: float
    survives: bool = True


def stand_in(r: Round, policy: Policy, share: float = 1.0) -> Policy:
    """Return the file that samples the round on this machine the soonest: the policy's own, or one made for it.

    A round that goes on is sampled to its end from what it began with.

    Args:
        share: of the round's queries that are still to be searched.
    """
    recipe, start = r.job.recipe, time.monotonic()
    if recipe.policy != "auto":
        return policy
    expected = share * _expected(r)
    if expected < WORTH and not (r.here / folder.SAMPLED).exists():
        return policy
    drop_foreign(r.here / folder.STAND_IN)
    trial = _Trial(r, policy)
    chosen: SampledFrom = r.here.build_json(folder.SAMPLED, lambda: _choose(trial, expected), SampledFrom)
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in chosen.tokens_per_s.items())
    if chosen.file not in (trial.own, *trial.files):
        before = f"round {r.number} was sampled from {chosen.file}"
        r.progress.say(f"warning: {before}, which does not fit any more; the rest is from {trial.own}")
    else:
        r.progress.say(f"round {r.number} is sampled from {chosen.file}; tokens/s here: {speeds}")
    sampled, size = trial.policy, 0
    if chosen.file in trial.files:
        made = r.here.build(folder.STAND_IN, partial(trial.make, chosen.file))
        sampled, size = trial.sampled(chosen.file), made.stat().st_size
    seconds = time.monotonic() - start
    note_time(r.here, Stage.MERGE, seconds, size, parts={"to sample from": seconds})
    return sampled


def _expected(r: Round) -> float:
    """Estimate the tokens that the round samples: as many as the one before, or by the recipe."""
    if known := [timing.whole for here in r.earlier if (timing := here.total(Stage.ROLLOUTS))]:
        return known[-1]
    cfg = r.job.recipe.foresight
    return _SAMPLED * len(r.queries) * cfg.beams * cfg.candidates * cfg.most_steps * cfg.response_tokens


def _choose(trial: _Trial, expected: float) -> SampledFrom:
    """Measure what is not known yet, and choose; what is chosen and was to be written stands in the round's folder."""
    r, own, files, speeds = trial.r, trial.own, trial.files, dict[str, _Speed]()
    with r.progress.stage(f"round {r.number}: measure files", 1 + len(files), "files") as advance:
        for name in (own, *files):
            speeds[name] = trial.speed(name)
            advance(1)

    def seconds(name: str) -> float:
        rate = speeds[name].tokens_per_s
        return expected / rate + speeds[name].written_s if rate else float("inf")

    faster = (name for name in sorted(files, key=seconds) if seconds(name) <= _CLEARLY * seconds(own))
    chosen = next((name for name in faster if trial.is_the_policy(name)), own)
    if trial.written != chosen:
        remove(r.here / folder.STAND_IN)
    return SampledFrom(chosen, {name: round(found.tokens_per_s, 1) for name, found in speeds.items()})


class _Trial:
    """What a policy can be sampled from, of which one file after the other is written in the round's folder and tried.

    `own` is the name of the policy's file. The others that fit memory and disk are in `files`, with their type of 16
    bits, or None for the model's own file with the adapter beside it.
    """

    def __init__(self, r: Round, policy: Policy):
        self.r, self.policy, self.written = r, policy, ""
        self._kept: Kept | None = None
        source, made = r.job.source, gguf_file.read(policy.gguf)
        of_source, of_own = type_name(source, "source"), type_name(made, "source")
        self.own = f"its own file ({of_own}{', with the adapter' if policy.lora else ''})"
        self.files: dict[str, QuantType | None] = {}
        for kind in _SIXTEEN:
            size = types_bytes(source, types := types_of(source, kind))
            room = free_disk(r.here.path) > _ROOM * size
            if types != {t.name: t.type for t in made.tensors} and room and fits(source, size, r.engine):
                self.files[kind] = kind
        # The base in the types of the rounds is no faster than a round's file; the user's own may be.
        if policy.adapter and not r.job.weights and of_source != of_own:
            self.files[f"the model's file ({of_source}, with the adapter)"] = None

    def make(self, name: str, out: Path) -> None:
        """Write a file, and note what it keeps of the update; None where it has nothing to lose."""
        r, kind, adapter, self._kept = self.r, self.files[name], self.policy.adapter, None
        if not kind:
            assert adapter
            r.write_lora(adapter, out)
            return
        if adapter:
            self._kept = merge(r.base, Adapter.load(adapter, r.base), kind, out, like=r.job.source)
        else:
            requantize(gguf_file.read(self.policy.gguf), kind, out)
        vouch(out)

    def sampled(self, name: str) -> Policy:
        """Return what samples from a file, once it is written."""
        if name not in self.files:
            return self.policy
        made = self.r.here / folder.STAND_IN
        own, adapter = self.r.own.gguf, self.policy.adapter
        return Policy(made, adapter) if self.files[name] else Policy(own, adapter, made)

    def speed(self, name: str) -> _Speed:
        """Measure a file, or recall it; 0 tokens a second where it cannot be sampled from."""
        job, learner = self.r.job, self.r.job.recipe.learner
        engine = msgspec.structs.replace(self.r.engine, context=0, parked=0, watchdog=0.0)
        key = (job.source.sha256, name, self.policy.adapter is not None, learner.rank, learner.targets, engine)
        if found := recall("pace", key, _Speed):
            return found
        try:
            start = time.monotonic()
            made = self._write(name)
            written = time.monotonic() - start if name in self.files else 0.0
            found = _Speed(file_speed(made.gguf, made.settings(self.r.engine)), written)
        except (UserError, SamplerError) as e:
            self.r.progress.say(f"warning: {name} cannot be sampled from here: {e}")
            return _Speed(0.0)
        remember("pace", key, found)
        return found

    def is_the_policy(self, name: str) -> bool:
        """Say whether a file speaks of the same model: the base's by what it says, a merged one by what it keeps.

        What the base's file of this type said counts for a merged one too: llama.cpp computes with both alike.
        """
        policy, engine = self.policy, msgspec.structs.replace(self.r.engine, watchdog=0.0)
        key = (self.r.job.source.sha256, name, engine)
        made, found = self._write(name), recall("agreement", key, _Agreement)
        if policy.adapter and self._kept and self._kept.loses(self.r.job.recipe.quantize.keep):
            return False
        if not found and not policy.adapter and (found := run_until_complete(_compare(self.r, policy, made))):
            remember("agreement", key, found)
        if not found:
            return policy.adapter is not None
        if not found.survives:
            self.r.progress.say(f"{name} is not sampled from: llama.cpp does not survive all of it")
        elif found.apart > _AGREED + 2 * found.rounding:
            self.r.progress.say(
                f"{name} is not sampled from: its log-probabilities are {found.apart:.3f} nats per token from the "
                f"model's own, which are {found.rounding:.3f} from each other"
            )
        else:
            return True
        return False

    def _write(self, name: str) -> Policy:
        if name in self.files and self.written != name:
            remove(self.r.here / folder.STAND_IN)
            self.written = ""
            self.r.here.build(folder.STAND_IN, partial(self.make, name))
            self.written = name
        return self.sampled(name)


async def _compare(r: Round, policy: Policy, other: Policy) -> _Agreement | None:
    """Let both score what the policy says to a few queries; None where llama.cpp survives none of them."""
    sampling = Sampling.of(r.job.recipe.foresight)
    async with open_sampler(policy.gguf, policy.settings(r.engine), sampling, r.sampler_log) as sampler:
        nodes = await continuations(r, sampler, r.queries)
    if not nodes:
        return None
    ours_T, again_T = await scores(r, policy, nodes), await scores(r, policy, nodes, reordered=True)
    theirs_T, known_T = await scores(r, other, nodes), np.isfinite(ours_T) & np.isfinite(again_T)
    if not known_T.any():
        return None
    if not np.isfinite(theirs_T[known_T]).all():
        return _Agreement(0.0, 0.0, survives=False)
    return _Agreement(apart(theirs_T, ours_T, known_T), apart(again_T, ours_T, known_T))


async def continuations(r: Round, sampler: Sampler, queries: Sequence[Query]) -> list[Node]:
    """Let a sampler go on with a few of the queries; those that it does not survive are left out, and named."""
    limit, nodes = min(_TOKENS, r.job.recipe.foresight.max_tokens), list[Node]()
    roots = [Node(None, query.tokens, (*r.key, query.id)) for query in queries[:_PROMPTS]]
    asked = [sampler.extend(root, 1, until="end", limit=limit)[0] for root in roots]
    for query, node in zip(queries, await asyncio.gather(*asked, return_exceptions=True), strict=False):
        if isinstance(node, Node):
            nodes.append(node)
        elif not isinstance(node, QueryFailedError):
            raise node
        else:
            r.progress.say(f"warning: query {query.id} is not compared: {node}")
    return nodes


async def scores(r: Round, policy: Policy, nodes: Sequence[Node], *, reordered: bool = False) -> np.ndarray:
    """Score the nodes' tokens with a policy here, nats, (tokens,); `reordered`: sums in another order.

    Those of a node that llama.cpp does not survive are NaN; it is named.
    """
    settings = policy.settings(r.engine).with_slots(1)
    if reordered:
        other = settings.flash_attention is False
        settings = msgspec.structs.replace(settings, flash_attention=other, kv_type="F16")
    scored: list[list[float]] = []
    async with open_sampler(policy.gguf, settings, Sampling(1.0), r.sampler_log, say=r.progress.say) as local:
        for parent, node in ((node.parent, node) for node in nodes if node.parent):
            try:
                scored.append(await local.score(parent.path, node.tokens))
            except QueryFailedError as e:
                r.progress.say(f"warning: a response to {parent.key[-1]} is not compared: {e}")
                scored.append([math.nan] * len(node.tokens))
    return np.concatenate(scored)


def apart(one_T: np.ndarray, other_T: np.ndarray, known_T: np.ndarray) -> float:
    """Return the mean absolute difference of what two scored, nats per token, over the tokens that are known."""
    return float(np.abs(one_T - other_T)[known_T].mean())
