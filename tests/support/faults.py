"""What a system refuses, and what it does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

GONE = 2**22 + 1  # the number of no process: Linux counts to 2**22


def refuse(with_what: int | type[BaseException]) -> Callable[..., NoReturn]:
    """A function that raises the error of this number, or this exception, whatever it is called with."""

    def refused(*arguments: Any, **options: Any) -> NoReturn:
        raise OSError(with_what, "of the test") if isinstance(with_what, int) else with_what("of the test")

    return refused
