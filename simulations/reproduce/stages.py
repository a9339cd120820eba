"""What a stage of the paper's system is worth: the run that has it against the run that has not, on the same patients.

Both models are scored again on every test image; images are matched by the order in which they entered their
hospital's vault, which a stage does not change, and the comparison is refused where truth or patients do not match.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import RunError
from common.randomness import seed_for
from simulations.bootstrap import Difference, paired_bootstrap
from simulations.reproduce.beside import Results
from simulations.reproduce.confounding import by_rule, train_counts
from simulations.reproduce.paper import Stage
from simulations.reproduce.playing import Order
from simulations.reproduce.scoring import same_patients, tested


@dataclass(frozen=True)
class Worth:
    """A stage's paired differences, with it minus without it, one for each seed; ``reason`` where there are none."""

    stage: Stage
    differences: tuple[Difference, ...]
    reason: str = ""

    def json(self) -> dict[str, object]:
        return {
            "stage": self.stage.title,
            "having": self.stage.having,
            "lacking": self.stage.lacking,
            "metric": self.stage.metric,
            "differences": [one.to_dict() for one in self.differences],
            "reason": self.reason,
        }


def worths(order: Order, results: Results) -> list[Worth]:
    """Every stage of the paper, measured where both its runs were played."""
    found = []
    for stage in order.paper.stages:
        absent = [name for name in (stage.having, stage.lacking) if name is not None and name not in results]
        if absent:
            found.append(Worth(stage, (), f"not run: {absent[0]}, {order.left_out[absent[0]]}"))
            continue
        found.append(Worth(stage, tuple(_difference(order, stage, number) for number in range(order.seeds))))
    return found


def _difference(order: Order, stage: Stage, repeat: int) -> Difference:
    having = order.folder(stage.having)
    a = tested(having, repeat, order.seeds)
    if stage.lacking is None:
        b = by_rule(a, train_counts(having, order.seeds))
    else:
        b = tested(order.folder(stage.lacking), repeat, order.seeds)
    if not same_patients(a, b):
        raise RunError(
            f"{stage.having} and {stage.lacking} were not tested on the same patients, so no pairs can be compared; "
            "give both one seed, partition and data set in the paper's table"
        )
    return paired_bootstrap(
        a.scores.scores,
        b.scores.scores,
        a.scores.targets,
        a.scores.patients,
        stage.metric,
        a.edges,
        b.edges,
        resamples=a.card.study.evaluation.bootstrap,
        confidence=a.card.study.evaluation.confidence,
        seed=seed_for(a.card.study.seed, repeat, "stage", "bootstrap"),
    )
