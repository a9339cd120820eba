"""What a site says that could not do what was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict

from common.errors import ProtocolError
from common.protocol.records import Fields, Written, get, program_in

_CODE = re.compile(r"[a-z][a-z0-9-]{0,39}")
_MOST_SECONDS = 1 << 37


@dataclass(frozen=True)
class Refusal:
    """A site that could not do what was asked; ``code`` is all that leaves it."""

    site: str
    code: str
    until: int = 0
    """When the site opens, in seconds of the epoch, where the code is ``outside-hours``; 0: not known."""
    program: str = ""
    """Version of fedward at the site."""


def write_refusal(refusal: Refusal) -> Written:
    fields: Fields = {"code": refusal.code}
    fields |= {key: value for key, value in (("until", refusal.until), ("program", refusal.program)) if value}
    return Written("refusal", fields)


def read_refusal(_: RecordDict, head: Mapping[str, Any], site: str) -> Refusal:
    """Raises :class:`ProtocolError`."""
    code = get(head, "code", str)
    if not _CODE.fullmatch(code):
        raise ProtocolError(f"{site} refused with a malformed code")
    until = get(head, "until", int) if "until" in head else 0
    if not 0 <= until <= _MOST_SECONDS:
        raise ProtocolError(f"{site} says that it opens at no time there is; upgrade that site")
    return Refusal(site, code, until, program_in(head, site))
