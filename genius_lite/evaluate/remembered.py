"""What the base model answered in earlier runs on this machine: asked the same, it answers the same but for rounding.

Responses are remembered, and no verdict: they are scored anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from genius_lite.measurements import recall, remember
from genius_lite.records import Completion, Query, seed_of
from genius_lite.rundir.checks import completion_faults
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.weights.gguf_file import GGUF

WORTH = 5.0  # seconds: answers that took less are as soon asked for as looked up
_WHAT, _MOST = "answers", 200_000_000  # bytes of all that is kept
_LONG_CONTEXT = "rope_factors"  # tensors of models whose rotations depend on how much room a branch has


class _Answers(msgspec.Struct, frozen=True):
    """Responses by query, in the order in which they were asked for."""

    said: dict[str, list[Completion]]


@dataclass(frozen=True)
class Inquiry:
    """Queries that a model is asked, for so many responses with each `sampling`, and all else that decides them.

    `name` is that of their task, or empty.
    """

    model: GGUF
    settings: EngineSettings
    name: str
    queries: Sequence[Query]
    sampling: Sequence[tuple[int, Sampling]]
    max_tokens: int
    seed: int

    def recall(self) -> dict[str, list[Completion]]:
        """Return the responses to the queries that earlier runs have left, also of one that was interrupted."""
        found = recall(_WHAT, self._key, _Answers)
        return found.said if found and not any(self._faults(found.said)) else {}

    def remember(self, said: dict[str, list[Completion]]) -> None:
        """Keep the responses for later runs, beside what another one has left meanwhile."""
        said = self.recall() | said
        if not any(self._faults(said)):
            remember(_WHAT, self._key, _Answers(said), _MOST)

    def is_answered(self, said: Collection[str]) -> bool:
        """Say whether these are all queries; one that llama.cpp does not survive has no responses."""
        return all(query.id in said for query in self.queries)

    @property
    def _key(self) -> tuple[object, ...]:
        s = self.settings
        room = s.room if any(_LONG_CONTEXT in tensor.name for tensor in self.model.tensors) else None
        asked = seed_of(*(part for query in self.queries for part in (query.id, *query.tokens)))
        how = (s.kv_type, s.flash_attention, room, [*self.sampling], self.max_tokens, self.seed)
        return (self.model.sha256, self.name, len(self.queries), asked, how)

    def _faults(self, said: dict[str, list[Completion]]) -> Iterable[bool]:
        """Yield what shows that these are not the responses: other queries, too few of them, or none that can be."""
        count = sum(number for number, _ in self.sampling)
        yield not said.keys() <= {query.id for query in self.queries}
        for responses in said.values():
            yield len(responses) != count
            for one in responses:
                yield len(one.tokens) > self.max_tokens or any(completion_faults(one, self.model.vocabulary))
