"""The GGUF of a round: what is evaluated is what is exported, beside a base that went through the same rounding."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate.measure import EvalModel, answer_tasks
from genius_lite.export.bundle import RunRound, export
from genius_lite.foresight.pairs import draw_pairs
from genius_lite.pipeline.job import Job, prepare
from genius_lite.pipeline.stages import pair
from genius_lite.recipe import (
    CheckOptions,
    Evaluate,
    Foresight,
    Limit,
    Pairs,
    Quantize,
    TaskSource,
)
from genius_lite.records import Candidate, Completion, PreferencePair, Rollout, Step, query_id
from genius_lite.report.status import look, read_state
from genius_lite.results.evaluation import Response
from genius_lite.run import open_run, run
from genius_lite.rundir.lines import read_records
from genius_lite.rundir.reader import RunFolder
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import sha256
from tests.conftest import FORKED_HELPERS
from tests.support.finished import UNGUARDED, Done, Q, done, far_from_sampled
from tests.support.models import ANY_PAIRS

pytestmark = FORKED_HELPERS


def answers(model: Path, job: Job, log: Path) -> list[Response]:
    """What a file answers to the recipe's task, asked apart from any run."""
    recipe = job.recipe
    settings = EngineSettings(slots=1, context=job.context, threads=1)
    cfg = recipe.evaluate
    way = (recipe.answer_tokens, recipe.seed, cfg.samples, job.temperature, cfg.greedy)
    found = answer_tasks(EvalModel(model, settings, *way, log), job.tasks)
    return [response for one in found for response in one.responses]


def exported(run: Path, number: int | None, out: Path) -> Path:
    export(run, number, "gguf", [], out)
    (file,) = out.glob("*.gguf")
    return file


@pytest.mark.parametrize(
    ("kind", "policy"),
    [("source", "merge"), ("source", "adapter"), ("Q8_0", "merge"), ("Q8_0", "adapter"), ("F16", "merge")],
)
def test_the_file_that_was_evaluated_is_the_one_that_is_exported(tmp_path, kind, policy):
    made = done(tmp_path, Quantize(type=kind, check="never"), policy=policy)
    job = prepare(made.recipe)
    assert (made.round(1) / "adapter.gguf").exists() == (policy == "adapter")
    for number in (1, 2):
        file = exported(made.folder, number, tmp_path / f"exported-{number}")
        digest = sha256([file])
        assert digest == sha256([made.round(number) / "policy.gguf"]) == made.quantized(number)["sha256"]
        assert f"{digest}  {file.name}" in (file.parent / "SHA256SUMS").read_text()
        assert answers(file, job, tmp_path / "log") == RunFolder(made.folder).round(number).responses
    board = read_state(made.folder)
    assert board and board.values.count, "what the last round's search showed stays on the board"
    best = RunRound.of(made.folder, None)
    (own,) = (made.folder / "export").glob("*.gguf")
    assert sha256([own]) == sha256([best.gguf])

    # What rounds are told against: the base in their types, which is the user's own file where these are the same.
    source, base = tmp_path / "tiny.gguf", RunRound.of(made.folder, 0).gguf
    assert base == (made.folder / "rounded" / "base.gguf" if kind == "Q8_0" else source)
    assert RunFolder(made.folder).base.path == made.folder / ("rounded" if kind == "Q8_0" else "round-0")
    assert (made.folder / "rounded").exists() == (kind == "Q8_0")
    assert sha256([exported(made.folder, 0, tmp_path / "base")]) == sha256([base])
    assert answers(base, job, tmp_path / "log") == RunFolder(made.folder).round(0).responses
    first = read_records(made.folder / "round-0" / "evaluation" / "responses.jsonl", Response)
    assert answers(source, job, tmp_path / "log") == first
    if kind == "Q8_0":
        assert first != RunFolder(made.folder).round(0).responses, "rounding must be seen in these answers"


def test_held_out_queries_are_watched_and_nothing_else(tmp_path):
    made = done(tmp_path, Quantize(), holdout=0.25, rounds=1, evaluate=Evaluate(queries=2, query_samples=2))
    job = prepare(made.recipe)
    assert len(job.held_out) == 2, "a quarter of twelve, but no more than are watched"
    assert {query.id for query in job.watched} == job.held_out
    rollouts = read_records(made.round(1) / "rollouts.jsonl", Rollout)
    assert {r.query.id for r in rollouts} == {query.id for query in job.queries} - job.held_out
    pairs = read_records(made.round(1) / "pairs.jsonl", PreferencePair)
    assert len(rollouts) == 10
    assert pairs
    assert not job.held_out & {pair.query_id for pair in pairs}
    for base in ("round-0", "round-1"):
        signals = json.loads((made.folder / base / "evaluation" / "signals.json").read_text())
        assert signals["responses"] == 2 * 2


def test_small_rounds_answer_the_next_questions_and_need_no_search(tmp_path):
    made = done(
        tmp_path,
        Quantize(),
        round_queries=8,
        foresight=Foresight(beams=2, candidates=2, steps=0, max_tokens=12, temperature=1.5),
    )
    job = prepare(made.recipe)
    rounds = [read_records(made.round(number) / "rollouts.jsonl", Rollout) for number in (1, 2)]
    asked = [{rollout.query.id for rollout in of_round} for of_round in rounds]
    assert asked == [{query.id for query in job.searched(number)} for number in (1, 2)]
    assert (len(asked[0] & asked[1]), len(asked[0] | asked[1])) == (4, 12), "after the last the first again"
    assert {len(step.candidates) for rollout in rounds[0] for step in rollout.steps} == {4}
    assert len(read_records(made.round(2) / "pairs.jsonl", PreferencePair)) == 8
    assert "answers (without the method's search" in (made.folder / "export" / "README.md").read_text()


def test_a_later_round_without_a_pair_ends_the_run_with_what_was_made_before(tmp_path, monkeypatch):
    def draw(rollouts, cfg, tau, key, *rest):
        return draw_pairs(rollouts if key[1] == 1 else [], cfg, tau, key, *rest)

    monkeypatch.setattr("genius_lite.pipeline.stages.draw_pairs", draw)
    made = done(tmp_path, Quantize(), rounds=3, round_queries=4)
    (stopped,) = [line for line in made.said if line.startswith("stopped: ")]
    assert stopped.startswith("stopped: round 2: no pair to learn from")
    summary = run(made.recipe)  # the same again finds nothing to do
    assert (f"stopped: {summary.stopped}", len(summary.rounds)) == (stopped, 1)
    assert Path(summary.exported).is_file()
    found = look(made.folder)
    assert (found.state, found.board.number, found.board.kind) == ("finished", 1, "export"), "no second round was made"


@pytest.mark.parametrize(("least", "rounds"), [(2, 3), (3, 1)])
def test_a_later_round_of_too_few_pairs_ends_the_run_with_what_was_made_before(tmp_path, monkeypatch, least, rounds):
    def draw(rollouts, cfg, tau, key, *rest):
        return islice(draw_pairs(rollouts, cfg, tau, key, *rest), 1 if key[1] == 1 else 2)

    monkeypatch.setattr("genius_lite.pipeline.stages.draw_pairs", draw)
    made = done(tmp_path, Quantize(), rounds=3, round_queries=4, pairs=ANY_PAIRS.model_copy(update={"at_least": least}))
    summary = run(made.recipe)
    assert [report.pairs for report in summary.rounds] == [1, 2, 2][:rounds], (
        "the first round is learned from in any case"
    )
    told = f"round 2: 2 pairs to learn from, fewer than pairs.at_least ({least})"
    assert summary.stopped == (None if rounds == 3 else told)
    assert Path(summary.exported).is_file()


def test_a_run_that_was_over_and_goes_on_comes_to_something_else(tmp_path, monkeypatch):
    """`pairs.at_least` may be lowered; what the run had come to stayed."""

    def draw(rollouts, cfg, tau, key, *rest):
        return islice(draw_pairs(rollouts, cfg, tau, key, *rest), 2)

    monkeypatch.setattr("genius_lite.pipeline.stages.draw_pairs", draw)
    pairs = ANY_PAIRS.model_copy(update={"at_least": 3})
    made = done(tmp_path, Quantize(), rounds=2, round_queries=4, pairs=pairs)
    first = RunFolder(made.folder).summary
    assert first and first.stopped
    summary = run(made.recipe.model_copy(update={"pairs": ANY_PAIRS}))
    assert (len(summary.rounds), summary.stopped) == (2, None)
    folder = RunFolder(made.folder)
    assert folder.summary == summary
    assert folder.best == summary.best
    assert summary.best == 2
    assert sha256([Path(summary.exported)]) == sha256([made.round(2) / "policy.gguf"])
    before = (made.folder / "export").stat().st_mtime_ns
    assert run(made.recipe.model_copy(update={"pairs": ANY_PAIRS})) == summary
    assert (made.folder / "export").stat().st_mtime_ns == before, "and nothing is made again"


def test_a_run_chooses_its_precision_once(tmp_path, monkeypatch):
    """Whatever memory is free when a later round begins: it was chosen anew."""
    free = iter(["fp32", "bf16"])
    monkeypatch.setattr("genius_lite.pipeline.stages.learner_precision", lambda *_: next(free))
    made = done(tmp_path, Quantize(), round_queries=4)
    trained = [RunFolder(made.folder).round(number).training for number in (1, 2)]
    assert [found and found.precision for found in trained] == ["fp32", "fp32"]


def test_a_later_round_whose_candidates_all_agree_ends_the_run_with_a_report(tmp_path, monkeypatch):
    from genius_lite.foresight import search

    # All steps of round 2 agree, those of round 1 do not.
    monkeypatch.setattr(search, "_agree", lambda nodes, cfg: nodes[0].key[1] == 2)
    cfg = Foresight(beams=1, candidates=3, steps=1, max_tokens=12, temperature=1.5, skip_agreeing=0.9)
    made = done(tmp_path, Quantize(), rounds=2, round_queries=4, foresight=cfg)
    (stopped,) = [line for line in made.said if line.startswith("stopped: ")]
    assert stopped.startswith("stopped: round 2: no pair to learn from: every step's candidates agree")
    assert "raise foresight.skip_agreeing" in stopped
    figures = RunFolder(made.folder).round(2).made().rollouts
    assert figures
    assert (figures.candidates, figures.mean_value, figures.ended_share) == (0, None, None)
    assert figures.skipped_steps == 4
    assert (made.folder / "report.html").is_file()


def test_a_first_round_without_a_pair_says_how_to_go_on_with_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("genius_lite.pipeline.stages.draw_pairs", lambda *_: iter(()))
    with pytest.raises(UserError, match=r"no pair to learn from.*another `out`; --reuse .*run takes there") as e:
        done(tmp_path, Quantize(), rounds=1)
    assert look(tmp_path / "run").meaning == str(e.value)


def test_questions_with_numbers_for_answers_vote_by_the_numbers_that_they_come_to(tmp_path):
    made = done(tmp_path, Quantize(), rounds=1)
    said = [
        "So Leo has 22 books now.",
        "That is 15 + 7 = 22 in all, I think.",
        "He has 25 books, if not more.",
    ]
    for kind, pairs in (("stated", 0), ("numeric", 1)):
        queries = made.recipe.queries.model_copy(update={"answers": kind, "limit": 1})
        choose = Pairs(choose="agreed", weigh="votes", looping="keep")
        recipe = made.recipe.model_copy(update={"out": str(tmp_path / kind), "queries": queries, "pairs": choose})
        with open_run(recipe) as session, Vocabulary.open(session.job.source.path) as vocabulary:
            (query,) = session.job.queries
            responses = [vocabulary.encode(text, special=False) for text in said]
            candidates = [Candidate(0, Completion(r, [-0.1] * len(r), "end"), None, -0.1, -0.1) for r in responses]
            rollout = Rollout(query, [Step(0, candidates, [])])
            if not pairs:
                with pytest.raises(UserError, match=r"none of 1 vote had a winner and a rarer answer;"):
                    pair(session.round(1), [rollout])
                continue
            (only,) = pair(session.round(1), [rollout])
            assert only.rejected_tokens == responses[2]
            assert only.lead == pytest.approx(1 / 3)


def test_from_full_precision_weights_nothing_is_gained_where_nothing_was_learned(tmp_path):
    """The user's file was rounded without an importance matrix: that rounds do it better is no gain of theirs."""
    tasks = [TaskSource(source=str(tmp_path / "problems.jsonl"))]
    watched = Evaluate(tasks=tasks, samples=1, queries=2, query_samples=2)
    made = done(tmp_path, Quantize(keep=0.0), kind=Q.Q4_0, full=True, lr=1e-12, holdout=0.1, rounds=1, evaluate=watched)
    assert RunFolder(made.folder).round(1).responses == RunFolder(made.folder).round(0).responses
    (task,) = json.loads((made.round(1) / "report.json").read_text())["evaluation"]
    assert (task["sampled_gain"]["estimate"], task["greedy_gain"]["estimate"]) == (0, 0)
    assert json.loads((made.round(1) / "evaluation" / "signals.json").read_text())["kl"] < 1e-6
    own, base, policy = (
        gguf_file.read(path)
        for path in (tmp_path / "tiny.gguf", made.folder / "rounded" / "base.gguf", made.round(1) / "policy.gguf")
    )
    assert types(own) == types(base) == types(policy)
    assert weights(base) == weights(policy) != weights(own)


def types(model: gguf_file.GGUF) -> dict[str, Q]:
    return {tensor.name: tensor.type for tensor in model.tensors}


def weights(model: gguf_file.GGUF) -> dict[str, bytes]:
    return {tensor.name: np.asarray(model.raw(tensor)).tobytes() for tensor in model.tensors}


def test_a_type_that_loses_too_much_is_not_built_upon_and_the_round_gets_one_that_keeps_it(tmp_path):
    """Updates so large that they leave the base's grid, which a floating-point type does not have."""
    made = done(tmp_path, Quantize(type="Q4_0", check="never"), lr=0.2, evaluate=Evaluate(queries=0))
    first, last = made.quantized(1), made.quantized(2)
    assert (first["type"], first["keeps"], first["widened"]) == ("F16", True, True)
    lost = [line for line in made.said if line.startswith("warning: Q4_0 keeps ")]
    assert len(lost) == 2 and float(lost[0].split()[3].rstrip("%")) < 80
    assert "round 2 samples with the adapter at run time, as Q4_0 loses too much" in made.said

    adapted = EngineSettings(slots=1, context=256, threads=1, lora=str(made.round(1) / "adapter.gguf"))
    plain = EngineSettings(slots=1, context=256, threads=1)
    base = made.folder / "rounded" / "base.gguf"
    sampled = read_records(made.round(2) / "rollouts.jsonl", Rollout)[:3]
    assert far_from_sampled(sampled, base, adapted, tmp_path / "log") < 0.02
    assert far_from_sampled(sampled, base, plain, tmp_path / "log") > 0.2

    assert (last["type"], last["keeps"], last["kept"]) == ("F16", True, pytest.approx(1, abs=0.01))
    warned = [line.split()[1] for line in made.said if line.startswith("warning:")]
    assert warned == ["Q4_0", "Q8_0"] * 2, "what each round tried before"
    assert not (made.round(2) / "adapter.gguf").exists()
    (own,) = (made.folder / "export").glob("*.gguf")
    assert own.name == "tiny.genius-F16.gguf"
    assert sha256([own]) == last["sha256"]
    assert set(types(gguf_file.read(own)).values()) == {Q.F16, Q.F32}


def test_an_update_too_small_for_any_file_is_no_loss(tmp_path):
    made = done(tmp_path, Quantize(type="Q8_0", check="never"), lr=1e-12, rounds=1, evaluate=Evaluate(queries=0))
    assert (made.quantized(1)["type"], made.quantized(1)["keeps"]) == ("Q8_0", True)
    assert "Q8_0: the update is so small that hardly a weight moves" in made.said


def test_a_type_that_loses_is_not_tried_twice(tmp_path):
    made = done(
        tmp_path, Quantize(type="Q8_0", keep=1.0, check="first"), lr=0.2, evaluate=Evaluate(queries=0), rounds=1
    )
    assert [line.split()[1] for line in made.said if re.match(r"warning: \w+ keeps ", line)] == ["Q8_0"]
    found = made.quantized(1)
    assert (found["type"], found["keeps"], found["widened"]) == ("F16", True, True)
    assert found.get("scored") is None, "its base is not in that type: no share of what was learned could be told"


def test_the_guard_sets_a_round_beside_the_base_model_and_beside_the_first_round(tmp_path):
    low, high = Limit(warn=-1e9), Limit(warn=1e9)
    watched = {"entropy": high, "longer": low, "value": low, "spread": high}
    made = done(
        tmp_path,
        Quantize(check="never"),
        guard=UNGUARDED.model_copy(update=watched),
        holdout=0.25,
        lr=3e-2,
        evaluate=Evaluate(queries=2, query_samples=2),
    )
    folder = RunFolder(made.folder)
    base, (first, second) = folder.base.signals, folder.reports
    assert base and first.metrics and second.metrics
    for report in (first, second):
        told, seen = {alarm.signal: alarm.value for alarm in report.alarms}, folder.round(report.round).signals
        assert report.metrics.signals == seen
        assert told["entropy"] == pytest.approx(seen.entropy / base.entropy)
        assert told["longer"] == pytest.approx(seen.length / base.length)
    assert seen.entropy != pytest.approx(base.entropy, rel=1e-3), "or this shows nothing"
    assert told["value"] == pytest.approx(first.metrics.value - second.metrics.value) and told["value"] != 0
    assert told["spread"] == pytest.approx(second.metrics.spread / first.metrics.spread)


@pytest.mark.parametrize("kind", ["source", "Q8_0"])
def test_llama_cpp_finds_in_each_file_what_the_adapter_brings(tmp_path, kind):
    made = done(tmp_path, Quantize(type=kind, check="each"), evaluate=Evaluate(queries=0))
    for number in (1, 2):
        scored = made.quantized(number)["scored"]
        assert scored["questions"] == 4
        assert scored["learned"] > 0.1, "or this shows nothing"
        assert scored["kept"] == pytest.approx(1, abs=0.2)
        assert not (made.round(number) / "adapter.gguf.partial").exists()


def test_by_default_only_the_first_file_is_checked(tmp_path):
    made = done(tmp_path, Quantize(), evaluate=Evaluate(queries=0))
    assert [made.quantized(number)["scored"] is None for number in (1, 2)] == [False, True]


def test_where_rounds_have_other_types_both_bases_are_told(tmp_path):
    """A file of fewer bits may be worse than the user's own, whatever was learned."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "Say 1.", "answer": "1"}) + "\n")
    task = TaskSource(source=str(tmp_path / "t.jsonl"), check="exact", use="both")
    asked = Evaluate(tasks=[task], samples=1, sweep=[], queries=0)
    made = done(tmp_path, Quantize(type="Q4_0", check="never"), evaluate=asked, rounds=1)
    (report,) = RunFolder(made.folder).reports
    assert {task: [*gains] for task, gains in report.to_own.items()} == {"t": ["sampled", "greedy", "mean of both"]}
    assert [line for line in made.said if line.startswith("base model in the rounds' types: t: sampled ")]
    assert [line for line in made.said if line.startswith("round 1: t: beside your own file sampled +0.0 [")]


def test_a_round_that_forgets_what_the_base_model_knew_is_neither_exported_nor_built_upon(tmp_path):
    """Right is the first letter or digit that the base model itself says."""

    def ask(name: str, right: dict[str, str], lr: float) -> Done:
        (folder := tmp_path / name).mkdir()
        rows = (json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in right.items())
        (folder / "asked.jsonl").write_text("".join(rows))
        first = CheckOptions(pattern="^[^A-Za-z0-9]*([A-Za-z0-9])")
        task = TaskSource(source=str(folder / "asked.jsonl"), check="regex", options=first, use="both")
        greedily = Evaluate(tasks=[task], samples=0, sweep=[], queries=0)
        return done(folder, Quantize(check="never", keep=0.0), lr=lr, evaluate=greedily)

    prompts = {query_id(f"Say {n}."): f"Say {n}." for n in range(60)}
    still = ask("still", dict.fromkeys(prompts.values(), "0"), lr=1e-12)
    knows = {prompts[r.problem]: r.answer for r in RunFolder(still.folder).own.responses if r.answer}
    assert len(knows) > 20, "or this shows nothing"
    made = ask("ruined", knows, lr=0.2)
    folder, source = RunFolder(made.folder), tmp_path / "ruined" / "tiny.gguf"
    assert folder.reports[0].base_score == 1.0 and folder.reports[0].score < 0.5
    assert folder.best == 0
    origin = json.loads((made.round(2) / "origin.json").read_text())
    assert origin["model"] == sha256([source]), "round 2 samples from the base model again"
    (own,) = (made.folder / "export").glob("*.gguf")
    assert sha256([own]) == sha256([source])
