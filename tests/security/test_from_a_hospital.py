"""A hospital's machine, in a network of its own: what it opens, whom it talks to, and what others can read of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.federation import join, join_request
from client.home import Home
from server.provision import Coordinator
from tests.integration.federation_fixtures import ROOT, STUDY, Federation, fill, wait_for
from tests.integration.services_keys import free_port

HUB, HOSPITAL = "192.0.2.1", "192.0.2.2"
KNOCK = """
import socket, sys
print([port for port in map(int, sys.argv[2:]) if socket.socket().connect_ex((sys.argv[1], port)) == 0])
"""


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces, coordinator's and hospital's, and a wire between them; nothing else is reachable."""
    missing = [tool for tool in ("ip", "iptables", "ss") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"network namespaces need root and {', '.join(missing) or 'its rights'}")
    names = f"fwatk-c{os.getpid()}", f"fwatk-h{os.getpid()}"
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire0", "netns", names[1])
        for name, address in zip(names, (HUB, HOSPITAL), strict=True):
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "wire0")
            run("ip", "-n", name, "link", "set", "wire0", "up")
            # So that a packet for anywhere leaves, and is counted.
            run("ip", "-n", name, "route", "add", "default", "dev", "wire0")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def hospital(networks: tuple[str, str], tmp_path: Path) -> Iterator[Federation]:
    hub, own = networks
    port = free_port()
    address = f"{HUB}:{port}"
    coordinator = Coordinator.init(tmp_path / "coordinator", name="trial", address=address, listen=address, also=[])
    home = Home.init(tmp_path / "north", alias="north", synthetic=True)
    fill(home, 120, 1)
    join(home, coordinator.admit(join_request(home).read_bytes()), coordinator=coordinator.key.public.fingerprint)
    inside = {"coordinator": ("ip", "netns", "exec", hub), "north": ("ip", "netns", "exec", own)}
    made = Federation(tmp_path, port, ("north",), inside=inside)
    try:
        yield made
    finally:
        for process in made.running.values():
            process.kill()
            process.wait()


@pytest.mark.slow
def test_it_opens_nothing_reaches_one_address_and_tells_nobody_its_secrets(
    networks: tuple[str, str], hospital: Federation
) -> None:
    hub, own = networks
    for rule in (("-o", "lo", "-j", "ACCEPT"), ("-d", HUB, "-p", "tcp", "--dport", hospital.port, "-j", "ACCEPT"),
                 ("-j", "DROP")):  # fmt: skip
        run("ip", "netns", "exec", own, "iptables", "-A", "OUTPUT", *rule)
    hospital.up()
    hospital.agent("north")
    name = hospital.launch(STUDY.replace("rounds: 4", "rounds: 1"))
    hospital.approve(name, "north")
    wait_for(lambda: hospital.rounds(name) >= 1, "a round", hospital)
    assert run("ip", "netns", "exec", own, "ss", "-Hlntup") == "", "the hospital listens"
    agent = hospital.running["north"].pid
    assert Path(f"/proc/{agent}/cmdline").read_bytes().startswith(sys.executable.encode()), "not the agent's process"
    hospital.state(name, "finished")
    # Its only way out, counted: DNS, telemetry and package indexes would be the last rule's.
    *_, allowed, dropped = run("ip", "netns", "exec", own, "iptables", "-nvxL", "OUTPUT").strip().splitlines()
    assert int(allowed.split()[0]) > 20
    assert int(dropped.split()[0]) == 0, dropped
    run("ip", "netns", "exec", own, "iptables", "-F", "OUTPUT")
    # The coordinator's one door, by its own word and by knocking, Flower's ports included.
    listening = run("ip", "netns", "exec", hub, "ss", "-Hlntu").splitlines()
    assert [line.split()[4] for line in listening] == [f"{HUB}:{hospital.port}"]
    knocked = run(
        "ip", "netns", "exec", own, sys.executable, "-W", "ignore", "-c", KNOCK, HUB, hospital.port,
        22, 80, 443, 8000, 8080, *range(9090, 9100),
    )  # fmt: skip
    assert knocked.strip() == f"[{hospital.port}]"
    _no_secrets(hospital, name)


def _no_secrets(hospital: Federation, name: str) -> None:
    """Keys are in no command line and no environment; of a site, the coordinator's files and logs know its alias."""
    home, hub = hospital.home("north"), hospital.folder / "coordinator"
    with home.vault(read_only=True) as vault:
        patients = [row.patient.encode() for row in vault.each()]
        secret = vault.secret
    keys = [(home.directory / "federation" / "identity.key"), hub / "identity.key", hub / "pki" / "server.key"]
    private = [line for key in keys for line in key.read_bytes().splitlines()[1:-1] if len(line) > 40]
    vault_key = (home.directory / "keys" / "vault.key").read_bytes().strip()
    secrets = [*private, secret, secret.hex().encode(), vault_key]
    for process in hospital.running.values():
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *children):
            seen = b"".join(Path(f"/proc/{pid}/{what}").read_bytes() for what in ("cmdline", "environ"))
            assert not [word for word in secrets if word in seen]
    told = [hub / "status.json", hospital.folder / "coordinator.log", *hospital.run(name).iterdir()]
    for path in (path for path in told if path.is_file()):
        content = path.read_bytes()
        found = [word for word in (*secrets, *patients, str(home.directory).encode()) if word in content]
        assert not found, path.name
    logged = (hospital.folder / "north.log").read_bytes()
    assert not [word for word in (*secrets, *patients) if word in logged]


def test_flower_reports_nothing_whoever_imports_it_first() -> None:
    """Flower reads its switch once, at its first import."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    said = subprocess.run(
        [sys.executable, "-c", "import client.agent, flwr.supercore.telemetry as t; print(t.FLWR_TELEMETRY_ENABLED)"],
        env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip
    assert said.stdout.split()[-1] == "0"
