"""What training takes from a survey: the same numbers at every site, for the whole of a run.

They are made once, before round 1, of all sites' sums, kept with the run, and travel with every request; a site
refuses numbers outside their range, and others than it has trained with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import DataError, ProtocolError
from common.study import Study
from common.survey import Survey

LEAST_DEVIATION = 1 / 255
"""One grey level: images with less are blank."""
MOST_WEIGHT = 1e4


@dataclass(frozen=True)
class Basis:
    """Empty where the study does not ask for it."""

    mean: tuple[float, ...] = ()
    """Of each channel over all training pixels, which are in [0, 1]."""
    deviation: tuple[float, ...] = ()
    """Standard deviation of each channel."""
    class_weights: tuple[float, ...] = ()
    """Multiclass: of each class. Else of each output those without, then of each output those with the class."""

    @classmethod
    def of(cls, study: Study, survey: Survey) -> Basis | None:
        """From all sites' sums; ``None`` where the study trains without. Raises :class:`DataError`."""
        if not wanted(study):
            return None
        mean: tuple[float, ...] = ()
        deviation: tuple[float, ...] = ()
        if study.image.normalise == "federated":
            if survey.pixels is None or not survey.pixels.images:
                raise DataError(
                    "no site told sums of pixels: each has fewer training patients than evaluation.min_cell; "
                    "lower it, or use image.normalise: none"
                )
            mean, deviation = survey.pixels.mean, survey.pixels.deviation
            if min(deviation) < LEAST_DEVIATION:
                raise DataError("the sites' training images are blank; look at preprocess.window and at the images")
        weights = _balanced(study, survey) if study.training.class_weighting == "federated" else ()
        return cls(mean, deviation, weights)

    def check(self, study: Study) -> None:
        """Raises :class:`ProtocolError` for numbers that no survey for ``study`` could give."""
        channels = study.image.channels if study.image.normalise == "federated" else 0
        weights = 0
        if study.training.class_weighting == "federated":
            weights = len(study.classes) if study.task == "multiclass" else 2 * study.outputs
        if (len(self.mean), len(self.deviation), len(self.class_weights)) != (channels, channels, weights):
            raise ProtocolError("a request's pooled numbers are not those that the study asks for")
        least = 1 / len(study.classes) if study.task == "multiclass" else 0.5
        # Of numbers in [0, 1] the variance is at most mean · (1 - mean) (Bhatia and Davis 2000). NaN fails too.
        pixels = all(
            0.0 <= m <= 1.0 and d >= LEAST_DEVIATION and d * d <= m * (1.0 - m) * (1.0 + 1e-9)
            for m, d in zip(self.mean, self.deviation, strict=True)
        )
        if not pixels or not all(least * (1.0 - 1e-9) <= weight <= MOST_WEIGHT for weight in self.class_weights):
            raise ProtocolError("a request's pooled numbers are outside their range")

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def json(self) -> dict[str, Any]:
        """As it stands in a model's card."""
        return {name: list(numbers) for name, numbers in asdict(self).items()}

    @classmethod
    def from_json(cls, raw: Any, study: Study) -> Basis | None:
        """From a card. Raises :class:`ProtocolError`, or ``KeyError`` and the like for what is no card's."""
        if raw is None:
            check_given(None, study)
            return None
        found = cls(*(tuple(float(number) for number in raw[name]) for name in ("mean", "deviation", "class_weights")))
        check_given(found, study)
        return found

    def normalised(self, images: Tensor) -> Tensor:
        """``images`` ``(B, C, H, W)`` float in [0, 1], changed in place, with the study's mean and deviation."""
        if not self.mean:
            return images
        mean, deviation = (
            torch.tensor(numbers, dtype=images.dtype, device=images.device)[:, None, None]
            for numbers in (self.mean, self.deviation)
        )
        return images.sub_(mean).div_(deviation)


def wanted(study: Study) -> bool:
    """Whether the study trains with numbers of all sites."""
    return study.image.normalise == "federated" or study.training.class_weighting == "federated"


def check_given(basis: Basis | None, study: Study) -> None:
    """Raises :class:`ProtocolError` unless there are good numbers exactly where the study asks for them."""
    if (basis is not None) != wanted(study):
        raise ProtocolError(
            "a request lacks the pooled numbers that its study asks for"
            if basis is None
            else "a request brings pooled numbers that its study does not ask for"
        )
    if basis is not None:
        basis.check(study)


def _balanced(study: Study, survey: Survey) -> tuple[float, ...]:
    """n / (k · n_c), as scikit-learn's "balanced"; a class that nobody told of weighs 1."""
    if survey.classes is None or not survey.classes.images[0].any():
        raise DataError(
            "no site told how many training images of a class it has: all classes have fewer patients than "
            "evaluation.min_cell; lower it, or use training.class_weighting: balanced"
        )
    counts = survey.classes.images[0]
    weights: Sequence[float]
    if study.task == "multiclass":
        weights = _weights(counts[:, 1].tolist())
    else:
        pairs = [counts[:, 1].tolist()] if study.task == "binary" else counts.tolist()
        by_output = [_weights(pair) for pair in pairs]
        weights = [pair[0] for pair in by_output] + [pair[1] for pair in by_output]
    if max(weights) > MOST_WEIGHT:
        raise DataError(
            "a class is too rare for balanced weights (more than 10,000); use training.class_weighting: none"
        )
    return tuple(weights)


def _weights(counts: Sequence[int]) -> list[float]:
    whole = sum(counts)
    return [whole / (len(counts) * count) if count else 1.0 for count in counts]
