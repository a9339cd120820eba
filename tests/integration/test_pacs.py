"""Pulling from a real Orthanc, and receiving from real senders: pynetdicom's and dcmtk's."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from client.ingest import dicom as dicom_reader
from client.ingest import receive
from client.ingest.import_reasons import SAME_OBJECT, WITHHELD
from client.ingest.importer import Importer, Sheets
from client.ingest.kinds import Reason, Refused, Rules
from client.ingest.pacs import Login, Pacs, Patience, Query
from client.ingest.receive import Received, Receiver
from client.vault.keys import create_key_file, provider
from client.vault.store import Vault
from common.errors import DataError
from tests.integration.pacs_server import Orthanc, dicom, orthanc, relay, sop
from tests.integration.services_keys import certificates, free_port

ROOT = Path(__file__).parents[2]
RULES = Rules(largest_bytes=2**22)
QUICK = Patience(pause_s=0.05)


def login(server: Orthanc, ca: Path | None = None) -> Login:
    return Login(server.user, server.password, ca=ca)


# --- pulling ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("pacs")) as server:
        yield server


@pytest.fixture(scope="module")
def stored(pacs: Orthanc) -> dict[str, bytes]:
    """Mixed studies, by what a test calls them. One study holds a CR and an SR series, one series two images."""
    mixed = str(pydicom.uid.generate_uid())
    series = f"1.2.826.{secrets.randbelow(10**9) + 1}"
    contents = {
        "cr": dicom("CR", "20240102", StudyInstanceUID=mixed, BurnedInAnnotation="NO"),
        "sr": dicom("SR", "20240102", StudyInstanceUID=mixed),
        "dx": dicom("DX", "20240131"),
        "dx late": dicom("DX", "20240201"),
        "dx early": dicom("DX", "20231231"),
        "ct 1": dicom("CT", "20240103", StudyInstanceUID=f"{series}.1", SeriesInstanceUID=series),
        "ct 2": dicom("CT", "20240103", StudyInstanceUID=f"{series}.1", SeriesInstanceUID=series),
        "us": dicom("US", "20240102"),
    }
    pacs.store(*contents.values())
    return contents


@pytest.mark.parametrize(
    ("modality", "since", "until", "wanted"),
    [
        ("CR,DX", "2024-01-01", "2024-01-31", {"cr", "dx"}),
        ("CR,DX", "2024-01-01", None, {"cr", "dx", "dx late"}),
        ("DX", None, "2023-12-31", {"dx early"}),
        ("CT", None, None, {"ct 1", "ct 2"}),
        ("SR", None, None, {"sr"}),
        (None, "2024-01-02", "2024-01-03", {"cr", "sr", "ct 1", "ct 2", "us"}),
        ("MG", None, None, set()),
    ],
)
def test_modality_and_dates_choose(
    pacs: Orthanc,
    stored: dict[str, bytes],
    modality: str | None,
    since: str | None,
    until: str | None,
    wanted: set[str],
) -> None:
    with Pacs.connect(pacs.url, login(pacs), RULES) as server:
        found = list(server.find(Query.parse(modality, since, until), lambda sop: False))
        assert {one.name.rsplit("/")[-1] for one in found} == {sop(stored[name]) for name in wanted}
        assert len(found) == len(wanted)


def test_what_is_fetched_is_what_was_stored(pacs: Orthanc, stored: dict[str, bytes]) -> None:
    """Compressed pixels come compressed as they are."""
    with Pacs.connect(pacs.url, login(pacs), RULES) as server:
        for one in server.find(Query(), lambda sop: False):
            name = next(name for name in stored if sop(stored[name]) == one.name.rsplit("/")[-1])
            before, after = (pydicom.dcmread(io.BytesIO(content)) for content in (stored[name], one.read()))
            assert before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID
            assert before.get("PixelData") == after.get("PixelData")


def test_a_second_pull_downloads_nothing(pacs: Orthanc, stored: dict[str, bytes], tmp_path: Path) -> None:
    create_key_file(tmp_path / "vault.key")
    keys = provider("file:vault.key", base=tmp_path)
    query = Query.parse("CR,DX,CT", "2024-01-01", "2024-01-31")
    with (
        relay(pacs.root) as between,
        Vault.create(tmp_path / "vault.sqlite", keys, synthetic=True, source="test") as vault,
    ):
        for wanted in (4, 0):
            before = between.downloads
            with (
                Importer(vault, Sheets(), rules=Rules(), split=(0.8, 0.1, 0.1)) as importer,
                Pacs.connect(f"{between.url}/dicom-web", login(pacs), Rules()) as server,
            ):
                importer.run(server.find(query, importer.has))
            assert (importer.summary.images, importer.summary.refused) == (wanted, 0), importer.summary.rejected
            assert between.downloads - before == wanted
        assert len(vault.rows()) == 4
    everything = (tmp_path / "vault.sqlite").read_bytes()
    assert not any(sop(content).encode() in everything for content in stored.values())


def test_objects_that_the_pacs_cannot_read_are_listed_and_the_pull_goes_on(
    pacs: Orthanc, stored: dict[str, bytes]
) -> None:
    broken = sop(stored["ct 1"])
    with relay(pacs.root, lambda path: 500 if path.endswith(f"instances/{broken}") else None) as between:
        outcomes: dict[str, str] = {}
        with Pacs.connect(f"{between.url}/dicom-web", login(pacs), RULES, QUICK) as server:
            for one in server.find(Query.parse("CT", None, None), lambda sop: False):
                try:
                    outcomes[one.name.rsplit("/")[-1]] = f"{len(one.read())} bytes"
                except Refused as refused:
                    outcomes[one.name.rsplit("/")[-1]] = refused.reason.code
    assert outcomes.pop(broken) == "pacs-failed"
    assert [one.endswith(" bytes") for one in outcomes.values()] == [True]


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def connected(url: str, how: Login) -> None:
    with Pacs.connect(url, how, RULES, QUICK):
        pass


def test_wrong_logins_and_addresses(pacs: Orthanc) -> None:
    refused(lambda: connected(pacs.url, Login(pacs.user, "wrong")), "refuses the login (401)", "--user")
    refused(lambda: connected(pacs.url, Login()), "refuses the login (401)")
    refused(lambda: connected(pacs.url, Login(token="wrong")), "refuses the login (401)")
    refused(lambda: connected(f"{pacs.root}/nowhere", login(pacs)), "no DICOMweb service (404)", "path")
    refused(lambda: connected(f"{pacs.root}/app/explorer.html", login(pacs)), "DICOMweb")
    refused(lambda: connected(pacs.url.replace("http:", "https:"), login(pacs)), "TLS")
    refused(lambda: connected(f"http://127.0.0.1:{pacs.dicom_port}/dicom-web", login(pacs)), "see whether it is up")


def test_tls_is_verified(pacs: Orthanc, stored: dict[str, bytes], tmp_path: Path) -> None:
    authority, *_ = certificate = certificates(tmp_path / "good")
    with relay(pacs.root, certificate=certificate) as server:
        url = f"{server.url}/dicom-web"
        with Pacs.connect(url, login(pacs, authority), RULES) as client:
            assert len(list(client.find(Query(), lambda sop: False))) == len(stored)
        by_name = url.replace("127.0.0.1", "localhost")  # the certificate is of 127.0.0.1
        refused(lambda: connected(by_name, login(pacs, authority)), "certificate", "not accepted", "ismatch")
        refused(lambda: connected(url, login(pacs)), "certificate", "not accepted", "--ca")
        other = certificates(tmp_path / "other")[0]
        refused(lambda: connected(url, login(pacs, other)), "certificate", "not accepted", "--ca")


def test_an_expired_certificate_is_refused(pacs: Orthanc, tmp_path: Path) -> None:
    expired = certificates(tmp_path / "expired", expired=True)
    with relay(pacs.root, certificate=expired) as server:
        refused(lambda: connected(server.url, login(pacs, expired[0])), "expired", "have it renewed")
        assert server.paths == []


# --- receiving --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_QUIET_S", 0.05)
    monkeypatch.setattr(receive, "_POLL_S", 0.05)


@contextlib.contextmanager
def receiving(rules: Rules = RULES, callers: tuple[str, ...] = ()) -> Iterator[Receiver]:
    with Receiver("127.0.0.1", 0, title="FEDWARD", callers=callers, rules=rules) as receiver:
        yield receiver


Verdict = Callable[[Received], Reason | None]


def judged(received: Received) -> Reason | None:
    """What the importer would make of it: the real reader, in this process."""
    try:
        dicom_reader.read(received.read(), Rules())
    except Refused as refusal:
        return refusal.reason
    return None


@contextlib.contextmanager
def main_loop(receiver: Receiver, verdict: Verdict = judged) -> Iterator[list[Received]]:
    """Answers whatever comes, as ``fedward site receive`` does, until the block ends."""
    taken: list[Received] = []
    stop = threading.Event()

    def loop() -> None:
        batches = receiver.batches(0.0)
        while not stop.is_set():
            for batch in batches:
                for one in batch:
                    taken.append(one)
                    one.done(verdict(one))
            batches = receiver.batches(0.0)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()


def send(
    receiver: Receiver | int, *contents: bytes, caller: str = "CT01", called: str = "FEDWARD"
) -> list[Dataset] | None:
    """Statuses of C-STORE by pynetdicom; ``None`` where the association was rejected or had no use."""
    files = [pydicom.dcmread(io.BytesIO(content)) for content in contents]
    entity = AE(caller)
    for one in files:
        entity.add_requested_context(one.SOPClassUID, one.file_meta.TransferSyntaxUID)
    port = receiver if isinstance(receiver, int) else receiver.port
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return None
    try:
        return [association.send_c_store(one) for one in files]
    finally:
        association.release()


def statuses(answers: list[Dataset] | None) -> list[tuple[int, str]]:
    assert answers is not None
    return [(one.Status, one.get("ErrorComment", "")) if one else (-1, "") for one in answers]


def waiting(receiver: Receiver, count: int) -> None:
    """Until so many objects wait."""
    end = time.monotonic() + 20
    while len(receiver._open) < count and time.monotonic() < end:
        time.sleep(0.01)
    assert len(receiver._open) == count


def test_images_are_taken_as_they_were_encoded() -> None:
    sent = [dicom("CR", BurnedInAnnotation="NO"), dicom("CT"), dicom("US", BurnedInAnnotation="NO")]
    with receiving() as receiver, main_loop(receiver) as taken:
        assert statuses(send(receiver, *sent)) == [(0, "")] * 3
        assert sorted(one.name for one in taken) == sorted(map(sop, sent))
        by_name = {one.name: pydicom.dcmread(io.BytesIO(one.read())) for one in taken}
    for content in sent:
        before = pydicom.dcmread(io.BytesIO(content))
        after = by_name[sop(content)]
        assert before == after and before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID


def test_success_is_answered_only_for_what_need_not_be_kept() -> None:
    image = dicom("CT")
    with receiving() as receiver:
        for reason, expected in (
            (None, (0, "")),
            (SAME_OBJECT, (0, "")),
            (WITHHELD, (0, "")),
            (Reason("x" * 90, "decode", "", ""), (0xC000, "x" * 64)),
        ):
            with main_loop(receiver, lambda one, reason=reason: reason):  # type: ignore[misc]
                assert statuses(send(receiver, image)) == [expected]
        with main_loop(receiver):
            burned = dicom("CR", BurnedInAnnotation="YES")
            assert statuses(send(receiver, burned, image)) == [(0xC000, "burned-in-text"), (0, "")]


def test_only_silence_of_the_sender_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_NETWORK_S", 0.4)

    def slowly(received: Received) -> None:
        time.sleep(0.8)

    with receiving() as receiver:
        with main_loop(receiver, slowly):
            assert statuses(send(receiver, dicom("CT"), dicom("CT"))) == [(0, "")] * 2
        entity = AE("CT01")
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", receiver.port, ae_title="FEDWARD")
        time.sleep(1.0)
        assert association.is_aborted


def test_what_is_no_image_is_not_even_offered_a_way_in() -> None:
    with receiving() as receiver, main_loop(receiver) as taken:
        assert send(receiver, dicom("SR")) is None
        assert taken == []
        entity = AE("CT01")
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", receiver.port, ae_title="FEDWARD")
        assert association.send_c_echo().Status == 0
        association.release()


def test_only_named_callers_may_send() -> None:
    image = dicom("CT")
    with receiving(callers=("CT01", "CT02")) as receiver, main_loop(receiver) as taken:
        assert send(receiver, image, caller="INTRUDER") is None
        assert send(receiver, image, called="ELSEWHERE") is None
        assert taken == []
        assert statuses(send(receiver, image, caller="CT02")) == [(0, "")]


def test_an_object_too_large_is_refused_and_the_next_one_taken() -> None:
    with receiving(Rules(largest_bytes=2**20)) as receiver, main_loop(receiver) as taken:
        large = dicom("CT", PixelData=bytes(3 * 2**20))
        assert statuses(send(receiver, large, dicom("CT"))) == [(0xC000, "too-large"), (0, "")]
        held = taken[0].read.args[0].request.DataSet  # type: ignore[attr-defined]
        assert held.over and held.getbuffer().nbytes == 0


def test_two_senders_of_one_object_never_share_a_batch() -> None:
    image = dicom("CT")
    with receiving() as receiver:
        results: list[list[tuple[int, str]]] = []
        senders = [threading.Thread(target=lambda: results.append(statuses(send(receiver, image)))) for _ in range(2)]
        for sender in senders:
            sender.start()
        waiting(receiver, 2)
        sizes = []
        for batch in receiver.batches(0.0):
            sizes.append(len(batch))
            batch[0].done(None if len(sizes) == 1 else Reason("later", "decode", "", ""))
        for sender in senders:
            sender.join()
    assert sizes == [1, 1]
    assert sorted(results) == [[(0, "")], [(0xC000, "later")]]


def test_what_waits_when_the_receiver_ends_stays_with_its_sender() -> None:
    results: list[list[tuple[int, str]]] = []
    with receiving() as receiver:
        senders = [threading.Thread(target=lambda: results.append(statuses(send(receiver, dicom("CT"))))) for _ in "ab"]
        for sender in senders:
            sender.start()
        waiting(receiver, 2)
        batch = next(receiver.batches())  # handed out, never done
        assert len(batch) == 2
    batch[0].done(None)  # too late
    for sender in senders:
        sender.join()
    assert results == [[(0xA700, "")]] * 2


def test_a_receiver_killed_gives_no_success() -> None:
    program = (
        "import sys, time\n"
        "from client.ingest.kinds import Rules\n"
        "from client.ingest.receive import Receiver\n"
        "with Receiver('127.0.0.1', 0, title='FEDWARD', rules=Rules()) as receiver:\n"
        "    print(receiver.port, flush=True)\n"
        "    for batch in receiver.batches():\n"
        "        print('waiting', flush=True)\n"
        "        time.sleep(60)\n"
    )
    results: list[list[tuple[int, str]]] = []
    for ended_by in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            sender = threading.Thread(target=lambda port=port: results.append(statuses(send(port, dicom("CT")))))
            sender.start()
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(ended_by)
            process.wait(timeout=20)
        sender.join()
    assert results == [[(-1, "")], [(0xA700, "")]]


def test_dcmtk_sends(tmp_path: Path) -> None:
    tool = shutil.which("storescu")
    if tool is None:
        pytest.skip("dcmtk is not installed: apt-get install dcmtk")
    images = {
        "cr": dicom("CR", BurnedInAnnotation="NO"),
        "burned": dicom("CT", BurnedInAnnotation="YES"),
        "sr": dicom("SR"),
    }
    for name, content in images.items():
        (tmp_path / f"{name}.dcm").write_bytes(content)
    with receiving(callers=("DCMTK",)) as receiver, main_loop(receiver) as taken:

        def store(name: str, caller: str = "DCMTK") -> subprocess.CompletedProcess[str]:
            # -xw: proposes JPEG 2000; -R: only what is needed
            address = ["-aet", caller, "-aec", "FEDWARD", "127.0.0.1", str(receiver.port)]
            command = [tool, "-v", "-xw", "-R", *address, str(tmp_path / f"{name}.dcm")]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        good = store("cr")
        assert good.returncode == 0 and "Success" in good.stdout + good.stderr
        assert pydicom.dcmread(io.BytesIO(taken[0].read())).file_meta.TransferSyntaxUID.name.startswith("JPEG 2000")
        burned = store("burned")
        assert burned.returncode != 0 or "Cannot" in burned.stdout + burned.stderr
        assert "Success" not in burned.stdout + burned.stderr
        assert store("sr").returncode != 0
        assert store("cr", caller="INTRUDER").returncode != 0
        assert len(taken) == 2


def test_a_receiver_ends_when_it_was_told_to() -> None:
    with receiving() as receiver:
        start = time.monotonic()
        assert list(receiver.batches(0.3)) == []
        assert 0.2 < time.monotonic() - start < 2
        with receiving() as other:
            assert other.port != receiver.port
        with (
            pytest.raises(DataError, match="cannot listen"),
            Receiver("127.0.0.1", receiver.port, title="X", rules=RULES),
        ):
            pass
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(DataError, match="cannot listen"), Receiver(host, free_port(), title="X", rules=RULES):
            pass


@pytest.mark.parametrize("title", ["", "  ", "A" * 17, "A\\B", "A\nB", "Ä"])
def test_impossible_titles_are_refused(title: str) -> None:
    with pytest.raises(DataError, match="AE title"):
        Receiver("127.0.0.1", 0, title=title, rules=RULES)
    with pytest.raises(DataError, match="AE title"):
        Receiver("127.0.0.1", 0, title="FEDWARD", callers=[title], rules=RULES)


def command_set(**elements: bytes) -> bytes:
    """A DIMSE command of implicit VR little endian elements, by their number in group 0000."""
    body = b"".join(
        struct.pack("<HHI", 0, int(number.lstrip("e"), 16), len(value)) + value for number, value in elements.items()
    )
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def pdu(*values: tuple[int, bytes]) -> bytes:
    """A P-DATA PDU of (message control header, fragment)."""
    body = b"".join(struct.pack(">IBB", len(value) + 2, 1, header) + value for header, value in values)
    return struct.pack(">BBI", 4, 0, len(body)) + body


STORE = command_set(
    e0002=b"1.2.840.10008.5.1.4.1.1.2\0",
    e0100=struct.pack("<H", 1),
    e0110=struct.pack("<H", 1),
    e0700=struct.pack("<H", 0),
    e0800=struct.pack("<H", 0),
    e1000=b"1.2.3\0",
)


HOSTILE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "endless pdu": struct.pack(">BBI", 4, 0, 2**32 - 1) + bytes(1000),
    "no command": pdu((3, b"\xff" * 64)),
    "unknown command": pdu((3, command_set(e0100=struct.pack("<H", 0x7777), e0800=struct.pack("<H", 0x0101)))),
    "endless command": pdu((1, bytes(100_000))) + pdu((3, bytes(100))),
    "many objects at once": 4 * (pdu((3, STORE)) + pdu((2, b"DATA"))),
    "no uid": pdu((3, STORE.replace(b"1.2.3\0", b"x\n\x1b[2J"))) + pdu((2, b"DATA")),
    "cut": pdu((3, STORE))[:-5],
}


# pynetdicom's own thread, of the sender or of us, may end with an error of its state machine when it is hung up on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_peers_are_dropped_without_a_word(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is answered with success, nothing is printed, and others are served meanwhile and afterwards."""
    entity = AE("CT01")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2", ImplicitVRLittleEndian)
    with receiving() as receiver:
        with main_loop(receiver, lambda one: Reason("refused", "decode", "", "")) as taken:
            association = entity.associate("127.0.0.1", receiver.port, ae_title="FEDWARD")
            assert association.is_established
            caplog.set_level("DEBUG")
            caplog.clear()
            assert association.dul.socket is not None
            raw = association.dul.socket.socket
            assert isinstance(raw, socket.socket)
            with contextlib.suppress(OSError):
                raw.sendall(HOSTILE[name])
            until = time.monotonic() + (0.2 if name in ("cut", "no uid") else 5)
            while association.is_established and time.monotonic() < until:
                time.sleep(0.01)
            assert association.is_established == (name in ("cut", "no uid"))
            raw.close()
            association.kill()
            assert len(taken) <= 2
        with main_loop(receiver, lambda one: None):
            logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
            assert statuses(send(receiver, dicom("CT"))) == [(0, "")]
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_nothing_of_a_patient_is_logged_or_left_in_a_file(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    image = dicom("CT", BurnedInAnnotation="YES", PatientName="Secret^Person")
    tool = shutil.which("storescu")
    caplog.set_level("DEBUG")
    before = logging.getLogger("pynetdicom").level
    with receiving() as receiver, main_loop(receiver):
        if tool is None:
            send(receiver, image)
        else:  # a sender of its own process: pynetdicom's in this one would log too
            path = tmp_path / "sent.dcm"
            path.write_bytes(image)
            address = ["-aec", "FEDWARD", "127.0.0.1", str(receiver.port), str(path)]
            subprocess.run([tool, *address], capture_output=True, check=False, timeout=60)
            path.unlink()
    assert logging.getLogger("pynetdicom").level == before
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "Secret" not in shown and sop(image) not in shown and shown == ""
    assert os.listdir(tmp_path) == []  # noqa: PTH208
