"""Whether the coordinator can be reached from here: one TLS connection as the agent makes it, and its clock."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from client.federation import Membership

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Reached:
    """What became of one try."""

    problem: str = ""
    """In words; empty where the coordinator answered."""
    clock_s: float | None = None
    """How far this machine's clock is ahead of the coordinator's, to a second or two; ``None``: it did not tell."""


def reach(membership: Membership, clock: Callable[[], float] = time.time) -> Reached:
    """Try it once, through ``HTTPS_PROXY`` where that is set. Nothing of the site is sent, and nothing is signed."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(membership.ca_path)
        if membership.tls_path is not None:
            context.load_cert_chain(membership.tls_path)
        with (
            httpx.Client(verify=context, timeout=_TIMEOUT_S, follow_redirects=False) as client,
            # Any answer will do: the coordinator refuses what is not signed.
            client.stream("GET", f"https://{membership.address}/") as response,
        ):
            told = response.headers.get("date")
    except httpx.ProxyError:
        return Reached("the proxy in HTTPS_PROXY does not let it through")
    except (httpx.HTTPError, OSError) as error:
        return Reached(_words(error))
    try:
        return Reached(clock_s=clock() - parsedate_to_datetime(told or "").timestamp())
    except (ValueError, TypeError):
        return Reached()


def _words(error: Exception) -> str:
    text = f"{error} {error.__cause__ or ''}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "whoever answers there has a certificate of another authority, or one that has expired"
    if isinstance(error, httpx.TimeoutException):
        return f"nobody answers within {_TIMEOUT_S:.0f} s: a firewall may drop the connection"
    return f"the connection fails ({type(error).__name__}): wrong address, no coordinator, or a firewall"
