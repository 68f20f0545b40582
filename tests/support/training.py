"""A small training of a few pairs; `python -m tests.support.training HF-CHECKPOINT OUT` is one of two epochs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from genius_lite.hardware.device import Device, Precision
from genius_lite.learner.train import Training, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.folder import RunDir

PAIRS = [
    PreferencePair(f"q{q}", step, [10 + q, 11], [20 + step, 21, 22], [30, 31 + step], 0.0, -0.1, -0.5, -0.6, True, True)
    for q in range(3)
    for step in range(2)
]


SMALL = {"lr": 1e-2, "batch_pairs": 2, "rank": 4, "lora_alpha": 8, "save_every": 0}


class Unadapted:
    """What `response_logps` needs of a peft model."""

    def __init__(self, model):
        self.model = model

    def get_base_model(self):
        return self.model


def train_tiny(
    tiny,
    out,
    start=None,
    *,
    seed=0,
    device: Device = "cpu",
    precision: Precision = "fp32",
    pairs=PAIRS,
    samples=(),
    say=lambda line: None,
    updated=lambda number, row: None,
    stop=None,
    **options,
):
    work = out.with_name(f"{out.name}-work")
    work.mkdir(exist_ok=True)
    cfg = Learner(**SMALL | options)
    job = Training(tiny.hf_checkpoint, start, pairs, list(samples), cfg, device, precision, (seed, 1), RunDir(work))
    return train_adapter(job, out, say=say, updated=updated, stop=stop)


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


if __name__ == "__main__":
    train_tiny(SimpleNamespace(hf_checkpoint=Path(sys.argv[1])), Path(sys.argv[2]), epochs=2)
