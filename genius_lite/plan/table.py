"""A plan as tables that read at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from genius_lite.plan.memory import fullest
from genius_lite.plan.plan import Plan, PlannedStage
from genius_lite.rundir.disk import told
from genius_lite.text import amount, short_duration

_PARTS = {
    "weights": "weights", "kv": "KV", "compute": "logits", "activations": "activ.", "head": "head",
    "optimizer": "optim.", "conversion": "conv.", "libraries": "libs",
}  # fmt: skip
"""Names of the parts, and the headings of their columns."""


def print_plan(plan: Plan, console: Console) -> None:
    """Print memory by part and stage, then time and disk, then whether it fits and how that is known."""
    twice = ", activations computed twice" if plan.activations_twice else ""
    console.print(
        f"{plan.model}: {amount(plan.queries, 'queries')}, {amount(plan.rounds, 'rounds')}; "
        f"{amount(plan.slots, 'branches')} of {plan.context} tokens; learner in {plan.precision}{twice}",
    )
    memory, gpu = (_table(title, *_PARTS.values(), "all") for title in ("Peak memory, MB", "On the GPU, MB"))
    time = _table(None, "rounds", "tokens", "time", "disk, MB")
    time.caption = "disk: what the run's folder holds after it; of all, by how much it still grows"
    for name in dict.fromkeys(stage.stage for stage in plan.stages):
        stages = [stage for stage in plan.stages if stage.stage == name]
        peak, style = fullest(stage.peak for stage in stages), "bold" if name == plan.peak.stage else ""
        memory.add_row(name, *(_mb(peak.parts.get(part)) for part in _PARTS), _mb(peak.total), style=style)
        gpu.add_row(name, *(_mb(peak.gpu.get(part)) for part in _PARTS), _mb(peak.gpu_total))
        time.add_row(name, *_time(stages))
    time.add_section()
    time.add_row("all", "", "", _duration([plan.seconds]), _mb(plan.disk), style="bold")
    for table in [memory, *([gpu] if any(stage.peak.gpu for stage in plan.stages) else []), time]:
        console.print(table)
    for line in [*_verdict(plan), *plan.notes]:
        console.print(line, highlight=False, soft_wrap=False)


def _table(title: str | None, *headings: str) -> Table:
    table = Table("stage", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _time(stages: list[PlannedStage]) -> Iterator[str]:
    """Write the cells of a stage that is still to be done, or was done, in some rounds."""
    ahead = [s for s in stages if not s.done]
    shown = ahead or stages
    numbers = list(dict.fromkeys(str(s.round) for s in (shown[0], shown[-1]) if s.round))
    yield " to ".join(numbers)
    tokens = sum(s.tokens for s in shown)
    yield f"{tokens:.0f}" if tokens else ""
    yield _duration([s.seconds for s in ahead]) if ahead else "done"
    yield _mb(max(s.disk or 0 for s in shown))


def _verdict(plan: Plan) -> Iterator[str]:
    free, source = plan.free, plan.responses_from
    gpu = f", {free.gpu_memory / 1e9:.1f} GB of GPU memory" if not all(gpu.shared for gpu in free.gpus) else ""
    room = f"Free: {free.memory / 1e9:.1f} GB of memory{gpu}, {told(free.disk)} of disk."
    if plan.fits:
        yield f"It fits: {plan.peak.total / 1e9:.2f} GB at its peak, in {plan.peak.stage}. {room}"
    for s in plan.lacking:
        yield f"It does not fit: {s.stage} takes {s.wanted / 1e9:.2f} GB of {s.what}, {s.free / 1e9:.2f} GB are free."
    if not plan.fits:
        fitting = plan.change and not plan.change.lacks
        shown = f" ({plan.change.memory / 1e9:.2f} GB of memory at its peak)" if plan.change and fitting else ""
        yield f"What helps: {plan.advice}{shown}."
    ends = f": {plan.ends.line}" if plan.ends else ""
    known = f"{'' if source == 'assumed' else 'from the '}{source}{ends}"
    lengths = f"Responses of {plan.response_tokens:.0f} tokens, {known}."
    if plan.low is None or plan.high is None:
        yield f"{lengths} Nothing tells the time yet: a rehearsal would."
    else:
        yield f"{lengths} Time left: {short_duration(plan.low)} to {short_duration(plan.high)}."


def _duration(seconds: list[float | None]) -> str:
    return "" if None in seconds else short_duration(sum(s or 0.0 for s in seconds))


def _mb(size: int | None) -> str:
    return "" if not size else f"{size / 1e6:,.0f}"
