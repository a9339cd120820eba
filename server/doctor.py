"""Look a coordinator over: what is wrong, what soon will be, and what to do about it. Changes nothing."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from common.alerts import EXPIRES_DAYS
from common.clock import Clock, now
from common.doctor import LEAST_DISK, Finding, behind, disk, failed, files, looked, memory, versions
from common.errors import FedwardError, Unhealthy
from common.identity import Address, covers, read_file
from common.webhook import Webhook
from server.desk import all_runs, is_at_work
from server.health import judge
from server.provision import IDENTITY, PKI, Coordinator

_MOST_FILE = 1 << 20


def examine(directory: Path, *, clock: Clock = now) -> list[Finding]:
    """Every finding about the coordinator in ``directory``; one failed look does not stop the others."""
    machine = [disk(directory if directory.exists() else Path(), LEAST_DISK, "a run's models need"), memory()]
    try:
        coordinator = Coordinator.open(directory, clock=clock)
    except FedwardError as error:
        return [failed("coordinator", error), *machine, versions()]
    config = coordinator.config
    found = [Finding("ok", "coordinator", f"{config.name} in {directory}, at {config.address}")]
    looks = (_files, _identity, _certificates, _audit, _runs, _network, _webhook)
    return [*found, *looked(coordinator, looks), *machine, versions()]


def _files(coordinator: Coordinator) -> Iterator[Finding]:
    """The directory keeps others out; the keys do so by themselves as well."""
    keys = (IDENTITY, f"{PKI}/ca.key", f"{PKI}/server.key")
    return files(coordinator.directory, [coordinator.directory / key for key in keys])


def _identity(coordinator: Coordinator) -> Iterator[Finding]:
    roster = coordinator.roster
    text = f"{coordinator.key.public.fingerprint}, roster version {roster.version}, {len(roster.active)} active sites"
    if roster.active:
        yield Finding("ok", "identity", text)
    else:
        yield Finding("warn", "identity", text, "take some in with `fedward coordinator admit`")


def _certificates(coordinator: Coordinator) -> Iterator[Finding]:
    if not covers(read_file(coordinator.certificate_path, "certificate", most=_MOST_FILE), coordinator.config.hosts):
        text = "the server's certificate is not for the address in coordinator.yaml"
        yield Finding("fail", "certificates", text, "run `fedward coordinator renew`, then restart it")
    expiries = coordinator.expiries()
    for expiry in expiries:
        if expiry.days < 0:
            yield Finding("fail", "certificates", f"{expiry.what} has expired", f"run `{expiry.remedy}`")
        elif expiry.days <= EXPIRES_DAYS:
            yield Finding("warn", "certificates", f"{expiry.what}: {expiry.days} days left", f"run `{expiry.remedy}`")
    least = min(expiry.days for expiry in expiries)
    if least > EXPIRES_DAYS:
        yield Finding("ok", "certificates", f"good for {least} days")


def _audit(coordinator: Coordinator) -> Iterator[Finding]:
    count, last, version = 0, "", 1
    for entry in coordinator.audit.entries():
        count, last, version = entry.number, entry.at, entry.facts.get("version", version)
    if count == 0 or version < coordinator.roster.version:
        text = f"{count} entries, and none of roster version {coordinator.roster.version}: some were cut off"
        yield Finding("fail", "audit", text, "restore audit.jsonl from a backup")
    else:
        yield Finding("ok", "audit", f"{count} entries, an unbroken chain")
    yield from behind(coordinator.clock, last)


def _runs(coordinator: Coordinator) -> Iterator[Finding]:
    states = {folder.name: folder.state for folder in all_runs(coordinator.runs)}
    for name, state in states.items():
        if state == "damaged":
            yield Finding("warn", "runs", f"{name}: run.json cannot be read", "restore it from a backup, or remove it")
        elif state == "interrupted":
            yield Finding("warn", "runs", f"{name} was interrupted", "go on with `fedward coordinator resume`")
    counted = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states.values()).items()))
    yield Finding("ok", "runs", counted or "none yet")


def _network(coordinator: Coordinator) -> Iterator[Finding]:
    address, listen = Address.parse(coordinator.config.address), Address.parse(coordinator.config.listen)
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        text = f"{address.host}, where sites are sent, is no name here: {error.strerror}"
        yield Finding("warn", "network", text, "ask the sites whether it is one for them, or correct coordinator.yaml")
    if is_at_work(coordinator.directory):
        try:
            yield Finding("ok", "network", judge(coordinator, coordinator.clock().timestamp()))
        except Unhealthy as error:
            yield failed("network", error)
        return
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            text = f"it could not listen on {coordinator.config.listen}: {error.strerror}"
            yield Finding("fail", "network", text, "end what listens there, or change `listen` in coordinator.yaml")
        else:
            yield Finding("ok", "network", f"not running; {coordinator.config.listen} is free for it")


def _webhook(coordinator: Coordinator) -> Iterator[Finding]:
    if coordinator.config.webhook is None:
        yield Finding("ok", "webhook", "none: alerts go to the log and to `status --check`")
        return
    Webhook(coordinator.config.webhook, coordinator.directory).close(wait_s=0.0)
    yield Finding("ok", "webhook", "its files can be read; nothing was sent")
