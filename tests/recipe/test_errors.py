"""Broken recipes: each is told in one line with its file, its line, and what to write instead."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genius_lite.errors import UserError
from genius_lite.recipe import Recipe
from genius_lite.recipe.reader import load, parse

GOOD = "model: {gguf: m.gguf}\nqueries: {source: q.txt}\n"
HF = "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf"
QUOTE = "indent with spaces; text with `: ` in it, or a sign before it, needs single quotes"

# What stands in r.yaml, below GOOD where the name starts with "+"; and how the line that is told begins and ends.
BROKEN = {
    # Not a recipe at all.
    "empty file": ("", "r.yaml:1: this is empty;", "begins such as `model:`"),
    "comments only": ("# nothing\n", "r.yaml:1: this is empty;", "begins such as `model:`"),
    "a list": ("- model\n", "r.yaml:1: this is a list;", "begins such as `model:`"),
    "plain text": ("hello\n", "r.yaml:1: this is plain text;", "begins such as `model:`"),
    "not UTF-8": (b"# caf\xe9\n", "r.yaml:1: this is not UTF-8 text;", "save the file as UTF-8"),
    "UTF-16": ("model: x".encode("utf-16"), "r.yaml:1: this is not UTF-8 text;", "save the file as UTF-8"),
    "huge": (b"#" * 200_000, "r.yaml: over 100 kB,", "name the .yaml file"),
    # Keys.
    "+typo at the top": ("sed: 1\n", "r.yaml:3: `sed` is an unknown key;", "did you mean `seed`?"),
    "+typo in a section": ("foresight:\n  beems: 2\n", "r.yaml:4: `foresight.beems` is an unknown key;", "`beams`?"),
    "+typo in a task": (
        "evaluate:\n  tasks:\n    - source: t.jsonl\n      chek: exact\n",
        "r.yaml:6: `evaluate.tasks.0.chek`",
        "you mean `check`?",
    ),
    "+typo in an option": (
        "evaluate: {tasks: [{source: t.jsonl, check: numeric, options: {tolerence: 0.1}}]}\n",
        "r.yaml:3: `evaluate.tasks.0.options.tolerence`",
        "you mean `tolerance`?",
    ),
    "+typo in a limit": ("guard: {kl: {wran: 1}}", "r.yaml:3: `guard.kl.wran` is", "did you mean `warn`?"),
    "typo in what is required": ("modle: {gguf: m}\nqueries: {source: q}\n", "r.yaml:1: `modle`", "you mean `model`?"),
    "+key of another section": ("beams: 3\n", "r.yaml:3: `beams` is", "it belongs under `foresight:`"),
    "+indented too far": ("learner:\n  seed: 3\n", "r.yaml:4: `learner.seed` is", "to the top level, not indented"),
    "+nothing like it": ("guard: {kl: {zz: 1}}", "r.yaml:3: `guard.kl.zz`", "known keys: warn, halt"),
    "+key twice": ("seed: 1\nseed: 2\n", "r.yaml:4: `seed` stands twice", "keep one"),
    "+a merge key": ("foresight:\n  <<: {beams: 3}\n", "r.yaml:4: `foresight.<<` is an unknown key;", "value, select"),
    "key missing": ("model: {gguf: m}\n", "r.yaml:1: `queries`", "{source: questions.jsonl}`, or what yours is called"),
    "key missing in a section": (
        "queries: {source: q}\nmodel:\n  revision: main\n",
        "r.yaml:2: `model.gguf`",
        f"write `gguf: {HF}`, or what yours is called",
    ),
    "required section empty": (
        "model:\n  # gguf: m\nqueries: {source: q}",
        "r.yaml:1: `model`",
        f"write `model: {{gguf: {HF}}}`, or what yours is called",
    ),
    # Values.
    "model as text": (
        "model: hf:A/B/c.gguf\nqueries: {source: q}\n",
        "r.yaml:1: `model`",
        f"write a section, such as `model: {{gguf: {HF}}}`",
    ),
    "+section as number": ("foresight: 3\n", "r.yaml:3: `foresight` is 3;", "such as `foresight: {beams: 2}`"),
    "+section as list": ("foresight:\n  - beams: 2\n", "r.yaml:3: `foresight` is a list;", "`foresight: {beams: 2}`"),
    "+limit as number": ("guard: {kl: 3}\n", "r.yaml:3: `guard.kl` is 3;", "such as `kl: {warn: 0.5}`"),
    "+wrong type": ("rounds: two\n", "r.yaml:3: `rounds`", "write a whole number from 1 to 10000, such as `rounds: 2`"),
    "+number as text": ("rounds: '2'\n", "r.yaml:3: `rounds` is '2';", "such as `rounds: 2`"),
    "+text as number": ("out: 123\n", "r.yaml:3: `out` is 123;", "to be text it needs quotes: '123'"),
    "+part of a number": ("rounds: 2.0\n", "r.yaml:3: `rounds` is 2.0;", "such as `rounds: 2`"),
    "+nothing": ("rounds:\n", "r.yaml:3: `rounds` is empty;", "such as `rounds: 2`"),
    "+yes for a number": ("rounds: yes\n", "r.yaml:3: `rounds` is yes;", "such as `rounds: 2`"),
    "no for text": (
        "model: {gguf: m}\nqueries: {source: q, column: no}\n",
        "r.yaml:2: `queries.column`",
        "needs quotes: 'no'",
    ),
    "+a date": ("seed: 2026-11-24\n", "r.yaml:3: `seed` is 2026-11-24;", "such as `seed: 0`"),
    "+minutes": ("seed: 1:30\n", "r.yaml:3: `seed` is 1:30;", "such as `seed: 0`"),
    "+octal": ("seed: 010\n", "r.yaml:3: `seed` is 010;", "such as `seed: 0`"),
    "+below zero": ("seed: -1\n", "r.yaml:3: `seed` is -1;", "such as `seed: 0`"),
    "+steps -1": ("foresight: {steps: -1}\n", "r.yaml:3: `foresight.steps` is -1;", "such as `steps: 4`"),
    "+holdout 1": ("learner: {holdout: 1}\n", "r.yaml:3: `learner.holdout` is 1;", "below 1, such as `holdout: 0.1`"),
    "+out of a range": ("sampler: {slots: 500}\n", "r.yaml:3: `sampler.slots`", "to 128, or auto, such as `slots: 32`"),
    "+no finite number": ("learner: {lr: .inf}\n", "r.yaml:3: `learner.lr` is .inf;", "above 0, such as `lr: 5e-5`"),
    "+a number that no figure is": (
        "learner: {lr: 1e300}\n",
        "r.yaml:3: `learner.lr` is 1e300, and",
        "1e+30 is the most",
    ),
    "+unknown type": ("quantize: {type: Q9}\n", "r.yaml:3: `quantize.type` is Q9;", "Q2_K or source"),
    "+type in small letters": ("quantize: {type: q4_k_m}\n", "r.yaml:3: `quantize.type` is q4_k_m;", "mean Q4_K_M?"),
    "+wrong policy": ("policy: merged\n", "r.yaml:3: `policy` is merged;", "did you mean merge?"),
    "+policy as number": ("policy: 2\n", "r.yaml:3: `policy` is 2;", "write merge, adapter or auto"),
    "+sampler as a word": ("sampler: fast\n", "r.yaml:3: `sampler`", "or auto, such as `sampler: {slots: 32}`"),
    "+text for a list": ("learner: {targets: q_proj}\n", "r.yaml:3: `learner.targets`", "`targets: [q_proj, v_proj]`"),
    "+empty list": ("learner: {targets: []}\n", "r.yaml:3: `learner.targets` is an empty list;", "[q_proj, v_proj]`"),
    "+wrong item of a list": (
        "tracking:\n  with:\n    - tensorboard\n    - trackoi\n",
        "r.yaml:6: `tracking.with.1`",
        "you mean trackio?",
    ),
    "+list for a number": (
        "foresight: {temperature: [0.6, 1.0]}\n",
        "r.yaml:3: `foresight.temperature`",
        "as `temperature: 1.0`",
    ),
    "+empty text": ("out: ''\n", "r.yaml:3: `out` is '';", "such as `out: runs/mine`"),
    # Tasks.
    "+tasks as text": (
        "evaluate: {tasks: t.jsonl}\n",
        "r.yaml:3: `evaluate.tasks`",
        "`tasks: [{source: held-out.jsonl}]`",
    ),
    "+tasks as a section": (
        "evaluate:\n  tasks: {source: t.jsonl}\n",
        "r.yaml:4: `evaluate.tasks`",
        "`tasks: [{source: held-out.jsonl}]`",
    ),
    "+task as text": (
        "evaluate: {tasks: [t.jsonl]}\n",
        "r.yaml:3: `evaluate.tasks.0`",
        "as `{source: held-out.jsonl}`",
    ),
    "+task without source": (
        "evaluate:\n  tasks:\n    - {source: t.jsonl}\n    - {check: exact}\n",
        "r.yaml:6: `evaluate.tasks.1.source`",
        "yours is called",
    ),
    "+wrong checker": (
        "evaluate: {tasks: [{source: t.jsonl, check: number}]}\n",
        "r.yaml:3: `evaluate.tasks.0.check`",
        "you mean numeric?",
    ),
    "+option of another checker": (
        "evaluate: {tasks: [{source: t.jsonl, check: numeric, options: {ignore_case: true}}]}\n",
        "r.yaml:3: `evaluate.tasks.0.options.ignore_case`",
        "write tolerance or decimal",
    ),
    "+tolerance below 0": (
        "evaluate: {tasks: [{source: t.jsonl, check: numeric, options: {tolerance: -1}}]}\n",
        "r.yaml:3: `evaluate.tasks.0.options.tolerance`",
        "as `tolerance: 0.01`",
    ),
    "+regex without pattern": (
        "evaluate: {tasks: [{source: t.jsonl, check: regex}]}\n",
        "r.yaml:3: `evaluate.tasks.0.check`",
        "`options: {pattern: '...'}`",
    ),
    "+size of a file": (
        "evaluate: {tasks: [{source: t.jsonl, size: 3}]}\n",
        "r.yaml:3: `evaluate.tasks.0.size`",
        "options, limit, subset, split, revision",
    ),
    "+check of reasoning_gym": (
        "evaluate: {tasks: [{source: 'reasoning_gym:chain_sum', check: numeric}]}\n",
        "r.yaml:3: `evaluate.tasks.0.check`",
        "size, seed, config",
    ),
    # Settings that do not go together.
    "+nothing to measure": (
        "evaluate:\n  samples: 0\n  greedy: false\n",
        "r.yaml:4: `evaluate.samples`",
        "or greedy: true",
    ),
    "+nothing to judge by": ("evaluate: {patience: 1, queries: 0}\n", "r.yaml:3: `evaluate.patience`", "1 or more"),
    "+nothing held out": (
        "evaluate: {patience: 1}\nlearner: {holdout: 0}\n",
        "r.yaml:3: `evaluate.patience`",
        "write learner.holdout: 0.1",
    ),
    "+no pair": ("foresight:\n  beams: 1\n  candidates: 1\n", "r.yaml:5: `foresight.candidates`", "2 or more"),
    "+light mode without futures": (
        "foresight: {value: step, skip_agreeing: 0.9}\n",
        "r.yaml:3: `foresight.skip_agreeing`",
        "of the two",
    ),
    "+future longer than the response": (
        "foresight: {future_tokens: 999}\n",
        "r.yaml:3: `foresight.future_tokens`",
        "leave it out",
    ),
    "+no room": ("sampler: {context: 200}\n", "r.yaml:3: `sampler.context` 200 has no room", "write more"),
    "+too many sequences": ("sampler: {parked: 300}\n", "r.yaml:3: `sampler.parked` and slots are 332", "write fewer"),
    "+quantized KV without flash attention": (
        "sampler: {kv_type: Q8_0, flash_attention: no}\n",
        "r.yaml:3: `sampler.kv_type`",
        "`flash_attention: false` out",
    ),
    "+halt before warn": ("guard:\n  kl:\n    warn: 3\n    halt: 1\n", "r.yaml:6: `guard.kl.halt`", "swap the two"),
    "+halt before warn, downwards": (
        "guard: {entropy: {warn: 0.1, halt: 0.2}}\n",
        "r.yaml:3: `guard.entropy.halt`",
        "swap the two",
    ),
    "revision of nothing": (
        "model: {gguf: m, weights_revision: main}\nqueries: {source: q}\n",
        "r.yaml:1: `model.weights_revision`",
        "write model.revision",
    ),
    "+votes of the best": (
        "pairs: {weigh: votes}\n",
        "r.yaml:3: `pairs.weigh` votes needs choose: agreed",
        "or neither",
    ),
    "a brace that does not end": (
        "model: {gguf: m}\nqueries: {source: q, prompt: 'What is {x'}\n",
        "r.yaml:2: `queries.prompt` 'What is {x' has braces without the name of a column;",
        "write {column}, or {{",
    ),
    "+a brace alone": (
        "evaluate: {tasks: [{source: t.jsonl, choices: '{'}]}\n",
        "r.yaml:3: `evaluate.tasks.0.choices` '{' has braces without the name of a column;",
        "write {column}, or {{",
    ),
    "+half a character": ('sampler: {cluster: "\\ud800"}\n', "r.yaml:3: `\\ud800` has half a character", "whole one"),
    "+half a character in a key": ('"\\udc00": 1\n', "r.yaml:3: `\\udc00` has half a character", "the whole one"),
    # YAML, in PyYAML's words.
    "+second document": ("---\nseed: 1\n", "r.yaml:3: expected a single document", QUOTE),
    "+a tab": ("foresight:\n\tbeams: 2\n", "r.yaml:4: while scanning for the next token, found character", QUOTE),
    "+an anchor": ("learner: &mine {lr: 1e-4}\n", "r.yaml:3: anchors, aliases and tags are not read;", QUOTE),
    "+an alias": ("out: *name\n", "r.yaml:3: anchors, aliases and tags are not read;", QUOTE),
    "+a pattern of files": ("out: *.jsonl\n", "r.yaml:3: while scanning an alias,", QUOTE),
    "+a tag": ("out: !!python/object/apply:os.system [ls]\n", "r.yaml:3: anchors, aliases and tags are not", QUOTE),
    "+an open quote": ("out: 'mine\nseed: 1\n", "r.yaml:5: while scanning a quoted scalar,", QUOTE),
    "+an open bracket": ("foresight: {beams: 2\nseed: 1\n", "r.yaml:4: while parsing a flow mapping,", QUOTE),
    "+a bracket too many": ("out: mine}]\nlearner: {lr: 1}}\n", "r.yaml:4: while parsing a block mapping,", QUOTE),
    "+a backslash": ('out: "C:\\Users"\n', "r.yaml:3: while scanning a double-quoted scalar,", QUOTE),
    "+an odd indent": ("foresight:\n  beams: 2\n steps: 2\n", "r.yaml:5: while parsing a block mapping,", QUOTE),
    "+no colon": ("rounds 2\nseed: 1\n", "r.yaml:4: while scanning a simple key,", QUOTE),
    "+two colons": ("out: a: b\n", "r.yaml:3: mapping values are not allowed here;", QUOTE),
    "+an invisible character": ("out: a\x07\n", "r.yaml:3: the invisible character U+0007 stands here;", "delete it"),
    "+a key that is none": ("? [a, b]\n: 1\n", "r.yaml:3: a key is one word;", "write KEY: VALUE"),
    "+very deep": ("x: " + "[" * 5000 + "]" * 5000 + "\n", "r.yaml:3: more than 16 sections within", QUOTE),
    "BOM and a typo": (
        b"\xef\xbb\xbfmodel: {gguf: m}\nqueries: {sauce: q}\n",
        "r.yaml:2: `queries.sauce`",
        "you mean `source`?",
    ),
    # Recipes that extend others.
    "extends itself": ("extends: r.yaml\n", "r.yaml:1: r.yaml extends this recipe in turn;", "take one `extends` out"),
    "extends in a circle": ("extends: loop.yaml\n", "loop.yaml:2: r.yaml extends this recipe", "one `extends` out"),
    "extends nothing": ("# of mine\nextends: none.yaml\n", "r.yaml:2: `extends` is none.yaml:", "beside this one"),
    "extends two": ("extends: [a.yaml, b.yaml]\n", "r.yaml:1: `extends`", "`extends: OTHER.yaml`"),
    "mistake in the other one": ("extends: broken.yaml\nrounds: 1\n", "broken.yaml:4: `seed` is x;", "`seed: 0`"),
    "no name of a folder": (
        'out: "a\\0b"\nmodel: {gguf: m}\nqueries: {source: q}\n',
        "r.yaml:1: `out` is 'a\\x00b', which cannot be the name of a file;",
        "write another one",
    ),
    "nobody's home": (
        "model: {gguf: ~nobody-of-that-name/m.gguf}\nqueries: {source: q}\n",
        "r.yaml:1: '~nobody-of-that-name/m.gguf' begins with a home folder that is not there;",
        "write the whole path",
    ),
    "rounds without end": (
        "model: {gguf: m}\nqueries: {source: q}\nrounds: 99999999999999999999999\n",
        "r.yaml:3: `rounds` is 99999999999999999999999;",
        "`rounds: 2`",
    ),
    "more threads than llama.cpp has": (
        "model: {gguf: m}\nqueries: {source: q}\nsampler: {threads: 100000}\n",
        "r.yaml:3: `sampler.threads` is 100000;",
        "write a whole number from 1 to 512, or auto",
    ),
    "no name of a file": (
        'model: {gguf: "m\\0"}\nqueries: {source: q}\n',
        "r.yaml:1: 'm\\x00' cannot be the name of a file;",
        "write another one",
    ),
}
SETTINGS = {
    "foresight.beam=3": ("--set foresight.beam=3: `foresight.beam` is an unknown key;", "did you mean `beams`?"),
    "foresight.beams=many": ("--set foresight.beams=many: `foresight.beams` is many;", "such as `beams: 2`"),
    "foresight.beams": ("--set foresight.beams: write KEY=VALUE", "such as foresight.beams=3"),
    "seed=[1": ("--set seed=[1: while parsing a flow sequence,", QUOTE),
    "rounds=": ("--set rounds=: `rounds` is empty;", "such as `rounds: 2`"),
    "extends=r.yaml": ("--set extends=r.yaml: `extends` is for a file;", "with it, and name that"),
    "evaluate.tasks=[{sauce: x}]": ("--set evaluate.tasks=[{sauce: x}]: `evaluate.tasks.0.sauce` is", "`source`?"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.yaml").write_text("seed: 1\nextends: r.yaml\n")
    (tmp_path / "broken.yaml").write_text(GOOD + "rounds: 2\nseed: x\n")
    return tmp_path


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_recipe_is_told_in_one_line(case, folder):
    text, begins, ends = BROKEN[case]
    raw = text if isinstance(text, bytes) else ((GOOD if case.startswith("+") else "") + text).encode()
    (folder / "r.yaml").write_bytes(raw)
    with pytest.raises(UserError) as e:
        load(Path("r.yaml"))
    told = str(e.value).replace(f"{folder.resolve()}/", "")
    assert (told[: len(begins)], told[-len(ends) :], len(told.splitlines())) == (begins, ends, 1), told


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_wrong_setting_is_told_by_its_name(setting, folder):
    begins, ends = SETTINGS[setting]
    (folder / "r.yaml").write_text(GOOD + "rounds: 2\n")
    with pytest.raises(UserError) as e:
        load("r.yaml", [setting])
    assert (str(e.value)[: len(begins)], str(e.value)[-len(ends) :]) == (begins, ends), str(e.value)


@pytest.mark.parametrize(
    ("above", "own", "setting", "told"),
    [
        (GOOD + "foresight:\n  steps: x\n", "foresight: 3\n", "seed=1", "r.yaml:2: `foresight` is 3;"),
        (
            GOOD + "learner:\n  targets:\n    - a\n",
            "learner:\n",
            "learner.targets=[b, 3]",
            "--set learner.targets=[b, 3]: ",
        ),
        (GOOD + "guard: {kl: {warn: x}}\n", "guard:\n  # as above\n", "seed=1", "above.yaml:3: `guard.kl.warn` is x;"),
        (GOOD + "rounds: 2\n", "rounds:\n", "seed=1", "r.yaml:2: `rounds` is empty;"),
        ("model: {gguf: m}\n", "rounds: 1\n", "rounds=2", "r.yaml:1: `queries` is missing;"),
    ],
)
def test_of_recipes_over_each_other_the_place_and_value_are_told_that_count(folder, above, own, setting, told):
    (folder / "above.yaml").write_text(above)
    (folder / "r.yaml").write_text("extends: above.yaml\n" + own)
    with pytest.raises(UserError) as e:
        load("r.yaml", [setting])
    assert str(e.value).replace(f"{folder.resolve()}/", "").startswith(told), str(e.value)


def test_recipes_that_look_odd_and_are_fine(folder):
    def read(text: str | bytes) -> Recipe:
        (folder / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load("r.yaml")

    assert read(GOOD + "learner:\n  # lr: 1e-4\nguard:\n").learner.lr == 5e-5, "a section of comments has its defaults"
    assert read(b"\xef\xbb\xbf" + GOOD.encode()).rounds == 2, "a byte order mark"
    assert read(GOOD.replace("\n", "\r\n") + "seed: 3\r\n").seed == 3
    assert read("---\n" + GOOD + "...\n").rounds == 2
    assert read("{model: {gguf: m}, queries: {source: q}}").rounds == 2
    assert read(GOOD + "out: 2026-11-24\n").out == "2026-11-24", "a date is text"
    assert read(GOOD + "learner: {lr: 2e-5}\n").learner.lr == 2e-5
    assert read(GOOD + "out: 1:30\n").out == "1:30"
    assert read(GOOD + "learner: {alpha: .inf}\nevaluate: {greedy: no}\n").evaluate.greedy is False
    assert read(GOOD + 'out: "runs/\\ud83d\\ude00"\n').out == "runs/\N{GRINNING FACE}", "as JSON writes it"
    assert read(GOOD + "out: \u1e9e/\u4e2d\n").out == "\u1e9e/\u4e2d"


def test_bombs_do_not_go_off():
    laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    bombs = [laughs, "a: &a [*a]\n", "a: &a {b: *a}\n", "x: " + "{a: " * 20_000, "- " * 30_000, "? " * 30_000]
    bombs += ["a: !!binary " + "A" * 50_000, "seed: " + "9" * 50_000, "a: " + "'" * 50_001, '"' + "\\n" * 20_000]
    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(UserError):
            parse(GOOD + bomb, "r.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


# Fuzzing: whatever stands in the file, it is a recipe or a UserError of one line.

SEEDS = [
    *(path.read_text(encoding="utf-8") for path in sorted(Path("recipes").glob("*.yaml"))),
    *(GOOD + text for text, *_ in BROKEN.values() if isinstance(text, str) and len(text) < 1000),
]
PIECES = [
    *"\t\n\r:{}[],&*!|>'\"%@`#?-~\\=<.0\x00\x07\x85\u2028\ufeff\U0001f600",
    *(
        "\n  ",
        ": ",
        "- ",
        "? ",
        "<<: ",
        "!!int ",
        "!!bool x",
        "!!float",
        "&a ",
        "*a",
        "--- ",
        "...",
        "\\ud800",
        "1e999",
    ),
    *("0x", "0b", "1:30", "2026-13-45", ".nan", "-.inf", "yes", "null", "~", "~nobody/x", "'\\0'", '"\\0"', "9" * 5000),
    *(f"\n{key}: " for key in (*Recipe.model_fields, "extends")),
]


def _told(text: str, folder: Path) -> None:
    (folder / "r.yaml").write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    for read in (lambda: parse(text, "r.yaml"), lambda: load(folder / "r.yaml"), lambda: load("r.yaml", [text[-40:]])):
        try:
            assert isinstance(read(), Recipe)
        except UserError as e:
            assert len(str(e).splitlines()) == 1, repr(str(e))
            assert len(str(e)) < 1000


def _mutated(rng: random.Random) -> str:
    text = rng.choice(SEEDS)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        match rng.randrange(5):
            case 0:
                text = text[:i] + rng.choice(PIECES) + text[i:]
            case 1:
                text = text[:i] + text[min(j, i + rng.randrange(20)) :]
            case 2:
                text = text[:i] + text[i:j] * 2 + text[j:]
            case 3:
                text = text[:i] + rng.choice(SEEDS)[: rng.randrange(100)] + text[j:]
            case 4:
                text = text[:i] + chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x110000)))) + text[i + 1 :]
    return text


def _fuzz(count: int, folder: Path) -> None:
    rng = random.Random(7)
    for _ in range(count):
        _told(_mutated(rng), folder)


def test_mutated_recipes_are_read_or_told(folder):
    _fuzz(300, folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_recipes_are_read_or_told(folder):
    _fuzz(10_000, folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.sampled_from([(name,) for name in Recipe.model_fields] + [
        (name, key)
        for name in sorted(Recipe.section_names())
        for key in Recipe.model_fields[name].annotation.model_fields
    ]),
    value=VALUES,
)  # fmt: skip
def test_any_value_of_any_key_is_read_or_told(where, value, folder):
    import yaml

    data = {"model": {"gguf": "m.gguf"}, "queries": {"source": "q.txt"}}
    inner = data
    for part in where[:-1]:
        inner = inner.setdefault(part, {})
    inner[where[-1]] = value
    _told(yaml.safe_dump(data, allow_unicode=True), folder)
