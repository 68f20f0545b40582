"""Rows as each benchmark's data set has them, made up here, and the table: python -m tests.evaluate.benchmarks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from genius_lite.evaluate.benchmarks import DEFINITIONS, load_task
from genius_lite.evaluate.tasks import Task
from genius_lite.recipe import BENCHMARKS, BenchmarkName, TaskSource

PUNKT = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


class StandIn(NamedTuple):
    """Rows of a benchmark, and responses to the first of them that are right, and wrong."""

    rows: list[dict[str, Any]]
    right: list[str]
    wrong: list[str]
    answer: str


def _mathematics(name: str, answer: str, *numbers: int) -> list[dict[str, Any]]:
    return [{name: f"Ann has {n} pens and finds two more. How many has she?", **_solved(answer, n)} for n in numbers]


def _solved(column: str, n: int) -> dict[str, Any]:
    if column == "answer":
        return {"answer": f"She has {n} + 2 = <<{n}+2={n + 2}>>{n + 2} pens.\n#### {n + 2}"}
    return {"solution": f"She has $\\boxed{{{n + 2}}}$.", "answer": f"{n + 2}", "subject": "Prealgebra", "level": 1}


GPQA = "C"  # where the package puts the right option of the first row
_ANIMALS = ["trout", "sparrow", "otter", "newt"]
_BY_LETTER = ["The best answer is C", "I think so.\n\n**C**", "Otters are mammals, so the answer is (C)."]
_NOT_BY_LETTER = ["The best answer is B", "A or C", "I cannot say", ""]

STAND_INS: dict[BenchmarkName, StandIn] = {
    "gsm8k": StandIn(
        _mathematics("question", "answer", 3, 1, 7),
        ["3 + 2 = 5. The final answer is 5", "So she has 5 pens.", "\\boxed{5}", "It costs $5."],
        ["The final answer is 6", "She has 5 pens, of 6.", "five", ""],
        "5",
    ),
    "math-500": StandIn(
        _mathematics("problem", "solution", 3, 1, 7),
        ["So it is $\\boxed{5}$.", "\\boxed{\\frac{10}{2}}"],
        ["\\boxed{6}", "I do not know", ""],
        "5",
    ),
    "arc-challenge": StandIn(
        [
            {
                "id": f"{kind}-{key}",
                "question": f"Which of these is a mammal, says {kind}?",
                "choices": {"text": _ANIMALS, "label": [*labels]},
                "answerKey": key,
            }
            for kind, labels, key in (("one", "ABCD", "C"), ("two", "1234", "3"))
        ],
        _BY_LETTER,
        _NOT_BY_LETTER,
        "C",
    ),
    "gpqa": StandIn(
        [
            {
                "Question": f"Which of these is a mammal, says {name}?",
                "Correct Answer": "otter",
                **{f"Incorrect Answer {n}": animal for n, animal in enumerate(("trout", "sparrow", "newt"), 1)},
            }
            for name in ("Ann", "Ben", "Cleo", "Dan")
        ],
        [text.replace("C", GPQA) for text in _BY_LETTER] + ["The answer is otter."],
        [f"The answer is {'A' if GPQA == 'B' else 'B'}", "trout", ""],
        GPQA,
    ),
    "logiqa": StandIn(
        [
            {
                "query": f"{name} has a pet that is a mammal. Q: What is it? Answer Choices: "
                + " ".join(f"({letter}){animal}" for letter, animal in zip("ABCD", _ANIMALS, strict=True))
                + "\nA: Among A through D, the answer is",
                "choices": [f"({letter}){animal}" for letter, animal in zip("ABCD", _ANIMALS, strict=True)],
                "gold": [2],
            }
            for name in ("Ann", "Ben")
        ],
        _BY_LETTER,
        _NOT_BY_LETTER,
        "C",
    ),
    "reclor": StandIn(
        [
            {
                "context": f"{name} has a pet that is a mammal.",
                "question": "What is it?",
                "answers": _ANIMALS,
                "label": label,
                "id_string": f"val_{label}",
            }
            for name, label in (("Ann", 2), ("Ben", 0))
        ],
        _BY_LETTER,
        _NOT_BY_LETTER,
        "C",
    ),
    "strategyqa": StandIn(
        [
            {"qid": f"{n}", "question": f"Could {animal} drown?", "answer": could, "facts": ["Fish have gills."]}
            for n, (animal, could) in enumerate({"a trout": False, "an otter": True}.items())
        ],
        ["B", "The answer is B. no", "The answer is: no"],
        ["A", "The answer is: yes", ""],
        "B",
    ),
    "mmlu-pro": StandIn(
        [
            {
                "question_id": n,
                "question": f"Which of these is a mammal, in {subject}?",
                "options": _ANIMALS,
                "answer": "C",
                "answer_index": 2,
                "cot_content": "",
                "category": subject,
                "src": "made up",
            }
            for n, subject in enumerate(("computer science", "biology"))
        ],
        ["Otters are mammals. The answer is (C).", "the answer is C"],
        ["The answer is (B).", "C", ""],
        "C",
    ),
    "ifeval": StandIn(
        [
            {
                "key": 1000,
                "prompt": "Name three animals. Use no commas, and write two sentences at least.",
                "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
                "kwargs": [{}, {"num_sentences": 2, "relation": "at least"}],
            },
            {
                "key": 1001,
                "prompt": "Name an animal. Answer in small letters.",
                "instruction_id_list": ["change_case:english_lowercase"],
                "kwargs": [{}],
            },
        ],
        ["I know a trout and a newt. An otter is the third."],
        ["I know a trout, a newt and an otter. These are three.", "Trout and newt and otter", ""],
        "",
    ),
}


def write_rows(folder: Path, name: BenchmarkName) -> Path:
    """Write a benchmark's rows, and return the file."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in STAND_INS[name].rows))
    return file


def load(folder: Path, name: BenchmarkName, **keys: Any) -> Task:
    """Load a benchmark from its rows here."""
    return load_task(TaskSource.model_validate({"benchmark": name, "source": str(write_rows(folder, name)), **keys}))


def write_punkt(folder: Path) -> Path:
    """Write what NLTK cuts sentences by, empty: no abbreviation is known. Return what NLTK_DATA is to be."""
    english = folder / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for file in PUNKT:
        (english / file).write_text("")
    return folder


def asked_of(task: Task) -> str:
    """Return what a task asks of its first row; its process is ended."""
    task.close()
    return task.problems[0].prompt


def table(asks: Callable[[BenchmarkName], str]) -> str:
    """Write the page of the docs.

    Args:
        asks: returns what a benchmark asks of its first row here.
    """
    lines = [
        "# Benchmarks",
        "",
        "`evaluate.tasks` takes the field's own benchmarks by their names, and so does",
        "`genius-lite eval MODEL --tasks gsm8k` (this page is made by `tests/evaluate/benchmarks.py`):",
        "",
        "```yaml",
        "evaluate:",
        "  tasks:",
        "    - benchmark: gsm8k",
        "    - {benchmark: mmlu-pro, limit: 500}               # 500 of its problems, from all subjects",
        "    - {benchmark: arc-challenge, source: arc.jsonl}   # where there is no hub: rows with the same columns",
        "```",
        "",
        "A model is asked through its chat template, without examples, and answers as it likes; none is measured by",
        "likelihoods, and a thought is no part of an answer. What is asked is, for most, a task of",
        "[lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness), and so is what reads the answer",
        "where its metric is named below; the letter of an option is found as `check: choice` finds it. The package",
        "works in a process with limits of time and memory, and is first tried with right and with wrong answers.",
        "Figures of other tools, which give examples or compare likelihoods, are not the same.",
        "",
        "It takes `pip install 'lm-eval>=0.4.13'`, for `ifeval` `'lm-eval[ifeval]>=0.4.13'`, and for `math-500`",
        "`pip install 'math-verify>=0.9'`. For `gpqa` ask its authors at the hub, and log in with `hf auth login`.",
        "",
        "| benchmark | data set of the hub | defined by | right is |",
        "| --- | --- | --- | --- |",
    ]
    asked = list[str]()
    for name in BENCHMARKS:
        lines.append(f"| `{name}` | {_source(name)} | {_by(name)} | {_right(name)} |")
        asked += ["", f"`{name}`:", "", "```text", *asks(name).splitlines(), "```"]
    return "\n".join([*lines, "", "## What is asked", "", "Of a made-up row:", *asked]) + "\n"


def _source(name: BenchmarkName) -> str:
    cfg = TaskSource.model_validate({"benchmark": name})
    return ", ".join(f"`{part}`" for part in (cfg.source.removeprefix("hf:"), cfg.subset, cfg.split) if part)


def _by(name: BenchmarkName) -> str:
    return f"lm-evaluation-harness's `{DEFINITIONS[name].task}`" if name in DEFINITIONS else "this project"


def _right(name: BenchmarkName) -> str:
    if name not in DEFINITIONS:
        check = BENCHMARKS[name]["check"]
        return "the option's letter" if check == "choice" else f"`{check}`"
    definition = DEFINITIONS[name]
    return f"`{definition.metric}` after `{definition.filter}`" if definition.metric else "the option's letter"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(table(lambda name: asked_of(load(Path(folder), name))), end="")
