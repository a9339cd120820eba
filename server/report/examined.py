"""Groups, mistakes and conditions as ``results.json`` has them (``server.examined``, ``server.mistakes``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.report.intervals import Interval, number_in


@dataclass(frozen=True)
class Apart:
    """How far a group's metric is from that of all others."""

    span: Interval
    adjusted: float | None
    """p-value after correction; ``None``: too few patients to test."""
    stands: bool


@dataclass(frozen=True)
class Group:
    """One value of an attribute."""

    value: str
    images: int
    patients: int
    withheld: bool
    """Whether a hospital left out one class of it: too few patients."""
    metrics: Mapping[str, Interval]
    expected_error: float | None
    differences: Mapping[str, Apart]


@dataclass(frozen=True)
class Subgroups:
    """Everything that was counted by attributes."""

    by: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)
    suppressed: Mapping[str, int] = field(default_factory=dict)
    """Attribute -> hospitals that withheld whole groups."""
    comparisons: int = 0
    level: float = 0.05
    tested_from: int = 0

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Subgroups:
        """Raises :class:`ValueError`, :class:`TypeError` or :class:`KeyError` for what is none."""
        by = raw["by"]
        return cls(
            {str(name): tuple(_group(one) for one in found["values"]) for name, found in by.items()},
            {str(name): int(found["suppressed"]) for name, found in by.items()},
            int(raw["comparisons"]),
            float(raw["level"]),
            int(raw["tested_from"]),
        )


@dataclass(frozen=True)
class Mistakes:
    """What went wrong among the images of one class or group."""

    value: str
    images: int
    negatives: int
    positives: int
    misses: tuple[int, int]
    """Least and most."""
    alarms: tuple[int, int]
    withheld: tuple[bool, bool]
    """Whether a hospital left out its negatives, its positives: too few patients."""
    sure_misses: int | None
    sure_alarms: int | None
    missed: Interval
    false_alarms: Interval
    wrong: Interval


@dataclass(frozen=True)
class AllMistakes:
    classes: tuple[Mistakes, ...]
    by: Mapping[str, tuple[Mistakes, ...]]
    sure: float

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> AllMistakes:
        """Raises as :meth:`Subgroups.parse`."""
        return cls(
            tuple(_mistakes(one) for one in raw["classes"]),
            {str(name): tuple(_mistakes(one) for one in rows) for name, rows in raw["by"].items()},
            float(raw["sure"]),
        )


@dataclass(frozen=True)
class Level:
    """One condition at one level."""

    level: int
    setting: str
    metrics: Mapping[str, Interval]


def parse_robustness(raw: Mapping[str, Any]) -> dict[str, tuple[Level, ...]]:
    """Condition -> its levels in their order. Raises as :meth:`Subgroups.parse`."""
    return {
        str(name): tuple(
            Level(int(one["level"]), str(one["setting"]), _spans(one["test"]))
            for one in sorted(levels, key=lambda one: int(one["level"]))
        )
        for name, levels in raw.items()
    }


def _group(raw: Mapping[str, Any]) -> Group:
    return Group(
        value=str(raw["value"]),
        images=int(raw["images"]),
        patients=int(raw["patients"]),
        withheld=bool(raw["withheld"]),
        metrics=_spans(raw["metrics"]),
        expected_error=number_in(raw.get("expected_error")),
        differences={
            str(metric): Apart(
                Interval.parse_given(cell), number_in(cell.get("adjusted")), bool(cell.get("stands", False))
            )
            for metric, cell in raw["differences"].items()
        },
    )


def _mistakes(raw: Mapping[str, Any]) -> Mistakes:
    return Mistakes(
        value=str(raw["value"]),
        images=int(raw["images"]),
        negatives=int(raw["negatives"]),
        positives=int(raw["positives"]),
        misses=_pair(raw["misses"]),
        alarms=_pair(raw["alarms"]),
        withheld=(bool(raw["withheld"][0]), bool(raw["withheld"][1])),
        sure_misses=None if raw.get("sure_misses") is None else int(raw["sure_misses"]),
        sure_alarms=None if raw.get("sure_alarms") is None else int(raw["sure_alarms"]),
        missed=Interval.parse_given(raw.get("missed")),
        false_alarms=Interval.parse_given(raw.get("false_alarms")),
        wrong=Interval.parse_given(raw.get("wrong")),
    )


def _spans(raw: Mapping[str, Any]) -> dict[str, Interval]:
    return {str(metric): Interval.parse_given(value) for metric, value in raw.items()}


def _pair(raw: Sequence[Any]) -> tuple[int, int]:
    least, most = (int(value) for value in raw)
    return least, most
