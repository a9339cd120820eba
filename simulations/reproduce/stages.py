"""What a stage of the paper's system is worth: the run that has it against the run that has not, on the same patients.

Both models are scored again on every test image; images are matched by the order in which they entered their
hospital's vault, which a stage does not change, and the comparison is refused where truth or patients do not match.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.app import Resident
from client.evaluation import Scores
from client.vault.preparing import choose
from common.errors import RunError
from common.randomness import seed_for
from common.study import Study
from common.weights import load
from server.results import read_card
from simulations.bootstrap import Difference, paired_bootstrap
from simulations.reproduce.beside import Results
from simulations.reproduce.paper import Stage
from simulations.reproduce.playing import Order
from simulations.runfolder import Folder


@dataclass(frozen=True)
class Worth:
    """A stage's paired differences, with it minus without it, one for each seed; ``reason`` where there are none."""

    stage: Stage
    differences: tuple[Difference, ...]
    reason: str = ""

    def json(self) -> dict[str, object]:
        return {
            "stage": self.stage.title,
            "having": self.stage.having,
            "lacking": self.stage.lacking,
            "metric": self.stage.metric,
            "differences": [one.to_dict() for one in self.differences],
            "reason": self.reason,
        }


def worths(order: Order, results: Results) -> list[Worth]:
    """Every stage of the paper, measured where both its runs were played."""
    found = []
    for stage in order.paper.stages:
        absent = [name for name in (stage.having, stage.lacking) if name not in results]
        if absent:
            found.append(Worth(stage, (), f"not run: {absent[0]}, {order.left_out[absent[0]]}"))
            continue
        having, lacking = order.folder(stage.having), order.folder(stage.lacking)
        pairs = tuple(_difference(having, lacking, number, order.seeds, stage.metric) for number in range(order.seeds))
        found.append(Worth(stage, pairs))
    return found


@dataclass(frozen=True)
class _Tested:
    """A model's scores on all hospitals' test images, in the order in which images entered the vaults."""

    scores: Scores
    edges: Sequence[float] | None
    study: Study


def _difference(having: Path, lacking: Path, repeat: int, repeats: int, metric: str) -> Difference:
    a, b = _tested(having, repeat, repeats), _tested(lacking, repeat, repeats)
    if not _same(a.scores, b.scores):
        raise RunError(
            f"{having.name} and {lacking.name} were not tested on the same patients, so no pairs can be compared; give "
            "both one seed, partition and data set in the paper's table"
        )
    return paired_bootstrap(
        a.scores.scores,
        b.scores.scores,
        a.scores.targets,
        a.scores.patients,
        metric,
        a.edges,
        b.edges,
        resamples=a.study.evaluation.bootstrap,
        confidence=a.study.evaluation.confidence,
        seed=seed_for(a.study.seed, repeat, "stage", "bootstrap"),
    )


def _tested(path: Path, repeat: int, repeats: int) -> _Tested:
    run = Folder(path)
    folder = run.repeat(repeat, repeats)
    card, weights = read_card(folder), load(folder / "model.safetensors")
    parts: list[Scores] = []
    offset = 0
    with closing(Resident()) as resident:
        for home in run.hospitals:
            site = resident.site(home)
            (vault,) = site.vaults
            found = resident.scores(site, card.study, "test", weights, card.basis)
            order = np.argsort(choose(vault, card.study, "test").ids)
            patients = _by_appearance(found.patients[order]) + offset
            offset = int(patients.max(initial=offset - 1)) + 1
            parts.append(Scores(found.scores[order], found.targets[order], patients, found.loss[order]))
    edges = None if card.study.task == "multiclass" else card.thresholds.edges.tolist()
    scores, targets, patients, loss = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "targets", "patients", "loss")
    )
    return _Tested(Scores(scores, targets, patients, loss), edges, card.study)


def _by_appearance(patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same grouping, numbered from 0 by first appearance."""
    _, first, inverse = np.unique(patients, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _same(a: Scores, b: Scores) -> bool:
    """Whether truth and the grouping into patients match, image by image."""
    return (
        a.scores.shape == b.scores.shape
        and np.array_equal(a.targets, b.targets, equal_nan=True)
        and np.array_equal(a.patients, b.patients)
    )
