"""Which families can be trained with nothing but a GGUF, and which others with `model.weights`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from genius_lite.errors import UserError

_REMEDY = "set model.weights to the original model's safetensors (a folder, or hf:OWNER/REPO)"
FAMILIES = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))
"""What is special about some families; the file says of each table what it is."""
_MISREAD: dict[str, str] = FAMILIES["misread"]


def check_architecture(architecture: str, named: Path | str) -> None:
    """Refuse an architecture, as llama.cpp spells it, that transformers does not read from a GGUF, or misreads.

    Raises:
        UserError: of the model as it is `named`; it says whether `model.weights` would do.
    """
    if architecture in _MISREAD:
        raise needs_weights(named, f"transformers reads `{architecture}` from a GGUF without {_MISREAD[architecture]}")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if plain(architecture) in map(plain, readable()):
        return
    if plain(FAMILIES["spelled"].get(architecture, architecture)) in map(plain, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise needs_weights(named, f"architecture `{architecture}` cannot be trained from a GGUF alone")
    raise UserError(f"{named}: `{architecture}` cannot be trained: transformers has no such language model")


class NeedsWeightsError(UserError):
    """A model cannot be trained with nothing but its GGUF."""


def needs_weights(named: Path | str, why: str) -> NeedsWeightsError:
    """Return the error for a model that cannot be trained with nothing but its GGUF."""
    return NeedsWeightsError(f"{named}: {why}; {_REMEDY}")


def plain(name: str) -> str:
    """Return the name of a family as both transformers (`qwen3_moe`) and llama.cpp (`qwen3moe`) would spell it."""
    return re.sub("[-_]", "", name)


def readable() -> set[str]:
    """Return transformers' names of the causal language models that it reads from a GGUF, and reads rightly."""
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    # Its table also has encoder-decoders, sections that are no model, and Deci, which it cannot build.
    listed = {name for name in GGUF_SUPPORTED_ARCHITECTURES if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    return (listed | set(GGUF_CONFIG_ARCHS)) - set(_MISREAD)
