"""Keys, fingerprints, signed papers, rosters, certificates: what they promise, and what strangers may send."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flwr.supercore.primitives import asymmetric
from hypothesis import given
from hypothesis import strategies as st

from common.errors import IdentityError
from common.identity import (
    Address,
    Authority,
    Entry,
    Handover,
    Kit,
    PublicKey,
    Request,
    Roster,
    SiteKey,
    check_authority,
    check_site_certificate,
    compare,
    covers,
    days_left,
    fingerprint,
    locked,
    lookalike,
    open_document,
    same_fingerprint,
    sign_document,
)
from common.identity.documents import MOST_BYTES, canonical
from common.identity.storage import read_file

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
NONCE = "0123456789abcdef" * 2
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@cache
def key(name: str) -> SiteKey:
    """A key that stays the same while the tests run."""
    return SiteKey.generate()


def entry(alias: str, name: str = "", status: str = "active") -> Entry:
    return Entry(alias=alias, public_key=key(name or alias).public, status=status, since=NOW)  # type: ignore[arg-type]


def roster(*entries: Entry, version: int = 1) -> Roster:
    return Roster(federation="Test", version=version, issued=NOW, entries=entries)


# Keys


def test_flower_reads_our_keys(tmp_path: Path) -> None:
    """The file as a SuperNode does, the public key as a SuperLink keeps it."""
    mine = key("north")
    mine.save(tmp_path / "identity.key")
    assert (tmp_path / "identity.key").stat().st_mode & 0o777 == 0o600
    theirs = serialization.load_ssh_private_key((tmp_path / "identity.key").read_bytes(), password=None)
    assert isinstance(theirs, ec.EllipticCurvePrivateKey)
    assert asymmetric.public_key_to_bytes(theirs.public_key()) == mine.public.pem
    assert PublicKey.of(asymmetric.bytes_to_public_key(mine.public.pem)) == mine.public
    loaded = SiteKey.load(tmp_path / "identity.key")
    assert loaded.public == mine.public
    assert mine.public.verify(loaded.sign(b"hello"), b"hello")
    assert not mine.public.verify(loaded.sign(b"hello"), b"hallo")
    assert not key("south").public.verify(loaded.sign(b"hello"), b"hello")
    assert not mine.public.verify(b"no signature", b"hello")


def test_a_key_does_not_show_itself() -> None:
    mine = key("north")
    secret = str(mine.raw.private_numbers().private_value)
    for shown in (repr(mine), str(mine), repr(mine.public), f"{vars(mine)}"):
        assert secret not in shown
        assert "PRIVATE" not in shown


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    key("north").save(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        SiteKey.load(path)


def _armour(words: str) -> bytes:
    return f"-----BEGIN {words}-----\nAAAA\n-----END {words}-----\n".encode()


def _private(made: object, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"x" * 5000,
        _armour("OPENSSH PRIVATE KEY"),
        _armour("PRIVATE KEY"),
        _private(ec.generate_private_key(ec.SECP256R1())),
        _private(ec.generate_private_key(ec.SECP521R1())),
        _private(ec.generate_private_key(ec.SECP256K1())),
        _private(ed25519.Ed25519PrivateKey.generate()),
        _private(rsa.generate_private_key(65537, 2048)),
        _private(ec.generate_private_key(ec.SECP384R1()), b"secret"),
    ],
)
def test_other_private_keys_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError):
        SiteKey.load(path)


def test_a_damaged_key_file_is_refused_or_another_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    key("north").save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with contextlib.suppress(IdentityError):
            loaded = SiteKey.load(path)
            assert loaded.public.verify(loaded.sign(b"hello"), b"hello")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, word in (
        (tmp_path / "pipe", "not a file"),
        (tmp_path, "not a file"),
        (tmp_path / "gone", "there is no"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path / "a\0b", "cannot read"),
    ):
        with pytest.raises(IdentityError, match=word):
            SiteKey.load(path)
    (tmp_path / "long").write_bytes(b"x" * 11)
    with pytest.raises(IdentityError, match="longer"):
        read_file(tmp_path / "long", "thing", most=10)


def _line(made: object) -> str:
    form = serialization.PublicFormat.OpenSSH
    return made.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode()  # type: ignore[attr-defined, no-any-return]


def hostile_lines() -> Iterator[object]:
    good = key("north").public.openssh
    kind, blob = good.split()
    raw = bytearray(base64.b64decode(blob))
    raw[-1] ^= 1  # a point off the curve
    yield f"{kind} {base64.b64encode(raw).decode()}"
    yield from (good + " comment", good + "\n", " " + good, good.upper(), good[:-4], good + "A", kind, "", "é" * 9)
    yield from (None, 7, True, [good], {"key": good}, "x" * 10**6, good + "\ud800")
    yield _line(ec.generate_private_key(ec.SECP256R1()))
    yield _line(ec.generate_private_key(ec.SECP521R1()))
    yield _line(ed25519.Ed25519PrivateKey.generate())
    yield _line(rsa.generate_private_key(65537, 2048))
    yield key("north").public.pem.decode()


@pytest.mark.parametrize("line", list(hostile_lines()))
def test_other_public_keys_are_refused(line: object) -> None:
    with pytest.raises(IdentityError):
        PublicKey.parse(line)


# Fingerprints


def test_a_fingerprint_can_be_recomputed_elsewhere() -> None:
    """``openssl pkey -pubin -outform DER | sha256sum``, its first 100 bits in Crockford's base 32."""
    der = key("north").public.raw.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    bits = "".join(f"{byte:08b}" for byte in hashlib.sha256(der).digest())
    letters = "".join(ALPHABET[int(bits[start : start + 5], 2)] for start in range(0, 100, 5))
    found = fingerprint(key("north").public)
    assert found.replace("-", "") == letters
    assert [len(group) for group in found.split("-")] == [4] * 5


def test_no_two_keys_share_a_fingerprint() -> None:
    made = {SiteKey.generate().public.fingerprint for _ in range(2000)}
    assert len(made) == 2000
    for place in range(24):  # every letter depends on the key
        assert len({found[place] for found in made}) == (1 if place % 5 == 4 else 32)


@given(st.text(ALPHABET, min_size=20, max_size=20), st.randoms(use_true_random=False))
def test_a_fingerprint_is_the_same_however_it_is_typed(letters: str, chance: random.Random) -> None:
    typed = "".join(
        chance.choice({"0": "0Oo", "1": "1IiLl"}.get(letter, letter + letter.lower()))
        + chance.choice(["", "", "-", " ", "\t"])
        for letter in letters
    )
    assert same_fingerprint(typed, letters)
    assert same_fingerprint(letters, typed)


@given(st.text(ALPHABET, min_size=20, max_size=20), st.integers(0, 19), st.characters(max_codepoint=0x3000))
def test_one_other_letter_is_another_fingerprint(letters: str, place: int, wrong: str) -> None:
    typed = letters[:place] + wrong + letters[place + 1 :]
    read = wrong.upper().translate(str.maketrans("OIL", "011")) if wrong.isascii() else ""
    assert same_fingerprint(typed, letters) == (read == letters[place])


@given(st.text(ALPHABET, min_size=20, max_size=20), st.integers(0, 18))
def test_swapped_and_missing_letters_show(letters: str, place: int) -> None:
    swapped = letters[:place] + letters[place + 1] + letters[place] + letters[place + 2 :]
    assert same_fingerprint(swapped, letters) == (swapped == letters)
    assert not same_fingerprint(letters[:place] + letters[place + 1 :], letters)
    assert not same_fingerprint(letters + letters[place], letters)


def test_nothing_is_no_fingerprint() -> None:
    assert not same_fingerprint("", "")
    assert not same_fingerprint("U" * 20, "U" * 20)


def test_people_decide_not_scripts() -> None:
    asked: list[str] = []

    def say(answer: bool) -> object:
        return lambda question: asked.append(question) or answer  # type: ignore[func-returns-value]

    mine, other = key("north").public, key("south").public.fingerprint
    compare("north", mine, mine.fingerprint.lower())
    compare("north", mine, None, ask=say(True))  # type: ignore[arg-type]
    compare("north", mine, None, yes=True, ask=say(False))  # type: ignore[arg-type]
    assert len(asked) == 1
    for typed, yes, ask in (
        (other, True, say(True)),
        ("", True, say(True)),
        (None, True, None),
        (None, False, None),
        (None, False, say(False)),
    ):
        with pytest.raises(IdentityError):
            compare("north", mine, typed, yes=yes, ask=ask)  # type: ignore[arg-type]


# Documents

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_a_document_says_what_was_signed(body: dict[str, object]) -> None:
    data = sign_document("roster", body, key("north"))
    try:
        opened = open_document("roster", data, key("north").public)
    except IdentityError:
        assert _depth(body) > 6
        return
    assert opened.body == body
    assert opened.by == key("north").public


def _depth(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0)


def test_every_flipped_bit_shows() -> None:
    data = Request(alias="north", nonce=NONCE, made=NOW).sign(key("north"))
    Request.open(data, key("north").public)
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            with pytest.raises(IdentityError):
                Request.open(bytes(changed), key("north").public)
            with pytest.raises(IdentityError):  # nor does it become somebody else's
                Request.open(bytes(changed))


def test_every_cut_and_every_addition_shows() -> None:
    data = Request(alias="north", nonce=NONCE, made=NOW).sign(key("north"))
    for cut in range(len(data)):
        with pytest.raises(IdentityError):
            Request.open(data[:cut])
    for added in (b"\n", b" ", b"\0", b"{}"):
        for changed in (data + added, added + data):
            with pytest.raises(IdentityError):
                Request.open(changed)


def test_one_spelling_only() -> None:
    """The same content written another way is refused, though its signature would still hold."""
    data = Request(alias="north", nonce=NONCE, made=NOW).sign(key("north"))
    found = json.loads(data)
    spellings = [
        json.dumps(found).encode(),
        json.dumps(found, indent=1).encode(),
        data.replace(b'"kind"', b'"kin\\u0064"'),
        data.replace(b'"format":1', b'"format":1.0'),
        data.replace(b'"format":1', b'"format":true'),
        data.replace(b"{", b'{"kind":"join-kit",', 1),
        data.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + data,
        data.replace(b"\n", b"\r\n"),
    ]
    for spelling in spellings:
        with pytest.raises(IdentityError):
            Request.open(spelling)


def test_a_kind_cannot_pass_for_another() -> None:
    data = sign_document("roster", {"alias": "north", "nonce": NONCE, "made": "2026-05-06T07:08:09Z"}, key("north"))
    with pytest.raises(IdentityError, match="this is a roster where a join-request belongs"):
        Request.open(data)
    with pytest.raises(IdentityError, match="altered"):
        Request.open(data.replace(b'"kind":"roster"', b'"kind":"join-request"'))
    # Nor can a signature that the key made for another purpose, such as Flower's over a time, be put under one.
    found = json.loads(data)
    found["signature"] = base64.b64encode(key("north").sign(b"2026-05-06T07:08:09+00:00")).decode()
    with pytest.raises(IdentityError, match="altered"):
        open_document("roster", canonical(found) + b"\n")


def test_another_signer_is_named() -> None:
    data = sign_document("roster", {}, key("south"))
    with pytest.raises(IdentityError, match=key("south").public.fingerprint):
        open_document("roster", data, key("north").public)


HUGE = b'{"body":' + b"9" * 5000 + b"}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 100_000,
        b'{"body":' + b"[" * 20 + b"]" * 20 + b',"by":"","format":1,"kind":"roster","signature":""}',
        HUGE,
        b"NaN",
        b'{"body":{},"by":"","format":1e999,"kind":"roster","signature":""}',
        b'{"body":{},"by":"","format":1,"kind":["roster"],"signature":""}',
        b'{"body":{},"by":{},"format":1,"kind":"roster","signature":""}',
        b'{"body":{},"by":"","format":2,"kind":"roster","signature":""}',
        b'{"body":{},"by":"","format":1,"kind":"\\ud800","signature":""}',
        b" " * (MOST_BYTES + 1),
        b"PK\x03\x04" + b"\0" * 100,
    ],
)
def test_bombs_and_rubbish_are_refused(data: bytes) -> None:
    with pytest.raises(IdentityError) as caught:
        open_document("roster", data)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        open_document("roster", data)


@pytest.mark.parametrize("signature", [None, 7, [], "", "AAAA", "é", "A" * 10_000, "////"])
def test_signatures_of_any_sort_are_refused(signature: object) -> None:
    found = json.loads(sign_document("roster", {}, key("north")))
    with pytest.raises(IdentityError, match="altered"):
        open_document("roster", canonical({**found, "signature": signature}) + b"\n")


REQUEST = {"alias": "north", "nonce": NONCE, "made": "2026-05-06T07:08:09Z", "handover": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"alias": ""},
        {"alias": "a" * 65},
        {"alias": ".north"},
        {"alias": "north\n"},
        {"alias": "nörth"},
        {"alias": "nоrth"},  # a Cyrillic o
        {"alias": "../north"},
        {"alias": "north south"},
        {"alias": 7},
        {"alias": None},
        {"nonce": NONCE[1:]},
        {"nonce": NONCE.upper()},
        {"nonce": 12},
        {"made": 0},
        {"made": "2026-05-06"},
        {"made": "2026-05-06T07:08:09+00:00"},
        {"made": "2026-02-30T07:08:09Z"},
        {"made": "٢٠٢٦-05-06T07:08:09Z"},
        {"made": None},
        {"handover": "{}"},
        {"handover": "x" * 5000},
        {"more": 1},
    ],
)
def test_requests_with_other_content_are_refused(changes: dict[str, object]) -> None:
    Request.open(sign_document("join-request", REQUEST, key("north")))
    with pytest.raises(IdentityError):
        request, signer = Request.open(sign_document("join-request", {**REQUEST, **changes}, key("north")))
        request.predecessor(signer)


def test_who_vouches_for_a_new_key() -> None:
    new = key("new").public

    def request(alias: str = "north", for_key: PublicKey = new, nonce: str = NONCE, old: str = "old") -> Request:
        word = Handover(alias=alias, public_key=for_key, nonce=nonce).sign(key(old)).decode()
        return Request(alias="north", nonce=NONCE, made=NOW, handover=word)

    assert request().predecessor(new) == key("old").public
    assert Request(alias="north", nonce=NONCE, made=NOW).predecessor(new) is None
    for bad in (
        request(alias="south"),
        request(for_key=key("else").public),
        request(nonce="f" * 32),
        request(old="new"),
    ):
        with pytest.raises(IdentityError, match="vouches for another"):
            bad.predecessor(new)


# Rosters


def test_a_roster_says_who_is_new_or_changed() -> None:
    confirmed = roster(entry("a"), entry("b"), entry("c")).fingerprints
    assert roster(entry("a"), entry("b"), entry("c")).added_or_changed(confirmed) == []
    assert roster(entry("a")).added_or_changed(confirmed) == []
    assert roster(entry("a"), entry("b", status="revoked")).added_or_changed(confirmed) == []
    assert roster(entry("b", "other"), entry("d")).added_or_changed(confirmed) == ["b", "d"]
    assert roster(entry("a"), entry("b")).added_or_changed({}) == ["a", "b"]


@given(st.permutations(["a", "b", "c", "d"]), st.integers(1, 9))
def test_the_hash_is_of_who_takes_part_and_of_nothing_else(order: list[str], version: int) -> None:
    whole = roster(entry("a"), entry("b"), entry("c"), entry("d"))
    same = roster(*map(entry, order), entry("gone", status="revoked"), version=version)
    assert same.hash == whole.hash
    assert roster(*map(entry, order[:3])).hash != whole.hash
    assert roster(*map(entry, order[:3]), entry(order[3], "another")).hash != whole.hash


def test_a_roster_survives_the_journey() -> None:
    sent = roster(entry("a"), entry("b", status="revoked"), entry("b", "b2"), version=7)
    assert Roster.open(sent.sign(key("c")), key("c").public) == (sent, key("c").public)
    assert sent.of_alias("b") == entry("b", "b2")
    assert sent.of_alias("c") is None
    assert sent.of_key(key("b").public) == entry("b", status="revoked")
    assert list(sent.keys) == ["a", "b"]


@pytest.mark.parametrize(
    ("entries", "finding"),
    [
        ([entry("a"), entry("a", "x")], "two active keys"),
        ([entry("a"), entry("b", "a")], "listed twice"),
        ([entry("a"), entry("b", "a", status="revoked")], "listed twice"),
        ([entry("north"), entry("North")], "look alike"),
        ([entry("site-1"), entry("site-l")], "look alike"),
        ([entry("site.1"), entry("site_1", status="revoked")], "look alike"),
    ],
)
def test_rosters_that_mislead_are_refused(entries: list[Entry], finding: str) -> None:
    body = {
        "federation": "Test",
        "version": 1,
        "issued": "2026-05-06T07:08:09Z",
        "entries": [one.model_dump(mode="json") for one in entries],
    }
    with pytest.raises(IdentityError, match=finding):
        Roster.open(sign_document("roster", body, key("c")))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": True},
        {"version": "1"},
        {"federation": ""},
        {"federation": "x" * 65},
        {"federation": "a\nb"},
        {"federation": "\u202eevil"},
        {"entries": None},
        {"entries": [{"alias": "a"}]},
        {"entries": [{**entry("a").model_dump(mode="json"), "status": "Active"}]},
        {"entries": [{**entry("a").model_dump(mode="json"), "public_key": key("a").public.pem.decode()}]},
    ],
)
def test_rosters_with_other_content_are_refused(changes: dict[str, object]) -> None:
    body = roster(entry("a")).model_dump(mode="json")
    Roster.open(sign_document("roster", body, key("c")))
    with pytest.raises(IdentityError):
        Roster.open(sign_document("roster", {**body, **changes}, key("c")))


@given(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"))
def test_lookalikes(alias: str) -> None:
    for other in (
        alias.upper(),
        alias.lower(),
        alias.replace("0", "O"),
        alias.replace("l", "1"),
        alias.replace(".", "-"),
    ):
        assert lookalike(other) == lookalike(alias)
    assert lookalike(alias + "x") != lookalike(alias)


# Addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("federation.example.org:8443", "federation.example.org", 8443),
        ("Coordinator:1", "coordinator", 1),
        ("192.0.2.7:65535", "192.0.2.7", 65535),
        ("[2001:DB8:0::1]:443", "2001:db8::1", 443),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    found = Address.parse(text)
    assert (found.host, found.port) == (host, port)
    assert Address.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "host:٣", "ho st:1", "host\n:1", "u@host:1"),
        *("https://host:1", "host/x:1", "a..b:1", "-a:1", "a-:1", "1.2.3:1", "256.1.1.1:1", "*.example.org:1"),
        *("2001:db8::1:443", "[host]:1", "[fe80::1%eth0]:1", "[::1:1", "münchen.example:1", "a" * 64 + ":1"),
        ".".join(["abc"] * 64) + ":1",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        Address.parse(text)


# Certificates


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("Test", NOW)


def test_how_long_certificates_are_good(authority: Authority) -> None:
    server = authority.certify_server(key("server").public, ["localhost"], NOW)
    assert days_left(authority.certificate, NOW) == 3652
    assert days_left(server, NOW) == 365
    assert days_left(server, NOW + timedelta(days=364, hours=1)) == 0
    assert days_left(server, NOW + timedelta(days=365, seconds=1)) == -1
    late = NOW + timedelta(days=3600)
    assert days_left(authority.certify_server(key("server").public, ["localhost"], late), late) == 52
    with pytest.raises(IdentityError, match="renew --authority"):
        authority.certify_server(key("server").public, ["localhost"], NOW + timedelta(days=3653))


def test_what_a_server_certificate_covers(authority: Authority) -> None:
    server = authority.certify_server(key("server").public, ["a.example", "192.0.2.1", "localhost"], NOW)
    assert covers(server, ["a.example", "192.0.2.1", "localhost", "127.0.0.1", "::1"])
    assert not covers(server, ["b.example"])
    assert not covers(server, ["192.0.2.2"])
    assert not covers(authority.certificate, ["a.example"])
    assert not covers(authority.certify_server(key("server").public, ["a.example"], NOW), ["127.0.0.1"])


def test_what_is_no_authority(authority: Authority) -> None:
    check_authority(authority.certificate.decode(), NOW)
    other = Authority.make("Test", NOW)
    forged = Authority(other.key, authority.certificate)
    assert not forged.whole
    for pem in (
        authority.certify_server(key("server").public, ["localhost"], NOW).decode(),
        forged.certify_site(key("north").public, "north", NOW).decode(),
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        authority.certificate.decode() * 2,
        key("server").public.pem.decode(),
        "\ud7ff\0",
    ):
        with pytest.raises(IdentityError):
            check_authority(pem, NOW)
    for at in (NOW + timedelta(days=3653), NOW - timedelta(days=1)):
        with pytest.raises(IdentityError, match=r"expired|clock"):
            check_authority(authority.certificate.decode(), at)


def test_a_renewed_authority_stands_behind_what_the_old_one_signed(authority: Authority) -> None:
    later = NOW + timedelta(days=3000)
    renewed = Authority.make("Test", later, authority.key)
    site = authority.certify_site(key("north").public, "north", later).decode()
    check_site_certificate(site, renewed.certificate.decode(), key("north").public, later)
    with pytest.raises(IdentityError, match="not for this site"):
        check_site_certificate(site, renewed.certificate.decode(), key("south").public, later)
    stranger = Authority.make("Test", later).certificate.decode()
    with pytest.raises(IdentityError, match="not for this site"):
        check_site_certificate(site, stranger, key("north").public, later)
    with pytest.raises(IdentityError, match="expired"):
        check_site_certificate(site, renewed.certificate.decode(), key("north").public, later + timedelta(days=366))


def test_what_a_certificate_says_cannot_be_changed(authority: Authority) -> None:
    whole = base64.b64decode("".join(authority.certificate.decode().splitlines()[1:-1]))
    said = check_authority(authority.certificate.decode(), NOW).tbs_certificate_bytes
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        lines = base64.b64encode(changed).decode()
        text = "\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
        # The parser overlooks the number of unused bits before the signature, which says nothing.
        with contextlib.suppress(IdentityError):
            found = check_authority(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n", NOW)
            assert found.tbs_certificate_bytes == said


# Kits


def kit(of: Authority, **changes: object) -> Kit:
    fields: dict[str, object] = {
        "federation": "Test",
        "alias": "north",
        "public_key": key("north").public,
        "nonce": NONCE,
        "address": "localhost:8443",
        "authority": of.certificate.decode(),
        "roster": roster(entry("north"), entry("south")).sign(key("coordinator")).decode(),
        "issued": NOW,
    }
    return Kit(**{**fields, **changes})  # type: ignore[arg-type]


def check(checked: Kit, *, alias: str = "north", name: str = "north", nonce: str = NONCE, at: datetime = NOW) -> Roster:
    again, signer = Kit.open(checked.sign(key("coordinator")), key("coordinator").public)
    return again.check(signer, alias=alias, key=key(name).public, nonce=nonce, at=at)


def test_a_kit_is_for_one_site_one_key_and_one_request(authority: Authority) -> None:
    assert check(kit(authority)) == roster(entry("north"), entry("south"))
    for arguments, finding in (
        ({"alias": "south"}, "is for the site north"),
        ({"name": "south"}, "is for the key"),
        ({"nonce": "f" * 32}, "another request"),
        ({"at": NOW - timedelta(days=2)}, "from the future"),
        ({"at": NOW + timedelta(days=3653)}, "expired"),
    ):
        with pytest.raises(IdentityError, match=finding):
            check(kit(authority), **arguments)  # type: ignore[arg-type]


def test_kits_whose_parts_do_not_fit_are_refused(authority: Authority) -> None:
    stranger = Authority.make("Test", NOW)
    for changes, finding in (
        ({"roster": roster(entry("north")).sign(key("stranger")).decode()}, "signed with the key"),
        ({"roster": roster(entry("south")).sign(key("coordinator")).decode()}, "does not list north"),
        ({"roster": roster(entry("north", "x")).sign(key("coordinator")).decode()}, "does not list north"),
        ({"roster": roster(entry("north", status="revoked")).sign(key("coordinator")).decode()}, "does not list"),
        ({"roster": "{}"}, "this is no roster"),
        ({"federation": "Other"}, "names another federation"),
        ({"authority": ""}, "cannot be read"),
        ({"authority": authority.certify_server(key("s").public, ["a"], NOW).decode()}, "no authority"),
        ({"certificate": authority.certify_site(key("south").public, "x", NOW).decode()}, "not for this site"),
        ({"certificate": stranger.certify_site(key("north").public, "north", NOW).decode()}, "not for this site"),
    ):
        with pytest.raises(IdentityError, match=finding):
            check(kit(authority, **changes))
    for address in ("localhost", "LOCALHOST:1", "localhost:99999", "a b:1"):
        body = {**kit(authority).model_dump(mode="json"), "address": address}
        with pytest.raises(IdentityError):
            Kit.open(sign_document("join-kit", body, key("coordinator")))


def test_one_change_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(IdentityError, match="another command"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
    with pytest.raises(IdentityError, match="cannot write"), locked(tmp_path / "gone"):
        pass
