from __future__ import annotations

import gc
import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.learner import train as train_module
from genius_lite.learner.state import read_tensors
from genius_lite.learner.train import Training, passes, train_adapter
from genius_lite.recipe import Learner
from genius_lite.rundir.folder import RunDir
from tests.conftest import ONE_ARCHITECTURE
from tests.support.training import PAIRS, SMALL, weights_of


def _job(tiny, work) -> Training:
    work.mkdir(exist_ok=True)
    cfg = Learner(**{**SMALL, "epochs": 2, "schedule": "cosine", "save_every": 1e9})
    return Training(tiny.hf_checkpoint, None, PAIRS, [], cfg, "cpu", "fp32", (0, 1), RunDir(work))


@ONE_ARCHITECTURE
def test_asked_to_stop_it_keeps_the_update_under_way_and_goes_on_bit_identical(tiny, tmp_path, monkeypatch):
    whole = train_adapter(_job(tiny, tmp_path / "whole-work"), tmp_path / "whole")
    update = train_module._Trainer._update
    for last in range(6):
        out, work, stop, rows = tmp_path / f"{last}", tmp_path / f"{last}-work", Stop(), []

        def updated(number, row, last=last, stop=stop, rows=rows):
            rows.append((number, row))
            stop.asked = number == last

        monkeypatch.setattr(train_module._Trainer, "_update", update)
        with pytest.raises(Stopped):
            train_adapter(_job(tiny, work), out, updated=updated, stop=stop)
        assert not (out / "adapter_model.safetensors").exists()
        assert rows == list(enumerate(whole.curve[: last + 1]))

        counted, done, rows[:] = [], [], []
        monkeypatch.setattr(
            train_module._Trainer, "_update", lambda self, n, b, done=done: done.append(n) or update(self, n, b)
        )
        total, before = passes(_job(tiny, work))
        report = train_adapter(_job(tiny, work), out, counted.append, updated=lambda *row, rows=rows: rows.append(row))
        assert done == list(range(last + 1, 6))
        assert report == whole
        assert rows == list(enumerate(whole.curve))
        made = 6 + 2 * 2 * 6 + 6  # the reference, two epochs forward and backward, the margin
        assert (total, before + sum(counted)) == (made, made)
        a, b = weights_of(tmp_path / "whole"), weights_of(out)
        assert all(torch.equal(a[k], b[k]) for k in a)


@ONE_ARCHITECTURE
def test_a_smaller_limit_of_packs_counts_for_what_goes_on(tiny, tmp_path, monkeypatch):
    stop, widths, real = Stop(), [], train_module.response_logps

    def updated(number, row):
        stop.asked = True

    with pytest.raises(Stopped):
        train_adapter(_job(tiny, tmp_path / "work"), tmp_path / "out", updated=updated, stop=stop)

    def noted(policy, inputs):
        widths.append(inputs.tokens_BT.size)
        return real(policy, inputs)

    def goes_on(limit: int) -> int:
        """The largest pack under the recipe's new limit."""
        widths.clear()
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        shutil.copytree(tmp_path / "work", tmp_path / "again")
        job = _job(tiny, tmp_path / "again")
        cfg = job.cfg.model_copy(update={"max_pack_tokens": limit})
        train_adapter(replace(job, cfg=cfg), tmp_path / f"out-{limit}")
        return max(widths)

    monkeypatch.setattr(train_module, "response_logps", noted)
    most = goes_on(2048)
    assert goes_on(8) <= 8 < most
    # What memory was found not to hold stays so, under whichever limit.
    (file,) = (tmp_path / "work").glob("update-*/progress.json")
    state = json.loads(file.read_text())
    assert state["limit"] is None
    file.write_text(json.dumps({**state, "limit": 8}))
    assert goes_on(2048) <= 8


@ONE_ARCHITECTURE
def test_asked_before_the_first_update_it_keeps_the_reference(tiny, tmp_path):
    job = _job(tiny, tmp_path / "work")
    assert passes(job) == (36, 0)
    with pytest.raises(Stopped):
        train_adapter(job, tmp_path / "out", stop=Stop(asked=True))
    assert passes(job) == (36, 6)


def _document(change):
    def write(path):
        document = json.loads(path.read_text())
        path.write_text(json.dumps(change(document) or document))

    return write


def _tensors(change):
    def write(path):
        tensors = load_file(path)
        change(tensors, next(iter(tensors)))
        save_file(tensors, path)

    return write


FOREIGN = {
    "no scores": ("base-scores/logps.npy", lambda path: path.unlink()),
    "scores of another form": ("base-scores/logps.npy", lambda path: path.write_text('[["q0", 0, 1.0]]')),
    "scores that are code": ("base-scores/logps.npy", lambda path: path.write_bytes(b"\x80\x04K\x01.")),
    "scores of other pairs": ("base-scores/logps.npy", lambda path: np.save(path, np.load(path)[1:])),
    "scores beyond numbers": ("base-scores/logps.npy", lambda path: np.save(path, np.load(path) + np.float32(np.inf))),
    "importance of another width": (
        "base-scores/importance.safetensors", _tensors(lambda found, name: found.update({name: torch.ones(3)}))),
    "importance of nothing": ("base-scores/importance.safetensors", _tensors(lambda found, name: found.pop("tokens"))),
    "progress cut off": ("update-000003/progress.json", lambda path: path.write_text('{"curve": [')),
    "no progress": ("update-000003/progress.json", lambda path: path.write_text("[]")),
    "more updates than there are": (
        "update-000003/progress.json", _document(lambda found: found["curve"].extend(found["curve"] * 9))),
    "updates of other pairs": (
        "update-000003/progress.json", _document(lambda found: found["curve"][0].update(pairs=7))),
    "no figures": ("update-000003/progress.json", _document(lambda found: found["curve"][0].pop("loss") and None)),
    "packs of nothing": ("update-000003/progress.json", _document(lambda found: found.update(limit=0))),
    "no tensors": ("update-000003/adapter.safetensors", lambda path: path.write_bytes(b"\x80\x04K\x01.")),
    "an adapter of other names": ("update-000003/adapter.safetensors", _tensors(lambda found, name: found.pop(name))),
    "an adapter of another shape": (
        "update-000003/adapter.safetensors", _tensors(lambda found, name: found.update({name: torch.ones(2, 2)}))),
    "an adapter of no numbers": (
        "update-000003/adapter.safetensors", _tensors(lambda found, name: found[name].fill_(torch.nan))),
    "an optimizer of other parameters": (
        "update-000003/optimizer.safetensors", _tensors(lambda found, _: found.update({"999.step": torch.ones(1)}))),
    "an optimizer of another shape": (
        "update-000003/optimizer.safetensors", _tensors(lambda found, _: found.update({"0.exp_avg": torch.ones(1)}))),
    "a folder for a file": ("update-000003/optimizer.safetensors", lambda path: (path.unlink(), path.mkdir())),
    "a file for a folder": ("update-000003", lambda path: (shutil.rmtree(path), path.write_bytes(b"x"))),
}  # fmt: skip


def test_a_state_that_cannot_be_of_this_training_is_one_line(tiny, tmp_path):
    """It may have been damaged, or put there by somebody. It was read as it stood, and ended in tracebacks."""
    with pytest.raises(Stopped):
        stop = Stop()
        train_adapter(
            _job(tiny, tmp_path / "work"),
            tmp_path / "out",
            updated=lambda number, row: setattr(stop, "asked", number == 2),
            stop=stop,
        )
    for what, (name, change) in FOREIGN.items():
        work = tmp_path / what
        shutil.copytree(tmp_path / "work", work)
        change(work / name)
        told = r"(cannot be gone on from: .*; delete .* to train this round)|other kind|another version"
        with pytest.raises(UserError, match=told):
            train_adapter(_job(tiny, work), tmp_path / "again")
            pytest.fail(f"{what}: it was gone on from")
        with suppress(UserError):  # nothing else may come of it
            passes(_job(tiny, work))
    (tmp_path / "work" / "update-zzz").mkdir()
    train_adapter(_job(tiny, tmp_path / "work"), tmp_path / "again")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_what_goes_on_holds_no_file_of_the_state_it_read(tmp_path):
    """The next state takes the place of this one, which Windows does not delete while it is mapped."""
    moments = {name: torch.ones(10_000) for name in ("exp_avg", "exp_avg_sq")}
    save_file({**moments, "step": torch.tensor(1.0)}, tmp_path / "optimizer.safetensors")
    parameter = torch.nn.Parameter(torch.ones(10_000))
    optimizer = torch.optim.AdamW([parameter])
    state = read_tensors(tmp_path / "optimizer.safetensors")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: state}})
    del state
    gc.collect()
    assert "optimizer.safetensors" not in Path("/proc/self/maps").read_text()
