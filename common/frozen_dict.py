"""A dictionary that cannot change, so that a frozen study is frozen all the way down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

Value = TypeVar("Value")


class FrozenDict(dict[str, Value]):
    """``dict`` without its mutators: hashable, copyable, picklable; the order of its items counts.

    A subclass of ``dict`` rather than a ``MappingProxyType``, because workers receive studies by pickle
    and pydantic and json write dictionaries only.
    """

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a study cannot be changed; Study.derive makes a changed copy")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = pop = popitem = clear = setdefault = _refuse

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and list(self.items()) == list(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict[Value]:
        return self

    @classmethod
    def sorted(cls, items: Iterable[tuple[str, Value]]) -> FrozenDict[Value]:
        """Items in the order of their keys: for mappings whose order means nothing."""
        return cls(sorted(items))
