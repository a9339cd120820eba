"""Laws of every partition: nothing lost, nothing twice, no patient in two places, order does not show."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import PartitionError
from common.study import PartitionSpec
from simulations.partition import SPLITS, Cohort, Shard, partition

FRACTIONS = (0.6, 0.2, 0.2)


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    """Patients of one to four images, some masked, in a random order; single- or multi-label."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, classes = draw(st.integers(3, 80)), draw(st.integers(2, 4))
    patients = np.repeat(np.arange(count), rng.integers(1, draw(st.integers(2, 5)), count))
    images = len(patients)
    targets = np.zeros((images, classes), dtype=np.float32)
    if draw(st.booleans()):
        targets[:] = rng.random((images, classes)) < rng.random(classes)
    else:
        skew = rng.dirichlet(np.ones(classes))
        targets[np.arange(images), rng.choice(classes, images, p=skew)] = 1.0
    targets[rng.random(images) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    split = np.array(SPLITS)[rng.choice(3, count, p=(0.6, 0.2, 0.2))][patients]
    order = rng.permutation(images)
    return Cohort(
        patients=np.char.add("patient ", patients.astype(str))[order],
        targets=targets[order],
        splits=split[order] if draw(st.booleans()) else np.full(images, "", dtype="<U5"),
        attributes={"ward": np.char.add("w", (patients % 3).astype(str))[order]},
    )


@st.composite
def specs(draw: st.DrawFn) -> PartitionSpec:
    kind = draw(st.sampled_from(["iid", "dirichlet", "quantity", "pathological", "natural", "device"]))
    return PartitionSpec.model_validate(
        {
            "kind": kind,
            "sites": draw(st.integers(1, 8)),
            "alpha": draw(st.sampled_from([0.1, 0.5, 5.0])),
            "classes_per_site": draw(st.integers(1, 2)),
            "column": "ward" if kind == "natural" else None,
            "device_shift": 0.5 if kind == "device" else 0.0,
            "min_per_site": draw(st.integers(1, 6)),
            "min_per_class": draw(st.integers(0, 2)),
        }
    )


def dealt(cohort: Cohort, spec: PartitionSpec, seed: int) -> list[Shard]:
    names = [f"class {index}" for index in range(cohort.targets.shape[1])]
    try:
        return partition(cohort, spec, FRACTIONS, names, seed)
    except PartitionError as error:
        assert "\n" not in str(error)
        assume(False)
        raise


@settings(max_examples=70, deadline=None)
@given(cohorts(), specs(), st.integers(0, 5))
def test_nothing_is_lost_or_doubled_and_minimums_hold(cohort: Cohort, spec: PartitionSpec, seed: int) -> None:
    shards = dealt(cohort, spec, seed)
    assert sorted(chain(*(shard.indices for shard in shards))) == list(range(len(cohort.patients)))
    assert [shard.site for shard in shards] == [f"site-{index + 1}" for index in range(len(shards))]
    place: dict[str, tuple[str, str]] = {}
    for shard in shards:
        assert (np.diff(shard.indices) > 0).all()
        assert shard.indices.shape == shard.splits.shape
        assert len(shard.indices) >= spec.min_per_site
        train = shard.indices[shard.splits == "train"]
        assert len(train) > 0
        assert (np.nansum(cohort.targets[train], axis=0) >= spec.min_per_class).all()
        for index, split in zip(shard.indices, shard.splits, strict=True):
            where = (shard.site, str(split))
            assert place.setdefault(str(cohort.patients[index]), where) == where
            assert cohort.splits[index] in ("", split)


@settings(max_examples=40, deadline=None)
@given(cohorts(), specs(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_row_order_does_not_show(cohort: Cohort, spec: PartitionSpec, seed: int, random: object) -> None:
    shards = dealt(cohort, spec, seed)
    order = list(range(len(cohort.patients)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = Cohort(
        cohort.patients[order],
        cohort.targets[order],
        cohort.splits[order],
        {name: values[order] for name, values in cohort.attributes.items()},
    )
    again = dealt(shuffled, spec, seed)
    for one, other in zip(shards, again, strict=True):
        back = dict(zip(np.array(order)[other.indices].tolist(), other.splits.tolist(), strict=True))
        assert back == dict(zip(one.indices.tolist(), one.splits.tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(cohorts(), specs(), st.integers(0, 5))
def test_equal_seeds_give_equal_shards(cohort: Cohort, spec: PartitionSpec, seed: int) -> None:
    for one, other in zip(dealt(cohort, spec, seed), dealt(cohort, spec, seed), strict=True):
        assert (one.site, one.origin, one.strays) == (other.site, other.origin, other.strays)
        assert one.indices.tobytes() == other.indices.tobytes()
        assert one.splits.tolist() == other.splits.tolist()


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.sampled_from(["iid", "dirichlet", "quantity"]), st.integers(1, 6), st.integers(0, 5))
def test_every_site_gets_every_split_where_patients_suffice(cohort: Cohort, kind: str, sites: int, seed: int) -> None:
    spec = PartitionSpec.model_validate({"kind": kind, "sites": sites, "min_per_site": 1, "alpha": 0.5})
    shards = dealt(cohort, spec, seed)
    labelled = ~np.isnan(cohort.targets).all(axis=1)
    for shard in shards:
        if (cohort.splits == "").all():
            enough = len(set(cohort.patients[shard.indices])) >= 3
            assert not enough or set(shard.splits) == set(SPLITS)
            continue
        for split in SPLITS:
            of_split = labelled & (cohort.splits == split)
            if len(set(cohort.patients[of_split])) >= sites:
                assert labelled[shard.indices[shard.splits == split]].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(12, 120), st.booleans(), st.integers(0, 9))
def test_iid_sizes_differ_by_at_most_one_image_a_split(sites: int, images: int, with_splits: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.eye(3, dtype=np.float32)[rng.choice(3, images, p=(0.6, 0.3, 0.1))]
    splits = np.array(SPLITS)[rng.choice(3, images, p=(0.8, 0.1, 0.1))] if with_splits else np.full(images, "")
    cohort = Cohort(np.arange(images).astype(str), targets, splits)
    shards = dealt(cohort, PartitionSpec(kind="iid", sites=sites, min_per_site=1), seed)
    for split in SPLITS if with_splits else [None]:
        sizes = [len(shard.indices) if split is None else int((shard.splits == split).sum()) for shard in shards]
        assert max(sizes) - min(sizes) <= 1
