"""Documents as passages: what is in a folder, cut at headings and paragraphs."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from genius_lite.data.blocks import PACKAGES, Block
from genius_lite.data.files import KINDS
from genius_lite.data.sandbox import LimitedProcess
from genius_lite.errors import UserError
from genius_lite.progress import Progress

_SECONDS, _MEMORY = 60, 1_000_000_000  # of computing and bytes, for a document
_SHORTEST = 0.25  # of a passage's tokens: a section that is shorter is read together with the next one
_LONGEST_HEADING = 200  # characters; what is longer is a paragraph
_TOKEN = 16  # characters, which tokens of a text have less of
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|[。！？]|\n")


class Passage(NamedTuple):
    """A part of a document: its file, its number there from 1, the headings that it stands below, and its text."""

    file: str
    number: int
    below: str
    text: str


class Read(NamedTuple):
    """What is in a folder: documents and their passages, and the files that were set aside, each with the reason."""

    documents: int
    passages: list[Passage]
    set_aside: list[str]
    others: int


def read_documents(source: Path, count: Callable[[str], int], most: int, progress: Progress) -> Read:
    """Read the documents of a folder and of those below it, or a single one.

    Hidden files are left out, links to folders are not followed, and files of other kinds are counted as `others`.

    Args:
        count: the tokens of a text.
        most: tokens of a passage.

    Raises:
        UserError: there is no document, or the library that reads it is not installed.
    """
    files, others, set_aside = listed(source)
    base = source if source.is_dir() else source.parent
    passages, documents = list[Passage](), 0
    limited = LimitedProcess("genius_lite.data.blocks", {}, seconds=_SECONDS, memory=_MEMORY)
    with closing(limited) as process, progress.stage("documents", len(files), "files") as advance:
        for file in files:
            name = os.fsencode(file.relative_to(base).as_posix()).decode(errors="replace")  # as text can hold it
            try:
                if not file.is_file():
                    raise UserError("no file that can be read (a link to nowhere, a device)")
                reply = process.ask({"path": str(file), "kind": KINDS[file.suffix.lower()]})
                found = [*cut(name, [Block(*block) for block in reply["blocks"]], count, most)]
                documents += 1
                passages += found
            except UserError as e:
                set_aside.append(f"{name}: {e}")
            advance(1)
    return Read(documents, passages, set_aside, others)


def listed(source: Path) -> tuple[list[Path], int, list[str]]:
    """List the documents by name, count other files, and say what cannot be read.

    Raises:
        UserError: there are none, or the library that reads them is not installed.
    """
    files, others, unread = _found(source)
    for kind in sorted({KINDS[file.suffix.lower()] for file in files}):
        require_libraries(kind)
    return files, others, unread


def _found(source: Path) -> tuple[list[Path], int, list[str]]:
    kinds = " ".join(KINDS)
    if source.is_file():
        if source.suffix.lower() not in KINDS:
            raise UserError(f"{source}: a document is one of {kinds}")
        return [source], 0, []
    if not source.is_dir():
        raise UserError(f"{source}: no such folder, and no such document")
    found, others, unread = list[Path](), 0, list[str]()

    def refused(error: OSError) -> None:
        unread.append(f"{error.filename}: {error.strerror}")

    for folder, below, names in os.walk(source, onerror=refused):  # which follows no link to a folder
        below[:] = [name for name in below if not name.startswith(".")]
        for name in (name for name in names if not name.startswith(".")):
            if Path(name).suffix.lower() in KINDS:
                found.append(Path(folder, name))
            else:
                others += 1
    if not found:
        raise UserError("; ".join([f"{source}: no document in this folder; one ends in {kinds}", *unread]))
    return sorted(found), others, unread


def require_libraries(kind: str) -> None:
    """Refuse documents of a kind whose libraries are not installed, by a UserError that says what to install."""
    lacking = [package for module, package in PACKAGES.get(kind, {}).items() if not importlib.util.find_spec(module)]
    if lacking:
        packages = " ".join(f"'{package}'" for package in lacking)
        raise UserError(f"documents in {kind} need a package: pip install {packages}")


def cut(file: str, blocks: list[Block], count: Callable[[str], int], most: int) -> Iterator[Passage]:
    """Cut a document into passages of at most `most` tokens: at headings, between paragraphs, else between sentences.

    A short section is read together with what follows it, whose headings then stand in the text.
    """
    number, size, below = 0, 0, ""
    path, parts = list[tuple[int, str]](), list[Block]()

    def flush() -> Iterator[Passage]:
        nonlocal number, size
        while parts and parts[-1].level:  # a heading belongs to what it stands above
            parts.pop()
        if parts:
            number += 1
            yield Passage(file, number, below, "\n\n".join(part.text for part in parts))
        parts.clear()
        size = 0

    for block in blocks:
        heading = block.level > 0 and len(block.text) <= _LONGEST_HEADING
        if heading:
            if size >= _SHORTEST * most:
                yield from flush()
            path = [(level, title) for level, title in path if level < block.level] + [(block.level, block.text)]
            if not parts:
                continue
        for text in _pieces(block.text, count, most):
            tokens = count(text)
            if size + tokens > most:
                yield from flush()
            if heading and not parts:
                continue
            if not parts:
                below = " > ".join(title for _, title in path) or (f"page {block.page}" if block.page else "")
            parts.append(Block(text, block.level * heading))
            size += tokens
    yield from flush()


def _pieces(text: str, count: Callable[[str], int], most: int) -> Iterator[str]:
    """Halve a text until its pieces are short enough: where a sentence ends, else at a blank, else anywhere."""
    if len(text) <= _TOKEN * most and count(text) <= most:
        yield text
        return
    middle, quarter = len(text) // 2, len(text) // 4
    near = range(quarter, len(text) - quarter)
    ends = [found.end() for found in _SENTENCE_END.finditer(text) if found.end() in near]
    blanks = [] if ends else [found.end() for found in re.finditer(r"\s", text) if found.end() in near]
    at = min(ends or blanks or [max(1, middle)], key=lambda place: abs(place - middle))
    for piece in (text[:at].strip(), text[at:].strip()):
        if piece:
            yield from _pieces(piece, count, most)
