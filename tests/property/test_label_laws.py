"""Laws of label sheets, opt-out lists and readers' agreement, over generated tables."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from client.ingest.boxes import Box, BoxSheet, fitted, mask_from
from client.ingest.consent import OptOut
from client.ingest.kinds import Identity, Picture, Refused
from client.ingest.labels import KEYS, Labelled, LabelSheet
from client.ingest.readers import Readers, agreement, settle
from common.errors import DataError
from common.sheet import binned_age

Row = dict[str, str]
Answer = Labelled | str | None

NAMES = st.sampled_from(["", "1.png", "2.png", "a/1.png", "a/2.png", "b/1.png", "c/a/1.png"])
ROWS = st.fixed_dictionaries(
    {
        "sop": st.sampled_from(["", "", "1.2", "1.3"]),
        "file": NAMES,
        "accession": st.sampled_from(["", "A", "B"]),
        "patient": st.sampled_from(["", "P", "Q", "R"]),
        "label": st.sampled_from(["x", "y"]),
        "split": st.sampled_from(["", "", "", "test"]),
    }
).filter(lambda row: any(row[key] for key in KEYS))
IMAGES = st.tuples(
    NAMES,
    st.builds(
        Identity,
        sop=st.sampled_from(["", "1.2", "1.3", "1.4"]),
        accession=st.sampled_from(["", "A", "B", "C"]),
        patient=st.sampled_from(["", "P", "Q", "S"]),
    ),
)


@contextmanager
def written(rows: Sequence[Row]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "sheet.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        yield path


def loaded(rows: Sequence[Row]) -> LabelSheet | None:
    with written(rows) as path:
        try:
            return LabelSheet.load(path)
        except DataError:
            return None


def asked(sheet: LabelSheet, file: str, identity: Identity) -> Answer:
    try:
        return sheet.lookup(file, identity)
    except Refused as refusal:
        return refusal.reason.code


def naive(rows: Sequence[Row], file: str, identity: Identity) -> Answer:
    """What :class:`LabelSheet` promises, by trying every row for one first image."""

    def ends_alike(one: str, two: str) -> bool:
        steps = [PurePosixPath(name).parts for name in (one, two)]
        shared = min(map(len, steps))
        return steps[0][-shared:] == steps[1][-shared:]

    exact = any(row["file"] == file for row in rows)
    alike = {row["file"] for row in rows if row["file"].split("/")[-1] == file.split("/")[-1]}

    def means_file(row: Row) -> bool:
        if not file or not row["file"]:
            return False
        return row["file"] == file if exact else alike == {row["file"]} and ends_alike(row["file"], file)

    own = {"sop": identity.sop, "accession": identity.accession, "patient": identity.patient}

    def finds(row: Row, key: str) -> bool:
        if key == "file":
            return means_file(row)
        wider = {"sop": (), "accession": ("sop", "file"), "patient": ("sop", "file", "accession")}[key]
        return bool(own[key]) and own[key] == row[key] and not any(row[other] for other in wider)

    found = [row for key in KEYS for row in rows if finds(row, key)]
    if not found:
        return None
    row = found[0]
    if any(own[key] and row[key] and own[key] != row[key] for key in own):
        return "label-mismatch"
    if file and row["file"] and file.split("/")[-1] != row["file"].split("/")[-1]:
        return "label-mismatch"
    said = [Labelled({"label": (row["label"],)}, row["patient"], row["split"]) for row in found]
    if any((row["sop"] or row["file"]) and other != said[0] for row, other in zip(found, said, strict=True)):
        return "label-conflict"
    return said[0]


@given(st.lists(ROWS, min_size=1, max_size=6), st.lists(IMAGES, min_size=1, max_size=8))
def test_a_lookup_finds_what_trying_every_row_finds(rows: list[Row], images: list[tuple[str, Identity]]) -> None:
    assume(loaded(rows) is not None)
    for file, identity in images:
        fresh = loaded(rows)  # a sheet remembers which image came by which name; that is a law of its own
        assert fresh is not None
        assert asked(fresh, file, identity) == naive(rows, file, identity)


@given(st.lists(ROWS, min_size=1, max_size=6).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))),
       st.lists(IMAGES, max_size=8))  # fmt: skip
def test_the_order_of_rows_does_not_matter(
    rows: tuple[list[Row], list[Row]], images: list[tuple[str, Identity]]
) -> None:
    one, two = map(loaded, rows)
    assert (one is None) == (two is None)
    if one is None or two is None:
        return
    assert [asked(one, *image) for image in images] == [asked(two, *image) for image in images]
    assert (len(one), one.merged, one.unused().rows) == (len(two), two.merged, two.unused().rows)


@given(st.lists(ROWS, min_size=1, max_size=6), st.data())
def test_repeating_rows_changes_nothing_but_the_count(rows: list[Row], data: st.DataObject) -> None:
    again = rows + data.draw(st.lists(st.sampled_from(rows), max_size=4))
    one, two = loaded(rows), loaded(again)
    assert (one is None) == (two is None)
    if one is not None and two is not None:
        assert len(one) == len(two)
        assert two.merged - one.merged == len(again) - len(rows)
        assert two.unused().rows == len(again)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "any"
        for head in (b"", b"file,label\n", b"file,label,x,y,width,height\n", b"PK\x03\x04"):
            path.write_bytes(head + content)
            for load in (LabelSheet.load, OptOut.load, BoxSheet.load):
                try:
                    load(path)
                except DataError as error:
                    assert "\n" not in str(error) and len(str(error)) < 1000


@given(st.sets(st.text("aB09-_ ", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=1), st.text("aB09-_ "))
def test_a_list_withholds_its_patients_and_asks_for_nothing_else(ids: set[str], other: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "list.txt"
        path.write_text("\n".join(sorted(ids)), encoding="utf-8")
        listed = OptOut.load(path)
    assert all(listed.withheld(Identity(patient=name)) and listed.withheld(Identity(), name) for name in ids)
    plain = {name.lower().lstrip("0") for name in ids}
    if other.strip().lower().lstrip("0") not in plain:
        assert not listed.withheld(Identity(patient=other), "")


# --- readers ----------------------------------------------------------------------------------------------------------

GRADES = st.sampled_from(["1", "2", "3", "7"])
PAIRS = st.lists(st.tuples(GRADES, GRADES), min_size=1, max_size=40)
WEIGHTS = st.sampled_from(["nominal", "linear", "quadratic"])


@given(PAIRS, WEIGHTS)
def test_kappa_is_the_same_whoever_is_called_first(pairs: list[tuple[str, str]], weights: str) -> None:
    one = agreement(pairs, weights=weights)  # type: ignore[arg-type]
    two = agreement([(b, a) for a, b in pairs], weights=weights)  # type: ignore[arg-type]
    assert two.kappa == pytest.approx(one.kappa, abs=1e-12)
    assert two.standard_error == pytest.approx(one.standard_error, abs=1e-7)
    assert np.array_equal(np.transpose(one.table), two.table)


@given(PAIRS, WEIGHTS)
def test_kappa_is_one_where_and_only_where_readers_always_agree(pairs: list[tuple[str, str]], weights: str) -> None:
    found = agreement(pairs, weights=weights)  # type: ignore[arg-type]
    classes = {name for pair in pairs for name in pair}
    assert (found.kappa is None) == (len(classes) == 1) == bool(found.reason)
    if found.kappa is None or found.low is None or found.high is None:
        return
    assert (found.kappa > 1 - 1e-12) == all(a == b for a, b in pairs)
    assert -1 - 1e-12 <= found.low <= found.kappa + 1e-12 and found.kappa - 1e-12 <= found.high <= 1


@given(PAIRS, st.permutations(["w", "x", "y", "z"]))
def test_kappa_knows_no_names_of_classes_nor_order_of_images(pairs: list[tuple[str, str]], names: list[str]) -> None:
    renamed = dict(zip("1237", names, strict=True))
    one = agreement(pairs)
    two = agreement([(renamed[a], renamed[b]) for a, b in reversed(pairs)])
    assert two.kappa == pytest.approx(one.kappa, abs=1e-12)
    assert two.standard_error == pytest.approx(one.standard_error, abs=1e-7)
    assert two.agreed == one.agreed


READING = st.lists(st.sampled_from("abc"), max_size=2, unique=True).map(tuple)


@given(st.lists(READING, min_size=2, max_size=4), READING)
def test_a_label_is_the_consensus_or_what_all_said(readings: list[tuple[str, ...]], consensus: tuple[str, ...]) -> None:
    label = settle(readings, consensus)
    said = {frozenset(reading) for reading in readings if reading}
    if consensus:
        assert label == consensus
    elif label is None:
        assert len(said) > 1
    else:
        assert said <= {frozenset(label)}
    backwards = settle(readings[::-1], consensus)
    assert (backwards is None) == (label is None) and set(backwards or ()) == set(label or ())


def test_default_readers_are_those_in_the_documents() -> None:
    assert Readers() == Readers(("reader_1", "reader_2"), "consensus", "refuse")


# --- boxes and ages ---------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.25, 0.5, 1.0]),
    *[st.floats(0, 1, exclude_max=True) for _ in range(4)],
)  # fmt: skip
def test_a_box_inside_an_image_stays_inside_and_keeps_its_place(
    rows: int, columns: int, scale: float, x: float, y: float, w: float, h: float
) -> None:
    wide, high = columns / scale, rows / scale
    box = Box("m", x * wide, y * high, max(w * (1 - x) * wide, 0.01), max(h * (1 - y) * high, 0.01))
    picture = Picture(np.zeros((rows, columns), np.uint8), scale=(scale, scale))
    (found,) = fitted([box], picture)
    assert found.x >= 0 and found.x + found.width <= columns + 1e-9
    assert found.y >= 0 and found.y + found.height <= rows + 1e-9
    assert found.x == pytest.approx(box.x * scale) and found.y == pytest.approx(box.y * scale)
    mask = mask_from([found], (rows, columns))
    centres = np.arange(rows)[:, None] + 0.5, np.arange(columns)[None, :] + 0.5
    inside = (found.y <= centres[0]) & (centres[0] < found.y + found.height) & (found.x <= centres[1])
    assert np.array_equal(mask, inside & (centres[1] < found.x + found.width))


@given(st.integers(0, 120))
def test_a_binned_age_holds_the_age_and_stays_as_it_is(age: int) -> None:
    decade = binned_age(str(age))
    low, _, high = decade.replace("90+", "90-120").partition("-")
    assert int(low) <= age <= int(high)
    assert binned_age(decade) == binned_age(f"{age:03d}Y") == decade
