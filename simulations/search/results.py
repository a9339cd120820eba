"""What came of a search: each trial's score over its folds, best first, and which field mattered."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.randomness import seed_for
from common.study import Study
from simulations.search.fit import Fit, merged, scores_of
from simulations.search.proposals import Learnt, Params, told_optuna
from simulations.search.space import SearchSpec
from simulations.search.store import Store, Trial

Status = Literal["done", "failed", "pruned", "unfinished"]
LEAST_FOR_IMPORTANCE = 10
"""Finished trials from which on it is said which field mattered; fewer cannot tell."""


@dataclass(frozen=True)
class Judged:
    """A trial and what became of it."""

    trial: Trial
    status: Status
    reason: str
    fits: Sequence[Fit]
    """In the order of folds."""
    score: float | None = None
    """Mean over the folds; ``None`` unless every fold is done."""
    deviation: float | None = None
    """Standard deviation over the folds; ``None`` for one fold."""
    pooled: float | None = None
    """The score of all folds' validation patients together, each judged by the model that had not seen it."""

    @property
    def params(self) -> Params:
        return self.trial.params

    @property
    def learnt(self) -> Learnt:
        """What later trials may know of it."""
        last = next((fit.curve[-1] for fit in self.fits if fit.status == "pruned" and fit.curve), None)
        return Learnt(self.params, self.score, None if last is None else (int(last[0]), float(last[1])))

    @property
    def wall_s(self) -> float:
        return sum(fit.wall_s for fit in self.fits)

    @property
    def patients(self) -> int:
        return sum(fit.patients for fit in self.fits)


def judge(store: Store, study: Study, spec: SearchSpec, trial: Trial, found: Mapping[int, Fit]) -> Judged:
    """A trial by its fits, of which ``store`` holds the counts."""
    folds = spec.folds or 1
    fits = [found[fold] for fold in sorted(found)]
    if trial.refused:
        return Judged(trial, "failed", trial.refused, [])
    # As one worker would find it, fold after fold: what others have done of later folds does not count.
    ended = next((fit for fit in fits if fit.status != "done"), None)
    if ended is not None and all(fold in found for fold in range(1, ended.fold)):
        where = f"fold {ended.fold}: " if folds > 1 else ""
        return Judged(trial, ended.status, where + ended.reason, [fit for fit in fits if fit.fold <= ended.fold])
    if len(fits) < folds:
        return Judged(trial, "unfinished", "", fits)
    scores = [score for fit in fits if (score := fit.score(spec.metric)) is not None]
    together = merged(study, [store.counts(trial.number, fit.fold) for fit in fits])
    return Judged(
        trial,
        "done",
        "",
        fits,
        statistics.fmean(scores),
        statistics.stdev(scores) if len(scores) > 1 else None,
        scores_of(together)[spec.metric],
    )


def ranked(trials: Sequence[Judged], spec: SearchSpec) -> list[Judged]:
    """Best first; those without a score last, in their order. Equal scores: the earlier trial."""
    sign = -1.0 if spec.maximised else 1.0
    return sorted(
        trials,
        key=lambda one: (one.score is None, sign * one.score if one.score is not None else 0.0, one.trial.number),
    )


def importance(trials: Sequence[Judged], spec: SearchSpec, seed: int) -> Mapping[str, float]:
    """Share of the score's variance that each field explains, summing to 1; empty where too few trials can tell.

    Source: Hutter, Hoos and Leyton-Brown (2014), "An efficient approach for assessing hyperparameter importance"
    (functional ANOVA), as Optuna has it.
    """
    done = [one for one in trials if one.score is not None]
    scores = {one.score for one in done}
    if len(done) < LEAST_FOR_IMPORTANCE or len(scores) < 2 or len(spec.space) < 2:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    study = told_optuna(spec, [one.learnt for one in done])
    evaluator = FanovaImportanceEvaluator(seed=seed_for(seed, "search", "importance") >> 31)
    found = get_param_importances(study, evaluator=evaluator)
    return {name: float(found[name]) for name in found}


def json_of(trials: Sequence[Judged], spec: SearchSpec) -> list[dict[str, Any]]:
    """As ``trials.json`` has them, best first."""
    return [
        {
            "rank": rank if one.score is not None else None,
            "trial": one.trial.number,
            "status": one.status,
            "reason": one.reason,
            "params": dict(one.params),
            "metric": spec.metric,
            "score": one.score,
            "deviation": one.deviation,
            "pooled": one.pooled,
            "patients": one.patients,
            "wall_s": round(one.wall_s, 3),
            "folds": [fit.json() for fit in one.fits],
        }
        for rank, one in enumerate(ranked(trials, spec), start=1)
    ]
