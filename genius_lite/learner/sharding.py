"""Frozen weights divided among the processes of a group, for a model that is too large for each to hold (FSDP).

Only what is frozen is divided, and only within the layers: a layer's weights are gathered when it is passed through,
forward and backward, and let go of behind it. The adapter stays whole everywhere, so that gradients, optimizer and what
is saved are those of any group. Gathering is something that all do together: each process must make the same passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from genius_lite.errors import UserError
from genius_lite.hardware import Device
from genius_lite.learner.model import response_logps
from genius_lite.learner.packing import rows

if TYPE_CHECKING:
    from genius_lite.learner.process_group import ProcessGroup


def load_in_parts(load: Callable[..., Any], device: Device, group: ProcessGroup) -> Any:
    """Load the policy that `load` gives, each process keeping its part of the layers' weights on `device`.

    It is loaded into the host's memory, by one process after the other: for a moment one of them holds all of it.

    Args:
        load: takes the device `at` which to put it.

    Raises:
        UserError: what its layers are is not known.
    """
    policy = None
    for rank in range(group.size):
        if rank == group.rank:
            policy = load(at="cpu")
            _divide(policy, device, group)
        group.broadcast(0)
    return policy


def dummy_forward(policy: Any) -> None:
    """Gather the weights with the others, forward and backward where gradients are on; adds nothing to a gradient."""
    logps_1 = response_logps(policy, rows([([0], [0])]))
    if logps_1.requires_grad:
        (0 * logps_1).sum().backward()


def _divide(policy: Any, device: Device, group: ProcessGroup) -> None:
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
        fully_shard(layer, mesh=group.mesh, ignored_params={p for p in layer.parameters() if p.requires_grad})
    # Around all layers, so that the next one's weights are gathered while one computes. It has none of its own to give.
    fully_shard(decoder, mesh=group.mesh, ignored_params=set(decoder.parameters()))
    policy.to(device)
