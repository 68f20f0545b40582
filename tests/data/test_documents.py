"""Documents as passages: what their libraries read, how they are cut, and what is set aside."""

from __future__ import annotations

import importlib.util
import io
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject, StreamObject

from genius_lite.data import blocks, documents
from genius_lite.data.blocks import Block
from genius_lite.data.documents import Passage, Read, cut, read_documents, require_libraries
from genius_lite.data.files import KINDS
from genius_lite.errors import UserError
from genius_lite.progress import SILENT


def pdf(*pages: str, password: str = "", packed: bytes = b"") -> bytes:
    """Write a page for each text, line by line; or one of a content stream that is packed already."""
    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for text in pages or [""]:
        page = writer.add_blank_page(612, 792)
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        shown = "".join(f"({line}) Tj T* " for line in text.splitlines())
        content: StreamObject = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET".encode())
        if packed:
            content = StreamObject()
            content._data = packed
            content[NameObject("/Filter")] = NameObject("/FlateDecode")
        page[NameObject("/Contents")] = writer._add_object(content)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def words(text: str) -> int:
    """Count tokens as these tests do."""
    return len(text.split())


def read(source: Path, most: int = 40) -> Read:
    return read_documents(source, words, most, SILENT)


SAID = ("Otters", "Otters hold hands while they sleep.", "Their fur is dense.")
MARKDOWN = f"---\ntitle: x\n---\n# {SAID[0]}\n\n{SAID[1]}\n\n{SAID[2]}\n"
HTML = f"""<!doctype html><html><head><title>t</title><style>p {{}}</style></head><body><nav>Home</nav>
<h1>{SAID[0]}</h1><!-- no --><div><p>Otters <b>hold</b>\n hands while they sleep.</p>{SAID[2]}<script>x()</script></div>
</body></html>"""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", MARKDOWN.encode()),
        ("a.MARKDOWN", MARKDOWN.encode("utf-8-sig").replace(b"---\ntitle: x\n---\n", b"")),
        ("a.html", HTML.encode()),
        ("a.htm", HTML.encode("utf-16")),
        ("a.txt", f"{SAID[0]}\n======\n\n{SAID[1]}\r\n\r\n{SAID[2]}".encode()),
    ],
)
def test_what_documents_say(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    text = f"{SAID[1]}\n\n{SAID[2]}"
    assert read(tmp_path) == Read(1, [Passage(name, 1, SAID[0], text)], [], 0)
    assert read(tmp_path / name).passages == [Passage(name, 1, SAID[0], text)], "a single one"


def test_pages_of_a_pdf(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("Otters hold hands while they sleep.\nThey are mam-\nmals.", "Fur is dense."))
    (passage,) = read(tmp_path).passages
    assert passage == Passage(
        "a.pdf", 1, "page 1", "Otters hold hands while they sleep.\nThey are mammals.\n\nFur is dense."
    )
    assert [p.below for p in read(tmp_path, most=9).passages] == ["page 1", "page 2"]


def test_tables_lists_and_code_of_markdown(tmp_path):
    (tmp_path / "a.md").write_text(
        "# A\n\nText with `code` and [a link](b.md).\n\n- one\n- two\n  - three\n\n| k | v |\n|---|---|\n| a | 1 |\n\n"
        "```sh\nrun  x\n  y\n```\n\n<p align='center'>In <b>HTML</b></p>\n"
    )
    (passage,) = read(tmp_path).passages
    assert passage.text.split("\n\n") == [
        *("Text with code and a link.", "one", "two", "three", "k | v", "a | 1", "run  x\n  y", "In HTML"),
    ]


def test_passages_follow_headings():
    blocks = [
        Block("Otters", 1), Block("They swim all day long."), Block("Fur", 2), Block("It is dense. " * 5),
        Block("Food", 2), Block("They eat fish. " * 6), Block("Herons", 1),
        Block("Not a mammal."), Block("Last, without text", 2),
    ]  # fmt: skip
    found = [*cut("a.md", blocks, words, 20)]
    assert [(p.number, p.below) for p in found] == [
        (1, "Otters"), (2, "Otters > Fur"), (3, "Otters > Food"), (4, "Herons"),
    ]  # fmt: skip
    assert found[0].text == "They swim all day long.", "a heading stands above what follows it"
    together = [*cut("a.md", blocks[:4], words, 40)]
    assert [p.text.split("\n\n")[:2] for p in together] == [["They swim all day long.", "Fur"]], (
        "a short section is not alone"
    )


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text("ab .!?\n。", max_size=120), st.integers(0, 3)), max_size=12),
    st.integers(2, 15),
)
def test_no_passage_is_too_long_and_no_text_is_lost(drawn, most):
    blocks = [Block(text.strip(), level) for text, level in drawn if text.strip()]
    # Tokens of a letter each, so that a text without a blank is cut, too.
    found = [*cut("x", blocks, len, most)]
    assert all(sum(map(len, p.text.split("\n\n"))) <= most for p in found)
    assert [p.number for p in found] == [*range(1, len(found) + 1)]
    said = "".join("".join(block.text.split()) for block in blocks if block.level == 0)
    kept = iter("".join("".join(p.text.split()) for p in found))
    assert all(letter in kept for letter in said), "in its order"


def test_what_cannot_be_read_is_set_aside_and_named(tmp_path):
    (tmp_path / "good.md").write_text(MARKDOWN)
    (tmp_path / "cut.pdf").write_bytes(pdf("text")[:300])
    (tmp_path / "no.pdf").write_bytes(b"hello")
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    (tmp_path / "locked.pdf").write_bytes(pdf("text", password="secret"))
    (tmp_path / "bomb.pdf").write_bytes(pdf(packed=zlib.compress(b"(x) Tj " * 40_000_000)))
    (tmp_path / "binary.md").write_bytes(os.urandom(40) + b"\0")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "headings.md").write_text("# A\n\n## B\n")
    (tmp_path / "huge.txt").write_bytes(b"a word " * 1_000_000)
    (tmp_path / "nowhere.md").symlink_to("not-there.md")
    (tmp_path / "loop.md").symlink_to("loop.md")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.md").write_text(MARKDOWN)
    (tmp_path / "picture.png").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.txt")
    found = read(tmp_path)
    assert ([p.file for p in found.passages], found.documents, found.others) == (["good.md"], 1, 1)
    reasons = dict(line.split(": ", 1) for line in found.set_aside)
    for name, told in {
        "cut.pdf": "not a PDF that can be read",
        "no.pdf": "not a PDF that can be read",
        "scan.pdf": "no text in it",
        "locked.pdf": "password",
        "bomb.pdf": "",
        "binary.md": "binary data",
        "latin.txt": "save it as UTF-8",
        "empty.txt": "no text in it",
        "headings.md": "no text in it",
        "huge.txt": "more than 5,000,000 characters",
        "nowhere.md": "link to nowhere",
        "loop.md": "link to nowhere",
        "pipe.txt": "no file that can be read",
    }.items():
        assert told in reasons.pop(name), name
    assert reasons == {}


def test_blanks_between_nuls_are_no_text(monkeypatch):
    monkeypatch.setattr(blocks, "_pdf", lambda path: [Block("A heading", 1), Block(f"\0{' ' * 3000}\0", page=1)])
    with pytest.raises(UserError, match="no text in it"):
        blocks._start({})({"kind": "PDF", "path": "a.pdf"})


def test_names_that_are_no_text_and_folders_that_nobody_can_read(tmp_path, monkeypatch):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("It is open at nine.")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = read(tmp_path)
    assert [passage.file for passage in found.passages] == ["caf\N{REPLACEMENT CHARACTER}.txt"]
    assert found.set_aside == [f"{tmp_path / 'locked'}: Permission denied"]
    with pytest.raises(UserError, match=r"no document in this folder; .*locked: Permission denied"):
        read(tmp_path / "locked")


def test_a_document_without_end_is_set_aside_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_SECONDS", 1)
    (tmp_path / "a.html").write_text("<div>" * 60_000 + "x <br>" * 30_000)
    (tmp_path / "b.md").write_text(MARKDOWN)
    found = read(tmp_path)
    assert found.set_aside == ["a.html: it takes more than 1 s"]
    assert [p.file for p in found.passages] == ["b.md"]


@pytest.mark.parametrize("kind", sorted({*KINDS.values()} - {"text"}))
def test_a_missing_library_is_named(monkeypatch, kind):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"documents in {kind} need a package: pip install '"):
        require_libraries(kind)
    require_libraries("text")


def test_unusable_folders(tmp_path):
    for source, told in [
        (tmp_path, "no document in this folder; one ends in .md"),
        (tmp_path / "x", "no such folder, and no such document"),
        (Path(__file__), "a document is one of .md"),
    ]:
        with pytest.raises(UserError, match=told):
            read(source)
