"""The report's section on calibration: whether scores are probabilities, and from which score on acting helps."""

from __future__ import annotations

from common.html import Block, Cell, Column, Details, Figure, Paragraph, Row, Table
from server.report import charts
from server.report.calibrated import Calibrated
from server.report.results import Run
from server.report.words import arm_name, listing, number

_DRAWN = 4
_GOOD, _FAIR = 0.03, 0.08
_Of = dict[str, Calibrated]
"""Arm -> one class's calibration."""


def blocks(run: Run, drawn: bool, prefix: str) -> list[Block]:
    """Empty where no arm's calibration is known."""
    classes: dict[str, _Of] = {}
    for arm in run.arms.values():
        for name, one in arm.model.calibration.items():
            classes.setdefault(name, {})[arm.name] = one
    if not classes:
        return []
    found: list[Block] = [
        Paragraph(" ".join(_answer(name, arms) for name, arms in list(classes.items())[:_DRAWN])),
        _table(classes),
    ]
    if drawn:
        figures = [
            figure
            for place, (name, arms) in enumerate(classes.items())
            for figure in _figures(name, arms, f"{prefix}{place}")
        ]
        found.append(Row(figures[: 2 * _DRAWN]))
        if len(figures) > 2 * _DRAWN:
            found.append(Details("The other classes", [Row(figures[2 * _DRAWN :])]))
    found.append(
        Paragraph(
            "Groups of a tenth of the scale each. Temperature scaling divides logits by the one number that makes "
            "validation's log loss least; it changes no ranking, so no AUC. Net benefit counts right alarms, less "
            "false ones weighed by the threshold's odds (Vickers and Elkin 2006): a model helps where its curve is "
            "above both alarming for everybody and for nobody.",
            "muted",
        )
    )
    return found


def _answer(name: str, arms: _Of) -> str:
    arm, one = next(iter(arms.items()))
    error = one.errors.expected
    how = "must not be read as probabilities"
    if error <= _GOOD:
        how = "can be read as probabilities"
    elif error <= _FAIR:
        how = "are roughly probabilities"
    text = f"The {arm_name(arm).lower()} model's scores for {name} {how}"
    text += f": on average a group's score is {100 * error:.1f} points from its share of {name}"
    if one.scaled is not None and one.temperature is not None and one.scaled.expected < error:
        sharp = "too sure of itself" if one.temperature > 1 else "too timid"
        text += (
            f". It is {sharp}; divided by a temperature of {one.temperature:.2f}, its logits give "
            f"{100 * one.scaled.expected:.1f} points"
        )
    return text + "."


def _table(classes: dict[str, _Of]) -> Table:
    rows = [
        [
            Cell(name),
            Cell(arm_name(arm)),
            Cell(number(one.errors.brier)),
            Cell(number(one.errors.expected)),
            Cell(number(one.temperature, 2)),
            Cell(number(one.scaled.expected if one.scaled is not None else None)),
        ]
        for name, arms in classes.items()
        for arm, one in arms.items()
    ]
    heads = ("Brier score", "Calibration error", "Temperature by validation", "Error after scaling")
    return Table(
        "Calibration on everyone's test patients: less is better",
        [Column("Class", numeric=False), Column("Model", numeric=False), *(Column(head) for head in heads)],
        rows,
    )


def _figures(name: str, arms: _Of, suffix: str) -> list[Figure]:
    lines = {arm_name(arm): (arm, one) for arm, one in arms.items()}
    errors = listing(f"{label.lower()} {number(one.errors.expected)}" for label, (_, one) in lines.items())
    gains = listing(
        f"{label.lower()} {number(one.benefit[len(one.benefit) // 2])}" for label, (_, one) in lines.items()
    )
    return [
        Figure(
            charts.svg(charts.reliability(lines, f"Calibration: {name}"), f"calibration-{suffix}"),
            f"Reliability diagram for {name}; expected calibration error: {errors}.",
            "Of images with scores in a tenth of the scale, the share that has it. On the diagonal scores are "
            "probabilities; below it they promise too much.",
        ),
        Figure(
            charts.svg(charts.net_benefit(lines, f"Net benefit: {name}"), f"benefit-{suffix}"),
            f"Decision curve for {name}; net benefit at a threshold of a half: {gains}.",
            "Per image, by the score from which on one acts. Grey: acting on everybody; zero: on nobody.",
        ),
    ]
