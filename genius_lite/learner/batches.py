"""Which pairs are computed together: the batches of a training, and packs of a size that memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from genius_lite.errors import UserError
from genius_lite.hardware.device import Device
from genius_lite.hardware.system import NO_MEMORY
from genius_lite.learner.footprint import merged_tokens
from genius_lite.learner.model import response_logps, takes_trees
from genius_lite.learner.packing import Group, Groups, Pack, computed, packs, rows, shares, unshared_tokens
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup, peer_errors
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair


def schedule(groups: Groups, cfg: Learner, rng: np.random.Generator) -> list[list[Groups]]:
    """Plan for each epoch its updates, and for each of these the pairs that it learns from, by query.

    Every epoch has as many updates, about one for each `batch_pairs` pairs, and shuffles the queries anew. All pairs of
    a query are in one update, so updates have about as many pairs, and none but a few. The one with the longest
    responses comes first of all, so that memory that does not suffice shows at once.
    """
    pairs = int(groups.sizes_G.sum())
    count = min(len(groups), max(1, math.floor(pairs / cfg.batch_pairs + 0.5)))
    epochs = [_parts(groups.pick(rng.permutation(len(groups))), count) for _ in range(cfg.epochs)]
    first = epochs[0]
    longest = max(range(count), key=lambda i: max(unshared_tokens(computed(group, cfg)) for group in first[i]))
    first.insert(0, first.pop(longest))
    return epochs


def _parts(groups: Groups, count: int) -> list[Groups]:
    """Split the groups, in order, into so many parts of about as many pairs, none of them empty."""
    ends = np.cumsum(groups.sizes_G)
    parts, start = list[Groups](), 0
    for part in range(1, count + 1):
        # After the group whose end is nearest to where the part would end; each later part keeps a group.
        nearest = int(np.abs(ends - part * ends[-1] / count).argmin()) + 1
        stop = min(max(nearest, start + 1), len(groups) - (count - part))
        parts.append(groups[start:stop])
        start = stop
    return parts


class Packer:
    """Packs of a size that memory allows: halved, for good, when it does not. A group shares them among itself.

    `in_dummy_pass` is true during passes that are made only because the others of a group need the weights.
    """

    def __init__(
        self,
        policy: Any,
        pairs: Iterable[PreferencePair],
        cfg: Learner,
        device: Device,
        say: Callable[[str], None],
        group: ProcessGroup = SINGLE_PROCESS,
    ):
        self.policy, self.say, self.group = policy, say, group
        self.in_dummy_pass = False
        self.limit = self.asked = cfg.max_pack_tokens
        self.merged = merged_tokens(self.limit, device == "cpu")
        longest = max(len(p.prompt_tokens) + max(len(p.chosen_tokens), len(p.rejected_tokens)) for p in pairs)
        self.shared = bool(group.broadcast(takes_trees(policy, longest)))
        if not self.shared:
            say("this model cannot share prefixes between responses: each takes a padded row of its own")

    def packs(self, groups: Iterable[Group]) -> Iterator[Pack]:
        return packs(groups, self.limit, min(self.limit, self.merged), self.shared)

    def compute(
        self,
        groups: Sequence[Group],
        what: Callable[[Pack], torch.Tensor],
        begin: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Compute two numbers of each pair, in the order of the groups, (2, P); each process those of its share.

        Args:
            what: gives them for a pack's pairs, (pairs, 2).
            begin: called before, and again whenever memory ran out somewhere and all begin anew.

        Raises:
            UserError: a single pair does not fit; or a pack, where the others cannot be told to begin anew.
        """
        while True:
            limit, mine = self.limit, shares(groups, self.group.size, self.shared)[self.group.rank]
            packed = list(self.packs(mine))
            begin()
            parts, under_way = [], None
            try:
                with peer_errors():
                    self._keep_pace(len(packed))
                    for under_way in packed:
                        parts.append((under_way.pairs, what(under_way)))
            except RuntimeError as e:
                parts = []
                self._shrink(under_way, e)
            self.limit = self.group.min(self.limit)
            if self.limit == limit:
                return self.group.sum(_in_order(groups, parts))

    def _keep_pace(self, passes: int) -> None:
        """Make, where the model is divided, those passes that another process makes more than `passes`.

        They gather the weights with the others, also backward where gradients are on, to which they add nothing.
        """
        if self.group.sharded:
            self.in_dummy_pass = True
            for _ in range(self.group.max(passes) - passes):
                logps_1 = response_logps(self.policy, rows([([0], [0])]))
                if logps_1.requires_grad:
                    (0 * logps_1).sum().backward()
            self.in_dummy_pass = False

    @property
    def found(self) -> int | None:
        """The largest pack that memory was found to hold, tokens; None if the recipe's limit still is."""
        return self.limit if self.limit < self.asked else None

    def _shrink(self, failed: Pack | None, error: RuntimeError) -> None:
        """Make packs smaller than one that failed, if the error is one of memory and there is something to split.

        Raises:
            RuntimeError: the error, if it is another.
            UserError: a single pair does not fit; or the others wait for a pass that this one cannot make.
        """
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        if failed is None or not (should_reduce_batch_size(error) or NO_MEMORY.search(str(error))):
            raise error
        if len(failed.pairs) == 1:
            raise UserError(
                f"a pair of {failed.tokens} tokens does not fit into memory; set learner.gradient_checkpointing: true "
                "or lower foresight.max_tokens"
            ) from error
        if self.group.sharded:
            raise UserError(
                f"a pack of {failed.tokens} tokens does not fit into memory, and processes that divide the model "
                f"cannot try again with smaller ones; set learner.max_pack_tokens: {failed.tokens // 2}"
            ) from error
        self.limit = failed.tokens // 2
        clear_device_cache(garbage_collection=True)
        self.say(f"memory ran out: packs of at most {self.limit} tokens from here on")


def _in_order(groups: Sequence[Group], parts: list[tuple[list[PreferencePair], torch.Tensor]]) -> torch.Tensor:
    """Return the parts' numbers in the order of the groups' pairs, (2, P); 0 where no part has a pair."""
    pairs = [pair for group in groups for pair in group]
    place = {(pair.query_id, pair.step): i for i, pair in enumerate(pairs)}
    found_2P = torch.zeros(2, len(pairs))
    for some, numbers_B2 in parts:
        found_2P[:, [place[pair.query_id, pair.step] for pair in some]] = numbers_B2.T.float().cpu()
    return found_2P
