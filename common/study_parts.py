"""The parts of a study, each with its defaults and its own rules (``common.study`` has the whole)."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.frozen_dict import FrozenDict
from common.study_compare import MOST_READERS, Other, Reader
from common.study_examined import AgeBands, Columns, Robustness
from common.study_fields import Fraction, NonNegative, Parameters, Part, Positive
from common.study_outlines import LesionSpec
from common.study_secure import SecureAggregationSpec


class ImageSpec(Part):
    """What the model sees: ``(channels, size, size)``.

    ``normalise: none`` leaves pixels in [0, 1]. With ``federated`` each channel has mean 0 and standard deviation 1
    over all sites' training images, as the survey measured them before round 1.

    ``sequences``: three channels are not colours but these, in the order in which each image holds them, for example
    ``[T1, T2, diffusion]``: each is preprocessed by itself, and an image of one channel is refused.
    """

    size: Annotated[int, Field(ge=8, le=1024)] = 64
    channels: Literal[1, 3] = 1
    normalise: Literal["none", "federated"] = "none"
    sequences: tuple[Annotated[str, Field(min_length=1, max_length=40)], ...] = ()

    @model_validator(mode="after")
    def _one_a_channel(self) -> Self:
        if self.sequences and (self.channels, len(self.sequences), len(set(self.sequences))) != (3, 3, 3):
            raise ValueError(
                "sequences names three different ones and needs channels: 3; a vault holds images of one channel or "
                f"of three, got {len(self.sequences)} names and channels: {self.channels}"
            )
        return self


class Window(Part):
    """CT window in Hounsfield units (DICOM PS3.3 C.11.2)."""

    centre: float
    width: Annotated[float, Field(gt=0.0)]


class PreprocessSpec(Part):
    """Per-image steps in this order: window, Gaussian filter, equalise, resize, [0, 1]."""

    window: Window | None = None
    gaussian_sigma: NonNegative = 0.0
    equalise: Literal["none", "histogram", "clahe"] = "none"
    clahe_clip: Annotated[float, Field(gt=0.0)] = 2.0
    clahe_tiles: Positive = 8
    fit: Literal["stretch", "pad", "crop"] = "stretch"


class AugmentSpec(Part):
    """Batched, on the training device; every range is symmetric around "no change"."""

    rotate_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    shift: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    zoom: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    brightness: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    @property
    def active(self) -> bool:
        return self != AugmentSpec()


class ModelSpec(Part):
    """A model by name; ``params`` are the model's own (``common.models``).

    ``weights``: a file beside the study, at the side that starts the federation, whose numbers training begins with.
    ``frozen``: layers of it that no site trains and no round changes, by the beginnings of their names, up to a dot
    (``[conv1, bn1, layer1]``); their norm layers and dropout work as in evaluation.
    """

    name: str = "cnn"
    norm: Literal["none", "batch", "group"] = "group"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weights: Annotated[str, Field(min_length=1)] | None = None
    frozen: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    params: Parameters = Field(default_factory=FrozenDict)

    @field_validator("frozen")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """In one order: what two studies freeze alike is written alike."""
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _frozen_has_weights(self) -> Self:
        if self.frozen and self.weights is None:
            raise ValueError(
                "frozen needs weights: the file that these layers come from; drawn at random they know nothing"
            )
        return self


class OptimiserSpec(Part):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: NonNegative = 0.0
    l1: NonNegative = 0.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None

    @model_validator(mode="after")
    def _momentum_is_sgds(self) -> Self:
        if self.momentum and self.name != "sgd":
            raise ValueError(f"momentum belongs to name: sgd; {self.name} has its own, so leave it out")
        return self


class ScheduleSpec(Part):
    """Learning rate over the whole study, counted in ``unit``.

    ``exponential``: ``lr · gamma^floor(t / every)`` (paper 3: 0.96 per 100 epochs);
    ``cosine``: from ``lr`` to ``lr · floor`` over the study's length.
    """

    kind: Literal["constant", "exponential", "cosine"] = "constant"
    unit: Literal["epoch", "round"] = "epoch"
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.96
    every: Positive = 100
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class TrainingSpec(Part):
    """One local fit: what a site does in a round.

    ``class_weighting: balanced`` balances each site's own classes, and no count leaves for it; ``federated`` takes
    one set of weights at all sites, from the survey's counts. ``outline_loss`` is that of outlines: ``dice`` is
    1 - Dice of each image on the model's probabilities, ``dice_ce`` adds each image's mean cross-entropy. A model that
    outlines and classifies adds it, ``outline_weight`` times, to the loss of its classes.
    """

    batch_size: Positive = 32
    microbatch: Positive | None = None
    local_epochs: Positive | None = None
    local_steps: Positive | None = None
    optimiser: OptimiserSpec = OptimiserSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    class_weighting: Literal["none", "balanced", "federated"] = "none"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    outline_loss: Literal["dice_ce", "dice"] = "dice_ce"
    outline_weight: NonNegative = 1.0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give local_epochs or local_steps, not both")
        if self.microbatch is not None and self.microbatch > self.batch_size:
            raise ValueError(f"microbatch {self.microbatch} must not exceed batch_size {self.batch_size}")
        return self

    @property
    def epochs(self) -> int | None:
        """Local epochs per round; ``None`` when the study counts steps. One where neither is given."""
        return None if self.local_steps is not None else (self.local_epochs or 1)


STRATEGIES = (
    "fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad", "qfedavg",
    "fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan",
)  # fmt: skip
MODELS = (
    "cnn",
    "resnet18",
    "resnet50",
    "densenet121",
    "unet",
    "segment_classify",
    "vit",
    "cnn_rnn",
    "efficientnet_lite0",
)


class StrategySpec(Part):
    name: str = "fedavg"
    params: Parameters = Field(default_factory=FrozenDict)


class EarlyStopping(Part):
    """Stop after ``patience`` evaluated rounds without ``min_delta`` improvement.

    With ``evaluation.min_cell`` above 1 the loss is the metric: small cells leave no more than bounds of the AUC.
    In segmentation Dice stands where ``auc`` does.
    """

    patience: Positive
    metric: Literal["auc", "loss"] = "auc"
    min_delta: NonNegative = 0.0


class FederationSpec(Part):
    rounds: Positive = 10
    strategy: StrategySpec = StrategySpec()
    quorum: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    deadline_s: Annotated[float, Field(gt=0.0)] = 3600.0
    wait_s: NonNegative = 604_800.0
    """How long a round waits for sites that are closed or paused, where it has no quorum without them."""
    set_aside_after: Annotated[int, Field(ge=0)] = 3
    """So many rounds in a row with a refused reply, and a site is asked no more; 0: never."""
    evaluate_every: Annotated[int, Field(ge=0)] = 1
    keep: Literal["last", "best"] = "last"
    early_stopping: EarlyStopping | None = None
    first_norm_cap: Annotated[float, Field(gt=0.0)] = 1000.0
    norm_factor: Annotated[float, Field(gt=1.0)] = 10.0
    compression: Literal["none", "fp16", "int8"] = "none"
    """How a site of the federated arm sends what it learnt: its weights, or what training changed in 16 or 8 bits.

    ``int8`` adds what rounding left out of one update to the next (``common.compression``).
    """
    secure_aggregation: SecureAggregationSpec | None = None

    @model_validator(mode="after")
    def _needs_evaluation(self) -> Self:
        if self.evaluate_every == 0 and (self.early_stopping is not None or self.keep == "best"):
            raise ValueError("early_stopping and keep: best need evaluate_every ≥ 1")
        return self


class ThresholdSpec(Part):
    """Operating point, chosen on validation only."""

    rule: Literal["youden", "sensitivity"] = "youden"
    sensitivity: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @model_validator(mode="after")
    def _rule_has_value(self) -> Self:
        if (self.rule == "sensitivity") != (self.sensitivity is not None):
            raise ValueError("rule: sensitivity needs a sensitivity: value, and only that rule takes one")
        return self


_COMPARE = (
    "Second models to be tested against the kept one on the same test images: the one that round 1 began with, or the "
    "last round's where federation.keep is best. Sites send joint counts of both models' decisions, never a score."
)
_READERS = (
    "Columns of the sites' label sheets that hold readers' own labels. Sites send how often model and readers are "
    "right on the images that all of them have read."
)


class EvaluationSpec(Part):
    """How models are tested, and what else is asked of the kept one (``common.study_examined``).

    ``subgroups`` are attributes (sex, age, view, device, site, …) by whose values the test is counted again;
    ``errors_by`` are attributes or columns of labels by which only mistakes are; ``robustness`` names what is done to
    the test images, at five levels each.
    """

    threshold: ThresholdSpec = ThresholdSpec()
    bins: Annotated[int, Field(ge=16, le=1 << 20)] = 1 << 14
    min_cell: Annotated[int, Field(ge=1)] = 1
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    lesions: LesionSpec = LesionSpec()
    subgroups: Columns = ()
    age_bands: AgeBands = (20, 40, 60, 80)
    """First years of the bands into which ages are put, but of the youngest."""
    errors_by: Columns = ()
    robustness: Robustness = ()
    compare: Annotated[tuple[Other, ...], Field(description=_COMPARE)] = ()
    readers: Annotated[tuple[Reader, ...], Field(max_length=MOST_READERS, description=_READERS)] = ()

    @property
    def by(self) -> tuple[str, ...]:
        """Everything by whose values the test is counted again."""
        return tuple(dict.fromkeys((*self.subgroups, *self.errors_by)))


class PartitionSpec(Part):
    """How one dataset becomes several virtual hospitals, by patient."""

    kind: Literal["iid", "dirichlet", "quantity", "pathological", "natural", "device"] = "dirichlet"
    sites: Annotated[int, Field(ge=1, le=100_000)] = 5
    alpha: Annotated[float, Field(gt=0.0)] = 0.5
    classes_per_site: Positive = 1
    column: Annotated[str, Field(min_length=1)] | None = None
    device_shift: Fraction = 0.0
    min_per_site: Annotated[int, Field(ge=1)] = 10
    min_per_class: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "natural") != (self.column is not None):
            raise ValueError("kind: natural needs a column: (site, view, …), and only that kind takes one")
        if self.kind == "device" and self.device_shift == 0.0:
            raise ValueError("kind: device needs device_shift: above 0, for example 0.5")
        return self


class GovernanceSpec(Part):
    """Read by the people who approve the study at a hospital."""

    purpose: str = ""
    ethics_reference: str = ""
    contact: str = ""
    expires: dt.date | None = None

    @field_validator("expires", mode="before")
    @classmethod
    def _written_as_a_date(cls, value: Any) -> Any:
        if value is None or isinstance(value, dt.date):
            return value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            with contextlib.suppress(ValueError):
                return dt.date.fromisoformat(value)
        raise ValueError(f"must be a date as YYYY-MM-DD, got {value!r}")
