"""Images that a PACS or device pushes: a DICOM storage SCP (C-STORE) and a verification SCP (C-ECHO).

A sender may delete what we say we have. So success is answered only after the importer has committed the object, or
knows that it must stay out for good (a duplicate, consent withheld); whatever interrupts us answers "out of resources",
and the sender keeps it. The network's threads hold encoded bytes in memory, never in a file, and do not parse them;
the main thread, which opened the vault, takes them in batches. Sources: DICOM PS3.4 B.2.3 (statuses of C-STORE),
PS3.7 C.5 (Error Comment), PS3.8 9.3 (PDUs).
"""

from __future__ import annotations

import logging
import queue
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from types import TracebackType
from typing import Any, Self

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts, _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import SegmentationStorage, Verification  # type: ignore[attr-defined]

from client.ingest.dicom_decode import DECODERS
from client.ingest.import_reasons import HARMLESS
from client.ingest.kinds import Reason, Refused, Rules
from client.ingest.reasons import LARGE
from common.errors import DataError

ASSOCIATIONS = 8
"""Senders served at a time; each has one object waiting, and at most one more on its way."""
MOST_IN_BATCH = 64
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_PDU_BYTES = 128 * 2**10  # what senders are asked to keep to
_LARGEST_PDU = 2**20  # association requests may be longer
_LARGEST_COMMAND = 2**16
_NETWORK_S, _GREETING_S, _POLL_S, _QUIET_S, _GRACE_S = 60.0, 10.0, 0.2, 1.0, 2.0
_TITLE = re.compile(r"(?! *$)[ -\[\]-~]{1,16}")  # PS3.5: AE, 16 characters without backslash or controls


@dataclass(frozen=True, eq=False)
class Received:
    """One object that its sender waits for an answer to."""

    name: str = field(repr=False)
    """SOP Instance UID, as the sender's command has it; unique in its batch."""
    read: Callable[[], bytes] = field(repr=False)
    """The object as a DICOM file, encoded as it came. Raises :class:`Refused` where it was larger than the rules."""
    done: Callable[[Reason | None], None] = field(repr=False)
    """Answer the sender: success for ``None``, duplicates and consent; else failure, the reason's code as comment."""


class Receiver:
    """Listens while it is entered; a context manager.

    With ``callers`` only those AE titles may send; ``title`` must be what they call us. ``port`` is the one listened
    on, also where 0 was asked for. On exit everything unanswered is answered "out of resources". Raises
    :class:`DataError` for an impossible title or address.
    """

    def __init__(self, host: str, port: int, *, title: str, callers: Sequence[str] = (), rules: Rules) -> None:
        for one in (title, *callers):
            if not _TITLE.fullmatch(one):
                raise DataError("an AE title is 1 to 16 plain characters without backslash; correct --title or --from")
        self.port = port
        self._host, self._title, self._rules = host, title, rules
        self._queue: queue.Queue[tuple[Received, _Answer]] = queue.Queue()  # at most one for each association
        self._later: list[tuple[Received, _Answer]] = []
        self._open: set[_Answer] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._ae = ApplicationEntity(title)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(callers)
        self._ae.maximum_associations = ASSOCIATIONS
        self._ae.maximum_pdu_size = _PDU_BYTES
        self._ae.network_timeout, self._ae.acse_timeout = _NETWORK_S, _GREETING_S
        self._ae.add_supported_context(Verification)
        for sop_class in storage_classes():
            self._ae.add_supported_context(sop_class, list(DECODERS))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(_quiet())
            handlers: list[Any] = [(evt.EVT_CONN_OPEN, self._opened), (evt.EVT_C_STORE, self._store)]
            try:
                server = self._ae.start_server((self._host, self.port), block=False, evt_handlers=handlers)
            except (OSError, OverflowError, ValueError) as error:
                words = getattr(error, "strerror", None) or "no such address"
                raise DataError(
                    f"cannot listen on {self._host}:{self.port}: {words}; choose another --host or --port"
                ) from None
            assert server is not None
            self.port = server.server_address[1]
            stack.callback(self._ae.shutdown)
            stack.callback(self._let_go)
            stack.callback(server.shutdown)
            stack.callback(self._close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def batches(self, for_s: float | None = None) -> Iterator[list[Received]]:
        """What waits, again and again: up to :data:`MOST_IN_BATCH` objects, each to be ``done``.

        Without ``for_s`` it goes on until Ctrl-C; else it ends after so many seconds, as soon as nothing is coming in.
        To be called in one thread.
        """
        end = None if for_s is None else time.monotonic() + for_s
        last = time.monotonic() - _QUIET_S
        while True:
            batch = self._batch()
            if batch:
                yield [received for received, _ in batch]
                last = time.monotonic()
            elif end is not None and time.monotonic() >= max(end, last + _QUIET_S) and not self._is_receiving():
                return

    def _is_receiving(self) -> bool:
        return any(one.dimse.message is not None for one in self._ae.active_associations)

    def _batch(self) -> list[tuple[Received, _Answer]]:
        waiting, self._later = self._later, []
        try:
            if not waiting:
                waiting.append(self._queue.get(timeout=_POLL_S))
            while len(waiting) < MOST_IN_BATCH:
                waiting.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        batch: dict[str, tuple[Received, _Answer]] = {}
        for one in waiting:
            # Of two senders of one object neither may be given the other's answer.
            if batch.setdefault(one[0].name, one) is not one:
                self._later.append(one)
        return list(batch.values())

    def _opened(self, event: evt.Event) -> None:
        """Bound what a peer can make us hold and how long it can make us wait; pynetdicom does neither."""
        connection = event.assoc.dul.socket
        assert connection is not None and connection.socket is not None
        connection.socket.settimeout(_NETWORK_S)
        connection.recv = partial(_received, connection.socket, connection.recv)  # type: ignore[method-assign]
        event.assoc.dimse = _Messages(event.assoc, self._rules.largest_bytes)

    def _store(self, event: evt.Event) -> Dataset:
        """In a sender's thread: queue the object, wait for what becomes of it."""
        answer = _Answer()
        received = Received(
            name=str(event.request.AffectedSOPInstanceUID),  # type: ignore[union-attr]
            read=partial(_read, event),
            done=answer.done,
        )
        with self._lock:
            if self._closed:
                answer.give(_OUT_OF_RESOURCES)
            else:
                self._open.add(answer)
                self._queue.put((received, answer))
        status = answer.wait()
        with self._lock:
            self._open.discard(answer)
        # Our own work is not the peer's silence.
        event.assoc.dul._idle_timer.restart()
        return status

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            for answer in self._open:
                answer.give(_OUT_OF_RESOURCES)

    def _let_go(self) -> None:
        """Give senders the time to read their answers and leave."""
        end = time.monotonic() + _GRACE_S
        while self._ae.active_associations and time.monotonic() < end:
            time.sleep(0.01)


class _Answer:
    """What a sender's thread waits for. The first answer stands."""

    def __init__(self) -> None:
        self._status = Dataset()
        self._given = threading.Event()
        self._lock = threading.Lock()

    def done(self, reason: Reason | None) -> None:
        if reason is None or reason.stage in HARMLESS:
            self.give(_SUCCESS)
        else:
            self.give(_CANNOT_UNDERSTAND, reason.code[:64])

    def give(self, status: int, comment: str = "") -> None:
        with self._lock:
            if not self._given.is_set():
                self._status.Status = status
                if comment:
                    self._status.ErrorComment = comment
                self._given.set()

    def wait(self) -> Dataset:
        self._given.wait()
        return self._status


class _Messages(DIMSEServiceProvider):
    """Messages of bounded size, one at a time."""

    def __init__(self, association: Any, most: int) -> None:
        super().__init__(association)
        self._most = most

    def receive_primitive(self, primitive: P_DATA) -> None:
        try:
            if self.message is None:
                if not self.msg_queue.empty():  # nobody was offered more than one operation at a time
                    raise ValueError
                self.message = DIMSEMessage()
                self.message.data_set = _Capped(self._most)
                self.message.encoded_command_set = _Capped(_LARGEST_COMMAND)
            super().receive_primitive(primitive)
        except Exception:
            # As for any invalid PDU, the association is aborted. The exception's text could quote the peer's.
            self.dul.event_queue.put("Evt19")


class _Capped(BytesIO):
    """Forgets everything once it is given more than ``most`` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self.over = False

    def write(self, data: Any) -> int:
        if not self.over and self.tell() + len(data) > self._most:
            self.over = True
            self.seek(0)
            self.truncate()
        return len(data) if self.over else super().write(data)


def storage_classes() -> list[UID]:
    """The SOP classes that are taken: still images, and segmentations of them."""
    known = (UID(str(context.abstract_syntax)) for context in AllStoragePresentationContexts)
    return sorted(
        one
        for one in known
        if one == SegmentationStorage or ("Image Storage" in one.name and not one.name.startswith("Video"))
    )


def _read(event: evt.Event) -> bytes:
    if getattr(event.request.DataSet, "over", True):  # type: ignore[union-attr]
        raise Refused(LARGE)
    return event.encoded_dataset()


def _received(connection: socket.socket, receive: Callable[[int], bytearray], count: int) -> bytearray:
    if count > _LARGEST_PDU:
        raise OSError("a PDU of absurd length")
    # Senders write a command and hold the object back until that is acknowledged, which Linux delays by 40 ms.
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return receive(count)


@contextmanager
def _quiet() -> Iterator[None]:
    """pynetdicom's and pydicom's log lines and warnings quote titles, UIDs and values."""
    loggers, settings = [logging.getLogger(name) for name in ("pynetdicom", "pydicom")], pydicom.config.settings
    levels, handlers = [logger.level for logger in loggers], _config.LOG_HANDLER_LEVEL
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        _config.LOG_HANDLER_LEVEL = "none"
        settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            _config.LOG_HANDLER_LEVEL = handlers
            settings.reading_validation_mode, settings.writing_validation_mode = modes
