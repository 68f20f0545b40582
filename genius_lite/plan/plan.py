"""The plan of a run: memory, disk, tokens and time of each stage, whether it fits, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from genius_lite.machine.engine_settings import engine_settings
from genius_lite.pipeline.job import Job
from genius_lite.plan.fit import Shortfall, Suggestion, advice, shortfalls, sizes, stages_of, suggest
from genius_lite.plan.history import DoneStages, Rates, drop_rehearsal, known_lengths, look_back, same_run
from genius_lite.plan.lengths import Ends, assumed
from genius_lite.plan.memory import Peak, fullest
from genius_lite.plan.rehearse import rehearse
from genius_lite.plan.seconds import Known, stage_cost
from genius_lite.plan.shape import Machine
from genius_lite.progress import ROUND_STAGES, Progress, Stage
from genius_lite.rundir.disk import scratch
from genius_lite.rundir.folder import open_folder
from genius_lite.rundir.reader import RunFolder
from genius_lite.sampler.messages import EngineSettings

_BUSY = 0.1  # share of the cores that other programs may take before it is said
_UNSURE = 0.1  # standard error of a rehearsed time; rounds differ from each other by it
_DEVIATIONS = 2.0  # from the time that is told to its bounds: of lengths drawn from a model's, 90 to 95 % lay within


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a round; rounds begin at 1, and 0 comes before.

    `disk` is what the run folder holds then, bytes, None where no model is written. `tokens` are sampled, learned from
    or scored. `seconds` is None where nothing tells them; of what is `done` they are not spent again.
    """

    stage: str
    round: int
    done: bool
    peak: Peak
    disk: int | None
    tokens: float
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a run will take: bytes, tokens and seconds of what is still to be done.

    `seconds` and its bounds are None where nothing tells them. During the rehearsal other programs took the share
    `others` of the cores: at `low` all of that slowed it down, at `high` nothing did, and both are two standard
    errors away. `advice` is empty where the run fits. `response_tokens` is the mean length that is expected, by
    `responses_from`; `ends` tells which of the responses that were seen came to their end, None if none was.
    """

    out: str
    model: str
    queries: int
    rounds: int
    slots: int
    context: int
    precision: str
    activations_twice: bool
    stages: list[PlannedStage]
    peak: Peak
    disk: int
    free: Machine
    fits: bool
    lacking: list[Shortfall]
    change: Suggestion | None
    advice: str
    tokens: float
    seconds: float | None
    low: float | None
    high: float | None
    others: float
    response_tokens: float
    responses_from: str
    ends: Ends | None
    notes: list[str]


def plan(job: Job, progress: Progress, *, rehearsal: bool = True, temporary: bool = False) -> Plan:
    """Plan a run: rehearse it, if it fits and the run's folder does not tell yet how long it takes.

    Args:
        rehearsal: else nothing is run, and times are said only as far as the folder knows them.
        temporary: rehearse in a temporary folder, and leave nothing in the run's.

    Raises:
        UserError: as `rehearse`; or the run's folder is in use.
    """
    out = Path(job.recipe.out)
    if rehearsal and not temporary:
        drop_rehearsal(out, job.identity)
    machine, own, engine = Machine.here(out), same_run(out, job.identity), None
    known = _known(job, machine)
    if rehearsal and not _hopeless(known, machine):
        engine = engine_settings(job.recipe.sampler, job.source, job.context, progress)
        known = _known(job, machine, engine)
    begun = (Stage.ROLLOUTS, 1) in known.history.done or 1 in known.history.searched
    unknown = (own or temporary) and not begun and (known.rates is None or known.rates.disturbed > 0)
    if engine and unknown and not shortfalls(job, known.sizes, machine, known.history):
        with (
            scratch(out.parent) if temporary else nullcontext() as elsewhere,
            open_folder(elsewhere / "run" if elsewhere else out, job.identity) as run,
        ):
            rates = rehearse(job, run, engine, progress)
        known = _known(job, machine, engine, rates)
    notes = [] if own else [f"{out} holds a run of another recipe; name another `out`."]
    return _assembled(known, machine, notes)


def _hopeless(known: Known, machine: Machine) -> bool:
    """Say whether something lacks that no setting of the sampler changes: its speed need not be measured then."""
    lacks = shortfalls(known.job, known.sizes, machine, known.history)
    return any(lack.on_disk or lack.stage in (Stage.IMPORT, Stage.TRAIN, Stage.MERGE, Stage.EXPORT) for lack in lacks)


def _known(job: Job, machine: Machine, engine: EngineSettings | None = None, rates: Rates | None = None) -> Known:
    """Gather what a rehearsal (`rates`) or the run's folder tells of the run, and what is assumed where none does."""
    out, history = Path(job.recipe.out), DoneStages()
    lengths = rates.lengths if rates else known_lengths(job) or assumed(job.recipe.foresight)
    if same_run(out, job.identity):
        history, rates = look_back(out, job.recipe.rounds), rates or Rates.read(out)
    return Known(job, history, lengths, sizes(job, machine, lengths, engine), rates)


def forecast(job: Job) -> dict[Stage, float]:
    """Predict the seconds of each stage of a round, by the names on the board; of several rounds the last one's.

    Nothing is measured for it. What no rehearsal has measured, or one that was slowed down, is not forecast at all: a
    wrong hour is worse than none.
    """
    out = Path(job.recipe.out)
    rates = Rates.read(out)
    if rates is None or rates.disturbed or RunFolder(out).stage_seconds().keys() >= set(ROUND_STAGES):
        return {}  # the run's own rounds say it all
    known, found = _known(job, Machine.here(out)), {Stage.PAIRS: 0.0}
    for stage, number in stages_of(job):
        seconds, _ = stage_cost(known, stage, number)
        if stage in ROUND_STAGES and seconds is not None:
            found[Stage(stage)] = seconds
    return found


def _assembled(known: Known, machine: Machine, notes: list[str]) -> Plan:
    job, history, rates, found = known.job, known.history, known.rates, known.sizes
    stages = []
    for name, number in stages_of(job):
        seconds, tokens = stage_cost(known, name, number)
        done, peak = (name, number) in history.done, found.peak(name, number)
        stages.append(PlannedStage(name, number, done, peak, found.disk.get(name), tokens, seconds))
    ahead = [stage for stage in stages if not stage.done]
    lacks = shortfalls(job, found, machine, history)
    change = suggest(job, machine, known.lengths, history) if lacks else None
    disk = max((stage.disk for stage in ahead if stage.disk is not None), default=history.bytes) - history.bytes
    times = [stage.seconds for stage in ahead if stage.seconds is not None]
    seconds = sum(times) if len(times) == len(ahead) else None
    # The run's own rounds were slowed down already; of what was rehearsed other programs' share is taken off.
    own = sum(stage.seconds or 0.0 for stage in ahead if history.mean_seconds(stage.stage) is not None)
    spread = 1 + _DEVIATIONS * math.hypot(_UNSURE, 0.0 if history.timings(Stage.ROLLOUTS) else known.lengths.error)
    others, beside = (rates.others, 1 - rates.disturbed) if rates else (0.0, 1.0)
    least = (1 - others) / beside if others > _BUSY else 1.0
    return Plan(
        out=job.recipe.out,
        model=job.source.path.name,
        queries=len(job.queries),
        rounds=job.recipe.rounds,
        slots=found.engine.slots,
        context=job.context,
        precision=found.training.precision,
        activations_twice=found.training.twice > 0,
        stages=stages,
        peak=fullest(stage.peak for stage in ahead or stages),
        disk=disk,
        free=machine,
        fits=not lacks,
        lacking=lacks,
        change=change,
        advice=advice(lacks, change) if lacks else "",
        tokens=sum(stage.tokens for stage in ahead if stage.stage == Stage.ROLLOUTS),
        seconds=seconds,
        low=None if seconds is None else (own + (seconds - own) * least) / spread,
        high=None if seconds is None else (own + (seconds - own) / beside) * spread,
        others=others,
        response_tokens=known.lengths.mean,
        responses_from=known.lengths.source,
        ends=known.lengths.ends,
        notes=[*notes, *_notes(known)],
    )


def _notes(known: Known) -> Iterator[str]:
    recipe, rates = known.job.recipe, known.rates
    yield from (f"{note}." for note in (*known.job.notes, known.job.quantized_twice) if note)
    if warning := known.lengths.cut_off(recipe.foresight):
        yield f"{warning}."
    if rates and rates.others > _BUSY:
        shorter = f"{rates.disturbed:.0%} shorter than they were measured, a guess" if rates.disturbed else ""
        yield (
            f"Other programs took {rates.others:.0%} of the processor during the rehearsal. Times are told "
            f"{shorter or 'as they were measured'}: where nothing else runs they may be up to {rates.others:.0%} "
            "shorter, beside the same programs as long. Plan again on a quiet machine."
        )
    if rates and recipe.sampler.elsewhere:
        yield "Rollouts are timed as if this machine sampled them."
