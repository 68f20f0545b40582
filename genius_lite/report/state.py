"""Where a run stands: what the live view shows, and `progress.json` keeps for other terminals."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from genius_lite.progress import BASE_STAGES, ROUND_STAGES, Stage
from genius_lite.records import Rollout

_BIN = 0.01  # nats per token
_MOST = 10**15  # bins, and values in one; a stranger's file could have any number
_FORECAST_FROM = 0.05  # share of a stage that must be done before its end is forecast
_SHOWN = 400  # characters of a question or a step; no terminal's line shows more
_MARKS, _MARK_EVERY = 60, 1.0  # what a rate goes by: so many marks, so many seconds apart at least


class Work(msgspec.Struct, frozen=True):
    """What is counted in a stage. `rate` is a second's, `left` seconds; None where nothing tells it yet."""

    name: str
    unit: str
    total: float
    done: float
    rate: float | None = None
    left: float | None = None


class Memory(msgspec.Struct, frozen=True):
    """Bytes that the run's own process and its workers hold now, of those that the machine has."""

    main: int
    workers: int
    machine: Annotated[int, Meta(gt=0)]


class SampleRollout(msgspec.Struct, frozen=True):
    """A rollout as a person reads it: the question, and the value (nats per token) and text of each step so far."""

    prompt: str
    steps: list[tuple[float | None, str]]


class Histogram(msgspec.Struct):
    """How often each value came, in bins of 0.01 nats per token; those that are no finite numbers are left out."""

    bins: dict[Annotated[int, Meta(ge=-_MOST, le=_MOST)], Annotated[int, Meta(ge=1, le=_MOST)]] = {}

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            if math.isfinite(value):
                place = math.floor(value / _BIN + 0.5)
                self.bins[place] = self.bins.get(place, 0) + 1

    @property
    def count(self) -> int:
        return sum(self.bins.values())

    @property
    def mean(self) -> float:
        """Of at least one value."""
        return _BIN * sum(place * n for place, n in self.bins.items()) / self.count

    def columns(self, width: int) -> tuple[float, float, list[int]]:
        """Find the lowest and the highest value, and how many are in each of at most `width` equal parts of that."""
        low, high = min(self.bins), max(self.bins)
        wide = -(-(high - low + 1) // width)  # bins of a part
        counts = [0] * ((high - low) // wide + 1)
        for place, n in self.bins.items():
            counts[(place - low) // wide] += n
        return low * _BIN, high * _BIN, counts


class RunState(msgspec.Struct):
    """A run, its stage under way (`kind`, of round `number`; round 0 is the base model), and what it has shown so far.

    Times are seconds since 1970. `forecast` has the seconds that each stage of a round is expected to take, as far as
    that is known; `run_left` is None until every stage is forecast or measured. A `shard` has one stage, the rollouts.
    `ended` says why a run that is not finished ended, `stuck` that the same command would end likewise.
    """

    out: str = ""
    model: str = ""
    queries: int = 0
    rounds: int = 0
    forecast: dict[Stage, float] = {}
    pid: int = 0
    host: str = ""
    command: str = ""
    started: float = 0.0
    updated: float = 0.0
    number: int = 0
    kind: Stage = Stage.IMPORT
    entered: float = 0.0
    work: Work | None = None
    run_left: float | None = None
    memory: Memory | None = None
    values: Histogram = msgspec.field(default_factory=Histogram)
    glimpse: SampleRollout | None = None
    rows: list[dict[str, Any]] = []
    lights: dict[str, str] = {}
    best: int | None = None
    shard: bool = False
    stopping: bool = False
    ended: str | None = None
    stuck: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the round under way, in order."""
        if self.shard:
            return (Stage.ROLLOUTS,)
        stages = ROUND_STAGES if self.number else BASE_STAGES
        return (*stages, Stage.EXPORT) if self.kind == Stage.EXPORT or self.number == self.rounds else stages

    def marked_stages(self, over: bool) -> list[tuple[Stage, str]]:
        """Put `done`, `now` or `next` beside each of these stages; of what is `over`, all are done."""
        stages = self.stages
        at = len(stages) if over else stages.index(self.kind) if self.kind in stages else 0
        return [(stage, "done" if i < at else "now" if i == at else "next") for i, stage in enumerate(stages)]

    def enter(self, number: int, kind: Stage) -> None:
        if number != self.number:
            self.values, self.glimpse = Histogram(), None
        self.number, self.kind, self.entered, self.work = number, kind, time.time(), None

    def left(self, seconds: dict[Stage, float]) -> float | None:
        """Seconds until the run ends, if all its rounds are run; None where that rests on a stage never measured.

        `seconds` are what each stage of a whole round took; they count before the forecast.
        """
        known, spent = self.forecast | seconds, max(0.0, time.time() - self.entered)  # a clock may be set back
        here = self.work.left if self.work else None
        if self.kind in seconds:
            here = max(here or 0.0, seconds[self.kind] - spent)
        elif here is None and self.number and self.kind in known:  # the base model's evaluation is no round's
            here = max(0.0, known[self.kind] - spent)
        after = self.stages[self.stages.index(self.kind) + 1 :] if self.kind in self.stages else ()
        rounds = self.rounds - self.number if self.kind != Stage.EXPORT else 0
        wanted = [kind for kind in after if kind != Stage.EXPORT] + list(ROUND_STAGES) * rounds
        if here is None or any(kind not in known for kind in wanted):
            return None
        return here + sum(known[kind] for kind in wanted)


class Meter:
    """Counts the work of a stage. Its rate is that of the last minute, or of the last events where they are rarer.

    Of work that is under way `at_once` half is done and not counted: it began together, and for long nothing ends.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        total: float,
        done: float = 0.0,
        at_once: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.unit, self.total, self.done, self.clock = name, unit, total, done, clock
        self._at_once = at_once
        self.start = self._last = clock()
        self._before = done
        self._marks = deque([(self.start, done)], maxlen=_MARKS)

    def advance(self, n: float) -> None:
        self.done += n
        self._last = self.clock()
        if self._last - self._marks[-1][0] >= _MARK_EVERY:
            self._marks.append((self._last, self.done))

    def read(self) -> Work:
        """Say how far it is. The end is forecast from what was done here, not by an earlier process."""
        (since, done), now = self._marks[0], self.clock()
        rate = left = None
        if self.done > done and self._last > since:
            usual = (self._last - since) / max(1, len(self._marks) - 1)  # seconds between two marks
            overdue = now - self._last > 2 * usual + _MARK_EVERY
            until = now if overdue else self._last
            under_way = min(self._at_once, self.total - self.done) / 2
            rate = (self.done - done + (under_way if since == self.start else 0)) / (until - since)
            # The first few of many steps often pay for loading; no forecast rests on them.
            if self.done - self._before >= _FORECAST_FROM * (self.total - self._before):
                left = (self.total - self.done - under_way) / rate - (now - until)
        known = left if left is not None and left > 0 and self.done < self.total else None
        return Work(self.name, self.unit, self.total, self.done, rate, known)


def glimpse(rollout: Rollout, decode: Callable[[list[int]], str]) -> SampleRollout:
    """Show the steps, so far, of the rollout's best response, best by the value of its last one, among those kept."""
    last = rollout.steps[-1]
    place = max(last.kept or range(len(last.candidates)), key=lambda i: last.candidates[i].value)
    steps = []
    for step in reversed(rollout.steps):
        chosen = step.candidates[place]
        steps.append((chosen.value, decode(chosen.step.tokens)[:_SHOWN]))
        if step.index:
            place = rollout.steps[step.index - 1].kept[chosen.beam]
    return SampleRollout(rollout.query.prompt[:_SHOWN], steps[::-1])
