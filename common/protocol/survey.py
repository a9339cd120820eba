"""Who is there, and how many images they have: before the first round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from common.errors import ProtocolError
from common.packing import pack, unpack
from common.protocol.records import Fields, Statistics, Written, get, program_in, record_of
from common.protocol.task import Task
from common.survey import SPLITS
from common.weights import STATISTICS

SURVEY = "query.survey"
_ROSTER_BYTES = 1 << 20
_COUNTS_CHARACTERS = 1000
_MOST_IMAGES = (1 << 31) - 1


@dataclass(frozen=True)
class SurveyRequest:
    """Who are you, and how many images have you for this study?"""

    task: Task
    roster: bytes = b""
    """In a real federation: the newest roster, signed by the coordinator (``common.identity``)."""
    program: str = ""
    """Version of fedward at the coordinator."""
    measure: bool = False
    """Also count by class and sum pixels, as the study's ``surveyed`` says."""


@dataclass(frozen=True)
class SurveyReply:
    site: str
    images: Mapping[str, int]
    program: str = ""
    """Version of fedward at the site."""
    statistics: Statistics | None = None
    """``common.survey``, where the request asks to measure."""


def write_request(request: SurveyRequest) -> Written:
    fields: Fields = {key: value for key, value in (("roster", request.roster), ("program", request.program)) if value}
    return Written(SURVEY, fields | ({"measure": 1} if request.measure else {}))


def read_request(_: RecordDict, head: Mapping[str, Any], task: Task) -> SurveyRequest:
    """Raises :class:`ProtocolError`."""
    roster = get(head, "roster", bytes) if "roster" in head else b""
    if len(roster) > _ROSTER_BYTES:
        raise ProtocolError(f"a roster of {len(roster)} bytes; the most is {_ROSTER_BYTES}")
    measure = "measure" in head and get(head, "measure", int) == 1
    if measure and not task.study.surveyed:
        raise ProtocolError("a survey asks for statistics that its study does not name")
    return SurveyRequest(task, roster, program_in(head, "the coordinator"), measure)


def write_reply(reply: SurveyReply) -> Written:
    fields: Fields = {"images": json.dumps(dict(reply.images)), "program": reply.program}
    if reply.statistics is None:
        return Written("survey", fields)
    return Written("survey", fields, {"statistics": pack(reply.statistics, STATISTICS)})


def read_reply(content: RecordDict, head: Mapping[str, Any], site: str) -> SurveyReply:
    """Raises :class:`ProtocolError`."""
    statistics = None
    if "statistics" in content:
        statistics = unpack(record_of(content, "statistics", ArrayRecord), STATISTICS)
    return SurveyReply(site, _counts(get(head, "images", str)), program_in(head, site), statistics)


def _counts(text: str) -> dict[str, int]:
    try:
        # Cut before it is parsed: deep nesting would exhaust the parser's stack.
        counts = json.loads(text) if len(text) <= _COUNTS_CHARACTERS else None
    except (ValueError, RecursionError):
        raise ProtocolError("a survey's counts are not JSON; upgrade that site") from None
    if not isinstance(counts, dict) or not set(counts) <= set(SPLITS):
        raise ProtocolError("a survey's counts are not a table of splits; upgrade that site")
    if not all(type(n) is int and 0 <= n <= _MOST_IMAGES for n in counts.values()):
        raise ProtocolError("a survey's counts are not whole numbers from 0; upgrade that site")
    return counts
