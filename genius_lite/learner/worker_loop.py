"""How the main process has the others train along, and what these do meanwhile.

Between two trainings they wait, perhaps for hours. The main process sends each training whole, but for the files
that it names, of pairs too: all processes see the same run folder, under the same path.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.errors import NonFiniteError, Stopped, UserError
from genius_lite.hardware.device import learner_device
from genius_lite.hardware.system import give_memory_back
from genius_lite.learner.process_group import ProcessGroup, ProcessLostError
from genius_lite.learner.train import Training, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair, prepared
from genius_lite.rundir.folder import RunDir
from genius_lite.rundir.lines import Lines

_Message = tuple[Training, Path | None] | int
"""A training, with the file of its pairs if they are in one, or the code to end with."""


@contextmanager
def with_workers(group: ProcessGroup, job: Training) -> Iterator[None]:
    """Have the others begin the training that the caller begins in the block.

    After an error inside they are not told; when the main process is gone, they notice.
    """
    if group.size > 1:
        # The main process compares learner and sampler; of a model in parts it cannot make those passes alone.
        sent = job if group.sharded else replace(job, samples=[])
        file = job.pairs.path if isinstance(job.pairs, Lines) and job.pairs.whole else None
        _send(group, (sent if file is None else replace(sent, pairs=[]), file))
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
            _send(group, code)


def run_worker(group: ProcessGroup) -> int:
    """Train along whenever the main process trains, until it ends; returns the code to end with.

    Nothing is written, and nothing said: what goes wrong for all, the main process says.

    Raises:
        UserError: something goes wrong here alone.
    """
    with suppress(ProcessLostError, NonFiniteError):
        while not isinstance(message := _receive(group), int):
            job, file = message
            _train(group, job if file is None else replace(job, pairs=Lines(file, PreferencePair)))
        return message
    return 1


def _train(group: ProcessGroup, job: Training) -> None:
    if not job.work.path.exists():
        raise UserError(f"{platform.node()} does not see {job.work.path}; all machines must, under this path")
    if (device := learner_device()) != job.device:
        raise UserError(
            f"{platform.node()} would train on {device}, the main process does on {job.device}; set "
            "ACCELERATE_USE_CPU=true for all"
        )
    with suppress(Stopped):
        train_adapter(job, job.work / "adapter", group=group)
    give_memory_back()


def _send(group: ProcessGroup, message: _Message) -> None:
    group.send(msgspec.msgpack.encode(message, enc_hook=_plain))  # not as JSON, which has no infinity for `Learner`


def _receive(group: ProcessGroup) -> _Message:
    return msgspec.msgpack.decode(group.receive(), type=prepared(_Message), dec_hook=_typed)


def _plain(value: Any) -> Any:
    match value:
        case Learner():
            return value.model_dump(mode="json")
        case Lines():
            return [*value]
        case RunDir():
            return str(value.path.absolute())
        case Path():
            return str(value.absolute())
        case _:
            raise NotImplementedError(f"{type(value)} is not sent")


def _typed(kind: type, value: Any) -> Any:
    if kind is Learner:
        return Learner(**value)
    return RunDir(Path(value)) if kind is RunDir else Path(value)
