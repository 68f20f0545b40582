"""What there is to be filled: memory, disk and GPUs of this machine, as they are now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genius_lite.hardware import (
    Device,
    Gpu,
    compute_in_bf16,
    cores,
    free_memory,
    gpus,
    learner_device,
    learner_free_memory,
    memory_held,
)
from genius_lite.rundir.folder import free_disk


@dataclass(frozen=True)
class Machine:
    """Free bytes, and what decides how they are used.

    `memory` is what a run may take of the main memory: what is free and what this process, which becomes the run, holds
    already. `learner_memory` is that of the learner's device, and equal to it on a CPU. `bf16` says whether that device
    multiplies bf16 natively.
    """

    memory: int
    disk: int
    gpus: list[Gpu]
    device: Device
    learner_memory: int
    bf16: bool
    cores: int

    @property
    def gpu_memory(self) -> int:
        """Free bytes of all GPUs together."""
        return sum(gpu.free for gpu in self.gpus)


def look(folder: Path) -> Machine:
    """This machine, with the disk that `folder` is or will be on."""
    device = learner_device()
    memory = free_memory() + memory_held()[0]
    return Machine(
        memory=memory,
        disk=free_disk(folder),
        gpus=gpus(),
        device=device,
        learner_memory=memory if device == "cpu" else learner_free_memory(device),
        bf16=compute_in_bf16(device),
        cores=cores(),
    )
