from __future__ import annotations

import ast
import gc
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import datasets
import psutil
import pyarrow
import pytest
from pyarrow import parquet

from genius_lite.errors import UserError
from genius_lite.evaluate import tasks
from genius_lite.evaluate.scoring import Verdict, as_literal
from genius_lite.evaluate.tasks import from_reasoning_gym
from genius_lite.recipe import Check, CheckOptions, TaskSource
from genius_lite.records import query_id
from tests.data.sources import ASKED, FILES

GSM8K = [
    '{"prompt": "How many clips?", "answer": "48/2 = <<48/2=24>>24\\nTogether 48+24 = 72.\\n#### 72", "level": 2}',
    "",
    '{"prompt": "How much?", "answer": "6,250"}',
    '{"prompt": "How many?", "answer": 35}',
]
CHOICES = '{{"prompt": "Capital of France?", "answer": {}, "choices": ["Rome", "Paris", "Oslo"]}}'


def _file(folder, *lines: str | bytes):
    path = folder / "maths.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def _task(path: Path, check: Check, **more):
    return tasks.from_rows(TaskSource(source=str(path), check=check, **more))


def test_problems_with_numbers(tmp_path):
    task = _task(_file(tmp_path, *GSM8K), "numeric")
    assert task.name == "maths"
    assert [p.prompt for p in task.problems] == ["How many clips?", "How much?", "How many?"]
    assert [p.id for p in task.problems] == [query_id(p.prompt) for p in task.problems]
    assert [p.answer for p in task.problems][1:] == ["6,250", "35"]
    assert task.problems[0].choices == [], "no other column is read"
    responses = ["It is \\boxed{72}.", "$6250", "36"]
    assert [task.check(p, r).score for p, r in zip(task.problems, responses, strict=True)] == [1, 1, 0]


def test_columns_and_the_checkers_options(tmp_path):
    path = _file(tmp_path, '\ufeff{"q": "A third?", "a": "0.33"}')
    task = _task(path, "numeric", prompt="q", answer="a", options=CheckOptions(tolerance=0.02))
    assert task.check(task.problems[0], "1/3").score == 1
    strict = _task(path, "numeric", prompt="q", answer="a")
    assert strict.check(strict.problems[0], "1/3").score == 0
    pattern = _task(path, "regex", prompt="q", answer="a", options=CheckOptions(pattern="is (.*)!"))
    assert pattern.check(pattern.problems[0], "It is 0.33!").score == 1


@pytest.mark.parametrize("answer", ['"B"', '"Paris"', '" Paris "', "1", '"1"', "1.0"])
def test_multiple_choice(tmp_path, answer):
    task = _task(_file(tmp_path, CHOICES.format(answer)), "choice", count_from=0)
    (problem,) = task.problems
    assert problem.prompt == (
        "Capital of France?\n\nA. Rome\nB. Paris\nC. Oslo\n\nGive the letter of the right option."
    )
    assert problem.answer == "B"
    assert problem.id == query_id(problem.prompt)
    assert [task.check(problem, r).score for r in ("(B)", "It is option A", "The answer is Paris.", "D")] == [
        1,
        0,
        1,
        0,
    ]


TABLES = [what for what in FILES if what not in ("CSV of one column, without quotes", "text, a question a line")]


@pytest.mark.parametrize("what", TABLES)
def test_every_source_of_questions_is_one_of_problems(tmp_path, what):
    name, content = FILES[what]
    (tmp_path / name).write_bytes(content)
    folder = [tmp_path] if "." in name else []
    for source in (tmp_path / name, *folder, tmp_path / "[qQ]*"):
        task = tasks.from_rows(TaskSource(source=str(source), answer="level"))
        assert [problem.prompt for problem in task.problems] == ASKED
        assert {problem.answer for problem in task.problems} < {"1", "easy"}


def test_a_data_set_of_the_hub_is_a_source_of_problems(monkeypatch):
    asked = list[dict]()

    def load_dataset(*named, **more):
        asked.append({"name": named, **more})
        return datasets.Dataset.from_list([{"question": "2 + 2?", "target": n, "other": b"\xff"} for n in (4, 5)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = TaskSource(
        source="hf:me/sums", subset="small", check="numeric", prompt="question", answer="target", limit=1
    )
    task = tasks.from_rows(source)
    assert (task.name, [p.answer for p in task.problems]) == ("hf:me/sums", ["4"])
    assert asked == [{"name": ("me/sums", "small"), "split": "test", "revision": None, "streaming": True}]


def test_a_repeated_prompt_is_a_problem_of_its_own(tmp_path):
    task = _task(_file(tmp_path, *['{"prompt": "x", "answer": "1"}'] * 3), "numeric")
    assert [p.id for p in task.problems] == [query_id("x"), query_id("x") + "-2", query_id("x") + "-3"]


def test_numbers_of_tables_are_answers(tmp_path):
    prices = [Decimal("2.50"), Decimal("3.00"), None]
    table = pyarrow.table({"prompt": ["a", "b", "c"], "answer": [5.0, None, 0.5], "price": prices})
    parquet.write_table(table, tmp_path / "t.parquet")
    for answer, known in (("answer", ["5", "0.5"]), ("price", ["2.50", "3.00"])):
        task = tasks.from_rows(TaskSource(source=str(tmp_path / "t.parquet"), answer=answer))
        assert [problem.answer for problem in task.problems] == known


def test_a_problem_may_have_fewer_options_than_others(tmp_path):
    rows = ["prompt,A,B,C,D,answer", "x,red,green,blue,grey,D", "y,red,green,,,B", "z,red,,blue,,A"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    task = tasks.from_rows(TaskSource(source=str(tmp_path / "t.csv"), check="choice", choices="{A} {B} {C} {D}"))
    assert [len(problem.choices) for problem in task.problems] == [4, 2, 3]


GOOD = '{"prompt": "x", "answer": "1"}'


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("numeric", '{"prompt": "x"', "not JSON: "),
        ("numeric", b'{"prompt": "\xff", "answer": "1"}', "the byte FF is no UTF-8"),
        ("numeric", "[" * 100_000, "not JSON: "),
        ("numeric", '["x", "1"]', "a row is a JSON object, not ['x', '1']"),
        ("numeric", '{"question": "x", "answer": "1"}', "evaluate.tasks (prompt, answer, choices)"),
        ("numeric", '{"prompt": "x"}', "no column `answer`; it has prompt"),
        ("numeric", '{"prompt": " ", "answer": "1"}', "`prompt` is ' ', not a question"),
        ("numeric", '{"prompt": 3, "answer": "1"}', "`prompt` is 3, not text"),
        ("numeric", '{"prompt": "x", "answer": true}', "`answer` is True, neither text nor a number"),
        ("numeric", '{"prompt": "x", "answer": ["1"]}', "`answer` is ['1'], neither text nor a number"),
        ("numeric", '{"prompt": "x", "answer": "many"}', "the answer 'many' holds no number"),
        ("numeric", '{"prompt": "x", "answer": "5 to 6"}', "the answer '5 to 6' holds several numbers; write the one"),
        ("numeric", '{"prompt": "x", "answer": "7:30"}', "the answer '7:30' holds several numbers"),
        ("exact", '{"prompt": "x", "answer": " "}', "`answer` is empty"),
        ("numeric", '{"prompt": "x", "answer": 1%s}' % ("0" * 400), "holds no number"),
        ("math-verify", '{"prompt": "x", "answer": "\\\\("}', "cannot be read as mathematics"),
        (
            "math-verify",
            '{"prompt": "x", "answer": "\\\\binom{1000000000}{500000000}"}',
            "as mathematics: it takes more than 2 s",
        ),
        ("choice", '{"prompt": "x", "answer": "Paris"}', "'Paris' is not one of the letters"),
        ("choice", CHOICES.format('"D"'), "the answer 'D' is none of the 3 options"),
        ("choice", CHOICES.format("7"), "the answer 7 is none of the 3 options"),
        ("choice", '{"prompt": "x", "answer": "2", "choices": ["2", "1", "0"]}', "is more than one of the 3 options"),
        ("choice", '{"prompt": "x", "answer": "A", "choices": ["1"]}', "`choices` has 1 options; 2 to 26"),
        ("choice", '{"prompt": "x", "answer": "A", "choices": "1 2"}', "`choices` is '1 2', not a list of texts"),
        ("choice", '{"prompt": "x", "answer": "A", "choices": [1, 2]}', "`choices` is [1, 2], not a list of texts"),
    ],
)
def test_unusable_lines(tmp_path, kind, line, message):
    path = _file(tmp_path, GOOD.replace("1", "A") if kind == "choice" else GOOD, "", line)
    with pytest.raises(UserError) as e:
        _task(path, kind)
    assert str(e.value).startswith(f"{path}:3: ")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_unusable_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        _task(tmp_path / "none.jsonl", "exact")
    with pytest.raises(UserError, match="no problem in it"):
        _task(_file(tmp_path, "", "  "), "exact")


def _chain_sum(**config):
    return from_reasoning_gym("reasoning_gym:chain_sum", size=5, seed=7, config=config)


def test_reasoning_gym_makes_and_scores():
    task = _chain_sum(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    assert task.name == "reasoning_gym:chain_sum"
    assert len({p.id for p in task.problems}) == 5
    assert task.problems == _chain_sum(min_terms=2, max_terms=2, min_digits=1, max_digits=1).problems
    for problem in task.problems:
        # The prompt ends in the sum itself: "... arithmetic problem: 4 - 3 =".
        assert eval(problem.prompt.split(":")[1].strip(" =")) == int(problem.answer)
        for form in (
            "{}",
            "\\boxed{{{}}}",
            "So 1 + 1 gives {}.",
            "The answer is {}. I added 5.",
            "<answer>{}</answer>",
        ):
            assert task.check(problem, form.format(problem.answer)).score == 1
        assert task.check(problem, str(int(problem.answer) + 40)).score < 1
        assert task.check(problem, "").score == 0


def test_answers_that_are_not_numbers():
    words = from_reasoning_gym("reasoning_gym:spell_backward", size=3, seed=1, config={})
    grid = from_reasoning_gym("reasoning_gym:mini_sudoku", size=2, seed=1, config={})
    for task in (words, grid):
        for problem in task.problems:
            assert task.check(problem, f"\n{problem.answer}\n").score == 1
            assert task.check(problem, f"Well.\n<answer>\n{problem.answer}\n</answer>").score == 1
    word = words.problems[0]
    assert words.check(word, f"The answer is: **{word.answer}**.").score == 1
    assert words.check(word, f"The answer is: **{word.answer[::-1]}x**.").score < 1


def test_a_known_answer_may_end_in_a_full_stop():
    task = from_reasoning_gym("reasoning_gym:sentence_reordering", size=3, seed=1, config={})
    assert any(p.answer.endswith(".") for p in task.problems)
    assert [task.check(p, f"The answer is: {p.answer}").score for p in task.problems] == [1, 1, 1]


def test_a_scorer_that_cannot_read_a_response_gives_nothing():
    task = from_reasoning_gym("reasoning_gym:prime_factorization", size=1, seed=0, config={})
    assert task.check(task.problems[0], "I do not know").score == 0
    assert task.check(task.problems[0], f"<answer>{task.problems[0].answer}</answer>").score == 1


def test_an_answer_that_only_the_scorer_knows():
    task = from_reasoning_gym("reasoning_gym:graph_color", size=1, seed=0, config={})
    assert task.problems[0].answer == ""
    assert task.check(task.problems[0], "no").score == 0


@pytest.mark.parametrize(
    ("name", "answer"),
    [("coin_flip", "0"), ("game_of_life_halting", "I do not know"), ("complex_arithmetic", "nan")],
)
@pytest.mark.parametrize("size", [2, 100])
def test_scorers_that_call_anything_right_are_refused(name, answer, size):
    with pytest.raises(UserError, match=f"^reasoning_gym:{name}: its scorer calls '{answer}' right in") as e:
        from_reasoning_gym(f"reasoning_gym:{name}", size=size, seed=0, config={})
    assert "\n" not in str(e.value)
    assert not _scorers()


def test_a_problem_that_kills_the_scorer_is_wrong_and_the_rest_are_scored():
    cube = from_reasoning_gym("reasoning_gym:rubiks_cube", size=3, seed=0, config={"max_scramble_steps": 3})
    before = cube.check(cube.problems[0], "R U")
    assert not before.timed_out
    assert cube.check(cube.problems[0], "<answer>R99999999</answer>") == Verdict(0, "R99999999", timed_out=True)
    assert cube.check(cube.problems[0], "R U") == before
    for process in _scorers():
        process.kill()
    assert cube.check(cube.problems[1], "R U") == Verdict(0, "R U", timed_out=True)
    assert not cube.check(cube.problems[2], "R U").timed_out
    cube.close()
    assert not _scorers()


# Tuples in tuples and NumPy's texts; NumPy's numbers; fractions.
@pytest.mark.parametrize(
    ("name", "size", "seed"), [("knights_knaves", 3, 1), ("codeio", 20, 3), ("gsm_symbolic", 25, 0)]
)
def test_problems_of_more_than_json_reach_the_scorer(name, size, seed):
    task = from_reasoning_gym(f"reasoning_gym:{name}", size=size, seed=seed, config={})
    assert [task.check(p, f"<answer>{p.answer}</answer>").score for p in task.problems] == [1] * size


def test_what_a_problem_holds_is_written_as_it_is():
    held = {"a": (1, [2.5, {3: {True}}]), 4: None, "c": 1 + 2j, "s": set(), "t": "it's \n"}
    assert ast.literal_eval(as_literal(held)) == held
    assert ast.literal_eval(as_literal({"x": Fraction(1, 2), "y": [math.inf]})) == {"x": "1/2", "y": ["inf"]}


def test_a_pattern_that_is_too_slow_on_a_response_makes_it_wrong(tmp_path):
    task = _task(_file(tmp_path, GOOD, GOOD), "regex", options=CheckOptions(pattern="(?:a|aa)+$|^1"))
    responses = ["1", "a" * 60 + "b", "2", "1"]
    verdicts = [task.check(task.problems[0], response) for response in responses]
    assert verdicts == [Verdict(1, "1"), Verdict(0, timed_out=True), Verdict(0), Verdict(1, "1")]


def test_mathematics_without_end_is_wrong_and_the_rest_are_scored(tmp_path):
    task = _task(_file(tmp_path, GOOD), "math-verify")
    responses = ["It is **1**.", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{2 - 1}", "2", "", r"\boxed{\frac{2}{2}}"]
    # In threads, where there are no alarm signals.
    with ThreadPoolExecutor() as threads:
        verdicts = list(threads.map(lambda response: task.check(task.problems[0], response), responses))
    scores = [(verdict.score, verdict.timed_out) for verdict in verdicts]
    assert scores == [(1, False), (0, True), (1, False), (0, False), (0, False), (1, False)]
    assert [verdict.answer for verdict in verdicts] == ["1", None, "1", "2", None, "1"], "a vote counts what it reads"
    task.close()
    assert not _scorers()


def _scorers():
    """The processes of scorers that nobody closed."""
    gc.collect()
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "genius_lite.evaluate.scoring" in child.cmdline()]


@pytest.mark.parametrize(
    "name",
    [
        "binary_matrix",
        "composite",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    ],
)
def test_scorers_that_run_answers_as_code_are_refused(name):
    with pytest.raises(UserError, match="as Python code"):
        from_reasoning_gym(f"reasoning_gym:{name}", size=1, seed=0, config={})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chain_sums", {}, "no such data set; did you mean chain_sum"),
        ("zzz", {}, "no such data set$"),
        ("chain_sum", {"terms": 3}, "refuses this configuration: .*terms"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "refuses this configuration: max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "two"}, "refuses this configuration"),
        ("chain_sum", {"size": 3}, "refuses this configuration"),
    ],
)
def test_unusable_names_and_configurations(name, config, message):
    with pytest.raises(UserError, match=message) as e:
        from_reasoning_gym(f"reasoning_gym:{name}", size=1, seed=0, config=config)
    assert "\n" not in str(e.value)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"pip install 'reasoning-gym>=0\.1\.25'"):
        _chain_sum()
    with pytest.raises(UserError, match=r"pip install 'math-verify>=0\.9'"):
        _task(_file(tmp_path, GOOD), "math-verify")


def test_control_characters_and_imitations_are_kept_as_they_are(tmp_path):
    text = "a\x00b\x1b[31m \u202e\u2028\x85 <|im_end|>\n[red] {{ 7 * 7 }}"
    row = json.dumps({"prompt": text, "answer": text})
    (problem,) = _task(_file(tmp_path, row.encode() + b"\r"), "exact").problems
    assert (problem.prompt, problem.answer) == (text, text.strip())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a\xff", "answer": 1}', "the byte FF is no UTF-8"),
        (b'{"prompt": "a\\ud800b", "answer": 1}', "half a character"),
        (b'{"prompt": "a", "answer": NaN}', "`answer` is nan, neither text nor a number"),
        (b'{"prompt": "a", "answer": 1e999}', "`answer` is inf, neither text nor a number"),
        (b'{"prompt": ' + b"[" * 100_000, "not JSON"),
        (b'{"prompt": "' + b"a" * 1_000_000 + b'", "answer": 1}', "a question of 1000000 characters"),
        (b'{"prompt": "a", "answer": "' + b"x" * 1_000_000 + b'"}', "holds no number"),
        (b"{" + b",".join(b'"c%d": 1' % i for i in range(3000)) + b"}", "no column `prompt`, `answer`; it has c0, c1"),
        (b'{"\\u001b[31m": 1}', r"it has \\x1b\[31m"),
    ],
)
def test_hostile_rows_are_one_short_line_that_names_them(tmp_path, line, message):
    with pytest.raises(UserError, match=f"maths.jsonl:2: .*{message}") as e:
        _task(_file(tmp_path, GSM8K[2], line), "numeric")
    assert len(str(e.value)) < 500
    assert str(e.value).isprintable()
