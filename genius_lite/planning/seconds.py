"""How long each stage takes: what it is expected to do (`tokens.py`) at this machine's rates (`rates.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from genius_lite.job import Job
from genius_lite.planning.memory import BASE, EVALUATION, EXPORT, IMPORT, QUANTIZING, ROLLOUTS, TRAINING
from genius_lite.planning.probe import Probe
from genius_lite.planning.rates import Decode, Rates
from genius_lite.planning.shape import Shape
from genius_lite.planning.tokens import Round, Sampled, answered, mean_tokens
from genius_lite.weights.policy import SCORING_SLOTS

_BETWEEN = 0.06  # of a worker's time passes between its ticks: messages, parking and copying of sequences
_LIBRARIES = 6.0  # seconds until torch, transformers and peft are loaded, in the first training
_COMPARED = 8  # responses that learner and sampler both score (stages.py)
_MARGIN_PAIRS = 128  # pairs of which the final margin is taken (learner/train.py)
_SHOWN = 16  # pairs, held back and learned from, that the check of a quantized file scores (stages.py)
_PROBED = 64  # tokens of a response that the 16-bit policy samples for it (weights/retained.py)
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


def sampling_kind(job: Job, number: int) -> str:
    """The file that round `number` samples with; the last one's evaluation counts as a round after it."""
    recipe = job.recipe
    if number == 1 or (recipe.policy == "adapter" and number <= recipe.rounds):
        return "base"
    return recipe.quantize.types[-1]


def cost(known: Expected, stage: str, number: int) -> Cost:
    """Of a stage of a round; see `earlier.Stage`."""
    rates, recipe = known.rates, known.job.recipe
    if stage == IMPORT:
        return Cost(_LIBRARIES + rates.convert.imported * known.shape.parameters)
    if stage == BASE:
        return _evaluation(known, rates.of_file("base"), beside=None)
    if stage == ROLLOUTS:
        decode = rates.of_file(sampling_kind(known.job, number))
        return Cost(session(decode, known.round.rollouts), known.round.rollouts.sampled)
    if stage == TRAINING:
        return _training(known, first=number == 1)
    if stage == QUANTIZING:
        return _quantizing(known, number)
    if stage == EVALUATION:
        decode = rates.of_file(sampling_kind(known.job, number + 1))
        return _evaluation(known, decode, beside=rates.of_file("base"))
    assert stage == EXPORT, stage
    made = 2 * known.shape.parameters if recipe.quantize.types[-1] in ("F16", "BF16") else known.shape.tensor_bytes
    return Cost(_COPIED * made)


def session(decode: Decode, work: Sampled, scored: float = 0.0) -> float:
    """Seconds of a worker from its start to its end."""
    busy = work.ticks * decode.tick + work.sampled * decode.sampled + work.prefilled * decode.prefilled
    return decode.start + (1 + _BETWEEN) * (busy + scored * decode.scored)


def _training(known: Expected, *, first: bool) -> Cost:
    learn, round_, cfg = known.rates.learn, known.round.learned, known.job.recipe.learner
    compared = _COMPARED * (mean_tokens(known.job.queries) + known.probe.mean_length)
    margin = min(1.0, _MARGIN_PAIRS / max(1.0, round_.pairs)) * round_.tokens
    forward = (round_.tokens + margin + compared) * learn.forward
    seconds = (_LIBRARIES if first else 0.0) + learn.load + forward + cfg.epochs * round_.tokens * learn.update
    return Cost(seconds, cfg.epochs * round_.tokens)


def _quantizing(known: Expected, number: int) -> Cost:
    """Both 16-bit files, and for each type the policy and the base model; each of them scores the same pairs.

    At most: where eight pairs decide, as they do after a good margin was learned, it is about a third.
    """
    recipe, rates = known.job.recipe, known.rates
    if recipe.policy == "adapter" and number < recipe.rounds:
        return Cost(1.0)
    held = len(known.job.held_out) / len(known.job.queries)
    learned = known.round.learned.pairs
    pairs = min(_SHOWN, learned) + min(_SHOWN, learned * held / max(1e-9, 1 - held))
    prompts = min(pairs, len(known.job.queries)) * mean_tokens(known.job.queries)
    asked = min(pairs, len(known.job.queries)) * _PROBED
    scored = 2 * pairs * known.probe.mean_length + asked
    once = Sampled(0.0, prompts, 0.0)
    sampling = Sampled(asked, prompts, asked / SCORING_SLOTS)
    sixteen = rates.of_file("F16")
    seconds = session(sixteen, sampling) + 2 * session(sixteen, once, scored)
    made = 2 * rates.convert.merged
    for kind in recipe.quantize.types * (2 if recipe.quantize.ablate_imatrix else 1):
        seconds += 2 * session(rates.of_file(kind), once, scored)
        made += 2 * rates.convert.quantized * (kind not in ("F16", "BF16"))
    return Cost(seconds + made * known.shape.parameters, scored)


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
