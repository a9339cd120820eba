"""One round summed under masks, coordinator and sites with their own code in one process, nothing trained.

python secure_sums.py SITES NUMBERS

CPU seconds of each site (messages taken apart and put together, keys, shares, masks) and of the coordinator, with
everybody to the end and with one site that drops out before its row; and of the coordinator in clear, which adds the
same updates up. Bytes both ways, and of the sites' replies by themselves, against those of a plain round. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message

from client.peers import Peers
from client.releases import Releases
from client.secagg import Memory, SecureSums
from common import protocol
from common.identity import SiteKey
from common.protocol import secure
from common.weights import Weights
from server.aggregation import FixedPointSum
from server.asking import Link, SignedRoster
from server.events import EventLog
from server.secure import Releases as Asked
from server.secure import SecureSum
from tests.unit import federation as fed
from tests.unit.secure_fixtures import ROSTER, study

EXAMPLES, LOSS = 400, 0.5


class Timed(fed.Scripted):
    """A Grid that knows what its sites cost, and what went over it."""

    def __init__(self, sums: dict[str, SecureSums], trained: Weights, absent: str = "") -> None:
        super().__init__(sums, self.play)
        self._sums, self._trained, self._absent = sums, trained, absent
        self.cpu: Counter[str] = Counter()
        self.sent = self.came = 0

    def play(self, name: str, request: protocol.Request) -> protocol.Reply | None:
        if isinstance(request, secure.PhaseRequest):
            return self._sums[name].answer(request)
        assert isinstance(request, protocol.TrainRequest)
        if name == self._absent:
            return protocol.Refusal(name, "internal-error")
        return self._sums[name].masked(request, protocol.TrainReply(name, 1, self._trained, EXAMPLES, LOSS, 1.0))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        before = time.process_time()
        waiting = [id_ for id_ in message_ids if id_ in self._asked]
        if not waiting:
            return []
        asked = self._asked[waiting[0]]
        replies = list(super().pull_messages(waiting[:1]))
        self.sent += protocol.size(asked.content)
        self.came += sum(protocol.size(reply.content) for reply in replies)
        self.cpu[self._names[asked.metadata.dst_node_id]] += time.process_time() - before
        return replies


def measure(sites: int, numbers: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    sent = {"w": rng.normal(0, 0.05, numbers).astype(np.float32)}
    trained = {"w": sent["w"] + rng.normal(0, 1e-3, numbers).astype(np.float32)}
    names = [f"h{number:02}" for number in range(1, sites + 1)]
    keys = {name: SiteKey.generate() for name in names}
    public = {name: key.public for name, key in keys.items()}
    roster = SignedRoster(b"", ROSTER, public)
    found: dict[str, Any] = {}
    for how, absent in (("all", ""), ("one drops out", names[-1])):
        with tempfile.TemporaryDirectory() as folder:
            sums = {
                name: SecureSums(
                    lambda name=name: Peers(name, keys[name], public, ROSTER),  # type: ignore[misc]
                    Memory(),
                    Releases(Path(folder) / f"{name}.sqlite"),
                )
                for name in names
            }
            grid = Timed(sums, trained, absent)
            link = Link(grid, EventLog(), roster=lambda: roster)
            begun = time.process_time()
            total = SecureSum(link, protocol.Task(study()), frozenset(sent), sites - bool(absent), 60.0, Asked(None))
            summed = total.collect(1, sent, grid.sites)
            cpu = time.process_time() - begun
        assert len(summed.survivors) == sites - bool(absent)
        plain = FixedPointSum(sent)
        begun = time.process_time()
        for _ in summed.survivors:
            plain.add(trained, EXAMPLES)
        clear = time.process_time() - begun
        masked = FixedPointSum(sent)
        masked.add_sum(summed.total.arrays, summed.total.examples)
        assert masked.mean()["w"].tobytes() == plain.mean()["w"].tobytes(), "another sum than in clear"
        took_part = [grid.cpu[name] for name in names if name != absent]
        found[how] = {
            "site_cpu_s": took_part,
            "coordinator_cpu_s": cpu - sum(grid.cpu.values()),
            "clear_cpu_s": clear,
            "bytes": (grid.sent + grid.came) / (2 * sites * sent["w"].nbytes),
            "reply_bytes": grid.came / (len(took_part) * sent["w"].nbytes),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
