"""The report's section on outlines: how they lie over the masks, and which lesions they find."""

from __future__ import annotations

from collections.abc import Mapping

from common.html import Block, Cell, Column, Figure, Paragraph, Row, Table
from server.report import charts
from server.report.contrasts import ends, main_metric, shortened
from server.report.intervals import Interval
from server.report.outlined import Outlined, Share
from server.report.results import Run
from server.report.words import arm_name, bounds, count, level, metric_cell, metric_name, number, plural

METRICS = ("dice", "iou", "lesions_found", "false_lesions")
_OVERLAPS = METRICS[:2]


def blocks(run: Run, drawn: bool, prefix: str) -> list[Block]:
    """Empty for a run that does not outline."""
    known = {name: arm.model.outlined for name, arm in run.arms.items() if arm.model.outlined is not None}
    if not known:
        return []
    found: list[Block] = [Paragraph(_answer(run, known)), _arms(run, known)]
    if any(arm.own for arm in run.arms.values()):
        found.append(_hospitals(run))
    lesions = [_groups("By size", known, "by_size"), _groups("By place in the image", known, "by_place")]
    curves = {name: one for name, one in known.items() if one.lesions_found}
    figures = [_froc(run, curves, prefix)] if drawn and curves else []
    found += [Row([*figures, lesions[0]]), lesions[1], Paragraph(_terms(run), "muted")]
    return found


def _answer(run: Run, known: Mapping[str, Outlined]) -> str:
    name, one = next(iter(known.items()))
    metrics = run.arms[name].model.test
    dice, found, false = (metrics.get(metric, Interval(None)) for metric in ("dice", "lesions_found", "false_lesions"))
    images = f"{plural(one.outlined, 'image')} with something to outline and {count(one.empty)} without"
    if dice.value is None:
        return f"How well the {arm_name(name).lower()} model outlines is not known: the test has {images}."
    said = f" ({level(run.confidence)} interval {bounds(dice)})" if bounds(dice) else ""
    text = f"On average the {arm_name(name).lower()} model's outline has a Dice of {number(dice.value)}{said} with the "
    text += f"mask, over {plural(one.outlined, 'image')} with something to outline"
    if found.value is not None and false.value is not None:
        text += (
            f". It finds {found.value:.0%} of {plural(one.lesions, 'lesion')} and draws "
            f"{number(false.value, 2)} false ones an image"
        )
    clean = one.clean.interval.value
    if clean is not None:
        text += f"; of {plural(one.empty, 'image')} without the finding {clean:.0%} stay without a lesion"
    return f"{text}."


def _arms(run: Run, known: Mapping[str, Outlined]) -> Table:
    columns = (*METRICS, "pixel_dice", "clean", "threshold")
    rows = []
    for name, arm in run.arms.items():
        one = known.get(name)
        row = [Cell(arm_name(name)), *(metric_cell(arm.model.test.get(metric), metric) for metric in METRICS)]
        if one is None:
            row += [Cell("—", tone="muted")] * (len(columns) - len(METRICS))
        else:
            row += [Cell(number(one.pixel_dice)), _share(one.clean), Cell(number(one.threshold, 2))]
        rows.append(row)
    heads = {"pixel_dice": "Dice of all pixels", "clean": "Kept clean", "threshold": "Threshold"}
    return Table(
        f"Every arm's outlines on everyone's test patients, with {level(run.confidence)} intervals",
        [Column("Arm", numeric=False), *(Column(heads.get(name, metric_name(name))) for name in columns)],
        rows,
        "Intervals are clustered by patient. Thresholds were chosen on validation images only.",
    )


def _hospitals(run: Run) -> Table:
    arms = {name: arm for name, arm in run.arms.items() if arm.own}
    sites = ends(run, main_metric(run), list(run.sites))
    rows = [
        [
            Cell(site),
            *(metric_cell(arm.own.get(site, {}).get(metric), metric) for metric in _OVERLAPS for arm in arms.values()),
        ]
        for site in sites
    ]
    return Table(
        "Each hospital's own test patients",
        [
            Column("Hospital", numeric=False),
            *(Column(arm_name(name), metric_name(metric)) for metric in _OVERLAPS for name in arms),
        ],
        rows,
        shortened(len(run.sites)),
    )


def _groups(title: str, known: Mapping[str, Outlined], field: str) -> Table:
    """Lesions found, by one property of them."""
    groups: dict[str, dict[str, Share]] = {}
    for arm, one in known.items():
        for name, share in getattr(one, field).items():
            groups.setdefault(name, {})[arm] = share
    rows = [
        [
            Cell(name),
            Cell(count(max(share.count for share in arms.values()))),
            *(_share(arms.get(arm)) for arm in known),
        ]
        for name, arms in groups.items()
    ]
    return Table(
        f"{title}: lesions found",
        [Column("Lesions", numeric=False), Column("Number"), *(Column(arm_name(arm)) for arm in known)],
        rows,
    )


def _share(share: Share | None) -> Cell:
    if share is None or share.interval.value is None:
        why = "withheld: too few patients" if share is not None and share.withheld else "there is none of these"
        return Cell("—", title=why, tone="muted")
    note = f"withheld by {plural(share.withheld, 'hospital')} of too few patients" if share.withheld else ""
    return Cell(number(share.interval.value), small=bounds(share.interval), title=note)


def _froc(run: Run, known: Mapping[str, Outlined], prefix: str) -> Figure:
    figure = charts.froc({name: (arm_name(name), one) for name, one in known.items()})
    points = "; ".join(
        f"{arm_name(name)} at its threshold: {number(found.value)} found, {number(false.value, 2)} false an image"
        for name in known
        if (found := run.arms[name].model.test.get("lesions_found")) is not None
        and (false := run.arms[name].model.test.get("false_lesions")) is not None
    )
    return Figure(
        charts.svg(figure, f"{prefix}froc"),
        f"Free-response ROC curve. {points}",
        "Lesions found against false lesions, over thresholds from high down to where most are found.",
    )


def _terms(run: Run) -> str:
    overlap, smallest = (run.setting("evaluation", "lesions", key) for key in ("overlap", "smallest"))
    sizes = run.study.get("evaluation", {}).get("lesions", {}).get("sizes", (0, 0))
    whole = (
        " ROC curve, confusion matrix and the other metrics are of whole images: whether there is anything to outline, "
        "by the highest threshold at which the outline is as large as the smallest lesion."
        if run.task == "segmentation"
        else ""
    )
    return (
        "Dice is twice the shared pixels over those of outline and mask together, IoU the shared over those of either; "
        "both are means over images with something to outline. Dice of all pixels counts every pixel outlined in vain "
        f"as well. A lesion is a connected piece of at least {smallest} pixels; it is found where the box around a "
        f"drawn one overlaps its own by at least {overlap} (IoU). Small lesions take less than {float(sizes[0]):.3g} "
        f"of the image, large ones at least {float(sizes[1]):.3g}. Kept clean are images with an empty mask in which "
        f"no lesion was drawn.{whole}"
    )
