"""``fedward site studies|show|approve|…`` as a hospital's people type it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from client.approvals import Approvals
from client.home import Home
from client.judgement import Federation
from client.policy import POLICY_FILE, TEMPLATE
from common.study import Study
from tests.integration.commandline import STUDY, command, refused

WANTED = Study.parse(STUDY).derive(**{"evaluation.min_cell": 10})
OURS = Federation("ABCD-EFGH-JKMN-PQRS", "Thorax", {"north": "1111-2222", "south": "3333-4444"}, "r1")
HASH = WANTED.hash[:8]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with twelve images."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "scans").mkdir()
    lines = ["file,patient,label"]
    for number in range(12):
        picture = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        cv2.imwrite(str(folder / "scans" / f"{number}.png"), picture)
        lines.append(f"{number}.png,P{number},{'pneumonia' if number % 2 else 'normal'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    site = folder / "north"
    assert command("site", "init", site, "--synthetic").code == 0
    assert command("site", "import", folder / "scans", "--labels", folder / "labels.csv", "--site", site).code == 0
    (site / POLICY_FILE).write_text(TEMPLATE)
    return site


@pytest.fixture
def site(filled: Path) -> Path:
    """Where a study has just been asked for; decisions of earlier tests are gone."""
    (filled / "federation" / "approvals.sqlite").unlink(missing_ok=True)
    (filled / POLICY_FILE).write_text(TEMPLATE)
    Approvals(Home.open(filled)).seen(WANTED, OURS)
    return filled


def done(*arguments: object) -> str:
    outcome = command("site", *arguments)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome.out


def state(site: Path) -> str | None:
    return Approvals(Home.open(site)).seen(WANTED, OURS).code


def test_a_study_is_read_approved_and_withdrawn(site: Path) -> None:
    line = f"{WANTED.hash[:12]}  pending "
    assert done("studies", "--site", site).startswith(line)
    shown = " ".join(done("show", HASH, "--site", site, "--rate", 100).split())
    assert "It would use 12 of this site's:" in shown
    assert "Thorax, key ABCD-EFGH-JKMN-PQRS" in shown
    assert shown.endswith("pending: waits for an approval as operator")
    out = done("approve", HASH, "--as", "operator", "--by", "Ann Lee", "--yes", "--site", site)
    assert out.startswith("approved by Ann Lee as operator for the sites north, south\n")
    assert state(site) is None
    listed = json.loads(done("studies", "--json", "--site", site))["studies"]
    assert [(one["study"], one["state"], one["sites"]) for one in listed] == [
        (WANTED.hash, "approved", ["north", "south"])
    ]
    assert "approve by Ann Lee as operator" in done("show", HASH, "--site", site)
    done("withdraw", HASH, "--why", "a patient asked", "--by", "Ann Lee", "--site", site)
    assert state(site) == "study-withdrawn"
    done("refuse", HASH, "--why", "no ethics vote", "--site", site)
    assert state(site) == "approval-refused"
    assert "no ethics vote" in done("studies", "--site", site)


def test_a_pause_and_its_end(site: Path) -> None:
    done("approve", HASH, "--as", "operator", "--by", "Ann Lee", "--yes", "--site", site)
    assert done("pause", "--why", "maintenance", "--site", site).startswith("paused: ")
    assert state(site) == "site-paused"
    assert "paused" in done("studies", "--site", site)
    assert done("resume", "--site", site) == "resumed\n"
    assert done("resume", "--site", site) == "the site was not paused\n"
    assert state(site) is None


def test_what_is_shown_is_asked_about(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    arguments = ("site", "approve", HASH, "--as", "operator", "--by", "Ann Lee", "--site", site)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    outcome = command(*arguments)
    assert outcome.error == "nothing was approved"
    assert "Privacy      No noise is added" in outcome.out
    assert state(site) == "approval-pending"
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    outcome = command(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert "approve this as operator? [y/N] " in outcome.out
    assert state(site) is None


def test_the_audit_log_is_shown_and_checked(site: Path) -> None:
    done("approve", HASH, "--as", "operator", "--by", "Ann Lee", "--yes", "--site", site)
    shown = done("audit", "show", "--site", site, "--last", 2).splitlines()
    assert len(shown) == 2
    assert "study-approved" in shown[1]
    assert "by Ann Lee" in shown[1]
    entries = json.loads(done("audit", "show", "--json", "--last", 1, "--site", site))["entries"]
    assert entries[0]["facts"]["study"] == WANTED.hash
    assert "entries, all as they were written" in done("audit", "verify", "--site", site)
    log = site / "audit.jsonl"
    kept = log.read_bytes()
    log.write_bytes(kept.replace(b"Ann Lee", b"Bob Lee"))
    assert "was altered at" in refused(4, "site", "audit", "verify", "--site", site)
    log.write_bytes(kept.splitlines(keepends=True)[0])
    assert "was cut" in refused(4, "site", "audit", "verify", "--site", site)
    log.write_bytes(kept)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("show", "123456"), 2, "no study is 123456: `fedward site studies` lists those"),
        (("show", "12"), 2, "6 or more digits of its hash"),
        (("approve", HASH, "--as", "boss", "--by", "Ann Lee", "--yes"), 2, "one as boss would count for nothing"),
        (("approve", HASH, "--as", "operator", "--by", "Ann Lee"), 3, "add --yes where nobody is there to ask"),
        (("refuse", HASH, "--why", " "), 2, "say why"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(site: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    assert text in refused(code, "site", *arguments, "--site", site)
    assert state(site) == "approval-pending"


def test_what_the_policy_objects_to_is_shown_and_cannot_be_approved(site: Path) -> None:
    (site / POLICY_FILE).write_text(TEMPLATE.replace("[cnn, ", "["))
    objection = "model.name is cnn; policy.yaml allows resnet18, resnet50, densenet121"
    assert objection in " ".join(done("show", HASH, "--site", site).split())
    arguments = ("site", "approve", HASH, "--as", "operator", "--by", "Ann Lee", "--yes", "--site", site)
    assert refused(2, *arguments).startswith(objection)
    (site / POLICY_FILE).unlink()
    assert refused(2, *arguments).startswith("policy.yaml is missing, so nothing is allowed")
    assert "policy.yaml is missing" in done("studies", "--site", site)


def test_without_the_key_the_study_is_shown_and_its_images_are_not_counted(site: Path, tmp_path: Path) -> None:
    key = next((site / "keys").iterdir())
    key.rename(tmp_path / "away")
    outcome = command("site", "show", HASH, "--site", site)
    (tmp_path / "away").rename(key)
    assert outcome.code == 0
    assert "was not counted" in " ".join(outcome.out.split())
    assert outcome.err.startswith("fedward: images were not counted: ")
    assert len(outcome.err.splitlines()) == 1


def test_a_site_that_nobody_asked_has_no_studies(tmp_path: Path) -> None:
    Home.init(tmp_path / "new", alias="new", synthetic=True)
    assert done("studies", "--site", tmp_path / "new") == "no study has been asked for\n"
