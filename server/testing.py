"""The last word on a model: two passes over sites' test patients, thresholds from validation only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from common import protocol
from common.errors import QuorumError, ReplyRefused
from common.metrics import FirstPass, Question, Reference, SecondPass, Summary, Thresholds, summarise, with_outlines
from common.study import Study
from common.weights import Weights
from server.adding import added_of_all
from server.asking import Answer, Link, statistics_of
from server.recall import Call
from server.work import Work

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
    outline: int | None = None,
    personal: int | None = None,
) -> Tested:
    """Test ``weights`` on ``sites`` together, and on each of ``own`` by itself; ``personal`` as of a request.

    ``outline``: place in ``GRID`` of the threshold of outlines, in a study that has them.
    First pass: histograms, merged. Second pass: per-patient placement sums against the
    merged histogram, for intervals clustered by patient. Raises :class:`QuorumError` when
    a site does not answer, :class:`SiteGone` where it never will: a test result without it would be another
    population's. Where the study's privacy
    suppresses such statistics nobody is asked, and every metric is undefined.
    """
    study = work.study
    if study.metrics_suppressed:
        return Tested(summed_up(FirstPass.zero(study), SecondPass.zero(study), thresholds, outline, study), {}, 0)
    link.watch.tests()
    deadline = work.deadline_s or study.federation.deadline_s
    task = work.task(study.federation.rounds)
    moved = 0
    found: dict[str, FirstPass] = {}
    first = protocol.EvaluateRequest(task, split, weights, personal=personal)
    for answer in Call(link, first, sites, deadline, lambda: len(sites) - len(found)).answers():
        found[answer.site] = read(answer, task, lambda arrays: FirstPass.from_arrays(arrays, study))
        moved += answer.bytes
    merged = added_of_all(found, FirstPass.zero(study))

    def second(first: FirstPass, group: Mapping[str, int]) -> Summary:
        nonlocal moved
        question = Question(Reference(first.counts, thresholds), outline)
        total, told = second_pass(link, work, weights, question, group, split, personal=personal)
        moved += told
        return summed_up(first, total, thresholds, outline, study)

    overall = second(merged, sites)
    alone = {site: second(found[site], {site: node}) for site, node in own.items() if found[site].counts.images}
    return Tested(overall, alone, moved)


def second_pass(
    link: Link,
    work: Work,
    weights: Weights,
    question: Question,
    sites: Mapping[str, int],
    split: str,
    *,
    personal: int | None = None,
) -> tuple[SecondPass, int]:
    """``sites``' sums against the question's reference, and the bytes they came in.

    Raises as :func:`test_model`.
    """
    parts: dict[str, SecondPass] = {}
    moved = 0
    task = work.task(work.study.federation.rounds)
    deadline = work.deadline_s or work.study.federation.deadline_s
    request = protocol.MomentsRequest(task, split, weights, question.to_arrays(), personal=personal)
    for answer in Call(link, request, sites, deadline, lambda: len(sites) - len(parts)).answers():
        parts[answer.site] = read(answer, task, lambda arrays: SecondPass.from_arrays(arrays, work.study, question))
        moved += answer.bytes
    return added_of_all(parts, SecondPass.zero(work.study)), moved


def summed_up(
    first: FirstPass, second: SecondPass, thresholds: Thresholds, outline: int | None, study: Study
) -> Summary:
    """Every metric of both passes over the same patients."""
    confidence = study.evaluation.confidence
    summary = summarise(Reference(first.counts, thresholds), second.moments, confidence)
    if first.outlines is None or second.lesions is None or outline is None:
        return summary
    return with_outlines(summary, first.outlines, second.lesions, outline, confidence)


def gather(
    link: Link,
    request: protocol.EvaluateRequest | protocol.MomentsRequest,
    sites: Mapping[str, int],
    deadline_s: float,
    parse: Callable[[protocol.Statistics], T],
) -> tuple[dict[str, T], int]:
    """What every one of ``sites`` answers, and the bytes that moved. Raises as :func:`test_model`."""
    found: dict[str, T] = {}
    moved = 0
    for answer in Call(link, request, sites, deadline_s, lambda: len(sites) - len(found)).answers():
        found[answer.site] = read(answer, request.task, parse)
        moved += answer.bytes
    return found, moved


def read(answer: Answer, task: protocol.Task, parse: Callable[[protocol.Statistics], T]) -> T:
    """What ``parse`` reads from a test's answer. Raises :class:`QuorumError`, :class:`SiteGone`."""
    try:
        return statistics_of(answer, task.round, parse)
    except ReplyRefused as error:
        text = f"{answer.site} did not test the model ({error}); mend it and --resume"
        raise (SiteGone(text, answer.site) if answer.word in _GONE else QuorumError(text)) from None
