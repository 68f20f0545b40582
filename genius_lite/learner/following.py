"""How a process leads others through the trainings of its run, and how they follow.

Between two trainings they wait, perhaps for hours. The leading process sends each training whole, but for the files
that it names: all processes see the same run folder, under the same path.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from genius_lite.errors import NonFiniteError, UserError
from genius_lite.hardware import Device, Precision, give_memory_back, learner_device
from genius_lite.learner.parity import Sample
from genius_lite.learner.team import Team, TeamLost
from genius_lite.learner.train import Training, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.folder import RunDir
from genius_lite.stopping import Stopped


class Order(msgspec.Struct, frozen=True, tag=True):
    """A `Training` for those that train along; `cfg` is JSON as Python writes it, in which infinity is a number."""

    master: str
    start: str | None
    pairs: list[PreferencePair]
    cfg: str
    device: Device
    precision: Precision
    key: tuple[int | str, ...]
    work: str
    samples: list[Sample]


class End(msgspec.Struct, frozen=True, tag=True):
    """The run is over, and the leading process ends with this code."""

    code: int


@contextmanager
def followed(team: Team, job: Training) -> Iterator[None]:
    """Have the others begin the training that the caller begins in the block.

    After an error inside they are not told; when the leading process is gone, they notice.
    """
    if team.size > 1:
        # The leading process compares learner and sampler; of a model in parts it cannot make those passes alone.
        samples = job.samples if team.sharded else []
        team.send(msgspec.json.encode(_order(job, samples)))
        team.busy = True
    try:
        yield
    except Stopped:  # on which all agree
        team.busy = False
        raise
    team.busy = False


def dismiss(team: Team, code: int) -> None:
    """Let those that wait for work end with this code."""
    if team.size > 1 and not team.busy:
        with suppress(TeamLost):
            team.send(msgspec.json.encode(End(code)))


def follow(team: Team) -> int:
    """Train along whenever the leading process trains, until it ends; returns the code to end with.

    Nothing is written, and nothing said: what goes wrong for all, the leading process says.

    Raises:
        UserError: something goes wrong here alone.
    """
    with suppress(TeamLost, NonFiniteError):
        while True:
            asked = msgspec.json.decode(team.receive(), type=Order | End)
            if isinstance(asked, End):
                return asked.code
            _train_along(team, asked)
    return 1


def _train_along(team: Team, order: Order) -> None:
    from accelerate.utils.memory import clear_device_cache

    job = _training(order)
    with suppress(Stopped):
        train_adapter(job, job.work / "adapter", team=team)
    clear_device_cache(garbage_collection=True)
    give_memory_back()


def _order(job: Training, samples: list[Sample]) -> Order:
    return Order(
        master=str(job.master.absolute()),
        start=str(job.start.absolute()) if job.start else None,
        pairs=job.pairs,
        cfg=json.dumps(job.cfg.model_dump(mode="json")),
        device=job.device,
        precision=job.precision,
        key=job.key,
        work=str(job.work.path.absolute()),
        samples=samples,
    )


def _training(order: Order) -> Training:
    if not Path(order.work).exists():
        raise UserError(f"{platform.node()} does not see {order.work}; all machines must, under this path")
    if (device := learner_device()) != order.device:
        raise UserError(
            f"{platform.node()} would train on {device}, the leading process does on {order.device}; set "
            "ACCELERATE_USE_CPU=true for all"
        )
    return Training(
        master=Path(order.master),
        start=Path(order.start) if order.start else None,
        pairs=order.pairs,
        samples=order.samples,
        cfg=Learner(**json.loads(order.cfg)),
        device=order.device,
        precision=order.precision,
        key=order.key,
        work=RunDir(Path(order.work)),
    )
