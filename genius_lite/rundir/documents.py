"""The JSON documents of a run folder, and what is read of a recipe's identity, typed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import msgspec

from genius_lite.errors import UserError
from genius_lite.records import LARGEST, prepared
from genius_lite.text import brief

T = TypeVar("T")


class _Foresight(TypedDict, total=False):
    tau: Annotated[float, msgspec.Meta(gt=0)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    thought_tokens: Annotated[int, msgspec.Meta(ge=0)]


class _Learner(TypedDict, total=False):
    holdout: Annotated[float, msgspec.Meta(ge=0, le=1)]
    alpha: float
    calibration: str


class _Evaluate(TypedDict, total=False):
    queries: Annotated[int, msgspec.Meta(ge=0)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto"]
    temperature: Annotated[float, msgspec.Meta(gt=0)] | Literal["auto"]


class _Quantize(TypedDict, total=False):
    keep: float


class RecordedShard(msgspec.Struct):
    """Which `part` ("1/4") of which round's queries a folder holds, and the SHA-256 of the model that samples them."""

    part: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$")]
    round: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    model: str

    def of(self, searched: int) -> int:
        """How many of these queries are the shard's."""
        number, parts = map(int, self.part.split("/"))
        return len(range(number - 1, searched, parts))


class RecordedOrigin(msgspec.Struct):
    """The SHA-256 of the GGUF that a round is sampled from, None where an adapter at run time is beside it."""

    model: str | None


class RecordedRecipe(TypedDict, total=False):
    """What is read of a run's identity. Another version may have had less."""

    rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    seed: int
    queries: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(, [\w ]{0,100})?$")]
    model: str
    weights: str | None
    tasks: list[str]
    system: str | None
    template: dict[str, Any]
    guard: dict[str, Any]
    pairs: dict[str, Any]
    round_queries: Annotated[int, msgspec.Meta(ge=1)] | None
    foresight: _Foresight
    learner: _Learner
    evaluate: _Evaluate
    quantize: _Quantize


class RecordedSource(msgspec.Struct, frozen=True):
    """What a checkpoint's `source.json` says of the GGUF that it was imported from.

    The hash is computed anew only where its files have other `sizes` or `times` (nanoseconds).
    """

    path: str = ""
    sha256: str = ""
    origin: str = ""
    sizes: list[int] = []
    times: list[int] = []


class RecordedBest(msgspec.Struct):
    round: Annotated[int, msgspec.Meta(ge=0)]


def read_json(path: Path) -> Any:
    """Read a document; None where it is missing, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=_float, parse_constant=_refused)
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """Read a document of a model's maker as transformers will: it may hold numbers that no document of a run has.

    Raises:
        UserError: it is missing, or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read ({brief(str(e), 100)}); put its maker's own in its place") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object; put its maker's own in its place")
    return found


def _float(digits: str) -> float:
    """Read a number that something was measured as, or infinity, which is written as 1e999."""
    if LARGEST < abs(number := float(digits)) < math.inf:
        raise ValueError(f"{digits[:20]} is no figure of a run")
    return number


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is none of JSON, and never written")


def read_typed(path: Path, kind: type[T]) -> T | None:
    """Read a document as a record; None where it is missing, or not whole; a UserError where it is of another kind."""
    found = read_json(path)  # by json, as msgspec reads no infinity
    return None if found is None else as_typed(found, kind, path)


def as_typed(found: Any, kind: type[T], path: Path) -> T:
    """Read what a document at `path` holds as a record; a UserError where it is of another kind."""
    try:
        return msgspec.convert(found, prepared(kind))
    except (msgspec.ValidationError, RecursionError) as e:
        raise UserError(f"{path} was made by another version of genius-lite, which can read it: {e}") from None
