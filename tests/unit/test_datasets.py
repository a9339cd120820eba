"""Folders with a label sheet, honest and hostile; which layout a path has; real images where they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from common.study import Study
from simulations.datasets import Item, Source, UnreadableImage, open_source, patients_unknown

STUDY = Study.model_validate({"name": "s", "task": "binary", "classes": ["normal", "pneumonia"]})


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (12, 10), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: NDArray[np.uint8]) -> Path:
    root = tmp_path / "hospital"
    (root / "images").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(root / "images" / name)
    (root / "labels.csv").write_text(
        "file,label,finding,patient,sex,age,view,site,split,mask,note\n"
        "images/a.png,normal,No Finding,P1,F,36.0,PA,x,train,,secret\n"
        "images/b.png,pneumonia, Edema |Pneumonia|Edema,P1,F,036Y,AP,x,TEST,,\n"
        "\n"
        "images/c.png,,,,,,,,,,\n"
    )
    return root


def sheet(root: Path, text: str | bytes) -> Path:
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def read_one(root: Path, study: Study = STUDY) -> tuple[NDArray[Any], NDArray[Any] | None]:
    source = open_source(study, root)
    return source.read(source.items[0])


# The label sheet ------------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_as_its_sheet_says(folder: Path, pixels: NDArray[np.uint8]) -> None:
    source = open_source(STUDY, folder)
    assert source.name == "folder hospital"
    assert not source.synthetic
    first, second, third = source.items
    assert first == Item(
        key="images/a.png",
        patient="P1",
        patient_known=True,
        labels={"label": ("normal",), "finding": ("No Finding",)},
        split="train",
        attributes={"sex": "F", "age": "36", "view": "PA", "site": "x"},
    )
    assert second.labels["finding"] == ("Edema", "Pneumonia")
    assert (second.split, second.attributes["age"]) == ("test", "36")
    assert (third.patient, third.patient_known, third.labels["label"]) == ("images/c.png", False, ())
    assert patients_unknown(source.items) == 1
    read, mask = source.read(first)
    assert mask is None
    assert read.dtype == np.uint8 and np.array_equal(read, pixels)
    assert read.flags.writeable


def test_only_columns_that_are_used_are_kept(folder: Path) -> None:
    kept = open_source(STUDY, folder).items[0]
    assert "secret" not in repr(kept)
    by_note = STUDY.derive(**{"data.label_column": "note"})
    assert open_source(by_note, folder).items[0].labels["note"] == ("secret",)
    natural = STUDY.derive(partition={"kind": "natural", "column": "note"})
    assert open_source(natural, folder).items[0].attributes["note"] == "secret"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_spreadsheet_habits_are_understood(folder: Path, encoding: str, separator: str, ending: str) -> None:
    rows = [
        ["file", "label", "finding"],
        ["images\\a.png", "normal", '"x,y;z"'],
        ["./images//b.png", " pneumonia ", ""],
    ]
    sheet(folder, (ending.join(separator.join(row) for row in rows) + ending).encode(encoding))
    items = open_source(STUDY, folder).items
    assert [item.key for item in items] == ["images/a.png", "images/b.png"]
    assert [item.labels["label"] for item in items] == [("normal",), ("pneumonia",)]
    assert items[0].labels["finding"] == ("x,y;z",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; its first line names the columns"),
        ("\n\n", "no column 'file'"),
        ("file,label\n", "no rows under the header"),
        ("file,label\n\n , \n", "no rows under the header"),
        ("File,label\na.png,normal\n", r"no column 'file'.*did you mean 'File'\? its columns are: File, label"),
        ("file,labl\na.png,normal\n", r"no column 'label' \(the study's data.label_column\); did you mean 'labl'\?"),
        ("file,x\na.png,normal\n", "no column 'label'.*its columns are: file, x"),
        ("file,label,label\na.png,normal,\n", "'label' is named twice"),
        ("file,label\na.png,normal\n./a.png,normal\n", "line 3: 'a.png' stands on line 2 too"),
        ("file,label\n../a.png,normal\n", "line 2: file '../a.png' leads out of the folder"),
        ("file,label\nx/../../a.png,normal\n", "leads out of the folder"),
        ("file,label\n..\\a.png,normal\n", "leads out of the folder"),
        ("file,label\n/etc/passwd,normal\n", "is an absolute path"),
        ("file,label\nC:\\x.png,normal\n", "is an absolute path"),
        ("file,label\n\\\\host\\x.png,normal\n", "is an absolute path"),
        ("file,label\n.,normal\n", "names no file"),
        ("file,label\n,normal\n", "line 2: file is empty"),
        ("file,label,mask\na.png,normal,../m.png\n", "line 2: mask '../m.png' leads out"),
        ("file,label,split\na.png,normal,training\n", "line 2: split 'training'; it must be train, val, test or empty"),
        ("file,label\na.png\n", "line 2: 1 cells, the header names 2"),
        ("file,label\na.png,normal,\n", "line 2: 3 cells, the header names 2"),
        ("file,label\na\0.png,normal\n", "control character"),
        ("file,label\na.png,nor\x1b[31mmal\n", "line 2: a cell holds a control character"),
        ('file,label\n"a.png\n",normal\n', "control character"),
        ('file,label\n"a.png,normal\n', "not valid CSV"),
        ("file,label\na.png," + "x" * 200_000 + "\n", "not valid CSV: field larger than field limit"),
        ("file,label\na.png,é\n".encode("latin-1"), "not UTF-8 text"),
        ("file,label\na.png,normal\n".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_a_sheet_that_cannot_be_trusted_is_refused(folder: Path, text: str | bytes, message: str) -> None:
    sheet(folder, text)
    with pytest.raises(DataError, match=message) as caught:
        open_source(STUDY, folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_structural_column_cannot_be_the_label(folder: Path) -> None:
    with pytest.raises(DataError, match="'patient' cannot be a label"):
        open_source(STUDY.derive(**{"data.label_column": "patient"}), folder)


def test_links_that_leave_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("L", (4, 4)).save(outside / "x.png")
    (folder / "link.png").symlink_to(outside / "x.png")
    (folder / "way").symlink_to(outside)
    for name in ("link.png", "way/x.png"):
        sheet(folder, f"file,label\n{name},normal\n")
        with pytest.raises(DataError, match="is a link that leads out of the folder"):
            open_source(STUDY, folder)
    (folder / "inner.png").symlink_to(folder / "images" / "a.png")
    sheet(folder, "file,label\ninner.png,normal\n")
    assert read_one(folder)[0].shape == (12, 10)


def test_a_link_put_there_after_listing_is_not_followed(folder: Path, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    source = open_source(STUDY, folder)
    (folder / "images" / "a.png").unlink()
    (folder / "images" / "a.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match="leads out of the folder"):
        source.read(source.items[0])


# Which layout ---------------------------------------------------------------------------------------------------------


def test_no_known_layout_names_those_that_are(tmp_path: Path) -> None:
    known = r"no known layout; expected a folder with labels.csv; vaults .*NIH .*Kermany.*MedMNIST"
    with pytest.raises(DataError, match=known):
        open_source(STUDY, tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="no known layout"):
        open_source(STUDY, tmp_path / "x.txt")
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(STUDY, tmp_path / "gone")
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(STUDY, Path("nul\0byte"))


def test_naming_the_sheet_asks_for_its_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="give the folder that holds it"):
        open_source(STUDY, folder / "labels.csv")


# Real images ----------------------------------------------------------------------------------------------------------


def shared(name: str) -> Source:
    beside = Path(__file__).resolve().parents[3] / "shared"
    root = Path(os.environ.get("FEDWARD_SHARED", beside)) / "data" / name
    if not root.is_dir():
        pytest.skip("../shared is not here")
    return open_source(STUDY, root)


@pytest.mark.parametrize(
    ("name", "images", "patients", "positive"),
    [("chest-xray-guangzhou", 5263, 3688, 3849), ("chest-xray-nih", 905, 614, 459), ("brain-mri", 457, 457, 345)],
)
def test_real_folders_hold_what_their_readme_says(name: str, images: int, patients: int, positive: int) -> None:
    source = shared(name)
    assert len(source.items) == images
    assert len({item.patient for item in source.items}) == patients
    assert sum(item.labels["label"] in (("pneumonia",), ("tumor",)) for item in source.items) == positive
    assert patients_unknown(source.items) == (images if name == "brain-mri" else 0)
    for item in source.items[:: images // 10]:
        pixels, mask = source.read(item)
        assert pixels.dtype == np.uint8 and pixels.ndim == 2 and mask is None
        assert max(pixels.shape) <= 256
    if name == "chest-xray-nih":
        ages = {item.attributes["age"] for item in source.items}
        assert all(age == "" or age.isdecimal() for age in ages)
