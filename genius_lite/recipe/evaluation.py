"""What is measured, and when a run is warned of or halted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from genius_lite.recipe.benchmarks import HARNESS, BenchmarkName, completed
from genius_lite.recipe.sampling import Prefix, columns_of
from genius_lite.recipe.types import AboveZero, Auto, Count, LocalPath, NotNegative, Positive, Section, Seed, Text, key

Check = Literal["exact", "numeric", "choice", "regex", "math-verify"]
_LAID_DOWN = ("check", "prompt", "answer", "choices", "count_from", "options")  # by a definition of another package
_FILE_KEYS = (*_LAID_DOWN, "limit", "subset", "split", "revision")
_GENERATED_KEYS = ("size", "seed", "config")


def _option(default: Any, checks: list[Check], description: str, **notes: Any) -> Any:
    """Declare an option of these checkers."""
    return key(default, f"{', '.join(checks)}: {description}", **notes, checks=checks)


class CheckOptions(Section):
    """What a checker may be told; each takes those that name it."""

    ignore_case: bool = _option(False, ["exact", "regex"], "capital and small letters are equal")
    tolerance: NotNegative = _option(
        0.0, ["numeric"], "how far off a right number may be, of the answer", unit="share", examples=[0.01]
    )
    decimal: Literal[".", ","] = _option(
        ".",
        ["numeric"],
        "the mark before decimals, in answers and responses; ',': 3,5 is three and a half, 1.234 is 1234",
    )
    pattern: Text | None = _option(
        None, ["regex"], "a regular expression, in single quotes; its last match counts", examples=["'is (.*)'"]
    )
    group: Count | Text | None = _option(
        None, ["regex"], "number or name of the group that is the answer; null: the first one, or the whole match"
    )


class TaskSource(Section):
    """Problems with known answers. They measure; nothing learns from them."""

    source: LocalPath = Field(
        description="The problems: whatever queries.source may be, or reasoning_gym:NAME (pip install "
        "'reasoning-gym>=0.1.25'); of a benchmark, its own or one with the same columns",
        examples=["held-out.jsonl"],
    )
    benchmark: BenchmarkName | None = key(
        None, "A benchmark of the field, by its name, which says all but `use` and `limit` itself: docs/benchmarks.md"
    )
    check: Check = key("exact", "How a response is compared with the answer")
    prompt: Text = key("prompt", "Column of the question, or several, such as '{context} {question}'")
    answer: Text = key(
        "answer", "Column of the answer; for check: choice an option's letter, number, label or text, or true and false"
    )
    choices: Text = key(
        "choices",
        "Column of the options, for check: choice: a list of texts, or `text` and `label`; or a column for each, such "
        "as '{A} {B} {C} {D}'",
    )
    count_from: Literal[0, 1] | None = key(
        None, "The first option's number, where answers are numbers; null: found from those of all problems"
    )
    options: CheckOptions = key(CheckOptions(), "Of the checker")
    use: Literal["auto", "choose", "report", "both"] = key(
        "auto",
        "What the problems are for: to choose the best round, to report on it, or both, with wider intervals; auto: "
        "half of them choose and half report, of fewer than 40 all do both",
    )
    limit: Positive | None = key(
        None,
        "Use the first so many problems of a file, or so many from the whole of a benchmark, evenly; null: all",
        unit="problems",
    )
    size: Positive = key(100, "Problems that reasoning-gym makes", unit="problems")
    seed: Seed = key(0, "Of reasoning-gym")
    config: dict[str, Any] = key({}, "Of the reasoning-gym data set, such as {max_terms: 2}")
    subset: Text | None = key(None, "Configuration, for hub datasets that have several")
    split: Text = key("test", "Split, for hub datasets")
    revision: Text | None = key(None, "Commit, tag or branch, for hub datasets")

    @model_validator(mode="before")
    @classmethod
    def _of_benchmark(cls, written: Any) -> Any:
        return completed(written) if isinstance(written, dict) else written

    @model_validator(mode="after")
    def _possible(self) -> TaskSource:
        written = self.model_dump(exclude_defaults=True)  # so that a recipe that was dumped is one
        generated = self.source.startswith(Prefix.REASONING_GYM)
        own, others = (_GENERATED_KEYS, _FILE_KEYS) if generated else (_FILE_KEYS, _GENERATED_KEYS)
        if wrong := [name for name in others if name in written]:
            theirs, ours = ("a file", "reasoning_gym") if generated else ("reasoning_gym", "a file")
            raise ValueError(f"{wrong[0]} is for a task from {theirs}; one from {ours} takes {', '.join(own)}")
        if generated and self.benchmark:
            raise ValueError("source is reasoning_gym's, and a benchmark is named too; take one of the two out")
        fixed = _LAID_DOWN if self.benchmark in HARNESS else ()
        if wrong := [name for name in fixed if name in written]:
            raise ValueError(f"{wrong[0]} is laid down by benchmark: {self.benchmark}; take it out")
        for name in ("prompt", "choices"):
            if "{" in getattr(self, name):
                columns_of(getattr(self, name), name)
        taken = [name for name in CheckOptions.model_fields if self.check in CheckOptions.extra(name)["checks"]]
        if wrong := [name for name in written.get("options", ()) if name not in taken]:
            instead = f"write {' or '.join(taken)}" if taken else "take it out"
            raise ValueError(f"options.{wrong[0]} is no option of check: {self.check}; {instead}")
        if self.check == "regex" and not self.options.pattern:
            raise ValueError("check regex needs a pattern; write `options: {pattern: '...'}`")
        return self


class Evaluate(Section):
    """What is measured of the base model and after every round, by llama.cpp, and what follows from it."""

    tasks: list[TaskSource] = key([], "Problems with known answers; none leaves label-free signals")
    samples: Count = key(4, "Responses to each problem at `temperature`", unit="responses")
    greedy: bool = key(
        True, "Also the likeliest response to each problem; rounds are judged by the mean of it and of `samples`"
    )
    temperature: AboveZero | Auto = key(
        "auto",
        "Sampling temperature of `samples`, which should be that of later use; auto: what the model's file "
        "recommends, else 0.7",
    )
    sweep: list[AboveZero] = key(
        [0.3, 0.7, 1.0],
        "Temperatures at which the base model is measured beside, so that it can be shown at its best; []: at none. "
        "With samples: 0 it is measured at 0 alone",
    )
    max_tokens: Positive | Auto = key(
        "auto", "Longest response, beside foresight.thought_tokens; auto: foresight.max_tokens", unit="tokens"
    )
    queries: Count | Auto = key(
        "auto",
        "Queries, at most, that the collapse guard watches: those held out, then such as follow in the source beyond "
        "queries.limit; 0: none; auto: a quarter of the run's, but 4 at least and 16 at most",
        unit="questions",
    )
    query_samples: Annotated[int, Field(ge=2)] = key(4, "Responses to each of those queries", unit="responses")
    remember: bool = key(
        True,
        "Take what the model's own file answers from an earlier run on this machine that asked it the same in the same "
        "way, and keep it for later ones; false asks again",
    )
    rollback: bool = key(
        True,
        "A round is not built upon where it is worse than the base model or the best so far, by the interval of the "
        "difference",
    )
    patience: Positive | None = key(None, "Stop after so many such rounds in a row; null: never", unit="rounds")

    def watched(self, queries: int) -> int:
        """Return how many queries are watched, at most, in a run of so many: `queries` as it comes out.

        `auto` are fewer than are searched, as each costs about as much.
        """
        return min(16, max(4, queries // 4)) if self.queries == "auto" else self.queries

    @model_validator(mode="after")
    def _possible(self) -> Evaluate:
        if len(self.sweep) != len({*self.sweep}):
            raise ValueError("sweep has a temperature twice; write each once")
        if self.tasks and all(task.use == "choose" for task in self.tasks):
            raise ValueError("tasks only choose between rounds, and none reports; write use: report for one of them")
        if self.tasks and all(task.use == "report" for task in self.tasks):
            raise ValueError("tasks only report, and none chooses between rounds; write use: choose for one of them")
        if not self.samples and not self.greedy:
            raise ValueError("samples 0 and greedy: false leave nothing to measure; write samples: 1, or greedy: true")
        if self.patience and not self.tasks and not self.queries:
            raise ValueError("patience needs something to judge rounds by; write tasks, or queries: 1 or more")
        return self


class Tracking(Section):
    """Where the figures of training and of each round are shown too, by accelerate's trackers; off unless one is named.

    It may change, and come and go, while a run goes on.
    """

    model_config = ConfigDict(validate_by_name=True)  # `with` is no name in Python

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default=[],
        alias="with",
        description="Packages to install beside genius-lite; tensorboard's files go to the run folder",
    )
    project: Text = key("genius-lite", "Under which the tracker files the run")
    name: Text | None = key(None, "Of the run; null: that of its folder")


class Limit(Section):
    """Where a signal is worth a warning, and where the run halts; null switches one off.

    A limit that is written replaces both of the defaults: `kl: {warn: 1.0}` never halts. Over another recipe's it is
    joined, as sections are: there write `halt: null` too.
    """

    warn: float | None = key(None, "A warning beyond this; null: never", examples=[0.5])
    halt: float | None = key(None, "The run ends beyond this; null: never")


def _limit(
    worse: Literal["less", "more"], warn: float, halt: float | None, description: str, unit: str = "share"
) -> Any:
    """Declare the limit of a signal, and whether less or more of that is worse."""
    return key(Limit(warn=warn, halt=halt), description, unit=unit, worse=worse)


class Guard(Section):
    """The collapse guard's limits, one for each signal, `{warn: NUMBER, halt: NUMBER}`.

    "Of the base" are ratios to the base model's value, "over the base" differences from it.
    """

    entropy: Limit = _limit("less", 0.5, 0.2, "Token entropy, least share of the base")
    distinct: Limit = _limit("less", 0.7, 0.4, "Distinct 2-grams, least share of the base")
    loops: Limit = _limit("more", 0.1, 0.3, "Looping responses, most over the base")
    shorter: Limit = _limit("less", 0.5, 0.2, "Mean length, least share of the base")
    longer: Limit = _limit("more", 2.0, 4.0, "Mean length, most of the base")
    ended: Limit = _limit("more", 0.2, 0.5, "Ended responses, most below the base")
    unique: Limit = _limit("less", 0.75, 0.55, "Different answers of two (from 0.5 on), least share of the base")
    same: Limit = _limit("more", 0.3, 0.6, "The most frequent answer to all queries, share of answers over the base")
    kl: Limit = _limit("more", 0.5, 2.0, "KL divergence to the base, most", "nats per token")
    value: Limit = _limit(
        "more", 0.5, 1.5, "Mean foresight value, most below round 1, of the same queries", "nats per token"
    )
    spread: Limit = _limit("less", 0.3, 0.1, "Spread of values, least share of round 1, of the same queries")
    length_gap: Limit = _limit("more", 0.3, 0.7, "Chosen - rejected length, most of their mean, either way")
    accuracy: Limit = _limit("less", 0.5, 0.3, "Pairs that training ranks right, least share")
    margin: Limit = _limit("less", 0.0, None, "Learned margin, least", "nats")

    @classmethod
    def low(cls, signal: str) -> bool:
        """Return whether less of a signal is worse."""
        return cls.extra(signal)["worse"] == "less"

    @model_validator(mode="after")
    def _possible(self) -> Guard:
        for name in type(self).model_fields:
            limit, worse = getattr(self, name), self.extra(name)["worse"]
            if limit.warn is None or limit.halt is None:
                continue
            if limit.halt > limit.warn if worse == "less" else limit.halt < limit.warn:
                raise ValueError(f"{name}.halt comes before warn, as {worse} is worse; swap the two")
        return self
