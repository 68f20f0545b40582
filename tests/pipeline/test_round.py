"""What an interrupted stage notes of its time, and what is noted of the parts that took none of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from genius_lite.errors import Stop, Stopped
from genius_lite.learner.footprint import scored_pairs
from genius_lite.pipeline.round import Round, counted, note_time, note_untimed
from genius_lite.pipeline.stages import pair, sample, train
from genius_lite.pipeline.stand_in import _expected
from genius_lite.progress import Stage
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Queries, Recipe, Sampler
from genius_lite.report.tracking import Tracker
from genius_lite.run import open_run
from genius_lite.rundir.folder import RunDir
from genius_lite.rundir.lines import write_records
from genius_lite.rundir.reader import RoundFolder, RunFolder
from tests.conftest import FORKED_HELPERS
from tests.support.models import ANY_PAIRS, questions
from tests.support.runs import rollout, write_run

pytestmark = FORKED_HELPERS


def test_what_a_stage_came_to_is_noted_when_it_is_interrupted(tmp_path):
    told = list[float]()
    with pytest.raises(Stopped), counted(RunDir(tmp_path), Stage.TRAIN, 0.0, told.append) as advance:
        advance(3)
        advance(4)
        raise Stopped
    with pytest.raises(Stopped), counted(RunDir(tmp_path), Stage.TRAIN, 0.0, told.append):
        raise Stopped
    (noted,) = RoundFolder(1, tmp_path).timings
    assert (noted.stage, noted.amount, told) == (Stage.TRAIN, 7, [3, 4])
    assert noted.seconds > 0


def test_what_no_line_accounts_for_is_noted_once(tmp_path):
    here = RunDir(tmp_path)
    note_untimed(here, Stage.ROLLOUTS, 0)
    note_time(here, Stage.ROLLOUTS, 10.0, 60)
    note_untimed(here, Stage.ROLLOUTS, 60)
    assert [timing.untimed for timing in RoundFolder(1, tmp_path).timings] == [0]
    note_untimed(here, Stage.ROLLOUTS, 180)  # as after merge-shards, or a power cut
    note_untimed(here, Stage.ROLLOUTS, 180)
    note_time(here, Stage.ROLLOUTS, 10.0, 60)
    found = RoundFolder(1, tmp_path).total(Stage.ROLLOUTS)
    assert found
    assert (found.seconds, found.amount, found.untimed, found.whole, found.whole_seconds) == (20.0, 120, 120, 240, 40.0)


def test_a_round_is_expected_to_sample_what_the_one_before_did_whoever_sampled_it(tmp_path, tiny_llama):
    run = write_run(tmp_path / "run", tiny_llama, [rollout("question")])
    note_untimed(RunDir(run / "round-1"), Stage.ROLLOUTS, 90)
    r = SimpleNamespace(earlier=RunFolder(run).rounds)
    assert _expected(cast(Round, r)) == 90


@pytest.mark.parametrize("killed", [False, True])
def test_a_training_that_was_stopped_or_killed_is_told_whole(tiny_llama, tmp_path, monkeypatch, killed):
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source=questions(tmp_path, 8)),
        foresight=Foresight(beams=1, candidates=2, steps=1, max_tokens=12, temperature=1.5),
        pairs=ANY_PAIRS,
        learner=Learner(rank=2, batch_pairs=2, epochs=1, parity_limit=100, precision="fp32"),
        evaluate=Evaluate(queries=0),
        sampler=Sampler(slots=4, threads=1),
    )
    stop = Stop()

    def trained() -> int:
        stop.asked = False
        with open_run(recipe, stop=stop) as session:
            r = session.round(1)
            rollouts = sample(r, session.own)
            pairs = pair(r, rollouts)
            train(r, None, rollouts, pairs)
        return len(pairs)

    def press(tracker: Tracker, number: int, row: dict[str, float]) -> None:
        stop.asked = True

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "update", press)
        with pytest.raises(Stopped):
            trained()
    here = RunFolder(tmp_path / "run").round(1)
    (stopped,) = (timing for timing in here.timings if timing.stage == Stage.TRAIN)
    if killed:  # it would have left no line
        write_records(here.path / "timings.jsonl", (timing for timing in here.timings if timing != stopped))
    pairs, found = trained(), here.total(Stage.TRAIN)
    total = pairs * (1 + 2) + scored_pairs(pairs)
    assert found and here.training
    assert 0 < stopped.amount < total and found.whole == total
    assert found.untimed == (stopped.amount if killed else 0)
    assert found.seconds > stopped.seconds or killed
    assert here.training.seconds == found.seconds


def test_seeds_and_rounds_draw_apart_and_one_seed_draws_the_same(tiny_llama, tmp_path):
    def drawn(out: str, seed: int, number: int = 1) -> tuple[dict[str, list], list]:
        recipe = Recipe(
            out=str(tmp_path / out),
            seed=seed,
            model=Model(gguf=str(tiny_llama)),
            queries=Queries(source=questions(tmp_path, 6)),
            rounds=2,
            foresight=Foresight(beams=1, candidates=3, steps=2, max_tokens=16, temperature=1.5),
            pairs=ANY_PAIRS,
            learner=Learner(holdout=0.0),
            evaluate=Evaluate(queries=0),
            sampler=Sampler(slots=1, parked=1, threads=1),
        )
        with open_run(recipe) as session:
            rollouts = sample(session.round(number), session.own)
            pairs = [*pair(session.round(number), rollouts)]
            return {r.query.id: [c.tokens for s in r.steps for c in s.candidates] for r in rollouts}, pairs

    first, again, other, later = drawn("a", 0), drawn("b", 0), drawn("c", 1), drawn("d", 0, number=2)
    assert again == first
    for apart in (other, later):
        assert apart[0].keys() == first[0].keys(), "the same questions"
        assert not [query for query, said in first[0].items() if apart[0][query] == said]
        assert apart[1] != first[1]
