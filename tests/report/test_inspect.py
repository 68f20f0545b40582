from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.report.inspect import compare, describe, print_description, print_difference
from genius_lite.weights import gguf_header
from tests.support.models import TEMPLATE, mangled, tiny_gguf

HOSTILE = "\x1b]0;owned\x07[red]:smile:[/red]\x9b31m\u202eabc\u2028\r\nend"
FORBIDDEN = set("\x1b\x07\x9b\u202e\u2028\r")


def written(path: Path, tensors: dict[str, Any], add=lambda writer: None) -> Path:
    """A GGUF with these tensors (F32, or of their own integer type) and the metadata that `add` adds."""
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)
    for name, data in tensors.items():
        writer.add_tensor(name, np.asarray(data, None if isinstance(data, np.ndarray) else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def printed(show, figures: dict[str, Any], **options) -> str:
    out = io.StringIO()
    show(figures, Console(file=out, width=80), **options)
    return out.getvalue()


def strict(figures: dict[str, Any]) -> str:
    return json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_sizes_add_up_to_what_an_independent_reader_finds(architecture, tmp_path):
    tiny_gguf(tmp_path / "a.gguf", architecture)
    found = describe(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    theirs, tokens = reader.tensors, reader.fields["tokenizer.ggml.tokens"].contents()
    for sizes in (found["types"], found["groups"]):
        assert sum(s["bytes"] for s in sizes.values()) == found["bytes"] == sum(t.n_bytes for t in theirs)
        assert sum(s["tensors"] for s in sizes.values()) == found["tensors"] == len(theirs)
        assert sum(s["parameters"] for s in sizes.values()) == found["parameters"] == sum(t.n_elements for t in theirs)
    assert found["tied_head"] is (architecture == "llama")
    assert ("output head" in found["groups"]) is (architecture == "qwen2")
    assert (found["layers"], found["heads"], found["kv_heads"], found["embedding_length"]) == (2, 4, 2, 64)
    assert (found["vocabulary"], found["context_length"], found["file_type"]) == (len(tokens), 512, "MOSTLY_F16")
    assert found["chat_template"] == TEMPLATE
    assert found["files"] == [{"name": "a.gguf", "bytes": (tmp_path / "a.gguf").stat().st_size, "sha256": None}]


def test_the_real_model(smollm2):
    found = describe(smollm2, sha256=True)
    assert found["name"] == "Smollm2 135M 8k Lc100K Mix1 Ep2"
    assert (found["architecture"], found["parameters"], found["file_type"]) == ("llama", 134_515_008, "MOSTLY_Q4_1")
    assert (found["context_length"], found["layers"], found["heads"], found["vocabulary"]) == (8192, 30, 9, 49152)
    assert list(found["groups"]) == ["embeddings", "attention", "feed-forward", "norms"]
    assert found["groups"]["embeddings"]["bits_per_weight"] == 8.5  # Q8_0: 34 bytes for 32 weights
    assert found["groups"]["attention"] == {
        "tensors": 120,
        "parameters": 30 * 2 * (576 + 192) * 576,
        "bytes": 30 * 2 * (576 + 192) * 576 * 20 // 32,  # Q4_1: 20 bytes for 32 weights
        "bits_per_weight": 5.0,
        "types": {"Q4_1": 120},
    }
    assert found["groups"]["norms"]["parameters"] == 61 * 576
    assert len(found["files"][0]["sha256"]) == 64
    text = printed(print_description, found)
    assert max(map(len, text.splitlines())) <= 80
    for expected in (
        "134,515,008",
        "MOSTLY_Q4_1",
        found["files"][0]["sha256"],
        f"{len(found['chat_template']):,} char",
    ):
        assert expected in text
    assert "<|im_end|>" not in text
    assert found["chat_template"] in printed(print_description, found, template=True)


def test_tensors_are_grouped_by_name(tmp_path):
    names = {
        "embeddings": ["token_embd.weight", "position_embd.weight", "blk.0.nextn.embed_tokens.weight"],
        "attention": ["blk.0.attn_q.weight", "v.blk.0.attn_out.weight", "blk.10.attn_sinks", "blk.1.attn_k.bias"],
        "feed-forward": ["blk.0.ffn_down.weight", "blk.0.ffn_up.weight.lora_a", "blk.0.channel_mix_key.weight"],
        "experts": ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_shexp.weight", "blk.0.ffn_gate_inp.weight"],
        "norms": ["blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "token_embd_norm.weight", "v.blk.0.ln1.bias"],
        "output head": ["output.weight", "cls.weight"],
        "other": ["blk.0.ssm_in.weight", "rope_freqs.weight"],
    }
    path = written(tmp_path / "a.gguf", {name: [1.0] for group in names.values() for name in group})
    found = describe(path)["groups"]
    assert {group: size["tensors"] for group, size in found.items()} == {g: len(n) for g, n in names.items()}
    assert list(found) == list(names)


def test_a_file_does_not_differ_from_itself(tiny_llama):
    found = compare(tiny_llama, tiny_llama)
    assert found["metadata"] == found["changed"] == found["largest"] == found["not_compared"] == []
    assert found["templates"] == {}
    assert found["identical"] == found["common"] == len(gguf.GGUFReader(tiny_llama).tensors)
    assert {g["difference"] for g in found["groups"].values()} == {0.0}
    assert "the metadata is equal" in printed(print_difference, found)


def test_hand_computed_differences(tmp_path):
    ours = {
        "blk.0.attn_q.weight": [[3.0, 4.0]],
        "blk.0.attn_k.weight": [[0.0, 12.0]],
        "blk.0.attn_v.weight": [[9.0, 9.0]],
        "blk.0.ffn_up.weight": [1.0, 2.0],
        "blk.0.ffn_down.weight": [[1.0, 2.0]],
        "output.weight": [0.0],
        "output_norm.weight": [1.0],
        "blk.0.old": [1.0],
        "blk.0.index": np.array([1], np.int32),
    }
    changed = {
        "blk.0.attn_q.weight": [[3.0, 5.0]],  # |b - a| = 1, |a| = 5
        "blk.0.attn_k.weight": [[2.0, 12.0]],  # 2 of 12
        "blk.0.ffn_down.weight": [[1.0], [2.0]],
        "output.weight": [1.0],  # 1 of nothing
        "output_norm.weight": [math.nan],
        "blk.0.index": np.array([2], np.int32),
    }
    theirs = {name: changed.get(name, data) for name, data in ours.items() if name != "blk.0.old"}
    done = []
    a, b = written(tmp_path / "a.gguf", ours), written(tmp_path / "b.gguf", theirs | {"blk.0.new": [1.0]})
    found = compare(a, b, done.append)
    strict(found)
    assert (found["common"], found["identical"]) == (8, 2)
    assert (found["only_in_file"], found["only_in_other"]) == (["blk.0.old"], ["blk.0.new"])
    assert found["not_compared"] == ["blk.0.index"]
    assert [(c["tensor"], c["shape"], c["other_shape"]) for c in found["changed"]] == [
        ("blk.0.ffn_down.weight", [1, 2], [2, 1])
    ]
    attention = found["groups"]["attention"]
    assert (attention["tensors"], attention["identical"]) == (3, 1)
    assert attention["difference"] == pytest.approx(math.sqrt((1 + 4) / (25 + 144)))
    assert found["groups"]["feed-forward"] == {"tensors": 1, "identical": 1, "difference": 0.0}
    assert found["groups"]["norms"]["difference"] is found["groups"]["output head"]["difference"] is None
    assert {c["tensor"] for c in found["largest"][:2]} == {"output.weight", "output_norm.weight"}
    assert [(c["tensor"], c["difference"]) for c in found["largest"][2:]] == [
        ("blk.0.attn_q.weight", pytest.approx(1 / 5)),
        ("blk.0.attn_k.weight", pytest.approx(2 / 12)),
    ]
    assert 0 < sum(done) <= describe(a)["bytes"]
    text = printed(print_difference, found)
    assert all(word in text for word in ("blk.0.old", "blk.0.new", "blk.0.index", "1 shapes differ", "0.2", "0.167"))


@pytest.mark.parametrize("block", [1 << 22, 1 << 10])
def test_a_quantized_copy_differs_by_what_quantizing_lost(block, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "BLOCK", block)
    tiny_gguf(tmp_path / "a.gguf", "qwen2")
    tiny_gguf(tmp_path / "b.gguf", "qwen2", kind=Kind.Q8_0)
    found = compare(tmp_path / "a.gguf", tmp_path / "b.gguf")
    readers = [gguf.GGUFReader(tmp_path / name).tensors for name in ("a.gguf", "b.gguf")]
    ours, theirs = ({t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors} for tensors in readers)
    relative = {
        n: float(np.linalg.norm(ours[n] - theirs[n]) / np.linalg.norm(ours[n])) for n in ours if ours[n].ndim > 1
    }
    worst = sorted(relative, key=lambda n: -relative[n])[:5]
    assert [(c["tensor"], c["difference"]) for c in found["largest"]] == [
        (n, pytest.approx(relative[n], rel=1e-4)) for n in worst
    ]
    assert 0.001 < found["groups"]["embeddings"]["difference"] < 0.01
    assert found["groups"]["output head"]["difference"] == pytest.approx(relative["output.weight"], rel=1e-4)
    assert found["identical"] == sum(data.ndim == 1 for data in ours.values())
    assert {(c["type"], c["other_type"]) for c in found["changed"]} == {("F16", "Q8_0")}
    assert len(found["changed"]) == len(relative)
    text = printed(print_difference, found)
    assert worst[0] in text
    assert max(map(len, text.splitlines())) <= 80


def test_changed_metadata_and_templates_are_named(tmp_path):
    def first(writer: gguf.GGUFWriter) -> None:
        writer.add_chat_template("one\ntwo\nthree")
        writer.add_context_length(512)
        writer.add_array("general.languages", ["en", "de"])
        writer.add_uint32("same.number", 7)
        writer.add_string("gone", "here")

    def second(writer: gguf.GGUFWriter) -> None:
        writer.add_string("come", "there")
        writer.add_int32("same.number", 7)
        writer.add_array("general.languages", ["en", "fr"])
        writer.add_context_length(1024)
        writer.add_chat_template("one\n2\nthree\n")
        writer.add_float32("endless", math.inf)

    found = compare(written(tmp_path / "a.gguf", {}, first), written(tmp_path / "b.gguf", {}, second))
    strict(found)
    changed = {c["key"]: (c["file"], c["other"]) for c in found["metadata"]}
    languages = changed.pop("general.languages")
    assert languages[0] != languages[1]
    assert all(shown.startswith("2 x STRING") for shown in languages)
    assert changed == {
        "llama.context_length": (512, 1024),
        "same.number": ("7 (UINT32)", "7 (INT32)"),
        "gone": ("here", None),
        "come": (None, "there"),
        "endless": (None, "inf"),
    }
    lines = found["templates"]["tokenizer.chat_template"]
    assert lines[3:] == [" one", "-two", "+2", " three", "+"]
    text = printed(print_difference, found)
    assert "tokenizer.chat_template differs: 1 lines removed, 2 added" in text
    assert "llama.context_length" in text
    assert "-two" not in text
    assert "-two\n+2\n" in printed(print_difference, found, template=True)


def test_hostile_strings_cannot_reach_a_terminal(tmp_path):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_name(HOSTILE)
        writer.add_chat_template(HOSTILE)
        writer.add_string(HOSTILE, HOSTILE * 1000)

    kind = "\x1b[31mmodel"
    path = written(tmp_path / "a\x1b[31m[bold].gguf", {HOSTILE: [1.0]}, add)
    other = written(tmp_path / "b.gguf", {HOSTILE: [2.0]}, lambda writer: writer.add_type(kind))
    third = written(tmp_path / "c.gguf", {})
    for a, b in ((path, other), (other, path), (path, third), (third, path)):
        for figures, show in ((describe(a), print_description), (compare(a, b), print_difference)):
            short, full = printed(show, figures), printed(show, figures, template=True)
            assert not FORBIDDEN & set(short + full)
            assert max(map(len, short.splitlines())) <= 80
            assert not FORBIDDEN & set(strict(figures))
    text = printed(print_description, describe(path))
    assert "[red]:smile:[/red]" in text
    assert "a\\x1b[31m[bold].gguf" in text
    assert "\\x1b]0;owned" in text


def test_strings_that_are_no_utf8_are_shown(tmp_path):
    path = written(tmp_path / "a.gguf", {}, lambda writer: writer.add_name("caf@"))
    path.write_bytes(path.read_bytes().replace(b"caf@", b"caf\xe9"))
    found = describe(path)
    assert found["name"] == "caf\N{REPLACEMENT CHARACTER}"
    strict(found)
    printed(print_description, found).encode()


def test_a_lora_and_an_importance_matrix(tmp_path):
    def adapter(writer: gguf.GGUFWriter) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 32.0)

    tensors = {"blk.0.attn_q.weight.lora_a": np.zeros((8, 64)), "blk.0.attn_q.weight.lora_b": np.zeros((96, 8))}
    lora = describe(written(tmp_path / "lora.gguf", {k: v.astype(np.float32) for k, v in tensors.items()}, adapter))
    assert (lora["kind"], lora["adapter_type"], lora["adapter_alpha"]) == ("adapter", "lora", 32.0)
    assert (lora["adapter_rank"], lora["tied_head"], lora["chat_template"]) == ([8], None, None)
    assert lora["groups"]["attention"]["parameters"] == 8 * (64 + 96)
    assert "no chat template" in printed(print_description, lora)


def test_an_importance_matrix_names_no_architecture(tmp_path):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].clear()  # GGUFWriter always names one, llama-imatrix does not
        writer.add_type("imatrix")
        writer.add_uint32("imatrix.chunk_count", 3)
        writer.add_uint32("imatrix.chunk_size", 512)

    tensors = {"blk.0.ffn_up.weight.in_sum2": [[1.0, 4.0]], "blk.0.ffn_up.weight.counts": [[2.0]]}
    found = describe(written(tmp_path / "im.gguf", tensors, add))
    assert (found["kind"], found["architecture"]) == ("imatrix", None)
    assert (found["imatrix_chunks"], found["imatrix_chunk_size"]) == (3, 512)
    assert found["groups"]["feed-forward"]["tensors"] == 2
    assert "imatrix" in printed(print_description, found)


def test_shards_are_one_model(tmp_path):
    tensors = {f"blk.{i}.ffn_up.weight": np.full(32, i, np.float32) for i in range(5)}
    for number, names in enumerate((["0", "1"], ["2", "3"], ["4"])):

        def add(writer: gguf.GGUFWriter, number: int = number) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 3)
            writer.add_int32("split.tensors.count", 5)

        mine = {f"blk.{i}.ffn_up.weight": tensors[f"blk.{i}.ffn_up.weight"] for i in names}
        written(tmp_path / f"a-0000{number + 1}-of-00003.gguf", mine, add)
    found = describe(tmp_path / "a-00001-of-00003.gguf", sha256=True)
    assert [f["name"] for f in found["files"]] == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert found["bytes"] == 5 * 32 * 4
    assert len({f["sha256"] for f in found["files"]}) == 3
    whole = compare(written(tmp_path / "b.gguf", tensors), tmp_path / "a-00001-of-00003.gguf")
    assert (whole["common"], whole["identical"]) == (5, 5)
    # The hub's cache: the names of the parts lead to hashes.
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, part in enumerate(sorted(tmp_path.glob("a-*.gguf"))):
        part.rename(tmp_path / "blobs" / f"{number}{number}")
        (tmp_path / "snapshot" / part.name).symlink_to(f"../blobs/{number}{number}")
    linked = describe(tmp_path / "snapshot" / "a-00001-of-00003.gguf", sha256=True)
    assert linked["files"] == found["files"]


def test_what_is_no_gguf_is_one_clear_line(tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    for name in ("text.gguf", "absent.gguf"):
        with pytest.raises(UserError, match=name):
            describe(tmp_path / name)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mangled_header_is_shown_or_refused(tiny_llama, tmp_path_factory, data):
    path = mangled(tiny_llama, data, tmp_path_factory.mktemp("mangled"))
    try:
        description, difference = describe(path), compare(tiny_llama, path)
    except UserError as e:
        assert "\n" not in str(e)
        return
    strict(description)
    strict(difference)
    text = printed(print_description, description) + printed(print_difference, difference, template=True)
    assert not FORBIDDEN & set(text)
    assert len(printed(print_difference, difference)) > 0
