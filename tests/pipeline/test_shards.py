from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.evaluate.selection import Decision
from genius_lite.pipeline.job import prepare
from genius_lite.pipeline.round import Policy
from genius_lite.pipeline.shards import merge_shards, sample_shard
from genius_lite.progress import Stage
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Quantize, Queries, Recipe, Sampler
from genius_lite.records import Rollout
from genius_lite.report.status import look
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import open_run, run
from genius_lite.rundir.folder import refuse_links
from genius_lite.rundir.lines import read_records
from genius_lite.rundir.reader import RunFolder
from tests.conftest import FORKED_HELPERS
from tests.support.models import ANY_PAIRS, questions, tiny_gguf

pytestmark = FORKED_HELPERS


@pytest.fixture
def recipe(tiny_llama, tmp_path) -> Recipe:
    return Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source=questions(tmp_path, 7)),
        rounds=1,
        foresight=Foresight(beams=1, candidates=2, steps=2, max_tokens=12),
        pairs=ANY_PAIRS,
        learner=Learner(rank=2, batch_pairs=4, parity_limit=100),
        quantize=Quantize(type="F16"),
        evaluate=Evaluate(queries=0),
        sampler=Sampler(slots=4, threads=1),
    )


def shard(recipe: Recipe, text: str, stop: Stop | None = None, number: int = 1, model: Path | None = None) -> Path:
    progress = TerminalProgress(Console(quiet=True))
    return sample_shard(recipe, text, number, model, progress, stop or Stop())[0]


def rollouts(run_folder: Path, number: int = 1) -> dict[str, Rollout]:
    records = read_records(run_folder / f"round-{number}" / "rollouts.jsonl", Rollout)
    assert len({r.query.id for r in records}) == len(records)
    return {r.query.id: r for r in records}


def tokens(run_folder: Path) -> dict[str, list[list[int]]]:
    """What was said to each query, candidate by candidate."""
    found = rollouts(run_folder).items()
    return {query: [c.tokens for step in rollout.steps for c in step.candidates] for query, rollout in found}


def test_shards_whose_prompts_have_a_date_are_told_it(recipe, tmp_path):
    """Each machine would write its own day else, and go on with another one the next day."""
    turns = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tiny_gguf(tmp_path / "dated.gguf", "llama", template=f"{{{{ strftime_now('%d %B') }}}}: {turns}")
    dated = recipe.model_copy(update={"model": Model(gguf=str(tmp_path / "dated.gguf"))})
    with pytest.raises(UserError, match=r'write queries.template: {today: "20\d\d-\d\d-\d\d"}'):
        shard(dated, "1/2")
    told = dated.queries.model_copy(update={"template": {"today": "2026-07-04"}})
    assert len(rollouts(shard(dated.model_copy(update={"queries": told}), "1/2"))) == 4


def test_shards_make_the_run_that_one_machine_would_have_made(recipe, tmp_path):
    """With one branch at a time, as rounding goes by what is decoded together."""
    said: list[str] = []
    recipe = recipe.model_copy(update={"sampler": Sampler(slots=1, parked=1, threads=1)})
    folders = [shard(recipe, f"{n}/3") for n in (1, 2, 3)]
    assert [len(rollouts(folder)) for folder in folders] == [3, 2, 2]
    assert merge_shards(tmp_path / "merged", folders, said.append) == 7
    assert said[1] == f"{folders[1]}: 2 queries of round 1 are new"
    whole = recipe.model_copy(update={"out": str(tmp_path / "whole")})
    alone = run(whole)
    merged = run(recipe.model_copy(update={"out": str(tmp_path / "merged")}))
    assert merged.queries == alone.queries == 7
    assert tokens(tmp_path / "merged") == tokens(tmp_path / "whole")
    asked = {r.query.prompt for r in rollouts(folders[1]).values()}  # in the order in which they ended
    assert asked == {"What is 1 and 1?", "What is 4 and 4?"}


def test_the_status_of_a_shard_is_that_of_its_part(recipe):
    folder = shard(recipe, "2/3")
    found = look(folder)
    assert (found.state, found.meaning) == (
        "finished", "all queries of its part, 2/3; genius-lite merge-shards adds them to the run"
    )  # fmt: skip
    assert found.board.marked_stages(over=True) == [(Stage.ROLLOUTS, "done")], "nothing else was run"
    lines = (folder / "round-1" / "rollouts.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "round-1" / "rollouts.jsonl").write_bytes(b"".join(lines[:-1]))
    found = look(folder)
    assert (found.state, found.board.number, found.board.kind) == ("interrupted", 1, Stage.ROLLOUTS)
    assert found.board.work and (found.board.work.done, found.board.work.total) == (len(lines) - 1, len(lines))


def test_a_run_samples_what_no_shard_has_and_keeps_what_it_has(recipe, tmp_path):
    first = shard(recipe, "1/2")
    merge_shards(tmp_path / "run", [first], print)
    held = rollouts(tmp_path / "run")
    assert str(first) == f"{recipe.out}-shard-1-of-2"
    assert merge_shards(tmp_path / "run", [first], print) == 4
    run(recipe)
    after = rollouts(tmp_path / "run")
    assert len(after) == 7
    assert all(after[query] == held[query] for query in held)
    # What was sampled here in these seconds is not the whole round: for that it would have taken longer.
    timed = RunFolder(tmp_path / "run").round(1).total(Stage.ROLLOUTS)
    assert timed and timed.whole == sum(rollout.sampled_tokens for rollout in after.values())
    assert timed.untimed == sum(rollout.sampled_tokens for rollout in held.values()) > 0


def test_a_later_round_is_sampled_from_the_model_that_the_run_made(recipe, tmp_path):
    two = recipe.model_copy(update={"rounds": 2})
    run(two)
    made = tmp_path / "run" / "round-1" / "policy.gguf"
    folder = shard(two, "2/2", number=2, model=made)
    assert len(rollouts(folder, 2)) == 3
    assert merge_shards(tmp_path / "run", [folder], print) == 7
    with pytest.raises(UserError, match=r"name the run's policy\.gguf with --model"):
        shard(two, "1/2", number=2)
    with pytest.raises(UserError, match="--model is for rounds after the first"):
        shard(two, "1/2", model=made)
    with pytest.raises(UserError, match="has not begun round 2; merge when it has, and was stopped"):
        merge_shards(tmp_path / "new", [folder], print)
    other = shard(two, "1/2", number=2, model=Path(two.model.gguf))
    with pytest.raises(UserError, match=rf"sampled from another model than {made}, from which the run samples round 2"):
        merge_shards(tmp_path / "run", [other], print)


def test_after_a_round_that_was_worse_shards_are_those_of_the_model_that_it_goes_back_to(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("genius_lite.pipeline.history.select_checkpoint", lambda *_: Decision(0, 0))
    two, own = recipe.model_copy(update={"rounds": 2}), Path(recipe.model.gguf)
    run(two)
    last = shard(two, "1/2", number=2, model=tmp_path / "run" / "round-1" / "policy.gguf")
    with pytest.raises(UserError, match="sampled from another model than the model's own file"):
        merge_shards(tmp_path / "run", [last], print)
    shutil.rmtree(last)
    assert merge_shards(tmp_path / "run", [shard(two, "1/2", number=2, model=own)], print) == 7


def test_shards_are_not_taken_for_a_round_that_samples_with_the_adapter(recipe, tmp_path):
    two = recipe.model_copy(update={"rounds": 2})
    folder = shard(two, "1/2", number=2, model=Path(recipe.model.gguf))
    with open_run(two) as session:
        adapter = Policy(session.own.gguf, tmp_path / "adapter", tmp_path / "adapter.gguf")
        session.round(2).note_origin(adapter)
    with pytest.raises(UserError, match="samples round 2 with an adapter at run time, which shards cannot"):
        merge_shards(tmp_path / "run", [folder], print)


def test_shards_of_each_round_have_folders_of_their_own_beside_the_runs(recipe, tmp_path):
    two = recipe.model_copy(update={"rounds": 2, "out": f"{recipe.out}/"})
    model = Path(recipe.model.gguf)
    made = [shard(two, "1/2"), shard(two, "1/2", number=2, model=model), shard(two, "1/2", number=2, model=model)]
    names = ["run-shard-1-of-2", *["run-round-2-shard-1-of-2"] * 2]
    assert made == [tmp_path / name for name in names], "the run's own folder stays as it is"


def test_what_does_not_belong_together_is_not_merged(recipe, tmp_path):
    mine = shard(recipe, "1/2")
    other = recipe.model_copy(update={"seed": 5, "out": str(tmp_path / "other")})
    theirs = shard(other, "2/2")
    with pytest.raises(UserError, match="different recipes, models or rounds; nothing was merged"):
        merge_shards(tmp_path / "merged", [mine, theirs], print)
    assert not (tmp_path / "merged").exists()
    run(other)
    with pytest.raises(UserError, match="was made by another recipe \\(seed: 5 there, 0 here\\)"):
        merge_shards(tmp_path / "other", [mine], print)
    with pytest.raises(UserError, match="is no shard"):
        merge_shards(tmp_path / "merged", [tmp_path / "other"], print)


def test_what_is_held_out_is_in_no_shard(recipe):
    learner = recipe.learner.model_copy(update={"holdout": 0.3})
    held = recipe.model_copy(update={"learner": learner, "evaluate": Evaluate(queries=4)})
    first, second = (rollouts(shard(held, text)).keys() for text in ("1/2", "2/2"))
    assert (len(first), len(second), len(prepare(held).held_out)) == (3, 2, 2)
    assert first | second == {query.id for query in prepare(held).searched(1)}


def test_a_shard_of_a_round_of_few_questions_is_part_of_these(recipe):
    few = recipe.model_copy(update={"round_queries": 3})
    first, second = (rollouts(shard(few, text)).keys() for text in ("1/2", "2/2"))
    assert (len(first), len(second)) == (2, 1)
    assert first | second == {query.id for query in prepare(few).searched(1)}


def test_an_interrupted_shard_goes_on(recipe):
    with pytest.raises(Stopped):
        shard(recipe, "1/2", Stop(asked=True))
    assert len(rollouts(shard(recipe, "1/2"))) == 4


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/2/3"])
def test_parts_that_are_none(recipe, text):
    with pytest.raises(UserError, match="write I/N"):
        shard(recipe, text)


def test_more_parts_than_queries(recipe):
    with pytest.raises(UserError, match="shard 9/9 is empty: 7 queries are searched"):
        shard(recipe, "9/9")


def test_a_shard_is_only_read(recipe, tmp_path):
    mine = shard(recipe, "1/2")
    log = mine / "round-1" / "rollouts.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"query": {"id": "half')  # as one that is still sampled has it
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in mine.rglob("*")}
    mine.chmod(0o500)
    try:
        assert merge_shards(tmp_path / "merged", [mine], print) == 4
    finally:
        mine.chmod(0o700)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in mine.rglob("*")} == before


def test_a_shard_that_was_stopped_before_its_round_began_has_nothing(recipe, tmp_path):
    first, second = shard(recipe, "1/2"), shard(recipe, "2/2")
    shutil.rmtree(second / "round-1")
    said: list[str] = []
    assert merge_shards(tmp_path / "merged", [first, second], said.append) == 4
    assert said[1] == f"{second}: 0 queries of round 1 are new"


def test_records_that_cannot_be_are_named_and_nothing_is_merged(recipe, tmp_path):
    first, second = shard(recipe, "1/2"), shard(recipe, "2/2")
    log = second / "round-1" / "rollouts.jsonl"
    lines = log.read_text().splitlines()
    sound = json.loads(lines[1])
    sound["steps"][0]["kept"] = [99]
    log.write_text("\n".join([lines[0], json.dumps(sound), *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"rollouts\.jsonl:2: step 0: it keeps one of 2 candidates that is not there"):
        merge_shards(tmp_path / "merged", [first, second], print)
    assert not (tmp_path / "merged").exists()
    sound["steps"][0]["kept"] = [0]
    sound["query"]["tokens"] = [1, 2]
    log.write_text("\n".join([lines[0], json.dumps(sound), *lines[2:]]) + "\n")
    merge_shards(tmp_path / "run", [first, second], print)
    with pytest.raises(UserError, match=r"query \w+ is asked otherwise; it was not sampled here"):
        run(recipe)


def test_a_query_that_one_machine_did_not_survive_is_taken_from_another(recipe, tmp_path):
    """Whichever shard is named first; and a line about a query that is none of the run's is no reason to leave it."""
    first, second = shard(recipe, "1/2"), shard(recipe, "2/2")
    there = rollouts(second)
    lost, kept = [*there][:2]
    log = second / "round-1" / "rollouts.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if lost not in line[:60]))
    failed = first / "round-1" / "failed.jsonl"
    failed.write_text("".join(json.dumps({"query_id": q, "reason": "killed"}) + "\n" for q in (lost, kept)))
    said: list[str] = []
    assert merge_shards(tmp_path / "run", [first, second], said.append) == 7
    assert [line.rpartition(": ")[2] for line in said] == [
        "5 queries of round 1 are new",
        "2 queries of round 1 are new",
    ]
    assert rollouts(tmp_path / "run")[kept] == there[kept]
    progress, told = TerminalProgress(Console(quiet=True)), []
    progress.say = told.append
    sampled = recipe.model_copy(update={"rounds": 1})
    run(sampled, progress)
    assert [line for line in told if "1 of 7 queries were set aside before; " in line]
    assert lost not in rollouts(tmp_path / "run")


def test_a_failed_query_that_is_none_of_the_runs_is_a_line(recipe, tmp_path):
    mine = shard(recipe, "1/2")
    (mine / "round-1" / "failed.jsonl").write_text(
        '{"query_id": "\x1b[2J", "reason": "x"}\n'.replace("\x1b", "\\u001b")
    )
    merge_shards(tmp_path / "run", [mine], print)
    with pytest.raises(UserError, match=r"failed\.jsonl:1: query .* is not this run's: delete the line"):
        run(recipe)


def test_a_file_that_goes_while_a_folder_is_looked_through_is_no_stranger(tmp_path, monkeypatch):
    """A run that goes on replaces its files at any time."""
    monkeypatch.setattr(os, "walk", lambda run: [(str(run), [], ["progress.json.partial"])])
    refuse_links(tmp_path)


@pytest.mark.parametrize("name", ["lock", "round-1", "round-1/rollouts.jsonl", "recipe.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_leads_out_of_a_shard_or_never_ends(recipe, tmp_path, name, kind):
    mine, elsewhere = shard(recipe, "1/2"), tmp_path / "elsewhere"
    (mine / name).rename(elsewhere)
    os.mkfifo(mine / name) if kind == "pipe" else (mine / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name} is {'neither file nor folder' if kind == 'pipe' else 'a link'}"):
        merge_shards(tmp_path / "merged", [mine], print)
    assert not (tmp_path / "merged").exists()
