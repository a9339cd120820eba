"""Signed approvals: whose signature counts, for what, and that nothing written by hand does."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from client import people, signing
from client.approvals import APPROVALS_FILE, Approvals
from client.home import Home
from client.judgement import Federation
from common.errors import ApprovalError, FedwardError, IdentityError
from common.identity import SiteKey
from fedward import app
from tests.unit.test_approvals import NOW, OURS, STUDY, Clock, clock, home, write

__all__ = ["clock", "home"]  # fixtures
PASSPHRASE = "four words will do"
OTHER = STUDY.derive(seed=1)
MORE = replace(OURS, sites={**OURS.sites, "west": "5555-6666"}, roster="r2")


class Office:
    """A site whose policy asks for a privacy officer's signature, and its people."""

    def __init__(self, home: Home, needed: str = "[privacy_officer]") -> None:
        write(home, approvals_needed=needed, signed_approvals="[privacy_officer]")
        self.home, self.approvals = home, Approvals(home)
        self.keys = {name: SiteKey.generate() for name in ("Ann", "Bob", "Eve")}
        people.add(home, "Ann", ["privacy_officer"], self.keys["Ann"].public, by="root")
        people.add(home, "Bob", ["operator", "data_manager"], self.keys["Bob"].public, by="root")

    def state(self, federation: Federation = OURS) -> str:
        """As an agent that has just started sees it."""
        with closing(Approvals(self.home)) as fresh:
            return fresh.seen(STUDY, federation).state

    def paper(self, name: str = "Ann", *, by: str = "Ann", role: str = "privacy_officer", **other: Any) -> bytes:
        self.approvals.seen(other.get("study", STUDY), OURS)
        record = self.approvals.find(other.get("study", STUDY).hash)
        record = replace(record, federation=other.get("federation", OURS))
        return self.approvals.statement(record, role=role, by=by).sign(self.keys[name])

    def approve(self, signed: bytes) -> str:
        return self.approvals.approve(self.approvals.find(STUDY.hash), signed=signed).state

    def rows(self, change: str, *values: object) -> None:
        """Somebody edits the approvals' file by hand."""
        with closing(sqlite3.connect(self.home.directory / APPROVALS_FILE)) as connection, connection:
            connection.execute(change, values)


@pytest.fixture
def office(home: Home) -> Office:
    return Office(home)


def test_a_signature_counts_and_a_word_does_not(office: Office, clock: Clock) -> None:
    office.approvals.seen(STUDY, OURS)
    record = office.approvals.find(STUDY.hash)
    with pytest.raises(ApprovalError, match="asks for a signature as privacy_officer"):
        office.approvals.approve(record, role="privacy_officer", by="Ann")
    verdict = office.approvals.verdict(record)
    assert verdict.why == "waits for an approval as privacy_officer, signed"
    assert office.approve(office.paper()) == "approved"
    assert office.state() == "approved"
    entry = next(entry for entry in office.home.audit.entries() if entry.event == "study-approved")
    statement, key = signing.Statement.open(entry.facts["signed"].encode())
    assert (statement.subject, statement.by, key) == (STUDY.hash, "Ann", office.keys["Ann"].public)
    assert office.state(MORE) == "roster-changed"
    assert office.state(replace(OURS, sites={"north": "1111-2222"}, roster="r3")) == "approved", "fewer"
    clock.at += timedelta(days=200)
    assert office.state() == "expired"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda one: one.paper("Eve"), "nobody here signs with the key"),
        (lambda one: one.paper("Bob"), "the key is Bob's"),
        (lambda one: one.paper("Bob", by="Bob"), "signs as operator, data_manager only"),
        (lambda one: one.paper("Ann", by="Bob"), "the key is Ann's"),
        (lambda one: one.paper(study=OTHER), "for another study, site or roster"),
        (lambda one: one.paper(federation=MORE), "for another study, site or roster"),
        (lambda one: one.paper(federation=replace(OURS, coordinator="ZZZZ")), "for another study, site or roster"),
        (lambda one: one.paper().replace(b"Ann", b"Bob"), "was altered"),
        (lambda one: one.paper().replace(b'"decision"', b'"roster"'), "was altered"),
        (lambda one: b"", "asks for approvals as privacy_officer"),
        (lambda one: b"{}", "no signed decision"),
        (lambda one: b"\xff\xfe", "no signed decision"),
    ],
)
def test_a_signature_for_something_else_is_refused(office: Office, make: Callable[[Office], bytes], said: str) -> None:
    signed = make(office)
    office.approvals.seen(STUDY, OURS)
    with pytest.raises(FedwardError, match=said if signed else "name who decides"):
        office.approve(signed)
    assert office.state() == "pending"


def test_another_sites_signature_is_refused(office: Office) -> None:
    office.approvals.seen(STUDY, OURS)
    elsewhere = signing.approval(STUDY.hash, "south", OURS, role="privacy_officer", by="Ann", at=NOW)
    with pytest.raises(ApprovalError, match="another study, site or roster"):
        office.approve(elsewhere.sign(office.keys["Ann"]))


def test_dates_that_would_lengthen_an_approval_are_refused(office: Office, clock: Clock) -> None:
    clock.at = NOW + timedelta(days=30)
    future = office.paper()
    clock.at = NOW
    with pytest.raises(ApprovalError, match="in the future"):
        office.approve(future)
    old = office.paper()
    clock.at = NOW + timedelta(days=181)
    assert office.approve(old) == "expired"


def test_rows_written_by_hand_approve_nothing(office: Office) -> None:
    """Also where whoever wrote them puts them into the audit log: the signature does not fit."""
    office.approvals.seen(STUDY, OURS)
    good, federation = office.paper(), json.dumps({**vars(OURS), "sites": dict(OURS.sites)})
    elsewhere = office.paper(study=OTHER)
    columns = "INSERT INTO decision (study, kind, at, role, person, why, rule, federation, signed) VALUES "
    more = json.dumps({**vars(MORE), "sites": dict(MORE.sites)})
    at = NOW.isoformat()
    forged: dict[str, tuple[object, ...]] = {
        "not signed": (at, "privacy_officer", "Ann", 0, federation, ""),
        "a rule's": (at, "rule", "rule 1 of policy.yaml", 1, federation, ""),
        "another study's": (at, "privacy_officer", "Ann", 0, federation, elsewhere.decode()),
        "a stranger's": (at, "privacy_officer", "Ann", 0, federation, office.paper("Eve").decode()),
        "in another role": (at, "privacy_officer", "Bob", 0, federation, office.paper("Bob", by="Bob").decode()),
        "for more sites": (at, "privacy_officer", "Ann", 0, more, good.decode()),
        "later": ((NOW + timedelta(days=90)).isoformat(), "privacy_officer", "Ann", 0, federation, good.decode()),
        "under another name": (at, "privacy_officer", "Zoe", 0, federation, good.decode()),
        "half": (at, "privacy_officer", "Ann", 0, federation, good.decode()[:-20]),
    }
    for what, (moment, role, person, rule, company, signed) in forged.items():
        office.rows("DELETE FROM decision")
        office.rows(
            columns + "(?, 'approve', ?, ?, ?, '', ?, ?, ?)",
            *(STUDY.hash, moment, role, person, rule, company, signed),
        )
        facts = {"study": STUDY.hash, "role": role, "by": person, "rule": rule}
        facts["federation"] = Federation(**json.loads(company)).digest
        office.home.audit.append("study-approved", facts, NOW if moment == at else NOW + timedelta(days=90))
        for company_now in (OURS, MORE):
            assert office.state(company_now) in ("pending", "roster-changed"), what
    # And the right paper, as a row that the log does not know.
    write(office.home, approvals_needed="[operator]")
    office.rows("DELETE FROM decision")
    office.rows(columns + "(?, 'approve', ?, 'operator', 'Cy', '', 0, ?, '')", STUDY.hash, at, federation)
    assert office.state() == "pending"


def test_a_withdrawal_taken_out_of_the_file_holds_and_old_papers_are_no_use(office: Office, clock: Clock) -> None:
    first = office.paper()
    assert office.approve(first) == "approved"
    clock.at += timedelta(hours=1)
    office.approvals.withdraw(office.approvals.find(STUDY.hash), by="Ann")
    with pytest.raises(ApprovalError, match="signed before the study was stopped"):
        office.approve(first)
    kept = "INSERT INTO decision SELECT NULL, study, kind, at, role, person, why, rule, federation, signed "
    office.rows(kept + "FROM decision WHERE kind = 'approve'")  # the old approval again, behind the withdrawal
    facts = {"study": STUDY.hash, "role": "privacy_officer", "by": "Ann", "rule": 0, "federation": OURS.digest}
    office.home.audit.append("study-approved", facts, NOW)
    assert office.state() == "withdrawn"
    office.approvals.withdraw(office.approvals.find(STUDY.hash), by="Ann")
    office.rows("DELETE FROM decision WHERE kind = 'withdraw'")
    assert office.state() == "pending"
    clock.at += timedelta(hours=1)
    assert office.approve(office.paper()) == "approved", "said again, it counts"


def test_a_person_who_is_removed_has_signed_nothing(office: Office) -> None:
    office.approve(office.paper())
    assert office.state() == "approved"
    listed = (office.home.directory / people.PEOPLE_FILE).read_bytes()
    people.remove(office.home, "ann", by="root", why="left")
    assert office.approvals.seen(STUDY, OURS).state == "pending", "at the next request"
    # Put back by hand: the log knows better.
    (office.home.directory / people.PEOPLE_FILE).write_bytes(listed)
    assert office.state() == "pending"
    (office.home.directory / people.PEOPLE_FILE).write_bytes(listed[:-9])
    assert office.state() == "objected"
    (office.home.directory / people.PEOPLE_FILE).unlink()
    assert office.state() == "pending"
    people.add(office.home, "Ann", ["privacy_officer"], office.keys["Ann"].public, by="root")
    assert office.state() == "approved", "the same person with the same key, added again"


def test_a_key_written_into_the_list_by_hand_signs_nothing(office: Office) -> None:
    path = office.home.directory / people.PEOPLE_FILE
    kept = json.loads(path.read_bytes())
    eve = {"name": "Eve", "roles": ["privacy_officer"], "public_key": office.keys["Eve"].public.openssh}
    path.write_text(json.dumps({"people": [*kept["people"], {**eve, "since": "2027-03-01T00:00:00Z"}]}))
    office.approvals.seen(STUDY, OURS)
    with pytest.raises(ApprovalError, match="nobody here signs"):
        office.approve(office.paper("Eve", by="Eve"))


def test_a_role_written_into_the_list_by_hand_counts_for_nothing(office: Office) -> None:
    path = office.home.directory / people.PEOPLE_FILE
    path.write_text(path.read_text().replace('"operator"', '"operator",\n    "privacy_officer"'))
    assert people.read(office.home)[1].roles == ("operator", "privacy_officer", "data_manager")
    with pytest.raises(ApprovalError, match="nobody here signs"):
        office.approve(office.paper("Bob", by="Bob"))


def test_two_of_a_role_are_two_people(home: Home) -> None:
    office = Office(home, "{privacy_officer: 2, operator: 1}")
    cy = SiteKey.generate()
    people.add(home, "Cy", ["privacy_officer"], cy.public, by="root")
    office.keys["Cy"] = cy
    assert office.approve(office.paper()) == "pending"
    assert office.approve(office.paper()) == "pending"
    office.approvals.approve(office.approvals.find(STUDY.hash), role="operator", by="Bob")
    verdict = office.approvals.seen(STUDY, OURS)
    assert (verdict.missing, verdict.why) == (
        ("privacy_officer",),
        "waits for an approval as privacy_officer, signed",
    )
    assert office.approve(office.paper("Cy", by="Cy")) == "approved"


def test_names_and_keys_are_each_somebodys(office: Office) -> None:
    for name, key, said in (
        ("ann", SiteKey.generate(), "is there already"),
        ("Dan", office.keys["Ann"], "is Ann's"),
        ("a\nb", SiteKey.generate(), "one line"),
    ):
        with pytest.raises(ApprovalError, match=said):
            people.add(office.home, name, ["operator"], key.public, by="root")
    with pytest.raises(ApprovalError, match="there is no Dan"):
        people.remove(office.home, "Dan", by="root")


def test_a_site_of_before_signatures_goes_on(home: Home) -> None:
    """Its approvals' file has no column for them."""
    with closing(Approvals(home)) as approvals:
        approvals.seen(STUDY, OURS)
        approvals.approve(approvals.find(STUDY.hash), role="operator", by="Ann")
    with closing(sqlite3.connect(home.directory / APPROVALS_FILE)) as connection, connection:
        connection.execute("ALTER TABLE decision DROP COLUMN signed")
        connection.execute("PRAGMA user_version=1")
    with closing(Approvals(home)) as approvals:
        assert approvals.seen(STUDY, OURS).state == "approved"


def test_keys_that_people_bring_along(tmp_path: Path) -> None:
    made = signing.new_key(tmp_path / "ann.key", PASSPHRASE)
    assert (tmp_path / "ann.key").stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in (tmp_path / "ann.key").read_bytes()
    assert people.read_public_key(tmp_path / "ann.key.pub") == made
    assert signing.load_key(tmp_path / "ann.key", lambda: PASSPHRASE).public == made
    with pytest.raises(IdentityError, match="that this passphrase opens"):
        signing.load_key(tmp_path / "ann.key", lambda: "wrong")
    with pytest.raises(IdentityError, match="not overwritten"):
        signing.new_key(tmp_path / "ann.key", PASSPHRASE)
    with pytest.raises(IdentityError, match="at least 12"):
        signing.new_key(tmp_path / "bob.key", "short")
    (tmp_path / "ann.key").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        signing.load_key(tmp_path / "ann.key", lambda: PASSPHRASE)
    brought = ec.generate_private_key(ec.SECP384R1())
    public = brought.public_key()
    (tmp_path / "pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (tmp_path / "ssh").write_bytes(line + b" ann@laptop\n")
    assert people.read_public_key(tmp_path / "pem") == people.read_public_key(tmp_path / "ssh")
    for form in (PrivateFormat.OpenSSH, PrivateFormat.PKCS8):
        (tmp_path / "own").write_bytes(brought.private_bytes(Encoding.PEM, form, NoEncryption()))
        (tmp_path / "own").chmod(0o600)
        assert signing.load_key(tmp_path / "own", lambda: pytest.fail("asked")).public.raw == public
    other = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "own").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(IdentityError, match="P-384"):
        signing.load_key(tmp_path / "own", lambda: "")
    (tmp_path / "pem").write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(IdentityError, match="P-384"):
        people.read_public_key(tmp_path / "pem")


def test_a_key_that_openssh_has_locked_is_told_how_to_convert(tmp_path: Path) -> None:
    """Such a file by its format (openssh-key-v1): what is locked in it is not looked at without bcrypt."""

    def text(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    line = SiteKey.generate().public.openssh
    options = text(bytes(16)) + (16).to_bytes(4, "big")
    locked = b"openssh-key-v1\0" + text(b"aes256-ctr") + text(b"bcrypt") + text(options) + (1).to_bytes(4, "big")
    locked += text(base64.b64decode(line.split()[1])) + text(bytes(256))
    words = ("-----BEGIN OPENSSH", "PRIVATE KEY-----", "-----END OPENSSH")
    body = base64.encodebytes(locked).decode()
    (tmp_path / "own").write_text(f"{words[0]} {words[1]}\n{body}{words[2]} {words[1]}\n")
    (tmp_path / "own").chmod(0o600)
    with pytest.raises(IdentityError, match="ssh-keygen -p -m PKCS8"):
        signing.load_key(tmp_path / "own", lambda: PASSPHRASE)


def test_from_the_command_line_here_and_on_another_machine(home: Home, tmp_path: Path) -> None:
    def typed(*words: object, stdin: str = "") -> str:
        result = CliRunner().invoke(app, ["site", *map(str, words)], input=stdin)
        assert result.exit_code == 0, (words, result.output, result.exception)
        return result.output

    write(home, approvals_needed="{privacy_officer: 2}", signed_approvals="[privacy_officer]")
    with closing(Approvals(home)) as approvals:
        approvals.seen(STUDY, OURS)
    where = ("--site", home.directory)
    assert "nobody signs here" in typed("person", "list", *where)
    for name in ("ann", "bob"):
        out = typed("person", "new-key", tmp_path / name, stdin=f"{PASSPHRASE}\n")
        fingerprint = out.splitlines()[-1].split()[1]
        added = typed("person", "add", name, "--role", "privacy-officer", "--key", tmp_path / f"{name}.pub", *where)
        assert fingerprint in added
    out = typed(
        *("approve", STUDY.hash[:12], "--as", "privacy-officer", "--by", "ann", "--key", tmp_path / "ann", "--yes"),
        *where,
        stdin=f"{PASSPHRASE}\n",
    )
    assert "approved by ann as privacy_officer, signed, for the sites north, south" in out
    asked, signed = tmp_path / "to-sign.json", tmp_path / "signed.json"
    who = ("--as", "privacy_officer", "--by", "bob", "--yes")
    typed("approve", STUDY.hash[:12], *who, "--request-out", asked, *where)
    out = typed("person", "sign", asked, "--key", tmp_path / "bob", "--out", signed, "--yes", stdin=f"{PASSPHRASE}\n")
    for said in (STUDY.hash, "bob as privacy_officer: approve the study", OURS.coordinator, "south, key 3333-4444"):
        assert said in out
    assert "approved until" in typed("approve", STUDY.hash[:12], "--signature", signed, *where)
    assert "approve by bob as privacy_officer, signed" in typed("show", STUDY.hash[:12], *where)
    assert f"study {STUDY.hash[:12]} (tiny) has stopped" in typed("person", "remove", "bob", "--why", "left", *where)
    assert "bob" not in typed("person", "list", *where)
    result = CliRunner().invoke(app, ["site", "approve", STUDY.hash[:12], *map(str, where)])
    assert "--as ROLE --by NAME" in str(result.exception)
