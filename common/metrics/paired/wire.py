"""What travels in a comparison's two passes; each adds up over sites, and names its parts in one message."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics.layout import Arrays, Ints, Layout, integers
from common.metrics.paired.areas import Areas
from common.metrics.paired.joint import Joint
from common.metrics.paired.spread import Spread
from common.metrics.passes import FirstPass
from common.metrics.reference import Reference
from common.study import Study

Out = dict[str, NDArray[np.generic]]
_JOINT, _SECOND, _SPREAD, _AREAS, _READERS = "joint", "second", "spread", "areas", "readers"


@dataclass(frozen=True, eq=False)
class Given:
    """Thresholds of the model, and of a second one: positions ``(Q,)`` of bins, of multiclass none."""

    thresholds: tuple[Ints, ...]

    def to_arrays(self) -> Out:
        return {f"threshold.{number}": position for number, position in enumerate(self.thresholds)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout, count: int) -> Given:
        """Raises :class:`ProtocolError` unless there are ``count``."""
        shape = (0 if layout.task == "multiclass" else layout.classes,)
        names = [f"threshold.{number}" for number in range(count)]
        if set(arrays) != set(names):
            raise ProtocolError("a comparison has other thresholds than expected; both sides need the same version")
        return cls(tuple(integers(arrays, name, shape, layout.bins).copy() for name in names))


@dataclass(frozen=True, eq=False)
class ModelTables:
    """First pass of two models: their joint table, and the second's own counts."""

    joint: Joint
    second: FirstPass

    @classmethod
    def zero(cls, study: Study) -> Self:
        return cls(Joint.zero(Layout.of(study)), FirstPass.zero(study))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.joint + other.joint, self.second + other.second)

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it."""
        return self.second.load

    def to_arrays(self) -> Out:
        return _joined({_JOINT: self.joint.to_arrays(), _SECOND: self.second.to_arrays()})

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> Self:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        parts = _parted(arrays, (_JOINT, _SECOND))
        return cls(Joint.from_arrays(parts[_JOINT], Layout.of(study)), FirstPass.from_arrays(parts[_SECOND], study))


@dataclass(frozen=True, eq=False)
class ModelReference:
    """What goes back out before the second pass: all sites' joint table, and the second model's reference."""

    joint: Joint
    second: Reference

    def to_arrays(self) -> Out:
        return _joined({_JOINT: self.joint.to_arrays(), _SECOND: self.second.to_arrays()})

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> ModelReference:
        """Raises :class:`ProtocolError` for anything that no honest coordinator could send."""
        parts = _parted(arrays, (_JOINT, _SECOND))
        return cls(Joint.from_arrays(parts[_JOINT], layout), Reference.from_arrays(parts[_SECOND], layout))


@dataclass(frozen=True, eq=False)
class ModelSpreads:
    """Second pass of two models."""

    spread: Spread
    areas: Areas

    @classmethod
    def zero(cls, study: Study) -> Self:
        return cls(Spread.zero(Layout.of(study)), Areas.zero(Layout.of(study)))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.spread + other.spread, self.areas + other.areas)

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it."""
        return max(self.spread.load, self.areas.load)

    def to_arrays(self) -> Out:
        return _joined({_SPREAD: self.spread.to_arrays(), _AREAS: self.areas.to_arrays()})

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> Self:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        parts, layout = _parted(arrays, (_SPREAD, _AREAS)), Layout.of(study)
        return cls(Spread.from_arrays(parts[_SPREAD], layout), Areas.from_arrays(parts[_AREAS], layout))


def pairs(readers: Sequence[str]) -> list[tuple[int, int]]:
    """Who is held against whom: the model (0) against each reader (1 …), then every two readers."""
    return list(itertools.combinations(range(len(readers) + 1), 2))


@dataclass(frozen=True, eq=False)
class ReaderTables:
    """First pass, and what goes back out, of a model and readers: a joint table for each of :func:`pairs`."""

    joints: tuple[Joint, ...]

    @classmethod
    def zero(cls, study: Study) -> Self:
        return cls(tuple(Joint.zero(Layout.of(study)) for _ in pairs(study.evaluation.readers)))

    def __add__(self, other: Self) -> Self:
        return type(self)(tuple(one + more for one, more in zip(self.joints, other.joints, strict=True)))

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it."""
        return 0.0

    def to_arrays(self) -> Out:
        return _joined({f"{_READERS}{number}": joint.to_arrays() for number, joint in enumerate(self.joints)})

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> Self:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        return cls(tuple(Joint.from_arrays(part, Layout.of(study)) for part in _of_readers(arrays, study)))


@dataclass(frozen=True, eq=False)
class ReaderSpreads:
    """Second pass of a model and readers."""

    spreads: tuple[Spread, ...]

    @classmethod
    def zero(cls, study: Study) -> Self:
        return cls(tuple(Spread.zero(Layout.of(study)) for _ in pairs(study.evaluation.readers)))

    def __add__(self, other: Self) -> Self:
        return type(self)(tuple(one + more for one, more in zip(self.spreads, other.spreads, strict=True)))

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it."""
        return max((spread.load for spread in self.spreads), default=0.0)

    def to_arrays(self) -> Out:
        return _joined({f"{_READERS}{number}": spread.to_arrays() for number, spread in enumerate(self.spreads)})

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> Self:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        return cls(tuple(Spread.from_arrays(part, Layout.of(study)) for part in _of_readers(arrays, study)))


def compares_models(arrays: Arrays) -> bool:
    """Whether statistics that leave a site are of two models together."""
    return any(key.startswith((f"{_JOINT}.", f"{_SPREAD}.")) for key in arrays)


def compares_readers(arrays: Arrays) -> bool:
    """Whether statistics that leave a site are of its readers."""
    return any(key.startswith(_READERS) for key in arrays)


def _of_readers(arrays: Arrays, study: Study) -> list[Arrays]:
    names = tuple(f"{_READERS}{number}" for number in range(len(pairs(study.evaluation.readers))))
    return list(_parted(arrays, names).values())


def _joined(parts: Mapping[str, Out]) -> Out:
    """``{"areas": {"squares": …}}`` as ``{"areas.squares": …}``."""
    return {f"{name}.{key}": array for name, arrays in parts.items() for key, array in arrays.items()}


def _parted(arrays: Arrays, names: tuple[str, ...]) -> dict[str, Arrays]:
    """The arrays of each of ``names``. Raises :class:`ProtocolError` where another is there."""
    found: dict[str, dict[str, NDArray[np.generic]]] = {name: {} for name in names}
    for key, array in arrays.items():
        name, _, rest = key.partition(".")
        if name not in found:
            raise ProtocolError("a comparison has other parts than expected; both sides need the same version")
        found[name][rest] = array
    return dict(found)
