"""The rehearsal: a run's own stages in small, with its own model, and the rates that their timings come to.

It happens in the run's folder. The run does not import the model again; what else there is goes when the rates are
known, which stay in `rehearsal.json`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import psutil

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stop
from genius_lite.hardware.system import cores
from genius_lite.learner.footprint import SCORED_AT_ONCE
from genius_lite.learner.packing import by_query, packs
from genius_lite.machine.bench import file_speed
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.round import Round, Session
from genius_lite.pipeline.stages import baseline, import_base, next_policy, pair, sample, train
from genius_lite.plan.fit import rounds_base, sizes, with_settings
from genius_lite.plan.history import FOLDER, FOUND, PREFILL, Decode, Rates
from genius_lite.plan.lengths import Lengths, described
from genius_lite.plan.shape import Machine
from genius_lite.plan.tokens import ANY_PAIRS, SamplingWork
from genius_lite.progress import Advance, Progress, Stage
from genius_lite.recipe import Sampler
from genius_lite.records import PreferencePair, Rollout
from genius_lite.report.tracking import Tracker
from genius_lite.results.rounds import Timing
from genius_lite.rundir.disk import put, remove
from genius_lite.rundir.folder import RunDir
from genius_lite.rundir.reader import RoundFolder
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.retained import CHECKED, SCORING_SLOTS, gaps, one_of_each, parting

# How much is rehearsed: so many of them, times the model's parameters, and never less or more.
# Few responses that may be long tell more than many that are cut off: of 120 problems of GSM8K, 10 responses of up to
# 112 tokens came to 1.31 times the true length (standard deviation 0.34), 8 of up to 256 to 1.04 times (0.24).
_RESPONSES, _RESPONSE_TOKENS, _PACK_TOKENS = (1.6e10, 8, 32), (4.6e11, 64, 1024), (4e11, 96, 512)
_SCORED_PAIRS = (5e8, 1, CHECKED)
_ANSWERING = 75.0  # seconds, at the end of which no problem is answered any more: answers are taken to be like rollouts
_LONGEST = 150.0  # at the end of which no file is merged any more
_LIBRARIES = 6.0  # seconds of an import, in which torch and transformers are loaded
_USUAL_RATIO = 2.0  # of a decode's own time to that of a token in it
_MERGE, _ROUND = 1.0, 0.5  # of an import's time takes a merge, and rounding the base: Qwen2.5-1.5B, to Q8_0


def rehearse(job: Job, run: RunDir, engine: EngineSettings, progress: Progress) -> Rates:
    """Import the model into the run's folder, and run a small round beside it.

    Args:
        engine: the settings that the run samples with.

    Raises:
        UserError: as the run would: the model cannot be loaded, or its responses are all the same.
    """
    began, busy = time.monotonic(), _busy_seconds()
    remove(run / FOLDER)
    clock, work = _Clock(progress), run.sub(FOLDER)
    small = _small(job, engine.slots)
    base = import_base(job, run, clock)
    imported = _seconds(run, Stage.IMPORT)
    r = Session(small, base, engine, work, clock, Stop(), Tracker(small.recipe, work.path)).round(1)
    rollouts = list(sample(r, r.own))
    searched = RoundFolder(1, r.here.path).total(Stage.ROLLOUTS)
    assert searched
    decode, lengths = decode_rates(searched), _lengths(r, job.recipe.foresight.response_tokens, rollouts)
    answers, answering = lengths, _answering(job, small)
    if answering and time.monotonic() - began + searched.seconds <= _ANSWERING:
        asked = replace(r, job=answering, run=work.sub("answers"))
        answers = _lengths(asked, job.recipe.answer_tokens, list(sample(asked, asked.own)))
    found = sizes(job, Machine.here(run.path), lengths, engine)
    twice = found.training.twice > 0  # as by the run's largest packs
    recipe = with_settings(small.recipe, {"learner.gradient_checkpointing": twice})
    r = replace(r, job=replace(small, recipe=recipe))
    made_of, passes = pair(r, rollouts), found.work.passes
    decode = _scoring(r, decode, one_of_each(made_of, _amount(_SCORED_PAIRS, job)))
    usual = sum(n * n for n in passes) // max(1, sum(passes))  # a token's pass: small ones take more for a token
    pairs = _one_pack(made_of, min(max(usual, _PACK_TOKENS[1]), _amount(_PACK_TOKENS, job)))
    adapter = train(r, None, [], pairs)
    learn = learner_rates(clock.marks, _seconds(r.here, Stage.TRAIN), _tokens(pairs), twice)
    if time.monotonic() - began + (_MERGE + _ROUND) * imported <= _LONGEST:
        baseline(r, adapter)
        made = decode
        policy = next_policy(r, adapter, pairs)
        if rounds_base(job):
            made = decode.times(file_speed(job.source.path, engine) / file_speed(policy.gguf, engine))
        rounded, merged = (_seconds(folder, Stage.MERGE) for folder in (r.rounded, r.here))
    else:
        weights = max(0.0, imported - _LIBRARIES)
        rounded, merged = _ROUND * weights * rounds_base(job), _MERGE * weights
        size = quantized_bytes(job.source, job.recipe.quantize.type) / quantized_bytes(job.source, "source")
        made = Decode(decode.start * max(1.0, size), decode.tick * size, decode.sampled, decode.scored)
    seconds, (every, own) = time.monotonic() - began, _busy_seconds()
    others = max(0.0, (every - busy[0]) - (own - busy[1])) / (seconds * cores())
    rates = Rates(decode, made, *learn, imported, rounded, merged, min(0.95, others), lengths, answers)
    put(run / FOUND, msgspec.json.encode(rates))
    remove(work.path)
    return rates


def _seconds(folder: RunDir, stage: Stage) -> float:
    """Read what a stage took; 0 where it had nothing to do."""
    return found.seconds if (found := RoundFolder(0, folder.path).total(stage)) else 0.0


class _Clock(Progress):
    """Passes on what a rehearsal shows, and notes when the work of a stage advanced."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.marks: list[float] = []  # of the latest stage: its beginning, then each advance

    @contextmanager
    def stage(
        self, name: str, total: float, unit: str, scale: float = 1.0, done: float = 0.0, at_once: float = 0.0
    ) -> Iterator[Advance]:
        self.marks = [time.monotonic()]
        with self.progress.stage(name, total, unit, scale, done, at_once) as advance:

            def noted(n: float) -> None:
                self.marks.append(time.monotonic())
                advance(n)

            yield noted

    def say(self, line: str) -> None:
        self.progress.say(line)


_BOTH = {"learner.loss": "dpo", "learner.beta": "auto", "learner.sft_weight": 0.0, "learner.length_normalize": False}
"""A loss whose updates compute both responses, for one that computes the chosen alone: a token takes as long."""


def _small(job: Job, slots: int) -> Job:
    """Make the rehearsal of a job: a round of a few questions, of each some complete responses, nothing evaluated."""
    wanted = min(_amount(_RESPONSES, job), slots)
    searched = job.searched(1)
    queries = searched[:: max(1, 2 * len(searched) // wanted)][: max(1, wanted // 2)]
    changes = {
        "rounds": 1,
        "policy": "merge",
        "foresight.beams": 1,
        "foresight.candidates": max(2, wanted // len(queries)),
        "foresight.steps": 1,
        "foresight.max_tokens": min(job.recipe.foresight.response_tokens, _amount(_RESPONSE_TOKENS, job)),
        "foresight.thought_tokens": 0,
        "foresight.future_tokens": None,
        "foresight.skip_agreeing": None,
        "foresight.value": "future",
        "pairs": ANY_PAIRS.model_dump(),
        "learner.epochs": 2,  # of one update each: the first one is slower
        "learner.batch_pairs": wanted,
        "learner.save_every": 1e6,
        **(_BOTH if job.recipe.learner.chosen_alone else {}),
        "quantize.keep": 0.0,
        "quantize.check": "never",
        "evaluate": {"queries": 0},
        "tracking": {},
        **{f"sampler.{key}": here for key, here in Sampler.places().items()},
    }
    recipe = with_settings(job.recipe, changes)
    return replace(job, recipe=recipe, queries=queries, held_out=frozenset(), watched=[], tasks=[])


def _amount(of: tuple[float, int, int], job: Job) -> int:
    budget, least, most = of
    return min(most, max(least, int(budget / job.source.parameters)))


def _answering(job: Job, small: Job) -> Job | None:
    """Make the rehearsal of an evaluation: some problems, or held-out queries; None where none is asked.

    Also where they are asked as the search asks: its responses tell as much.
    """
    questions = [question for item in job.tasks for question in item.questions] or job.watched
    temperature, searched = job.temperature if job.tasks else 1.0, job.recipe.foresight
    plain = (searched.top_k, searched.top_p, searched.min_p) == (0, 1.0, 0.0)
    if not questions or (temperature == searched.temperature and plain):
        return None
    tokens = min(job.recipe.answer_tokens, _amount(_RESPONSE_TOKENS, job))
    plainly = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": tokens}
    recipe = with_settings(small.recipe, {f"foresight.{key}": value for key, value in plainly.items()})
    count = min(len(questions), len(small.queries))
    return replace(small, recipe=recipe, queries=[questions[n * len(questions) // count] for n in range(count)])


def _lengths(r: Round, limit: int, rollouts: Sequence[Rollout]) -> Lengths:
    """Describe the responses of a rehearsal, as if they had been allowed so many tokens."""
    cfg = r.job.recipe.foresight
    with Vocabulary.open(r.job.source.path) as vocabulary:
        return described(rollouts, vocabulary, cfg, "rehearsal").extended(cfg.response_tokens, limit)


def decode_rates(session: Timing) -> Decode:
    """Read a session's rates off what its sampler says of its decode steps, the cost of drawing included.

    A line through the steps of branches alone tells what a step takes by itself; without one, it takes what is usual.
    A token that is looked up is taken to cost what a sampled one does. Responses of a run are taken to share as much of
    what they say, and so of its decodes, as those of this session.
    """
    stats = session.sampler
    assert stats
    line = stats.branch_steps.line()
    step, token = line if line and line[1] > 0 else (_USUAL_RATIO, 1.0)
    shape = Decode(max(0.0, session.seconds - stats.busy_s), max(0.0, step) / token, 1.0, 1.0)
    decoded = stats.sampled - stats.shared
    units = shape.session(SamplingWork(decoded, stats.prefilled, stats.decode_steps)) - shape.start
    rates, own = shape.times(stats.busy_s / units), decoded / stats.sampled
    return msgspec.structs.replace(rates, tick=own * rates.tick, sampled=own * rates.sampled)


def learner_rates(marks: list[float], seconds: float, tokens: int, checkpointing: bool) -> tuple[float, float, float]:
    """Take a training of two updates apart, both of all its pairs.

    Args:
        marks: when the reference, each update and each pass of the final margin were done; the first is the beginning.
        seconds: of the whole training, loading and saving included.
        tokens: of its pairs.
        checkpointing: whether activations are computed twice.

    Returns:
        Seconds to load; for a token forward, and in all passes of the final margin.
    """
    reference, second, end = marks[1], marks[3], marks[-1]
    # The matrices are frozen: backward takes as many products as forward. The first update compiles its products anew,
    # as nearly every one of a run does, whose packs are of other sizes; the second does not.
    forward = (second - reference) / 2 / tokens / (3 if checkpointing else 2)
    load = seconds - forward * tokens - (end - reference)
    return max(0.0, load), forward, (end - second) / tokens


def _scoring(r: Round, decode: Decode, pairs: Sequence[PreferencePair]) -> Decode:
    """Measure what a token takes that is looked up, as the check of a merged file looks it up.

    Of a model so small that starting takes all the time, it stays what a sampled one takes.
    """
    parts, began = [part for pair in pairs for part in parting(pair)], time.monotonic()
    gaps(r.own.gguf, r.own.settings(r.engine).with_slots(SCORING_SLOTS), pairs, r.sampler_log, r.progress.say)
    seconds = time.monotonic() - began - decode.start
    units = sum(len(response) + PREFILL * len(prompt) for prompt, response in parts)
    return msgspec.structs.replace(decode, scored=seconds / units) if seconds > 0 else decode


def _one_pack(pairs: Sequence[PreferencePair], tokens: int) -> list[PreferencePair]:
    """Shorten pairs so that some make about so many tokens: of a pair the prompt and both responses take a third.

    They are of no more queries than the reference scores at once: `learner_rates` counts on that.
    """
    some: list[PreferencePair] = []
    for p in pairs:
        n = max(1, min(tokens // 3, len(p.chosen_tokens), len(p.rejected_tokens)))
        parts = {"chosen_tokens": p.chosen_tokens[-n:], "rejected_tokens": p.rejected_tokens[-n:]}
        some.append(msgspec.structs.replace(p, prompt_tokens=p.prompt_tokens[-(tokens // 3) :], **parts))
        if _tokens(some) >= 0.75 * tokens or len({each.query_id for each in some}) == SCORED_AT_ONCE:
            break
    return some


def _tokens(pairs: list[PreferencePair]) -> int:
    return sum(pack.tokens for pack in packs(by_query(pairs), 1 << 20, 1 << 20))


def _busy_seconds() -> tuple[float, float]:
    """Read the seconds that this process' cores have worked: for anybody, and for it and its ended children.

    Windows does not tell of children, so that there neither is known.
    """
    if os.name == "nt":
        return 0.0, 0.0
    every: Any = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        every = [every[n] for n in os.sched_getaffinity(0)]
    busy = sum(core.user + core.system + getattr(core, "nice", 0) + getattr(core, "steal", 0) for core in every)
    own = os.times()
    return busy, own.user + own.system + own.children_user + own.children_system
