"""A finished run's model on all test images, image by image: simulation only, where one owner holds all scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.app import Resident
from client.evaluation import Scores
from client.vault.preparing import choose
from client.vault.store import Vault
from common.weights import load
from server.results import Card, read_card
from simulations.datasets.derived import ATTRIBUTE
from simulations.runfolder import Folder


@dataclass(frozen=True)
class Scored:
    """Scores on all hospitals' test images, in the order in which images entered the vaults.

    ``sources`` ``(N,)``: the data set of each image, or its DICOM modality where the run had one data set; else "".
    """

    scores: Scores
    card: Card
    sources: NDArray[np.str_]

    @property
    def edges(self) -> Sequence[float] | None:
        """Thresholds, as scores; ``None`` of a multiclass task."""
        return None if self.card.study.task == "multiclass" else self.card.thresholds.edges.tolist()

    def only(self, rows: NDArray[np.bool_]) -> Scored:
        """The same of some images."""
        found = self.scores
        kept = Scores(found.scores[rows], found.targets[rows], found.patients[rows], found.loss[rows])
        return replace(self, scores=kept, sources=self.sources[rows])


@lru_cache(maxsize=8)
def tested(path: Path, repeat: int, repeats: int) -> Scored:
    """The kept model of the run at ``path`` (of the federated arm, where it has one) on everybody's test images.

    Remembered: a page asks for the same model several times, and a finished run does not change.
    """
    run = Folder(path)
    folder = run.repeat(repeat, repeats)
    card, weights = read_card(folder), load(folder / "model.safetensors")
    parts: list[Scores] = []
    sources: list[str] = []
    offset = 0
    with closing(Resident()) as resident:
        for home in run.hospitals:
            site = resident.site(home)
            (vault,) = site.vaults
            found = resident.scores(site, card.study, "test", weights, card.basis)
            ids = choose(vault, card.study, "test").ids
            order = np.argsort(ids)
            patients = by_appearance(found.patients[order]) + offset
            offset = int(patients.max(initial=offset - 1)) + 1
            parts.append(Scores(found.scores[order], found.targets[order], patients, found.loss[order]))
            sources += [source_of(vault, row) for row in sorted(ids)]
    joined = Scores(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.patients for part in parts]),
        np.concatenate([part.loss for part in parts]),
    )
    return Scored(joined, card, np.array(sources, dtype=np.str_))


def source_of(vault: Vault, row: int) -> str:
    """The data set that an image came from, where a run had several; else its modality, where it is known."""
    attributes = vault.row(row).attributes
    return attributes.get(ATTRIBUTE) or attributes.get("modality", "")


def by_appearance(patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same grouping, numbered from 0 by first appearance."""
    _, first, inverse = np.unique(patients, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def same_patients(a: Scored, b: Scored) -> bool:
    """Whether truth and the grouping into patients match, image by image."""
    return (
        a.scores.scores.shape == b.scores.scores.shape
        and np.array_equal(a.scores.targets, b.scores.targets, equal_nan=True)
        and np.array_equal(a.scores.patients, b.scores.patients)
    )
