"""Pydantic's findings as one line a person can act on: key, what is wrong, remedy."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

MAX_FINDINGS = 5
MAX_SHOWN = 60
_REMEDIES = {
    "string_type": "; put it in quotes",
    "bool_type": "; write true or false",
    "int_type": "; write a whole number, without quotes",
    "float_type": "; write a number, without quotes",
    "model_type": "; indent its keys below it",
}


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """All findings of ``error`` on ``model`` as ``key: what is wrong; remedy``, the first five written out."""
    lines = list(dict.fromkeys(_line(model, finding) for finding in error.errors(include_url=False)))
    rest = len(lines) - MAX_FINDINGS
    return "; ".join([*lines[:MAX_FINDINGS], *([f"and {rest} more of this kind"] if rest > 0 else [])])


def _line(model: type[BaseModel], finding: Any) -> str:
    steps, kind = finding["loc"], finding["type"]
    place = ".".join(str(step)[:MAX_SHOWN] for step in steps)
    if kind == "extra_forbidden":
        return f"{place}: unknown key; {_hint(str(steps[-1]), _fields_at(model, steps[:-1]), 'known here')}"
    if kind == "missing":
        return f"{place}: missing; add it"
    if kind == "literal_error":
        choices = [choice.strip("' ") for choice in finding["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return (
            f"{place}: {_shown(finding['input'])} is not known here; {_hint(str(finding['input']), choices, 'one of')}"
        )
    if kind == "value_error":
        message = finding["msg"].removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    message = re.sub(r"^\w+ should ", "must ", finding["msg"])
    return f"{place}: {message}, got {_shown(finding['input'])}{_REMEDIES.get(kind, '')}"


def _hint(word: str, choices: Sequence[str], otherwise: str) -> str:
    close = difflib.get_close_matches(word[:MAX_SHOWN], choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise}: {', '.join(choices)}"


def _shown(value: Any) -> str:
    """A value as it stands in YAML, shortened."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _fields_at(model: type[BaseModel], steps: Sequence[int | str]) -> list[str]:
    part = model
    for step in steps:
        field = part.model_fields.get(str(step))
        options = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        part = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), part)
    return list(part.model_fields)
