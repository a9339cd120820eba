"""Arms against each other on the same patients: paired bootstrap, where one owner holds all scores.

A real federation has no such owner; there, models are compared from sums (``simulations.pairs`` does it here).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.app import Resident
from client.evaluation import Scores
from client.own_model import own_weights
from common.metrics import Overlaps
from common.randomness import seed_for
from common.study import Study
from server.comparisons import comparison_json
from server.results import Trained
from simulations.bootstrap import Difference, paired_bootstrap, paired_means
from simulations.pairs import from_sums

METRICS = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")
OVERLAPS = ("dice", "iou")
MOST_SITES = 50


def everybody(
    resident: Resident, directories: Mapping[str, Path], arm: Trained, study: Study
) -> tuple[Scores, NDArray[np.int64]]:
    """One arm's scores on all hospitals' test patients, and the hospital of each image."""
    parts = []
    for number, directory in enumerate(directories.values()):
        site, weights = resident.site(directory), arm.weights
        own = arm.work.own_round(arm.progress.facts["kept_round"])
        if own is not None:
            weights = own_weights(arm.work.task(study.federation.rounds), site, resident, weights, own)
        scores = resident.scores(site, study, "test", weights, arm.work.basis)
        parts.append((scores, np.full(len(scores.patients), number)))
    outlined = [(scores.overlaps, len(scores.patients)) for scores, _ in parts]
    offset, patients = 0, []
    for scores, _ in parts:
        patients.append(scores.patients + offset)
        offset += int(scores.patients.max(initial=-1)) + 1
    joined = Scores(
        np.concatenate([scores.scores for scores, _ in parts]),
        np.concatenate([scores.targets for scores, _ in parts]),
        np.concatenate(patients),
        np.concatenate([scores.loss for scores, _ in parts]),
        Overlaps.following(outlined) if study.outlines else None,
    )
    return joined, np.concatenate([owner for _, owner in parts])


Rows = list[dict[str, Any]]


def compared(
    resident: Resident, directories: Mapping[str, Path], trained: Mapping[str, Trained], study: Study, repeat: int
) -> tuple[Rows, Rows]:
    """Federated minus every other arm: on everybody's test patients, and against a hospital alone also on its own.

    By the bootstrap, and from sums.
    """
    found: Rows = []
    sums: Rows = []
    if "federated" not in trained or len(trained) == 1 or study.metrics_suppressed:
        return found, sums
    sites = list(directories)
    ours, owner = everybody(resident, directories, trained["federated"], study)
    for name, arm in trained.items():
        if name == "federated" or (name.startswith("local:") and len(sites) > MOST_SITES):
            continue
        theirs, _ = everybody(resident, directories, arm, study)
        groups: list[tuple[str, NDArray[np.bool_]]] = [("all", np.ones(len(owner), bool))]
        if name.startswith("local:"):
            site = name.removeprefix("local:")
            groups.append((site, owner == sites.index(site)))
        for group, mask in groups:
            if mask.any():
                pair = _Pair(name, group, mask, (ours, theirs), (trained["federated"], arm), study, repeat)
                found += pair.rows()
                both = _of(ours, mask), _of(theirs, mask)
                summed = from_sums(*both, owner[mask], (trained["federated"].thresholds, arm.thresholds), study)
                sums.append(comparison_json(summed, ("federated", name), group, study))
    return found, sums


def _of(scores: Scores, mask: NDArray[np.bool_]) -> Scores:
    return Scores(scores.scores[mask], scores.targets[mask], scores.patients[mask], scores.loss[mask])


@dataclass(frozen=True)
class _Pair:
    """The federated model and another on the same images; ``on``: whose patients, ``all`` or a hospital's."""

    name: str
    on: str
    mask: NDArray[np.bool_]
    scores: tuple[Scores, Scores]
    arms: tuple[Trained, Trained]
    study: Study
    repeat: int

    def rows(self) -> Rows:
        """As ``results.json`` has them."""
        return [
            {"a": "federated", "b": self.name, "metric": metric, "on": self.on, **difference.to_dict()}
            for metric, difference in [*self._scored(), *self._outlined()]
        ]

    @property
    def _drawn(self) -> dict[str, Any]:
        evaluation = self.study.evaluation
        return {
            "resamples": evaluation.bootstrap,
            "confidence": evaluation.confidence,
            "seed": seed_for(self.study.seed, self.repeat, self.on, "bootstrap"),
        }

    def _scored(self) -> Iterator[tuple[str, Difference]]:
        ours, theirs = (_of(scores, self.mask) for scores in self.scores)
        edges = [None if self.study.task == "multiclass" else arm.thresholds.edges for arm in self.arms]
        for metric in METRICS:
            yield (
                metric,
                paired_bootstrap(
                    ours.scores, theirs.scores, ours.targets, ours.patients, metric, *edges, **self._drawn
                ),
            )

    def _outlined(self) -> Iterator[tuple[str, Difference]]:
        """Mean overlaps over the images that have anything to outline, each model at its own threshold."""
        overlaps = [scores.overlaps for scores in self.scores if scores.overlaps is not None]
        if len(overlaps) < 2:
            return
        rows = overlaps[0].rows
        chosen = overlaps[0].having & self.mask[rows]
        patients = self.scores[0].patients[rows][chosen]
        for metric in OVERLAPS:
            a, b = (getattr(one, metric)[chosen, arm.outline] for one, arm in zip(overlaps, self.arms, strict=True))
            yield metric, paired_means(a, b, patients, **self._drawn)
