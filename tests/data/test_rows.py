"""Sources as people have them: how files are written, named, packed and broken."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from genius_lite.data.files import Fault, files_of, stem_of
from genius_lite.data.queries import Questions, text_columns
from genius_lite.data.rows import Columns, read_rows
from genius_lite.errors import UserError
from genius_lite.recipe import Queries
from genius_lite.recipe.reader import load

TWO = ["What is 2 + 2?", "What is 3 + 4?"]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
LINES = b"".join(json.dumps({"prompt": text}).encode() + b"\n" for text in TWO)


def _read(source: Path | str, **more) -> list[str]:
    return [question.text for _, question in Questions(Queries(source=str(source), **more))]


def _zst(raw: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(raw)
    return out.getvalue().to_pybytes()


def _parquet(table: pyarrow.Table, **more) -> bytes:
    out = pyarrow.BufferOutputStream()
    parquet.write_table(table, out, **more)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("content", "questions"),
    [
        # One column: a comma belongs to the text.
        ("prompt\nHow many legs have three cats, if each has 4?\nWhat is 7 + 5?\n", 2),
        ("prompt\nA box, how many?\nWhat is 9 * 3?\nTwo boxes; how many, then?\n", 3),
        ('prompt\n"Wie viel ist 2 + 2?"\n"Wie viel ist 2,5\n+ 1?"\n', 2),
        ("prompt,\nWhat is 2?,\nWhat is 3?,\n", 2),  # Excel's empty column
        ('\ufeffprompt;level\n"Wie viel ist 2 + 2?";leicht\n"Wie viel ist 2,5 + 1?";schwer\n', 2),
        ("sep=;\nprompt;level\nWhat is 2, or 3?;1\n", 1),
        ("id\tprompt\n1\tHe said, \"no\"; why?\n2\t\"Why\" is what?\n", 2),
        ("level, prompt\neasy,  What is 2?\n", 1),
        ('prompt,level\n"He said \\"no, no\\", why?",easy\nWhat is 2?,hard\n', 2),
        ("'prompt','level'\n'What is 2, or 3?','it''s'\n", 1),
        ("prompt,level\r\nWhat is 2?,easy\r\n\r\nWhat is 3?,\r\n", 2),
        ("prompt,level\rWhat is 2?,easy\rWhat is 3?,hard\r", 2),
        ("prompt\n" + "".join(f"What is {n}?\n" for n in range(600)) + "And this, what is it?\n", 601),
        ('id, prompt\n1, "What is 2, or 3?"\n2, "How?"\n', 2),
        ("\n\nprompt,level\nWhat is 2?,easy\n", 1),
        ("id,prompt\n" + "".join(f'{n},"What is {n}?"\n' for n in range(9)) + '9,"He said "no", why?"\n', 9),
        # Quotes that stand for themselves, which no row takes others with it for.
        ("id,prompt\n" + "".join(f'{n},"Why" is {n} what?\n' for n in range(9)), 9),
        ("id,prompt\n" + "".join(f'{n},"Why is {n}?\n' for n in range(9)), 9),
    ],
)  # fmt: skip
def test_tables_as_people_write_them(tmp_path, content, questions):
    (tmp_path / "q.csv").write_bytes(content.encode())
    found = _read(tmp_path / "q.csv")
    assert len(found) == questions
    assert all(text[:1].isalpha() or text[0] == '"' for text in found), "none is a fragment"
    assert all(text[-1] == "?" for text in found)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("How many, if each has 4?,easy", "3 fields, and the header has 2; a text with ',' in it stands in quotes"),
        ('"Why is it, easy', "a quote that does not end"),
        ('"Why" is it, or not,"easy"', "a quote"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 999])
def test_a_broken_row_of_a_table_takes_no_other_with_it(tmp_path, row, told, at):
    rows = [f'"What is {n}, plus 1?",easy' for n in range(1000)]
    expected = [f"What is {n}, plus 1?" for n in range(1000) if n != at]
    rows[at] = row
    (tmp_path / "q.csv").write_text("prompt,level\n" + "\n".join(rows) + "\n")
    questions = Questions(Queries(source=str(tmp_path / "q.csv")))
    assert [question.text for _, question in questions] == expected
    assert str(questions.rows).startswith(f"1 row is set aside; {tmp_path / 'q.csv'}:{at + 2}: ")
    assert told in str(questions.rows)


@pytest.mark.parametrize(("header", "row"), [("id,prompt", "{n},One, or {n}?"), ("prompt,answer", "One, or {n}?,")])
def test_a_table_whose_texts_are_all_cut_is_refused(tmp_path, header, row):
    (tmp_path / "q.csv").write_text(f"{header}\n" + "".join(row.format(n=n) + "\n" for n in range(9)))
    with pytest.raises(UserError, match=r"q\.csv:2: 3 fields, and the header has 2.*8 other rows"):
        _read(tmp_path / "q.csv")


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([f"What is {n}?,{n}" for n in range(300)] + ["Or, is it?,7"], ["prompt", "answer"]),
        ([f"What is {n}, or more?,{n}" for n in range(9)] + ["What is 9?,9"], ["prompt,answer"]),  # no table of two
    ],
)
def test_where_nothing_is_asked_for_a_few_broken_rows_make_no_table_of_one_column(tmp_path, rows, columns):
    (tmp_path / "q.csv").write_text("\n".join(["prompt,answer", *rows]))
    assert [*text_columns(str(tmp_path / "q.csv"))] == columns


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (r"Is \frac{1}{2} more than \alpha, or \% x?", r"Is \frac{1}{2} more than \alpha, or \% x?"),
        (r"Is \\frac{1}{2} \"more\" than 10\, 000?", r'Is \frac{1}{2} "more" than 10, 000?'),
        ("Two\\\nlines, \\\\\nthree?", "Two\nlines, \\\nthree?"),
    ],
)
@pytest.mark.parametrize("form", ['"{}",easy\n', 'easy,"{}"\n'])
def test_backslashes_that_escape_nothing_are_part_of_the_text(tmp_path, cell, text, form):
    header = "prompt,level\n" if form.endswith("easy\n") else "level,prompt\n"
    (tmp_path / "q.csv").write_text(header + form.format(cell) + form.format(r"He said \"no, \\ no\"?"))
    assert _read(tmp_path / "q.csv") == [text, 'He said "no, \\ no"?']


@pytest.mark.parametrize("first", [0, 100, 299])
def test_escaped_quotes_that_come_late_in_texts_of_many_lines_are_known(tmp_path, first):
    """No fault shows where they are not: nine lines a row, so that 500 lines are 55 rows."""
    steps, said = "step\n" * 8, 'he said \\"so\\", twice'
    rows = [f'"q {n}","{steps}{said if n >= first else "plain, text"}"\n' for n in range(300)]
    (tmp_path / "q.csv").write_text("question,answer\n" + "".join(rows), encoding="utf-8")
    assert _read(tmp_path / "q.csv", column="question") == [f"q {n}" for n in range(300)]


def test_two_columns_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "q.csv").write_text("prompt,level,prompt,x,x\nWhy?,1,How?,2,3\n")
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([text]) for text in ("Why?", "1", "How?")], ["prompt", "x", "prompt"]
    )
    parquet.write_table(table, tmp_path / "q.parquet")
    for name in ("q.csv", "q.parquet"):
        with pytest.raises(UserError, match=r"no column `prompt`; it has prompt \(1 of 2\), .*, prompt \(2 of 2\)"):
            _read(tmp_path / name)
    assert _read(tmp_path / "q.csv", column="prompt (2 of 2)") == ["How?"]
    assert _read(tmp_path / "q.csv", column="level") == _read(tmp_path / "q.parquet", column="x") == ["1"]


def test_times_that_python_has_none_for_are_of_no_matter(tmp_path):
    times = pyarrow.array([2**62], pyarrow.timestamp("us")), pyarrow.array([1], pyarrow.timestamp("us", tz="No/Where"))
    table = pyarrow.table({"prompt": ["Why?"], "late": times[0], "nowhere": times[1]})
    parquet.write_table(table, tmp_path / "q.parquet")
    assert text_columns(str(tmp_path / "q.parquet")) == {"prompt": "Why?"}


@pytest.mark.parametrize(
    "name",
    ["Q.JSONL", "q.ndjson", "q.json", "q.jsonl.gz", "q.JSONL.GZ", "q.jsonl.zst", "no-suffix", "q[1].jsonl"],
)
def test_suffixes(tmp_path, name):
    pack = gzip.compress if name.lower().endswith("gz") else _zst if name.endswith("zst") else bytes
    (tmp_path / name).write_bytes(pack(LINES))
    assert _read(tmp_path / name) == TWO


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.tsv", b"prompt\tlevel\n" + b"\teasy\n".join(text.encode() for text in TWO) + b"\teasy\n"),
        ("q.csv.gz", gzip.compress(b"prompt\n" + "\n".join(TWO).encode(), mtime=0)),
        ("q.txt.zst", _zst("\r\n".join(TWO).encode("utf-8-sig"))),
        ("q.parquet.gz", gzip.compress(_parquet(pyarrow.table({"prompt": TWO})), mtime=0)),
        ("Q.PARQUET", _parquet(pyarrow.table({"prompt": TWO}))),
        ("stored", _parquet(pyarrow.table({"prompt": TWO}))),
        ("q.json", json.dumps([{"prompt": text} for text in TWO], indent=2).encode()),
        ("q.json", "".join(json.dumps({"prompt": text}, indent=1) for text in TWO).encode()),
        ("q.json", json.dumps({"version": 1, "data": [{"prompt": text} for text in TWO]}).encode()),
        ("q.json", json.dumps({"prompt": {"0": TWO[0], "1": TWO[1]}, "level": {"0": 1, "1": 2}}).encode()),
        ("q.json", json.dumps({"prompt": TWO, "level": [1, 2]}, indent=1).encode()),
        ("q.json", json.dumps(TWO).encode()),
        ("q.json", LINES.decode().encode("utf-16")),
        ("q.tsv", ("prompt\tlevel\r\n" + "".join(f"{text}\teasy\r\n" for text in TWO)).encode("utf-16")),  # Excel's
        ("table", b"level;prompt\n" + "".join(f"easy;{text}\n" for text in TWO).encode()),
        ("lines", "\n".join(TWO).encode()),
        ("q.txt", "\n".join(f"\ufeff{text}" for text in TWO).encode()),  # files with marks, put together
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_formats_by_name_and_by_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert _read(tmp_path / name) == TWO


def test_folders_patterns_and_links(tmp_path):
    for number, text in enumerate(TWO):
        (tmp_path / f"part-{number}.jsonl.gz").write_bytes(
            gzip.compress(json.dumps({"prompt": text}).encode(), mtime=0)
        )
    (tmp_path / "README.md").write_text("Questions.")
    (tmp_path / "part-2.jsonl.gz").touch()
    (tmp_path / "._part-0.jsonl").write_bytes(b"\0")
    assert _read(tmp_path) == _read(tmp_path / "part-*.gz") == TWO
    (named := tmp_path / "[old] questions?").mkdir()
    (named / "part-0.jsonl").write_text('{"prompt": "Who?"}\n')
    assert _read(named / "part-*.jsonl") == ["Who?"], "a folder is meant as it is called"
    (tmp_path / "q.csv").write_text("prompt\nWhy?\n")
    with pytest.raises(UserError, match=r"files of several kinds, such as .*; write a pattern"):
        _read(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        _read(tmp_path / "*.tsv")
    # The hub's cache: names that lead to hashes.
    blob, name = tmp_path / "blobs" / "1111", tmp_path / "snapshots" / "abc" / "q.jsonl"
    for path in (blob, name):
        path.parent.mkdir(parents=True)
    blob.write_bytes(LINES)
    name.symlink_to("../../blobs/1111")
    (tmp_path / "r.yaml").write_text(f"model: {{gguf: {name}}}\nqueries: {{source: {name}}}\n")
    recipe = load(tmp_path / "r.yaml")
    assert recipe.model.gguf == recipe.queries.source == str(name)
    assert _read(recipe.queries.source) == _read(blob) == TWO


def test_of_documents_it_is_said_how_they_become_questions(tmp_path):
    (tmp_path / "my notes").mkdir()
    (tmp_path / "my notes" / "a.md").write_text("# Notes")
    for source in (tmp_path / "my notes", tmp_path / "my notes" / "a.md"):
        with pytest.raises(UserError) as e:
            _read(source)
        asking = f"a model asks about documents: genius-lite questions '{source}' --model MODEL --out OUT.jsonl"
        assert str(e.value).endswith(asking)
    (tmp_path / "my notes" / "a.md").rename(tmp_path / "my notes" / "a.c")
    with pytest.raises(UserError, match=r"with \.gz or \.zst after it$"):
        _read(tmp_path / "my notes")


def test_names_of_tasks():
    names = ("a/b.jsonl", "gsm8k.test.csv.gz", "Q.PARQUET", "folder", "-", "a/*.jsonl", "a/part-*.csv", "*.jsonl")
    wanted = ["b", "gsm8k.test", "Q", "folder", "-", "a", "part-*", "*"]
    assert [stem_of(name) for name in names] == wanted


def test_a_drive_that_is_gone_is_one_line(monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    with pytest.raises(UserError, match=r"Z:/q\.jsonl: no such file"):
        files_of("Z:/q.jsonl")


def test_rows_of_one_object_are_numbered_as_rows(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"version": 1, "data": [{"prompt": "Who?"}, {"prompt": None}]}, indent=1))
    places = [row.place for row in read_rows(str(path), ())]
    assert places == [f"{path}, row 1", f"{path}, row 2"], "a line would be another one"


@pytest.mark.parametrize("content", [LINES, gzip.compress(LINES, mtime=0), b"prompt\n" + "\n".join(TWO).encode()])
def test_standard_input_needs_no_cache_and_no_home(content, tmp_path):
    code = (
        "import sys; from genius_lite.data.queries import Questions; from genius_lite.recipe import Queries\n"
        "print([q.text for _, q in Questions(Queries(source='-'))], 'datasets' in sys.modules, 'pandas' in sys.modules)"
    )
    nowhere = {"HOME": "/proc/nobody", "HF_HOME": "/proc/hf", "XDG_CACHE_HOME": "", "PYTHONPATH": str(Path.cwd())}
    ended = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, env=nowhere, check=True)
    assert ended.stdout.decode() == f"{TWO} False False\n"


def test_types_are_not_guessed_and_other_columns_not_looked_at(tmp_path):
    with (tmp_path / "q.jsonl").open("w") as file:
        for number in range(24_000):
            note, key = ("seen", f"x{number}") if number >= 23_900 else (None, number)
            file.write(json.dumps({"prompt": f"What is {number}? {'x' * 400}", "note": note, "id": key}) + "\n")
    assert len(_read(tmp_path / "q.jsonl")) == 24_000


@pytest.mark.parametrize(
    "row",
    [
        {
            "id": "q1",
            "source": "homework",
            "model": "none",
            "system_prompt": "Be brief.",
            "messages": [{"role": "user"}],
        },
        {"type": "question", "id": "q1", "version": 1, "cwd": "/w"},
        {"other": float("nan"), "more": [1, {"a": []}], "nothing": None, "large": 10**400},
    ],
)
def test_other_columns_are_of_no_matter(tmp_path, row):
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({**row, "prompt": text}) + "\n" for text in TWO))
    assert _read(tmp_path / "q.jsonl") == TWO


def test_bytes_of_another_encoding_matter_where_they_are_asked_for(tmp_path):
    (tmp_path / "q.csv").write_bytes("prompt,note\nWhat is 2?,caf\xe9\n".encode("latin-1"))
    assert _read(tmp_path / "q.csv") == ["What is 2?"]
    with pytest.raises(UserError, match=r"q\.csv:2: the byte E9 is no UTF-8 where it stands; save the file as UTF-8"):
        _read(tmp_path / "q.csv", column="note")


def test_a_header_of_another_encoding_is_told_as_that(tmp_path):
    (tmp_path / "q.csv").write_bytes("ID,Prüffrage\n1,Why?\n".encode("cp1252"))
    with pytest.raises(
        UserError, match=r"it has ID, Pr\\udcfcffrage; its header is not UTF-8: save the file as UTF-8$"
    ):
        _read(tmp_path / "q.csv", column="Prüffrage")


@pytest.mark.parametrize("form", ["{0}\n{1}\n{1}\n", "[{0},\n{1},\n{1}]"])
def test_a_row_that_says_a_key_twice_is_set_aside(tmp_path, form):
    path = tmp_path / "q.json"
    path.write_text(form.format('{"prompt": "a", "prompt": "b"}', '{"prompt": "c", "n": {"m": 1, "m": 2}}'))
    questions = Questions(Queries(source=str(path)))
    assert [question.text for _, question in questions] == ["c"]
    assert str(questions.rows) == f"1 row is set aside; {path}:1: the key `prompt` stands twice in it"


def test_one_bad_row_of_thousands_is_set_aside_and_named(tmp_path):
    rows = [json.dumps({"prompt": f"What is {number}?"}) for number in range(3000)]
    for number, bad in ((17, '{"prompt": "x'), (20, '{"question": "x"}'), (2000, '{"prompt": 7}'), (2001, '["x"]')):
        rows[number] = bad
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    questions = Questions(Queries(source=str(tmp_path / "q.jsonl")))
    assert len([*questions]) == 2996
    assert str(questions.rows).startswith(f"4 rows are set aside; the first: {tmp_path / 'q.jsonl'}:18: not JSON: ")


def test_a_million_rows_of_the_wrong_kind_are_not_read_to_their_end(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "x"}\n' * 1_000_000)
    begun = time.process_time()
    with pytest.raises(UserError, match=r"q\.jsonl:1: no column `prompt`; it has question.*999 other rows"):
        _read(tmp_path / "q.jsonl")
    assert time.process_time() - begun < 1


def test_a_million_rows_with_a_limit_take_neither_time_nor_memory(tmp_path):
    table = pyarrow.table({"prompt": [f"What is {n} + {n}?" for n in range(1_000_000)]})
    parquet.write_table(table, tmp_path / "q.parquet", row_group_size=1_000_000)
    arrow_csv.write_csv(table, tmp_path / "q.csv")
    with (tmp_path / "q.jsonl").open("w") as lines, (tmp_path / "q.json").open("w") as array:
        rows = [f'{{"prompt": "What is {n} + {n}?"}}' for n in range(1_000_000)]
        lines.writelines(f"{row}\n" for row in rows)
        array.write(f"[{', '.join(rows)}]")
    code = (
        "import resource, sys, time; from itertools import islice\n"
        "from genius_lite.data.rows import Columns, read_rows\n"
        "if sys.argv[1].endswith('parquet'): import pyarrow.parquet\n"
        "before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "found = [*islice(read_rows(sys.argv[1], [Columns(('prompt',))]), 5)]\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(len(found), time.process_time() - begun, (after - before) / 1000)"
    )
    for name in ("q.parquet", "q.csv", "q.jsonl", "q.json"):
        told = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, check=True, text=True)
        count, seconds, megabytes = map(float, told.stdout.split())
        assert count == 5
        assert seconds < 1, name
        assert megabytes < 60, name


def test_two_kilobytes_do_not_become_gigabytes(tmp_path):
    wide = _parquet(pyarrow.table({"prompt": ["a" * 100_000_000]}), compression="zstd", use_dictionary=False)
    assert len(wide) < 50_000
    (tmp_path / "wide.parquet").write_bytes(wide)
    with pytest.raises(UserError, match=r"bytes of it unpack to 100,\d+,\d+: no file of questions is like that"):
        _read(tmp_path / "wide.parquet")
    # Written once, in a hundred thousand rows.
    often = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), ["b" * 900_000])
    (tmp_path / "often.parquet").write_bytes(_parquet(pyarrow.table({"prompt": often}), compression="zstd"))
    with pytest.raises(UserError, match=r"row 1: a question of 900000 characters; 200000 is the most.*999 other rows"):
        _read(tmp_path / "often.parquet")
    # A part of the column, of which a dot in its name is none; and written once, in a list.
    dotted = pyarrow.table({"a.b": ["a" * 100_000_000]})
    (tmp_path / "dotted.parquet").write_bytes(_parquet(dotted, compression="zstd", use_dictionary=False))
    with pytest.raises(UserError, match=r"bytes of it unpack to 100,\d+,\d+: no file of questions is like that"):
        _read(tmp_path / "dotted.parquet", column="a.b")
    for kind in (pyarrow.string(), pyarrow.large_string()):
        lists = pyarrow.table({"messages": pyarrow.array([["b" * 900_000] * 700], pyarrow.list_(kind))})
        (tmp_path / "lists.parquet").write_bytes(_parquet(lists, compression="zstd"))
        with pytest.raises(UserError, match="630,000,000 bytes come out of 1 row of it: no file of questions is like"):
            _read(tmp_path / "lists.parquet")
    (tmp_path / "line.txt.gz").write_bytes(gzip.compress(b"c" * 50_000_000 + b"\nWhy?\nHow?\n", mtime=0))
    assert _read(tmp_path / "line.txt.gz") == ["Why?", "How?"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("q.jsonl.gz", gzip.compress(LINES * 99, mtime=0)[:-9], "cannot be read"),
        ("q.jsonl.zst", _zst(LINES * 99)[:9], "cannot be read"),
        ("q.jsonl.bz2", bz2.compress(LINES), "a file of questions is one of .jsonl"),
        ("q.json", b'[{"prompt": "a"}, {"prompt": ', "q.json:1: not JSON"),
        ("q.json", b'[{"prompt": "a"}]\n[{"prompt": "b"}]', "text behind the end of an array"),
        ("q.json", b'[\n{"prompt": "a"}\n', "q.json:3: not JSON: the array does not end"),
        ("q.parquet", _parquet(pyarrow.table({"text": TWO})), "no column `prompt`; it has text"),
        ("q.csv", b"question,level\na,b\n", "no column `prompt`; it has question, level"),
        ("q.json", "{'prompt': 'a'}".encode("utf-16")[:-1], "cannot be read"),
        ("q.txt", "Why?\nHow?\n".encode("utf-16-le"), "q.txt:1: NUL after NUL, as in UTF-16 without its mark"),
        *((f"q.{kind}", LFS, "a pointer of Git LFS, not the file itself") for kind in ("txt", "jsonl", "parquet")),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as e:
        _read(tmp_path / name)
    assert told in str(e.value)
    assert "\n" not in str(e.value)


def test_only_columns_that_are_asked_for_are_decoded(tmp_path):
    table = pyarrow.table({"prompt": TWO, "image": [b"\0" * 100, b"\1" * 100], "answer": ["4", "7"]})
    parquet.write_table(table, tmp_path / "q.parquet")
    rows = [row.values for row in read_rows(str(tmp_path / "q.parquet"), [Columns(("prompt",), ("answer",))])]
    assert rows == [{"prompt": TWO[0], "answer": "4"}, {"prompt": TWO[1], "answer": "7"}]
    assert not any(isinstance(row, Fault) for row in rows)


# What csv, json and pyarrow may write. Left out is what no reader can tell: a backslash where one escapes quotes, or
# where nothing but a comma in the only column is escaped.
letters = st.sampled_from("abc XYZ 019 ,,;\t\"'éß漢😀\n?.|{}[]:\u2028\x85")
texts = st.text(letters, min_size=1, max_size=25).map(str.strip).filter(bool)
tables = st.lists(texts, min_size=1, max_size=12, unique=True)
nested = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("kl"), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def rows_of(draw, questions, others):
    """Draw rows that hold the questions in their order, with gaps between them, and columns that nobody asks for."""
    names = draw(st.permutations(["prompt", *draw(st.lists(st.sampled_from("xyz"), max_size=3, unique=True))]))
    prompts: list[str | None] = [*questions]
    for _ in range(draw(st.integers(0, (len(questions) - 1) // 2))):
        prompts.insert(draw(st.integers(0, len(prompts))), None)
    return names, [{name: text if name == "prompt" else draw(others) for name in names} for text in prompts]


@st.composite
def parquet_files(draw, questions):
    names, rows = draw(rows_of(questions, texts | st.none()))
    string = pyarrow.string()
    kinds = [string, pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), string)]
    kind, plain = draw(st.sampled_from(kinds)), draw(st.booleans())
    table = pyarrow.table({name: pyarrow.array([row[name] for row in rows], kind) for name in names})
    if draw(st.booleans()):
        table = table.append_column("nested", pyarrow.array([[{"k": 1}, None]] * len(rows)))
        table = table.append_column("raw", pyarrow.array([b"\xff"] * len(rows)))
    options = {
        "compression": draw(st.sampled_from(["none", "snappy", "gzip", "zstd", "brotli", "lz4"])),
        "version": draw(st.sampled_from(["1.0", "2.4", "2.6"])), "row_group_size": draw(st.integers(1, 5)),
        "data_page_version": draw(st.sampled_from(["1.0", "2.0"])), "store_schema": draw(st.booleans()),
        "write_statistics": draw(st.booleans()), "write_page_index": draw(st.booleans()),
        "write_page_checksum": draw(st.booleans()), "use_dictionary": not plain,
    }  # fmt: skip
    if plain:
        encoding = draw(st.sampled_from(["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]))
        options["column_encoding"] = {"prompt": encoding}
    return "q.parquet", _parquet(table, **options)


@st.composite
def csv_files(draw, questions):
    names, rows = draw(rows_of(questions, texts))
    options = draw(
        st.sampled_from([
            {"quoting": csv.QUOTE_MINIMAL}, {"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_NONNUMERIC},
            {"quoting": csv.QUOTE_ALL, "quotechar": "'"},
            {"quoting": csv.QUOTE_ALL, "doublequote": False, "escapechar": "\\"},
            {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
        ])
    )  # fmt: skip
    cells = [text for row in rows for text in row.values() if text]
    if options["quoting"] == csv.QUOTE_NONE and (len(names) == 1 or any({*text} & {*'"\n'} for text in cells)):
        options = {"quoting": csv.QUOTE_ALL}
    if "doublequote" in options and any(text[0] in ",;\t" for text in cells):
        options = {"quoting": csv.QUOTE_ALL}  # after a text that ends in a quote it would be a field's end
    # Where lines end in \r alone, csv leaves a \n in a text without quotes.
    ends = draw(st.sampled_from(["\n", "\r\n", *(["\r"] if options["quoting"] in (1, 2) else [])]))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, delimiter=draw(st.sampled_from(",;\t")), lineterminator=ends, **options)
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        out.write(draw(st.sampled_from(["", "", ends])))
    return draw(st.sampled_from(["q.csv", "Q.TSV"])), out.getvalue()


@st.composite
def arrow_csv_files(draw, questions):
    names, rows = draw(rows_of(questions, texts))
    columns = {name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in names}
    separator, style = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["needed", "all_valid"]))
    out = pyarrow.BufferOutputStream()
    arrow_csv.write_csv(pyarrow.table(columns), out, arrow_csv.WriteOptions(delimiter=separator, quoting_style=style))
    return "q.csv", out.getvalue().to_pybytes().decode()


@st.composite
def json_files(draw, questions):
    how = {"ensure_ascii": draw(st.booleans()), "indent": draw(st.sampled_from([None, None, 0, 2, "\t"]))}
    shape = draw(st.sampled_from(["lines", "array", "one after another", "data", "columns"]))
    # An object of objects may be what pandas writes by columns, with a row's number before each cell.
    names, rows = draw(rows_of(questions, texts if shape == "columns" else nested))
    if shape == "lines":
        ends = st.sampled_from(["\n", "\n", "\r\n", " \n", "\n\n", "\n \n"])
        content = "".join(json.dumps(row, ensure_ascii=how["ensure_ascii"]) + draw(ends) for row in rows)
        content = content.rstrip() if draw(st.booleans()) else content
    elif shape == "one after another":
        content = draw(st.sampled_from(["\n", "", " "])).join(json.dumps(row, **how) for row in rows)
    else:
        whole = {"array": rows, "data": {"data": rows}, "columns": {n: [row[n] for row in rows] for n in names}}
        content = json.dumps(whole[shape], **how)
    return draw(st.sampled_from(["q.json", "q.jsonl", "Q.NDJSON"])), content


@st.composite
def files(draw):
    """Draw the name of a file, its bytes, and the questions in it."""
    questions = draw(tables)
    kind = draw(st.sampled_from([csv_files, csv_files, json_files, json_files, parquet_files, arrow_csv_files]))
    name, content = draw(kind(questions))
    if isinstance(content, bytes):
        return name, content, questions
    raw = content.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"])))
    suffix, pack = draw(st.sampled_from([("", bytes), (".gz", gzip.compress), (".zst", _zst)]))
    return name + suffix, pack(raw), questions


@settings(max_examples=100, deadline=None, derandomize=True)
@given(files())
def test_a_hundred_files_in_the_odd_ways_of_their_writers(tmp_path_factory, drawn):
    name, content, questions = drawn
    path = tmp_path_factory.mktemp("drawn") / name
    path.write_bytes(content)
    assert _read(path) == questions
