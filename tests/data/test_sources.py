from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.sources import ASKED, FILES, read, table


@pytest.mark.parametrize("what", FILES)
def test_every_kind_of_file_holds_what_is_asked(tmp_path, what):
    name, content = FILES[what]
    assert [question.text for question in read(tmp_path / name, content)] == ASKED


def test_the_table_of_the_docs_is_what_is_read():
    told = "run: python -m tests.data.sources > docs/sources.md"
    assert Path("docs/sources.md").read_text(encoding="utf-8") == table(), told
