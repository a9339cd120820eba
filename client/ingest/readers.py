"""Two readers, or more: which label an image gets, and how well the readers agree.

A sheet with the columns ``reader_1`` and ``reader_2`` (and ``consensus``, if there is
one) needs no ``label``. Each reader's reading stays with the image as ``label:reader_1`` …,
so agreement can be computed later from what a vault holds, not only while importing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.labels import Labels
from common.metrics.paired.kappa import kappa_of

Weights = Literal["nominal", "linear", "quadratic"]
PREFIX = "label:"
"""Before a reader's column in an image's labels."""
_Z = 1.959963984540054  # the standard normal distribution's 97.5% quantile


@dataclass(frozen=True)
class Readers:
    """Whose readings a sheet holds, and what becomes of an image on which they differ."""

    columns: tuple[str, ...] = ("reader_1", "reader_2")
    consensus: str = "consensus"
    """Column of the final word; a sheet need not have it."""
    disagreement: Literal["refuse", "exclude"] = "refuse"
    """Without a consensus: the image is rejected, or kept without a label."""

    def __post_init__(self) -> None:
        if len(self.columns) < 2 or len({*self.columns, self.consensus}) <= len(self.columns):
            raise DataError("readers: name two columns or more, each once, and another one for their consensus")


def settle(readings: Sequence[tuple[str, ...]], consensus: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The label of an image: the consensus, else what all who read it say; ``None`` where they differ.

    An empty reading is none. A single reading stands; without any there is no label: ``()``.
    Several values in one reading have no order: ``a|b`` agrees with ``b|a``.
    """
    if consensus:
        return consensus
    given = [reading for reading in readings if reading]
    if not given:
        return ()
    return given[0] if len({frozenset(reading) for reading in given}) == 1 else None


@dataclass(frozen=True)
class Agreement:
    """How two readers agree over the images that both read. Every field can be put into JSON."""

    readers: tuple[str, str]
    weights: Weights
    images: int
    """Read by both; the figures are about these."""
    agreed: int
    classes: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]
    """Images by the first reader's class (row) and the second's (column)."""
    agreement: float | None
    """Share of ``images`` on which they agree, 0 to 1."""
    kappa: float | None
    standard_error: float | None
    low: float | None
    """95% confidence interval of ``kappa``: normal approximation, cut at ±1; too narrow for few images."""
    high: float | None
    reason: str = ""
    """Why there is no ``kappa``; else empty."""


def agreement(
    pairs: Iterable[tuple[str, str]],
    *,
    readers: tuple[str, str] = ("reader_1", "reader_2"),
    weights: Weights = "nominal",
) -> Agreement:
    """Cohen's κ of two readers, one pair of classes an image; an image with an empty class is left out.

    As :func:`common.metrics.paired.kappa_of`, which takes images for independent; weighted by the distance of whole
    numbers. Raises :class:`DataError` where ``weights`` need whole numbers and a class is none.
    """
    counts = Counter((one, two) for one, two in pairs if one and two)
    classes, positions = _ordered({name for pair in counts for name in pair}, weights)
    place = {name: index for index, name in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)))
    for (one, two), count in counts.items():
        table[place[one], place[two]] = count
    images, agreed = int(table.sum()), int(np.trace(table))
    kappa = error = low = high = None
    reason = ""
    if not images:
        reason = "no image was read by both"
    elif len(classes) == 1:
        reason = "both readers name one and the same class throughout: chance alone would agree as well"
    else:
        found = kappa_of(table, _weights(positions, weights))
        assert found is not None  # two classes: chance alone does not explain all
        kappa, error = found.value, found.standard_error
        low, high = max(-1.0, kappa - _Z * error), min(1.0, kappa + _Z * error)
    return Agreement(
        readers,
        weights,
        images,
        agreed,
        classes,
        tuple(tuple(int(count) for count in row) for row in table),
        agreed / images if images else None,
        kappa,
        error,
        low,
        high,
        reason,
    )


def agreements(labels: Iterable[Labels], *, weights: Weights = "nominal") -> tuple[Agreement, ...]:
    """One :class:`Agreement` a pair of readers, from the ``label:…`` columns of images, e.g. a vault's rows.

    A reading of several values is a class of its own, whatever their order.
    """
    rows = [{name: "|".join(sorted(cell)) for name, cell in row.items() if name.startswith(PREFIX)} for row in labels]
    names = sorted({name for row in rows for name in row})
    return tuple(
        agreement(
            ((row.get(one, ""), row.get(two, "")) for row in rows),
            readers=(one.removeprefix(PREFIX), two.removeprefix(PREFIX)),
            weights=weights,
        )
        for one, two in itertools.combinations(names, 2)
    )


def _ordered(names: set[str], weights: Weights) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Classes in order, and where each lies on the scale that weights measure."""
    if weights == "nominal":
        return tuple(sorted(names)), np.arange(len(names), dtype=np.float64)
    try:
        classes = tuple(sorted(names, key=lambda name: (int(name), name)))
        return classes, np.array([int(name) for name in classes], dtype=np.float64)
    except ValueError:
        raise DataError(
            f"{weights} weights need whole numbers as classes; use nominal, or grades such as 1, 2, 3"
        ) from (None)


def _weights(positions: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    """``(K, K)``: 1 on the diagonal, down to 0 for the classes farthest apart."""
    apart = np.abs(positions[:, None] - positions[None, :])
    if weights == "nominal":
        return np.eye(len(positions))
    power = 1 if weights == "linear" else 2
    return np.asarray(1.0 - (apart / apart.max()) ** power)
