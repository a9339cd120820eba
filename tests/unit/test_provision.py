"""Coordinator and sites: admitted, confirmed, replaced, revoked, renewed; and what must not happen on the way."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import federation
from client.federation import FOLDER, Membership
from client.home import Home
from common.errors import FedwardError, IdentityError
from common.identity import (
    Authority,
    Kit,
    Request,
    Roster,
    SiteKey,
    covers,
    days_left,
    make_private_folder,
    sign_document,
)
from server.coordinator_config import CoordinatorConfig
from server.provision import Coordinator

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
NONCE = "0123456789abcdef" * 2


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at = NOW

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def coordinator(tmp_path: Path, clock: Clock) -> Coordinator:
    return Coordinator.init(tmp_path / "hub", name="Thorax", address="hub.example:8443", clock=clock)


@pytest.fixture
def site(tmp_path: Path, clock: Clock) -> Callable[[str], Home]:
    def make(alias: str) -> Home:
        return Home.init(tmp_path / alias, alias=alias, synthetic=True, clock=clock)

    return make


def request(alias: str, key: SiteKey | None = None) -> bytes:
    return Request(alias=alias, nonce=NONCE, made=NOW).sign(key or SiteKey.generate())


def joined(coordinator: Coordinator, home: Home) -> Kit:
    kit = coordinator.admit(federation.join_request(home).read_bytes())
    return federation.join(home, kit, coordinator=coordinator.key.public.fingerprint)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def events(log: Home | Coordinator) -> list[str]:
    return [entry.event for entry in log.audit.entries()]


# The coordinator


def test_a_new_coordinator_is_complete_and_private(coordinator: Coordinator) -> None:
    names = set(contents(coordinator.directory))
    assert names == {
        *("coordinator.yaml", "identity.key", "roster.json", "audit.jsonl"),
        *("pki/ca.key", "pki/ca.crt", "pki/server.key", "pki/server.crt"),
    }
    assert coordinator.directory.stat().st_mode & 0o077 == 0
    for name in names:
        if name.endswith(".key"):
            assert (coordinator.directory / name).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in coordinator.directory.parent.iterdir()] == ["hub"]
    again = Coordinator.open(coordinator.directory, clock=coordinator.clock)
    assert again.config == coordinator.config
    assert again.roster.version == 1
    assert [(expiry.what, expiry.days) for expiry in again.expiries()] == [("authority", 3652), ("server", 365)]
    assert covers(again.certificate_path.read_bytes(), ["hub.example"])


def test_a_coordinator_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "letter.txt").write_text("mine")
    good = {"name": "Thorax", "address": "hub.example:8443"}
    with pytest.raises(IdentityError, match="not empty"):
        Coordinator.init(tmp_path / "hub", **good)  # type: ignore[arg-type]
    for changes in (
        {"name": ""},
        {"name": "x" * 65},
        {"name": "two\nlines"},
        {"address": "hub.example"},
        {"address": "0.0.0.0:8443"},
        {"address": "[::]:8443"},
        {"listen": "everywhere"},
        {"also": ["a b"]},
    ):
        with pytest.raises(IdentityError):
            Coordinator.init(tmp_path / "other", **{**good, **changes})  # type: ignore[arg-type]

    def stopped() -> datetime:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Coordinator.init(tmp_path / "other", **good, clock=stopped)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "name: x", "name: x\naddress: h:1\nmore: 1", "name: [", "name: *a", "name: x\naddress: 7", "\0"],
)
def test_a_damaged_configuration_is_refused(coordinator: Coordinator, text: str) -> None:
    (coordinator.directory / "coordinator.yaml").write_text(text)
    with pytest.raises(IdentityError, match=r"coordinator\.yaml|HOST:PORT"):
        Coordinator.open(coordinator.directory)


def test_a_directory_without_a_coordinator(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="coordinator init"):
        Coordinator.open(tmp_path)


def test_the_configuration_survives_the_disk(tmp_path: Path) -> None:
    config = CoordinatorConfig(
        name="Lunge & Herz", address="[2001:db8::1]:443", also=("localhost",), site_certificates=True
    )
    config.save(tmp_path)
    assert CoordinatorConfig.load(tmp_path) == config
    assert config.hosts == ["2001:db8::1", "localhost"]


# Admission


def test_admitting_the_same_request_again_changes_nothing(coordinator: Coordinator) -> None:
    asked = request("north")
    first, _ = Kit.open(coordinator.admit(asked))
    before = contents(coordinator.directory)
    second, _ = Kit.open(coordinator.admit(asked))
    assert first == second
    assert contents(coordinator.directory) == before
    assert coordinator.roster.version == 2


def test_one_alias_one_key(coordinator: Coordinator) -> None:
    key = SiteKey.generate()
    coordinator.admit(request("north", key))
    for asked, finding in (
        (request("south", key), "this key is north's"),
        (request("north"), "coordinator replace"),
        (request("North"), "too much like north"),
        (request("n0rth"), "too much like north"),
        (request("third", coordinator.key), "coordinator's own key"),
    ):
        with pytest.raises(IdentityError, match=finding):
            coordinator.admit(asked)
    assert list(coordinator.roster.keys) == ["north"]
    assert coordinator.roster.version == 2


def test_a_revoked_key_does_not_come_back_unnoticed(coordinator: Coordinator) -> None:
    key = SiteKey.generate()
    coordinator.admit(request("north", key))
    coordinator.revoke("north", why="left")
    assert coordinator.roster.keys == {}
    assert coordinator.roster.version == 3
    assert coordinator.revoke("north").version == 3
    for alias in ("north", "elsewhere"):
        with pytest.raises(IdentityError, match="--again"):
            coordinator.admit(request(alias, key))
    with pytest.raises(IdentityError, match="another key"):  # the alias is taken, though its key is revoked
        coordinator.admit(request("north"))
    with pytest.raises(IdentityError, match="too much like"):
        coordinator.admit(request("NORTH"))
    with pytest.raises(IdentityError, match="new-identity"):
        coordinator.replace(request("north", key))
    coordinator.admit(request("elsewhere", key), again=True)
    assert list(coordinator.roster.keys) == ["elsewhere"]
    assert events(coordinator) == ["coordinator-made", "admit", "revoke", "admit"]


def test_replacing_a_key(coordinator: Coordinator) -> None:
    old, new = SiteKey.generate(), SiteKey.generate()
    with pytest.raises(IdentityError, match="`admit` takes in"):
        coordinator.replace(request("north", old))
    coordinator.admit(request("north", old))
    coordinator.admit(request("south"))
    asked = request("north", new)
    kit, _ = Kit.open(coordinator.replace(asked))
    assert coordinator.roster.keys["north"] == new.public
    assert Kit.open(coordinator.replace(asked))[0] == kit
    assert [(entry.alias, entry.status) for entry in coordinator.roster.entries] == [
        ("north", "revoked"),
        ("south", "active"),
        ("north", "active"),
    ]
    with pytest.raises(IdentityError, match="known as south's"):
        coordinator.replace(Request(alias="north", nonce=NONCE, made=NOW).sign(_key_of(coordinator, "south")))
    # The thief's attempts with the old key, and after a revocation the site's return with a third.
    with pytest.raises(IdentityError, match="known as north's, revoked"):
        coordinator.replace(request("north", old))
    coordinator.revoke("north")
    third = SiteKey.generate()
    coordinator.replace(request("north", third))
    assert coordinator.roster.keys["north"] == third.public


def _key_of(coordinator: Coordinator, alias: str) -> SiteKey:
    """Another key under ``alias``, whose private half the test knows."""
    key = SiteKey.generate()
    coordinator.replace(request(alias, key))
    return key


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"x" * (1 << 17),
        b"[" * 60_000,
        sign_document(
            "join-kit", {"alias": "north", "nonce": NONCE, "made": "2026-05-06T07:08:09Z"}, SiteKey.generate()
        ),
        sign_document("join-request", {"alias": "north"}, SiteKey.generate()),
        sign_document(
            "join-request", {"alias": "../..", "nonce": NONCE, "made": "2026-05-06T07:08:09Z"}, SiteKey.generate()
        ),
    ],
)
def test_hostile_requests_change_nothing(coordinator: Coordinator, data: bytes) -> None:
    before = contents(coordinator.directory)
    for act in (coordinator.admit, coordinator.replace):
        with pytest.raises(IdentityError):
            act(data)
    after = contents(coordinator.directory)
    after.pop(".lock", None)
    assert after == before


def test_a_roster_that_was_edited_is_refused(coordinator: Coordinator) -> None:
    coordinator.admit(request("north"))
    path = coordinator.directory / "roster.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"alias":"north"', b'"alias":"s0uth"'))
    with pytest.raises(IdentityError, match="altered"):
        coordinator.admit(request("third"))
    path.write_bytes(Roster(federation="Thorax", version=9, issued=NOW).sign(SiteKey.generate()))
    with pytest.raises(IdentityError, match="signed with the key"):
        _ = coordinator.roster
    path.write_bytes(whole)
    renamed = coordinator.config.model_copy(update={"name": "Abdomen"})
    renamed.save(coordinator.directory)
    with pytest.raises(IdentityError, match="put the name back"):
        _ = Coordinator.open(coordinator.directory).roster


def test_two_admissions_at_once_lose_none(coordinator: Coordinator) -> None:
    def admit(alias: str) -> None:
        asked = request(alias)
        while True:
            try:
                coordinator.admit(asked)
                return
            except IdentityError as error:
                assert "another command" in str(error)

    threads = [threading.Thread(target=admit, args=(f"site-{number}",)) for number in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(coordinator.roster.active) == 4
    assert coordinator.roster.version == 5
    assert coordinator.audit.verify() == 5


def test_no_private_key_is_in_what_travels(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home = site("north")
    kit = joined(coordinator, home)
    secrets = [
        *(path.read_bytes() for path in coordinator.directory.rglob("*.key")),
        (home.directory / FOLDER / "identity.key").read_bytes(),
    ]
    travels = [
        (home.directory / FOLDER / "request.json").read_bytes(),
        kit.sign(coordinator.key),
        coordinator.signed_roster,
        (home.directory / "audit.jsonl").read_bytes(),
        (coordinator.directory / "audit.jsonl").read_bytes(),
    ]
    for text in travels:
        assert b"PRIVATE" not in text
        for secret in secrets:
            for line in secret.splitlines()[1:-1]:
                assert line not in text


# Certificates


def test_renewal_and_expiry(coordinator: Coordinator, clock: Clock) -> None:
    coordinator.admit(request("north"))
    assert coordinator.expiring() == []
    clock.at = NOW + timedelta(days=335)
    assert [(expiry.what, expiry.days) for expiry in coordinator.expiring()] == [("server", 30)]
    key, before = coordinator.server_key_path.read_bytes(), coordinator.authority_path.read_bytes()
    coordinator.renew()
    assert coordinator.expiring() == []
    assert coordinator.server_key_path.read_bytes() == key
    assert coordinator.authority_path.read_bytes() == before
    clock.at = NOW + timedelta(days=3640)
    assert [expiry.what for expiry in coordinator.expiring()] == ["authority", "server"]
    version = coordinator.roster.version
    with pytest.raises(IdentityError, match="coordinator renew"):
        coordinator.admit(request("south"))
    assert coordinator.roster.version == version
    coordinator.renew(authority=True)
    assert [expiry.days for expiry in coordinator.expiries()] == [3652, 365]
    coordinator.admit(request("south"))
    clock.at = NOW + timedelta(days=9999)
    with pytest.raises(IdentityError, match="renew --authority"):
        coordinator.renew()


def test_another_address_needs_another_certificate(coordinator: Coordinator) -> None:
    moved = coordinator.config.model_copy(update={"address": "192.0.2.9:443", "also": ("localhost",)})
    moved.save(coordinator.directory)
    again = Coordinator.open(coordinator.directory, clock=coordinator.clock)
    with pytest.raises(IdentityError, match="coordinator renew"):
        again.admit(request("north"))
    again.renew()
    assert again.roster.version == 1
    kit, _ = Kit.open(again.admit(request("north")))
    assert kit.address == "192.0.2.9:443"
    assert covers(again.certificate_path.read_bytes(), ["192.0.2.9", "localhost", "127.0.0.1"])


def test_an_authority_that_lost_its_key_is_noticed(coordinator: Coordinator) -> None:
    coordinator.authority_path.write_bytes(Authority.make("Thorax", NOW).certificate)
    with pytest.raises(IdentityError, match="backup"):
        coordinator.renew()


# A site


def test_from_request_to_membership(coordinator: Coordinator, site: Callable[[str], Home], clock: Clock) -> None:
    north, south = site("north"), site("south")
    with pytest.raises(IdentityError, match="join-request"):
        Membership.open(north)
    asked = federation.join_request(north)
    first = asked.read_bytes()
    assert federation.join_request(north) == asked
    assert asked.read_bytes() == first
    joined(coordinator, south)
    joined(coordinator, north)
    member = Membership.open(north)
    assert (member.alias, member.federation, member.address) == ("north", "Thorax", "hub.example:8443")
    assert member.coordinator == coordinator.key.public
    assert member.ca_path.read_bytes() == coordinator.authority_path.read_bytes()
    assert member.tls_path is None
    assert [peer.alias for peer in member.peers] == ["south"]
    assert member.unconfirmed == ["south"]
    assert member.certificate_days(clock()) == 3652
    assert SiteKey.load(member.key_path).public == coordinator.roster.keys["north"]
    federation.confirm(north, "south", coordinator.roster.fingerprints["south"].lower(), by="mara")
    member = Membership.open(north)
    assert member.unconfirmed == []
    assert member.confirmed["south"].by == "mara"
    assert events(north) == ["site-made", "join-request", "joined", "peer-confirmed"]
    for path in (north.directory / FOLDER, *(north.directory / FOLDER).iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_the_first_kit_needs_a_phone_call(
    coordinator: Coordinator, site: Callable[[str], Home], tmp_path: Path
) -> None:
    """Whoever can exchange the mail can send a whole other federation: only the fingerprint tells."""
    home = site("north")
    asked = federation.join_request(home).read_bytes()
    forger = Coordinator.init(tmp_path / "forger", name="Thorax", address="hub.example:8443", clock=home.clock)
    forged, kit, own = forger.admit(asked), coordinator.admit(asked), coordinator.key.public.fingerprint
    for data, typed, finding in (
        (kit, None, "nobody compared"),
        (forged, None, "nobody compared"),
        (forged, own, "exchanged on its way"),
        (kit, own[:-1], "exchanged on its way"),
        (kit, "", "exchanged on its way"),
    ):
        with pytest.raises(IdentityError, match=finding):
            federation.join(home, data, coordinator=typed)
    assert not (home.directory / FOLDER / "kit.json").exists()
    federation.join(home, kit, coordinator=own)
    federation.join(home, kit)  # from now on that coordinator is known
    for typed in (None, own):
        with pytest.raises(IdentityError, match=r"nobody compared|exchanged"):
            federation.join(home, forged, coordinator=typed)
    assert Membership.open(home).coordinator == coordinator.key.public
    # A new coordinator is possible, but only by another phone call.
    federation.join(home, forged, coordinator=forger.key.public.fingerprint)
    assert Membership.open(home).coordinator == forger.key.public


def test_another_authority_needs_another_call(
    coordinator: Coordinator, site: Callable[[str], Home], clock: Clock
) -> None:
    home = site("north")
    joined(coordinator, home)
    coordinator.renew(authority=True)
    kit = coordinator.admit((home.directory / FOLDER / "request.json").read_bytes())
    with pytest.raises(IdentityError, match="nobody compared"):
        federation.join(home, kit)
    federation.join(home, kit, coordinator=coordinator.key.public.fingerprint)
    assert Membership.open(home).ca_path.read_bytes() == coordinator.authority_path.read_bytes()


def test_kits_for_others_and_old_ones_are_refused(
    coordinator: Coordinator, site: Callable[[str], Home], clock: Clock
) -> None:
    north, south, own = site("north"), site("south"), coordinator.key.public.fingerprint
    old = coordinator.admit(federation.join_request(north).read_bytes())
    other = coordinator.admit(federation.join_request(south).read_bytes())
    new = coordinator.admit(federation.join_request(north).read_bytes())
    with pytest.raises(IdentityError, match="for the site south"):
        federation.join(north, other, coordinator=own)
    federation.join(north, new, coordinator=own)
    with pytest.raises(IdentityError, match="version 2, and 3 is known"):
        federation.join(north, old, coordinator=own)
    clock.at = NOW + timedelta(days=3653)
    with pytest.raises(IdentityError, match="expired"):
        federation.join(north, new, coordinator=own)
    clock.at = NOW
    federation.new_identity(north)
    with pytest.raises(IdentityError, match="is for the key"):
        federation.join(north, new, coordinator=own)


def test_every_flipped_byte_of_a_kit_shows(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home, own = site("north"), coordinator.key.public.fingerprint
    kit = coordinator.admit(federation.join_request(home).read_bytes())
    for place in range(0, len(kit), 1 if os.environ.get("FEDWARD_SOAK") == "1" else 7):
        changed = kit[:place] + bytes([kit[place] ^ 1]) + kit[place + 1 :]
        with pytest.raises(IdentityError):
            federation.join(home, changed, coordinator=own)
    assert events(home) == ["site-made", "join-request"]


def test_rosters_only_grow_newer(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home = site("north")
    joined(coordinator, home)
    second = coordinator.signed_roster
    coordinator.admit(request("south"))
    third = coordinator.signed_roster
    assert federation.update_roster(home, third).version == 3
    assert Membership.open(home).unconfirmed == ["south"]
    assert federation.update_roster(home, third).version == 3
    forked = Roster(federation="Thorax", version=3, issued=NOW, entries=coordinator.roster.entries[:1])
    for data, finding in (
        (second, "version 2, and 3 is known"),
        (forked.sign(coordinator.key), "two different rosters"),
        (forked.model_copy(update={"version": 4}).sign(SiteKey.generate()), "signed with the key"),
        (forked.model_copy(update={"version": 4, "federation": "Other"}).sign(coordinator.key), "another federation"),
        (b"", "no roster"),
    ):
        with pytest.raises(IdentityError, match=finding):
            federation.update_roster(home, data)
    assert Membership.open(home).roster == coordinator.roster
    # On the disk, too: putting the older one back does not bring a revoked site back.
    coordinator.revoke("south")
    federation.update_roster(home, coordinator.signed_roster)
    (home.directory / FOLDER / "kit.json").write_bytes(
        coordinator.admit((home.directory / FOLDER / "request.json").read_bytes())
    )
    (home.directory / FOLDER / "roster.json").write_bytes(third)
    with pytest.raises(IdentityError, match="does not go with the kit"):
        Membership.open(home)


def test_additions_and_new_keys_ask_again_removals_do_not(
    coordinator: Coordinator, site: Callable[[str], Home]
) -> None:
    home = site("north")
    coordinator.admit(request("south"))
    coordinator.admit(request("west"))
    joined(coordinator, home)
    for alias in ("south", "west"):
        federation.confirm(home, alias, coordinator.roster.fingerprints[alias])
    approved = Membership.open(home).roster.hash
    coordinator.revoke("west")
    federation.update_roster(home, coordinator.signed_roster)
    assert Membership.open(home).unconfirmed == []
    assert Membership.open(home).roster.hash != approved
    before = coordinator.roster.fingerprints["south"]
    coordinator.replace(request("south"))
    federation.update_roster(home, coordinator.signed_roster)
    assert Membership.open(home).unconfirmed == ["south"]
    for alias, typed, finding in (
        ("south", before, "not the fingerprint"),
        ("west", before, "no other site known here"),
        ("north", coordinator.roster.fingerprints["north"], "no other site known here"),
        ("nobody", before, "no other site known here"),
    ):
        with pytest.raises(IdentityError, match=finding):
            federation.confirm(home, alias, typed)


def test_a_new_identity_after_a_compromise(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home = site("north")
    joined(coordinator, home)
    old = SiteKey.load(home.directory / FOLDER / "identity.key").public
    vault = home.vault_path.read_bytes()
    asked = federation.new_identity(home).read_bytes()
    with pytest.raises(IdentityError, match="coordinator replace"):
        Membership.open(home)
    read, key = coordinator.read_request(asked)
    assert read.predecessor(key) == old != key
    with pytest.raises(IdentityError, match="coordinator replace"):
        coordinator.admit(asked)
    kit = coordinator.replace(asked)
    federation.update_roster(home, coordinator.signed_roster)  # a running federation may tell first
    with pytest.raises(IdentityError, match="coordinator replace"):
        Membership.open(home)
    federation.join(home, kit)  # the same coordinator: no call needed
    assert Membership.open(home).roster.of_key(old).status == "revoked"  # type: ignore[union-attr]
    assert home.vault_path.read_bytes() == vault
    assert federation.join_request(home).read_bytes() == asked


def test_a_new_identity_without_the_old_key(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home = site("north")
    joined(coordinator, home)
    (home.directory / FOLDER / "identity.key").unlink()
    with pytest.raises(IdentityError, match="no private key"):
        Membership.open(home)
    read, key = coordinator.read_request(federation.new_identity(home).read_bytes())
    assert read.predecessor(key) is None
    federation.join(home, coordinator.replace((home.directory / FOLDER / "request.json").read_bytes()))
    assert Membership.open(home).peers == ()


def test_a_revoked_site_learns_it(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home = site("north")
    joined(coordinator, home)
    coordinator.revoke("north")
    federation.update_roster(home, coordinator.signed_roster)
    with pytest.raises(IdentityError, match="has revoked this site"):
        Membership.open(home)


def test_an_open_key_stops_the_site(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home = site("north")
    joined(coordinator, home)
    (home.directory / FOLDER / "identity.key").chmod(0o644)
    for act in (Membership.open, federation.join_request):
        with pytest.raises(IdentityError, match="chmod 600"):
            act(home)


def test_another_alias_is_another_site(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    """A renamed site's key is on the roster under its old name only."""
    home = site("north")
    joined(coordinator, home)
    renamed = Home(home.directory, home.config.model_copy(update={"alias": "south"}), None, home.clock)
    with pytest.raises(IdentityError, match="does not know"):
        Membership.open(renamed)


def test_site_certificates(tmp_path: Path, site: Callable[[str], Home], clock: Clock) -> None:
    hub = Coordinator.init(
        tmp_path / "hub", name="Thorax", address="hub.example:8443", site_certificates=True, clock=clock
    )
    home = site("north")
    kit = joined(hub, home)
    member = Membership.open(home)
    assert member.tls_path is not None
    assert member.tls_path.stat().st_mode & 0o777 == 0o600
    assert kit.certificate is not None
    assert days_left(kit.certificate, NOW) == member.certificate_days(NOW) == 365
    clock.at = NOW + timedelta(days=340)
    assert [(expiry.what, expiry.days) for expiry in hub.expiring()] == [("server", 25), ("north", 25)]
    hub.renew()
    kit = federation.join(home, hub.admit((home.directory / FOLDER / "request.json").read_bytes()))
    assert Membership.open(home).certificate_days(clock.at) == 365
    member.tls_path.write_bytes(b"")
    member.tls_path.chmod(0o600)
    with pytest.raises(IdentityError, match="site join"):
        Membership.open(home)


FILES = ("identity.key", "request.json", "kit.json", "roster.json", "confirmed.json", "ca.crt")


def test_damaged_files_of_a_site_are_named(coordinator: Coordinator, site: Callable[[str], Home]) -> None:
    home = site("north")
    coordinator.admit(request("south"))
    joined(coordinator, home)
    federation.confirm(home, "south", coordinator.roster.fingerprints["south"])
    folder = home.directory / FOLDER
    for name in FILES:
        whole = (folder / name).read_bytes()
        for content in (b"", b"\0\xff", b"[]", b'{"south": 1}', whole[:-2], b"[" * 100_000):
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
            if name == "request.json":
                Membership.open(home)
                continue
            with pytest.raises(IdentityError):
                Membership.open(home)
        (folder / name).write_bytes(whole)
        assert Membership.open(home).unconfirmed == []


def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies at the write with this number."""
    left = iter(range(writes))
    replace = os.replace

    def dying(source: str, target: str) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)


@pytest.mark.parametrize("writes", range(4))
def test_a_join_killed_anywhere_is_mended_by_another(
    coordinator: Coordinator, site: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    home, own = site("north"), coordinator.key.public.fingerprint
    joined(coordinator, home)
    coordinator.renew(authority=True)
    coordinator.admit(request("south"))
    kit = coordinator.admit((home.directory / FOLDER / "request.json").read_bytes())
    with monkeypatch.context() as patch:
        killed_after(writes, patch)
        if writes < 3:
            with pytest.raises(KeyboardInterrupt):
                federation.join(home, kit, coordinator=own)
        else:
            federation.join(home, kit, coordinator=own)
    federation.join(home, kit, coordinator=own)
    assert len(Membership.open(home).peers) == 1


@pytest.mark.parametrize("writes", range(3))
def test_a_new_identity_killed_anywhere_is_mended_by_another(
    coordinator: Coordinator, site: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    home = site("north")
    joined(coordinator, home)
    with monkeypatch.context() as patch:
        killed_after(writes, patch)
        if writes < 2:
            with pytest.raises(KeyboardInterrupt):
                federation.new_identity(home)
        else:
            federation.new_identity(home)
    asked = federation.join_request(home).read_bytes()
    kit = coordinator.replace(asked) if writes else coordinator.admit(asked)
    federation.join(home, kit)
    Membership.open(home)


@pytest.mark.parametrize("writes", range(2))
def test_an_admission_killed_anywhere_is_mended_by_another(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    asked = request("north")
    with monkeypatch.context() as patch:
        killed_after(writes, patch)
        try:
            coordinator.admit(asked)
        except KeyboardInterrupt:
            assert coordinator.roster.keys == {}
    coordinator.admit(asked)
    assert list(coordinator.roster.keys) == ["north"]
    assert coordinator.roster.version == 2


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from(["admit", "replace", "revoke"]), st.integers(0, 2), st.integers(0, 3))))
def test_whatever_is_asked_a_roster_stays_unmistakable(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """One key an alias, one alias a key, no revoked key back, versions only growing, every change in the log."""
    hub = Coordinator.init(tmp_path_factory.mktemp("law") / "hub", name="Law", address="hub:1", clock=lambda: NOW)
    keys = [SiteKey.generate() for _ in range(4)]
    revoked: set[str] = set()
    for verb, alias, number in steps:
        before = hub.roster
        try:
            if verb == "revoke":
                hub.revoke(f"site-{alias}a")
            else:
                asked = request(f"site-{alias}a", keys[number])
                _ = hub.admit(asked) if verb == "admit" else hub.replace(asked)
        except FedwardError:
            assert hub.roster == before
        after = hub.roster
        assert after.version == before.version + (after != before)
        revoked |= {entry.public_key.openssh for entry in after.entries if entry.status == "revoked"}
        assert not revoked & {key.openssh for key in after.keys.values()}
    assert hub.audit.verify() == hub.roster.version
    assert json.loads(hub.signed_roster)["by"] == hub.key.public.openssh


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(IdentityError, match="cannot make"):
        make_private_folder(tmp_path / "file" / "folder")
