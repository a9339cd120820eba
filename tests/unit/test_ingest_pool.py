"""The sandbox: what goes in comes out as without it; whatever a child does costs one file, and reaches nothing."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image

from client.ingest import dicom, images, reasons
from client.ingest.child import Role
from client.ingest.kinds import Decoded, Reason, Refused, Rules
from client.ingest.pool import Job, Pool
from common.errors import DataError

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
ROOT = Path(__file__).parents[2]
RULES = Rules(seconds=20.0, memory_mib=1024)


def png(number: int, side: int = 64, dtype: Any = np.uint8) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, np.iinfo(dtype).max, (side, side), dtype=dtype)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def same(ours: Decoded, theirs: Decoded) -> bool:
    pairs = zip(ours.pictures, theirs.pictures, strict=True)
    masks = zip(ours.masks, theirs.masks, strict=True)
    return (
        (ours.identity, ours.warnings) == (theirs.identity, theirs.warnings)
        and all(
            a.pixels.dtype == b.pixels.dtype
            and np.array_equal(a.pixels, b.pixels)
            and (a.number, dict(a.attributes), a.labels, a.scale) == (b.number, dict(b.attributes), b.labels, b.scale)
            for a, b in pairs
        )
        and all(
            np.array_equal(a.mask, b.mask) and (a.sop, a.frame, a.segment) == (b.sop, b.frame, b.segment)
            for a, b in masks
        )
    )


def one(pool: Pool, content: bytes | Callable[[], bytes], role: Role = "image") -> Decoded | Refused:
    ((_, result),) = pool.results([Job(0, content, role)])
    return result


def reason(result: Decoded | Refused) -> Reason:
    assert isinstance(result, Refused)
    return result.reason


def impostor(body: str) -> list[str]:
    """The command of a child that starts as it should, and does ``body`` for each job; ``reply`` sends a frame."""
    code = f"""
import json, os, struct, sys
def frame():
    (length,) = struct.unpack(">I", sys.stdin.buffer.read(4) or os._exit(0))
    return sys.stdin.buffer.read(length)
def reply(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()
def decoded(**changed):
    answer = {{"identity": dict.fromkeys(("patient", "sop", "study", "series", "accession"), ""),
              "pictures": [], "masks": [], "warnings": []}}
    reply({{"decoded": answer | changed}})
def picture(**changed):
    plain = {{"dtype": "uint8", "shape": [2, 2], "number": 0, "attributes": {{}}, "labels": [], "scale": [1.0, 1.0]}}
    return plain | changed
frame()
reply({{"held": []}})
while True:
    request = json.loads(frame())
{textwrap.indent(textwrap.dedent(body), "    ")}
"""
    return [sys.executable, "-I", "-S", "-c", code]


def confined(body: str) -> list[str]:
    """The command of the real child, whose one reader is ``body`` (of ``content``)."""
    code = f"""
import sys; sys.path.insert(0, sys.argv[1])
import ctypes, os, resource, signal, socket, stat, subprocess, time
import cv2
import numpy as np
from client.ingest import child, reasons
from client.ingest.kinds import Decoded, Picture, Reason, Refused
def read(content, rules):
{textwrap.indent(textwrap.dedent(body), "    ")}
    return Decoded(pictures=(Picture(np.zeros((2, 2), np.uint8)),))
child._readers = lambda: {{("image", "image"): read}}
child.main()
"""
    return [sys.executable, "-I", "-B", "-c", code]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(RULES, 2) as two:
        yield two


# --- what goes in comes out -------------------------------------------------------------------------


def test_two_workers_give_what_the_readers_give_in_order(pool: Pool) -> None:
    contents = [
        png(number, side=16 + 40 * (number % 3), dtype=(np.uint8, np.uint16)[number % 2]) for number in range(24)
    ]
    contents[5] = contents[17] = b"nothing"
    with Pool(RULES) as single:
        alone = list(single.results(Job(number, content) for number, content in enumerate(contents)))
    both = list(pool.results(Job(number, content) for number, content in enumerate(contents)))
    assert [job.key for job, _ in alone] == [job.key for job, _ in both] == list(range(24))
    for (job, ours), (_, theirs) in zip(alone, both, strict=True):
        if isinstance(ours, Refused):
            assert ours.reason is reason(theirs) is reasons.UNKNOWN and job.key in (5, 17)
        else:
            assert isinstance(theirs, Decoded) and same(ours, theirs)
            assert same(ours, images.read(contents[job.key], RULES))


def test_every_dicom_file_comes_back_as_from_its_reader(pool: Pool) -> None:
    """Whatever a reader would load late, or a decoder open, it has before the child gives everything up."""
    paths = sorted(DICOM.glob("*.dcm"))
    decoded = 0
    for job, result in pool.results(Job(path.name, path.read_bytes) for path in paths if path.stat().st_size < 1e6):
        assert callable(job.content)
        try:
            expected = dicom.read(job.content(), RULES)
        except Refused as refused:
            assert reason(result) in (refused.reason, reasons.UNKNOWN), job.key
        else:
            assert isinstance(result, Decoded) and same(result, expected), job.key
            decoded += 1
    assert decoded >= 12


def test_roles(pool: Pool) -> None:
    ct = (DICOM / "CT_small.dcm").read_bytes()
    identity = one(pool, ct, "identity")
    assert isinstance(identity, Decoded) and identity.pictures == () and identity.identity == dicom.identify(ct)
    assert reason(one(pool, ct, "mask")) is reasons.MASKLESS
    nothing = one(pool, png(0), "identity")
    assert isinstance(nothing, Decoded) and same(nothing, Decoded())
    mask = one(pool, png(0), "mask")
    assert isinstance(mask, Decoded) and same(mask, images.read_mask(png(0), RULES))


def test_a_file_that_cannot_be_read_is_refused(pool: Pool) -> None:
    def gone() -> bytes:
        raise FileNotFoundError("DOE^JANE.dcm")

    def declined() -> bytes:
        raise Refused(reasons.ARCHIVE)

    assert reason(one(pool, gone)) is reasons.UNREADABLE
    assert reason(one(pool, declined)) is reasons.ARCHIVE
    with Pool(Rules(largest_bytes=2**20)) as small:
        assert reason(one(small, bytes(2**20 + 1))) is reasons.LARGE


def test_a_mistake_of_the_caller_is_not_swallowed(pool: Pool) -> None:
    def broken() -> bytes:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        one(pool, broken)


def test_a_program_that_is_not_there_is_one_clear_error() -> None:
    with Pool(RULES, command=["nothing-of-this-name"]) as broken, pytest.raises(DataError, match="site doctor"):
        one(broken, png(0))


def test_few_files_are_held_at_a_time() -> None:
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield Job(number, png(number))

    with Pool(RULES, 2) as two:
        for finished, _ in enumerate(two.results(jobs())):
            assert taken <= finished + 3
        results = two.results(jobs())
        next(results)
        results.close()  # nobody has to take them all


def test_memory_of_large_files_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.pool._KEPT_BYTES", 1 << 20)
    stack = io.BytesIO()
    np.save(stack, np.random.default_rng(0).integers(0, 256, (16, 512, 512), dtype=np.uint8))
    with Pool(RULES) as single:
        for _ in range(3):
            result = one(single, stack.getvalue())
            assert isinstance(result, Decoded) and len(result.pictures) == 16
            (child,) = single._children
            assert os.fstat(child._inbox).st_blocks == os.fstat(child._outbox).st_blocks == 0


# --- a child that fails costs one file ----------------------------------------------------------------

MISHAPS: dict[str, Reason] = {
    "os.kill(os.getpid(), signal.SIGKILL)": reasons.CRASHED,
    "ctypes.string_at(0)": reasons.CRASHED,
    "sys.exit(0)": reasons.CRASHED,
    "time.sleep(60)": reasons.TIMEOUT,
    "while True: pass": reasons.TIMEOUT,
    "held = [np.empty(1 << 20) for _ in range(1 << 20)]": reasons.MEMORY,
    "held = bytearray(1 << 40)": reasons.MEMORY,
    "raise RecursionError": reasons.FAILED,
    "raise ValueError('DOE^JANE')": reasons.FAILED,
    "raise Refused(Reason('made-up', 'parse', 'a', 'b'))": reasons.NONSENSE,
}


def test_a_child_that_hangs_dies_or_grows_is_replaced() -> None:
    rules = Rules(seconds=0.7, memory_mib=512)
    body = f"if content[-1]:\n    exec({list(MISHAPS)!r}[content[-1] - 1])"
    contents = [png(0) + bytes([number]) for mishap in range(len(MISHAPS)) for number in (mishap + 1, 0)]
    with Pool(rules, 2, command=confined(body)) as two:
        results = [result for _, result in two.results(Job(None, content) for content in contents)]
        assert [reason(result) for result in results[::2]] == list(MISHAPS.values())
        assert all(isinstance(result, Decoded) for result in results[1::2])
        assert len(two._children) <= 2


@pytest.mark.parametrize(
    "body",
    [
        "reply(b'not json')",
        "reply({})",
        "reply({'decoded': None, 'refused': None})",
        "reply({'refused': 'DOE^JANE 1966'})",
        "reply({'refused': 'no-such-reason'})",
        "reply([1, 2, 3])",
        "reply(b'[' * 100000)",
        "sys.stdout.buffer.write(b'\\xff' * 8); sys.stdout.buffer.flush()",
        "decoded(pictures=[picture(dtype='object')])",
        "decoded(pictures=[picture(dtype='int64')])",
        "decoded(pictures=[picture(dtype='uint16', shape=[2, 2, 3])])",
        "decoded(pictures=[picture(shape=[2, 2, 4])])",
        "decoded(pictures=[picture(shape=[2])])",
        "decoded(pictures=[picture(shape=[0, 2])])",
        "decoded(pictures=[picture(shape=[-2, -2])])",
        "decoded(pictures=[picture(shape=[2**30, 2**30])])",
        "decoded(pictures=[picture(shape=[7000, 7000])] * 22)",
        "decoded(pictures=[picture(scale=[float('nan'), 1.0])])",
        "decoded(pictures=[picture(scale=[0.0, 1.0])])",
        "decoded(pictures=[picture(number=-1)])",
        "decoded(pictures=[picture(labels=['x' * 65])])",
        "decoded(pictures=[picture(extra=1)])",
        "decoded(pictures=[picture()] * 5000)",
        "decoded(warnings=['DOE^JANE'])",
        "decoded(identity={})",
        "decoded(masks=[{'sop': '1', 'frame': 0, 'segment': 1, 'shape': [2, 2, 3]}])",
        "os.ftruncate(int(sys.argv[4]), 0); decoded(pictures=[picture()])",
        "os.pwrite(int(sys.argv[4]), b'\\x02' * 4, 0); "
        "decoded(masks=[{'sop': '1', 'frame': 0, 'segment': 1, 'shape': [2, 2]}])",
    ],
)
def test_an_answer_that_breaks_the_rules_is_not_taken(body: str) -> None:
    with Pool(RULES, command=impostor(body)) as single:
        assert reason(one(single, png(0))) is reasons.NONSENSE
        assert not single._children  # it is not asked again


def test_what_is_not_asked_for_is_not_taken() -> None:
    with Pool(RULES, command=impostor("decoded(pictures=[picture()])")) as single:
        assert reason(one(single, png(0), "identity")) is reasons.NONSENSE
    two = "os.pwrite(int(sys.argv[4]), b'\\x02' * 4, 0); decoded(pictures=[picture()])"
    with Pool(RULES, command=impostor(two)) as single:
        assert reason(one(single, png(0), "mask")) is reasons.NONSENSE


def test_only_listed_attributes_are_taken() -> None:
    body = "decoded(pictures=[picture(attributes={'modality': 'CT', 'patient': 'JANE', 'view': 'DOE^JANE\\n'})])"
    with Pool(RULES, command=impostor(body)) as single:
        result = one(single, png(0))
        assert isinstance(result, Decoded) and dict(result.pictures[0].attributes) == {"modality": "CT"}


@pytest.mark.parametrize("body", ["import nothing_of_this_name", "raise SystemExit", "print('hello')"])
def test_a_child_that_does_not_start_is_one_clear_error(body: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", body]
    with Pool(RULES, 2, command=command) as broken, pytest.raises(DataError, match="site doctor"):
        list(broken.results(Job(number, png(number)) for number in range(5)))


# --- what a child can reach ---------------------------------------------------------------------------

ATTEMPTS = (
    "open('/etc/passwd')",
    "open('left-behind', 'w')",
    "os.open('.', os.O_RDONLY)",
    "os.listdir('/')",
    "os.mkdir('/proc/left-behind')",
    "socket.socket()",
    "socket.socketpair()",
    "os.memfd_create('more')",
    "subprocess.run(['true'])",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
    "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "os.pwrite(int(sys.argv[4]), b'x', 0)",
    "os.ftruncate(int(sys.argv[4]), 1 << 40)",
    "import antigravity",
)


def test_a_child_reaches_nothing() -> None:
    """What is tried fails with the kernel's no (or, of an import, with what Python makes of it)."""
    body = f"""
        try:
            exec({ATTEMPTS!r}[content[-1]])
        except (OSError, ValueError, ImportError):
            pass
        else:
            os._exit(1)
    """
    with Pool(RULES, command=confined(body)) as single:
        jobs = (Job(attempt, png(0) + bytes([number])) for number, attempt in enumerate(ATTEMPTS))
        assert [job.key for job, result in single.results(jobs) if isinstance(result, Refused)] == []
        assert "limits" in single.held


def test_what_holds_beyond_limits_is_reported_and_true() -> None:
    with Pool(RULES) as single:
        assert isinstance(one(single, png(0)), Decoded)
        (child,) = single._children
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{child._process.pid}/status").read_text().splitlines()
        )
        assert status["NoNewPrivs"].strip() == "1" and "no-new-privileges" in single.held
        if "no-capabilities" in single.held:
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        if os.getuid() == 0 and "namespaces" in single.held:
            ours, theirs = (Path(f"/proc/{pid}/ns/net").readlink() for pid in (os.getpid(), child._process.pid))
            assert ours != theirs
        assert os.getpgid(child._process.pid) == child._process.pid  # Ctrl-C in the terminal does not reach it
        limits = Path(f"/proc/{child._process.pid}/limits").read_text()
        assert "Max open files            0                    0 " in limits


def test_a_child_inherits_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_SECRET", "open sesame")
    body = """
        kinds = []
        for descriptor in range(64):
            try:
                kinds.append(stat.S_IFMT(os.fstat(descriptor).st_mode))
            except OSError:
                pass
        known = {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_CTYPE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
        known |= {"FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"}  # set by the child's own first import
        # the null device three times, two pipes, two shared memories and what maps one of them
        if set(os.environ) - known or len(kinds) > 8 or stat.S_IFSOCK in kinds:
            os._exit(1)
    """
    with socket.socket() as connection, Pool(RULES, command=confined(body)) as single:
        os.set_inheritable(connection.fileno(), True)
        assert isinstance(one(single, png(0)), Decoded)


def test_a_child_imports_no_more_than_it_needs() -> None:
    code = "import sys; from client.ingest import child; child._readers(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "flwr", "pandas", "sklearn", "matplotlib", "cryptography"} & set(run.stdout.split())


# --- nothing stays ------------------------------------------------------------------------------------


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_leaving_the_pool_ends_children_that_are_decoding() -> None:
    started = time.monotonic()
    with Pool(RULES, 2, command=confined("time.sleep(60)")) as two:
        results = two.results(Job(number, png(number)) for number in range(2))

        def wait() -> None:
            with contextlib.suppress(DataError):  # one may be starting
                list(results)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while len(two._children) < 2 or not two.held:
            time.sleep(0.05)
        pids = [child._process.pid for child in two._children]
    assert all(gone(pid) for pid in pids) and time.monotonic() - started < 20
    waiting.join()


@pytest.mark.parametrize("body", ["while True: pass", "pass"])
def test_a_parent_killed_leaves_no_child(body: str) -> None:
    code = f"""
import sys, threading, time
from client.ingest.pool import Job, Pool
from client.ingest.kinds import Rules
with Pool(Rules(), command={confined(body)!r}) as pool:
    threading.Thread(target=lambda: list(pool.results([Job(0, {png(0)!r})])), daemon=True).start()
    while not pool.held:
        time.sleep(0.02)
    time.sleep(0.2)
    print(*(child._process.pid for child in pool._children), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        (pid,) = map(int, parent.stdout.readline().split())
        assert psutil.pid_exists(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone(pid)
