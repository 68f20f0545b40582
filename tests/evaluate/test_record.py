"""A round's evaluation in its folder: stopped in the middle, it goes on from there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from genius_lite.errors import Stopped, UserError
from genius_lite.evaluate.guard import alarms
from genius_lite.evaluate.record import read_evaluation, write_evaluation
from genius_lite.evaluate.signals import Observed, signals
from genius_lite.pipeline.evaluation import evaluate
from genius_lite.pipeline.round import Policy, Round
from genius_lite.progress import Advance, Stage
from genius_lite.recipe import Evaluate, Foresight, Guard, Model, Queries, Recipe, Sampler, TaskSource
from genius_lite.records import Completion
from genius_lite.report.terminal import TerminalProgress
from genius_lite.results.evaluation import GREEDY, Answers, Response, RoundMetrics, Said
from genius_lite.run import open_run
from genius_lite.rundir.folder import ANSWERS, SAID, write_json
from genius_lite.rundir.lines import read_records
from genius_lite.rundir.reader import RoundFolder, RunFolder
from tests.support.models import questions

PROBLEMS = 6


class Pressed(TerminalProgress):
    """Ctrl-C is pressed when so many responses have arrived."""

    round: Round | None = None

    @contextmanager
    def stage(
        self, name: str, total: float, unit: str, scale: float = 1.0, done: float = 0.0, at_once: float = 0.0
    ) -> Iterator[Advance]:
        arrived = done

        def advance(n: float) -> None:
            nonlocal arrived
            arrived += n
            if self.round and arrived >= 5:
                self.round.stop.asked = True

        yield advance


def recipe(gguf: Path, folder: Path, out: str) -> Recipe:
    tasks = folder / "tasks.jsonl"
    rows = ({"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(PROBLEMS))
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe(
        out=str(folder / out),
        model=Model(gguf=str(gguf)),
        queries=Queries(source=questions(folder, 2)),
        foresight=Foresight(max_tokens=8),
        evaluate=Evaluate(tasks=[TaskSource(source=str(tasks))], samples=1, queries=0),
        # One branch at a time: in other company a sum is rounded in another way.
        sampler=Sampler(slots=1, threads=1),
    )


def measured(cfg: Recipe, progress: TerminalProgress) -> Path:
    with open_run(cfg, progress) as session:
        r = session.round(0)
        if isinstance(progress, Pressed):
            progress.round = r
        evaluate(r, Policy(r.job.source.path))
    return Path(cfg.out)


def test_a_stopped_evaluation_asks_no_answered_problem_again(tiny_llama, tmp_path):
    whole = measured(recipe(tiny_llama, tmp_path, "whole"), TerminalProgress(Console(quiet=True)))
    stopped = recipe(tiny_llama, tmp_path, "stopped")
    with pytest.raises(Stopped):
        measured(stopped, Pressed(Console(quiet=True)))
    folder = Path(stopped.out) / "round-0"
    assert not (folder / "evaluation").exists()
    before = read_records(folder / ANSWERS, Answers)
    assert 0 < len(before) < PROBLEMS

    run = measured(stopped, TerminalProgress(Console(quiet=True)))
    assert RunFolder(run).round(0).responses == RunFolder(whole).round(0).responses
    assert not (folder / ANSWERS).exists()
    timed = [json.loads(line)["amount"] for line in (folder / "timings.jsonl").read_text().splitlines()]
    known = sum(response.tokens for answers in before for response in answers.responses)
    assert timed == [known, sum(response.tokens for response in RunFolder(run).round(0).responses) - known]


def test_answers_of_a_process_that_was_killed_are_part_of_the_stage_but_not_of_its_time(tiny_llama, tmp_path):
    killed = recipe(tiny_llama, tmp_path, "killed")
    with pytest.raises(Stopped):
        measured(killed, Pressed(Console(quiet=True)))
    folder = Path(killed.out) / "round-0"
    kept = read_records(folder / ANSWERS, Answers)
    known = sum(response.tokens for answers in kept for response in answers.responses)
    (folder / "timings.jsonl").unlink()
    own = RunFolder(measured(killed, TerminalProgress(Console(quiet=True)))).own
    timed = own.total(Stage.EVALUATE)
    assert timed and timed.untimed == known > 0
    assert timed.whole == sum(response.tokens for response in own.responses)


def test_stopped_answers_to_held_out_queries_go_on(tiny_llama, tmp_path):
    def held_out(out: str) -> Recipe:
        cfg = recipe(tiny_llama, tmp_path, out)
        watched = cfg.evaluate.model_copy(update={"tasks": [], "queries": 6, "query_samples": 2})
        queries = Queries(source=questions(tmp_path, 8), limit=2)
        return cfg.model_copy(update={"evaluate": watched, "queries": queries})

    whole = RunFolder(measured(held_out("whole"), TerminalProgress(Console(quiet=True)))).own
    assert whole.signals and whole.signals.responses == 12
    stopped = held_out("stopped")
    with pytest.raises(Stopped):
        measured(stopped, Pressed(Console(quiet=True)))
    folder = Path(stopped.out) / "round-0"
    before = read_records(folder / SAID, Said)
    assert 0 < len(before) < 6 and not (folder / "evaluation").exists()
    own = RunFolder(measured(stopped, TerminalProgress(Console(quiet=True)))).own
    assert own.signals == whole.signals
    assert not (folder / SAID).exists()
    first, second = (timing.amount for timing in own.timings)
    assert first == sum(len(each.tokens) for one in before for each in one.responses)
    assert second > 0 and first + second == whole.timings[0].amount


def test_what_a_model_cannot_have_said_is_refused(tiny_llama, tmp_path):
    cfg = recipe(tiny_llama, tmp_path, "run")
    watched = cfg.evaluate.model_copy(update={"tasks": [], "queries": 1, "query_samples": 1})
    cfg = cfg.model_copy(update={"evaluate": watched, "queries": Queries(source=questions(tmp_path, 3), limit=2)})
    with open_run(cfg, TerminalProgress(Console(quiet=True))) as session:
        r = session.round(0)
        r.here.path.mkdir(exist_ok=True)
        said = Said(r.job.watched[0].id, [Completion([1 << 20], [-1.0], "end")])
        (r.here.path / SAID).write_bytes(msgspec.json.encode(said) + b"\n")
        with pytest.raises(UserError, match=rf"{SAID}:1: these are not the responses"):
            evaluate(r, Policy(r.job.source.path))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_signals_that_are_no_numbers_are_kept_for_the_guard_which_halts(tmp_path, broken):
    seen = signals([Observed("q", [1, 2], [broken, -1.0], [-1.0, -1.0], "end", "4")] * 2)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    write_evaluation(folder, [], seen, [])
    kept = read_evaluation(RoundFolder(1, tmp_path)).signals
    assert kept and (abs(kept.entropy), kept.length) == (math.inf, 2.0)
    raised = alarms(Guard(), RoundMetrics(kept, -0.5, 0.1, 0.0, 1.0, 1.0, 64, 64), None, None)
    assert ("entropy", "halt") in {(alarm.signal, alarm.level) for alarm in raised}


def test_a_round_is_set_beside_the_base_that_went_through_the_same_rounding(tmp_path):
    def answered(name: str, right: int) -> None:
        folder = tmp_path / name / "evaluation"
        folder.mkdir(parents=True)
        given = [Response("sums", f"p{n}", GREEDY, "", 5, "end", float(n < right)) for n in range(10)]
        write_evaluation(folder, [Answers("sums", one.problem, [one]) for one in given], None, [])

    write_json(tmp_path / "recipe.json", {"rounds": 1})
    run = RunFolder(tmp_path)
    answered("round-0", 2)
    answered("round-1", 6)
    gain = read_evaluation(run.round(1), run.base).tasks[0].greedy_gain
    assert gain and gain.estimate == pytest.approx(0.4), "the user's own file is in the types of the rounds"
    answered("rounded", 3)
    gain = read_evaluation(run.round(1), run.base).tasks[0].greedy_gain
    assert gain and gain.estimate == pytest.approx(0.3)
    (base,), (own,) = (
        read_evaluation(run.base).tasks,
        read_evaluation(RoundFolder(0, tmp_path / "round-0")).tasks,
    )
    assert base.greedy and own.greedy
    assert (base.greedy.estimate, own.greedy.estimate) == (0.3, 0.2)
    assert sum(response.score for response in RunFolder(tmp_path).round(0).responses) == 3
