"""What the parts of a study are made of: their base, and types of single values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from common.frozen_dict import FrozenDict

Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Scalar = bool | int | float | str


class Part(BaseModel):
    """A part of a study: frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def label_text(value: Any) -> str:
    """One value of a label sheet's cell; whole numbers may stand unquoted."""
    if isinstance(value, bool) or value is None:
        word = {True: "true", False: "false", None: "null"}[value]
        raise ValueError(f"{word} is not text in YAML; put it in quotes: '{word}'")
    if isinstance(value, int):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"must be text; put {value!r} in quotes, as it stands in the label sheet")
    if not value or value != value.strip() or not value.isprintable() or "|" in value or len(value) > 100:
        raise ValueError(
            f"{value[:100]!r} cannot be a label; give 1 to 100 printable characters without '|' or outer spaces"
        )
    return value


def _one_or_many(value: Any) -> Any:
    """``pneumonia`` is short for ``[pneumonia]``."""
    if isinstance(value, str | int | float) or value is None:
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _parameter(value: Any) -> Any:
    """A model's or strategy's parameter; lists become tuples."""
    if isinstance(value, list | tuple):
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise ValueError("a list may hold whole numbers only")
        return tuple(value)
    if not isinstance(value, Scalar):
        raise ValueError("must be a number, a text, true, false or a list of whole numbers")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _by_key(value: Mapping[str, Any]) -> FrozenDict[Any]:
    return FrozenDict.sorted(value.items())


Label = Annotated[str, BeforeValidator(label_text), WithJsonSchema({"type": ["string", "integer"]})]
Labels = Annotated[
    tuple[Label, ...],
    BeforeValidator(_one_or_many),
    WithJsonSchema({"type": ["string", "integer", "array"], "items": {"type": ["string", "integer"]}}),
]
Parameter = Annotated[
    bool | int | float | str | tuple[int, ...],
    BeforeValidator(_parameter),
    WithJsonSchema({"type": ["boolean", "number", "string", "array"], "items": {"type": "integer"}}),
]
Parameters = Annotated[Mapping[str, Parameter], AfterValidator(_by_key)]
