"""Calibration of a model as ``results.json`` has it (``common.calibration``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Errors:
    brier: float
    log_loss: float
    expected: float

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Errors:
        return cls(*_numbers([raw["brier"], raw["log_loss"], raw["expected_error"]]))


@dataclass(frozen=True)
class Calibrated:
    """Of one class: errors, groups of images by score, and net benefit by threshold."""

    errors: Errors
    images: tuple[int, ...]
    score: tuple[float, ...]
    observed: tuple[float, ...]
    threshold: tuple[float, ...]
    benefit: tuple[float, ...]
    always: tuple[float, ...]
    temperature: float | None
    scaled: Errors | None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Calibrated:
        """Raises :class:`ValueError`, :class:`TypeError` or :class:`KeyError` for what is none."""
        groups, benefit, scaled = raw["groups"], raw["benefit"], raw.get("scaled")
        found = cls(
            Errors.parse(raw),
            tuple(int(n) for n in groups["images"]),
            _numbers(groups["score"]),
            _numbers(groups["observed"]),
            _numbers(benefit["threshold"]),
            _numbers(benefit["model"]),
            _numbers(benefit["always"]),
            None if scaled is None else _numbers([scaled["temperature"]])[0],
            None if scaled is None else Errors.parse(scaled),
        )
        if not len(found.images) == len(found.score) == len(found.observed):
            raise ValueError("a calibration's groups differ in length")
        if not len(found.threshold) == len(found.benefit) == len(found.always):
            raise ValueError("a net benefit's axes differ in length")
        return found


def _numbers(raw: Sequence[Any]) -> tuple[float, ...]:
    values = tuple(float(value) for value in raw)
    if not all(map(math.isfinite, values)):
        raise ValueError("a calibration holds what is no number")
    return values
