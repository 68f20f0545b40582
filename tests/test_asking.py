"""Questions from documents: SmolLM2 asks, and the file is what a recipe reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from genius_lite.cli.asking import Asking, Found, PassageAnswers, questions_from, select, summary_lines
from genius_lite.data.documents import Passage, Read
from genius_lite.data.queries import Questions
from genius_lite.errors import UserError
from genius_lite.progress import SILENT, Advance, Progress
from genius_lite.recipe import Queries
from genius_lite.report.terminal import TerminalProgress
from genius_lite.rundir.lines import read_records
from tests.conftest import FORKED_HELPERS
from tests.support.cli import genius

pytestmark = FORKED_HELPERS

OTTERS = """# Sea otters

Sea otters live along the coasts of the northern Pacific Ocean. They eat sea urchins, crabs and clams, which they open
with stones. Their fur is the densest of all animals.

# The Eiffel Tower

The Eiffel Tower stands in Paris. It was built by the company of Gustave Eiffel for the world's fair of 1889, and is 330
metres tall.
"""
HOW = Asking(each=2, passage_tokens=60, max_tokens=32, temperature=0.7, limit=None, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("documents")
    (path / "a.md").write_text(OTTERS)
    (path / "empty.txt").write_text("")
    return path


class Interrupted(Progress):
    """Ctrl-C once a passage was asked about."""

    @contextmanager
    def stage(
        self, name: str, total: float, unit: str, scale: float = 1.0, done: float = 0.0, at_once: float = 0.0
    ) -> Iterator[Advance]:
        def advance(steps: float) -> None:
            if name == "questions":
                raise KeyboardInterrupt

        yield advance


@pytest.fixture(scope="module")
def asked(folder, smollm2, tmp_path_factory) -> Path:
    """What the command line wrote."""
    out = tmp_path_factory.mktemp("asked") / "q.jsonl"
    options = ["--each", 2, "--passage-tokens", 60, "--max-tokens", 32, "--seed", 3, "--out", out]
    done = genius("questions", folder, "--model", smollm2, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "1 document, 1 set aside\n  set aside: empty.txt: no text in it\n2 of 2 passages" in done.stdout
    return out


def test_the_file_is_what_a_recipe_reads(asked):
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    assert rows
    assert {row["below"] for row in rows} <= {"Sea otters", "The Eiffel Tower"}
    assert {(row["file"], row["passage"]) for row in rows} <= {("a.md", 1), ("a.md", 2)}
    read = [question.text for _, question in Questions(Queries(source=str(asked)))]
    assert read == [row["prompt"] for row in rows]
    assert all(question.endswith("?") for question in read)
    assert [file.name for file in asked.parent.iterdir()] == ["q.jsonl"], "nothing is left beside it"


def test_the_same_seed_gives_the_same_file(asked, folder, smollm2, tmp_path):
    questions_from(folder, tmp_path / "q.jsonl", smollm2, HOW, SILENT)
    assert (tmp_path / "q.jsonl").read_bytes() == asked.read_bytes()


def test_after_an_interruption_it_goes_on(asked, folder, smollm2, tmp_path):
    out = tmp_path / "q.jsonl"
    with pytest.raises(KeyboardInterrupt):
        questions_from(folder, out, smollm2, HOW, Interrupted())
    assert not out.exists()
    kept = read_records(tmp_path / "q.jsonl.asked", PassageAnswers)
    assert [len(record.responses) for record in kept] == [2]
    found = questions_from(folder, out, smollm2, HOW, SILENT)
    # What was asked before is as it was; of the rest, rounding may let the model draw another word.
    first, again = (
        [line for line in file.read_text().splitlines() if json.loads(line)["passage"] == 1] for file in (asked, out)
    )
    assert first == again
    assert found.passages == 2
    assert len(found.rows) + sum(found.left_out.values()) == 4
    assert not (tmp_path / "q.jsonl.asked").exists()


def test_what_is_left_out_is_counted():
    passages = [Passage("a.md", number, "A", "text") for number in range(1, 4)]
    good = "What is the capital of France?"
    answers = [[(good, False), ("Paris.", False)], [], [(f"Question: {good}", False), ("What does it", True)]]
    asked = [(p, PassageAnswers(str(p.number), said)) for p, said in zip(passages, answers, strict=True)]
    rows, left_out = select(asked)
    assert [(row.prompt, row.passage) for row in rows] == [(good, 1)]
    assert left_out == {"lost": 1, "cut off": 1, "no question": 1, "repeat": 1}


def test_the_examples_are_no_questions_of_the_documents():
    said = "How many hairs has a sea otter on a square centimetre?"
    assert select([(Passage("a.md", 1, "A", "text"), PassageAnswers("1", [(said, False)]))]) == ([], {"repeat": 1})


def test_a_model_that_asks_nothing_leaves_no_file(folder, smollm2, tmp_path):
    how = Asking(each=1, passage_tokens=64, max_tokens=1, temperature=0.7, limit=1, seed=0)
    with pytest.raises(UserError, match=r"no question is left \(no question within --max-tokens: 1\); give more --max"):
        questions_from(folder, tmp_path / "q.jsonl", smollm2, how, SILENT)
    assert [file.name for file in tmp_path.iterdir()] == ["q.jsonl.asked"]


def test_a_missing_folder_is_said_before_a_model_is_looked_for(tmp_path):
    done = genius("questions", "nowhere", "--out", "q.jsonl", "--model", "hf:o/r/no.gguf", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: nowhere: no such folder, and no such document\n")


def test_a_model_that_thinks_is_told_to_need_more(folder, smollm2, tmp_path, monkeypatch):
    monkeypatch.setattr("genius_lite.data.vocabulary.Vocabulary.may_think", lambda vocabulary, prompt: True)
    how, said = Asking(each=1, passage_tokens=64, max_tokens=1, temperature=0.7, limit=1, seed=0), []
    progress = TerminalProgress(Console(quiet=True))
    progress.say = said.append
    with pytest.raises(UserError, match="a recipe that switches thoughts off"):
        questions_from(folder, tmp_path / "q.jsonl", smollm2, how, progress)
    assert "the model thinks before it asks, for which 1 tokens (--max-tokens) are few" in said


def test_passages_that_no_model_of_that_context_takes(folder, tiny_llama, tmp_path):
    how = Asking(each=1, passage_tokens=32, max_tokens=8000, temperature=0.7, limit=None, seed=0)
    with pytest.raises(UserError, match=r"take \d+ tokens, of 512; give fewer --passage-tokens"):
        questions_from(folder, tmp_path / "q.jsonl", tiny_llama, how, SILENT)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "q.csv"], "q.csv: the name of a file of questions ends in .jsonl"),
        (["--out", "there.jsonl"], "there.jsonl exists; name another file, or delete it"),
        (["--out", "no/q.jsonl"], "no: no such folder; make it first"),
        (["--out", "q.jsonl", "--model", "no.yaml"], "no.yaml"),
        (["--out", "q.jsonl", "--model", "no.gguf"], "no.gguf"),
    ],
)
def test_unusable_options(folder, tmp_path, options, told):
    (tmp_path / "there.jsonl").write_text("{}")
    given = options if "--model" in options else [*options, "--model", "no.gguf"]
    done = genius("questions", folder, *given, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_lines_of_the_summary_name_only_some_files():
    read = Read(1, [Passage("a.md", 1, "", "x")], [f"{n}.pdf: broken" for n in range(30)], 2)
    lines = summary_lines(Found(read, 1, [], Counter({"short": 2})))
    assert lines[0] == "1 document, 30 set aside, 2 files of other kinds"
    assert lines[21:] == [
        "  and 10 more",
        "1 of 1 passages were asked about: 0 questions",
        "  left out: 2 (fewer than 4 words)",
    ]
