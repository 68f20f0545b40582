"""The model that transformers builds from a GGUF alone: it must be the one whose header and weights are there.

transformers fills in at random what a file lacks, takes the memory for it, and overlooks some of what a file has. That
is read here; a file with more that it would overlook is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.tensor_mapping import TensorNameMap

from genius_lite.errors import UserError
from genius_lite.rundir.disk import scratch
from genius_lite.text import first_line
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import block_of, broken, shown
from genius_lite.weights.mapping import name_map
from genius_lite.weights.rope import BY_LENGTH, DIVISORS, scale_frequencies
from genius_lite.weights.supported import FAMILIES, check_architecture, needs_weights, plain
from genius_lite.weights.untrusted import TOKENIZER

_KEPT = ("general.architecture", "general.name", "general.alignment")
_LONGEST_ARRAY, _LONGEST_TEXT = 4096, 4096  # layers and characters; nothing of the shape is longer
_SLACK = 1.01  # of the weights
_ONE_ROW = "ffn_gate_inp_shexp.weight"


def write_for_transformers(source: GGUF, out: Path, tensors: bool = True) -> None:
    """Write the model's tensors with what describes its shape and special tokens, and no vocabulary.

    transformers wants one file. It parses a vocabulary of 150 thousand tokens three times, which takes several seconds
    and some hundred MB each time, and uses no more than its size. A config is made of the tensors' names alone: without
    `tensors` each is one zero.
    """
    own = f"{source.architecture}."
    tokens = source.vocabulary
    replaced = {} if _counts_texts(source.architecture) else {f"{own}vocab_size": tokens}

    def wanted(key: str) -> bool:
        array, value = source.array(key), source.metadata[key]
        if key.startswith(TOKENIZER):
            return 0 <= value < tokens if key.endswith("_token_id") and type(value) is int else not replaced
        if key.startswith(f"{own}rope.scaling."):  # of GPT-OSS's, transformers takes the keys' lengths for values
            return False
        short = array[1] <= _LONGEST_ARRAY if array else not isinstance(value, str) or len(value) <= _LONGEST_TEXT
        return short and key not in replaced and (key in _KEPT or key.startswith(own))

    header = source.keeping(wanted)
    if tensors:
        # transformers adds an axis to it, even where there are two.
        one_axis = [replace(t, shape=t.shape[-1:]) if t.name.endswith(_ONE_ROW) else t for t in source.tensors]
        gguf_file.write(out, header, one_axis, source.raw_blocks, replaced)
    else:
        names = [replace(t, shape=(1,), type=GGMLQuantizationType.F32) for t in source.tensors]
        gguf_file.write(out, header, names, lambda t: [np.zeros(t.shape, np.float32)], replaced)


def is_changed(source: GGUF) -> bool:
    """Say whether transformers can load this file only as `write_for_transformers` and `fill_in` change it."""
    return source.architecture == "gpt-oss" or any(tensor.name.endswith(_ONE_ROW) for tensor in source.tensors)


def _counts_texts(architecture: str) -> bool:
    """Say whether transformers takes the size of the vocabulary from its texts alone."""
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    known = {plain(name): keys for name, keys in GGUF_TO_TRANSFORMERS_MAPPING["config"].items()}
    return architecture in GGUF_CONFIG_ARCHS or "vocab_size" not in known[plain(architecture)]


def read_config(source: GGUF) -> Any:
    """Read the config that the header describes: what transformers makes of it, and what it overlooks.

    Raises:
        UserError: transformers does not read the architecture; the header lacks a key, or one is of another type;
            rotary frequencies are scaled in an unknown way; a tensor has another size than the header says, or is none
            of the model's; or the model would have more weights than the file.
    """
    from transformers import AutoConfig

    check_architecture(source.architecture, source.path)
    overlooked = {
        attribute: value
        for key, attribute in FAMILIES["overlooked"].get(source.architecture, {}).items()
        if (value := source.own(key))
    }
    if source.own("block_count") == FAMILIES["layers_of_27b"].get(source.architecture):
        heads = source.own("attention.head_count") or 1
        overlooked["query_pre_attn_scalar"] = source.own("embedding_length") // heads
    with scratch() as folder:
        write_for_transformers(source, folder / "header.gguf", tensors=False)
        try:
            with reading_foreign(source.path, "header"):
                config = AutoConfig.from_pretrained(
                    folder, gguf_file="header.gguf", trust_remote_code=False, **overlooked
                )
            scale_frequencies(source, config)
        except KeyError as e:
            raise broken(source.path, f"there is no {shown(str(e.args[0]))}") from None
    _check_tensors(source, config)
    return config


@contextmanager
def reading_foreign(path: Path, what: str, *more: type[Exception]) -> Iterator[None]:
    """Say in a line what transformers makes of a header or config (`what`): unchecked, it divides, asserts, looks up.

    Args:
        more: exceptions that tell of it too.
    """
    from huggingface_hub.errors import StrictDataclassError

    found = (ArithmeticError, AssertionError, AttributeError, IndexError, StrictDataclassError, TypeError, ValueError)
    try:
        yield
    except (*found, *more) as e:
        raise UserError(f"{path}: transformers cannot read its {what}: {first_line(e)}") from None


def described_model(config: Any, path: Path, what: str, held: int) -> Any:
    """Build the model of a description without its weights, on torch's device `meta`.

    Args:
        path, what: where the description is, as in `reading_foreign`.
        held: weights that are there; the model may have a hundredth more, of small ones that are made and not stored.

    Raises:
        UserError: transformers cannot build it, or it would have more weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), reading_foreign(path, what, KeyError):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > _SLACK * held:
        raise UserError(f"{path}: its {what} describes a model of {needed} weights, and {held} are there")
    return model


def _check_tensors(source: GGUF, config: Any) -> None:
    """Refuse a tensor of another size than the config says, or one that is none of its model's."""
    model = described_model(config, source.path, "header", source.parameters)
    names = name_map(source)
    used = {DIVISORS, *BY_LENGTH}
    for name, weights in model.state_dict().items():
        parts = [part for part in _parts(names, name) if part in source.by_name]
        used.update(parts)
        found = [source.by_name[part].shape for part in parts]
        # An axis of one may be left out in the file.
        if found and (sum(map(math.prod, found)) != weights.numel() or max(map(len, found)) > weights.ndim):
            asked = f"and the header asks for {list(weights.shape)}"
            raise broken(source.path, f"{shown(parts[0])} is {list(found[0])}, {asked}")
    layers = config.num_hidden_layers
    for name in source.by_name:
        if name not in used and (block_of(name) or 0) < layers:  # those beyond predict more than one token
            raise needs_weights(source.path, f"transformers would leave out {shown(name)}")


def _parts(names: TensorNameMap, name: str) -> list[str]:
    """List the names that the tensors may have in a GGUF which a learner's parameter is made of."""
    layer, _, own = name.partition(".layers.")[2].partition(".")
    if own in FAMILIES["parts"]:
        return [f"blk.{layer}.{part}" for part in FAMILIES["parts"][own]]
    for known in (name, name.partition(".")[2]):  # gguf lists some families without what wraps them
        if found := names.get_name(known, try_suffixes=(".weight", ".bias")):
            return [found, f"{found}.weight", f"{found}.bias"]  # a parameter of no layer has either or none
    return []


def fill_in(source: GGUF, model: Any, missing: set[str]) -> set[str]:
    """Read the `missing` weights whose names in a GGUF transformers does not know; return those that are missing still.

    These are GPT-OSS's experts and sinks.
    """
    import torch

    if source.architecture != "gpt-oss":
        return missing
    names, tensors, filled = name_map(source), source.by_name, set[str]()
    for name in missing:
        parts = [source.dequantized(tensors[part]) for part in _parts(names, name) if part in tensors]
        if parts:  # transformers' experts are transposed, and gate and up take turns in them
            turned = [part.swapaxes(1, 2) if part.ndim == 3 else part for part in parts]
            parameter = model.get_parameter(name)
            parameter.data.copy_(torch.from_numpy(np.stack(turned, -1).reshape(parameter.shape)))
            filled.add(name)
    return missing - filled


def check_complete(path: Path, model: Any, missing: set[str]) -> None:
    """Refuse, by a UserError, a model with a weight that transformers invented: it is among the `missing` names."""
    if invented := sorted(missing & {name for name, _ in model.named_parameters()}):
        raise UserError(f"{path}: it has no weights for {shown(invented[0])} ({len(invented)} are missing)")
