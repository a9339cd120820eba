"""The study file: one frozen, self-checking YAML document that is the whole contract.

A hospital approves the hash of a study, so everything that decides what is
computed on its patients stands here, and nothing in here is code: a
researcher's own model or strategy is an *installed* Python entry point
(groups ``fedward.models`` and ``fedward.strategies``) that a study names.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from common import findings, strict_yaml
from common.errors import StudyError
from common.frozen_dict import FrozenDict
from common.study_central import CentralPrivacySpec, check_central
from common.study_compare import check_compared
from common.study_data import DataSpec, FoldSpec, PhantomSpec
from common.study_examined import check_examined
from common.study_fields import Labels, Part, Scalar, label_text
from common.study_outlines import SEGMENTERS, LesionSpec, check_outlines, outlines_first
from common.study_parts import (
    MODELS,
    STRATEGIES,
    AugmentSpec,
    EarlyStopping,
    EvaluationSpec,
    FederationSpec,
    GovernanceSpec,
    ImageSpec,
    ModelSpec,
    OptimiserSpec,
    PartitionSpec,
    PreprocessSpec,
    ScheduleSpec,
    StrategySpec,
    ThresholdSpec,
    TrainingSpec,
    Window,
)
from common.study_personal import PersonalisationSpec, check_personal
from common.study_privacy import PrivacySpec, check_privacy
from common.study_secure import SecureAggregationSpec, check_secure

__all__ = [
    "MODELS",
    "SEGMENTERS",
    "STRATEGIES",
    "AugmentSpec",
    "CentralPrivacySpec",
    "DataSpec",
    "EarlyStopping",
    "EvaluationSpec",
    "FederationSpec",
    "FoldSpec",
    "GovernanceSpec",
    "ImageSpec",
    "LesionSpec",
    "ModelSpec",
    "OptimiserSpec",
    "Part",
    "PartitionSpec",
    "PersonalisationSpec",
    "PhantomSpec",
    "PreprocessSpec",
    "PrivacySpec",
    "Scalar",
    "ScheduleSpec",
    "SecureAggregationSpec",
    "StrategySpec",
    "Study",
    "Task",
    "ThresholdSpec",
    "TrainingSpec",
    "Window",
    "schema",
]

Task = Literal["binary", "multiclass", "multilabel", "segmentation"]
Surveyed = Literal["classes", "pixels"]
MAX_CLASSES = 1000

_CLASSES_SCHEMA: dict[str, Any] = {
    "description": "Classes in the order of the model's outputs, each with the labels that mean it; "
    "of a binary task the second is the positive one.",
    "anyOf": [
        {"type": "array", "minItems": 1, "items": {"type": ["string", "integer"]}},
        {"type": "object", "minProperties": 1, "additionalProperties": {
            "anyOf": [{"type": ["string", "integer"]}, {"type": "array", "items": {"type": ["string", "integer"]}}],
        }},
    ],
}  # fmt: skip


_ADDED: dict[str, Any] = {
    "survey": [],
    "data.fold": None,
    "data.phantoms.kind": "chest",
    "data.take": {},
    "data.group_duplicates": False,
    "image.normalise": "none",
    "image.sequences": [],
    "model.frozen": [],
    "federation.compression": "none",
    "federation.secure_aggregation": None,
    "privacy": None,
    "central_privacy": None,
    "training.outline_loss": "dice_ce",
    "training.outline_weight": 1.0,
    "evaluation.lesions": LesionSpec().model_dump(mode="json"),
    "evaluation.subgroups": [],
    "evaluation.age_bands": [20, 40, 60, 80],
    "evaluation.errors_by": [],
    "evaluation.robustness": [],
    "personalisation": None,
    "evaluation.compare": [],
    "evaluation.readers": [],
}
"""Keys added after hospitals had approved studies, and what they are where nobody uses them.

A study without them is written, and so hashed, as it was before: approvals stay good, and older sites can read it.
"""
_SURVEY = (
    "What sites tell once before round 1: counts of images and patients by class and split, sums of the training "
    "images' pixels. Options that need one of them (normalise, class_weighting: federated) ask for it by themselves."
)


class Study(Part):
    """A whole study. ``Study.load(path)`` reads one; ``study.hash`` names it."""

    name: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
    description: str = ""
    task: Task
    classes: Annotated[Mapping[str, Labels], WithJsonSchema(_CLASSES_SCHEMA)]
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    data: DataSpec = DataSpec()
    image: ImageSpec = ImageSpec()
    preprocess: PreprocessSpec = PreprocessSpec()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    federation: FederationSpec = FederationSpec()
    privacy: PrivacySpec | None = None
    central_privacy: CentralPrivacySpec | None = None
    personalisation: PersonalisationSpec | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    survey: Annotated[tuple[Surveyed, ...], Field(description=_SURVEY)] = ()
    partition: PartitionSpec = PartitionSpec()
    governance: GovernanceSpec = GovernanceSpec()

    @field_validator("classes", mode="before")
    @classmethod
    def _names_or_map(cls, value: Any) -> Any:
        """``[normal, pneumonia]`` is short for ``{normal: [normal], pneumonia: [pneumonia]}``."""
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            names = [label_text(name) for name in value]
            if len(set(names)) != len(names):
                raise ValueError("a class is named twice; name each once")
            return {name: (name,) for name in names}
        if isinstance(value, Mapping):
            return {label_text(name): labels for name, labels in value.items()}
        raise ValueError(
            "must be a list of classes or a map of each class to its labels, as in configs/quickstart.yaml"
        )

    @field_validator("classes")
    @classmethod
    def _with_labels(cls, value: Mapping[str, tuple[str, ...]]) -> FrozenDict[tuple[str, ...]]:
        if not 1 <= len(value) <= MAX_CLASSES:
            raise ValueError(f"a study has 1 to {MAX_CLASSES} classes, got {len(value)}")
        for name, labels in value.items():
            if not labels:
                raise ValueError(f"class {name!r} has no label; give at least one, for example {name}: [{name}]")
        return FrozenDict(value)

    @field_validator("survey")
    @classmethod
    def _each_once(cls, value: tuple[Surveyed, ...]) -> tuple[Surveyed, ...]:
        """In one order: what two studies ask alike is written alike."""
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.classes)
        if self.task == "binary" and count != 2:
            raise ValueError(
                f"classes: task binary needs exactly two classes (the second is the positive one), got {count}"
            )
        if self.task == "multiclass" and count < 3:
            raise ValueError(
                f"classes: task multiclass needs at least three classes, got {count}; two classes are task: binary"
            )
        self._check_labels()
        for source, taken in self.data.take.items():
            for name in taken:
                if name not in self.classes:
                    raise ValueError(f"data.take.{source}: no class {name!r}; name one of: {', '.join(self.classes)}")
        if self.partition.kind == "pathological" and self.partition.classes_per_site > count:
            raise ValueError(
                f"partition.classes_per_site: {self.partition.classes_per_site} of only {count} classes; lower it"
            )
        _known("federation.strategy.name", self.federation.strategy.name, STRATEGIES, "fedward.strategies")
        _known("model.name", self.model.name, MODELS, "fedward.models")
        self._check_fold()
        check_outlines(self)
        check_compared(self)
        check_privacy(self)
        check_secure(self)
        check_central(self)
        check_examined(self)
        check_personal(self)
        return self

    def _check_fold(self) -> None:
        """A fold's parts hang on all of a site's patients: what protects one of them would not hold."""
        if self.data.fold is None:
            return
        if self.privacy is not None or self.central_privacy is not None:
            raise ValueError(
                "data.fold: one patient more moves others from fold to fold, and differential privacy bounds what "
                "one patient changes; leave data.fold out, or privacy and central_privacy"
            )
        if self.evaluation.min_cell > 1:
            raise ValueError(
                "data.fold: the counts of all folds, subtracted from each other, tell of cells smaller than "
                "evaluation.min_cell; leave data.fold out, or use min_cell: 1"
            )

    def _check_labels(self) -> None:
        """A label means one thing: one class, uncertain, or other."""
        meanings = [("data.uncertain", self.data.uncertain), ("data.other", self.data.other)]
        meanings += [(f"classes.{name}", labels) for name, labels in self.classes.items()]
        places: dict[str, str] = {}
        for place, labels in meanings:
            for label in labels:
                if places.setdefault(label, place) != place:
                    raise ValueError(f"{place}: label {label!r} stands in {places[label]} too; keep one of them")

    @property
    def metrics_suppressed(self) -> bool:
        """Whether no count of validation or test patients may leave a site."""
        return any(given.evaluation == "suppressed" for given in (self.privacy, self.central_privacy) if given)

    @property
    def counts_kept(self) -> bool:
        """Whether numbers of images, losses and times of a fit stay at the site: no noise covers them."""
        return self.privacy is not None or self.central_privacy is not None

    @property
    def noised_by_sites(self) -> bool:
        """Whether each site adds a part of the central noise (``common.noise_shares``)."""
        return self.central_privacy is not None and self.central_privacy.noise == "sites"

    @property
    def noised_at_sites(self) -> bool:
        """Whether sites add noise to what a fit tells: a round of it is then trained once, and no more."""
        return self.privacy is not None or self.noised_by_sites

    @property
    def norms_stay(self) -> bool:
        """Whether norm layers never leave a site that trains with others."""
        return self.personalisation is not None and self.personalisation.split

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def outputs(self) -> int:
        """Logits of the model: one for a binary task (of the second class), else one per class.

        In segmentation one, of the last class, for each pixel.
        """
        return 1 if self.task in ("binary", "segmentation") else len(self.classes)

    @property
    def scored_classes(self) -> tuple[str, ...]:
        """Names of the score columns: of a binary task and of segmentation only the last class."""
        return self.class_names[-1:] if self.task in ("binary", "segmentation") else self.class_names

    @property
    def outlines(self) -> bool:
        """Whether the model outlines, and so learns from masks."""
        return self.task == "segmentation" or outlines_first(self.model.name, self.model.params)

    @property
    def surveyed(self) -> tuple[Surveyed, ...]:
        """What sites tell before round 1: what :attr:`survey` lists and what other options need."""
        needed: set[Surveyed] = set(self.survey)
        if self.training.class_weighting == "federated":
            needed.add("classes")
        if self.image.normalise == "federated":
            needed.add("pixels")
        return tuple(sorted(needed))

    def canonical(self) -> bytes:
        """The study as compact JSON in the order of its fields and classes: what is hashed and sent."""
        return json.dumps(self._dumped(), separators=(",", ":"), ensure_ascii=False).encode()

    def _dumped(self) -> dict[str, Any]:
        """All fields, but for :data:`_ADDED` ones that the study makes no use of."""
        dumped = self.model_dump(mode="json")
        for dotted, unused in _ADDED.items():
            *parents, leaf = dotted.split(".")
            node = dumped
            for parent in parents:
                node = node[parent]
            if node[leaf] == unused:
                del node[leaf]
        return dumped

    @property
    def hash(self) -> str:
        """SHA-256 of :meth:`canonical`, hexadecimal. Class order counts: it is the model's output order."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read and check a study file. Raises :class:`StudyError` naming file, key and remedy."""
        try:
            with path.open("rb") as file:
                text = file.read(strict_yaml.MAX_BYTES + 1).decode("utf-8-sig")
        except FileNotFoundError:
            raise StudyError(
                f"{path}: no such study file; `fedward study schema` describes one, configs/ holds examples"
            ) from None
        except UnicodeDecodeError as error:
            raise StudyError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
        except OSError as error:
            raise StudyError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, where: str = "study") -> Study:
        """A study from YAML (or JSON) text; ``where`` names it in errors. Raises :class:`StudyError`."""
        try:
            raw = strict_yaml.load(text)
        except strict_yaml.StrictYamlError as error:
            raise StudyError(f"{where}{error}") from None
        return cls._checked(raw, where)

    @classmethod
    def _checked(cls, raw: Any, where: str) -> Study:
        if not isinstance(raw, dict):
            kind = "empty" if raw is None else f"a {type(raw).__name__}"
            raise StudyError(f"{where}: a study is a mapping of keys, this is {kind}; see configs/quickstart.yaml")
        try:
            # strict, so that `rounds: true` is not one round; as JSON, where a list may become a tuple
            return cls.model_validate_json(json.dumps(raw, ensure_ascii=False).encode(), strict=True)
        except UnicodeEncodeError:
            raise StudyError(f"{where}: a text holds half a character (\\ud800 to \\udfff); write it whole") from None
        except ValidationError as error:
            raise StudyError(f"{where}: {findings.explain(cls, error)}") from None

    def derive(self, **changes: Any) -> Study:
        """A derived study with dotted-path changes, checked anew: ``derive(**{"federation.rounds": 3})``."""
        where = f"study {self.name!r} with {', '.join(changes)}"
        raw = self.model_dump(mode="json")
        for dotted, value in changes.items():
            *parents, leaf = dotted.split(".")
            node = raw
            for parent in parents:
                if node.get(parent) is None:
                    node[parent] = {}
                node = node[parent]
                if not isinstance(node, dict):
                    raise StudyError(f"{where}: {dotted}: {parent} is a single value; name a key of a mapping")
            node[leaf] = value
        return type(self)._checked(json.loads(json.dumps(raw, default=_plain)), where)


def _plain(value: Any) -> Any:
    """A Python value as JSON has it: parts, dates, NumPy's numbers."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value.item() if hasattr(value, "item") else str(value)


def _known(key: str, name: str, known: Sequence[str], group: str) -> None:
    if name in known:
        return
    installed = {entry.name for entry in metadata.entry_points(group=group)}
    if name in installed:
        return
    choices = [*known, *sorted(installed)]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"
    raise ValueError(f"{key}: unknown name {name!r}; {hint} (others are installed as entry points of group {group!r})")


def schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a study, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
