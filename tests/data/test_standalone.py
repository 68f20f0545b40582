"""Which questions stand alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from genius_lite.data.standalone import RULES, Before, fault, question_in


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of France?",
        "How does llama.cpp sample tokens when it runs out of memory?",
        "Why does the learner of genius-lite keep its adapter cumulative?",
        "Which bird is larger, the heron or the egret, and what does it eat?",
        "What happens in genius-lite if no option is given?",
        "Wie viele Beine hat eine Spinne, wenn sie eines verliert?",
        "スモールモデルはどのように訓練されますか？",
        "水的沸点是多少？",
        "How do I install the package with pip?",
    ],
)
def test_questions_that_stand_alone(question):
    assert fault(question) is None


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        ("The model is trained.", "no question"),
        ("", "no question"),
        ("What is it?", "short"),
        ("What is 2?", "short"),
        (f"What is {'very ' * 60}large?", "long"),
        ("What is the capital of France? Paris is.", "answer"),
        ("What is the capital of France? (Paris)", "answer"),
        ("According to the passage, what is the capital of France?", "text"),
        ("What is the main idea of this text?", "text"),
        ("What does the author say of otters?", "text"),
        ("Which three types of files are mentioned?", "text"),
        ("What does the following code print on a terminal?", "text"),
        ("What happens in the example above with otters?", "text"),
        ("Which keys does the first section of the document describe?", "text"),
        ("What is the question that the learner asks?", "text"),
        ("How does it work on a laptop?", "pronoun"),
        ("What does this option do for a model?", "pronoun"),
        ("Why do they need more memory?", "pronoun"),
        ("What is its default in a recipe?", "pronoun"),
        ("What happens if it fails to load?", "pronoun"),
    ],
)
def test_questions_that_do_not(question, rule):
    assert fault(question) == rule


def test_a_question_that_was_cut_off():
    assert fault("What is the capital of the", was_cut=True) == "cut off"
    assert fault("What is the capital of France?", was_cut=True) is None, "the rest is cut off"


@pytest.mark.parametrize(
    "response",
    [
        "What is the capital of France?",
        ' "What is the capital of France?"\n',
        "Question: What is the capital of France?",
        "**Question 1:** What is the capital of France?",
        "1. What is the capital of France?\n2. What is the capital of Spain?",
        "Sure! Here is a question:\n\nWhat is the capital of France?\n\nAnswer: Paris",
        "Here's one question: What is the capital of France?",
        "Q: What is the\tcapital of France?",
    ],
)
def test_a_question_is_found_in_a_response(response):
    assert question_in(response) == "What is the capital of France?"


def test_repeats_and_near_repeats():
    before = Before()
    for question, rule in [
        ("What is the default type of the exported model?", None),
        ("what is the default type of the exported model ?", "repeat"),
        ("What is the exported model's default type?", "near repeat"),
        ("What is the default type of a merged model?", None),
        ("How many tokens do 2 beams of 4 candidates take in a search?", None),
        ("How many tokens do 2 beams of 8 candidates take in a search?", None),
        ("Why is the sky blue?", None),
        ("Why is the sea blue?", None),
    ]:
        assert before.repeats(question) == rule, question


def test_many_questions_take_little_time():
    before, start = Before(), time.process_time()
    for number in range(20_000):
        before.repeats(f"What does the option word{number % 5000} of the command other{number // 3} do for the model?")
    assert time.process_time() - start < 5


def test_every_rule_stands_in_the_docs():
    docs = Path("docs/documents.md").read_text(encoding="utf-8")
    assert [rule for rule, told in RULES.items() if told not in docs] == []
