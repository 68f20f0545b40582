"""Preference pairs as token trees: what responses share is computed once.

All pairs of a query have its prompt in common, and often several steps. Their responses are merged into one
tree of tokens; each token attends to its ancestors and has its depth as position, so a single forward pass
gives every branch the logits that it would get alone. Trees of several queries stand side by side in a pack.

A model that cannot take such a mask (a recurrent one, say) gets a padded row for each response instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import msgspec
import numpy as np

from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.lines import Lines

Response = tuple[list[int], list[int]]
"""Prompt tokens and response tokens."""

Group = Sequence[PreferencePair]
"""A query's pairs, or some of them."""


class Groups(Sequence[Group]):
    """Pairs by query; each group is made of its pairs, which may lie in a file, when it is asked for.

    `places_P` has the numbers of the pairs, a group's one after the other, and `sizes_G` how many each group has.
    """

    def __init__(self, pairs: Sequence[PreferencePair], places_P: np.ndarray, sizes_G: np.ndarray):
        self.pairs, self.places_P, self.sizes_G = pairs, places_P, sizes_G
        self._ends_G = np.cumsum(sizes_G)

    def __len__(self) -> int:
        return len(self.sizes_G)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> Groups: ...
    def __getitem__(self, index: int | slice) -> Group | Groups:
        if isinstance(index, slice):
            return self.pick(np.arange(len(self))[index])
        places = self.places_of(index).tolist()
        return self.pairs.pick(places) if isinstance(self.pairs, Lines) else [self.pairs[place] for place in places]

    def pick(self, numbers_G: np.ndarray) -> Groups:
        """Choose some of the groups, in this order."""
        places = [self.places_of(number) for number in numbers_G]
        return Groups(self.pairs, np.concatenate([self.places_P[:0], *places]), self.sizes_G[numbers_G])

    def places_of(self, number: int) -> np.ndarray:
        """Return the numbers of a group's pairs among all."""
        end = self._ends_G[number]
        return self.places_P[end - self.sizes_G[number] : end]


@dataclass(frozen=True)
class Inputs:
    """What one forward pass needs, and which of its tokens count.

    B rows of T tokens; a *place* is an index into the rows laid end to end. In a row of `trees`, which are told by
    where they begin and end, a token sees itself and its ancestors: what follows from one stands right behind it
    (preorder), and `end_BT` says where that ends, so that token t sees a if a <= t < end[a]. Where there are no trees
    it sees all before it in its row, and where rows are padded `end_BT` is 0. `targets_S` are the places of the S
    tokens that some response counts, `parents_S` the places that predict them, and `responses` has for each response
    the indices, into those S, of its tokens.
    """

    tokens_BT: np.ndarray
    depth_BT: np.ndarray
    end_BT: np.ndarray
    trees: list[tuple[int, int]]
    targets_S: np.ndarray
    parents_S: np.ndarray
    responses: list[np.ndarray]


@dataclass(frozen=True)
class Pack:
    """Pairs that share a forward pass, which computes so many `tokens`; as trees if `shared`, else as padded rows."""

    groups: list[Group]
    tokens: int
    shared: bool

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        return [pair for group in self.groups for pair in group]

    def inputs(self) -> Inputs:
        """Make what the pass needs; the responses stand in it chosen and rejected in turn, some perhaps empty."""
        return trees(map(_responses, self.groups)) if self.shared else rows([*_responses(self.pairs)])


def computed(pairs: Group, cfg: Learner) -> Group:
    """Take of pairs what an update computes: a response that is empty is not, and its log-probability is 0."""
    return [msgspec.structs.replace(pair, rejected_tokens=[]) for pair in pairs] if cfg.chosen_alone else [*pairs]


def trees(groups: Iterable[Iterable[Response]]) -> Inputs:
    """Make one row that holds a tree for each group of responses; each token sees itself and its ancestors."""
    tokens, depths, parents, ends = (list[int]() for _ in range(4))
    paths: list[list[int]] = []  # of each response, the places of its tokens
    places: list[tuple[int, int]] = []

    def close(path: list[int]) -> None:
        """Note that nothing more follows from these."""
        for place in path:
            ends[place] = len(tokens)

    for group in groups:
        start, responses, path = len(tokens), list(group), list[int]()
        found = [path] * len(responses)
        for number, whole, known in _in_preorder(responses):
            close(path[known:])
            new = range(len(tokens), len(tokens) + len(whole) - known)
            parents += [path[known - 1] if known else -1, *new][: len(new)]
            path = [*path[:known], *new]
            tokens += whole[known:]
            depths += range(known, len(whole))
            ends += new
            found[number] = path[len(responses[number][0]) :]
        close(path)
        paths += found
        places.append((start, len(tokens)))
    targets_S = np.unique(np.concatenate([np.array(path, dtype=np.int64) for path in paths]))
    return Inputs(
        tokens_BT=np.array([tokens]),
        depth_BT=np.array([depths]),
        end_BT=np.array([ends]),
        trees=places,
        targets_S=targets_S,
        parents_S=np.array(parents)[targets_S],
        responses=[np.searchsorted(targets_S, path) for path in paths],
    )


def _in_preorder(responses: Sequence[Response]) -> Iterator[tuple[int, list[int], int]]:
    """Yield responses as their tree is walked: the number of each, its tokens and the prompt's, and how many are known.

    Those are what it begins with as the one before did: none of the others, in this order, has more in common with it.
    """
    tokens = [prompt + response for prompt, response in responses]
    before = list[int]()
    for number in sorted(range(len(tokens)), key=tokens.__getitem__):
        whole = tokens[number]
        both = min(len(before), len(whole))
        differs = np.flatnonzero(np.array(before[:both]) != np.array(whole[:both]))
        yield number, whole, int(differs[0]) if len(differs) else both
        before = whole


def rows(responses: list[Response]) -> Inputs:
    """Make a row for each response that is not empty, padded on the right."""
    asked = [(prompt, response) for prompt, response in responses if response]
    width = max(len(prompt) + len(response) for prompt, response in asked)
    tokens_BT = np.zeros((len(asked), width), dtype=np.int64)
    end_BT = np.zeros((len(asked), width), dtype=np.int64)
    targets = []
    for b, (prompt, response) in enumerate(asked):
        end = len(prompt) + len(response)
        tokens_BT[b, :end] = prompt + response
        end_BT[b, :end] = end
        targets.append(b * width + np.arange(len(prompt), end))
    targets_S = np.concatenate(targets)
    indices = np.split(np.arange(len(targets_S)), np.cumsum([len(response) for _, response in responses])[:-1])
    depth_BT = np.tile(np.arange(width), (len(asked), 1))
    return Inputs(tokens_BT, depth_BT, end_BT, [], targets_S, targets_S - 1, indices)


def by_query(pairs: Sequence[PreferencePair]) -> Groups:
    """Group pairs by query, in the order in which the queries first appear."""
    numbers: dict[str, int] = {}
    queries = pairs.query_ids() if isinstance(pairs, Lines) else (pair.query_id for pair in pairs)
    group_P = np.fromiter((numbers.setdefault(query, len(numbers)) for query in queries), np.int64, len(pairs))
    return Groups(pairs, np.argsort(group_P, kind="stable"), np.bincount(group_P, minlength=len(numbers)))


def packs(groups: Iterable[Group], max_tokens: int, merged: int, shared: bool = True) -> Iterator[Pack]:
    """Pack groups in order, as many in a pack as have at most `merged` tokens together.

    A group is larger alone if it must be, up to `max_tokens`; then it is split between pairs. A single pair never is.
    They are trees if `shared`, else padded rows.
    """
    held, extent = list[Group](), _Extent(0, 0)
    for group in groups:
        for part, own in _split(group, max_tokens, shared):
            together = extent.beside(own)
            if held and together.tokens > merged:
                yield Pack(held, extent.tokens, shared)
                held, together = [], own
            held.append(part)
            extent = together
    if held:
        yield Pack(held, extent.tokens, shared)


def shares(groups: Sequence[Group], count: int, shared: bool = True) -> list[Sequence[Group]]:
    """Split groups into `count` parts of about as many tokens, some perhaps empty; the same wherever it is asked.

    A group that is larger than an even part is split between pairs. They are trees if `shared`, else padded rows.
    """
    if count == 1:
        return [groups]
    even = math.ceil(sum(_extent(group, shared).tokens for group in groups) / count)
    parts = [part for group in groups for part in _split(group, even, shared)]
    found: list[list[Group]] = [[] for _ in range(count)]
    taken = [0] * count
    for part, extent in sorted(parts, key=lambda part: -part[1].tokens):
        least = taken.index(min(taken))
        found[least].append(part)
        taken[least] += extent.tokens
    return [*found]


def unshared_tokens(pairs: Iterable[PreferencePair]) -> int:
    """Count the tokens that the pairs would take one response at a time."""
    return sum(len(prompt) + len(response) for prompt, response in _responses(pairs) if response)


def _responses(pairs: Iterable[PreferencePair]) -> Iterator[Response]:
    return ((p.prompt_tokens, tokens) for p in pairs for tokens in (p.chosen_tokens, p.rejected_tokens))


@dataclass(frozen=True)
class _Extent:
    """Rows of one width, in tokens, that pairs take; a tree's tokens count as rows of one."""

    rows: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.width

    def beside(self, other: _Extent) -> _Extent:
        return _Extent(self.rows + other.rows, max(self.width, other.width))


def _extent(group: Iterable[PreferencePair], shared: bool) -> _Extent:
    responses = [(prompt, response) for prompt, response in _responses(group) if response]
    if shared:
        return _Extent(sum(len(whole) - known for _, whole, known in _in_preorder(responses)), 1)
    return _Extent(len(responses), max(len(prompt) + len(response) for prompt, response in responses))


def _split(group: Group, max_tokens: int, shared: bool) -> list[tuple[Group, _Extent]]:
    """Halve a group until each part has at most so many tokens, or is a single pair; return how large parts are."""
    extent = _extent(group, shared)
    if len(group) == 1 or extent.tokens <= max_tokens:
        return [(group, extent)]
    half = len(group) // 2
    return _split(group[:half], max_tokens, shared) + _split(group[half:], max_tokens, shared)
