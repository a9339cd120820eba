"""Images fetched from a PACS by DICOMweb: QIDO-RS to search, WADO-RS to retrieve (DICOM PS3.18, chapters 8.3, 10.4 and
10.6).

A PACS is not believed: its answers are limited in size and time, only well-formed UIDs become part of an address, and
no redirection is followed. What one object fails by is listed and the pull goes on; what all would fail by (login,
certificate, address, a PACS that is gone) ends it with one line. Searches ask for no attribute beyond those that the
standard makes a PACS answer with, and nothing but UIDs, modality and study date is looked at or kept.
"""

from __future__ import annotations

import json
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from client.ingest.kinds import Reason, Refused, Rules
from client.ingest.reasons import LARGE
from client.ingest.sources import Found
from common.errors import DataError

FAILED = Reason(
    "pacs-failed",
    "source",
    "the PACS broke off, did not answer in time or had an error of its own, three times",
    "run the same command again; where it stays, see the PACS's log",
)
WITHHELD = Reason(
    "pacs-withheld",
    "source",
    "the PACS lists the object and does not give it out",
    "allow the login to retrieve it, or have the PACS's administrators see whether it is archived or gone",
)
NONSENSE = Reason(
    "pacs-nonsense",
    "source",
    "the PACS answered with something else than one DICOM object",
    "see the PACS's log; export the object as a file and import that",
)
BAD_LIST = Reason(
    "pacs-bad-list",
    "source",
    "the PACS lists a study, series or object without a valid UID",
    "have the PACS's administrators mend it, or export the study as files and import those",
)
REASONS = (FAILED, WITHHELD, NONSENSE, BAD_LIST)

_T = TypeVar("_T")
_PAGE = 200
_MOST_LISTED = 1_000_000
_LARGEST_LIST = 32 * 2**20
_OVERHEAD = 2**16  # of multipart around an object
_SLOWEST = 16 * 2**10  # bytes a second
_IN_A_ROW = 3  # failures until the PACS is asked whether it is still there
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_MODALITY = re.compile(r"[A-Z0-9_]{1,16}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_HOST = re.compile(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EXAMPLE = "https://pacs.hospital:8042/dicom-web"
_STUDIES = "studies"
_STUDY, _SERIES, _SOP, _STUDY_DATE, _MODALITY_TAG = "0020000D", "0020000E", "00080018", "00080020", "00080060"
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as stored: nothing is decoded or lost
_NOBODY = "2.25.0"  # a UID that is nobody's: asks without an answer that holds a patient


@dataclass(frozen=True)
class Login:
    """How to log in: user and password, or a bearer token, or nothing."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca: Path | None = None
    """PEM certificates of the only authorities to trust; ``None``: the system's."""


@dataclass(frozen=True)
class Patience:
    """How long and how often."""

    connect_s: float = 10.0
    read_s: float = 60.0
    """Of silence."""
    tries: int = 3
    pause_s: float = 0.5
    """Before the second try; doubled for each further one, and jittered."""


@dataclass(frozen=True)
class Query:
    """Which studies: with a series of one of ``modalities`` (empty: any), of these dates inclusive."""

    modalities: tuple[str, ...] = ()
    since: date | None = None
    until: date | None = None

    @classmethod
    def parse(cls, modality: str | None, since: str | None, until: str | None) -> Query:
        """As typed: ``"CR,DX"`` and ISO dates. Raises :class:`DataError`."""
        modalities = tuple(dict.fromkeys(one.strip().upper() for one in (modality or "").split(",")))
        if modality is None:
            modalities = ()
        elif not all(_MODALITY.fullmatch(one) for one in modalities):
            raise DataError("--modality is DICOM's short names with commas between, for example CR,DX; correct it")
        query = cls(modalities, _day(since, "--from"), _day(until, "--to"))
        if query.since and query.until and query.since > query.until:
            raise DataError("--from is later than --to; exchange them")
        return query

    @property
    def dates(self) -> str:
        """DICOM's range matching (PS3.4 C.2.2.2.5); empty for all."""
        first, last = (f"{day:%Y%m%d}" if day else "" for day in (self.since, self.until))
        return f"{first}-{last}" if first or last else ""

    def holds(self, day: str) -> bool:
        """Whether a study of that date is meant; some PACS answer with more than was asked for."""
        first, _, last = self.dates.partition("-")
        return not day or ((not first or first <= day) and (not last or day <= last))


class Pacs:
    """A PACS that has accepted the login. Made by :meth:`connect`."""

    def __init__(self, client: httpx.Client, address: str, rules: Rules, patience: Patience) -> None:
        self._client, self._address, self._rules, self._patience = client, address, rules, patience
        self._reached = False
        self._failures = 0
        self._longest = 1  # page, of those that were given

    @classmethod
    @contextmanager
    def connect(cls, url: str, login: Login, rules: Rules, patience: Patience = Patience()) -> Iterator[Self]:
        """The PACS at ``url`` (``https://HOST:PORT/PATH``, where ``/studies`` would be appended).

        Raises :class:`DataError` where the address is none, nobody answers, TLS or the login fails, or what answers
        is no DICOMweb service.
        """
        address = _address(url, bool(login.user or login.token))
        limits = httpx.Timeout(patience.read_s, connect=patience.connect_s)
        # trust_env: neither .netrc nor a proxy from the environment may take part.
        client = httpx.Client(
            base_url=address,
            verify=_trusted(login.ca),
            auth=httpx.BasicAuth(login.user, login.password) if login.user else None,
            headers={"Accept-Encoding": "identity", **_bearer(login.token)},
            timeout=limits,
            follow_redirects=False,
            trust_env=False,
        )
        with _unlogged("httpx", "httpcore"), client:
            pacs = cls(client, address, rules, patience)
            pacs._probe()
            pacs._reached = True
            yield pacs

    def find(self, query: Query, has: Callable[[str], bool]) -> Iterator[Found]:
        """Every object that ``query`` means and whose SOP Instance UID ``has`` does not know, study by study.

        Names are ``STUDY/SERIES/SOP``. What a study or series holds and the PACS cannot say is one file, refused when
        it is read. Raises :class:`DataError`, here and in ``read``, for what ends the pull.
        """
        dates = {"StudyDate": query.dates} if query.dates else {}
        studies: dict[str, None] = {}
        # All first: what is stored in the PACS meanwhile would shift its pages.
        for modality in query.modalities or ("",):
            asked = {**dates, "ModalitiesInStudy": modality} if modality else dates
            for study in self._listed(_STUDIES, _STUDY, asked, ""):
                if isinstance(study, Found):
                    yield study
                elif query.holds(study.text(_STUDY_DATE) or ""):
                    studies[study.uid] = None
        for uid in studies:
            yield from self._study(uid, query, has)

    def _study(self, study: str, query: Query, has: Callable[[str], bool]) -> Iterator[Found]:
        for series in self._listed(f"{_STUDIES}/{study}/series", _SERIES, {}, study):
            if isinstance(series, Found):
                yield series
            elif not query.modalities or series.text(_MODALITY_TAG) in (None, *query.modalities):
                path = f"{_STUDIES}/{study}/series/{series.uid}/instances"
                for one in self._listed(path, _SOP, {}, f"{study}/{series.uid}"):
                    if isinstance(one, Found):
                        yield one
                    elif not has(one.uid):
                        name = f"{study}/{series.uid}/{one.uid}"
                        yield Found(name, partial(self._retrieve, f"{path}/{one.uid}"), named=False)

    def _listed(self, path: str, tag: str, asked: Mapping[str, str], name: str) -> Iterator[_Entry | Found]:
        """What the PACS lists at ``path``, each once; in place of what it cannot say, a file that is refused.

        Some PACS give shorter pages than asked for, and some ignore the offset: the end is a page with nothing new, or
        one shorter than another that this PACS has given.
        """
        met: set[str] = set()
        count = 0
        while count <= _MOST_LISTED:
            try:
                page = self._search(path, {**asked, "limit": str(_PAGE), "offset": str(count)})
            except Refused as refused:
                if path == _STUDIES:
                    raise self._gone(refused.reason) from None
                self._failed()
                yield _missing(f"{name}/list", refused.reason)
                return
            entries = [_Entry.of(values, tag) for values in page]
            new = {entry.uid for entry in entries if entry} - met
            if not new and count:
                return
            for number, entry in enumerate(entries, count):
                if entry is None:
                    yield _missing(f"{name}/{number}", BAD_LIST)
                elif entry.uid in new:
                    new.remove(entry.uid)
                    met.add(entry.uid)
                    yield entry
            if len(page) < self._longest:
                return
            self._longest = min(len(page), _PAGE)
            count += len(page)
        raise self._too_many()

    def _search(self, path: str, asked: Mapping[str, str]) -> list[Any]:
        """One page. Raises :class:`Refused` where it cannot be had."""
        first = asked.get("offset", "0") == "0"
        try:
            status, page = self._get(path, asked, "application/dicom+json", _LARGEST_LIST, self._page)
        except Refused as refused:
            if refused.reason is LARGE:
                raise self._too_many() from None
            raise
        if status in (404, 405) and path == _STUDIES and first:
            raise DataError(f"{self._address} has no DICOMweb service ({status}); correct the path, as in {_EXAMPLE}")
        if page is None and status != 204 and (status != 404 or first):
            raise Refused(WITHHELD)
        return page or []

    def _page(self, header: str, content: bytearray) -> list[Any]:
        try:
            page = json.loads(content) if content.strip() else []
        except (ValueError, RecursionError):
            page = None
        if not isinstance(page, list):
            raise DataError(
                f"{self._address} does not answer as a DICOMweb service does (perhaps with a page to log in); "
                f"correct the address, which is like {_EXAMPLE}"
            )
        return page

    def _retrieve(self, path: str) -> bytes:
        """One DICOM file. Raises :class:`Refused`."""
        most = self._rules.largest_bytes
        try:
            _, content = self._get(path, {}, _DICOM, most + _OVERHEAD, _single)
            if content is None:
                raise Refused(WITHHELD)
            if len(content) > most:
                raise Refused(LARGE)
        except Refused:
            self._failed()
            raise
        self._failures = 0
        return content

    def _failed(self) -> None:
        """Count a failure; after some in a row, see whether the PACS is still there. Raises :class:`DataError`."""
        self._failures += 1
        if self._failures % _IN_A_ROW == 0:
            self._probe()

    def _probe(self) -> None:
        """Search for nobody. Raises :class:`DataError` where that is not answered."""
        try:
            self._search(_STUDIES, {"StudyInstanceUID": _NOBODY, "limit": "1"})
        except Refused as refused:
            raise self._gone(refused.reason) from None

    def _gone(self, reason: Reason) -> DataError:
        how = "does not answer, or breaks off, or has errors of its own" if reason is FAILED else "refuses to search"
        more = "; the same command continues where this one ended" if self._reached else ""
        return DataError(f"{self._address} {how}; see whether it is up, and its log{more}")

    def _too_many(self) -> DataError:
        return DataError(
            f"{self._address} answers a search with more than can be looked at; "
            "ask for fewer studies by --modality, --from and --to"
        )

    def _get(
        self, path: str, asked: Mapping[str, str], accept: str, most: int, parse: Callable[[str, bytearray], _T]
    ) -> tuple[int, _T | None]:
        """Status, and of a success what ``parse`` makes of content type and content.

        Raises :class:`Refused` where some tries met silence, breaks or errors of the PACS's own, and for an answer
        longer than ``most``.
        """
        for attempt in range(self._patience.tries):
            if attempt:
                time.sleep(self._patience.pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311
            try:
                with self._client.stream("GET", path, params=dict(asked), headers={"Accept": accept}) as response:
                    status = response.status_code
                    self._check(status, searching=path == _STUDIES)
                    if status == 200:
                        content = self._content(response, most)
                        return status, parse(response.headers.get("content-type", ""), content)
                    if status < 500 and status != 429:
                        return status, None
            except _Broken:
                continue
            except (httpx.TransportError, UnicodeError) as error:  # UnicodeError: a host that DNS cannot name
                self._check_reached(error)
        raise Refused(FAILED)

    def _content(self, response: httpx.Response, most: int) -> bytearray:
        stated = response.headers.get("content-length", "")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Refused(NONSENSE)
        if stated.isdecimal() and int(stated[:20]) > most:
            raise Refused(LARGE)
        content = bytearray()
        start = time.monotonic()
        for piece in response.iter_raw():
            content += piece
            if len(content) > most:
                raise Refused(LARGE)
            if len(content) < (time.monotonic() - start - self._patience.read_s) * _SLOWEST:
                raise _Broken
        return content

    def _check(self, status: int, *, searching: bool) -> None:
        """Raises :class:`DataError` for a status that every object would meet."""
        if status == 401 or (status == 403 and searching):
            raise DataError(
                f"{self._address} refuses the login ({status}); correct --user and the password or token, and have "
                "the PACS allow it to search and retrieve by DICOMweb"
            )
        if 300 <= status < 400:
            raise DataError(
                f"{self._address} answers with a redirection ({status}), which is not followed; name the address that "
                "it leads to"
            )

    def _check_reached(self, error: Exception) -> None:
        """Raises :class:`DataError` where trying again is of no use."""
        tls = _tls_error(error)
        if isinstance(tls, ssl.SSLCertVerificationError):
            # verify_message is OpenSSL's own text, e.g. "certificate has expired"
            raise DataError(
                f"the certificate of {self._address} is not accepted: {tls.verify_message.rstrip('.')}; have it "
                "renewed, or name the file of the authority that signed it with --ca"
            ) from None
        if tls is not None and not isinstance(tls, ssl.SSLEOFError):
            raise DataError(f"{self._address} does not speak TLS as it should; correct the address or port") from None
        if self._reached:
            return
        if isinstance(error, httpx.TimeoutException):
            raise DataError(f"{self._address} does not answer in time; see whether it is up, and its log") from None
        if isinstance(error, httpx.ConnectError | UnicodeError):
            raise DataError(
                f"cannot reach {self._address}; correct the address, or see whether it is up and whether a firewall "
                "is between"
            ) from None


class _Broken(Exception):
    """An answer that broke off, or is too slow to wait for."""


@dataclass(frozen=True)
class _Entry:
    """One line of a list: a UID that is one, and the rest as the PACS said it."""

    uid: str = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, values: object, tag: str) -> _Entry | None:
        if not isinstance(values, dict):
            return None
        entry = cls("", values)
        uid = entry.text(tag) or ""
        return cls(uid, values) if len(uid) <= 64 and _UID.fullmatch(uid) else None

    def text(self, tag: str) -> str | None:
        """The first value of an attribute; ``None`` where the PACS does not speak of it."""
        if tag not in self.values:
            return None
        element = self.values[tag]
        value = element.get("Value") if isinstance(element, dict) else None
        first = value[0] if isinstance(value, list) and value else ""
        return first.strip(" \0") if isinstance(first, str) else ""


def _single(header: str, content: bytearray) -> bytes:
    """The one DICOM object in a multipart answer (RFC 2046, 5.1), or in a plain one.

    Raises :class:`Refused` where it holds another number of them or something else, :class:`_Broken` where it was cut.
    """
    kind = Message()
    kind["Content-Type"] = header.encode("ascii", "replace").decode()
    if kind.get_content_type() == "application/dicom" and content:
        return bytes(content)
    boundary = kind.get_boundary()
    if kind.get_content_type() != "multipart/related" or not boundary:
        raise Refused(NONSENSE)
    delimiter = b"\r\n--" + boundary.encode()
    first = -2 if content.startswith(delimiter[2:]) else content.find(delimiter)
    if first == -1:
        raise Refused(NONSENSE)
    start = content.find(b"\r\n\r\n", first + len(delimiter)) + 4  # a part's own headers end with an empty line
    end = content.find(delimiter, start)
    if start == 3 or end == -1:
        raise _Broken
    rest = bytes(content[end + len(delimiter) : end + len(delimiter) + _OVERHEAD])
    if not rest.startswith(b"--") and rest.strip():
        raise Refused(NONSENSE)
    return bytes(memoryview(content)[start:end])


@contextmanager
def _unlogged(*names: str) -> Iterator[None]:
    """Addresses hold UIDs, and httpx logs each."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _missing(name: str, reason: Reason) -> Found:
    """Something that is refused when it is read, and so listed."""

    def read() -> bytes:
        raise Refused(reason)

    return Found(name, read, named=False)


def _day(text: str | None, option: str) -> date | None:
    try:
        if text is None or _DATE.fullmatch(text):
            return None if text is None else date.fromisoformat(text)
    except ValueError:
        pass
    raise DataError(f"{option} is a date like 2024-03-31; correct it")


def _address(url: str, secret: bool) -> str:
    """``url``, checked, without a slash at its end."""
    wrong = DataError(f"--pacs is an address like {_EXAMPLE}; correct it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise DataError("--pacs holds a user or password, which everybody on this machine could see; use --user")
    if parts.scheme not in ("http", "https") or not host or not _HOST.fullmatch(host):
        raise wrong
    if not _PATH.fullmatch(parts.path) or ".." in parts.path.split("/") or parts.query or parts.fragment:
        raise wrong
    if parts.scheme == "http" and secret and host not in _LOOPBACK:
        raise DataError("a login goes over https:// only (http:// on this machine); correct --pacs")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def _trusted(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise DataError(f"{ca} is no file of PEM certificates that can be read; correct --ca") from None


def _bearer(token: str) -> dict[str, str]:
    if not re.fullmatch(r"[!-~]*", token):
        raise DataError("the token is not one word of printable characters; write it to its file again")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The TLS error that ``error`` was raised from, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause
