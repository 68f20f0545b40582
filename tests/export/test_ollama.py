"""The Modelfile against Go itself: prompts of the Jinja template and of TEMPLATE are the same token ids."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import pytest

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.export.ollama import chat_template, modelfile
from tests.support.vocabularies import write_vocabulary

HERE = Path(__file__).parent
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Family:
    """A chat template and the special tokens it knows, BOS and EOS first, which take SmolLM2's places."""

    template: str
    specials: tuple[str, ...]
    adds_bos: bool
    stops: tuple[str, ...]
    refuses_system: bool = False


LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
PHI3 = ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
FAMILIES = (
    Family("qwen2_5", ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), False, ("<|im_end|>",)),
    Family("llama3", LLAMA3, True, ("<|end_of_text|>", "<|eot_id|>")),
    Family("llama3", LLAMA3, False, ("<|end_of_text|>", "<|eot_id|>")),
    Family("llama3_1", LLAMA3, True, ("<|end_of_text|>", "<|eot_id|>")),
    Family("gemma", GEMMA, True, ("<eos>", "<end_of_turn>"), refuses_system=True),
    Family("gemma3", GEMMA, True, ("<eos>", "<end_of_turn>")),
    Family("mistral", ("<s>", "</s>"), True, ("</s>",), refuses_system=True),
    Family("mistral_v3", ("<s>", "</s>", "[INST]", "[/INST]"), True, ("</s>",)),
    Family("llama2", ("<s>", "</s>"), True, ("</s>",)),
    Family("zephyr", ("<s>", "</s>"), True, ("</s>",)),
    Family("phi3", PHI3, True, ("<|endoftext|>", "<|end|>")),
    Family("phi3_5", PHI3, False, ("<|endoftext|>", "<|end|>")),
)


def talk(*texts: str, system: str | None = None) -> Messages:
    opening = [{"role": "system", "content": system}] if system is not None else []
    return opening + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CONVERSATIONS = (
    talk("What is 2 + 2?"),
    talk("What is 2 + 2?", system="You are a careful mathematician."),
    talk("What is 2 + 2?", system=""),
    talk("Hi.", "Hello!", "And now?"),
    talk("Hi.", "Hello!", "And now?", system="Answer in one word."),
    talk("1", "2", "3", "4", "5", "6", "7", system="Count on,\n\nwith care."),
    talk("Grüße aus 東京, שלום, नमस्ते — n’est-ce pas?"),
    talk("🙂 👩‍👩‍👧 🇩🇪", "👍🏽", "e\u0301\u00a0\u200bx", system="🤖"),
    talk("First line\nsecond line\n\n\tindented\r\nlast", "```python\nprint('a\\n')\n```", "ok\n?"),
    talk('{"a": {"b": "}}"}} {{ .Content }} {% raw %} """x""" \\"', "{{- end }}", "$first {", system='"""{{ . }}"""'),
    talk("word " * 2000 + "end"),
    talk(*(f"Turn {i}: " + "lorem ipsum " * i + "." for i in range(21)), system="Long talk."),
)


@pytest.fixture(scope="session")
def ollama(tmp_path_factory) -> Callable[[str, list[Messages]], dict]:
    """Ollama's reading of a Modelfile, by Go: its commands, and the prompt of each conversation."""
    spec = importlib.util.find_spec("go")
    if spec is None or spec.origin is None:
        pytest.fail("install the test requirements: pip install -e '.[dev,smollm2]'")
    home = tmp_path_factory.mktemp("go")
    env = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    # What Go compiles of its own library stays in the user's cache, where it keeps that by itself.
    cache = platformdirs.user_cache_path("genius-lite-tests") / "go-build"
    env |= {"HOME": str(home), "GOCACHE": str(cache), "GOPATH": str(home / "path")}
    go = Path(spec.origin).parent / "bin" / "go"
    program = home / "render"
    subprocess.run([go, "build", "-o", program, HERE / "render.go"], env=env, cwd=home, check=True, timeout=300)

    def run(text: str, conversations: list[Messages]) -> dict:
        given = json.dumps({"modelfile": text, "conversations": conversations})
        done = subprocess.run([program], input=given.encode(), capture_output=True, check=True, timeout=60)
        return json.loads(done.stdout)

    return run


def small(folder: Path, fields: dict, template: str | None, specials: tuple[str, ...], adds_bos: bool = False) -> Path:
    """Write SmolLM2's most frequent tokens with a template and special tokens of the test's own."""
    return write_vocabulary(folder / "own.gguf", fields, template, specials, adds_bos, size=4000)


@pytest.fixture(scope="module")
def own(smollm2) -> Iterator[Vocabulary]:
    """SmolLM2's vocabulary, with its template."""
    with Vocabulary.open(smollm2) as vocabulary:
        yield vocabulary


@pytest.fixture
def with_template(smollm2_fields, tmp_path) -> Iterator[Callable[[str | None], Vocabulary]]:
    """Opens SmolLM2's vocabulary with a template of the test's own."""
    opened = []

    def build(template: str | None) -> Vocabulary:
        specials = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
        manager = Vocabulary.open(small(tmp_path, smollm2_fields, template, specials))
        opened.append(manager)
        return manager.__enter__()

    yield build
    for manager in opened:
        manager.__exit__(None, None, None)


def assert_same_prompts(vocabulary: Vocabulary, found: dict, conversations: list[Messages]) -> None:
    assert len(found["prompts"]) == len(conversations)
    for conversation, prompt in zip(conversations, found["prompts"], strict=True):
        rendered = vocabulary.render(conversation)
        tokens = vocabulary.encode(prompt, special=True, bos=True)  # as Ollama's runner does
        assert tokens == vocabulary.encode_rendered(rendered), (prompt, rendered)
        if vocabulary.adds_bos:
            bos = vocabulary.encode(vocabulary.bos_text, special=True)
            assert (tokens[:1], tokens[1:2] == bos) == (bos, False)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.template}-bos-{f.adds_bos}")
def test_template_of_a_family_gives_the_same_tokens(family, ollama, smollm2_fields, tmp_path):
    jinja = (HERE / "templates" / f"{family.template}.jinja").read_text()
    path = small(tmp_path, smollm2_fields, jinja, family.specials, family.adds_bos)
    with_system = [c for c in CONVERSATIONS if c[0]["role"] == "system"]
    conversations = [c for c in CONVERSATIONS if not (family.refuses_system and c in with_system)]
    with Vocabulary.open(path) as vocabulary:
        assert vocabulary.adds_bos == family.adds_bos
        text, _ = modelfile(vocabulary, "x.gguf")
        found = ollama(text, conversations)
        assert_same_prompts(vocabulary, found, conversations)
        assert ("refuses system messages" in text) == family.refuses_system
        assert [value for name, value in found["commands"] if name == "stop"] == list(family.stops)
        if family.refuses_system:
            for conversation in with_system:
                with pytest.raises(UserError):
                    vocabulary.render(conversation)


def test_smollm2s_own_template_is_reproduced(own, ollama):
    questions = [c for c in CONVERSATIONS if c[-2:-1] == [] or c[-2]["role"] == "system"]
    assert len(questions) == 5
    found = ollama(modelfile(own, "x.gguf")[0], list(CONVERSATIONS))
    assert_same_prompts(own, found, list(CONVERSATIONS))
    for question, prompt in zip(questions, ollama(modelfile(own, "x.gguf")[0], questions)["prompts"], strict=True):
        system = question[0]["content"] if len(question) == 2 else None
        tokens = own.encode(prompt, special=True, bos=True)
        assert tokens == own.prompt(question[-1]["content"], system)
    assert chat_template(own)[1] == ()


def test_a_whole_modelfile(own, ollama):
    text, _ = modelfile(own, "my model.gguf", context=131072)
    assert text == (
        "FROM ./my model.gguf\n"
        'TEMPLATE """{{ $system := false }}{{ range .Messages }}{{ if eq .Role "system" }}{{ $system = true }}{{ end }}'
        "{{ end }}{{ if not $system }}<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        '{{ end }}{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "user" }}<|im_start|>user\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER num_ctx 8192\n"
    )
    commands = dict(ollama(text, [])["commands"])
    assert commands["FROM"] == "./my model.gguf"
    assert commands["stop"] == "<|im_end|>"
    assert commands["num_ctx"] == "8192"


def test_the_models_context_is_kept_where_it_is_small(own):
    assert "PARAMETER num_ctx 2048\n" in modelfile(own, "x.gguf", context=2048)[0]
    assert "num_ctx" not in modelfile(own, "x.gguf")[0]
    with pytest.raises(UserError, match="rename it"):
        modelfile(own, "a\nb.gguf")


LITERALS = (
    *("{", "{{", "{{{", "}}", "{{ .Content }}", "{{- x -}}", " -}} ", '{"""', '"""', '"""\n', '""""\n""'),
    *('\\"""{{"\\', "\u00a0\u200b\ufeff", "a\r\n\tb", "\x01\x1b", "\U000e0001🙂", "\n \n", "</s>'"),
)


@pytest.mark.parametrize("literal", LITERALS)
def test_literal_text_survives_go_and_the_modelfile(literal, with_template, ollama):
    quoted = "'" + literal.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n").replace("'", "\\'") + "'"
    vocabulary = with_template(
        "{{ Q }}{% for m in messages %}{{ m.role + Q + m.content + Q }}{% endfor %}{{ Q }}".replace("Q", quoted)
    )
    assert vocabulary.render(talk("x")) == f"{literal}user{literal}x{literal}{literal}"
    found = ollama(modelfile(vocabulary, "x.gguf")[0], list(CONVERSATIONS))
    assert found["prompts"] == [vocabulary.render(c) for c in CONVERSATIONS]


def test_neighbours_of_one_role_are_merged_as_ollama_does(own, ollama):
    split = [*talk("a", system="s"), {"role": "user", "content": "b"}]
    found = ollama(modelfile(own, "x.gguf")[0], [split])
    assert_same_prompts(own, found, [talk("a\n\nb", system="s")])


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("m.content | trim", "trims white space around system, user, assistant messages"),
        ("m.content | trim if m.role == 'assistant' else m.content", "trims white space around assistant messages"),
        ("m.content.split('</think>')[-1] if m.role == 'assistant' else m.content", "<think> reasoning"),
    ],
)
def test_what_go_cannot_do_is_said(content, note, with_template, ollama):
    vocabulary = with_template(CHATML.replace("CONTENT", content))
    text, _ = modelfile(vocabulary, "x.gguf")
    assert [line for line in text.splitlines() if line.startswith("# ") and note in line]
    found = ollama(text, list(CONVERSATIONS))
    assert_same_prompts(vocabulary, found, list(CONVERSATIONS))


def test_an_empty_system_message_may_be_a_thing_of_its_own(with_template, ollama):
    vocabulary = with_template(CHATML.replace("CONTENT", "m.content or 'none'"))
    text, _ = modelfile(vocabulary, "x.gguf")
    assert "words of its own for an empty system message" in text
    others = [c for c in CONVERSATIONS if c[0]["content"]]
    assert_same_prompts(vocabulary, ollama(text, others), others)


@pytest.mark.parametrize(
    "message",
    ["Be brief.", '"', '"""', 'a """ b', "two\nlines\n", "  a\tb\r\n", "# Grüße 🙂\nFROM x", "{{ .System }}"],
)
def test_a_runs_system_message_opens_every_conversation(message, own, ollama):
    text, _ = modelfile(own, "x.gguf", system=message)
    opening = dict(ollama(text, [])["commands"])["SYSTEM"]
    assert opening == message
    (prompt,) = ollama(text, [talk("What is 2 + 2?", system=opening)])["prompts"]
    assert own.encode(prompt, special=True, bos=True) == own.prompt("What is 2 + 2?", message)


@pytest.mark.parametrize("message", ["", 'a """\nb', 'a """ \r\nb', "no\u200bprint", "\x1b"])
def test_a_message_that_no_modelfile_holds_is_said(message, own, ollama):
    text, _ = modelfile(own, "x.gguf", system=message)
    assert "# No SYSTEM: a Modelfile cannot hold" in text
    assert [name for name, _ in ollama(text, [])["commands"]] == ["FROM", "TEMPLATE", "stop"]
    assert "SYSTEM" not in modelfile(own, "x.gguf")[0]


def test_a_system_message_that_the_model_ignores(smollm2_fields, tmp_path):
    jinja = (HERE / "templates" / "phi3.jinja").read_text()
    with Vocabulary.open(small(tmp_path, smollm2_fields, jinja, PHI3, True)) as vocabulary:
        assert "leaves system messages out" in modelfile(vocabulary, "x.gguf")[0]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("CONTENT", "m.content | upper"), "changes, repeats or reorders messages"),
        (CHATML.replace("CONTENT", "m.content + m.content"), "changes, repeats or reorders messages"),
        (CHATML.replace("CONTENT", "m.content | replace('{', '(')"), "does more than put text"),
        (CHATML.replace("CONTENT", "(loop.index0 | string) + m.content"), "does more than put text"),
        (CHATML.replace("CONTENT", "m.content + (m.content | length | string)"), "does more than put text"),
        ("{% if messages | length > 1 %}{{ raise_exception('one question\n\nonly') }}{% endif %}", "one question only"),
        ("{% for m in messages %}", "cannot render"),
        ("{{ 'a' + 1 }}", "cannot render"),
        (None, "the model has no chat template"),
    ],
)
def test_a_template_that_cannot_be_written_is_left_out(template, reason, with_template, ollama):
    vocabulary = with_template(template)
    text, _ = modelfile(vocabulary, "x.gguf", context=4096)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[0].startswith("# No TEMPLATE")
    assert reason in comments[0]
    names = [name for name, _ in ollama(text, [])["commands"]]
    assert names == ["FROM", "stop", "num_ctx"]


THOUGHT = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>")


@pytest.mark.parametrize(
    ("variables", "begins", "note"),
    [
        ({}, "", "The model may think before it answers: the answer is what follows </think>."),
        (
            {"enable_thinking": True},
            "",
            "The model may think before it answers: the answer is what follows </think>.",
        ),
        (
            {"enable_thinking": False},
            "<think>\n\n</think>\n\n",
            "Thoughts are off, as the model was trained: TEMPLATE ends them before the answer begins.",
        ),
    ],
)
def test_a_model_that_thinks_or_is_told_not_to(variables, begins, note, ollama, smollm2_fields, tmp_path):
    """As Qwen3's: what is asked, where the answer is looked for, and what the Modelfile says."""
    jinja = (HERE / "templates" / "thinking.jinja").read_text()
    path = small(tmp_path, smollm2_fields, jinja, THOUGHT)
    with Vocabulary.open(path, variables) as vocabulary:
        assert vocabulary.template_reads == ["enable_thinking"]
        asked = vocabulary.prompt("What is 3 + 4?")
        assert "".join(map(vocabulary.special_text, asked)) == (
            f"<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n{begins}"
        )
        assert vocabulary.closes_thought(asked) == bool(begins)
        for response, said in (
            ("7<|im_end|>", ("7", None)),
            ("<think>\nMaybe 5.\n</think>\n\n7<|im_end|>", ("\n\n7", True)),
            ("<think>\nMaybe 5.", ("", False)),
        ):
            assert vocabulary.said(asked, vocabulary.encode(response, special=True)) == said
        text, comments = modelfile(vocabulary, "x.gguf")
        assert comments == [
            "The GGUF's chat template changes <think> reasoning in earlier answers; TEMPLATE keeps it.",
            note,
        ]
        assert_same_prompts(vocabulary, ollama(text, list(CONVERSATIONS)), list(CONVERSATIONS))


def test_a_template_that_begins_the_thought(with_template):
    text, _ = modelfile(with_template(CHATML.replace("CONTENT", "m.content") + "[THINK]"), "x.gguf")
    assert "# The model thinks before it answers: the answer is what follows [/THINK]." in text.splitlines()


@pytest.mark.parametrize("stop", ["<end>\n", 'a"b', '"end"', '"""end', "<\x1b>", "<\r\n>"])
def test_a_stop_that_no_line_holds_is_left_out_and_said(stop, smollm2_fields, ollama, tmp_path):
    """An end of a response as a stranger's file may spell it: raw, it would end a line, or a string."""
    jinja = "{% for m in messages %}<|im_start|>{{ m.content }}{{ eos_token }}{% endfor %}<|im_start|>"
    path = small(tmp_path, smollm2_fields, jinja, ("<|endoftext|>", stop, "<|im_start|>"))
    with Vocabulary.open(path) as vocabulary:
        assert vocabulary.eos_text == stop
        text, comments = modelfile(vocabulary, "x.gguf", context=4096)
        found = ollama(text, [])["commands"]
    assert [value for name, value in found if name == "stop"] == []
    assert dict(found)["FROM"] == "./x.gguf" and dict(found)["num_ctx"] == "4096"
    (said,) = [comment for comment in comments if "stop" in comment]
    assert said == f"No PARAMETER stop for {stop!a}: a Modelfile cannot hold it; Ollama ends at the token by itself."
