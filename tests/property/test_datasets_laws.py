"""Laws of the data sources, over generated sheets and phantom sets."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.sheet import values
from common.study import PhantomSpec, Study
from simulations.datasets import open_source
from simulations.datasets.source import Inside
from simulations.phantoms import PhantomSource

STUDY = Study.model_validate({"name": "s", "task": "binary", "classes": ["a", "b"]})
TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
NAME = TEXT.map(lambda name: name.replace("/", "_").replace("\\", "_").replace(":", "_").replace(".", "_"))
VALUE = TEXT.map(lambda text: text.replace("|", "_"))


@settings(max_examples=25, deadline=None)
@given(st.integers(10, 300), st.integers(0, 300), st.integers(0, 1000), st.floats(1.0, 5.0))
def test_a_smaller_phantom_set_is_the_start_of_a_larger_one(few: int, more: int, seed: int, mean: float) -> None:
    small = PhantomSource(PhantomSpec(images=few, images_per_patient=mean), seed).items
    large = PhantomSource(PhantomSpec(images=few + more, images_per_patient=mean), seed).items
    assert large[:few] == small


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 1.0), st.integers(0, 1 << 40), st.sampled_from([32, 48, 64]))
def test_truth_agrees_with_the_mask(difficulty: float, seed: int, size: int) -> None:
    source = PhantomSource(PhantomSpec(images=10, size=size, difficulty=difficulty), seed)
    for item in source.items:
        pixels, mask = source.read(item)
        assert mask.any() == (item.labels["label"] != ("normal",))
        assert pixels.min() < pixels.max()


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        NAME, st.tuples(st.lists(VALUE, max_size=3), st.sampled_from(["", "train", "val", "test"])), min_size=1
    ),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
)
def test_what_a_sheet_says_is_what_is_listed(
    rows: dict[str, tuple[list[str], str]], separator: str, mark: bool
) -> None:
    with tempfile.TemporaryDirectory() as place:
        sheet = Path(place) / "labels.csv"
        with sheet.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerow(["file", "label", "split"])
            writer.writerows([name, "|".join(cell), split] for name, (cell, split) in rows.items())
        items = open_source(STUDY, Path(place)).items
    assert [item.key for item in items] == list(rows)
    assert [item.labels["label"] for item in items] == [tuple(dict.fromkeys(cell)) for cell, _ in rows.values()]
    assert [item.split for item in items] == [split for _, split in rows.values()]
    assert all(item.patient == item.key and not item.patient_known for item in items)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_a_sheet_are_read_or_refused_in_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "labels.csv").write_bytes(b"file,label\n" + content)
        try:
            items = open_source(STUDY, Path(place)).items
        except DataError as error:
            assert "\n" not in str(error) and "\0" not in str(error)
        else:
            assert items


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "c:", "\\", "/"]), max_size=6).map("/".join))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    root = Path(tempfile.gettempdir()).resolve()
    try:
        key = Inside(root).key(name)
    except ValueError:
        return
    assert (root / key).resolve().is_relative_to(root)
    assert Inside(root).key(key) == key


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_values_are_stable_under_joining(cell: str) -> None:
    assert values("|".join(values(cell))) == values(cell)


def test_medmnist_round_trip_keeps_every_image() -> None:
    rng = np.random.default_rng(0)
    parts = {split: rng.integers(0, 256, (count, 9, 7), dtype=np.uint8) for split, count in (("train", 7), ("test", 4))}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "tiny.npz"
        labels = {f"{split}_labels": np.zeros((len(images), 1), np.uint8) for split, images in parts.items()}
        np.savez_compressed(
            path, allow_pickle=False, **{f"{split}_images": images for split, images in parts.items()}, **labels
        )
        source = open_source(STUDY, path)
        read = [source.read(item)[0] for item in source.items]
    assert np.array_equal(np.stack(read), np.concatenate([parts["train"], parts["test"]]))
