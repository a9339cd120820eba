"""A search from study and space to results: which fit runs next, what is kept, how it is taken up again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from common.errors import DataError, Interrupted, RunError, StudyError
from common.files import write_atomically
from common.study import Study
from server.events import EventLog, JsonLines, Sink
from simulations import environment
from simulations.datasets import Source
from simulations.environment import Stopwatch
from simulations.runfolder import SEARCH, Folder, disk_trouble, fresh, require_space, taken_up
from simulations.search.fit import Job, Outcome
from simulations.search.lanes import Lanes
from simulations.search.proposals import LAG, Proposer
from simulations.search.pruning import Pruner
from simulations.search.results import Judged, judge
from simulations.search.space import SearchSpec, check_fields
from simulations.search.store import FORMAT, Store, Trial
from simulations.sites import Machine, Prepared, deal, prepare_sites

DEVELOPMENT = ("train", "val")
"""The splits that a search has vaults of: a test patient is in none of them."""


@dataclass(frozen=True)
class Plan:
    """How a search runs, and under which name it is taken up again; none of it changes a number but the threads."""

    command: str = "search"
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    base: str = "."


def check_study(study: Study, spec: SearchSpec, where: str) -> None:
    """Raises :class:`StudyError` for a study whose validation a search on this machine cannot use."""
    if study.metrics_suppressed:
        raise StudyError(f"{where}: its privacy suppresses validation results, and nothing else may choose a trial")
    if study.evaluation.min_cell > 1:
        raise StudyError(
            f"{where}: evaluation.min_cell {study.evaluation.min_cell} hides small cells, and a fold's are small; on "
            "one machine nothing leaves a hospital: use min_cell: 1"
        )
    if study.federation.secure_aggregation is not None:
        raise StudyError(
            f"{where}: search without federation.secure_aggregation, which chooses nothing, and add it after"
        )
    if study.personalisation is not None:
        raise StudyError(f"{where}: the model that all share is what is judged here; search without personalisation")
    if study.federation.evaluate_every == 0 and spec.prune is not None:
        raise StudyError(f"{where}: prune needs a validation result of every round; use federation.evaluate_every: 1")
    if spec.metric == "dice" and not study.outlines:
        raise StudyError(f"{where}: metric: dice is of studies that outline (task: segmentation); use auc or loss")
    if study.data.fold is not None:
        raise StudyError(f"{where}: data.fold is what folds: sets in each trial; take it out of the study")
    if (study.privacy or study.central_privacy) and spec.folds:
        fold_of(study, 1, spec)  # says why not


def fold_of(study: Study, fold: int, spec: SearchSpec) -> Study:
    """``study`` as fold number ``fold`` trains it. Raises :class:`StudyError`."""
    return study if spec.folds is None else study.derive(**{"data.fold": {"number": fold, "of": spec.folds}})


@dataclass
class Search:
    """A prepared search: study, space, plan, and the virtual hospitals on disk."""

    store: Store
    study: Study
    spec: SearchSpec
    plan: Plan
    prepared: Prepared
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def start(
        cls, study: Study, spec: SearchSpec, plan: Plan, source: Source, out: Path, stopwatch: Stopwatch, where: str
    ) -> Search:
        """Check everything, then make the folder and its hospitals, without test patients.

        Raises :class:`StudyError` for a space that no study fits, :class:`RunError` where ``out`` is in use. On any
        error, Ctrl-C included, what was made is removed again.
        """
        check_study(study, spec, where)
        check_fields(spec, where)
        if (out / SEARCH).exists():
            raise RunError(f"{out} holds a search; continue it with --resume {out}, or choose another --out")
        dealt = deal(study, source).only(*DEVELOPMENT)
        with fresh(out) as folder:
            require_space(out, source, dealt.dealt)
            store = Store(folder.path)
            with stopwatch.phase("vaults"):
                prepared = prepare_sites(study, source, store.sites, Machine(plan.device, plan.threads), dealt)
            _require_patients(prepared, spec)
            search = cls(store, study, spec, plan, prepared, stopwatch)
            search._save()
        return search

    @classmethod
    def resume(cls, out: Path, stopwatch: Stopwatch, **changes: Any) -> Search:
        """Open a search that was interrupted. Only the number of workers may change."""
        store = Store(out)
        with taken_up(store.manifest, "search") as saved:
            if saved["format"] != FORMAT:
                raise RunError(f"{store.manifest} is of another version of fedward; start the search anew")
            study = Study.parse(saved["study"], str(store.manifest))
            spec = SearchSpec.parse(saved["spec"], str(store.manifest))
            plan = Plan(**{**saved["plan"], **changes})
            prepared = Prepared(**saved["prepared"])
        return cls(store, study, spec, plan, prepared, stopwatch)

    def _save(self) -> None:
        saved = {
            "format": FORMAT,
            "fedward": environment.version(),
            "study": self.study.canonical().decode(),
            "spec": self.spec.model_dump(mode="json"),
            "plan": asdict(self.plan),
            "prepared": self.prepared.json(),
        }
        write_atomically(self.store.manifest, json.dumps(saved, indent=1).encode())

    @property
    def seed(self) -> int:
        return self.study.seed if self.spec.seed is None else self.spec.seed

    @property
    def again(self) -> str:
        """The command that takes it up."""
        return f"fedward {self.plan.command} --resume {self.store.path}"

    def execute(self, *sinks: Sink) -> list[Judged]:
        """Run every fit that is not there yet. Returns the trials in their order."""
        folder = Folder(self.store.path)
        try:
            with (
                folder.held(),
                contextlib.closing(JsonLines.append_to(folder.events)) as lines,
                contextlib.closing(Lanes(self.plan.workers, self.plan.threads, folder.log)) as lanes,
                self.stopwatch.phase("trials"),
            ):
                return Schedule(self, lanes, EventLog(lines, *sinks)).run()
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; finished fits are kept: continue with `{self.again}`") from None
        except (OSError, RunError) as error:
            words = disk_trouble(error)
            if words is None:
                raise
            raise RunError(
                f"cannot write to {self.store.path}: {words}; finished fits are kept: mend that (free some space?), "
                f"then continue with `{self.again}`"
            ) from None


class Workers(Protocol):
    """Where fits run: :class:`~simulations.search.lanes.Lanes`."""

    @property
    def free(self) -> bool: ...

    @property
    def jobs(self) -> set[tuple[int, int]]: ...

    def start(self, job: Job) -> None: ...

    def finished(self) -> list[Outcome]: ...


class Schedule:
    """Which fit is next. What a trial tries never depends on which worker was quick (``proposals``)."""

    def __init__(self, search: Search, lanes: Workers, events: EventLog) -> None:
        self._search, self._lanes, self._events = search, lanes, events
        self._store, self._spec, self._study = search.store, search.spec, search.study
        self._proposer = Proposer(self._spec, search.seed, "space")
        self._folds = range(1, (self._spec.folds or 1) + 1)
        self._waits = self._proposer.learns or self._spec.prune is not None
        self._trials = self._store.trials()
        self._fits = [self._store.fits(trial.number) for trial in self._trials]
        self._judged = [self._judge(index) for index in range(len(self._trials))]

    def run(self) -> list[Judged]:
        self._events.emit("search-started", **self._facts())
        while True:
            while self._lanes.free and (job := self._next()) is not None:
                self._lanes.start(job)
            if not self._lanes.jobs:
                break
            self._keep(self._lanes.finished())
        done = sum(one.status == "done" for one in self._judged)
        self._events.emit("search-finished", done=done, **self._search.stopwatch.json())
        return self._judged

    def _facts(self) -> dict[str, Any]:
        prepared = self._search.prepared
        return {
            "study": self._study.name,
            "study_hash": self._study.hash,
            "source": prepared.source,
            "synthetic": prepared.synthetic,
            "sites": {site: facts["images"] for site, facts in prepared.sites.items()},
            "method": self._spec.method,
            "metric": self._spec.metric,
            "trials": self._proposer.trials,
            "folds": len(self._folds),
            "kept": sum(map(len, self._fits)),
        }

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        """Commit what is over, then judge the trials that this completes."""
        for outcome in outcomes:
            fit = outcome.fit
            self._store.commit(outcome)
            self._fits[fit.trial - 1][fit.fold] = fit
            facts = {key: value for key, value in fit.json().items() if key != "curve"}
            self._events.emit("fit", **facts, metric=self._spec.metric, folds=len(self._folds))
        for index in sorted({outcome.fit.trial - 1 for outcome in outcomes}):
            self._judged[index] = self._judge(index)
            self._tell(self._judged[index])

    def _judge(self, index: int) -> Judged:
        """A trial of which a fold has failed is over when all folds before it are, and all that were begun."""
        trial = self._trials[index]
        if any(number == trial.number for number, _ in self._lanes.jobs):
            return Judged(trial, "unfinished", "", ())
        return judge(self._store, self._study, self._spec, trial, self._fits[index])

    def _tell(self, one: Judged) -> None:
        if one.status == "unfinished":
            return
        self._events.emit(
            "trial",
            trial=one.trial.number,
            trials=self._proposer.trials,
            status=one.status,
            reason=one.reason,
            metric=self._spec.metric,
            score=one.score,
            deviation=one.deviation,
            params=dict(one.params),
        )

    def _next(self) -> Job | None:
        """The next fit that can start: the earliest trial's first fold that is neither over nor in work."""
        for index in range(self._proposer.trials):
            before = self._judged[: max(0, index - LAG + 1)]
            if self._waits and any(one.status == "unfinished" for one in before):
                return None
            if index == len(self._judged):
                self._propose()
            if self._judged[index].status != "unfinished":
                continue
            fold = self._next_fold(index)
            if fold is not None:
                return self._job(index, fold)
        return None

    def _next_fold(self, index: int) -> int | None:
        number, fits = index + 1, self._fits[index]
        ended = min((fold for fold, fit in fits.items() if fit.status != "done"), default=len(self._folds) + 1)
        working = {fold for trial, fold in self._lanes.jobs if trial == number}
        if working and self._spec.prune is not None:
            return None  # a trial that may be stopped goes fold by fold
        return next((fold for fold in self._folds[: ended - 1] if fold not in fits and fold not in working), None)

    def _propose(self) -> None:
        params = self._proposer.propose([one.learnt for one in self._judged])
        refused = ""
        try:
            fold_of(self._study.derive(**params), 1, self._spec)
        except StudyError as error:
            refused = str(error)
        trial = Trial(len(self._trials) + 1, params, refused)
        self._store.propose(trial)
        self._trials.append(trial)
        self._fits.append({})
        self._judged.append(self._judge(trial.number - 1))
        self._tell(self._judged[-1])

    def _job(self, index: int, fold: int) -> Job:
        search, trial = self._search, self._trials[index]
        return Job(
            trial.number,
            fold,
            fold_of(self._study.derive(**trial.params), fold, self._spec).canonical().decode(),
            {site: self._store.sites / site for site in search.prepared.sites},
            Path(search.plan.base),
            self._spec.metric,
            self._pruner(index, fold),
            keep_weights=not self._spec.space,
        )

    def _pruner(self, index: int, fold: int) -> Pruner | None:
        if self._spec.prune is None:
            return None
        earlier = [one for one in self._judged[: max(0, index - LAG + 1)] if one.status == "done"]
        curves = [fit.curve for one in earlier for fit in one.fits if fit.fold == fold]
        return Pruner(self._spec.prune, self._spec.maximised, curves)


def _require_patients(prepared: Prepared, spec: SearchSpec) -> None:
    """Raises :class:`DataError` for a hospital that would have nobody to train on in the fold that it judges."""
    if spec.folds is None:
        return
    for site, facts in prepared.sites.items():
        patients = sum(facts["patients"][split] for split in DEVELOPMENT)
        if patients < 2:
            raise DataError(
                f"{site} has {patients} patient to deal to {spec.folds} folds, and needs two; use fewer sites or a "
                "larger partition.min_per_site"
            )
