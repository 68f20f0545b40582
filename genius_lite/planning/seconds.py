"""How long each stage takes: what it is expected to do (`tokens.py`) at this machine's rates (`rates.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from genius_lite.learner.footprint import SCORED_PAIRS
from genius_lite.pipeline.job import Job
from genius_lite.planning.memory import BASE, EVALUATION, EXPORT, IMPORT, QUANTIZING, ROLLOUTS, TRAINING
from genius_lite.planning.probe import Probe
from genius_lite.planning.rates import Decode, Rates
from genius_lite.planning.shape import Shape
from genius_lite.planning.tokens import Round, Sampled, answered, mean_tokens
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.retained import CHECKED, SCORED

_BETWEEN = 0.06  # of a worker's time passes between its ticks: messages, parking and copying of sequences
_LIBRARIES = 6.0  # seconds until torch, transformers and peft are loaded, in the first training
_COMPARED = 8  # responses that learner and sampler both score (stages.py)
_FILES = 3  # that the check of a merged file scores pairs with (weights/retained.py)
_COPIED = 4e-9  # seconds for a byte of an export: it is copied, and read for its checksum


@dataclass(frozen=True)
class Expected:
    """What is known of a run beforehand."""

    job: Job
    shape: Shape
    probe: Probe
    round: Round
    rates: Rates
    slots: int


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage, and the tokens that it samples, learns or scores."""

    seconds: float
    tokens: float = 0.0


def cost(known: Expected, stage: str, number: int) -> Cost:
    """Of a stage of a round; see `earlier.Stage`."""
    rates, recipe = known.rates, known.job.recipe
    if stage == IMPORT:
        return Cost(_LIBRARIES + rates.convert.imported * known.shape.parameters)
    if stage == BASE:
        return _evaluation(known, rates.of_file("base"), beside=None)
    if stage == ROLLOUTS:
        # With the adapter at run time too, later rounds sample a file of this type: the rounded base.
        decode = rates.of_file("base" if number == 1 else recipe.quantize.type)
        return Cost(session(decode, known.round.rollouts), known.round.rollouts.sampled)
    if stage == TRAINING:
        return _training(known, first=number == 1)
    if stage == QUANTIZING:
        return _quantizing(known, number)
    if stage == EVALUATION:
        decode = rates.of_file(recipe.quantize.type)
        of_base = rates.of_file(recipe.quantize.type)
        found = [_evaluation(known, decode, beside=of_base)]
        if number == 1:
            found.append(_cooling(known, of_base))
            found += [_evaluation(known, of_base, beside=None)] if rounds_base(known.job) else []
        return Cost(sum(each.seconds for each in found), sum(each.tokens for each in found))
    assert stage == EXPORT, stage
    return Cost(_COPIED * quantized_bytes(known.job.source, recipe.quantize.type))


def session(decode: Decode, work: Sampled, scored: float = 0.0) -> float:
    """Seconds of a worker from its start to its end."""
    busy = work.ticks * decode.tick + work.sampled * decode.sampled + work.prefilled * decode.prefilled
    return decode.start + (1 + _BETWEEN) * (busy + scored * decode.scored)


def _training(known: Expected, *, first: bool) -> Cost:
    learn, round_, cfg = known.rates.learn, known.round.learned, known.job.recipe.learner
    compared = _COMPARED * (mean_tokens(known.job.queries) + known.probe.mean_length)
    # The final margin's, in fp32: of the base too, unless its scores are of that already. As if fp32 were no slower.
    scored = min(1.0, SCORED_PAIRS / max(1.0, round_.pairs)) * round_.tokens * (1 if cfg.precision == "fp32" else 2)
    forward = (round_.tokens + scored + compared) * learn.forward
    seconds = (_LIBRARIES if first else 0.0) + learn.load + forward + cfg.epochs * round_.tokens * learn.update
    return Cost(seconds, cfg.epochs * round_.tokens)


def rounds_base(job: Job) -> bool:
    """Whether rounds are told against another file than the user's own: the base model in their types."""
    return job.recipe.quantize.type != "source" or job.weights is not None


def _quantizing(known: Expected, number: int) -> Cost:
    """The merged file, before the first the base in its types, and the check."""
    job, rates = known.job, known.rates
    seconds = rates.convert.merged * known.shape.parameters
    if number == 1 and rounds_base(job):
        # With `weights` the type may be the source's, of which no other file was made to measure it.
        seconds += (rates.convert.quantized or rates.convert.merged) * known.shape.parameters
    if not job.recipe.quantize.checks(number):
        return Cost(seconds)
    pairs = min(CHECKED, known.round.learned.pairs)
    scored = 2 * pairs * min(SCORED, known.probe.mean_length)
    once = Sampled(0.0, pairs * mean_tokens(job.queries), 0.0)
    seconds += _FILES * session(rates.of_file(job.recipe.quantize.type), once, scored)
    return Cost(seconds, scored)


def _cooling(known: Expected, decode: Decode) -> Cost:
    """The base model at the temperatures of its sweep, on the problems that choose."""
    job, cfg = known.job, known.job.recipe.evaluate
    temperatures = [t for t in cfg.sweep if t != job.temperature] if cfg.samples else []
    problems = [len(q.tokens) for item in job.tasks for q in item.choosing().questions]
    if not problems or not temperatures:
        return Cost(0.0)
    work = answered(problems, cfg.samples, known.probe, known.slots)
    return Cost(len(temperatures) * session(decode, work), len(temperatures) * work.sampled)


def _evaluation(known: Expected, decode: Decode, beside: Decode | None) -> Cost:
    """Tasks, then responses to held-out queries; those are scored by the base model too, if there is another one."""
    job, cfg = known.job, known.job.recipe.evaluate
    seconds = tokens = 0.0
    if problems := [len(q.tokens) for item in job.tasks for q in item.questions]:
        work = answered(problems, cfg.samples + cfg.greedy, known.probe, known.slots)
        seconds, tokens = session(decode, work), work.sampled
    if watched := [len(q.tokens) for q in job.watched]:
        work = answered(watched, cfg.query_samples, known.probe, known.slots)
        seconds, tokens = seconds + session(decode, work), tokens + work.sampled
        if beside:
            seconds += session(beside, Sampled(0.0, work.prefilled, 0.0), work.sampled)
    return Cost(seconds, tokens)
