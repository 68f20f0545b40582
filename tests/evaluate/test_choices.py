"""Which option an answer means."""

from __future__ import annotations

import json
import string

import pyarrow
import pytest
from pyarrow import parquet

from genius_lite.errors import UserError
from genius_lite.evaluate.choices import Options, counts_from, read_options
from genius_lite.evaluate.tasks import from_rows
from genius_lite.recipe import TaskSource

ANIMALS = ["trout", "sparrow", "otter", "newt"]


def _answers(tmp_path, *rows: tuple[object, object], **more) -> list[str]:
    lines = [json.dumps({"prompt": "Which?", "choices": choices, "answer": answer}) for choices, answer in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    task = from_rows(TaskSource(source=str(tmp_path / "t.jsonl"), check="choice", **more))
    return [problem.answer for problem in task.problems]


@pytest.mark.parametrize(
    ("answers", "letters"),
    [
        ([0, "2", 3], "ACD"),
        ([1, "3", 4], "ACD"),
        (["2", "4", "B"], "BDB"),
        (["otter", 0, "C"], "CAC"),
        (["a", "C", " d"], "ACD"),
        ([4], "D"),
    ],
)
def test_numbers_count_from_where_all_of_them_are_options(tmp_path, answers, letters):
    assert "".join(_answers(tmp_path, *((ANIMALS, answer) for answer in answers))) == letters


@pytest.mark.parametrize("answers", [["3", "1"], [2], [0, 4]])
def test_numbers_that_may_count_from_either_are_no_guess(tmp_path, answers):
    rows = [(ANIMALS, answer) for answer in answers]
    with pytest.raises(UserError, match="the answers number the options, from 0 or from 1; write count_from: 0"):
        _answers(tmp_path, *rows)
    if answers != [0, 4]:
        for first in (0, 1):
            expected = [string.ascii_uppercase[int(answer) - first] for answer in answers]
            assert _answers(tmp_path, *rows, count_from=first) == expected


@pytest.mark.parametrize(
    ("labels", "answer"), [("1234", "3"), ("1234", 3), ("ABCD", "C"), ("abcd", "c"), ("1234", "otter")]
)
@pytest.mark.parametrize("paired", [True, False])
def test_labels_are_read_as_they_are_meant(tmp_path, labels, answer, paired):
    whole = {"text": ANIMALS, "label": [*labels]}
    pairs = [{"label": label, "text": text} for label, text in zip(labels, ANIMALS, strict=True)]
    assert _answers(tmp_path, (pairs if paired else whole, answer)) == ["C"]
    assert _answers(tmp_path, (dict(zip(labels, ANIMALS, strict=True)), answer)) == ["C"]


def test_arc_as_the_hub_has_it(tmp_path):
    choices = {"text": ANIMALS, "label": ["1", "2", "3", "4"]}
    rows = [{"id": "a", "question": "Which is a mammal?", "choices": choices, "answerKey": "3"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "arc.parquet")
    task = from_rows(
        TaskSource(source=str(tmp_path / "arc.parquet"), check="choice", prompt="question", answer="answerKey")
    )
    (problem,) = task.problems
    assert (task.name, problem.answer) == ("arc", "C")
    assert problem.prompt.startswith("Which is a mammal?\n\nA. trout\nB. sparrow\n")


@pytest.mark.parametrize(
    ("texts", "labels", "known", "first"),
    [
        (["2", "1", "0"], (), "2", None),
        (["2", "1", "0"], (), "2", 0),
        (["B", "A"], (), "A", None),
        (["b", "a"], (), "a", None),
        (ANIMALS, (), "E", None),
        (ANIMALS, (), 4, 0),
        (ANIMALS, (), 0, 1),
        (ANIMALS, ("1", "2", "3", "4"), "0", None),
        (["same", "same"], (), "same", None),
    ],
)
def test_an_answer_that_means_none_or_two_is_refused(texts, labels, known, first):
    with pytest.raises(UserError, match=r"is (none|more than one) of the [234] options"):
        Options(texts, labels).letter(known, first)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"text": ["a", "b"], "label": ["1"]}, "has 2 options, and other labels: 1"),
        ({"text": ["a", "b"], "label": ["1", "1"]}, "has 2 options, and other labels: 1, 1"),
        ({"text": ["a", "b"], "label": 3}, "has 2 options, and other labels: 3"),
        ({"text": ["a", "b"], "label": 0}, "has 2 options, and other labels: 0"),
        ([{"text": "a", "label": "1"}, {"text": "b"}], "has 2 options, and other labels: 1"),
        ({"label": ["1", "2"]}, "not a list of texts"),
        ("a, b", "not a list of texts"),
        (["a"], "has 1 options; 2 to 26 can be lettered"),
    ],
)
def test_what_is_no_list_of_options(value, told):
    with pytest.raises(UserError, match=told):
        read_options(value, "choices")


def test_options_may_have_no_labels():
    assert read_options([{"text": "x"}, {"text": "y", "label": None}], "choices") == Options(["x", "y"])
    assert read_options({"text": ["x", "y"], "label": [None, None]}, "choices") == Options(["x", "y"])


def test_half_a_character_in_an_option_is_no_text(tmp_path):
    with pytest.raises(UserError, match="half a character"):
        _answers(tmp_path, (["\ud800", "y"], "A"))


def test_true_and_false_are_yes_and_no(tmp_path):
    rows = [{"question": "Could an otter drown?", "answer": True}, {"question": "Could a trout?", "answer": False}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    task = from_rows(TaskSource(source=str(tmp_path / "t.parquet"), check="choice", prompt="question"))
    assert [problem.answer for problem in task.problems] == ["A", "B"]
    assert task.problems[1].prompt == "Could a trout?\n\nA. yes\nB. no\n\nGive the letter of the right option."
    assert [task.check(task.problems[1], said).score for said in ("B", "No.", "The answer is no", "yes")] == [
        1,
        1,
        1,
        0,
    ]


def test_options_of_a_table_are_json():
    assert read_options('["a", "b"]', "choices") == Options(["a", "b"])
    assert read_options('{"1": "a", "2": "b"}', "choices") == Options(["a", "b"], ("1", "2"))


def test_one_number_beyond_the_options_does_not_move_the_others():
    four = Options(ANIMALS)
    assert counts_from([(0, four), (1, four), (3, four), (0, four), (4, four)], None, "t") == 0
    assert counts_from([("B", four), (7, four)], None, "t") is None


def test_a_conversation_as_a_problem(tmp_path):
    turns = [
        {"role": role, "content": text} for role, text in (("user", "Hi."), ("assistant", "Hi."), ("user", "2 + 2?"))
    ]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": turns, "answer": 4}))
    task = from_rows(TaskSource(source=str(tmp_path / "t.jsonl"), check="numeric"))
    (problem,) = task.problems
    assert (problem.prompt, problem.before, problem.answer) == ("2 + 2?", turns[:2], "4")
    assert task.form == "conversations (OpenAI's `messages`)"


def test_a_problem_that_cannot_be_used_is_set_aside_and_counted(tmp_path):
    rows = [{"context": "Two.", "question": f"{n}?", "answer": n} for n in range(9)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"question": "?", "answer": "x"}]))
    source = TaskSource(source=str(tmp_path / "t.jsonl"), check="numeric", prompt="{context} {question}", limit=None)
    task = from_rows(source)
    assert [problem.prompt for problem in task.problems] == [f"Two. {n}?" for n in range(9)]
    assert task.set_aside.startswith(f"1 row is set aside; {tmp_path / 't.jsonl'}:10: no column `context`")
    assert len(from_rows(source.model_copy(update={"limit": 3})).problems) == 3


def test_options_in_columns_of_their_own(tmp_path):
    (tmp_path / "c.csv").write_text(
        "question,A,B,C,D,answer\n哪一个是哺乳动物？,鳟鱼,麻雀,水獭,蝾螈,C\n", encoding="utf-8"
    )
    source = TaskSource(source=str(tmp_path / "c.csv"), check="choice", prompt="question", choices="{A} {B} {C} {D}")
    task = from_rows(source)
    (problem,) = task.problems
    assert problem.answer == "C"
    assert "\n\nA. 鳟鱼\nB. 麻雀\nC. 水獭\nD. 蝾螈\n\n" in problem.prompt
    with pytest.raises(ValueError, match=r"choices '\{A\} \{\}' has braces without the name of a column"):
        TaskSource(source="c.csv", check="choice", choices="{A} {}")
