from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.weights import gguf_file, untrusted
from genius_lite.weights.footprint import kv_bytes
from genius_lite.weights.importing import check_supported
from genius_lite.weights.untrusted import check_model
from tests.faults import raw
from tests.faults.raw import ARRAY, BOOL, F32, STRING, U16, U32
from tests.faults.sound import SIZES


@pytest.fixture
def changed(tiny_llama, tmp_path):
    """The tiny model with another value under some key."""
    sound = raw.parse(tiny_llama, SIZES)

    def change(key: str, kind: int, value: bytes) -> gguf_file.GGUF:
        part, path = copy.deepcopy(sound), tmp_path / "m.gguf"
        part.put(key, kind, value)
        path.write_bytes(part.encode())
        return gguf_file.read(path)

    return change


def test_sound_models_pass(tiny, smollm2):
    for path in (tiny.gguf, smollm2):
        check_model(gguf_file.read(path))
        check_supported(gguf_file.read(path))


@pytest.mark.parametrize(
    ("key", "kind", "value", "line"),
    [
        ("general.type", STRING, raw.text("adapter"), "no model, but `adapter` (general.type)"),
        ("llama.block_count", U32, raw.number(U32, 4), "llama.block_count is 4, the tensors are of 2 blocks"),
        ("llama.embedding_length", ARRAY, raw.array(U32, [64]), "llama.embedding_length is an array"),
        ("llama.rope.freq_base", F32, raw.number(F32, 0), "llama.rope.freq_base is 0.0"),
        ("llama.attention.causal", BOOL, b"\0", "no model that continues text"),
        ("llama.own", F32, raw.number(F32, float("nan")), "llama.own is nan"),
        ("llama.attention.head_count", U32, raw.number(U32, 5), "5 heads do not share 64 columns evenly"),
        ("llama.attention.head_count_kv", U32, raw.number(U32, 3), "4 heads do not share 3 key-value heads evenly"),
        ("general.name", STRING, raw.text(b"\xff"), "`general.name` is no UTF-8 text"),
        ("general.file_type", U16, raw.number(U16, 1), "general.file_type is no uint32"),
        ("tokenizer.ggml.model", STRING, raw.text("none"), "it names no tokenizer"),
        ("tokenizer.ggml.tokens", ARRAY, raw.array(STRING, [b"a"]), "embeddings of 260 tokens, but not as many texts"),
        ("tokenizer.ggml.merges", ARRAY, raw.array(U32, [1]), "tokenizer.ggml.merges is no array of texts"),
    ],
)
def test_headers_that_contradict_themselves(changed, key, kind, value, line):
    with pytest.raises(UserError) as e:
        check_model(changed(key, kind, value))
    assert line in str(e.value)


@pytest.mark.parametrize(("kind", "value"), [(U32, raw.number(U32, 1)), (ARRAY, raw.array(U32, [1]))])
def test_prediction_layers_may_be_left_out(changed, kind, value):
    source = changed("llama.nextn_predict_layers", kind, value)
    assert source.count("llama.block_count") == 2
    check_model(source)


def test_of_counts_for_each_layer_the_largest_counts(changed):
    source = changed("llama.attention.head_count_kv", ARRAY, raw.array(U32, [1, 4]))
    assert source.count("llama.attention.head_count_kv") == 4
    assert kv_bytes(source, "F16") == 2 * 4 * 16 * 2  # keys and values, heads, columns, bytes


def test_a_header_without_some_keys_is_still_one(tiny_llama, tmp_path):
    source = gguf_file.read(tiny_llama)
    less = source.keeping(lambda key: key != "tokenizer.ggml.tokens")
    gguf_file.write(tmp_path / "less.gguf", less, source.tensors, source.raw_blocks, {"general.file_type": 7})
    found = gguf_file.read(tmp_path / "less.gguf")
    assert found.metadata == {k: v for k, v in source.metadata.items() if k != "tokenizer.ggml.tokens"} | {
        "general.file_type": 7
    }
    assert found.array("tokenizer.ggml.token_type") == (raw.I32, 260)
    assert found.array("tokenizer.ggml.tokens") is None


def test_of_a_llama_cpp_for_another_processor_a_file_is_not_guilty(tiny_llama, tmp_path):
    own = shutil.copyfile(tiny_llama, tmp_path / "own.gguf")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as refused:
        patch.setattr(untrusted, "helper", lambda *_: [_dies_of(tmp_path, signal.SIGILL)])
        untrusted.load_untrusted(own)
    assert "compiled for another processor" in str(refused.value) and "broken" not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (0xC0000005, r"broken GGUF: llama\.cpp dies of it \(exception 0xC0000005\)"),
        (0xC000001D, "compiled for another processor"),
    ],
)
def test_windows_says_by_large_numbers_of_what_a_process_dies(tiny_llama, tmp_path, monkeypatch, status, told):
    own = shutil.copyfile(tiny_llama, tmp_path / "own.gguf")
    ended = subprocess.CompletedProcess([], status, b"", b"")
    monkeypatch.setattr(untrusted, "attempt", lambda *_: ended)
    with pytest.raises(UserError, match=told):
        untrusted.load_untrusted(own)


def _dies_of(folder: Path, fate: signal.Signals) -> str:
    program = folder / "dies"
    program.write_text(f"#!/bin/sh\nkill -{fate.value} $$\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_trial_that_the_system_ends_is_no_fault_of_the_file(tiny_llama, tmp_path, monkeypatch, kills):
    """As it does for want of memory. What llama.cpp has survived is not tried again, unless it has changed."""
    own, tried = shutil.copyfile(tiny_llama, tmp_path / "own.gguf"), []

    def ended(command, patience):
        tried.append(command)
        return subprocess.CompletedProcess(command, -9 if len(tried) <= kills else 0, b"", b"")

    monkeypatch.setattr(untrusted, "attempt", ended)
    if kills == 1:
        untrusted.load_untrusted(own)
    else:
        with pytest.raises(UserError, match=r"was killed twice \(SIGKILL\), as for want of memory"):
            untrusted.load_untrusted(own)
    assert len(tried) == 2
    untrusted.load_untrusted(own)
    assert len(tried) == (2 if kills == 1 else 3)
    os.utime(own)
    untrusted.load_untrusted(own, quantizer=True)
    assert len(tried) == (3 if kills == 1 else 4)
