"""The base model's scores of all pairs, and the importance matrix, gathered on the way for a sum of squares.

A quantizer that knows which columns of a matrix meet large activations can spend its precision there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from genius_lite.learner.batches import Packer
from genius_lite.learner.packing import Groups
from genius_lite.learner.process_group import ProcessGroup
from genius_lite.learner.scores import score
from genius_lite.learner.state import no_state, read_tensors
from genius_lite.progress import Advance
from genius_lite.rundir.folder import IMPORTANCE, RunDir

REFERENCE = "base-scores"
"""The folder in a training's state that has them."""
_LOGPS = "logps.npy"


def reference_scores(packer: Packer, groups: Groups, work: RunDir, advance: Advance) -> np.ndarray:
    """Score every pair with the base model, once, and keep that and the importance of its columns in `work`.

    Returns:
        Summed log-probabilities (chosen, rejected) in the order of the groups' own pairs, nats, float32 (P, 2).
    """
    if not packer.group.broadcast((work / REFERENCE).exists()):
        importance = Importance(packer.policy, counts=lambda: not packer.in_dummy_pass)
        with packer.policy.disable_adapter(), importance.watched():
            scores_P2 = score(packer, groups, advance, mark=importance.mark)
        importance.gather(packer.group)

        def write(folder: Path) -> None:
            folder.mkdir()
            importance.save(folder / IMPORTANCE)
            np.save(folder / _LOGPS, scores_P2)

        packer.group.on_main(lambda: work.build(REFERENCE, write))
    return _kept(work / REFERENCE, packer, groups)


def _kept(folder: Path, packer: Packer, groups: Groups) -> np.ndarray:
    """Read what is kept, which another process may have made.

    Raises:
        UserError: it is not of these pairs and this model.
    """
    try:
        scores_P2 = np.load(folder / _LOGPS)
    except (OSError, EOFError, ValueError) as e:
        raise no_state(folder, f"{_LOGPS} is missing or damaged") from e
    if scores_P2.shape != (groups.sizes_G.sum(), 2) or scores_P2.dtype != np.float32:
        raise no_state(folder, f"{_LOGPS} is of other pairs")
    if not np.isfinite(scores_P2).all():
        raise no_state(folder, "a score is not finite")
    tensors = read_tensors(folder / IMPORTANCE)
    widths = {name: (module.in_features,) for name, module in Importance(packer.policy).layers.items()}
    tokens = tensors.pop("tokens", torch.zeros(0))
    if tokens.numel() != 1 or tokens < 1 or any(widths.get(name) != sums.shape for name, sums in tensors.items()):
        raise no_state(folder, f"{IMPORTANCE} is of another model")
    return scores_P2


class Importance:
    """Sums of squared inputs of every linear layer between embeddings and head, by the name of its weight.

    `counts` says whether the pass under way is one of those asked for.
    """

    def __init__(self, policy: Any, counts: Callable[[], bool] = lambda: True):
        self.counts, self.tokens = counts, 0
        self.real_BT: torch.Tensor | None = None  # of the pass under way, where rows are padded
        self.base = policy.get_base_model()
        head = self.base.get_output_embeddings()
        self.layers = {
            f"{name.removesuffix('.base_layer')}.weight": module
            for name, module in self.base.named_modules()
            if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
        }
        self.sums: dict[str, torch.Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Gather from every forward pass inside."""
        hooks = [module.register_forward_pre_hook(self._adder(name)) for name, module in self.layers.items()]
        hooks.append(self.base.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def mark(self) -> Callable[[], None]:
        """Return what puts the sums back to what they are now."""
        sums, tokens = {**self.sums}, self.tokens  # none of them is changed in place

        def restore() -> None:
            self.sums, self.tokens = {**sums}, tokens

        return restore

    def gather(self, group: ProcessGroup) -> None:
        """Take together what the processes of a group have gathered."""
        widths = [module.in_features for module in self.layers.values()]
        sums = group.sum_each([self.sums.get(name) for name in self.layers], widths)
        self.sums = {name: total for name, total in zip(self.layers, sums, strict=True) if total is not None}
        self.tokens = int(group.sum(torch.tensor(self.tokens)))

    def save(self, path: Path) -> None:
        """Save one float32 vector for each weight, and the number of `tokens` that they are summed over."""
        tensors = {name: sums.cpu() for name, sums in self.sums.items()}
        save_file({**tensors, "tokens": torch.tensor(self.tokens)}, path)

    def _adder(self, name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self.counts():
                squares = inputs[0].float().square()
                # The experts of some models are given the tokens that are routed to them, padding among them.
                if self.real_BT is not None and squares.shape[:-1].numel() == self.real_BT.numel():
                    squares = squares * self.real_BT.view(*squares.shape[:-1], 1)
                squares = squares.flatten(0, -2).sum(0)
                self.sums[name] = self.sums[name] + squares if name in self.sums else squares

        return add

    def _count(self, _: nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        mask = kwargs["attention_mask"]
        self.real_BT = mask if mask.dim() == 2 else None  # of four axes there is no padding: `logps_of`
        self.tokens += int(kwargs["input_ids"].numel() if self.real_BT is None else mask.sum()) * self.counts()
