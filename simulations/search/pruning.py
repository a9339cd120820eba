"""Stopping a fit that earlier trials tell to be hopeless: Optuna's median rule, on curves handed to the worker.

The curves are those of trials that were over before this one began (``proposals.LAG``), so that what is stopped does
not depend on who is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulations.search.space import PruneSpec

Curve = Sequence[tuple[int, float]]
"""(round, score) of validated rounds, in order."""


class Pruned(Exception):
    """This fit is not worth going on with; the text says since when."""


@dataclass(frozen=True)
class Pruner:
    """Judges a fit by the ``curves`` of the same fold in earlier trials."""

    spec: PruneSpec
    maximise: bool
    curves: Sequence[Curve]

    def judge(self, curve: Curve) -> None:
        """Raises :class:`Pruned` where the best of ``curve`` so far is worse than the median at its last round."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = optuna.pruners.MedianPruner(self.spec.startup_trials, self.spec.warmup_rounds + 1)
        study = optuna.create_study(pruner=pruner, direction="maximize" if self.maximise else "minimize")
        for known in self.curves:
            values = dict(known)
            study.add_trial(optuna.trial.create_trial(value=known[-1][1], intermediate_values=values))
        trial = study.ask()
        for round_, value in curve:
            trial.report(value, round_)
        if trial.should_prune():
            raise Pruned(f"round {curve[-1][0]}: below the median of {len(self.curves)} earlier trials")
