"""Reads ``study.model.params``: each model names the keys it knows; any other is refused with a hint."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from common.errors import ModelError
from common.study import ModelSpec


def check_keys(spec: ModelSpec, known: Sequence[str]) -> None:
    """Raises :class:`ModelError` for the first key of ``spec.params`` that is not in ``known``."""
    for key in spec.params:
        if key in known:
            continue
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if close:
            hint = f"did you mean {close[0]!r}?"
        else:
            hint = f"known here: {', '.join(known)}" if known else f"{spec.name} takes no params"
        raise ModelError(f"model.params.{key}: unknown key for {spec.name}; {hint}")


def integer(spec: ModelSpec, key: str, default: int, low: int, high: int) -> int:
    """The integer ``spec.params[key]`` in ``[low, high]``, or the default."""
    value = spec.params.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelError(f"model.params.{key}: must be an integer from {low} to {high}, got {value!r}")
    return value


def integers(
    spec: ModelSpec, key: str, default: tuple[int, ...], length: tuple[int, int], high: int
) -> tuple[int, ...]:
    """The list ``spec.params[key]`` of ``length[0]`` to ``length[1]`` integers in ``[1, high]``, or the default."""
    value = spec.params.get(key, default)
    if (
        not isinstance(value, tuple)
        or not length[0] <= len(value) <= length[1]
        or not all(1 <= item <= high for item in value)
    ):
        shown = list(value) if isinstance(value, tuple) else value
        raise ModelError(
            f"model.params.{key}: must be a list of {length[0]} to {length[1]} integers from 1 to {high}, got {shown!r}"
        )
    return value


def flag(spec: ModelSpec, key: str, default: bool) -> bool:
    """``spec.params[key]``, true or false, or the default."""
    value = spec.params.get(key, default)
    if not isinstance(value, bool):
        raise ModelError(f"model.params.{key}: must be true or false, got {value!r}")
    return value


def text(spec: ModelSpec, key: str, choices: Sequence[str]) -> str:
    """``spec.params[key]``, one of ``choices``, or the first of them."""
    value = spec.params.get(key, choices[0])
    if not isinstance(value, str) or value not in choices:
        raise ModelError(f"model.params.{key}: must be one of {', '.join(choices)}, got {value!r}")
    return value
