"""What both sides must agree on before counts can be added, and how arrays from outside are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ModelError, ProtocolError
from common.study import Study

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
Task = Literal["binary", "multiclass", "multilabel"]

MOST_IMAGES = (1 << 31) - 1
"""No message may claim more images than this: sums over a million sites still fit int64."""

_TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel")


@dataclass(frozen=True)
class Layout:
    """Task, number of score columns ``C`` (binary: one, of the positive class) and of bins on [0, 1]."""

    task: Task
    classes: int
    bins: int

    def __post_init__(self) -> None:
        if self.task not in _TASKS:
            raise ValueError(f"layout.task must be one of {', '.join(_TASKS)}, got {self.task!r}")
        least = {"binary": (1, 1), "multiclass": (2, 1 << 16), "multilabel": (1, 1 << 16)}[self.task]
        if not least[0] <= self.classes <= least[1]:
            raise ValueError(f"layout.classes must be {least[0]} to {least[1]} for {self.task}, got {self.classes}")
        if not 2 <= self.bins <= 1 << 20:
            raise ValueError(f"layout.bins must be 2 to {1 << 20}, got {self.bins}")

    @classmethod
    def of(cls, study: Study) -> Layout:
        """The layout of a study. Of a segmentation study: whether an image has anything to outline, yes or no."""
        task: Task = "binary" if study.task == "segmentation" else study.task
        return cls(task, study.outputs, study.evaluation.bins)

    def code(self) -> Ints:
        """``(3,)`` int64, sent along so that a mismatch is seen rather than added up."""
        return np.array([_TASKS.index(self.task), self.classes, self.bins], dtype=np.int64)

    def positions(self, scores: NDArray[Any]) -> Ints:
        """Bin ``floor(score × bins)`` of each score; 1.0 falls into the last bin.

        Raises :class:`ModelError` where a score is no probability (the model has diverged).
        """
        if scores.size and not (scores.min() >= 0.0 and scores.max() <= 1.0 + 1e-6):  # also catches NaN
            raise ModelError("the model's scores are not probabilities in [0, 1]; it diverged: lower the learning rate")
        scaled: Ints = (scores.astype(np.float64) * self.bins).astype(np.int64)
        return np.minimum(scaled, self.bins - 1)


@dataclass(frozen=True)
class Scored:
    """One site's scored images, checked: what both passes start from."""

    scores: NDArray[Any]
    """``(N, C)`` probabilities."""
    position: Ints
    """``(N, C)`` bin of each score."""
    known: NDArray[np.bool_]
    """``(N, C)`` entries with a label; for binary and multiclass whole rows."""
    positive: NDArray[np.bool_]
    """``(N, C)`` known and 1."""
    patient: Ints
    """``(N,)`` numbers 0 … patients - 1."""

    @classmethod
    def of(cls, scores: NDArray[Any], targets: NDArray[Any], patients: NDArray[Any], layout: Layout) -> Scored:
        """Raises :class:`DataError` where shapes or targets do not fit ``layout``, or a patient has no name."""
        count = len(scores)
        if scores.shape != (count, layout.classes) or targets.shape != scores.shape or patients.shape != (count,):
            raise DataError(
                f"scores {scores.shape}, targets {targets.shape} and patients {patients.shape} must be "
                f"(N, {layout.classes}), (N, {layout.classes}) and (N,) for task {layout.task}"
            )
        known = ~np.isnan(targets)
        if layout.task != "multilabel" and layout.classes > 1:
            known &= known.all(axis=1, keepdims=True)
        positive = targets == 1.0
        if not (positive | (targets == 0.0) | ~known).all():
            raise DataError("targets must be 0, 1 or NaN (masked)")
        positive &= known
        if layout.task == "multiclass" and not (positive.sum(axis=1) == known[:, 0]).all():
            raise DataError("a multiclass target must have exactly one class; use task: multilabel for several")
        patient = np.unique(patients, return_inverse=True)[1].reshape(count).astype(np.int64)
        return cls(scores, layout.positions(scores), known, positive, patient)

    @property
    def patients(self) -> int:
        return int(self.patient.max()) + 1 if len(self.patient) else 0


def divide(above: Floats, below: Floats) -> Floats:
    """Element by element; NaN where ``below`` is 0."""
    result = np.full(below.shape, np.nan)
    np.divide(above, below, out=result, where=below > 0)
    return result


def expect(arrays: Arrays, keys: set[str]) -> None:
    """Raises :class:`ProtocolError` unless ``arrays`` has exactly these ``keys``."""
    if set(arrays) != keys:
        raise ProtocolError("a statistics message has other fields than expected; both sides need the same version")


def integers(arrays: Arrays, key: str, shape: tuple[int, ...] | None, most: int = MOST_IMAGES) -> Ints:
    """Field ``key``: int64 in 0 … ``most`` of ``shape`` (None: one axis, any length), or :class:`ProtocolError`."""
    value = _field(arrays, key, np.dtype(np.int64), shape)
    if value.size and (value.min() < 0 or value.max() > most):
        raise ProtocolError(f"statistics field {key!r} holds numbers outside 0 to {most}")
    return value


def reals(arrays: Arrays, key: str, shape: tuple[int, ...]) -> Floats:
    """Field ``key``: finite, non-negative float64 of ``shape``, or :class:`ProtocolError`."""
    value = _field(arrays, key, np.dtype(np.float64), shape)
    if not (np.isfinite(value) & (value >= 0.0)).all():
        raise ProtocolError(f"statistics field {key!r} holds numbers that are not finite and non-negative")
    return value


def _field(arrays: Arrays, key: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None) -> NDArray[Any]:
    value = arrays[key]
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        raise ProtocolError(f"statistics field {key!r} is not an array of {dtype}")
    if value.ndim != 1 if shape is None else value.shape != shape:
        raise ProtocolError(f"statistics field {key!r} has shape {value.shape}, expected {shape or 'one axis'}")
    return value
