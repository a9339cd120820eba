"""What a site has of its own in a study with ``personalisation:``: norm layers, a model of its own, or a variate.

None of it leaves the site. It is kept by round (:class:`client.kept.Kept`), before the round's reply is, and erased
when the study ends. Simulated sites do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from torch import nn

from client.kept import Kept, Run
from client.site import Site
from client.steering import Correction, Pull, zeros
from client.training import FitSeed, LocalFit
from client.vault.prepared import PreparedView
from common.errors import RoundSpent
from common.personal import only, own_names, shared
from common.protocol import Task, TrainRequest
from common.variates import change
from common.weights import Weights, restore, state_of

PERSONAL = "personal.sqlite"


class Personal(Kept):
    """What each round left of a site's own."""

    table = "personal"
    what = "what this site had of its own"


@contextmanager
def opened(site: Site) -> Iterator[Personal]:
    """The site's file. Raises :class:`StoreError`."""
    with closing(Personal(site.memory(PERSONAL), site.vaults[0])) as kept:
        yield kept


def run_of(task: Task) -> Run:
    return (task.study.hash, task.arm, task.repeat)


@dataclass
class OwnPart:
    """A round of training at a site: what it begins with, what of it stays, and what is told."""

    request: TrainRequest
    site: Site
    model: nn.Module
    own: frozenset[str]
    correction: Correction | None = None
    _variate: Weights | None = None

    @classmethod
    def begin(cls, request: TrainRequest, site: Site, model: nn.Module, view: PreparedView) -> OwnPart:
        """Ready the model for the round's fit; Ditto's own model is trained first.

        Raises :class:`RoundSpent`, :class:`StoreError` as :class:`Kept` does.
        """
        personal = request.task.personal
        part = cls(request, site, model, own_names(model, personal))
        start = request.weights
        if personal is None:
            restore(model, start)
            return part
        if personal.method == "ditto":
            part._train_beside(view, personal.strength)
        elif personal.method == "scaffold":
            part._correct()
        elif personal.method == "fedbn":
            with opened(site) as kept:
                start = {**start, **kept.before(run_of(request.task), request.task.round)}
        restore(model, start)
        return part

    def _train_beside(self, view: PreparedView, strength: float) -> None:
        """Ditto: one fit of the site's own model, drawn to what came; at first it is what came."""
        task, model = self.request.task, self.model
        with opened(self.site) as kept:
            restore(model, kept.before(run_of(task), task.round) or self.request.weights)
            seed = FitSeed(task.study.seed, task.repeat, self.site.alias, task.round)
            pull = Pull(model, self.request.weights, strength)
            LocalFit(model, view, task.study, seed, task.basis, pull).run()
            kept.keep(run_of(task), task.round, state_of(model, copy=False))

    def _correct(self) -> None:
        """SCAFFOLD: the variate of the last round that the coordinator counted; at first zeros."""
        task, variates = self.request.task, self.request.variates
        all_sites = variates.all_sites or zeros(self.model)
        counted = variates.counted.get(self.site.alias, 0)
        with opened(self.site) as kept:
            own: Weights = kept.at(run_of(task), counted) if counted else zeros(self.model)
        if set(own) != set(all_sites):
            raise RoundSpent(
                f"the control variate of round {counted} of study {task.study.hash[:12]} is gone, and without it this "
                "site would bend everybody's training; the coordinator must start another run"
            )
        self._variate = own
        self.correction = Correction(self.model, all_sites, own)

    def end(self) -> Weights:
        """Keep what stays after the fit; the weights that are shared. They may share the model's memory."""
        task = self.request.task
        state = state_of(self.model, copy=False)
        if self.own:
            with opened(self.site) as kept:  # a few numbers a channel: kept of every round, for whichever is chosen
                kept.keep(run_of(task), task.round, only(state, self.own), oldest=0)
        if self.correction is not None and self._variate is not None:
            self._keep_variate(state)
        return shared(state, self.own)

    def _keep_variate(self, after: Weights) -> None:
        task, variates = self.request.task, self.request.variates
        assert self.correction is not None and self._variate is not None
        moved = change(self.request.weights, after, self.correction.pace, variates.all_sites or zeros(self.model))
        new = {name: self._variate[name] + moved[name] for name in moved}
        with opened(self.site) as kept:
            kept.keep(run_of(task), task.round, new, oldest=variates.counted.get(self.site.alias, 0))

    @property
    def pace(self) -> float | None:
        """What SCAFFOLD tells of a fit."""
        return None if self.correction is None else self.correction.pace
