"""Tokenizers for transformers, beside llama.cpp's own: the same ids, or a line that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.export.tokenizer import SPLITS, TEXTS, WHOLE_FIRST, write_tokenizer
from genius_lite.weights import gguf_file
from genius_lite.weights.source import TOKENIZER_FILES, copy_original
from tests.support.models import TEMPLATE
from tests.support.vocabularies import write_sentencepiece, write_vocabulary

MORE = (
    "There are 3 apples, 12 pears and 1,024 plums.\n\n1. Add them: 3+12=15\n2. 15+1024 = 1039",
    "   leading\n    and\n\n\n\ttrailing   \n",
    "Größe: 3,5 m² – «да»…  ١٢٣ 一二三123",
)
KNOWN_TO_TRANSFORMERS = ("qwen2", "qwen35", "llama-bpe", "dbrx", "tekken", "gpt-4o", "gpt-2", "olmo")


def written(path: Path, out: Path, config: Path, original: Path = Path("none")) -> tuple[list[str], Any]:
    """The notes, and the tokenizer as its user reads it."""
    from transformers import AutoTokenizer

    out.mkdir(exist_ok=True)
    shutil.copyfile(config, out / "config.json")
    notes = write_tokenizer(gguf_file.read(path), original, out)
    return notes, AutoTokenizer.from_pretrained(out, trust_remote_code=False)


def differing(path: Path, tokenizer: Any) -> list[str]:
    """Texts that the two cut otherwise, those that an export compares and some more."""
    with Vocabulary.open(path) as vocabulary:
        return [
            text
            for text in (*TEXTS, *MORE)
            if tokenizer(text)["input_ids"] != vocabulary.encode(text, special=True, bos=True)
        ]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A model's config, as it stands beside an exported tokenizer."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("config")
    LlamaConfig().save_pretrained(folder)
    return folder / "config.json"


@pytest.mark.parametrize("pre", sorted({*SPLITS, *KNOWN_TO_TRANSFORMERS, *WHOLE_FIRST}))
def test_every_way_to_cut_text_gives_llama_cpps_ids(pre, smollm2_fields, config, tmp_path):
    path = write_vocabulary(tmp_path / "x.gguf", smollm2_fields, TEMPLATE, adds_bos=True, pre=pre, size=4000)
    notes, tokenizer = written(path, tmp_path / "out", config)
    assert differing(path, tokenizer) == []
    assert notes == []


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("template", [TEMPLATE, "{{ bos_token }}" + TEMPLATE, '{{ raise_exception("never") }}'])
def test_a_conversation_is_the_runs(adds_bos, template, smollm2_fields, config, tmp_path):
    """transformers adds no BOS to one, llama.cpp did."""
    path = write_vocabulary(tmp_path / "x.gguf", smollm2_fields, template, adds_bos=adds_bos, size=4000)
    _, tokenizer = written(path, tmp_path / "out", config)
    if "never" in template:
        assert tokenizer.chat_template == template
        return
    with Vocabulary.open(path) as vocabulary:
        asked = vocabulary.prompt("What is 2 + 2?", "Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == asked


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_sentencepiece_vocabulary_gives_llama_cpps_ids(prefixed, smollm2_fields, config, tmp_path):
    path = write_sentencepiece(tmp_path / "x.gguf", smollm2_fields, prefixed)
    notes, tokenizer = written(path, tmp_path / "out", config)
    special = ["<|user|>12 apples", "a<|user|> b <|user|>\nc", "</s>  x"]
    with Vocabulary.open(path) as vocabulary:
        for text in special:
            assert tokenizer(text)["input_ids"] == vocabulary.encode(text, special=True, bos=True)
    assert differing(path, tokenizer) == []
    assert notes == []
    assert tokenizer.decode(tokenizer("a  b 12")["input_ids"], skip_special_tokens=True) == "a  b 12"


def test_a_question_that_is_tokenized_apart_has_no_more_spaces(smollm2_fields, tmp_path):
    path = write_sentencepiece(tmp_path / "x.gguf", smollm2_fields, True)
    with Vocabulary.open(path) as opened:
        opened.__dict__["template"] = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]\n<|user|>a"
        for question in ("Is 2 < 3?", "Is <s> a tag?"):
            assert opened.decode(opened.prompt(question)) == f" [INST] {question} [/INST]\n a"


def test_smollm2s_own_tokenizer(smollm2, config, tmp_path):
    notes, tokenizer = written(smollm2, tmp_path / "out", config)
    assert differing(smollm2, tokenizer) == []
    assert notes == []
    assert len(tokenizer("12345")["input_ids"]) == 5, "a token for each digit"
    assert tokenizer.decode(tokenizer(MORE[0])["input_ids"]) == MORE[0]


def test_the_original_tokenizer_goes_with_its_weights(smollm2, smollm2_fields, config, tmp_path):
    """Whatever it is; where it is not llama.cpp's, that is said. The chat template is the one of the run."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # where SmolLM2 has them
    path = write_vocabulary(tmp_path / "x.gguf", smollm2_fields, TEMPLATE, specials)
    written(smollm2, tmp_path / "weights", config)
    (tmp_path / "weights" / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    (tmp_path / "weights" / "modeling_own.py").write_text("raise SystemExit")
    copy_original(tmp_path / "weights", tmp_path / "original")
    notes, tokenizer = written(path, tmp_path / "same", config, tmp_path / "original")
    assert notes == []
    assert tokenizer.chat_template == TEMPLATE
    names = {file.name for file in (tmp_path / "same").iterdir()}
    assert names == {"config.json", "chat_template.jinja", *TOKENIZER_FILES} & {
        file.name for file in (tmp_path / "weights").iterdir()
    }
    for name in names - {"chat_template.jinja"}:
        assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "weights" / name).read_bytes()

    changed = json.loads((tmp_path / "original" / "tokenizer.json").read_text())
    changed["pre_tokenizer"]["pretokenizers"].pop(0)  # which cuts digits
    (tmp_path / "original" / "tokenizer.json").write_text(json.dumps(changed))
    (note,), _ = written(path, tmp_path / "other", config, tmp_path / "original")
    assert "test texts otherwise than llama.cpp" in note and "'x =  12'" in note

    (tmp_path / "original" / "tokenizer.json").rename(tmp_path / "original" / "tokenizer.model")
    out = tmp_path / "without"
    out.mkdir()
    assert "was not compared" in write_tokenizer(gguf_file.read(path), tmp_path / "original", out)[0]


def test_a_template_by_which_no_run_asked_stays_behind(smollm2, smollm2_fields, config, tmp_path):
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    path = write_vocabulary(tmp_path / "x.gguf", smollm2_fields, None, specials)
    written(smollm2, tmp_path / "weights", config)
    (tmp_path / "weights" / "chat_template.jinja").write_text(TEMPLATE)
    told = json.loads((tmp_path / "weights" / "tokenizer_config.json").read_text())
    (tmp_path / "weights" / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": TEMPLATE}))
    copy_original(tmp_path / "weights", tmp_path / "original")
    _, tokenizer = written(path, tmp_path / "out", config, tmp_path / "original")
    assert tokenizer.chat_template is None


def test_a_kind_that_transformers_does_not_know_is_one_line(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "rwkv7")
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(["<s>", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"tokenizer 'rwkv'.*model\.weights"):
        write_tokenizer(gguf_file.read(tmp_path / "x.gguf"), tmp_path / "none", tmp_path)
