"""One dataset becomes several virtual hospitals, by patient.

A patient is dealt as one unit: all of a patient's images lie at one site and in one
split. Every step works on patients in the order of their names, so the order in which
images are listed does not show in the result, and equal seeds give equal sites.

Kinds (``PartitionSpec.kind``):

- ``iid``: every class in equal shares to all sites (``device`` is the same; its shift
  of the pixels is ``simulations.devices``).
- ``dirichlet``: label skew. Shares of each class over the sites ~ Dirichlet(alpha): the
  benchmark of Hsu, Qi, Brown 2019 (arXiv:1909.06335), drawn per class over sites as in
  Li, Diao, Chen, He 2022 (arXiv:2102.02079).
- ``quantity``: the sites' sizes ~ Dirichlet(alpha), labels IID (Li et al. 2022).
- ``pathological``: ``classes_per_site`` classes at each site (McMahan et al. 2017,
  arXiv:1602.05629); a common class is held by more sites than a rare one.
- ``natural``: one site per value of ``attributes[column]``, in sorted order.

``simulations.dealing`` then hands the patients out in these shares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.errors import PartitionError
from common.folds import strata
from common.randomness import generator
from common.study import PartitionSpec
from simulations.dealing import SPLITS, TRAIN, Dealt, Patients, deal_and_split, split_within

DRAWS = 200  # of random shares before the minimum is called out of reach
NEVER_NONE = 1e-12  # a drawn share may be tiny; zero means that a site must not hold a class


@dataclass(frozen=True)
class Cohort:
    """What a partition needs to know of ``N`` images."""

    patients: NDArray[np.str_]
    """``(N,)`` the patient of each image."""
    targets: NDArray[np.float32]
    """``(N, C)`` in {0, 1}; a row of NaN is a masked (unlabelled) image."""
    splits: NDArray[np.str_]
    """``(N,)`` "train", "val", "test", or "" where unknown."""
    attributes: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """Column -> ``(N,)`` values, "" where unknown."""


@dataclass(frozen=True)
class Shard:
    """One virtual hospital's share of a cohort."""

    site: str
    """Alias: "site-1", "site-2", …"""
    indices: NDArray[np.int64]
    """Positions in the cohort, ascending."""
    splits: NDArray[np.str_]
    """"train", "val" or "test", aligned with ``indices``."""
    origin: str = ""
    """Kind ``natural``: the column's value that this site stands for."""
    strays: int = 0
    """Kind ``natural``: images here with another value, of patients with most images of ``origin``."""


def partition(
    cohort: Cohort,
    spec: PartitionSpec,
    fractions: tuple[float, float, float],
    class_names: Sequence[str],
    seed: int,
) -> list[Shard]:
    """Deal a cohort out to sites.

    Splits that the cohort brings are kept; a cohort without any is split by patient within
    each site, stratified by class, into ``fractions`` of train, val and test. Every site has
    training images, ``spec.min_per_site`` images and ``spec.min_per_class`` labelled training
    images of every class. Where the patients suffice, every site also gets a labelled patient
    in each split. Raises :class:`PartitionError` where this cannot be had; random shares are
    drawn at most ``DRAWS`` times.
    """
    patients = _patients(cohort, seed)
    if spec.kind == "natural":
        return _natural(cohort, patients, spec, fractions, class_names, seed)
    _possible(patients, spec, class_names)
    random_shares = spec.kind in ("dirichlet", "quantity")
    reached, best = -np.inf, None
    for attempt in range(DRAWS if random_shares else 1):
        shares = _shares(patients, spec, class_names, generator(seed, "partition", spec.kind, attempt))
        reach = _reach(patients, spec, fractions, shares)
        if not random_shares or reach >= 0.0:
            dealt = deal_and_split(patients, shares, fractions, seed)
            if _shortfall(patients, spec.sites, spec, class_names, dealt) is None:
                return _shards(patients, dealt, spec.sites)
        if best is None or reach > reached:
            reached, best = reach, shares
    assert best is not None
    dealt = deal_and_split(patients, best, fractions, seed)
    missed = _shortfall(patients, spec.sites, spec, class_names, dealt)
    if missed is None:  # rounding was kinder than its expectation
        return _shards(patients, dealt, spec.sites)
    if random_shares:
        raise PartitionError(
            f"partition: none of {DRAWS} draws of {spec.kind} with alpha {spec.alpha:g} gave each of {spec.sites} "
            f"sites the minimum; in the best {missed}; use a larger alpha, fewer sites, a lower minimum or more images"
        )
    raise PartitionError(f"partition: {spec.kind}: {missed}; use fewer sites, a lower minimum or more images")


def split_by_patient(cohort: Cohort, fractions: tuple[float, float, float], seed: int) -> NDArray[np.str_]:
    """``(N,)`` splits for a cohort that has none: by patient, stratified by class, as of one site."""
    patients = _patients(cohort, seed)
    split = split_within(patients, np.zeros(patients.count, dtype=np.int64), fractions, seed)
    return np.array(SPLITS)[split[patients.owner]]


# -- patients ------------------------------------------------------------------------------


def _patients(cohort: Cohort, seed: int) -> Patients:
    count = len(cohort.patients)
    if count == 0:
        raise PartitionError("partition: there are no images; check the data folder and its label sheet")
    nameless = int(np.count_nonzero(cohort.patients == ""))
    if nameless:
        raise PartitionError(
            f"partition: {nameless} images have an empty patient; fill in the label sheet's patient column"
        )
    names, owner = np.unique(cohort.patients, return_inverse=True)
    images = np.bincount(owner, minlength=len(names))
    known = ~np.isnan(cohort.targets).all(axis=1)
    present = np.nan_to_num(cohort.targets) > 0.5
    labelled = np.stack([np.bincount(owner[column], minlength=len(names)) for column in present.T], axis=1)
    has_label = np.bincount(owner[known], minlength=len(names)) > 0
    rng = generator(seed, "partition", "patients")
    return Patients(
        owner=owner,
        images=images,
        labelled=labelled,
        stratum=strata(labelled, has_label, one_each=bool((present[known].sum(axis=1) == 1).all())),
        split=_given_splits(cohort, names, owner),
        rank=rng.permutation(len(names)),
    )


def _given_splits(cohort: Cohort, names: NDArray[np.str_], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each patient's split, or all -1 in a cohort that has none."""
    code = np.full(len(owner), -1, dtype=np.int64)
    for index, name in enumerate(SPLITS):
        code[cohort.splits == name] = index
    strange = np.unique(cohort.splits[(code < 0) & (cohort.splits != "")])
    if len(strange):
        listed = ", ".join(repr(str(value)) for value in strange[:3])
        raise PartitionError(
            f"partition: unknown split {listed}; a split is train, val or test, or empty for all images"
        )
    missing = int(np.count_nonzero(code < 0))
    if missing == len(owner):
        return np.full(len(names), -1, dtype=np.int64)
    if missing:
        raise PartitionError(
            f"partition: {missing} of {len(owner)} images have no split and the others do; "
            "give every image a split, or none to have them split by patient"
        )
    first, last = np.full(len(names), 3, dtype=np.int64), np.full(len(names), -1, dtype=np.int64)
    np.minimum.at(first, owner, code)
    np.maximum.at(last, owner, code)
    torn = np.flatnonzero(first != last)
    if len(torn):
        listed = ", ".join(str(name) for name in names[torn[:3]])
        raise PartitionError(
            f"partition: {len(torn)} patients have images in more than one split ({listed}{', …' * (len(torn) > 3)}); "
            "put each patient into one, or empty the split column to have them split by patient"
        )
    if not (code == TRAIN).any():
        raise PartitionError("partition: no image is in split train; mend the split column, or empty it")
    return first


# -- what can be had at all ----------------------------------------------------------------


def _possible(patients: Patients, spec: PartitionSpec, class_names: Sequence[str]) -> None:
    """Refuse at once what no draw can give."""
    trainable = int(np.count_nonzero(patients.may_train))
    what = "training patients" if patients.given else "patients"
    if spec.sites > trainable:
        raise PartitionError(
            f"partition: {spec.sites} sites, but only {trainable} {what}; use at most {trainable} sites or more data"
        )
    images = int(patients.images.sum())
    if spec.sites * spec.min_per_site > images:
        raise PartitionError(
            f"partition: {spec.sites} sites × min_per_site {spec.min_per_site} needs {spec.sites * spec.min_per_site} "
            f"images, there are {images}; use fewer sites, a lower min_per_site or more images"
        )
    totals = patients.labelled[patients.may_train].sum(axis=0)
    for name, total in zip(class_names, totals, strict=True):
        if spec.sites * spec.min_per_class > total:
            raise PartitionError(
                f"partition: {spec.sites} sites × min_per_class {spec.min_per_class} needs "
                f"{spec.sites * spec.min_per_class} training images of {name!r}, there are {total}; "
                "use fewer sites, a lower min_per_class or more images"
            )
    if spec.kind == "pathological" and spec.min_per_class and spec.classes_per_site < len(class_names):
        raise PartitionError(
            f"partition: min_per_class {spec.min_per_class} asks for all {len(class_names)} classes at every site and "
            f"classes_per_site allows {spec.classes_per_site}; set min_per_class: 0"
        )
    if spec.kind in ("dirichlet", "pathological") and (patients.stratum == patients.strata - 1).all():
        raise PartitionError(f"partition: {spec.kind} deals by class and no image has a label; check data.label_column")


# -- shares: (sites, strata), every column sums to 1 -----------------------------------------


def _shares(
    patients: Patients, spec: PartitionSpec, class_names: Sequence[str], rng: np.random.Generator
) -> NDArray[np.float64]:
    sites, strata = spec.sites, patients.strata
    if spec.kind in ("iid", "device"):
        return np.full((sites, strata), 1.0 / sites)
    # Beyond these alphas one site has everything, or all have the same, and draws overflow.
    alpha = np.full(sites, min(max(spec.alpha, 1e-6), 1e9))
    if spec.kind == "quantity":
        return np.repeat(np.maximum(rng.dirichlet(alpha), NEVER_NONE)[:, None], strata, axis=1)
    if spec.kind == "dirichlet":
        shares = np.maximum(rng.dirichlet(alpha, size=strata).T, NEVER_NONE)
    else:
        shares = _pathological(patients, spec, class_names, rng)
    # Unlabelled patients follow the sizes that the labelled ones give to the sites.
    labelled = patients.images_per_stratum
    labelled[-1] = 0.0
    shares[:, -1] = shares @ labelled / labelled.sum()
    return shares


def _pathological(
    patients: Patients, spec: PartitionSpec, class_names: Sequence[str], rng: np.random.Generator
) -> NDArray[np.float64]:
    """``classes_per_site`` classes a site, each class in equal shares to the sites that hold it."""
    available = np.bincount(patients.stratum[patients.may_train], minlength=patients.strata)[:-1]
    everywhere = np.bincount(patients.stratum, minlength=patients.strata)[:-1]
    weight = patients.images_per_stratum
    classes = np.flatnonzero(everywhere)
    wanted, slots = spec.classes_per_site, spec.sites * spec.classes_per_site
    if wanted > len(classes):
        raise PartitionError(
            f"partition: classes_per_site {wanted}, but patients of only {len(classes)} classes are there"
        )
    if slots < len(classes):
        raise PartitionError(
            f"partition: {spec.sites} sites × {wanted} classes cannot hold {len(classes)} classes; "
            "use more sites or a larger classes_per_site"
        )
    limit = np.minimum(np.maximum(available[classes], 1), spec.sites)
    if limit.sum() < slots:
        short = [*class_names, "no class"][classes[np.argmin(limit)]]
        raise PartitionError(
            f"partition: {spec.sites} sites × {wanted} classes, but there are too few training patients "
            f"({limit.min()} of {short!r}); use fewer sites or a smaller classes_per_site"
        )
    # Holders per class in proportion to its images (D'Hondt), at least one each.
    holders = np.ones(len(classes), dtype=np.int64)
    for _ in range(slots - len(classes)):
        open_ = np.where(holders < limit, weight[classes] / (holders + 1), -1.0)
        holders[np.argmax(open_)] += 1
    # No class has more holders than there are sites, so dealing its slots in a row never
    # gives one site the same class twice.
    order = rng.permutation(len(classes))
    holds = np.repeat(classes[order], holders[order])
    at = rng.permutation(spec.sites)[np.arange(slots) % spec.sites]
    shares = np.zeros((spec.sites, patients.strata))
    shares[at, holds] = 1.0 / holders[order].repeat(holders[order])
    return shares


def _reach(
    patients: Patients, spec: PartitionSpec, fractions: tuple[float, float, float], shares: NDArray[np.float64]
) -> float:
    """How far, in images, the worst site's shares alone clear the minimum, with the half image that
    rounding may add. Spares dealing thousands of patients in a draw that cannot do."""
    margin = np.inf
    if spec.min_per_site > 1:  # one image a site is seen to when dealing
        margin = float((shares @ patients.images_per_stratum).min()) + 0.5 - spec.min_per_site
    if spec.min_per_class:
        per_stratum = np.zeros((patients.strata, patients.labelled.shape[1]))
        rows = patients.may_train
        np.add.at(per_stratum, patients.stratum[rows], patients.labelled[rows])
        expected = shares @ per_stratum * (1.0 if patients.given else fractions[TRAIN])
        margin = min(margin, float(expected.min()) + 0.5 - spec.min_per_class)
    return margin


# -- minimum and result ----------------------------------------------------------------------


def _shortfall(
    patients: Patients, count: int, spec: PartitionSpec, class_names: Sequence[str], dealt: Dealt
) -> str | None:
    """What the deal to ``count`` sites lacks, in words, or ``None``."""
    images = np.bincount(dealt.site, weights=patients.images, minlength=count).astype(np.int64)
    rows = dealt.split == TRAIN
    train = np.bincount(dealt.site[rows], weights=patients.images[rows], minlength=count)
    labelled = np.zeros((count, patients.labelled.shape[1]), dtype=np.int64)
    np.add.at(labelled, dealt.site[rows], patients.labelled[rows])
    found = []
    if images.min() < spec.min_per_site:
        below = int(np.count_nonzero(images < spec.min_per_site))
        found.append(
            f"{below} of {count} sites are below min_per_site {spec.min_per_site} "
            f"(site-{np.argmin(images) + 1} has {images.min()} images)"
        )
    if labelled.min() < spec.min_per_class:
        at, of = divmod(int(np.argmin(labelled)), len(class_names))
        below = int(np.count_nonzero(labelled.min(axis=1) < spec.min_per_class))
        found.append(
            f"{below} of {count} sites are below min_per_class {spec.min_per_class} "
            f"(site-{at + 1} has {labelled.min()} training images of {class_names[of]!r})"
        )
    if train.min() == 0:
        found.append(
            f"{np.count_nonzero(train == 0)} of {count} sites have no training image (site-{np.argmin(train) + 1})"
        )
    return "; ".join(found) or None


def _shards(patients: Patients, dealt: Dealt, sites: int) -> list[Shard]:
    site = dealt.site[patients.owner]
    names = np.array(SPLITS)[dealt.split[patients.owner]]
    order = np.argsort(site, kind="stable").astype(np.int64)  # stable: ascending within a site
    bounds = np.concatenate(([0], np.cumsum(np.bincount(site, minlength=sites)))).tolist()
    return [
        Shard(f"site-{index + 1}", order[start:stop], names[order[start:stop]])
        for index, (start, stop) in enumerate(pairwise(bounds))
    ]


def _natural(
    cohort: Cohort,
    patients: Patients,
    spec: PartitionSpec,
    fractions: tuple[float, float, float],
    class_names: Sequence[str],
    seed: int,
) -> list[Shard]:
    """One site per value of a column. ``spec.sites`` does not apply. A patient with several
    values (views, say) goes where most of its images belong, ties to the first value."""
    column = spec.column or ""
    if column not in cohort.attributes:
        known = ", ".join(sorted(cohort.attributes)) or "none"
        raise PartitionError(f"partition: there is no column {column!r}; partition.column can be one of: {known}")
    values = cohort.attributes[column]
    empty = int(np.count_nonzero(values == ""))
    if empty:
        raise PartitionError(
            f"partition: {empty} of {len(values)} images have no value in column {column!r}; "
            "fill them in or take those rows out of the label sheet"
        )
    origins, code = _in_natural_order(values)
    pairs, count = np.unique(patients.owner * len(origins) + code, return_counts=True)
    order = np.lexsort((pairs % len(origins), -count, pairs // len(origins)))
    first = order[np.flatnonzero(np.diff(pairs[order] // len(origins), prepend=-1))]
    site = (pairs[first] % len(origins)).astype(np.int64)
    split = patients.split if patients.given else split_within(patients, site, fractions, seed)
    dealt = Dealt(site, split)
    missed = _shortfall(patients, len(origins), spec, class_names, dealt)
    if missed:
        raise PartitionError(
            f"partition: {len(origins)} values of column {column!r}: {missed}; "
            "lower the minimum, merge small values in the label sheet, or add images"
        )
    return [
        replace(shard, origin=str(origin), strays=int(np.count_nonzero(values[shard.indices] != origin)))
        for shard, origin in zip(_shards(patients, dealt, len(origins)), origins, strict=True)
    ]


def _in_natural_order(values: NDArray[np.str_]) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Distinct values, "site-2" before "site-10", and each entry's place among them."""
    origins, code = np.unique(values, return_inverse=True)
    words = [
        [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", str(origin))] for origin in origins
    ]
    places = np.array(sorted(range(len(origins)), key=words.__getitem__), dtype=np.int64)
    return origins[places], np.argsort(places)[code].astype(np.int64)
