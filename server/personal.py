"""Each site's own model, where a study has them: validated, tested and chosen at its site, told as sums.

A site's threshold comes from its own validation images, and so does its choice between its own model and that of all
(``client.choice``), which it makes itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common import protocol
from common.metrics import (
    Counts,
    FirstPass,
    Layout,
    Moments,
    Reference,
    Summary,
    Thresholds,
    choose_threshold,
    summarise,
)
from common.results import thresholds_json
from server.asking import Link
from server.recall import Call
from server.results import Trained
from server.testing import SiteGone, read


@dataclass(frozen=True)
class OwnModel:
    """What is known of one site's own model."""

    thresholds: Thresholds
    chosen: str
    """The model that the site would run: of :data:`common.protocol.CHOICES`."""
    tested: Summary | None
    """On its own test patients; ``None`` where it has none."""


@dataclass(frozen=True)
class OwnModels:
    sites: Mapping[str, OwnModel]
    gone: tuple[str, ...]
    """Sites that left before theirs was tested."""
    bytes: int


def has_own_models(arm: Trained) -> bool:
    """Whether sites have models of their own, of which anything may be told."""
    personal = arm.work.task(0).personal
    return personal is not None and personal.own_models and not arm.work.study.metrics_suppressed


def own_round(arm: Trained) -> int:
    """The round whose own models belong to the arm's finished one; Ditto's are trained to the end whatever is kept."""
    personal = arm.work.task(0).personal
    last = personal is not None and personal.method == "ditto"
    return arm.progress.round if last else int(arm.progress.facts["kept_round"])


def test_own_models(link: Link, arm: Trained, sites: Mapping[str, int]) -> OwnModels:
    """Have each of ``sites`` validate and test its own model, and choose. Raises :class:`QuorumError`."""
    study, asking = arm.work.study, _Asking(link, arm)
    validated = asking.counts("val", sites)
    tested = asking.counts("test", {site: sites[site] for site in validated})
    found: dict[str, OwnModel] = {}
    for site in sorted(tested):
        counts, chosen = validated[site]
        thresholds = choose_threshold(counts, study.evaluation.threshold)
        summary = asking.summary({site: sites[site]}, Reference(tested[site][0], thresholds))
        found[site] = OwnModel(thresholds, chosen, summary)
    return OwnModels(found, tuple(sorted(set(sites) - set(found))), asking.moved)


class _Asking:
    """Requests about own models; a site that leaves for good is left out."""

    def __init__(self, link: Link, arm: Trained) -> None:
        self._link, self._arm, self._round = link, arm, own_round(arm)
        work = arm.work
        self._deadline_s = work.deadline_s or work.study.federation.deadline_s
        self._task, self._layout = work.task(work.study.federation.rounds), Layout.of(work.study)
        self.moved = 0

    def counts(self, split: str, sites: Mapping[str, int]) -> dict[str, tuple[Counts, str]]:
        """Each site's counts on ``split``, and what it chose."""
        found: dict[str, tuple[Counts, str]] = {}
        request = protocol.EvaluateRequest(self._task, split, self._arm.weights, personal=self._round)
        call = Call(self._link, request, sites, self._deadline_s, lambda: len(sites) - len(found))
        for answer in call.answers():
            self.moved += answer.bytes
            with suppress(SiteGone):
                counts = read(
                    answer, self._task, lambda arrays: FirstPass.from_arrays(arrays, self._arm.work.study)
                ).counts
                chosen = answer.reply.chosen if isinstance(answer.reply, protocol.StatisticsReply) else ""
                found[answer.site] = counts, chosen or "personal"
        return found

    def summary(self, site: Mapping[str, int], reference: Reference) -> Summary | None:
        """One site's test; ``None`` without test images, or where it has left."""
        if not reference.counts.images:
            return None
        found: list[Moments] = []
        arrays = reference.to_arrays()
        request = protocol.MomentsRequest(self._task, "test", self._arm.weights, arrays, personal=self._round)
        for answer in Call(self._link, request, site, self._deadline_s, lambda: 1 - len(found)).answers():
            self.moved += answer.bytes
            with suppress(SiteGone):
                found.append(read(answer, self._task, lambda sums: Moments.from_arrays(sums, self._layout)))
        return summarise(reference, found[0], self._arm.work.study.evaluation.confidence) if found else None


def own_json(arm: Trained, found: OwnModels) -> dict[str, Any]:
    """The arm of sites' own models, as in ``results.json``; its ``test`` is the mean over hospitals of their own."""
    study = arm.work.study
    sites: dict[str, Any] = {}
    for site, model in found.sites.items():
        overall = model.tested.overall if model.tested is not None else {}
        sites[site] = {
            "chosen": model.chosen,
            "thresholds": thresholds_json(model.thresholds, study),
            "test": {metric: interval.to_dict() for metric, interval in overall.items()},
        }
    assert study.personalisation is not None
    return {
        "method": study.personalisation.method,
        "rounds": arm.progress.round,
        "own_round": own_round(arm),
        "test": mean_of([facts["test"] for facts in sites.values()]),
        "sites": sites,
    }


def mean_of(tests: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Over hospitals, of each metric that is defined at all of them that have test patients; bounds alike.

    The mean of bounds is never narrower than the mean's own interval.
    """
    tested = [test for test in tests if test]
    found: dict[str, dict[str, float | None]] = {}
    for metric in dict.fromkeys(name for test in tested for name in test):
        cells = [test[metric] for test in tested if metric in test]
        mean: dict[str, float | None] = {}
        for key in ("value", "low", "high"):
            known = [value for cell in cells if (value := cell[key]) is not None]
            mean[key] = sum(known) / len(known) if len(known) == len(cells) else None
        found[metric] = mean
    return found
