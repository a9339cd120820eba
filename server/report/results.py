"""``results.json`` of one run, parsed once; below here nothing looks up keys.

Numbers that are null, missing or not finite become ``None``: an undefined metric
is shown as such, never as zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import RunError
from common.study_personal import PERSONALISED
from server.report.calibrated import Calibrated
from server.report.compared import Compared, Readers
from server.report.examined import AllMistakes, Level, Subgroups, parse_robustness
from server.report.explanations import Explained
from server.report.intervals import Interval, number_in
from server.report.outlined import Outlined
from server.report.promises import Central, Privacy, parse_central, parse_privacy

FORMAT = 1
ARMS = ("federated", "local", "pooled")
_AT_HOSPITALS = "federation"
"""The engine of a run that hospitals played themselves."""

Metrics = Mapping[str, Interval]


@dataclass(frozen=True)
class Curve:
    """ROC curve: false and true positive rates, both ascending in [0, 1]."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True)
class Refusal:
    """A site's reply that did not count in a round."""

    arm: str
    round: int
    site: str
    reason: str


@dataclass(frozen=True)
class RoundEntry:
    round: int
    train_loss: float | None
    val_loss: float | None
    val_auc: float | None
    val_dice: float | None = None
    lost: bool = False
    """Whether its secure sum was lost: the weights stayed as they were."""


@dataclass(frozen=True)
class Scores:
    """One model's results: an arm's, or that of one hospital alone."""

    test: Metrics
    per_class: Mapping[str, Metrics]
    thresholds: Mapping[str, float]
    confusion: Mapping[str, tuple[tuple[int, ...], ...]]
    confusion_matrix: tuple[tuple[int, ...], ...] | None
    roc: Mapping[str, Curve]
    history: tuple[RoundEntry, ...]
    rounds: int
    kept_round: int | None
    stopped_early: bool
    calibration: Mapping[str, Calibrated] = field(default_factory=dict)
    """By class, where it is known."""
    subgroups: Subgroups | None = None
    mistakes: AllMistakes | None = None
    robustness: Mapping[str, tuple[Level, ...]] = field(default_factory=dict)
    """By condition; the three of the kept model only."""
    outlined: Outlined | None = None
    """Of a model that outlines, but not of the local arm's mean."""


@dataclass(frozen=True)
class Arm:
    """An arm: its model, and per hospital the test on its own (and, for local, on everyone's) patients."""

    name: str
    model: Scores
    own: Mapping[str, Metrics]
    everyone: Mapping[str, Metrics]
    alone: Mapping[str, Scores]
    privacy: Privacy | None = None
    central: Central | None = None


@dataclass(frozen=True)
class Site:
    """One hospital's data: counts by split (``train``, ``val``, ``test``)."""

    images: Mapping[str, int]
    patients: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    origin: str
    device: str
    withheld: tuple[tuple[str, str], ...] = ()
    """Of the test: ``(class, "with" or "without")`` that it left out, as of too few patients."""


@dataclass(frozen=True)
class Difference:
    """Paired difference a − b of a metric on one group of test patients."""

    a: str
    b: str
    metric: str
    on: str
    interval: Interval


@dataclass(frozen=True)
class OwnModel:
    """One hospital's own model, on its own test patients."""

    test: Metrics
    would_run: str
    """``global``, ``personal`` or ``local``: chosen on its validation images."""
    differences: tuple[Difference, ...]
    """Between ``personal``, ``global``, ``local`` and ``best``, the better of the last two; all ``on`` its own."""

    def difference(self, a: str, b: str, metric: str) -> Interval | None:
        """The interval of a − b; ``None`` where it was not measured."""
        found = ((d.a, d.b, d.metric) == (a, b, metric) and d.interval for d in self.differences)
        return next((interval for interval in found if interval), None)


@dataclass(frozen=True)
class OwnModels:
    method: str
    sites: Mapping[str, OwnModel]


@dataclass(frozen=True)
class Heterogeneity:
    """How unlike the hospitals are, beside the same dealt at random (``_iid``)."""

    label_js: float | None
    label_js_iid: float | None
    size_gini: float | None
    feature_shift: float | None
    feature_shift_iid: float | None
    label_js_pairs: tuple[tuple[float | None, ...], ...]
    feature_shift_pairs: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Phase:
    name: str
    wall_s: float
    cpu_s: float | None
    """``None`` where nobody can know: hospitals' machines are their own."""


@dataclass(frozen=True)
class Run:
    """Everything the report says about one run."""

    version: str
    name: str
    task: str
    classes: tuple[str, ...]
    study: Mapping[str, Any]
    study_hash: str
    synthetic: bool | None
    """``None``: not known, as images never left the hospitals."""
    source: str
    seed: int
    repeat: int
    engine: str
    workers: int
    threads: int
    device: str
    rounds: int
    bytes_sent: int
    wall_s: float
    cpu_s: float | None
    phases: tuple[Phase, ...]
    environment: Mapping[str, str]
    sites: Mapping[str, Site]
    images_without_patient: int
    unlabelled: int
    unreadable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    """What the sources of the images say of themselves."""
    heterogeneity: Heterogeneity | None
    arms: Mapping[str, Arm]
    differences: tuple[Difference, ...]
    refusals: tuple[Refusal, ...]
    comparisons: tuple[Compared, ...] = ()
    readers: Readers | None = None
    """Where the study asks for them."""
    own_models: OwnModels | None = None
    """Hospitals' own models, where the run has them; not on everyone's patients, and so none of :attr:`arms`."""
    explained: Explained | None = None
    absent: tuple[str, ...] = ()
    """Hospitals that trained and are not in the test."""
    declined: Mapping[str, str] = field(default_factory=dict)
    """Hospitals of the federation that took no part: the code of each one's answer."""
    unpaid: tuple[str, ...] = ()
    """Hospitals whose privacy budgets ended the run before its last round."""

    @property
    def at_hospitals(self) -> bool:
        """Whether hospitals played it themselves: no image was in one place, and nobody trained alone."""
        return self.engine == _AT_HOSPITALS

    @property
    def suppressed(self) -> bool:
        """Whether no count of validation or test patients may leave a hospital."""
        return "suppressed" in (self.setting(by, "evaluation") for by in ("privacy", "central_privacy"))

    @property
    def least(self) -> int:
        """Counts of fewer patients than this stay at a hospital."""
        return int(self.setting("evaluation", "min_cell") or 1)

    @property
    def confidence(self) -> float:
        """Level of every interval in the run, e.g. 0.95."""
        evaluation = self.study.get("evaluation")
        value = number_in(evaluation.get("confidence")) if isinstance(evaluation, Mapping) else None
        return value if value is not None else 0.95

    def setting_list(self, *path: str) -> list[str]:
        """A setting of the study that is a list, as texts; empty where it has none."""
        node: Any = self.study
        for step in path:
            node = node.get(step) if isinstance(node, Mapping) else None
        return [str(value) for value in node] if isinstance(node, Sequence) and not isinstance(node, str) else []

    def setting(self, *path: str) -> str:
        """A setting of the study as text, ``""`` where it has none."""
        node: Any = self.study
        for step in path:
            node = node.get(step) if isinstance(node, Mapping) else None
        return "" if node is None else str(node)


def parse(raw: Mapping[str, Any]) -> Run:
    """One run's results. Raises :class:`RunError` where they are not what this version writes."""
    if raw.get("format") != FORMAT:
        raise RunError(
            f"results.json has format {raw.get('format')!r}, this version reads {FORMAT}: "
            "run the study again, or report it with the version that made it"
        )
    try:
        return _run(raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RunError(f"results.json is damaged: {problem}; take it from the run again, or repeat the run") from None


def _run(raw: Mapping[str, Any]) -> Run:
    arms = {str(name): _arm(str(name), value) for name, value in raw["arms"].items() if name != PERSONALISED}
    ordered = {name: arms[name] for name in (*ARMS, *arms) if name in arms}
    heterogeneity = raw.get("heterogeneity")
    return Run(
        version=str(raw["fedward"]),
        name=str(raw["study"]["name"]),
        task=str(raw["task"]),
        classes=tuple(str(name) for name in raw["classes"]),
        study=raw["study"],
        study_hash=str(raw["study_hash"]),
        synthetic=None if raw["synthetic"] is None else _flag(raw["synthetic"]),
        source=str(raw["source"]),
        seed=int(raw["seed"]),
        repeat=int(raw.get("repeat") or 0),
        engine=str(raw["engine"]),
        workers=int(raw.get("workers") or 1),
        threads=int(raw.get("threads") or 1),
        device=str(raw.get("device") or "cpu"),
        rounds=int(raw["rounds"]),
        bytes_sent=int(raw["bytes_sent"]),
        wall_s=float(raw["wall_s"]),
        cpu_s=number_in(raw["cpu_s"]),
        phases=tuple(Phase(str(p["name"]), float(p["wall_s"]), number_in(p["cpu_s"])) for p in raw.get("phases") or ()),
        environment={str(key): str(value) for key, value in (raw.get("environment") or {}).items()},
        sites={str(name): _site(value) for name, value in raw["sites"].items()},
        images_without_patient=int(raw.get("images_without_patient") or 0),
        unlabelled=int(raw.get("unlabelled") or 0),
        unreadable=tuple((str(item["file"]), str(item["reason"])) for item in raw.get("unreadable") or ()),
        notes=tuple(str(note) for note in raw.get("notes") or ()),
        heterogeneity=_heterogeneity(heterogeneity) if heterogeneity else None,
        arms=ordered,
        differences=tuple(_difference(item) for item in raw.get("differences") or ()),
        own_models=_own_models(raw["arms"].get(PERSONALISED)),
        refusals=tuple(refusal for name in ordered for refusal in _refusals(name, raw["arms"][name])),
        comparisons=tuple(Compared.parse(item) for item in raw.get("comparisons") or ()),
        readers=Readers.parse(raw["readers"]) if raw.get("readers") else None,
        explained=Explained.parse(raw.get("explanations")),
        absent=tuple(str(site) for site in raw.get("absent") or ()),
        declined={str(site): str(answer) for site, answer in (raw.get("declined") or {}).items()},
        unpaid=tuple(str(site) for site in raw.get("unpaid") or ()),
    )


def _arm(name: str, raw: Mapping[str, Any]) -> Arm:
    sites = raw.get("sites") or {}
    return Arm(
        name=name,
        model=_scores(raw),
        own={str(site): _metrics(value.get("test")) for site, value in sites.items()},
        everyone={str(site): _metrics(value["all_test"]) for site, value in sites.items() if value.get("all_test")},
        alone={str(site): _scores(value) for site, value in sites.items()} if name == "local" else {},
        privacy=parse_privacy([value.get("privacy") for value in ([raw] if name != "local" else sites.values())]),
        central=parse_central(raw.get("central_privacy")),
    )


def _scores(raw: Mapping[str, Any]) -> Scores:
    matrix = raw.get("confusion_matrix")
    kept = raw.get("kept_round")
    return Scores(
        test=_metrics(raw.get("test")),
        per_class={str(name): _metrics(value) for name, value in (raw.get("per_class") or {}).items()},
        thresholds={
            str(name): number
            for name, value in (raw.get("thresholds") or {}).items()
            if (number := number_in(value)) is not None
        },
        confusion={str(name): _matrix(value) for name, value in (raw.get("confusion") or {}).items()},
        confusion_matrix=_matrix(matrix) if matrix else None,
        roc={str(name): _curve(value) for name, value in (raw.get("roc") or {}).items()},
        history=tuple(_entry(value) for value in raw.get("history") or ()),
        rounds=int(raw.get("rounds") or 0),
        kept_round=None if kept is None else int(kept),
        stopped_early=_flag(raw.get("stopped_early") or False),
        outlined=Outlined.parse(raw["outlines"], raw["outline_threshold"]) if raw.get("outlines") else None,
        calibration={str(name): Calibrated.parse(value) for name, value in (raw.get("calibration") or {}).items()},
        subgroups=Subgroups.parse(raw["subgroups"]) if raw.get("subgroups") else None,
        mistakes=AllMistakes.parse(raw["mistakes"]) if raw.get("mistakes") else None,
        robustness=parse_robustness(raw.get("robustness") or {}),
    )


def _site(raw: Mapping[str, Any]) -> Site:
    return Site(
        images=_counts(raw["images"]),
        patients=_counts(raw.get("patients") or {}),
        classes={str(split): _counts(value) for split, value in (raw.get("classes") or {}).items()},
        origin=str(raw.get("origin") or ""),
        device=str(raw.get("device") or ""),
        withheld=tuple((str(name), str(sign)) for name, sign in raw.get("withheld") or ()),
    )


def _heterogeneity(raw: Mapping[str, Any]) -> Heterogeneity:
    return Heterogeneity(
        label_js=number_in(raw.get("label_js")),
        label_js_iid=number_in(raw.get("label_js_iid")),
        size_gini=number_in(raw.get("size_gini")),
        feature_shift=number_in(raw.get("feature_shift")),
        feature_shift_iid=number_in(raw.get("feature_shift_iid")),
        label_js_pairs=_pairs(raw.get("label_js_pairs")),
        feature_shift_pairs=_pairs(raw.get("feature_shift_pairs")),
    )


def _difference(raw: Mapping[str, Any]) -> Difference:
    return Difference(str(raw["a"]), str(raw["b"]), str(raw["metric"]), str(raw["on"]), Interval.parse_given(raw))


def _own_models(raw: Mapping[str, Any] | None) -> OwnModels | None:
    if raw is None:
        return None
    sites = {
        str(site): OwnModel(
            _metrics(value.get("test")),
            str(value["would_run"] if "would_run" in value else value["chosen"]),
            tuple(_difference({"on": site, **item}) for item in value.get("differences") or ()),
        )
        for site, value in raw["sites"].items()
    }
    return OwnModels(str(raw["method"]), sites)


def _refusals(arm: str, raw: Mapping[str, Any]) -> Iterator[Refusal]:
    histories = [raw.get("history") or ()]
    if arm == "local":
        histories += [value.get("history") or () for value in (raw.get("sites") or {}).values()]
    for history in histories:
        for entry in history:
            for site, reply in (entry.get("sites") or {}).items():
                if (status := str(reply.get("status") or "no answer")) != "ok":
                    yield Refusal(arm, int(entry["round"]), str(site), status)


def _entry(raw: Mapping[str, Any]) -> RoundEntry:
    return RoundEntry(
        int(raw["round"]),
        number_in(raw.get("train_loss")),
        number_in(raw.get("val_loss")),
        number_in(raw.get("val_auc")),
        number_in(raw.get("val_dice")),
        lost=bool(raw.get("lost")),
    )


def _metrics(raw: Mapping[str, Any] | None) -> Metrics:
    return {str(name): Interval.parse_given(value) for name, value in (raw or {}).items()}


def _curve(raw: Mapping[str, Any]) -> Curve:
    points = [(number_in(x), number_in(y)) for x, y in zip(raw["fpr"], raw["tpr"], strict=True)]
    defined = [(x, y) for x, y in points if x is not None and y is not None]
    return Curve(tuple(x for x, _ in defined), tuple(y for _, y in defined))


def _matrix(raw: Sequence[Sequence[Any]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(value) for value in row) for row in raw)


def _pairs(raw: Sequence[Sequence[Any]] | None) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(number_in(value) for value in row) for row in raw or ())


def _counts(raw: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(value) for name, value in raw.items()}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{str(value)[:40]!r} stands where true or false belongs")
    return value
