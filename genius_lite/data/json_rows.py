"""Rows in JSON: lines of it, an array, objects over several lines, or one object that holds the rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from genius_lite.data.files import LONGEST, TOO_LONG, Fault, Fits, Numbered, lines_of
from genius_lite.errors import UserError
from genius_lite.text import brief, first_line

_DOCUMENT = 100_000_000  # characters of a file that is one object
_CHARACTERS = 1 << 16  # that are read at once


def json_rows(text: TextIO, path: Path, fits: Fits) -> Numbered:
    """Read JSON lines, an array, objects over several lines, or an object that holds the rows."""
    lines = enumerate(lines_of(text, path), 1)
    opening, begun = list[tuple[int, str]](), list[str]()
    # Two lines tell; an array, or a line that is not there in whole, is no line of rows.
    for found in lines:
        opening.append(found)
        begun += [stripped] if (stripped := found[1].strip()) else []
        if len(begun) == 2 or (begun and (begun[0][0] == "[" or len(begun[0]) >= LONGEST // 2)):
            break
    if begun and begun[0][0] != "[" and ((begun[1:] and begun[1][0] == "{") or _is_json(begun[0])):
        rows = _json_lines(chain(opening, lines))
    else:
        rows = _json_values(text, "".join(line for _, line in opening), path)
    first, second = next(rows, None), next(rows, None)
    if first and not second and isinstance(first[1], dict):
        held = _unpacked(first[1], fits)
        if held[:1] != [first[1]]:
            yield from ((f"row {number}", row) for number, row in enumerate(held, 1))
            return
    yield from (found for found in (first, second) if found)
    yield from rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Fault:
    """Make an object of its keys and values; of one that says a key twice nobody knows which value is meant."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return Fault(f"the key `{brief(twice)}` stands twice in it")


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(lines: Iterable[tuple[int, str]]) -> Numbered:
    for number, line in lines:
        if len(line) >= LONGEST:
            yield number, TOO_LONG
        elif line.strip():
            try:
                yield number, _json_row(_DECODER.decode(line))
            except (ValueError, RecursionError) as e:
                yield number, Fault(f"not JSON: {first_line(e)}")


def _json_row(value: Any) -> dict[str, Any] | str | Fault:
    return value if isinstance(value, dict | str) else Fault(f"a row is a JSON object, not {brief(repr(value))}")


def _json_values(text: TextIO, buffer: str, path: Path) -> Numbered:
    """Read what stands one after another, or in an array, with the line on which each begins."""
    line, at = 1, 0
    array = buffer.lstrip()[:1] == "["
    if array:
        at = buffer.index("[") + 1
        line += buffer.count("\n", 0, at)
    most = LONGEST if array else _DOCUMENT
    while True:
        begin = at
        while at < len(buffer) and buffer[at] in " \t\r\n,":
            at += 1
        line += buffer.count("\n", begin, at)
        if at == len(buffer):
            buffer, at = text.read(_CHARACTERS), 0
            if not buffer and array:
                raise UserError(f"{path}:{line}: not JSON: the array does not end")
            if not buffer:
                return
            continue
        if array and buffer[at] == "]":
            if (buffer[at + 1 :] + text.read(_CHARACTERS)).strip():
                raise UserError(f"{path}:{line}: not JSON: text behind the end of an array")
            return
        try:
            value, end = _DECODER.raw_decode(buffer, at)
        except (ValueError, RecursionError) as e:
            size = len(buffer) - at
            more = text.read(max(size, _CHARACTERS)) if size < most else ""
            if not more:
                raise UserError(f"{path}:{line}: not JSON: {first_line(e)}") from None
            buffer, at = buffer[at:] + more, 0
            continue
        yield line, _json_row(value)
        line += buffer.count("\n", at, end)
        at = end


def _is_table(part: Any) -> bool:
    """Say whether a value is a list of rows; messages are the turns of one."""
    if not isinstance(part, list) or not part or not isinstance(part[0], dict):
        return False
    return not any(turn <= {*part[0]} for turn in ({"role", "content"}, {"from", "value"}))


def _unpacked(value: dict[str, Any], fits: Fits) -> list[dict[str, Any] | str | Fault]:
    """Return the rows that a file's only object holds: in a list, or by columns; else it is a row itself."""
    tables = [part for part in value.values() if _is_table(part)]
    if len(tables) == 1 and not fits([*value]):
        return [*map(_json_row, tables[0])]
    columns = [[*part.values()] if isinstance(part, dict) else part for part in value.values()]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
    if len(lengths) > 1 or -1 in lengths or any(isinstance(cell, dict) for column in columns for cell in column):
        return [value]
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
