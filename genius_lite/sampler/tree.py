"""The token tree: the truth about what was sampled. Whatever the engine caches can be made again from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from genius_lite.data.steps import OpenStep
from genius_lite.records import Completion, Finish, seed_of

if TYPE_CHECKING:
    from genius_lite.data.vocabulary import Vocabulary
    from genius_lite.sampler.messages import Until


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
        """Make the node of a completion that was sampled after this one."""
        return Node(self, completion.tokens, self.key, completion)

    def seeds(self, label: str, n: int) -> list[int]:
        """Return the generator seeds of `n` branches that grow here; `label` keeps steps and futures apart."""
        return [seed_of(*self.key, *self.response, label, index) for index in range(n)]


@dataclass(eq=False)
class PartialCompletion:
    """A completion that grows token by token, in the engine or on a server; `limit` is tokens."""

    until: Until
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    step: OpenStep | None = None

    def append(self, token: int, logprob: float, vocabulary: Vocabulary) -> Finish | None:
        """Add a sampled token; return why the completion ends with it, or None if it goes on."""
        self.step = self.step or OpenStep(vocabulary.delimiter)
        step_ends = self.step.ends(token)
        self.tokens.append(token)
        self.logprobs.append(round(logprob, 6))
        if vocabulary.ends[token] and self.until != "limit":
            return "end"
        if len(self.tokens) >= self.limit:
            return "length"
        return "step" if self.until == "step" and step_ends else None
