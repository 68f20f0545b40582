from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genius_lite.errors import UserError
from genius_lite.weights import gguf_file
from tests.support.models import mangled


def test_the_header_is_what_an_independent_reader_sees(tiny_llama):
    ours, theirs = gguf_file.read(tiny_llama), gguf.GGUFReader(tiny_llama)
    assert [(t.name, list(reversed(t.shape)), t.type) for t in ours.tensors] == [
        (t.name, t.shape.tolist(), t.tensor_type) for t in theirs.tensors
    ]
    assert [t.offset for t in ours.tensors] == [t.data_offset for t in theirs.tensors]
    for key, value in ours.metadata.items():
        if value is not None:
            assert theirs.fields[key].contents() == value


def test_rewriting_changes_only_what_is_replaced(tiny_llama, tmp_path):
    source = gguf_file.read(tiny_llama)
    out = tmp_path / "copy.gguf"
    replaced = {"general.file_type": 7, "general.quantization_version": 2}
    gguf_file.write(out, source, source.tensors, source.raw_blocks, replaced)
    copy = gguf_file.read(out)
    assert copy.metadata == source.metadata | replaced
    before, after = bytearray(tiny_llama.read_bytes()), out.read_bytes()
    at = before.index(b"general.file_type") + len("general.file_type") + 4
    before[at : at + 4] = (7).to_bytes(4, "little")
    end = 24 + sum(8 + len(key.encode()) + len(value) for key, value in source.values.items())
    assert after[24:end] == before[24:end], "magic, version and the two counts come before"
    theirs = {t.name: t for t in gguf.GGUFReader(out).tensors}
    for tensor in source.tensors:
        assert np.array_equal(source.raw(tensor), theirs[tensor.name].data.view(np.uint8).reshape(-1))


@pytest.mark.parametrize("cut", [0, 3, 20, 300, 5000, -1])
def test_a_file_cut_short_is_one_clear_line(tiny_llama, tmp_path, cut):
    (tmp_path / "cut.gguf").write_bytes(tiny_llama.read_bytes()[:cut])
    with pytest.raises(UserError) as e:
        gguf_file.read(tmp_path / "cut.gguf")
    assert "cut.gguf" in str(e.value)
    assert "\n" not in str(e.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mangled_header_raises_nothing_else(tiny_llama, tmp_path_factory, data):
    path = mangled(tiny_llama, data, tmp_path_factory.mktemp("mangled"))
    try:
        gguf_file.read(path)
    except UserError as e:
        assert "\n" not in str(e)
