"""What a document says, block by block: Markdown, HTML, text and PDF, each read by its library.

Anybody may have written it, so it is read in a process with limits, `python -m genius_lite.data.blocks`: that is told a
file, and answers with its blocks, or why there are none.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from genius_lite.data.files import decoded
from genius_lite.data.sandbox import Message, serve
from genius_lite.errors import UserError
from genius_lite.text import first_line

PACKAGES = {
    "Markdown": {"markdown_it": "markdown-it-py>=3.0", "bs4": "beautifulsoup4>=4.12"},
    "HTML": {"bs4": "beautifulsoup4>=4.12"},
    "PDF": {"pypdf": "pypdf>=6.0"},
}
"""What reads them: modules, and the packages that bring these."""

_LONGEST = 5_000_000  # characters of a document: a library of novels
_LEVELS = {f"h{level}": level for level in range(1, 7)}
_ELEMENTS = (
    *_LEVELS, "p", "pre", "li", "dt", "dd", "tr", "caption", "figcaption", "blockquote", "div", "section", "article",
    "header", "footer", "aside", "main", "address", "summary", "details", "body",
)  # fmt: skip
_LEFT_OUT = ("script", "style", "template", "noscript", "nav", "form", "title", "svg")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
_UNDERLINED = re.compile(r"(.+)\n([=\-~^*#])\2{2,}")  # a heading in plain text


class Block(NamedTuple):
    """A heading, of `level` 1 to 6, or a paragraph, of level 0; of a PDF also its page."""

    text: str
    level: int = 0
    page: int | None = None


def _start(opening: Message) -> Callable[[Message], Message]:
    """Return what reads a document. What its library raises beside its own errors ends this process, an answer too."""
    readers = {"Markdown": _markdown, "HTML": _html, "text": _text, "PDF": _pdf}

    def read(message: Message) -> Message:
        try:
            found = readers[message["kind"]](Path(message["path"]))
            blocks = [block._replace(text=text) for block in found if (text := _whole(block.text)).strip()]
        except (OSError, RecursionError, UnicodeError) as e:
            raise UserError(first_line(e)) from None
        if not any(block.level == 0 for block in blocks):
            raise UserError("no text in it")
        return {"blocks": blocks}

    return read


def _whole(text: str) -> str:
    """Replace half characters, and leave out NUL: both come out of some PDFs, and no tokenizer takes them."""
    return text.encode(errors="replace").decode().replace("\0", "").strip("\n")


def _require_bounded(length: int) -> None:
    if length > _LONGEST:
        raise UserError(f"more than {_LONGEST:,} characters; split it")


def _content(path: Path) -> str:
    """Read a text file, in the encoding of its mark or UTF-8."""
    with path.open("rb") as file:
        text = decoded(file).read(_LONGEST + 1)
    _require_bounded(len(text))
    if "\0" in text:
        raise UserError("no text, but binary data")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("no UTF-8; save it as UTF-8") from None
    return text


def _text(path: Path) -> Iterator[Block]:
    for paragraph in re.split(r"\n\s*\n", _content(path)):
        if heading := _UNDERLINED.fullmatch(paragraph.strip()):
            yield Block(heading[1].strip(), 1)
        else:
            yield Block(paragraph.strip())


def _markdown(path: Path) -> Iterator[Block]:
    from markdown_it import MarkdownIt

    text = _FRONT_MATTER.sub("", _content(path))
    return _elements(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def _html(path: Path) -> Iterator[Block]:
    if path.stat().st_size > 4 * _LONGEST:
        raise UserError(f"more than {4 * _LONGEST:,} bytes; split it")
    raw = path.read_bytes()
    if b"\0" in raw and raw[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError("no text, but binary data")
    return _elements(raw)


def _elements(markup: str | bytes) -> Iterator[Block]:
    """Read the strings of HTML, joined as far as they stand in the same element."""
    from bs4 import BeautifulSoup
    from bs4.element import NavigableString, Tag

    soup = BeautifulSoup(markup, "html.parser")
    for away in soup(_LEFT_OUT):
        away.decompose()
    for cell in soup(["td", "th"]):
        cell.append(" | ")
    for line in soup("br"):
        line.replace_with("\n")

    def holder(string: Any) -> Tag:
        return string.find_parent(_ELEMENTS) or soup

    strings = (string for string in soup.find_all(string=True) if type(string) is NavigableString)
    for _, together in groupby(((holder(string), string) for string in strings), key=lambda each: id(each[0])):
        (element, first), *rest = together
        text = "".join([first, *(string for _, string in rest)])
        if element.name == "pre":
            yield Block(text.strip("\n"))
        else:
            yield Block(" ".join(text.split()).rstrip(" |"), _LEVELS.get(element.name, 0))


def _pdf(path: Path) -> Iterator[Block]:
    import pypdf
    from pypdf.errors import DependencyError, PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    length = 0
    try:
        reader = pypdf.PdfReader(io.BytesIO(path.read_bytes()))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UserError("it wants a password")
        for number, page in enumerate(reader.pages, 1):
            text = re.sub(r"(?<=\w)-\n(?=[^\W\d_])", "", page.extract_text())  # words cut at a line's end
            length += len(text)
            _require_bounded(length)
            for paragraph in re.split(r"\n\s*\n", text):
                yield Block(paragraph.strip(), page=number)
    except (
        *(PyPdfError, DependencyError, LookupError, ValueError, TypeError),
        *(AttributeError, ArithmeticError, AssertionError, NotImplementedError),  # "might cause other exceptions"
    ) as e:
        raise UserError(f"not a PDF that can be read: {first_line(e)}") from None
    if not length:
        raise UserError("no text in it; are its pages pictures?")


if __name__ == "__main__":
    serve(_start)
