"""A plan as tables that read at 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from genius_lite.planning.memory import STAGES
from genius_lite.planning.plan import Plan, Stage

_PARTS = {
    "weights": "weights",
    "kv": "KV",
    "compute": "logits",
    "activations": "activ.",
    "head": "head",
    "optimizer": "optim.",
    "conversion": "conv.",
    "libraries": "libs",
}
"""Names of the parts, and the headings of their columns."""
_RATES = {
    "decoding": "decoding",
    "merging": "merging and quantizing",
    "learning": "learning",
    "importing": "importing",
    "lengths": "lengths of responses",
}


def print_plan(plan: Plan, console: Console) -> None:
    """Memory by part and stage, then time and disk, then whether it fits and how that is known."""
    console.print(_headline(plan), highlight=False)
    console.print(_memory(plan))
    if any(stage.gpu for stage in plan.stages):
        console.print(_gpu(plan))
    console.print(_time(plan))
    for line in [*_verdict(plan), *_origin(plan), *plan.notes]:
        console.print(line, highlight=False, soft_wrap=False)


def _headline(plan: Plan) -> str:
    twice = ", activations computed twice" if plan.activations_twice else ""
    return (
        f"{plan.model}: {plan.queries} queries, {plan.rounds} rounds; {plan.slots} branches of {plan.context} tokens; "
        f"learner in {plan.precision}{twice}"
    )


def _memory(plan: Plan) -> Table:
    table = Table(title="Peak memory, MB", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("stage")
    for heading in (*_PARTS.values(), "all"):
        table.add_column(heading, justify="right")
    for name in _names(plan):
        stage = max((s for s in plan.stages if s.stage == name), key=lambda s: s.memory_total)
        peak = name == plan.peak
        cells = [_mb(stage.memory.get(part)) for part in _PARTS]
        table.add_row(name, *cells, _mb(stage.memory_total), style="bold" if peak else "")
    return table


def _gpu(plan: Plan) -> Table:
    table = Table(title="On the GPU, MB", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    parts = [part for part in _PARTS if any(part in stage.gpu for stage in plan.stages)]
    table.add_column("stage")
    for heading in (*(_PARTS[part] for part in parts), "all"):
        table.add_column(heading, justify="right")
    for name in _names(plan):
        stage = next(s for s in plan.stages if s.stage == name)
        if stage.gpu:
            table.add_row(name, *(_mb(stage.gpu.get(part)) for part in parts), _mb(stage.gpu_total))
    return table


def _time(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("stage")
    for heading in ("rounds", "tokens", "time", "between", "disk, MB"):
        table.add_column(heading, justify="right")
    for name in _names(plan):
        stages = [s for s in plan.stages if s.stage == name]
        ahead = [s for s in stages if not s.done]
        shown = ahead or stages
        tokens = sum(s.tokens for s in shown)
        disks = [s.disk for s in shown if s.disk is not None]
        time, between = "done", ""
        if ahead:
            time, between = duration(sum(s.seconds for s in ahead)), _between(ahead)
        table.add_row(
            name, _rounds(shown), f"{tokens:.0f}" if tokens else "", time, between, _mb(max(disks, default=None))
        )
    table.add_section()
    left = [s for s in plan.stages if not s.done]
    table.add_row("all", "", "", duration(plan.seconds), _between(left) if left else "", _mb(plan.disk), style="bold")
    return table


def _names(plan: Plan) -> list[str]:
    there = {stage.stage for stage in plan.stages}
    return [name for name in STAGES if name in there]


def _rounds(stages: list[Stage]) -> str:
    numbers = sorted(s.round for s in stages if s.round)
    return "" if not numbers else str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _between(stages: list[Stage]) -> str:
    return f"{duration(sum(s.low for s in stages))} to {duration(sum(s.high for s in stages))}"


def _verdict(plan: Plan) -> list[str]:
    gpu = "" if plan.room.gpu is None else f", {plan.room.gpu / 1e9:.1f} GB of GPU memory"
    free = f"Free: {plan.room.memory / 1e9:.1f} GB of memory{gpu}, {plan.room.disk / 1e9:.1f} GB of disk."
    if plan.fits:
        return [f"It fits: {plan.memory / 1e9:.2f} GB at its peak, in {plan.peak}. {free}"]
    lines = [
        f"It does not fit: {s.stage} takes {s.wanted / 1e9:.2f} GB of {s.what}, {s.there / 1e9:.2f} GB are free."
        for s in plan.lacking
    ]
    change = plan.change
    shown = f" ({change.memory / 1e9:.2f} GB of memory at its peak)" if change and change.fits else ""
    return [*lines, f"What helps: {plan.advice}{shown}."]


def _origin(plan: Plan) -> list[str]:
    lengths = "assumed" if plan.responses_from == "assumed" else f"from the {plan.responses_from}"
    by: dict[str, list[str]] = {}
    for rate, how in plan.how.items():
        by.setdefault(how, []).append(_RATES[rate])
    known = "; ".join(f"{how}: {', '.join(rates)}" for how, rates in by.items())
    return [f"Responses of {plan.response_tokens:.0f} tokens, {lengths}. How rates are known: {known}."]


def _mb(size: int | None) -> str:
    return "" if not size else f"{size / 1e6:,.0f}"


def duration(seconds: float) -> str:
    """`45s`, `5m30s`, `3h05m`."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
