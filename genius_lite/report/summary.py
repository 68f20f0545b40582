"""What a round did, as figures taken from its own files, and the table at the end of a run."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from genius_lite.evaluate.cooling import Beside
from genius_lite.evaluate.record import Evaluation
from genius_lite.evaluate.results import TaskResult
from genius_lite.evaluate.statistics import Interval
from genius_lite.records import PreferencePair, Rollout
from genius_lite.report.units import percent
from genius_lite.rundir import FAILED_FILE


def round_report(number: int, rollouts: Iterable[Rollout], pairs: list[PreferencePair], folder: Path) -> dict[str, Any]:
    """The figures of a finished round.

    Args:
        folder: the round's folder, for its timings, the adapter's training report and the GGUF.
    """
    timings = [json.loads(line) for line in _lines(folder / "timings.jsonl")]
    sampling = [t for t in timings if t["stage"] == "rollouts"]
    seconds = sum(t["seconds"] for t in sampling)
    return {
        "round": number,
        **rollout_figures(rollouts),
        "failed": len(_lines(folder / FAILED_FILE)),
        "pairs": len(pairs),
        "pairs_left_out": json.loads((folder / "filtered.json").read_text()),
        # An interrupted stage that was killed outright leaves no time; then there is no rate either.
        "tokens_per_s": sum(t["amount"] for t in sampling) / seconds if seconds else None,
        "training": json.loads((folder / "adapter" / "train.json").read_text()),
        "gguf_bytes": (folder / "policy.gguf").stat().st_size,
        "quantized": json.loads((folder / "quantized.json").read_text()),
    }


def rollout_figures(rollouts: Iterable[Rollout]) -> dict[str, Any]:
    """Of one rollout at least; `mean_value` is f in nats per token over all candidates with a future."""
    counts: Counter[str] = Counter()
    values = array("d")
    for rollout in rollouts:  # once: a long log is read from its file each time
        counts["queries"] += 1
        counts["tokens"] += rollout.sampled_tokens
        for step in rollout.steps:
            counts["repeated"] += step.duplicates
            counts["skipped"] += not step.foreseen
            if step.foreseen:
                counts["dropped"] += step.dropped
                counts["ended"] += sum(c.last.finish == "end" for c in step.candidates)
                values.extend(c.value for c in step.candidates)
    return {
        "queries": counts["queries"],
        "candidates": len(values),
        "repeated_candidates": counts["repeated"],
        "dropped_candidates": counts["dropped"],
        "skipped_steps": counts["skipped"],
        "sampled_tokens": counts["tokens"],
        "mean_value": fmean(values),
        "ended_share": counts["ended"] / len(values),
    }


def evaluation_lines(found: Evaluation) -> list[str]:
    """A line for each task, and one for the signals."""
    lines = []
    for task in found.tasks:
        parts = []
        for name, accuracy, gain in _kinds(task):
            beside = f" ({points(gain)} to the base)" if gain else ""
            parts.append(f"{name} {share(accuracy)}{beside}")
        cut = f"{task.cut:.0%} cut off" if task.cut else "all ended"
        lines.append(f"{task.task}: {', '.join(parts)}; {cut}")
    if s := found.signals:
        lines.append(
            f"held-out queries: entropy {s.entropy:.2f} nats/token, {s.length:.0f} tokens, {s.ended:.0%} ended, "
            f"{s.loops:.0%} loop, agreement {percent(s.agreement)}, KL to the base {s.kl:.3f}"
        )
    return lines


def cooling_lines(rows: Sequence[Beside]) -> list[str]:
    """A line for each task: the base model and a round, each at its best temperature."""
    return [
        f"{row.task}: at temperature {row.temperature:g} {share(row.tuned)}, the base at its best, "
        f"{row.base_temperature:g}, {share(row.base)}: {points(row.gain)}"
        for row in rows
    ]


def _kinds(task: TaskResult) -> Iterator[tuple[str, Interval, Interval | None]]:
    """What is measured of a task: its name, the accuracy and the gain, where there is one."""
    found = (
        ("sampled", task.sampled, task.sampled_gain),
        ("greedy", task.greedy, task.greedy_gain),
        ("their mean", task.judged if task.sampled and task.greedy else None, task.judged_gain),
    )
    yield from ((name, accuracy, gain) for name, accuracy, gain in found if accuracy)


def print_trial(names: list[str], found: list[list[TaskResult]], console: Console) -> None:
    """A table for each task, a row for each model that answered it."""
    for first in found[0]:
        answered = [(n, r) for n, of in zip(names, found, strict=True) for r in of if r.task == first.task]
        table = Table(title=f"{first.task}: {first.problems} problems", box=box.SIMPLE_HEAD)
        table.add_column("model", overflow="fold")
        for heading in ("sampled", "to the first", "greedy", "to the first", "p", "tokens", "cut"):
            table.add_column(heading, justify="right")
        for name, row in answered:
            table.add_row(
                name,
                share(row.sampled) if row.sampled else "-",
                points(row.sampled_gain) if row.sampled_gain else "",
                share(row.greedy) if row.greedy else "-",
                points(row.greedy_gain) if row.greedy_gain else "",
                f"{row.mcnemar.p_value:.3f}" if row.mcnemar else "",
                f"{row.length:.0f}",
                f"{row.cut:.0%}",
            )
        console.print(table)
    console.print(
        f"Sampled at temperature {found[0][0].temperature:g}. Accuracy and differences with 95 % intervals. p: "
        "McNemar's exact test of the greedy responses. cut: responses "
        "that ran into --max-tokens."
    )


def share(accuracy: Interval) -> str:
    """`31.2 % [28.0, 34.5]`."""
    return f"{accuracy.estimate:.1%} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def points(gain: Interval) -> str:
    """`+3.1 [0.4, 5.9] points`."""
    return f"{100 * gain.estimate:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] points"


WIDENED = (
    "wider than the recipe's type, which loses what was learned; the base that it is told against has the recipe's "
    "type, so that part of a gain may be the wider one's"
)


def retained_lines(quantized: dict[str, Any]) -> list[str]:
    """What a round's GGUF keeps of the update, and what llama.cpp says of it if it was asked."""
    if quantized["kept"] is None:
        return [f"{quantized['type']}: there is no update to keep"]
    if quantized.get("error", 0) > 1:
        return [f"{quantized['type']}: the update is so small that hardly a weight moves"]
    least = min(quantized["matrices"].values())
    share = percent(quantized["kept"], 1)
    lines = [f"{quantized['type']}: keeps {share} of the update, {percent(least)} at least of each matrix"]
    if quantized["widened"]:
        lines.append(f"{quantized['type']}: {WIDENED}")
    if (scored := quantized["scored"]) and scored["kept"] is not None:
        error = "" if scored["error"] is None else f" +- {scored['error']:.0%}"
        lines.append(
            f"{quantized['type']}: llama.cpp sees a margin of {scored['margin']:+.2f} nats, with the adapter beside it "
            f"{scored['learned']:+.2f}: {scored['kept']:.0%}{error}, on {scored['questions']} questions"
        )
    return lines


BASE_EXPORTED = "No round was let pass that is not worse than the base model, which is what was exported."
CHOSEN_ON = (
    "The problems that chose the round are those that report on it, as there are few: the intervals are wider by "
    "what choosing between so many rounds asks for (Bonferroni), and the gains themselves are flattered."
)


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The closing table, the exported file and how to talk to it."""
    title = f"{summary['queries']} queries, {summary['duplicates_dropped']} repeats dropped"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("round", "pairs", "tokens", "tok/s", "value", "loss", "margin", "type", "kept", "MB"):
        table.add_column(heading, justify="right")
    for report in summary["rounds"]:
        training, rate = report["training"], report["tokens_per_s"]
        table.add_row(
            str(report["round"]),
            str(report["pairs"]),
            str(report["sampled_tokens"]),
            f"{rate:.0f}" if rate else "-",
            f"{report['mean_value']:.2f}",
            f"{training['loss']:.4f}",
            f"{training['margin']:+.2f}",
            report["quantized"]["type"],
            percent(report["quantized"]["kept"]),
            f"{report['gguf_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    console.print(
        "value: foresight value, nats per token; margin: learned, nats; both means. kept: of the update, in the file."
    )
    for line in _outcome(summary):
        console.print(line, highlight=False)
    name = "Tuned model" if summary["best"] else "Base model"
    console.print(f"{name}: {summary['exported']}", soft_wrap=True, highlight=False)
    console.print(f"Talk to it:  genius-lite chat {summary['out']}", soft_wrap=True, highlight=False)
    if (page := Path(summary["out"]) / "report.html").exists():
        console.print(f"Report:      {page}", soft_wrap=True, highlight=False)


def _outcome(summary: dict[str, Any]) -> list[str]:
    """Which round was the best, what it gained on each task, and why the run ended early, if it did."""
    lines = [f"Stopped: {summary['stopped']}."] if summary["stopped"] else []
    best = summary["best"]
    if not best:
        return [*lines, BASE_EXPORTED]
    if len(summary["rounds"]) > 1:
        lines.append(f"Round {best} of {len(summary['rounds'])}: the latest that is not worse than one before it.")
    report = summary["rounds"][best - 1]
    tasks = msgspec.convert(report["evaluation"], list[TaskResult])
    for task in tasks:
        shown = ", ".join(f"{name} {points(gain)}" for name, _, gain in _kinds(task) if gain)
        lines.append(f"  {task.task}: {shown}")
    lines += [f"  {line}" for line in cooling_lines(msgspec.convert(report["at_best"], list[Beside]))]
    if any(task.chosen_on for task in tasks) and len(summary["rounds"]) > 1:
        lines.append(CHOSEN_ON)
    return [line for line in lines if line]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
