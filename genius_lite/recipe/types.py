"""What the sections are made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Auto = Literal["auto"]
QuantType = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1",
    "Q3_K_M", "Q3_K_S", "Q3_K_L", "Q2_K",
]  # fmt: skip
TargetType = QuantType | Literal["source"]
"""`source`: each tensor keeps the type that it has in the recipe's GGUF."""
Check = Literal["exact", "numeric", "choice", "regex", "math-verify"]
KVType = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]

# What a number counts; the reference shows it, `Field(json_schema_extra=TOKENS)`.
TOKENS: JsonDict = {"unit": "tokens"}
NATS: JsonDict = {"unit": "nats"}
NATS_PER_TOKEN: JsonDict = {"unit": "nats per token"}
SECONDS: JsonDict = {"unit": "seconds"}
SHARE: JsonDict = {"unit": "share"}


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors, values do not change, and "3" is no number.

    A validator's message starts with the key that it is about, dotted from its section: the reader puts the line there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def is_section(annotation: Any) -> bool:
    """Whether a field's type is a section."""
    return isinstance(annotation, type) and issubclass(annotation, Section)
