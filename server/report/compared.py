"""Two deciders compared, as ``results.json`` has it (``server.comparisons``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.report.intervals import Interval, number_in


@dataclass(frozen=True)
class Counted:
    """Images that only the first, and only the second, had right, and the p-values made of them."""

    first_only: int
    second_only: int
    exact: float | None
    mid_p: float | None
    asymptotic: float | None
    clustered: float | None


@dataclass(frozen=True)
class Contrasted:
    """One metric of the first less that of the second."""

    difference: Interval
    first: Interval
    second: Interval
    test: str
    p: float | None
    p_holm: float | None
    p_false_discovery: float | None
    family: int
    """P-values that were corrected together."""
    counted: Counted | None
    p_bounds: tuple[float, float] | None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Contrasted:
        table, bounds = raw.get("mcnemar"), raw.get("p_bounds")
        return cls(
            difference=Interval.parse(raw),
            first=Interval.parse(raw["first"]),
            second=Interval.parse(raw["second"]),
            test=str(raw["test"]),
            p=_share(raw.get("p")),
            p_holm=_share(raw.get("p_holm")),
            p_false_discovery=_share(raw.get("p_false_discovery")),
            family=int(raw.get("family") or 0),
            counted=None if table is None else _counted(table),
            p_bounds=None if bounds is None else (_share(bounds[0]) or 0.0, _share(bounds[1]) or 0.0),
        )


@dataclass(frozen=True)
class Compared:
    """``per_class`` is empty where there is one class; ``agreement`` has Cohen's kappa by question."""

    a: str
    b: str
    on: str
    """Whose test patients: ``all`` or a site's."""
    images: int
    patients: int
    clustered: bool
    withheld: int
    overall: Mapping[str, Contrasted]
    per_class: Mapping[str, Mapping[str, Contrasted]]
    agreement: Mapping[str, Interval]
    observed: Mapping[str, float | None]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Compared:
        """Raises :class:`ValueError`, :class:`TypeError` or :class:`KeyError` for what is none."""
        agreement = {str(name): value for name, value in raw["agreement"].items()}
        return cls(
            str(raw["a"]),
            str(raw["b"]),
            str(raw["on"]),
            int(raw["images"]),
            int(raw["patients"]),
            bool(raw["clustered"]),
            int(raw["withheld"]),
            _contrasts(raw["overall"]),
            {str(name): _contrasts(value) for name, value in raw["per_class"].items()},
            {name: Interval.parse(value) for name, value in agreement.items()},
            {name: number_in(value.get("observed")) for name, value in agreement.items()},
        )


@dataclass(frozen=True)
class Readers:
    """Model and readers on the same images; no comparison where no vault holds readers' labels."""

    columns: tuple[str, ...]
    comparisons: tuple[Compared, ...]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Readers:
        """Raises as :meth:`Compared.parse`."""
        return cls(tuple(map(str, raw["columns"])), tuple(Compared.parse(item) for item in raw["comparisons"]))


def _contrasts(raw: Mapping[str, Any]) -> dict[str, Contrasted]:
    return {str(metric): Contrasted.parse(value) for metric, value in raw.items()}


def _counted(raw: Mapping[str, Any]) -> Counted:
    p = (_share(raw.get(key)) for key in ("exact", "mid_p", "asymptotic", "clustered"))
    return Counted(int(raw["first_only"]), int(raw["second_only"]), *p)


def _share(raw: Any) -> float | None:
    value = number_in(raw)
    if value is not None and not 0.0 <= value <= 1.0:
        raise ValueError(f"{value} stands where a p-value belongs")
    return value
