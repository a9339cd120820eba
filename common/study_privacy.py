"""``privacy:`` of a study: local differential privacy of each site's training, and what cannot be combined with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from common.study_fields import Part

if TYPE_CHECKING:
    from common.study import Study


LEAST_CLIP = 1e-6
"""Far below it float32 has few digits left, and gradients that were clipped are rounded up to more than the bound."""


class PrivacySpec(Part):
    """DP-SGD at each site (Abadi et al. 2016, arXiv:1607.00133), per patient, over the whole study.

    ``training.batch_size`` is how many units (patients, or images) a step is expected to draw, and what sums are
    divided by. ``sample_rate`` is the chance of each to be drawn: given, the same at every site; left out, each
    site's own batch_size over its number of units, which its noise then depends on.
    """

    unit: Literal["patient", "image"] = "patient"
    epsilon: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0.0, le=10_000.0)] | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    clip: Annotated[float, Field(ge=LEAST_CLIP)] = 1.0
    accountant: Literal["prv", "rdp"] = "prv"
    sample_rate: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    evaluation: Literal["suppressed", "exact"] = "suppressed"

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon (the noise follows from it) or noise_multiplier, one of them")
        if self.noise_multiplier is not None and self.sample_rate is None:
            raise ValueError(
                "noise_multiplier needs sample_rate too: else each site's epsilon would differ and tell how many "
                "patients it has"
            )
        return self


def check_privacy(study: Study) -> None:
    """Raises :class:`ValueError` for what would void the guarantee or tell what it hides; names the remedy."""
    privacy, training, federation = study.privacy, study.training, study.federation
    if privacy is None:
        return
    if study.model.norm == "batch" and not study.model.frozen:  # else the model knows (``common.models.frozen``)
        raise ValueError("privacy: batch norm mixes the patients of a batch; use model.norm: group")
    if training.local_steps is None:
        raise ValueError(
            "privacy needs training.local_steps, not local_epochs: how many steps a pass over a site's patients takes "
            "tells how many there are"
        )
    if training.schedule.kind != "constant" and training.schedule.unit == "epoch":
        raise ValueError("privacy: there are steps in place of epochs; use training.schedule.unit: round")
    if study.surveyed and training.class_weighting != "federated":
        raise ValueError(
            "privacy: survey and image.normalise: federated send counts and sums that no noise covers; leave them out"
        )
    if training.class_weighting != "none":
        raise ValueError("privacy: class_weighting uses class counts, which no noise covers; use class_weighting: none")
    if training.optimiser.clip_norm is not None:
        raise ValueError("privacy: privacy.clip bounds each patient's gradient; leave training.optimiser.clip_norm out")
    if federation.compression != "none":
        raise ValueError(
            "privacy: a private study sends its noised weights as they are; use federation.compression: none"
        )
    if federation.strategy.name == "qfedavg":
        raise ValueError("privacy: qfedavg weighs sites by their loss, which does not leave; use fedavg")
    if privacy.evaluation == "suppressed" and (federation.keep == "best" or federation.early_stopping is not None):
        raise ValueError(
            "privacy: keep: best and early_stopping need validation results, which are suppressed; use keep: last, or "
            "privacy.evaluation: exact, which no epsilon covers"
        )
