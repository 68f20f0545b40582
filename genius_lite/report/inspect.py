"""What a GGUF holds, and how two of them differ: plain figures first, then tables for a terminal.

Nothing in a file is trusted. The figures are valid JSON whatever it says; what a terminal gets has no markup and no
control characters of its own. Weights are compared a block at a time, so that memory stays small at any size.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType, LlamaFileType
from rich.console import Console
from rich.text import Text

from genius_lite.errors import UserError
from genius_lite.progress import Advance
from genius_lite.report.console import make_table
from genius_lite.text import visible
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import Tensor

# The first pattern that fits a tensor's name is its group (names: gguf.constants.TENSOR_NAMES).
_PATTERNS = {
    "norms": r"norm|\bln[12]?\b|_ln\b", "experts": r"_(sh|ch)?exps?\b|exp_probs|gate_inp", "attention": r"attn",
    "feed-forward": r"ffn|channel_mix", "output head": r"^output\b|^cls\b|shared_head_head",
    "embeddings": r"embd|embed|token_types",
}  # fmt: skip
_GROUPS = ("embeddings", "attention", "feed-forward", "experts", "norms", "output head", "other")
_TEMPLATE = "tokenizer.chat_template"
_FACTS = {
    "kind": "general.type", "architecture": "general.architecture", "name": "general.name",
    "file_type": "general.file_type", "context_length": "{}.context_length", "layers": "{}.block_count",
    "heads": "{}.attention.head_count", "kv_heads": "{}.attention.head_count_kv",
    "embedding_length": "{}.embedding_length", "vocabulary": "{}.vocab_size", "tokenizer": "tokenizer.ggml.model",
    "chat_template": _TEMPLATE, "adapter_type": "adapter.type", "adapter_alpha": "adapter.lora.alpha",
    "imatrix_chunks": "imatrix.chunk_count", "imatrix_chunk_size": "imatrix.chunk_size",
}  # fmt: skip
_LARGEST, _LISTED, _LONGEST = 5, 10, 100  # tensors that differ most; rows of a long list; characters of a value


def describe(path: Path, sha256: bool = False) -> dict[str, Any]:
    """Describe a GGUF by what it says of itself; a model in several files by all of them.

    Sizes are in bytes; what the file does not say in one value is None. `tied_head` tells whether the embeddings are
    the output head too, None for what is no language model; `adapter_rank` lists a LoRA's ranks.

    Raises:
        UserError: no GGUF, or a broken one.
    """
    source = _read(path)
    facts = {name: source.metadata.get(key.format(source.architecture)) for name, key in _FACTS.items()}
    kind, file_type = facts["kind"] or "model", facts["file_type"]
    rows = source.vocabulary if gguf_file.EMBEDDINGS in source.by_name else None
    return {
        "files": [
            {"name": _plain(f.name), "bytes": f.stat().st_size, "sha256": gguf_file.sha256([f]) if sha256 else None}
            for f in source.files
        ],
        **{name: _plain(value) for name, value in facts.items()},
        "kind": _plain(kind),
        "file_type": next((t.name for t in LlamaFileType if t == file_type), _plain(file_type)),
        "vocabulary": rows or _plain(facts["vocabulary"]),
        "tied_head": "output.weight" not in source.by_name if kind == "model" and rows else None,
        # B is (rows, rank); its product with A is scaled by alpha / rank.
        "adapter_rank": sorted({t.shape[-1] for t in source.tensors if t.name.endswith(".lora_b")}) or None,
        **_size(source.tensors),
        "types": _sizes(source.tensors, lambda t: t.type.name),
        "groups": _sizes(source.tensors, lambda t: _group(t.name)),
    }


def compare(path: Path, other: Path, advance: Advance = lambda n: None) -> dict[str, Any]:
    """Compare `other` with `path`: metadata, chat templates, tensors, and the weights a and b of both.

    `difference` is ||a - b|| / ||a|| of the dequantized weights, over a group's tensors that have one shape in both
    and are not identical byte for byte; None where that is no number. `not_compared` are tensors of types that gguf
    cannot dequantize.

    Args:
        advance: called with bytes of `path`'s tensors, at most `bytes` of its description in all.

    Raises:
        UserError: no GGUF, or a broken one.
    """
    a, b = _read(path), _read(other)
    found = {"file": _plain(path.name), "other": _plain(other.name)}
    return found | _metadata_difference(a, b) | _tensor_difference(a, b, advance)


def print_description(d: dict[str, Any], console: Console, template: bool = False) -> None:
    """Print tables of what `describe` found; `template` prints the chat template in full."""
    rows = [(f["name"], f"{f['bytes']:,} bytes") for f in d["files"]]
    facts = {key: d[key] for key in [*_FACTS, "adapter_rank", "tied_head"] if d[key] is not None}
    text = str(facts.pop("chat_template", ""))
    _print_table(console, ("", ""), rows + [(key.replace("_", " "), value) for key, value in facts.items()])
    for file in (f for f in d["files"] if f["sha256"]):
        console.print(_text(f"sha256 of {file['name']}:"), _text(file["sha256"]))
    columns = ("#tensors", "#parameters", "#MB", "#bits each")
    groups = [(name, *_figures(size), ", ".join(size["types"])) for name, size in d["groups"].items()]
    _print_table(console, ("group", *columns, "types"), [*groups, ("all", *_figures(d), "")])
    _print_table(console, ("type", *columns), [(name, *_figures(size)) for name, size in d["types"].items()])
    if text:
        console.print(f"chat template, {len(text):,} characters{':' if template else ', which begins:'}")
        console.print(_text(text if template else text.split("\n")[0], whole=template), soft_wrap=template)
    else:
        console.print("no chat template")


def print_difference(d: dict[str, Any], console: Console, template: bool = False) -> None:
    """Print tables of what `compare` found; `template` prints the difference of chat templates in full."""
    _print_table(console, ("", ""), [("file", d["file"]), ("other", d["other"])])
    _print_table(console, ("metadata", "file", "other"), [(c["key"], c["file"], c["other"]) for c in d["metadata"]])
    for key, diff in d["templates"].items():
        lines = Counter(line[:1] for line in diff[2:])
        console.print(_text(key), f"differs: {lines['-']} lines removed, {lines['+']} added")
        if template:
            console.print(_text("\n".join(diff), whole=True), soft_wrap=True)
    if not d["metadata"] and not d["templates"]:
        console.print("the metadata is equal")
    console.print(f"{d['common']} tensors are in both, {d['identical']} of them identical byte for byte")
    lists = [(key.replace("_", " "), d[key]) for key in ("only_in_file", "only_in_other", "not_compared") if d[key]]
    _print_table(console, ("", "#tensors", "which"), [(title, len(names), ", ".join(names)) for title, names in lists])
    types = Counter((c["type"], c["other_type"]) for c in d["changed"] if c["type"] != c["other_type"])
    _print_table(console, ("type", "other", "#tensors"), [(*pair, n) for pair, n in types.most_common()])
    shapes = [(c["tensor"], c["shape"], c["other_shape"]) for c in d["changed"] if c["shape"] != c["other_shape"]]
    _print_table(console, (f"{len(shapes)} shapes differ", "file", "other"), shapes[:_LISTED])
    if d["largest"]:
        groups = [(name, g["tensors"], g["identical"], g["difference"]) for name, g in d["groups"].items()]
        _print_table(console, ("group", "#tensors", "#identical", "#difference"), groups)
        largest = [(c["tensor"], c["type"], c["other_type"], c["difference"]) for c in d["largest"]]
        _print_table(console, ("largest differences", "type", "other", "#difference"), largest)
        console.print("difference: ||file - other|| / ||file|| of the weights, over tensors that are not identical")


def _read(path: Path) -> GGUF:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return gguf_file.read(path)


def _group(name: str) -> str:
    inner = re.sub(r"^.*\bblk\.\d+\.", "", name)
    return next((group for group, pattern in _PATTERNS.items() if re.search(pattern, inner)), "other")


def _sizes(tensors: list[Tensor], key: Callable[[Tensor], str]) -> dict[str, Any]:
    """Sum the sizes of tensors with the same `key`; groups in their order, types by size."""
    found = {name: _size([t for t in tensors if key(t) == name]) for name in {key(t) for t in tensors}}
    names = sorted(found, key=lambda name: (name in _GROUPS and _GROUPS.index(name), -found[name]["bytes"]))
    return {name: found[name] for name in names}


def _size(tensors: list[Tensor]) -> dict[str, Any]:
    parameters, size = sum(math.prod(t.shape) for t in tensors), sum(t.nbytes for t in tensors)
    bits = 8 * size / parameters if parameters else None
    types = dict(Counter(t.type.name for t in tensors).most_common())
    return {"tensors": len(tensors), "parameters": parameters, "bytes": size, "bits_per_weight": bits, "types": types}


def _metadata_difference(a: GGUF, b: GGUF) -> dict[str, Any]:
    """Return values that differ or are in one file only (None in the other); of templates the unified difference."""
    changed, templates = [], {}
    for key in (k for k in a.values | b.values if a.values.get(k) != b.values.get(k)):
        one, two = _value(a, key), _value(b, key)
        if key.startswith(_TEMPLATE) and {type(one), type(two)} <= {str, type(None)}:
            # Not `splitlines`: with it, a last line with and one without its end would be equal.
            old, new = ([] if text is None else text.split("\n") for text in (one, two))
            templates[_plain(key)] = list(difflib.unified_diff(old, new, "file", "other", lineterm=""))
            continue
        if one == two:  # the same number as another type
            one, two = (f"{one} ({GGUFValueType(source.kind(key)).name})" for source in (a, b))
        changed.append({"key": _plain(key), "file": one, "other": two})
    return {"metadata": changed, "templates": templates}


def _value(source: GGUF, key: str) -> Any:
    """Return a value as JSON has it; of an array what tells it from others, None for a key that is not there."""
    if array := source.array(key):
        kind, count = array
        digest = hashlib.sha256(source.values[key]).hexdigest()
        return f"{count} x {GGUFValueType(kind).name}, sha256 {digest[:8]}"
    return _plain(source.metadata.get(key))


def _tensor_difference(a: GGUF, b: GGUF, advance: Advance) -> dict[str, Any]:
    ours, theirs = a.by_name, b.by_name
    pairs = [(t, theirs[name]) for name, t in ours.items() if name in theirs]
    compared, not_compared, groups = [], [], {}
    for t, u in pairs:
        try:
            compared += [(t, u, _squares(a, t, b, u))] if t.shape == u.shape else []
        except NotImplementedError:  # gguf does not dequantize such a type
            not_compared.append(_plain(t.name))
        advance(t.nbytes)
    for group in _GROUPS:
        if found := [squares for t, _, squares in compared if _group(t.name) == group]:
            sizes = {"tensors": len(found), "identical": found.count(None)}
            groups[group] = sizes | {"difference": _relative([squares for squares in found if squares])}
    rows = [_pair(t, u) | {"difference": _relative([squares])} for t, u, squares in compared if squares]
    rows.sort(key=lambda row: -math.inf if row["difference"] is None else -row["difference"])
    return {
        "common": len(pairs),
        "identical": sum(group["identical"] for group in groups.values()),
        "only_in_file": [_plain(name) for name in ours if name not in theirs],
        "only_in_other": [_plain(name) for name in theirs if name not in ours],
        "changed": [_pair(t, u) for t, u in pairs if (t.type, t.shape) != (u.type, u.shape)],
    } | {"groups": groups, "largest": rows[:_LARGEST], "not_compared": not_compared}


def _pair(t: Tensor, u: Tensor) -> dict[str, Any]:
    shapes = {"shape": list(t.shape), "other_shape": list(u.shape)}
    return {"tensor": _plain(t.name), "type": t.type.name, "other_type": u.type.name} | shapes


def _squares(a: GGUF, t: Tensor, b: GGUF, u: Tensor) -> tuple[float, float] | None:
    """Return ||a - b||^2 and ||a||^2, of tensors of one shape; None if their bytes are identical."""
    if 0 in t.shape or (t.type == u.type and all(map(np.array_equal, a.raw_blocks(t), b.raw_blocks(u)))):
        return None
    difference = norm = 0.0
    with np.errstate(all="ignore"):
        for rows in t.blocks():
            ours, theirs = (file.dequantized(own, rows).astype(np.float64) for file, own in ((a, t), (b, u)))
            difference, norm = difference + np.square(ours - theirs).sum(), norm + np.square(ours).sum()
    return float(difference), float(norm)


def _relative(squares: list[tuple[float, float]]) -> float | None:
    difference, norm = (sum(pair[i] for pair in squares) for i in (0, 1))
    ratio = difference / norm if norm else difference * math.inf if difference else 0.0
    return math.sqrt(ratio) if math.isfinite(ratio) else None


def _plain(value: Any) -> Any:
    """Return a value that JSON has: strings without surrogates, no infinities."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _figures(size: dict[str, Any]) -> tuple[Any, ...]:
    return size["tensors"], f"{size['parameters']:,}", f"{size['bytes'] / 1e6:,.1f}", size["bits_per_weight"]


def _text(value: Any, whole: bool = False) -> Text:
    """Make text that may be shown, `whole` with its lines; `Text` has no markup and, unlike `escape`, no emoji."""
    text = "absent" if value is None else str(value)
    if len(text) > _LONGEST and not whole:
        text = f"{text[:_LONGEST]}... ({len(text):,} characters)"
    return Text(visible(text, "\n" if whole else ""))


def _print_table(console: Console, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print a table, if it has rows; headings with a # are of numbers."""
    table = make_table(*columns, show_header=any(columns))
    for row in rows:
        cells = zip(columns, row, strict=True)
        table.add_row(*(_text(f"{v:.3g}" if h[:1] == "#" and isinstance(v, float) else v) for h, v in cells))
    if rows:
        console.print(table)
