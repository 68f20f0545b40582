"""How a run is asked to stop: it ends where everything that it did is kept, and the same command goes on from there."""

from __future__ import annotations

from dataclasses import dataclass


class Stopped(Exception):
    """The run ended early because it was asked to. Whatever was finished or saved is in its folder."""


@dataclass
class Stop:
    """Whether a run was asked to stop; set from anywhere, looked at between two pieces of work."""

    asked: bool = False

    def check(self) -> None:
        """End the run here, if it was asked to stop.

        Raises:
            Stopped: it was.
        """
        if self.asked:
            raise Stopped
