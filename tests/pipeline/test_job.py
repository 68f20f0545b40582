from __future__ import annotations

from datetime import date

import pytest

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.export.card import llama_options
from genius_lite.export.ollama import modelfile
from genius_lite.pipeline.job import Job, prepare, require_optimizer
from genius_lite.recipe import Auto, Evaluate, Foresight, Learner, Model, Pairs, Queries, Recipe, TaskSource
from genius_lite.rundir.folder import RECIPE, write_json
from genius_lite.weights.full_precision import read_config
from tests.support.models import tiny_gguf


def _job(
    tmp_path, model, questions: list[str], watched: int | Auto = 16, holdout: float = 0.1, patience: int | None = None
) -> Job:
    source = tmp_path / "q.txt"
    source.write_text("\n".join(questions))
    return prepare(
        Recipe(
            out=str(tmp_path / "run"),
            model=Model(gguf=str(model)),
            queries=Queries(source=str(source), limit=10),
            foresight=Foresight(max_tokens=16),
            learner=Learner(holdout=holdout),
            evaluate=Evaluate(queries=watched, patience=patience),
        )
    )


def test_the_guard_watches_the_held_out_and_then_what_lies_beyond_the_limit(tmp_path, tiny_llama):
    texts = [chr(ord("a") + n) for n in range(14)]
    job = _job(tmp_path, tiny_llama, texts)
    (held,) = job.held_out
    watched = [q.prompt for q in job.watched]
    assert job.watched[0].id == held
    assert [q for q in job.queries if q.id != held] == job.searched(1)
    assert watched[1:] == texts[10:]
    assert [q.prompt for q in job.queries] == texts[:10]
    assert [q.prompt for q in _job(tmp_path, tiny_llama, texts, watched=3).watched] == watched[:3]
    unwatched = _job(tmp_path, tiny_llama, texts, watched=0)
    assert (unwatched.watched, unwatched.held_out) == ([], frozenset())
    assert unwatched.searched(1) == unwatched.queries, "what nobody watches is learned from"
    assert [q.prompt for q in _job(tmp_path, tiny_llama, texts, holdout=0.0).watched] == texts[10:]


def test_rounds_of_few_questions_take_the_next_ones_and_begin_again(tmp_path, tiny_llama):
    job = _job(tmp_path, tiny_llama, [f"{n}?" for n in range(10)], holdout=0.3, watched=4)
    every = job.searched(1)
    assert (len(every), job.searched(2)) == (7, every)
    small = job.under(job.recipe.model_copy(update={"round_queries": 3}))
    assert [small.searched(number) for number in (1, 2, 3)] == [every[:3], every[3:6], [every[6], *every[:2]]]
    assert job.under(job.recipe.model_copy(update={"round_queries": 99})).searched(2) == every


def test_a_small_run_watches_fewer_queries_than_it_searches(tmp_path, tiny_llama):
    texts = [f"{n}?" for n in range(40)]
    job = _job(tmp_path, tiny_llama, texts, watched="auto", holdout=0.5)
    assert (len(job.watched), len(job.held_out), len(job.searched(1))) == (4, 4, 6)
    assert job.identity["evaluate"]["queries"] == 4, "what a run folder says is a number"
    assert [Evaluate().watched(queries) for queries in (1, 16, 40, 64, 5000)] == [4, 4, 10, 16, 16]


def test_what_was_not_asked_for_needs_no_larger_context(tmp_path, tiny_llama):
    short = [chr(ord("a") + n) for n in range(10)]
    job = _job(tmp_path, tiny_llama, [*short, "far too long " * 100, "k"])
    assert [q.prompt for q in job.watched][1:] == ["k"]
    assert job.context == _job(tmp_path, tiny_llama, short).context


def test_one_long_question_that_sets_the_context_is_told(tmp_path, tiny_llama):
    short = [chr(ord("a") + n) for n in range(9)]
    assert _job(tmp_path, tiny_llama, short).notes == []
    (note,) = _job(tmp_path, tiny_llama, [*short, "x" * 450]).notes
    assert note.startswith("one question of ")
    assert note.endswith("tokens sets the context of every branch; queries.max_tokens leaves it out")


def test_a_missing_file_is_said_before_a_model_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("genius_lite.pipeline.job.locate", lambda model: pytest.fail("a model is looked for"))
    (tmp_path / "q.txt").write_text("one\ntwo")
    there, gone = str(tmp_path / "q.txt"), str(tmp_path / "gone.jsonl")
    for queries, tasks in ((gone, []), (there, [TaskSource(source=gone)])):
        recipe = Recipe(
            out=str(tmp_path / "run"),
            model=Model(gguf="none.gguf"),
            queries=Queries(source=queries),
            evaluate=Evaluate(tasks=tasks),
        )
        with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
            prepare(recipe)


def test_futures_that_are_cut_off_are_told_to_choose_nothing(tmp_path, tiny_llama):
    (tmp_path / "q.txt").write_text("one\ntwo")
    asked, cut = Queries(source=str(tmp_path / "q.txt")), Foresight(max_tokens=16, future_tokens=4)
    recipe = Recipe(out=str(tmp_path / "run"), model=Model(gguf=str(tiny_llama)), queries=asked, foresight=cut)
    (note,) = prepare(recipe).notes
    assert note.startswith("foresight.future_tokens cuts futures off")
    assert prepare(recipe.model_copy(update={"pairs": Pairs(truncated="keep")})).notes == []


def test_keys_without_effect_are_told(tmp_path, tiny_llama):
    (tmp_path / "q.txt").write_text("one\ntwo")
    asked, model = Queries(source=str(tmp_path / "q.txt")), Model(gguf=str(tiny_llama))
    short, learner = Foresight(max_tokens=16), Learner(loss="sft", beta=1.0)
    recipe = Recipe(out=str(tmp_path / "run"), model=model, queries=asked, foresight=short, learner=learner)
    assert prepare(recipe).notes == ["learner.beta has no effect with loss: sft"]


def test_an_optimizer_without_kernels_for_metal_is_refused(tmp_path, tiny_llama, monkeypatch):
    (tmp_path / "q.txt").write_text("one\ntwo")
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source=str(tmp_path / "q.txt")),
        foresight=Foresight(max_tokens=16),
        learner=Learner(optimizer="paged_adamw_8bit"),
    )
    require_optimizer(recipe)
    monkeypatch.setattr("genius_lite.pipeline.job.learner_device", lambda: "mps")
    with pytest.raises(UserError, match=r"learner\.optimizer: paged_adamw_8bit is for CUDA and CPUs"):
        require_optimizer(recipe)
    assert prepare(recipe), "a Mac may sample for a machine that trains"


def test_another_question_that_is_watched_is_another_run(tmp_path, tiny_llama):
    texts = [chr(ord("a") + n) for n in range(11)]
    before, after = (_job(tmp_path, tiny_llama, [*texts, last]).identity for last in "xy")
    assert {key for key in before if before[key] != after[key]} == {"watched"}


@pytest.mark.parametrize(("held", "beyond"), [(0.1, 0), (0.0, 1)])
def test_patience_judges_by_what_is_held_out_or_lies_beyond(tmp_path, tiny_llama, held, beyond):
    texts = [chr(ord("a") + n) for n in range(10 + beyond)]
    assert _job(tmp_path, tiny_llama, texts, holdout=held, patience=1).watched


@pytest.mark.parametrize(("held", "count"), [(0.0, 10), (0.1, 4)])
def test_patience_that_nothing_can_judge_by_is_refused(tmp_path, tiny_llama, held, count):
    texts = [chr(ord("a") + n) for n in range(count)]
    assert not _job(tmp_path, tiny_llama, texts, holdout=held).watched
    with pytest.raises(UserError, match=r"q\.txt: evaluate\.patience has no queries to judge"):
        _job(tmp_path, tiny_llama, texts, holdout=held, patience=1)


def test_a_thought_has_tokens_of_its_own_unless_the_template_ends_it(tmp_path):
    thinking = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    tiny_gguf(tmp_path / "m.gguf", "llama", template="{{ messages[0].content }}[assistant]" + thinking)
    (tmp_path / "q.txt").write_text("one\ntwo")

    def job(thought: int, most: int = 16, **template) -> Job:
        return prepare(
            Recipe(
                out=str(tmp_path / "run"),
                model=Model(gguf=str(tmp_path / "m.gguf")),
                queries=Queries(source=str(tmp_path / "q.txt"), template=template),
                foresight=Foresight(max_tokens=16, thought_tokens=thought),
                evaluate=Evaluate(max_tokens=most),
            )
        )

    assert job(0).recipe.answer_tokens == 16
    assert job(300).recipe.foresight.response_tokens == job(300).recipe.answer_tokens == 316
    assert job(300, most=64).recipe.answer_tokens == 364
    assert job(300).context - job(0).context >= 256
    assert job(300).identity != job(0).identity
    assert job(0, enable_thinking=False).context == job(0).context
    with pytest.raises(UserError, match=r"take the key out, or switch thoughts on .* reads enable_thinking"):
        job(300, enable_thinking=False)
    with pytest.raises(UserError, match=r"foresight\.max_tokens \+ thought_tokens is 616"):
        job(600)


def test_the_chat_templates_variables_belong_to_the_run_and_its_export(tmp_path):
    thinking = "{% if enable_thinking is false %}</think>{% endif %}"
    day = "{{ strftime_now('%d %B %Y') }}"
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    tiny_gguf(tmp_path / "m.gguf", "llama", template=f"Today: {day}. {turns}[assistant]{thinking}")
    (tmp_path / "q.txt").write_text("one\ntwo")

    def job(**template) -> Job:
        return prepare(
            Recipe(
                out=str(tmp_path / "run"),
                model=Model(gguf=str(tmp_path / "m.gguf")),
                queries=Queries(source=str(tmp_path / "q.txt"), template=template),
                foresight=Foresight(max_tokens=16),
            )
        )

    def asked(of: Job) -> str:
        with Vocabulary.open(tmp_path / "m.gguf") as vocabulary:
            return vocabulary.decode(of.queries[0].tokens)

    assert asked(job()) == f"Today: {date.today():%d %B %Y}. [user]one[assistant]"
    quiet = job(enable_thinking=False, today="2026-07-04")
    assert asked(quiet) == "Today: 04 July 2026. [user]one[assistant]</think>"
    assert job().identity != quiet.identity
    for name in ("enable_thinkin", "bos_token", "messages"):  # it would switch nothing
        with pytest.raises(UserError, match=f"does not read `{name}`; it reads enable_thinking, today"):
            job(**{name: False})
    # A run that goes on is told the day on which it began.
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / RECIPE, job(today="2026-07-04").identity)
    assert job().identity == job(today="2026-07-04").identity
    with Vocabulary.open(tmp_path / "m.gguf", quiet.template) as vocabulary:
        assert vocabulary.template_reads == ["enable_thinking", "today"]
        made, _ = modelfile(vocabulary, "m.gguf")
        assert "# The date in TEMPLATE is fixed" in made
        assert "Today: 04 July 2026. " in made and "[assistant]</think>" in made
    assert llama_options(None, quiet.template) == " --jinja --chat-template-kwargs '{\"enable_thinking\": false}'"


def test_a_model_without_a_chat_template_and_what_it_leaves_out_are_told(tmp_path):
    tiny_gguf(tmp_path / "m.gguf", "llama", template="")
    (tmp_path / "q.txt").write_text("one\ntwo")

    def notes(**queries) -> list[str]:
        asked, short = Queries(source=str(tmp_path / "q.txt"), **queries), Foresight(max_tokens=16)
        model = Model(gguf=str(tmp_path / "m.gguf"))
        return prepare(Recipe(out=str(tmp_path / "run"), model=model, queries=asked, foresight=short)).notes

    told = "the model has no chat template: it goes on from a question as it stands"
    assert notes() == [told]
    assert notes(system="Be brief.") == [f"{told}, without queries.system"]
    with pytest.raises(UserError, match="does not read `a`; it reads none"):
        notes(template={"a": 1})


def test_matrices_that_the_model_has_not_are_named_before_anything_is_sampled(tmp_path, tiny_llama):
    (tmp_path / "q.txt").write_text("a\nb\n")
    queries = Queries(source=str(tmp_path / "q.txt"))

    def prepared(*targets: str) -> Job:
        model, learner = Model(gguf=str(tiny_llama)), Learner(targets=[*targets])
        foresight = Foresight(max_tokens=16)
        return prepare(
            Recipe(out=str(tmp_path / "r"), model=model, queries=queries, foresight=foresight, learner=learner)
        )

    assert prepared("q_proj", "down_proj").queries
    with pytest.raises(UserError, match=r"targets: `qproj` is no layer that can be adapted; known are down_proj"):
        prepared("q_proj", "qproj")


def test_the_config_of_the_models_own_weights_is_read_once(tmp_path, monkeypatch):
    tiny_gguf(tmp_path / "m.gguf", "llama").save_pretrained(tmp_path / "full")
    (tmp_path / "q.txt").write_text("a\nb\n")
    read = []
    monkeypatch.setattr("genius_lite.pipeline.job.read_config", lambda path: read.append(path) or read_config(path))

    def prepared(*targets: str) -> Job:
        model = Model(gguf=str(tmp_path / "m.gguf"), weights=str(tmp_path / "full"))
        queries, learner = Queries(source=str(tmp_path / "q.txt")), Learner(targets=[*targets])
        foresight = Foresight(max_tokens=16)
        return prepare(
            Recipe(out=str(tmp_path / "r"), model=model, queries=queries, foresight=foresight, learner=learner)
        )

    assert prepared("q_proj").weights == tmp_path / "full"
    assert read == [tmp_path / "full"]
    with pytest.raises(UserError, match=r"targets: `qproj` is no layer that can be adapted; known are down_proj"):
        prepared("qproj")
