from __future__ import annotations

import pytest

from genius_lite.errors import UserError
from genius_lite.prompts import Vocabulary
from genius_lite.queries import read, select
from genius_lite.recipe import Queries

THREE = ["What is 1 + 1?", "Is it \N{GREEK SMALL LETTER ALPHA}, or not?", 'He said "no".']


def _cfg(path, **options) -> Queries:
    return Queries(source=str(path), **options)


def _write(folder, kind):
    import pyarrow
    import pyarrow.parquet

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


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "txt"])
def test_every_format_gives_the_same_questions(tmp_path, kind):
    assert [text for text in read(_cfg(_write(tmp_path, kind))) if text] == THREE


def test_selection(tmp_path, tiny_llama):
    path = tmp_path / "q.txt"
    path.write_text("a\nb\n a \nc\n\nb\nd\n")
    with Vocabulary.open(tiny_llama) as vocabulary:
        queries, duplicates = select(_cfg(path), vocabulary)
        assert ([q.prompt for q in queries], duplicates) == (["a", "b", "c", "d"], 2)
        shuffled, _ = select(_cfg(path, shuffle=True, seed=3), vocabulary)
        limited, _ = select(_cfg(path, shuffle=True, seed=3, limit=2), vocabulary)
        assert limited == shuffled[:2]
        assert sorted(q.prompt for q in shuffled) == ["a", "b", "c", "d"]
        orders = {tuple(q.prompt for q in select(_cfg(path, shuffle=True, seed=s), vocabulary)[0]) for s in range(9)}
        assert len(orders) > 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b"", "is empty"),
        ("q.txt", b"\n  \n", "no question"),
        ("q.jsonl", b'{"question": "x"}\n', "no column `prompt`; it has question"),
        ("q.jsonl", b'{"prompt": 3}\n', "row 1: `prompt` is 3, not text"),
        ("q.jsonl", b'{"prompt": "x"\n{', "cannot be read as json"),
        ("q.txt", b"\xff\xfe\xff", "cannot be read as text"),
        ("q.parquet", b"PAR1nonsense", "cannot be read as parquet"),
        ("q.docx", b"x", "a query file is one of"),
    ],
)
def test_unusable_files(tmp_path, tiny_llama, name, content, message):
    (tmp_path / name).write_bytes(content)
    with Vocabulary.open(tiny_llama) as vocabulary, pytest.raises(UserError) as e:
        select(_cfg(tmp_path / name), vocabulary)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such query file"):
        read(_cfg(tmp_path / "none.jsonl"))


def test_a_hub_dataset_has_splits_and_columns(tmp_path, monkeypatch):
    # `datasets` takes a folder of this name for the repository: the same loader, without the download.
    (tmp_path / "owner" / "set").mkdir(parents=True)
    (tmp_path / "owner" / "set" / "train.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n')
    monkeypatch.chdir(tmp_path)
    cfg = Queries(source="hf:owner/set", column="q")
    assert read(cfg) == ["one", "two"]
    with pytest.raises(UserError, match="cannot be loaded"):
        read(cfg.model_copy(update={"split": "nope"}))
    with pytest.raises(UserError, match="no column `prompt`; it has q"):
        read(cfg.model_copy(update={"column": "prompt"}))
