"""Fetching from a PACS: what is asked, what is believed, and what each way of failing says."""

from __future__ import annotations

import contextlib
import json
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ingest import pacs
from client.ingest.kinds import Reason, Refused, Rules
from client.ingest.pacs import Login, Pacs, Patience, Query
from client.ingest.reasons import LARGE
from client.ingest.sources import Found
from common.errors import DataError
from tests.integration.pacs_server import multipart, raw, reply

RULES = Rules(largest_bytes=2**20)
QUICK = Patience(connect_s=5.0, read_s=10.0, tries=3, pause_s=0.01)
HASTY = Patience(connect_s=5.0, read_s=0.4, tries=3, pause_s=0.01)
NOBODY, ALL = Login(), Query()
CONTENT = bytes(128) + b"DICM" + bytes(range(256)) * 40


def refused(action: Callable[[], object], *words: str) -> str:
    """``action`` fails with one line that holds ``words``."""
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def connected(url: str, login: Login = NOBODY, patience: Patience = QUICK) -> None:
    with Pacs.connect(url, login, RULES, patience):
        pass


# --- what is asked ----------------------------------------------------------------------------------


def test_a_query_is_parsed() -> None:
    assert Query.parse("cr, DX,CR", "2024-01-31", "2024-02-01") == Query(
        ("CR", "DX"), date(2024, 1, 31), date(2024, 2, 1)
    )
    assert Query.parse(None, None, None) == Query()
    assert Query.parse(None, "2024-01-31", None).dates == "20240131-"
    assert Query.parse(None, None, "2024-01-31").dates == "-20240131"
    assert Query().dates == ""


@pytest.mark.parametrize(
    ("modality", "since", "until", "word"),
    [
        ("", None, None, "--modality"),
        ("CR,", None, None, "--modality"),
        ("CR;DX", None, None, "--modality"),
        ("../CR", None, None, "--modality"),
        ("A" * 17, None, None, "--modality"),
        (None, "31.1.2024", None, "--from"),
        (None, "20240131", None, "--from"),
        (None, "2024-02-30", None, "--from"),
        (None, None, "today", "--to"),
        (None, None, "", "--to"),
        (None, "2024-02-01", "2024-01-31", "later"),
    ],
)
def test_anything_else_is_an_error_with_its_remedy(
    modality: str | None, since: str | None, until: str | None, word: str
) -> None:
    refused(lambda: Query.parse(modality, since, until), word, ";")


@given(st.none() | st.text(), st.none() | st.text(), st.none() | st.text())
def test_a_query_is_parsed_or_refused(modality: str | None, since: str | None, until: str | None) -> None:
    try:
        query = Query.parse(modality, since, until)
    except DataError:
        return
    assert all(set(one) <= set(string.ascii_uppercase + string.digits + "_") for one in query.modalities)


@given(*[st.none() | st.dates(date(1900, 1, 1), date(2100, 1, 1))] * 2, st.dates(date(1900, 1, 1), date(2100, 1, 1)))
def test_dates_are_inclusive(since: date | None, until: date | None, day: date) -> None:
    held = (since is None or since <= day) and (until is None or day <= until)
    assert Query((), since, until).holds(f"{day:%Y%m%d}") == held


@pytest.mark.parametrize(
    "url",
    [
        "pacs.hospital/dicom-web",
        "ftp://pacs.hospital/",
        "https:///dicom-web",
        "https://pacs.hospital:99999/",
        "https://pacs.hospital/a/../b",
        "https://pacs.hospital/?x=1",
        "https://pacs.hospital/#x",
        "https://pacs hospital/",
        "https://pacs.hospital/%2e%2e/",
        "https://[::1/",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    refused(lambda: connected(url), "--pacs", "correct it")


def test_logins_do_not_travel_in_the_clear_or_in_the_address() -> None:
    for login in (Login("doctor", "pa55word"), Login(token="t0ken")):
        refused(lambda login=login: connected("http://192.0.2.1/dicom-web", login), "https://", "correct --pacs")  # type: ignore[misc]
    text = refused(lambda: connected("https://doctor:pa55word@192.0.2.1/"), "--user")
    assert "pa55word" not in text


def test_secrets_do_not_show() -> None:
    shown = repr(Login("doctor", "pa55word", "t0ken"))
    assert "pa55word" not in shown and "t0ken" not in shown


def test_a_token_or_authority_of_nonsense_is_refused(tmp_path: Path) -> None:
    text = refused(lambda: connected("https://127.0.0.1/", Login(token="a\r\nX: y")), "token")
    assert "X: y" not in text
    (tmp_path / "ca.pem").write_text("none")
    for ca in (tmp_path / "ca.pem", tmp_path / "missing.pem", tmp_path):
        refused(lambda ca=ca: connected("https://127.0.0.1/", Login(ca=ca)), "--ca")  # type: ignore[misc]


# --- one object out of an answer --------------------------------------------------------------------

KIND = 'multipart/related; type="application/dicom"; boundary='


@given(st.binary(max_size=2000), st.from_regex(r"[A-Za-z0-9'()+_,./:=?-]{1,60}", fullmatch=True), st.booleans())
def test_what_goes_into_multipart_comes_out(content: bytes, boundary: str, preamble: bool) -> None:
    body = bytearray(b"preamble" if preamble else b"")
    body += f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()[0 if preamble else 2 :]
    body += content + f"\r\n--{boundary}--\r\nepilogue".encode()
    assert pacs._single(f'{KIND}"{boundary}"', body) == content


def test_multipart_may_be_sloppy() -> None:
    for body in (
        b"--b\r\n\r\nDATA\r\n--b--",
        b"--b  \r\nA: b\r\n\r\nDATA\r\n--b\r\n",
        b"--b\r\nx:\r\n\r\nDATA\r\n--b--",
    ):
        assert pacs._single(f"{KIND}b", bytearray(body)) == b"DATA"
    assert pacs._single("application/dicom; transfer-syntax=1.2", bytearray(b"DATA")) == b"DATA"
    assert pacs._single("MULTIPART/Related; BOUNDARY=b", bytearray(b"--b\r\n\r\nDATA\r\n--b--")) == b"DATA"


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("", b"DATA"),
        ("text/html", b"<html>"),
        ("application/dicom", b""),
        ("multipart/related", b"--b\r\n\r\nDATA\r\n--b--"),
        (f"{KIND}b", b"no delimiter"),
        (f"{KIND}b", b""),
        (f"{KIND}b", b"--b\r\n\r\nONE\r\n--b\r\n\r\nTWO\r\n--b--"),
    ],
)
def test_anything_else_is_refused(header: str, body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        pacs._single(header, bytearray(body))
    assert caught.value.reason is pacs.NONSENSE


@given(st.integers(0, 200))
def test_a_cut_answer_is_never_taken_for_an_object(kept: int) -> None:
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + b"D" * 150 + b"\r\n--b--"
    cut = bytearray(body[: min(kept, len(body) - 5)])
    with pytest.raises((Refused, pacs._Broken)):
        pacs._single(f"{KIND}b", cut)


@given(st.text(max_size=60), st.binary(max_size=200))
def test_nonsense_is_refused_and_nothing_else(header: str, body: bytes) -> None:
    with contextlib.suppress(Refused, pacs._Broken):
        pacs._single(header, bytearray(body))


# --- a PACS that is not believed --------------------------------------------------------------------


def entry(tag: str, uid: object, **others: object) -> dict[str, object]:
    return {tag: {"vr": "UI", "Value": [uid]}, **others}


class Script:
    """A small DICOMweb service whose every answer can be replaced; counts what it was asked."""

    def __init__(self, *, instances: int = 2) -> None:
        self.instances = [f"1.2.3.{number}" for number in range(instances)]
        self.studies: Any = [entry("0020000D", "1.2")]
        self.series: Any = [entry("0020000E", "1.2.3", **{"00080060": {"vr": "CS", "Value": ["CR"]}})]
        self.retrieve: Callable[[str, socket.socket], None] = lambda path, to: to.sendall(multipart(CONTENT))
        self.ignores_offset = False
        self.most_in_page = 10_000
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, path: str, to: socket.socket) -> None:
        with self.lock:
            self.asked.append(path)
        place, _, query = path.removeprefix("/dicom-web/").partition("?")
        values = dict(one.split("=") for one in query.split("&") if one)
        if "/instances/" in place:
            self.retrieve(place, to)
            return
        if values.get("StudyInstanceUID"):
            to.sendall(reply(b"[]"))
            return
        level = place.rsplit("/", 1)[-1]
        found = [entry("00080018", uid) for uid in self.instances] if level == "instances" else getattr(self, level)
        if callable(found):
            found(to)
            return
        if isinstance(found, list):
            first = 0 if self.ignores_offset else int(values.get("offset", 0))
            found = found[first : first + min(int(values.get("limit", 1)), self.most_in_page)]
        to.sendall(reply(json.dumps(found).encode()))


@pytest.fixture
def script() -> Script:
    return Script()


def found(url: str, query: Query = ALL, has: Callable[[str], bool] = lambda sop: False) -> list[Found]:
    with Pacs.connect(url, Login(), RULES, QUICK) as server:
        return list(server.find(query, has))


def pulled(url: str, patience: Patience = QUICK) -> Iterator[bytes | Reason]:
    """What reading everything gives, in order."""
    with Pacs.connect(url, Login(), RULES, patience) as server:
        for one in server.find(ALL, lambda sop: False):
            try:
                yield one.read()
            except Refused as refusal:
                yield refusal.reason


def test_objects_are_found_and_read(script: Script) -> None:
    with raw(script) as url:
        assert [one.name for one in found(url)] == ["1.2/1.2.3/1.2.3.0", "1.2/1.2.3/1.2.3.1"]
        assert list(pulled(url)) == [CONTENT, CONTENT]
        script.asked.clear()
        assert [one.name for one in found(url, has=lambda sop: sop == "1.2.3.0")] == ["1.2/1.2.3/1.2.3.1"]
        assert not any("/instances/" in path for path in script.asked)


def test_a_modality_and_dates_are_asked_and_checked(script: Script) -> None:
    script.studies = [
        entry("0020000D", "1.2", **{"00080020": {"vr": "DA", "Value": ["20240102"]}}),
        entry("0020000D", "1.3", **{"00080020": {"vr": "DA", "Value": ["20230102"]}}),  # ignores what was asked
    ]
    query = Query.parse("CR,DX", "2024-01-01", None)
    with raw(script) as url:
        assert len(found(url, query)) == 2
        assert any("StudyDate=20240101-" in path and "ModalitiesInStudy=DX" in path for path in script.asked)
        assert not any("includefield" in path for path in script.asked)
        assert not any("1.3/" in path for path in script.asked)
        assert found(url, Query.parse("US", None, None)) == []
        script.series = [entry("0020000E", "1.2.3")]  # does not say: the study was found by it
        assert len(found(url, Query.parse("US", None, None))) == 4


@pytest.mark.parametrize("ignores_offset", [False, True])
@pytest.mark.parametrize("most_in_page", [7, 200, 10_000])
def test_every_page_is_read_and_none_for_ever(ignores_offset: bool, most_in_page: int) -> None:
    script = Script(instances=450)
    script.ignores_offset, script.most_in_page = ignores_offset, most_in_page
    with raw(script) as url:
        names = [one.name for one in found(url)]
    assert len(set(names)) == len(names)
    assert len(names) == (min(most_in_page, 200) if ignores_offset else 450)
    assert len(script.asked) < 90


BAD_UIDS: list[object] = [
    "../../system",
    "1.2/../3",
    "1..2",
    "",
    "1" * 65,
    "1.2?x=1",
    "1.2\n",
    5,
    None,
    [],
    {"a": 1},
    "١",
]


@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_what_is_no_uid_never_becomes_an_address(script: Script, level: str) -> None:
    if level == "instances":
        script.instances = [*BAD_UIDS, "1.2.3.4"]  # type: ignore[list-item]
    else:
        good = getattr(script, level)
        tag = next(iter(good[0]))
        setattr(script, level, [*(entry(tag, uid) for uid in BAD_UIDS), *BAD_UIDS, *good])
    with raw(script) as url:
        results = list(pulled(url))
    good_ones = [one for one in results if isinstance(one, bytes)]
    assert len(good_ones) == (1 if level == "instances" else 2)
    assert {one for one in results if isinstance(one, Reason)} == {pacs.BAD_LIST}
    places = {path.partition("?")[0] for path in script.asked}
    assert all(set(place.removeprefix("/dicom-web/")) <= set("0123456789./studieseriesinstances") for place in places)
    assert not any(".." in place for place in places)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("1.2.3"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["0020000D", "0020000E", "00080018", "00080060", "00080020", "Value", "vr"]), inner
        )
    ),
    max_leaves=12,
)


def test_any_json_is_taken_or_refused() -> None:
    script = Script()

    @given(json_values, st.sampled_from(["studies", "series"]))
    def law(value: object, level: str) -> None:
        fresh = Script()
        script.studies, script.series = fresh.studies, fresh.series
        setattr(script, level, value)
        script.asked.clear()
        try:
            for one in server.find(Query.parse("CR", "2024-01-01", None), lambda sop: False):
                assert isinstance(one, Found) and not one.named
        except DataError as error:
            assert "DICOMweb" in str(error)

    with raw(script) as url, Pacs.connect(url, NOBODY, RULES, QUICK) as server:
        law()


@pytest.mark.parametrize(
    "body", [b"{}", b"null", b"[", b"<html>please log in</html>", b"[" * 200_000, b"\xff\xfe", b"1" * 10_000]
)
def test_what_is_no_list_is_no_dicomweb(body: bytes) -> None:
    with raw(lambda path, to: to.sendall(reply(body, "text/html"))) as url:
        refused(lambda: connected(url), "DICOMweb", "log in", "correct the address")


def test_a_list_without_end_is_cut_off(script: Script) -> None:
    def endless(to: socket.socket) -> None:
        to.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nConnection: close\r\n\r\n[")
        while True:
            to.sendall(b'{"0020000D":{"vr":"UI","Value":["1.2"]}},' * 10_000)

    script.studies = endless
    with raw(script) as url:
        refused(lambda: found(url), "more than can be looked at", "--modality")


def test_pages_without_end_are_cut_off(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs, "_MOST_LISTED", 500)

    def endless(to: socket.socket) -> None:
        count = len(script.asked)
        to.sendall(reply(json.dumps([entry("0020000D", f"1.{count}.{number}") for number in range(100)]).encode()))

    script.studies = endless
    with raw(script) as url:
        refused(lambda: found(url), "more than can be looked at")


# --- ways of failing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401 Unauthorized", ("refuses the login (401)", "--user")),
        ("403 Forbidden", ("refuses the login (403)", "--user")),
        ("404 Not Found", ("no DICOMweb service", "correct the path")),
        ("302 Found\r\nLocation: http://192.0.2.1/", ("redirection", "not followed")),
        ("500 Oops", ("errors of its own", "log")),
        ("503 Busy", ("errors of its own", "log")),
        ("400 Bad Request", ("refuses to search", "log")),
        ("200 OK\r\nContent-Encoding: gzip", ("refuses to search", "log")),
    ],
)
def test_a_service_that_refuses_is_told_at_once(status: str, words: tuple[str, ...]) -> None:
    with raw(lambda path, to: to.sendall(reply(b"[]", status=status))) as url:
        refused(lambda: connected(url), *words)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused(lambda: connected(f"http://127.0.0.1:{port}/dicom-web"), "cannot reach", "firewall")
    refused(lambda: connected("https://no-such-host.invalid/dicom-web"), "cannot reach")


def test_no_tls_there() -> None:
    with raw(lambda path, to: to.sendall(reply(b"[]"))) as url:
        refused(lambda: connected(url.replace("http:", "https:")), "does not speak TLS")


def test_a_service_that_never_answers_is_not_waited_for() -> None:
    start = time.monotonic()
    with raw(lambda path, to: time.sleep(1)) as url:
        refused(lambda: connected(url, patience=HASTY), "does not answer in time")
        assert time.monotonic() - start < 0.95


def stalls(path: str, to: socket.socket) -> None:
    to.sendall(multipart(CONTENT)[:500])
    time.sleep(1)


def trickles(path: str, to: socket.socket) -> None:
    answer = multipart(CONTENT)
    to.sendall(answer[:200])
    for byte in answer[200:]:
        to.sendall(bytes([byte]))
        time.sleep(0.02)


def drops(path: str, to: socket.socket) -> None:
    to.sendall(multipart(CONTENT)[:5000])


def drops_unseen(path: str, to: socket.socket) -> None:
    """Without a length, a broken connection looks like the end."""
    head, _, body = multipart(CONTENT).partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    to.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body[:5000])


def answers(body: bytes) -> Callable[[str, socket.socket], None]:
    return lambda path, to: to.sendall(body)


FAULTS = [
    (stalls, pacs.FAILED, 3),
    (trickles, pacs.FAILED, 3),
    (drops, pacs.FAILED, 3),
    (drops_unseen, pacs.FAILED, 3),
    (lambda path, to: None, pacs.FAILED, 3),
    (answers(b"nonsense\r\n\r\n"), pacs.FAILED, 3),
    (answers(reply(b"", status="500 Oops")), pacs.FAILED, 3),
    (answers(reply(b"", status="429 Slow Down")), pacs.FAILED, 3),
    (answers(reply(b"", status="404 Not Found")), pacs.WITHHELD, 1),
    (answers(reply(b"", status="403 Forbidden")), pacs.WITHHELD, 1),
    (answers(reply(b"", status="406 Not Acceptable")), pacs.WITHHELD, 1),
    (answers(reply(b"<html>log in</html>", "text/html")), pacs.NONSENSE, 1),
    (answers(multipart(bytes(2**20 + 1))), LARGE, 1),
    (answers(multipart(bytes(2**20 + 2**17))), LARGE, 1),
    (answers(reply(b"x", "application/dicom", length=2**62)), LARGE, 1),
]


@pytest.mark.parametrize(("fault", "reason", "tries"), FAULTS)
def test_one_object_that_fails_does_not_end_the_pull(
    fault: Callable[[str, socket.socket], None], reason: Reason, tries: int
) -> None:
    script = Script(instances=3)
    healthy = script.retrieve
    script.retrieve = lambda path, to: (fault if path.endswith("1.2.3.1") else healthy)(path, to)
    with raw(script) as url:
        patience = HASTY if fault in (stalls, trickles) else QUICK
        assert list(pulled(url, patience)) == [CONTENT, reason, CONTENT]
    assert sum("/instances/1.2.3.1" in path for path in script.asked) == tries


def test_errors_that_pass_are_outlived(script: Script) -> None:
    healthy, left = script.retrieve, [2, 2]

    def retrieve(path: str, to: socket.socket) -> None:
        number = int(path[-1])
        if left[number]:
            left[number] -= 1
            to.sendall(reply(b"", status="503 Busy")) if number else drops(path, to)
        else:
            healthy(path, to)

    script.retrieve = retrieve
    with raw(script) as url:
        assert list(pulled(url)) == [CONTENT, CONTENT]


def test_many_objects_that_fail_do_not_end_the_pull_while_the_pacs_answers() -> None:
    script = Script(instances=8)
    script.retrieve = answers(reply(b"", status="500 Oops"))
    with raw(script) as url:
        assert list(pulled(url)) == [pacs.FAILED] * 8


def test_a_pacs_that_goes_away_ends_the_pull() -> None:
    script, got = Script(instances=20), 0
    with raw(script) as url:
        results = pulled(url)
        assert next(results) == CONTENT

        def everything_fails(to: socket.socket) -> None:
            to.sendall(reply(b"", status="500 Oops"))

        script.retrieve = answers(reply(b"", status="500 Oops"))
        script.__class__ = type("Gone", (Script,), {"__call__": lambda self, path, to: everything_fails(to)})
        text = ""
        try:
            for result in results:
                assert result is pacs.FAILED
                got += 1
        except DataError as error:
            text = str(error)
    assert got == 2 and "the same command continues" in text


def test_a_login_that_ends_ends_the_pull(script: Script) -> None:
    script.retrieve = answers(reply(b"", status="401 Unauthorized"))
    with raw(script) as url:
        refused(lambda: list(pulled(url)), "refuses the login (401)")


def test_a_study_that_cannot_be_listed_is_refused_alone(script: Script) -> None:
    script.studies = [entry("0020000D", "1.2"), entry("0020000D", "1.4")]

    def series(to: socket.socket) -> None:
        broken = "/1.2/" in script.asked[-1]
        body = json.dumps([] if "offset=1" in script.asked[-1] else [entry("0020000E", "1.2.3")]).encode()
        to.sendall(reply(b"", status="500 Oops") if broken else reply(body))

    script.series = series
    with raw(script) as url:
        assert list(pulled(url)) == [pacs.FAILED, CONTENT, CONTENT]


def test_nothing_of_a_pull_is_logged(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with raw(script) as url:
        list(pulled(url))
    assert caplog.text == ""


def test_reasons_are_complete() -> None:
    assert len({reason.code for reason in pacs.REASONS}) == len(pacs.REASONS)
    assert all(reason.stage == "source" and reason.remedy for reason in pacs.REASONS)
