"""What a run tells in lines of text, and the tables at its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from genius_lite import text as texts
from genius_lite.evaluate.record import Evaluation
from genius_lite.recipe import Prefix, TaskSource
from genius_lite.report.columns import NOTE, rounds_table, table_row
from genius_lite.report.console import make_table
from genius_lite.results.evaluation import AtBest, Interval, TaskResult
from genius_lite.results.rounds import Quantized, Summary
from genius_lite.text import amount, in_ascii, percent

_NAME = 12  # columns of a terminal that a model's name has at least, over several lines


def evaluation_lines(found: Evaluation) -> list[str]:
    """Write a line for each task, and one for the signals."""
    lines = []
    for task in found.tasks:
        parts = []
        for name, accuracy, gain in task.accuracies:
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


def cooling_lines(rows: Sequence[AtBest]) -> list[str]:
    """Write a line for each task: the base model and a round, each at its best temperature."""
    return [
        f"{row.task}: at temperature {row.temperature:g} {share(row.tuned)}, the base at its best "
        f"(temperature {row.base_temperature:g}) {share(row.base)}: {points(row.gain)}"
        for row in rows
    ]


def own_lines(to_own: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """Write a line for each task: what a round gains over the user's own file, whose types it does not have."""
    return [
        f"{task}: beside your own file {', '.join(f'{kind} {points(gain)}' for kind, gain in gains.items())}"
        for task, gains in to_own.items()
    ]


def print_results(
    names: list[str], found: list[list[TaskResult]], sources: Sequence[TaskSource], console: Console
) -> None:
    """Print a table for each task (of `sources`), with what each model that answered it was measured by (`found`).

    A name that is a path is cut to its last part, if that tells the models apart.
    """
    last = [Path(name).name for name in names]
    names = last if len({*last}) == len(names) else names
    for first in found[0]:
        title = f"{first.task}: {amount(first.problems, 'problems')}"
        headings = ("model", "#measure", "#accuracy", "#points to the first")
        table = make_table(*headings, title=title, padding=(0, 1, 0, 0))
        table.columns[0].min_width = _NAME
        table.columns[1].justify = "left"  # words, but none of them folds
        for name, rows in zip(names, found, strict=True):
            for task in (row for row in rows if row.task == first.task):
                for n, (measure, accuracy, gain) in enumerate(_measures(task)):
                    told = in_points(gain) if gain else ""
                    table.add_row("" if n else name, measure, share(accuracy), told)
                if task.mcnemar:
                    table.add_row("", "greedy p", "", texts.p_value(task.mcnemar.p_value))
                table.add_row("", "commonest answer", in_ascii(texts.commonest(task.commonest)), "")
                table.add_row("", "length", f"{task.length:.0f} tokens", "")
                table.add_row("", "cut off", f"{task.cut:.0%}", end_section=True)
        console.print(table)
    drawn = f"Sampled at temperature {found[0][0].temperature:g}. maj@k: the commonest answer of k; pass@k: any of k. "
    console.print(
        f"{drawn if found[0][0].sampled else ''}95 % intervals. commonest answer: its share of the answers that "
        "responses which ended state. p: McNemar's exact test. cut off: responses that ran into --max-tokens."
    )
    for task in sources:
        if not task.benchmark and not task.source.startswith(Prefix.REASONING_GYM):
            console.print(f"{task.source}: answers are compared by the checker `{task.check}`.")


def _measures(task: TaskResult) -> list[tuple[str, Interval, Interval | None]]:
    """(what, accuracy, difference to the first model) of all that is measured."""
    found = list(task.accuracies)
    for what, by_number in (("maj", task.most), ("pass", task.some)):
        found += [(f"{what}@{k}", accuracy, None) for k, accuracy in by_number.items() if k != "1"][-1:]
    return found + ([("of those that ended", task.of_ended, None)] if task.of_ended else [])


def share(accuracy: Interval) -> str:
    """Write `31.2% [28.0, 34.5]`."""
    return in_ascii(texts.accuracy(accuracy))


def points(gain: Interval) -> str:
    """Write `+3.1 [+0.4, +5.9] points`."""
    return f"{in_points(gain)} points"


def in_points(gain: Interval) -> str:
    """Write `+3.1 [+0.4, +5.9]`."""
    return in_ascii(texts.gain(gain))


WIDENED = (
    "wider than the recipe's type, which loses what was learned; the base that it is told against has the recipe's "
    "type, so that part of a gain may be the wider one's"
)


def kept_lines(made: Quantized) -> list[str]:
    """Say what a round's GGUF keeps of the update, and what llama.cpp says of it if it was asked."""
    if made.kept is None:
        return [f"{made.type}: there is no update to keep"]
    if made.error > 1:
        return [f"{made.type}: the update is so small that hardly a weight moves"]
    least = min(made.matrices.values())
    lines = [f"{made.type}: keeps {percent(made.kept, 1)} of the update, {percent(least)} at least of each matrix"]
    if made.widened:
        lines.append(f"{made.type}: {WIDENED}")
    if (scored := made.scored) and scored.kept is not None:
        error = "" if scored.error is None else f" +- {scored.error:.0%}"
        lines.append(
            f"{made.type}: llama.cpp sees a margin of {scored.margin:+.2f} nats, with the adapter at run time "
            f"{scored.learned:+.2f}: {scored.kept:.0%}{error}, on {amount(scored.questions, 'questions')}"
        )
    return lines


def chosen_on(tasks: Iterable[TaskResult]) -> str:
    """Say what it does to gains that the problems which choose between several rounds report, if they do."""
    confidence = max((task.confidence for task in tasks if task.chosen_on), default=0.95)
    if confidence <= 0.95:
        return ""
    return (
        "Problems that report choose between rounds too, as there are few: the intervals of gains are at "
        f"{100 * confidence:.4g} %, as choosing between so many rounds asks for (Bonferroni), and the best round's "
        "gain is flattered."
    )


def print_summary(summary: Summary, console: Console) -> None:
    """Print the closing table, the exported file and how to talk to it."""
    title = f"{amount(summary.queries, 'queries')}, {amount(summary.duplicates_dropped, 'repeats')} dropped"
    rows = [table_row(report) for report in summary.rounds]
    console.print(rounds_table(rows, None, console, title=title, padding=(0, 1, 0, 0)))
    console.print(NOTE)
    lines = choice_lines(summary)
    if summary.best:
        lines.append(in_ascii(verdict(summary)))
        report = summary.rounds[summary.best - 1]
        for task in report.evaluation:
            shown = ", ".join(f"{name} {points(gain)}" for name, _, gain in task.accuracies if gain)
            lines.append(f"  {task.task}: {shown}")
        lines += [f"  {line}" for line in (*cooling_lines(report.at_best), *own_lines(report.to_own))]
        lines += filter(None, [chosen_on(report.evaluation)])
    for line in lines:
        console.print(line)
    name = "Tuned model" if summary.best else "Base model"
    console.print(f"{name}: {summary.exported}", soft_wrap=True)
    console.print(f"Talk to it:  genius-lite chat {shlex.quote(summary.out)}", soft_wrap=True)
    if (page := Path(summary.out) / "report.html").exists():
        console.print(f"Report:      {page}", soft_wrap=True)


_WAYS = ("better", "better when sampled", "worse", "worse when sampled", "not told apart")


def verdict(summary: Summary) -> str:
    """Say in one sentence whether the best round answers better than the base model; "" where that is the best.

    By the mean of sampled and greedy accuracy; where that tells nothing, by the sampled one, beside the greedy one.
    Both stand beside the mean where one of them surely went another way than it.
    """
    best = next((report for report in summary.rounds if report.round == summary.best), None)
    if not best:  # the base model, or a stranger's folder, whose files may not go together
        return ""
    told: dict[str, list[TaskResult]] = {how: [] for how in _WAYS}
    for task in best.evaluation:
        if task.judged_gain:
            told[_how(task, task.judged_gain)].append(task)
    brief = any(tasks for how, tasks in told.items() if how != "not told apart")  # what tells nothing hides the others
    found = [
        (how, ", ".join(task.task if brief and how == "not told apart" else _told(task, how) for task in tasks))
        for how, tasks in told.items()
        if tasks
    ]
    if not found:
        return "Whether answers became better was not measured; problems with known answers tell it (evaluate.tasks)."
    (how, tasks), *others = found
    better, _, when = how.partition(" when ")
    than = "from" if how == "not told apart" else "than"
    first = f"{better.capitalize()} {than} the base model{when and f' when {when}'} on {tasks}"
    return "; ".join([first, *(f"{how} on {tasks}" for how, tasks in others)]) + "."


def _how(task: TaskResult, gain: Interval) -> str:
    way, sampled, greedy = surely(gain), task.sampled_gain, task.greedy_gain
    if not way and sampled and greedy and surely(sampled) and {surely(sampled), surely(greedy)} != {"better", "worse"}:
        return f"{surely(sampled)} when sampled"
    return way or "not told apart"


def surely(gain: Interval) -> str:
    """Say which way a gain surely went, `better` or `worse`; empty where that cannot be told."""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else ""


def _told(task: TaskResult, how: str) -> str:
    if how.endswith(" when sampled") and task.sampled:
        right = f"{texts.percent(task.sampled.estimate, 1)} right at temperature {task.temperature:g}"
        return f"{task.task} ({right}, {texts.gain(task.sampled_gain)} points; greedily {texts.gain(task.greedy_gain)})"
    sampled, greedy, beside = task.sampled_gain, task.greedy_gain, ""
    if sampled and greedy and {surely(sampled), surely(greedy)} - {"", how}:
        beside = f"; sampled {texts.gain(sampled)}, greedily {texts.gain(greedy)}"
    right = texts.percent(task.judged.estimate, 1)
    return f"{task.task} ({right} right, {texts.gain(task.judged_gain)} points{beside})"


def choice_lines(summary: Summary) -> list[str]:
    """Say why the run ended early, if it did, and which of its models is the best."""
    lines = [f"Stopped: {summary.stopped}."] if summary.stopped else []
    if not summary.best:
        lines.append("No round was let pass that is not worse than the base model, which is what was exported.")
    elif (rounds := len(summary.rounds)) > 1:
        passed = "the guard let pass and " if summary.halted else ""
        worse = f"that {passed}is not worse than one before it"
        if all(report.score is None for report in summary.rounds):  # nothing was measured that rounds could be told by
            worse = "that the guard let pass" if summary.halted else "one"
        lines.append(f"Round {summary.best} of {rounds} is the latest {worse}.")
    return lines
