"""What the sections are made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from genius_lite.errors import UserError
from genius_lite.records import LARGEST

Positive = Annotated[int, Field(ge=1)]
Rounds = Annotated[int, Field(ge=1, le=10_000)]
Threads = Annotated[int, Field(ge=1, le=512)]  # GGML_MAX_N_THREADS
Count = Annotated[int, Field(ge=0)]
Seed = Count
AboveZero = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


def at_home(path: str) -> str:
    """Write out `~` and `~USER` at the beginning of a path, as shells do for a word alone.

    Raises:
        ValueError: there is no such home, or the name is not UTF-8, in which llama.cpp and JSON take names.
    """
    try:
        path.encode()
        if "\0" in path:
            raise ValueError
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except UnicodeEncodeError:
        why = "has a name in it that is not UTF-8; rename that"
    except ValueError:
        why = "cannot be the name of a file; write another one"
    except RuntimeError:
        why = "begins with a home folder that is not there; write the whole path"
    raise PydanticCustomError("path", "{path} {why}", {"path": repr(path)[:200], "why": why})


LocalPath = Annotated[Text, AfterValidator(at_home)]
"""A path, or a source of another kind."""

Auto = Literal["auto"]
QuantType = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1",
    "Q3_K_M", "Q3_K_S", "Q3_K_L", "Q2_K",
]  # fmt: skip
TargetType = QuantType | Literal["source"]
"""`source`: each tensor keeps the type that it has in the recipe's GGUF."""
KVType = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


def quant_type(name: str) -> QuantType:
    """Return the type of this name, whose letters may be small; a UserError where there is none."""
    known = {kind.casefold(): kind for kind in get_args(QuantType)}
    if name.casefold() not in known:
        raise UserError(f"{name}: no quantization type of that name; known are {', '.join(known.values())}")
    return known[name.casefold()]


def key(default: Any, description: str, *, examples: list[Any] | None = None, **notes: Any) -> Any:
    """Declare a key that need not be written; the schema tells `notes` too, as `unit`: what its number counts."""
    return Field(default, description=description, examples=examples, json_schema_extra=notes or None)


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors, values do not change, and "3" is no number.

    A validator's message starts with the key that it is about, dotted from its section: the reader puts the line there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        """Refuse numbers that the run folder's own documents would be called damaged for."""
        if isinstance(value, float) and LARGEST < abs(value) < math.inf:
            raise PydanticCustomError("large", "and {most} is the most", {"most": f"{LARGEST:g}"})
        return value

    @classmethod
    def extra(cls, key: str) -> dict[str, Any]:
        """Return what a key's `json_schema_extra` notes about it."""
        found = cls.model_fields[key].json_schema_extra
        return found if isinstance(found, dict) else {}


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a field's type is, or that a list or union of it holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)
