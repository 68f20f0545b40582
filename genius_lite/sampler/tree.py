"""The token tree: the truth about what was sampled. Whatever the engine caches can be made again from it."""

from __future__ import annotations

from dataclasses import dataclass

from genius_lite.records import Completion, seed_of


@dataclass(frozen=True, eq=False)
class Node:
    """A completion and where it grew. The root holds a prompt, has no parent, and names the generators.

    `key` is the root's (seed, round, query id); branches add to it what they grew from, so equal paths
    meet the same random numbers, in whatever order and company they are sampled. Rounding may still differ there.
    """

    parent: Node | None
    tokens: list[int]
    key: tuple[int | str, ...]
    completion: Completion | None = None

    @property
    def path(self) -> list[int]:
        """Every token from the start of the prompt."""
        return (self.parent.path if self.parent else []) + self.tokens

    @property
    def response(self) -> list[int]:
        """The path without the prompt."""
        return self.parent.response + self.tokens if self.parent else []

    def child(self, completion: Completion) -> Node:
        """The node of a completion that was sampled after this one."""
        return Node(self, completion.tokens, self.key, completion)

    def seeds(self, label: str, n: int) -> list[int]:
        """Generator seeds of `n` branches that grow here; `label` keeps steps and futures apart."""
        return [seed_of(*self.key, *self.response, label, index) for index in range(n)]
