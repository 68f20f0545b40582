from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import dequantize

from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter, Matrix
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.importing import Base, import_checkpoint
from genius_lite.weights.merge import requantize, round_base
from genius_lite.weights.quantize import (
    adaptable,
    quantize_rows,
    quantized_bytes,
    quantized_twice,
    type_name,
    types_bytes,
    types_of,
)
from tests.support.c_array import as_c_array
from tests.support.models import tiny_gguf

KINDS = ["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q3_K_M", "Q2_K"]


def llama_quantize(source: Path, kind: str, out: Path, matrix: Matrix | None = None) -> GGUF:
    """The file that llama.cpp's own quantizer makes."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.allow_requantize = 1, True
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    array, _kept = as_c_array(matrix or {})
    if matrix:
        params.imatrix = ctypes.cast(array, type(params.imatrix))
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.pointer(params))
    assert code == 0
    return gguf_file.read(out)


def assert_same(ours: GGUF, theirs: GGUF) -> None:
    """Same types, same bytes, and the same said of them."""
    others = {t.name: t for t in theirs.tensors}
    assert others.keys() == {t.name for t in ours.tensors}
    for tensor in ours.tensors:
        assert tensor.type == others[tensor.name].type, tensor.name
        assert np.array_equal(ours.raw(tensor), theirs.raw(others[tensor.name])), tensor.name
    for key in ("general.file_type", "general.architecture", "llama.block_count"):
        assert ours.metadata.get(key) == theirs.metadata.get(key)
    if any(t.type not in (T.F32, T.F16, T.BF16) for t in ours.tensors):
        assert ours.metadata["general.quantization_version"] == theirs.metadata["general.quantization_version"]


@pytest.fixture(scope="module", params=[T.F16, T.BF16, T.Q8_0, T.Q4_1], ids=lambda kind: kind.name)
def base(request, tmp_path_factory) -> Base:
    """A tiny Llama in some types, imported."""
    folder = tmp_path_factory.mktemp(request.param.name)
    tiny_gguf(folder / "m.gguf", "llama", kind=request.param, width=256)
    source = gguf_file.read(folder / "m.gguf")
    import_checkpoint(source, folder / "hf-checkpoint", lambda n: None)
    return Base(source, folder / "hf-checkpoint")


@pytest.mark.parametrize("kind", KINDS)
def test_a_requantized_file_is_that_of_llama_cpp(base, tmp_path, kind):
    requantize(base.gguf, kind, tmp_path / "ours.gguf")
    theirs = llama_quantize(base.gguf.path, kind, tmp_path / "theirs.gguf")
    assert_same(gguf_file.read(tmp_path / "ours.gguf"), theirs)


def test_a_real_model_requantized_is_that_of_llama_cpp(smollm2, tmp_path):
    source = gguf_file.read(smollm2)
    requantize(source, "Q4_K_M", tmp_path / "ours.gguf")
    ours = gguf_file.read(tmp_path / "ours.gguf")
    assert {t.type for t in ours.tensors} >= {T.Q4_K, T.Q6_K, T.Q5_0, T.Q8_0, T.F32}
    assert_same(ours, llama_quantize(smollm2, "Q4_K_M", tmp_path / "theirs.gguf"))


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q4_1", "Q3_K_M", "Q2_K"])
def test_with_an_importance_matrix_it_is_that_of_llama_cpp_too(base, tmp_path, kind):
    rng = np.random.default_rng(0)
    matrices = [t for t in base.gguf.tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    matrix = {t.name: np.exp(rng.standard_normal(t.columns)).astype(np.float32) for t in matrices}
    round_base(base, Adapter({}, 1, 1, matrix), kind, tmp_path / "ours.gguf")
    ours = gguf_file.read(tmp_path / "ours.gguf")
    assert_same(ours, llama_quantize(base.gguf.path, kind, tmp_path / "theirs.gguf", matrix))
    if kind in ("Q4_0", "Q4_1") and base.gguf.tensors[0].type != T[kind]:
        plain = llama_quantize(base.gguf.path, kind, tmp_path / "plain.gguf")
        with pytest.raises(AssertionError):
            assert_same(ours, plain)


def test_source_means_the_types_that_are_there(base):
    assert types_of(base.gguf, "source") == {t.name: t.type for t in base.gguf.tensors}


def test_the_plan_is_the_quantizers_own_and_leaves_no_file(base, tmp_path):
    before = set(base.gguf.path.parent.iterdir())
    found = types_of(base.gguf, "Q4_K_M")
    theirs = llama_quantize(base.gguf.path, "Q4_K_M", tmp_path / "theirs.gguf")
    assert found == {t.name: t.type for t in theirs.tensors}
    assert types_bytes(base.gguf, found) == sum(t.nbytes for t in theirs.tensors)
    assert before == set(base.gguf.path.parent.iterdir())


def test_a_plan_that_is_not_heard_is_an_error(tmp_path):
    tiny_gguf(tmp_path / "m.gguf", "llama")
    source = gguf_file.read(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(RuntimeError, match=f"planned 0 of {len(source.tensors)} tensors"):
        types_of(source, "Q8_0")


def test_an_adapted_tensor_of_a_type_without_a_grid_gets_one_of_four_to_five_bits(smollm2):
    source = gguf_file.read(smollm2)
    types = {t.name: T.IQ2_XS if len(t.shape) == 2 else t.type for t in source.tensors}
    short, long, other = "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "blk.1.ffn_down.weight"
    changed = adaptable(types, source, {short, long})
    assert (changed.pop(short), changed.pop(long)) == (T.Q5_0, T.Q4_K)
    assert changed == {name: kind for name, kind in types.items() if name not in (short, long)}
    assert types[other] == T.IQ2_XS
    for kind in (T.F32, T.F16, T.BF16, T.Q4_0, T.IQ4_NL):
        assert adaptable({short: kind}, source, {short}) == {short: kind}


def test_rows_are_quantized_alone():
    made = np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)
    importance = np.exp(np.random.default_rng(1).standard_normal(512)).astype(np.float32)
    for kind in (T.F32, T.F16, T.Q8_0, T.Q4_0, T.Q4_K, T.Q6_K, T.Q2_K):
        whole = quantize_rows(made, kind, importance)
        parts = [quantize_rows(made[rows], kind, importance) for rows in (slice(0, 5), slice(5, 32))]
        assert np.array_equal(whole, np.concatenate(parts))
        assert np.array_equal(whole, quantize_rows(np.asfortranarray(made), kind, importance))


def test_a_type_that_wants_an_importance_gets_one_where_nothing_is_known():
    made = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    for kind in (T.IQ2_XXS, T.IQ2_XS, T.IQ1_S):  # llama.cpp would end the process
        alike = quantize_rows(made, kind, np.ones(512, np.float32))
        assert np.array_equal(quantize_rows(made, kind), alike)


def test_columns_that_matter_are_nearer_to_what_they_were():
    made = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    importance = np.where(np.arange(512) % 16, 1, 100).astype(np.float32)
    for kind in (T.Q4_0, T.Q4_1, T.Q4_K, T.Q6_K):
        errors = []
        for given in (importance, None):
            values = dequantize(quantize_rows(made, kind, given), kind).reshape(made.shape)
            errors.append(np.square(values - made)[:, ::16].mean())
        assert errors[0] < 0.8 * errors[1]


def test_a_type_is_named_as_files_are(base, smollm2):
    assert type_name(base.gguf, "Q4_K_M") == "Q4_K_M"
    assert type_name(base.gguf, "source") == "F16"  # the tiny models all say so
    assert type_name(gguf_file.read(smollm2), "source") == "Q4_1"
    unknown = gguf_file.read(base.gguf.path)
    del unknown.metadata["general.file_type"]
    assert type_name(unknown, "source") == "source"
    unknown.metadata["general.file_type"] = 9999
    assert type_name(unknown, "source") == "source"


def test_the_size_of_a_type_is_about_that_of_its_file(smollm2):
    source = gguf_file.read(smollm2)
    assert quantized_bytes(source, "source") == sum(t.nbytes for t in source.tensors)
    for kind in ("F16", "Q8_0", "Q6_K", "Q4_0", "Q5_1"):
        assert quantized_bytes(source, kind) == pytest.approx(types_bytes(source, types_of(source, kind)), rel=0.25)


def test_a_file_of_few_bits_that_is_to_become_another_one_is_warned_of(tmp_path):
    tiny_gguf(tmp_path / "q4.gguf", "llama", kind=T.Q4_0)
    tiny_gguf(tmp_path / "q8.gguf", "llama", kind=T.Q8_0)
    tiny_gguf(tmp_path / "q5.gguf", "llama", kind=T.Q5_1)
    four, five, eight = (gguf_file.read(tmp_path / f"{name}.gguf") for name in ("q4", "q5", "q8"))
    assert "q5.gguf" in (said := quantized_twice(five, "Q8_0") or "") and "Q8_0 and" not in said
    assert [quantized_twice(five, kind) for kind in ("source", "BF16")] == [None] * 2
    assert "q4.gguf" in (quantized_twice(four, "Q5_0") or "")
    assert [quantized_twice(four, kind) for kind in ("source", "Q8_0", "F16")] == [None] * 3
    assert [quantized_twice(eight, kind) for kind in ("source", "Q4_0", "Q8_0")] == [None] * 3
