"""How long each stage takes: what it is expected to do at the rates of a rehearsal, or as in the rounds before."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from statistics import fmean

from genius_lite.learner.footprint import scored_pairs
from genius_lite.pipeline.evaluation import remembered
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.stages import COMPARED
from genius_lite.plan.fit import Sizes, rounds_base
from genius_lite.plan.history import Decode, DoneStages, Rates
from genius_lite.plan.lengths import Lengths
from genius_lite.plan.memory import BASE
from genius_lite.plan.tokens import answered
from genius_lite.progress import Stage
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.retained import CHECKED, SCORED

_FILES = 3  # that the check of a merged file scores pairs with: it, its base, and that with the adapter
_COPIED = 4e-9  # seconds for a byte of an export: it is copied, and read for its checksum

Cost = tuple[float, float]
"""Seconds, and tokens that are sampled, learned from or scored."""


@dataclass(frozen=True)
class Known:
    """What a plan follows from; `rates` is None where nothing was rehearsed."""

    job: Job
    history: DoneStages
    lengths: Lengths
    sizes: Sizes
    rates: Rates | None

    @property
    def prompt_tokens(self) -> float:
        """Of a query, on average."""
        return fmean(len(query.tokens) for query in self.job.queries)


def stage_cost(known: Known, stage: str, number: int) -> tuple[float | None, float]:
    """Estimate the seconds of a stage of a round, None where nothing tells them, and its tokens.

    Of rollouts that an earlier process began, what is left of them. Other programs' share is taken off rehearsed times.
    """
    history, left = known.history, 1.0
    seconds, tokens = None, known.sizes.work.rollouts.sampled if stage == Stage.ROLLOUTS else 0.0
    if known.rates:
        seconds, tokens = _rehearsed(known, known.rates, stage, number)
        seconds *= 1 - known.rates.disturbed
    if stage == Stage.ROLLOUTS:
        left -= history.searched.get(number, 0) / len(known.job.searched(number))
        if timings := history.timings(stage):
            tokens = fmean(timing.whole for timing in timings)
    seconds = history.mean_seconds(stage) or seconds
    return None if seconds is None else left * seconds, left * tokens


def _rehearsed(known: Known, rates: Rates, stage: str, number: int) -> Cost:
    rollouts, kind = known.sizes.work.rollouts, known.job.recipe.quantize.type
    if stage == Stage.IMPORT:
        return rates.imported, 0.0
    if stage == BASE:
        known_answers = remembered(known.job, known.sizes.engine)
        return _evaluation(known, rates.base, rates.answers, known_answers=known_answers)
    if stage == Stage.ROLLOUTS and number == 1:
        return rates.base.session(rollouts), rollouts.sampled
    if stage == Stage.ROLLOUTS:
        # With the adapter at run time too, later rounds sample a file of this type: the rounded base.
        share = _tuned(known, known.lengths, known.job.recipe.foresight.response_tokens).mean / known.lengths.mean
        work = replace(rollouts, sampled=share * rollouts.sampled, ticks=share * rollouts.ticks)
        return rates.made.session(work), work.sampled
    if stage == Stage.TRAIN:
        return _training(known, rates)
    if stage == Stage.MERGE:
        return _quantizing(known, rates, number)
    if stage == Stage.EVALUATE:
        tuned = _tuned(known, rates.answers, known.job.recipe.answer_tokens)
        parts = [_evaluation(known, rates.made, tuned, judge=rates.made)]
        if number == 1:
            of_base = _evaluation(known, rates.made, rates.answers)
            parts += [_cooling(known, rates), *[of_base] * rounds_base(known.job)]
        return sum(seconds for seconds, _ in parts), sum(tokens for _, tokens in parts)
    assert stage == Stage.EXPORT, stage
    return _COPIED * quantized_bytes(known.job.source, kind), 0.0


def _tuned(known: Known, lengths: Lengths, limit: int) -> Lengths:
    """Say how long a round's model answers: like those responses that ended, where no others are learned from.

    Of nine rounds of SmolLM2-135M and Qwen2.5-Coder-0.5B seven answered in 0.22 to 0.78 of the base model's tokens, two
    in more (`recipes/RESULTS.md`).
    """
    return lengths if known.job.recipe.pairs.truncated == "keep" else lengths.ended(limit)


def _training(known: Known, rates: Rates) -> Cost:
    work, epochs = known.sizes.work, known.job.recipe.learner.epochs
    compared = COMPARED * (known.prompt_tokens + known.lengths.mean)
    margin = scored_pairs(round(work.pairs)) / max(1.0, work.pairs) * work.learned
    # The matrices are frozen: backward takes as many products as forward.
    updates = epochs * (2 + known.sizes.training.again) * work.updated
    seconds = rates.load + (work.learned + updates + compared) * rates.forward + margin * rates.scored
    return seconds, epochs * work.updated


def _quantizing(known: Known, rates: Rates, number: int) -> Cost:
    """Add up the merged file, before the first the base in its types, and the check."""
    job, seconds = known.job, rates.merged + (rates.rounded if number == 1 else 0.0)
    if not job.recipe.quantize.checks(number):
        return seconds, 0.0
    pairs = min(CHECKED, known.sizes.work.pairs)
    scored = 2 * pairs * min(SCORED, known.lengths.mean)
    return seconds + _FILES * rates.made.scoring(scored, 2 * pairs * known.prompt_tokens), scored


def _cooling(known: Known, rates: Rates) -> Cost:
    """Let the base model answer at the temperatures of its sweep, the problems that choose."""
    job, cfg = known.job, known.job.recipe.evaluate
    temperatures = [t for t in cfg.sweep if t != job.temperature] if cfg.samples else []
    problems = [len(q.tokens) for item in job.tasks for q in item.choosing().questions]
    if not problems:
        return 0.0, 0.0
    work = answered(problems, cfg.samples, rates.answers, known.sizes.engine.slots)
    return len(temperatures) * rates.made.session(work), len(temperatures) * work.sampled


def _evaluation(
    known: Known, decode: Decode, lengths: Lengths, judge: Decode | None = None, known_answers: Container[str] = ()
) -> Cost:
    """Answer tasks and held-out queries in responses of these lengths; the judge scores the latter.

    Args:
        known_answers: names of tasks that are not asked; an empty one stands for held-out queries.
    """
    job, cfg, seconds, tokens = known.job, known.job.recipe.evaluate, 0.0, 0.0
    problems = [len(q.tokens) for item in job.tasks if item.task.name not in known_answers for q in item.questions]
    watched = [len(q.tokens) for q in job.watched if "" not in known_answers]
    for prompts, samples in ((problems, cfg.samples + cfg.greedy), (watched, cfg.query_samples)):
        if prompts:
            work = answered(prompts, samples, lengths, known.sizes.engine.slots)
            seconds, tokens = seconds + decode.session(work), tokens + work.sampled
            if judge and prompts is watched:
                seconds += judge.scoring(work.sampled, samples * work.prefilled)  # side by side: none is cached
    return seconds, tokens
