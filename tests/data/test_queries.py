from __future__ import annotations

import io
import json
import struct

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from genius_lite.data import queries
from genius_lite.data.queries import Questions, hold_out, select, text_columns
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.recipe import Queries
from genius_lite.records import held_count

THREE = ["What is 1 + 1?", "Is it \N{GREEK SMALL LETTER ALPHA}, or not?", 'He said "no".']


def _cfg(path, **options) -> Queries:
    return Queries(source=str(path), **options)


def read(cfg: Queries) -> list[str]:
    return [question.text for _, question in Questions(cfg)]


def _write(folder, kind):
    path = folder / f"q.{kind}"
    if kind == "txt":
        path.write_text("\n".join(THREE) + "\n\n", encoding="utf-8")
        return path
    table = pyarrow.table({"prompt": THREE, "other": [1, 2, 3]})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        frame = table.to_pandas()
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_json(path, orient="records", lines=True)
    return path


def test_many_questions_are_shuffled_on_the_disk(tmp_path, tiny_llama, monkeypatch):
    path = tmp_path / "q.jsonl"
    turns = [{"role": "system", "content": "Be \xe4."}, {"role": "user", "content": "Why?\nAnd how?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"prompt": "a"}, {"messages": turns}, {"prompt": "c"})))
    with Vocabulary.open(tiny_llama) as vocabulary:
        expected = select(_cfg(path, shuffle=True), vocabulary)
        monkeypatch.setattr(queries, "_IN_MEMORY", 1)
        assert select(_cfg(path, shuffle=True), vocabulary) == expected
    assert sorted(query.prompt for query in expected.queries) == ["Why?\nAnd how?", "a", "c"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "txt"])
def test_every_format_gives_the_same_questions(tmp_path, kind):
    assert [text for text in read(_cfg(_write(tmp_path, kind))) if text] == THREE


def test_selection(tmp_path, tiny_llama):
    path = tmp_path / "q.txt"
    path.write_text("a\nb\n a \nc\n\nb\nd\n")
    with Vocabulary.open(tiny_llama) as vocabulary:
        queries, _, duplicates, *_ = select(_cfg(path), vocabulary)
        assert ([q.prompt for q in queries], duplicates) == (["a", "b", "c", "d"], 2)
        shuffled, *_ = select(_cfg(path, shuffle=True, seed=3), vocabulary)
        expected = ["a", "b", "c", "d"]
        np.random.default_rng(3).shuffle(expected)
        assert [q.prompt for q in shuffled] == expected, "the order of earlier runs"
        limited, beyond, *_ = select(_cfg(path, shuffle=True, seed=3, limit=2), vocabulary, beyond=1)
        assert (limited, beyond) == (shuffled[:2], shuffled[2:3])
        assert sorted(q.prompt for q in shuffled) == ["a", "b", "c", "d"]
        orders = {tuple(q.prompt for q in select(_cfg(path, shuffle=True, seed=s), vocabulary)[0]) for s in range(9)}
        assert len(orders) > 1


@pytest.mark.parametrize(
    ("queries", "share", "most", "count"),
    [
        (100, 0.1, 16, 10),
        (1000, 0.1, 16, 16),  # all that are watched
        (10, 0.01, 16, 1),  # one at least
        (9, 0.01, 16, 0),
        (9, 0.1, 16, 1),
        (10, 0.0, 16, 0),
        (10, 0.1, 0, 0),
        (3, 0.99, 16, 2),  # never all of them
        (1, 0.99, 16, 0),
    ],
)
def test_so_many_queries_are_held_out(queries, share, most, count):
    assert held_count(queries, share, most) == count
    ids = [f"{number:016x}" for number in range(queries)]
    held = hold_out(ids, share, 3, most)
    assert (len(held), held <= {*ids}) == (count, True)
    assert hold_out(ids[::-1], share, 3, most) == held, "their order is no part of it"


def test_other_seeds_hold_out_others():
    ids = [f"{number:016x}" for number in range(100)]
    assert len({hold_out(ids, 0.1, seed, 16) for seed in range(5)}) == 5
    assert hold_out(ids, 0.1, 0, 16) < hold_out(ids, 0.15, 0, 16), "a larger share adds some"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b"", "is empty"),
        ("q.txt", b"\n  \n", "no question"),
        ("q.jsonl", b'{"question": "x"}\n', "no column `prompt`; it has question; say which in queries.column"),
        ("q.jsonl", b'{"prompt": 3}\n', "q.jsonl:1: `prompt` is 3, not text"),
        ("q.jsonl", b'{"prompt": "x"\n{', "q.jsonl:1: not JSON"),
        ("q.txt", b"\xff\xfe\xff", "cannot be read"),
        ("q.parquet", b"PAR1nonsense", "cannot be read as Parquet"),
        ("q.docx", b"x", "a file of questions is one of"),
    ],
)
def test_unusable_files(tmp_path, tiny_llama, name, content, message):
    (tmp_path / name).write_bytes(content)
    with Vocabulary.open(tiny_llama) as vocabulary, pytest.raises(UserError) as e:
        select(_cfg(tmp_path / name), vocabulary)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


HOSTILE = "a\x00b\x1b[31m \u202e\u2028\x0b\x85 <|im_end|>\\n[red] {{ 7 * 7 }} ' \" , ;"


def _jsonl(text: str) -> bytes:
    return json.dumps({"prompt": text}).encode() + b"\n"


def _csv(text: str) -> bytes:
    return b'prompt,other\n"' + text.replace('"', '""').encode() + b'",1\n'


def _parquet(text: str) -> bytes:
    return _parquet_of(pyarrow.array([text]))


def _parquet_of(column: pyarrow.Array) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), out)
    return out.getvalue()


WRITERS = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "txt": lambda text: text.encode() + b"\n"}


@pytest.mark.parametrize("kind", WRITERS)
def test_control_characters_and_imitations_are_kept_as_they_are(tmp_path, tiny_llama, kind):
    path = tmp_path / f"q.{kind}"
    path.write_bytes(WRITERS[kind](HOSTILE))
    with Vocabulary.open(tiny_llama) as vocabulary:
        (query,), _, duplicates, *_ = select(_cfg(path), vocabulary)
        assert (query.prompt, duplicates) == (HOSTILE, 0)
        assert [t for t in query.tokens if t >= 256] == [257, 258, 257]
        assert HOSTILE in vocabulary.decode(query.tokens)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_megabyte_in_a_row_is_one_short_line_that_names_it(tmp_path, kind):
    path = tmp_path / f"q.{kind}"
    path.write_bytes(WRITERS[kind]("a" * 1_000_000))
    with pytest.raises(UserError, match=r"(:1|:2|, row 1): a question of 1000000 characters; 200000 is the most") as e:
        read(_cfg(path))
    assert len(str(e.value)) < 300


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("q.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n', ["a", "b"]),
        ("q.csv", b"\xef\xbb\xbfprompt\r\na\r\nb\r\n", ["a", "b"]),
        ("q.csv", b"prompt\nNone\nNA\n", ["None", "NA"]),
        ("q.txt", b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
        ("q.txt", "a\u2028b\x0bc\n\ufeffd\n".encode(), ["a\u2028b\x0bc", "d"]),
        ("q.jsonl", b'{"prompt": "a\\ud83d\\ude00"}\n', ["a\N{GRINNING FACE}"]),
    ],
)
def test_marks_and_line_ends_of_other_systems(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert read(_cfg(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b'{"prompt": "a\xff"}\n', "q.jsonl:1: the byte FF is no UTF-8 where it stands"),
        ("q.csv", b"prompt\na\xff\n", "q.csv:2: the byte FF is no UTF-8 where it stands"),
        ("q.txt", b"a\xff\n", "q.txt:1: the byte FF is no UTF-8 where it stands"),
        ("q.parquet", "bytes", "`prompt` is b'a\\xff', not text"),
        ("q.parquet", "invalid", "q.parquet, row 1: not UTF-8"),
        ("q.jsonl", b'{"prompt": "a\\ud800b"}\n', "U+D800 is half a character"),
        ("q.jsonl", '{"prompt": "a"}\n'.encode("utf-16-le"), "not JSON"),  # without a mark
        ("q.jsonl", b'{"prompt": ' + b"[" * 100_000, "not JSON"),
        ("q.json", b"[" * 100_000, "not JSON"),
        ("q.jsonl", b'{"prompt": [' + b"1," * 100_000 + b"1]}\n", "not text"),
        ("q.jsonl", b"{" + b",".join(b'"c%d": 1' % i for i in range(3000)) + b"}\n", "no column `prompt`; it has c0"),
        ("q.jsonl", b'{"prompt": "a"}\n{"prompt": null}\n', "q.jsonl:2: `prompt` is None, not text"),
        ("q.txt", " \t\u3000\n\x0c\n".encode(), "no question in it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_files_are_one_short_line(tmp_path, tiny_llama, capfd, name, content, message):
    if content == "bytes":
        content = _parquet_of(pyarrow.array([b"a\xff"]))
    elif content == "invalid":
        buffers = [None, pyarrow.py_buffer(struct.pack("<2i", 0, 3)), pyarrow.py_buffer(b"a\xffb")]
        content = _parquet_of(pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers))
    (tmp_path / name).write_bytes(content)
    with Vocabulary.open(tiny_llama) as vocabulary, pytest.raises(UserError) as e:
        select(_cfg(tmp_path / name), vocabulary)
    assert message in str(e.value)
    assert len(str(e.value)) < 500
    assert "\n" not in str(e.value)
    assert "Failed to" not in capfd.readouterr().err


def test_a_hundred_thousand_times_the_same_question(tmp_path, tiny_llama):
    path = tmp_path / "q.jsonl"
    path.write_bytes(_jsonl("same") * 100_000)
    with Vocabulary.open(tiny_llama) as vocabulary:
        queries, _, duplicates, *_ = select(_cfg(path), vocabulary)
    assert ([q.prompt for q in queries], duplicates) == (["same"], 99_999)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a/../..", "a/b/c", "..", ""])
def test_a_hub_dataset_is_no_path(tmp_path, name):
    with pytest.raises(UserError, match="a hub dataset is written hf:OWNER/DATASET"):
        read(_cfg(f"hf:{name}"))


def _hub_in(folder, monkeypatch):
    """Let the folders in this one be the hub's: the same loader, without the download."""
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *more, **how: load(str(folder / name), *more, **how))


def test_a_dataset_that_brings_code_is_refused(tmp_path, monkeypatch):
    (tmp_path / "owner" / "set").mkdir(parents=True)
    (tmp_path / "owner" / "set" / "set.py").write_text("raise SystemExit('it ran')")
    _hub_in(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="scripts are no longer supported"):
        read(_cfg("hf:owner/set"))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(_cfg(tmp_path / "none.jsonl"))


def test_a_hub_dataset_has_splits_and_columns(tmp_path, monkeypatch):
    (tmp_path / "owner" / "set").mkdir(parents=True)
    (tmp_path / "owner" / "set" / "train.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n')
    _hub_in(tmp_path, monkeypatch)
    cfg = Queries(source="hf:owner/set", column="q")
    assert read(cfg) == ["one", "two"]
    assert read(cfg.model_copy(update={"limit": 1})) == ["one", "two"], "streamed; who selects stops"
    with pytest.raises(UserError, match="cannot be loaded"):
        read(cfg.model_copy(update={"split": "nope"}))
    with pytest.raises(UserError, match="no column `prompt`; it has q"):
        read(cfg.model_copy(update={"column": "prompt"}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"hf:owner/set: owner/set is in .* too; write \./owner/set for that, or run"):
        read(cfg)


def test_columns_of_text_are_those_of_the_first_rows_that_can_be_used(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"id": 1, "question": "Why?", "answer": "So."}\n{"id": 2, "question": "How?", "answer": null}\n')
    assert text_columns(str(file)) == {"question": "Why?", "answer": "So."}
    (tmp_path / "q.csv").write_text("prompt,n\none,1\n")
    assert text_columns(str(tmp_path / "q.csv")) == {"prompt": "one", "n": "1"}, "types are not guessed"
    for name, content, told in (
        ("q.txt", "", "is empty"),
        ("q.jsonl", "{", "q.jsonl:1: not JSON"),
        ("q.jsonl", '{"n": 1}\n{"n": 2}\n', r"q.jsonl:1: no column of text; it has n \(and 1 other row\)"),
        ("q.jsonl", '{"prompt": null, "id": "a"}\n', "q.jsonl:1: `prompt` is None, not text"),
        ("q.doc", "x", "one of"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=told):
            text_columns(str(tmp_path / name))
    file.write_text('{"id": "a", "question": null}\n{"prompt\n{"id": "b", "question": "Why?"}\n')
    assert text_columns(str(file)) == {"id": "a", "question": "Why?"}
    rows = [{"question": "Why?"}, {"question": "How?"}]
    for whole, found in (
        ({"version": 1, "data": rows}, {"question": "Why?"}),
        ({"question": ["Why?", "How?"]}, {"question": "Why?"}),
        ({"messages": [{"role": "user", "content": "Why?"}]}, {"prompt": "Why?"}),
    ):
        (tmp_path / "q.json").write_text(json.dumps(whole))
        assert text_columns(str(tmp_path / "q.json")) == found


def test_a_question_that_the_template_changes_is_named_with_its_place(tmp_path, tiny_llama):
    path = tmp_path / "q.txt"
    path.write_text("a\nb is 1 < 2\nc\n")
    with Vocabulary.open(tiny_llama) as vocabulary:
        vocabulary.__dict__["template"] = "{{ messages[0].content | e }}"
        with pytest.raises(UserError, match=r"q\.txt:2: .* drops or changes the question `b is 1 < 2`"):
            select(_cfg(path), vocabulary)
