"""What a run finds out, typed: what stages note, reports hold and every table, tracker and page is made of."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from statistics import fmean
from typing import Literal

import msgspec

from genius_lite.records import Finish, Rollout

GREEDY = -1  # the `sample` of the likeliest response
Use = Literal["choose", "report", "both"]
"""What a problem is for: to choose between rounds, to tell of the one that was chosen, or, of few problems, both."""

Scores = dict[str, dict[str, float]]
"""Task -> problem -> score of a policy's responses to it, 0 to 1."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float


class McNemar(msgspec.Struct, frozen=True):
    """Problems that only the tuned model solves, those that only the base solves, and the two-sided p-value."""

    gained: int
    lost: int
    p_value: float


class Response(msgspec.Struct, frozen=True):
    """An answer to a problem, and what its checker says: 0 (wrong) to 1 (right). `tokens` is its length.

    `answer` is what its checker reads in it, if anything, which a vote counts; `timed_out` where the checker took too
    long and the response counts as wrong; `use` that of its problem; `temperature` 0 for the likeliest one.
    """

    task: str
    problem: str
    sample: int
    text: str
    tokens: int
    finish: Finish
    score: float
    answer: str | None = None
    timed_out: bool = False
    use: Use = "both"
    temperature: float = 1.0

    @property
    def right(self) -> bool:
        """Whether it is wholly right."""
        return self.score == 1


class Answers(msgspec.Struct, frozen=True):
    """All responses to one problem: the greedy one, if there is one, then the sampled ones.

    None where llama.cpp did not survive the problem, for the reason in `failure`.
    """

    task: str
    problem: str
    responses: list[Response]
    failure: str | None = None


class TaskResult(msgspec.Struct, frozen=True):
    """Accuracy on a task, the share of wholly right responses: greedy, sampled at `temperature`, and judged.

    Rounds are judged by the mean of the first two of each problem. Beside the base model: the paired difference of
    each, and McNemar's test of the greedy responses, over the problems that both answered.

    Of the sampled responses, by their number k: `most` is the accuracy of their most frequent answer (self-consistency,
    Wang et al., arXiv 2203.11171), `some` the share of problems that one of them solves (pass@k, Chen et al., arXiv
    2107.03374). Of all: `cut` is the share that ran into `max_tokens`, `length` the mean in tokens, `of_ended` the
    accuracy of those that came to an end, `timed_out` how many their checker took too long for. `chosen_on` says that
    these problems chose between rounds too; gains are then at 1 - 0.05 / rounds.
    """

    task: str
    problems: int
    samples: int
    cut: float
    length: float
    greedy: Interval | None
    sampled: Interval | None
    judged: Interval
    of_ended: Interval | None = None
    most: dict[str, Interval] = {}
    some: dict[str, Interval] = {}
    temperature: float = 1.0
    timed_out: int = 0
    chosen_on: bool = True
    greedy_gain: Interval | None = None
    sampled_gain: Interval | None = None
    judged_gain: Interval | None = None
    mcnemar: McNemar | None = None

    @property
    def accuracies(self) -> list[tuple[str, Interval, Interval | None]]:
        """(kind, accuracy, gain over the base) of what was measured; the mean only where both kinds were."""
        both = self.judged if self.sampled and self.greedy else None
        found = (
            ("sampled", self.sampled, self.sampled_gain),
            ("greedy", self.greedy, self.greedy_gain),
            ("mean of both", both, self.judged_gain),
        )
        return [(kind, accuracy, gain) for kind, accuracy, gain in found if accuracy]


class Cooled(msgspec.Struct, frozen=True):
    """The base model at its best `temperature` (0: the likeliest response), its `scores` on the problems that report.

    `tried` are the temperatures, as text, and the mean accuracies that decided.
    """

    temperature: float
    tried: dict[str, float]
    scores: Scores


class AtBest(msgspec.Struct, frozen=True):
    """A round on a task and the base model, each at its best temperature."""

    task: str
    base_temperature: float
    base: Interval
    temperature: float
    tuned: Interval
    gain: Interval


class Signals(msgspec.Struct, frozen=True):
    """Means over the responses to all held-out queries.

    - entropy: nats per token, every token alike. At temperature 1 minus the log-probability of a sampled token is an
      unbiased estimate of the entropy it was drawn with.
    - distinct: share of different token 2-grams among all (distinct-n, Li et al., arXiv 1510.03055). It falls as a
      text grows, so it is counted in windows of 32 2-grams, and averaged over all windows of a response and then over
      responses (as the moving-average type-token ratio, Covington and McFall, 2010): a repetition counts wherever it
      is. A shorter response is one window of what it has; fewer 2-grams repeat less, so that shrinking alone never
      looks like repetition.
    - loops: share of responses that end in a repetition (`repetition.loops`).
    - length: tokens. ended: share that ended with an end token.
    - parsed: share of the responses that ended which state an answer. One that was cut off has not come to its own.
    - unique: different answers to a query per response that ended; one that states none counts by its tokens.
    - agreement: share of a query's responses that give its most frequent answer (self-consistency, Wang et al., arXiv
      2203.11171), of those that ended; one without an answer agrees with none. `agreements` has it by query. Both are
      over queries with two such responses at least, and None where there is no such query.
    - kl: KL(policy || base), nats per token, by the estimator r - 1 - log r with r = base / policy (J. Schulman,
      "Approximating KL divergence", 2020) over the tokens that the policy drew; 0 for the base model.
    - responses: how many these are means over.
    """

    entropy: float
    distinct: float
    loops: float
    length: float
    ended: float
    unique: float | None
    agreement: float | None
    parsed: float
    kl: float
    responses: int
    agreements: dict[str, float] = {}


class RoundMetrics(msgspec.Struct, frozen=True):
    """What the guard looks at in a round.

    `signals` are None where no query is held out; the others are of so many `pairs` and foresight `steps`. `value` is
    the mean foresight value and `spread` its standard deviation within a step, averaged over steps, both in nats per
    token; `length_gap` is chosen - rejected length in shares of their mean; `accuracy` the share of pairs that training
    ranks right, `margin` what it learned, in nats.
    """

    signals: Signals | None
    value: float
    spread: float
    length_gap: float
    accuracy: float
    margin: float
    pairs: int
    steps: int


class Alarm(msgspec.Struct, frozen=True):
    """A signal beyond its limit. `line` says it to a person.

    `signal` names a limit of class Guard, and `value` is put as that limit is: a share, a difference, or the measure
    itself. Where something measured is not a finite number, `value` is that and `limit` infinity.
    """

    signal: str
    level: Literal["warn", "halt"]
    value: float
    limit: float
    line: str


class RolloutFigures(msgspec.Struct, frozen=True):
    """What a round's search sampled.

    `mean_value` is f in nats per token, over all candidates with a future, and `ended_share` the share of their
    responses that came to an end; `repeated` and `dropped` candidates and `skipped_steps` are not among them.
    `tokens_per_s` is None where an interrupted stage that was killed outright left no time.
    """

    queries: int
    candidates: int
    repeated: int
    dropped: int
    skipped_steps: int
    sampled_tokens: int
    mean_value: float
    ended_share: float
    tokens_per_s: float | None = None

    @staticmethod
    def of(rollouts: Iterable[Rollout], tokens_per_s: float | None = None) -> RolloutFigures:
        """Figures of one rollout at least; they are gone through once, as a long log is read from its file."""
        counts, values = Counter[str](), array("d")
        for rollout in rollouts:
            counts["queries"] += 1
            counts["tokens"] += rollout.sampled_tokens
            for step in rollout.steps:
                counts["repeated"] += step.duplicates
                counts["skipped"] += not step.foreseen
                if step.foreseen:
                    counts["dropped"] += step.dropped
                    counts["ended"] += sum(c.last.finish == "end" for c in step.candidates)
                    values.extend(c.value for c in step.candidates)
        return RolloutFigures(
            queries=counts["queries"],
            candidates=len(values),
            repeated=counts["repeated"],
            dropped=counts["dropped"],
            skipped_steps=counts["skipped"],
            sampled_tokens=counts["tokens"],
            mean_value=fmean(values),
            ended_share=counts["ended"] / len(values),
            tokens_per_s=tokens_per_s,
        )


class TrainReport(msgspec.Struct, frozen=True):
    """What a round's training did.

    `loss` is the mean over the last epoch's pairs, each before its update. `margin` (nats) is the mean when training
    has ended, of the policy against the base model, over `scored_pairs` pairs of `scored_questions` questions: 64 at
    most, drawn from all by the seed, and the same ones in every precision. Policy and base are both computed in fp32
    for it, whatever was trained in. `margin_error` is its standard error, pairs of a question counted as dependent, and
    None of a single question; `accuracy` is the share of these pairs whose margin is positive. `shared_tokens` is the
    share of tokens that packing did not compute twice, `logprob_mismatch` the mean difference of learner and sampler in
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

    `kept` is margin / learned, None where nothing was learned; `error` its standard error. Rounding moves each response
    by chance, so few questions and a small margin tell little.
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

    type: str
    kept: float | None
    keeps: bool
    widened: bool
    error: float
    matrices: dict[str, float]
    scored: ScoredMargin | None = None
    sha256: str = ""


class Timing(msgspec.Struct, frozen=True):
    """What a stage took. Memory in bytes: the most of the run's process so far, and of the stage's own sampler."""

    stage: str
    seconds: float
    amount: float
    peak_bytes: int | None = None
    sampler_peak_bytes: int | None = None

    def plus(self, other: Timing) -> Timing:
        """This and a later part of the same stage together."""

        def most(a: int | None, b: int | None) -> int | None:
            return max((v for v in (a, b) if v is not None), default=None)

        return Timing(
            self.stage,
            self.seconds + other.seconds,
            self.amount + other.amount,
            most(self.peak_bytes, other.peak_bytes),
            most(self.sampler_peak_bytes, other.sampler_peak_bytes),
        )


class RoundReport(msgspec.Struct, frozen=True):
    """The figures of a round, as far as it went; what it did not come to is None or empty.

    `score` and `base_score` are what rounds are compared by: the round's, and that of the base model in its types.
    """

    round: int
    rollouts: RolloutFigures | None = None
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
