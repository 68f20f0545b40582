"""Tables in text (CSV, TSV): how one is written is found by reading it in every usual way.

What was not meant to be cut shows: rows have more fields than the header, or quotes that do not end. So the way is
taken whose header has what is asked for, and in which the first rows have the fewest faults; but a few of them do not
make one column of several.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from copy import copy
from itertools import islice, product, tee
from typing import Any, NamedTuple

from genius_lite.data.files import LONGEST, Fault, Fits
from genius_lite.errors import UserError

csv.field_size_limit(LONGEST)  # of this process; the module's own is less than a question may have

_ALONE = "\x1f"  # in a table of one column nothing separates: a comma belongs to the text
_SEPARATORS = (_ALONE, ",", ";", "\t")
_TRIED, _FEW = 500, 0.1  # rows, and the share of them that may have faults where there are several columns
_PARSED_AGAIN = 4 * LONGEST  # characters, at most, behind quotes that do not end
_NAMED = re.compile(r"sep=(.)\r?\n?")  # a first line of Excel's


class Way(NamedTuple):
    """How a table is written."""

    separator: str
    quote: str | None
    escape: str | None
    spaced: bool = False
    """Spaces stand between a separator and a quote."""

    @property
    def options(self) -> dict[str, Any]:
        """As the module csv takes it."""
        quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
        separators = {"delimiter": self.separator, "skipinitialspace": self.spaced}
        quotes = {"quotechar": self.quote, "escapechar": self.escape, "doublequote": not self.escape}
        return {**separators, **quotes, "quoting": quoting, "strict": True}

    def escaped(self, line: str) -> str:
        """Double the backslashes that escape nothing, as in LaTeX: csv would drop them."""
        if not self.escape:
            return line
        escapes = rf'\\([\\"\r\n{re.escape(self.separator)}]?)'
        return re.sub(escapes, lambda found: found[0] if found[1] else r"\\", line)


_QUOTES = (('"', None), ('"', "\\"), ("'", None), (None, None), (None, "\\"))
_WAYS = [Way(separator, *quotes) for quotes, separator in product(_QUOTES, _SEPARATORS)]
_WAYS += [Way(separator, '"', None, spaced=True) for separator in _SEPARATORS[1:]]


def table_rows(lines: Iterator[str], fits: Fits) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    """Yield rows by the header's names, each with the number of its first line; for one with a fault, what it is.

    Raises:
        UserError: quotes do not end all over the table.
    """
    (kept,) = tee(lines, 1)  # each copy of it begins at the first line
    ways, before = _WAYS, 0
    if named := _NAMED.fullmatch(next(copy(kept), "")):
        ways, before = [way for way in _WAYS if way.separator == named[1]] or _WAYS, 1
        next(kept)
    best = max(ways, key=lambda way: _quality(copy(kept), way, fits))  # the first of those that are equal
    for number, row in _rows(kept, best):
        yield before + number, row


def headers(line: str) -> list[list[str]]:
    """Return what a line is as a header, in every way that a table may be written."""
    return [_header(_records(iter([line]), way)) for way in _WAYS]


def _quality(lines: Iterator[str], way: Way, fits: Fits) -> tuple[bool, bool, bool, bool, int]:
    try:
        header = _header(_records(copy(lines), way))
        rows = [*islice(_rows(copy(lines), way), _TRIED)]
    except UserError:
        return False, False, False, False, 0
    # Here csv takes a quote within a field for its end, and what follows for more of it, over lines: no fault shows.
    read = lines if len(rows) < _TRIED else islice(lines, rows[-1][0])  # as many as the rows have
    if way.quote and way.escape and not any(way.escape + way.quote in line for line in read):
        return False, False, False, False, 0
    faulty = [_is_fault(row, way) for _, row in rows]
    several, faults = len(header) > 1, sum(faulty)
    return fits(header), several and faults <= _FEW * len(faulty), not faults, several, -faults


def _is_fault(row: dict[str, str] | Fault, way: Way) -> bool:
    """Say whether a row is not read as it was meant: quotes around a text are no part of it."""
    if isinstance(row, Fault):
        return True
    return way.quote != '"' and any(len(text) > 1 and text[0] == text[-1] == '"' for text in row.values())


def told_apart(names: list[str]) -> list[str]:
    """Number the columns that have the same name: who asks for it has to say which one is meant."""
    count, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]} of {count[name]})" if name and count[name] > 1 else name)
    return found


def _header(records: Iterator[tuple[int, list[str] | None]]) -> list[str]:
    first = next((record or [] for _, record in records if record != []), [])
    return told_apart([name.strip() for name in first])


def _rows(lines: Iterator[str], way: Way) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    records = _records(lines, way)
    header = _header(records)
    for number, record in records:
        if record is None:
            yield number, Fault("a quote that does not end, or text behind one; a quote in a text is written twice")
        elif _is_cut(record, len(header), way):
            counts = f"{len(record)} fields, and the header has {len(header)}"
            yield number, Fault(f"{counts}; a text with {way.separator!r} in it stands in quotes")
        elif any(record):
            yield number, dict(zip(header, record, strict=False))


def _is_cut(record: list[str], most: int, way: Way) -> bool:
    """Say whether a row has more fields than the header; empty ones are none, unless a space shows a comma of prose."""
    more = record[most:]
    return any(more) or bool(more and (most == 1 or way.spaced or any(field[:1] == " " for field in record[1:])))


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
            yield way.escaped(line)

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
