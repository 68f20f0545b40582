"""The processes that train together, where `torchrun` or `accelerate launch` has started several.

Each computes its share of every batch; the gradients of the adapter are summed over them, and all take the same step.
Each holds the whole model, or, where the launch asks for FSDP, its part of the frozen weights. The main one does the
run, and the others do nothing but train along (`worker_loop.py`). A process alone is a group of one.

All that they say to each other goes through gloo and the host's memory, also where they train on GPUs: an adapter's
gradients are small beside the work of an update, a process that waits takes no core, and one that dies is missed at
once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from genius_lite.errors import UserError
from genius_lite.hardware.device import Device, learner_device

if TYPE_CHECKING:
    import torch

_BEHIND = timedelta(minutes=30)  # that a process may be behind the others while they start, and within a training
_IDLE = timedelta(days=365)  # that they wait for work, since the main one samples between two trainings
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # by torchrun, and by MPI
_ENGINES = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}


class ProcessLostError(UserError):
    """Another process of the group has ended, or cannot be reached any more."""


@dataclass(eq=False)
class ProcessGroup:
    """What one of `size` processes knows of the others; number 0 is the main one.

    `local_world_size` is how many, with itself, take their memory from where it does; `busy` is whether the others are
    within a training; `idle` is torch's group in which they wait for work; `mesh`, if there is one, is its DeviceMesh
    over which the frozen weights are divided.
    """

    rank: int = 0
    size: int = 1
    local_world_size: int = 1
    busy: bool = False
    idle: Any = None
    mesh: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds only its part of the frozen weights: then all must make the same passes."""
        return self.mesh is not None

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes.

        Raises:
            ProcessLostError: as everything here where there are others.
        """
        return self._reduced(tensor, "SUM")

    def sum_each(self, tensors: Sequence[torch.Tensor | None], sizes: Sequence[int]) -> list[torch.Tensor | None]:
        """Sum each tensor, of so many numbers, over the processes that have it, flat, in fp32; None where none has."""
        import torch

        if self.size == 1:
            return list(tensors)
        parts = [torch.zeros(n) if t is None else t.flatten().cpu() for t, n in zip(tensors, sizes, strict=True)]
        there = torch.tensor([float(t is not None) for t in tensors])
        had, *sums = self.sum(torch.cat([there, *parts])).split([len(parts), *sizes])
        return [total if count else None for count, total in zip(had.tolist(), sums, strict=True)]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the gradient of the whole batch, in place of that of its share."""
        sums = self.sum_each([p.grad for p in parameters], [p.numel() for p in parameters])
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = None if total is None else total.view_as(parameter).to(parameter)

    def broadcast_parameters(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the main one's values: initial ones may differ between versions and devices."""
        import torch

        if self.size > 1:
            flat = torch.cat([p.detach().flatten().float().cpu() for p in parameters])
            flat = self.sum(flat if self.is_main else torch.zeros_like(flat))
            for parameter, values in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.data.copy_(values.view_as(parameter))

    def min(self, value: int) -> int:
        """Return the lowest of what the processes give."""
        return self._reduced_number(value, "MIN")

    def max(self, value: int) -> int:
        """Return the highest of what the processes give."""
        return self._reduced_number(value, "MAX")

    def broadcast(self, value: int) -> int:
        """Return what the main process gives, once all have come here."""
        return self._reduced_number(value if self.is_main else 0, "SUM")

    def on_main(self, work: Callable[[], object]) -> None:
        """Have the main process alone do this; the others wait until it is done."""
        if self.is_main:
            work()
        self.broadcast(0)

    def send(self, message: bytes) -> None:
        """Send from the main process to all others, which `receive`."""
        import torch

        self._spread(torch.tensor([len(message)]))
        self._spread(torch.frombuffer(bytearray(message), dtype=torch.uint8))

    def receive(self) -> bytes:
        """Receive what the main process sends; until then this takes no processor time."""
        import torch

        length = int(self._spread(torch.zeros(1, dtype=torch.int64)))
        return self._spread(torch.zeros(length, dtype=torch.uint8)).numpy().tobytes()

    def _reduced_number(self, value: int, how: str) -> int:
        import torch

        return int(self._reduced(torch.tensor([int(value)]), how))

    def _reduced(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        from torch import distributed

        if self.size == 1:
            return tensor
        result = tensor.detach().to("cpu", copy=True).contiguous()
        with peer_errors():
            distributed.all_reduce(result, getattr(distributed.ReduceOp, how))
        return result

    def _spread(self, tensor: torch.Tensor) -> torch.Tensor:
        from torch import distributed

        with peer_errors():
            distributed.broadcast(tensor, 0, group=self.idle)
        return tensor


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn what torch raises when another process cannot be reached into a `ProcessLostError`."""
    try:
        yield
    except RuntimeError as e:
        from torch.distributed import DistError

        if not isinstance(e, DistError) and "gloo" not in str(e):  # which names its own source file
            raise
        said = re.sub(r"^\[.*?\] ", "", str(e)).partition(". ")[0]  # without the place in gloo's source, and advice
        raise ProcessLostError(
            f"a process that trains along has ended or is out of reach ({said}); its own output says why. What is "
            "finished is kept, and the same command goes on, with any number of processes"
        ) from e


def join() -> ProcessGroup:
    """Join the group that this process was started for; return `SINGLE_PROCESS` if it was started as usual."""
    # Not left to be seen: accelerate would want to wrap the model for it, and transformers to load it for that.
    wants_parts = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() == "true"
    if max(int(os.environ.get(name) or 1) for name in _SIZES) == 1:
        return SINGLE_PROCESS
    from accelerate import PartialState
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    on_gpu = learner_device() == "cuda"
    state = PartialState(cpu=not on_gpu, backend="gloo", timeout=_BEHIND)  # takes the GPU of its number, too
    idle = distributed.new_group(backend="gloo", timeout=_IDLE)
    local_world_size = 1 if on_gpu else int(os.environ["LOCAL_WORLD_SIZE"])
    mesh = init_device_mesh("cuda" if on_gpu else "cpu", (state.num_processes,)) if wants_parts else None
    return ProcessGroup(state.process_index, state.num_processes, local_world_size, idle=idle, mesh=mesh)


def leave(group: ProcessGroup) -> None:
    """Close what leads to the others; those that still count on this process notice."""
    if group.size > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def require_possible(group: ProcessGroup) -> None:
    """Refuse a launch that cannot do what it was asked for.

    Raises:
        UserError: it asks for an engine that is not used, or for several processes where it starts one, or on MPS.
    """
    wanted = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in [*_ENGINES, "CPU"]}
    for name, engine in _ENGINES.items():
        if wanted[name]:
            raise UserError(
                f"this launch asks for {engine}, which does not train here; launch it with --multi_gpu, or with "
                "--use_fsdp where the model is too large for each process to hold, or with torchrun"
            )
    if group.size == 1 and wanted["CPU"] and "MASTER_ADDR" in os.environ:
        raise UserError(
            "accelerate launch --cpu starts one process, however many it is asked for; use "
            "`torchrun --nproc-per-node 2 -m genius_lite run ...`, or leave --num_processes out"
        )
    if group.size > 1 and learner_device() == "mps":
        raise UserError("several processes cannot train on Apple's GPU; set ACCELERATE_USE_CPU=true, or start only one")


def load_in_parts(load: Callable[..., Any], device: Device, group: ProcessGroup) -> Any:
    """Load the policy that `load` puts `at` a device, each process keeping its part of the layers' weights on `device`.

    It is loaded into the host's memory, by one process after the other: for a moment one of them holds all of it.

    Only what is frozen is divided, and only within the layers: a layer's weights are gathered when it is passed
    through, forward and backward, and let go of behind it. The adapter stays whole everywhere, so that gradients,
    optimizer and what is saved are those of any group. All processes gather together: each must make the same passes.

    Raises:
        UserError: what its layers are is not known.
    """
    policy = None
    for rank in range(group.size):
        if rank == group.rank:
            policy = load(at="cpu")
            _divide(policy, device, group.mesh)
        group.broadcast(0)
    return policy


def _divide(policy: Any, device: Device, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    base = policy.get_base_model()
    decoder = base.get_decoder()
    layers = [module for module in decoder.modules() if type(module).__name__ in (base._no_split_modules or ())]
    if not layers:
        raise UserError(
            f"transformers does not say what the layers of a {base.config.model_type} are; train without FSDP"
        )
    for layer in layers:
        layer.to(device)  # by bitsandbytes' own method, which takes the scales of NF4 along
        fully_shard(layer, mesh=mesh, ignored_params={p for p in layer.parameters() if p.requires_grad})
    # Around all layers, so that the next one's weights are gathered while one computes. It has none of its own to give.
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()))
    policy.to(device)
