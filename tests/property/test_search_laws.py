"""What a search tries depends on its seed and on results, never on how many workers there are or who is quick."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.metrics import FirstPass
from common.study import Study
from server.events import EventLog
from simulations.search.fit import Fit, Job, Outcome
from simulations.search.proposals import LAG, Learnt, Proposer
from simulations.search.pruning import Pruned, Pruner
from simulations.search.run import Plan, Schedule, Search
from simulations.search.space import PruneSpec, SearchSpec
from simulations.search.store import Store
from simulations.sites import Prepared

STUDY = Study.load(Path("configs/quickstart.yaml")).derive(**{"evaluation.bins": 16})
SPACE = {
    "training.optimiser.lr": {"low": 1e-4, "high": 1e-1, "log": True, "points": 2},
    "training.batch_size": [8, 16, 32],
    "model.dropout": {"low": 0.0, "high": 0.5, "step": 0.1, "points": 3},
}
PRUNE = {"startup_trials": 2, "warmup_rounds": 0}
PREPARED = Prepared("phantoms", True, sites={"site-1": {"images": {"train": 8, "val": 2, "test": 0}}})


def spec(**more: Any) -> SearchSpec:
    return SearchSpec.parse({"space": SPACE, "trials": 9, **more}, "test")


def pruner(*curves: list[float], maximise: bool = True, warmup: int = 0) -> Pruner:
    known = [tuple(enumerate(curve, start=1)) for curve in curves]
    return Pruner(PruneSpec(startup_trials=2, warmup_rounds=warmup), maximise, known)


def test_a_fit_below_the_median_of_earlier_ones_is_stopped_and_no_other():
    """By hand: medians of rounds 1 and 2 are 0.6 and 0.7; the best so far is what is compared."""
    three = ([0.5, 0.6], [0.6, 0.7], [0.7, 0.9])
    with pytest.raises(Pruned, match="round 2: below the median of 3"):
        pruner(*three).judge([(1, 0.65), (2, 0.65)])
    pruner(*three).judge([(1, 0.65)])
    pruner(*three).judge([(1, 0.71), (2, 0.1)])
    pruner(*three, warmup=2).judge([(1, 0.1), (2, 0.1)])
    pruner(three[0]).judge([(1, 0.0)])  # too few to tell
    with pytest.raises(Pruned):
        pruner(*three, maximise=False).judge([(1, 0.65)])


def score(job: Job) -> float:
    """A made-up landscape; the folds differ."""
    study = Study.parse(job.study)
    lr, dropout = study.training.optimiser.lr, study.model.dropout
    return 0.9 - 0.1 * abs(math.log10(lr) + 2) - 0.2 * dropout - 0.001 * study.training.batch_size - 0.01 * job.fold


def pruned_at(job: Job, curve: tuple[tuple[int, float], ...]) -> int:
    """The round at which a fit with ``curve`` is stopped, 0 where it is not; the last round is never judged."""
    assert job.pruner is not None
    for round_ in range(1, len(curve)):
        try:
            job.pruner.judge(curve[:round_])
        except Pruned:
            return round_
    return 0


class Hands:
    """Workers that finish in any order: what processes do, at no cost. Trials with dropout 0.2 or 0.4 fail."""

    def __init__(self, workers: int, order: random.Random) -> None:
        self.workers, self.order = workers, order
        self.running: list[Job] = []
        self.begun: list[tuple[int, int]] = []

    @property
    def free(self) -> bool:
        return len(self.running) < self.workers

    @property
    def jobs(self) -> set[tuple[int, int]]:
        return {(job.trial, job.fold) for job in self.running}

    def start(self, job: Job) -> None:
        assert (job.trial, job.fold) not in self.begun, "a fit was begun twice"
        self.begun.append((job.trial, job.fold))
        self.running.append(job)

    def finished(self) -> list[Outcome]:
        done = []
        for _ in range(self.order.randint(1, len(self.running))):
            job = self.running.pop(self.order.randrange(len(self.running)))
            study = Study.parse(job.study)
            if study.model.dropout in (0.2, 0.4):
                done.append(Outcome(Fit(job.trial, job.fold, "failed", f"diverged in fold {job.fold}")))
                continue
            value = score(job)
            curve = tuple((round_, value - 0.1 / round_) for round_ in range(1, 4))
            if job.pruner is not None and (stopped := pruned_at(job, curve)):
                done.append(Outcome(Fit(job.trial, job.fold, "pruned", "below", curve=curve[:stopped])))
                continue
            counts = FirstPass.zero(study).to_arrays()
            fit = Fit(job.trial, job.fold, "done", auc=value, loss=1 - value, images=4, patients=3, curve=curve)
            done.append(Outcome(fit, counts))
        return done


def run(folder: Path, given_: SearchSpec, workers: int, seed: int) -> tuple[list[Any], Hands]:
    folder.mkdir(parents=True, exist_ok=True)
    search = Search(Store(folder), STUDY, given_, Plan(), PREPARED)
    hands = Hands(workers, random.Random(seed))
    judged = Schedule(search, hands, EventLog()).run()
    told = [
        (one.trial, one.status, one.reason, one.score, one.deviation, [(fit.fold, fit.status) for fit in one.fits])
        for one in judged
    ]
    return told, hands


@pytest.mark.parametrize("more", [{"method": "grid"}, {"method": "random"}, {}, {"prune": PRUNE}], ids=str)
@settings(max_examples=3, deadline=None)
@given(workers=st.integers(1, 6), order=st.integers(0, 1000))
def test_the_same_trials_whatever_the_workers(tmp_path_factory, more, workers, order):
    given_ = spec(folds=2, trials=None if more == {"method": "grid"} else 14 if "prune" in more else 9, **more)
    root = tmp_path_factory.mktemp("search")
    alone, _ = run(root / "one", given_, 1, 0)
    together, hands = run(root / "many", given_, workers, order)
    assert together == alone
    assert ("pruned" in {one[1] for one in alone}) == ("prune" in more)
    finished = [one for one in alone if one[1] == "done"]
    assert {(trial.number, fold) for trial, *_ in finished for fold in (1, 2)} <= set(hands.begun)


@settings(max_examples=3, deadline=None)
@given(keep=st.sets(st.integers(1, 9)), order=st.integers(0, 1000))
def test_taken_up_again_a_search_does_the_rest_and_no_more(tmp_path_factory, keep, order):
    root = tmp_path_factory.mktemp("search")
    whole, _ = run(root / "whole", spec(folds=2), 2, order)
    run(root / "part", spec(folds=2), 2, order + 1)
    store = Store(root / "part")
    kept = set()
    for trial in store.trials():
        for fold in store.fits(trial.number):
            if trial.number in keep and fold == 1:  # also of a trial whose second fold has failed
                (store.trial_folder(trial.number) / f"fold-{fold}.json").unlink()
            else:
                kept.add((trial.number, fold))
    again, hands = run(root / "part", spec(folds=2), 3, order + 2)
    assert again == whole
    assert not kept & set(hands.begun)


@settings(max_examples=20)
@given(st.integers(0, 1 << 40))
def test_no_two_trials_have_the_same_values(seed):
    small = {"training.batch_size": [1, 2, 3], "model.dropout": [0.0, 0.1]}
    proposer = Proposer(SearchSpec.parse({"method": "random", "space": small}, "t"), seed, "t")
    assert proposer.trials == 6
    earlier: list[Learnt] = []
    for _ in range(6):
        earlier.append(Learnt(proposer.propose(earlier)))
    assert len({json.dumps(one.params) for one in earlier}) == 6


@settings(max_examples=20)
@given(st.integers(0, 1 << 40))
def test_draws_lie_in_their_ranges_and_make_good_studies(seed):
    proposer = Proposer(spec(method="random"), seed, "t")
    params = proposer.propose([])
    assert 1e-4 <= params["training.optimiser.lr"] <= 1e-1
    assert params["training.batch_size"] in (8, 16, 32)
    assert any(math.isclose(params["model.dropout"], step / 10, abs_tol=1e-9) for step in range(6))
    assert STUDY.derive(**params).model.dropout == params["model.dropout"]


def test_tpe_learns_and_a_late_result_does_not_show():
    proposer = Proposer(spec(trials=30), 5, "t")
    earlier: list[Learnt] = []
    for number in range(30):
        params = proposer.propose(earlier)
        hidden = [Learnt(one.params) if index > number - LAG else one for index, one in enumerate(earlier)]
        assert proposer.propose(hidden) == params
        earlier.append(Learnt(params, 1 - abs(math.log10(params["training.optimiser.lr"]) + 2)))
    distance = [abs(math.log10(one.params["training.optimiser.lr"]) + 2) for one in earlier]
    assert np.mean(distance[-10:]) < 0.6 * np.mean(distance[:10])
