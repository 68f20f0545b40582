"""Preference pairs as token trees: what responses share is computed once.

All pairs of a query have its prompt in common, and often several steps. Their responses are merged into one
tree of tokens; each token attends to its ancestors and has its depth as position, so a single forward pass
gives every branch the logits that it would get alone. Trees of several queries stand side by side in a pack.

A model that cannot take such a mask (a recurrent one, say) gets a padded row for each response instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genius_lite.records import PreferencePair
from genius_lite.rundir.lines import Lines

Response = tuple[list[int], list[int]]
"""Prompt tokens and response tokens."""

Groups = list[Sequence[PreferencePair]]
"""Pairs by query; of a file they are read whenever they are asked for."""


@dataclass(frozen=True)
class Inputs:
    """What one forward pass needs, and which of its tokens count.

    B rows of T tokens; a *place* is an index into the rows laid end to end. `mask` is (B, T, T) where rows are trees
    and says which token (row) sees which (column); it is (B, T), False where padded, where they are plain.
    `targets_S` are the places of the S tokens that some response counts, `parents_S` the places that predict them,
    and `responses` has for each response the indices, into those S, of its tokens.
    """

    tokens_BT: np.ndarray
    depth_BT: np.ndarray
    mask: np.ndarray
    targets_S: np.ndarray
    parents_S: np.ndarray
    responses: list[np.ndarray]


@dataclass(frozen=True)
class Pack:
    """Pairs that share a forward pass, which computes so many `tokens`; as trees if `shared`, else as padded rows."""

    groups: Groups
    tokens: int
    shared: bool

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        return [pair for group in self.groups for pair in group]

    def inputs(self) -> Inputs:
        """Make what the pass needs; the responses stand in it chosen and rejected in turn.

        Not kept: its mask has a byte for each two tokens.
        """
        return trees(map(_responses, self.groups)) if self.shared else rows(_responses(self.pairs))


class _Forest:
    """A tree of tokens for each group of responses, parents before children; `parent_T` is -1 at roots."""

    def __init__(self, groups: Iterable[Iterable[Response]]):
        self.tokens_T: list[int] = []
        self.parent_T: list[int] = []
        self.depth_T: list[int] = []
        self.responses: list[list[int]] = []
        for group in groups:
            self._grow(group)

    def _grow(self, responses: Iterable[Response]) -> None:
        children: dict[tuple[int, int], int] = {}
        for prompt, response in responses:
            places, at = [], -1
            for token in prompt + response:
                if (at, token) not in children:
                    children[at, token] = len(self.tokens_T)
                    self.tokens_T.append(token)
                    self.depth_T.append(self.depth_T[at] + 1 if at >= 0 else 0)
                    self.parent_T.append(at)
                at = children[at, token]
                places.append(at)
            self.responses.append(places[len(prompt) :])


def trees(groups: Iterable[Iterable[Response]]) -> Inputs:
    """Make one row that holds a tree for each group of responses; each token sees itself and its ancestors."""
    forest = _Forest(groups)
    mask_TT = np.eye(len(forest.tokens_T), dtype=bool)
    for t, parent in enumerate(forest.parent_T):
        if parent >= 0:
            mask_TT[t] |= mask_TT[parent]
    targets_S = np.unique([place for places in forest.responses for place in places])
    return Inputs(
        tokens_BT=np.array([forest.tokens_T]),
        depth_BT=np.array([forest.depth_T]),
        mask=mask_TT[None],
        targets_S=targets_S,
        parents_S=np.array(forest.parent_T)[targets_S],
        responses=[np.searchsorted(targets_S, places) for places in forest.responses],
    )


def rows(responses: list[Response]) -> Inputs:
    """Make a row for each response, padded on the right."""
    width = max(len(prompt) + len(response) for prompt, response in responses)
    tokens_BT = np.zeros((len(responses), width), dtype=np.int64)
    mask_BT = np.zeros((len(responses), width), dtype=bool)
    targets, indices, count = [], [], 0
    for b, (prompt, response) in enumerate(responses):
        end = len(prompt) + len(response)
        tokens_BT[b, :end] = prompt + response
        mask_BT[b, :end] = True
        targets.append(b * width + np.arange(len(prompt), end))
        indices.append(np.arange(count, count + len(response)))
        count += len(response)
    targets_S = np.concatenate(targets)
    depth_BT = np.tile(np.arange(width), (len(responses), 1))
    return Inputs(tokens_BT, depth_BT, mask_BT, targets_S, targets_S - 1, indices)


def by_query(pairs: Sequence[PreferencePair]) -> Groups:
    """Group pairs by query, in the order in which the queries first appear."""
    places: dict[str, list[int]] = {}
    queries = pairs.query_ids() if isinstance(pairs, Lines) else [pair.query_id for pair in pairs]
    for place, query in enumerate(queries):
        places.setdefault(query, []).append(place)
    if isinstance(pairs, Lines):
        return [pairs.pick(some) for some in places.values()]
    return [[pairs[place] for place in some] for some in places.values()]


def packs(groups: Groups, max_tokens: int, merged: int, shared: bool = True) -> list[Pack]:
    """Pack groups in order, as many in a pack as have at most `merged` tokens together.

    A group is larger alone if it must be, up to `max_tokens`; then it is split between pairs. A single pair never is.

    Args:
        shared: trees, else padded rows.
    """
    made: list[Pack] = []
    extent = _Extent(0, 0)
    for group in groups:
        for part, own in _split(group, max_tokens, shared):
            together = extent.beside(own, shared)
            if made and together.tokens <= merged:
                made[-1] = Pack([*made[-1].groups, part], together.tokens, shared)
                extent = together
            else:
                made.append(Pack([part], own.tokens, shared))
                extent = own
    return made


def shares(groups: Groups, count: int, shared: bool = True) -> list[Groups]:
    """Split groups into `count` parts of about as many tokens, some perhaps empty; the same wherever it is asked.

    A group that is larger than an even part is split between pairs.

    Args:
        shared: trees, else padded rows.
    """
    if count == 1:
        return [groups]
    even = math.ceil(sum(_extent(group, shared).tokens for group in groups) / count)
    parts = [part for group in groups for part in _split(group, even, shared)]
    found: list[Groups] = [[] for _ in range(count)]
    taken = [0] * count
    for part, extent in sorted(parts, key=lambda part: -part[1].tokens):
        least = taken.index(min(taken))
        found[least].append(part)
        taken[least] += extent.tokens
    return found


def unshared_tokens(pairs: Iterable[PreferencePair]) -> int:
    """Count the tokens that the pairs would take one response at a time."""
    return sum(len(prompt) + len(response) for prompt, response in _responses(pairs))


def _responses(pairs: Iterable[PreferencePair]) -> list[Response]:
    return [(p.prompt_tokens, tokens) for p in pairs for tokens in (p.chosen_tokens, p.rejected_tokens)]


@dataclass(frozen=True)
class _Extent:
    """Rows of one width, in tokens, that pairs take; trees stand in one row."""

    rows: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.width

    def beside(self, other: _Extent, shared: bool) -> _Extent:
        if shared:
            return _Extent(1, self.width + other.width)
        return _Extent(self.rows + other.rows, max(self.width, other.width))


def _extent(group: Iterable[PreferencePair], shared: bool) -> _Extent:
    responses = _responses(group)
    if shared:
        return _Extent(1, len(_Forest([responses]).tokens_T))
    return _Extent(len(responses), max(len(prompt) + len(response) for prompt, response in responses))


def _split(
    group: Sequence[PreferencePair], max_tokens: int, shared: bool
) -> list[tuple[Sequence[PreferencePair], _Extent]]:
    """Halve a group until each part has at most so many tokens, or is a single pair; return how large parts are."""
    extent = _extent(group, shared)
    if len(group) == 1 or extent.tokens <= max_tokens:
        return [(group, extent)]
    half = len(group) // 2
    return _split(group[:half], max_tokens, shared) + _split(group[half:], max_tokens, shared)
