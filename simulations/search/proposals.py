"""Which values each trial tries: a grid, random draws, or Optuna's TPE.

All three are reproducible whatever the number of workers. A grid and random draws are known beforehand. TPE learns
from finished trials, and which are finished depends on who is quick: so trial n learns from trials up to n - LAG, no
later one, and waits for these (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization").
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import StudyError
from common.randomness import generator, seed_for
from simulations.search.space import DEFAULT_TRIALS, Choices, Range, SearchSpec

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study as OptunaStudy

Params = Mapping[str, Any]
"""Dotted path of a field -> its value."""
LAG = 4
"""A trial that learns from others learns from those at least so many before it: as many may run at the same time."""
_ATTEMPTS = 200


@dataclass(frozen=True)
class Learnt:
    """What became of a trial, as later ones may know it."""

    params: Params
    score: float | None = None
    """``None`` where it has none: it failed, was pruned or is not over."""
    pruned_at: tuple[int, float] | None = None
    """Round at which it was pruned, and its score then."""


def trials_of(spec: SearchSpec, where: str) -> int:
    """How many trials a search has. Raises :class:`StudyError` for a number that the space cannot give."""
    if not spec.space:
        return 1
    if spec.method == "grid":
        size = len(grid(spec, where))
        if spec.trials is not None and spec.trials < size:
            raise StudyError(
                f"{where}: the grid has {size} combinations, of which {spec.trials} trials would leave a corner out; "
                "give fewer values, or use method: random"
            )
        return size
    wanted = spec.trials or DEFAULT_TRIALS
    return wanted if spec.size is None else min(wanted, spec.size)


def grid(spec: SearchSpec, where: str) -> list[Params]:
    """All combinations, the last field changing fastest. Raises :class:`StudyError`."""
    values = []
    for name, axis in spec.space.items():
        try:
            values.append(axis.grid())
        except ValueError as error:
            raise StudyError(f"{where}: space.{name}: {error}") from None
    return [dict(zip(spec.space, chosen, strict=True)) for chosen in itertools.product(*values)]


class Proposer:
    """Proposes trials one after the other. ``seed`` decides all that is random."""

    def __init__(self, spec: SearchSpec, seed: int, where: str) -> None:
        self.spec, self._seed = spec, seed
        self.trials = trials_of(spec, where)
        self._grid = grid(spec, where) if spec.method == "grid" else []

    @property
    def learns(self) -> bool:
        """Whether a trial's values depend on the results of earlier ones."""
        return self.spec.method == "tpe"

    def propose(self, earlier: Sequence[Learnt]) -> Params:
        """The values of trial number ``len(earlier)``, from 0. No two trials have the same."""
        number = len(earlier)
        if self.spec.method == "grid":
            return self._grid[number]
        seen = {_text(trial.params) for trial in earlier}
        if self.learns:
            params = self._by_tpe(earlier)
            if _text(params) not in seen:
                return params
        for attempt in range(_ATTEMPTS):
            rng = generator(self._seed, "search", number, attempt)
            params = {name: axis.draw(rng) for name, axis in self.spec.space.items()}
            if _text(params) not in seen:
                return params
        return next(params for params in self._every() if _text(params) not in seen)

    def _every(self) -> list[Params]:
        """The whole space, which is small where random draws find nothing new in it."""
        values = [axis.values or () for axis in self.spec.space.values()]
        return [dict(zip(self.spec.space, chosen, strict=True)) for chosen in itertools.product(*values)]

    def _by_tpe(self, earlier: Sequence[Learnt]) -> Params:
        import optuna

        number = len(earlier)
        sampler = optuna.samplers.TPESampler(
            seed=seed_for(self._seed, "search", "tpe", number) >> 31,
            n_startup_trials=min(10, max(LAG, self.trials // 3)),
        )
        known = max(0, number - LAG + 1)
        study = told_optuna(self.spec, earlier[:known], earlier[known:], sampler)
        asked = study.ask(_distributions(self.spec))
        return {name: _value(axis, asked.params[name]) for name, axis in self.spec.space.items()}


def told_optuna(
    spec: SearchSpec,
    finished: Sequence[Learnt],
    running: Sequence[Learnt] = (),
    sampler: BaseSampler | None = None,
) -> OptunaStudy:
    """Trials as an Optuna study knows them, in memory: our own folder is what is kept.

    One that is running is taken for a bad one, so that the next looks elsewhere.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler, direction="maximize" if spec.maximised else "minimize")
    distributions = _distributions(spec)

    def tell(trial: Learnt, state: TrialState, **facts: Any) -> None:
        known = {name: _index(spec.space[name], value) for name, value in trial.params.items()}
        study.add_trial(create_trial(state=state, params=known, distributions=distributions, **facts))

    for trial in finished:
        if trial.score is not None:
            tell(trial, TrialState.COMPLETE, value=trial.score)
        elif trial.pruned_at is not None:
            tell(trial, TrialState.PRUNED, intermediate_values=dict([trial.pruned_at]))
        else:
            tell(trial, TrialState.FAIL)
    for trial in running:
        tell(trial, TrialState.RUNNING)
    return study


def _distributions(spec: SearchSpec) -> dict[str, BaseDistribution]:
    return {name: _distribution(axis) for name, axis in spec.space.items()}


def _distribution(axis: Range | Choices) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, Choices):
        return CategoricalDistribution(range(len(axis.choices)))
    high = axis.high if axis.values is None else axis.values[-1]  # a last step that is cut short is none
    if axis.whole:
        return IntDistribution(int(axis.low), int(high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, high, log=axis.log, step=axis.step)


def _index(axis: Range | Choices, value: Any) -> Any:
    """Optuna chooses among positions: values may be lists."""
    return axis.values.index(value) if isinstance(axis, Choices) else value


def _value(axis: Range | Choices, told: Any) -> Any:
    return axis.values[told] if isinstance(axis, Choices) else axis.plain(told)


def _text(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
