"""A coordinator and its sites as people type it, with OpenSSL and real TLS connections as judges."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client.commands import app as site_app
from client.federation import Membership, join, join_request
from client.home import Home
from client.join_commands import app as join_app
from common.errors import FedwardError
from server.commands import app as coordinator_app
from server.provision import Coordinator

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime.now(UTC)
FINGERPRINT = re.compile(r"[0-9A-Z]{4}(?:-[0-9A-Z]{4}){4}")

app = typer.Typer()
app.add_typer(coordinator_app, name="coordinator")
app.add_typer(site_app, name="site")
site_and_join = typer.Typer()
site_and_join.add_typer(join_app)
app.add_typer(site_and_join, name="member")


@dataclass(frozen=True)
class Outcome:
    out: str
    err: str
    error: FedwardError | None


def command(*arguments: object) -> Outcome:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, FedwardError):
        raise result.exception
    return Outcome(result.stdout, result.stderr, result.exception)


def done(*arguments: object) -> str:
    outcome = command(*arguments)
    assert outcome.error is None, outcome
    return outcome.out


def refused(*arguments: object) -> str:
    outcome = command(*arguments)
    assert outcome.error is not None, outcome
    return str(outcome.error)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    text = done("coordinator", "init", tmp_path / "hub", "--name", "Thorax", "--address", "localhost:8443")
    assert FINGERPRINT.search(text)
    return tmp_path / "hub"


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Path]:
    made = {alias: tmp_path / alias for alias in ("north", "south")}
    for path in made.values():
        done("site", "init", path, "--synthetic")
    return made


def fingerprint(text: str) -> str:
    found = FINGERPRINT.search(text)
    assert found is not None, text
    return found.group()


def request(site: Path) -> tuple[Path, str]:
    return site / "federation" / "request.json", fingerprint(done("member", "join-request", "--site", site))


def test_a_federation_of_two_sites(hub: Path, sites: dict[str, Path], tmp_path: Path) -> None:
    own = json.loads(done("coordinator", "roster", "--dir", hub, "--json"))["fingerprint"]
    heard = {}
    for alias, site in sites.items():
        asked, heard[alias] = request(site)
        kit = tmp_path / f"{alias}.kit"
        admitted = done("coordinator", "admit", asked, "--dir", hub, "--out", kit, "--fingerprint", heard[alias])
        assert alias in admitted
        assert own in admitted
        others = len(heard) - 1
        assert f"has joined, with {others} other" in done("member", "join", kit, "--site", site, "--fingerprint", own)
    # The first learns of the second from its next kit, here; a running coordinator sends it.
    asked, _ = request(sites["north"])
    kit = tmp_path / "north.kit"
    done("coordinator", "admit", asked, "--dir", hub, "--out", kit, "--fingerprint", heard["north"])
    done("member", "join", kit, "--site", sites["north"])
    listed = done("member", "peers", "--site", sites["north"])
    assert f"{heard['south']}  not confirmed" in listed
    assert f"{heard['north']}  this site" in listed
    sloppy = heard["south"].replace("-", " ").lower().replace("0", "o").replace("1", "i")
    done("member", "confirm", "south", "--site", sites["north"], "--fingerprint", sloppy)
    assert f"{heard['south']}  confirmed" in done("member", "peers", "--site", sites["north"])
    found = json.loads(done("member", "peers", "--site", sites["north"], "--json"))
    assert found["peers"][0]["state"] == "confirmed"
    assert found["coordinator"] == own
    # A compromise of south.
    new = fingerprint(done("member", "new-identity", "--site", sites["south"]))
    assert new != heard["south"]
    asked = sites["south"] / "federation" / "request.json"
    replaced = done("coordinator", "replace", asked, "--dir", hub, "--out", tmp_path / "s.kit", "--fingerprint", new)
    assert f"known as    {heard['south']} (active)" in replaced
    assert f"vouched by  {heard['south']}, its present key" in replaced
    done("member", "join", tmp_path / "s.kit", "--site", sites["south"])
    assert "active sites: 1" in done("coordinator", "revoke", "south", "--dir", hub, "--why", "left the study")
    table = done("coordinator", "roster", "--dir", hub)
    assert re.search(rf"north +{heard['north']} +active", table)
    assert re.search(rf"south +{heard['south']} +revoked", table)
    assert re.search(rf"south +{new} +revoked", table)
    assert re.search("server: 36[45] days", done("coordinator", "renew", "--dir", hub))
    assert "new kit" in done("coordinator", "renew", "--authority", "--dir", hub)
    assert done("site", "verify", "--site", sites["south"])


def test_scripts_cannot_say_yes_for_people(hub: Path, sites: dict[str, Path], tmp_path: Path) -> None:
    asked, heard = request(sites["north"])
    kit = tmp_path / "kit"
    wrong = heard[:-1] + ("2" if heard[-1] != "2" else "3")
    for given, finding in (
        ([], "nobody compared"),
        (["--yes"], "nobody compared"),
        (["--yes", "--fingerprint", wrong], "not the fingerprint"),
        (["--fingerprint", ""], "not the fingerprint"),
    ):
        assert finding in refused("coordinator", "admit", asked, "--dir", hub, "--out", kit, *given)
        assert not kit.exists()
    assert json.loads(done("coordinator", "roster", "--dir", hub, "--json"))["sites"] == []
    done("coordinator", "admit", asked, "--dir", hub, "--out", kit, "--fingerprint", heard)
    for given in ([], ["--yes"]):
        assert "nobody compared" in refused("member", "join", kit, "--site", sites["north"], *given)
    assert "not the fingerprint" in refused("member", "join", kit, "--site", sites["north"], "--fingerprint", heard)


def test_a_kit_is_written_over_nothing_but_a_kit(hub: Path, sites: dict[str, Path]) -> None:
    asked, heard = request(sites["north"])
    before = asked.read_bytes()
    arguments = ("coordinator", "admit", asked, "--dir", hub, "--fingerprint", heard, "--out")
    assert "choose another --out" in refused(*arguments, asked)
    assert asked.read_bytes() == before
    assert "cannot write" in refused(*arguments, hub / "no" / "kit")
    done(*arguments, hub / "kit")  # the site is in the roster by now: the same request gives its kit all the same
    done(*arguments, hub / "kit")


def test_files_that_are_not_what_they_should_be(hub: Path, sites: dict[str, Path], tmp_path: Path) -> None:
    asked, heard = request(sites["north"])
    kit = tmp_path / "kit"
    done("coordinator", "admit", asked, "--dir", hub, "--out", kit, "--fingerprint", heard)
    assert "this is a join-kit" in refused("coordinator", "admit", kit, "--dir", hub, "--out", tmp_path / "k")
    assert "this is a join-request" in refused("member", "join", asked, "--site", sites["north"])
    assert "there is no join-kit" in refused("member", "join", tmp_path / "gone", "--site", sites["north"])
    assert "not a file" in refused("member", "join", "/dev/zero", "--site", sites["north"])
    assert "no private key" in refused("member", "join", kit, "--site", sites["south"])
    assert "joined no federation" in refused("member", "peers", "--site", sites["south"])
    assert "not a site" in refused("member", "join-request", "--site", tmp_path)
    assert "coordinator init" in refused("coordinator", "roster", "--dir", tmp_path)
    assert "no site west" in refused("coordinator", "revoke", "west", "--dir", hub)


SCRIPT = """
import sys, typer
from server.commands import app
from common.errors import FedwardError
try:
    app(sys.argv[1:], standalone_mode=False)
except FedwardError as error:
    print(error); sys.exit(4)
"""


@pytest.mark.parametrize(
    ("typed", "code", "finding"),
    [("y\n", 0, "kit"), ("YES\n", 0, "kit"), ("n\n", 4, "was not confirmed"), ("\n", 4, "was not confirmed")],
)
def test_at_a_terminal_people_are_asked(
    hub: Path, sites: dict[str, Path], tmp_path: Path, typed: str, code: int, finding: str
) -> None:
    asked, heard = request(sites["north"])
    ours, theirs = pty.openpty()
    arguments = ["admit", str(asked), "--dir", str(hub), "--out", str(tmp_path / "kit")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        shown = _read_until(ours, "[y/N]")
        assert heard in shown
        assert "north, called by phone" in shown
        os.write(ours, typed.encode())
        assert finding in _read_until(ours, finding)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert (tmp_path / "kit").exists() == (code == 0)


def _read_until(file: int, mark: str) -> str:
    text = ""
    while mark not in text:
        assert select.select([file], [], [], 20)[0], text
        text += os.read(file, 4096).decode()
    return text


# Judges from outside


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Coordinator, int]]:
    """A TLS server with a coordinator's key and certificate, which greets whoever may connect."""
    hub = Coordinator.init(
        tmp_path / "tls", name="Thorax", address="localhost:8443", also=["localhost"], site_certificates=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(hub.certificate_path, hub.server_key_path)
    context.load_verify_locations(hub.authority_path)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as stream:
                    stream.sendall(str(dict(part[0] for part in stream.getpeercert()["subject"])).encode())  # type: ignore[index, misc]
            except (ssl.SSLError, OSError):
                raw.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield hub, listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def greet(port: int, ca: Path, tls: Path | None, name: str = "localhost") -> str:
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if tls is not None:
        context.load_cert_chain(tls)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=name) as stream,
    ):
        return stream.recv(1000).decode()


def test_certificates_hold_in_tls(running: tuple[Coordinator, int], sites: dict[str, Path], tmp_path: Path) -> None:
    hub, port = running
    home = Home.open(sites["north"])
    join(home, hub.admit(join_request(home).read_bytes()), coordinator=hub.key.public.fingerprint)
    member = Membership.open(home)
    for name in ("localhost", "127.0.0.1"):
        assert "'commonName': 'north'" in greet(port, member.ca_path, member.tls_path, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        greet(port, member.ca_path, member.tls_path, "hub.example")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        greet(port, member.ca_path, None)
    other = Coordinator.init(tmp_path / "other", name="Thorax", address="localhost:8443")
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(port, other.authority_path, member.tls_path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_agrees(running: tuple[Coordinator, int], tmp_path: Path) -> None:
    hub, _ = running
    other = Coordinator.init(tmp_path / "other", name="Thorax", address="[2001:db8::1]:443", also=["hub.example"])

    def verify(coordinator: Coordinator, ca: Path, *more: str) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-CAfile", str(ca), "-purpose", "sslserver", *more]
        run = subprocess.run([*command, str(coordinator.certificate_path)], capture_output=True, check=False)
        return run.returncode == 0

    def at(days: int) -> tuple[str, str]:
        return "-attime", str(int((NOW + timedelta(days=days)).timestamp()))

    assert verify(hub, hub.authority_path, "-verify_hostname", "localhost")
    assert verify(other, other.authority_path, "-verify_ip", "2001:db8::1")
    assert verify(other, other.authority_path, "-verify_hostname", "hub.example")
    assert not verify(other, other.authority_path, "-verify_hostname", "localhost")
    assert not verify(hub, other.authority_path)
    assert verify(hub, hub.authority_path, *at(364))
    assert not verify(hub, hub.authority_path, *at(366))
    before = tmp_path / "ca-before.crt"
    shutil.copy(hub.authority_path, before)
    hub.renew(authority=True)
    for ca in (before, hub.authority_path):
        assert verify(hub, ca)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text", "-in", str(hub.certificate_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "ecdsa-with-SHA384" in shown
    assert "P-384" in shown
    assert "TLS Web Server Authentication" in shown


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_fingerprint_by_openssl(hub: Path) -> None:
    """Anyone can recompute one: SHA-256 of the public key in DER, read in fives."""
    key = Coordinator.open(hub).key.public
    run = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=key.pem, capture_output=True, check=True
    )
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-binary"], input=run.stdout, capture_output=True, check=True
    )
    bits = "".join(f"{byte:08b}" for byte in digest.stdout)
    letters = ("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[int(bits[place : place + 5], 2)] for place in range(0, 100, 5))
    assert key.fingerprint.replace("-", "") == "".join(letters)


def test_no_secret_is_on_a_command_line_or_printed(hub: Path, sites: dict[str, Path], tmp_path: Path) -> None:
    asked, heard = request(sites["north"])
    own = json.loads(done("coordinator", "roster", "--dir", hub, "--json"))["fingerprint"]
    said = done("coordinator", "admit", asked, "--dir", hub, "--out", tmp_path / "kit", "--fingerprint", heard)
    said += done("member", "join", tmp_path / "kit", "--site", sites["north"], "--fingerprint", own)
    said += done("coordinator", "roster", "--dir", hub) + done("member", "peers", "--site", sites["north"])
    kept = [*hub.rglob("*.key"), sites["north"] / "federation" / "identity.key"]
    assert len(kept) == 4
    for path in kept:
        for line in path.read_text().splitlines()[1:-1]:
            assert line not in said + (tmp_path / "kit").read_text()
    options = re.findall(r"--[a-z-]+", " ".join(_help("coordinator", "init") + _help("member", "join")))
    assert not [option for option in options if "key" in option or "password" in option]


def _help(*arguments: str) -> list[str]:
    return done(*arguments, "--help").splitlines()
