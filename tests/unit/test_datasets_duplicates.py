"""Near-duplicates become one unit: which are found, whose they are, and what becomes of splits that part them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from common.study import Study
from simulations.datasets import Source, open_source
from simulations.datasets.duplicates import ALIKE, pairs, thumbnail

STUDY = Study.parse("name: s\ntask: binary\nclasses: [normal, tumor]\ndata: {group_duplicates: true}\n")
PLAIN = STUDY.derive(**{"data.group_duplicates": False})


def picture(seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Smooth noise, unlike that of every other seed."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (9, 9)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def sheet(root: Path, rows: list[str], header: str = "file,label,patient,split") -> Path:
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images without patients; the first four stand there again, as other files of other size and brightness."""
    root = tmp_path / "brain"
    root.mkdir()
    rows = []
    for number in range(20):
        Image.fromarray(picture(number)).save(root / f"{number}.png")
        rows.append(f"{number}.png,{('normal', 'tumor')[number % 2]},,{('train', 'train', 'test', 'val')[number % 4]}")
    for number in range(4):
        again = Image.fromarray(picture(number)).resize((90, 80)).point(lambda grey: grey * 0.7 + 30)
        again.save(root / f"again{number}.jpg", quality=60)
        rows.append(f"again{number}.jpg,{('normal', 'tumor')[number % 2]},,train")
    return sheet(root, rows)


def by_patient(source: Source) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in source.items:
        found.setdefault(item.patient, []).append(item.key)
    return found


def splits(source: Source) -> dict[str, str]:
    return {item.key: item.split for item in source.items}


# Which are found ------------------------------------------------------------------------------------------------------


def test_a_thumbnail_does_not_see_brightness_contrast_depth_or_size() -> None:
    image = picture(1)
    first = thumbnail(image)
    assert first is not None
    assert float(first @ first) == pytest.approx(1.0, abs=1e-5) and float(first.sum()) == pytest.approx(0.0, abs=1e-4)
    for same in (
        image.astype(np.uint16) * 200 + 7,
        (image // 2 + 60).astype(np.uint8),
        image.astype(np.int16) * 4 - 1000,
        np.dstack([image] * 3),
        np.kron(image, np.ones((3, 3), np.uint8)),
    ):
        found = thumbnail(same)
        assert found is not None and float(first @ found) > 0.999
    mirrored = thumbnail(np.ascontiguousarray(image[:, ::-1]))
    assert mirrored is not None and float(first @ mirrored) < ALIKE


@pytest.mark.parametrize("value", [0, 7, 255])
def test_an_image_without_contrast_is_alike_to_none(value: int) -> None:
    assert thumbnail(np.full((40, 30), value, np.uint8)) is None
    assert thumbnail(np.full((40, 30, 3), value, np.uint16)) is None


@given(st.integers(0, 1 << 32), st.integers(2, 40), st.floats(0.5, 0.999))
def test_no_pair_is_missed_and_none_is_added(seed: int, count: int, alike: float) -> None:
    """Against all products; rows that are equal are linked to the first of them, so links join what products join."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, 48)).astype(np.float32)
    kin = rng.integers(0, count, count)
    vectors = vectors[kin] + rng.choice([0.0, 0.1, 0.5], (count, 1)) * rng.standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    products = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    unsure = np.abs(products - alike) < 1e-6
    linked = np.eye(count, dtype=bool)
    for one, other in pairs(vectors, alike).tolist():
        assert products[one, other] >= alike - 1e-6
        linked[one, other] = linked[other, one] = True
    for _ in range(count):
        linked = linked @ linked
    expected = (products >= alike) & ~unsure
    assert not (expected & ~linked).any()


# Whose they are -------------------------------------------------------------------------------------------------------


def test_duplicates_are_one_patient_and_splits_that_part_them_are_made_anew(folder: Path) -> None:
    source = open_source(STUDY, folder)
    together = {key: keys for key, keys in by_patient(source).items() if len(keys) > 1}
    assert together == {f"{n}.png": [f"{n}.png", f"again{n}.jpg"] for n in range(4)}
    assert not any(item.patient_known for item in source.items)
    assert source.notes == (
        "data.group_duplicates: 8 of 24 images have near-duplicates; with those they are 4 units, each counted as one "
        "patient",
        "the data: the given splits part 2 of these units, so a test would be of images that were trained on; they are "
        "not used, and splits were made anew by unit",
    )
    made = splits(source)
    assert all(made[f"{n}.png"] == made[f"again{n}.jpg"] for n in range(4))
    assert set(made.values()) == {"train", "val", "test"} and made != splits(open_source(PLAIN, folder))
    assert made == splits(open_source(STUDY, folder))
    for item, plain in zip(source.items, open_source(PLAIN, folder).items, strict=True):
        assert np.array_equal(source.read(item)[0], open_source(PLAIN, folder).read(plain)[0])


def test_splits_that_part_no_duplicates_are_kept(folder: Path) -> None:
    text = (folder / "labels.csv").read_text().replace("again2.jpg,normal,,train", "again2.jpg,normal,,test")
    (folder / "labels.csv").write_text(text.replace("again3.jpg,tumor,,train", "again3.jpg,tumor,,val"))
    source = open_source(STUDY, folder)
    assert splits(source) == splits(open_source(PLAIN, folder))
    assert len(source.notes) == 1


def test_named_patients_with_one_image_are_one_person(tmp_path: Path) -> None:
    """And with them all of their images, whatever those show."""
    rows = []
    for number, (patient, seed) in enumerate([("P2", 0), ("P2", 1), ("P1", 0), ("P3", 2), ("", 1), ("", 3)]):
        Image.fromarray(picture(seed)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,normal,{patient},")
    source = open_source(STUDY, sheet(tmp_path, rows))
    assert [item.patient for item in source.items] == ["P1", "P1", "P1", "P3", "P1", "5.png"]
    assert [item.patient_known for item in source.items] == [True, True, True, True, True, False]
    assert source.notes == (
        "data.group_duplicates: 4 of 6 images have near-duplicates; with those they are 1 unit, each counted as one "
        "patient; 1 of these unites named patients",
    )


def test_what_cannot_be_compared_stays_alone(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (20, 20), 9).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    source = open_source(STUDY, sheet(tmp_path, [f"{number}.png,normal,," for number in range(4)]))
    assert len(by_patient(source)) == 4
    assert source.notes == ("data.group_duplicates: no near-duplicates among 4 images",)


def test_a_duplicate_in_another_source_is_found_and_only_sources_it_touches_are_split_anew(
    folder: Path, tmp_path: Path
) -> None:
    """And whoever shares a patient with those, though no given split parts that one: a new one could."""
    others = {}
    for name, seeds in {"copies": (10, 11, 12, 50), "near": (90, 91, 92, 50), "far": range(100, 104)}.items():
        others[name] = tmp_path / name
        others[name].mkdir()
        for number, seed in enumerate(seeds):
            Image.fromarray(picture(seed)).save(others[name] / f"{number}.png")
        rows = [f"{n}.png,{('normal', 'tumor')[n % 2]},,{('train', 'val', 'test', 'test')[n]}" for n in range(4)]
        sheet(others[name], rows)
    source = open_source(STUDY, [folder, *others.values()])
    together = by_patient(source)
    assert together["brain/10.png"] == ["brain/10.png", "copies/0.png"]
    made = splits(source)
    assert all(len({made[key] for key in keys}) == 1 for keys in together.values())
    assert [made[f"far/{n}.png"] for n in range(4)] == ["train", "val", "test", "test"]
    assert any(note.startswith("brain, copies, near: the given splits part 4 of these units") for note in source.notes)


def test_phantoms_have_no_duplicates_to_group_and_hashes_stay() -> None:
    with pytest.raises(DataError, match=r"data\.group_duplicates: phantoms \(synthetic\) are each drawn once"):
        open_source(STUDY, None)
    assert PLAIN.hash == Study.parse("name: s\ntask: binary\nclasses: [normal, tumor]\n").hash != STUDY.hash


# Real images ----------------------------------------------------------------------------------------------------------


def test_the_real_brain_images_hold_57_pairs_and_their_splits_part_each() -> None:
    beside = Path(__file__).resolve().parents[3] / "shared"
    root = Path(os.environ.get("FEDWARD_SHARED", beside)) / "data" / "brain-mri"
    if not root.is_dir():
        pytest.skip("../shared is not here")
    source = open_source(STUDY, root)
    assert Counter(map(len, by_patient(source).values())) == {1: 343, 2: 57}
    assert "the given splits part 57 of these units" in source.notes[1]
    assert all(len({splits(source)[key] for key in keys}) == 1 for keys in by_patient(source).values())
