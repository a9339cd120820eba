"""The report's section on differential privacy: what was promised, what it cost, what it does not cover."""

from __future__ import annotations

from common.html import Block, Cell, Column, Facts, Paragraph, Table
from common.privacy import belief
from common.words import sure
from server.report.promises import Privacy
from server.report.results import Run
from server.report.words import arm_name, count, plural

ACCOUNTANTS = {"prv": "PRV (Gopi et al. 2021)", "rdp": "Rényi (Mironov 2017)"}


def blocks(run: Run) -> list[Block]:
    """Empty for a study without differential privacy, of which the provenance says so."""
    private = {name: arm.privacy for name, arm in run.arms.items() if arm.privacy is not None}
    if not private:
        return []
    first = next(iter(private.values()))
    found: list[Block] = [Paragraph(_promise(first)), Facts(_facts(first))]
    if any(one.sites for one in private.values()):
        found.append(_table(private))
    return [*found, Paragraph(_limits(run, first), "muted")]


def _promise(privacy: Privacy) -> str:
    whose = "patient" if privacy.unit == "patient" else "image"
    return (
        f"Training at each hospital is differentially private for each {whose}: ε at most {privacy.epsilon:.3g}, "
        f"δ {privacy.delta:.3g}, over all rounds. Somebody who sees every model, and held it as likely as not that a "
        f"given {whose} took part, can become {sure(belief(privacy.epsilon))} sure of it at most, but for a chance "
        "of about δ."
    )


def _facts(privacy: Privacy) -> list[tuple[str, str]]:
    noise = privacy.noise_multiplier
    redone = f", of which {plural(privacy.rounds_redone, 'round')} may have run twice" if privacy.rounds_redone else ""
    return [
        ("Gradient of each " + privacy.unit, f"clipped to {privacy.clip:g} in L2, over all parameters"),
        ("Noise", "each hospital's own" if noise is None else f"{noise:.4g} times that"),
        ("Steps", f"{count(privacy.steps)} planned{redone}"),
        ("Accountant", ACCOUNTANTS[privacy.accountant]),
        ("Weight of each hospital", "the same"),
    ]


def _table(private: dict[str, Privacy]) -> Table:
    rows = [
        [
            Cell(arm_name(name)),
            Cell(site),
            Cell(f"{spent.noise_multiplier:.4g}"),
            Cell(f"{spent.sample_rate:.4g}"),
            Cell(count(spent.steps)),
            Cell(f"{spent.epsilon:.3f}"),
        ]
        for name, privacy in private.items()
        for site, spent in privacy.sites.items()
    ]
    heads = ("Noise σ", "Sampling rate q", "Steps", "ε spent")
    return Table(
        "What each model cost each hospital's patients",
        [Column("Trained", numeric=False), Column("At", numeric=False), *(Column(head) for head in heads)],
        rows,
        note="Each row is one model by itself. Who publishes several of them spends their sum, or a little less.",
    )


def _limits(run: Run, privacy: Privacy) -> str:
    text = (
        "Noise comes from the system's entropy, so that no two runs of a private study are alike, whatever the seed. "
    )
    if privacy.evaluation == "exact":
        text += "Counts of validation and test patients are exact: no ε covers them. "
    else:
        text += "No count of validation or test patients has left a hospital, so nothing says how good the models are. "
    if run.at_hospitals:
        return text + "How many images a hospital has, and what of its budget it has spent, is known to it alone."
    return text + "The numbers of images on this page are known because the hospitals are virtual."
