from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import datasets
import gguf
import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from genius_lite.errors import UserError
from genius_lite.init import questions
from genius_lite.init.questions import (
    Resources,
    find_model,
    find_problems,
    find_questions,
    problem_files,
    question_columns,
    question_files,
    suggest_models,
)
from genius_lite.init.recipe import Given, _cost, _settings, _text, recipe_text
from genius_lite.recipe import TaskSource
from genius_lite.recipe.reader import load, parse
from tests.support.models import TEMPLATE, tiny_gguf

LAPTOP = Resources(cores=4, memory=12_000_000_000)


@pytest.fixture
def folder(tmp_path, tiny_llama, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(questions, "_FOLDERS", (".",))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "questions.jsonl").write_text(_lines({"id": "a", "question": f"What is {n}?"} for n in range(30)))
    (tmp_path / "problems.jsonl").write_text(_lines({"prompt": f"What is {n}?", "answer": str(n)} for n in (1, 99)))
    return tmp_path


def _lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _asked(answers: str, given: Given, monkeypatch) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    return recipe_text(given, LAPTOP, Path("mine.yaml"))


def test_what_fits_a_machine():
    small = _settings(LAPTOP, 135e6, 40, votes=False)
    large = _settings(Resources(8, 10**10, gpu=24 * 10**9), 7e9, 5000, votes=False)
    assert small == {"steps": 3, "max_tokens": 256, "lr": "2e-4", "batch_pairs": 4, "max_pack_tokens": 2048}
    assert large == {"steps": 4, "max_tokens": 384, "lr": "2e-5", "batch_pairs": 32, "max_pack_tokens": 2048}
    assert _settings(Resources(4, 5 * 10**9), 135e6, 40, votes=False)["max_pack_tokens"] == 1024
    half_a_billion = [_settings(LAPTOP, 5e8, 200, votes=votes) for votes in (False, True)]
    assert [(each["lr"], each["batch_pairs"]) for each in half_a_billion] == [("5e-5", 8), ("2e-4", 4)]
    # 2 rounds, each 2 x 4 x 3 x 256 tokens of which 35 % are sampled, at 48e9 / 135e6 tokens a second, and 1.8 times
    # that with learning and merging.
    rate = 48e9 / 135e6
    assert _cost(LAPTOP, 135e6, 0, votes=False).each == pytest.approx(2 * 2150.4 * 1.8 / rate)
    # Eight responses of 256 tokens that vote, in one of three rounds; three answers to each of ten problems from the
    # base model and every round.
    votes = _cost(LAPTOP, 135e6, 10, votes=True)
    assert votes.each == pytest.approx(8 * 256 * 0.35 * 1.8 / rate)
    assert votes.measuring == pytest.approx((4 * 3 + 3) * 10 * 256 * 0.7 / rate)
    assert votes.of(20) == pytest.approx(votes.measuring + 20 * votes.each)
    assert votes.questions_in(votes.of(57)) == 50
    assert votes.questions_in(1) == 10


def test_models_are_suggested_by_what_is_there_and_fits(folder, monkeypatch):
    monkeypatch.setattr(questions.importlib.util, "find_spec", lambda name: None)
    (folder / "mmproj-x.gguf").write_bytes(b"")
    (folder / "big-00002-of-00003.gguf").write_bytes(b"")
    assert suggest_models(LAPTOP)[0] == "tiny.gguf"
    assert [("0.5b" in m or "1.5b" in m) for m in suggest_models(LAPTOP)] == [False, True]
    assert "0.5b" in suggest_models(Resources(2, 4 * 10**9))[-1]
    assert "7b" in suggest_models(Resources(8, 16 * 10**9, gpu=23 * 10**9))[-1]
    cached = folder / "hub/models--Qwen--Qwen2.5-GGUF/snapshots/abc/q/m.gguf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert suggest_models(LAPTOP)[:2] == ["tiny.gguf", "hf:Qwen/Qwen2.5-GGUF/q/m.gguf"]
    assert find_model("hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf").parameters == 0.5e9
    assert find_model("hf:A/B-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf").parameters == 135e6
    unknown = find_model("hf:A/B-GGUF/Phi-4-mini-instruct-Q4_K_M.gguf")
    assert unknown.description.startswith("of unknown size, taken for 1,000 M parameters; downloaded when")
    for wrong in ("hf:A/B", "hf:A/B/c.bin", "none.gguf", "questions.jsonl", "python:nowhere/x.gguf"):
        with pytest.raises(UserError):
            find_model(wrong)


def test_columns_and_checkers_are_detected(folder):
    assert question_columns("questions.jsonl") == ["question", "id"]
    assert len(find_questions("questions.jsonl", "question")[1] or ()) == 30
    Path(os.fsdecode(b"question\xe9.jsonl")).write_text("x")  # which a recipe could not name
    assert question_files() == ["questions.jsonl", "problems.jsonl"]
    (folder / "q.txt").write_text("one\ntwo\n\none\n")
    assert find_questions("q.txt", "text")[1] == ["one", "two"]
    (folder / "q.txt").rename("questions")  # whose first line might be a header
    assert question_columns("questions") == ["text"]
    assert find_questions("questions", "text")[1] == ["one", "two"]
    (folder / "held").write_text("question,answer\nWhat is 1+1?,2\n")
    assert question_columns("held") == ["question", "answer"]
    assert find_problems("held")[0].check == "numeric"
    assert find_questions("hf:A/B", "prompt")[1] is None
    for rows, kind in (
        ([{"question": "a", "answer": "so 2 #### 72"}, {"question": "b", "answer": 3}], "numeric"),
        ([{"question": "a", "answer": "$1,000"}, {"question": "b", "answer": "50 %"}], "numeric"),
        ([{"question": "a", "answer": "in 1999"}, {"question": "b", "answer": "7"}], "exact"),
        ([{"question": "a", "answer": "3.11.2"}, {"question": "b", "answer": "24.12.2025"}], "exact"),
        ([{"question": "a", "answer": "0,5"}, {"question": "b", "answer": "7"}], "exact"),
        ([{"question": "a", "answer": 1e-05}, {"question": "b", "answer": "-.5"}], "numeric"),
        ([{"question": "a", "answer": "#### yes"}, {"question": "b", "answer": "."}], "exact"),
        ([{"question": "a", "answer": "x", "choices": ""}, {"question": "b", "answer": "y", "choices": None}], "exact"),
        ([{"question": "a", "answer": "B", "choices": ["x", "y"]}], "choice"),
        ([{"question": "a: A. x B. y", "answer": "B"}, {"question": "b: A. x B. y", "answer": "A"}], "choice"),
    ):
        (folder / "t.jsonl").write_text(_lines(rows))
        task, prompts = find_problems("t.jsonl")
        assert (task.check, task.prompt, len(prompts)) == (kind, "question", len(rows))
    for rows in ([{"question": "a"}], [{"q": "a", "answer": "1"}], [["a"]], []):
        (folder / "t.jsonl").write_text(_lines(rows))
        with pytest.raises(UserError, match=r"t\.jsonl"):
            find_problems("t.jsonl")


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("ID,Question,Answer\n1,Why?,So.\n", ["Question", "Answer", "ID"]),
        (",Frage\n0,Nenne drei Farben.\n", ["Frage"]),  # as pandas writes it
        ("Level;Frage\n1;Nenne drei Farben.\n", ["Frage", "Level"]),
        ("Name;Frage\nAnna;Warum?\n", ["Frage", "Name"]),
    ],
)
def test_columns_of_peoples_tables(folder, table, columns):
    (folder / "excel.csv").write_text(table)
    assert question_columns("excel.csv") == columns


def test_columns_of_problems_in_capitals(folder):
    (folder / "test.jsonl").write_text(_lines([{"Problem": "What is 2 + 2?", "Answer": "4"}]))
    task, prompts = find_problems("test.jsonl")
    assert (task.prompt, task.answer, task.check, len(prompts)) == ("Problem", "Answer", "numeric", 1)


def test_rows_of_another_encoding_and_a_lacking_header_are_told(folder, monkeypatch, capsys):
    rows = [b"question", b"Why?", b"What is \x93x\x94?", b"Who\x92s there?", b"When?", b"Where?"]
    (folder / "excel.csv").write_bytes(b"\r\n".join(rows))
    text = _asked("", Given(model="tiny.gguf", queries="excel.csv", tasks="none", yes=True), monkeypatch)
    assert "limit: 3 " in text
    told = "   2 rows are set aside; the first: excel.csv:3: the byte 93 is no UTF-8 where it stands; save the file as"
    assert told in capsys.readouterr().out
    (folder / "excel.csv").write_bytes("Question,Prüfung\nWhy?,yes\n".encode("cp1252"))
    assert question_columns("excel.csv") == ["Question"], "the other one is nobody's business"
    (folder / "excel.csv").write_bytes("Prüffrage\nWhy?\n".encode("cp1252"))
    with pytest.raises(UserError, match="its header is not UTF-8: save the file as UTF-8"):
        question_columns("excel.csv")
    (folder / "excel.csv").write_text("What is 2 + 2?\nWhat is 3 + 3?\n")
    _asked("", Given(model="tiny.gguf", queries="excel.csv", tasks="none", yes=True), monkeypatch)
    assert "   the first line is taken for the names of columns" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("end", "told", "variables", "thought"),
    [
        (
            "{% if enable_thinking %}<think>\n{% endif %}",
            "which the recipe switches off",
            {"enable_thinking": False},
            0,
        ),
        ("<think>\n", "the recipe gives 1024 tokens more", {}, 1024),
        ("{# </think> of earlier answers #}", "", {}, 0),  # it may only take them out
        ("{% if enable_thinking %}{% else %}<think>\n\n</think>\n{% endif %}", "", {}, 0),  # off by itself
        ("", "", {}, 0),
    ],
)
def test_a_model_that_thinks_has_room_for_it_or_is_kept_from_it(
    end, told, variables, thought, folder, monkeypatch, capsys
):
    tiny_gguf(folder / "thinks.gguf", "llama", template=TEMPLATE + end)
    for tasks in ("none", "problems.jsonl"):  # a search, a vote
        text = _asked("", Given(model="thinks.gguf", tasks=tasks, yes=True), monkeypatch)
        recipe = parse(text, "mine.yaml")
        assert (recipe.queries.template, recipe.foresight.thought_tokens) == (variables, thought)
        assert ("chat template has thoughts" in (shown := capsys.readouterr().out)) == bool(told)
        assert told in shown
    longer = _cost(LAPTOP, 135e6, 0, votes=True, thought=1024).each
    assert longer == pytest.approx(_cost(LAPTOP, 135e6, 0, votes=True).each * (256 + 1024) / 256)


def test_of_a_hub_model_it_is_not_known_whether_it_thinks(folder, monkeypatch):
    text = _asked("", Given(model="hf:A/B-GGUF/b-1b.gguf", tasks="none", yes=True), monkeypatch)
    assert "\n  # template: {enable_thinking: false}   #" in text
    assert parse(text, "mine.yaml").queries.template == {}


def test_a_base_model_and_one_that_needs_weights_are_told(folder):
    tiny_gguf(folder / "base.gguf", "llama", template="")
    assert "no chat template: a base model" in find_model("base.gguf").description

    def biased(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.1.attn_q.bias", np.ones(64, np.float32))

    tiny_gguf(folder / "biased.gguf", "llama", more=biased)
    with pytest.raises(
        UserError, match=r"set model\.weights .*; init asks for no more than a GGUF: name another model"
    ):
        find_model("biased.gguf")


def test_a_column_for_each_option_is_in_the_question(folder):
    (folder / "mmlu.csv").write_text("question,A,B,C,D,answer\nWhich?,x,y,z,w,B\nWho?,k,l,m,n,A\n")
    task, prompts = find_problems("mmlu.csv")
    assert (task.check, task.choices) == ("choice", "{A} {B} {C} {D}")
    assert prompts[0].startswith("Which?\n\nA. x\nB. y\nC. z\nD. w\n")


def test_what_is_looked_at_of_the_hub_is_what_is_measured(monkeypatch):
    asked = list[str]()

    def load_dataset(*named, split, **more):
        asked.append(split)
        return datasets.Dataset.from_list([{"question": "2 + 2?", "answer": "4"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task, prompts = find_problems("hf:me/sums")
    assert (task.check, prompts, asked) == ("numeric", ["2 + 2?"], ["test", "test"])


def test_a_benchmark_is_named_and_not_downloaded(folder, monkeypatch, capsys):
    given = Given(model="tiny.gguf", queries="questions.jsonl", tasks="MATH-500", yes=True)
    recipe = parse(_asked("", given, monkeypatch), "mine.yaml")
    assert recipe.evaluate.tasks == [TaskSource.model_validate({"benchmark": "math-500", "limit": 100})]
    assert "math-500: downloaded when it is first used" in capsys.readouterr().out


def test_five_answers_wrong_ones_asked_again(folder, monkeypatch, capsys):
    answers = "7\ntiny.gguf\nnone.csv\nquestions.jsonl\nanswer\nquestion\nx.txt\nproblems.jsonl\nsoon\n20\nQ9\nq4_k_m\n"
    text = _asked(answers, Given(), monkeypatch)
    shown = capsys.readouterr().out
    for told in (
        "7: no such GGUF file",
        "none.csv: no such file",
        "no column `answer`",
        "soon: write a time, such as 2h or 45m, or a number of questions",
        "x.txt: no such file",
        "Q9: no quantization type of that name",
        "Its columns of text: question, id",
        "About documents a model asks some: genius-lite questions",
        "30 questions in `question`",
        "2 problems, `prompt` and `answer`; answers are compared as numeric",
        "1 of them are among the questions too",
    ):
        assert told in shown
    (folder / "mine.yaml").write_text(text)
    recipe = load("mine.yaml")
    assert Path(recipe.model.gguf) == folder / "tiny.gguf", "a link keeps its name"
    assert (recipe.queries.column, recipe.queries.limit, recipe.quantize.type) == ("question", 20, "Q4_K_M")
    assert recipe.evaluate.tasks[0] == TaskSource(source=str(folder / "problems.jsonl"), check="numeric", limit=100)
    assert (recipe.sampler.slots, recipe.queries.answers) == ("auto", "numeric")
    assert "answers to the questions are read in the same way, and vote" in shown
    assert (recipe.pairs.choose, recipe.learner.loss, recipe.learner.lr) == ("agreed", "sft", 2e-4)
    # Two of twenty are watched; three rounds share the others.
    assert (recipe.rounds, recipe.round_queries, recipe.evaluate.watched(20)) == (3, 6, 5)
    assert recipe.guard.entropy.halt == 0.02, "that answers agree is no collapse"


def test_votes_are_those_of_the_ready_recipe(folder, monkeypatch):
    """One is text with comments for the user, the other a file: what they set of the method is the same."""
    given = Given(model="tiny.gguf", queries="questions.jsonl", tasks="problems.jsonl", yes=True)
    ours = parse(_asked("", given, monkeypatch), "mine.yaml")
    ready = load(Path(__file__).parent.parent / "recipes" / "short-answers.yaml")
    assert ours.foresight.model_copy(update={"max_tokens": ready.foresight.max_tokens}) == ready.foresight
    assert (ours.pairs, ours.guard, ours.rounds) == (ready.pairs, ready.guard, ready.rounds)
    for key in ("loss", "lr", "epochs", "batch_pairs"):
        assert getattr(ours.learner, key) == getattr(ready.learner, key)


def test_it_says_how_long_a_round_takes_and_when_questions_are_too_few(folder, monkeypatch, capsys):
    _asked("", Given(model="tiny.gguf", queries="questions.jsonl", amount="4", tasks="none", yes=True), monkeypatch)
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 questions, 1 minute or so so few show that it works, and are too few to learn from: 32" in shown
    assert "the study used 108 of one kind" in shown
    (folder / "questions.jsonl").write_text(_lines({"question": f"What is {n}?"} for n in range(40)))
    answers = "1\nquestions.jsonl\nnone\n32\nsource\n"
    _asked(answers, Given(), monkeypatch)
    shown = capsys.readouterr().out
    assert "too few" not in shown
    # One of two rounds with 108 questions: 2 x 4 x 3 x 192 tokens, of which 35 % are sampled, 1.8 times that.
    hours = 108 * 8 * 3 * 192 * 0.35 * 1.8 / (48e9 / 1.5e9) / 3600
    assert hours == pytest.approx(2.7, abs=0.05)
    assert "qwen2.5-1.5b-instruct-q8_0.gguf\n      (about 3 hours a round of 108 questions here)\n" in shown
    assert "   1  tiny.gguf\n" in shown, "its name says no size"
    assert re.search(r"   tiny\.gguf: llama, .* MB\n      \(about 1 minute a round", shown)


def test_nothing_is_asked_with_yes_and_what_is_suggested_is_taken(folder, monkeypatch, capsys):
    text = _asked("", Given(tasks="none", yes=True), monkeypatch)
    assert "?" not in capsys.readouterr().out.replace("What is 0?", "")
    (folder / "mine.yaml").write_text(text)
    recipe = load("mine.yaml")
    assert (recipe.queries.limit, recipe.quantize.type, recipe.evaluate.tasks) == (30, "source", [])
    assert (recipe.pairs.choose, recipe.learner.loss, recipe.rounds) == ("best", "aco", 2), "answers are not known"
    (folder / "mine.yaml").write_text(_asked("", Given(yes=True), monkeypatch))
    recipe = load("mine.yaml")
    assert [Path(task.source or "").name for task in recipe.evaluate.tasks] == ["problems.jsonl"]
    assert (recipe.pairs.choose, recipe.learner.loss, recipe.rounds) == ("agreed", "sft", 3)
    given = Given("tiny.gguf", "questions.jsonl", "id", "45m", "problems.jsonl", "q8_0")
    text = _asked("", given, monkeypatch)
    assert 'column: "id"' in text
    assert "limit: 1 " in text, "there is one distinct id"
    assert "type: Q8_0" in text


def test_yes_says_which_file_of_problems_it_takes_and_why(folder, monkeypatch, capsys):
    _asked("", Given(yes=True), monkeypatch)
    shown = capsys.readouterr().out
    assert "   problems.jsonl: 2 problems, " in shown
    assert "   taken because it lies in this folder; --tasks names another one, or none\n" in shown
    (folder / "held-out.jsonl").write_text((folder / "problems.jsonl").read_text())
    written = _asked("", Given(yes=True), monkeypatch)
    assert 'source: "held-out.jsonl"' in written
    shown = capsys.readouterr().out
    assert "taken because it is the first of held-out.jsonl, problems.jsonl in this folder; --tasks names" in shown
    for tasks in ("none", "problems.jsonl"):
        _asked("", Given(tasks=tasks, yes=True), monkeypatch)
        assert "taken because" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Given(), "the input ended before `Model`"),
        (Given(model="tiny.gguf", queries="questions.jsonl"), "the input ended before `Column`"),
        (Given(model="none.gguf", yes=True), "none.gguf: no such GGUF file"),
        (Given(queries="none.txt", yes=True), "none.txt: no such file"),
        (Given(queries="", yes=True), "questions: the answer is empty; write one"),
        (Given(queries=" ", yes=True), "questions: the answer is empty; write one"),
        (Given(column="nothing", yes=True), "no column `nothing`; it has"),
        (Given(amount="0", yes=True), "0: write a time"),
        (Given(amount="0m", yes=True), "0m: write a time"),
        (Given(tasks="none.jsonl", yes=True), "none.jsonl: no such file"),
        (Given(kind="Q9", yes=True), "Q9: no quantization type of that name"),
    ],
)
def test_an_answer_of_the_command_line_is_refused_at_once(given, told, folder, monkeypatch):
    with pytest.raises(UserError) as e:
        _asked("", given, monkeypatch)
    assert told in str(e.value)
    assert "\n" not in str(e.value)


def test_without_questions_yes_says_what_to_give(folder, monkeypatch):
    (folder / "questions.jsonl").unlink()
    (folder / "problems.jsonl").unlink()
    with pytest.raises(UserError, match=r"give --questions"):
        _asked("", Given(yes=True), monkeypatch)


def test_files_are_named_from_the_recipes_folder(folder):
    out = folder / "recipes/mine.yaml"
    out.parent.mkdir()
    out.write_text(recipe_text(Given(yes=True), LAPTOP, Path("recipes/mine.yaml")))
    assert 'gguf: "../tiny.gguf"' in out.read_text()
    assert Path(load(out).queries.source) == folder / "questions.jsonl"


def test_files_are_found_from_a_folder_that_is_linked(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deep" / "recipes"
    elsewhere.mkdir(parents=True)
    (folder / "recipes").symlink_to(elsewhere)
    (elsewhere.parent / "other.jsonl").write_text('{"prompt": "Why?"}\n')
    for source in (folder / "questions.jsonl", elsewhere.parent / "other.jsonl"):
        out = Path("recipes/mine.yaml")
        out.write_text(recipe_text(Given(queries=str(source), tasks="none", yes=True), LAPTOP, out))
        recipe = load(out)
        assert Path(recipe.queries.source).samefile(source)
        assert Path(recipe.model.gguf).samefile(folder / "tiny.gguf")
    assert 'source: "../other.jsonl"' in out.read_text()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_word_is_read_back(text):
    recipe = parse(f"model: {{gguf: m}}\nqueries:\n  source: q\n  column: {_text(text)}   # comment\n")
    assert recipe.queries.column == text


def test_a_held_out_file_is_suggested_and_its_time_counts(folder, monkeypatch, capsys):
    (folder / "tests.jsonl").write_text('{"prompt": "without an answer"}\n')
    assert [*problem_files("questions.jsonl")] == ["problems.jsonl"]
    assert [*problem_files("problems.jsonl")] == []
    (folder / "problems.jsonl").write_text(_lines({"prompt": f"What is {n}?", "answer": str(n)} for n in range(50, 58)))
    model = "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF/qwen2.5-1.5b-instruct-q8_0.gguf"
    written = _asked("question\n\nx\n2000h\n\n", Given(model=model, queries="questions.jsonl"), monkeypatch)
    assert 'source: "problems.jsonl"' in written
    told = capsys.readouterr().out
    # 30 x 8 x 192 x 0.35 tokens at 32 a second, 1.8 times; 8 problems, three answers from each of four models, and to
    # half of them two at each of three temperatures, 0.7 x 192 tokens each.
    assert "All take 24 minutes or so here" in told
    assert "error: x: write a time" in told
    assert "Error:" not in told
    assert "30 questions, 24 minutes or so, 8 minutes of it for measuring on the problems" in told
