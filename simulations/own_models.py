"""What each hospital would run, and what it gains by taking part: its own model, that of all, and its own alone.

Only a simulation has the third, and every patient's scores. What is chosen is chosen on validation images
(``client.choice``); differences are on the hospital's own test patients, paired by patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.app import Resident
from client.choice import choose
from client.evaluation import Scores
from client.own_model import own_weights
from client.site import Site
from common.metrics import Thresholds
from common.randomness import seed_for
from common.study import Study
from server.personal import OwnModels, own_json, own_round
from server.results import Trained
from simulations.bootstrap import paired_bootstrap
from simulations.compare import METRICS

GLOBAL, PERSONAL, LOCAL, BEST = "global", "personal", "local", "best"


@dataclass(frozen=True)
class _Model:
    """One of the models that a hospital could run."""

    validation: Scores
    test: Scores
    thresholds: Thresholds


def personalised_json(
    resident: Resident, directories: Mapping[str, Path], trained: Mapping[str, Trained], found: OwnModels, repeat: int
) -> dict[str, Any]:
    """The arm as a federation has it (:func:`own_json`), with what only a simulation knows of each hospital:

    ``would_run``: of all models that are measured, also its own alone; ``differences`` on its own test patients:
    its personal model minus each other and minus the better of them there, and what it would run minus itself alone.
    """
    arm = trained["federated"]
    told = own_json(arm, found)
    for name, facts in told["sites"].items():
        site = resident.site(directories[name])
        models = dict(_models(resident, site, trained, found, name))
        default = GLOBAL if GLOBAL in models else PERSONAL
        validations = {model: one.validation for model, one in models.items()}
        facts["would_run"] = choose(default, validations, fewest=arm.work.study.evaluation.min_cell)
        facts["differences"] = list(_differences(models, facts["would_run"], arm.work.study, name, repeat))
    return told


def _models(
    resident: Resident, site: Site, trained: Mapping[str, Trained], found: OwnModels, name: str
) -> Iterator[tuple[str, _Model]]:
    arm = trained["federated"]
    study, basis = arm.work.study, arm.work.basis

    def scored(weights: Any, thresholds: Thresholds) -> _Model:
        val, test = (resident.scores(site, study, split, weights, basis) for split in ("val", "test"))
        return _Model(val, test, thresholds)

    own = own_weights(arm.work.task(study.federation.rounds), site, resident, arm.weights, own_round(arm))
    yield PERSONAL, scored(own, found.sites[name].thresholds)
    if study.personalisation is not None and not study.personalisation.split:
        yield GLOBAL, scored(arm.weights, arm.thresholds)
    alone = trained.get(f"local:{name}")
    if alone is not None:
        yield LOCAL, scored(alone.weights, alone.thresholds)


def _differences(
    models: Mapping[str, _Model], would_run: str, study: Study, name: str, repeat: int
) -> Iterator[dict[str, Any]]:
    personal = models[PERSONAL].test
    if not len(personal.patients):
        return
    for metric in METRICS:
        cells: dict[tuple[str, str], dict[str, float | None]] = {}
        for a, b in ((PERSONAL, GLOBAL), (PERSONAL, LOCAL), (would_run, LOCAL)):
            if b in models and (a, b) not in cells and a != b:
                cells[a, b] = _paired(models[a], models[b], metric, study, name, repeat)
        for (a, b), cell in cells.items():
            yield {"a": a, "b": b, "metric": metric, **cell}
        # The better of the two is the one from which the personal model differs least upwards: the harder to beat.
        rivals = {
            b: value
            for b in (GLOBAL, LOCAL)
            if (PERSONAL, b) in cells and (value := cells[PERSONAL, b]["value"]) is not None
        }
        if rivals:
            best = min(rivals, key=lambda b: rivals[b])
            yield {"a": PERSONAL, "b": BEST, "is": best, "metric": metric, **cells[PERSONAL, best]}


def _paired(a: _Model, b: _Model, metric: str, study: Study, name: str, repeat: int) -> dict[str, float | None]:
    edges = [None if study.task == "multiclass" else model.thresholds.edges for model in (a, b)]
    return paired_bootstrap(
        a.test.scores,
        b.test.scores,
        a.test.targets,
        a.test.patients,
        metric,
        *edges,
        resamples=study.evaluation.bootstrap,
        confidence=study.evaluation.confidence,
        seed=seed_for(study.seed, repeat, name, "bootstrap"),
    ).to_dict()
