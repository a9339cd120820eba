"""What a data manager should look at in a vault, each with its remedy; the gravest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from client.ingest.readiness_counts import Crossed, Readiness
from client.ingest.readiness_looks import PLAIN_PATIENTS
from client.ingest.readiness_words import attribute, number, percent, plural, several, word

if TYPE_CHECKING:
    from client.ingest.summary import Summary

FEW_PATIENTS = 30
"""A class with fewer patients is learnt badly and measured worse."""
FEW_IN_SPLIT = 10
IMBALANCE = 20
"""The most frequent class has more than this many times the patients of the rarest."""
CONFOUNDED, ELSEWHERE = 0.95, 0.5
"""A class is confounded with a device where this share of it is there, and of the others at most that."""
FEWEST_COMPARED = 20
"""Fewer images of a class or of a device say nothing about confounding."""
MOSTLY_MISSING = 0.2
GOOD_KAPPA = 0.6
"""Below, agreement is moderate at best: Landis and Koch 1977, doi:10.2307/2529310."""
SPLITS = ("train", "val", "test")
PRIVATE = {
    "text-in-pixels": "seem to have text in their pixels",
    "recognisable-face": "are of a head, from whose volume a face can be drawn",
}
"""Warnings that are about privacy."""


@dataclass(frozen=True)
class Finding:
    """``bad`` spoils a study or a patient's privacy where it is left; ``unsure`` should be known."""

    tone: Literal["bad", "unsure"]
    text: str
    remedy: str


def findings(found: Readiness, summary: Summary, notes: Sequence[str]) -> list[Finding]:
    """All there is to look at; ``notes`` are the label sheet's."""
    if not found.images:
        return list(_of_import(summary, notes))
    every = (
        *_of_import(summary, notes),
        *_of_duplicates(found),
        *_of_labels(found),
        *_of_classes(found),
        *_of_splits(found),
        *_of_confounding(found),
        *_of_images(found),
    )
    return sorted(every, key=lambda finding: finding.tone != "bad")


def _of_import(summary: Summary, notes: Sequence[str]) -> Iterator[Finding]:
    if summary.refused:
        yield Finding(
            "bad",
            f"{number(summary.refused)} of the files and images of this import {_was(summary.refused)} refused",
            "the last section says why and what to do; rejected.csv lists each",
        )
    for code, words in PRIVATE.items():
        if count := summary.warnings[code]:
            yield Finding(
                "bad",
                f"{plural(count, 'file')} of this import {words}",
                "look at them at their source; leave them out, or erase the patient, unless your data protection "
                "officer agrees",
            )
    for note in notes:
        yield Finding("unsure", f"the label sheet: {note}", "correct the sheet, then run `fedward site label`")


def _of_duplicates(found: Readiness) -> Iterator[Finding]:
    near, twins = found.near, len(found.twins)
    if twins:
        all_seen = near.complete and near.different <= len(near.pairs)
        yield Finding(
            "bad",
            f"{'' if all_seen else 'at least '}{plural(twins, 'pair')} of images of different patients "
            f"{_was(twins, 'looks', 'look')} nearly the same",
            "compare them: the same picture under two patients leaks from training into testing; correct the patient's "
            "number at the source, or erase one of the two",
        )
    if near.plain:
        yield Finding(
            "unsure",
            f"{plural(near.plain, 'image')} look{'s' if near.plain == 1 else ''} the same as images of more than "
            f"{PLAIN_PATIENTS} patients and {_was(near.plain)} not compared for duplicates",
            "look at some of them: nearly empty pictures, or one blank picture many times?",
        )


def _of_labels(found: Readiness) -> Iterator[Finding]:
    without = found.images - found.labelled.images
    if without:
        yield Finding(
            "unsure" if found.labelled.images else "bad",
            f"{plural(without, 'image')} of {number(found.images)} ha{'s' if without == 1 else 've'} no label",
            "add labels with `fedward site label`; until then such images take no part in a study",
        )
    if found.anonymous:
        yield Finding(
            "unsure",
            f"{plural(found.anonymous, 'image')} of unknown patients: each file counts as a patient of its own",
            "import them into a new vault with a patient column in the label sheet; else one patient may be in "
            "training and in testing",
        )
    for one in found.agreements:
        if one.kappa is not None and one.kappa < GOOD_KAPPA:
            yield Finding(
                "unsure",
                f"the readers {word(one.readers[0])} and {word(one.readers[1])} agree badly (κ {one.kappa:.2f})",
                "have them settle what each class means, and read the images on which they differ once more",
            )


def _of_classes(found: Readiness) -> Iterator[Finding]:
    for column, counts in found.classes.items():
        classes = {name: count for name, count in counts.items() if name}
        if len(classes) == 1:
            yield Finding(
                "unsure",
                f"“{word(column)}”: all labelled images are of one class",
                "add images of another class: there is nothing to tell apart",
            )
        few = {name: count.patients for name, count in classes.items() if count.patients < FEW_PATIENTS}
        if few:
            yield Finding(
                "unsure",
                f"“{word(column)}”: fewer than {FEW_PATIENTS} patients of {_listed(few)}",
                "add such patients, or merge classes in the study",
            )
        people = [count.patients for count in classes.values()]
        if len(people) > 1 and max(people) > IMBALANCE * min(people):
            yield Finding(
                "unsure",
                f"“{word(column)}”: strong imbalance, {number(max(people) // min(people))} patients of the most "
                "frequent class for one of the rarest",
                "judge models by AUC and by each class's sensitivity, not by accuracy; a study can weight classes "
                "(class_weighting: balanced)",
            )


def _of_splits(found: Readiness) -> Iterator[Finding]:
    splits = found.groups["split"]
    if found.split_patients:
        yield Finding(
            "bad",
            f"{plural(found.split_patients, 'patient')} with images in two splits",
            "give all images of a patient one split with `fedward site label`",
        )
    if "" in splits:
        if len(splits) > 1:
            yield Finding(
                "unsure", f"{plural(splits[''].images, 'image')} in no split", "set it with `fedward site label`"
            )
        else:
            return  # a vault without splits: the study draws them
    absent = [split for split in SPLITS if split not in splits]
    if absent:
        yield Finding(
            "unsure",
            f"no image is in {' or '.join(absent)}",
            "right only where that is meant: see split in site.yaml, or the split column of the label sheet",
        )
    present = [split for split in SPLITS if split in splits]
    for column, crossed in found.crossed["split"].items():
        names = [name for name in found.classes[column] if name]
        people = {
            (name, split): crossed[name, split].patients if (name, split) in crossed else 0
            for name in names
            for split in present
        }
        none = [f"{word(name)} in {split}" for (name, split), count in people.items() if not count]
        few = {f"{name} in {split}": count for (name, split), count in people.items() if 0 < count < FEW_IN_SPLIT}
        remedy = "add patients of that class, or set the splits in the label sheet"
        if none:
            yield Finding("bad", f"“{word(column)}”: no patient of {several(none)}", remedy)
        if few:
            yield Finding("unsure", f"“{word(column)}”: fewer than {FEW_IN_SPLIT} patients of {_listed(few)}", remedy)


def _of_confounding(found: Readiness) -> Iterator[Finding]:
    for side in ("device", "view"):
        for column, crossed in found.crossed[side].items():
            pairs = confounded(crossed)
            if pairs:
                yield Finding(
                    "bad",
                    f"“{word(column)}” and {side} go together: "
                    + several(f"{word(name)} with {word(other)} ({percent(*share)})" for name, other, share in pairs),
                    f"a model can tell the class by the {side} alone; add images of that class from another {side}, or "
                    "of the other classes from this one",
                )


def confounded(crossed: Crossed) -> list[tuple[str, str, tuple[int, int]]]:
    """Class, device (or view), and the share that makes them suspicious, as (part, whole).

    Nearly all of a class is on a device on which most other images are not, or nearly all on a device is of a class of
    which most others are not.
    """
    images = {key: count.images for key, count in crossed.items()}
    classes, devices, total = Counter[str](), Counter[str](), sum(images.values())
    for (name, device), count in images.items():
        classes[name] += count
        devices[device] += count
    result = []
    for (name, device), both in sorted(images.items()):
        for whole, other in ((classes[name], devices[device]), (devices[device], classes[name])):
            rest = total - whole
            if min(whole, rest) < FEWEST_COMPARED or both < CONFOUNDED * whole or other - both > ELSEWHERE * rest:
                continue
            result.append((name, device, (both, whole)))
            break
    return result


def _of_images(found: Readiness) -> Iterator[Finding]:
    absent = {
        name: share
        for name, share in found.missing.items()
        if name in ("modality", "sex", "age", "device", "view") and share.without > MOSTLY_MISSING * share.of
    }
    if absent:
        yield Finding(
            "unsure",
            "often not known: " + ", ".join(f"{attribute(name)} ({percent(*share)})" for name, share in absent.items()),
            "export images with these tags, or add such columns to the label sheet: without them nobody can tell "
            "whether a model serves all groups alike",
        )
    if found.busy:
        share = percent(sum(busy.images for busy in found.busy), found.images)
        yield Finding(
            "unsure",
            f"{plural(len(found.busy), 'patient')} with very many images, {share} of all",
            "right for volumes and series; else check that these are not several patients under one number",
        )
    if found.odd:
        yield Finding(
            "unsure",
            f"{plural(found.odd, 'image')} {_was(found.odd, 'is', 'are')} unusually dark, bright, flat, sharp or "
            "blurred for the modality",
            "look at those listed under image quality; leave out what a reader would not read",
        )


def _listed(few: Mapping[str, int]) -> str:
    return several(f"{word(name)} ({number(count)})" for name, count in sorted(few.items(), key=lambda one: one[1]))


def _was(count: int, one: str = "was", more: str = "were") -> str:
    return one if count == 1 else more
