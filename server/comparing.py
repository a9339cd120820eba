"""What a study has its kept model compared with, over the sites: second models and readers, from sums.

Each comparison takes two passes, like the test itself, and its second model a threshold of its own from validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from common import protocol
from common.metrics import FirstPass, Reference, Thresholds, choose_threshold
from common.metrics.paired import Comparison, Models, compare
from common.metrics.paired.wire import (
    Given,
    ModelReference,
    ModelSpreads,
    ModelTables,
    ReaderSpreads,
    ReaderTables,
    pairs,
)
from common.models import build_initial
from common.randomness import seed_for
from common.study import Study
from common.weights import Weights, digest, state_of
from server.adding import added_of_all
from server.asking import Link
from server.checkpoints import save_progress
from server.comparisons import Row, comparison_json, correct
from server.results import Trained
from server.testing import Tested, gather

MODEL = "model"
"""Who stands beside readers."""
_CHOSEN = "compared_at"
"""In a run's facts: second models' thresholds, by the names that studies give them."""


class _Sum(Protocol):
    @classmethod
    def zero(cls, study: Study) -> Self: ...

    @classmethod
    def from_arrays(cls, arrays: protocol.Statistics, study: Study) -> Self: ...

    @property
    def load(self) -> float: ...

    def __add__(self, other: Self) -> Self: ...


S = TypeVar("S", bound=_Sum)


@dataclass
class Found:
    """What was compared, as rows of ``results.json``."""

    models: list[Row] = field(default_factory=list)
    readers: list[Row] = field(default_factory=list)
    bytes: int = 0

    def json(self, study: Study) -> dict[str, Any]:
        """Nothing of what the study does not ask for."""
        columns = study.evaluation.readers
        found: dict[str, Any] = {"comparisons": self.models} if study.evaluation.compare else {}
        return found | ({"readers": {"columns": list(columns), "comparisons": self.readers}} if columns else {})


def compare_as_asked(link: Link, arm: Trained, tested: Tested, sites: Mapping[str, int]) -> Found:
    """All that the study asks for, on the patients whom ``arm`` was ``tested`` on.

    Raises :class:`QuorumError` where a site does not answer, :class:`~server.testing.SiteGone` where it never will.
    """
    study = arm.work.study
    found, asking = Found(), _Asking(link, arm, tested, sites)
    for name in study.evaluation.compare:
        other = _second(arm, name)
        if other is not None:
            found.models.append(comparison_json(asking.model(name, other), (arm.name, name), "all", study))
    if study.evaluation.readers:
        names = (MODEL, *study.evaluation.readers)
        for (one, other_), comparison in zip(pairs(study.evaluation.readers), asking.readers(), strict=True):
            if comparison.images or comparison.withheld:
                found.readers.append(comparison_json(comparison, (names[one], names[other_]), "all", study))
    correct(found.models)
    correct(found.readers)
    found.bytes = asking.moved
    return found


def _second(arm: Trained, name: str) -> Weights | None:
    """The model that ``evaluation.compare`` names; ``None`` where it is the kept one."""
    if name == "last":
        return None if arm.progress.facts["kept_round"] == arm.progress.round else arm.progress.weights
    work = arm.work
    model, _ = build_initial(work.study, seed_for(work.study.seed, work.repeat, "weights"), work.base)
    return state_of(model)


class _Asking:
    """Both passes of each comparison."""

    def __init__(self, link: Link, arm: Trained, tested: Tested, sites: Mapping[str, int]) -> None:
        self._link, self._arm, self._sites, self._study = link, arm, sites, arm.work.study
        self._task = arm.work.task(self._study.federation.rounds)
        self._deadline_s = arm.work.deadline_s or self._study.federation.deadline_s
        self._own = arm.work.own_round(arm.progress.facts["kept_round"])
        self._reference = Reference(tested.overall.reference.counts, arm.thresholds)
        self.moved = 0

    def model(self, name: str, weights: Weights) -> Comparison:
        """The kept model against another, which the study calls ``name``."""
        evaluation = self._study.evaluation
        thresholds = self._thresholds(name, weights)
        given = Given((self._arm.thresholds.position, thresholds.position))
        tables = self._added(self._first(protocol.Beside(given.to_arrays(), weights)), ModelTables)
        other = Reference(tables.second.counts, thresholds)
        reference = ModelReference(tables.joint, other)
        found = self._added(self._second(protocol.Beside(reference.to_arrays(), weights)), ModelSpreads)
        models = Models((self._reference, other), found.areas)
        return compare(tables.joint, found.spread, models, evaluation.confidence)

    def _thresholds(self, name: str, weights: Weights) -> Thresholds:
        """A second model's, from validation; once in a run, and on the disk before a site is told them: sites compare
        at one set of thresholds, and with a site that has left meanwhile validation would choose another."""
        chosen = self._arm.progress.facts.setdefault(_CHOSEN, {})
        own = digest(weights)
        if chosen.get(name, {}).get("model") != own:
            validated = self._added(protocol.EvaluateRequest(self._task, "val", weights), FirstPass)
            found = choose_threshold(validated.counts, self._study.evaluation.threshold)
            chosen[name] = {"model": own, "position": found.position.tolist(), "chosen": found.chosen.tolist()}
            work = self._arm.work
            if work.checkpoint is not None:
                save_progress(work.checkpoint, self._arm.progress, key=work.key)
        known = chosen[name]
        bins = self._study.evaluation.bins
        return Thresholds(np.array(known["position"], np.int64), np.array(known["chosen"], np.bool_), bins)

    def readers(self) -> list[Comparison]:
        """The model against each reader, then every two readers; of hospitals without readings nothing."""
        given = Given((self._arm.thresholds.position,))
        tables = self._added(self._first(protocol.Beside(given.to_arrays())), ReaderTables)
        if not any(joint.asked.any() for joint in tables.joints):
            return [compare(joint, None) for joint in tables.joints]
        found = self._added(self._second(protocol.Beside(tables.to_arrays())), ReaderSpreads)
        confidence = self._study.evaluation.confidence
        return [
            compare(joint, spread, None, confidence) for joint, spread in zip(tables.joints, found.spreads, strict=True)
        ]

    def _first(self, beside: protocol.Beside) -> protocol.EvaluateRequest:
        return protocol.EvaluateRequest(self._task, "test", self._arm.weights, personal=self._own, beside=beside)

    def _second(self, beside: protocol.Beside) -> protocol.MomentsRequest:
        weights, reference = self._arm.weights, self._reference.to_arrays()
        return protocol.MomentsRequest(self._task, "test", weights, reference, personal=self._own, beside=beside)

    def _added(self, request: protocol.EvaluateRequest | protocol.MomentsRequest, kind: type[S]) -> S:
        parse: Callable[[protocol.Statistics], S] = lambda arrays: kind.from_arrays(arrays, self._study)  # noqa: E731
        answers, moved = gather(self._link, request, self._sites, self._deadline_s, parse)
        self.moved += moved
        return added_of_all(answers, kind.zero(self._study))
