"""The space file: which fields of a study are searched, among which values, how, and how long."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from common import findings, strict_yaml
from common.errors import StudyError
from common.study import Part, Study
from common.study_data import MOST_FOLDS

Method = Literal["grid", "random", "tpe"]
Metric = Literal["auc", "dice", "loss"]
MOST_TRIALS = 10_000
DEFAULT_TRIALS = 20
_FIXED = {
    "name": "a trial is named by its number",
    "description": "it changes no number",
    "task": "trials of other tasks cannot be compared",
    "classes": "trials with other classes cannot be compared",
    "seed": "choosing a seed is choosing luck; `fedward simulate --repeats` shows how much seeds matter",
    "data": "all trials share one set of vaults",
    "partition": "all trials share one set of vaults",
    "evaluation": "trials that are measured in other ways cannot be compared",
    "survey": "it changes no number",
    "governance": "it changes no number",
    "personalisation": "the model that all share is what is judged",
    "privacy": "what patients are promised is not chosen by what scores best",
    "central_privacy": "what patients are promised is not chosen by what scores best",
}
"""Parts of a study that no search changes, and why."""


class Range(Part):
    """Numbers from ``low`` to ``high``, both included; whole ones where both are written without a point.

    ``log: true`` spreads them evenly over orders of magnitude; ``step`` allows low, low + step, … only; ``points`` is
    how many of them a grid takes.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: Annotated[int | float, Field(gt=0)] | None = None
    points: Annotated[int, Field(ge=2, le=1000)] | None = None

    @model_validator(mode="after")
    def _spans(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs low above 0, got {self.low}")
        if self.log and self.step is not None:
            raise ValueError("give log or step, not both")
        if self.whole and isinstance(self.step, float):
            raise ValueError(f"step must be a whole number as low and high are, got {self.step}")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def _count(self) -> int | None:
        """How many values there are; ``None``: without end."""
        if self.step is None and not self.whole:
            return None
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def _at(self, position: int) -> int | float:
        return self.plain(self.low + position * (self.step or 1))

    @property
    def values(self) -> list[Any] | None:
        """All of them, where they can be counted and no search is long enough to miss the others."""
        count = self._count
        return None if count is None or count > MOST_TRIALS else [self._at(position) for position in range(count)]

    def grid(self) -> list[Any]:
        """The values of a grid. Raises ``ValueError`` where nothing says which."""
        if self.points is None:
            if self.step is None:
                raise ValueError("a grid needs values: give points: or step:, or list them")
            if self.values is None:
                raise ValueError(f"a grid of more than {MOST_TRIALS} values; give points: or a larger step:")
            return self.values
        if self.log:
            spread = np.geomspace(self.low, self.high, self.points)
        elif self.values is not None and self.step is not None:
            chosen = np.linspace(0, len(self.values) - 1, self.points).round().astype(int)
            return list(dict.fromkeys(self.values[k] for k in chosen))
        else:
            spread = np.linspace(self.low, self.high, self.points)
        return list(dict.fromkeys(self.plain(value) for value in spread.tolist()))

    def draw(self, rng: np.random.Generator) -> Any:
        """One value at random."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return self.plain(value)
        count = self._count
        return self.plain(rng.uniform(self.low, self.high)) if count is None else self._at(int(rng.integers(count)))

    def plain(self, value: float) -> int | float:
        """As it will stand in a study: six digits are more than any of these numbers needs, and can be read."""
        rounded = round(value) if self.whole else float(f"{value:.6g}")
        return min(max(rounded, self.low), self.high)


class Choices(Part):
    """The values themselves; anything that a study's field may hold."""

    choices: Annotated[tuple[Any, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _differ(self) -> Self:
        texts = [json.dumps(value, sort_keys=True) for value in self.choices]
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"{text} is given twice; keep one")
        return self

    @property
    def values(self) -> list[Any]:
        return [list(value) if isinstance(value, tuple) else value for value in self.choices]

    def grid(self) -> list[Any]:
        return self.values

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.choices)))]


class PruneSpec(Part):
    """Stop a trial early whose validation result is below the median of the earlier trials' at the same round.

    Source: Golovin et al. (2017), "Google Vizier", the median stopping rule, as Optuna's ``MedianPruner`` has it.
    """

    startup_trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 5
    """So many trials are never stopped."""
    warmup_rounds: Annotated[int, Field(ge=0)] = 2
    """Nor is any in its first rounds."""


def _either(value: Any) -> Range | Choices:
    """One of the two, told apart by its keys, so that errors speak of one of them; a list is short for ``choices``."""
    if isinstance(value, Range | Choices):
        return value
    raw = {"choices": value} if isinstance(value, list) else value
    if not isinstance(raw, Mapping):
        raise ValueError("give a list of values, or low: and high:")
    kind: type[Range] | type[Choices] = Choices if "choices" in raw else Range
    try:
        return kind.model_validate_json(json.dumps(raw).encode(), strict=True)
    except ValidationError as error:
        raise ValueError(findings.explain(kind, error)) from None


Axis = Annotated[Range | Choices, BeforeValidator(_either)]


class SearchSpec(Part):
    """How a study's fields are searched. A cross-validation is a search of one trial, without a space."""

    method: Method = "tpe"
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = None
    folds: Annotated[int, Field(ge=2, le=MOST_FOLDS)] | None = None
    metric: Metric = "auc"
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None
    prune: PruneSpec | None = None
    space: Mapping[str, Axis] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> SearchSpec:
        """Read and check a space file. Raises :class:`StudyError` naming file, key and remedy."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise StudyError(f"{path}: no such space file; configs/search.yaml is an example") from None
        except UnicodeDecodeError as error:
            raise StudyError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
        except OSError as error:
            raise StudyError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from None
        try:
            raw = strict_yaml.load(text)
        except strict_yaml.StrictYamlError as error:
            raise StudyError(f"{path}{error}") from None
        if not isinstance(raw, dict):
            raise StudyError(f"{path}: a space file is a mapping of keys; configs/search.yaml is an example")
        spec = cls.parse(raw, str(path))
        if not spec.space:
            raise StudyError(f"{path}: space: names no field; give one, for example training.optimiser.lr")
        return spec

    @classmethod
    def parse(cls, raw: Mapping[str, Any], where: str) -> SearchSpec:
        """From plain data. Raises :class:`StudyError`."""
        try:
            return cls.model_validate_json(json.dumps(raw).encode(), strict=True)
        except ValidationError as error:
            raise StudyError(f"{where}: {findings.explain(cls, error)}") from None

    def changed(self, where: str, **changes: Any) -> SearchSpec:
        """With the options of a command line. Raises :class:`StudyError`."""
        return type(self).parse({**self.model_dump(mode="json", exclude_unset=True), **changes}, where)

    @property
    def maximised(self) -> bool:
        """Whether a higher score is the better one."""
        return self.metric != "loss"

    @property
    def size(self) -> int | None:
        """How many trials there can be; ``None``: without end."""
        counts = [None if axis.values is None else len(axis.values) for axis in self.space.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)


def check_fields(spec: SearchSpec, where: str) -> None:
    """Raises :class:`StudyError` for a field that no study has, or that no search may change."""
    names = sorted(spec.space)
    for name in names:
        first = name.split(".")[0]
        if first in _FIXED:
            raise StudyError(f"{where}: space.{name}: {first} is not searched: {_FIXED[first]}; take it out")
        _require_field(name, where)
        inside = next((other for other in names if other.startswith(f"{name}.")), None)
        if inside is not None:
            raise StudyError(f"{where}: space.{name}: {inside} is a part of it; keep one of them")


def _require_field(name: str, where: str) -> None:
    part: type[BaseModel] | None = Study
    *parents, _ = steps = name.split(".")
    for depth, step in enumerate(steps):
        if part is None:  # a model's or strategy's own parameters: whoever takes them checks them
            if depth == len(parents) and step:
                return
            raise StudyError(f"{where}: space.{name}: {'.'.join(steps[:depth])} has no parts; name one of its keys")
        known = part.model_fields
        if step not in known:
            close = difflib.get_close_matches(step, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known there: {', '.join(known)}"
            raise StudyError(f"{where}: space.{name}: a study has no {'.'.join(steps[: depth + 1])}; {hint}")
        part = _part(known[step].annotation)
        if part is None and depth < len(parents) and step != "params":
            raise StudyError(
                f"{where}: space.{name}: {'.'.join(steps[: depth + 1])} is a single value; leave out what follows it"
            )


def _part(annotation: Any) -> type[BaseModel] | None:
    options: Sequence[Any] = (annotation, *get_args(annotation))
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


__all__ = ["DEFAULT_TRIALS", "Axis", "Choices", "Method", "Metric", "PruneSpec", "Range", "SearchSpec"]
