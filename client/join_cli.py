"""What ``fedward site`` does and prints about joining a federation; ``join_commands`` declares how it is called."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path

from client import federation
from client.federation import Membership
from client.home import Home
from common.identity import SiteKey, compare, read_file
from common.identity.documents import MOST_BYTES

_EXPIRY_DAYS = 30


def join_request(site: Path) -> None:
    _tell_request(site, federation.join_request(Home.open(site)), "fedward coordinator admit")


def new_identity(site: Path) -> None:
    path = federation.new_identity(Home.open(site))
    print("the site has a new key; vault and ledger are as they were")
    _tell_request(site, path, "fedward coordinator replace")


def join(site: Path, kit: Path, *, fingerprint: str | None, yes: bool) -> None:
    home = Home.open(site)
    data = read_file(kit, "join-kit", most=MOST_BYTES)
    found, coordinator, known = federation.read_kit(home, data)
    print(
        f"federation  {found.federation}\naddress     {found.address}\nfingerprint {coordinator.fingerprint}",
        flush=True,
    )
    if known and fingerprint is None:
        federation.join(home, data)
    else:
        compare(
            f"the coordinator of {found.federation}",
            coordinator,
            fingerprint,
            yes=yes,
            ask=_ask if sys.stdin.isatty() else None,
        )
        federation.join(home, data, coordinator=coordinator.fingerprint)
    membership = Membership.open(home)
    count = len(membership.peers)
    print(f"{home.config.alias} has joined, with {count} other site{'' if count == 1 else 's'}")
    if membership.unconfirmed:
        print("compare their fingerprints by phone: `fedward site peers`, then `fedward site confirm`")
    print(f"sites that join later become known with the next study; next: `fedward site up --site {site}`")


def peers(site: Path, *, as_json: bool) -> None:
    home = Home.open(site)
    membership = Membership.open(home)
    rows = []
    for entry in membership.peers:
        confirmation, present = membership.confirmed.get(entry.alias), entry.public_key.fingerprint
        fits = confirmation is not None and confirmation.fingerprint == present
        state = "confirmed" if fits else "not confirmed" if confirmation is None else "changed"
        rows.append(
            {
                "alias": entry.alias,
                "fingerprint": present,
                "state": state,
                "at": confirmation.at if confirmation is not None and fits else None,
                "by": confirmation.by if confirmation is not None and fits else None,
            }
        )
    own = SiteKey.load(membership.key_path).public.fingerprint
    days = membership.certificate_days(home.clock())
    if as_json:
        head = {
            "federation": membership.federation,
            "coordinator": membership.coordinator.fingerprint,
            "site": membership.alias,
            "fingerprint": own,
            "roster_version": membership.roster.version,
            "roster": membership.roster.hash,
            "certificate_days": days,
        }
        print(json.dumps({**head, "peers": rows}, ensure_ascii=False))
        return
    width = max(len(name) for name in ("coordinator", membership.alias, *(str(row["alias"]) for row in rows)))
    print(f"{membership.federation}, roster version {membership.roster.version}")
    print(f"{'coordinator':<{width}}  {membership.coordinator.fingerprint}")
    print(f"{membership.alias:<{width}}  {own}  this site")
    for row in rows:
        who = f" {str(row['at'])[:10]} by {row['by'] or '?'}" if row["at"] else ""
        print(f"{row['alias']:<{width}}  {row['fingerprint']}  {row['state']}{who}")
    if days <= _EXPIRY_DAYS:
        print(f"certificates expire in {days} days; ask the coordinator for a new kit", file=sys.stderr)


def confirm(site: Path, alias: str, *, fingerprint: str) -> None:
    federation.confirm(Home.open(site), alias, fingerprint, by=_login())
    print(f"{alias} is confirmed")


def _tell_request(site: Path, path: Path, answer: str) -> None:
    key = SiteKey.load(site / federation.FOLDER / federation.IDENTITY).public
    print(
        f"request {path}: send it to the coordinator, by mail if you like; it holds no secret\n"
        f"fingerprint {key.fingerprint}: read it out when the coordinator calls\n"
        f"they answer with `{answer}` and send a kit for `fedward site join`"
    )


def _ask(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
