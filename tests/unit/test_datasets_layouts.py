"""Public sets as they are downloaded, made up: what each layout's labels, patients, splits and masks are."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from common.study import Study
from simulations.datasets import LAYOUTS, Source, UnreadableImage, open_source

STUDY = Study.parse("name: s\ntask: binary\nclasses: [normal, ill]\nseed: 4\n")


def draw(file: Path, value: int = 9, size: tuple[int, int] = (12, 10)) -> None:
    """A grey image of one value, ``size`` wide and tall."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(file)


def half(file: Path, *, left: bool, size: tuple[int, int] = (12, 10)) -> None:
    """A mask of one half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, : size[0] // 2] = 255 * left
    mask[:, size[0] // 2 :] = 255 * (not left)
    Image.fromarray(mask).save(file)


def montgomery(root: Path) -> None:
    for number, label in ((1, 0), (2, 1)):
        name = f"MCUCXR_{number:04d}_{label}"
        draw(root / "CXR_png" / f"{name}.png")
        half(root / "ManualMask" / "leftMask" / f"{name}.png", left=True)
        half(root / "ManualMask" / "rightMask" / f"{name}.png", left=False)
        reading = root / "ClinicalReadings" / f"{name}.txt"
        reading.parent.mkdir(exist_ok=True)
        reading.write_text(f"Patient's Sex: F\nPatient's Age: 0{number}7Y\nMr Smith has an infiltrate\n")


def shenzhen(root: Path) -> None:
    for number, label in ((1, 0), (327, 1)):
        name = f"CHNCXR_{number:04d}_{label}"
        draw(root / "CXR_png" / f"{name}.png")
        (root / "ClinicalReadings").mkdir(exist_ok=True)
        (root / "ClinicalReadings" / f"{name}.txt").write_text("male 45yrs\nnormal\n")
    half(root / "mask" / "CHNCXR_0327_1_mask.png", left=True)
    draw(root / "CXR_png" / "Thumbs_copy.png")


def mura(root: Path) -> None:
    for split, patient, part, result in (
        *(("train", number, "WRIST", "positive") for number in range(1, 31)),
        ("train", 31, "ELBOW", "negative"),
        ("valid", 40, "WRIST", "negative"),
    ):
        study = root / split / f"XR_{part}" / f"patient{patient:05d}" / f"study1_{result}"
        for number in (1, 2):
            draw(study / f"image{number}.png")
        (study / "._image1.png").write_bytes(b"what a Mac leaves")
    (root / "train_labeled_studies.csv").write_text("MURA-v1.1/train/XR_WRIST/patient00001/study1_positive/,1\n")


def tumours(root: Path) -> None:
    for part, names in {
        "Training": ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"),
        "Testing": ("glioma_tumor", "no_tumor"),
    }.items():
        for name in names:
            for number in range(8):
                draw(root / part / name / f"{number}.jpg", number)


def yes_and_no(root: Path) -> None:
    for name in ("yes", "no"):
        for number in range(3):
            draw(root / name / f"Y{number}.jpg", number)


def luna(root: Path) -> None:
    rows = ["seriesuid,coordX,coordY,coordZ,class"]
    rows += [f"1.3.6.{number // 2},-12.5,3.0,-100.2,{number % 2}" for number in range(6)]
    (root / "candidates_V2.csv").write_text("\n".join(rows) + "\n")
    (root / "patches").mkdir()
    np.save(root / "patches" / "1.npy", np.full((16, 16), -700, np.int16))
    draw(root / "patches" / "000004.png")


def volume(values: NDArray[np.generic]) -> bytes:
    image = nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]))  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), 1)  # type: ignore[no-untyped-call]


def brats(root: Path) -> None:
    """Two cases of 40 slices; the tumour is in slices 10 to 22, and small in the last of them."""
    for case in ("BraTS20_Training_001", "BraTS20_Training_002"):
        folder = root / case
        folder.mkdir(parents=True)
        brain = np.zeros((20, 24, 40), np.int16)
        brain[4:16, 4:20] = 100
        seg = np.zeros(brain.shape, np.uint8)
        seg[6:11, 6:12, 10:22] = 4
        seg[6:9, 6:9, 22] = 1
        for name, factor in (("t1", 1), ("t1ce", 2), ("t2", 3), ("flair", 4)):
            (folder / f"{case}_{name}.nii.gz").write_bytes(volume((brain * factor).astype(np.int16)))
        (folder / f"{case}_seg.nii.gz").write_bytes(volume(seg))


def pairs(root: Path) -> None:
    for number in range(3):
        draw(root / "images" / f"{number}.png")
    draw(root / "masks" / "0.png", 0)
    half(root / "masks" / "1_mask.png", left=True)
    half(root / "masks" / "2_seg.png", left=False)


MAKERS: dict[str, Callable[[Path], None]] = {
    "Montgomery": montgomery, "Shenzhen": shenzhen, "MURA": mura, "BraTS": brats, "LUNA16": luna,
    "beside masks": pairs, "folder a class": tumours,
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Callable[[Callable[[Path], None]], Source]:
    def opened(maker: Callable[[Path], None]) -> Source:
        root = tmp_path / "download"
        root.mkdir()
        maker(root)
        return open_source(STUDY, root)

    return opened


def by_split(source: Source) -> Counter[str]:
    return Counter(item.split for item in source.items)


@pytest.mark.parametrize("name", MAKERS)
def test_one_layout_recognises_it_and_a_label_sheet_comes_first(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    known = [layout.description for layout in LAYOUTS if layout.find(tmp_path) is not None]
    assert len(known) == 1 and name in known[0]
    source = open_source(STUDY, tmp_path)
    assert len({item.key for item in source.items}) == len(source.items) > 0
    for item in source.items:
        pixels, mask = source.read(item)
        assert pixels.ndim in (2, 3) and (mask is None or mask.shape == pixels.shape[:2])
    draw(tmp_path / "one.png")
    (tmp_path / "labels.csv").write_text("file,label\none.png,normal\n")
    assert [item.key for item in open_source(STUDY, tmp_path).items] == ["one.png"]


@pytest.mark.parametrize("name", MAKERS)
def test_a_label_column_that_is_not_there_is_told_with_those_that_are(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    with pytest.raises(DataError, match=r"has no column 'diagnosis'; set data.label_column to label"):
        open_source(STUDY.derive(**{"data.label_column": "diagnosis"}), tmp_path)


def test_nothing_recognised_lists_all_layouts(tmp_path: Path) -> None:
    draw(tmp_path / "loose.png")
    with pytest.raises(DataError) as caught:
        open_source(STUDY, tmp_path)
    assert all(layout.description in str(caught.value) for layout in LAYOUTS)


# Each of them ---------------------------------------------------------------------------------------------------------


def test_montgomery_joins_the_masks_of_both_lungs(made: Callable[[Callable[[Path], None]], Source]) -> None:
    source = made(montgomery)
    assert [(item.patient, item.labels["label"]) for item in source.items] == [
        ("MCUCXR_0001", ("normal",)),
        ("MCUCXR_0002", ("tuberculosis",)),
    ]
    assert source.items[1].attributes == {"modality": "DX", "view": "PA", "sex": "F", "age": "27"}
    assert "Smith" not in repr(source.items)  # a reading's text stays where it is
    mask = source.read(source.items[0])[1]
    assert mask is not None and bool(mask.all())  # left and right half together
    assert source.notes == ("masks are of the lungs, not of what was found",)


def test_a_lung_without_its_mask_is_an_error(tmp_path: Path) -> None:
    montgomery(tmp_path)
    (tmp_path / "ManualMask" / "leftMask" / "MCUCXR_0001_0.png").unlink()
    with pytest.raises(DataError, match=r"MCUCXR_0001_0.png has the mask of one lung only"):
        open_source(STUDY, tmp_path)


def test_shenzhen_reads_masks_where_there_are_some(made: Callable[[Callable[[Path], None]], Source]) -> None:
    source = made(shenzhen)
    assert [item.labels["label"] for item in source.items] == [("normal",), ("tuberculosis",)]
    assert source.items[0].attributes["sex"] == "M" and source.items[0].attributes["age"] == "45"
    assert [source.read(item)[1] is None for item in source.items] == [True, False]
    assert "1 images in CXR_png have no name of this set and are left out" in source.notes


def test_mura_has_patients_parts_and_no_validation_split_of_its_own(
    made: Callable[[Callable[[Path], None]], Source],
) -> None:
    source = made(mura)
    assert len(source.items) == 64
    assert {item.split for item in source.items if item.patient == "patient00040"} == {"test"}
    assert set(by_split(source)) == {"train", "val", "test"}
    splits: dict[str, set[str]] = {}
    for item in source.items:
        splits.setdefault(item.patient, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(item.labels["label"] for item in source.items) == {("abnormal",): 60, ("normal",): 4}
    assert {item.attributes["body_part"] for item in source.items} == {"WRIST", "ELBOW"}


def test_a_mura_study_without_a_result_is_an_error(tmp_path: Path) -> None:
    mura(tmp_path)
    draw(tmp_path / "train" / "XR_WRIST" / "patient00001" / "study2" / "image1.png")
    with pytest.raises(DataError, match="'study2' is no study's folder; it is named study1_positive"):
        open_source(STUDY, tmp_path)


def test_folders_of_brain_tumours_are_tumour_or_normal_and_of_a_kind(
    made: Callable[[Callable[[Path], None]], Source],
) -> None:
    source = made(tumours)
    assert Counter(item.labels["label"][0] for item in source.items) == {"tumor": 32, "normal": 16}
    assert {item.labels["finding"][0] for item in source.items} == {"glioma", "meningioma", "pituitary", "normal"}
    assert by_split(source)["test"] == 16 and by_split(source)["val"] > 0
    assert not any(item.patient_known for item in source.items)
    assert "data.group_duplicates" in source.notes[0]


def test_other_folders_names_are_labels_as_they_are(made: Callable[[Callable[[Path], None]], Source]) -> None:
    source = made(yes_and_no)
    assert Counter(item.labels["label"][0] for item in source.items) == {"yes": 3, "no": 3}
    assert set(by_split(source)) == {""}


def test_patches_are_called_as_their_rows(made: Callable[[Callable[[Path], None]], Source], tmp_path: Path) -> None:
    source = made(luna)
    found = {item.key: (item.patient, item.labels["label"]) for item in source.items}
    assert found == {"patches/1.npy": ("1.3.6.0", ("nodule",)), "patches/000004.png": ("1.3.6.2", ("normal",))}
    assert source.notes == ("4 of 6 candidates have no patch here and are left out",)
    assert source.read(source.items[0])[0].dtype == np.int16
    patches = tmp_path / "download" / "patches"
    (patches / "1.npy").write_bytes(b"no array")
    with pytest.raises(UnreadableImage, match=r"is no .npy file of numbers"):
        source.read(source.items[0])
    np.save(patches / "1.npy", np.zeros((4, 4), np.float64))
    with pytest.raises(UnreadableImage, match=r"is float64 \(4, 4\); save \(H, W\)"):
        source.read(source.items[0])
    draw(patches / "99.png")
    with pytest.raises(DataError, match="1 of 3 patches are of no row of it"):
        open_source(STUDY, tmp_path / "download")


def test_slices_of_volumes_have_three_sequences_as_channels(
    made: Callable[[Callable[[Path], None]], Source], tmp_path: Path
) -> None:
    source = made(brats)
    assert [item.key.split("/")[1] for item in source.items[:5]] == [
        "slice-007", "slice-012", "slice-017", "slice-027", "slice-007",
    ]  # fmt: skip  # 22 shows nine pixels of tumour: neither
    assert [item.labels["label"][0] for item in source.items[:5]] == ["normal", "tumor", "tumor", "normal", "normal"]
    assert {item.patient for item in source.items} == {"BraTS20_Training_001", "BraTS20_Training_002"}
    assert "2 with fewer than 20 pixels of tumour are left out" in source.notes[0]
    pixels, mask = source.read(source.items[1])
    assert pixels.dtype == np.uint8 and pixels.shape == (24, 20, 3) and set(np.unique(pixels)) == {0, 255}
    assert mask is not None and int(mask.sum()) == 30
    flair = tmp_path / "download" / "BraTS20_Training_002" / "BraTS20_Training_002_flair.nii.gz"
    flair.write_bytes(volume(np.ones((20, 20, 40), np.int16)))
    with pytest.raises(UnreadableImage, match="the case's volumes differ in shape"):
        source.read(source.items[-1])
    flair.unlink()
    with pytest.raises(DataError, match="'BraTS20_Training_002' has no flair or t2f or dwi"):
        open_source(STUDY, tmp_path / "download")


def test_a_case_without_segmentation_has_no_label(tmp_path: Path) -> None:
    brats(tmp_path)
    (tmp_path / "BraTS20_Training_002" / "BraTS20_Training_002_seg.nii.gz").unlink()
    source = open_source(STUDY, tmp_path)
    second = [item for item in source.items if item.patient.endswith("2")]
    assert second and all(item.labels["label"] == () and source.read(item)[1] is None for item in second)


def test_masks_tell_the_label_of_the_images_beside_them(
    made: Callable[[Callable[[Path], None]], Source], tmp_path: Path
) -> None:
    source = made(pairs)
    assert [item.labels["label"] for item in source.items] == [("normal",), ("lesion",), ("lesion",)]
    draw(tmp_path / "download" / "masks" / "7.png")
    with pytest.raises(DataError, match=r"1 masks have no image, first '7.png'"):
        open_source(STUDY, tmp_path / "download")
    draw(tmp_path / "download" / "images" / "8.png")
    with pytest.raises(DataError, match=r"1 images have no mask, first '8.png'"):
        open_source(STUDY, tmp_path / "download")


# Boxes beside a label sheet -------------------------------------------------------------------------------------------


def boxed(root: Path, boxes: str) -> Source:
    for name in ("a.png", "b.png", "c.png"):
        draw(root / name)
    half(root / "m.png", left=True)
    (root / "labels.csv").write_text("file,label,mask\na.png,ill,\nb.png,normal,\nc.png,ill,m.png\n")
    (root / "boxes.csv").write_text("file,label,x,y,width,height\n" + boxes)
    return open_source(STUDY, root)


def test_boxes_are_masks_where_no_mask_is_named(tmp_path: Path) -> None:
    source = boxed(tmp_path, "a.png,opacity,1,2,3,4\na.png,opacity,9,8,3,2\nc.png,opacity,0,0,1,1\n")
    first, empty, drawn = (source.read(item)[1] for item in source.items)
    assert first is not None and empty is not None and drawn is not None
    assert first.sum() == 3 * 4 + 3 * 2 and first[2:6, 1:4].all() and first[8:, 9:].all()
    assert not empty.any() and drawn.sum() == 60
    assert source.notes == ("masks of 2 images are the boxes of boxes.csv: whole rectangles, not outlines",)


def test_boxes_that_fit_no_image_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"boxes.csv line 3: names no image of labels.csv, as 1 of its rows;"):
        boxed(tmp_path, "a.png,opacity,1,2,3,4\nz.png,opacity,1,2,3,4\n")
    source = boxed(tmp_path, "a.png,opacity,1,2,30,4\n")
    with pytest.raises(UnreadableImage, match=r"a box of boxes.csv reaches out of the image"):
        source.read(source.items[0])
