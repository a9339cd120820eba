"""Where sites reach the coordinator: ``host:port``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from common.errors import IdentityError

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True)
class Address:
    """A name or an IP address, and a port."""

    host: str
    """In small letters; IPv6 without brackets."""
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """From ``host:port`` or ``[IPv6]:port``. Raises :class:`IdentityError`."""
        host, _, port = text.rpartition(":")
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise IdentityError("an address is HOST:PORT, for example federation.example.org:8443; correct it")
        if host.startswith("[") and host.endswith("]") and ":" in host:
            return cls(parse_host(host[1:-1]), int(port))
        if ":" in host:
            raise IdentityError("an IPv6 address is written in brackets, for example [2001:db8::1]:8443; correct it")
        return cls(parse_host(host), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host(text: str) -> str:
    """A DNS name (ASCII) or an IP address, in its usual spelling. Raises :class:`IdentityError`."""
    with_numbers = ":" in text or text.rpartition(".")[2].isdecimal()
    try:
        if with_numbers and "%" not in text:
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if with_numbers or not _NAME.fullmatch(text):
        raise IdentityError(
            "a host is a DNS name in ASCII letters, digits, hyphens and dots, or an IP address; correct it"
        )
    return text.lower()
