"""The card of a site's own model, in plain words (``client.own_package``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from common.study import Study

_METHODS = {
    "fedbn": "the model of all with norm layers that were trained here, and here alone",
    "ditto": "a second model, trained here in every round and drawn towards the model of all",
    "finetune": "the model of all, trained on further on this hospital's images",
}

_SYNTHETIC = ", which are SYNTHETIC: of patients it says nothing"


def said_of_choice(chosen: str | None, own: Mapping[str, Any]) -> str:
    """In words: which of the two models this site would run, and on what that rests."""
    if chosen is None:
        return "there is no model of all to choose: norm layers stay at each hospital"
    found = own["lead"]
    patients = f"{found['patients']} validation patients"
    if chosen == "personal":
        return (
            f"by validation: on {patients} its loss is lower than that of the model of all, by {found['loss']:.4f} "
            f"where {found['needed']:.4f} was needed"
        )
    if found["needed"] is None:
        return f"NOT chosen: {patients} are too few to say; the model of all is the one to run"
    return (
        f"NOT chosen: on {patients} it is not convincingly better than the model of all (loss lower by "
        f"{found['loss']:.4f}, needed {found['needed']:.4f}), which is the one to run"
    )


def page(study: Study, summary: Mapping[str, Any], site: str, federation: str, at: datetime) -> str:
    """The card for people, in Markdown; after Mitchell et al. 2019, Model Cards for Model Reporting."""
    return (
        "\n".join(
            [
                *_what(study, summary, site, at),
                *_how(study, federation, summary["synthetic"]),
                *_well(study, summary, site),
            ]
        )
        + "\n"
    )


def _what(study: Study, summary: Mapping[str, Any], alias: str, at: datetime) -> Iterator[str]:
    assert study.personalisation is not None
    own = summary["own"]
    yield f"# {study.name}: {alias}'s own model\n"
    yield f"**This is the hospital {alias}'s own. No message takes it along, and it is not to be passed on.**\n"
    yield "## What it is\n"
    yield f"- {_METHODS[study.personalisation.method]}"
    yield f"- {study.model.name} for {study.task} classification: {', '.join(study.class_names)}"
    for name, edge in summary["thresholds"].items():
        yield f"- an image counts as {name} from a score of {edge:.4f} on, chosen on {alias}'s validation images"
    yield f"- chosen: {said_of_choice(own['chosen'], own)}"
    yield f"- signed by {alias} itself, so whole since {at.date()}; nobody else has seen it"


def _how(study: Study, federation: str, synthetic: bool) -> Iterator[str]:
    assert study.personalisation is not None
    yield "\n## How it was trained\n"
    yield f"- in the study {study.hash} of the federation {federation}"
    yield f"- on this hospital's training images{_SYNTHETIC if synthetic else ''}"
    if study.privacy is not None or study.central_privacy is not None:
        fedbn = study.privacy is not None and study.personalisation.split
        yield (
            "- with the differential privacy that the model of all has"
            if fedbn
            else "- WITHOUT the differential privacy of the model of all: what bounds that one does not bound this one"
        )


def _well(study: Study, summary: Mapping[str, Any], alias: str) -> Iterator[str]:
    yield f"\n## How well it did on {alias}'s own test patients\n"
    confidence = study.evaluation.confidence
    yield f"{summary['images']} images of {summary['patients']} patients; intervals at {confidence:.0%}.\n"
    others = summary["own"].get("test_of_all", {})
    yield "| metric | own | interval | model of all, same patients |\n|---|---|---|---|"
    for metric, cell in summary["test"].items():
        if cell["value"] is not None:
            between = "" if cell["low"] is None else f"{cell['low']:.3f} to {cell['high']:.3f}"
            other = others.get(metric, {}).get("value")
            beside = "" if other is None else f"{other:.3f}"
            yield f"| {metric.replace('_', ' ')} | {cell['value']:.3f} | {between} | {beside} |"
    yield "\n## What it is not for\n"
    yield "- It is the result of research and no medical device: no diagnosis may rest on it."
    yield f"- It fits {alias}'s patients and machines; for other hospitals it is the wrong model, never tested there."
    yield "- Its weights can tell about the patients it was trained on: guard it like their images."
