"""Streaming from one sequence, and two models side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from genius_lite.cli.conversation import _Words, chat
from genius_lite.errors import UserError
from genius_lite.evaluate.models import NamedModel
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.stream import open_stream
from tests.support.cli import genius
from tests.support.models import tiny_gguf

GREEDY, ANY = Sampling(1.0, top_k=1), Sampling(1.0)
PROMPT = [257, 104, 105, 32, 116, 104, 101, 114, 101]


def test_a_stream_takes_the_likeliest_tokens_of_the_torch_model(tiny):
    with open_stream(tiny.gguf, 256, threads=1) as stream:
        found = list(stream.sample(PROMPT, GREEDY, seed=0, limit=12))
        assert len(found) == 12
        with torch.no_grad():
            for i, token in enumerate(found):
                logits_V = tiny.model(torch.tensor([PROMPT + found[:i]])).logits[0, -1]
                assert logits_V[token] >= logits_V.max() - 0.05


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_what_is_decoded_already_changes_nothing(kind, tiny_llama, tiny_mamba):
    path = tiny_llama if kind == "llama" else tiny_mamba.gguf
    with open_stream(path, 1024, threads=1) as stream:
        first = list(stream.sample(PROMPT, ANY, seed=1, limit=8))
        assert list(stream.sample(PROMPT, ANY, seed=1, limit=8)) == first
        longer = PROMPT + first + PROMPT * 70  # more than a batch
        after = list(stream.sample(longer, ANY, seed=2, limit=8))
        assert list(stream.sample(PROMPT[:-1], ANY, seed=3, limit=8)) != first
    with open_stream(path, 1024, threads=1) as stream:
        assert list(stream.sample(longer, ANY, seed=2, limit=8)) == after
        assert len(list(stream.sample(longer, ANY, seed=2, limit=10_000))) <= 1024 - len(longer)


@pytest.fixture
def models(tmp_path, tiny_llama) -> Path:
    (tmp_path / "a.gguf").symlink_to(tiny_llama)
    tiny_gguf(tmp_path / "b.gguf", "qwen2")
    return tmp_path


def _chat(*arguments, cwd: Path, questions: str) -> CompletedProcess[str]:
    return genius("chat", *arguments, "--max-tokens", 12, "--context", 256, cwd=cwd, given=questions)


def _answers(shown: str, names: list[str]) -> dict[str, list[str]]:
    """What each model said: its headings are lines of their own."""
    found: dict[str, list[str]] = {name: [] for name in names}
    said: list[str] = []
    for line in shown.split("\n"):
        if line.removesuffix(":") in names and line.endswith(":"):
            said = found[line.removesuffix(":")]
            said.append("")
        elif said:
            said[-1] += line + "\n"
    return {name: [text.strip("\n") for text in texts] for name, texts in found.items()}


def test_two_models_answer_side_by_side_each_as_it_does_alone(models):
    questions = "hello\nand again\n"
    alone = [_chat(name, cwd=models, questions=questions) for name in ("a.gguf", "b.gguf")]
    both = _chat("a.gguf", "--beside", "b.gguf", cwd=models, questions=questions)
    assert [r.returncode for r in (*alone, both)] == [0, 0, 0], both.stderr
    found = _answers(both.stdout, ["a.gguf", "b.gguf"])
    for name, single in zip(("a.gguf", "b.gguf"), alone, strict=True):
        assert len(found[name]) == 2
        joined = "\n".join(found[name])
        assert joined.split() == single.stdout.split(), "its own conversation, with the same seeds"
    assert found["a.gguf"] != found["b.gguf"]
    assert b"\x1b" not in both.stdout, "no colours in a pipe"


def test_the_same_model_beside_itself_says_the_same(models, capsys, monkeypatch):
    lines = iter(["hello", "and again"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    both = [NamedModel(name, models / "a.gguf") for name in ("left", "right")]
    chat(both, system="Be brief.", temperature=1.0, max_tokens=12, context=256, seed=5)
    found = _answers(capsys.readouterr().out, ["left", "right"])
    assert found["left"] == found["right"]
    assert found["left"][0] != found["left"][1]


def test_what_cannot_be_chatted_with_is_one_line(models):
    for arguments, questions, told in (
        (("a.gguf", "--beside", "none.gguf"), "", "none.gguf: no such GGUF file"),
        (("a.gguf", "--side-by-side"), "", "a.gguf is no run folder; name the other model with --beside"),
        (("a.gguf", "--beside", "b.gguf", "--side-by-side"), "", "give one of them"),
        (("a.gguf",), "x" * 300 + "\n", "more than the context of 256; start again, or give a larger --context"),
    ):
        refused = _chat(*arguments, cwd=models, questions=questions)
        assert refused.returncode == 2, refused.stderr
        assert told in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_a_model_that_does_not_fit_says_what_to_do(models):
    with pytest.raises(UserError, match="give --context less"):
        chat([NamedModel("x", models / "none.gguf")], system=None, temperature=1.0, max_tokens=1, context=64, seed=0)


def test_words_are_not_broken_at_the_terminals_edge(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    words = _Words()
    for part in ("The rain", "bow is a sp", "ectacle\n    of colours, and ", "x" * 30, " ends", " here\n"):
        words.write(part)
    shown = capsys.readouterr().out
    lines = ["The rainbow is a ", "spectacle", "    of colours, and ", "x" * 30 + " ", "ends here", ""]
    assert shown.split("\n") == lines
