"""The tokenizer of an export for transformers: it cuts text as llama.cpp did in the run, or the card says where not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.rundir.disk import remove
from genius_lite.rundir.documents import read_object
from genius_lite.rundir.folder import write_text
from genius_lite.text import brief
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.source import TOKENIZER_FILES, VOCABULARIES

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SINGLE_DIGITS = (r"\p{N}", _WORDS)
_QWEN2 = (rf"{_SUFFIX}|{_LETTERS}|\p{{N}}|{_TAIL}",)
_LLAMA3 = (rf"{_SUFFIX}|{_LETTERS}|\p{{N}}{{1,3}}|{_TAIL}",)
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _WORDS, "[0-9][0-9][0-9]"),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "minicpm5": (r"\p{N}{1,3}", rf"{_SUFFIX}|{_LETTERS}|\p{{N}}+|{_TAIL}"),
    "seed-coder": (rf"{_SUFFIX}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell"), _SINGLE_DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b", "mellum2"), _SINGLE_DIGITS),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), _QWEN2),
    **dict.fromkeys(("chatglm-bpe", "glm4", "glm5"), _LLAMA3),
}
"""How text is cut before merging, by `tokenizer.ggml.pre`, where transformers does not know it: llama-vocab.cpp has
these patterns one after the other, each on the pieces that the former left."""
WHOLE_FIRST = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("minicpm5", "glm4", "glm5", "tekken"),
}
"""Where a piece that is a token becomes that token, whether merges lead to it or not."""
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space

TEXTS = (
    *("7", "12", "123", "1234", "12345678", " 42", "x =  12", "a1b22c333", "3.14159", "1,234,567.89"),
    *("½ ² ٣٤٥ १२३ 二〇", "    12 apples\n\n  7", "1. one\n2. two\n10. ten\n", "$x^2_{i+1}\\le\\frac{1}{2}$"),
    *(" ", "  ", "     ", " a", "a ", "a  b   c     d", "\t", "\t\tx", "\n", "\n\n\n1", " \n \n", "\r\n"),
    *("a\r\n\r\n  b", "I'll\t\tgo", "don't DON'T we'Re it\u2019s", "\u00a0\u2003\u3000x\u200b\ufeffy", "\u0000\u0007"),
    *("naïve e\u0301", "ÄÖÜ ẞ Ǆ ſ", "Привет, мир!", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก"),
    *("中文 123，你好。", "日本語のテキスト、かな", "한국어 텍스트", "😀😀 👩‍👩‍👧 🇩🇪👍🏽", "a😀b1😀", "word " * 40),
    "def f(x):\n        return x+1\n\n\tif x>=10: pass  # 100%",
    *("{{a}} <b>&amp;</b> [1]==[2] !!! ... --- ___", "foo_bar camelCase HTTPServer2", "<think>\n2\n</think>"),
    *("<|im_start|>user\nHi<|im_end|>\n", "<s>a</s> b", "<start_of_turn>x<end_of_turn>", "[INST] Hi [/INST]"),
    *("<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<|user|>\n1<|end|>\n<|assistant|>"),
)
"""Digits, blanks, scripts, emoji, code, and texts that are special tokens of some family."""


def write_tokenizer(source: GGUF, original: Path, out: Path) -> list[str]:
    """Write the tokenizer of `model.weights`, or else one that is made of the GGUF; with the GGUF's chat template.

    The template is the one by which the run asked, whatever stands beside the weights. It writes BOS itself where
    llama.cpp added that: transformers adds nothing to a conversation.

    Args:
        original: a folder with what stood beside the weights; it, or a tokenizer in it, may not be there.
        out: has the model's config already, by which transformers chooses a tokenizer's class.

    Returns:
        A line where it cuts test texts otherwise than llama.cpp.

    Raises:
        UserError: transformers knows no tokenizer of this kind.
    """
    with Vocabulary.open(source.path) as vocabulary:
        if given := any(file for name in VOCABULARIES for file in original.glob(name)):
            for file in (file for name in TOKENIZER_FILES for file in original.glob(name)):
                shutil.copyfile(file, out / file.name)
            if (config := out / "tokenizer_config.json").is_file():  # it may say where its maker had it
                dropped = {"name_or_path", "_name_or_path", "chat_template"}
                kept = {key: value for key, value in read_object(config).items() if key not in dropped}
                write_text(config, json.dumps(kept, indent=2, ensure_ascii=False))
        else:
            _write_made(source, vocabulary, out)
        remove(out / "chat_template.jinja")
        if template := source.metadata.get("tokenizer.chat_template"):
            write_text(out / "chat_template.jinja", _bos(vocabulary) + template)
        if given:
            return _original_differences(vocabulary, out)
        from transformers import AutoTokenizer

        read: Any = AutoTokenizer.from_pretrained(out, trust_remote_code=False)  # as its user will
        return _differences(vocabulary, lambda text: read(text)["input_ids"], bos=True)


def _bos(vocabulary: Vocabulary) -> str:
    """Return what a chat template lacks to begin as llama.cpp began the run's prompts."""
    if not vocabulary.adds_bos:
        return ""
    try:
        begun = vocabulary.render([{"role": "user", "content": "x"}]).lstrip().startswith(vocabulary.bos_text)
    except UserError:  # it wants more than a question, and whoever has that sees to BOS as well
        return ""
    return "" if begun else f"{{{{ {json.dumps(vocabulary.bos_text, ensure_ascii=False)} }}}}"


def _write_made(source: GGUF, vocabulary: Vocabulary, out: Path) -> None:
    """Write what transformers makes of the GGUF, with llama.cpp's rules where it overlooks them."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, described, names = get_gguf_tokenizer(str(source.path))
    try:
        backend, _ = convert_gguf_tokenizer(architecture, described)
    except ValueError as e:
        raise UserError(f"{source.path}: {e} Name the model's own weights (model.weights), or export a GGUF") from None
    _as_llama_cpp(backend, source.metadata)
    special = {name: names[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if names.get(name)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=vocabulary.adds_bos,  # whatever transformers guesses
        add_eos_token=False,  # it would end a prompt
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **special,
    )
    made.save_pretrained(out)
    path = out / "tokenizer_config.json"
    # The name that every transformers knows; a family's own class would build its own rules anew.
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_text(path, json.dumps(config, indent=2, ensure_ascii=False))


def _as_llama_cpp(backend: Any, metadata: dict[str, Any]) -> None:
    """Set what llama.cpp does before it merges, which transformers reads of few files."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    kind, pre = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and pre in SPLITS:
        cuts: list[Any] = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[pre]]
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    if kind == "gpt2" and pre in WHOLE_FIRST:
        backend.model.ignore_merges = True
    if kind == "llama":
        # A space stands before a text, and before what follows a special token.
        prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
        blanks: Any = normalizers.Replace(" ", _BLANK)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blanks]) if prefixed else blanks
        backend.pre_tokenizer = None
        said: list[Any] = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(said + [decoders.Strip(" ", 1, 0)] * prefixed)


def _original_differences(vocabulary: Vocabulary, out: Path) -> list[str]:
    """Compare the maker's own tokenizer, without its class, which may be code of the repository."""
    from tokenizers import Tokenizer

    if not (out / "tokenizer.json").is_file():
        return ["the tokenizer is the original one; it has no tokenizer.json and was not compared with llama.cpp's"]
    try:
        original = Tokenizer.from_file(str(out / "tokenizer.json"))
    except Exception as e:  # of no kind of its own
        raise UserError(
            f"tokenizer.json of the model's weights cannot be read ({brief(str(e), 100)}); put the maker's own in its "
            "place, in `original` of the run's hf-checkpoint"
        ) from e
    return _differences(vocabulary, lambda text: original.encode(text, add_special_tokens=False).ids, bos=False)


def _differences(vocabulary: Vocabulary, encode: Callable[[str], list[int]], *, bos: bool) -> list[str]:
    ends = (vocabulary.special_text(int(token)) for token in vocabulary.ends.nonzero()[0])
    texts = (*TEXTS, *(f"12{end}\n{end} a  b" for end in ends))
    others = [text for text in texts if encode(text) != vocabulary.encode(text, special=True, bos=bos)]
    if not others:
        return []
    return [
        f"the tokenizer cuts {len(others)} of {len(texts)} test texts otherwise than llama.cpp, with which the model "
        f"was trained, such as {others[0][:40]!a}; such prompts may be answered worse"
    ]
