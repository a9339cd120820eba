"""Heterogeneity agrees with SciPy's distances and tells a real difference from chance."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from common.errors import DataError
from common.study import PartitionSpec
from simulations.devices import apply, device_for
from simulations.heterogeneity import FEATURES, Distance, gini, image_features, measure
from simulations.partition import Cohort, Shard, partition

FRACTIONS = (0.7, 0.15, 0.15)


def cohort(images: int = 600, per_patient: int = 1, classes: int = 3) -> Cohort:
    patients = np.arange(images) // per_patient
    label = np.random.default_rng(7).integers(0, classes, images // per_patient)[patients]
    targets = np.eye(classes, dtype=np.float32)[label]
    return Cohort(np.char.add("p", patients.astype(str)), targets, np.full(images, ""))


def shards_of(site: NDArray[np.int64]) -> list[Shard]:
    parts = [np.flatnonzero(site == index) for index in range(int(site.max()) + 1)]
    return [Shard(f"site-{i + 1}", part, np.full(len(part), "train")) for i, part in enumerate(parts)]


def deal(data: Cohort, seed: int = 0, **spec: object) -> list[Shard]:
    names = [str(index) for index in range(data.targets.shape[1])]
    return partition(data, PartitionSpec.model_validate(spec), FRACTIONS, names, seed)


def present(distance: Distance | None) -> Distance:
    assert distance is not None
    return distance


def test_label_distance_is_scipys() -> None:
    data = cohort()
    site = np.random.default_rng(1).choice(4, 600, p=(0.6, 0.3, 0.07, 0.03))
    found = measure(shards_of(site), data, None)
    counts = np.stack([data.targets[site == index].sum(axis=0, dtype=float) for index in range(4)])
    assert found.class_images == tuple(tuple(row) for row in counts.astype(int).tolist())
    labels = present(found.labels)
    assert labels.pairwise is not None
    expected = [[jensenshannon(a, b, base=2) for b in counts] for a in counts]
    np.testing.assert_allclose(np.array(labels.pairwise, dtype=float), expected, atol=1e-9)
    assert labels.mean == pytest.approx(np.mean([expected[i][j] for i in range(4) for j in range(i)]), abs=1e-9)


def test_label_distance_reaches_its_bounds() -> None:
    data = cohort(classes=2)
    apart = measure(shards_of(data.targets[:, 1].astype(np.int64)), data, None)
    assert present(apart.labels).mean == 1.0
    halves = np.concatenate([np.arange(300) % 2 for _ in range(2)])
    alike = Cohort(data.patients, np.eye(2, dtype=np.float32)[np.arange(600) // 2 % 2], data.splits)
    assert present(measure(shards_of(halves), alike, None).labels).mean == pytest.approx(0.0, abs=1e-9)


def test_feature_distance_is_scipys() -> None:
    data = cohort(800)
    rng = np.random.default_rng(2)
    site = rng.choice(3, 800, p=(0.5, 0.3, 0.2))
    features = np.column_stack([rng.normal(site, 1.0), rng.gamma(2.0, 1.0, 800), np.full(800, 0.1)])
    shift = present(measure(shards_of(site), data, features).features)
    assert shift.pairwise is not None
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = np.mean(
            [
                wasserstein_distance(f[site == i], f[site == j]) / f.std() for f in features.T[:2]
            ]  # the third is constant
        )
        assert shift.pairwise[i][j] == shift.pairwise[j][i] == pytest.approx(expected, rel=0.05)


def test_gini() -> None:
    assert gini(np.array([5, 5, 5])) == 0.0
    assert gini(np.array([0, 0, 0, 12])) == pytest.approx(0.75)
    sizes = np.random.default_rng(0).integers(1, 99, 30).astype(float)
    expected = np.abs(sizes[:, None] - sizes).mean() / (2 * sizes.mean())
    assert gini(sizes) == pytest.approx(expected)
    assert gini(np.zeros(3)) == 0.0


def test_iid_sites_are_within_chance_and_skewed_ones_are_not() -> None:
    data = cohort(900, per_patient=3)
    rng = np.random.default_rng(0)
    site = rng.integers(0, 5, 300)[np.arange(900) // 3]
    chance = present(measure(shards_of(site), data, None).labels)
    assert 0.0 < chance.mean < chance.iid_high and not chance.beyond_chance
    skewed = measure(deal(data, kind="dirichlet", alpha=0.2, sites=5), data, None)
    assert present(skewed.labels).beyond_chance
    assert present(skewed.labels).mean > 3 * present(skewed.labels).iid_mean


def test_reference_permutes_patients_not_images() -> None:
    """A patient's images are alike; permuting images would call that similarity a difference of sites."""
    data = cohort(900, per_patient=30)
    site = np.random.default_rng(3).permutation(np.arange(30) % 3)[np.arange(900) // 30]
    images_apart = Cohort(np.arange(900).astype(str), data.targets, data.splits)
    by_patient, by_image = measure(shards_of(site), data, None), measure(shards_of(site), images_apart, None)
    assert present(by_patient.labels).iid_mean > 3 * present(by_image.labels).iid_mean


def test_device_shift_shows_in_the_features() -> None:
    rng = np.random.default_rng(0)
    data = cohort(120)
    shards = deal(data, kind="device", device_shift=0.6, sites=3)
    base = [np.clip(rng.normal(110, 25, (40, 40)), 0, 255).astype(np.uint8) for _ in range(120)]
    plain = np.stack([image_features(pixels) for pixels in base])
    shifted = plain.copy()
    for index, shard in enumerate(shards):
        device = device_for(index, 3, 0.6, seed=1)
        for image in shard.indices:
            shifted[image] = image_features(apply(base[image], device, int(image)))
    before, after = present(measure(shards, data, plain).features), present(measure(shards, data, shifted).features)
    assert after.beyond_chance and after.mean > 3 * before.mean


def test_row_order_does_not_show_and_equal_seeds_are_equal() -> None:
    data = cohort(300)
    features = np.random.default_rng(0).normal(size=(300, 2))
    shards = deal(data, kind="dirichlet", alpha=0.5, sites=4)
    one = measure(shards, data, features, seed=3)
    assert one == measure(shards, data, features, seed=3)
    back = np.arange(300)[::-1]
    turned = Cohort(data.patients[::-1], data.targets[::-1], data.splits[::-1])
    moved = [Shard(s.site, np.sort(back[s.indices]), s.splits) for s in shards]
    other = measure(moved, turned, features[::-1], seed=3)
    for before, after in ((one.labels, other.labels), (one.features, other.features)):
        assert present(before).mean == pytest.approx(present(after).mean, abs=1e-12)
        assert present(before).iid_high == pytest.approx(present(after).iid_high, abs=1e-12)


def test_sites_without_labels_are_left_out_and_json_has_no_nan() -> None:
    data = cohort(300)
    site = np.arange(300) % 3
    data.targets[site == 2] = np.nan
    found = measure(shards_of(site), data, None)
    labels = present(found.labels)
    assert labels.pairwise is not None
    assert labels.pairwise[0][2] is labels.pairwise[2][1] is labels.pairwise[2][2] is None
    assert labels.pairwise[0][0] == 0.0 and labels.mean == labels.pairwise[0][1]
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["images"] == [100, 100, 100] and again["features"] is None
    assert again["labels"]["beyond_chance"] in (True, False)


def test_one_site_has_nothing_to_compare() -> None:
    data = cohort(50)
    found = measure(shards_of(np.zeros(50, dtype=np.int64)), data, np.ones((50, 2)))
    assert (found.labels, found.features, found.size_gini) == (None, None, 0.0)


def test_multilabel_counts_no_class_as_a_label() -> None:
    targets = np.zeros((100, 2), dtype=np.float32)
    targets[50:] = 1.0
    data = Cohort(np.arange(100).astype(str), targets, np.full(100, ""))
    assert present(measure(shards_of(np.arange(100) // 50), data, None).labels).mean == 1.0


def test_many_sites_have_a_mean_and_no_matrix_and_take_seconds_at_most() -> None:
    data = cohort(6000)
    shards = deal(data, kind="iid", sites=200, min_per_site=1)
    features = np.random.default_rng(0).normal(size=(6000, len(FEATURES)))
    started = time.process_time()
    found = measure(shards, data, features)
    assert time.process_time() - started < 20.0
    assert present(found.labels).pairwise is None and present(found.features).pairwise is None
    assert not present(found.features).beyond_chance


def test_features_that_do_not_fit_are_refused() -> None:
    data = cohort(20)
    for wrong in (np.zeros((19, 2)), np.zeros(20), np.full((20, 2), np.nan)):
        with pytest.raises(DataError, match="features must be finite and of shape"):
            measure(shards_of(np.arange(20) % 2), data, wrong)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (64, 64), (224, 190), (64, 64, 3)])
def test_image_features_have_one_shape_and_the_range_of_a_fraction(dtype: type, shape: tuple[int, ...]) -> None:
    limits = np.iinfo(dtype)
    pixels = np.random.default_rng(0).integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    features = image_features(pixels)
    assert features.shape == (len(FEATURES),) and features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features[:7].min() >= 0.0 and features[:7].max() <= 1.0


def test_image_features_mean_what_they_are_called() -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    found = dict(zip(FEATURES, image_features(ramp), strict=True))
    assert found["mean"] == pytest.approx(126 / 255, abs=1e-6)
    assert found["deviation"] == pytest.approx(ramp.std() / 255, abs=1e-6)
    assert found["median"] == pytest.approx(0.5, abs=0.02)
    assert found["gradient energy"] == pytest.approx(4 / 255, abs=1e-6)
    assert found["fine detail"] == 0.0 and found["colour"] == 0.0
    assert found["low frequencies"] > 0.98
    noise = dict(
        zip(FEATURES, image_features(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)), strict=True)
    )
    assert noise["low frequencies"] < 0.2 and noise["fine detail"] > noise["gradient energy"]
    red = np.zeros((64, 64, 3), dtype=np.uint8)
    red[..., 0] = 51
    assert image_features(red)[-1] == pytest.approx(0.2)
