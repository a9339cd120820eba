"""Existing vaults as a source: a run, a folder of sites, one site."""

from __future__ import annotations

import gc
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from client.config import SiteConfig
from client.vault.keys import create_key_file, provider
from client.vault.store import Record, Vault
from common.errors import DataError, KeyUnavailable, VaultError
from common.randomness import generator
from common.study import Study
from simulations.datasets import open_source, vaults

STUDY = Study.model_validate({"name": "s", "task": "binary", "classes": ["normal", "pneumonia"]})


def pixels_of(alias: str, number: int) -> np.ndarray:
    return generator("vault source test", alias, number).integers(0, 256, (12, 10), dtype=np.uint8)


def make_site(home: Path, alias: str, *, count: int = 4, synthetic: bool = True, source: str = "somewhere") -> Path:
    home.mkdir(parents=True)
    SiteConfig(alias=alias).save(home)
    create_key_file(home / "vault.key")
    with Vault.create(
        home / "vault.sqlite", provider("file:vault.key", base=home), synthetic=synthetic, source=source
    ) as vault:
        vault.add(
            Record(
                pixels_of(alias, number),
                f"{number // 2}",
                {"label": ("pneumonia" if number % 2 else "normal",)},
                ("train", "val", "test")[number % 3],
                {"sex": "F", "site": "as the sheet said"},
                (pixels_of(alias, number) > 99).astype(np.uint8) if number == 1 else None,
            )
            for number in range(count)
        )
    return home


def make_run(folder: Path, **sites: bool) -> Path:
    for alias, synthetic in sites.items():
        make_site(folder / "sites" / alias, alias, synthetic=synthetic)
    pooled = folder / "sites" / "pooled"
    pooled.mkdir(parents=True)
    SiteConfig(alias="pooled", members=tuple(f"../{alias}" for alias in sites)).save(pooled)
    return folder


def test_a_run_gives_back_every_image_of_its_hospitals_and_skips_the_pooled_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", north=True, south=True)
    source = open_source(STUDY, run)
    assert source.synthetic is True
    assert Counter(item.attributes["site"] for item in source.items) == {"north": 4, "south": 4}
    assert len({item.key for item in source.items}) == 8
    assert {item.patient for item in source.items} == {"north/0", "north/1", "south/0", "south/1"}
    assert {item.split for item in source.items} == {"train", "val", "test"}
    assert all(item.attributes["sex"] == "F" for item in source.items)
    for item in source.items:
        alias, row = item.key.split("/")
        pixels, mask = source.read(item)
        assert np.array_equal(pixels, pixels_of(alias, int(row) - 1))
        assert item.labels == {"label": ("pneumonia" if int(row) % 2 == 0 else "normal",)}
        if row == "2":
            assert np.array_equal(mask, (pixels > 99).astype(np.uint8))
        else:
            assert mask is None


def test_a_folder_of_sites_and_one_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_site(tmp_path / "all" / "a", "north", synthetic=False)
    make_site(tmp_path / "all" / "b", "south", synthetic=False)
    (tmp_path / "all" / "notes").mkdir()
    assert {item.attributes["site"] for item in open_source(STUDY, tmp_path / "all").items} == {"north", "south"}
    one = open_source(STUDY, home)
    assert one.synthetic is False
    assert one.name == "somewhere, from the vaults of a"
    monkeypatch.chdir(home)
    assert open_source(STUDY, Path()).name == "somewhere, from the vaults of a"


def test_a_label_sheet_beside_sites_is_meant(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", north=True)
    (run / "labels.csv").write_text("file,label\na.png,normal\n")
    assert open_source(STUDY, run).name == "folder run"


def test_the_name_holds_no_path_and_does_not_grow_with_every_replay(tmp_path: Path) -> None:
    sites = tmp_path / "again"
    for number, source in enumerate(["phantoms (synthetic)", "phantoms (synthetic), from the vaults of first"]):
        make_site(sites / f"s{number}", f"s{number}", source=source)
    assert open_source(STUDY, sites).name == "phantoms (synthetic), from the vaults of again"
    for number in (2, 3):
        make_site(sites / f"s{number}", f"s{number}", source=f"folder {number}")
    assert open_source(STUDY, sites).name == "phantoms (synthetic) + folder 2 and 1 more, from the vaults of again"


def test_no_source_is_named_by_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names go into reports and into vaults, which others read."""
    deep = tmp_path / "home" / "someone"
    folder, sites = deep / "pictures", deep / "sites"
    folder.mkdir(parents=True)
    (folder / "labels.csv").write_text("file,label\na.png,normal\n")
    make_site(sites / "north", "north")
    arrays = {f"{split}_images": np.zeros((2, 8, 8), np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.array([[0], [1]], np.uint8) for split in ("train", "val", "test")}
    np.savez(deep / "pneumoniamnist.npz", allow_pickle=True, **arrays)
    monkeypatch.chdir(deep)
    for path in (folder, sites, sites / "north", deep / "pneumoniamnist.npz", deep, Path("pictures"), Path("sites/..")):
        name = open_source(STUDY, path).name
        assert not set("/\\") & set(name), name
        assert "someone" not in name or path in (deep, Path("sites/..")), name
    assert open_source(STUDY, None).name == "phantoms (synthetic)"


def test_synthetic_and_real_images_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'north' holds synthetic images and 'south' real ones"):
        open_source(STUDY, make_run(tmp_path / "run", north=True, south=False))


def test_two_sites_of_one_alias(tmp_path: Path) -> None:
    make_site(tmp_path / "a", "north")
    make_site(tmp_path / "b", "north")
    with pytest.raises(DataError, match="'b' and 'a' are both site 'north'"):
        open_source(STUDY, tmp_path)


def test_a_copied_vault_does_not_count_twice(tmp_path: Path) -> None:
    shutil.copytree(make_site(tmp_path / "a", "north"), tmp_path / "b")
    SiteConfig(alias="south").save(tmp_path / "b")
    with pytest.raises(DataError, match="'b' and 'a' hold copies of one vault"):
        open_source(STUDY, tmp_path)


def test_what_is_no_site_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", north=True)
    with pytest.raises(DataError, match="'pooled': a pooled site has no vault of its own; give the run's folder"):
        open_source(STUDY, run / "sites" / "pooled")
    with pytest.raises(DataError, match="is the vault itself; give the site's directory"):
        open_source(STUDY, run / "sites" / "north" / "vault.sqlite")
    (run / "sites" / "north" / "site.yaml").write_text("alias: [")
    with pytest.raises(VaultError, match=r"north/site.yaml"):
        open_source(STUDY, run)


def test_a_vault_without_its_key(tmp_path: Path) -> None:
    home = make_site(tmp_path / "a", "north")
    (home / "vault.key").unlink()
    with pytest.raises(KeyUnavailable):
        open_source(STUDY, home)
    SiteConfig(alias="north", key="passphrase:").save(home)
    with pytest.raises(VaultError, match="passphrase"):
        open_source(STUDY, home)


def test_damage_is_an_error_not_an_unreadable_image(tmp_path: Path) -> None:
    home = make_site(tmp_path / "a", "north")
    path = home / "vault.sqlite"
    content = bytearray(path.read_bytes())
    source = open_source(STUDY, home)
    # The last page in use holds an image's ciphertext; every byte of it is authenticated.
    place = max(index for index, byte in enumerate(content) if byte)
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(VaultError, match="damaged or was altered"):
        for item in source.items:
            source.read(item)


def test_a_vault_that_changes_meanwhile(tmp_path: Path) -> None:
    home = make_site(tmp_path / "a", "north")
    source = open_source(STUDY, home)
    with Vault.open(home / "vault.sqlite", provider("file:vault.key", base=home)) as vault:
        vault.add([Record(pixels_of("more", 1), "9", {"label": ("normal",)})])
    with pytest.raises(VaultError, match="was changed while it was read; start again"):
        source.read(source.items[0])


def open_files(folder: Path) -> int:
    return sum(file.path.startswith(str(folder)) for file in psutil.Process().open_files())


def test_few_files_are_open_while_reading_and_none_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaults, "OPEN_VAULTS", 2)
    source = vaults.VaultSource(STUDY, make_run(tmp_path / "run", a=True, b=True, c=True, d=True))
    assert open_files(tmp_path) == 0
    for item in sorted(source.items, key=lambda item: item.key.split("/")[1]):  # from vault to vault
        source.read(item)
        assert 1 <= open_files(tmp_path) <= 2
    source.close()
    assert open_files(tmp_path) == 0
    source.read(source.items[0])
    del source
    gc.collect()
    assert open_files(tmp_path) == 0
