"""The kept model asked about further, as its study says: counted by groups of test patients, and on worse images.

Only the test, only the model that is kept, only what the study names: a group costs no forward pass, a condition one
over the test images at each of its five levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from common import protocol
from common.metrics import FirstPass, Layout, Moments, Reference, Summary, Thresholds, summarise
from common.metrics.subgroup_moments import GroupMoments, open_moments, reference_arrays
from common.metrics.subgroups import MOST_GROUPS, Subgroups
from common.study import Study
from common.study_examined import LEVELS
from common.weights import Weights
from server.adding import added_of_all
from server.asking import Link
from server.recall import Call
from server.testing import read
from server.work import Work

T = TypeVar("T")
_TEST = "test"


@dataclass(frozen=True)
class Grouped:
    """The test by one attribute."""

    groups: Subgroups
    moments: Mapping[str, GroupMoments] | None
    """By group; ``None`` where small cells are hidden."""


@dataclass(frozen=True)
class Examined:
    """What was asked beyond the test."""

    thresholds: Thresholds
    by: Mapping[str, Grouped] = field(default_factory=dict)
    conditions: Mapping[tuple[str, int], Summary] = field(default_factory=dict)
    bytes: int = 0


class _Asker:
    def __init__(
        self, link: Link, work: Work, weights: Weights, sites: Mapping[str, int], personal: int | None
    ) -> None:
        self._link, self._work, self._weights, self._sites = link, work, weights, sites
        self._personal = personal
        self._task = work.task(work.study.federation.rounds)
        self._deadline_s = work.deadline_s or work.study.federation.deadline_s
        self.bytes = 0

    def first(self, parse: Callable[[protocol.Statistics], T], by: str = "", condition: str = "") -> dict[str, T]:
        return self._ask(
            protocol.EvaluateRequest(self._task, _TEST, self._weights, by, condition, self._personal), parse
        )

    def second(
        self,
        reference: protocol.Statistics,
        parse: Callable[[protocol.Statistics], T],
        by: str = "",
        condition: str = "",
    ) -> dict[str, T]:
        return self._ask(
            protocol.MomentsRequest(self._task, _TEST, self._weights, reference, by, condition, self._personal), parse
        )

    def _ask(
        self, request: protocol.EvaluateRequest | protocol.MomentsRequest, parse: Callable[[protocol.Statistics], T]
    ) -> dict[str, T]:
        """Every site's answer. Raises as :func:`server.testing.test_model`."""
        found: dict[str, T] = {}
        lacking = lambda: len(self._sites) - len(found)  # noqa: E731
        for answer in Call(self._link, request, self._sites, self._deadline_s, lacking).answers():
            found[answer.site] = read(answer, self._task, parse)
            self.bytes += answer.bytes
        return found


def examine(
    link: Link,
    work: Work,
    weights: Weights,
    thresholds: Thresholds,
    sites: Mapping[str, int],
    *,
    personal: int | None = None,
) -> Examined | None:
    """Ask ``sites`` what the study wants to know of ``weights``; ``None`` where nothing may be counted, or is.

    ``personal``: as of a request.

    Raises :class:`QuorumError` when a site does not answer, :class:`SiteGone` where it never will.
    """
    asked = work.study.evaluation
    if work.study.metrics_suppressed or work.study.task == "segmentation":
        return None
    asker, layout = _Asker(link, work, weights, sites, personal), Layout.of(work.study)
    link.watch.tests()
    by = {name: _grouped(asker, name, thresholds, layout, hidden=asked.min_cell > 1) for name in asked.by}
    conditions: dict[tuple[str, int], Summary] = {
        (name, level): _under(asker, f"{name} {level}", thresholds, work.study)
        for name in asked.robustness
        for level in LEVELS
    }
    return Examined(thresholds, by, conditions, asker.bytes)


def _grouped(asker: _Asker, by: str, thresholds: Thresholds, layout: Layout, *, hidden: bool) -> Grouped:
    parts = asker.first(lambda arrays: Subgroups.from_arrays(arrays, layout), by)
    groups = sum((parts[site] for site in sorted(parts)), Subgroups.zero(layout)).at_most(MOST_GROUPS)
    if hidden:
        return Grouped(groups, None)
    names = list(groups.counts)
    sent = reference_arrays(groups, thresholds)
    found = asker.second(sent, lambda arrays: open_moments(arrays, names, layout), by)
    zero = GroupMoments.zero(layout)
    return Grouped(
        groups, {name: added_of_all({site: part[name] for site, part in found.items()}, zero) for name in names}
    )


def _under(asker: _Asker, condition: str, thresholds: Thresholds, study: Study) -> Summary:
    layout = Layout.of(study)
    found = asker.first(lambda arrays: FirstPass.from_arrays(arrays, study), condition=condition)
    reference = Reference(added_of_all(found, FirstPass.zero(study)).counts, thresholds)
    parts = asker.second(reference.to_arrays(), lambda arrays: Moments.from_arrays(arrays, layout), condition=condition)
    return summarise(reference, added_of_all(parts, Moments.zero(layout)), study.evaluation.confidence)
