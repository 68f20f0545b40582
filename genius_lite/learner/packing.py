"""Preference pairs as token trees: what responses share is computed once.

All pairs of a query have its prompt in common, and often several steps. Their responses are merged into one
tree of tokens; each token attends to its ancestors and has its depth as position, so a single forward pass
gives every branch the logits that it would get alone. Trees of several queries stand side by side in a pack.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from genius_lite.records import PreferencePair


@dataclass
class Pack:
    """A forest of tokens, parents before children.

    `parent_T` is -1 at roots. `responses` lists for each of the 2 * len(pairs) responses (chosen and rejected
    in turn) the places of its tokens, the prompt's left out.
    """

    pairs: list[PreferencePair] = field(default_factory=list)
    tokens_T: list[int] = field(default_factory=list)
    parent_T: list[int] = field(default_factory=list)
    depth_T: list[int] = field(default_factory=list)
    responses: list[list[int]] = field(default_factory=list)

    def add_tree(self, pairs: list[PreferencePair]) -> None:
        """Add the pairs of one query as a tree of their own."""
        children: dict[tuple[int, int], int] = {}
        for pair in pairs:
            for response in (pair.chosen_tokens, pair.rejected_tokens):
                places, at = [], -1
                for token in pair.prompt_tokens + response:
                    if (at, token) not in children:
                        children[at, token] = len(self.tokens_T)
                        self.tokens_T.append(token)
                        self.depth_T.append(self.depth_T[at] + 1 if at >= 0 else 0)
                        self.parent_T.append(at)
                    at = children[at, token]
                    places.append(at)
                self.responses.append(places[len(pair.prompt_tokens) :])
        self.pairs += pairs

    def attention_TT(self) -> np.ndarray:
        """Which token (row) sees which (column): itself and its ancestors; bool (T, T)."""
        seen_TT = np.zeros((len(self.tokens_T), len(self.tokens_T)), dtype=bool)
        for t, parent in enumerate(self.parent_T):
            if parent >= 0:
                seen_TT[t] = seen_TT[parent]
            seen_TT[t, t] = True
        return seen_TT

    @property
    def targets(self) -> np.ndarray:
        """Places whose token some response counts, ascending; each is predicted at its parent."""
        return np.unique([place for places in self.responses for place in places])

    @property
    def unshared_tokens(self) -> int:
        """Tokens that the same pairs would take one response at a time."""
        prompts = 2 * sum(len(p.prompt_tokens) for p in self.pairs)
        return prompts + sum(len(places) for places in self.responses)


def by_query(pairs: list[PreferencePair]) -> list[list[PreferencePair]]:
    """Pairs grouped by query, in the order in which the queries first appear."""
    groups: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        groups.setdefault(pair.query_id, []).append(pair)
    return list(groups.values())


def packs(groups: list[list[PreferencePair]], max_tokens: int) -> list[Pack]:
    """Groups in order, as many trees in a pack as have at most `max_tokens` tokens together.

    A group whose own tree is larger is split between pairs; a single pair is never split.
    """
    result = [Pack()]
    for group in groups:
        for pairs in _split(group, max_tokens):
            tree = Pack()
            tree.add_tree(pairs)
            if result[-1].pairs and len(result[-1].tokens_T) + len(tree.tokens_T) > max_tokens:
                result.append(Pack())
            result[-1].add_tree(pairs)
    return [pack for pack in result if pack.pairs]


def _split(group: list[PreferencePair], max_tokens: int) -> list[list[PreferencePair]]:
    tree = Pack()
    tree.add_tree(group)
    if len(tree.tokens_T) <= max_tokens or len(group) == 1:
        return [group]
    half = len(group) // 2
    return _split(group[:half], max_tokens) + _split(group[half:], max_tokens)
