"""Tables in text (CSV, TSV): how one is written is found by reading it in every usual way.

What was not meant to be cut shows: rows have more fields than the header, or quotes that do not end. So the way is
taken whose header has what is asked for, and in which the first rows have the fewest faults.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice, product
from typing import Any, NamedTuple

from genius_lite.data.files import LONGEST, Fault, Fits
from genius_lite.errors import UserError

csv.field_size_limit(LONGEST)  # of this process; the module's own is less than a question may have

_ALONE = "\x1f"  # in a table of one column nothing separates: a comma belongs to the text
_SEPARATORS = (",", ";", "\t", _ALONE)
_TRIED = 500  # rows
_PARSED_AGAIN = 4 * LONGEST  # characters, at most, behind quotes that do not end
_NAMED = re.compile(r"sep=(.)\r?\n?")  # a first line of Excel's


class Way(NamedTuple):
    """How a table is written."""

    separator: str
    quote: str | None
    escape: str | None

    @property
    def options(self) -> dict[str, Any]:
        """As the module csv takes it."""
        quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
        options = {"delimiter": self.separator, "quoting": quoting, "escapechar": self.escape, "strict": True}
        return {**options, "quotechar": self.quote, "doublequote": not self.escape} if self.quote else options


_QUOTES = (('"', None), ('"', "\\"), ("'", None), (None, None), (None, "\\"))
_WAYS = [Way(separator, *quotes) for quotes, separator in product(_QUOTES, _SEPARATORS)]


def table_rows(lines: Iterator[str], fits: Fits) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    """Yield rows by the header's names, each with the number of its first line; for one with a fault, what it is.

    Raises:
        UserError: quotes do not end all over the table.
    """
    kept = _Kept(lines)
    first = next(iter(kept), "")
    if named := _NAMED.fullmatch(first):
        kept, ways = _Kept(lines), [way for way in _WAYS if way.separator == named[1]]
    else:
        ways = _WAYS
    best = max(ways or _WAYS, key=lambda way: _quality(kept, way, fits))  # the first of those that are equal
    for number, row in _rows(chain(kept.lines, lines), best):
        yield number + bool(named), row


def headers(line: str) -> list[list[str]]:
    """Return what a line is as a header, in every way that a table may be written."""
    return [_names(next(_records(iter([line]), way), (1, None))[1] or []) for way in _WAYS]


class _Kept:
    """Lines that can be read again from the first."""

    def __init__(self, lines: Iterator[str]):
        self.lines, self._more = list[str](), lines

    def __iter__(self) -> Iterator[str]:
        at = 0
        while True:
            if at == len(self.lines):
                if (line := next(self._more, None)) is None:
                    return
                self.lines.append(line)
            yield self.lines[at]
            at += 1


def _quality(lines: Iterable[str], way: Way, fits: Fits) -> tuple[bool, bool, bool, int]:
    try:
        header = next(_records(iter(lines), way), (1, None))[1] or []
        faults = sum(isinstance(row, Fault) for _, row in islice(_rows(iter(lines), way), _TRIED))
    except UserError:
        return False, False, False, 0
    fitting = fits(_names(header))
    return fitting, not faults, len(header) > 1, -faults


def _names(header: list[str]) -> list[str]:
    return [name.strip() for name in header]


def _rows(lines: Iterator[str], way: Way) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    records = _records(lines, way)
    header = _names(next(((record or []) for _, record in records if record != []), []))
    for number, record in records:
        if record is None:
            yield number, Fault("a quote that does not end, or text behind one; a quote in a text is written twice")
        elif any(record[len(header) :]) or (len(header) == 1 < len(record)):
            counts = f"{len(record)} fields, and the header has {len(header)}"
            yield number, Fault(f"{counts}; a text with {way.separator!r} in it stands in quotes")
        elif any(record):
            yield number, dict(zip(header, record, strict=False))


def _records(lines: Iterator[str], way: Way) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the fields of each record and the number of its first line; None for one that is broken.

    The lines behind the first one of a broken record are read again.
    """
    taken, again = list[str](), deque[str]()

    def feed() -> Iterator[str]:
        length = 0
        while (line := again.popleft() if again else next(lines, None)) is not None:
            length = length + len(line) if taken else len(line)
            taken.append(line)
            if length >= LONGEST:
                raise csv.Error("too long")
            yield line

    reader, number, repeated = csv.reader(feed(), **way.options), 1, 0
    while True:
        taken.clear()
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error:
            record, lost = None, taken[1:]
            again.extendleft(reversed(lost))
            reader, repeated = csv.reader(feed(), **way.options), repeated + sum(map(len, lost))
            if repeated > _PARSED_AGAIN:
                raise UserError(f"line {number}: a quote that does not end, as in others before it") from None
        yield number, record
        number += len(taken) if record is not None else 1
