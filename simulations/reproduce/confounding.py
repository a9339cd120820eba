"""How much of a result the kind of image explains: a rule that sees which data set an image is from, and no pixel.

Where each class comes mostly from one data set (tumors from MRI, pneumonia from radiographs), a network that merely
tells the data sets apart reaches a good accuracy. The rule gives that accuracy; the network's worth is what it adds,
and what it reaches inside each data set, where the kind of image tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.app import Resident
from client.vault.preparing import choose
from common.study import Study
from server.results import read_card
from simulations.reproduce.scoring import Scored, source_of, tested
from simulations.runfolder import Folder


@dataclass(frozen=True)
class Confounding:
    """``counts``: training images by source and class. Shares of right answers on test images, over all (``""``) and
    by source: the rule's, the network's, and how many images."""

    run: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    right: Mapping[str, tuple[float, float, int]]

    def json(self) -> dict[str, object]:
        return {
            "run": self.run,
            "classes": list(self.classes),
            "train_images": {source: list(counts) for source, counts in self.counts.items()},
            "right": {
                source or "all": {"rule": rule, "network": network, "images": images}
                for source, (rule, network, images) in self.right.items()
            },
        }


def confounding(path: Path, repeats: int) -> Confounding:
    """The rule beside the first seed's network of the run at ``path``."""
    network, counts = tested(path, 0, repeats), train_counts(path, repeats)
    rule = by_rule(network, counts)
    groups = {"": np.ones(len(network.sources), bool)} | {name: network.sources == name for name in counts}
    right = {
        name: (_right(rule.only(rows)), _right(network.only(rows)), int(rows.sum()))
        for name, rows in groups.items()
        if rows.any()
    }
    classes = network.card.study.class_names
    return Confounding(path.name, classes, {name: tuple(map(int, row)) for name, row in counts.items()}, right)


def train_counts(path: Path, repeats: int) -> dict[str, NDArray[np.int64]]:
    """Training images of each class, by data set: sums that hospitals could tell."""
    run = Folder(path)
    study: Study = read_card(run.repeat(0, repeats)).study
    counts: dict[str, NDArray[np.int64]] = {}
    with closing(Resident()) as resident:
        for home in run.hospitals:
            (vault,) = resident.site(home).vaults
            chosen = choose(vault, study, "train")
            for row, target in zip(chosen.ids, chosen.targets.numpy(), strict=True):
                mine = counts.setdefault(source_of(vault, row), np.zeros(len(study.classes), np.int64))
                mine += (target == 1.0).astype(np.int64)
    return dict(sorted(counts.items()))


def by_rule(of: Scored, counts: Mapping[str, NDArray[np.int64]]) -> Scored:
    """The rule on the same images: the score of a class is its share among the source's training images."""
    shares = {name: row / row.sum() for name, row in counts.items()}
    scores = np.stack([shares[source] for source in of.sources.tolist()])
    return replace(of, scores=replace(of.scores, scores=scores))


def _right(found: Scored) -> float:
    return float((found.scores.scores.argmax(axis=1) == found.scores.targets.argmax(axis=1)).mean())
