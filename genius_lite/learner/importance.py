"""What flows into the layers while the reference is scored: the importance matrix, at the price of a sum of squares.

A quantizer that knows which columns of a matrix meet large activations can spend its precision there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from genius_lite.learner.process_group import ProcessGroup


class Importance:
    """Sums of squared inputs of every linear layer between embeddings and head, by the name of its weight.

    Args:
        counts: whether the pass under way is one of those asked for.
    """

    def __init__(self, policy: Any, counts: Callable[[], bool] = lambda: True):
        self.policy, self.counts = policy, counts
        self.sums: dict[str, torch.Tensor] = {}
        self.widths: dict[str, int] = {}
        self.tokens = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Gather from every forward pass inside."""
        base = self.policy.get_base_model()
        head = base.get_output_embeddings()
        linear = {
            f"{name.removesuffix('.base_layer')}.weight": module
            for name, module in base.named_modules()
            if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
        }
        self.widths = {name: module.in_features for name, module in linear.items()}
        hooks = [module.register_forward_pre_hook(self._adder(name)) for name, module in linear.items()]
        hooks.append(base.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def gather(self, group: ProcessGroup) -> None:
        """Take together what the processes of a group have gathered."""
        sums = group.sum_each([self.sums.get(name) for name in self.widths], list(self.widths.values()))
        self.sums = {name: total for name, total in zip(self.widths, sums, strict=True) if total is not None}
        self.tokens = int(group.sum(torch.tensor(self.tokens)))

    def save(self, path: Path) -> None:
        """Save one float32 vector for each weight, and the number of `tokens` that they are summed over."""
        tensors = {name: sums.cpu() for name, sums in self.sums.items()}
        save_file({**tensors, "tokens": torch.tensor(self.tokens)}, path)

    def _adder(self, name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self.counts():
                squares = inputs[0].float().square().flatten(0, -2).sum(0)
                self.sums[name] = self.sums[name] + squares if name in self.sums else squares

        return add

    def _count(self, _: nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        self.tokens += kwargs["input_ids"].numel() * self.counts()
