"""A site's part in a comparison: its model against a second one, or against its readers, as sums that merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.evaluation import Scores, first_pass
from client.readings import readings
from client.site import Site
from common import protocol
from common.metrics import Layout, Reference, cells
from common.metrics.layout import Ints, Scored
from common.metrics.paired import Decided, Joint, Pair, Spread, called
from common.metrics.paired.wire import (
    Given,
    ModelReference,
    ModelSpreads,
    ModelTables,
    ReaderSpreads,
    ReaderTables,
    pairs,
)
from common.study import Study

if TYPE_CHECKING:
    from client.app import Resident


def tables(
    request: protocol.EvaluateRequest, beside: protocol.Beside, scores: Scores, site: Site, resident: Resident
) -> protocol.Statistics:
    """First pass: joint tables, and of a second model its counts. ``scores`` are the model's own."""
    study, basis = request.task.study, request.task.basis
    layout = Layout.of(study)
    if beside.weights is None:
        (own,) = Given.from_arrays(beside.given, layout, 1).thresholds
        return ReaderTables(tuple(map(Joint.of, _decided(scores, own, site, study)))).to_arrays()
    first, second = Given.from_arrays(beside.given, layout, 2).thresholds
    other = resident.scores(site, study, request.split, beside.weights, basis)
    counted = first_pass(other, study, study.evaluation.min_cell)
    return ModelTables(_pair(scores, other, study).joint((first, second)), counted).to_arrays()


def spreads(
    request: protocol.MomentsRequest, beside: protocol.Beside, scores: Scores, site: Site, resident: Resident
) -> protocol.Statistics:
    """Second pass: sums over patients, against all sites' tables."""
    study, basis = request.task.study, request.task.basis
    layout = Layout.of(study)
    reference = Reference.from_arrays(request.reference, layout)
    if beside.weights is None:
        joints = ReaderTables.from_arrays(beside.given, study).joints
        decided = _decided(scores, reference.thresholds.position, site, study)
        return ReaderSpreads(tuple(map(Spread.of, decided, joints))).to_arrays()
    given = ModelReference.from_arrays(beside.given, layout)
    other = resident.scores(site, study, request.split, beside.weights, basis)
    return ModelSpreads(*_pair(scores, other, study).spread((reference, given.second), given.joint)).to_arrays()


def _pair(scores: Scores, other: Scores, study: Study) -> Pair:
    least = study.evaluation.min_cell
    return Pair.of(scores.scores, other.scores, scores.targets, scores.patients, Layout.of(study), least)


def _decided(scores: Scores, thresholds: Ints, site: Site, study: Study) -> list[Decided]:
    """Decisions of each of :func:`pairs`, all on the same images."""
    layout, least = Layout.of(study), study.evaluation.min_cell
    scored = Scored.of(scores.scores, scores.targets, scores.patients, layout)
    if least > 1:
        scored, _ = cells.withhold(scored, layout.task, least)
    everybody = [called(scored, thresholds, layout, least), *readings(site, study, "test")]
    return [
        Decided.of(scored, everybody[one], everybody[other], layout, least)
        for one, other in pairs(study.evaluation.readers)
    ]
