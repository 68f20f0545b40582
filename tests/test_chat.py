"""Streaming from one sequence, and two models side by side."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from genius_lite.cli.conversation import _Words, chat
from genius_lite.errors import UserError
from genius_lite.evaluate.models import NamedModel, PromptConfig
from genius_lite.hardware.gpus import Gpu
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node
from tests.support.cli import genius
from tests.support.models import tiny_gguf

GREEDY, ANY = Sampling(1.0, top_k=1), Sampling(1.0)
PROMPT = [257, 104, 105, 32, 116, 104, 101, 114, 101]


def streamed(path: Path, folder: Path, *asked: tuple[list[int], Sampling, int, int], context: int = 1024) -> list:
    """The responses of one worker to paths, one after the other, each with its sampling, seed and limit."""

    async def ask() -> list[list[int]]:
        settings = EngineSettings(slots=1, context=context, threads=1, prefill_chunk=512)
        async with open_sampler(path, settings, ANY, folder / "log") as sampler:
            return [
                [token async for token in sampler.stream(Node(None, path, (seed,)), limit=limit, sampling=sampling)]
                for path, sampling, seed, limit in asked
            ]

    return asyncio.run(ask())


def test_a_stream_takes_the_likeliest_tokens_of_the_torch_model(tiny, tmp_path):
    (found,) = streamed(tiny.gguf, tmp_path, (PROMPT, GREEDY, 0, 12), context=256)
    assert len(found) == 12
    with torch.no_grad():
        for i, token in enumerate(found):
            logits_V = tiny.model(torch.tensor([PROMPT + found[:i]])).logits[0, -1]
            assert logits_V[token] >= logits_V.max() - 0.05


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_what_is_decoded_already_changes_nothing(kind, tiny_llama, tiny_mamba, tmp_path):
    path = tiny_llama if kind == "llama" else tiny_mamba.gguf
    (first,) = streamed(path, tmp_path, (PROMPT, ANY, 1, 8))
    longer = PROMPT + first + PROMPT * 70  # more than a batch
    again, after, other = streamed(path, tmp_path, (PROMPT, ANY, 1, 8), (longer, ANY, 2, 8), (PROMPT[:-1], ANY, 3, 8))
    assert again == first
    assert other != first
    whole, full = streamed(path, tmp_path, (longer, ANY, 2, 8), (longer, ANY, 2, 10_000))
    assert whole == after
    assert len(full) <= 1024 - len(longer)


def test_a_question_that_llama_cpp_does_not_survive_is_set_aside_and_named(models, tmp_path, monkeypatch):
    dies = (
        "import os, sys\n"
        "if 'genius_lite.sampler.worker' in sys.orig_argv:\n"
        "    from genius_lite.sampler.engine import Engine\n"
        "    submit = Engine.submit\n"
        "    def dying(self, request):\n"
        "        if b'ZZZZ' in bytes(token for token in getattr(request, 'path', []) if token < 256):\n"
        "            os.abort()\n"
        "        submit(self, request)\n"
        "    Engine.submit = dying\n"
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(dies)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    found = _chat("a.gguf", cwd=models, questions="is it ZZZZ?\nhello\n")
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert "warning: a.gguf: the question is set aside: the sampler's process was killed by SIGABRT" in found.stderr
    assert found.stdout.strip(), "the second question is answered"


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
    assert "\x1b" not in both.stdout, "no colours in a pipe"


def test_the_same_model_beside_itself_says_the_same(models, capsys, monkeypatch):
    lines = iter(["hello", "and again"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    both = [NamedModel(name, models / "a.gguf") for name in ("left", "right")]
    chat(both, PromptConfig("Be brief.", 12, 1.0), context=256, seed=5)
    found = _answers(capsys.readouterr().out, ["left", "right"])
    assert found["left"] == found["right"]
    assert found["left"][0] != found["left"][1]


def test_what_cannot_be_chatted_with_is_one_line(models):
    for arguments, questions, told in (
        (("a.gguf", "--beside", "none.gguf"), "", "none.gguf: no such GGUF file"),
        (("a.gguf", "--side-by-side"), "", "a.gguf is no run folder; name the other model with --beside"),
        (("a.gguf", "--beside", "b.gguf", "--side-by-side"), "", "give one of them"),
        (("a.gguf",), "x" * 300 + "\n", "more than the context of 256; start again (give a larger --context)"),
    ):
        refused = _chat(*arguments, cwd=models, questions=questions)
        assert refused.returncode == 2, refused.stderr
        assert told in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("context", "bound"), [(0, "equal to 1"), (-1, "equal to 1"), (5 * 10**9, "equal to 2147483647")]
)
def test_a_context_that_no_model_has_is_refused(models, context, bound):
    refused = genius("chat", "a.gguf", "--context", context, cwd=models)
    assert (refused.returncode, bound in refused.stderr) == (2, True)


def test_a_model_that_does_not_fit_says_what_to_do(models, monkeypatch):
    @asynccontextmanager
    async def refused(*arguments, **options):
        raise UserError("x.gguf: llama.cpp cannot hold 1 + 0 branches")
        yield

    monkeypatch.setattr("genius_lite.cli.conversation.open_sampler", refused)
    with pytest.raises(UserError, match=r"give --context less \(x.gguf: llama.cpp cannot hold"):
        chat([NamedModel("x", models / "a.gguf")], PromptConfig(None, 1, 1.0), context=64, seed=0)


def test_the_layers_are_those_that_the_gpu_holds(models, monkeypatch):
    asked = []

    def noted(path, settings, *arguments, **options):
        asked.append(settings)
        raise UserError("enough")

    monkeypatch.setattr("genius_lite.cli.conversation.open_sampler", noted)
    monkeypatch.setattr("genius_lite.machine.engine_settings.gpus", lambda: [Gpu("small", 1_000_000, 1_000_000)])
    with pytest.raises(UserError):
        chat([NamedModel("x", models / "a.gguf")], PromptConfig(None, 1, 1.0), context=64, seed=0)
    assert (asked[0].gpu_layers, asked[0].slots, asked[0].parked) == (0, 1, 0)
    monkeypatch.setattr("genius_lite.machine.engine_settings.gpus", lambda: [Gpu("large", 400_000_000, 400_000_000)])
    monkeypatch.setattr("genius_lite.weights.gguf_file.sha256", lambda files: pytest.fail("the whole file is read"))
    with pytest.raises(UserError):
        chat([NamedModel("x", models / "a.gguf")], PromptConfig(None, 1, 1.0), context=64, seed=0)
    assert asked[1].gpu_layers == -1


def test_an_answer_that_is_cut_off_says_so(models):
    result = _chat("a.gguf", cwd=models, questions="hello\n")
    assert "cut off after 12 tokens; give more --max-tokens" in result.stderr


def test_words_are_not_broken_at_the_terminals_edge(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    words = _Words()
    for part in ("The rain", "bow is a sp", "ectacle\n    of colours, and ", "x" * 30, " ends", " here\n"):
        words.write(part)
    shown = capsys.readouterr().out
    lines = ["The rainbow is a ", "spectacle", "    of colours, and ", "x" * 30 + " ", "ends here", ""]
    assert shown.split("\n") == lines
