"""What the stages of a round note, a round's report, and a run's summary, typed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Annotated

import msgspec

from genius_lite.records import Rollout
from genius_lite.results.evaluation import Alarm, AtBest, Interval, RoundMetrics, TaskResult


class RolloutFigures(msgspec.Struct, frozen=True):
    """What a round's search sampled.

    `mean_value` is f in nats per token, over all candidates of foreseen steps, and `ended_share` the share of their
    responses that came to an end; `repeated` candidates and `skipped_steps` are not among them, and where all steps
    were skipped both are None. `tokens_per_s` is None where a stage that was killed left no time.
    """

    queries: int
    candidates: int
    repeated: int
    skipped_steps: int
    sampled_tokens: int
    mean_value: float | None
    ended_share: float | None
    tokens_per_s: float | None = None

    @staticmethod
    def of(rollouts: Iterable[Rollout], tokens_per_s: float | None) -> RolloutFigures:
        """Count over one rollout at least; they are gone through once, as a long log is read from its file."""
        queries = repeated = skipped = tokens = ended = 0
        values = array("d")
        for rollout in rollouts:
            queries += 1
            tokens += rollout.sampled_tokens
            for step in rollout.steps:
                repeated += step.repeats
                skipped += not step.foreseen
                values.extend(step.values)
                ended += sum(c.last.finish == "end" for c in step.candidates if step.foreseen)
        mean, share = (fmean(values), ended / len(values)) if values else (None, None)
        return RolloutFigures(queries, len(values), repeated, skipped, tokens, mean, share, tokens_per_s)


class TrainReport(msgspec.Struct, frozen=True):
    """What a round's training did.

    `loss` is the mean over the last epoch's pairs, each before its update. `margin` (nats) is the mean when
    training has ended, of the policy against the base model, both in fp32, over `scored_pairs` pairs of
    `scored_questions` questions: one of 16, but 16 at least and 64 at most, drawn by the seed, the same ones in
    every precision. `margin_error` is its standard error, pairs of a question counted as dependent, and None of a
    single question; `accuracy` is the share of these pairs whose margin is positive. `shared_tokens` is the share
    of tokens that packing did not compute twice, `logprob_mismatch` the mean difference of learner and sampler in
    nats a token, `curve` a row for each update, in the precision of the training.
    """

    pairs: int
    updates: int
    loss: float
    margin: float
    margin_error: float | None
    accuracy: float
    scored_pairs: int
    scored_questions: int
    shared_tokens: float
    logprob_mismatch: float | None
    weight_bytes: int
    precision: str
    device: str
    curve: list[dict[str, float]]
    seconds: float = 0.0


class ScoredMargin(msgspec.Struct, frozen=True):
    """Mean margins over questions, nats, by llama.cpp: `learned` with the adapter at run time, `margin` with the file.

    `kept` is margin / learned, None where nothing was learned; `error` its standard error.
    """

    questions: int
    learned: float
    margin: float
    kept: float | None
    error: float | None


class Quantized(msgspec.Struct, frozen=True):
    """A round's GGUF: its type, and the share of the update that it keeps (None: there is none), by matrix too.

    `keeps` says whether that is enough for the recipe, `widened` that it is of a wider type than the recipe's, which
    loses too much. `error` is the standard deviation that rounding gives the share. `scored` is llama.cpp's own check,
    where it was asked.
    """

    type: Annotated[str, msgspec.Meta(pattern=r"^\w{1,30}$")]  # part of names of files
    kept: float | None
    keeps: bool
    widened: bool
    error: float
    matrices: dict[str, float]
    scored: ScoredMargin | None = None
    sha256: str = ""


class SampledFrom(msgspec.Struct, frozen=True):
    """Which file a round was sampled from, and the speeds that decided, by file (`policy: auto`)."""

    file: Annotated[str, msgspec.Meta(pattern=r"^[\w ,()']{1,80}$")]
    tokens_per_s: dict[str, float]


class Moments(msgspec.Struct):
    """Sums over points (x, y), enough to fit a line."""

    count: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.count += 1
        self.x += x
        self.y += y
        self.xx += x * x
        self.xy += x * y

    def line(self) -> tuple[float, float] | None:
        """Fit y = intercept + slope * x by least squares; None of points that all have the same x."""
        spread = self.count * self.xx - self.x * self.x
        if spread <= 1e-9 * self.count * self.xx:
            return None
        slope = (self.count * self.xy - self.x * self.y) / spread
        return (self.y - slope * self.x) / self.count, slope


class Stats(msgspec.Struct):
    """Totals of a sampler since its start.

    Tokens that were drawn, and tokens of prompts that were decoded; seconds in llama.cpp, in drawing, and altogether
    busy; peak memory in bytes. `branch_steps` are decode steps of branches alone: how many there were, and seconds.
    `shared` of the drawn tokens were decoded with those of another completion, which had drawn the same ones so far.
    """

    sampled: int = 0
    prefilled: int = 0
    decode_steps: int = 0
    decode_s: float = 0.0
    sampling_s: float = 0.0
    busy_s: float = 0.0
    shared: int = 0
    peak: int = 0
    branch_steps: Moments = msgspec.field(default_factory=Moments)


def total_stats(parts: Sequence[Stats]) -> Stats | None:
    """Add up samplers that ran one after another; None if there were none."""
    if not parts:
        return None
    *sums, _, _ = zip(*map(msgspec.structs.astuple, parts), strict=True)
    moments = zip(*(msgspec.structs.astuple(stats.branch_steps) for stats in parts), strict=True)
    return Stats(*map(sum, sums), peak=max(stats.peak for stats in parts), branch_steps=Moments(*map(sum, moments)))


SWEPT = "other temperatures"
"""The part of an evaluation that only the base model's has."""


class Timing(msgspec.Struct, frozen=True):
    """What a stage took; `peak_bytes` is the most memory of the process so far, `sampler` what its sampler did.

    `parts` are seconds of what the stage consists of, where that is told apart. `untimed` is the amount that took none
    of these seconds: it came from shards, another run or memory, or was made by a process that was killed.
    """

    stage: str
    seconds: float
    amount: float
    peak_bytes: int | None = None
    sampler: Stats | None = None
    parts: dict[str, float] = {}
    untimed: float = 0.0

    @property
    def whole(self) -> float:
        """The amount of the stage, whoever made it."""
        return self.amount + self.untimed

    @property
    def whole_seconds(self) -> float | None:
        """Seconds that all of it takes at the rate of what was timed; None where nothing was."""
        if not self.untimed:
            return self.seconds
        return self.seconds * self.whole / self.amount if self.amount else None

    def plus(self, other: Timing) -> Timing:
        """Add a later part of the same stage."""
        peaks = [peak for peak in (self.peak_bytes, other.peak_bytes) if peak is not None]
        return Timing(
            self.stage,
            self.seconds + other.seconds,
            self.amount + other.amount,
            max(peaks, default=None),
            total_stats([stats for stats in (self.sampler, other.sampler) if stats]),
            {name: self.parts.get(name, 0.0) + other.parts.get(name, 0.0) for name in self.parts | other.parts},
            self.untimed + other.untimed,
        )


class RoundReport(msgspec.Struct, frozen=True):
    """The figures of a round, as far as it went; what it did not come to is None or empty.

    `sampled_from` is the file that was chosen by measurement, if that was asked for. `score` and `base_score` are what
    rounds are compared by: the round's, and that of the base model in its types. Where that is another file than the
    user's, `to_own` has for each task what is gained over the latter, by kind of answer.
    """

    round: int
    rollouts: RolloutFigures | None = None
    sampled_from: str | None = None
    failed: int = 0
    pairs: int | None = None
    pairs_left_out: dict[str, int] = {}
    training: TrainReport | None = None
    quantized: Quantized | None = None
    gguf_bytes: int | None = None
    score: float | None = None
    base_score: float | None = None
    evaluation: list[TaskResult] = []
    at_best: list[AtBest] = []
    to_own: dict[str, dict[str, Interval]] = {}
    metrics: RoundMetrics | None = None
    alarms: list[Alarm] = []

    @property
    def halted(self) -> bool:
        """Whether the collapse guard ended the run after this round."""
        return any(alarm.level == "halt" for alarm in self.alarms)


class Summary(msgspec.Struct, frozen=True):
    """A finished run: its folder, the exported model and the round it is of (0: the base model), and every round.

    `stopped` says why it ended early, if it did, and `halted` that this was the collapse guard's doing.
    """

    out: str
    exported: str
    best: int
    stopped: str | None
    halted: bool
    queries: int
    duplicates_dropped: int
    rounds: list[RoundReport]
