"""What a private study promises a hospital's patients, and what it does not, in plain words."""

from __future__ import annotations

from common import central
from common.errors import PrivacyError
from common.privacy import belief, mechanism_of, promised, spec_of
from common.study import Study
from common.words import sure


def private_words(study: Study, units: int | None) -> str:
    """The promise, what it means for one patient, what this site does for it, and what stays uncovered.

    ``units`` are the site's training patients (or images), where they were counted.
    """
    privacy = spec_of(study)
    bound = promised(study)
    whose = "patient" if privacy.unit == "patient" else "image (not patient: who has several is protected less)"
    text = (
        f"Training is differentially private for each {whose}: epsilon at most {bound:.3g}, delta {privacy.delta:.1g}, "
        "over the whole study. Who sees all that leaves training, knows all other patients, and holds it as likely as "
        f"not that a given {privacy.unit} took part, can become {sure(belief(bound))} sure of it at most, but for a "
        "chance of about delta. "
    )
    return f"{text}{_strength(bound)} {_here(study, units)} {_uncovered(study)}"


def central_words(study: Study) -> str:
    """What the coordinator promises every hospital, and what that takes for granted."""
    spec, bound = central.spec_of(study), central.promised(study)
    who, whom = (
        "The coordinator promises",
        "It protects against those who get the models, not against the coordinator, which sees this site's update as "
        "it is, and is trusted to add the noise.",
    )
    if spec.noise == "sites":
        who, whom = (
            "The sites together add",
            "It protects against the coordinator too, which sees sums only: each site adds a part of the noise before "
            f"its update is masked. {central.reliable(study)} parts are enough, so that {spec.colluders} of the other "
            "sites may tell the coordinator theirs.",
        )
    text = (
        f"{who} noise that hides each hospital as a whole: epsilon at most {bound:.3g}, delta "
        f"{spec.delta:.1g}, over the whole study. Who sees all models, knows all other hospitals, and holds it as "
        f"likely as not that this one's images had a say, can become {sure(belief(bound))} sure of it at most. "
        f"{whom}"
    )
    if spec.evaluation == "exact":
        text += " Not covered: counts of validation and test patients, which leave as they are."
    return text


def leaves_of_private(study: Study, trained: str) -> str:
    """What leaves, of a private study, or of one with central privacy; ``trained``: what a fit tells without noise."""
    sent = f"{trained}, without noise"
    if study.privacy is not None:
        sent = "the model's weights after private training here"
    elif study.noised_by_sites:
        sent = "the model's weights after training here, with noise"
    sent += ", masked" if study.federation.secure_aggregation is not None else ""
    text = (
        f"Whether there are labelled images in each split, not how many. From each round {sent}; neither the "
        "number of images nor their loss nor the time. "
    )
    if study.metrics_suppressed:
        return text + "Of validation and test images nothing: the study's privacy suppresses it."
    return text


def _here(study: Study, units: int | None) -> str:
    if units is None:
        return "What noise this site would add was not worked out, as its patients were not counted."
    try:
        done = mechanism_of(study, units)
    except PrivacyError as error:
        return f"It cannot be done here: {error}."
    privacy = spec_of(study)
    return (
        f"Here each of {done.steps} steps draws each of {units} {privacy.unit}s with a chance of "
        f"{done.sample_rate:.2%}, bounds the influence of each to {privacy.clip:g}, and adds noise of "
        f"{done.noise_multiplier:.3g} times that."
    )


def _strength(bound: float) -> str:
    if bound <= 1.0:
        return "That is a strong promise."
    if bound <= 10.0:
        return "That is a promise of the size in common use; attacks known today do far worse than it allows."
    return "That is next to no promise on paper, though noise of any size hinders the attacks known today."


def _uncovered(study: Study) -> str:
    privacy = spec_of(study)
    found = ["what studies without this protection have told of the same patients"]
    if privacy.sample_rate is None:
        found.append("roughly how many training patients there are, which the size of the noise follows")
    if privacy.evaluation == "exact":
        found.append("counts of validation and test patients, which leave as they are")
    text = f"Not covered: {'; '.join(found)}."
    if study.federation.secure_aggregation is None:
        text += " Weights are not hidden from the coordinator by secure aggregation."
    return text
