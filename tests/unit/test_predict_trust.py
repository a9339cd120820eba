"""Before ``fedward predict`` scores anything: is the model whole, and who vouches for it?"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.delivery import folder_of
from common.errors import FedwardError, IdentityError, PackageError, RunError
from common.identity import SiteKey
from common.package import CARD, MANIFEST, SUMMARY, WEIGHTS
from simulations.predict.trust import UNVERIFIED, check
from tests.unit.test_agent import Site
from tests.unit.test_own_package import METHODS, Trained, typed


@pytest.fixture(scope="module")
def came(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A site to which a model has come, with its own beside it."""
    made = Trained(tmp_path_factory.mktemp("trust"), METHODS["ditto"], images=60)
    made.deliver()
    yield made
    made.site.agent.close()


def both(came: Trained) -> tuple[Path, Path]:
    shared = came.home / "models" / folder_of(came.study)
    return shared, came.folder


def test_in_a_sites_models_its_audit_log_vouches(came: Trained) -> None:
    shared, own = both(came)
    found = check(shared, site=None, signed_by=None, unverified=False)
    assert found.verified and found.notice == ""
    assert found.whose == "of 2 hospitals of trial, signed by its coordinator, as the audit log of north knows"
    assert found.signer == came.site.coordinator.key.public.fingerprint
    found = check(own, site=None, signed_by=None, unverified=False)
    assert found.verified and found.whose.startswith("north's own model (ditto") and "by north alone" in found.whose


def test_a_copy_elsewhere_needs_somebody_who_compared_the_fingerprint(came: Trained, tmp_path: Path) -> None:
    for folder, who in zip(both(came), ("the coordinator of trial", "north"), strict=True):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        with pytest.raises(PackageError, match=rf"with {who} by phone: give --signed-by .* or --unverified"):
            check(copy, site=None, signed_by=None, unverified=False)
        assert check(copy, site=came.home, signed_by=None, unverified=False).verified
        signer = check(copy, site=None, signed_by=None, unverified=True)
        assert (signer.verified, signer.notice) == (False, UNVERIFIED) and signer.signer is not None
        spoken = signer.signer.replace("-", " ").lower()
        assert check(copy, site=None, signed_by=spoken, unverified=False).verified
        for typed_ in (SiteKey.generate().public.fingerprint, spoken[:-1], ""):
            with pytest.raises(IdentityError, match="not the fingerprint that you typed"):
                check(copy, site=None, signed_by=typed_, unverified=True)


def test_another_hospitals_log_does_not_vouch(came: Trained, tmp_path: Path) -> None:
    other = Site(tmp_path / "other", images=20)
    other.agent.close()
    copy = shutil.copytree(came.folder, tmp_path / "copy")
    with pytest.raises(PackageError, match="the audit log does not know"):
        check(copy, site=other.home.directory, signed_by=None, unverified=False)
    assert not check(copy, site=other.home.directory, signed_by=None, unverified=True).verified
    moved = shutil.copytree(came.folder, other.home.directory / "models" / "moved")
    with pytest.raises(PackageError, match="the audit log does not know"):  # whatever the option says
        check(moved, site=None, signed_by=None, unverified=True)


def altered() -> dict[str, Callable[[Path], object]]:
    return {
        "weights": lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-4] + b"\0\0\0\1"),
        "threshold": lambda at: (at / CARD).write_text((at / CARD).read_text().replace('"format": 1', '"format": 2')),
        "temperature": lambda at: (at / SUMMARY).write_text(json.dumps({**json.loads((at / SUMMARY).read_text())})),
        "signature": lambda at: (at / MANIFEST).write_bytes((at / MANIFEST).read_bytes().replace(b"trial", b"tribl")),
        "no study": lambda at: (at / "study.yaml").unlink(),
        "a folder": lambda at: ((at / MANIFEST).unlink(), (at / MANIFEST).mkdir()),
    }


@pytest.mark.parametrize("what", altered())
def test_what_was_altered_is_refused_whatever_is_asked(what: str, came: Trained, tmp_path: Path) -> None:
    _, own = both(came)
    copy = shutil.copytree(own, tmp_path / "copy")
    signer = check(copy, site=None, signed_by=None, unverified=True).signer
    altered()[what](copy)
    for signed_by in (None, signer):
        with pytest.raises(FedwardError):
            check(copy, site=came.home, signed_by=signed_by, unverified=True)


def test_a_signature_that_is_gone_is_not_a_run(came: Trained, tmp_path: Path) -> None:
    _, own = both(came)
    copy = shutil.copytree(own, tmp_path / "copy")
    (copy / MANIFEST).unlink()
    with pytest.raises(RunError, match="add --unverified if you know both"):
        check(copy, site=None, signed_by=None, unverified=False)
    assert check(copy, site=None, signed_by=None, unverified=True).whose == "signed by nobody"
    with pytest.raises(PackageError, match="ask for the signed package"):
        check(copy, site=None, signed_by="7G3K-90QX-4MTR-AB2E-ZW0C", unverified=True)
    stripped = shutil.copytree(copy, came.home / "models" / "stripped")
    try:
        with pytest.raises(PackageError, match="every model in a site's models/ has one"):
            check(stripped, site=None, signed_by=None, unverified=True)
    finally:
        shutil.rmtree(stripped)


def test_a_vault_is_scored_with_its_hospitals_own_model(came: Trained, tmp_path: Path) -> None:
    _, own = both(came)
    out = tmp_path / "list.csv"
    code, text = typed("predict", own, "--site", came.home, "--out", out, "--device", "cpu")
    assert code == 0, text
    assert "the model: north's own model (ditto" in text and "NOT VERIFIED" not in text and "SYNTHETIC" in text
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and all(UNVERIFIED not in row["notice"] for row in rows)
    edge = json.loads((own / CARD).read_text())["thresholds"]["pneumonia"]
    assert all((row["decision"] == "pneumonia") == (float(row["score pneumonia"]) >= edge) for row in rows)
