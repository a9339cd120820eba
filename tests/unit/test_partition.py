"""Each kind of partition does what its name says; what cannot be had is refused in one line."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import PartitionError
from common.study import PartitionSpec
from simulations.partition import SPLITS, Cohort, Shard, partition

FRACTIONS = (0.7, 0.15, 0.15)
NAMES = ("normal", "pneumonia")


def one_hot(classes: NDArray[np.int64], count: int = 2) -> NDArray[np.float32]:
    """``(N, count)``; class -1 is a masked row."""
    targets = np.zeros((len(classes), count), dtype=np.float32)
    targets[np.arange(len(classes)), classes] = 1.0
    targets[classes < 0] = np.nan
    return targets


def cohort(images: int = 400, classes: int = 2, *, per_patient: int = 1, splits: bool = False) -> Cohort:
    """Class 0 is as common as all others together; every patient has one class."""
    patients = np.arange(images) // per_patient
    label = np.where(patients % 2 == 0, 0, 1 + (patients // 2) % max(classes - 1, 1))
    split = np.array(SPLITS)[np.digitize((patients * 7) % 20, [14, 17])]
    return Cohort(
        patients=np.char.add("p", patients.astype(str)),
        targets=one_hot(label, classes),
        splits=split if splits else np.full(images, "", dtype="<U5"),
        attributes={"ward": np.array(["north", "south", "west"])[patients % 3], "blank": np.full(images, "")},
    )


def sizes(shards: list[Shard]) -> list[int]:
    return [len(shard.indices) for shard in shards]


def class_counts(data: Cohort, shards: list[Shard], split: str | None = None) -> NDArray[np.int64]:
    """``(sites, C)`` labelled images."""
    return np.stack(
        [np.nan_to_num(data.targets[s.indices[s.splits == split] if split else s.indices]).sum(axis=0) for s in shards]
    ).astype(np.int64)


def test_iid_sites_are_equal_in_size_and_in_classes() -> None:
    data = cohort(403)
    shards = partition(data, PartitionSpec(kind="iid", sites=7), FRACTIONS, NAMES, 1)
    assert [shard.site for shard in shards] == [f"site-{index}" for index in range(1, 8)]
    assert max(sizes(shards)) - min(sizes(shards)) <= 1
    assert np.ptp(class_counts(data, shards), axis=0).max() <= 1


def test_device_kind_deals_as_iid() -> None:
    data = cohort(200)
    iid = partition(data, PartitionSpec(kind="iid", sites=4), FRACTIONS, NAMES, 3)
    device = partition(data, PartitionSpec(kind="device", device_shift=0.5, sites=4), FRACTIONS, NAMES, 3)
    assert sizes(iid) == sizes(device)
    assert (class_counts(data, iid) == class_counts(data, device)).all()


def test_small_alpha_skews_labels_more_than_a_large_one() -> None:
    data = cohort(2000)

    def spread(alpha: float) -> float:
        draws = []
        for seed in range(8):
            spec = PartitionSpec(kind="dirichlet", alpha=alpha, sites=5, min_per_site=1)
            counts = class_counts(data, partition(data, spec, FRACTIONS, NAMES, seed))
            draws.append(float(np.std(counts[:, 1] / counts.sum(axis=1))))
        return float(np.mean(draws))

    assert spread(0.1) > 0.25 > 0.1 > spread(100.0)


def test_dirichlet_shares_have_the_dirichlet_spread() -> None:
    """Var of a share is (1/S)(1 − 1/S)/(S·alpha + 1)."""
    data = cohort(400)
    spec = PartitionSpec(kind="dirichlet", alpha=1.0, sites=4, min_per_site=1)
    counts = np.stack([class_counts(data, partition(data, spec, FRACTIONS, NAMES, seed)) for seed in range(60)])
    variance = (counts / 200.0).reshape(-1).var()
    assert variance == pytest.approx(0.25 * 0.75 / 5.0, rel=0.25)


def test_quantity_skews_sizes_and_keeps_the_class_balance() -> None:
    data = cohort(3000)
    spec = PartitionSpec(kind="quantity", alpha=0.5, sites=5, min_per_site=40)
    shards = partition(data, spec, FRACTIONS, NAMES, 2)
    counts = class_counts(data, shards)
    assert max(sizes(shards)) > 3 * min(sizes(shards))
    assert np.abs(counts[:, 1] / counts.sum(axis=1) - 0.5).max() < 0.03


@pytest.mark.parametrize(("sites", "classes", "each"), [(5, 2, 1), (6, 5, 2), (10, 4, 4), (3, 5, 2)])
def test_pathological_gives_exactly_k_classes(sites: int, classes: int, each: int) -> None:
    data = cohort(600, classes, splits=True)
    spec = PartitionSpec(kind="pathological", sites=sites, classes_per_site=each)
    counts = class_counts(data, partition(data, spec, FRACTIONS, [str(c) for c in range(classes)], 5))
    assert ((counts > 0).sum(axis=1) == each).all()
    assert (counts.sum(axis=0) == np.nansum(data.targets, axis=0)).all()


def test_pathological_gives_a_common_class_to_more_sites() -> None:
    label = np.array([0] * 100 + [1] * 900)
    data = Cohort(np.arange(1000).astype(str), one_hot(label), np.full(1000, ""))
    counts = class_counts(data, partition(data, PartitionSpec(kind="pathological", sites=5), FRACTIONS, NAMES, 1))
    assert (counts > 0).sum(axis=0).tolist() == [1, 4]


def test_natural_makes_a_site_of_each_value_in_sorted_order() -> None:
    data = cohort(300, splits=True)
    shards = partition(data, PartitionSpec(kind="natural", column="ward", sites=99), FRACTIONS, NAMES, 1)
    assert [(s.site, s.origin, s.strays) for s in shards] == [
        ("site-1", "north", 0),
        ("site-2", "south", 0),
        ("site-3", "west", 0),
    ]
    for shard in shards:
        assert set(data.attributes["ward"][shard.indices]) == {shard.origin}


def test_natural_puts_site_2_before_site_10() -> None:
    data = cohort(120)
    names = np.array(["site-10", "site-2", "site-1", "annex"])[np.arange(120) % 4]
    data = replace(data, attributes={"site": names})
    shards = partition(data, PartitionSpec(kind="natural", column="site", min_per_site=1), FRACTIONS, NAMES, 1)
    assert [shard.origin for shard in shards] == ["annex", "site-1", "site-2", "site-10"]
    for shard in shards:
        assert set(names[shard.indices]) == {shard.origin}


def test_natural_keeps_a_patient_of_two_values_whole_and_counts_the_strays() -> None:
    view = np.array(["AP", "PA"] * 20 + ["PA", "PA", "AP", "AP", "PA"])
    patients = np.array([f"p{i}" for i in range(40)] + ["q", "q", "q", "r", "r"])
    data = Cohort(patients, one_hot(np.arange(45) % 2), np.full(45, ""), {"view": view})
    ap, pa = partition(data, PartitionSpec(kind="natural", column="view"), FRACTIONS, NAMES, 1)
    assert (ap.origin, len(ap.indices), ap.strays) == ("AP", 22, 1)  # r: a tie, to the first value
    assert (pa.origin, len(pa.indices), pa.strays) == ("PA", 23, 1)  # q: two of three


def test_given_splits_are_kept_and_reach_every_site() -> None:
    data = cohort(500, splits=True)
    shards = partition(data, PartitionSpec(kind="dirichlet", alpha=0.3, sites=6), FRACTIONS, NAMES, 4)
    for shard in shards:
        assert (shard.splits == data.splits[shard.indices]).all()
        assert set(shard.splits) == set(SPLITS)


def test_given_splits_follow_the_same_shares() -> None:
    data = cohort(4000, splits=True)
    shards = partition(data, PartitionSpec(kind="dirichlet", alpha=0.5, sites=4), FRACTIONS, NAMES, 4)
    share = {
        split: class_counts(data, shards, split) / class_counts(data, shards, split).sum(axis=0) for split in SPLITS
    }
    assert np.abs(share["train"] - share["val"]).max() < 0.01
    assert np.abs(share["train"] - share["test"]).max() < 0.01


def test_own_splits_have_the_fractions_and_both_classes_everywhere() -> None:
    data = cohort(2000, per_patient=2)
    shards = partition(data, PartitionSpec(kind="dirichlet", alpha=0.5, sites=5), FRACTIONS, NAMES, 0)
    held = class_counts(data, shards) >= 6  # three patients of two images
    for split, fraction in zip(SPLITS, FRACTIONS, strict=True):
        counts = class_counts(data, shards, split)
        assert ((counts > 0) | ~held).all()
        assert counts.sum() / 2000 == pytest.approx(fraction, abs=0.01)


def test_three_patients_of_a_rare_class_reach_all_splits() -> None:
    label = np.array([0] * 60 + [1] * 6)
    data = Cohort(np.arange(66).astype(str), one_hot(label), np.full(66, ""))
    shards = partition(data, PartitionSpec(kind="iid", sites=2), FRACTIONS, NAMES, 0)
    for split in SPLITS:
        assert class_counts(data, shards, split)[:, 1].tolist() == [1, 1]


def test_a_site_with_three_patients_has_one_in_each_split() -> None:
    data = Cohort(np.arange(12).astype(str), one_hot(np.arange(12) % 3, 3), np.full(12, ""))
    spec = PartitionSpec(kind="iid", sites=4, min_per_site=3)
    for shard in partition(data, spec, FRACTIONS, "abc", 0):
        assert sorted(shard.splits) == sorted(SPLITS)


def test_masked_images_are_dealt_out_too() -> None:
    label = np.arange(300) % 3 - 1
    data = Cohort(np.arange(300).astype(str), one_hot(label), np.full(300, ""))
    shards = partition(data, PartitionSpec(kind="iid", sites=5), FRACTIONS, NAMES, 0)
    assert [int(np.isnan(data.targets[s.indices, 0]).sum()) for s in shards] == [20] * 5


def test_multilabel_rare_class_reaches_every_site() -> None:
    rng = np.random.default_rng(1)
    targets = (rng.random((400, 3)) < (0.6, 0.3, 0.0)).astype(np.float32)
    targets[:10, 2] = 1.0
    data = Cohort(np.arange(400).astype(str), targets, np.full(400, ""))
    spec = PartitionSpec(kind="iid", sites=5, min_per_class=1)
    counts = class_counts(data, partition(data, spec, FRACTIONS, "abc", 0))
    assert counts[:, 2].tolist() == [2] * 5


def test_minimum_per_class_holds_in_training() -> None:
    data = cohort(1000)
    spec = PartitionSpec(kind="dirichlet", alpha=0.5, sites=5, min_per_site=30, min_per_class=10)
    shards = partition(data, spec, FRACTIONS, NAMES, 0)
    assert class_counts(data, shards, "train").min() >= 10
    assert min(sizes(shards)) >= 30


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": "iid", "sites": 41}, "41 sites, but only 40 patients"),
        ({"kind": "iid", "sites": 10}, "needs 100 images, there are 40; use fewer sites"),
        ({"kind": "iid", "sites": 4, "min_per_class": 6}, "needs 24 training images of 'normal', there are 20"),
        ({"kind": "iid", "sites": 4, "min_per_class": 5}, "site-1 has 3 training images of 'normal'"),
        ({"kind": "dirichlet", "sites": 4, "alpha": 0.01}, "none of 200 draws of dirichlet with alpha 0.01"),
        ({"kind": "quantity", "sites": 4, "alpha": 0.01}, ".site-. has . images.; use a larger alpha"),
        ({"kind": "pathological", "sites": 4, "min_per_class": 1}, "set min_per_class: 0"),
        ({"kind": "pathological", "sites": 4, "classes_per_site": 3}, "patients of only 2 classes"),
        ({"kind": "pathological", "sites": 1, "classes_per_site": 1}, "cannot hold 2 classes"),
        ({"kind": "natural", "column": "hospital"}, "no column 'hospital'; .* can be one of: blank, ward"),
        ({"kind": "natural", "column": "blank"}, "40 of 40 images have no value in column 'blank'"),
        ({"kind": "natural", "column": "ward", "min_per_site": 14}, "2 of 3 sites are below min_per_site 14"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_a_remedy(spec: dict[str, object], says: str) -> None:
    with pytest.raises(PartitionError, match=says) as caught:
        partition(cohort(40), PartitionSpec.model_validate(spec), FRACTIONS, NAMES, 0)
    assert "\n" not in str(caught.value)


def test_contradictory_splits_are_refused() -> None:
    data = cohort(40, per_patient=2, splits=True)

    def refused(splits: NDArray[np.str_], says: str) -> None:
        with pytest.raises(PartitionError, match=says):
            partition(Cohort(data.patients, data.targets, splits), PartitionSpec(sites=2), FRACTIONS, NAMES, 0)

    gap, torn, odd = data.splits.copy(), data.splits.copy(), data.splits.copy()
    gap[:3] = ""
    refused(gap, "3 of 40 images have no split and the others do")
    torn[[0, 2, 4, 6, 8]] = "train"
    torn[[1, 3, 5, 7, 9]] = "test"
    refused(torn, r"5 patients have images in more than one split \(p0, p1, p2, …\)")
    odd[0] = "valid"
    refused(odd, "unknown split 'valid'")
    refused(np.full(40, "test"), "no image is in split train")


def test_nothing_and_nameless_patients_are_refused() -> None:
    none = Cohort(np.array([], dtype=str), np.zeros((0, 2), np.float32), np.array([], dtype=str))
    with pytest.raises(PartitionError, match="no images"):
        partition(none, PartitionSpec(), FRACTIONS, NAMES, 0)
    data = cohort(40)
    data.patients[:2] = ""
    with pytest.raises(PartitionError, match="2 images have an empty patient"):
        partition(data, PartitionSpec(), FRACTIONS, NAMES, 0)


def test_label_skew_needs_labels() -> None:
    data = Cohort(np.arange(40).astype(str), np.full((40, 2), np.nan, np.float32), np.full(40, ""))
    with pytest.raises(PartitionError, match="no image has a label"):
        partition(data, PartitionSpec(sites=2), FRACTIONS, NAMES, 0)
    assert sizes(partition(data, PartitionSpec(kind="iid", sites=2), FRACTIONS, NAMES, 0)) == [20, 20]


@pytest.mark.parametrize("alpha", [1e-300, 1e-7, 1e12, 1e308])
def test_extreme_alpha_neither_fails_nor_loses_images(alpha: float) -> None:
    spec = PartitionSpec(kind="dirichlet", alpha=alpha, sites=3, min_per_site=1)
    shards = partition(cohort(60), spec, FRACTIONS, NAMES, 0)
    assert sum(sizes(shards)) == 60
    assert (max(sizes(shards)) - min(sizes(shards)) <= 2) == (alpha > 1.0)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "pathological"])
def test_a_thousand_sites_take_less_than_two_seconds(kind: str) -> None:
    data = cohort(20_000, per_patient=2)
    spec = PartitionSpec.model_validate({"kind": kind, "sites": 1000, "min_per_site": 2})
    started = time.process_time()
    if kind == "quantity" or kind == "dirichlet":
        spec = spec.model_copy(update={"alpha": 2.0})
    shards = partition(data, spec, FRACTIONS, NAMES, 0)
    assert time.process_time() - started < 2.0
    assert len(shards) == 1000 and sum(sizes(shards)) == 20_000


def test_five_hospitals_of_the_guangzhou_sheet() -> None:
    shared = Path(os.environ.get("FEDWARD_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
    sheet = shared / "data" / "chest-xray-guangzhou" / "labels.csv"
    if not sheet.exists():
        pytest.skip("../shared is absent")
    with sheet.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    data = Cohort(
        np.array([row["patient"] for row in rows]),
        one_hot(np.array([int(row["label"] == "pneumonia") for row in rows])),
        np.array([row["split"] for row in rows]),
    )
    shards = partition(data, PartitionSpec(kind="dirichlet", alpha=0.5, sites=5), FRACTIONS, NAMES, 0)
    assert sum(int((shard.splits == "train").sum()) for shard in shards) == 4123
    for shard in shards:
        train = np.mean(shard.splits == "train")
        assert train == pytest.approx(4123 / 5263, abs=0.02)
        assert set(shard.splits) == set(SPLITS)
