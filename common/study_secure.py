"""``federation.secure_aggregation:`` of a study: the coordinator learns a sum only; and what that excludes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from common.study_fields import Part

if TYPE_CHECKING:
    from common.study import Study

SUMMED = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that need the mean and nothing else."""
FEWEST = 3
_TWO_THIRDS = 2 / 3

Fraction = Annotated[float, Field(gt=0.5, le=1.0)]
Count = Annotated[int, Field(ge=2, le=1000)]


class SecureAggregationSpec(Part):
    """Pairwise masks with recovery (Bonawitz et al. 2017, CCS; of sparse graphs Bell et al. 2020, CCS).

    ``threshold``: without so many sites nothing is unmasked; a share of the roster, by default two thirds rounded up,
    or a number of sites. More than half of an attempt's sites are needed in any case. ``neighbours``: how many
    others each site shares masks with; left out, all of them. ``clip``: the most that one site's update may measure
    in L2, which sites see to: nobody else can.
    """

    threshold: Count | Fraction | None = None
    neighbours: Annotated[int, Field(ge=4, le=998, multiple_of=2)] | None = None
    clip: Annotated[float, Field(gt=0.0)] = 1000.0

    @field_validator("threshold", mode="before")
    @classmethod
    def _share_or_number(cls, value: Any) -> Any:
        if type(value) is int and value < 2:
            raise ValueError(
                f"{value} is neither a share nor a number of sites; write 1.0 for all of them, or 2 and more"
            )
        return value

    @model_validator(mode="after")
    def _shares_scale(self) -> Self:
        if self.neighbours is not None and isinstance(self.threshold, int):
            raise ValueError("with neighbours the threshold is a fraction: it holds among each site's neighbours too")
        return self

    def _fraction(self, of: int) -> int:
        share = self.threshold if isinstance(self.threshold, float) else _TWO_THIRDS
        return math.ceil(share * of - 1e-9)

    def needed(self, roster: int, present: int) -> int:
        """How many sites must stay to the end: of ``roster`` in the federation, ``present`` began the attempt."""
        wanted = self.threshold if isinstance(self.threshold, int) else self._fraction(roster)
        return max(wanted, present // 2 + 1)

    def sums(self, roster: int) -> range:
        """How many sites of ``roster`` an attempt may begin with; empty where there can be none."""
        return range(max(FEWEST, self.needed(roster, FEWEST)), roster + 1)

    def colluders(self, roster: int) -> int:
        """With how many of ``roster`` sites the coordinator may conspire and yet learn no other's update.

        However many it lets begin: of two lists of survivors with enough signatures each, one honest site has then
        signed both, which none does; and every sum holds at least two honest sites' updates. ``neighbours`` left aside.
        """
        found = ((self.needed(roster, present), present) for present in self.sums(roster))
        return max(0, min((min(2 * needed - present - 1, needed - 2) for needed, present in found), default=0))

    def shares_needed(self, holders: int, needed: int, present: int) -> int:
        """How many of the ``holders`` of a site's shares restore it; ``needed`` of ``present`` sites must stay."""
        if holders == present:
            return needed
        return max(self._fraction(holders), holders // 2 + 1)


def check_secure(study: Study) -> None:
    """Raises :class:`ValueError` for what cannot be had from a sum; names the remedy."""
    federation = study.federation
    if federation.secure_aggregation is None:
        return
    name = federation.strategy.name
    if name not in SUMMED:
        raise ValueError(
            f"federation.secure_aggregation: {name} looks at each site's update, and only their sum is there; use one "
            f"of {', '.join(SUMMED)}, or leave secure_aggregation out"
        )
    if federation.compression != "none":
        raise ValueError(
            "federation.secure_aggregation: masked numbers cannot be compressed; use federation.compression: none"
        )
    # a frozen model knows by itself (``common.models.frozen``)
    if study.model.norm == "batch" and not (study.model.frozen or study.norms_stay):
        raise ValueError(
            "federation.secure_aggregation: batch norm counts batches, which tells each site's size and is no sum; use "
            "model.norm: group, or personalisation: {method: fedbn}"
        )
