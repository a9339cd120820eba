"""Several sources as one data set, and parts of sources: who is whose, and what the sources bring is kept."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError, StudyError
from common.study import Study
from simulations.datasets import Source, UnreadableImage, open_source
from simulations.sites import Machine, cohort_of, labelled_items, prepare_sites

STUDY = Study.parse("""
name: s
task: multiclass
classes: [normal, tumor, pneumonia]
seed: 3
""")


def hospital(root: Path, labels: Sequence[str], *, patients: bool = True, split: bool = False) -> Path:
    """A folder of 8 × 8 images, two of each patient; image *n* has the grey value *n*."""
    root.mkdir(parents=True)
    rows = ["file,label,patient,sex,split"]
    for number, label in enumerate(labels):
        Image.new("L", (8, 8), number).save(root / f"{number}.png")
        part = ("train", "train", "val", "test")[number // 2 % 4] if split else ""
        rows.append(f"{number}.png,{label},{f'P{number // 2}' if patients else ''},F,{part}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def mri(tmp_path: Path) -> Path:
    return hospital(tmp_path / "mri", ["normal", "normal", "tumor", "tumor"] * 10, patients=False)


@pytest.fixture
def xray(tmp_path: Path) -> Path:
    return hospital(tmp_path / "xray", ["normal", "normal", "pneumonia", "pneumonia"] * 10, split=True)


def test_two_sources_are_one_and_each_image_knows_its_own(mri: Path, xray: Path) -> None:
    parts = [open_source(STUDY, mri), open_source(STUDY, xray)]
    both = open_source(STUDY, [mri, xray])
    assert (both.name, both.synthetic) == ("folder mri + folder xray", False)
    assert len(both.items) == 80 and len({item.key for item in both.items}) == 80
    assert {item.patient for item in both.items if item.attributes["source"] == "xray"} == {
        f"xray/{item.patient}" for item in parts[1].items
    }
    for item, (source, original) in zip(both.items, [(part, one) for part in parts for one in part.items], strict=True):
        assert item.labels == original.labels and item.patient_known == original.patient_known
        assert item.attributes == {**original.attributes, "source": item.key.split("/")[0]}
        assert np.array_equal(both.read(item)[0], source.read(original)[0])
    assert [note for note in both.notes if "images of" in note] == [
        "mri: folder mri, 40 images of 40 patients, 40 of them without a patient",
        "xray: folder xray, 40 images of 20 patients",
    ]


def test_splits_are_kept_and_made_for_the_source_without(mri: Path, xray: Path) -> None:
    both = open_source(STUDY, [mri, xray])
    given = [item.split for item in open_source(STUDY, xray).items]
    assert [item.split for item in both.items if item.attributes["source"] == "xray"] == given
    made = Counter((item.split, item.labels["label"]) for item in both.items if item.attributes["source"] == "mri")
    assert {split: made[split, ("tumor",)] for split in ("train", "val", "test")} == {"train": 14, "val": 3, "test": 3}
    assert "mri: has no splits, so its patients were split in the shares of data.split" in both.notes
    neither = open_source(STUDY, [mri, Path(f"again={mri}")])
    assert {item.split for item in neither.items} == {""}


def test_a_source_may_be_given_a_name(mri: Path, tmp_path: Path) -> None:
    other = hospital(tmp_path / "elsewhere" / "mri", ["normal", "tumor"])
    with pytest.raises(DataError, match="two sources are called 'mri'; name them: --data one=DIR"):
        open_source(STUDY, [mri, other])
    both = open_source(STUDY, [mri, Path(f"north={other}")])
    assert Counter(item.attributes["source"] for item in both.items) == {"mri": 40, "north": 2}
    alone = open_source(STUDY, Path(f"north={other}"))
    assert [item.key for item in alone.items] == ["north/0.png", "north/1.png"]
    with pytest.raises(DataError, match=r"north=gone: no such file|gone: no such file"):
        open_source(STUDY, Path("north=gone"))
    equals = hospital(tmp_path / "a=b", ["normal", "tumor"])
    assert open_source(STUDY, equals).name == "folder a=b"  # what is there is a path, whatever it looks like


def test_sources_are_hospitals(mri: Path, xray: Path, tmp_path: Path) -> None:
    study = STUDY.derive(partition={"kind": "natural", "column": "source"})
    prepared = prepare_sites(study, open_source(study, [mri, xray]), tmp_path / "sites", Machine())
    assert [facts["origin"] for facts in prepared.sites.values()] == ["mri", "xray"]
    assert [sum(facts["images"].values()) for facts in prepared.sites.values()] == [40, 40]
    assert any(note.startswith("mri: folder mri") for note in prepared.notes)
    again = open_source(study, [tmp_path / "sites", Path(f"more={xray}")])  # vaults are a source like others
    assert Counter(item.attributes["source"] for item in again.items) == {"sites": 80, "more": 40}


def test_a_damaged_image_is_named_with_its_source(mri: Path, xray: Path) -> None:
    (mri / "3.png").write_bytes(b"")
    both = open_source(STUDY, [mri, xray])
    with pytest.raises(UnreadableImage) as caught:
        both.read(both.items[3])
    assert (caught.value.key, caught.value.reason) == ("mri/3.png", "is empty; copy it again")
    with pytest.raises(UnreadableImage, match="is not of this source"):
        both.read(open_source(STUDY, mri).items[0])


def test_synthetic_and_real_do_not_mix(mri: Path, xray: Path, tmp_path: Path) -> None:
    phantoms = STUDY.derive(classes={"normal": ["normal"], "tumor": ["tumor"], "pneumonia": ["pneumonia"]})
    prepare_sites(phantoms, open_source(phantoms, None), tmp_path / "run", Machine())
    with pytest.raises(DataError, match="'run' holds synthetic images and others real ones"):
        open_source(STUDY, [tmp_path / "run", xray])


# data.take ------------------------------------------------------------------------------------------------------------


def take(**sources: Any) -> Study:
    return STUDY.derive(**{"data.take": sources})


def test_of_each_source_so_many_of_each_class(mri: Path, xray: Path) -> None:
    study = take(mri={"tumor": 7, "normal": 99}, xray={"pneumonia": 5})
    both = open_source(study, [mri, xray])
    counted = Counter((item.attributes["source"], *item.labels["label"]) for item in both.items)
    # a patient of the X-rays has two images, and is taken whole: the fifth would part the third patient
    assert counted == {("mri", "tumor"): 7, ("mri", "normal"): 20, ("xray", "pneumonia"): 4}
    assert "mri: data.take: 20 normal (of 99 asked for), 7 tumor, of 40 images" in both.notes
    again = open_source(study, [xray, mri])
    assert {item.key for item in again.items} == {item.key for item in both.items}
    other = open_source(study.derive(seed=4), [mri, xray])
    assert {item.key for item in other.items} != {item.key for item in both.items}


def test_taking_needs_a_source_of_that_name_with_such_images(mri: Path) -> None:
    with pytest.raises(DataError, match=r"no source is called 'brain'; there are: mri; name it: --data brain=DIR"):
        open_source(take(brain={"tumor": 5}), mri)
    with pytest.raises(DataError, match=r"mri has no image of class 'pneumonia'"):
        open_source(take(mri={"tumor": 5, "pneumonia": 5}), mri)
    with pytest.raises(DataError, match=r"phantoms \(synthetic\) are drawn, not taken"):
        open_source(take(mri={"tumor": 5}), None)
    with pytest.raises(StudyError, match=r"data\.take\.mri: no class 'tumour'; name one of: normal, tumor, pneumonia"):
        take(mri={"tumour": 5})
    with pytest.raises(StudyError, match=r"'mri' takes nothing"):
        take(mri={})
    assert len(open_source(take(brain={"tumor": 5}), Path(f"brain={mri}")).items) == 5


def test_a_study_that_takes_nothing_keeps_its_hash() -> None:
    assert take().hash == STUDY.hash
    assert take(a={"tumor": 5}).hash != STUDY.hash
    one, other = take(a={"tumor": 5, "normal": 2}, b={"tumor": 1}), take(b={"tumor": 1}, a={"normal": 2, "tumor": 5})
    assert one.hash == other.hash  # their order means nothing


# Real images ----------------------------------------------------------------------------------------------------------


def shared(*names: str) -> list[Path]:
    beside = Path(__file__).resolve().parents[3] / "shared"
    root = Path(os.environ.get("FEDWARD_SHARED", beside)) / "data"
    if not root.is_dir():
        pytest.skip("../shared is not here")
    return [root / name for name in names]


def counts(study: Study, source: Source) -> Counter[tuple[str, str]]:
    items = labelled_items(study, source)
    cohort = cohort_of(study, items)
    classes = [study.class_names[row] for row in cohort.targets.argmax(axis=1).tolist()]
    return Counter(zip(cohort.attributes["source"].tolist(), classes, strict=True))


def test_paper_1_takes_what_exists_of_mri_and_radiographs() -> None:
    wanted = {
        "brain-mri": {"tumor": 500, "normal": 300},
        "chest-xray-guangzhou": {"pneumonia": 400, "normal": 200},
    }
    study = STUDY.derive(**{"data.take": wanted})
    source = open_source(study, shared("brain-mri", "chest-xray-guangzhou"))
    assert counts(study, source) == {
        ("brain-mri", "tumor"): 345,
        ("brain-mri", "normal"): 112,
        ("chest-xray-guangzhou", "pneumonia"): 400,
        ("chest-xray-guangzhou", "normal"): 200,
    }


def test_children_and_adults_are_two_hospitals() -> None:
    study = Study.parse("name: s\ntask: binary\nclasses: [normal, pneumonia]\n")
    source = open_source(study, shared("chest-xray-guangzhou", "chest-xray-nih"))
    assert counts(study, source) == {
        ("chest-xray-guangzhou", "pneumonia"): 3849,
        ("chest-xray-guangzhou", "normal"): 1414,
        ("chest-xray-nih", "pneumonia"): 459,
        ("chest-xray-nih", "normal"): 446,
    }
    assert all(item.split for item in source.items)
