"""What a coordinator should know of a survey before training, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.html import Tone
from common.survey import SPLITS, ClassCounts, PixelSums, one_class
from server.report.words import count, listing
from server.survey import Surveyed

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
SKEWED = 0.25
"""Total variation distance of a site's classes from all sites' together: 0 the same, 1 no class in common."""
SHIFTED = 0.5
"""Distance of a site's mean brightness from all sites', in standard deviations of all pixels."""
CONTRAST = 1.5
"""A site's standard deviation of pixels against all sites', either way."""
RARE = 0.1
LARGEST = 20
"""Times the images of the smallest site."""
_LISTED = 5


@dataclass(frozen=True)
class Finding:
    """``bad`` should be settled before training, ``unsure`` should be known."""

    tone: Tone
    text: str
    remedy: str


def findings(found: Surveyed) -> list[Finding]:
    """All of them, the worst first."""
    everything = [*_of_sites(found), *_of_splits(found), *_of_classes(found), *_of_pixels(found)]
    return sorted(everything, key=lambda one: one.tone != "bad")


def shares(found: Surveyed, counts: ClassCounts, split: int = 0) -> NDArray[np.float64] | None:
    """Share of each class ``(C,)`` of a split; ``None`` where a count is withheld or there is no image.

    Where an image has several classes or none, of the images with and without each.
    """
    images = counts.images[split]
    if counts.withheld[split].any() or not images.any():
        return None
    whole = images[:, 1].sum() if one_class(found.study) else images.sum(axis=1)
    return np.asarray(images[:, 1] / np.maximum(whole, 1), dtype=np.float64)


def skew(found: Surveyed, own: NDArray[np.float64], everyone: NDArray[np.float64]) -> float:
    """How far a site's classes are from everyone's: total variation; of multilabel, the largest difference."""
    gaps = np.abs(own - everyone)
    return float(gaps.sum() / 2 if one_class(found.study) else gaps.max(initial=0.0))


def shift(own: PixelSums, everyone: PixelSums) -> float:
    """The largest distance of a channel's mean from everyone's, in everyone's standard deviations, with its sign."""
    gaps = [(a - b) / d if d else 0.0 for a, b, d in zip(own.mean, everyone.mean, everyone.deviation, strict=True)]
    return max(gaps, key=abs)


def _of_sites(found: Surveyed) -> Iterator[Finding]:
    if found.silent:
        yield Finding(
            "bad",
            f"no answer, or none that counts: {_sites(found.silent)}",
            "see below why; what was measured stays as it is for this run, so settle it and survey a renamed study",
        )
    train = {site: told.images.get("train", 0) for site, told in found.sites.items()}
    if len(train) > 1 and max(train.values()) > LARGEST * max(1, min(train.values())):
        largest, smallest = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
        yield Finding(
            "unsure",
            f"training images: {count(train[largest])} at {largest}, {count(train[smallest])} at {smallest}",
            "a mean weighted by images follows the largest site; look at each site's own result in the report",
        )


def _of_splits(found: Surveyed) -> Iterator[Finding]:
    for split, what in (("val", "model and threshold are chosen without"), ("test", "the model is tested without")):
        without = [site for site, told in found.sites.items() if not told.images.get(split, 0)]
        if not without:
            continue
        every = len(without) == len(found.sites)
        few = found.study.evaluation.min_cell
        least = f", or of fewer than {few} patients" if few > 1 else ""
        yield Finding(
            "bad" if every else "unsure",
            f"no {SPLIT_NAMES[split]} images{least}: {'every site' if every else _sites(without)}",
            f"{what} {'any' if every else 'their patients'}; more patients into that split at the site"
            + (", or lower evaluation.min_cell" if few > 1 else ""),
        )


def _of_classes(found: Surveyed) -> Iterator[Finding]:
    together = found.together.classes
    if together is None:
        return
    names = found.study.class_names
    for number, split in enumerate(SPLITS):
        told, withheld = together.images[number, :, 1], together.withheld[number].any(axis=1)
        none = [names[c] for c in range(len(names)) if not told[c] and not withheld[c]]
        if none:
            yield Finding(
                "bad" if split == "train" else "unsure",
                f"no site has a {SPLIT_NAMES[split]} image of {_listed(none)}",
                "a model cannot learn what nobody has; check labels and classes"
                if split == "train"
                else f"{SPLIT_NAMES[split]} says nothing of it; add such patients, or set the splits at the sites",
            )
        lost = {
            site: one.survey.classes.withheld[number].any(axis=1)
            for site, one in found.sites.items()
            if one.survey.classes is not None and one.survey.classes.withheld[number].any()
        }
        if lost:
            weighted = split == "train" and found.study.training.class_weighting == "federated"
            yield Finding(
                "unsure",
                f"counts of {SPLIT_NAMES[split]} images withheld for too few patients: {_sites(lost)}",
                "the class weights leave these sites' images out of account"
                if weighted
                else "nothing, but know that sums over all sites are lower bounds",
            )
    yield from _of_balance(found, together)


def _of_balance(found: Surveyed, together: ClassCounts) -> Iterator[Finding]:
    names, everyone = found.study.class_names, shares(found, together)
    absent: dict[str, list[str]] = {}
    skewed: list[str] = []
    for site, told in found.sites.items():
        counts = told.survey.classes
        if counts is None or counts.withheld[0].any():
            continue
        for column in np.flatnonzero((counts.images[0, :, 1] == 0) & (together.images[0, :, 1] > 0)).tolist():
            absent.setdefault(names[column], []).append(site)
        own = shares(found, counts)
        if own is not None and everyone is not None and skew(found, own, everyone) >= SKEWED:
            skewed.append(site)
    for name, sites in list(absent.items())[:_LISTED]:
        yield Finding(
            "unsure",
            f"no training image of {name}: {_sites(sites)}",
            "their fits pull away from that class; more sites a round, fedprox or fewer local epochs help",
        )
    if skewed:
        yield Finding(
            "unsure",
            f"classes are much rarer or more frequent than over all sites: {_sites(skewed)}",
            "averaging suffers from it: compare with fedprox, and read each site's own result",
        )
    if everyone is not None and found.study.training.class_weighting == "none":
        rare = [names[c] for c in np.flatnonzero((everyone > 0) & (everyone < RARE)).tolist()]
        if rare:
            yield Finding(
                "unsure",
                f"fewer than {RARE:.0%} of the training images: {_listed(rare)}",
                "a model may ignore it; consider training.class_weighting: federated",
            )


def _of_pixels(found: Surveyed) -> Iterator[Finding]:
    everyone = found.together.pixels
    if everyone is None:
        return
    own = {
        site: told.survey.pixels
        for site, told in found.sites.items()
        if told.survey.pixels is not None and told.survey.pixels.images
    }
    silent = [site for site in found.sites if site not in own]
    if silent:
        yield Finding(
            "unsure",
            f"sums of pixels withheld for too few patients: {_sites(silent)}",
            "mean and spread are the other sites'; nothing, if their images look alike",
        )
    shifted = [site for site, sums in own.items() if abs(shift(sums, everyone)) >= SHIFTED]
    flat = [site for site, sums in own.items() if _contrast(sums, everyone) >= CONTRAST]
    remedy = (
        "look for another device, another window or inverted images; preprocess.equalise brings images nearer, "
        "augment.brightness makes a model care less"
    )
    if shifted:
        yield Finding("unsure", f"images much darker or brighter than over all sites: {_sites(shifted)}", remedy)
    if flat:
        yield Finding("unsure", f"images of much lower or higher contrast than over all sites: {_sites(flat)}", remedy)


def _contrast(own: PixelSums, everyone: PixelSums) -> float:
    ratios = [max(a, 1e-9) / max(b, 1e-9) for a, b in zip(own.deviation, everyone.deviation, strict=True)]
    return max(max(ratio, 1 / ratio) for ratio in ratios)


def _sites(sites: Sequence[str] | Mapping[str, object]) -> str:
    return _listed(list(sites))


def _listed(words: Sequence[str]) -> str:
    more = [f"{len(words) - _LISTED} more"] if len(words) > _LISTED else []
    return listing([*words[:_LISTED], *more])
