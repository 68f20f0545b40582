from __future__ import annotations

import importlib.util
import json
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genius_lite.errors import UserError
from genius_lite.evaluate.record import Evaluation
from genius_lite.pipeline.job import prepare
from genius_lite.recipe import Model, Queries, Recipe, Sampler, Tracking
from genius_lite.recipe.reader import parse
from genius_lite.report.terminal import TerminalProgress
from genius_lite.report.tracking import Tracker, require_trackers
from genius_lite.results.rounds import RoundReport
from genius_lite.run import run
from tests.conftest import FORKED_HELPERS
from tests.support.reports import REPORT, TRAINING

pytestmark = FORKED_HELPERS

BASE = {"model": Model(gguf="m.gguf"), "queries": Queries(source="q.txt")}


def _recipe(out: Path, **options) -> Recipe:
    return Recipe(**{**BASE, "out": str(out), "tracking": Tracking(trackers=["tensorboard"]), **options})


def _told(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), of all event files, in the order in which they were written."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((folder / "tracking" / "genius-lite").glob("events.*"), key=lambda f: f.stat().st_mtime_ns):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


def _report(number: int, updates: int) -> RoundReport:
    curve = [{"loss": 0.7 - update / 10, "lr": 1e-3} for update in range(updates)]
    training = replace(TRAINING, curve=curve, updates=updates, logprob_mismatch=None)
    return replace(REPORT, round=number, training=training, quantized=replace(REPORT.quantized, kept=0.97))


def test_interrupted_between_updates_it_repeats_no_step(tmp_path):
    first, second = _report(1, 3), _report(2, 2)
    rows = first.training.curve if first.training else []
    with closing(Tracker(_recipe(tmp_path), tmp_path)) as tracker:
        tracker.base(Evaluation([], None, {}))
        tracker.update(0, rows[0])
        tracker.update(1, rows[1])
    with closing(Tracker(_recipe(tmp_path), tmp_path)) as tracker:  # goes on from a state after one update
        tracker.base(Evaluation([], None, {}))
        for number, row in enumerate(rows):
            tracker.update(number, row)
        tracker.round(first)
    with closing(Tracker(_recipe(tmp_path), tmp_path)) as tracker:
        tracker.base(Evaluation([], None, {}))
        tracker.round(first)
        tracker.round(second)
    told = _told(tmp_path)
    assert [step for step, _ in told["train/loss"]] == [1, 2, 3, 4, 5]
    assert [value for _, value in told["train/loss"]] == pytest.approx([0.7, 0.6, 0.5, 0.7, 0.6])
    assert told["round/number"] == [(0, 0), (3, 1), (5, 2)]
    assert told["round/kept"] == [(3, pytest.approx(0.97)), (5, pytest.approx(0.97))]
    assert "round/logprob_mismatch" not in told


def test_a_run_that_is_tracked_only_later_tells_what_it_did_before(tmp_path):
    with closing(Tracker(_recipe(tmp_path, tracking=Tracking()), tmp_path)) as tracker:
        tracker.update(0, {"loss": 1.0})
        tracker.round(_report(1, 3))
    assert list(tmp_path.iterdir()) == []
    with closing(Tracker(_recipe(tmp_path), tmp_path)) as tracker:
        tracker.round(_report(1, 3))
    assert [step for step, _ in _told(tmp_path)["train/lr"]] == [1, 2, 3]


def test_a_real_run_is_in_its_event_files_and_its_recipe_beside_them(tmp_path, tiny_llama):
    (tmp_path / "q.txt").write_text("".join(f"question {n}\n" for n in range(6)))
    (tmp_path / "t.jsonl").write_text('{"prompt": "one", "answer": "one"}\n')
    recipe = parse(
        f"""
        out: {tmp_path / "run"}
        model: {{gguf: {tiny_llama}}}
        queries: {{source: {tmp_path / "q.txt"}}}
        rounds: 1
        foresight: {{beams: 2, candidates: 2, steps: 2, max_tokens: 24, temperature: 1.5}}
        pairs: {{truncated: keep, min_gap: 0}}
        learner: {{rank: 4, lora_alpha: 8, lr: 1e-2, batch_pairs: 2, parity_limit: 5, precision: fp32}}
        evaluate: {{tasks: [{{source: {tmp_path / "t.jsonl"}}}], samples: 1}}
        sampler: {{slots: 8}}
        tracking: {{with: [tensorboard], name: first}}
        """
    )
    summary = run(recipe, TerminalProgress(Console(quiet=True)))
    (report,) = summary.rounds
    told = _told(tmp_path / "run")
    assert report.training and report.rollouts
    curve = report.training.curve
    for name in ("loss", "margin", "lr", "grad_norm"):
        assert [step for step, _ in told[f"train/{name}"]] == list(range(1, len(curve) + 1))
        assert [value for _, value in told[f"train/{name}"]] == pytest.approx([row[name] for row in curve], rel=1e-5)
    last = len(curve)
    assert told["round/margin"] == [(last, pytest.approx(report.training.margin, rel=1e-5))]
    assert told["round/mean_value"] == [(last, pytest.approx(report.rollouts.mean_value, rel=1e-5))]
    assert [step for step, _ in told["tasks/t/sampled"]] == [step for step, _ in told["signals/kl"]] == [0, last]
    (config,) = (tmp_path / "run/tracking/genius-lite").glob("*/hparams.yml")
    assert "foresight.beams: 2" in config.read_text()
    assert str(tmp_path) not in config.read_text(), "what is told others names no place of this machine"
    assert [place for place in Sampler.places() if f"sampler.{place}" in config.read_text()] == []
    before = json.loads((tmp_path / "run/tracking.json").read_text())
    assert run(recipe, TerminalProgress(Console(quiet=True))) == summary
    assert json.loads((tmp_path / "run/tracking.json").read_text()) == before
    assert _told(tmp_path / "run") == told
    # Tracking is no part of what a run is.
    plain = recipe.model_copy(update={"tracking": Tracking()})
    assert run(plain, TerminalProgress(Console(quiet=True))) == summary


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_done(tmp_path, monkeypatch, name):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert name in LOGGER_TYPE_TO_CLASS
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *a: None if wanted == name else real(wanted, *a))
    recipe = _recipe(tmp_path / "run", tracking=Tracking(trackers=[name]))
    with pytest.raises(UserError, match=f"tracking.with: {name} is not installed; pip install {name}"):
        prepare(recipe)
    assert list(tmp_path.iterdir()) == []
    require_trackers(_recipe(tmp_path))


def test_an_unknown_tracker_is_named_with_its_line():
    with pytest.raises(UserError, match=r"r.yaml:4: `tracking.with.0` is tensorbord"):
        parse("model: {gguf: m}\nqueries: {source: q}\ntracking:\n  with: [tensorbord]\n", "r.yaml")
    with pytest.raises(UserError, match="did you mean `project`"):
        parse("model: {gguf: m}\nqueries: {source: q}\ntracking: {projekt: x}\n")


@pytest.mark.parametrize("project", ["../../x", "/tmp/x", "..", "a\\b"])
def test_a_project_does_not_lead_out_of_the_folder(tmp_path, project):
    recipe = _recipe(tmp_path / "run", tracking=Tracking(trackers=["tensorboard"], project=project))
    with pytest.raises(UserError, match=r"tracking\.project: .* is no name of a project"):
        require_trackers(recipe)
    require_trackers(recipe.model_copy(update={"tracking": Tracking(project=project)}))
