"""Prepared views out of real vaults."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.vault.keys import create_key_file, provider
from client.vault.store import Record, Vault
from client.vault.stored_view import StoredView
from client.vault.view import View, ViewCache, prepare_view, view_key
from common.errors import DataError, VaultError
from common.preprocess import prepare, prepare_mask
from common.study import Study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_key_file(tmp_path / "key")
    return tmp_path


def study(**changes: Any) -> Study:
    base = {"name": "view", "task": "binary", "classes": ["normal", "pneumonia"], "image": {"size": 16}}
    return Study.model_validate(base | changes)


def vault_of(folder: Path, records: list[Record], name: str = "vault.sqlite") -> Vault:
    vault = Vault.create(folder / name, provider(f"file:{folder / 'key'}", base=folder), synthetic=True, source="tests")
    vault.add(records)
    return vault


def image(seed: int, *shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, shape or (20, 24)).astype(dtype)


def records(count: int, split: str = "train", start: int = 0) -> list[Record]:
    return [
        Record(
            pixels=image(start + index),
            patient=f"patient-{(start + index) // 2}",
            labels={"label": (("normal", "pneumonia")[index % 2],)},
            split=split,
        )
        for index in range(count)
    ]


@pytest.fixture
def vault(folder: Path) -> Iterator[Vault]:
    with vault_of(folder, [*records(10), *records(4, "test", 100)]) as opened:
        yield opened


def test_a_view_holds_every_row_of_its_split_prepared_in_the_order_of_digests(vault: Vault) -> None:
    chosen = study(preprocess={"gaussian_sigma": 0.5, "equalise": "histogram"})
    view = prepare_view(vault, chosen, "train")
    rows = [row for row in vault.rows() if row.split == "train"]
    assert len(view) == len(rows) == 10
    assert [row.digest for row in rows] == sorted(row.digest for row in rows)
    for index, row in enumerate(rows):
        assert (view.images[index].numpy() == prepare(vault.read(row.id), chosen)).all()
        assert view.targets[index].tolist() == [float(row.labels["label"] == (name,)) for name in chosen.class_names]
    assert view.images.dtype == torch.uint8
    assert view.targets.dtype == torch.float32
    assert view.patients.dtype == torch.int64
    assert view.masked == 0
    assert view.masks is None
    assert view.bytes == 10 * (16 * 16 + 2 * 4 + 8)


def test_patients_are_numbered_by_first_appearance_and_keep_their_images_together(vault: Vault) -> None:
    view = prepare_view(vault, study(), "train")
    names = [row.patient for row in vault.rows() if row.split == "train"]
    numbers = view.patients.tolist()
    assert view.patient_count == len(set(names)) == 5
    assert list(dict.fromkeys(numbers)) == list(range(5))
    assert len(set(zip(names, numbers, strict=True))) == 5


def test_the_view_does_not_depend_on_the_order_or_names_of_import(folder: Path) -> None:
    first = records(8)
    renamed = [
        Record(pixels=r.pixels, patient=f"zz-{99 - int(r.patient[8:])}", labels=r.labels, split=r.split)
        for r in reversed(first)
    ]
    with vault_of(folder, first, "a.sqlite") as a, vault_of(folder, renamed, "b.sqlite") as b:
        one, two = prepare_view(a, study(), "train"), prepare_view(b, study(), "train")
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.targets, two.targets)
    assert torch.equal(one.patients, two.patients)


def test_splits_are_apart_and_none_means_all(vault: Vault) -> None:
    assert len(prepare_view(vault, study(), "test")) == 4
    assert len(prepare_view(vault, study(), None)) == 14


def test_an_empty_split_is_an_empty_view(vault: Vault) -> None:
    view = prepare_view(vault, study(), "val")
    assert view.images.shape == (0, 1, 16, 16)
    assert view.targets.shape == (0, 2)
    assert len(view) == view.patient_count == view.masked == view.bytes == 0
    assert len(View.concatenate([view, prepare_view(vault, study(), "train")])) == 10


def test_images_without_a_target_are_left_out_and_counted(folder: Path) -> None:
    unclear = [
        Record(pixels=image(50), patient="p", labels={"label": ("uncertain",)}, split="train"),
        Record(pixels=image(51), patient="q", labels={}, split="train"),
        Record(pixels=image(52), patient="r", labels={"label": ("uncertain",)}, split="val"),
    ]
    with vault_of(folder, [*records(4), *unclear]) as vault:
        view = prepare_view(vault, study(), "train")
    assert (len(view), view.masked) == (4, 2)
    assert not view.targets.isnan().any()
    assert view.patient_count == 2


def test_colour_depth_and_size_may_differ_between_rows(folder: Path) -> None:
    mixed = [
        Record(pixels=image(1, 9, 30, 3), patient="a", labels={"label": ("normal",)}, split="train"),
        Record(pixels=image(2, 40, 40, dtype="uint16"), patient="b", labels={"label": ("normal",)}, split="train"),
        Record(pixels=image(3, 1, 1), patient="c", labels={"label": ("normal",)}, split="train"),
    ]
    with vault_of(folder, mixed) as vault:
        assert prepare_view(vault, study(image={"size": 8, "channels": 3}), "train").images.shape == (3, 3, 8, 8)


def test_an_image_that_does_not_fit_the_study_is_named(folder: Path) -> None:
    ct = Record(pixels=image(1, dtype="int16"), patient="a", labels={"label": ("normal",)}, split="train")
    with vault_of(folder, [*records(2), ct]) as vault, pytest.raises(DataError, match=r"row 3: .*preprocess\.window"):
        prepare_view(vault, study(), "train")


def test_a_label_outside_the_classes_is_the_labels_error(vault: Vault) -> None:
    with pytest.raises(DataError, match="outside the study's classes"):
        prepare_view(vault, study(classes=["normal", "tuberculosis"]), "train")


def test_a_flipped_byte_passes_through_as_the_vaults_error(folder: Path) -> None:
    vault_of(folder, records(5)).close()
    with sqlite3.connect(folder / "vault.sqlite") as raw:
        (data,) = raw.execute("SELECT data FROM pixels WHERE id = 3").fetchone()
        raw.execute("UPDATE pixels SET data = ? WHERE id = 3", (bytes([data[0] ^ 1]) + data[1:],))
    raw.close()
    keys = provider(f"file:{folder / 'key'}", base=folder)
    with Vault.open(folder / "vault.sqlite", keys) as vault, pytest.raises(VaultError):
        prepare_view(vault, study(), "train")


def test_masks_travel_with_their_images_in_segmentation(folder: Path) -> None:
    chosen = study().model_copy(update={"task": "segmentation"})  # no segmentation model is installed here
    drawn = [
        Record(
            pixels=image(index),
            patient=str(index),
            labels={"label": ("pneumonia",)},
            split="train",
            mask=None if index == 0 else (image(index) > 100).astype(np.uint8),
        )
        for index in range(4)
    ]
    with vault_of(folder, drawn) as vault:
        view = prepare_view(vault, chosen, "train")
        rows = [row for row in vault.rows() if row.has_mask]
        assert (len(view), view.masked) == (3, 1)
        assert view.masks is not None
        for index, row in enumerate(rows):
            assert (view.masks[index].numpy() == prepare_mask(vault.read_mask(row.id), chosen)).all()
        both = View.concatenate([view, view])
        assert both.masks is not None
        assert both.masks.shape == (6, 16, 16)
        with pytest.raises(ValueError, match="with and without masks"):
            View.concatenate([view, prepare_view(vault, study(), "train")])


def test_floats_are_the_images_in_zero_to_one(vault: Vault) -> None:
    view = prepare_view(vault, study(), "train")
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(view.floats(rows), view.images[rows].float() / 255)
    assert view.floats(rows).dtype == torch.float32


def test_concatenation_keeps_patients_of_different_sites_apart(vault: Vault) -> None:
    train, test = prepare_view(vault, study(), "train"), prepare_view(vault, study(), "test")
    joined = View.concatenate([train, test, train])
    assert len(joined) == 24
    assert joined.patient_count == 2 * train.patient_count + test.patient_count == 12
    assert sorted(set(joined.patients.tolist())) == list(range(12))
    assert torch.equal(joined.images[10:14], test.images)
    assert torch.equal(joined.patients[10:14] - 5, test.patients)
    assert joined.bytes == 2 * train.bytes + test.bytes
    assert View.concatenate([train]) is train
    with pytest.raises(ValueError, match="no view"):
        View.concatenate([])


def test_moving_to_where_it_is_is_free(vault: Vault) -> None:
    view = prepare_view(vault, study(), "train")
    assert view.to("cpu") is view
    assert view.to("meta").device.type == "meta"
    assert len(view.to("meta")) == 10


def test_the_cache_returns_the_same_view_to_studies_that_differ_elsewhere(vault: Vault) -> None:
    cache = ViewCache(1 << 20)
    view = cache.get(vault, study(), "train")
    assert cache.get(vault, study(seed=7, training={"batch_size": 8}, name="other"), "train") is view
    assert cache.get(vault, study(), "test") is not view
    assert cache.get(vault, study(image={"size": 12}), "train").images.shape[-1] == 12
    assert len(cache) == 3
    cache.forget()
    assert cache.bytes == len(cache) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["pneumonia", "normal"]},
        {"classes": {"normal": ["normal"], "pneumonia": ["pneumonia", "bacteria"]}},
        {"task": "multilabel"},
        {"image": {"size": 16, "channels": 3}},
        {"image": {"size": 16, "channels": 3, "sequences": ["T1", "T2", "diffusion"]}},
        {"preprocess": {"equalise": "clahe"}},
        {"data": {"label_column": "finding"}},
        {"data": {"uncertain": ["maybe"]}},
    ],
)
def test_whatever_changes_a_view_changes_its_key(changes: dict[str, Any]) -> None:
    assert view_key(study(**changes)) != view_key(study())


def test_the_cache_keeps_to_its_cap_and_drops_the_least_recently_used(folder: Path) -> None:
    size = 4 * (16 * 16 + 2 * 4 + 8)
    cache = ViewCache(3 * size + 10)
    vaults = [vault_of(folder, records(4, start=10 * index), f"{index}.sqlite") for index in range(6)]
    views = [cache.get(vault, study(), "train") for vault in vaults[:3]]
    assert cache.bytes == 3 * size
    assert cache.get(vaults[0], study(), "train") is views[0]
    cache.get(vaults[3], study(), "train")  # drops 1, the least recently used
    assert cache.get(vaults[0], study(), "train") is views[0]
    assert cache.get(vaults[2], study(), "train") is views[2]
    assert cache.get(vaults[1], study(), "train") is not views[1]
    for _ in range(3):
        for vault in vaults:
            cache.get(vault, study(), "train")
            assert cache.bytes <= cache.cap_bytes
            assert len(cache) <= 3
    for vault in vaults:
        vault.close()


def test_a_view_larger_than_the_cap_is_stored_and_evicts_nothing(vault: Vault) -> None:
    cache = ViewCache(2000)
    small = cache.get(vault, study(image={"size": 8}), "train")
    assert cache.bytes == small.bytes
    large = cache.get(vault, study(), "train")
    assert isinstance(large, StoredView)
    assert torch.equal(large.floats(torch.arange(10)), prepare_view(vault, study(), "train").floats(torch.arange(10)))
    assert cache.get(vault, study(image={"size": 8}), "train") is small
    assert isinstance(ViewCache(0).get(vault, study(), "train"), StoredView)
    assert isinstance(ViewCache(0).get(vault, study(), "val"), View)  # nothing takes no room
    with pytest.raises(ValueError, match="cap_bytes"):
        ViewCache(-1)


def test_a_changed_vault_drops_its_older_views_at_once(vault: Vault) -> None:
    cache = ViewCache(1 << 20)
    cache.get(vault, study(), "train")
    cache.get(vault, study(), "test")
    vault.add(records(3, start=500))
    assert len(cache.get(vault, study(), "train")) == 13
    assert len(cache) == 1
    cache.forget("another vault")
    assert len(cache) == 1
    cache.forget(vault.id)
    assert len(cache) == 0


@pytest.mark.gpu
def test_the_view_moves_to_the_gpu_and_back(vault: Vault) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    cache = ViewCache(1 << 20)
    moved = cache.get(vault, study(), "train", "cuda:0")
    assert moved.device.type == "cuda"
    assert cache.get(vault, study(), "train", "cuda:0") is moved
    assert torch.equal(moved.to("cpu").images, prepare_view(vault, study(), "train").images)
