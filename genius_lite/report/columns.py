"""The one list of a round's figures: every table, card and tracker shows what stands here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from genius_lite.report.console import make_table
from genius_lite.results.rounds import RoundReport
from genius_lite.text import NONE, in_ascii, number, percent, size

Value = float | str | None
_UNBOUNDED = 10_000  # columns of a terminal, in which any table finds room


@dataclass(frozen=True)
class Column:
    """A figure of a round: None where the round did not come to it.

    `key` names it for trackers and in JSON; `title` says it on the page. Those with a `short` heading also stand in the
    terminal's tables and on the model card, which have little room.
    """

    key: str
    title: str
    value: Callable[[RoundReport], Value]
    show: Callable[[Any], str] = number
    short: str = ""

    def cell(self, report: RoundReport) -> str:
        """Write the round's figure as text."""
        value = self.value(report)
        return NONE if value is None else self.show(value)

    def plain(self, value: Value) -> str:
        """Write a figure for a terminal; nothing where there is none."""
        return "" if value is None else in_ascii(self.show(value))


def _digits(count: int, sign: str = "") -> Callable[[float], str]:
    return lambda value: number(value, count, sign)


def _of(part: str, name: str) -> Callable[[RoundReport], Value]:
    """Look up a figure of a part of the report that may be missing."""
    return lambda report: getattr(found, name) if (found := getattr(report, part)) else None


COLUMNS = (
    Column("score", "Score, which rounds are compared by", lambda r: r.score, lambda v: percent(v, 1), "score"),
    Column("base_score", "Score of the base model", lambda r: r.base_score, lambda v: percent(v, 1)),
    Column("queries", "Queries", _of("rollouts", "queries")),
    Column("candidates", "Candidates", _of("rollouts", "candidates")),
    Column("sampled_tokens", "Sampled tokens", _of("rollouts", "sampled_tokens"), short="tokens"),
    Column("tokens_per_s", "Tokens per second", _of("rollouts", "tokens_per_s"), _digits(0), "tok/s"),
    Column("sampled_from", "Sampled from the file", lambda r: r.sampled_from, str),
    Column("mean_value", "Mean foresight value, nats per token", _of("rollouts", "mean_value"), _digits(3), "value"),
    Column("ended_share", "Candidates whose response ended", _of("rollouts", "ended_share"), percent),
    Column("pairs", "Pairs", lambda r: r.pairs, short="pairs"),
    Column("updates", "Updates", _of("training", "updates")),
    Column("loss", "Loss", _of("training", "loss"), _digits(4), "loss"),
    Column("margin", "Learned margin, nats", _of("training", "margin"), _digits(2, "+"), "margin"),
    Column("margin_error", "Its standard error, nats", _of("training", "margin_error")),
    Column("scored_pairs", "Pairs that it was scored on", _of("training", "scored_pairs")),
    Column("scored_questions", "Their questions", _of("training", "scored_questions")),
    Column("accuracy", "Pairs ranked right", _of("training", "accuracy"), percent),
    Column(
        "logprob_mismatch",
        "Learner and sampler differ, nats per token",
        _of("training", "logprob_mismatch"),
        _digits(4),
    ),
    Column("precision", "Precision of the frozen weights", _of("training", "precision"), str),
    Column("device", "Device of the learner", _of("training", "device"), str),
    Column("weight_bytes", "Memory of the frozen weights", _of("training", "weight_bytes"), size),
    Column("shared_tokens", "Tokens that packing shared", _of("training", "shared_tokens"), percent),
    Column("spread", "Spread of a step's values", _of("metrics", "spread"), _digits(3)),
    Column("length_gap", "Chosen longer than rejected by", _of("metrics", "length_gap"), percent),
    Column("type", "Type of the GGUF", _of("quantized", "type"), str, "type"),
    Column("kept", "Of the update it keeps", _of("quantized", "kept"), percent, "kept"),
    Column("gguf_bytes", "Size of the GGUF", lambda r: r.gguf_bytes, size),
    Column("alarms", "Alarms of the guard", lambda r: len(r.alarms) if r.metrics else None),
)
SHORT = tuple(column for column in COLUMNS if column.short)
NOTE = (
    "Value: f, the mean log-probability of what a step leads to, or of an answer that no search made, nats per token. "
    "Loss: mean of the last epoch. Margin: how much further apart chosen and rejected responses are than in the base "
    "model, after training. Margins and values say what was learned, not whether answers became better. Kept: of the "
    "update, in the file."
)


def values(report: RoundReport) -> dict[str, Value]:
    """Look up every figure of a round by its key."""
    return {column.key: column.value(report) for column in COLUMNS}


def table_row(report: RoundReport) -> dict[str, Any]:
    """Make a row of `rounds_table`."""
    return {"round": report.round, **values(report)}


def rounds_table(rows: Sequence[Mapping[str, Any]], best: int | None, console: Console, **look: Any) -> Table:
    """Tabulate rounds (`table_row`) within the console's width; `look` are options of rich's table.

    The last figures that find no room go, and an ellipsis says so.
    """
    shown = SHORT
    while True:
        left_out = ["#…"] * (shown != SHORT)
        table = make_table("#round", *(f"#{column.short}" for column in shown), *left_out, **look)
        for of_round in rows:
            star, style = ("*", "bold") if of_round["round"] == best else ("", "")
            cells = (column.plain(of_round.get(column.key)) for column in shown)
            table.add_row(f"{of_round['round'] or 'base'}{star}", *cells, style=style)
        wide = console.measure(table, options=console.options.update(width=_UNBOUNDED)).maximum
        if wide <= console.width or not shown:
            return table
        shown = shown[:-1]
