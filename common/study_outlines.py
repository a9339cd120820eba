"""What a study that outlines says besides, and what cannot be combined with it.

The masks of a vault are 0 and 1: one kind of finding. A segmentation study names it with its last class; the labels of
its classes say which images take part. Where there are two classes the first is what images without the finding
show. An image counts as having the finding where its mask is not empty, whatever its label says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from common.study_fields import Fraction, Part, Positive

if TYPE_CHECKING:
    from common.study import Study

SEGMENTERS = ("unet",)
"""Of our models those that outline, and do nothing else."""


TWO_STAGES = ("segment_classify",)
"""Of our models those that outline first, and classify what they have outlined."""
REGIONS = ("gate", "crop", "none")
"""What a model of two stages makes of its outline; ``none``: it draws none, which is what it is compared with."""


def outlines_first(model: str, params: Mapping[str, Any]) -> bool:
    """Whether a classifying model learns from masks too."""
    return model in TWO_STAGES and params.get("region", REGIONS[0]) != "none"


class LesionSpec(Part):
    """A lesion is a connected piece (8 neighbours) of an outline, true or predicted, and its box.

    ``overlap``: a true lesion is found where a predicted box has at least this IoU with its own, each box counting
    once. ``smallest``: pieces of fewer pixels (of the model's input) are no lesions. ``sizes``: shares of the image
    from which a lesion is medium, and large.
    """

    overlap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    smallest: Positive = 4
    sizes: tuple[Fraction, Fraction] = (0.01, 0.05)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not 0.0 < self.sizes[0] < self.sizes[1]:
            raise ValueError(f"sizes: must be two rising shares of the image above 0, got {list(self.sizes)}")
        return self


def check_outlines(study: Study) -> None:
    """Raises ``ValueError`` for what a study with masks cannot ask, or one without them does."""
    model = study.model.name
    if study.task == "segmentation":
        _check_segmentation(study)
    elif model in SEGMENTERS:
        raise ValueError(
            f"model.name: {model} outlines; use task: segmentation, or a model that classifies whole images"
        )
    elif study.outlines:
        if study.privacy is not None:
            raise ValueError(f"privacy: {model} is not trained privately yet; leave privacy out, or choose a model")
    elif (study.training.outline_loss, study.training.outline_weight) != ("dice_ce", 1.0):
        raise ValueError("training.outline_loss, outline_weight: this study trains no outlines; leave them out")
    elif study.evaluation.lesions != LesionSpec():
        raise ValueError("evaluation.lesions: this study draws no outlines; leave it out")


def _check_segmentation(study: Study) -> None:
    from common.study import MODELS

    count, training = len(study.classes), study.training
    if count > 2:
        raise ValueError(
            f"classes: masks outline one kind of finding, so task segmentation has it as its last class and may name "
            f"before it what images without it show; got {count} classes"
        )
    if study.model.name in MODELS and study.model.name not in SEGMENTERS:
        raise ValueError(
            f"model.name: {study.model.name} classifies whole images; segmentation needs "
            f"{' or '.join(SEGMENTERS)}, or a model installed under the entry point group 'fedward.models'"
        )
    if training.class_weighting != "none":
        raise ValueError("training.class_weighting: weighs classes of images; segmentation needs class_weighting: none")
    if training.outline_weight != 1.0:
        raise ValueError("training.outline_weight: outlines are all that segmentation learns; leave it out")
    if training.label_smoothing:
        raise ValueError("training.label_smoothing: is for classes of images; leave it out in segmentation")
    if "classes" in study.survey:
        raise ValueError("survey: counts classes of images, which segmentation does not train on; leave classes out")
