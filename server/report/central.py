"""The report's section on central privacy: what hides a hospital from whom, what it cost, what it did to the model."""

from __future__ import annotations

from common.html import Block, Cell, Column, Facts, Paragraph, Table
from common.privacy import belief
from common.words import sure
from server.report.privacy import ACCOUNTANTS
from server.report.promises import Central
from server.report.results import Run
from server.report.words import count


def blocks(run: Run) -> list[Block]:
    """Empty for a study without central privacy."""
    federated = run.arms.get("federated")
    found = federated.central if federated is not None else None
    if found is None:
        return []
    return [
        Paragraph(_promise(found)),
        Paragraph(found.effect),
        Facts(_facts(found)),
        _table(found),
        Paragraph(_limits(run, found), "muted"),
    ]


def _promise(central: Central) -> str:
    return (
        f"The federated model is differentially private for each hospital: ε at most {central.epsilon:.3g}, "
        f"δ {central.delta:.3g}, over all rounds. Somebody who sees every model, and held it as likely as not that a "
        f"given hospital's images had a say, can become {sure(belief(central.epsilon))} sure of it at most, but for "
        f"a chance of about δ. {_whom(central)}"
    )


def _whom(central: Central) -> str:
    if central.noise == "coordinator":
        return "Not so the coordinator, who adds the noise: it sees each hospital's update as it is."
    return (
        "That holds for the coordinator too, which saw sums only, to which each hospital had added a part of the "
        f"noise, as long as no more than {count(central.colluders)} of the other hospitals tell it theirs."
    )


def _facts(central: Central) -> list[tuple[str, str]]:
    clip = f"clipped to {central.clip:g} in L2, over all parameters"
    if central.clipping == "adaptive":
        clip = f"clipped to {central.clip:g} at first, and in the last round to {central.last_clip:.3g}, in L2"
    noise = f"{central.update_noise:.4g} times that, on the sum"
    if central.noise == "sites":
        noise += f", of which the parts of {count(central.reliable)} hospitals are enough"
    counted = f"{central.count_noise:.3g} hospitals" if central.clipping == "adaptive" else ""
    return [
        ("Update of each hospital", clip),
        ("Noise", noise),
        *([("Noise on how many were clipped", counted)] if counted else []),
        ("Noise of a round, for the accountant", f"{central.noise_multiplier:.4g}"),
        ("Hospitals in the last round", count(central.sites)),
        ("Taking part", "everybody in every round (nothing is sampled)"),
        ("Accountant", ACCOUNTANTS[central.accountant]),
        ("Weight of each hospital", "the same"),
    ]


def _table(central: Central) -> Table:
    rows = [[Cell(count(rounds)), Cell(f"{cost:.3f}")] for rounds, cost in central.spent]
    return Table("What the rounds cost each hospital", [Column("After round", numeric=False), Column("ε spent")], rows)


def _limits(run: Run, central: Central) -> str:
    text = "Noise comes from the system's entropy, so that no two runs are alike, whatever the seed. "
    if central.evaluation == "exact":
        text += "Counts of validation and test patients are exact: no ε covers them. "
    alone = [name for name in ("local", "pooled") if name in run.arms]
    if alone:
        text += "Models trained alone or on pooled images have no such noise: they are here to be compared with. "
    return text + "Who took part, and who answered in which round, is not hidden."
