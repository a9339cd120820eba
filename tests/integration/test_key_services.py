"""The key matrix: every provider against its real service, and every way in which that can fail."""

from __future__ import annotations

import base64
import contextlib
import http.server
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.vault.keys import KeyProvider, create_key_file, prepare, probe, provider, transit
from client.vault.keys import passphrase as passphrases
from client.vault.store import Vault
from common.errors import KeyUnavailable
from tests.integration.services_keys import Bao, Hsm, bao, certificates, free_port, kms, softhsm

DATA_KEY = bytes(range(32))
VAULT_1, VAULT_2 = b"fedward vault data key\0" + bytes(16), b"fedward vault data key\0" + b"\1" * 16
KINDS = ["file", "env", "passphrase", "vault", "awskms", "pkcs11", "pkcs11 key wrap"]


@dataclass(frozen=True)
class Services:
    """Two providers of each kind with different keys, and what must never show."""

    bao: Bao
    kms: str
    hsm: Hsm
    arns: tuple[str, str]
    pairs: dict[str, tuple[KeyProvider, KeyProvider]]
    secrets: tuple[str, ...]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in os.environ:
            if name.startswith(("VAULT_", "AWS_", "CREDENTIALS_", "HTTP_PROXY", "HTTPS_PROXY")):
                patch.delenv(name)
        patch.setattr(passphrases, "_COST_WRITTEN", (8, 1, 1))
        patch.setattr(passphrases, "_COST_MOST", (4096, 4, 4))
        hsm = softhsm(folder / "hsm", patch)
        address = stack.enter_context(kms(folder / "kms"))
        server = stack.enter_context(bao(folder / "bao"))

        for name in ("a", "b"):
            create_key_file(folder / name)
            patch.setenv(f"FEDWARD_MATRIX_{name.upper()}", (folder / name).read_text())
            server.make_key(name)
        # what docs/keys.md tells a site to grant, and nothing else
        token = server.token(*(f"transit/{verb}/{key}" for verb in ("datakey/plaintext", "decrypt") for key in "ab"))
        (folder / "token").write_text(token + "\n")
        (folder / "token").chmod(0o600)
        patch.setenv("VAULT_TOKEN_FILE", str(folder / "token"))
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENGbPxRfiCY")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", str(folder / "no-config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
        arns = (_kms_key(), _kms_key())
        hsm.make_key("other")
        hsm.make_key("wrap a", encrypt=False, decrypt=False, wrap=True, unwrap=True)
        hsm.make_key("wrap b", encrypt=False, decrypt=False, wrap=True, unwrap=True)

        uris = {
            "file": ("file:a", "file:b"),
            "env": ("env:FEDWARD_MATRIX_A", "env:FEDWARD_MATRIX_B"),
            "vault": tuple(f"vault:{server.address}/transit/keys/{key}" for key in "ab"),
            "awskms": tuple(f"awskms:{arn}" for arn in arns),
            "pkcs11": (hsm.uri("kek"), hsm.uri("other")),
            "pkcs11 key wrap": (hsm.uri("wrap%20a"), hsm.uri("wrap%20b")),
        }
        pairs = {
            kind: (provider(first, base=folder), provider(second, base=folder))
            for kind, (first, second) in uris.items()
        }
        pairs["passphrase"] = (
            provider("passphrase:", base=folder, passphrase=lambda: "correct horse"),
            provider("passphrase:", base=folder, passphrase=lambda: "battery staple"),
        )
        secret = (
            token,
            server.root,
            hsm.pin_file.read_text().strip(),
            os.environ["AWS_SECRET_ACCESS_KEY"],
            (folder / "a").read_text().strip(),
            "correct horse",
            DATA_KEY.hex(),
            base64.b64encode(DATA_KEY).decode(),
        )
        yield Services(server, address, hsm, arns, pairs, secret)


def _kms_client() -> Any:
    import boto3  # type: ignore[import-untyped]

    return boto3.session.Session().client("kms", region_name="eu-central-1")


def _kms_key() -> str:
    with contextlib.closing(_kms_client()) as client:
        return str(client.create_key()["KeyMetadata"]["Arn"])


@pytest.fixture
def refused(services: Services) -> Callable[..., None]:
    def check(action: Callable[[], object], *words: str) -> None:
        """``action`` fails with one line that holds ``words`` and no secret."""
        with pytest.raises(KeyUnavailable) as caught:
            action()
        text = str(caught.value)
        assert "\n" not in text
        for word in words:
            assert word in text
        for secret in services.secrets:
            assert secret not in text
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    return check


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str], KeyProvider]:
    return lambda uri: provider(uri, base=tmp_path)


Refused = Callable[..., None]
Site = Callable[[str], KeyProvider]


# --- what holds for all -----------------------------------------------------------------------------


def test_wraps_and_unwraps(services: Services, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys, _ = services.pairs[kind]
    wrapped = keys.wrap(DATA_KEY, VAULT_1)
    assert keys.unwrap(wrapped, VAULT_1) == DATA_KEY
    assert DATA_KEY not in wrapped
    assert keys.wrap(DATA_KEY, VAULT_1) != wrapped
    seconds = probe(keys)
    assert (seconds is None) == (kind == "passphrase")
    if kind.startswith("pkcs11"):
        assert wrapped[2:3] == (b"\x02" if "wrap" in kind else b"\x01")
    Vault.create(tmp_path / "vault", keys, synthetic=True, source="").close()
    Vault.open(tmp_path / "vault", keys).close()
    shown = caplog.text + repr(keys) + keys.uri
    for secret in services.secrets:
        assert secret not in shown


def test_another_key_or_context_does_not_open(services: Services, kind: str, refused: Refused) -> None:
    keys, other = services.pairs[kind]
    wrapped = keys.wrap(DATA_KEY, VAULT_1)
    refused(lambda: other.unwrap(wrapped, VAULT_1))
    refused(lambda: keys.unwrap(wrapped, VAULT_2), "does not open this vault")
    refused(lambda: keys.unwrap(wrapped, b""), "does not open this vault")


def test_changed_and_truncated_blobs_do_not_open(services: Services, kind: str, refused: Refused) -> None:
    keys, _ = services.pairs[kind]
    wrapped = keys.wrap(DATA_KEY, VAULT_1)
    step = {"awskms": 16, "vault": 3}.get(kind, 1)  # boto3 takes 100 ms to be ready, a TLS context 20 ms
    for at in {*range(0, len(wrapped), step), 0, 1, 2, len(wrapped) - 1}:
        changed = bytearray(wrapped)
        changed[at] ^= 1
        refused(lambda: keys.unwrap(bytes(changed), VAULT_1))  # noqa: B023
    for length in (0, 1, 2, 3, 20, len(wrapped) // 2, len(wrapped) - 1):
        refused(lambda: keys.unwrap(wrapped[:length], VAULT_1))  # noqa: B023
    refused(lambda: keys.unwrap(wrapped + b"\0", VAULT_1))


def test_blobs_of_other_providers_do_not_open(services: Services, kind: str, refused: Refused) -> None:
    wrapped = services.pairs[kind][0].wrap(DATA_KEY, VAULT_1)
    for other, (keys, _) in services.pairs.items():
        if other != kind:
            refused(lambda: keys.unwrap(wrapped, VAULT_1))  # noqa: B023


def test_no_secret_is_in_any_process_arguments(services: Services) -> None:
    arguments = b"\n".join(path.read_bytes() for path in _command_lines())
    assert str(services.bao.address.rpartition(":")[2]).encode() in arguments  # the server's are among them
    for secret in services.secrets:
        assert secret.encode() not in arguments


def _command_lines() -> Iterator[Path]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            path.read_bytes()
            yield path


# --- vault: -----------------------------------------------------------------------------------------


def test_a_missing_transit_key_is_never_made(
    services: Services, site: Site, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vault's ``encrypt`` makes it, where the token may; here the token may do everything."""
    monkeypatch.delenv("VAULT_TOKEN_FILE")
    monkeypatch.setenv("VAULT_TOKEN", services.bao.root)
    uri = f"vault:{services.bao.address}/transit/keys/mistyped"
    wrapped = services.pairs["vault"][0].wrap(DATA_KEY, VAULT_1)
    for action in (
        lambda: prepare(uri, base=tmp_path),
        lambda: site(uri).wrap(DATA_KEY, VAULT_1),
        lambda: site(uri).unwrap(wrapped, VAULT_1),
    ):
        refused(action, "has no key mistyped", "bao write -f transit/keys/mistyped")
    assert "mistyped" not in str(services.bao.call("LIST", "transit/keys"))


def test_a_rotated_and_a_deleted_transit_key(
    services: Services, site: Site, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VAULT_TOKEN_FILE")
    monkeypatch.setenv("VAULT_TOKEN", services.bao.root)
    keys = site(services.bao.make_key("rotated"))
    old = keys.wrap(DATA_KEY, VAULT_1)
    services.bao.call("POST", "transit/keys/rotated/rotate")
    assert keys.unwrap(old, VAULT_1) == DATA_KEY
    new = keys.wrap(DATA_KEY, VAULT_1)
    services.bao.call("POST", "transit/keys/rotated/config", {"min_decryption_version": 2, "deletion_allowed": True})
    refused(lambda: keys.unwrap(old, VAULT_1), "min_decryption_version")
    assert keys.unwrap(new, VAULT_1) == DATA_KEY
    services.bao.call("DELETE", "transit/keys/rotated")
    refused(lambda: keys.unwrap(new, VAULT_1), "has no key rotated", "backup")


def test_transit_keys_and_paths_that_cannot_be_used(
    services: Services, site: Site, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = services.bao.address
    refused(lambda: probe(site(f"vault:{address}/transit/keys/c")), "refuses the token (403)", "transit/decrypt/c")
    monkeypatch.delenv("VAULT_TOKEN_FILE")
    monkeypatch.setenv("VAULT_TOKEN", services.bao.root)
    refused(lambda: probe(site(f"vault:{address}/nothing/here/keys/a")), "nothing at nothing/here/")
    refused(lambda: probe(site(services.bao.make_key("signs", type="ed25519"))), "aes256-gcm96")
    refused(lambda: probe(site(services.bao.make_key("derived", derived=True))), "aes256-gcm96")
    monkeypatch.setenv("VAULT_NAMESPACE", "nowhere")
    refused(lambda: probe(site(f"vault:{address}/transit/keys/a")), "VAULT_NAMESPACE")
    monkeypatch.setenv("VAULT_NAMESPACE", "né\n")
    refused(lambda: probe(site(f"vault:{address}/transit/keys/a")), address)


def test_a_namespace_and_the_address_from_the_environment(
    services: Services, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VAULT_TOKEN_FILE")
    monkeypatch.setenv("VAULT_TOKEN", services.bao.root)
    monkeypatch.setenv("VAULT_ADDR", services.bao.address + "/")
    keys = site("vault:transit/keys/a")
    assert keys.unwrap(services.pairs["vault"][0].wrap(DATA_KEY, VAULT_1), VAULT_1) == DATA_KEY
    services.bao.call("POST", "sys/namespaces/ward")
    services.bao.call("POST", "ward/sys/mounts/transit", {"type": "transit"})
    services.bao.call("POST", "ward/transit/keys/inner")
    monkeypatch.setenv("VAULT_NAMESPACE", "ward")
    assert probe(site("vault:transit/keys/inner"))


def test_tokens_that_are_missing_or_wrong(
    services: Services, site: Site, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = services.pairs["vault"][0]
    token = Path(os.environ["VAULT_TOKEN_FILE"]).read_text()
    file = tmp_path / "token"
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(file))
    refused(lambda: probe(keys), "cannot read the Vault token file")
    for text in ("", "two words", "tok\x01en", "é"):
        file.write_text(text)
        file.chmod(0o600)
        refused(lambda: probe(keys), "one word")
    file.write_text(token[:-3])
    refused(lambda: probe(keys), "refuses the token (403)")
    file.write_text(token)
    file.chmod(0o644)
    refused(lambda: probe(keys), "chmod 600")
    monkeypatch.delenv("VAULT_TOKEN_FILE")
    refused(lambda: probe(keys), "no token for", "VAULT_TOKEN_FILE")
    monkeypatch.setenv("VAULT_TOKEN", "two words")
    refused(lambda: probe(keys), "VAULT_TOKEN is not one word")
    monkeypatch.setenv("VAULT_TOKEN", token)
    assert probe(keys)
    monkeypatch.setenv("VAULT_TOKEN_FILE", "token")  # relative to the site's folder
    file.chmod(0o600)
    assert probe(site(keys.uri))


def test_an_approle(services: Services, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, keys = services.bao, services.pairs["vault"][0]
    paths = ("transit/datakey/plaintext/a", "transit/decrypt/a")
    rules = "\n".join(f'path "{path}" {{ capabilities = ["update"] }}' for path in paths)
    server.call("PUT", "sys/policies/acl/site", {"policy": rules})
    server.call("POST", "auth/approle/role/site", {"token_policies": "site", "token_ttl": "60s"})
    role: Any = server.call("GET", "auth/approle/role/site/role-id")["data"]
    secret: Any = server.call("POST", "auth/approle/role/site/secret-id")["data"]
    for name, value in (("role", role["role_id"]), ("secret", secret["secret_id"])):
        (tmp_path / name).write_text(value)
        (tmp_path / name).chmod(0o600)
    monkeypatch.delenv("VAULT_TOKEN_FILE")
    monkeypatch.setenv("VAULT_ROLE_ID_FILE", str(tmp_path / "role"))
    refused(lambda: probe(keys), "AppRole needs both")
    monkeypatch.setenv("VAULT_SECRET_ID_FILE", str(tmp_path / "secret"))
    assert probe(keys)
    server.call("POST", "auth/approle/role/site/secret-id/destroy", {"secret_id": secret["secret_id"]})
    with pytest.raises(KeyUnavailable, match="issue a new secret id") as caught:
        probe(keys)
    assert secret["secret_id"] not in str(caught.value)
    server.call("DELETE", "sys/auth/approle")
    refused(lambda: probe(keys), "have auth/approle enabled")


def test_tls_sealed_and_gone(refused: Refused, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bao(tmp_path / "bao", certificate=certificates(tmp_path / "tls")) as server:
        (tmp_path / "token").write_text(server.root)
        (tmp_path / "token").chmod(0o600)
        monkeypatch.setenv("VAULT_TOKEN_FILE", str(tmp_path / "token"))
        keys = site(server.make_key("site"))
        refused(lambda: probe(keys), "certificate", "VAULT_CACERT")  # nobody knows this authority
        monkeypatch.setenv("VAULT_SKIP_VERIFY", "true")
        refused(lambda: probe(keys), "certificate", "VAULT_CACERT")
        monkeypatch.setenv("VAULT_CACERT", str(tmp_path / "none.pem"))
        refused(lambda: probe(keys), "VAULT_CACERT does not name")
        monkeypatch.setenv("VAULT_CACERT", str(tmp_path / "tls" / "server.key"))
        refused(lambda: probe(keys), "VAULT_CACERT does not name")
        monkeypatch.setenv("VAULT_CACERT", str(server.authority))
        assert probe(keys)
        named = site(keys.uri.replace("127.0.0.1", "localhost"))
        refused(lambda: probe(named), "certificate", "localhost")  # the certificate is of 127.0.0.1
        plain = site(keys.uri.replace("https:", "http:"))
        refused(lambda: probe(plain), "http://127.0.0.1")  # Go answers in words and resets: either may come first
        wrapped = keys.wrap(DATA_KEY, VAULT_1)
        server.call("PUT", "sys/seal")
        refused(lambda: keys.unwrap(wrapped, VAULT_1), "sealed", "unseal")
    refused(lambda: keys.unwrap(wrapped, VAULT_1), "cannot reach https://127.0.0.1")


def test_an_expired_certificate(
    services: Services, refused: Refused, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bao(tmp_path / "bao", certificate=certificates(tmp_path / "tls", expired=True)) as server:
        monkeypatch.setenv("VAULT_CACERT", str(server.authority))
        refused(lambda: probe(site(server.make_key("site"))), "certificate has expired", "renewed")
    secure = site(services.pairs["vault"][0].uri.replace("http:", "https:"))
    refused(lambda: probe(secure), "does not speak TLS")


class Odd(http.server.BaseHTTPRequestHandler):
    """A server that is no Vault; ``behaviour`` answers one request and ``asked`` counts them."""

    behaviour: Callable[[Odd], None]
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).behaviour(self)

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have had enough
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def odd_server(behaviour: Callable[[Odd], None]) -> Iterator[tuple[str, type[Odd]]]:
    handler = type("Handler", (Odd,), {"behaviour": staticmethod(behaviour)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"vault:http://127.0.0.1:{server.server_port}/transit/keys/k", handler
        finally:
            server.shutdown()
            thread.join()


def _hang(odd: Odd) -> None:
    with contextlib.suppress(OSError):
        odd.connection.recv(1)  # until the client gives up


def _drop(odd: Odd) -> None:
    odd.connection.shutdown(socket.SHUT_RDWR)


def _key_with(ciphertext: bytes) -> bytes:
    return b'{"data": {"plaintext": "%s", "ciphertext": "%s"}}' % (base64.b64encode(bytes(32)), ciphertext)


@pytest.mark.parametrize(
    ("behaviour", "words", "asked"),
    [
        (lambda odd: odd.answer(b"<html>Welcome</html>"), "does not answer as Vault", 1),
        (lambda odd: odd.answer(b"[" * 50_000), "does not answer as Vault", 1),
        (lambda odd: odd.answer(b'"text"'), "does not answer as Vault", 1),
        (lambda odd: odd.answer(b" " * 2**20), "does not answer as Vault", 1),
        (lambda odd: odd.answer(b"\xff\xfe", 502), "does not answer as Vault", 1),
        (lambda odd: odd.answer(b"", 307, Location="http://127.0.0.1:1/"), "redirection", 1),
        (lambda odd: odd.answer(b"{}"), "the service answered 200", 1),
        (lambda odd: odd.answer(b'{"data": {}}'), "gave no 256-bit key", 1),
        (lambda odd: odd.answer(b'{"data": {"plaintext": "AAAA", "ciphertext": "vault:v1:x"}}'), "gave no 256-bit", 1),
        (lambda odd: odd.answer(_key_with(b"\\ud800")), "gave no 256-bit", 1),
        (lambda odd: odd.answer(_key_with(b"v1:AAAA")), "gave no 256-bit", 1),
        (lambda odd: odd.answer(b'{"data": {"plaintext": 7, "ciphertext": "vault:v1:x"}}'), "gave no 256-bit", 1),
        (lambda odd: odd.answer(b'{"errors": ["root-token-1 is\\nbad"]}', 500), "the service answered 500", 1),
        (lambda odd: odd.answer(b'{"errors": 7}', 429), "the service answered 429", 1),
        (_hang, "does not answer in time", 1),
        (_drop, "cannot reach", 2),
    ],
)
def test_a_server_that_is_no_vault(
    refused: Refused,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Callable[[Odd], None],
    words: str,
    asked: int,
) -> None:
    monkeypatch.delenv("VAULT_TOKEN_FILE", raising=False)
    monkeypatch.setenv("VAULT_TOKEN", "root-token-1")
    monkeypatch.setattr(transit, "_READ_S", 0.3)
    with odd_server(behaviour) as (uri, handler):
        with pytest.raises(KeyUnavailable, match=words) as caught:
            site(uri).wrap(DATA_KEY, VAULT_1)
        assert "root-token-1" not in str(caught.value)
        assert handler.asked == asked


def test_one_lost_connection_is_forgiven_and_no_proxy_is_asked(
    services: Services, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_drops(odd: Odd) -> None:
        if type(odd).asked == 1:
            _drop(odd)
        else:
            odd.answer(_key_with(b"vault:v1:x"))

    with odd_server(first_drops) as (uri, handler):
        proxy = f"http://127.0.0.1:{free_port()}"
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        keys = site(uri)
        assert keys.unwrap(keys.wrap(DATA_KEY, VAULT_1), VAULT_1) == DATA_KEY
        assert handler.asked == 3


# --- awskms: ----------------------------------------------------------------------------------------


def test_kms_aliases(services: Services, site: Site, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = services.arns
    with contextlib.closing(_kms_client()) as client:
        client.create_alias(AliasName="alias/site", TargetKeyId=first)
    keys = site("awskms:alias/site")
    refused(lambda: probe(keys), "no AWS region", "AWS_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    wrapped = keys.wrap(DATA_KEY, VAULT_1)
    assert site(f"awskms:{first}").unwrap(wrapped, VAULT_1) == DATA_KEY
    refused(lambda: site(f"awskms:{second}").unwrap(wrapped, VAULT_1))
    refused(lambda: probe(site("awskms:alias/mistyped")), "does not exist")
    refused(lambda: probe(site(f"awskms:{first[:-4]}0000")), "does not exist")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDeniedException", "allow them kms:GenerateDataKey and kms:Decrypt"),
        ("DisabledException", "have it enabled"),
        ("KMSInvalidStateException", "pending deletion"),
        ("InvalidKeyUsageException", "ENCRYPT_DECRYPT"),
        ("IncorrectKeyException", "does not open this vault"),
        ("ExpiredTokenException", "does not accept the credentials"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_what_kms_says_of_keys_that_cannot_be_used(
    services: Services, refused: Refused, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    """moto keeps no states of keys, so these answers are a server's that speaks KMS's JSON."""
    wrapped = services.pairs["awskms"][0].wrap(DATA_KEY, VAULT_1)
    with odd_server(lambda odd: odd.answer(b'{"__type": "%s", "message": "x"}' % code.encode(), 400)) as (uri, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", uri.removeprefix("vault:").removesuffix("/transit/keys/k"))
        refused(lambda: services.pairs["awskms"][0].unwrap(wrapped, VAULT_1), words)


def test_kms_credentials(services: Services, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = services.pairs["awskms"][0]
    httpx.post(f"{services.kms}/moto-api/reset-auth", content="0", trust_env=False)
    try:
        refused(lambda: probe(keys), "does not accept the credentials")
    finally:
        httpx.post(f"{services.kms}/moto-api/reset-auth", content="inf", trust_env=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused(lambda: probe(keys), "no AWS credentials")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(lambda: probe(keys), "no AWS credentials")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    refused(lambda: probe(keys), "no AWS credentials", "AWS_PROFILE")


def test_kms_endpoints(services: Services, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = services.pairs["awskms"][0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    refused(lambda: probe(keys), "cannot reach AWS KMS")
    assert time.monotonic() - started < 10
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://kms.hospital.example")
    refused(lambda: probe(keys), "https:// only")
    monkeypatch.setenv("AWS_ENDPOINT_URL", services.kms.replace("http:", "https:"))
    refused(lambda: probe(keys), "certificate")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    refused(lambda: probe(keys), "cannot reach AWS KMS")


# --- pkcs11: ----------------------------------------------------------------------------------------


def test_a_pin_from_the_operator(services: Services, refused: Refused, tmp_path: Path) -> None:
    asked: list[str] = []
    answers = iter([services.hsm.pin_file.read_text().strip(), "999999", "", "\udcff"])

    def ask() -> str:
        asked.append(next(answers))
        return asked[-1]

    uri = services.hsm.uri().partition("&pin-source")[0]
    keys = provider(uri, base=tmp_path, passphrase=ask)
    assert asked == []
    keys.wrap(DATA_KEY, VAULT_1)
    refused(lambda: keys.wrap(DATA_KEY, VAULT_1), "refused the PIN", "not tried again")
    assert len(asked) == 2
    for _ in range(2):
        refused(lambda: keys.wrap(DATA_KEY, VAULT_1), "PIN is empty or not text")


def test_pin_files(services: Services, site: Site, refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "pin"
    keys = site(services.hsm.uri(pin=Path("pin")))  # relative to the site's folder
    refused(lambda: probe(keys), "cannot read the PIN file")
    file.write_text("123456")
    file.chmod(0o640)
    refused(lambda: probe(keys), "chmod 600")
    file.chmod(0o600)
    refused(lambda: probe(keys), "refused the PIN")
    refused(lambda: probe(keys), "refused this PIN before")  # and was not asked again
    file.write_text("\n")
    refused(lambda: probe(keys), "PIN is empty")
    file.write_bytes(b"\xff\xfe")
    refused(lambda: probe(keys), "not text")
    file.write_bytes(services.hsm.pin_file.read_bytes().strip() + b"\r\n")
    assert probe(keys)


def test_objects_and_modules_that_are_missing(services: Services, site: Site, refused: Refused) -> None:
    hsm = services.hsm
    refused(lambda: probe(site(hsm.uri("none"))), "no such AES key")
    refused(lambda: probe(site(hsm.uri(token="none"))), "no such token")
    hsm.make_key("twin")
    hsm.make_key("twin")
    refused(lambda: probe(site(hsm.uri("twin"))), "several such keys", "id=")
    hsm.make_key("idle", encrypt=False, decrypt=False, wrap=False, unwrap=False)
    refused(lambda: probe(site(hsm.uri("idle"))), "neither encrypts")
    refused(lambda: probe(site(hsm.uri().replace(hsm.module.name, "none.so"))), "no PKCS #11 module")
    other = hsm.uri().replace(str(hsm.module), sys.executable)
    refused(lambda: probe(site(other)), "failed (PKCS11Error)")


def test_a_removed_token(services: Services, refused: Refused) -> None:
    keys, _ = services.pairs["pkcs11"]
    wrapped = keys.wrap(DATA_KEY, VAULT_1)
    tokens, away = services.hsm.folder / "tokens", services.hsm.folder / "away"
    shutil.move(tokens, away)
    try:
        refused(lambda: keys.unwrap(wrapped, VAULT_1))
        tokens.mkdir()
        refused(lambda: keys.unwrap(wrapped, VAULT_1), "no such token")
        tokens.rmdir()
    finally:
        shutil.move(away, tokens)
    assert keys.unwrap(wrapped, VAULT_1) == DATA_KEY


def test_nothing_stays_open_in_the_module_and_threads_take_turns(services: Services) -> None:
    import pkcs11

    keys, _ = services.pairs["pkcs11"]
    found: list[bytes] = []

    def work() -> None:
        for _ in range(5):
            found.append(keys.unwrap(keys.wrap(DATA_KEY, VAULT_1), VAULT_1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA_KEY] * 20
    assert not pkcs11._loaded[str(services.hsm.module)].initialized
