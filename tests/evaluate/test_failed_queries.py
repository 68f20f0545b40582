"""A problem and a held-out query that llama.cpp does not survive, in a whole run."""

from __future__ import annotations

import json
import os

from rich.console import Console

from genius_lite.evaluate.record import read_evaluation
from genius_lite.recipe import Evaluate, Foresight, Guard, Learner, Limit, Model, Queries, Recipe, Sampler, TaskSource
from genius_lite.records import query_id
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import run
from genius_lite.rundir.reader import RunFolder
from tests.support.models import ANY_PAIRS, TEMPLATE

DEADLY = "ZZZZ"
DIES = f"""
import os, sys
if "genius_lite.sampler.worker" in sys.orig_argv:
    from genius_lite.sampler.engine import Engine
    submit = Engine.submit
    def dying(self, request):
        asked = getattr(request, "path", None) or getattr(request, "prompt", None) or []
        if {DEADLY.encode()!r} in bytes(token for token in asked if token < 256):
            os.abort()
        submit(self, request)
    Engine.submit = dying
"""


def test_what_kills_the_worker_is_set_aside_and_named_and_the_run_ends_well(tiny_llama, tmp_path, monkeypatch):
    assert "Z" not in TEMPLATE
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    problems, queries = tmp_path / "sums.jsonl", tmp_path / "queries.txt"
    asked = ["Say 1.", f"Say {DEADLY}.", "Say 3."]
    problems.write_text("".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in asked))
    watched = [f"Is it {DEADLY}?", "Is it so?"]
    queries.write_text("\n".join([*(f"How many are {n}?" for n in range(8)), *watched]) + "\n")
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source=str(queries), limit=8),
        rounds=1,
        foresight=Foresight(beams=1, candidates=2, steps=1, max_tokens=12, temperature=1.5),
        pairs=ANY_PAIRS,
        learner=Learner(rank=4, lr=1e-3, holdout=0.0, parity_limit=100, precision="fp32"),
        evaluate=Evaluate(tasks=[TaskSource(source=str(problems))], samples=2, sweep=[0.3]),
        guard=Guard(**dict.fromkeys(Guard.model_fields, Limit())),
        sampler=Sampler(slots=2, threads=1),
    )
    progress, said = TerminalProgress(Console(quiet=True)), []
    progress.say = said.append
    summary = run(recipe, progress)

    deadly, lost = query_id(asked[1]), query_id(watched[0])
    failures = [line for line in said if line.startswith("warning: ") and " failed: " in line]
    assert sum(f"sums, problem {deadly} failed" in line for line in failures) == 3, "the base, its sweep, the round"
    assert sum(f"held-out query {lost} failed" in line for line in failures) == 2
    for number in (0, 1):
        assert {r.problem for r in RunFolder(tmp_path / "run").round(number).responses} == {
            query_id(asked[0]),
            query_id(asked[2]),
        }
        folder = RunFolder(tmp_path / "run")
        found = read_evaluation(folder.round(number), folder.base if number else None)
        assert found.signals and found.signals.responses == 4
        assert found.tasks[0].problems == 2
        rows = (tmp_path / "run" / f"round-{number}" / "evaluation" / "failed.jsonl").read_text().splitlines()
        assert {json.loads(row)["query_id"] for row in rows} == {deadly, lost}
    assert summary.rounds[0].evaluation[0].judged_gain is not None
