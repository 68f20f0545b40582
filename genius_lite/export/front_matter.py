"""What the hub reads of a model card: licence, base model, and what was measured, as its own `model-index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genius_lite.export.transformers import HubSource
from genius_lite.recipe import Prefix
from genius_lite.results.evaluation import TaskResult
from genius_lite.results.rounds import RoundReport
from genius_lite.text import gain, interval, visible
from genius_lite.weights.importing import Base

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_TASK = "text-generation"


def front_matter(base: Base, reports: list[RoundReport], file: str = "") -> str:
    """Write the YAML that a card begins with.

    Args:
        reports: of the rounds up to the one that the card is of; none of the base model.
        file: the one that was measured, where the card is of others.
    """
    from huggingface_hub import ModelCardData

    license_name, hub = base.gguf.metadata.get("general.license"), HubSource.of(base)
    measured = eval_results(reports[-1].evaluation, file) if reports else []
    card = ModelCardData(
        library_name="genius-lite",
        tags=["genius", "self-training", "gguf"],
        pipeline_tag=_TASK,
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
    from huggingface_hub import EvalResult

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
            result = EvalResult(
                task_type=_TASK,
                dataset_type=name.removeprefix(Prefix.HUB),
                dataset_name=name,
                metric_type=kind,
                metric_name=f"{what}, 95 % interval {ends}{of_which}",
                metric_value=_percent(value.estimate),
                metric_args={"low": _percent(value.low), "high": _percent(value.high), **problems, **more},
            )
            found.append(result)
    return found


def _percent(share: float) -> float:
    return round(100 * share, 1)
