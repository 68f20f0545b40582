"""The model card: what was done, what was measured (for the hub too, as `model-index`), and what runs the files."""

from __future__ import annotations

import html
import json
import shlex
from typing import Any, get_args

from huggingface_hub import EvalResult, ModelCardData

from genius_lite import __version__
from genius_lite.export.transformers import HubSource
from genius_lite.recipe import OWN_LOSS, Loss, Prefix
from genius_lite.report.columns import NOTE, SHORT
from genius_lite.report.page import in_markdown
from genius_lite.report.summary import WIDENED, cooling_lines
from genius_lite.report.tables import Table
from genius_lite.results.evaluation import AtBest, TaskResult
from genius_lite.results.rounds import RoundReport
from genius_lite.rundir.folder import json_bytes
from genius_lite.text import accuracy, gain, interval, percent, visible
from genius_lite.weights.importing import Base

_PIPELINE = "text-generation"


def model_card(
    base: Base,
    number: int,
    reports: list[RoundReport],
    recipe: dict[str, Any],
    sums: dict[str, str],
    notes: list[str],
    usage: str,
    measured: str = "",
) -> str:
    """Write a README.md with front matter that the hub reads.

    Args:
        reports: of the rounds up to `number`.
        recipe: the run folder's.
        sums: file name -> SHA-256, of what stands beside the card.
        notes: what a reader of these files should know.
        usage: what runs the files, in Markdown.
        measured: the file that was measured, where it is none of these.
    """
    title = f"{base.name}, self-trained" if number else base.name
    parts = [_front_matter(base, reports, measured), f"# {title}\n", _what(base, number, recipe)]
    if reports:
        parts += [_rounds(reports), _measured(reports[-1].evaluation, reports[-1].at_best, measured)]
    parts += ["## Run it\n", _asked_with(recipe.get("system"), recipe.get("template", {})) + usage]
    parts += ["## Files\n", "".join(f"- `{name}`: SHA-256 `{digest}`\n" for name, digest in sums.items())]
    parts += [f"- {note}\n" for note in notes]
    parts += ["## Recipe\n", f"```json\n{json_bytes(recipe, 'recipe', indent=2).decode()}```\n"]
    return "\n".join(parts)


def llama_options(system: str | None, template: dict[str, Any]) -> str:
    """Write what llama-cli is to be told of how the model was asked, ` -sys 'Be brief.'`.

    Ollama has it from the Modelfile, LM Studio takes it in its window.
    """
    asked = f" -sys {shlex.quote(system)}" if system else ""
    if variables := {name: value for name, value in template.items() if name != "today"}:
        asked += f" --jinja --chat-template-kwargs {shlex.quote(json.dumps(variables))}"
    return asked


def _front_matter(base: Base, reports: list[RoundReport], file: str) -> str:
    """Write the YAML that a card begins with; the arguments are those of `model_card`."""
    license_name, hub = base.gguf.metadata.get("general.license"), HubSource.of(base)
    measured = eval_results(reports[-1].evaluation, file) if reports else []
    card = ModelCardData(
        library_name="genius-lite",
        tags=["genius", "self-training", "gguf"],
        pipeline_tag=_PIPELINE,
        license=license_name if isinstance(license_name, str) else None,
        base_model=hub.repository if hub else None,
        model_name=f"{base.name}, self-trained" if measured else None,
        eval_results=measured or None,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def eval_results(tasks: list[TaskResult], measured: str = "") -> list[EvalResult]:
    """Return accuracies and gains as the hub knows them, in percent and points, the intervals in name and `args`.

    Only of problems that reported: what chose the round too would flatter it, and stands in the card's text alone.
    """
    found = []
    for task in (task for task in tasks if not task.chosen_on):
        name, problems = visible(task.task), {"problems": task.problems}
        sampled, samples = f"sampled at temperature {task.temperature:g}", {"samples": task.samples}
        for kind, what, value, more in (
            ("accuracy", f"accuracy in %, {sampled}", task.sampled, samples),
            ("accuracy_gain", f"gain over the base model in points, {sampled}", task.sampled_gain, samples),
            ("accuracy", "accuracy in %, greedy", task.greedy, {}),
            ("accuracy_gain", "gain over the base model in points, greedy", task.greedy_gain, {}),
        ):
            if value is None:
                continue
            ends = interval(value) if kind == "accuracy" else gain(value).partition(" ")[2]
            of_which = f", of {measured}" if measured else ""
            estimate, low, high = (round(100 * share, 1) for share in (value.estimate, value.low, value.high))
            result = EvalResult(
                task_type=_PIPELINE,
                dataset_type=name.removeprefix(Prefix.HUB),
                dataset_name=name,
                metric_type=kind,
                metric_name=f"{what}, 95 % interval {ends}{of_which}",
                metric_value=estimate,
                metric_args={"low": low, "high": high, **problems, **more},
            )
            found.append(result)
    return found


def _what(base: Base, number: int, recipe: dict[str, Any]) -> str:
    origin = f"`{Prefix.public(base.origin).replace('`', '')}`"  # its text is no Markdown, and no HTML
    if number == 0:
        return f"The base model of a run of genius-lite {__version__}.\n\nBase: {origin}, SHA-256 `{base.sha256}`.\n"
    searched = recipe.get("foresight", {}).get("steps") != 0
    sampled = "stepwise foresight rollouts" if searched else "answers (without the method's search, `steps: 0`)"
    return (
        f"Round {number} of a run of genius-lite {__version__}, trained with the method of Genius "
        f"([arXiv 2504.08672](https://arxiv.org/abs/2504.08672)): the model's own {sampled}, "
        f"preference pairs from them, and an adapter learned {_learned(recipe.get('learner', {}))}. No labels, no "
        f"reward model and no stronger model were used.\n\nBase: {origin}, SHA-256 `{base.sha256}`.\n\n"
        f"Queries: {recipe['queries'].split(',')[0]}, unlabelled.\n"
    )


def _learned(learner: dict[str, Any]) -> str:
    """Say by which loss; a stranger's recipe may have any text there."""
    losses = {name: f"with the loss `{name}`, not the method's own" for name in get_args(Loss)}
    losses[OWN_LOSS] = "with advantage-calibrated optimization"
    losses["sft"] = "from the preferred responses alone (`sft`, which is not the method's own loss)"
    loss, weight = losses.get(learner.get("loss", OWN_LOSS), "from them"), learner.get("sft_weight")
    return f"{loss}, with a term of SFT beside it" if weight and learner.get("loss") != "sft" else loss


def _rounds(reports: list[RoundReport]) -> str:
    headings = ["round", *(column.short for column in SHORT)]
    rows = [[str(report.round), *(column.cell(report) for column in SHORT)] for report in reports]
    made = reports[-1].quantized
    widened = f" The file of this round is {WIDENED}." if made and made.widened else ""
    return in_markdown(Table("rounds", "Rounds", headings, rows, NOTE + widened)) + "\n"


def _measured(tasks: list[TaskResult], at_best: list[AtBest], file: str) -> str:
    """Tabulate accuracy on the recipe's tasks, beside the base model's."""
    if not tasks:
        return "## Measured\n\nNo task was measured.\n"
    kinds, rows = ("sampled", "gain over the base", "greedy", "gain", "mean of both", "gain"), []
    for t in tasks:
        cells = [shown for right, gained in t.by_kind.values() for shown in (accuracy(right), gain(gained))]
        rows.append([t.task, str(t.problems), *cells, percent(t.cut)])
    chosen_on = any(task.chosen_on for task in tasks)
    chose = "but they chose the round, so that gains are flattered" if chosen_on else "and others chose the round"
    note = f"With 95 % intervals, gains in points. Nothing learned from these problems, {chose}."
    note += f" Measured was {file}, not what is here." if file else ""
    table = in_markdown(Table("measured", "Measured", ["task", "problems", *kinds, "cut off"], rows, note))
    return "\n".join([table, "", *(f"- {line}" for line in cooling_lines(at_best)), ""])


def _asked_with(system: str | None, template: dict[str, Any]) -> str:
    with_variables = f"The chat template was given `{json.dumps(template)}`.\n\n" if template else ""
    if system is None:
        return with_variables
    quoted = "\n".join(f"> {html.escape(line, quote=False)}".rstrip() for line in system.splitlines() or ["(empty)"])
    told = "Every question was asked after this system message; without it answers may be worse"
    return f"{told}:\n\n{quoted}\n\n{with_variables}"
