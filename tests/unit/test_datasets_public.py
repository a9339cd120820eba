"""Public datasets as users download them. Every fixture is made here, in that layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from common.study import Study
from simulations.datasets import open_source, patients_unknown

STUDY = Study.model_validate({"name": "s", "task": "binary", "classes": ["normal", "pneumonia"]})


# MedMNIST -------------------------------------------------------------------------------------------------------------


def medmnist(path: Path, classes: int = 2, changes: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> Path:
    rng = np.random.default_rng(4)
    arrays: dict[str, NDArray[Any]] = {}
    for split, count in (("train", 8), ("val", 3), ("test", 5)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count)[:, None] % classes).astype(np.uint8)
    np.savez_compressed(path, allow_pickle=True, **{**arrays, **changes})
    return path


@pytest.mark.parametrize("name", ["pneumoniamnist.npz", "pneumoniamnist_64.npz"])
def test_medmnist_names_classes_splits_and_no_patients(tmp_path: Path, name: str) -> None:
    path = medmnist(tmp_path / name)
    for place in (path, tmp_path):  # the file, or the folder that holds only it
        source = open_source(STUDY, place)
        assert Counter(item.split for item in source.items) == {"train": 8, "val": 3, "test": 5}
        assert [item.labels["label"][0] for item in source.items[:3]] == ["normal", "pneumonia", "normal"]
        assert patients_unknown(source.items) == 16
        assert len({item.patient for item in source.items}) == 16
    with np.load(path) as arrays:
        assert np.array_equal(source.read(source.items[-1])[0], arrays["test_images"][-1])
    assert source.read(source.items[0])[1] is None


def test_medmnist_of_another_name_has_numbers_for_classes(tmp_path: Path) -> None:
    items = open_source(STUDY, medmnist(tmp_path / "bloodmnist.npz", classes=4)).items
    assert [item.labels["label"][0] for item in items[:5]] == ["0", "1", "2", "3", "0"]


def test_medmnist_multilabel_and_colour(tmp_path: Path) -> None:
    labels = np.zeros((8, 14), np.uint8)
    labels[0, [0, 6]] = 1
    parts = {f"{split}_labels": np.zeros((count, 14), np.uint8) for split, count in (("val", 3), ("test", 5))}
    images = np.zeros((8, 28, 28, 3), np.uint8)
    path = medmnist(tmp_path / "chestmnist.npz", changes={"train_labels": labels, "train_images": images, **parts})
    source = open_source(STUDY, path)
    assert source.items[0].labels["label"] == ("atelectasis", "pneumonia")
    assert source.items[1].labels["label"] == ("no finding",)
    assert source.read(source.items[0])[0].shape == (28, 28, 3)
    path.rename(tmp_path / "mine.npz")
    assert open_source(STUDY, tmp_path / "mine.npz").items[0].labels["label"] == ("0", "6")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((8, 28, 28, 28), np.uint8)}, "volumes are not read"),
        ({"train_images": np.zeros((8, 28, 28), np.float32)}, "train_images is float32"),
        ({"train_labels": np.zeros((7, 1), np.uint8)}, "for 8 images"),
        ({"train_labels": np.zeros((8, 1), np.float64)}, "train_labels is float64"),
        ({"train_labels": np.full((8, 1), 2, np.uint8)}, "values that are no labels"),
        ({"train_labels": np.full((8, 1), -1, np.int8)}, "values that are no labels"),
        ({"train_labels": np.array([[print]] * 8, dtype=object)}, "Object arrays cannot be loaded"),
    ],
)
def test_medmnist_of_wrong_content_is_refused(tmp_path: Path, changes: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(STUDY, medmnist(tmp_path / "pneumoniamnist.npz", changes=changes))


def test_damaged_npz_files_never_raise_anything_else(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "pneumoniamnist.npz")
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    refused = 0
    for attempt in range(60):
        broken = bytearray(whole[: int(rng.integers(0, len(whole)))] if attempt % 2 else whole)
        for place in rng.integers(0, max(1, len(broken)), 3 if broken else 0):
            broken[place] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            source = open_source(STUDY, path)
            for item in source.items:
                source.read(item)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) not in str(error)
    assert refused > 30


def test_medmnist_that_needs_too_much_memory_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = medmnist(tmp_path / "pneumoniamnist.npz")
    source = open_source(STUDY, path)
    monkeypatch.setattr("simulations.datasets.medmnist.MAX_BYTES", 1000)
    with pytest.raises(DataError, match="take a smaller image size"):
        source.read(source.items[0])


def test_medmnist_needs_one_file_and_its_own_label_column(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "pneumoniamnist.npz")
    with pytest.raises(DataError, match="no column 'finding'"):
        open_source(STUDY.derive(**{"data.label_column": "finding"}), path)
    medmnist(tmp_path / "octmnist.npz")
    with pytest.raises(DataError, match=r"holds 2 \.npz files; name the one"):
        open_source(STUDY, tmp_path)
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    with pytest.raises(DataError, match="it is no MedMNIST file"):
        open_source(STUDY, tmp_path / "x.npz")


# Kermany --------------------------------------------------------------------------------------------------------------

KERMANY = {
    "train/NORMAL/IM-0115-0001.jpeg": ("N-115", "normal"),
    "train/NORMAL/NORMAL2-IM-0381-0001-0002.jpeg": ("N-381", "normal"),
    "test/NORMAL/NORMAL2-IM-0381-0001.jpeg": ("N-381", "normal"),
    "train/PNEUMONIA/person123_bacteria_45.jpeg": ("P-123", "bacteria"),
    "test/PNEUMONIA/person123_virus_46.jpeg": ("P-123", "virus"),
    "val/PNEUMONIA/BACTERIA-30629-0001.jpeg": ("Z-30629", "bacteria"),
    "val/NORMAL/NORMAL-1003233-0001.jpeg": ("Z-1003233", "normal"),
    "val/PNEUMONIA/odd.jpeg": ("", ""),
}


def kermany(root: Path) -> Path:
    for name in KERMANY:
        path = root / "chest_xray" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 7), 40).save(path)
    (root / "chest_xray/train/NORMAL/.DS_Store").write_bytes(b"x")
    (root / "chest_xray/train/NORMAL/._IM-0115-0001.jpeg").write_bytes(b"x")
    (root / "__MACOSX").mkdir()
    return root


def test_kermany_patients_and_findings_come_from_file_names(tmp_path: Path) -> None:
    for place in (kermany(tmp_path), tmp_path / "chest_xray"):
        source = open_source(STUDY, place)
        found = {item.key: item for item in source.items}
        assert set(found) == set(KERMANY)
        for key, (patient, finding) in KERMANY.items():
            item = found[key]
            assert (item.patient, item.patient_known) == ((patient, True) if patient else (key, False))
            assert item.labels["finding"] == ((finding,) if finding else ())
            assert item.labels["label"] == ("normal" if "/NORMAL/" in key else "pneumonia",)
    assert source.read(source.items[0])[0].shape == (7, 9)


def test_kermany_leaking_split_is_dropped_and_counted(tmp_path: Path) -> None:
    source = open_source(STUDY, kermany(tmp_path))
    assert {item.split for item in source.items} == {""}
    assert "puts 2 of 6 patients into more than one part" in source.notes[0]


def test_kermany_without_images_or_with_links_outside_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "chest_xray/train/NORMAL").mkdir(parents=True)
    with pytest.raises(DataError, match=r"hold no \.jpeg files"):
        open_source(STUDY, empty)
    Image.new("L", (4, 4)).save(tmp_path / "x.jpeg")
    (empty / "chest_xray/train/NORMAL/IM-0001-0001.jpeg").symlink_to(tmp_path / "x.jpeg")
    with pytest.raises(DataError, match="leads out of the folder"):
        open_source(STUDY, empty)
    with pytest.raises(DataError, match="no column 'view'"):
        open_source(STUDY.derive(**{"data.label_column": "view"}), empty)


# NIH ------------------------------------------------------------------------------------------------------------------

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)


def nih(root: Path, patients: int = 40, name: str = "Data_Entry_2017.csv") -> Path:
    rows = []
    for number in range(patients):
        for follow in range(2):
            index = f"{number:08d}_{follow:03d}.png"
            place = root / ("images_001/images" if number % 2 else "images")
            place.mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 6), number).save(place / index)
            labels = "No Finding" if follow else "Edema|Pneumonia"
            rows.append(f"{index},{labels},{follow},{number},{'414' if number == 3 else '058Y'},M,PA,6,6,0.1,0.1,\n")
    (root / name).write_text(NIH_HEADER + "".join(rows))
    return root


def test_nih_is_read_from_its_sheet_and_folders(tmp_path: Path) -> None:
    source = open_source(STUDY, nih(tmp_path))
    assert len(source.items) == 80
    assert source.notes == ()
    found = {item.key: item for item in source.items}
    item = found["images_001/images/00000001_000.png"]
    assert (item.patient, item.split) == ("1", "")
    assert item.labels == {"label": ("Edema", "Pneumonia"), "finding": ("Edema", "Pneumonia")}
    assert item.attributes == {"sex": "M", "age": "58", "view": "PA"}
    assert found["images_001/images/00000003_000.png"].attributes["age"] == ""
    assert int(source.read(found["images/00000002_001.png"])[0][0, 0]) == 2


def test_nih_lists_give_the_test_split_and_validation_by_patient(tmp_path: Path) -> None:
    nih(tmp_path)
    names = [f"{number:08d}_{follow:03d}.png" for number in range(40) for follow in range(2)]
    (tmp_path / "test_list.txt").write_text("\n".join(names[60:]))
    (tmp_path / "train_val_list.txt").write_text("\r\n".join(names[:60]))
    items = open_source(STUDY, tmp_path).items
    splits: dict[str, set[str]] = {}
    for item in items:
        splits.setdefault(item.patient, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = Counter(item.split for item in items)
    assert counts["test"] == 20 and counts["train"] > counts["val"] > 0
    assert items == open_source(STUDY, tmp_path).items
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[1:60]))
    with pytest.raises(DataError, match=r"'00000000_000.png' stands in neither test_list.txt nor train_val_list.txt"):
        open_source(STUDY, tmp_path)


def test_nih_rows_without_an_image_are_left_out_and_counted(tmp_path: Path) -> None:
    nih(tmp_path)
    (tmp_path / "images/00000000_000.png").unlink()
    source = open_source(STUDY, tmp_path)
    assert len(source.items) == 79
    assert source.notes == ("1 of 80 rows of Data_Entry_2017.csv have no image here and are left out",)


def test_nih_newer_sheet_wins_and_broken_ones_are_refused(tmp_path: Path) -> None:
    nih(tmp_path)
    newer = tmp_path / "Data_Entry_2017_v2020.csv"
    newer.write_text(NIH_HEADER.replace("Patient ID", "PatientID"))
    with pytest.raises(DataError, match=r"v2020.csv: no column 'Patient ID'.*did you mean 'PatientID'\?"):
        open_source(STUDY, tmp_path)
    newer.write_text(NIH_HEADER + "gone.png,x,0,1,58,M,PA,6,6,.1,.1,\n")
    with pytest.raises(DataError, match="none of its 1 images"):
        open_source(STUDY, tmp_path)
    newer.write_text(NIH_HEADER + "00000000_000.png,x,0,1,58,M,PA,6,6,.1,.1,\n" * 2)
    with pytest.raises(DataError, match=r"line 3: '00000000_000\.png' stands there twice"):
        open_source(STUDY, tmp_path)
    with pytest.raises(DataError, match="'Finding Labels'"):
        open_source(STUDY.derive(**{"data.label_column": "x"}), tmp_path)


def test_a_label_sheet_comes_before_other_layouts(tmp_path: Path) -> None:
    kermany(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\nchest_xray/train/NORMAL/IM-0115-0001.jpeg,normal\n")
    assert len(open_source(STUDY, tmp_path).items) == 1
