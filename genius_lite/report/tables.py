"""The tables of a run's report, as text; the page and the Markdown file show the same ones."""

from __future__ import annotations

from dataclasses import dataclass

from genius_lite import __version__
from genius_lite.foresight.filters import FILTERS
from genius_lite.progress import Stage
from genius_lite.recipe import Guard, Limit, Prefix
from genius_lite.report.columns import COLUMNS, NOTE
from genius_lite.report.gather import Answered, RoundData, RunData
from genius_lite.report.status import recorded_guard
from genius_lite.report.summary import WIDENED
from genius_lite.results.rounds import Quantized, Timing
from genius_lite.text import NONE, accuracy, commonest, duration, figure, gain, number, p_value, percent, prose, size

_JUDGED = (
    "Rounds are judged by the mean of sampled and greedy accuracy. maj@k: accuracy of the most frequent answer of k "
    "responses; pass@k: problems that one of k solves. commonest answer: its share of the answers that responses "
    "which ended state, each problem alike."
)


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column names the row. `marked` rows stand out."""

    name: str
    title: str
    headings: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: frozenset[int] = frozenset()


def task_table(data: RunData, answered: Answered) -> Table:
    """Tabulate a task: the base model and every round that answered it."""
    rows = []
    for policy, task in answered:
        p = p_value(task.mcnemar.p_value) if task.mcnemar else NONE
        cells = [accuracy(task.sampled), gain(task.sampled_gain), accuracy(task.greedy), gain(task.greedy_gain)]
        rows.append([policy.name, *cells, p, number(task.length, 0), percent(task.cut)])
    marked = frozenset(n for n, (policy, _) in enumerate(answered) if policy.number and policy.number == data.best)
    headings = ["policy", "sampled", "gain, points", "greedy", "gain, points", "p", "tokens", "cut off"]
    return Table("task", prose(answered[0][1].task), headings, rows, marked=marked)


def beside_table(answered: Answered) -> Table:
    """Tabulate what else the responses to a task say: several together, and those that came to an end."""
    numbers = list(dict.fromkeys(k for _, task in answered for k in task.most if k != "1"))
    rows = []
    for policy, task in answered:
        together = [accuracy(found.get(k)) for found in (task.most, task.some) for k in numbers]
        right, gained = task.by_kind["mean of both"]
        both = [accuracy(right), gain(gained)]
        rows.append([policy.name, *both, *together, accuracy(task.of_ended), commonest(task.commonest)])
    headings = ["policy", "mean of both", "gain, points", *(f"{of}@{k}" for of in ("maj", "pass") for k in numbers)]
    headings += ["of those that ended", "commonest answer"]
    return Table("beside", prose(answered[0][1].task), headings, rows, _JUDGED)


def signals_table(data: RunData) -> Table | None:
    """Tabulate what the responses to held-out queries show without any label."""
    policies = [policy for policy in data.measured if policy.signals]
    if not policies:
        return None
    seen = [policy.signals for policy in policies if policy.signals]
    rows = [
        ["Agreement of answers to a query", *(percent(s.agreement) for s in seen)],
        ["Most frequent answer to all queries", *(percent(s.same) for s in seen)],
        ["Ended responses that state an answer", *(percent(s.parsed) for s in seen)],
        ["Token entropy, nats per token", *(number(s.entropy) for s in seen)],
        ["KL to the base, nats per token", *(number(s.kl, 3) for s in seen)],
        ["Length, tokens", *(number(s.length, 0) for s in seen)],
        ["Responses that end", *(percent(s.ended) for s in seen)],
        ["Responses that end in a loop", *(percent(s.loops) for s in seen)],
        ["Different 2-grams", *(percent(s.distinct) for s in seen)],
        ["Different answers, of two to a query", *(percent(s.unique) for s in seen)],
    ]
    note = "Means over the responses to held-out queries, from which nothing learns. They need no label."
    return Table("signals", "Held-out queries", _headings(policies), rows, note)


def rounds_table(data: RunData) -> Table:
    """Tabulate what each round did."""
    rows = [[column.title, *(column.cell(r.report) for r in data.rounds)] for column in COLUMNS]
    return Table("rounds", "Rounds", _headings(data.rounds), rows, NOTE)


def guard_table(data: RunData) -> Table:
    """Tabulate every signal against its limits."""
    guard = recorded_guard(data.recipe)
    rounds = [r for r in data.rounds if r.readings]
    rows = []
    for signal, described in Guard.model_fields.items():
        limit: Limit = getattr(guard, signal)
        cells = []
        for r in rounds:
            raised = (f" {alarm.level}" for alarm in r.report.alarms if alarm.signal == signal)
            read = r.readings.get(signal)
            cells.append(figure(read.value) + next(raised, "") if read else NONE)
        low = Guard.low(signal)
        rows.append([f"{signal}: {described.description}", _bound(limit.warn, low), _bound(limit.halt, low), *cells])
    headings = ["signal", "warns", "halts", *(r.name for r in rounds)]
    return Table("guard", "Collapse guard", headings, rows)


def kept_table(r: RoundData, made: Quantized, keep: float) -> Table:
    """Tabulate what the round's GGUF keeps of the update: known from its weights, and seen by llama.cpp."""
    rows = [["Share of the update, all matrices", percent(made.kept)]]
    if made.matrices:
        least = min(made.matrices, key=made.matrices.__getitem__)
        rows.append([f"Least of all matrices: {prose(least)}", percent(made.matrices[least])])
    if scored := made.scored:
        error = "" if scored.error is None else f" ± {number(100 * scored.error, 0)}"
        rows += [
            ["Questions that llama.cpp scored, a pair each", number(scored.questions)],
            ["Learned margin with the adapter at run time, nats", number(scored.learned, 2, "+")],
            ["Learned margin with this file, nats", number(scored.margin, 2, "+")],
            ["Its share, with one standard error", NONE if scored.kept is None else percent(scored.kept) + error],
        ]
    note = f"Set beside the base model in the same types. At least {percent(keep)} of the update is to be kept."
    if made.widened:
        note += f" {made.type} is {WIDENED}."
    return Table(f"kept-{r.number}", f"What {made.type} keeps, {r.name}", ["what", "value"], rows, note)


def kept_tables(data: RunData) -> list[Table]:
    """Make a table for each round that has made a GGUF."""
    keep = data.recipe["quantize"]["keep"]
    return [kept_table(r, made, keep) for r in data.rounds if (made := r.report.quantized)]


def stages_table(data: RunData) -> Table:
    """Tabulate time and memory of every stage."""
    stages = stage_totals(data)
    total = sum(timed.seconds for _, timed in stages) or 1.0
    rows = []
    for name, timed in stages:
        stage = Stage(timed.stage)
        rate = timed.amount * stage.scale / timed.seconds if timed.seconds else 0.0
        shown = f"{number(rate, 0 if rate >= 10 else 2)} {stage.unit}/s" if rate else NONE
        memory = [size(timed.peak_bytes), size(timed.sampler and timed.sampler.peak)]
        rows.append([f"{name}: {timed.stage}", duration(timed.seconds), percent(timed.seconds / total), shown, *memory])
    rows.append(["all stages", duration(total if stages else 0), "100 %", NONE, NONE, NONE])
    headings = ["stage", "time", "share", "rate", "memory, run", "memory, sampler"]
    note = "Memory: the most that the run's own process had held up to the end of the stage, and its sampler's process."
    return Table("stages", "Time and memory", headings, rows, note)


def stage_totals(data: RunData) -> list[tuple[str, Timing]]:
    """(policy, what a stage took) in order."""
    found = [("model", timing) for timing in data.imported]
    return found + [(policy.name, timing) for policy in data.measured for timing in policy.timings]


def pairs_table(data: RunData) -> Table:
    """Tabulate how many pairs there were, which were left out and why, and what they are like."""
    rounds = [r for r in data.rounds if r.report.pairs is not None]
    found = [(r.report.pairs or 0) + sum(r.report.pairs_left_out.values()) for r in rounds]
    pairs = [r.pairs for r in rounds]
    rows = [
        ["Found", *map(number, found)],
        *(
            [f"Left out: {why} ({key})", *(number(r.report.pairs_left_out.get(key)) for r in rounds)]
            for key, why in FILTERS.items()
        ),
        ["Kept", *(number(r.report.pairs) for r in rounds)],
        ["Chosen response, mean tokens", *(number(p and p.chosen_tokens, 0) for p in pairs)],
        ["Rejected response, mean tokens", *(number(p and p.rejected_tokens, 0) for p in pairs)],
        ["Gap of values, nats per token", *(number(p and p.gap, 3) for p in pairs)],
    ]
    notes = []
    if data.calibrates:
        rows.append(["Mean calibration weight w", *(number(p and p.weight, 3) for p in pairs)])
        rows.append(["Pairs with w below 1", *(percent(p and p.relaxed) for p in pairs)])
        notes.append("A w below 1 pushes the rejected response down less.")
    if data.votes_weigh:
        rows.append(["Mean lead of the vote", *(number(p and p.lead, 3) for p in pairs)])
        notes.append("The lead multiplies a pair's loss.")
    return Table("pairs", "Preference pairs", _headings(rounds), rows, " ".join(notes))


def identity_table(data: RunData) -> Table:
    """Tabulate what the run was made from and what it made, by content."""
    recipe = data.recipe
    rows = [
        ["Model", prose(Prefix.public(data.model.origin or data.model.path) or NONE)],
        ["SHA-256 of the model", recipe["model"]],
        *([["SHA-256 of the full-precision weights", recipe["weights"]]] if recipe.get("weights") else []),
        ["Queries: number, hash", prose(recipe["queries"])],
        *(["Task: problems, hash", prose(task)] for task in recipe["tasks"]),
        *([f"SHA-256 of {prose(name)}", digest] for name, digest in data.exported.items()),
        ["Report written by", f"genius-lite {__version__}"],
    ]
    return Table("identity", "Hashes", ["what", "value"], rows)


def _headings(policies: list[RoundData]) -> list[str]:
    return ["", *(policy.name if policy.finished else f"{policy.name}, not finished" for policy in policies)]


def _bound(limit: float | None, low: bool) -> str:
    return NONE if limit is None else f"{'below' if low else 'above'} {limit:g}"
