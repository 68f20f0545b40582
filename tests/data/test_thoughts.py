"""Where an answer begins: after the marks of a thought, whether they are text or special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genius_lite.data.steps import OpenStep
from genius_lite.data.thoughts import Said, read
from genius_lite.data.vocabulary import Vocabulary
from tests.support.models import SPECIAL, tiny_vocabulary


@pytest.mark.parametrize(
    ("response", "opened", "said"),
    [
        ("The answer is 7.", False, Said("The answer is 7.", None)),
        ("<think>\nthe answer is 5\n</think>\n\nThe answer is 7.", False, Said("\n\nThe answer is 7.", True)),
        ("it may be 5\n</think>\nThe answer is 7.", True, Said("\nThe answer is 7.", True)),
        ("<think>\nFirst 3 + 4 = 7, so after that I could try 12", False, Said("", False)),
        ("First 3 + 4 = 7, so after that I could try 12", True, Said("", False)),
        ("[THINK]a[/THINK]b", False, Said("b", True)),
        ("<think>a</think>b<think>c</think>d", False, Said("d", True)),
        ("<think>a</think>b<think>c", False, Said("", False)),
        ("<think>a</think>", False, Said("", True)),
        ("<|channel>thought\na<channel|>b", False, Said("b", True)),
        ("<|channel>thought\na", False, Said("", False)),
        ("<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b", False, Said("b", True)),
        ("<|channel|>analysis<|message|>a<|start|>assistant<|channel|>commentary<|message|>b", False, Said("", False)),
    ],
)
def test_what_follows_a_thought(response, opened, said):
    assert read(response, opened) == said


MAGISTRAL = ["[THINK]", "[/THINK]"]
GEMMA_4 = ["<|turn>", "<turn|>", "<|channel>", "<channel|>"]
GPT_OSS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
THINKS, ANSWERS = (
    "assistant<|channel|>analysis<|message|>Maybe 5.<|end|>",
    "<|start|>assistant<|channel|>final<|message|>7",
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Iterator[Vocabulary]:
    """Bytes, and the special tokens by which other models mark their thoughts; each is a control token."""
    path: Path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    tiny_vocabulary(path, [*SPECIAL, *MAGISTRAL, *GEMMA_4, *GPT_OSS, "<think>", "</think>"])
    with Vocabulary.open(path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("prompt", "response", "said"),
    [
        ("[INST]3 + 4?[/INST]", "[THINK]Maybe 5.[/THINK]7<|im_end|>", Said("7", True)),
        ("[INST]3 + 4?[/INST]", "[THINK]Maybe 5.", Said("", False)),
        ("[INST]3 + 4?[/INST][THINK]", "Maybe 5.", Said("", False)),
        ("3 + 4?\n<think>\n", "Maybe 5.\n</think>\n\n7<|im_end|>", Said("\n\n7", True)),
        ("3 + 4?\n<think>\n", "Maybe 5.<|im_end|>", Said("", False)),
        ("3 + 4?\n<think>\n\n</think>\n\n", "7<|im_end|>", Said("7", None)),
        (
            "<|turn>user\n3 + 4?<turn|>\n<|turn>model\n",
            "<|channel>thought\nMaybe 5.<channel|>7<turn|>",
            Said("7", True),
        ),
        ("<|turn>user\n3 + 4?<turn|>\n<|turn>model\n", "<|channel>thought\nMaybe 5.", Said("", False)),
        ("<|start|>user<|message|>3 + 4?<|end|><|start|>assistant", THINKS.removeprefix("assistant"), Said("", False)),
        ("<|start|>user<|message|>3 + 4?<|end|><|start|>", f"{THINKS}{ANSWERS}<|return|>", Said("7", True)),
    ],
)
def test_special_tokens_mark_a_thought_too(vocabulary, prompt, response, said):
    asked, tokens = (vocabulary.encode(text, special=True) for text in (prompt, response))
    assert len(asked + tokens) < len(prompt + response), "the marks are tokens, not bytes"
    assert vocabulary.said(asked, tokens) == said
    closes = prompt.endswith("</think>\n\n")
    assert vocabulary.closes_thought(asked) == closes
    assert vocabulary.may_think(asked) == (not closes and "<think>" in (vocabulary.template or ""))


def test_a_line_with_a_mark_alone_is_no_step(vocabulary):
    step = OpenStep(vocabulary.delimiter)
    tokens = vocabulary.encode("<think>\nWell.\n</think>\n\n7\n", special=True)
    ends = [vocabulary.decode(tokens[: at + 1]) for at, token in enumerate(tokens) if step.ends(token)]
    assert ends == ["<think>\nWell.\n", "<think>\nWell.\n</think>\n\n7\n"]


def test_of_special_tokens_only_the_marks_of_a_thought_are_text(vocabulary):
    tokens = vocabulary.encode("<|im_start|>[THINK]a[/THINK]b<|im_end|><turn|><|channel>", special=True)
    assert vocabulary.decode(tokens) == "[THINK]a[/THINK]b<|channel>"


def test_a_question_that_looks_like_a_mark_is_text(vocabulary):
    (asked, *_) = tokens = vocabulary.encode("[THINK]", special=False)
    assert (len(tokens), vocabulary.decode([asked])) == (7, "[")


def test_the_end_of_a_gpt_oss_thought_does_not_end_its_response(vocabulary):
    ends = {text: bool(vocabulary.ends[vocabulary.encode(text, special=True)[0]]) for text in GPT_OSS}
    assert {text for text, ended in ends.items() if ended} == {"<|return|>", "<|call|>"}
