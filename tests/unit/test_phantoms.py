"""Phantoms: deterministic, honest about being synthetic, with a truth that the pixels show."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import DataError
from common.study import PhantomSpec, Study
from simulations.datasets import Item, UnreadableImage, open_source
from simulations.phantoms import PhantomSource


@pytest.fixture(scope="module")
def source() -> PhantomSource:
    return PhantomSource(PhantomSpec(images=600, size=64, difficulty=0.5), seed=3)


def test_items_are_as_many_as_asked_and_say_that_they_are_synthetic(source: PhantomSource) -> None:
    assert len(source.items) == 600
    assert len({item.key for item in source.items}) == 600
    assert source.synthetic
    assert "synthetic" in source.name
    assert all("synthetic" in item.key and "synthetic" in item.patient for item in source.items)


def test_findings_have_their_shares_and_agree_with_the_label() -> None:
    items = PhantomSource(PhantomSpec(images=5000), seed=1).items
    found = [item.labels["finding"][0] for item in items]
    assert found.count("bacteria") / 5000 == pytest.approx(0.25, abs=0.03)
    assert found.count("virus") / 5000 == pytest.approx(0.20, abs=0.03)
    for item in items:
        assert item.labels["label"] == ("normal" if item.labels["finding"] == ("normal",) else "pneumonia",)


def test_attributes_do_not_tell_the_label() -> None:
    items = PhantomSource(PhantomSpec(images=8000, images_per_patient=1.0), seed=5).items
    positive = np.array([item.labels["label"][0] == "pneumonia" for item in items])
    for name, value in (("sex", "F"), ("view", "PA")):
        has = np.array([item.attributes[name] == value for item in items])
        assert abs(positive[has].mean() - positive[~has].mean()) < 0.05
    assert {item.attributes["sex"] for item in items} == {"F", "M"}
    assert {item.attributes["view"] for item in items} == {"PA", "AP"}
    assert all(18 <= int(item.attributes["age"]) <= 90 for item in items)
    assert all("site" not in item.attributes for item in items)


@pytest.mark.parametrize("mean", [1.0, 1.3, 4.0])
def test_images_per_patient_is_met(mean: float) -> None:
    items = PhantomSource(PhantomSpec(images=4000, images_per_patient=mean), seed=2).items
    patients = {item.patient for item in items}
    assert len(items) / len(patients) == pytest.approx(mean, rel=0.05)


def test_a_patient_keeps_sex_and_age(source: PhantomSource) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for item in source.items:
        facts = (item.attributes["sex"], item.attributes["age"])
        assert seen.setdefault(item.patient, facts) == facts


def test_pixels_and_mask_have_the_promised_shape(source: PhantomSource) -> None:
    for item in source.items[:60]:
        pixels, mask = source.read(item)
        assert pixels.shape == mask.shape == (64, 64)
        assert pixels.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        assert bool(mask.any()) == (item.labels["label"] == ("pneumonia",))
        assert pixels.std() > 25  # neither black nor washed out
        assert (pixels == 255).mean() < 0.4


def test_opacities_are_brighter_than_the_same_places_of_normal_lungs(source: PhantomSource) -> None:
    read = [(item.labels["finding"][0], *source.read(item)) for item in source.items[:300]]
    normal = np.mean([pixels for finding, pixels, _ in read if finding == "normal"], axis=0)
    for finding in ("bacteria", "virus"):
        rise = [(pixels - normal)[mask == 1].mean() for name, pixels, mask in read if name == finding]
        assert np.mean(rise) > 10


def test_bacteria_are_focal_and_virus_is_spread_over_both_lungs(source: PhantomSource) -> None:
    shares: dict[str, list[float]] = {"bacteria": [], "virus": []}
    for item in source.items[:300]:
        finding = item.labels["finding"][0]
        if finding != "normal":
            mask = source.read(item)[1]
            left = mask[:, :32].sum() / mask.sum()
            shares[finding].append(min(left, 1 - left))
    assert np.mean(shares["bacteria"]) < 0.15
    assert np.mean(shares["virus"]) > 0.3


def test_difficulty_lowers_the_contrast_of_opacities() -> None:
    contrast = []
    for difficulty in (0.0, 1.0):
        hard = PhantomSource(PhantomSpec(images=200, size=64, difficulty=difficulty), seed=3)
        read = [(item.labels["finding"][0], *hard.read(item)) for item in hard.items]
        normal = np.mean([pixels for finding, pixels, _ in read if finding == "normal"], axis=0)
        contrast.append(np.mean([(p - normal)[m == 1].mean() for f, p, m in read if f != "normal"]))
    assert contrast[0] > 1.5 * contrast[1] > 0


def test_same_seed_same_bytes_whatever_the_order_of_reading(source: PhantomSource) -> None:
    again = PhantomSource(PhantomSpec(images=600, size=64, difficulty=0.5), seed=3)
    assert again.items == source.items
    forward = [source.read(item) for item in source.items[:20]]
    backward = [again.read(item) for item in reversed(again.items[:20])][::-1]
    for (pixels, mask), (other, other_mask) in zip(forward, backward, strict=True):
        assert np.array_equal(pixels, other) and np.array_equal(mask, other_mask)


def test_images_differ_between_seeds_and_between_images(source: PhantomSource) -> None:
    other = PhantomSource(PhantomSpec(images=600, size=64, difficulty=0.5), seed=4)
    assert not np.array_equal(source.read(source.items[0])[0], other.read(other.items[0])[0])
    digests = {source.read(item)[0].tobytes() for item in source.items[:100]}
    assert len(digests) == 100


@pytest.mark.parametrize("size", [32, 33, 96, 512])
def test_every_size_is_drawn(size: int) -> None:
    small = PhantomSource(PhantomSpec(images=10, size=size), seed=0)
    for item in small.items:
        pixels, mask = small.read(item)
        assert pixels.shape == mask.shape == (size, size)


def test_a_foreign_item_is_refused(source: PhantomSource) -> None:
    with pytest.raises(UnreadableImage, match="elsewhere: is no phantom"):
        source.read(Item(key="elsewhere", patient="p", patient_known=True, labels={}))


def test_open_source_without_data_gives_the_studys_phantoms() -> None:
    study = Study.model_validate(
        {
            "name": "s",
            "task": "binary",
            "classes": ["normal", "pneumonia"],
            "seed": 11,
            "data": {"phantoms": {"images": 20}},
        }
    )
    opened = open_source(study, None)
    assert opened.synthetic
    assert opened.items == PhantomSource(PhantomSpec(images=20), seed=11).items
    with pytest.raises(DataError, match="no column 'diagnosis'; use label or finding"):
        open_source(study.derive(**{"data.label_column": "diagnosis"}), None)
