"""What the answers of a policy show, typed: responses, accuracies, label-free signals, and what the guard says."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from genius_lite.records import Completion, Finish

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
    sample: Annotated[int, msgspec.Meta(ge=GREEDY, le=1 << 30)]
    text: str
    tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
    finish: Finish
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    answer: str | None = None
    timed_out: bool = False
    use: Use = "both"
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0

    @property
    def right(self) -> bool:
        """Whether it is wholly right."""
        return self.score == 1


class Commonest(msgspec.Struct, frozen=True):
    """The most frequent of the answers to several questions, and its share among them, each question alike."""

    answer: str
    share: float


class Answers(msgspec.Struct, frozen=True):
    """All responses to one problem: the greedy one, if there is one, then the sampled ones.

    None where llama.cpp did not survive the problem, for the reason in `failure`.
    """

    task: str
    problem: str
    responses: list[Response]
    failure: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Task and problem."""
        return (self.task, self.problem)


class Said(msgspec.Struct, frozen=True):
    """All responses to one held-out query."""

    query_id: str
    responses: list[Completion]

    @property
    def key(self) -> tuple[str, str]:
        """The query, which is of no task."""
        return ("", self.query_id)


class TaskResult(msgspec.Struct, frozen=True):
    """Accuracy on a task, the share of wholly right responses: greedy, sampled at `temperature`, and judged.

    Judged is the mean of the first two of each problem. Gains are paired differences to the base model, and `mcnemar`
    tests the greedy responses, over the problems that both answered.

    Of the sampled responses, by their number k: `most` is the accuracy of their most frequent answer (self-consistency,
    Wang et al., arXiv 2203.11171), `some` the share of problems that one of them solves (pass@k, Chen et al., arXiv
    2107.03374). Of all: `cut` is the share that ran into `max_tokens`, `length` the mean in tokens, `of_ended` the
    accuracy of those that came to an end, `timed_out` how many their checker took too long for, `commonest` the answer
    that is given to most problems (a model that says "B" to everything is right where that is). `chosen_on` says that
    these problems chose between rounds too; `confidence`, that of the gains' intervals, is Bonferroni's then.
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
    commonest: Commonest | None = None
    chosen_on: bool = True
    confidence: float = 0.95
    greedy_gain: Interval | None = None
    sampled_gain: Interval | None = None
    judged_gain: Interval | None = None
    mcnemar: McNemar | None = None

    @property
    def by_kind(self) -> dict[str, tuple[Interval | None, Interval | None]]:
        """Kind -> accuracy and gain over the base, None where not measured; the mean only where both kinds were."""
        both = (self.judged, self.judged_gain) if self.sampled and self.greedy else (None, None)
        sampled, greedy = (self.sampled, self.sampled_gain), (self.greedy, self.greedy_gain)
        return {"sampled": sampled, "greedy": greedy, "mean of both": both}

    @property
    def accuracies(self) -> list[tuple[str, Interval, Interval | None]]:
        """(kind, accuracy, gain over the base) of what was measured."""
        return [(kind, accuracy, gain) for kind, (accuracy, gain) in self.by_kind.items() if accuracy]


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
      text grows, so it is the mean over all windows of 32 2-grams of a response (a shorter one is one window), and
      then over responses, as the moving-average type-token ratio (Covington and McFall, 2010).
    - loops: share of responses that end in a repetition (`foresight.filters.loops`).
    - length: tokens. ended: share that ended with an end token.
    - thinking: share whose thought did not come to its end.
    - parsed: share of the responses that ended which state an answer. One that was cut off has not come to its own.
    - unique: different answers of two responses to a query that ended, per response, so from a half on; one that states
      none counts by its tokens.
    - agreement: how often two responses to a query that ended give the same answer; one without an answer agrees with
      none. `agreements` has it by query. Both are over queries with two such responses at least, and None where there
      is no such query; neither depends on how many responses end, as shares of all of them would.
    - same: share of the answers to all queries that are the most frequent one, each query alike; None where fewer than
      four queries have an answer. A policy that says "B", or 1, to everything has 1, and agrees with itself.
    - kl: KL(policy || base), nats per token: the mean of log(policy / base) over the tokens that the policy drew, at
      least 0; 0 for the base model. Not r - 1 - log r with r = base / policy (J. Schulman, "Approximating KL
      divergence", 2020), which single tokens rule where the policy has grown sure.
    - responses: how many these are means over; but `unique` and `agreement` over `compared`, and `same` over `stated`.
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
    thinking: float = 0.0
    same: float | None = None
    compared: int = 0
    stated: int = 0


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
    """A signal beyond its limit in class Guard, whose `value` is put as that limit is. `line` says it to a person.

    Where something measured is not a finite number, `value` is that and `limit` infinity.
    """

    signal: str
    level: Literal["warn", "halt"]
    value: float
    limit: float
    line: str
