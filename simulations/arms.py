"""Arms: the same study trained federated, by each hospital alone, and on everybody's images together.

All three run through the same round loop, over the same vaults and splits; only who takes
part differs. A hospital alone is a federation of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from common.errors import StudyError
from common.study import Study
from common.study_personal import PERSONALISED
from server.asking import Link
from server.results import Trained, arm_json, finish
from server.rounds import Arm
from server.survey import prepare
from server.testing import Tested, test_model
from server.work import Work
from simulations.sites import POOLED

ArmName = Literal["federated", "local", "pooled", "personalised"]
TRAINED: tuple[ArmName, ...] = ("federated", "local", "pooled")
ARMS: tuple[ArmName, ...] = (*TRAINED, "personalised")


def arms_of(study: Study) -> tuple[ArmName, ...]:
    """The arms of a run that names none: all that the study has."""
    personal = study.personalisation
    return ARMS if personal is not None and personal.own_models else TRAINED


def check_arms(study: Study, arms: Sequence[ArmName]) -> None:
    """Raises :class:`StudyError` for arms that ``study`` cannot have."""
    if PERSONALISED not in arms:
        return
    if PERSONALISED not in arms_of(study):
        raise StudyError(
            "--arms: personalised needs a study in which hospitals have models of their own; add personalisation: "
            "{method: fedbn, ditto or finetune} to it"
        )
    if "federated" not in arms:
        raise StudyError("--arms: personalised models are made while the federated arm trains; add federated")


def works(
    study: Study, arms: Sequence[ArmName], repeat: int, nodes: Mapping[str, int], folder: Path, base: Path, workers: int
) -> list[Work]:
    """The work of one repeat. Longest first: workers then finish together."""
    hospitals = {alias: node for alias, node in nodes.items() if alias != POOLED}
    # Simulated sites take turns on one machine; each still gets the study's deadline.
    deadline = study.federation.deadline_s * max(1, len(hospitals) / workers)

    def work(arm: str, sites: Mapping[str, int]) -> Work:
        checkpoint = folder / arm.replace(":", "-") / "checkpoint.safetensors"
        return Work(study, arm, repeat, sites, deadline, checkpoint, base, resends=False)

    made = []
    if "pooled" in arms:
        made.append(work("pooled", {POOLED: nodes[POOLED]}))
    if "federated" in arms:
        made.append(work("federated", hospitals))
    if "local" in arms:
        made += [work(f"local:{alias}", {alias: node}) for alias, node in hospitals.items()]
    return made


def train_all(link: Link, made: Sequence[Work], workers: int) -> dict[str, Trained]:
    """Train every arm; side by side where there are several workers."""

    def train(work: Work) -> Trained:
        work = prepare(link, work)
        return finish(work, Arm(link, work).run())

    return dict(zip((work.arm for work in made), _side_by_side(link, train, made, workers), strict=True))


def test_all(
    link: Link, trained: Mapping[str, Trained], hospitals: Mapping[str, int], workers: int
) -> dict[str, Tested]:
    """Test every arm's model on everybody's test patients and on the hospitals' own."""

    def test(arm: Trained) -> Tested:
        own = {site: node for site, node in hospitals.items() if arm.name in (f"local:{site}", "federated", "pooled")}
        personal, sites = arm.work.own_round(arm.progress.facts["kept_round"]), hospitals
        return test_model(
            link, arm.work, arm.weights, arm.thresholds, sites, own=own, outline=arm.outline, personal=personal
        )

    return dict(zip(trained, _side_by_side(link, test, list(trained.values()), workers), strict=True))


def _side_by_side(link: Link, call: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> list[Any]:
    if workers == 1:
        return [call(job) for job in jobs]
    # Threads only wait for worker processes; one more than workers keeps every process fed.
    with ThreadPoolExecutor(workers + 1) as pool:
        futures: list[Future[Any]] = []
        try:
            for job in jobs:  # in here too, Ctrl-C must stop what has begun: the pool waits for it
                futures.append(pool.submit(call, job))
            # The first failure ends the others: nobody waits for rounds of a run that has failed.
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            link.stop.set()
            for future in futures:
                future.cancel()
            raise


def local_json(arms: Mapping[str, tuple[Trained, Tested]]) -> dict[str, Any]:
    """The local arm: each hospital alone, on its own and on everybody's test patients, and their mean.

    The mean's interval is the mean of the hospitals' bounds: they are tested on the same
    patients, so this is never narrower than the mean's own interval.
    """
    sites: dict[str, Any] = {}
    for site, (arm, tested) in arms.items():
        found = arm_json(arm, tested)
        found["all_test"] = found.pop("test")
        own = tested.sites.get(site)
        found["test"] = {metric: interval.to_dict() for metric, interval in own.overall.items()} if own else {}
        sites[site] = found
    mean: dict[str, Any] = {}
    for metric in next(iter(sites.values()))["all_test"]:
        cells = [found["all_test"][metric] for found in sites.values()]
        known = [cell for cell in cells if cell["value"] is not None]
        complete = len(known) == len(cells)
        mean[metric] = {
            key: sum(cell[key] for cell in known) / len(known) if complete else None for key in ("value", "low", "high")
        }
    return {"test": mean, "sites": sites}
