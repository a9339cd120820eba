"""What a survey tells of a site before training: counts by class and split, and sums of its training images' pixels.

All are whole numbers: adding them is exact, and no order shows. The small-cell rule (DESIGN, decision 12) holds
where they are made: of a split, a class of fewer than k patients is withheld, and with it the next smallest classes
until those withheld have k patients together, so that the split's total tells of none of them; of a multilabel
class, those with it and those without it are withheld together. An empty class is told as empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics.cells import withheld
from common.metrics.layout import MOST_IMAGES, Arrays, Ints, expect, integers
from common.study import Study

SPLITS = ("train", "val", "test")
WHITE = 255
"""The grey level that stands for 1.0."""

Rows = tuple[NDArray[np.float32], Ints]
"""Of one split: targets ``(N, C)`` in {0, 1}, without masked images, and patients ``(N,)``."""


def one_class(study: Study) -> bool:
    """Whether an image has exactly one class: those without it are then the other classes' and not counted."""
    return study.task in ("binary", "multiclass")


def images_told(study: Study, rows: Mapping[str, Rows], least: int) -> dict[str, int]:
    """Labelled images per split, as they may leave: none of a split of fewer than ``least`` patients.

    Of the training split all, as a fit tells that too. Of the others those of classes with ``least`` patients, for the
    statistics of a test leave out the same, and the difference would be the small class. In segmentation, where masks
    and not labels make the groups, no more than whether there are any.
    """
    told = {}
    for split in SPLITS:
        targets, patients = rows[split]
        kept = np.ones(len(patients), dtype=np.bool_)
        if split != "train" and one_class(study):
            for column in range(targets.shape[1]):
                of_class = targets[:, column] == 1
                if len(np.unique(patients[of_class])) < least:
                    kept &= ~of_class
        images = int(kept.sum()) if len(np.unique(patients[kept])) >= least else 0
        told[split] = min(images, 1) if study.task == "segmentation" and split != "train" and least > 1 else images
    return told


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Each ``(3, C, 2)``: split (as :data:`SPLITS`), class, and 0 for images without the class, 1 for those with it."""

    images: Ints
    patients: Ints
    withheld: Ints
    """How many sites withheld a count that is not empty; it is 0 in the other two."""

    @classmethod
    def zero(cls, study: Study) -> ClassCounts:
        """Where a sum starts."""
        return cls(*(np.zeros((len(SPLITS), len(study.classes), 2), dtype=np.int64) for _ in range(3)))

    @classmethod
    def of(cls, study: Study, rows: Mapping[str, Rows]) -> ClassCounts:
        """A site's own, by split; under the study's ``evaluation.min_cell``."""
        found = cls.zero(study)
        signs = (1,) if one_class(study) else (0, 1)
        for split, name in enumerate(SPLITS):
            targets, patients = rows[name]
            hidden = _hidden(targets, patients, study)
            for column in range(targets.shape[1]):
                for sign in signs:
                    chosen = targets[:, column] == sign
                    if hidden[column, sign]:
                        found.withheld[split, column, sign] = 1
                        continue
                    found.images[split, column, sign] = chosen.sum()
                    found.patients[split, column, sign] = len(np.unique(patients[chosen]))
        return found

    def __add__(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(self.images + other.images, self.patients + other.patients, self.withheld + other.withheld)

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        return {"images": self.images, "patients": self.patients, "withheld": self.withheld}

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> ClassCounts:
        """One site's counts from outside. Raises :class:`ProtocolError` for what no honest site could send."""
        shape = (len(SPLITS), len(study.classes), 2)
        found = cls(
            integers(arrays, "images", shape).copy(),
            integers(arrays, "patients", shape).copy(),
            integers(arrays, "withheld", shape, most=1).copy(),
        )
        images, patients, withheld = found.images, found.patients, found.withheld
        told = patients > 0
        holds = [
            bool((patients <= images).all()),
            bool((told == (images > 0)).all()),
            not (withheld & told).any(),
            not (one_class(study) and (images[:, :, 0].any() or withheld[:, :, 0].any())),
        ]
        if not all(holds):
            raise ProtocolError("a survey's counts by class contradict themselves")
        if (patients[told] < study.evaluation.min_cell).any():
            raise ProtocolError(
                f"a survey counts fewer than {study.evaluation.min_cell} patients, which must not leave"
            )
        return found


def _hidden(targets: NDArray[np.float32], patients: Ints, study: Study) -> NDArray[np.bool_]:
    """``(C, 2)``: which counts of a split do not leave."""
    k, classes = study.evaluation.min_cell, targets.shape[1]
    groups = [[set(patients[targets[:, column] == sign].tolist()) for sign in (0, 1)] for column in range(classes)]
    result = np.zeros((classes, 2), dtype=np.bool_)
    if not one_class(study):
        for column, pair in enumerate(groups):
            if any(0 < len(group) < k for group in pair):
                result[column] = [bool(group) for group in pair]
        return result
    result[withheld([having for _, having in groups], k), 1] = True
    return result


@dataclass(frozen=True)
class PixelSums:
    """Sums over all pixels of the prepared training images, per channel, in grey levels 0 to 255."""

    images: int
    """0 where nothing was told."""
    pixels: int
    """Of one channel, all images together."""
    total: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def zero(cls, study: Study) -> PixelSums:
        """Where a sum starts."""
        nothing = (0,) * study.image.channels
        return cls(0, 0, nothing, nothing)

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(
            self.images + other.images,
            self.pixels + other.pixels,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, in [0, 1]; there must be pixels."""
        return tuple(total / (WHITE * self.pixels) for total in self.total)

    @property
    def deviation(self) -> tuple[float, ...]:
        """Standard deviation of each channel, in [0, 0.5], of the population; there must be pixels.

        From n·Σx² - (Σx)² in whole numbers: nothing cancels.
        """
        pairs = zip(self.total, self.squares, strict=True)
        return tuple(math.sqrt(self.pixels * squares - total**2) / (WHITE * self.pixels) for total, squares in pairs)

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        return {"pixels": np.array([self.images, *self.total, *self.squares], dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> PixelSums:
        """One site's sums from outside. Raises :class:`ProtocolError` for what no pixels could add up to."""
        channels = study.image.channels
        numbers = [int(n) for n in integers(arrays, "pixels", (1 + 2 * channels,), most=(1 << 63) - 1)]
        images, total, squares = numbers[0], tuple(numbers[1 : 1 + channels]), tuple(numbers[1 + channels :])
        pixels = images * study.image.size**2
        for s, q in zip(total, squares, strict=True):
            # Whole x in 0..255: x ≤ x² ≤ 255 x, and (Σx)² ≤ n Σx² (Cauchy and Schwarz).
            if not (s <= q <= WHITE * s <= WHITE**2 * pixels and s * s <= pixels * q):
                raise ProtocolError("a survey's sums of pixels are those of no images")
        if images > MOST_IMAGES:
            raise ProtocolError(f"a survey's sums of pixels are of more than {MOST_IMAGES} images")
        return cls(images, pixels, total, squares)


@dataclass(frozen=True)
class Survey:
    """What one site told, or several together; ``None`` for what the study does not ask."""

    classes: ClassCounts | None
    pixels: PixelSums | None

    @classmethod
    def zero(cls, study: Study) -> Survey:
        """Where a sum starts."""
        asked = study.surveyed
        return cls(
            ClassCounts.zero(study) if "classes" in asked else None,
            PixelSums.zero(study) if "pixels" in asked else None,
        )

    def __add__(self, other: Survey) -> Survey:
        classes = self.classes + other.classes if self.classes and other.classes else None
        return Survey(classes, self.pixels + other.pixels if self.pixels and other.pixels else None)

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """For the wire."""
        return {
            **(self.classes.to_arrays() if self.classes else {}),
            **(self.pixels.to_arrays() if self.pixels else {}),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study, images: Mapping[str, int]) -> Survey:
        """One site's survey from outside; ``images`` is what it says to have per split, 0 where it does not.

        Raises :class:`ProtocolError` for anything that no honest site could send.
        """
        asked = study.surveyed
        expect(
            arrays,
            {
                *(("images", "patients", "withheld") if "classes" in asked else ()),
                *(("pixels",) if "pixels" in asked else ()),
            },
        )
        found = cls(
            ClassCounts.from_arrays(arrays, study) if "classes" in asked else None,
            PixelSums.from_arrays(arrays, study) if "pixels" in asked else None,
        )
        train = images.get("train", 0)
        if found.pixels is not None and found.pixels.images not in (0, train):
            raise ProtocolError("a survey's sums of pixels are of other images than it counts")
        if found.classes is not None:
            for split, name in enumerate(SPLITS):
                by_class = found.classes.images[split]
                most = by_class.sum() if one_class(study) else by_class.sum(axis=1).max(initial=0)
                if most > images.get(name, 0):
                    raise ProtocolError("a survey counts more images of its classes than of the split")
        return found
