"""The coordinator's side of SCAFFOLD: c, the mean of all sites' control variates (``common.variates``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ReplyRefused
from common.fixed_point import LIMIT, largest
from common.protocol import TrainReply, Variates
from common.study import TrainingSpec
from common.variates import change
from common.weights import Weights
from server.sums import FixedPointSum

VARIATE = "variate/"
"""Before the names of c's arrays in a checkpoint."""
_SLOWEST = 1e-4
"""Of the pace at the study's learning rate: no useful schedule is below it; a smaller one would blow a variate up."""


class MeanVariate:
    """c = Σ nᵢ·cᵢ / Σ nᵢ over the sites that have ever been counted, weighed as their weights are.

    Karimireddy et al. weigh sites alike, in both; with weights that differ from the model's the corrections would not
    cancel. Exact in any order of arrival, and when a reply is refused: sites are told which of their rounds is in c.
    """

    def __init__(self, template: Weights, training: TrainingSpec, *, sites: int) -> None:
        """``template``: what is trained, by name."""
        self._training, self._sites = training, sites
        self._mean: dict[str, NDArray[Any]] = {name: np.zeros_like(array) for name, array in template.items()}
        self.counted: dict[str, int] = {}
        self.examples: dict[str, int] = {}

    def sent(self) -> Variates:
        """What goes with a round's weights."""
        return Variates(self._mean, dict(self.counted)) if self.counted else Variates()

    def begin(self, round_: int, weights: Weights) -> None:
        self._round, self._weights = round_, weights
        self._sum, self._new = FixedPointSum(self._mean), dict(self.examples)
        self._pending: list[str] = []

    def judge(self, reply: TrainReply) -> Weights:
        """How a checked reply changes its site's variate. Raises :class:`ReplyRefused`; changes nothing."""
        if reply.pace is None:
            raise ReplyRefused("it does not say how far its steps add up, which scaffold needs; upgrade that site")
        most = self._training.optimiser.lr * self._steps(reply.examples)
        if not _SLOWEST * most <= reply.pace <= most * (1 + 1e-6):
            raise ReplyRefused(f"it says that its steps add up to {reply.pace:.3g}, where {most:.3g} is the most")
        with np.errstate(over="ignore", invalid="ignore"):
            moved = change(self._weights, reply.weights, reply.pace, self._mean)
        size = max((largest(array) for array in moved.values()), default=0.0)
        if not size * self._weight(reply) * self._sites < LIMIT:  # said this way, NaN is refused too
            raise ReplyRefused("its control variate is too large to add up; check the site's learning rate")
        return moved

    def add(self, reply: TrainReply, moved: Weights) -> None:
        """Count what :meth:`judge` gave."""
        self._sum.add(moved, self._weight(reply))
        self._new.setdefault(reply.site, reply.examples)
        self._pending.append(reply.site)

    def finish(self) -> None:
        """The next c."""
        if not self._pending:
            return
        before, now = sum(self.examples.values()), sum(self._new.values())
        added, moved = self._sum.examples, self._sum.mean()
        for name, mean in self._mean.items():
            total = mean.astype(np.float64) * before + moved[name].astype(np.float64) * added
            self._mean[name] = np.asarray(total / now, mean.dtype)
        self.examples = self._new
        self.counted |= dict.fromkeys(self._pending, self._round)

    def _weight(self, reply: TrainReply) -> int:
        """As when the site was first counted: a sum of changes is the sum of variates only at one weight."""
        return self._new.get(reply.site, reply.examples)

    def _steps(self, examples: int) -> int:
        if self._training.epochs is None:
            return self._training.local_steps or 0
        return self._training.epochs * math.ceil(examples / self._training.batch_size)

    def state(self) -> dict[str, NDArray[Any]]:
        """For a checkpoint, beside :meth:`facts`."""
        return {f"{VARIATE}{name}": array for name, array in self._mean.items()}

    def facts(self) -> dict[str, dict[str, int]]:
        return {"counted": dict(self.counted), "examples": dict(self.examples)}

    def restore(self, state: Mapping[str, NDArray[Any]], facts: Mapping[str, Mapping[str, int]]) -> None:
        self._mean = {name: state[f"{VARIATE}{name}"] for name in self._mean}
        self.counted, self.examples = dict(facts["counted"]), dict(facts["examples"])
