"""``fedward site …`` as a hospital's data manager types it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from client.home import Home
from tests.integration.commandline import STUDY, command, meanwhile, refused, saved, send

IMAGES = 30


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures of fifteen patients, a sheet with what people put into sheets, and three files that are none."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(3)
    lines = ["\ufefffile;patient;label;sex;age;name"]
    for number in range(IMAGES):
        small = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.png"), cv2.resize(small, (40, 40)))
        kind = "pneumonia" if number % 4 else "normal"
        lines.append(f"{number:02}.png;P{number // 2};{kind};{'FM'[number % 4 // 2]};{40 + number};Doe, John")
    lines += ["00.png;P0;normal;F;40;Doe, John", "gone.png;P99;normal;F;40;Doe, John"]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "readme.pdf").write_bytes(b"%PDF-1.4 hello")
    (folder / "empty.dcm").write_bytes(b"")
    shutil.copy(folder / "03.png", folder / "copy.png")
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    outcome = command("site", "init", tmp_path / "north", "--synthetic")
    assert outcome.code == 0, outcome.err
    assert "an empty vault" in outcome.out
    assert "keep a copy of the key file elsewhere" in outcome.out
    return tmp_path / "north"


@pytest.fixture
def filled(site: Path, scans: Path) -> Path:
    assert command("site", "import", scans, "--labels", scans / "labels.csv", "--site", site).code == 9
    return site


def info(site: Path) -> dict[str, object]:
    outcome = command("site", "info", "--json", "--site", site)
    assert outcome.code == 0, outcome.err
    found: dict[str, object] = json.loads(outcome.out)
    return found


def rejected(site: Path) -> list[dict[str, str]]:
    with (site / "reports" / "rejected.csv").open() as file:
        return list(csv.DictReader(file))


def test_from_scans_to_a_verified_vault(site: Path, scans: Path) -> None:
    outcome = command("site", "import", scans, "--labels", scans / "labels.csv", "--site", site)
    assert outcome.code == 9
    assert outcome.error.startswith("2 images or files were refused; ")
    assert "30 images added from 33 files" in outcome.out
    assert "1 duplicates left out" in outcome.out
    assert "1 row repeating another count once" in outcome.out
    assert "1 row met no image (line 33)" in outcome.out
    assert {(row["code"], row["stage"]) for row in rejected(site)} >= {("duplicate-file", "duplicate")}
    assert len(rejected(site)) == 3
    assert all(row["reason"] and row["remedy"] and len(row["reference"]) == 12 for row in rejected(site))
    found = info(site)
    assert (found["images"], found["patients"], found["unlabelled"], found["key"]) == (30, 15, 0, "file")
    assert found["classes"] == {"label": {"pneumonia": 22, "normal": 8}}
    assert found["generation"] == found["sealed"]
    assert found["attributes"]["sex"] == {"F": 16, "M": 14}  # type: ignore[index]
    assert found["attributes"]["age"] == {"40-49": 10, "50-59": 10, "60-69": 10}  # type: ignore[index]
    verified = command("site", "verify", "--site", site)
    assert (verified.code, verified.out) == (0, "30 images, generation 2, 2 audit entries: all as they were written\n")
    page = (site / "reports" / "readiness.html").read_text()
    assert "Doe" not in page and "P14" not in page and "<script" not in page
    modes = {path.name: path.stat().st_mode & 0o777 for path in site.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o600}, modes


def test_a_second_import_adds_nothing(filled: Path, scans: Path) -> None:
    before = info(filled)
    outcome = command("site", "import", scans, "--labels", scans / "labels.csv", "--site", filled, "--json")
    facts = json.loads(outcome.out)
    assert (facts["images"], facts["known"], facts["refused"], facts["duplicates"]) == (0, 30, 2, 1)
    assert info(filled) == before


def test_duplicates_alone_are_no_failure(site: Path, scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clean"
    folder.mkdir()
    for name in ("03.png", "copy.png", "04.png"):
        shutil.copy(scans / name, folder)
    outcome = command("site", "import", folder, "--site", site)
    assert (outcome.code, outcome.err) == (0, "")
    assert "1 duplicates left out" in outcome.out
    assert "2 images without labels" in outcome.out
    assert "2 images of unknown patients" in outcome.out


def test_labels_may_come_later(site: Path, scans: Path, tmp_path: Path) -> None:
    command("site", "import", scans, "--site", site)
    assert info(site)["unlabelled"] == IMAGES
    outcome = command("site", "label", scans / "labels.csv", "--site", site)
    assert (outcome.code, outcome.out) == (0, "30 images changed, 30 named by the sheet\n")
    assert info(site)["classes"] == {"label": {"pneumonia": 22, "normal": 8}}
    assert command("site", "label", scans / "labels.csv", "--site", site).out.startswith("0 images changed")
    assert command("site", "verify", "--site", site).code == 0


def test_a_line_of_the_rejected_is_traced_by_the_site_alone(filled: Path, scans: Path) -> None:
    (row,) = [row for row in rejected(filled) if row["stage"] == "duplicate"]
    assert command("site", "locate", row["reference"], scans, "--site", filled).out == "copy.png\n"
    assert command("site", "locate", "17", scans, "--site", filled).out == "16.png\n"
    assert "no file of these sources" in refused(3, "site", "locate", "0" * 12, scans, "--site", filled)


def test_an_erased_patient_stays_away(filled: Path, scans: Path) -> None:
    assert "add --yes" in refused(3, "site", "erase", "--patient", "P3", "--site", filled)
    outcome = command("site", "erase", "--patient", "P3", "--yes", "--site", filled)
    assert outcome.code == 0
    assert outcome.out.startswith("2 images erased; the patient stays out of every later import\n")
    again = command("site", "import", scans, "--labels", scans / "labels.csv", "--site", filled, "--json")
    assert json.loads(again.out)["reasons"]["erased"] == 2
    assert (info(filled)["images"], info(filled)["erased_patients"]) == (28, 1)
    mistyped = command("site", "erase", "--patient", "P03", "--yes", "--site", filled)
    assert (mistyped.code, mistyped.out[:2]) == (0, "0 ")
    assert "typed as the hospital's systems write it" in mistyped.err


def test_an_opt_out_list_is_honoured(site: Path, scans: Path, tmp_path: Path) -> None:
    saved(tmp_path / "no.csv", "patient\nP1\nP2\n")
    arguments = ("site", "import", scans, "--labels", scans / "labels.csv", "--site", site)
    outcome = command(*arguments, "--opt-out", tmp_path / "no.csv")
    assert "4 images left out: consent withheld, or erased" in outcome.out
    assert info(site)["images"] == 26
    # The copy of P1's picture is named on no sheet: nobody could say whether it may come in.
    assert [row["code"] for row in rejected(site) if row["stage"] == "deidentify"] == ["unknown-patient"]
    assert "no.txt" in refused(3, *arguments, "--opt-out", tmp_path / "no.txt")


def test_readers_and_their_agreement(site: Path, scans: Path, tmp_path: Path) -> None:
    lines = ["file,patient,first,second,final"]
    for number in range(IMAGES):
        second = "normal" if number in (5, 9) else "pneumonia" if number % 4 else "normal"
        final = "pneumonia" if number == 5 else ""
        lines.append(f"{number:02}.png,P{number},{'pneumonia' if number % 4 else 'normal'},{second},{final}")
    readers = saved(tmp_path / "readers.csv", "\n".join(lines) + "\n")
    options = ("--readers", "first,second", "--consensus", "final")
    outcome = command("site", "import", scans, "--labels", readers, *options, "--site", site)
    assert outcome.code == 9
    assert [row["code"] for row in rejected(site) if row["stage"] == "labels"] == ["readers-disagree"]
    classes = info(site)["classes"]
    assert set(classes) == {"label", "label:first", "label:second"}  # type: ignore[call-overload]
    page = (site / "reports" / "readiness.html").read_text()
    assert "κ" in page


def test_another_key_backup_and_restore(filled: Path, tmp_path: Path) -> None:
    outcome = command("site", "rotate-key", "--site", filled)
    assert "locked by file:keys/vault-2.key" in outcome.out
    assert "keys/vault.key opens older backups only" in outcome.out
    assert command("site", "backup", tmp_path / "b.tar", "--site", filled).code == 0
    kept = shutil.move(filled / "keys" / "vault-2.key", tmp_path / "kept.key")
    shutil.rmtree(filled)
    assert "--key file:PATH" in refused(4, "site", "restore", tmp_path / "b.tar", filled)
    assert command("site", "restore", tmp_path / "b.tar", filled, "--key", f"file:{kept}").code == 0
    assert info(filled)["images"] == IMAGES
    assert command("site", "rotate-key", "--reencrypt", "--site", filled).code == 0
    assert command("site", "verify", "--site", filled).code == 0


def test_a_site_feeds_a_simulation(site: Path, scans: Path, tmp_path: Path) -> None:
    splits = ("train", "train", "train", "val", "test")
    lines = [
        f"{number:02}.png,P{number // 2},{'pneumonia' if number % 2 else 'normal'},{splits[number // 2 % 5]}"
        for number in range(IMAGES)
    ]
    sheet = saved(tmp_path / "split.csv", "\n".join(["file,patient,label,split", *lines]) + "\n")
    command("site", "import", scans, "--labels", sheet, "--site", site)
    study = saved(tmp_path / "study.yaml", STUDY)
    outcome = command("simulate", study, "--data", site, "--out", tmp_path / "run", "--arms", "federated")
    assert outcome.code == 0, outcome.err


# What may be wrong


def test_a_wrong_missing_or_unreachable_key_is_said(filled: Path) -> None:
    key = filled / "keys" / "vault.key"
    good = key.read_text()
    key.write_text("ab" * 32 + "\n")
    assert "does not open this vault" in refused(4, "site", "info", "--site", filled)
    key.unlink()
    before = (filled / "vault.sqlite").read_bytes()
    assert "cannot read the key file" in refused(4, "site", "import", filled, "--site", filled)
    assert (filled / "vault.sqlite").read_bytes() == before, "no new, empty vault"
    key.write_text(good)
    key.chmod(0o644)
    assert "chmod 600" in refused(4, "site", "info", "--site", filled)
    key.chmod(0o600)
    (filled / "vault.sqlite").unlink()
    assert "there is no vault" in refused(4, "site", "info", "--site", filled)


def test_sources_sheets_and_sites_that_are_not_there(site: Path, scans: Path, tmp_path: Path) -> None:
    assert "no such file or folder" in refused(3, "site", "import", tmp_path / "x", "--site", site)
    assert "no such file" in refused(3, "site", "import", scans, "--labels", tmp_path / "x.csv", "--site", site)
    assert "fedward site init" in refused(4, "site", "import", scans, "--site", tmp_path)
    sheet = saved(tmp_path / "two.csv", "file,label\n00.png,a\n00.png,b\n")
    assert "lines 2, 3" in refused(3, "site", "import", scans, "--labels", sheet, "--site", site)
    assert "no such folder of masks" in refused(3, "site", "import", scans, "--masks", tmp_path / "m", "--site", site)
    assert "refuse or exclude" in refused(
        3, "site", "import", scans, "--labels", scans / "labels.csv", "--disagreement", "ignore", "--site", site
    )
    assert info(site)["images"] == 0


def test_a_full_disk_loses_nothing(disk: Callable[[int], Path], scans: Path) -> None:
    home = disk(400_000)
    site = home / "site"
    assert command("site", "init", site, "--synthetic").code == 0
    saved(site / "site.yaml", (site / "site.yaml").read_text() + "compression: none\n")
    large = home.parent / "large"
    large.mkdir()
    for number in range(12):
        rng = np.random.default_rng(number)
        cv2.imwrite(str(large / f"{number}.png"), rng.integers(0, 256, (300, 300), dtype=np.uint8))
    outcome = command("site", "import", large, "--site", site)
    assert outcome.code in (4, 8)
    assert "free" in outcome.error
    assert command("site", "verify", "--site", site).code == 0
    assert info(site)["images"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change owners")
def test_a_directory_that_cannot_be_written_is_said(filled: Path, scans: Path, disk: Callable[[int], Path]) -> None:
    import subprocess

    place = disk(4_000_000)
    shutil.copytree(filled, place / "site")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    try:
        assert "cannot write in" in refused(4, "site", "import", scans, "--site", place / "site")
        assert command("site", "verify", "--site", place / "site").code == 0, "verifying writes nothing"
        assert command("site", "info", "--site", place / "site").code == 0
        assert "cannot make a site" in refused(4, "site", "init", place / "other")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)


def test_ctrl_c_keeps_what_is_in(site: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.importer.COMMIT_BYTES", 1)

    def some() -> bool:
        return (site / "vault.sqlite").stat().st_size > 60_000

    with meanwhile(some, send(signal.SIGINT)):
        outcome = command("site", "import", scans, "--labels", scans / "labels.csv", "--site", site)
    if outcome.code == 9:
        pytest.fail("the import was through before it could be stopped")
    assert outcome.code == 130
    assert "the same command goes on" in outcome.error
    assert command("site", "verify", "--site", site).code == 0
    assert 0 < int(str(info(site)["images"])) < IMAGES
    command("site", "import", scans, "--labels", scans / "labels.csv", "--site", site)
    assert info(site)["images"] == IMAGES


def test_the_doctor_finds_what_is_wrong(filled: Path) -> None:
    outcome = command("site", "doctor", "--json", "--site", filled)
    assert outcome.code == 0
    levels = {finding["about"]: finding["level"] for finding in json.loads(outcome.out)}
    assert {"site", "files", "key", "vault", "audit", "disk", "memory", "gpu", "versions"} <= set(levels)
    assert "fail" not in levels.values()
    (filled / "audit.jsonl").chmod(0o644)
    (filled / "keys" / "vault.key").unlink()
    outcome = command("site", "doctor", "--site", filled)
    assert outcome.code == 3
    assert "warn  files" in outcome.out and "chmod -R go=" in outcome.out
    assert "fail  key" in outcome.out and "fail  vault" in outcome.out
    outcome = command("site", "doctor", "--site", filled / "nowhere")
    assert (outcome.code, "fail  site" in outcome.out) == (3, True)


def test_no_other_may_look_into_this_process(filled: Path) -> None:
    """Decrypted images are kept out of core dumps."""
    assert command("site", "info", "--site", filled).code == 0
    import resource

    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    import ctypes

    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, "PR_GET_DUMPABLE"


def test_help_is_for_people(tmp_path: Path) -> None:
    out = command("site", "--help").out
    for name in (
        "init",
        "import",
        "label",
        "pull",
        "receive",
        "info",
        "verify",
        "erase",
        "rotate-key",
        "backup",
        "restore",
    ):
        assert name in out
    assert Home is not None
