"""A site's directory: what is in it, and one line for everything that can be wrong with it."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client import upkeep
from client.app import Resident
from client.config import SiteConfig
from client.home import Home
from client.ingest.pseudonyms import Pseudonyms
from client.site import Site
from client.vault.store import Record, Vault
from client.vault.view import View, ViewCache
from common.errors import DataError, DeviceError, FedwardError, VaultError
from common.study import Study
from tests.unit import federation as fed


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fed.make_sites(tmp_path_factory.mktemp("site") / "sites", fed.study())


def write(directory: Path, text: str | bytes) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "site.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return directory


def test_a_configuration_comes_back_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    config = SiteConfig(alias="site-1", device="cpu", threads=2, members=("../a", "../b"))
    config.save(tmp_path)
    assert SiteConfig.load(tmp_path) == config
    assert stat.S_IMODE((tmp_path / "site.yaml").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"site\.yaml is not usable: the file: Input should be .*; mend that line"),
        ("alias: a b", r"not usable: alias: String should match pattern"),
        ("alias: ../x", r"not usable: alias: "),
        ("{}", r"not usable: alias: Field required"),
        ("alias: a\nvalut: v", r"not usable: valut: Extra inputs are not permitted"),
        ("alias: a\nthreads: -1", r"not usable: threads: Input should be greater than or equal to 0"),
        ("alias: [", r"site\.yaml cannot be read: "),
        (b"\xff\xfe\x00a", r"site\.yaml cannot be read: "),
        ("alias: !!python/object/apply:os.system ['true']", r"site\.yaml cannot be read: "),
    ],
)
def test_a_configuration_that_is_none_names_the_key(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(VaultError, match=message) as caught:
        SiteConfig.load(write(tmp_path / "home", text))
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_a_directory_without_one_says_how_to_make_a_site(tmp_path: Path) -> None:
    with pytest.raises(
        VaultError, match=r"home is not a site: it has no site\.yaml; make one with `fedward site init`"
    ):
        SiteConfig.load(tmp_path / "home")
    (tmp_path / "home" / "site.yaml").mkdir(parents=True)
    with pytest.raises(VaultError, match=r"site\.yaml cannot be read"):
        SiteConfig.load(tmp_path / "home")


def test_an_opened_site_counts_and_shows_its_images(homes: dict[str, Path]) -> None:
    study = fed.study()
    site = Site.open(homes["site-2"], ViewCache(1 << 30))
    assert site.alias == "site-2"
    assert site.device == torch.device("cpu")
    images = site.images(study)
    assert set(images) == {"train", "val", "test"}
    for split in ("train", "val", "test"):
        assert len(site.view(study, split)) == images[split]
    site.close()


def test_images_without_a_label_for_this_study_do_not_count(homes: dict[str, Path]) -> None:
    everything = Site.open(homes["site-1"], ViewCache(1 << 30))
    plain = everything.images(fed.study())
    half = fed.study(classes={"normal": ["normal"], "other": ["something"]}, **{"data.other": ["pneumonia"]})
    found = everything.images(half)
    assert 0 < sum(found.values()) < sum(plain.values())
    for split in ("train", "val", "test"):
        assert len(everything.view(half, split)) == found[split]
    everything.close()


def test_a_pooled_site_is_its_members_together(homes: dict[str, Path]) -> None:
    study, views = fed.study(), ViewCache(1 << 30)
    pooled = Site.open(homes["site-1"].parent / "pooled", views)
    members = [Site.open(home, views) for home in homes.values()]
    assert len(pooled.vaults) == 3
    for split in ("train", "val", "test"):
        joined, parts = pooled.view(study, split), [member.view(study, split) for member in members]
        rows = [part.floats(torch.arange(len(part))) for part in parts]
        assert torch.equal(joined.floats(torch.arange(len(joined))), torch.cat(rows))
        assert joined.patient_count == sum(part.patient_count for part in parts)
        assert pooled.images(study)[split] == sum(member.images(study)[split] for member in members)
    for site in (pooled, *members):
        site.close()


def test_an_empty_split_is_an_error_only_where_it_is_needed(homes: dict[str, Path]) -> None:
    nothing = fed.study(classes={"normal": ["x"], "other": ["y"]}, **{"data.other": ["pneumonia", "normal"]})
    site = Site.open(homes["site-1"], ViewCache(1 << 30))
    assert len(site.view(nothing, "train")) == 0
    with pytest.raises(DataError, match="site-1 has no labelled train images for this study; import some"):
        site.require(nothing, "train")
    site.close()


@pytest.mark.parametrize("what", ["vault", "key", "device"])
def test_a_site_that_cannot_be_opened_is_one_line_and_leaves_no_file_open(
    what: str, homes: dict[str, Path], tmp_path: Path
) -> None:
    if what == "device":
        config = SiteConfig(alias="pooled", members=tuple(map(str, homes.values())), device="cuda:99")
    else:
        lost = SiteConfig(alias="lost", vault="none.sqlite" if what == "vault" else "vault.sqlite", key="file:none.key")
        (tmp_path / "lost").mkdir()
        lost.save(tmp_path / "lost")
        config = SiteConfig(alias="pooled", members=(*map(str, homes.values()), "lost"))
    config.save(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(DeviceError if what == "device" else VaultError) as caught:
        Site.open(tmp_path, ViewCache(0))
    assert isinstance(caught.value, FedwardError)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_view_that_does_not_fit_on_the_gpu_stays_in_main_memory(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: moving there fails as a full one does."""
    moves: list[str] = []
    stay = View.to

    def move(self: View, device: torch.device | str) -> View:
        moves.append(str(device))
        if torch.device(device).type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stay(self, device)

    monkeypatch.setattr(View, "to", move)
    opened = Site.open(homes["site-1"], ViewCache(1 << 30))
    site = replace(opened, device=torch.device("cuda:0"))
    view = site.view(fed.study(), "train")
    assert isinstance(view, View)
    assert moves == ["cuda:0", "cpu"]
    assert view.device == torch.device("cpu")
    assert len(view) == opened.images(fed.study())["train"]
    opened.close()


# A hospital's own site, as it changes under a study


def _real(tmp_path: Path) -> Home:
    home = Home.init(tmp_path / "real", alias="north", synthetic=True)
    with home.exclusive(), home.vault() as vault:
        patient = Pseudonyms(vault.secret).patient
        vault.add(
            Record(
                np.random.default_rng(number).integers(0, 256, (20, 20)).astype(np.uint8),
                patient(f"P{number}"),
                {"label": ("normal" if number % 2 else "pneumonia",)},
                "train",
            )
            for number in range(6)
        )
        home.witness.note(vault)
    return home


def _ask(resident: Resident, home: Home) -> int:
    """How many images a survey finds, through the handler that a study's messages come to."""
    site = resident.site(home.directory)
    study = Study.parse("name: s\ntask: binary\nclasses: [normal, pneumonia]\n", "study")
    site.note_use(study)
    return len(site.view(study, "train"))


def test_an_erased_patient_takes_no_part_in_the_next_message(tmp_path: Path) -> None:
    home, resident = _real(tmp_path), Resident()
    assert _ask(resident, home) == 6
    erased, studies = upkeep.erase(home, "P3")
    assert (erased, [study["name"] for study in studies]) == (1, ["s"])
    assert _ask(resident, home) == 5
    home = upkeep.rotate_key(home, reencrypt=True)
    assert _ask(resident, home) == 5
    resident.close()
    used = [entry.facts["generation"] for entry in home.audit.entries() if entry.event == "study-used"]
    assert used == sorted(set(used)), "once for each state of the vault"


def test_a_study_meets_no_older_copy(tmp_path: Path) -> None:
    home, resident = _real(tmp_path), Resident()
    before = home.vault_path.read_bytes()
    upkeep.erase(home, "P3")
    home.vault_path.write_bytes(before)
    with pytest.raises(VaultError, match="older copy"):
        _ask(resident, home)
    resident.close()


def test_a_study_opens_the_vault_in_the_middle_of_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, resident = _real(tmp_path), Resident()

    def stop(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "rewrap", stop)
        with pytest.raises(RuntimeError):
            upkeep.rotate_key(home)
    assert _ask(resident, home) == 6
    resident.close()
