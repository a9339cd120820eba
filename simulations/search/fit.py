"""One fit: a federated training of one derived study, in a worker process, judged on its validation patients."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from client.app import Resident
from common.errors import FedwardError, RunError, one_line
from common.metrics import FirstPass, auc
from common.study import Study
from common.weights import Weights
from server.asking import Link
from server.checkpoints import Arrays
from server.events import EventLog, Sink
from server.judging import pooled_dice
from server.presence import survey
from server.results import finish
from server.rounds import Arm
from server.survey import prepare
from server.work import Work
from simulations.engine import InProcessGrid
from simulations.search.pruning import Curve, Pruned, Pruner

Status = Literal["done", "failed", "pruned"]
ARM = "federated"
_LONGEST_REASON = 300
_NO_SCORE = {
    "auc": "its validation patients lack a class, so there is no AUC; use fewer folds, or metric: loss",
    "loss": "its validation loss is not finite",
    "dice": "its validation patients have no lesion, so there is no Dice; use fewer folds, or metric: loss",
}


@dataclass(frozen=True)
class Job:
    """What a worker is handed: all of it plain, for it travels to another process."""

    trial: int
    """From 1."""
    fold: int
    """From 1; 1 too where the study's own validation split judges."""
    study: str
    """The derived study, canonical."""
    homes: Mapping[str, Path]
    base: Path
    metric: str
    pruner: Pruner | None = None
    keep_weights: bool = False


@dataclass(frozen=True)
class Fit:
    """What became of a fit; JSON in the search's folder."""

    trial: int
    fold: int
    status: Status
    reason: str = ""
    auc: float | None = None
    """Mean over the classes, on the fit's validation patients."""
    loss: float | None = None
    """Of an image, in nats."""
    dice: float | None = None
    """Of all pixels, in a study that outlines."""
    images: int = 0
    patients: int = 0
    rounds: int = 0
    kept_round: int = 0
    curve: Curve = ()
    """(round, score) of every validated round."""
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def score(self, metric: str) -> float | None:
        return {"auc": self.auc, "loss": self.loss, "dice": self.dice}[metric]

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """A fit with what is too large for JSON: the validation counts that merge, and the weights where they are kept."""

    fit: Fit
    counts: Arrays = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


class _Heard(logging.Handler):
    """The last thing that a virtual site had to say of an error; a real one's would stay with it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.words = ""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.words = record.getMessage() if error is None else f"{type(error).__name__}: {error}"


class Trainer:
    """Runs fits one after the other; keeps the views that they share."""

    def __init__(self) -> None:
        self._resident = Resident()

    def fit(self, job: Job) -> Outcome:
        """Train and judge. Whatever goes wrong with this study is its result; only Ctrl-C and the like are raised."""
        started, cpu = time.perf_counter(), time.process_time()
        heard, watch = _Heard(), _Watch(job.metric, job.pruner)
        logger = logging.getLogger("fedward")
        logger.addHandler(heard)
        facts: dict[str, Any] = {}
        outcome = Outcome(Fit(job.trial, job.fold, "failed"))
        try:
            outcome = self._train(job, watch)
        except Pruned as error:
            facts = {"status": "pruned", "reason": str(error)}
        except (FedwardError, MemoryError, RuntimeError, ValueError, ArithmeticError) as error:
            # What an installed model or a size that cannot be had raises is this trial's trouble, not the search's.
            facts = {"status": "failed", "reason": _reason(error, watch, heard.words)}
        finally:
            logger.removeHandler(heard)
        facts |= {
            "wall_s": round(time.perf_counter() - started, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
            "curve": tuple(watch.curve),
        }
        return Outcome(Fit(**{**outcome.fit.json(), **facts}), outcome.counts, outcome.weights)

    def _train(self, job: Job, watch: _Watch) -> Outcome:
        study = Study.parse(job.study, f"trial {job.trial}")
        link, work = self.prepared(study, job.homes, job.base, watch)
        trained = finish(work, Arm(link, work).run())
        judged, progress = trained.validation, trained.progress
        scores = scores_of(judged)
        fit = Fit(
            job.trial,
            job.fold,
            "done",
            auc=scores["auc"],
            loss=scores["loss"],
            dice=scores["dice"],
            images=judged.counts.images,
            patients=judged.counts.patients,
            rounds=progress.round,
            kept_round=progress.facts["kept_round"],
        )
        if fit.score(job.metric) is None:
            raise ValueError(_NO_SCORE[job.metric])
        return Outcome(fit, judged.to_arrays(), dict(trained.weights) if job.keep_weights else {})

    def prepared(self, study: Study, homes: Mapping[str, Path], base: Path, *sinks: Sink) -> tuple[Link, Work]:
        """The virtual hospitals at ``homes`` as one federated arm of ``study``, surveyed where it asks for that."""
        link = Link(InProcessGrid(list(homes.values()), resident=self._resident), EventLog(*sinks))
        found = survey(link, study)
        missing = [site for site in homes if site not in found]
        if missing:
            raise RunError(f"{missing[0]} does not answer")
        nodes = {site: node for site, (node, _) in found.items()}
        deadline = study.federation.deadline_s * len(nodes)  # they take turns
        return link, prepare(link, Work(study, ARM, 0, nodes, deadline, base=base, resends=False))

    def close(self) -> None:
        self._resident.close()


class _Watch:
    """Follows a fit by its events: its curve, why it failed, and whether it is worth going on."""

    def __init__(self, metric: str, pruner: Pruner | None) -> None:
        self._key, self._pruner = f"val_{metric}", pruner
        self.curve: list[tuple[int, float]] = []
        self.failed = ""

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "failed":
            self.failed = f"round {event['round']}: {_listed(event['sites'])}"
        elif event["event"] == "site-absent":
            self.failed = str(event["reason"])
        elif event["event"] == "round" and (score := event.get(self._key)) is not None:  # not every round is validated
            self.curve.append((event["round"], score))
            if self._pruner is not None and event["round"] < event["rounds"]:
                self._pruner.judge(self.curve)


def _listed(sites: Mapping[str, str]) -> str:
    site, why = next(iter(sorted(sites.items())))
    return f"{site}: {why}" + (f" (and {len(sites) - 1} more)" if len(sites) > 1 else "")


def _reason(error: BaseException, watch: _Watch, words: str) -> str:
    expected = isinstance(error, FedwardError | ValueError)
    told = watch.failed or (str(error) if expected else f"{type(error).__name__}: {error}")
    if words and words not in told:
        told = f"{told}: {words}"
    text = one_line(" ".join(told.split()))
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"


def scores_of(found: FirstPass) -> dict[str, float | None]:
    """``auc`` (mean over the classes), ``loss`` and ``dice`` of validation patients; ``None`` where there is none."""
    counts = found.counts
    area = float(auc(counts).mean()) if counts.images else math.nan
    loss = counts.loss / counts.images if counts.images else math.nan
    return {
        "auc": area if math.isfinite(area) else None,
        "loss": loss if math.isfinite(loss) else None,
        "dice": None if found.outlines is None else pooled_dice(found.outlines),
    }


def merged(study: Study, parts: Sequence[Arrays]) -> FirstPass:
    """The statistics of several folds as one: each patient's from the model that had not seen it."""
    total = FirstPass.zero(study)
    for arrays in parts:
        total += FirstPass.from_arrays(arrays, study)
    return total
