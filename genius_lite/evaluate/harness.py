"""Tasks of lm-evaluation-harness: what they ask of a row, and what they make of a response, in a process with limits.

`python -m genius_lite.evaluate.harness` is that process. The package downloads no data here: rows come one by one, and
it is asked as its own evaluator asks it (0.4.13): a task's context without examples, its filters, its metric.
"""

from __future__ import annotations

import ast
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import TemplateError

from genius_lite.data.sandbox import LimitedProcess, Message, serve
from genius_lite.errors import UserError
from genius_lite.evaluate.choices import LETTERS
from genius_lite.evaluate.scoring import Verdict
from genius_lite.text import brief

_SECONDS = 10  # of computing, for one response: the first one loads the task
_MEMORY = 2_000_000_000  # bytes; the package has 300 MB
_UNUSABLE = (AssertionError, AttributeError, LookupError, TypeError, ValueError, TemplateError)  # of strange rows
_NONE = "[invalid]"  # what filters give where they find no answer


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task of the package: its folder and name there, which may have a column's value in it.

    `columns` are those that it reads. `filter` and `metric` score a response, where they are given; `told` is then how
    a response tells an answer, and empty where only the metric knows what is right. `shuffled`: the task puts the
    options of a row in an order of its own.
    """

    folder: str
    task: str
    columns: tuple[str, ...]
    filter: str = ""
    metric: str = ""
    told: str = ""
    shuffled: bool = False


class Harness(LimitedProcess):
    """A task of the package, by any thread.

    Raises:
        UserError: the package is missing, or what the task needs.
    """

    def __init__(self, definition: Definition, name: str):
        needed = ("lm_eval", "langdetect", "immutabledict", "nltk") if definition.folder == "ifeval" else ("lm_eval",)
        if any(find_spec(package) is None for package in needed):
            part = "[ifeval]" if len(needed) > 1 else ""
            raise UserError(f"benchmark {name}: it needs a package: pip install 'lm-eval{part}>=0.4.13'")
        opening = msgspec.structs.asdict(definition)
        super().__init__("genius_lite.evaluate.harness", opening, seconds=_SECONDS, memory=_MEMORY)
        if lacking := self.ask({})["lacking"]:
            self.close()
            raise UserError(f"benchmark {name}: it needs data of NLTK: python -m nltk.downloader {lacking}")

    def asked(self, row: str) -> tuple[str, str, Any]:
        """Return what is asked of a row (`scoring.as_literal`), the right answer, and the options where there are any.

        Raises:
            UserError: the task cannot make anything of the row.
        """
        try:
            reply = self.ask({"row": row})
        except UserError as e:
            raise UserError(f"lm-evaluation-harness cannot read it: {e}") from None
        return reply["asked"], reply["answer"], reply["options"]

    def judge(self, row: str, response: str) -> Verdict:
        """Say what a response to a row is worth; its answer is what the task's filter finds in it."""
        try:
            reply = self.ask({"row": row, "response": response})
        except UserError:
            return Verdict(0.0, timed_out=True)
        return Verdict(reply["score"], reply["stated"])


def _start(opening: Message) -> Callable[[Message], Message]:
    # Numeric libraries reserve address space for each thread.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    from datasets import Dataset
    from lm_eval import tasks
    from lm_eval.api.instance import Instance

    if find_spec("langdetect"):
        import langdetect

        langdetect.DetectorFactory.seed = 0
    definition = Definition(**opening)
    folder = Path(tasks.__file__).parent / definition.folder
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    known = dict[str, Any]()

    def load(name: str, example: dict[str, Any]) -> Any:
        rows = Dataset.from_list([example])  # the package looks at one when it makes a task
        changes = {"custom_dataset": lambda **_: defaultdict(lambda: rows), "num_fewshot": 0}
        if not definition.shuffled:
            changes["process_docs"] = None  # which chooses rows, and they are chosen
        # In a group, since that is where the package takes changes to a task that it has.
        return manager.load([{"group": "genius-lite", "task": [{"task": name, **changes}]}])["tasks"][name]

    def of(row: dict[str, Any]) -> Any:
        name = definition.task.format_map({key: str(value).replace(" ", "_") for key, value in row.items()})
        if name not in manager.all_subtasks:
            raise ValueError(f"no task {name}")
        known[name] = known.get(name) or load(name, row)
        random.seed(str(row))  # by which the package draws an order, or what a row of IFEval does not say
        return known[name]

    def ask(row: dict[str, Any]) -> Message:
        task = of(row)
        if definition.metric:
            judge(row, "-")  # so that a row that cannot be judged is told before it is asked
        if definition.shuffled:
            row = task.config.process_docs(Dataset.from_list([row]))[0]
        answer = task.doc_to_target(row)
        answer = answer[0] if isinstance(answer, list) else answer
        text = LETTERS[answer] if isinstance(answer, int) else str(answer)
        asked = task.fewshot_context(doc=row, num_fewshot=0).strip()
        return {"asked": asked, "answer": text.strip(" ()"), "options": row.get("choices")}

    def judge(row: dict[str, Any], response: str) -> Message:
        task = of(row)
        for stop in task.config.generation_kwargs["until"]:  # where the package ends the model's response
            response = response.partition(stop)[0]
        instance = Instance("generate_until", row, ("", {}), 0, resps=[response])
        task._instances = [instance]
        task.apply_filters()
        found = instance.filtered_resps[definition.filter]
        score = float(task.process_results(row, [found])[definition.metric])
        ignored = next((m.get("regexes_to_ignore") for m in task.config.metric_list), None)
        for pattern in ignored or ():
            found = re.sub(pattern, "", found)
        return {"score": score, "stated": None if found == _NONE or not definition.told else found}

    def reply(message: Message) -> Message:
        if "row" not in message:
            return {"lacking": _lacking(definition.folder)}
        row = ast.literal_eval(message["row"])
        try:
            return judge(row, message["response"]) if "response" in message else ask(row)
        except _UNUSABLE as e:
            if "response" in message:
                return {"score": 0.0, "stated": None}
            raise UserError(brief(f"{type(e).__name__}: {e}", 200)) from None

    return reply


def _lacking(folder: str) -> str:
    """Name the data that IFEval counts sentences by, unless it is there; the package downloads it if it can."""
    if folder != "ifeval":
        return ""
    import nltk
    from lm_eval.tasks.ifeval import instructions_util  # noqa: F401

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return "punkt_tab"
    return ""


if __name__ == "__main__":
    serve(_start)
