"""The recipe: its types, and the one home of every default.

Nothing heavy is imported here. A recipe is YAML; `load` reads it and says of a mistake the file, the line,
and what was probably meant.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from genius_lite.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Auto = Literal["auto"]
QuantType = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1",
    "Q3_K_M", "Q3_K_S", "Q3_K_L", "Q2_K",
]  # fmt: skip
KVType = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)


class Model(Section):
    """Which GGUF is trained."""

    gguf: str = Field(description="PATH, hf:OWNER/REPO/FILE.gguf, or python:PACKAGE/FILE.gguf")
    revision: str | None = Field(default=None, description="Commit, tag or branch, for hf: sources")


class Queries(Section):
    """Which unlabelled questions are answered."""

    source: str = Field(description="PATH (.jsonl .csv .parquet .txt) or hf:OWNER/DATASET")
    column: str = Field(default="prompt", description="Column that holds the question")
    split: str = Field(default="train", description="Split, for hub datasets")
    revision: str | None = Field(default=None, description="Commit, tag or branch, for hub datasets")
    limit: Positive | None = Field(default=None, description="Use at most this many, after shuffling")
    shuffle: bool = Field(default=False, description="Shuffle with `seed` before `limit`")
    seed: int = 0
    system: str | None = Field(default=None, description="System message; none leaves the template's own default")


class Foresight(Section):
    """Stepwise foresight search, Eq. 1 to 6 of the paper; M, N and K are its `beams`, `candidates`, `steps`."""

    beams: Positive = 2
    candidates: Positive = 4
    steps: Positive = 4
    tau: Annotated[float, Field(gt=0)] = Field(default=0.1, description="Temperature of F = softmax(f / tau), Eq. 2")
    temperature: Annotated[float, Field(gt=0)] = Field(default=0.6, description="Sampling temperature")
    top_k: Annotated[int, Field(ge=0)] = Field(default=0, description="0: off")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_tokens: Positive = Field(default=256, description="Longest response, in tokens, kept steps included")
    negatives: Literal["foresight", "uniform"] = Field(
        default="foresight", description="Draw the rejected response from F (paper) or uniformly (released code)"
    )
    skip_agreeing: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Light mode: no foresight where candidate steps share this much of their tokens"
    )
    future_tokens: Positive | None = Field(
        default=None, description="Longest simulated future, in tokens; none: up to max_tokens"
    )
    drop_below: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Give up futures whose candidate no draw from F can take with this probability"
    )


class Learner(Section):
    """The adapter and how it is trained with ACO, Eq. 10 to 12."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    alpha: Annotated[float, Field(gt=0)] = Field(default=1.0, description=".inf gives DPO")
    calibration: Literal["cap", "floor"] = Field(
        default="cap", description="w = min(exp(..), 1) (paper) or max(exp(..), 1) (released code)"
    )
    precision: Literal["auto", "nf4", "bf16", "fp32"] = Field(
        default="auto", description="Of the frozen weights; auto: nf4 on CUDA and CPU, else bf16"
    )
    rank: Positive = 16
    lora_alpha: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 2e-5
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(default=0.1, description="Share of the updates")
    epochs: Positive = 1
    batch_pairs: Positive = Field(default=16, description="Pairs per optimizer update, at least")
    max_pack_tokens: Positive = Field(default=2048, description="Distinct tokens of one forward pass, at most")
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class Quantize(Section):
    """The type of the GGUF that the next round samples from, and that is exported."""

    type: QuantType = "Q8_0"


class Sampler(Section):
    """llama.cpp settings. They change speed and memory, not what is sampled from.

    `sampler: auto` measures the first three on this machine, once for each model.
    """

    slots: Annotated[int, Field(ge=1, le=128)] | Auto = Field(
        default=32, description="Branches decoded together; auto: measured on this machine"
    )
    kv_unified: bool | Auto = Field(
        default=False, description="One KV buffer for all branches instead of one each; auto: measured"
    )
    threads: Positive | Auto = Field(
        default="auto", description="auto: measured with the other two, else the cores this process may use"
    )
    parked: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto", description="Paths kept in the KV cache beside the slots; auto: as many as slots"
    )
    context: Positive | Auto = Field(default="auto", description="Tokens per branch; auto: what the queries need")
    kv_type: KVType = Field(default="F16", description="Of the KV cache; quantized ones need flash attention")
    flash_attention: bool | Auto = Field(default="auto", description="auto: llama.cpp decides")
    gpu_layers: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto", description="Layers on the GPU, where llama.cpp has one; auto: as many as fit its memory"
    )
    prefill_chunk: Positive = Field(default=128, description="Prompt tokens that ride along in one decode")

    @property
    def measured(self) -> bool:
        """Whether something here is to be measured."""
        return "auto" in (self.slots, self.kv_unified)


def _sampler_section(value: Any) -> Any:
    """`sampler: auto` is short for all that can be measured."""
    return {"slots": "auto", "kv_unified": "auto", "threads": "auto"} if value == "auto" else value


class Recipe(Section):
    """A whole run."""

    out: str = Field(description="Run folder, relative to the working directory")
    model: Model
    queries: Queries
    seed: int = 0
    rounds: Positive = 2
    foresight: Foresight = Foresight()
    learner: Learner = Learner()
    quantize: Quantize = Quantize()
    sampler: Annotated[Sampler, BeforeValidator(_sampler_section)] = Sampler()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.foresight.beams * self.foresight.candidates < 2:
            raise ValueError("foresight: beams x candidates must be at least 2, a pair needs two responses")
        return self

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run folder to go on: all but where files lie and how fast it samples.

        The model and the queries are compared by content instead, when the folder is opened.
        """
        return self.model_dump(mode="json", exclude={"out": True, "sampler": True, "model": True, "queries": True})


def load(path: Path) -> Recipe:
    """Read a recipe file; file names in it are relative to the recipe, `out` to the working directory.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds an unknown key or a wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the recipe file in it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: a recipe is UTF-8 text, this file is not") from None
    recipe = parse(text, str(path))
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"gguf": _beside(path, recipe.model.gguf)}),
            "queries": recipe.queries.model_copy(update={"source": _beside(path, recipe.queries.source)}),
        }
    )


def parse(text: str, name: str = "recipe") -> Recipe:
    """A recipe from YAML text; `name` stands in error messages. `out` defaults to runs/<name's stem>.

    Raises:
        UserError: as `load`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise UserError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {e.problem}") from None
    except yaml.YAMLError as e:
        raise UserError(f"{name}: not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{name}:1: a recipe is a mapping that starts with keys such as `model:`")
    lines: dict[tuple[str, ...], int] = {}
    data = _plain(root, (), lines, name)
    data.setdefault("out", f"runs/{Path(name).stem}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as e:
        raise UserError(_explain(e, lines, name)) from None


def _plain(node: yaml.Node, where: tuple[str, ...], lines: dict[tuple[str, ...], int], name: str) -> Any:
    """The node's value, while noting the line of each key and refusing repeated ones."""
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in result:
                raise UserError(f"{name}:{line}: `{key}` stands twice in the same section; keep one")
            lines[(*where, key)] = line
            result[key] = _plain(value_node, (*where, key), lines, name)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*where, str(i)), lines, name) for i, child in enumerate(node.value)]
    return _scalar(node, name)


def _scalar(node: yaml.Node, name: str) -> Any:
    """A YAML 1.1 scalar; also reads 2e-5 as the number that everyone means by it."""
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node)
    except (ValueError, yaml.YAMLError):
        raise UserError(f"{name}:{node.start_mark.line + 1}: cannot read `{node.value}` here") from None
    finally:
        loader.dispose()
    if isinstance(value, str) and isinstance(node, yaml.ScalarNode) and node.style is None:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: ValidationError, lines: dict[tuple[str, ...], int], name: str) -> str:
    """One line for the first mistake: file, line, what is wrong, what to write."""
    first = error.errors()[0]
    where = tuple(str(part) for part in first["loc"] if not str(part).startswith(("literal[", "constrained")))
    known = next(lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines)
    dotted, place = ".".join(where), f"{name}:{known}"
    if first["type"] == "extra_forbidden":
        keys = _keys_of(where[:-1])
        near = difflib.get_close_matches(where[-1], keys, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(keys)}"
        return f"{place}: unknown key `{dotted}`; {hint}"
    if first["type"] == "missing":
        return f"{place}: `{dotted}` is missing"
    if not where:
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    choices = {c for e in error.errors() if e["loc"][: len(where)] == first["loc"][: len(where)]
               for c in [e.get("ctx", {}).get("expected")] if c}  # fmt: skip
    message = f"expected {' or '.join(sorted(choices))}" if choices else first["msg"].lower()
    return f"{place}: `{dotted}` is {first['input']!r}: {message}"


def _keys_of(section: tuple[str, ...]) -> list[str]:
    """The keys that a section of the recipe knows."""
    model: Any = Recipe
    for part in section:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _beside(recipe: Path, name: str) -> str:
    """A local file's path, relative names taken from the recipe's folder; other sources as they are."""
    if name.startswith(("hf:", "python:")):
        return name
    return str((recipe.parent / Path(name).expanduser()).resolve())
