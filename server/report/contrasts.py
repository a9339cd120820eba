"""Which arms a run compares at which hospitals, and which hospitals a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.report.intervals import Interval
from server.report.results import Run
from server.report.words import ordered_metrics, plural

MANY_SITES = 30
"""Above this many hospitals a page shows the ends of the list and a summary."""
ENDS = 10


@dataclass(frozen=True)
class Hospital:
    """One hospital's row: its comparisons of federated with alone on one metric."""

    site: str
    train_images: int | None
    alone_everyone: Interval | None
    gain_everyone: Interval | None
    gain_own: Interval | None


def hospitals(run: Run, metric: str) -> list[Hospital]:
    """Every hospital's comparisons, in the order of the results."""
    local = run.arms.get("local")
    found = {(d.b, d.on): d.interval for d in run.differences if d.a == "federated" and d.metric == metric}
    return [
        Hospital(
            site=name,
            train_images=site.images.get("train"),
            alone_everyone=local.everyone.get(name, {}).get(metric) if local else None,
            gain_everyone=found.get((f"local:{name}", "all")),
            gain_own=found.get((f"local:{name}", name)),
        )
        for name, site in run.sites.items()
    ]


def difference(run: Run, a: str, b: str, metric: str, on: str = "all") -> Interval | None:
    """The interval of a − b, or ``None`` where the run has not compared them."""
    return next(
        (d.interval for d in run.differences if (d.a, d.b, d.metric, d.on) == (a, b, metric, on)),
        None,
    )


def main_metric(run: Run) -> str:
    """What the verdict speaks of: AUC (in segmentation Dice), or else the first metric compared or measured."""
    if run.task == "segmentation":
        return "dice"
    names = [d.metric for d in run.differences] or [m for arm in run.arms.values() for m in arm.model.test]
    return next(iter(ordered_metrics(names)), "auc")


def metrics_of(run: Run) -> list[str]:
    return ordered_metrics(metric for arm in run.arms.values() for metric in arm.model.test)


def ends(run: Run, metric: str, names: Sequence[str]) -> list[str]:
    """``names``, or where they are many the hospitals with least and most to gain, worst first."""
    if len(names) <= MANY_SITES:
        return list(names)
    gains = {h.site: h.gain_everyone for h in hospitals(run, metric)}
    federated = run.arms.get("federated")

    def rank(site: str) -> float:
        gain = gains.get(site)
        if gain is not None and gain.value is not None:
            return gain.value
        own = federated.own.get(site, {}).get(metric) if federated else None
        return own.value if own is not None and own.value is not None else float("inf")

    ranked = sorted(names, key=rank)
    return ranked[:ENDS] + ranked[-ENDS:]


def shortened(total: int) -> str:
    """The note under a table that :func:`ends` has cut."""
    if total <= MANY_SITES:
        return ""
    return (
        f"{plural(total, 'hospital')}: shown are the {ENDS} for which federating does least and the {ENDS} for which "
        "it does most; metrics.csv has all of them."
    )
