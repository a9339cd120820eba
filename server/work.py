"""What an arm works on: its study, its sites, and where it keeps what it reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import protocol
from common.basis import Basis
from common.study import Study


@dataclass(frozen=True)
class Work:
    """One arm of one repeat: which sites (alias -> Flower node id) train this study together.

    ``base`` is the directory that the study's ``model.weights`` path is relative to.
    """

    study: Study
    arm: str
    repeat: int
    sites: Mapping[str, int]
    deadline_s: float = 0.0
    checkpoint: Path | None = None
    base: Path = Path()
    basis: Basis | None = None
    """What the study takes from its survey (``server.survey``)."""
    resends: bool = True
    """Whether a site asked again for a round gives the reply it has kept; simulated sites train again."""

    @property
    def key(self) -> dict[str, Any]:
        return {"study": self.study.hash, "arm": self.arm, "repeat": self.repeat, "sites": sorted(self.sites)}

    @property
    def named(self) -> dict[str, Any]:
        """How its event lines begin."""
        return {"arm": self.arm, "repeat": self.repeat}

    @property
    def central(self) -> bool:
        """Whether the sites' mean gets noise: not where one hospital trains alone, or all images are pooled."""
        return self.study.central_privacy is not None and self.arm == "federated"

    def task(self, round_: int) -> protocol.Task:
        return protocol.Task(self.study, self.arm, self.repeat, round_, basis=self.basis)

    def own_round(self, round_: int) -> int | None:
        """Of an evaluation of the arm's model after ``round_``: under FedBN each site's has its own norm layers."""
        personal = self.task(0).personal
        return round_ if personal is not None and personal.split else None

    @property
    def answer_s(self) -> float:
        """How long a request of its rounds is waited for, in seconds."""
        return self.deadline_s or self.study.federation.deadline_s

    @property
    def quorum(self) -> int:
        return quorum_of(self.study, len(self.sites))


def quorum_of(study: Study, sites: int) -> int:
    """How many of ``sites`` must answer."""
    return max(1, math.ceil(study.federation.quorum * sites - 1e-9))
