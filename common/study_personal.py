"""``personalisation:`` of a study: what of a model stays each site's own; and what that cannot go with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from common.study_fields import Part

if TYPE_CHECKING:
    from common.study import Study

PERSONALISED = "personalised"
"""The arm of sites' own models, in results."""
DEFAULT_PULL = 10.0
DEFAULT_EPOCHS = 5


class PersonalisationSpec(Part):
    """What a site has beside, or in place of, the model that all of them share.

    - ``fedbn`` (Li et al. 2021, arXiv:2102.07623): norm layers are trained at each site and stay there; everything else
      is shared. There is no model of all sites then: each one's is the shared part with its own norm layers.
    - ``ditto`` (Li et al. 2021, arXiv:2012.04221): beside the shared model each site trains one of its own, which
      ``pull`` (the paper's λ, by default 10) draws towards the shared one: with 0 it is trained alone, with infinity it
      is the shared one. A step of learning rate η goes about η·``pull`` of the way: 10 suits Adam's 0.001, the paper's
      0.1 to 2 plain SGD.
    - ``finetune``: after the last round each site goes on with the finished model on its own training images, for at
      most ``epochs`` (by default 5) with the learning rate ``lr`` (by default training.optimiser.lr), and keeps the
      epoch with the least loss on its own validation images; none of them, where none is better.
    - ``scaffold`` (Karimireddy et al. 2020, arXiv:1910.06378): one model for all, without the drift of sites that
      differ: each site's steps are corrected by a control variate, which it keeps.

    What is a site's own never leaves it; ``scaffold`` sends how far its fit moved for each unit of learning rate, from
    which its variate follows.
    """

    method: Literal["fedbn", "ditto", "finetune", "scaffold"]
    pull: Annotated[float, Field(ge=0.0)] | None = None
    epochs: Annotated[int, Field(ge=0, le=1000)] | None = None
    lr: Annotated[float, Field(gt=0.0)] | None = None

    @model_validator(mode="after")
    def _each_its_own(self) -> Self:
        owners = {"pull": "ditto", "epochs": "finetune", "lr": "finetune"}
        for name, owner in owners.items():
            if getattr(self, name) is not None and self.method != owner:
                raise ValueError(f"{name} belongs to method: {owner}; leave it out with {self.method}")
        return self

    @property
    def strength(self) -> float:
        """λ of Ditto."""
        return DEFAULT_PULL if self.pull is None else self.pull

    @property
    def most_epochs(self) -> int:
        """Epochs that fine-tuning tries."""
        return DEFAULT_EPOCHS if self.epochs is None else self.epochs

    @property
    def own_models(self) -> bool:
        """Whether each site ends with a model of its own."""
        return self.method != "scaffold"

    @property
    def split(self) -> bool:
        """Whether the model that is trained together has parts that stay at each site."""
        return self.method == "fedbn"


def check_personal(study: Study) -> None:
    """Raises :class:`ValueError` for what would void a guarantee or mean nothing; names the remedy."""
    personal = study.personalisation
    if personal is None:
        return
    if study.task == "segmentation":
        raise ValueError("personalisation: of classification so far; leave it out, or change the task")
    if personal.method == "fedbn":
        _check_fedbn(study)
    elif personal.method == "scaffold":
        _check_scaffold(study)
    else:
        _check_beside(study, personal.method)


def _check_fedbn(study: Study) -> None:
    if study.model.norm == "none":
        raise ValueError(
            "personalisation: fedbn keeps norm layers at the sites, and model.norm is none; use model.norm: batch or "
            "group"
        )


def _check_beside(study: Study, method: str) -> None:
    """Models beside the shared one see each patient without noise, so nothing about them may be told."""
    if study.privacy is not None and study.privacy.evaluation == "exact":
        raise ValueError(
            f"personalisation: {method} trains each site's own model without noise, and test counts of it would tell "
            "of patients whom privacy: protects; use privacy.evaluation: suppressed"
        )
    if method == "finetune" and study.metrics_suppressed:
        raise ValueError(
            "personalisation: finetune is done when a site is asked to test its own model, and with evaluation: "
            "suppressed nobody is asked; use ditto"
        )


def _check_scaffold(study: Study) -> None:
    federation, optimiser = study.federation, study.training.optimiser
    if optimiser.name != "sgd" or optimiser.momentum:
        raise ValueError(
            "personalisation: scaffold reads a site's mean gradient off how far its steps went, which plain SGD alone "
            "allows; use training.optimiser: {name: sgd} without momentum"
        )
    if optimiser.clip_norm is not None:
        raise ValueError(
            "personalisation: scaffold corrects whole gradients, and clipped ones give another mean; leave "
            "training.optimiser.clip_norm out"
        )
    if federation.strategy.name != "fedavg":
        raise ValueError(
            f"personalisation: scaffold is a way of averaging of its own; use federation.strategy: fedavg, not "
            f"{federation.strategy.name}"
        )
    hidden = {
        "federation.secure_aggregation": federation.secure_aggregation,
        "privacy": study.privacy,
        "central_privacy": study.central_privacy,
    }
    for key, given in hidden.items():
        if given is not None:
            raise ValueError(
                f"personalisation: scaffold's coordinator follows each site's variate from its update as it is, which "
                f"{key} hides; leave one of them out (fedbn and ditto go with it)"
            )
    if federation.compression != "none":
        raise ValueError(
            "personalisation: scaffold's variates follow from exact updates; use federation.compression: none"
        )
