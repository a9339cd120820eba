"""The readiness report counts right, whatever is in the vault, and shows nothing of a patient."""

from __future__ import annotations

import itertools
import math
import random
import stat
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.ingest import importer, reasons
from client.ingest.kinds import ATTRIBUTES
from client.ingest.labels import LabelSheet
from client.ingest.quality import measure
from client.ingest.readers import agreements
from client.ingest.readiness import Readiness, examine, write_readiness
from client.ingest.readiness_columns import MEASURES
from client.ingest.readiness_counts import Busy, Count, Missing, Spread, examine_rows
from client.ingest.readiness_findings import confounded, findings
from client.ingest.readiness_looks import CHECKED, FARTHEST, PLAIN_PATIENTS, NearDuplicates, Pair, near_duplicates
from client.ingest.readiness_page import page
from client.vault.keys import KeyProvider, create_key_file, provider
from client.vault.records import Record, Row
from client.vault.store import Vault
from common.html import render
from tests.unit.page_laws import Outline, assert_sound

NOBODY = importer.Summary()
HOSTILE = "</td><script>alert(1)</script>\u202e\"'&"


def row(number: int, **changed: object) -> Row:
    usual: dict[str, object] = {
        "digest": f"{number:064x}",
        "patient": f"patient-{number}",
        "labels": {"label": ("normal",)},
        "split": "train",
        "attributes": {"modality": "DX"},
        "shape": (8, 8),
        "dtype": "uint8",
        "has_mask": False,
    }
    return Row(number, **{**usual, **changed})  # type: ignore[arg-type]


def counted(rows: Iterable[Row], read: Callable[[int], NDArray[Any]] = lambda number: np.eye(8)) -> Readiness:
    """All pictures are the same if compared by pixels."""
    return examine_rows(rows, read, synthetic=False, generation=2)


def told(found: Readiness, summary: importer.Summary = NOBODY, notes: Sequence[str] = ()) -> str:
    """All findings, one a line, with their tone."""
    return "\n".join(f"{one.tone}: {one.text}" for one in findings(found, summary, notes))


def shown(found: Readiness, summary: importer.Summary = NOBODY, notes: Sequence[str] = ()) -> Outline:
    return assert_sound(render(page(found, summary, notes)))


@pytest.fixture
def keys(tmp_path: Path) -> KeyProvider:
    create_key_file(tmp_path / "vault.key")
    return provider("file:vault.key", base=tmp_path)


Make = Callable[..., Vault]


@pytest.fixture
def vault(tmp_path: Path, keys: KeyProvider) -> Iterator[Make]:
    made: list[Vault] = []

    def make(records: Iterable[Record] = (), *, synthetic: bool = False) -> Vault:
        made.append(Vault.create(tmp_path / f"{len(made)}.sqlite", keys, synthetic=synthetic, source="site a"))
        made[-1].add(records)
        return made[-1]

    yield make
    for one in made:
        one.close()


def record(number: int) -> Record:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32), dtype=np.uint8)
    look, measures = measure(pixels)
    return Record(
        pixels,
        patient=f"secret-patient-{number // 2}",
        labels={"label": (("normal", "covid")[number % 2],), "label:reader_1": ("a",), "label:reader_2": ("a",)},
        split=("train", "val", "test")[number // 2 % 3],
        attributes={"sex": "F", "modality": "DX", "device": "GE Definium"},
        keys={"look": look, "file": "f" * 32, "source": "5" * 32},
        measures=measures,
    )


# --- counts ------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["", "a", "b", "c"])


@st.composite
def vaults(draw: st.DrawFn) -> list[Row]:
    return [
        row(
            number,
            patient=draw(st.sampled_from(["p", "q", "r", "s"])),
            labels={
                column: tuple(draw(st.lists(st.sampled_from("xyz"), max_size=2, unique=True)))
                for column in draw(st.sets(st.sampled_from(["label", "finding", "label:one", "label:two"])))
            },
            split=draw(st.sampled_from(["", "train", "val", "test"])),
            attributes={
                name: value
                for name in ("sex", "age", "device", "view", "modality", "sequence")
                if (value := draw(WORDS))
            },
            shape=draw(st.sampled_from([(4, 6), (9, 3), (5, 5, 3)])),
            keys={"look": f"{draw(st.integers(0, 40)):016x}", **draw(st.sampled_from([{}, {"anonymous": "yes"}]))},
            measures={name: draw(st.floats(0, 1)) for name in MEASURES},
        )
        for number in range(1, draw(st.integers(0, 10)) + 1)
    ]


@given(vaults())
def test_counts_add_up(rows: list[Row]) -> None:
    found = counted(rows)
    assert found.images == len(rows)
    assert found.patients == len({one.patient for one in rows})
    assert found.anonymous == sum("anonymous" in one.keys for one in rows)
    assert sum(found.forms.values()) == len(rows)
    for counts in found.groups.values():
        assert sum(count.images for count in counts.values()) == len(rows)
        assert all(0 < count.patients <= min(count.images, found.patients) for count in counts.values())
    for column, classes in found.classes.items():
        for value, count in classes.items():
            having = [
                one for one in rows if (value in one.labels.get(column, ()) if value else not one.labels.get(column))
            ]
            assert count == (len(having), len({one.patient for one in having}))
        for side, crossed in found.crossed.items():
            for (value, other), count in crossed[column].items():
                having = [
                    one
                    for one in rows
                    if value in one.labels.get(column, ())
                    and other == (one.split if side == "split" else one.attributes.get(side))
                ]
                assert count == (len(having), len({one.patient for one in having}))
    labelled = [one for one in rows if any(one.labels.get(column) for column in ("label", "finding"))]
    assert found.labelled == (len(labelled), len({one.patient for one in labelled}))
    assert found.agreements == agreements([one.labels for one in rows])


@given(vaults(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[Row], chance: random.Random) -> None:
    shuffled = chance.sample(rows, len(rows))
    assert counted(shuffled) == counted(rows)
    assert findings(counted(shuffled), NOBODY, ()) == findings(counted(rows), NOBODY, ())


@given(vaults())
def test_every_page_is_sound(rows: list[Row]) -> None:
    shown(counted(rows))


def test_attributes_are_missed_only_where_their_modality_has_them() -> None:
    rows = [row(1, attributes={"modality": "MR", "sex": "F"}), row(2, attributes={"modality": "DX", "kvp": "90"})]
    found = counted([*rows, row(3, attributes={})]).missing
    assert found["modality"] == Missing(1, 3)
    assert found["sex"] == Missing(2, 3)
    assert found["sequence"] == Missing(1, 1)
    assert found["kvp"] == Missing(0, 1)
    assert set(found) < set(ATTRIBUTES)


def test_sizes_and_the_patients_with_very_many_images() -> None:
    rows = [row(n, shape=(n, 2 * n)) for n in range(1, 12)] + [row(n, patient="busy") for n in range(12, 42)]
    found = counted(rows)
    assert (found.shorter, found.longer) == (Spread(1, 8, 11), Spread(2, 8, 22))
    assert found.per_patient == Spread(1, 1, 30)
    assert found.busy == (Busy(12, 30),)
    assert "unsure: 1 patient with very many images, 73% of all" in told(found)


# --- near duplicates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """An image as a near duplicate is told by: its hash, patient, number, brightness and sharpness."""

    look: int
    patient: int
    id: int
    mean: float = 0.5
    sharpness: float = 0.03


def near(images: Sequence[Seen]) -> NearDuplicates:
    return near_duplicates(
        np.array([one.look for one in images], np.uint64),
        np.array([one.patient for one in images], np.int64),
        np.array([one.id for one in images], np.int64),
        {"mean": np.array([one.mean for one in images]), "sharpness": np.array([one.sharpness for one in images])},
    )


def alike(one: Seen, other: Seen) -> bool:
    return (
        (one.look ^ other.look).bit_count() <= 3
        and abs(one.mean / 0.005 - other.mean / 0.005) <= 1
        and abs(math.log2(one.sharpness) - math.log2(other.sharpness)) <= 1
    )


@st.composite
def pictures(draw: st.DrawFn) -> list[Seen]:
    """Random hashes with neighbours planted 0 to 5 bits away, of ten patients; no patient has a hash twice."""
    bases = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12))
    looks = list(bases)
    for base in draw(st.lists(st.sampled_from(bases), max_size=18)):
        looks.append(base ^ sum(1 << bit for bit in draw(st.sets(st.integers(0, 63), max_size=5))))
    ids = draw(st.permutations(range(1, len(looks) + 1)))
    found = {}
    for look, number in zip(looks, ids, strict=True):
        patient, mean = draw(st.integers(0, 9)), draw(st.sampled_from([0.5, 0.503, 0.507, 0.6]))
        found[look, patient] = Seen(look, patient, number, mean, draw(st.sampled_from([0.03, 0.04, 0.1])))
    return list(found.values())


@given(pictures())
def test_near_duplicates_are_those_of_comparing_all_with_all(images: list[Seen]) -> None:
    found = near(images)
    pairs = [(one, other) for one, other in itertools.combinations(images, 2) if alike(one, other)]
    expected = sorted(
        ((one.look ^ other.look).bit_count(), *sorted((one.id, other.id)))
        for one, other in pairs
        if one.patient != other.patient
    )
    assert (found.different, found.same) == (len(expected), len(pairs) - len(expected))
    assert (found.plain, found.complete) == (0, True)
    assert [(pair.bits, pair.one, pair.other) for pair in found.pairs] == expected[:CHECKED]


def test_many_random_looks_with_planted_neighbours_are_all_found() -> None:
    looks = np.random.default_rng(5).integers(0, 2**64, 20_000, dtype=np.uint64)
    planted = looks[:300].copy()
    for at in range(300):
        for bit in np.random.default_rng(at).choice(64, at % 4, replace=False):
            planted[at] ^= np.uint64(1) << np.uint64(bit)
    both = np.concatenate([looks, planted])
    found = near_duplicates(both, np.arange(len(both)), np.arange(len(both)), {})
    assert (found.different, found.same, found.complete) == (300, 0, True)
    assert found.pairs[:2] == (Pair(0, 20_000, 0), Pair(4, 20_004, 0))


def test_one_picture_saved_twice_is_found_and_another_of_the_same_kind_is_not() -> None:
    def body(seed: int) -> NDArray[np.uint8]:
        noise = np.random.default_rng(seed).normal(0, 1, (8, 9)).astype(np.float32)
        return np.clip(110 + 40 * cv2.resize(noise, (320, 320), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)

    pixels = {number: body(number) for number in range(1, 31)}
    pixels[31] = np.asarray(cv2.resize(pixels[4], (224, 224), interpolation=cv2.INTER_AREA), np.uint8)
    pixels[32] = body(99)
    rows = []
    for number, array in pixels.items():
        look, measures = measure(array if number < 32 else pixels[7])  # one hash and other pixels
        rows.append(row(number, keys={"look": look}, measures=measures))
    found = counted(rows, pixels.__getitem__)
    assert {(pair.one, pair.other) for pair in found.near.pairs} == {(4, 31), (7, 32)}
    assert [(pair.one, pair.other) for pair in found.twins] == [(4, 31)]
    assert found.twins[0].correlation == pytest.approx(1.0, abs=0.01)
    assert "bad: 1 pair of images of different patients looks nearly the same" in told(found)
    assert "#4 #31" in shown(found).text


def test_a_look_of_very_many_patients_is_counted_and_not_compared() -> None:
    blank, numbers = np.zeros(50_000, np.uint64), np.arange(50_000)
    found = near_duplicates(blank, numbers, numbers, {})
    assert (found.different, found.plain, found.pairs) == (0, 50_000, ())
    few = near_duplicates(blank[:PLAIN_PATIENTS], numbers[:PLAIN_PATIENTS], numbers[:PLAIN_PATIENTS], {})
    assert (few.different, few.plain) == (PLAIN_PATIENTS * (PLAIN_PATIENTS - 1) // 2, 0)
    one_patient = near_duplicates(blank, np.zeros(50_000, np.int64), numbers, {})
    assert (one_patient.same, one_patient.different) == (50_000 * 49_999 // 2, 0)
    said = counted(row(n, keys={"look": "0" * 16}) for n in range(1, 40))
    assert "unsure: 39 images look the same as images of more than 20 patients and were not compared" in told(said)


def test_looks_that_crowd_together_take_bounded_time_and_the_report_says_so() -> None:
    """Only the lower 15 bits differ: 32,768 looks, of which each has hundreds of neighbours."""
    numbers = np.arange(2**15)
    start = time.process_time()
    found = near_duplicates(numbers.astype(np.uint64), numbers, numbers, {})
    assert time.process_time() - start < 10.0
    assert found.different > FARTHEST
    assert not found.complete
    assert len(found.pairs) == CHECKED
    crowded = counted(row(n, keys={"look": f"{n:016x}"}) for n in range(1, 3000))
    assert "bad: at least" in told(crowded)
    assert "Many images here look alike" in shown(crowded).text


# --- image quality, readers, confounding --------------------------------------------------------------


def test_an_odd_image_is_found_within_its_modality() -> None:
    chance = np.random.default_rng(0)

    def measures(mean: float) -> dict[str, float]:
        return {"mean": mean, "spread": 0.2, "dark": 0.0, "bright": 0.0, "sharpness": 0.03}

    rows = [row(n, measures=measures(0.5 + chance.normal(0, 0.02))) for n in range(1, 101)]
    rows += [row(n, attributes={"modality": "CT"}, measures=measures(0.1)) for n in range(101, 201)]
    rows.append(row(201, measures=measures(0.1)))
    rows.append(row(202, measures={**measures(0.5), "sharpness": 0.001}))
    rows.append(row(203, attributes={"modality": "MR"}, measures=measures(0.9)))
    found = counted(rows)
    assert found.odd == 2
    assert [(one.image, one.measure, one.score < 0) for one in found.outliers] == [
        (202, "sharpness", True),
        (201, "mean", True),
    ]
    assert "unsure: 2 images are unusually dark" in told(found)
    assert "#202 DX blurred sharpness 0.001 0.030" in shown(found).text


def test_readers_agreement_is_shown_with_its_table() -> None:
    pairs = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15 + [("a", "")] * 3
    rows = [
        row(n, labels={"label": ("a",), "label:reader_1": (one,), "label:reader_2": (other,) if other else ()})
        for n, (one, other) in enumerate(pairs, start=1)
    ]
    found = counted(rows)
    assert found.agreements[0].kappa == pytest.approx(0.4)
    assert found.agreements[0].table == ((20, 5), (10, 15))
    text = shown(found).text
    assert "0.40 (95% interval 0.15 to 0.65)" in text
    assert "reader_1 (rows) and reader_2 (columns)" in text
    assert "agree badly (κ 0.40)" in told(found)


def test_a_class_on_one_device_is_flagged_and_a_merely_frequent_device_is_not() -> None:
    def crossed(**images: int) -> dict[tuple[str, str], Count]:
        return {(key[0], key[1]): Count(count, count) for key, count in images.items()}

    assert confounded(crossed(aX=100, bX=2, bY=98)) == [("a", "X", (100, 100)), ("b", "Y", (98, 100))]
    assert confounded(crossed(aX=500, aY=10, bX=200, bY=100)) == []
    assert confounded(crossed(aX=100, bX=50, bY=40)) == [("b", "Y", (40, 40))]
    assert confounded(crossed(aX=97, aY=3, bX=95, bY=5)) == []
    assert confounded(crossed(aX=5, bY=5)) == []
    assert confounded({}) == []
    rows = [row(n, labels={"label": ("ab"[n % 2],)}, attributes={"view": ("AP", "PA")[n % 2]}) for n in range(100)]
    assert "bad: “label” and view go together: a with AP (100%), b with PA (100%)" in told(counted(rows))


# --- findings ----------------------------------------------------------------------------------------


def test_small_classes_imbalance_and_splits_are_found() -> None:
    rows = [row(n, split=("train", "val", "test")[n % 3]) for n in range(300)]
    rows += [row(300 + n, labels={"label": ("rare",)}, split="train" if n else "test") for n in range(12)]
    text = told(counted(rows))
    assert "unsure: “label”: fewer than 30 patients of rare (12)" in text
    assert "unsure: “label”: strong imbalance, 25 patients" in text
    assert "bad: “label”: no patient of rare in val" in text
    assert "unsure: “label”: fewer than 10 patients of rare in test (1)" in text
    assert text.startswith("bad:")
    assert "no image is in val or test" in told(counted([row(1)]))
    assert "1 patient with images in two splits" in told(
        counted([row(1, patient="p"), row(2, patient="p", split="val")])
    )
    assert "1 image in no split" in told(counted([row(1), row(2, split="")]))
    assert "no image is in" not in told(counted([row(1, split=""), row(2, split="")]))


def test_a_good_vault_has_nothing_to_look_at() -> None:
    rows = [
        row(
            n,
            labels={"label": ("ab"[n % 2],)},
            split=("train", "val", "test")[n % 3],
            attributes={"modality": "DX", "sex": "F", "age": "50-59", "device": "GE X", "view": "PA"},
        )
        for n in range(120)
    ]
    found = counted(rows)
    assert told(found) == ""
    assert "120 images of 120 patients are ready; nothing stands out" in shown(found).text


def test_an_import_tells_what_it_refused_and_warns_of_privacy() -> None:
    summary = importer.Summary(files=9, images=1)
    summary.rejected += [("0123456789ab", reasons.TIMEOUT)] * 2 + [("0123456789ab", importer.SAME_FILE)]
    summary.warnings.update({"text-in-pixels": 3, "never-heard-of": 1})
    text = told(counted([row(1)]), summary, ["2 rows met no image"])
    assert "bad: 2 of the files and images of this import were refused" in text
    assert "bad: 3 files of this import seem to have text in their pixels" in text
    assert "unsure: the label sheet: 2 rows met no image" in text
    said = shown(counted([row(1)]), summary, ["sheet-of-dr-jones.xlsx: 2 rows met no image (lines 3, 4)"])
    assert reasons.TIMEOUT.remedy in said.text
    assert "Exact, left out of this import 1" in said.text
    assert "never-heard-of" in said.text
    assert "2 rows met no image (lines 3, 4)" in said.text
    assert "jones" not in said.text
    assert "0123456789ab" not in said.text


def test_each_unlabelled_image_is_counted_and_a_lone_reading_is_no_label() -> None:
    rows = [row(1, labels={}), row(2, labels={"label": (), "label:reader_1": ("a",)}), row(3)]
    assert counted(rows).labelled == Count(1, 1)
    assert "unsure: 2 images of 3 have no label" in told(counted(rows))
    assert "bad: 1 image of 1 has no label" in told(counted(rows[:1]))
    assert "No image is ready: none of 1 has a label" in shown(counted(rows[:1])).text


# --- the page and the vault ---------------------------------------------------------------------------


def test_an_empty_vault_has_a_report(vault: Make, tmp_path: Path) -> None:
    write_readiness(tmp_path / "readiness.html", vault(), NOBODY, None)
    outline = assert_sound((tmp_path / "readiness.html").read_text())
    assert "The vault is empty" in outline.text


def test_the_report_of_a_vault_is_private_and_names_nobody(vault: Make, tmp_path: Path) -> None:
    (tmp_path / "sheet-of-dr-jones.csv").write_text("file,patient,label\nnobody.png,secret-patient-9,normal\n")
    sheet = LabelSheet.load(tmp_path / "sheet-of-dr-jones.csv")
    target = tmp_path / "readiness.html"
    target.write_text("an older one")
    write_readiness(target, vault(map(record, range(30))), NOBODY, sheet)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    source = target.read_text()
    text = assert_sound(source).text
    assert "30 images of 15 patients are ready" in text
    assert "1 row met no image" in text
    for private in ("secret-patient", "jones", "nobody.png", "f" * 32, "5" * 32, "site a"):
        assert private not in source
    assert "Synthetic" not in text
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_idle_rows_of_a_sheet_are_not_told_after_a_second_import(vault: Make, tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_text("file,label\nnobody.png,normal\n")
    sheet = LabelSheet.load(tmp_path / "sheet.csv")
    write_readiness(tmp_path / "r.html", vault(map(record, range(3))), importer.Summary(known=1), sheet)
    assert "met no image" not in (tmp_path / "r.html").read_text()


def test_a_synthetic_vault_says_so_first(vault: Make, tmp_path: Path) -> None:
    write_readiness(tmp_path / "r.html", vault([record(1)], synthetic=True), NOBODY, None)
    outline = assert_sound((tmp_path / "r.html").read_text())
    assert outline.text.split("Data readiness (synthetic data)")[1].strip().startswith("Synthetic data")


def test_hostile_words_are_escaped() -> None:
    rows = [
        row(
            n,
            labels={HOSTILE: (HOSTILE, "b" * 5000), f"label:{HOSTILE}": (HOSTILE,), "label:x": (HOSTILE + "y",)},
            attributes={
                name: HOSTILE + str(n % 3) for name in ("sex", "age", "device", "view", "modality", "sequence")
            },
            patient=HOSTILE,
            measures=dict.fromkeys(MEASURES, 0.1 if n else 0.9),
        )
        for n in range(120)
    ]
    source = render(page(counted(rows), NOBODY, [f"{HOSTILE}: 3 rows met no image", HOSTILE]))
    outline = assert_sound(source)
    assert "<script" not in source
    assert "\u202e" not in source
    assert "b" * 100 not in source
    assert "alert(1)" in outline.text


def test_a_hundred_thousand_kinds_of_everything_make_a_short_page() -> None:
    rows = (
        row(n, labels={"label": (f"class {n}",)}, attributes={"device": f"device {n}", "age": f"{n}"})
        for n in range(5000)
    )
    source = render(page(counted(rows), NOBODY, ()))
    assert_sound(source)
    assert len(source) < 200_000


def test_twenty_thousand_images_take_little_time_and_memory(vault: Make) -> None:
    pixels = np.zeros((2, 2), np.uint8)

    def records() -> Iterator[Record]:
        for number in range(20_000):
            yield Record(
                pixels,
                patient=f"{number // 2:032x}",
                labels={"label": (("normal", "covid")[number % 2],)},
                split=("train", "val", "test")[number // 2 % 3],
                attributes={"sex": "F", "modality": "DX", "device": f"GE {number % 5}", "age": "50-59", "view": "PA"},
                keys={"look": f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}", "file": f"{number:032x}"},
                measures=dict.fromkeys(MEASURES, number % 97 / 97),
                digest=f"{number:064x}",
            )

    filled = vault(records())
    for _ in filled.each():  # the vault keeps the form of every image that it has met
        pass
    start = time.process_time()
    found = examine(filled)
    assert time.process_time() - start < 5.0
    assert (found.images, found.patients) == (20_000, 10_000)


def test_memory_grows_by_numbers_only() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        counted(
            row(n, keys={"look": f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}", "file": f"{n:032x}"}) for n in range(count)
        )
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert (peak(8000) - peak(4000)) / 4000 < 600  # bytes an image; a row has some 2,500
