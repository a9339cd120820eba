"""Sites that sum under masks, in memory: the sites' own code, the coordinator's own code, and no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.peers import Peers
from client.releases import RELEASES, Releases
from client.secagg import Memory, SecureSums
from common import protocol
from common.errors import FedwardError
from common.identity import SiteKey
from common.protocol import secure
from common.study import Study
from common.weights import Weights
from server.aggregation import FixedPointSum
from server.asking import Link, SignedRoster
from server.secure import Releases as Asked
from server.secure import SecureSum
from tests.unit import federation as fed

ROSTER = "5" * 64
KEYS = {name: SiteKey.generate() for name in ("ada", "bob", "cat", "dan", "eve")}
"""Their roster keys."""
NAMES = tuple(KEYS)
SENT = {"w": np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5), "b": np.array(0.25, np.float32)}


def study(**changes: Any) -> Study:
    return fed.study(**{"model.norm": "group", "federation.secure_aggregation": {}, **changes})


def update(name: str, sent: Weights = SENT) -> protocol.TrainReply:
    """What a site has trained."""
    rng = np.random.default_rng(sum(name.encode()))
    weights = {key: np.asarray(value + rng.normal(0, 0.1, value.shape), np.float32) for key, value in sent.items()}
    return protocol.TrainReply(name, 1, weights, int(rng.integers(5, 50)), float(rng.uniform(0.1, 1)), 1.0)


Answers = Callable[[str, protocol.Request, protocol.Reply], protocol.Reply | None]


class Sites:
    """``names``, each with its session in memory and its releases on the disk."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, *, roster: tuple[str, ...] = NAMES) -> None:
        self.folder, self.names = folder, names
        self.keys = {name: KEYS[name].public for name in roster}
        self.sums = {name: self.started(name) for name in names}
        self.bend: Answers = lambda name, request, reply: reply
        self.asked: list[tuple[str, protocol.Request]] = []
        self.replies: list[protocol.Reply] = []

    def started(self, name: str) -> SecureSums:
        """A site's agent, as it is after its start."""
        peers = Peers(name, KEYS[name], self.keys, ROSTER)
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return SecureSums(lambda: peers, Memory(), Releases(self.folder / name / RELEASES))

    def restart(self, name: str) -> None:
        self.sums[name] = self.started(name)

    def answer(self, name: str, request: protocol.Request) -> protocol.Reply:
        """The site's own reply."""
        try:
            if isinstance(request, secure.PhaseRequest):
                return self.sums[name].answer(request)
            assert isinstance(request, protocol.TrainRequest)
            return self.sums[name].masked(request, update(name))
        except FedwardError as error:
            return protocol.Refusal(name, error.code)

    def script(self, name: str, request: protocol.Request) -> protocol.Reply | None:
        """For :class:`tests.unit.federation.Scripted`: the reply, bent."""
        self.asked.append((name, request))
        reply = self.bend(name, request, self.answer(name, request))
        if reply is not None:
            self.replies.append(reply)
        return reply

    def plain(self, *names: str) -> FixedPointSum:
        """What a coordinator in clear would add up."""
        total = FixedPointSum(SENT)
        for name in names:
            reply = update(name)
            total.add(reply.weights, reply.examples)
        return total


class Coordinator:
    """The coordinator's side, over :class:`Sites`."""

    def __init__(self, sites: Sites, made: Study, *, quorum: int = 3, path: Path | None = None) -> None:
        self.sites, self.events, self.time = sites, fed.Events(), fed.FakeTime()
        self.grid = fed.Scripted(sites.names, sites.script)
        roster = SignedRoster(b"", ROSTER, sites.keys)
        self.link = Link(self.grid, self.events.log, self.time.clock, self.time.sleep, roster=lambda: roster)
        self.sum = SecureSum(self.link, protocol.Task(made), frozenset(SENT), quorum, 60.0, Asked(path))

    def collect(self, round_: int = 1, sent: Weights = SENT) -> Any:
        return self.sum.collect(round_, sent, self.grid.sites)


def same(found: Any, expected: FixedPointSum) -> None:
    """The same sum to the bit."""
    assert found.total.examples == expected.examples
    summed = FixedPointSum(SENT)
    summed.add_sum(found.total.arrays, found.total.examples)
    assert bits(summed.mean()) == bits(expected.mean())


def bits(arrays: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in arrays.items()}


PHASES = {
    "keys": secure.KeysRequest,
    "shares": secure.SharesRequest,
    "training": protocol.TrainRequest,
    "survivors": secure.SurvivorsRequest,
    "unmasking": secure.UnmaskRequest,
}
