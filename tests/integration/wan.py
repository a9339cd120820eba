"""Hospitals behind lines of their own, in network namespaces: loss, delay, a slow rate, silence, lines that are down.

The kernel need not have ``netem``: between each site and the coordinator a relay copies Ethernet frames, later or not
at all. This file is the test's :class:`Wan` and, run as a program inside a namespace, that relay.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COORDINATOR = "198.51.100.1"


@dataclass(frozen=True)
class Line:
    """One way; the way back is the same. ``rate`` in bits a second, 0 for any; ``silent`` drops all, unsaid."""

    delay_s: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    silent: bool = False


@dataclass
class Wan:
    """``spaces``: process -> its namespace."""

    spaces: dict[str, str]
    _relay: subprocess.Popen[bytes]
    _lines: dict[str, Line] = field(default_factory=dict)

    def set(self, line: Line, *sites: str) -> None:
        """From now on the line of these sites, or of all, is like this."""
        assert self._relay.stdin is not None
        numbers = {site: number for number, site in enumerate(self.spaces) if site != "coordinator"}
        for site in sites or numbers:
            self._relay.stdin.write(json.dumps([numbers[site], asdict(line)]).encode() + b"\n")
        self._relay.stdin.flush()

    def down(self, *sites: str) -> None:
        """As when a cable is pulled: this side knows at once."""
        for site in sites:
            _ip("-n", self.spaces[site], "link", "set", "eth0", "down")

    def up(self, *sites: str) -> None:
        for site in sites:
            _ip("-n", self.spaces[site], "link", "set", "eth0", "up")


def missing() -> str:
    """Why there can be no :class:`Wan` here; empty where there can."""
    if os.geteuid():
        return "only root can make network namespaces"
    return "" if shutil.which("ip") else "no `ip` here: apt-get install iproute2"


@contextlib.contextmanager
def wan(sites: Sequence[str], seed: int) -> Iterator[Wan]:
    """Namespaces named after this process; nothing of them is left."""
    prefix = f"fedward{os.getpid()}"
    spaces = {name: f"{prefix}-{name}" for name in ("coordinator", *sites)}
    middle = f"{prefix}-wan"
    relay: subprocess.Popen[bytes] | None = None
    try:
        for space in (*spaces.values(), middle):
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        hub = spaces["coordinator"]
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "addr", "add", f"{COORDINATOR}/24", "dev", "br0")
        _ip("-n", hub, "link", "set", "br0", "up")
        for number, site in enumerate(sites, start=1):
            _veth(middle, f"s{number}", spaces[site], "eth0")
            _veth(middle, f"c{number}", hub, f"c{number}")
            _ip("-n", spaces[site], "addr", "add", f"198.51.100.{number + 10}/24", "dev", "eth0")
            _ip("-n", hub, "link", "set", f"c{number}", "master", "br0")
        _inside(hub, "plain", "br0")
        command = ["ip", "netns", "exec", middle, sys.executable, __file__, "relay", str(seed), str(len(sites))]
        relay = subprocess.Popen(command, stdin=subprocess.PIPE)
        yield Wan(spaces, relay)
    finally:
        if relay is not None:
            relay.kill()
            relay.wait()
            assert relay.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                relay.stdin.close()
        for space in (*spaces.values(), middle):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def _veth(here: str, name: str, there: str, peer: str) -> None:
    _ip("link", "add", name, "netns", here, "type", "veth", "peer", "name", peer, "netns", there)
    for space, end in ((here, name), (there, peer)):
        _inside(space, "plain", end)
        _ip("-n", space, "link", "set", end, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _inside(space: str, *arguments: str) -> None:
    subprocess.run(["ip", "netns", "exec", space, sys.executable, __file__, *arguments], check=True)


# --- what runs inside a namespace ---------------------------------------------------------------------------------


def plain(interface: str) -> None:
    """Checksums and segments made by the kernel before a frame leaves: the relay has no hardware that would."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in (0x17, 0x1F, 0x24, 0x2C):  # ETHTOOL_STXCSUM, STSO, SGSO, SGRO (linux/ethtool.h)
            value = array.array("I", [command, 0])
            request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
            with contextlib.suppress(OSError):  # what it has not, it need not stop
                fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL


def relay(seed: int, sites: int) -> None:
    """Copy frames between ``s1`` and ``c1``, ``s2`` and ``c2``, …; lines as JSON on standard input change them."""
    rng, order = random.Random(seed), itertools.count()
    lines = {number: Line() for number in range(1, sites + 1)}
    ends: dict[Any, tuple[int, Any]] = {}
    for number in lines:
        near, far = _raw(f"s{number}"), _raw(f"c{number}")
        ends |= {near: (number, far), far: (number, near)}
    free = dict.fromkeys(ends, 0.0)  # when the sender's wire has nothing left to send
    late: list[tuple[float, int, Any, bytes]] = []
    commands = open(0, "rb", buffering=0)  # noqa: SIM115
    while True:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else 1.0
        for ready in select.select([commands, *ends], [], [], wait)[0]:
            if ready is commands:
                said = commands.readline()
                if not said:
                    return
                number, settings = json.loads(said)
                lines[number] = Line(**settings)
                continue
            number, other = ends[ready]
            for frame in _frames(ready):
                line, now = lines[number], time.monotonic()
                if line.silent or rng.random() < line.loss or free[ready] - now > 0.5:
                    continue  # the last as a router does whose queue is full
                free[ready] = max(now, free[ready]) + (len(frame) * 8 / line.rate if line.rate else 0.0)
                heapq.heappush(late, (free[ready] + line.delay_s, next(order), other, frame))
        while late and late[0][0] <= time.monotonic():
            _, _, other, frame = heapq.heappop(late)
            with contextlib.suppress(OSError):
                other.send(frame)


def _raw(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((interface, 0))
    made.setblocking(False)
    made.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
    return made


def _frames(source: socket.socket) -> Iterator[bytes]:
    for _ in range(64):
        try:
            yield source.recv(65535)
        except OSError:
            return


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    if sys.argv[1] == "plain":
        plain(sys.argv[2])
    else:
        relay(int(sys.argv[2]), int(sys.argv[3]))
