"""Write the quickstart's questions: `python recipes/quickstart.py [--seed N] [--questions N] [--out FOLDER]`.

Addition in a sentence: questions without answers to learn from, and others of the same kind with answers to measure by.
No two of them add the same numbers. The files beside this one are those of seed 0.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Jack", "Emma", "Paul", "Rosa", "Leo", "Nina")
THINGS = ("apples", "pens", "books", "coins", "eggs", "cards", "balls", "shells", "stamps", "buttons")
VERBS = ("gets", "buys", "finds")
QUESTIONS, PROBLEMS = 40, 60


def problems(seed: int, questions: int = QUESTIONS) -> list[dict[str, str]]:
    """Return the questions of a seed with their answers: those to learn from, then `PROBLEMS` to measure by."""
    draw, different = random.Random(seed), dict[frozenset[int], tuple[int, int]]()
    sums = list(itertools.product(range(3, 21), range(2, 13)))
    for first, more in draw.sample(sums, len(sums)):
        different.setdefault(frozenset((first, more)), (first, more))  # 5 + 7 is 7 + 5
    return [_problem(draw, *numbers) for numbers in [*different.values()][: questions + PROBLEMS]]


def _problem(draw: random.Random, first: int, more: int) -> dict[str, str]:
    name, thing, verb = draw.choice(NAMES), draw.choice(THINGS), draw.choice(VERBS)
    question = f"{name} has {first} {thing} and {verb} {more} more. How many {thing} does {name} have now?"
    return {"prompt": question, "answer": str(first + more)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    a = parser.parse_args()
    rows = problems(a.seed, a.questions)
    a.out.mkdir(parents=True, exist_ok=True)
    questions = [{"prompt": row["prompt"]} for row in rows[: a.questions]]
    for name, part in (("quickstart-queries.jsonl", questions), ("quickstart-problems.jsonl", rows[a.questions :])):
        (a.out / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


if __name__ == "__main__":
    main()
