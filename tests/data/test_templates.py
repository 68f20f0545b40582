from __future__ import annotations

import gc
from datetime import datetime

import psutil
import pytest

from genius_lite.data import templates
from genius_lite.data.templates import Renderer
from genius_lite.errors import UserError

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{{ bos_token }}"
ASKED = [{"role": "user", "content": "hi"}]
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{%% set ns = namespace(s='a' * 1000) %%}{%% for i in range(%d) %%}{%% set ns.s = ns.s ~ ns.s %%}{%% endfor %%}"
)


@pytest.fixture
def rendered():
    """Renders a template, and leaves no process behind."""
    renderers = []

    def render(template):
        renderers.append(Renderer(template, {"bos_token": "<s>"}))
        return renderers[-1].render(ASKED)

    yield render
    for renderer in renderers:
        renderer.close()


def test_a_conversation(rendered):
    assert rendered(CHAT) == "user: hi\n<s>"
    assert rendered("{{ messages[0]['content'] }}|{{ tools }}|{{ add_generation_prompt }}") == "hi|None|True"


def test_what_transformers_adds_to_jinja(rendered):
    marked = "{% generation %}{{ messages[0].content }}{% if true %}!{% endif %}{% endgeneration %}."
    assert rendered(marked) == "hi!."
    assert rendered('{{ {"a": "é & <b>"} | tojson }}') == '{"a": "é & <b>"}'
    assert rendered('{{ {"b": 1, "a": "é"} | tojson(ensure_ascii=True, indent=1, sort_keys=True) }}') == (
        '{\n "a": "\\u00e9",\n "b": 1\n}'
    )


def test_a_date_and_the_variables_that_a_template_reads():
    template = (
        "{{ strftime_now('%d %b %Y') }} {% if enable_thinking is false %}</think>{% endif %}{{ messages[0].role }}"
    )
    renderer = Renderer(template, {"today": "2026-07-04", "enable_thinking": False, "bos_token": ""})
    assert renderer.render(ASKED) == "04 Jul 2026 </think>user"
    assert renderer.reads() == ["enable_thinking"]
    renderer.close()
    renderer = Renderer(template, {})
    assert renderer.render(ASKED) == f"{datetime.now():%d %b %Y} user"
    renderer.close()


def test_one_process_renders_them_all_and_ends():
    before = psutil.Process().children()
    renderer = Renderer(CHAT, {"bos_token": ""})
    texts = ["one", "two\n", "\x00\x1b\u202e", "<|im_end|>", "{{ 7 * 7 }}", "x" * 200_000]
    assert [renderer.render([{"role": "user", "content": t}]) for t in texts] == [f"user: {t}\n" for t in texts]
    (process,) = [p for p in psutil.Process().children() if p not in before]
    assert "genius_lite.data.templates" in process.cmdline()
    renderer.close()
    assert not process.is_running()


def test_a_renderer_that_nobody_closes_leaves_no_process():
    before = psutil.Process().children()
    renderer = Renderer(CHAT, {"bos_token": ""})
    renderer.render([{"role": "user", "content": "one"}])
    assert psutil.Process().children() != before
    del renderer
    gc.collect()
    assert psutil.Process().children() == before


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**9 }}", "too much memory"),
        ("{{ 'a'.center(10**9) }}", "too much memory"),
        ("{{ '%999999999d' % 1 }}", "too much memory"),
        ("{{ [1] | batch(10**9, 'x') | list }}", "too much memory"),
        (DOUBLED % 40, "memory|256 MB"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "calls itself without end"),
        ("{% for a in 'a' %}" * 25 + "{% endfor %}" * 25, "too many statically nested blocks"),
        ("{{ 'a' * 5000000 }}", "writes more than 4000000 characters"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ raise_exception('no\nsystem \x1b[31mmessages') }}", r"no system \\x1b\[31mmessages$"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{% include 'x' %}", "no loader"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% for %}", "Expected an expression"),
    ],
)
def test_hostile_templates_end_as_one_line(rendered, template, reason):
    with pytest.raises(
        UserError, match=f"the model's chat template cannot render this conversation: .*(?:{reason})"
    ) as e:
        rendered(template)
    assert len(str(e.value)) < 300
    assert str(e.value).isprintable()


def test_a_template_without_end_is_ended(rendered):
    with pytest.raises(UserError, match="takes more than 2 s"):
        rendered(FOREVER)


def test_memory_that_the_system_grants_is_looked_at_too(rendered, monkeypatch):
    # 65 MB of text beside Jinja: beyond the limit, within the address space.
    monkeypatch.setattr(templates, "_MEMORY", 70_000_000)
    with pytest.raises(UserError, match="takes more than 70 MB"):
        rendered(DOUBLED % 16 + FOREVER)


def test_the_next_conversation_goes_on_after_one_that_went_too_far():
    renderer = Renderer("{{ 'a' * messages[0]['content'] | int }}", {})
    assert renderer.render([{"role": "user", "content": "3"}]) == "aaa"
    for _ in range(2):
        with pytest.raises(UserError, match=r"memory|256 MB"):
            renderer.render([{"role": "user", "content": str(10**9)}])
        assert renderer.render([{"role": "user", "content": "2"}]) == "aa"
    renderer.close()


def test_a_process_that_is_killed_is_a_clear_line_and_replaced():
    renderer = Renderer(CHAT, {"bos_token": ""})
    renderer.render(ASKED)
    for child in psutil.Process().children():
        if "genius_lite.data.templates" in child.cmdline():
            child.kill()
    with pytest.raises(UserError, match="it ended its process"):
        renderer.render(ASKED)
    assert renderer.render(ASKED) == "user: hi\n"
    renderer.close()


@pytest.mark.parametrize("name", ["jinja2.py", "json.py", "psutil.py"])
def test_modules_of_the_working_directory_are_not_run(tmp_path, monkeypatch, rendered, name):
    (tmp_path / name).write_text("open('it-ran', 'w')")
    monkeypatch.chdir(tmp_path)
    assert rendered(CHAT) == "user: hi\n<s>"
    assert [path.name for path in tmp_path.iterdir()] == [name]
