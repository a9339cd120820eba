"""One simulation from study to report: a run's folder, its resumption, its results."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flwr.serverapp import Grid

from client.site import Site
from client.vault.view import ViewCache
from common.errors import DeviceError, FedwardError, Interrupted, KeyUnavailable, QuorumError, RunError, VaultError
from common.files import write_atomically
from common.study import Study
from common.study_personal import PERSONALISED
from server.asking import Link
from server.comparing import Found, compare_as_asked
from server.comparisons import correct
from server.events import EventLog, JsonLines, Sink
from server.examining import Examined, examine
from server.personal import OwnModels, has_own_models, test_own_models
from server.presence import survey
from server.report import write_metrics_csv, write_report
from server.results import Trained, arm_json, head_json, write_model
from simulations import environment
from simulations.arms import TRAINED, ArmName, local_json, test_all, train_all, works
from simulations.compare import Rows, compared
from simulations.datasets import Source
from simulations.engine import InProcessGrid, run_on_ray
from simulations.environment import Stopwatch
from simulations.own_models import personalised_json
from simulations.runfolder import Folder, disk_trouble, fresh, require_space, site_log, taken_up
from simulations.sites import POOLED, Machine, Prepared, prepare_sites, roster_of
from simulations.spending import add_spending, check

FORMAT = 1
Engine = Literal["inprocess", "ray"]


@dataclass(frozen=True)
class Plan:
    """What a simulation is asked to do, besides its study."""

    arms: Sequence[ArmName] = TRAINED
    repeats: int = 1
    engine: Engine = "inprocess"
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    base: str = "."


@dataclass
class Run:
    """A prepared run: study, plan, and the virtual hospitals on disk."""

    folder: Folder
    study: Study
    plan: Plan
    prepared: Prepared
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def start(cls, study: Study, plan: Plan, source: Source, out: Path, stopwatch: Stopwatch) -> Run:
        """Make the run's folder and its virtual hospitals. Raises :class:`RunError` where ``out`` is in use.

        On any error, Ctrl-C included, what was made is removed again.
        """
        with fresh(out) as folder:
            require_space(out, source, source.items)
            with stopwatch.phase("vaults"):
                prepared = prepare_sites(study, source, folder.sites, Machine(plan.device, plan.threads))
            run = cls(folder, study, plan, prepared, stopwatch)
            run._save()
        return run

    @classmethod
    def resume(cls, out: Path, stopwatch: Stopwatch, **changes: Any) -> Run:
        """Open a run that was interrupted. Only how it runs (workers, engine) may change, never what it computes."""
        folder = Folder(out)
        with taken_up(folder.manifest, "run") as saved:
            if saved["format"] != FORMAT:
                raise RunError(
                    f"{folder.manifest} has format {saved['format']}, this fedward reads {FORMAT}; start the run anew"
                )
            study = Study.parse(saved["study"], str(folder.manifest))
            plan = Plan(**{**saved["plan"], **changes})
            prepared = Prepared(**saved["prepared"])
        return cls(folder, study, plan, prepared, stopwatch)

    def _save(self) -> None:
        saved = {
            "format": FORMAT,
            "study": self.study.canonical().decode(),
            "plan": asdict(self.plan),
            "prepared": self.prepared.json(),
        }
        write_atomically(self.folder.manifest, json.dumps(saved, indent=1).encode())

    @property
    def directories(self) -> dict[str, Path]:
        """The hospitals' directories, by alias."""
        return {site: self.folder.sites / site for site in self.prepared.sites}

    def execute(self, *sinks: Sink) -> list[dict[str, Any]]:
        """Train and test every arm of every repeat and write the report. Returns the repeats' results."""
        stop = threading.Event()
        path = self.folder.path
        try:
            with (
                self.folder.held(),
                contextlib.closing(JsonLines.append_to(self.folder.events)) as lines,
                site_log(self.folder.log),
            ):
                events = EventLog(lines, *sinks)
                try:
                    return self._execute(events, stop)
                except KeyboardInterrupt:
                    stop.set()
                    with contextlib.suppress(OSError, RunError):
                        events.emit("interrupted")
                    raise Interrupted(
                        f"stopped; finished rounds are kept: continue with `fedward simulate --resume {path}`"
                    ) from None
        except QuorumError as error:
            log = f"; {self.folder.log} holds the sites' own words" if self.folder.log.exists() else ""
            raise self._cause(str(error)) or QuorumError(f"{error}{log}") from None
        except (OSError, RunError) as error:
            words = disk_trouble(error)
            if words is None:
                raise
            raise RunError(
                f"cannot write to {path}: {words}; finished rounds are kept: mend that (free some space?), then "
                f"continue with `fedward simulate --resume {path}`"
            ) from None

    def _execute(self, events: EventLog, stop: threading.Event) -> list[dict[str, Any]]:
        check(self.study, self.prepared.sites)
        homes = list(self._homes.values())
        events.emit("started", study=self.study.name, study_hash=self.study.hash, **self._facts())

        def play(grid: Grid) -> list[dict[str, Any]]:
            roster = roster_of(self.study, self.folder.sites)
            return self._play(Link(grid, events, stop=stop, roster=lambda: roster))

        if self.plan.engine == "ray":
            results = run_on_ray(homes, play, workers=self.plan.workers)
        else:
            grid = InProcessGrid(homes, workers=self.plan.workers, threads=self.plan.threads, log=self.folder.log)
            with contextlib.closing(grid):
                results = play(grid)
        self._finish(results)
        events.emit("finished", wall_s=results[0]["wall_s"], cpu_s=results[0]["cpu_s"], report="report.html")
        return results

    def _cause(self, told: str) -> FedwardError | None:
        """What is wrong with a site that declined, in words: a real one answers with a code only, ours we may open."""
        if not any(kind.code in told for kind in (VaultError, KeyUnavailable, DeviceError)):
            return None
        for site, home in self.directories.items():
            try:
                with contextlib.closing(Site.open(home, ViewCache(0))) as opened:
                    for vault in opened.vaults:
                        vault.verify()
            except FedwardError as error:
                return type(error)(f"{site}: {error}, or start the simulation anew")
        return None

    @property
    def _homes(self) -> dict[str, Path]:
        """Everybody who takes part, by alias; the pooled site opens every vault at once, so only for its own arm."""
        pooled = {POOLED: self.folder.sites / POOLED} if "pooled" in self.plan.arms else {}
        return self.directories | pooled

    def _facts(self) -> dict[str, Any]:
        return {
            "source": self.prepared.source,
            "synthetic": self.prepared.synthetic,
            "sites": {site: facts["images"] for site, facts in self.prepared.sites.items()},
            "unreadable": len(self.prepared.unreadable),
            "images_without_patient": self.prepared.images_without_patient,
            "notes": self.prepared.notes,
            "arms": list(self.plan.arms),
            "repeats": self.plan.repeats,
            "rounds": self.study.federation.rounds,
        }

    def _play(self, link: Link) -> list[dict[str, Any]]:
        found = survey(link, self.study)
        nodes = {alias: node for alias, (node, _) in found.items()}
        missing = [site for site in self._homes if site not in nodes]
        if missing:
            raise self._cause(VaultError.code) or RunError(
                f"{', '.join(missing[:5])} cannot be opened; {self.folder.log} says why; mend it, or start the run anew"
            )
        return [self._repeat(link, nodes, number) for number in range(self.plan.repeats)]

    def _repeat(self, link: Link, nodes: Mapping[str, int], number: int) -> dict[str, Any]:
        plan, study = self.plan, self.study
        workers = plan.workers if plan.engine == "inprocess" else 1
        hospitals = {site: nodes[site] for site in self.directories}
        made = works(study, plan.arms, number, nodes, self.folder.checkpoints(number), Path(plan.base), workers)
        with self.stopwatch.phase("training"):
            trained = train_all(link, made, workers)
        link.events.emit("testing", repeat=number)
        with self.stopwatch.phase("testing"):
            tested = test_all(link, trained, hospitals, workers)
            kept = trained.get("federated") or trained.get("pooled")
            examined = kept if kept is None else _examined(link, kept, hospitals)
            models = self._own_models(link, trained, hospitals)
        arms: dict[str, Any] = {}
        with self.stopwatch.phase("comparing"), _resident(link.grid) as resident:
            differences = compared(resident, self.directories, trained, study, number)
            if models is not None:
                own_models = personalised_json(resident, self.directories, trained, models, number)
        asked = Found()
        if "federated" in trained:
            asked = compare_as_asked(link, trained["federated"], tested["federated"], hospitals)
        for name in ("federated", "pooled"):
            if name in trained:
                arms[name] = arm_json(trained[name], tested[name], examined if trained[name] is kept else None)
                own = tested[name].sites
                arms[name]["sites"] = {
                    site: {
                        "test": {metric: cell.to_dict() for metric, cell in own[site].overall.items()}
                        if site in own
                        else {}
                    }
                    for site in hospitals
                }
        alone = {
            site: (trained[f"local:{site}"], tested[f"local:{site}"])
            for site in hospitals
            if f"local:{site}" in trained
        }
        if alone:
            arms["local"] = local_json(alone)
        add_spending(study, self.prepared.sites, arms)
        if models is not None:
            arms[PERSONALISED] = own_models
        moved = sum(record["bytes"] for arm in trained.values() for record in arm.progress.history)
        moved += sum(result.bytes for result in tested.values()) + sum(
            more.bytes for more in (examined, models, asked) if more
        )
        result = self._result(number, arms, differences[0], moved)
        pairs = [*differences[1], *asked.models]
        correct(pairs)  # together, as they are read
        result |= asked.json(study) | {"comparisons": pairs}
        self._write_repeat(number, result, trained)
        return result

    def _own_models(self, link: Link, trained: Mapping[str, Trained], hospitals: Mapping[str, int]) -> OwnModels | None:
        """Hospitals' own models, tested; ``None`` where the run has none, or nothing of them may be told."""
        if PERSONALISED not in self.plan.arms or not has_own_models(trained["federated"]):
            return None
        return test_own_models(link, trained["federated"], hospitals)

    def _result(self, number: int, arms: dict[str, Any], differences: Rows, moved: int) -> dict[str, Any]:
        first = arms.get("federated") or arms.get("pooled") or next(iter(arms["local"]["sites"].values()))
        return {
            **head_json(self.study, number),
            "synthetic": self.prepared.synthetic,
            "source": self.prepared.source,
            "engine": self.plan.engine,
            "workers": self.plan.workers,
            "threads": self.plan.threads,
            "device": self.plan.device,
            "rounds": first["rounds"],
            "bytes_sent": moved,
            "sites": self.prepared.sites,
            "images_without_patient": self.prepared.images_without_patient,
            "unlabelled": self.prepared.unlabelled,
            "unreadable": self.prepared.unreadable,
            "notes": self.prepared.notes,
            "heterogeneity": self.prepared.heterogeneity,
            "environment": environment.describe(),
            "arms": arms,
            "differences": differences,
            **self.stopwatch.json(),
        }

    def _write_repeat(self, number: int, result: dict[str, Any], trained: Mapping[str, Trained]) -> None:
        folder = self.folder.repeat(number, self.plan.repeats)
        folder.mkdir(exist_ok=True)
        write_atomically(folder / "results.json", json.dumps(result, indent=1).encode())
        kept = trained.get("federated") or trained.get("pooled") or next(iter(trained.values()))
        write_model(folder, kept)

    def _finish(self, results: list[dict[str, Any]]) -> None:
        top = self.folder.path
        with self.stopwatch.phase("report"):
            if self.plan.repeats > 1:
                for number in range(self.plan.repeats):
                    write_report([results[number]], self.folder.repeat(number, self.plan.repeats))
                first = self.folder.repeat(0, self.plan.repeats)
                for name in ("model.safetensors", "model.json"):
                    write_atomically(top / name, (first / name).read_bytes())
            write_metrics_csv(results, top / "metrics.csv")
            write_report(results, top)
        summary = dict(results[0]) | self.stopwatch.json()
        if self.plan.repeats > 1:
            summary["repeats"] = environment.spread(results)
        write_atomically(top / "results.json", json.dumps(summary, indent=1).encode())


def _examined(link: Link, kept: Trained, hospitals: Mapping[str, int]) -> Examined | None:
    personal = kept.work.own_round(kept.progress.facts["kept_round"])
    return examine(link, kept.work, kept.weights, kept.thresholds, hospitals, personal=personal)


@contextlib.contextmanager
def _resident(grid: Grid) -> Iterator[Any]:
    """This process's open sites: the in-process engine has them already."""
    from client.app import Resident

    if isinstance(grid, InProcessGrid):
        yield grid.resident
        return
    resident = Resident()
    try:
        yield resident
    finally:
        resident.close()


def default_out(study: Study, now: Callable[[], str]) -> Path:
    """``runs/<time>-<study name>``."""
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in study.name.lower())
    return Path("runs") / f"{now()}-{name}"


__all__ = ["Engine", "Folder", "Plan", "Run", "default_out"]
