from __future__ import annotations

import pytest
import torch

from genius_lite.errors import Stop, Stopped
from genius_lite.learner import train as train_module
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
def test_asked_before_the_first_update_it_keeps_the_reference(tiny, tmp_path):
    job = _job(tiny, tmp_path / "work")
    assert passes(job) == (36, 0)
    with pytest.raises(Stopped):
        train_adapter(job, tmp_path / "out", stop=Stop(asked=True))
    assert passes(job) == (36, 6)
