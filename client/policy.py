"""``policy.yaml``: what a site allows a study to do. Asked anew at every request; closed where it cannot be read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from client.budget import Budget, uncovered
from client.hours import hours
from common import findings, strict_yaml
from common.errors import PolicyError
from common.privacy import promised
from common.study import MODELS, STRATEGIES, Study, Task
from common.study_fields import Part

POLICY_FILE = "policy.yaml"
MOST_OF_A_ROLE = 3

TEMPLATE = """\
# What this site allows a study to do. A study that asks for more is refused, and its coordinator is told which
# line refused it. Read at every request: a line made stricter stops a study that was approved before.
# A file that is missing or cannot be read allows nothing. Importing and keeping images does not depend on it.
models: [cnn, resnet18, resnet50, densenet121, efficientnet_lite0, vit, cnn_rnn, unet, segment_classify]
strategies: [fedavg, fedavgm, fedprox, fedadam, fedyogi, fedadagrad, fedmedian, fedtrimmedavg, krum, multikrum, bulyan]
largest_image: 512            # pixels a side
most_rounds: 200
most_epochs_a_round: 5
most_steps_a_round: null      # null: a study that counts steps in place of epochs is refused
smallest_cell: 10             # patients behind any count that leaves
tasks: null                   # e.g. [binary, multiclass]; null: any
classes: null                 # e.g. [normal, pneumonia*]; null: any
statistics: [survey, classes, pixels, scores, subgroups, moments, outlines, comparisons]   # may leave beside weights;
                              # readers: how often this site's readers are right, by their columns
minimum_privacy: null         # e.g. {unit: patient, epsilon: 8.0, delta: 1.0e-5}: studies that give less are refused
budget: null                  # e.g. {epsilon: 10.0, epsilon_a_study: 4.0, delta: 1.0e-5}: of all studies together; what
                              # they spent is in the ledger (`fedward site ledger`). null: recorded, not limited
secure_aggregation: optional  # required: studies that show the coordinator this site's own update are refused
opening_hours: null           # e.g. "19:00-07:00", or ["Mon-Fri 19:00-07:00", "Sat,Sun 00:00-24:00"]
device: null                  # auto, cpu or cuda:N; null: as site.yaml says
gpu_share: 1.0                # of the GPU's memory, from 0 to 1; 0 trains on the CPU
approvals_needed: [operator]  # any of data_manager, privacy_officer, operator; each another person; or with numbers:
                              # {privacy_officer: 2, operator: 1}
signed_approvals: []          # e.g. [privacy_officer]: these count only with a personal key (`fedward site person`)
expires_days: 180             # an approval's life
stock_flower: false           # true: a stock flower-supernode may open this site, and nobody is asked (see the guides)
approve_automatically: []     # e.g. [{coordinator: FINGERPRINT, classes: [normal, pneumonia], most_rounds: 50}]
"""
"""What a new site's policy says."""

Role = Literal["data_manager", "privacy_officer", "operator"]
Statistic = Literal[
    "survey", "classes", "pixels", "scores", "subgroups", "moments", "outlines", "comparisons", "readers"
]
STATISTICS: tuple[Statistic, ...] = ("survey", "scores", "moments")
"""Images per split; histograms of scores, sums of losses; sums over patients for intervals. Every study needs all.

A study may ask for two more before round 1: counts by class, sums of pixels (``Study.surveyed``); and of the test for
one more: the same histograms and sums by sex, age, view and the like (``evaluation.by``). And at its end
for what two models decide of the same images (``evaluation.compare``) and how readers did (``evaluation.readers``).
"""


@dataclass(frozen=True)
class Objection:
    """One thing that a study asks for and the policy does not allow."""

    code: str
    """``policy-models``: may be told to the coordinator."""
    line: str
    """The policy's key."""
    text: str
    """In words: the study's value and what is allowed; stays at the site."""


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints are the same, however they are grouped; an empty one is nobody's."""
    plain = ["".join(filter(str.isalnum, text)).upper() for text in (one, other)]
    return plain[0] == plain[1] != ""


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _readable(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for text in value or ():
        hours(text)
    return value


def _each_once(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if value is not None and len(set(value)) != len(value):
        raise ValueError("names something twice; keep one")
    return value


def _counted(value: Any) -> Any:
    """``{operator: 2}`` as ``(operator, operator)``; a list as it is, each once."""
    if isinstance(value, dict):
        if not all(type(count) is int and 1 <= count <= MOST_OF_A_ROLE for count in value.values()):
            raise ValueError(f"a role's number of approvals is a whole number from 1 to {MOST_OF_A_ROLE}")
        return tuple(role for role, count in value.items() for _ in range(count))
    return _each_once(tuple(value)) if isinstance(value, list) else value


def _installed(known: Sequence[str], group: str) -> AfterValidator:
    """Names that this site has: a misspelt one would allow nothing without saying so."""

    def check(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name in known:
                continue
            choices = [*known, *sorted(entry.name for entry in metadata.entry_points(group=group))]
            if name not in choices:
                close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(choices)}"
                raise ValueError(f"unknown name {name!r}; {hint}")
        return _each_once(names)

    return AfterValidator(check)


Names = tuple[Annotated[str, Field(min_length=1, max_length=100)], ...]
Models = Annotated[Names, _installed(MODELS, "fedward.models")]
Strategies = Annotated[Names, _installed(STRATEGIES, "fedward.strategies")]
Tasks = Annotated[tuple[Task, ...], AfterValidator(_each_once)]
Most = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Limits(Part):
    """What a study may ask for; a limit that is ``None`` is none."""

    tasks: Tasks | None = None
    classes: Names | None = None
    """Patterns (``pneumonia*``) in either case; each class of a study must fit one."""
    models: Models | None = None
    strategies: Strategies | None = None
    largest_image: Most | None = None
    most_rounds: Most | None = None
    most_epochs_a_round: Most | None = None
    most_steps_a_round: Most | None = None

    def exceeded(self, study: Study) -> Iterator[Objection]:
        """What ``study`` asks for beyond these limits."""
        yield from _not_listed("tasks", "task", study.task, self.tasks)
        yield from _not_listed("models", "model.name", study.model.name, self.models)
        yield from _not_listed(
            "strategies", "federation.strategy.name", study.federation.strategy.name, self.strategies
        )
        strange = [name for name in study.class_names if self.classes is not None and not _fits(name, self.classes)]
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            yield _objection("classes", f"classes holds {strange[0]}{more}", _allows(self.classes))
        yield from _too_many("largest_image", "image.size", study.image.size, self.largest_image, " pixels a side")
        yield from _too_many("most_rounds", "federation.rounds", study.federation.rounds, self.most_rounds)
        epochs, steps = study.training.epochs, study.training.local_steps
        if epochs is not None:
            yield from _too_many("most_epochs_a_round", "training.local_epochs", epochs, self.most_epochs_a_round)
        elif self.most_steps_a_round is not None:
            yield from _too_many("most_steps_a_round", "training.local_steps", steps or 0, self.most_steps_a_round)
        elif self.most_epochs_a_round is not None:
            # How many epochs these steps are depends on how many images are here: not for a coordinator to find out.
            yield _objection("most_steps_a_round", f"training.local_steps is {steps}", "allows none that counts steps")
        personal = study.personalisation
        if personal is not None and personal.method == "finetune":
            yield from _too_many(
                "most_epochs_a_round", "personalisation.epochs", personal.most_epochs, self.most_epochs_a_round
            )


class AutomaticRule(Limits):
    """Studies of this coordinator within these limits are approved when they are first asked for."""

    coordinator: Annotated[str, Field(min_length=16, max_length=200)]

    def fits(self, study: Study, coordinator: str) -> bool:
        """Whether the rule approves ``study`` of the coordinator with this fingerprint."""
        return same_fingerprint(self.coordinator, coordinator) and not any(self.exceeded(study))


class MinimumPrivacy(Part):
    """The least differential privacy that a study must give, over its whole length."""

    unit: Literal["patient", "image"] = "patient"
    epsilon: Annotated[float, Field(gt=0.0)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]


class Policy(Limits):
    """A site's policy. The limits must be written out: what is left out by mistake must not allow anything."""

    models: Models
    strategies: Strategies
    largest_image: Most
    most_rounds: Most
    most_epochs_a_round: Most
    smallest_cell: Annotated[int, Field(ge=1, le=1_000_000)]
    statistics: Annotated[tuple[Statistic, ...], AfterValidator(_each_once)] = STATISTICS
    minimum_privacy: MinimumPrivacy | None = None
    secure_aggregation: Literal["optional", "required"] = "optional"
    budget: Budget | None = None
    opening_hours: Annotated[tuple[str, ...] | None, BeforeValidator(_one_or_many), AfterValidator(_readable)] = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] | None = None
    gpu_share: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    approvals_needed: Annotated[tuple[Role, ...], Field(min_length=1), BeforeValidator(_counted)] = ("operator",)
    """A role as often as approvals are needed in it."""
    signed_approvals: Annotated[tuple[Role, ...], AfterValidator(_each_once)] = ()
    """Roles in which an approval counts only with the signature of a personal key."""
    expires_days: Annotated[int, Field(ge=1, le=3660)] = 180
    stock_flower: bool = False
    """Whether a stock SuperNode may open this site (:mod:`client.stock`)."""
    approve_automatically: tuple[AutomaticRule, ...] = ()

    @model_validator(mode="after")
    def _signers(self) -> Policy:
        for role in self.signed_approvals:
            if role not in self.approvals_needed:
                raise ValueError(f"signed_approvals names {role}, which approvals_needed does not; add it there")
        return self

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read and check a policy file. Raises :class:`PolicyError` naming file, key and remedy."""
        return cls.decode(_content(path), path.name)

    @classmethod
    def decode(cls, content: bytes, where: str = POLICY_FILE) -> Policy:
        """A policy from a file's bytes; ``where`` names it in errors. Raises :class:`PolicyError`."""
        try:
            raw = strict_yaml.load(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise PolicyError(f"{where}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
        except strict_yaml.StrictYamlError as error:
            raise PolicyError(f"{where}{error}") from None
        if not isinstance(raw, dict):
            kind = "empty" if raw is None else f"a {type(raw).__name__}"
            raise PolicyError(f"{where}: a policy is a mapping of keys, this is {kind}; see configs/policy.yaml")
        try:
            return cls.model_validate_json(json.dumps(raw, ensure_ascii=False).encode(), strict=True)
        except UnicodeEncodeError:
            raise PolicyError(f"{where}: a text holds half a character (\\ud800 to \\udfff); write it whole") from None
        except ValidationError as error:
            raise PolicyError(f"{where}: {findings.explain(cls, error)}") from None

    def objections(self, study: Study) -> list[Objection]:
        """All that ``study`` asks for and this policy does not allow; empty for one that may be approved."""
        return [
            *self.exceeded(study),
            *self._statistics(study),
            *self._privacy(study),
            *self._hidden(study),
            *self._budget(study),
        ]

    def _statistics(self, study: Study) -> Iterator[Objection]:
        if study.evaluation.min_cell < self.smallest_cell:
            yield _objection(
                "smallest_cell",
                f"evaluation.min_cell is {study.evaluation.min_cell}",
                f"asks for at least {self.smallest_cell} patients behind a count",
            )
        missing = [name for name in STATISTICS if name not in self.statistics]
        if missing:
            yield _objection("statistics", f"every study asks for {', '.join(missing)}", _allows(self.statistics))
        if study.outlines and "outlines" not in self.statistics:
            yield _objection("statistics", "it asks for outlines over masks", _allows(self.statistics))
        surveyed = [name for name in study.surveyed if name not in self.statistics]
        if surveyed:
            yield _objection("statistics", f"its survey asks for {', '.join(surveyed)}", _allows(self.statistics))
        by = study.evaluation.by
        if by and "subgroups" not in self.statistics:
            yield _objection("statistics", f"its test asks for subgroups by {', '.join(by)}", _allows(self.statistics))
        for key, asked in (("comparisons", study.evaluation.compare), ("readers", study.evaluation.readers)):
            if asked and key not in self.statistics:
                yield _objection("statistics", f"the study asks for {key}", _allows(self.statistics))

    def _privacy(self, study: Study) -> Iterator[Objection]:
        """A study that protects patients protects each of their images too."""
        least, given = self.minimum_privacy, study.privacy
        if least is None:
            return
        asked = f"asks for epsilon at most {least.epsilon:g} and delta at most {least.delta:g} for each {least.unit}"
        if given is None:
            yield _objection("minimum_privacy", "the study gives no differential privacy", asked)
        elif given.delta > least.delta or given.unit not in (least.unit, "patient") or promised(study) > least.epsilon:
            gives = f"the study gives epsilon {promised(study):.3g} and delta {given.delta:g} for each {given.unit}"
            yield _objection("minimum_privacy", gives, asked)
        elif given.evaluation == "exact":
            # Counts of test patients are no training of theirs, but no epsilon bounds what they tell.
            yield _objection("minimum_privacy", "privacy.evaluation is exact, which no epsilon covers", asked)

    def _budget(self, study: Study) -> Iterator[Objection]:
        if self.budget is not None:
            for found in uncovered(study, self.budget):
                yield over_budget(found, self.budget)

    def _hidden(self, study: Study) -> Iterator[Objection]:
        if self.secure_aggregation == "required" and study.federation.secure_aggregation is None:
            gives = (
                "the study gives no federation.secure_aggregation: the coordinator sees this site's update by itself"
            )
            yield _objection("secure_aggregation", gives, "requires it")

    def open_at(self, at: datetime) -> bool:
        """Whether studies may work here at ``at``, by the wall clock of its time zone."""
        return self.opening_hours is None or any(hours(text).holds(at) for text in self.opening_hours)

    def opens_at(self, at: datetime) -> datetime | None:
        """When, after ``at``, the next window of the opening hours begins; ``None`` where there are none."""
        starts = (hours(text).next_start(at) for text in self.opening_hours or ())
        return min(starts, default=None)

    def automatic(self, study: Study, coordinator: str) -> int | None:
        """Number, from 1, of the rule that approves ``study``; limits of the policy itself are not looked at here."""
        rules = enumerate(self.approve_automatically, start=1)
        return next((number for number, rule in rules if rule.fits(study, coordinator)), None)


class PolicyFile:
    """The policy as it is now: read at every request, parsed when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: bytes | None = None
        self._found: Policy | PolicyError = PolicyError("")

    def now(self) -> Policy | PolicyError:
        """The policy, or why there is none, in which case nothing is allowed."""
        try:
            # Its bytes, not its time stamp: two changes within a tick of the clock have the same one.
            content = _content(self.path)
            if content != self._content:
                self._content, self._found = None, Policy.decode(content, self.path.name)
                self._content = content
        except PolicyError as error:
            self._content, self._found = None, error
        return self._found


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(strict_yaml.MAX_BYTES + 1)
    except FileNotFoundError:
        raise PolicyError(f"{path.name} is missing, so nothing is allowed; configs/policy.yaml is an example") from None
    except OSError as error:
        raise PolicyError(f"{path.name} cannot be read: {error.strerror}; check its permissions") from None


def _objection(line: str, asked: str, allowed: str) -> Objection:
    return Objection(f"policy-{line.replace('_', '-')}", line, f"{asked}; {POLICY_FILE} {allowed}")


def over_budget(found: str, budget: Budget) -> Objection:
    """The objection to what ``budget`` does not pay for."""
    allows = f"has a budget of epsilon {budget.epsilon:g} and delta {budget.delta:g} for each {budget.unit}"
    return _objection("budget", found, allows)


def _allows(names: Sequence[str] | None) -> str:
    return f"allows {', '.join(names) if names else 'none'}"


def _not_listed(line: str, key: str, value: str, allowed: Sequence[str] | None) -> Iterator[Objection]:
    if allowed is not None and value not in allowed:
        yield _objection(line, f"{key} is {value}", _allows(allowed))


def _too_many(line: str, key: str, value: int, most: int | None, unit: str = "") -> Iterator[Objection]:
    if most is not None and value > most:
        yield _objection(line, f"{key} is {value}", f"allows at most {most}{unit}")


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.casefold(), pattern.casefold()) for pattern in patterns)
