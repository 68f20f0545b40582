"""What the base model answered in earlier runs on this machine: asked the same, it answers the same but for rounding.

Responses are remembered, and no verdict: they are scored anew.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import msgspec

from genius_lite.evaluate.measure import EvalModel, Sampled
from genius_lite.measurements import recall, remember
from genius_lite.records import Completion, Query, seed_of
from genius_lite.weights.gguf_file import GGUF

WORTH = 5.0  # seconds: answers that took less are as soon asked for as looked up
_WHAT, _MOST = "answers", 200_000_000  # bytes of all that is kept
_LONG_CONTEXT = "rope_factors"  # tensors of models whose rotations depend on how much room a branch has


class _Answers(msgspec.Struct, frozen=True):
    """Responses by query, in the order in which they were asked for."""

    said: dict[str, list[Completion]]


@dataclass(frozen=True)
class Inquiry:
    """Queries of a task, or held-out ones (`task` is empty), and who is asked; `model` is the header of its file."""

    who: EvalModel
    model: GGUF
    task: str
    queries: Sequence[Query]

    def recall(self) -> Sampled:
        """Return the responses to the queries that earlier runs have left, also of one that was interrupted."""
        found = recall(_WHAT, self._key, _Answers)
        said = found.said if found and self._are_whole(found.said) else {}
        return {(self.task, query): responses for query, responses in said.items()}

    def remember(self, sampled: Sampled, seconds: float) -> None:
        """Keep the responses to the queries, which took so long, for later runs; what another one has left stays."""
        before = self.recall()
        said = {query: found for (task, query), found in (before | sampled).items() if task == self.task}
        if len(said) > len(before) and (before or seconds >= WORTH) and self._are_whole(said):
            remember(_WHAT, self._key, _Answers(said), _MOST)

    def is_answered(self, said: Container[tuple[str, str]]) -> bool:
        """Say whether these are all queries; one that llama.cpp does not survive has no responses."""
        return all((self.task, query.id) in said for query in self.queries)

    @property
    def _key(self) -> tuple[object, ...]:
        s, who = self.who.settings, self.who
        room = s.room if any(_LONG_CONTEXT in tensor.name for tensor in self.model.tensors) else None
        asked = seed_of(*(part for query in self.queries for part in (query.id, *query.tokens)))
        ways = (who.greedy, who.samples, who.temperature)
        how = (s.kv_type, s.flash_attention, room, ways, who.max_tokens, who.seed)
        return (self.model.sha256, self.task, len(self.queries), asked, how)

    def _are_whole(self, said: dict[str, list[Completion]]) -> bool:
        whole = all(self.who.may_have_said(responses, self.model.vocabulary) for responses in said.values())
        return whole and said.keys() <= {query.id for query in self.queries}
