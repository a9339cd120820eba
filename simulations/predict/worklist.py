"""The worklist: cases by urgency, what could not be read behind them, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.csv_text import cell_text
from common.errors import StudyError
from common.html import clean
from common.study import Study
from simulations.predict.cases import Image, Unreadable
from simulations.predict.model import Floats, Model

NOTICE = "Research software, not a medical device: the order is a suggestion, and every case must be read."
SYNTHETIC = "The model was trained on SYNTHETIC images: of patients it says nothing."
BATCH = 64
"""Images that are held at a time."""


@dataclass(frozen=True)
class Case:
    """A scored case. Of several images the most urgent one speaks for it; in a multilabel study each finding's does."""

    case: str
    probability: float
    """Of abnormality: calibrated where the model has a temperature."""
    decision: str
    scores: dict[str, float]
    """Score column -> the model's own score, to which thresholds belong."""
    images: int
    image: int
    """Number of the image with that probability, from 1, within the case."""


@dataclass
class Worklist:
    """What came of a set of images."""

    cases: list[Case] = field(default_factory=list)
    """Most urgent first; equals by name."""
    unreadable: list[Unreadable] = field(default_factory=list)
    """In the order they were met. A file with several pictures may stand in both lists."""


@dataclass
class _Growing:
    scores: Floats
    urgency: float
    images: int
    image: int


class Urgency:
    """What in a study counts as abnormal, and from which score on."""

    def __init__(self, model: Model, normal: str | None = None) -> None:
        """``normal`` names the class that is no finding: of a multiclass study the first one unless said.

        Raises :class:`StudyError` for a class that the study does not have, or that it cannot be asked for.
        """
        study = model.card.study
        if normal is not None and study.task != "multiclass":
            raise StudyError(f"--normal is for multiclass studies; this one is {study.task} and needs none")
        if normal is not None and normal not in study.class_names:
            raise StudyError(f"--normal: no class {normal!r}; the study's are {', '.join(study.class_names)}")
        self.study: Study = study
        self.normal = normal or study.class_names[0] if study.task == "multiclass" else None
        self._model = model
        self._edges = model.card.thresholds.edges

    def of(self, scores: Floats) -> Floats:
        """Probability of abnormality ``(N,)`` of ``scores`` ``(N, C)``."""
        if self.normal is not None:
            return np.asarray(1.0 - scores[:, self.study.class_names.index(self.normal)])
        return np.asarray(self._model.temperatures.probabilities(scores).max(axis=1))

    def decision(self, scores: Floats) -> str:
        """In the study's words: the class, or of a multilabel study every finding at or above its threshold."""
        names = self.study.class_names
        if self.study.task == "multiclass":
            return names[int(scores.argmax())]
        above = scores >= self._edges
        if self.study.task == "binary":
            return names[int(above[0])]
        found = [name for name, positive in zip(self.study.scored_classes, above, strict=True) if positive]
        return " + ".join(found) or ("nothing outlined" if self.study.task == "segmentation" else "none")

    @property
    def thresholds(self) -> dict[str, float]:
        """Score column -> from which score on it counts as found; empty of a multiclass study."""
        return dict(zip(self.study.scored_classes, map(float, self._edges), strict=False))


def make(model: Model, urgency: Urgency, images: Iterable[Image | Unreadable]) -> Worklist:
    """Score ``images``, :data:`BATCH` at a time; of those that are scored no more than numbers is kept."""
    growing: dict[str, _Growing] = {}
    found = Worklist()
    waiting: list[Image] = []
    for one in images:
        if isinstance(one, Unreadable):
            found.unreadable.append(one)
            continue
        waiting.append(one)
        if len(waiting) == BATCH:
            _add(growing, model, urgency, waiting)
            waiting = []
    if waiting:
        _add(growing, model, urgency, waiting)
    columns = urgency.study.scored_classes
    for name, case in growing.items():
        scores = dict(zip(columns, map(float, case.scores), strict=True))
        decision = urgency.decision(case.scores)
        found.cases.append(Case(name, case.urgency, decision, scores, case.images, case.image))
    found.cases.sort(key=lambda case: (-case.probability, case.case))
    return found


def _add(growing: dict[str, _Growing], model: Model, urgency: Urgency, images: Sequence[Image]) -> None:
    scores = model.scores([image.pixels for image in images])
    for image, row, urgent in zip(images, scores, urgency.of(scores).tolist(), strict=True):
        case = growing.setdefault(image.case, _Growing(row, -1.0, 0, 0))
        case.images += 1
        if urgency.study.task == "multilabel":
            case.scores = np.maximum(case.scores, row)
        if urgent > case.urgency:
            case.urgency, case.image = urgent, image.number
            if urgency.study.task != "multilabel":
                case.scores = row


def rows(found: Worklist) -> Iterator[dict[str, Any]]:
    """One JSON object a line of the worklist, in its order; of a file's name what can be shown."""
    for rank, case in enumerate(found.cases, start=1):
        yield {
            "event": "case",
            "rank": rank,
            "case": clean(case.case),
            "probability": case.probability,
            "decision": case.decision,
            "scores": case.scores,
            "images": case.images,
            "image": case.image,
        }
    for one in found.unreadable:
        yield {"event": "unreadable", "case": clean(one.case), "reason": one.reason}


def table(found: Worklist, study: Study, notice: str = NOTICE, *, calibrated: bool = True) -> str:
    """The worklist as CSV; every line says what it is (``notice``), for lines travel alone.

    What is not ``calibrated`` is called no probability.
    """
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    columns = [f"score {name}" for name in study.scored_classes]
    urgency = "probability of abnormality" if calibrated else "score of abnormality (no probability)"
    head = ["rank", "case", urgency, "decision", *columns, "images", "image", "problem", "notice"]
    lines.writerow([cell_text(name) for name in head])
    for rank, case in enumerate(found.cases, start=1):
        scores = [f"{score:.6f}" for score in case.scores.values()]
        cells = [
            rank,
            case.case,
            f"{case.probability:.6f}",
            case.decision,
            *scores,
            case.images,
            case.image,
            "",
            notice,
        ]
        lines.writerow([cell_text(cell) for cell in cells])
    for one in found.unreadable:
        blank = [""] * len(columns)
        cells = ["", one.case, "", "not scored", *blank, "", "", one.reason, notice]
        lines.writerow([cell_text(cell) for cell in cells])
    return buffer.getvalue()
