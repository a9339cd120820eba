"""A coordinator's certificate, sites' keys, and site agents in processes of their own, for the fleet's tests."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[2]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Authority:
    """A CA of its own with a certificate for loopback, and keys of sites, all under one folder."""

    folder: Path
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, *sites: str) -> Authority:
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder)
        ca_key, name = new_key(), _name("test authority")
        ca = _certificate(name, name, ca_key, ca_key, authority=True)
        made.ca.write_bytes(ca.public_bytes(Encoding.PEM))
        for who in ("server", "member"):
            key = new_key()
            made.path(f"{who}.key").write_bytes(pem(key))
            certificate = _certificate(_name(who), name, key, ca_key, authority=False)
            made.path(f"{who}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        for site in sites:
            made.site(site)
        return made

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def ca(self) -> Path:
        return self.path("ca.crt")

    def site(self, alias: str) -> Path:
        """A new key for ``alias``; the file that holds it."""
        self.keys[alias] = new_key()
        self.path(f"{alias}.key").write_bytes(pem(self.keys[alias]))
        return self.path(f"{alias}.key")

    def roster(self, *aliases: str) -> dict[str, bytes]:
        return {alias: public(self.keys[alias]) for alias in aliases or self.keys}

    def fleet(self, *aliases: str, port: int = 0, **settings: Any) -> Any:
        from server.superlink import Fleet

        return Fleet(
            self.roster(*aliases),
            host="127.0.0.1",
            port=port,
            certificate=self.path("server.crt"),
            key=self.path("server.key"),
            **settings,
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(subject: x509.Name, issuer: x509.Name, key: Any, signer: Any, *, authority: bool) -> x509.Certificate:
    now = datetime.now(UTC)
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(signer, hashes.SHA384())
    )


class Agent:
    """A site's agent in a process of its own; ``kind``: ``echo``, ``shift`` (weights + 1), ``raise``, each perhaps
    with seconds to work (``echo:2``), or ``site:DIRECTORY`` for what a hospital answers."""

    def __init__(self, authority: Authority, alias: str, port: int, kind: str = "echo", **pace: Any) -> None:
        self.log = authority.path(f"{alias}.log")
        settings = {
            "address": f"127.0.0.1:{port}",
            "ca": str(authority.ca),
            "key": str(authority.path(f"{alias}.key")),
            "kind": kind,
            "pace": {"quick_s": 0.05, "idle_s": 0.3, "heartbeat_s": 10.0, "retry_s": [0.1, 0.5], **pace},
        }
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(settings)], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def answers(self) -> int:
        """How many messages it has been handed, over all its lives."""
        return sum(line.startswith("answering") for line in self.lines())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, within: float = 20.0) -> int:
        """Ask it to stop; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def wait_for(what: Callable[[], Any], seconds: float = 60.0, pause: float = 0.02) -> Any:
    """``what()`` once it is true."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = what()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError(f"not within {seconds} s")


def all_online(fleet: Any, *aliases: str) -> Callable[[], bool]:
    def online() -> bool:
        nodes = fleet.nodes()
        return all(nodes[alias].online for alias in aliases or nodes)

    return online


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def peak_growth() -> Iterator[list[int]]:
    """Collects by how many bytes this process has been above where it started."""
    start, grown, over = resident_bytes(os.getpid()), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            grown[0] = max(grown[0], resident_bytes(os.getpid()) - start)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield grown
    finally:
        over.set()
        watcher.join()


# --- what runs in an agent's process ------------------------------------------------------------------------------


def _answer(kind: str) -> Callable[[Any], Any]:
    import numpy as np
    from flwr.app import Array, ArrayRecord, Message, RecordDict

    what, _, detail = kind.partition(":")
    if what == "site":
        from client.app import Resident, handle

        resident, directory = Resident(), Path(detail)
        return lambda message: handle(message, lambda: directory, resident)

    def answer(message: Any) -> Any:
        print("answering", message.metadata.message_type, flush=True)
        time.sleep(float(detail or 0))
        if what == "raise":
            raise RuntimeError("a patient's name")
        if what == "shift":
            shifted = {name: Array(array.numpy() + np.float32(1)) for name, array in message.content["w"].items()}
            return Message(RecordDict({"w": ArrayRecord(shifted)}), reply_to=message)
        return Message(message.content, reply_to=message)

    return answer


def _main() -> None:
    import logging

    from client.fleet import Connection, Pace, serve

    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pace = settings["pace"]
    pace["retry_s"] = tuple(pace["retry_s"])
    connection = Connection.open(settings["address"], Path(settings["ca"]), Path(settings["key"]), pace=Pace(**pace))
    serve(connection, _answer(settings["kind"]), stop=stop)
    print("ended", flush=True)


if __name__ == "__main__":
    _main()
