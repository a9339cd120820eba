"""Key providers: what their URIs mean, which files they read, and the laws of wrapping."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from client.vault.keys import (
    EnvironmentKey,
    FileKey,
    KeyProvider,
    PassphraseKey,
    create_key_file,
    prepare,
    probe,
    provider,
    secret_files,
)
from client.vault.keys import passphrase as passphrases
from client.vault.keys.base import KEY_BYTES
from client.vault.keys.local import take_from_environment
from client.vault.keys.service import ServiceKey
from common.errors import KeyUnavailable

ROOT = Path(__file__).parents[2]
DATA_KEY = bytes(range(32))
DIGITS = "c0ffee" + "5a" * 29


def refused(action: Callable[[], object], *words: str) -> None:
    """``action`` fails with one line that holds ``words`` and no key."""
    with pytest.raises(KeyUnavailable) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert "; " in text or ": " in text  # the remedy
    assert "c0ffee" not in text.lower()
    for word in words:
        assert word in text


def write(path: Path, text: str = DIGITS, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("VAULT_", "AWS_", "CREDENTIALS_")):
            monkeypatch.delenv(name)


# --- URIs -------------------------------------------------------------------------------------------

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
HSM = "pkcs11:token=site;object=kek?module-path=/usr/lib/module.so&pin-source=file:pin"


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("file:keys/vault.key", "file"),
        ("file:/etc/key:with:colons", "file"),
        ("env:FEDWARD_KEY", "env"),
        ("passphrase:", "passphrase"),
        ("vault:https://keys.hospital.example:8200/transit/keys/site-1", "vault"),
        ("vault:https://keys.hospital.example/v1/teams/imaging/transit/keys/site_1", "vault"),
        ("vault:https://[2001:db8::7]:8200/transit/keys/k", "vault"),
        ("vault:http://127.0.0.1:8200/transit/keys/k", "vault"),
        (f"awskms:{ARN}", "awskms"),
        ("awskms:arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/fedward/site", "awskms"),
        ("awskms:alias/fedward", "awskms"),
        (HSM, "pkcs11"),
        ("pkcs11:serial=00%2001;id=%01%FF;type=secret-key?module-path=/m.so&pin-source=/run/secrets/pin", "pkcs11"),
    ],
)
def test_uris_that_name_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, scheme: str) -> None:
    monkeypatch.setenv("FEDWARD_KEY", DIGITS)
    keys = provider(uri, base=tmp_path, passphrase=lambda: "never asked here")
    assert keys.uri == uri
    assert keys.uri.partition(":")[0] == scheme
    assert scheme.isalnum() and len(scheme) <= 16  # what a vault's header stores
    assert "c0ffee" not in repr(keys).lower()


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "file",
        "vault",
        ":",
        ":file:x",
        "File:vault.key",
        "FILE:vault.key",
        " file:vault.key",
        "file :vault.key",
        "Vault:https://h/transit/keys/k",
        "https://h/transit/keys/k",
        "gcpkms:projects/x",
        "file:" + DIGITS,
        "env:" + DIGITS.upper(),
        "env:",
        "env:A-B",
        "env:1A",
        "env:" + "A" * 65,
        "passphrase:c0ffee",
        "vault:",
        "vault:transit/keys/k",  # and no VAULT_ADDR
        "vault:http://keys.hospital.example:8200/transit/keys/k",
        "vault:ftp://127.0.0.1/transit/keys/k",
        "vault:https://user:c0ffee@h/transit/keys/k",
        "vault:https://c0ffee@h/transit/keys/k",
        "vault:https://h/transit/keys/k?token=c0ffee",
        "vault:https://h/transit/keys/k#c0ffee",
        "vault:https://h/transit/k",
        "vault:https://h/keys/k",
        "vault:https://h/transit/keys/",
        "vault:https://h/transit/../sys/keys/k",
        "vault:https://h/transit/keys/..",
        "vault:https://h/transit/keys/k/x",
        "vault:https://h/transit/keys/k%2f..",
        "vault:https://h:port/transit/keys/k",
        "vault:https://h:99999/transit/keys/k",
        "vault:https://[::1/transit/keys/k",
        "vault:https:///transit/keys/k",
        "vault:https://h h/transit/keys/k",
        "awskms:",
        "awskms:fedward",
        "awskms:arn:aws:s3:::bucket",
        "awskms:arn:aws:kms:eu-central-1:1:key/x",
        "awskms:alias/x y",
        "pkcs11:",
        "pkcs11:token=site?module-path=/m.so&pin-source=p",
        "pkcs11:object=kek?module-path=/m.so&pin-source=p",
        "pkcs11:token=site;object=kek?pin-source=p",
        "pkcs11:token=site;object=kek?module-path=m.so&pin-source=p",
        "pkcs11:token=site;object=kek?module-path=/m.so&pin-value=c0ffee",
        "pkcs11:token=site;object=kek;pin-value=c0ffee?module-path=/m.so",
        "pkcs11:token=site;object=kek?module-path=/m.so&pin-source=|cat",
        "pkcs11:token=site;object=kek?module-path=/m.so&pin-source=%7Ccat",
        "pkcs11:token=site;token=other;object=kek?module-path=/m.so&pin-source=p",
        "pkcs11:token=;object=kek?module-path=/m.so&pin-source=p",
        "pkcs11:token=%zz;object=kek?module-path=/m.so&pin-source=p",
        "pkcs11:token=site;object=kek;type=private?module-path=/m.so&pin-source=p",
        "pkcs11:token=site;object=kek;x-vendor=1?module-path=/m.so&pin-source=p",
    ],
)
def test_uris_that_name_none_are_refused_and_not_quoted(tmp_path: Path, uri: str) -> None:
    refused(lambda: provider(uri, base=tmp_path, passphrase=lambda: "typed"))


@given(
    uri=st.one_of(
        st.text(),
        st.sampled_from(["vault:https://", "pkcs11:", "awskms:", "env:"]).flatmap(
            lambda scheme: st.text().map(lambda rest: scheme + rest)
        ),
    )
)
def test_no_uri_does_anything_but_parse_or_be_refused(uri: str) -> None:
    try:
        keys = provider(uri, base=Path("nowhere"), passphrase=lambda: "typed")
    except KeyUnavailable as error:
        assert "\n" not in str(error)
    else:
        assert keys.uri == uri


def test_every_uri_of_the_documentation_names_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("VAULT_ADDR", "https://keys.hospital.example:8200")
    monkeypatch.setenv("FEDWARD_KEY", DIGITS)
    text = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    found = set(re.findall(r"(?<=key: ')[^'\n]+|(?<=--key ')[^'\n]+", text))
    schemes = {provider(uri, base=tmp_path, passphrase=lambda: "typed").uri.partition(":")[0] for uri in found}
    assert schemes == {"file", "env", "passphrase", "vault", "awskms", "pkcs11"}


def test_nobody_to_ask(tmp_path: Path) -> None:
    refused(lambda: provider("passphrase:", base=tmp_path), "needs an operator")
    refused(lambda: provider("pkcs11:token=t;object=o?module-path=/m.so", base=tmp_path), "pin-source=file:PATH")


def test_services_are_imported_only_when_named() -> None:
    code = "import sys, client.vault.keys; sys.exit(bool({'httpx', 'boto3', 'botocore', 'pkcs11'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(("uri", "package", "extra"), [(f"awskms:{ARN}", "boto3", "awskms"), (HSM, "pkcs11", "pkcs11")])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    keys = provider(uri, base=tmp_path)
    refused(lambda: keys.wrap(DATA_KEY, b"v"), f"pip install 'fedward[{extra}]'")


# --- files ------------------------------------------------------------------------------------------


def test_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "file:$CREDENTIALS_DIRECTORY/vault.key"
    refused(lambda: provider(uri, base=tmp_path), "LoadCredential")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    path = write(tmp_path / "credentials" / "vault.key", mode=0o440)  # as systemd makes it, with a list for the user
    keys = provider(uri, base=tmp_path / "site")
    wrapped = keys.wrap(DATA_KEY, b"v")
    assert keys.unwrap(wrapped, b"v") == DATA_KEY
    # The same key as a plain file opens the same vault: moving it needs no new wrapping.
    plain = provider(f"file:{write(tmp_path / 'plain.key')}", base=tmp_path)
    assert plain.unwrap(wrapped, b"v") == DATA_KEY
    path.chmod(0o460)
    refused(lambda: keys.wrap(DATA_KEY, b"v"), "others may read or write")
    for text in ("file:$CREDENTIALS_DIRECTORY", "file:$CREDENTIALS_DIRECTORY/"):
        refused(lambda: provider(text, base=tmp_path), "LoadCredential")  # noqa: B023
    assert provider("file:$HOME/key", base=tmp_path) == FileKey("file:$HOME/key", tmp_path / "$HOME" / "key")


def test_a_container_secret_may_be_readable_by_all_who_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_files, "_SECRETS", tmp_path / "secrets")
    write(tmp_path / "secrets" / "..2026" / "vault.key", mode=0o444)
    (tmp_path / "secrets" / "..data").symlink_to("..2026")  # Kubernetes' way to swap all secrets at once
    (tmp_path / "secrets" / "vault.key").symlink_to("..data/vault.key")
    keys = provider(f"file:{tmp_path}/secrets/vault.key", base=tmp_path)
    assert probe(keys) is not None
    (tmp_path / "secrets" / "..2026" / "vault.key").chmod(0o666)
    refused(lambda: probe(keys), "others may read or write")
    outside = write(tmp_path / "elsewhere" / "vault.key", mode=0o444)
    for path in (outside, tmp_path / "secrets" / ".." / "elsewhere" / "vault.key"):
        refused(lambda: probe(FileKey("file:x", path)), "chmod 600", "/run/secrets")  # noqa: B023


def test_files_that_are_no_key(tmp_path: Path) -> None:
    keys = provider("file:vault.key", base=tmp_path)
    write(tmp_path / "vault.key", DIGITS * 100)
    refused(lambda: probe(keys), "longer than")
    refused(lambda: probe(provider("file:a\0b", base=tmp_path)), "not a file's name")
    refused(lambda: probe(provider("file:" + "x" * 5000, base=tmp_path)), "cannot read")


def test_preparing_makes_a_key_file_once(tmp_path: Path) -> None:
    keys = prepare("file:keys/vault.key", base=tmp_path)
    content = (tmp_path / "keys" / "vault.key").read_bytes()
    wrapped = keys.wrap(DATA_KEY, b"v")
    assert prepare("file:keys/vault.key", base=tmp_path).unwrap(wrapped, b"v") == DATA_KEY
    assert (tmp_path / "keys" / "vault.key").read_bytes() == content
    write(tmp_path / "bad.key", "short")
    refused(lambda: prepare("file:bad.key", base=tmp_path), "hexadecimal digits")
    assert (tmp_path / "bad.key").read_text() == "short"
    (tmp_path / "dangling.key").symlink_to("nothing")
    refused(lambda: prepare("file:dangling.key", base=tmp_path), "cannot read")
    assert not (tmp_path / "nothing").exists()


def test_preparing_a_passphrase_asks_nothing(tmp_path: Path) -> None:
    def never() -> str:
        raise AssertionError("asked")

    keys = prepare("passphrase:", base=tmp_path, passphrase=never)
    assert probe(keys) is None


def test_a_probe_takes_its_time_and_finds_a_provider_that_lies(tmp_path: Path) -> None:
    create_key_file(tmp_path / "k")
    keys = FileKey("file:k", tmp_path / "k")
    seconds = probe(keys)
    assert seconds is not None and 0 < seconds < 5

    @dataclass(frozen=True)
    class Liar(FileKey):
        def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
            return bytes(32)

    refused(lambda: probe(Liar("file:k", tmp_path / "k")), "another key")


# --- environment ------------------------------------------------------------------------------------


def test_a_key_in_the_environment_is_taken_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_TEST_KEY", DIGITS)
    keys = prepare("env:FEDWARD_TEST_KEY", base=tmp_path)
    assert "FEDWARD_TEST_KEY" not in os.environ
    inherited = subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True)
    assert DIGITS.encode() not in inherited.stdout
    wrapped = keys.wrap(DATA_KEY, b"v")
    again = provider("env:FEDWARD_TEST_KEY", base=tmp_path)  # taken already: the same key
    assert again.unwrap(wrapped, b"v") == DATA_KEY
    assert DIGITS not in repr(again) + repr(vars(again))
    monkeypatch.setenv("FEDWARD_TEST_KEY", DIGITS[:-1] + "b")
    other = provider("env:FEDWARD_TEST_KEY", base=tmp_path)
    refused(lambda: other.unwrap(wrapped, b"v"), "FEDWARD_TEST_KEY does not open")


def test_variables_that_hold_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: provider("env:FEDWARD_NOT_SET", base=tmp_path), "FEDWARD_NOT_SET is not set")
    for value in (DIGITS[:-1], DIGITS + "0", "0x" + DIGITS[:-2], "", "é" * 32, "c0ffee\udcff"):
        monkeypatch.setenv("FEDWARD_BAD", value)
        refused(lambda: provider("env:FEDWARD_BAD", base=tmp_path), "hexadecimal digits")
        assert "FEDWARD_BAD" not in os.environ


# --- laws -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Careless(ServiceKey):
    """A service that authenticates nothing: any token of the right length is turned into some key."""

    uri: str = "careless:"
    secret: int = 1

    @property
    def place(self) -> str:
        return "the key of a careless service"

    def issue(self, context: bytes) -> tuple[bytes, bytes]:
        key = os.urandom(KEY_BYTES)
        return key, bytes(byte ^ self.secret for byte in key) + b"ignored"

    def redeem(self, token: bytes, context: bytes) -> bytes:
        return bytes(byte ^ self.secret for byte in token[:KEY_BYTES])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[KeyProvider, KeyProvider]]:
    """Two providers of each kind that need no service, with different keys."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("a", "b"):
        create_key_file(folder / name)
        os.environ[f"FEDWARD_LAW_{name.upper()}"] = (folder / name).read_text()  # the same key, by another way
    careless = Careless()
    return {
        "file": (FileKey("file:a", folder / "a"), FileKey("file:b", folder / "b")),
        "env": (_taken("FEDWARD_LAW_A"), _taken("FEDWARD_LAW_B")),
        "passphrase": (PassphraseKey(lambda: "correct horse"), PassphraseKey(lambda: "battery staple")),
        "service": (careless, replace(careless, secret=2)),
        "other service": (replace(careless, uri="reckless:"), replace(careless, uri="reckless:", secret=2)),
    }


def _taken(variable: str) -> EnvironmentKey:
    return take_from_environment(f"env:{variable}", variable)


@pytest.fixture(autouse=True, scope="module")
def cheap_passphrases() -> object:
    """8 KiB and one pass instead of 64 MiB and three: what is tested here is not the cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passphrases, "_COST_WRITTEN", (8, 1, 1))
        patch.setattr(passphrases, "_COST_MOST", (4096, 4, 4))  # flipped bytes ask for more, up to this
        yield


KINDS = ["file", "env", "passphrase", "service", "other service"]


@pytest.mark.parametrize("kind", KINDS)
@given(data_key=st.binary(min_size=32, max_size=32), context=st.binary(max_size=64), data=st.data())
def test_only_the_same_key_context_and_bytes_open(
    pairs: dict[str, tuple[KeyProvider, KeyProvider]], kind: str, data_key: bytes, context: bytes, data: st.DataObject
) -> None:
    keys, other = pairs[kind]
    wrapped = keys.wrap(data_key, context)
    assert keys.unwrap(wrapped, context) == data_key
    assert data_key not in wrapped
    assert keys.wrap(data_key, context) != wrapped
    refused(lambda: other.unwrap(wrapped, context))
    another = data.draw(st.binary(max_size=64).filter(lambda drawn: drawn != context), "another context")
    refused(lambda: keys.unwrap(wrapped, another))
    at = data.draw(st.integers(0, len(wrapped) - 1), "position")
    change = data.draw(st.integers(1, 255), "change")
    refused(lambda: keys.unwrap(wrapped[:at] + bytes([wrapped[at] ^ change]) + wrapped[at + 1 :], context))
    refused(lambda: keys.unwrap(wrapped[:at], context))
    refused(lambda: keys.unwrap(wrapped + wrapped[:1], context))
    refused(lambda: keys.unwrap(wrapped[1:], context))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(junk=st.binary(max_size=200))
def test_junk_opens_nothing(pairs: dict[str, tuple[KeyProvider, KeyProvider]], kind: str, junk: bytes) -> None:
    refused(lambda: pairs[kind][0].unwrap(junk, b""))


@pytest.mark.parametrize("kind", KINDS)
def test_a_blob_of_another_provider_does_not_open(pairs: dict[str, tuple[KeyProvider, KeyProvider]], kind: str) -> None:
    """Even where both hold the same 32 bytes: ``file`` and ``env``, ``service`` and ``other service``."""
    wrapped = pairs[kind][0].wrap(DATA_KEY, b"v")
    for name in KINDS:
        if name != kind:
            refused(lambda: pairs[name][0].unwrap(wrapped, b"v"))  # noqa: B023


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_key_of_another_length_is_refused(pairs: dict[str, tuple[KeyProvider, KeyProvider]], kind: str) -> None:
    for length in (0, 16, 31, 33, 64):
        refused(lambda: pairs[kind][0].wrap(bytes(length), b"v"), f"this one {length}")  # noqa: B023


@pytest.mark.parametrize(
    ("key", "token"), [(bytes(16), b"t"), (b"", b"t"), (bytes(32), b""), (bytes(32), bytes(2**16))]
)
def test_a_service_that_gives_no_key(key: bytes, token: bytes) -> None:
    class Odd(Careless):
        def issue(self, context: bytes) -> tuple[bytes, bytes]:
            return key, token

    refused(lambda: Odd().wrap(DATA_KEY, b"v"), "gave no 256-bit key")


def test_the_envelope_is_what_its_documentation_says() -> None:
    wrapped = Careless().wrap(DATA_KEY, b"context")
    length = int.from_bytes(wrapped[:2], "big")
    header, sealed = wrapped[: 2 + length], wrapped[2 + length :]
    assert len(sealed) == 12 + 32 + 16
    associated = b"fedward wrap 1: service\0careless\0" + header + b"context"
    key = bytes(byte ^ 1 for byte in header[2 : 2 + KEY_BYTES])
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], associated) == DATA_KEY


# --- HSMs -------------------------------------------------------------------------------------------


def test_a_pin_that_could_lock_the_token_is_not_given() -> None:
    pkcs11 = pytest.importorskip("pkcs11")
    from client.vault.keys.hsm import refuse_last_try

    refuse_last_try(pkcs11.TokenFlag.LOGIN_REQUIRED | pkcs11.TokenFlag.USER_PIN_COUNT_LOW)
    refused(lambda: refuse_last_try(pkcs11.TokenFlag.USER_PIN_FINAL_TRY), "none is tried")
    refused(lambda: refuse_last_try(pkcs11.TokenFlag.USER_PIN_LOCKED), "security officer")
