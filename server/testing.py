"""The last word on a model: two passes over sites' test patients, thresholds from validation only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from common import protocol
from common.errors import QuorumError, ReplyRefused
from common.metrics import Counts, Layout, Moments, Reference, Summary, Thresholds, summarise
from common.weights import Weights
from server.asking import Answer, Link
from server.recall import Call
from server.rounds import Work, statistics_of

T = TypeVar("T")
_GONE = ("study-withdrawn", "approval-refused", "not reachable")
"""Answers of a site that will not come back into this run: its people have said no, or it is off the roster."""


class SiteGone(QuorumError):
    """``site`` has left in the middle of the test."""

    def __init__(self, text: str, site: str) -> None:
        super().__init__(text)
        self.site = site


@dataclass(frozen=True)
class Tested:
    """A model's test result on everybody's patients, and on each site's own."""

    overall: Summary
    sites: Mapping[str, Summary]
    bytes: int


def test_model(
    link: Link,
    work: Work,
    weights: Weights,
    thresholds: Thresholds,
    sites: Mapping[str, int],
    *,
    own: Mapping[str, int],
    split: str = "test",
) -> Tested:
    """Test ``weights`` on ``sites`` together, and on each of ``own`` by itself.

    First pass: histograms, merged. Second pass: per-patient placement sums against the
    merged histogram, for intervals clustered by patient. Raises :class:`QuorumError` when
    a site does not answer, :class:`SiteGone` where it never will: a test result without it would be another
    population's. Where the study's privacy
    suppresses such statistics nobody is asked, and every metric is undefined.
    """
    if work.study.metrics_suppressed:
        nobody = Reference(Counts.zero(Layout.of(work.study)), thresholds)
        none = Moments.zero(Layout.of(work.study))
        return Tested(summarise(nobody, none, work.study.evaluation.confidence), {}, 0)
    link.watch.tests()
    deadline = work.deadline_s or work.study.federation.deadline_s
    layout = Layout.of(work.study)
    task = work.task(work.study.federation.rounds)
    moved = 0
    counts: dict[str, Counts] = {}
    first = protocol.EvaluateRequest(task, split, weights)
    for answer in Call(link, first, sites, deadline, lambda: len(sites) - len(counts)).answers():
        counts[answer.site] = _read(answer, task, lambda arrays: Counts.from_arrays(arrays, layout))
        moved += answer.bytes
    merged = Counts.zero(layout)
    for site in sorted(counts):
        merged += counts[site]

    def second(reference: Reference, group: Mapping[str, int]) -> Summary:
        nonlocal moved
        parts: dict[str, Moments] = {}
        request = protocol.MomentsRequest(task, split, weights, reference.to_arrays())
        for answer in Call(link, request, group, deadline, lambda: len(group) - len(parts)).answers():
            parts[answer.site] = _read(answer, task, lambda arrays: Moments.from_arrays(arrays, layout))
            moved += answer.bytes
        total = Moments.zero(layout)
        for site in sorted(parts):  # floats: added in site order, so that arrival does not show
            total += parts[site]
        return summarise(reference, total, work.study.evaluation.confidence)

    overall = second(Reference(merged, thresholds), sites)
    alone = {
        site: second(Reference(counts[site], thresholds), {site: node})
        for site, node in own.items()
        if counts[site].images
    }
    return Tested(overall, alone, moved)


def _read(answer: Answer, task: protocol.Task, parse: Callable[[protocol.Statistics], T]) -> T:
    try:
        return statistics_of(answer, task.round, parse)
    except ReplyRefused as error:
        text = f"{answer.site} did not test the model ({error}); mend it and --resume"
        raise (SiteGone(text, answer.site) if answer.word in _GONE else QuorumError(text)) from None
