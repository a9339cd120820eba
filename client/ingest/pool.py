"""Files in, images out, and a stranger's bytes parsed only in child processes (``client.ingest.child``).

A child is not believed: what it answers is checked against the rules here, its words are codes of reasons that
this process looks up, and its pixels are copied out of shared memory before anything looks at them. A child that
hangs, dies or answers nonsense costs its file, is replaced, and the import goes on; a file is tried once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

import client
from client.ingest import answers, dicom_reasons, reasons
from client.ingest.child import LENGTH, Role
from client.ingest.kinds import Decoded, Reason, Refused, Rules
from common.errors import DataError

_EXHAUSTED = {reasons.MEMORY.code, dicom_reasons.NO_MEMORY.code}  # who has failed to allocate is not trusted again
_BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from client.ingest.child import main; main()"
_START_SECONDS = 120.0
_WALL_PER_CPU = 3.0
_LONGEST_FRAME = 1 << 26
_KEPT_BYTES = 1 << 26  # of shared memory, from one job to the next
_LONGEST_CALL = 1 << 30  # bytes read or written at once; the kernel's limit is just under 2 GiB


@dataclass(frozen=True)
class Job:
    """One file to decode."""

    key: Any
    """The caller's own; not looked at."""
    content: bytes | Callable[[], bytes] = field(repr=False)
    """The whole file, or what reads it, in another thread, when its turn comes (may raise ``Refused``, ``OSError``)."""
    role: Role = "image"
    """``mask``: pictures are uint8 in {0, 1}, oriented, cut and scaled as the image's; ``identity``: no pixels."""


class Pool:
    """Child processes that decode; a context manager. Linux only.

    ``workers`` files are decoded at a time; a child is started when it is first needed.
    """

    def __init__(self, rules: Rules, workers: int = 1, *, command: Sequence[str] | None = None) -> None:
        """``command`` starts a child; tests put others in its place."""
        self._rules, self._workers = rules, workers
        self._command = command or (sys.executable, "-I", "-B", "-c", _BOOTSTRAP)
        # A child's life is tied to the thread that started it (prctl(2)); these live as long as the pool.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        self._children: set[_Child] = set()
        self._closed = False
        self.held: frozenset[str] = frozenset()
        """What confines the newest child, in ``client.ingest.child``'s words; empty before the first has started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every child at once, also one that is decoding."""
        self._closed = True
        for child in tuple(self._children):
            child.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in tuple(self._children):  # one may have been starting
            self._end(child)

    def results(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Decoded | Refused]]:
        """What becomes of each job, in the order of ``jobs``; at most ``workers`` + 1 files are held at a time.

        Raises :class:`DataError` where no child can be started.
        """
        ahead: deque[tuple[Job, Future[Decoded | Refused]]] = deque()
        try:
            for job in jobs:
                ahead.append((job, self._threads.submit(self._decode, job)))
                if len(ahead) > self._workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()

    def _decode(self, job: Job) -> Decoded | Refused:
        try:
            content = job.content if isinstance(job.content, bytes) else job.content()
        except Refused as refused:
            return refused
        except OSError:
            return Refused(reasons.UNREADABLE)
        if len(content) > self._rules.largest_bytes:
            return Refused(reasons.LARGE)
        child = self._child()
        result = child.decode(content, job.role)
        if child.spent:
            self._end(child)
        else:
            self._idle.put(child)
        return result

    def _child(self) -> _Child:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        broken = DataError(
            "the process that decodes images does not start; run `fedward site doctor` and see its findings"
        )
        try:
            child = _Child(self._rules, self._command)
        except OSError:
            raise broken from None
        self._children.add(child)
        if self._closed:
            child.kill()
        try:
            self.held = child.start()
        except _Failure:
            self._end(child)
            raise broken from None
        return child

    def _end(self, child: _Child) -> None:
        child.close()
        self._children.discard(child)


class _Failure(Exception):
    """The child is of no more use."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class _Child:
    """One process, its pipes and its two shared memories."""

    def __init__(self, rules: Rules, command: Sequence[str]) -> None:
        if sys.platform != "linux":
            raise DataError("images are imported on Linux only; run the import in a container")
        self._rules = rules
        self.spent = False
        """Whether it must be replaced."""
        self._inbox = os.memfd_create("fedward-file")
        self._outbox = os.memfd_create("fedward-pixels")
        os.ftruncate(self._outbox, rules.memory_mib << 20)
        shared = (self._inbox, self._outbox)
        self._process = subprocess.Popen(  # noqa: S603
            [*command, str(Path(client.__file__).parents[1]), str(os.getpid()), *map(str, shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=_environment(),
            pass_fds=shared,
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to handle
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()

    def start(self) -> frozenset[str]:
        """Send the rules and wait until it is ready: what holds. Raises :class:`_Failure`."""
        try:
            self._send(self._rules.model_dump_json().encode())
            return frozenset(answers.Ready.model_validate_json(self._receive(_START_SECONDS)).held)
        except ValidationError:
            raise _Failure(reasons.NONSENSE) from None

    def decode(self, content: bytes, role: Role) -> Decoded | Refused:
        try:
            _write(self._inbox, content)
            self._send(answers.Request(role=role, size=len(content)).model_dump_json().encode())
            reply = answers.Reply.model_validate_json(self._receive(_WALL_PER_CPU * self._rules.seconds))
            self.spent = reply.refused in _EXHAUSTED
            return answers.taken(reply, role, self._rules, self._pixels)
        except (ValidationError, answers.Nonsense):  # its text would quote the answer
            failure = _Failure(reasons.NONSENSE)
        except (MemoryError, OSError):  # of this process, or of the shared memories
            failure = _Failure(reasons.MEMORY)
        except _Failure as error:
            failure = error
        finally:
            self._release(len(content))
        self.spent = True
        return Refused(failure.reason)

    def kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        for memory in (self._inbox, self._outbox):
            os.close(memory)

    def _send(self, data: bytes) -> None:
        try:  # a frame is far smaller than a pipe, and the child has read the last one: this never blocks
            os.write(self._to, LENGTH.pack(len(data)) + data)
        except BrokenPipeError:
            raise _Failure(self._cause()) from None

    def _receive(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size, deadline))
        if length > _LONGEST_FRAME:
            raise _Failure(reasons.NONSENSE)
        return self._exactly(length, deadline)

    def _exactly(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        while len(data) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _Failure(reasons.TIMEOUT)
            piece = os.read(self._from, count - len(data))
            if not piece:
                raise _Failure(self._cause())
            data += piece
        return bytes(data)

    def _cause(self) -> Reason:
        """Why the pipe has ended."""
        try:
            ended = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return reasons.NONSENSE
        return reasons.TIMEOUT if ended == -signal.SIGXCPU else reasons.CRASHED

    def _pixels(self, dtype: str, shape: tuple[int, ...], start: int) -> NDArray[Any]:
        """A copy, never through a mapping, which the child could shorten or change under our eyes."""
        array = np.empty(shape, dtype)
        view, done = array.data.cast("B"), 0
        while done < len(view):
            read = os.preadv(self._outbox, [view[done : done + _LONGEST_CALL]], start + done)
            if read == 0:
                raise _Failure(reasons.NONSENSE)
            done += read
        return array

    def _release(self, size: int) -> None:
        """Give memory back after a large file; pages are kept for small ones, new ones cost more than the copy."""
        if size > _KEPT_BYTES:
            os.ftruncate(self._inbox, 0)
        if os.fstat(self._outbox).st_blocks * 512 > _KEPT_BYTES:
            os.ftruncate(self._outbox, 0)
            os.ftruncate(self._outbox, self._rules.memory_mib << 20)


def _environment() -> dict[str, str]:
    """What a child is told of this process's environment: no secret may be in it."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    # One thread: a pool has one process a core, and each thread would take address space.
    return kept | {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _write(memory: int, content: bytes) -> None:
    view, done = memoryview(content), 0
    while done < len(view):
        done += os.pwrite(memory, view[done : done + _LONGEST_CALL], done)
