"""What a slot of the engine is busy with: completions that grow, or a response that is looked up."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace

from genius_lite.sampler.messages import Extend, Score
from genius_lite.sampler.sampling import Draw, uniform
from genius_lite.sampler.tree import PartialCompletion


@dataclass(eq=False)
class Branch(PartialCompletion):
    """Completions in the making that have drawn the same tokens so far: of these seeds (`indices`) of a request."""

    request: Extend = field(kw_only=True)
    indices: list[int] = field(kw_only=True)

    @property
    def path(self) -> list[int]:
        return self.request.path + self.tokens if self.tokens else self.request.path

    @property
    def reuse(self) -> int:
        """Tokens of the path that may come from cache: all but the last, whose logits are needed."""
        return len(self.request.path) + len(self.tokens) - 1

    @property
    def begins(self) -> bool:
        """Whether nothing was drawn yet."""
        return not self.tokens

    def uniforms(self) -> list[float | None]:
        """Return the numbers that the next token of each completion is drawn by."""
        seeds = (self.request.seeds[index] for index in self.indices)
        return [None if seed is None else uniform(seed, len(self.tokens)) for seed in seeds]

    def parts(self, drawn: list[Draw]) -> list[tuple[Branch, Draw]]:
        """Divide the completions by what they drew."""
        by_token: dict[int, tuple[list[int], Draw]] = {}
        for index, draw in zip(self.indices, drawn, strict=True):
            by_token.setdefault(draw[0], ([], draw))[0].append(index)
        return [(self._of(indices), draw) for indices, draw in by_token.values()]

    def _of(self, indices: list[int]) -> Branch:
        if len(indices) == len(self.indices):
            return self
        lists = {"tokens": list(self.tokens), "logprobs": list(self.logprobs)}
        return replace(self, indices=indices, step=copy(self.step), **lists)


@dataclass(eq=False)
class Scoring:
    """A response whose tokens are looked up instead of drawn."""

    request: Score
    logprobs: list[float] = field(default_factory=list)

    @property
    def path(self) -> list[int]:
        """All but the last token: of that one only the logits before it are needed."""
        return self.request.prompt + self.request.response[:-1]

    @property
    def reuse(self) -> int:
        return len(self.request.prompt) - 1
