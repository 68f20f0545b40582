"""What is measured, and when a run is warned of or halted."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from genius_lite.recipe.types import NATS, NATS_PER_TOKEN, SHARE, TOKENS, Auto, Check, Positive, Section, Seed, Text

GENERATED = "reasoning_gym:"
"""What the source of a task that is generated starts with."""
_OF_FILES = ("check", "prompt", "answer", "choices", "options", "limit")
_OF_GENERATED = ("size", "seed", "config")
_OPTIONS: dict[str, tuple[tuple[Check, ...], tuple[type, ...], str]] = {
    "ignore_case": (("exact", "regex"), (bool,), "true or false"),
    "tolerance": (("numeric",), (int, float), "a number, a share of the answer such as 0.01"),
    "pattern": (("regex",), (str,), "a regular expression in single quotes"),
    "group": (("regex",), (int, str), "the number or the name of a group"),
}
"""Of the checkers: which take it, its types, and what to write."""


class TaskSource(Section):
    """Problems with known answers. They measure; nothing learns from them."""

    source: Text = Field(
        description="The problems: a path (.jsonl), or reasoning_gym:NAME (pip install 'genius-lite[eval]')",
        examples=["held-out.jsonl"],
    )
    check: Check = Field(default="exact", description="How a response is compared with the answer of a JSONL problem")
    prompt: Text = Field(default="prompt", description="Column of the question")
    answer: Text = Field(default="answer", description="Column of the answer")
    choices: Text = Field(default="choices", description="Column of the options, for check: choice")
    options: dict[str, Any] = Field(
        default={},
        description="Of the checker: ignore_case (exact, regex), tolerance (numeric, a share of the answer), pattern "
        "and group (regex)",
    )
    use: Literal["auto", "choose", "report", "both"] = Field(
        default="auto",
        description="What the problems are for: to choose the best round, to report on it, or both, with wider "
        "intervals; auto: half of them choose and half report, of fewer than 40 all do both",
    )
    limit: Positive | None = Field(
        default=None,
        description="Use the first so many problems of a file; null: all",
        json_schema_extra={"unit": "problems"},
    )
    size: Positive = Field(
        default=100, description="Problems that reasoning-gym makes", json_schema_extra={"unit": "problems"}
    )
    seed: Seed = Field(default=0, description="Of reasoning-gym")
    config: dict[str, Any] = Field(default={}, description="Of the reasoning-gym data set, such as {max_terms: 2}")

    @model_validator(mode="after")
    def _possible(self) -> TaskSource:
        generated = self.source.startswith(GENERATED)
        strangers = _OF_FILES if generated else _OF_GENERATED
        if wrong := [key for key in strangers if key in self.model_fields_set]:
            theirs, ours = ("a file", "reasoning_gym") if generated else ("reasoning_gym", "a file")
            takes = ", ".join(_OF_GENERATED if generated else _OF_FILES)
            raise ValueError(f"{wrong[0]} is for a task from {theirs}; one from {ours} takes {takes}")
        for name, value in self.options.items():
            checks, types, words = _OPTIONS.get(name, ((), (), ""))
            if self.check not in checks:
                takes = [known for known, option in _OPTIONS.items() if self.check in option[0]]
                instead = f"write {' or '.join(takes)}" if takes else "take it out"
                raise ValueError(f"options.{name} is no option of check: {self.check}; {instead}")
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise ValueError(f"options.{name} is {value!r}: write {words}")
        if not 0 <= self.options.get("tolerance", 0) < math.inf:
            raise ValueError("options.tolerance is a share of the answer: write a number of at least 0, such as 0.01")
        if self.check == "regex" and not self.options.get("pattern"):
            raise ValueError("check regex needs a pattern; write `options: {pattern: '...'}`")
        return self


class Evaluate(Section):
    """What is measured of the base model and after every round, by llama.cpp, and what follows from it."""

    tasks: list[TaskSource] = Field(
        default=[], description="Problems with known answers; none leaves label-free signals"
    )
    samples: Annotated[int, Field(ge=0)] = Field(
        default=4, description="Responses to each problem at `temperature`", json_schema_extra={"unit": "responses"}
    )
    greedy: bool = Field(
        default=True,
        description="Also the likeliest response to each problem; rounds are judged by the mean of it and of `samples`",
    )
    temperature: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto",
        description="Sampling temperature of `samples`, which should be that of later use; auto: what the model's file "
        "recommends, else 0.7",
    )
    sweep: list[Annotated[float, Field(gt=0)]] = Field(
        default=[0.3, 0.7, 1.0],
        description="Temperatures at which the base model is measured beside, so that it can be shown at its best; "
        "[]: at none",
    )
    max_tokens: Positive | Auto = Field(
        default="auto", description="Longest response; auto: foresight.max_tokens", json_schema_extra=TOKENS
    )
    queries: Annotated[int, Field(ge=0)] = Field(
        default=16,
        description="Queries, at most, that the collapse guard watches: those held out, then such as follow in the "
        "source beyond queries.limit; 0: none",
        json_schema_extra={"unit": "questions"},
    )
    query_samples: Annotated[int, Field(ge=2)] = Field(
        default=4, description="Responses to each of those queries", json_schema_extra={"unit": "responses"}
    )
    rollback: bool = Field(
        default=True,
        description="A round is not built upon where it is worse than the base model or the best so far, by the "
        "interval of the difference",
    )
    patience: Positive | None = Field(
        default=None,
        description="Stop after so many such rounds in a row; null: never",
        json_schema_extra={"unit": "rounds"},
    )

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
    project: Text = Field(default="genius-lite", description="Under which the tracker files the run")
    name: Text | None = Field(default=None, description="Of the run; null: that of its folder")


class Limit(Section):
    """Where a signal is worth a warning, and where the run halts; null switches one off.

    A limit that is written replaces both: `kl: {warn: 1.0}` never halts.
    """

    warn: float | None = Field(default=None, description="A warning beyond this; null: never")
    halt: float | None = Field(default=None, description="The run ends beyond this; null: never")


_LEAST = ("entropy", "distinct", "shorter", "unique", "spread", "accuracy", "margin")  # less is worse


class Guard(Section):
    """The collapse guard's limits, one for each signal, `{warn: NUMBER, halt: NUMBER}`.

    "Of the base" are ratios to the base model's value, "over the base" differences from it.
    """

    entropy: Limit = Field(
        default=Limit(warn=0.5, halt=0.2), description="Token entropy, least share of the base", json_schema_extra=SHARE
    )
    distinct: Limit = Field(
        default=Limit(warn=0.7, halt=0.4),
        description="Distinct 2-grams, least share of the base",
        json_schema_extra=SHARE,
    )
    loops: Limit = Field(
        default=Limit(warn=0.1, halt=0.3),
        description="Looping responses, most over the base",
        json_schema_extra=SHARE,
    )
    shorter: Limit = Field(
        default=Limit(warn=0.5, halt=0.2), description="Mean length, least share of the base", json_schema_extra=SHARE
    )
    longer: Limit = Field(
        default=Limit(warn=2.0, halt=4.0), description="Mean length, most of the base", json_schema_extra=SHARE
    )
    ended: Limit = Field(
        default=Limit(warn=0.2, halt=0.5), description="Ended responses, most below the base", json_schema_extra=SHARE
    )
    unique: Limit = Field(
        default=Limit(warn=0.5, halt=0.3),
        description="Unique answers, least share of the base",
        json_schema_extra=SHARE,
    )
    kl: Limit = Field(
        default=Limit(warn=0.5, halt=2.0),
        description="KL divergence to the base, most",
        json_schema_extra=NATS_PER_TOKEN,
    )
    value: Limit = Field(
        default=Limit(warn=0.5, halt=1.5),
        description="Mean foresight value, most below round 1",
        json_schema_extra=NATS_PER_TOKEN,
    )
    spread: Limit = Field(
        default=Limit(warn=0.3, halt=0.1),
        description="Spread of values, least share of round 1",
        json_schema_extra=SHARE,
    )
    length_gap: Limit = Field(
        default=Limit(warn=0.3, halt=0.7),
        description="Chosen - rejected length, most of their mean, either way",
        json_schema_extra=SHARE,
    )
    accuracy: Limit = Field(
        default=Limit(warn=0.5, halt=0.3),
        description="Pairs that training ranks right, least share",
        json_schema_extra=SHARE,
    )
    margin: Limit = Field(default=Limit(warn=0.0), description="Learned margin, least", json_schema_extra=NATS)

    @model_validator(mode="after")
    def _possible(self) -> Guard:
        for name in type(self).model_fields:
            limit: Limit = getattr(self, name)
            if limit.warn is None or limit.halt is None:
                continue
            low = name in _LEAST
            if limit.halt > limit.warn if low else limit.halt < limit.warn:
                side = "less" if low else "more"
                raise ValueError(f"{name}.halt comes before warn, as {side} is worse; swap the two")
        return self
