"""Do our checkers say of a response what lm-evaluation-harness's own filters say? By task, on responses of some models.

    python -m tests.benchmarks.agreement FOLDER --gsm8k F.jsonl --arc F.jsonl --models A.gguf,B.gguf [--problems 0:125]
    python -m tests.benchmarks.agreement FOLDER                                     # only the comparison

The files have rows of `prompt` and `answer`, ARC's with the options in the prompt. Each model answers them greedily
through our own engine; half of GSM8K is asked to end in `#### NUMBER`, as lm-evaluation-harness's `gsm8k` shows by
examples, the other half in "The answer is NUMBER", as its `gsm8k_cot_zeroshot`, and ARC in "The best answer is LETTER",
as its `arc_challenge_chat`. What is in FOLDER already is not asked again, so that a long measurement can be cut in
pieces by `--problems`.

Then each task's filters and metric (the package's own code and settings; `pip install lm-eval`) judge each response,
cut off at the task's own stops, beside ours: a table, and every response of which they differ.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from genius_lite.evaluate import checkers
from genius_lite.evaluate.models import NamedModel, PromptConfig, evaluate_models
from genius_lite.progress import SILENT
from genius_lite.recipe import Check, Evaluate, TaskSource
from tests.benchmarks.machine import in_words, measured_on

ASKED: dict[str, tuple[Check, str]] = {
    "gsm8k": ("numeric", 'Be brief. The last line of your response is "#### " and the number.'),
    "gsm8k_cot_zeroshot": ("numeric", 'Be brief. End with "The answer is" and the number.'),
    "arc_challenge_chat": ("choice", 'End with "The best answer is X", where X is one of A, B, C or D.'),
}
"""Our checker of each task, and what its prompts end in."""
TOKENS = {"numeric": 128, "choice": 96}
JUDGES = {
    "gsm8k": ("gsm8k/gsm8k.yaml",),
    "gsm8k_cot_zeroshot": ("gsm8k/gsm8k-cot-zeroshot.yaml",),
    "arc_challenge_chat": ("arc/arc_challenge_chat.yaml", "mmlu_pro/_default_template_yaml"),
}
"""The files of the package whose filters judge a task's responses; MMLU-Pro's look for "answer is (X)"."""

Row = dict[str, str]
Judge = Callable[[Row], bool]


def rows_of(task: str, gsm8k: Path, arc: Path, first: int, last: int) -> list[Row]:
    """The problems of a task; the two of GSM8K share its file, so that each has every other row."""
    lines = [json.loads(line) for line in (arc if "arc" in task else gsm8k).read_text().splitlines()[first:last]]
    rows = lines if "arc" in task else lines[list(ASKED).index(task) :: 2]
    return [{"prompt": f"{row['prompt']}\n\n{ASKED[task][1]}", "answer": str(row["answer"])} for row in rows]


def ask(model: Path, task: str, rows: list[Row], out: Path) -> None:
    """Write a row for each response: model, task, prompt, known answer and text."""
    kind = ASKED[task][0]
    how = PromptConfig(system=None, max_tokens=TOKENS[kind])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "problems.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = [TaskSource(source=str(source), check=kind)]
        _, (responses,) = evaluate_models(
            [NamedModel(model.stem, model)], asked, Evaluate(samples=0), how, seed=0, progress=SILENT
        )
    answered = zip(rows, responses, strict=True)
    said = [{"model": model.stem, "task": task, **row, "text": response.text} for row, response in answered]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in said))


def judges(task: str) -> Iterator[tuple[str, Judge]]:
    """What lm-evaluation-harness says of a response, once for each filter of the task."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks"
    for name in JUDGES[task]:
        config = load_yaml(folder / name, resolve_func=False)
        for made in config["filter_list"]:
            title = config.get("task") or name.partition("/")[0]
            yield f"{title}, {made['name']}", _judge(config, made)


def _judge(config: dict[str, Any], made: dict[str, Any]) -> Judge:
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters import build_filter_ensemble

    steps = [(f["function"], {k: v for k, v in f.items() if k != "function"}) for f in made["filter"]]
    filters = build_filter_ensemble(made["name"], steps)
    (metric,) = config["metric_list"]
    settings = {k: v for k, v in metric.items() if k not in ("metric", "aggregation", "higher_is_better")}
    prefix, stops = config.get("gen_prefix"), config["generation_kwargs"]["until"]

    def right(row: Row) -> bool:
        # The package puts the prefix into the prompt and goes on from there; we ask for it.
        text = row["text"].rpartition(prefix)[2] if prefix else row["text"]
        end = min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))
        instance = Instance("generate_until", {}, ("", {}), 0, resps=[text[:end]])
        filters.apply([instance])
        found = instance.filtered_resps[made["name"]]
        return bool(exact_match_fn(predictions=[found], references=[row["answer"]], **settings)["exact_match"])

    return right


def compare(rows: Iterable[Row]) -> None:
    """Print the table, and what they differ in."""
    counts, differences = defaultdict[tuple[str, str], Counter[str]](Counter), list[str]()
    by_task = defaultdict[str, list[Row]](list)
    for row in rows:
        by_task[row["task"]].append(row)
    for task, of in by_task.items():
        for judge, right in judges(task):
            for row in of:
                verdict = checkers.judge(ASKED[task][0], row["text"], row["answer"])
                ours, theirs = bool(verdict.score), right(row)
                counts[row["model"], judge][f"{ours:d}{theirs:d}"] += 1
                if ours != theirs:
                    who = "only ours" if ours else "only theirs"
                    differences.append(f"{row['model']}; {judge}; {who}; known: {row['answer']}\n{row['text']!r}\n")
    print("| model | judge | responses | both right | only ours | only theirs | both wrong | agree |")
    print("|---|---|---|---|---|---|---|---|")
    for (model, judge), count in sorted(counts.items()):
        all_of, same = count.total(), count["11"] + count["00"]
        kinds = " | ".join(str(count[kind]) for kind in ("11", "10", "01", "00"))
        print(f"| {model} | {judge} | {all_of} | {kinds} | {same / all_of:.1%} |")
    print(f"\n{len(differences)} differences\n")
    print("\n".join(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--arc", type=Path)
    parser.add_argument("--models", default="", help="GGUF files, with commas")
    parser.add_argument("--tasks", default=",".join(ASKED), help="of these, with commas")
    parser.add_argument("--problems", default="0:125", help="rows of each file")
    parser.add_argument("--ask-only", action="store_true")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    first, last = map(int, a.problems.split(":"))
    print(in_words(measured_on()), flush=True)
    for model in filter(None, a.models.split(",")):
        for task in a.tasks.split(","):
            out = a.folder / f"{Path(model).stem}-{task}-{first}-{last}.jsonl"
            if not out.exists():
                ask(Path(model), task, rows_of(task, a.gsm8k, a.arc, first, last), out)
    if not a.ask_only:
        files = sorted(a.folder.glob("*.jsonl"))
        compare(json.loads(line) for file in files for line in file.read_text().splitlines())


if __name__ == "__main__":
    main()
