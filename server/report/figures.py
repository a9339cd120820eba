"""The figures of one run, each with its words for those who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence

from common.html import Figure
from server.report import charts
from server.report.contrasts import ENDS, main_metric
from server.report.results import Arm, Difference, Run, Scores
from server.report.words import arm_name, in_sentence, level, listing, number, plural, spoken

FAINT_LIMIT = 10
"""More hospitals alone than this are not drawn one by one."""


def forest(run: Run, group: Sequence[Difference], title: str, name: str) -> Figure:
    """Differences with their intervals, all of one metric."""
    axis = f"Difference in {in_sentence(group[0].metric)} ({level(run.confidence)} interval)"
    effects = [charts.Effect(_effect_label(d), d.interval, _effect_colour(d)) for d in group]
    return Figure(
        charts.svg(charts.forest(effects, title, axis), name),
        f"Forest plot. {title}: " + "; ".join(_effect_words(d) for d in group[:12]),
        f"{title}: federated minus the arm named at the left.",
    )


def _effect_label(difference: Difference) -> str:
    other = difference.b.removeprefix("local:")
    if difference.b.startswith("local:"):
        return f"against {other} alone" if difference.on == "all" else other
    against = f"against {arm_name(difference.b).lower()}"
    return against if difference.on == "all" else f"{difference.on}, {against}"


def _effect_colour(difference: Difference) -> str:
    return charts.ARM_COLOURS.get("local" if difference.b.startswith("local:") else difference.b, charts.FEDERATED)


def _effect_words(difference: Difference) -> str:
    i = difference.interval
    return f"{_effect_label(difference)} {number(i.value)}, {number(i.low)} to {number(i.high)}"


def roc(run: Run, prefix: str) -> list[Figure]:
    """ROC curves of the arms, a figure per class (eight at most)."""
    drawn = []
    for index, name in enumerate(roc_classes(run)[:8]):
        lines = roc_lines(run, name)
        title = f"ROC: {name}"
        shown = "; ".join(
            f"{arm_name(arm.name)} AUC {spoken(interval)}"
            for arm in run.arms.values()
            if (interval := arm.model.per_class.get(name, arm.model.test).get("auc")) is not None
        )
        thin = f" Thin: {_alone_shown(run)}." if any(line.faint for line in lines) else ""
        drawn.append(
            Figure(
                charts.svg(charts.roc(lines, title), f"{prefix}roc-{index}"),
                f"ROC curves for {name}. {shown}",
                f"On everyone's test patients.{thin} The diagonal is guessing.{_coarse(run, name)}",
            )
        )
    return drawn


def _coarse(run: Run, name: str) -> str:
    """That a curve is no more than near, where hospitals told scores in blocks of several patients."""
    cells = [arm.model.per_class.get(name, arm.model.test).get("auc") for arm in run.arms.values()]
    if not any(cell is not None and cell.hidden for cell in cells):
        return ""
    return " Drawn from blocks of scores, each as if all in it had the lowest: the true curve is somewhere near."


def roc_classes(run: Run) -> list[str]:
    """The classes that any arm has a ROC curve of; of a binary task the positive one."""
    names = {name for arm in run.arms.values() for name, curve in arm.model.roc.items() if curve.fpr}
    ordered = [name for name in run.classes if name in names] + sorted(names - set(run.classes))
    # Two classes mirror each other: the positive one tells all.
    return ordered[-1:] if run.task == "binary" else ordered


def roc_lines(run: Run, name: str) -> list[charts.Line]:
    """What :func:`charts.roc` draws for class ``name``."""
    lines = [
        charts.Line(_with_auc(arm, name), arm.name, curve)
        for arm in run.arms.values()
        if (curve := arm.model.roc.get(name)) is not None
    ]
    alone = [scores.roc[name] for scores in _alone(run) if name in scores.roc]
    if alone:
        label = "" if any(line.arm == "local" for line in lines) else _alone_shown(run).capitalize()
        lines += [charts.Line(label if not i else "", "local", curve, faint=True) for i, curve in enumerate(alone)]
    return lines


def _with_auc(arm: Arm, name: str) -> str:
    interval = arm.model.per_class.get(name, arm.model.test).get("auc")
    value = f" (AUC {spoken(interval)})" if interval is not None and interval.known else ""
    return f"{arm_name(arm.name)}{value}"


def learning(run: Run, prefix: str) -> list[Figure]:
    """Learning curves of the arms; none where no round was recorded."""
    found = histories(run)
    thin = f" Thin: {_alone_shown(run)}." if any(h.faint for h in found) else ""
    panels = [f"{title[:1].lower()}{title[1:]}" for _, title in charts.learned(found)]
    if not panels:
        return []
    return [
        Figure(
            charts.svg(charts.learning(found), f"{prefix}learning"),
            f"Learning curves of the arms {listing(arm_name(n).lower() for n in run.arms)}: "
            f"{listing(panels)} by round.",
            f"By round: {listing(panels)}. A ring marks the round whose weights were kept.{thin}",
        )
    ]


def _alone(run: Run) -> list[Scores]:
    """The hospitals alone that are drawn: all, or of many the worst, the middle and the best."""
    local = run.arms.get("local")
    if local is None or len(local.alone) <= FAINT_LIMIT:
        return list(local.alone.values()) if local is not None else []
    metric = main_metric(run)

    def rank(site: str) -> float:
        interval = local.everyone.get(site, {}).get(metric)
        return interval.value if interval is not None and interval.value is not None else -1.0

    ranked = sorted(local.alone, key=rank)
    return [local.alone[ranked[place]] for place in (0, len(ranked) // 2, -1)]


def _alone_shown(run: Run) -> str:
    local = run.arms.get("local")
    many = local is not None and len(local.alone) > FAINT_LIMIT
    return "worst, middle and best hospital alone" if many else "each hospital alone"


def histories(run: Run) -> list[charts.History]:
    """What :func:`charts.learning` draws."""
    found = [
        charts.History(arm_name(arm.name), arm.name, arm.model.history, arm.model.kept_round)
        for arm in run.arms.values()
        if arm.model.history
    ]
    alone = [scores for scores in _alone(run) if scores.history]
    if alone:
        label = "" if any(history.arm == "local" for history in found) else _alone_shown(run).capitalize()
        found += [
            charts.History(label if not i else "", "local", scores.history, faint=True)
            for i, scores in enumerate(alone)
        ]
    return found


def partition(run: Run, names: Sequence[str], prefix: str) -> Figure:
    """Images of the named hospitals by class and split."""
    cut = len(names) < len(run.sites)
    by_class = any(site.classes for site in run.sites.values())
    title = f"Images{' by class' if by_class else ''}{f': the {ENDS} largest and {ENDS} smallest' if cut else ''}"
    classes = run.classes if by_class else ()
    return Figure(
        charts.svg(charts.partition({n: run.sites[n] for n in names}, classes, title), f"{prefix}partition"),
        f"Bars of the images{' of each class' if by_class else ''} at {plural(len(names), 'hospital')}, by split; "
        "the table beside it has the numbers.",
        f"One group of bars per hospital: training, validation and test images{', by class' if by_class else ''}."
        + (" An image with several findings counts once for each." if run.task == "multilabel" else ""),
    )
