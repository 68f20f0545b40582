"""Where a step of a response ends."""

from __future__ import annotations

import numpy as np


class StepDelimiter:
    """Finds the token that ends a step: a line break after non-blank text (PAPER: one query, K steps).

    A step keeps its delimiter and is cut between tokens, so a token such as `.` + line break ends it whole.
    """

    def __init__(self, pieces: list[bytes]):
        self.has_text = np.array([bool(p.strip()) for p in pieces])
        self.breaks = np.array([b"\n" in p for p in pieces])
        self.text_then_break = np.array([b"\n" in p.lstrip() for p in pieces])


class OpenStep:
    """Reads tokens one after the other, and finds those that end a step; the next one begins another."""

    def __init__(self, delimiter: StepDelimiter):
        self._delimiter, self._has_text = delimiter, False

    def ends(self, token: int) -> bool:
        """Read a token; say whether the step ends with it."""
        of = self._delimiter
        ended = bool(of.text_then_break[token] or (self._has_text and of.breaks[token]))
        self._has_text = not ended and (self._has_text or bool(of.has_text[token]))
        return ended
