"""Sites' statistics added up, and who it was where that cannot be.

Each site's numbers are held to their range as they arrive; that all of them together stay in theirs is seen only in the
sum. Where they do not, somebody's are more than its share of what any patients could make them, and is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self, TypeVar

from common.errors import ProtocolError, QuorumError


class Summand(Protocol):
    @property
    def load(self) -> float:
        """The greatest part that one of its numbers is of what that number may be over all sites; 0 for small ones."""
        ...

    def __add__(self, other: Self) -> Self: ...


S = TypeVar("S", bound=Summand)
TOO_LARGE = "refused: its sums are greater than its patients could make them"


def added(parts: Mapping[str, S], zero: S) -> tuple[S, list[str]]:
    """All of ``parts`` (by site, added in the order of their names) but those of the sites that are named.

    Of n numbers that exceed a limit together one exceeds its n-th part: where a sum does, those are left out.
    """
    taken, refused = dict(parts), list[str]()
    while True:
        try:
            return sum((taken[site] for site in sorted(taken)), zero), sorted(refused)
        except ProtocolError:
            large = [site for site, part in taken.items() if part.load * len(taken) > 1.0]
            if not large:
                raise
            refused += large
            for site in large:
                del taken[site]


def added_of_all(parts: Mapping[str, S], zero: S) -> S:
    """All of ``parts``, of a test. Raises :class:`QuorumError` naming whose numbers cannot be."""
    total, refused = added(parts, zero)
    if refused:
        raise QuorumError(f"{', '.join(refused)} did not test the model ({TOO_LARGE}); mend it and --resume")
    return total
