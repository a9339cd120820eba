"""PACS for tests: Orthanc with DICOMweb in its own process, a counting relay before it, servers that misbehave."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import secrets
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, generate_uid

from tests.integration.services_keys import free_port, running

_BINARIES = ("Orthanc", "/usr/sbin/Orthanc")
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_TLS = b"\x16\x03"  # how a TLS handshake starts
_CLASSES = {"CR": ComputedRadiographyImageStorage, "DX": DigitalXRayImageStorageForPresentation}
_FILES = {"CR": "RG3_J2KI.dcm", "US": "US1_J2KR.dcm", "MR": "MR_small.dcm", "SR": "reportsi.dcm"}


@dataclass(frozen=True)
class Orthanc:
    """One Orthanc; ``url`` is its DICOMweb service."""

    root: str
    user: str
    password: str
    dicom_port: int
    process: int

    @property
    def url(self) -> str:
        return f"{self.root}/dicom-web"

    def store(self, *contents: bytes) -> None:
        for content in contents:
            answer = httpx.post(
                f"{self.root}/instances",
                content=content,
                auth=(self.user, self.password),
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """A PACS with a login, on loopback ports and in a folder of its own."""
    binary = next((found for name in _BINARIES if (found := shutil.which(name))), None)
    if binary is None or not _PLUGIN.is_file():
        pytest.skip("Orthanc with DICOMweb is not installed: apt-get install orthanc orthanc-dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
    port, dicom_port = free_port(), free_port()
    user, password = "fedward", secrets.token_hex(8)
    settings: dict[str, Any] = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomPort": dicom_port,
        "DicomServerEnabled": True,
        "DicomAet": "ORTHANC",
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {user: password},
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "HttpThreadsCount": 4,
        "ConcurrentJobs": 1,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    (folder / "orthanc.json").chmod(0o600)
    root = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{root}/dicom-web/studies", auth=(user, password), trust_env=False)
            return answer.status_code == 200
        return False

    command = [binary, str(folder / "orthanc.json")]
    with running(command, {"HOME": str(folder)}, folder / "orthanc.log", ready) as process:
        yield Orthanc(root, user, password, dicom_port, process.pid)


def dicom(modality: str, day: str = "20240102", **tags: Any) -> bytes:
    """One real object of ``modality`` (CR, DX, CT, US, MR or SR), its date, UIDs and ``tags`` patched in."""
    path = get_testdata_file(_FILES.get(modality, "CT_small.dcm"), download=False)
    assert isinstance(path, str)
    dataset = pydicom.dcmread(path)
    dataset.Modality, dataset.StudyDate = modality, day
    dataset.SOPClassUID = _CLASSES.get(modality, dataset.SOPClassUID)
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = (generate_uid() for _ in range(3))
    dataset.PatientID, dataset.PatientName = f"FW-{secrets.token_hex(4)}", "Planted^Name"
    for name, value in tags.items():
        setattr(dataset, name, value)
    if modality in ("CT", "DX", "MR"):  # other pixels each time: the same would be a duplicate
        pixels = bytearray(dataset.PixelData)
        pixels[:16:2] = secrets.token_bytes(8)
        dataset.PixelData = bytes(pixels)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def sop(content: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).SOPInstanceUID)


@dataclass
class Relay:
    """Passes requests on to a PACS, and remembers their paths."""

    url: str
    paths: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> int:
        """Objects that were retrieved."""
        return sum("/instances/" in path for path in self.paths)


@contextlib.contextmanager
def relay(
    target: str,
    status: Callable[[str], int | None] = lambda path: None,
    *,
    certificate: tuple[Path, Path, Path] | None = None,
) -> Iterator[Relay]:
    """``status`` may answer in place of the PACS. ``certificate`` (authority, chain, key): it speaks TLS, as the proxy
    before a hospital's Orthanc does; Debian's Orthanc 1.10 dies of its own TLS.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(trust_env=False, timeout=30))

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.paths.append(self.path)
                planted = status(self.path)
                headers = {name: self.headers[name] for name in ("Accept", "Authorization") if name in self.headers}
                answer = httpx.Response(planted) if planted else client.get(target + self.path, headers=headers)
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("content-type", "text/plain"))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # refused handshakes
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate[1], certificate[2])
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        stack.callback(server.server_close)
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        seen = Relay(f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}")
        yield seen


@contextlib.contextmanager
def raw(answer: Callable[[str, socket.socket], None]) -> Iterator[str]:
    """A server whose every connection is one request: ``answer(path, connection)`` writes what it likes."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            head = b""
            while b"\r\n\r\n" not in head and not head.startswith(_TLS) and (piece := connection.recv(65_536)):
                head += piece
            if head:
                answer("" if head.startswith(_TLS) else head.split(b" ", 2)[1].decode(), connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/dicom-web"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(timeout=5)


def reply(
    body: bytes, kind: str = "application/dicom+json", status: str = "200 OK", length: int | None = None
) -> bytes:
    """An HTTP answer that ends the connection; ``length`` may lie."""
    stated = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {stated}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def multipart(content: bytes, boundary: str = "b0undary") -> bytes:
    """The answer to a retrieval of one object."""
    body = (
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + content + f"\r\n--{boundary}--".encode()
    )
    return reply(body, f'multipart/related; type="application/dicom"; boundary={boundary}')
