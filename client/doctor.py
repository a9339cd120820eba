"""Look a site over: what is wrong, what soon will be, and what to do about it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from client.home import Home, Passphrase
from client.ledger import Ledger
from client.vault import database
from client.vault.keys import probe
from common.alerts import EXPIRES_DAYS
from common.clock import Clock, now
from common.doctor import LEAST_DISK, Finding, behind, disk, failed, files, looked, memory, versions
from common.errors import FedwardError

if TYPE_CHECKING:
    from client.federation import Membership

_SLOW_KEY_S = 5.0
_CLOCK_S = 5.0


def examine(directory: Path, *, passphrase: Passphrase | None = None, clock: Clock = now) -> list[Finding]:
    """Every finding about the site in ``directory``; one failed look does not stop the others."""
    try:
        home = Home.open(directory, passphrase=passphrase, clock=clock)
    except FedwardError as error:
        return [failed("site", error), *_machine(directory)]
    found = [Finding("ok", "site", f"{home.config.alias} in {directory}")]
    return [*found, *looked(home, (_files, _key, _vault, _audit, _ledger, _federation, _anchors)), *_machine(directory)]


def _files(home: Home) -> Iterator[Finding]:
    yield from files(home.directory, home.directory.rglob("*"))
    if home.config.previous_key is not None:
        yield Finding("warn", "key", "a change of keys was interrupted", "run `fedward site rotate-key` again")


def _key(home: Home) -> Iterator[Finding]:
    seconds = probe(home.keys)
    scheme = home.config.key.partition(":")[0]
    if seconds is None:
        yield Finding("ok", "key", f"{scheme}: it is asked for whenever the vault opens")
    elif seconds > _SLOW_KEY_S:
        yield Finding("warn", "key", f"{scheme}: answers after {seconds:.0f} s", "look at the network and the service")
    else:
        yield Finding("ok", "key", f"{scheme}: wraps and unwraps in {1000 * seconds:.1f} ms")
    if scheme == "file":
        path = home.directory / home.config.key.partition(":")[2]
        if path.stat().st_dev == home.vault_path.stat().st_dev:
            yield Finding(
                "warn",
                "key",
                "the key lies on the same disk as the vault: who takes the disk has both",
                "use a key service, or a file on a device of its own (docs/keys.md)",
            )


def _vault(home: Home) -> Iterator[Finding]:
    with home.vault(read_only=True) as vault:
        seen = home.witness.seen(vault)
        text = f"{len(vault)} images, generation {vault.generation}, the latest that this site has seen"
        yield (
            Finding("ok", "vault", text)
            if len(vault)
            else Finding("warn", "vault", "it is empty", "fill it with `fedward site import`")
        )
        if seen.sealed != vault.generation:
            yield Finding(
                "warn", "vault", "a command was killed before it sealed the file", "run the same import once more"
            )
    if database.interrupted(home.vault_path):
        yield Finding("warn", "vault", "a killed command left a journal", "nothing: the next command puts it right")


def _audit(home: Home) -> Iterator[Finding]:
    count, last = 0, ""
    for entry in home.audit.entries():
        count, last = entry.number, entry.at
    yield Finding("ok", "audit", f"{count} entries, an unbroken chain")
    yield from behind(home.clock, last)


def _ledger(home: Home) -> Iterator[Finding]:
    with home.vault(read_only=True) as vault, closing(Ledger(home, lambda: vault)) as ledger:
        book = ledger.book()
    if book.in_doubt is not None:
        remedy = "ask the coordinators, then `fedward site ledger --mend`"
        yield Finding("warn", "ledger", "in doubt since the site was restored from a backup", remedy)
    elif book.entries:
        yield Finding("ok", "ledger", f"{book.head[0]} entries, as they were written and as the audit log has them")
    else:
        yield Finding("ok", "ledger", "nothing was ever spent")


def _federation(home: Home) -> Iterator[Finding]:
    from client.federation import FOLDER, KIT, Membership

    if not (home.directory / FOLDER / KIT).exists():
        yield Finding("ok", "federation", "none joined")
        return
    membership = Membership.open(home)
    days = membership.certificate_days(home.clock())
    text = f"{membership.federation} at {membership.address}, {len(membership.roster.active)} sites"
    if days <= EXPIRES_DAYS:
        yield Finding("warn", "federation", f"{text}; a certificate expires in {days} days", "ask for a new kit")
    else:
        yield Finding("ok", "federation", f"{text}, certificates good for {days} days")
    yield from _coordinator(membership)
    if membership.unconfirmed:
        names = ", ".join(membership.unconfirmed[:5])
        yield Finding("warn", "federation", f"nobody has compared by phone: {names}", "`fedward site confirm`")


def _anchors(home: Home) -> Iterator[Finding]:
    from client.anchoring import Anchoring
    from client.federation import FOLDER, KIT

    if not (home.directory / FOLDER / KIT).exists():
        return
    with closing(Ledger(home)) as ledger:
        anchoring, alias = Anchoring(home, ledger), home.config.alias
        anchoring.check(alias)
        seen, here, lost = anchoring.seen(alias), ledger.head()[0], ledger.lost()
    if seen is not None and seen.head in lost:
        yield Finding("ok", "ledger", f"others have seen entry {seen.sequence}, which is lost, and made up for")
    elif seen is not None:
        text = f"others have seen entry {seen.sequence} of its {here}, and it has come from there"
        yield Finding("ok", "ledger", text)
    elif here:
        yield Finding("ok", "ledger", "nobody else has a head of it yet: the first comes back with a second round")


def _coordinator(membership: Membership) -> Iterator[Finding]:
    from client.reach import reach

    reached = reach(membership)
    if reached.problem:
        remedy = "let one TCP connection out through the firewall (by a proxy: set HTTPS_PROXY), or call them"
        yield Finding("warn", "network", f"{membership.address} is not reached: {reached.problem}", remedy)
        return
    yield Finding("ok", "network", f"{membership.address} answers over TLS")
    ahead = reached.clock_s
    if ahead is not None and abs(ahead) > _CLOCK_S:
        text = f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
        yield Finding("warn", "clock", text, "set it (NTP); the agent signs by the coordinator's until then")


def _machine(directory: Path) -> Iterator[Finding]:
    vault = directory / "vault.sqlite"
    needed = max(LEAST_DISK, vault.stat().st_size if vault.exists() else 0)
    yield disk(directory if directory.exists() else Path(), needed, "re-encrypting and backups need")
    yield memory()
    yield _gpu()
    yield versions()


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("ok", "gpu", torch.cuda.get_device_name(0))
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return Finding("warn", "gpu", "there is one, but torch cannot use it", "match the driver and the torch build")
    return Finding("ok", "gpu", "none: training runs on the CPU")
