"""The plan of a run: memory, disk, tokens and time of each stage, whether it fits, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from genius_lite.job import Job
from genius_lite.planning.earlier import Earlier, look_back, same_run
from genius_lite.planning.known import Source, learner_rates, sampler_rates
from genius_lite.planning.machine import Machine, look
from genius_lite.planning.memory import BASE, EVALUATION, IMPORT, QUANTIZING, ROLLOUTS
from genius_lite.planning.rates import How, Rates
from genius_lite.planning.remedies import advice, remedy
from genius_lite.planning.seconds import Expected, cost
from genius_lite.planning.shape import Shape
from genius_lite.planning.sizes import Sizes, lacking, sizes, stages_of
from genius_lite.report.progress import Progressor
from genius_lite.tuning import engine_settings

_UNSURE: dict[How, float] = {"earlier round": 0.1, "measured": 0.15, "remembered": 0.2, "estimated": 0.6}
_BUSY = 0.7  # runnable processes for each core, from which measurements are disturbed
_ASSUMED_SLOTS = 32  # for `auto`, where nothing may be measured


class Stage(msgspec.Struct, frozen=True):
    """A stage of a round; rounds begin at 1, and 0 comes before. Bytes, tokens and seconds.

    `memory` and `gpu` are parts of the peak; `disk` is what the run folder holds then, None where no model is written.
    `tokens` are sampled, learned from or scored. `low` and `high` bound the seconds in about two cases of three. The
    seconds of what is `done` were measured, and are not spent again.
    """

    stage: str
    round: int
    done: bool
    memory: dict[str, int]
    memory_total: int
    gpu: dict[str, int]
    gpu_total: int
    disk: int | None
    tokens: float
    seconds: float
    low: float
    high: float


class Shortage(msgspec.Struct, frozen=True):
    """What does not suffice, bytes."""

    stage: str
    what: str
    wanted: int
    there: int


class Change(msgspec.Struct, frozen=True):
    """Settings as `--set` takes them, whether the run fits with them, and the peak of its memory then."""

    settings: list[str]
    fits: bool
    memory: int


class Room(msgspec.Struct, frozen=True):
    """Free bytes; `gpu` is None where llama.cpp and torch have no GPU with memory of its own."""

    memory: int
    disk: int
    gpu: int | None


class Plan(msgspec.Struct, frozen=True):
    """What a run will take. `seconds` and its bounds are of what is still to be done.

    `peak` names the stage that takes the most memory. `advice` is empty where the run fits. `how` says of each rate
    where it comes from, `response_tokens` and `responses_from` what lengths were reckoned with.
    """

    out: str
    model: str
    queries: int
    rounds: int
    slots: int
    context: int
    precision: str
    activations_twice: bool
    stages: list[Stage]
    peak: str
    memory: int
    disk: int
    room: Room
    fits: bool
    lacking: list[Shortage]
    change: Change | None
    advice: str
    tokens: float
    seconds: float
    low: float
    high: float
    response_tokens: float
    responses_from: str
    how: dict[str, How]
    notes: list[str]


def plan(job: Job, progress: Progressor, *, measure: bool = True) -> Plan:
    """Reckon a run, after short measurements of what is not known yet of this machine and model.

    Args:
        measure: else only what is remembered or in the run folder is used, and default factors.
    """
    out, notes = Path(job.recipe.out), []
    earlier = Earlier()
    if same_run(out, job.identity()):
        earlier = look_back(out, job.recipe.rounds)
    else:
        notes.append(f"{out} holds a run of another recipe; name another `out`.")
    shape, machine = Shape.of(job.source), look(out)
    busy = psutil.getloadavg()[0] > _BUSY * machine.cores
    unmeasured = None if measure else _ASSUMED_SLOTS
    engine = engine_settings(job.recipe.sampler, job.source, job.context, progress, unmeasured)
    source = Source(job, shape, engine, machine, measure, progress)
    decode, convert, probe, how = sampler_rates(source)
    found = sizes(job, machine, probe, engine)
    learn, how_learn = learner_rates(source, found.training)
    rates = Rates(decode, learn, convert, {**how, "learning": how_learn, "importing": "estimated"})
    if busy and "measured" in rates.how.values():
        notes.append("Other programs kept the processor busy while this was measured: a quiet machine will be faster.")
    if warning := probe.cut_off(job.recipe.foresight.max_tokens):
        notes.append(f"{warning}.")
    known = Expected(job, shape, probe, found.round, rates, engine.slots)
    return _assembled(_Known(known, found, machine, earlier, notes))


@dataclass(frozen=True)
class _Known:
    expected: Expected
    sizes: Sizes
    machine: Machine
    earlier: Earlier
    notes: list[str]


def _assembled(known: _Known) -> Plan:
    job, machine, found, rates = known.expected.job, known.machine, known.sizes, known.expected.rates
    stages = [_stage(known, name, number) for name, number in stages_of(job)]
    ahead = [stage for stage in stages if not stage.done]
    lacks = lacking(job, found, machine, known.earlier)
    change = remedy(job, machine, known.expected.probe, known.earlier) if lacks else None
    held = [stage.disk for stage in ahead if stage.disk is not None]
    gpu = machine.learner_memory if machine.device == "cuda" else machine.gpu_memory or None
    return Plan(
        out=job.recipe.out,
        model=job.source.path.name,
        queries=len(job.queries),
        rounds=job.recipe.rounds,
        slots=found.engine.slots,
        context=job.context,
        precision=found.training.precision,
        activations_twice=found.training.checkpointing,
        stages=stages,
        peak=max(ahead or stages, key=lambda stage: stage.memory_total).stage,
        memory=max(stage.memory_total for stage in ahead or stages),
        disk=max(held, default=known.earlier.bytes) - known.earlier.bytes,
        room=Room(machine.memory, machine.disk, None if machine.device == "mps" else gpu),
        fits=not lacks,
        lacking=[Shortage(lack.stage, lack.what, lack.wanted, lack.there) for lack in lacks],
        change=Change(change.lines, not change.lacks, change.memory) if change else None,
        advice=advice(lacks, change) if lacks else "",
        tokens=sum(stage.tokens for stage in ahead if stage.stage == ROLLOUTS),
        seconds=sum(stage.seconds for stage in ahead),
        low=sum(stage.low for stage in ahead),
        high=sum(stage.high for stage in ahead),
        response_tokens=known.expected.probe.mean_length,
        responses_from=known.expected.probe.source,
        how=rates.how,
        notes=known.notes,
    )


def _stage(known: _Known, name: str, number: int) -> Stage:
    peak, done = known.sizes.peak(name, number), (name, number) in known.earlier.done
    seconds, tokens, unsure = _time(known, name, number)
    return Stage(
        stage=name,
        round=number,
        done=done,
        memory=peak.parts,
        memory_total=peak.total,
        gpu=peak.gpu,
        gpu_total=peak.gpu_total,
        disk=known.sizes.disk.get(name),
        tokens=tokens,
        seconds=seconds,
        low=seconds * (1 - unsure),
        high=seconds * (1 + unsure),
    )


def _time(known: _Known, name: str, number: int) -> tuple[float, float, float]:
    """Seconds and tokens of a stage, and by which share the seconds may be off."""
    reckoned = cost(known.expected, name, number)
    left = 1 - known.earlier.searched.get(number, 0) / len(known.expected.job.searched) if name == ROLLOUTS else 1.0
    tokens, drift = reckoned.tokens * left, known.expected.probe.uncertainty
    if name == ROLLOUTS and known.earlier.tokens:
        tokens = left * sum(known.earlier.tokens) / len(known.earlier.tokens)
    if seconds := known.earlier.mean_seconds(name):
        return seconds * left, tokens, 0.0 if (name, number) in known.earlier.done else drift
    rate = _UNSURE[known.expected.rates.how[_RATE_OF.get(name, "learning")]]
    return reckoned.seconds * left, tokens, min(0.9, (rate**2 + (drift**2 if tokens else 0.0)) ** 0.5)


_RATE_OF = {IMPORT: "importing", BASE: "decoding", ROLLOUTS: "decoding", QUANTIZING: "merging", EVALUATION: "decoding"}
