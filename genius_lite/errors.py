"""The exceptions that rooms share, and how a run is asked to stop."""

from __future__ import annotations

from dataclasses import dataclass

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""What git leaves in a file's place without its Large File Storage begins so, whatever the file was to be."""
LFS_TOLD = "a pointer of Git LFS, not the file itself; fetch that with `git lfs pull`"


class UserError(Exception):
    """Something the user gave cannot be used; the message is one line that says what to do about it.

    The command line prints it and exits with code 2. Every other exception keeps its traceback.
    """


class NoPairError(UserError):
    """A round's queries gave no pair to learn from, or too few."""


class NonFiniteError(RuntimeError):
    """Something computed is NaN or infinite. The message names the record that it belongs to, which is not kept."""


class Stopped(Exception):
    """The run ended early because it was asked to. Whatever was finished or saved is in its folder."""


@dataclass
class Stop:
    """Whether a run was asked to stop; set from anywhere, looked at between two pieces of work."""

    asked: bool = False

    def check(self) -> None:
        """Raise Stopped, if the run was asked to stop."""
        if self.asked:
            raise Stopped
