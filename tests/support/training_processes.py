"""Trainings that several processes are started for: `python -m tests.support.training_processes PLAN.json`.

The trainings of the plan are done one after the other; the first process leads, the others follow. What may go wrong in
the second process alone is in the plan too: at the update number `dies_at` it is killed, and with `memory` a pack of
more tokens does not fit there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
import typer

from genius_lite.cli.interrupts import main_process
from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.learner import train as train_module
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup
from genius_lite.learner.train import Training, train_adapter
from genius_lite.learner.worker_loop import with_workers
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.results.rounds import TrainReport
from genius_lite.rundir.folder import RunDir


def _pair(query: int, step: int) -> PreferencePair:
    chosen = [20 + query + step, 21, 22 + step, *range(30, 30 + 3 * query)]
    rejected = [40 + step, 41, *range(50 + step, 52 + 2 * step)]
    return PreferencePair(
        f"q{query}", step, [10 + query, 11, 12], chosen, rejected, 0.1 * step, -0.1, -0.5, -0.6, True, True
    )


# Of very different size, and some alone in their query.
PAIRS = [_pair(query, step) for query, steps in enumerate([1, 4, 2, 3, 1, 5]) for step in range(steps)]
SETTINGS = {"lr": 1e-2, "batch_pairs": 4, "rank": 4, "lora_alpha": 8, "save_every": 0, "schedule": "cosine"}


def train(
    hf_checkpoint: Path,
    out: Path,
    options: dict[str, Any],
    stop_at: int | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> TrainReport | None:
    """Train or go on, in fp32 unless the options say otherwise; None if stopped after the update number `stop_at`."""
    work, stop = out.with_name(f"{out.name}-work"), Stop()
    work.mkdir(exist_ok=True)
    cfg = Learner(**SETTINGS | options)
    precision = "fp32" if cfg.precision == "auto" else cfg.precision
    job = Training(hf_checkpoint, None, PAIRS, [], cfg, "cpu", precision, (0, 1), RunDir(work))

    def updated(number: int, row: dict[str, float]) -> None:
        stop.asked = number == stop_at

    with suppress(Stopped), with_workers(group, job):
        return train_adapter(job, out, updated=updated, stop=stop, group=group)
    return None


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    if os.environ["RANK"] == "1":
        _spoil(plan)
    try:
        with main_process() as group:
            for number, training in enumerate(plan["trainings"]):
                print(f"training {number}", flush=True)
                report = train(
                    Path(plan["hf-checkpoint"]), Path(training["out"]), training["options"], training["stop"], group
                )
                Path(f"{training['out']}.json").write_text(json.dumps(report and msgspec.to_builtins(report)))
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


def _spoil(plan: dict[str, Any]) -> None:
    update, logps = train_module._Trainer._update, train_module.response_logps

    def dies(self, number, batch):
        if number == plan.get("dies_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, number, batch)

    def short_of_memory(policy, inputs):
        if inputs.tokens_BT.size > plan.get("memory", 1e9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return logps(policy, inputs)

    train_module._Trainer._update = dies
    train_module.response_logps = short_of_memory


if __name__ == "__main__":
    main()
