"""``central_privacy:`` of a study: the coordinator hides each hospital in noise; and what that cannot go with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from common.study_fields import Part

if TYPE_CHECKING:
    from common.study import Study

MEANS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that know sites' updates by their mean alone: what they make of a noised one costs nothing more."""


class CentralPrivacySpec(Part):
    """Differential privacy of a whole hospital (McMahan et al. 2018, arXiv:1710.06963), over the whole study.

    Each site's update is clipped in L2, their sum gets Gaussian noise in proportion, and every site weighs the same.
    ``clipping: adaptive`` (Andrew et al. 2021, arXiv:1905.03871) moves the bound, from ``clip`` on, to where the share
    ``quantile`` of updates is below it; how many are is counted with noise of ``count_noise`` sites, which is paid for
    by more noise on the updates. Left out, it is twice the noise multiplier, which costs them 3 %.

    ``noise: sites``: under secure aggregation each site adds a part of it, so that the coordinator never sees a sum
    without. Counted on are as many sites as the threshold asks for, less ``colluders``, who may tell theirs.
    """

    epsilon: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0.0, le=10_000.0)] | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    clip: Annotated[float, Field(gt=0.0, le=1e6)]
    clipping: Literal["fixed", "adaptive"] = "fixed"
    quantile: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    clip_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    count_noise: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    accountant: Literal["prv", "rdp"] = "prv"
    noise: Literal["coordinator", "sites"] = "coordinator"
    colluders: Annotated[int, Field(ge=0, le=1000)] | None = None
    evaluation: Literal["suppressed", "exact"] = "suppressed"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon (the noise follows from it) or noise_multiplier, one of them")
        if (self.noise == "sites") != (self.colluders is not None):
            raise ValueError(
                "noise: sites needs colluders, how many sites might tell the coordinator their noise; else leave it out"
            )
        if self.noise == "sites" and self.clipping == "adaptive":
            raise ValueError("noise: sites sums updates and no count of clipped ones; use clipping: fixed")
        if self.noise == "sites" and self.accountant != "rdp":
            raise ValueError("noise: sites adds whole numbers, which are accounted by Rényi alone; use accountant: rdp")
        if self.clipping == "fixed" and self.count_noise is not None:
            raise ValueError("count_noise belongs to clipping: adaptive; leave it out, or choose that")
        if self.noise_multiplier is not None and self.count_noise is not None:
            least = self.noise_multiplier / 2.0
            if self.count_noise <= least:
                raise ValueError(
                    f"count_noise must be above {least:g}, half the noise multiplier: with less the count alone costs "
                    "more than the whole study may"
                )
        return self


def check_central(study: Study) -> None:
    """Raises :class:`ValueError` for what would void the guarantee or tell what it hides; names the remedy."""
    central, federation = study.central_privacy, study.federation
    if central is None:
        return
    if federation.strategy.name not in MEANS:
        raise ValueError(
            f"central_privacy: {federation.strategy.name} looks at every site's update by itself, so that no bound on "
            f"the mean bounds one site's influence on the model; use one of {', '.join(MEANS)}"
        )
    # a frozen model knows by itself (``common.models.frozen``)
    if study.model.norm == "batch" and not (study.model.frozen or study.norms_stay):
        raise ValueError(
            "central_privacy: batch norm's running statistics leave a site beside the update, and no noise covers "
            "them; use model.norm: group, or personalisation: {method: fedbn}"
        )
    secure = federation.secure_aggregation
    if secure is not None and central.noise == "coordinator":
        raise ValueError(
            "central_privacy: under secure aggregation the coordinator sees no update that it could clip; let the "
            "sites do it with central_privacy.noise: sites, or leave federation.secure_aggregation out"
        )
    if central.noise == "sites":
        if secure is None or not isinstance(secure.threshold, int):
            raise ValueError(
                "central_privacy.noise: sites needs federation.secure_aggregation with a whole number as threshold: so "
                "many sites' noise is in every sum"
            )
        if central.colluders is not None and central.colluders >= secure.threshold:
            raise ValueError(
                f"central_privacy.colluders {central.colluders} leaves nobody of a threshold of {secure.threshold} "
                "whose noise is unknown; lower it, or raise federation.secure_aggregation.threshold"
            )
    if study.surveyed:
        raise ValueError(
            "central_privacy: survey, image.normalise: federated and class_weighting: federated send counts and sums "
            "that no noise covers; leave them out"
        )
    if central.evaluation == "suppressed" and (federation.keep == "best" or federation.early_stopping is not None):
        raise ValueError(
            "central_privacy: keep: best and early_stopping need validation results, which are suppressed; use "
            "keep: last, or central_privacy.evaluation: exact, which no epsilon covers"
        )
