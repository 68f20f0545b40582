"""Exports for the Python world: a peft adapter, and the merged model as safetensors; each with its tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genius_lite.data.templates import in_parts, opening
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.export.tokenizer import write_tokenizer
from genius_lite.recipe import Prefix
from genius_lite.rundir.documents import read_object
from genius_lite.rundir.folder import write_text
from genius_lite.weights.adapter import read_factors
from genius_lite.weights.full_precision import ADAPTER_CONFIG, load_weights
from genius_lite.weights.importing import Base
from genius_lite.weights.meta_model import is_changed
from genius_lite.weights.source import ORIGINAL, split_origin

BASE_CONFIG = "base_config.json"
"""Of a base that is a GGUF; as config.json transformers would take it for the adapter's."""
_CONFIG = "config.json"
_SAMPLED_WITH = ("temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_FIT_FLOAT16 = {"llama", "qwen2"}
"""Families, by llama.cpp's names, whose activations were seen to stay in float16's range (SmolLM2, Qwen2.5). Those of
Gemma 2 to 4, GLM-4, Qwen3.5, Qwen3-MoE and gpt-oss leave it: vLLM refuses float16 for some, Unsloth for others."""


@dataclass(frozen=True)
class HubSource:
    """Where on the hub a base model is: a repository with safetensors, or one with a GGUF."""

    repository: str
    gguf: str | None = None
    revision: str | None = None

    @staticmethod
    def of(base: Base) -> HubSource | None:
        """Find where everybody finds it; None of a model that was a local file, or lay in a package."""
        if not base.origin.startswith(Prefix.HUB):
            return None
        named, revision = split_origin(base.origin)
        owner, repository, *file = named.removeprefix(Prefix.HUB).split("/", 2)
        return HubSource(f"{owner}/{repository}", file[0] if file else None, revision)


def base_on_hub(base: Base) -> HubSource | None:
    """Find where an adapter's base is loaded from.

    That is no GGUF in several files, which transformers does not read, and none that it reads only after some changes.
    """
    hub = HubSource.of(base)
    return None if hub and hub.gguf and (len(base.gguf.files) > 1 or is_changed(base.gguf)) else hub


def computing_type(base: Base) -> str:
    """Choose the dtype that `from_pretrained` computes in: float16 where activations fit, else float32.

    Weights are stored in float16 either way, which keeps an update; that bfloat16 holds every activation does not help,
    since `from_pretrained` would round the weights to its 8 bits, and of small updates less than half survives that.
    """
    original = base.hf_checkpoint / ORIGINAL / _CONFIG
    made = _dtype(read_object(original)) if original.is_file() else None
    return "float16" if made == "float16" or base.gguf.architecture in _FIT_FLOAT16 else "float32"


def _dtype(config: dict[str, Any]) -> str | None:
    own, text = config.get("dtype") or config.get("torch_dtype"), config.get("text_config")
    return own or (_dtype(text) if isinstance(text, dict) else None)


def write_peft(base: Base, adapter: Path, out: Path) -> list[str]:
    """Write the adapter as peft reads it, with its tokenizer; return what its user should know, a line each.

    The base is named as others find it: a repository of the hub, or else a folder beside the export, which round 0 is
    exported to. Of a GGUF on the hub its config is here too: transformers overlooks some of what the header says.

    Raises:
        UserError: the adapter is damaged.
    """
    read_factors(adapter)  # which looks at all of it
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    config = read_object(adapter / ADAPTER_CONFIG)
    if (hub := base_on_hub(base)) and hub.gguf:
        _write_config(base, base.hf_checkpoint / _CONFIG, out / BASE_CONFIG)
    config["base_model_name_or_path"] = hub.repository if hub else base.name
    config["revision"] = hub.revision if hub else None
    write_text(out / ADAPTER_CONFIG, json.dumps(config, indent=2))
    return write_tokenizer(base.gguf, base.hf_checkpoint / ORIGINAL, out)


def write_safetensors(base: Base, adapter: Path | None, out: Path) -> list[str]:
    """Write checkpoint + adapter, with config and tokenizer, for `from_pretrained`; return notes as `write_peft`."""
    model = merged_model(base, adapter)
    # transformers reads one token of a GGUF that ends a response: of Gemma 3 or Phi-3 not the one that ends a turn.
    cfg = model.generation_config
    with Vocabulary.open(base.gguf.path) as vocabulary:
        cfg.eos_token_id = _ends(vocabulary)
    _make_saveable(cfg)
    model.save_pretrained(out)
    _write_config(base, out / _CONFIG, out / _CONFIG)
    notes = write_tokenizer(base.gguf, base.hf_checkpoint / ORIGINAL, out)
    if computing_type(base) == "float32":
        notes.append(
            "the weights are stored in 16 bits and loaded as float32, since this family's activations may leave the "
            'range of float16; dtype="bfloat16" takes half the memory, and rounds off some of what was learned'
        )
    return notes


def _make_saveable(cfg: Any) -> None:
    """Make a generation config one that can be saved: a maker's temperature without `do_sample` is only read."""
    if (cfg.pad_token_id or 0) < 0:  # as of old LLaMAs
        cfg.pad_token_id = None
    try:
        cfg.validate(strict=True)
    except ValueError:
        if cfg.do_sample is None:
            cfg.do_sample = True
        elif not cfg.do_sample:
            for name in _SAMPLED_WITH:
                setattr(cfg, name, None)


def merged_model(base: Base, adapter: Path | None) -> Any:
    """Load the checkpoint in 16 bits and add the adapter, whose names are those of the model and not of its files.

    What is changed becomes float16, or float32 where that cannot hold it: bfloat16 would erase small updates.

    Raises:
        UserError: the adapter is another model's.
    """
    import torch

    model = load_weights(base.hf_checkpoint)
    weights = dict(model.named_parameters())
    factors, alpha, rank = read_factors(adapter) if adapter else ({}, 1.0, 1)
    for name, (b, a) in factors.items():
        if name not in weights:
            raise UserError(f"{adapter} does not belong to {base.hf_checkpoint}, which has no {name}")
        exact = weights[name].float() + (alpha / rank) * (torch.from_numpy(b) @ torch.from_numpy(a))
        half = exact.half()
        weights[name].data = half if half.isfinite().all() else exact
    return model


def python_lines(base: Base, adapter: bool, system: str | None, template: dict[str, Any]) -> str:
    """Write Python that loads an export, an adapter's base from where others find that, and asks as the run did."""
    hub = base_on_hub(base)
    if adapter and hub and hub.gguf:
        lines = [
            "# transformers 5.17 or newer",
            "from peft import PeftModel",
            "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig",
            f'config = AutoConfig.from_pretrained(FOLDER + "/{BASE_CONFIG}")',
            "base = AutoModelForCausalLM.from_pretrained(",
            f"    {hub.repository!r}, gguf_file={hub.gguf!r}, revision={hub.revision!r}, config=config,",
            "    quantization_config=GgufConfig(dequantize=True), dtype=config.dtype,",
            ")",
            "model = PeftModel.from_pretrained(base, FOLDER)",
        ]
    elif adapter:
        lines = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
        if not hub:
            lines += [
                f"# Its base is looked for in a folder `{base.name}` of the working directory; the run writes that:",
                f"# genius-lite export RUN --round 0 --format safetensors --to {base.name}",
            ]
        lines.append("model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)")
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
        ]
    lines.append("tokenizer = AutoTokenizer.from_pretrained(FOLDER)")
    with Vocabulary.open(base.gguf.path, template) as vocabulary:
        stop = f", eos_token_id={_ends(vocabulary)}" * adapter  # beside an adapter nothing else says it
        shown = in_parts if vocabulary.template and vocabulary.takes_parts else list
    if base.gguf.metadata.get("tokenizer.chat_template"):
        messages = shown([*opening(system), {"role": "user", "content": "What is 2 + 2?"}])
        # The date is each program's own.
        variables = {name: value for name, value in template.items() if name != "today"}
        told = f", **{variables!r}" if variables else ""
        lines += [
            f"messages = {messages!r}",
            "prompt = tokenizer.apply_chat_template(",
            f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{told}',
            ")",
        ]
    else:
        lines.append('prompt = tokenizer("What is 2 + 2?", return_tensors="pt")')
    lines.append(f"print(tokenizer.decode(model.generate(**prompt, max_new_tokens=200{stop})[0]))")
    return "\n".join(lines)


def _ends(vocabulary: Vocabulary) -> list[int] | None:
    """List the tokens that ended a response in the run."""
    return vocabulary.ends.nonzero()[0].tolist() or None


def _write_config(base: Base, source: Path, path: Path) -> None:
    """Write a config with the type to compute in, and without where the model was read from."""
    config = read_object(source)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in ("torch_dtype", "_name_or_path"):
            part.pop(name, None)
        if part is config or "dtype" in part:
            part["dtype"] = computing_type(base)
        part |= _as_in_transformers_4(part.get("rope_parameters") or {})
    write_text(path, json.dumps(config, indent=2))


def _as_in_transformers_4(rope: dict[str, Any]) -> dict[str, Any]:
    """Return a config's keys of rotary frequencies by which transformers 4 reads them; else it takes its defaults."""
    if "rope_theta" not in rope:  # of each kind of layer another one, as nothing there has them
        return {}
    beside = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    kind, scaling = rope.get("rope_type", "default"), {name: rope[name] for name in rope if name not in beside}
    # Of `longrope` it takes fewer fields, and transformers 5 would take those few, too, in place of the others.
    return beside | ({} if kind in ("default", "longrope") else {"rope_scaling": scaling})
