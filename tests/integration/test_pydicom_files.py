"""Every DICOM file of pydicom and `pydicom-data`, imported as a hospital would: in, or refused by a named rule."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import data_store  # pydicom-data
import pytest
from pydicom.data import get_testdata_files

from client import upkeep
from client.home import Home
from client.ingest.importer import Importer, Sheets
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.sources import discover

LEAST = 147


def files() -> list[Path]:
    """Once each, by name."""
    inside = Path(data_store.__file__).parent / "data"
    found = [*map(Path, get_testdata_files()), *inside.rglob("*")]
    return list({path.name: path for path in found if path.is_file() and path.suffix not in (".py", ".pyc")}.values())


@pytest.mark.slow
def test_every_file_is_in_or_refused_by_name(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in files():
        shutil.copy(path, scans / path.name)
    names = sorted(path.name for path in scans.iterdir() if path.name != "DICOMDIR")
    assert len(names) > LEAST
    home = Home.init(tmp_path / "site", alias="mixed")
    with home.exclusive(), home.vault() as vault:
        with Importer(
            vault,
            Sheets(),
            rules=home.config.rules,
            split=home.config.split,
            workers=2,
            committed=home.witness.note,
        ) as importer:
            importer.run(discover([scans], home.config.rules))
        summary = importer.summary
        home.seal(vault)
        pseudonyms = Pseudonyms(vault.secret)
        taken = {row.keys["file"] for row in vault.each()}
        listed = {reference for reference, _ in summary.rejected}
        lost = [
            name
            for name in names
            if pseudonyms.names(name)["file"] not in taken and pseudonyms.reference(name) not in listed
        ]
        assert lost == []
        assert summary.files == len(names)
        assert summary.images == len(vault) >= 40
    reasons = Counter(reason.code for _, reason in summary.rejected)
    assert not {code for code in reasons if code.startswith("decode-")}, "a child ended or hung"
    assert {"burned-in-unknown", "not-an-image", "no-pixel-data"} <= set(reasons)
    assert all(reason.reason and reason.remedy for _, reason in summary.rejected)
    assert upkeep.verify(home).whole_file
