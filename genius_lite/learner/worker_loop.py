"""How the main process has the others train along, and what these do meanwhile.

Between two trainings they wait, perhaps for hours. The main process sends each training whole, but for the files
that it names: all processes see the same run folder, under the same path.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from genius_lite.errors import NonFiniteError, Stopped, UserError
from genius_lite.hardware import Device, Precision, give_memory_back, learner_device
from genius_lite.learner.logprob_mismatch import Sample
from genius_lite.learner.process_group import ProcessGroup, ProcessLostError
from genius_lite.learner.train import Training, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.folder import RunDir


class TrainRequest(msgspec.Struct, frozen=True, tag=True):
    """A `Training` for those that train along; `cfg` is JSON as Python writes it, in which infinity is a number."""

    hf_checkpoint: str
    start: str | None
    pairs: list[PreferencePair]
    cfg: str
    device: Device
    precision: Precision
    key: tuple[int | str, ...]
    work: str
    samples: list[Sample]


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """The run is over, and the main process ends with this code."""

    code: int


@contextmanager
def with_workers(group: ProcessGroup, job: Training) -> Iterator[None]:
    """Have the others begin the training that the caller begins in the block.

    After an error inside they are not told; when the main process is gone, they notice.
    """
    if group.size > 1:
        # The main process compares learner and sampler; of a model in parts it cannot make those passes alone.
        samples = job.samples if group.sharded else []
        group.send(msgspec.json.encode(_request(job, samples)))
        group.busy = True
    try:
        yield
    except Stopped:  # on which all agree
        group.busy = False
        raise
    group.busy = False


def shutdown_workers(group: ProcessGroup, code: int) -> None:
    """Let those that wait for work end with this code."""
    if group.size > 1 and not group.busy:
        with suppress(ProcessLostError):
            group.send(msgspec.json.encode(Shutdown(code)))


def run_worker(group: ProcessGroup) -> int:
    """Train along whenever the main process trains, until it ends; returns the code to end with.

    Nothing is written, and nothing said: what goes wrong for all, the main process says.

    Raises:
        UserError: something goes wrong here alone.
    """
    with suppress(ProcessLostError, NonFiniteError):
        while True:
            asked = msgspec.json.decode(group.receive(), type=TrainRequest | Shutdown)
            if isinstance(asked, Shutdown):
                return asked.code
            _train(group, asked)
    return 1


def _train(group: ProcessGroup, request: TrainRequest) -> None:
    from accelerate.utils.memory import clear_device_cache

    job = _training(request)
    with suppress(Stopped):
        train_adapter(job, job.work / "adapter", group=group)
    clear_device_cache(garbage_collection=True)
    give_memory_back()


def _request(job: Training, samples: list[Sample]) -> TrainRequest:
    return TrainRequest(
        hf_checkpoint=str(job.hf_checkpoint.absolute()),
        start=str(job.start.absolute()) if job.start else None,
        pairs=job.pairs,
        cfg=json.dumps(job.cfg.model_dump(mode="json")),
        device=job.device,
        precision=job.precision,
        key=job.key,
        work=str(job.work.path.absolute()),
        samples=samples,
    )


def _training(request: TrainRequest) -> Training:
    if not Path(request.work).exists():
        raise UserError(f"{platform.node()} does not see {request.work}; all machines must, under this path")
    if (device := learner_device()) != request.device:
        raise UserError(
            f"{platform.node()} would train on {device}, the main process does on {request.device}; set "
            "ACCELERATE_USE_CPU=true for all"
        )
    return Training(
        hf_checkpoint=Path(request.hf_checkpoint),
        start=Path(request.start) if request.start else None,
        pairs=request.pairs,
        samples=request.samples,
        cfg=Learner(**json.loads(request.cfg)),
        device=request.device,
        precision=request.precision,
        key=request.key,
        work=RunDir(Path(request.work)),
    )
