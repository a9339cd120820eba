"""How well a model outlines, as ``results.json`` has it (``server.outlines``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.report.intervals import Interval, number_in


@dataclass(frozen=True)
class Share:
    """Lesions found of a group, or another share, with its interval; ``None`` where it is undefined or withheld."""

    interval: Interval
    count: int = 0
    withheld: int = 0
    """Hospitals that withheld it, of too few patients."""

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Share:
        return cls(Interval.parse(raw), int(raw.get("lesions") or 0), int(raw.get("withheld") or 0))


@dataclass(frozen=True)
class Outlined:
    """Of one model on everybody's test patients."""

    threshold: float
    empty: int
    """Images with nothing to outline."""
    outlined: int
    """Images with something to outline."""
    pixel_dice: float | None
    lesions: int
    clean: Share
    by_size: Mapping[str, Share]
    by_place: Mapping[str, Share]
    false_lesions: tuple[float, ...]
    lesions_found: tuple[float, ...]
    """The FROC curve, from high thresholds to low."""

    @classmethod
    def parse(cls, raw: Mapping[str, Any], threshold: Any) -> Outlined:
        """Raises :class:`ValueError`, :class:`TypeError` or :class:`KeyError` for what is none."""
        curve = raw["froc"]
        found = cls(
            threshold=float(threshold),
            empty=int(raw["images"]["empty"]),
            outlined=int(raw["images"]["outlined"]),
            pixel_dice=number_in(raw["pixels"]["dice"]),
            lesions=int(raw["lesions"]),
            clean=Share.parse(raw["clean"]),
            by_size={str(name): Share.parse(value) for name, value in raw["by_size"].items()},
            by_place={str(name): Share.parse(value) for name, value in raw["by_place"].items()},
            false_lesions=_axis(curve["false_lesions"]),
            lesions_found=_axis(curve["lesions_found"]),
        )
        if len(found.false_lesions) != len(found.lesions_found):
            raise ValueError("a FROC curve's axes differ in length")
        return found


def _axis(raw: Sequence[Any]) -> tuple[float, ...]:
    values = tuple(number_in(value) for value in raw)
    return tuple(value for value in values if value is not None)
