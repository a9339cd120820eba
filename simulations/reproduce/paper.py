"""What ``configs/papers`` holds of one paper: its figures with their places, and the studies that stand beside them.

``N-….yaml`` are ordinary studies; ``N.table.yaml`` says which of them are run, with which changes, what the paper
published, and where in the paper it stands. A figure of a paper is copied as it is printed; what contradicts itself
in the paper is listed under ``contradictions``, never mended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from common import findings, strict_yaml
from common.errors import StudyError
from common.study import Study
from common.study_fields import Part

PAPERS = Path(__file__).resolve().parents[2] / "configs" / "papers"

LATENCY = "latency_ms"
"""The metric that stands for the time a case takes on a CPU, in milliseconds."""
ArmName = Literal["federated", "local", "pooled"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
Text = Annotated[str, Field(min_length=1)]
Changes = Mapping[str, Any]
"""Changes of a study by dotted path, as :meth:`common.study.Study.derive` takes them."""


class DataSet(Part):
    """Images that a user may have: what they are, what a study needs to read them, how many a CPU can do."""

    title: Text
    layout: Text
    changes: Changes = Field(default_factory=dict)
    scaled: Changes = Field(default_factory=dict)
    modality: str = ""
    """What phantoms of this set say of themselves (DICOM: CT, MR, DX), where one set of phantoms has several."""
    phantoms: Changes = Field(default_factory=dict)
    """Which phantoms stand for it; of a run of several sets that differ here, each is drawn and they are joined."""


class Planned(Part):
    """One run: a study of the paper, changed; all others are told apart from it by its ``changes`` alone.

    ``images``: the sets it reads. Without them the images are phantoms, and so they are where ``images`` is empty.
    ``phantoms``: what the study needs to be of phantoms. ``only_full``: not without
    ``--full``. ``starts_from``: the run whose trained weights it begins with.
    """

    title: Text
    study: Text | None = None
    changes: Changes = Field(default_factory=dict)
    arms: tuple[ArmName, ...] = ("federated",)
    images: tuple[Name, ...]
    phantoms: Changes = Field(default_factory=dict)
    starts_from: Name | None = None
    only_full: bool = False

    @field_validator("arms")
    @classmethod
    def _some(cls, value: tuple[ArmName, ...]) -> tuple[ArmName, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name each arm once, at least one of federated, local, pooled")
        return value


class Ours(Part):
    """Where our figure stands: a run's arm, a metric, for a class or over all; ``complement`` shows 1 − it.

    ``within``: on the test images of one data set alone, where the run has several; of the model that the run kept.
    """

    run: Name
    metric: Text
    arm: ArmName = "federated"
    label: str | None = None
    within: Name | None = None
    complement: bool = False


class Published(Part):
    """One figure of the paper as printed (a percentage as a rate in [0, 1]), and ours or why there is none."""

    what: Text
    value: float
    unit: Literal["rate", "loss", "ms"] = "rate"
    headline: bool = False
    """Whether the page begins with it."""
    ours: Ours | None = None
    why_not: str = ""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.ours is None) == (not self.why_not):
            raise ValueError("give ours, or say in why_not why there is none")
        return self


class Printed(Part):
    """One table (or sentence) of the paper."""

    caption: Text
    where: Text
    rows: Annotated[tuple[Published, ...], Field(min_length=1)]


class Stage(Part):
    """A stage that distinguishes the paper's system: the run that has it against the run that has not.

    Without ``lacking`` it is set against a rule that sees no pixel, only which data set an image is from.
    """

    title: Text
    having: Name
    lacking: Name | None = None
    metric: Text = "auc"
    why: Text


class Comparison(Part):
    """Runs of ours side by side: sizes, models, settings."""

    title: Text
    runs: Annotated[tuple[Name, ...], Field(min_length=2)]
    metrics: Annotated[tuple[Text, ...], Field(min_length=1)]
    label: str | None = None
    note: str = ""


class Theirs(Part):
    """How the paper's figures came about, for the head of their column."""

    data: Text
    split: Text
    trained: Text


class Mine(Part):
    """How ours came about; on which images stands in the results."""

    split: Text
    trained: Text


class Scaled(Part):
    """What was made smaller so that a CPU can do it, in words and as changes; ``--full`` leaves it out."""

    told: Annotated[tuple[Text, ...], Field(min_length=1)]
    changes: Changes = Field(default_factory=dict)


class Quick(Part):
    """What ``--quick`` leaves: few runs, changed to be small."""

    runs: Annotated[tuple[Name, ...], Field(min_length=1)]
    changes: Changes = Field(default_factory=dict)


class Paper(Part):
    """One paper's table file."""

    paper: Annotated[int, Field(ge=1)]
    title: Text
    authors: Text
    published_in: Text
    system: Text
    study: Text
    sets: Mapping[Name, DataSet]
    theirs: Theirs
    ours: Mine
    runs: Mapping[Name, Planned]
    published: Annotated[tuple[Printed, ...], Field(min_length=1)]
    stages: tuple[Stage, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    differs: Annotated[tuple[Text, ...], Field(min_length=1)]
    scaled_down: Scaled
    contradictions: tuple[Text, ...] = ()
    phantoms: Changes = Field(default_factory=dict)
    quick: Quick
    by_class: tuple[Name, ...] = ()
    """Runs whose classes, or findings, are shown one by one."""
    latency: tuple[Name, ...] = ()
    confounded: Name | None = None
    """The run of several data sets whose result is set beside what the data set alone tells."""

    @model_validator(mode="after")
    def _names_stand_for_something(self) -> Self:
        for where, name in self._named():
            if name not in self.runs:
                raise ValueError(f"{where}: there is no run {name!r}; runs are {', '.join(self.runs)}")
        timed = [row.ours.run for one in self.published for row in one.rows if row.ours and row.ours.metric == LATENCY]
        if missing := set(timed) - set(self.latency):
            raise ValueError(f"latency: add {', '.join(sorted(missing))}, whose time stands beside the paper's")
        earlier: set[str] = set()
        for name, run in self.runs.items():
            if unknown := [one for one in run.images if one not in self.sets]:
                raise ValueError(f"runs.{name}.images: there is no set {unknown[0]!r}; sets are {', '.join(self.sets)}")
            strange = [
                row.ours.within for one in self.published for row in one.rows if row.ours and row.ours.run == name
            ]
            if lost := [one for one in strange if one is not None and one not in run.images]:
                raise ValueError(f"published: run {name} has no images of {lost[0]}; it has {', '.join(run.images)}")
            if run.starts_from is not None and run.starts_from not in earlier:
                raise ValueError(f"runs.{name}.starts_from: {run.starts_from!r} must be a run listed before it")
            earlier.add(name)
        return self

    def _named(self) -> Iterator[tuple[str, str]]:
        yield from (("quick.runs", name) for name in self.quick.runs)
        yield from (("latency", name) for name in self.latency)
        yield from (("by_class", name) for name in self.by_class)
        yield from (("confounded", name) for name in (self.confounded,) if name)
        for stage in self.stages:
            yield from ((f"stages {stage.title!r}", name) for name in (stage.having, stage.lacking) if name)
        for comparison in self.comparisons:
            yield from ((f"comparisons {comparison.title!r}", name) for name in comparison.runs)
        for table in self.published:
            yield from ((f"published {table.caption!r}", row.ours.run) for row in table.rows if row.ours)


def numbers() -> list[int]:
    """The papers there are, by number."""
    return sorted(int(path.name.split(".")[0]) for path in PAPERS.glob("*.table.yaml"))


def load(number: int, folder: Path = PAPERS) -> Paper:
    """Paper ``number``'s table. Raises :class:`StudyError` where there is none, or it does not hold together."""
    path = folder / f"{number}.table.yaml"
    try:
        raw = strict_yaml.load(path.read_text(encoding="utf-8"))
        paper = Paper.model_validate_json(json.dumps(raw, ensure_ascii=False), strict=True)
    except FileNotFoundError:
        known = ", ".join(map(str, numbers())) or "none: configs/papers is missing"
        raise StudyError(f"there is no paper {number}; papers are {known}") from None
    except strict_yaml.StrictYamlError as error:
        raise StudyError(f"{path.name}{error}") from None
    except ValidationError as error:
        raise StudyError(f"{path.name}: {findings.explain(Paper, error)}") from None
    if paper.paper != number:
        raise StudyError(f"{path.name}: says paper: {paper.paper}; name the file {paper.paper}.table.yaml")
    return paper


def listing() -> list[str]:
    """The papers and the sets that each can be given, a line each."""
    lines = []
    for paper in map(load, numbers()):
        lines.append(f"{paper.paper}  {paper.title} ({paper.authors})")
        lines += [f"     --data {name}=DIR  {one.title}: {one.layout}" for name, one in paper.sets.items()]
    return lines


def study_of(paper: Paper, run: Planned, extra: Changes, folder: Path = PAPERS) -> Study:
    """The study of ``run``, with the changes of its data (``extra``) under its own."""
    study = Study.load(folder / (run.study or paper.study))
    changes = {**extra, **run.changes}
    return study.derive(**changes) if changes else study
