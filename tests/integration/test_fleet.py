"""The fleet with agents in processes of their own, over TLS on loopback: rounds, restarts, sleep, memory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client import flower_private as flower
from client.fleet import Connection, Pace, serve
from common import protocol
from common.errors import IdentityError, RunError
from common.weights import state_of
from server.asking import Link, ask
from server.events import EventLog
from server.fleet_grid import FleetGrid
from server.presence import survey
from server.superlink import Fleet, FleetError
from tests.integration.fleet_fixtures import Agent, Authority, all_online, peak_growth, resident_bytes, wait_for


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("pki"), "north", "south")


@pytest.fixture
def fresh(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path, "north")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Iterator[tuple[Fleet, list[Agent]]]:
    with authority.fleet() as fleet:
        agents = [Agent(authority, alias, fleet.port) for alias in ("north", "south")]
        try:
            wait_for(all_online(fleet))
            yield fleet, agents
        finally:
            assert [agent.end() for agent in agents] == [0, 0]


BRISK = Pace(quick_s=0.05, idle_s=0.1, retry_s=(0.05, 0.1))


def question(node: int, text: str = "", ttl: float = 120.0) -> Message:
    return Message(RecordDict({"c": ConfigRecord({"text": text})}), node, "query.survey", ttl=ttl)


def asked(grid: FleetGrid, nodes: Sequence[int], timeout: float = 60.0) -> list[Message]:
    return grid.send_and_receive([question(node) for node in nodes], timeout=timeout)


def good(replies: Sequence[Message]) -> int:
    return sum(reply.has_content() for reply in replies)


def replied(grid: FleetGrid, ids: list[str], seconds: float = 60.0) -> list[Message]:
    """What arrives for ``ids``, all of it, in order of arrival."""
    found: dict[str, Message] = {}

    def all_here() -> bool:
        arrived = grid.pull_messages([id_ for id_ in ids if id_ not in found])
        found.update((reply.metadata.reply_to_message_id, reply) for reply in arrived)
        return len(found) == len(ids)

    wait_for(all_here, seconds)
    return list(found.values())


# --- rounds ---------------------------------------------------------------------------------------------------------


def test_rounds_reach_both_sites_and_come_back(pair: tuple[Fleet, list[Agent]]) -> None:
    fleet, _ = pair
    before = fleet.requests
    with fleet.grid() as grid:
        nodes = grid.get_node_ids()
        assert nodes == sorted(node.node_id for node in fleet.nodes().values())
        asked(grid, nodes)
        took = []
        for _ in range(5):
            started = time.monotonic()
            replies = asked(grid, nodes)
            took.append(time.monotonic() - started)
            assert sorted(reply.metadata.src_node_id for reply in replies) == nodes and good(replies) == 2
        print(f"seconds of a trivial round: {sorted(took)}")
        assert sorted(took)[2] <= 1.0
        with pytest.raises(RunError, match="going on"), fleet.grid():
            pass
    assert fleet.requests["get-fab"] == fleet.requests["get-run"] == before["get-fab"] == 0
    assert not fleet.refusals
    with fleet.grid() as grid:  # a second run of the same process
        assert good(asked(grid, nodes)) == 2


def test_many_parameters_come_back_unchanged(pair: tuple[Fleet, list[Agent]]) -> None:
    fleet, agents = pair
    weights = np.random.default_rng(5).random(11_000_000, dtype=np.float32)
    with fleet.grid() as grid:
        record = ArrayRecord({"w": Array(weights)})
        started = time.monotonic()
        ids = grid.push_messages([Message(RecordDict({"w": record}), n, "train.fit") for n in grid.get_node_ids()])
        for reply in replied(grid, ids):
            assert reply.has_content(), (reply.error, [line for agent in agents for line in agent.lines()[-3:]])
            assert np.array_equal(reply.content["w"]["w"].numpy(), weights)  # type: ignore[index]
        print(f"11 M parameters to two sites and back: {time.monotonic() - started:.2f} s")
        assert len(fleet._link.state.object_store) == 0


@pytest.mark.slow
def test_a_real_train_round(authority: Authority, tmp_path: Path) -> None:
    from common.models import build
    from common.randomness import seed_for
    from tests.unit.federation import make_sites, study

    tiny = study(**{"partition.sites": 2})
    folders = list(make_sites(tmp_path / "sites", tiny).values())
    with authority.fleet() as fleet:
        agents = [
            Agent(authority, alias, fleet.port, f"site:{folder}")
            for alias, folder in zip(("north", "south"), folders, strict=True)
        ]
        try:
            wait_for(all_online(fleet))
            with fleet.grid() as grid:
                link = Link(grid, EventLog())
                sites = {alias: node for alias, (node, _) in survey(link, tiny, deadline_s=60).items()}
                assert len(sites) == 2
                model = build(tiny, seed_for(tiny.seed, 0, "weights"))
                sealed = protocol.seal(protocol.TrainRequest(protocol.Task(tiny, round=1), state_of(model)))
                answers = list(ask(link, sealed, sites, 120))
                assert {answer.site for answer in answers} == set(sites)
                assert all(isinstance(answer.reply, protocol.TrainReply) for answer in answers), answers
        finally:
            assert [agent.end() for agent in agents] == [0, 0]


def test_what_answer_raises_leaves_as_a_code(fresh: Authority) -> None:
    with fresh.fleet() as fleet, Agent(fresh, "north", fleet.port, "raise") as agent:
        wait_for(all_online(fleet))
        with fleet.grid() as grid:
            (reply,) = asked(grid, grid.get_node_ids())
            assert reply.has_error() and not reply.error.reason
        assert any("a patient's name" in line for line in agent.lines())
        assert agent.end() == 0


# --- restarts and silence -------------------------------------------------------------------------------------------


def test_a_restarted_coordinator_is_found_again(fresh: Authority) -> None:
    with fresh.fleet() as fleet, Agent(fresh, "north", fleet.port) as agent:
        port = fleet.port
        wait_for(all_online(fleet))
        with fleet.grid() as grid:
            assert good(asked(grid, grid.get_node_ids())) == 1
        with pytest.raises(FleetError, match="listen"):
            fresh.fleet(port=port).start()
        fleet.stop()
        time.sleep(1.5)
        with fresh.fleet(port=port) as again:
            wait_for(all_online(again), 20)
            with again.grid() as grid:
                assert good(asked(grid, grid.get_node_ids())) == 1
            assert agent.end() == 0
            assert not again.nodes()["north"].online, "a site that was ended says so"
    assert sum("unreachable" in line for line in agent.lines()) == 1, "said once, not at every attempt"


def test_a_killed_agents_message_comes_again(fresh: Authority) -> None:
    with fresh.fleet() as fleet:
        with Agent(fresh, "north", fleet.port, "echo:60") as first:
            wait_for(all_online(fleet))
            grids = fleet.grid()
            grid = grids.__enter__()
            ids = grid.push_messages([question(n) for n in grid.get_node_ids()])
            wait_for(lambda: first.answers() == 1)
            first.process.kill()
            first.process.wait()
        assert grid.pull_messages(ids) == []
        with Agent(fresh, "north", fleet.port) as second:
            (reply,) = replied(grid, ids)
            assert reply.has_content()
            assert second.end() == 0
        grids.__exit__(None, None, None)


@pytest.mark.slow
def test_a_reply_that_cannot_be_pushed_is_not_made_twice(fresh: Authority) -> None:
    """The way to the coordinator breaks while the site works, and again in the middle of the upload."""
    with (
        fresh.fleet() as fleet,
        Relay(fleet.port) as relay,
        Agent(fresh, "north", relay.port, "shift:1", silence_s=2.0, connect_s=2.0) as agent,
    ):
        wait_for(all_online(fleet))
        with fleet.grid() as grid:
            weights = np.random.default_rng(1).random(3_000_000, dtype=np.float32)
            content = RecordDict({"w": ArrayRecord({"w": Array(weights)})})
            (node,) = grid.get_node_ids()

            def answer_through(trouble: Callable[[], None]) -> None:
                ids = grid.push_messages([Message(content, node, "train.fit")])
                before = agent.answers()
                wait_for(lambda: agent.answers() > before)
                trouble()
                (reply,) = replied(grid, ids)
                assert np.array_equal(reply.content["w"]["w"].numpy(), weights + np.float32(1))  # type: ignore[index]

            def cut_for_a_while() -> None:
                relay.cut()
                time.sleep(2.5)
                relay.heal()

            def hang_for_a_while() -> None:  # nothing refused, nothing answered: only the site's patience ends it
                relay.hang()
                time.sleep(3.5)
                relay.cut()
                relay.heal()

            answer_through(cut_for_a_while)
            answer_through(lambda: relay.cut_after(6_000_000))
            assert relay.left < 0
            answer_through(hang_for_a_while)
        assert agent.answers() == 3
        assert agent.end() == 0


def test_the_agent_ends_at_once_where_nobody_listens(fresh: Authority) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Agent(fresh, "north", taken.getsockname()[1], retry_s=[30.0, 60.0]) as agent:
            wait_for(lambda: any("unreachable" in line for line in agent.lines()))
            started = time.monotonic()
            assert agent.end() == 0
            assert time.monotonic() - started < 15  # and not the 30 s until its next attempt
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        Agent(fresh, "north", deaf.getsockname()[1], connect_s=2.0) as agent,
    ):
        deaf.settimeout(60)
        held, _ = deaf.accept()
        with held:
            assert agent.end() == 0


def test_a_site_that_is_not_on_the_roster_waits_for_its_admission(authority: Authority) -> None:
    with authority.fleet("south") as fleet:
        connection = Connection.open(f"127.0.0.1:{fleet.port}", authority.ca, authority.path("north.key"), pace=BRISK)
        with attended(connection):
            wait_for(lambda: connection.state == "refused")
            fleet.register("north", authority.roster("north")["north"])
            wait_for(lambda: connection.state == "online")
            fleet.revoke("north")
            wait_for(lambda: connection.state == "refused")


def test_a_site_shows_its_certificate_where_asked(authority: Authority) -> None:
    member = (authority.path("member.crt"), authority.path("member.key"))
    with authority.fleet(client_ca=authority.ca) as fleet:
        fleet.renew_certificate()
        for certificate, state in ((None, "unreachable"), (member, "online")):
            connection = Connection.open(
                f"127.0.0.1:{fleet.port}",
                authority.ca,
                authority.path("north.key"),
                certificate=certificate,
                pace=BRISK,
            )
            with attended(connection):
                wait_for(lambda to=connection, what=state: to.state == what)


@pytest.mark.parametrize("off", [-7200, 7200])
def test_a_wrong_clock_at_a_site_does_no_harm(fresh: Authority, monkeypatch: pytest.MonkeyPatch, off: int) -> None:
    from client import fleet as module

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def time() -> float:
            return time.time() + off

    monkeypatch.setattr(module, "time", Clock)
    with fresh.fleet() as fleet:
        connection = Connection.open(f"127.0.0.1:{fleet.port}", fresh.ca, fresh.path("north.key"), pace=BRISK)
        with attended(connection):
            wait_for(all_online(fleet))


def test_a_message_larger_than_a_site_takes_is_refused(fresh: Authority) -> None:
    with fresh.fleet() as fleet, Agent(fresh, "north", fleet.port, message_bytes=100_000) as agent:
        wait_for(all_online(fleet))
        with fleet.grid() as grid:
            content = RecordDict({"w": ArrayRecord({"w": Array(np.zeros(1_000_000, np.float32))})})
            (node,) = grid.get_node_ids()
            (reply,) = grid.send_and_receive([Message(content, node, "train.fit")], timeout=30)
            assert reply.has_error()
            assert agent.answers() == 0
            assert good(asked(grid, [node])) == 1
        assert agent.end() == 0


@contextlib.contextmanager
def attended(connection: Connection) -> Iterator[None]:
    """A site's agent in a thread of this process, ended at the end."""
    stop = threading.Event()
    agent = threading.Thread(target=serve, args=(connection, lambda m: m), kwargs={"stop": stop})
    agent.start()
    try:
        yield
    finally:
        stop.set()
        agent.join(20)
        assert not agent.is_alive()


def test_the_way_may_lead_through_a_proxy(fresh: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []

    def proxy(near: socket.socket) -> None:
        line = near.recv(4096).split(b"\r\n")[0].decode()
        asked_for.append(line)
        host, _, port = line.split()[1].rpartition(":")
        far = socket.create_connection((host, int(port)))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for a, b in ((near, far), (far, near)):
            threading.Thread(target=pump, args=(a, b), daemon=True).start()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                proxy(listener.accept()[0])

    with fresh.fleet() as fleet, socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        connection = Connection.open(f"127.0.0.1:{fleet.port}", fresh.ca, fresh.path("north.key"), pace=BRISK)
        with attended(connection):
            wait_for(all_online(fleet))
    assert set(asked_for) == {f"CONNECT 127.0.0.1:{fleet.port} HTTP/1.1"}


def test_a_false_coordinator_gets_nothing(authority: Authority, fresh: Authority) -> None:
    """Another authority's; and one of ours that sends the site elsewhere, or an answer without end."""
    with authority.fleet("north") as fleet:
        trusting_another = Connection.open(f"127.0.0.1:{fleet.port}", fresh.ca, authority.path("north.key"), pace=BRISK)
        with attended(trusting_another):
            wait_for(lambda: trusting_another.state == "unreachable")
        assert not fleet.requests and not fleet.refusals, "not even a signature is shown"
    served: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            served.append(self.path)
            if self.path.endswith("activate-node"):
                self.send_response(307)
                self.send_header("Location", f"https://127.0.0.1:{self.server.server_port}/elsewhere")  # type: ignore[attr-defined]
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 20))

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fresh.path("server.crt"), fresh.path("server.key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"127.0.0.1:{server.server_port}"
        connection = Connection.open(address, fresh.ca, fresh.path("north.key"), pace=BRISK)
        with attended(connection):
            wait_for(lambda: served.count("/v1/fleet/activate-node") > 1)
        assert set(served) == {"/v1/fleet/activate-node"}
        endless = Connection.open(address, fresh.ca, fresh.path("north.key"), pace=BRISK)
        with peak_growth() as grown, pytest.raises(Exception, match="without end"):
            endless.call("pull-messages", flower.PullMessagesRequest(), flower.PullMessagesResponse)
        endless.close()
        assert grown[0] < 256 << 20
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("damage", ["missing", "no key", "another curve", "locked"])
def test_unusable_keys_are_named_with_their_remedy(authority: Authority, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "identity.key"
    if damage == "no key":
        path.write_bytes(b"nothing")
    elif damage != "missing":
        curve = ec.SECP256R1() if damage == "another curve" else ec.SECP384R1()
        lock = BestAvailableEncryption(b"x") if damage == "locked" else NoEncryption()
        made = ec.generate_private_key(curve)
        path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    with pytest.raises(IdentityError, match=r"identity\.key.*join-request"):
        Connection.open("127.0.0.1:1", authority.ca, path)
    with pytest.raises(IdentityError, match="kit"):
        Connection.open("127.0.0.1:1", tmp_path / "none.crt", authority.path("north.key"))


@pytest.mark.soak
def test_sleep_of_either_side_loses_nothing(fresh: Authority) -> None:
    """The agent works past two heart-beats, then is stopped past two more; then the coordinator slept."""
    with fresh.fleet() as fleet, Agent(fresh, "north", fleet.port, "echo:26") as agent:
        wait_for(all_online(fleet))
        with fleet.grid() as grid:
            (node,) = grid.get_node_ids()
            ids = grid.push_messages([question(node, ttl=600)])
            ends = time.monotonic() + 24
            while time.monotonic() < ends:
                assert grid.pull_messages(ids) == [] and fleet.nodes()["north"].online
                time.sleep(0.2)
            assert replied(grid, ids)[0].has_content()
            agent.signal(signal.SIGSTOP)
            wait_for(lambda: not fleet.nodes()["north"].online, 40)
            agent.signal(signal.SIGCONT)
            wait_for(all_online(fleet), 20)
            fleet._link._beat -= 3600  # as if this machine had slept: nobody is missing for that
            for facts in fleet._link.state.nodes.values():
                facts.online_until -= 3000
            ids = grid.push_messages([question(node, ttl=600)])
            assert replied(grid, ids)[0].has_content()
        assert agent.answers() == 2
        assert agent.end() == 0


@pytest.mark.soak
def test_memory_is_flat_over_many_rounds(pair: tuple[Fleet, list[Agent]]) -> None:
    fleet, agents = pair
    with fleet.grid() as grid:
        nodes = grid.get_node_ids()

        def rounds(count: int) -> list[int]:
            for _ in range(count):
                assert good(asked(grid, nodes)) == 2
            return [resident_bytes(pid) for pid in (os.getpid(), *(agent.process.pid for agent in agents))]

        before = rounds(50)
        started = time.monotonic()
        after = rounds(300)
        seconds = time.monotonic() - started
        state = fleet._link.state
        left = (
            len(state.object_store),
            len(state.message_ins_store),
            len(state.message_res_store),
            len(state._object_push_sessions),
        )
    grown = [(b - a) / 1024 for a, b in zip(before, after, strict=True)]
    print(f"KiB grown over 300 rounds, coordinator and sites: {grown}; {seconds / 300:.3f} s a round; left {left}")
    assert left == (0, 0, 0, 0)
    assert max(grown) < 4096


class Relay:
    """TCP between a site and the coordinator that can be cut, or go silent."""

    def __init__(self, to: int) -> None:
        self._to, self._open, self._silent = to, threading.Event(), threading.Event()
        self._open.set()
        self.left = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        self._open.clear()
        for one in self._sockets:
            hang_up(one)
        self._sockets.clear()

    def cut_after(self, sent: int) -> None:
        """Cut every connection once, in the middle of what a site sends."""
        self.left = sent

    def hang(self) -> None:
        self._silent.set()

    def heal(self) -> None:
        self._silent.clear()
        self._open.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._open.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._sockets += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b, a is near), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket, from_site: bool) -> None:
        try:
            while data := a.recv(65536):
                while self._silent.is_set():
                    time.sleep(0.01)
                if from_site and self.left > 0:
                    self.left -= len(data)
                    if self.left <= 0:
                        self.left = -1
                        for one in self._sockets:
                            hang_up(one)
                b.sendall(data)
        except OSError:
            pass
        hang_up(a)
        hang_up(b)


def pump(a: socket.socket, b: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := a.recv(65536):
            b.sendall(data)
    hang_up(a)
    hang_up(b)


def hang_up(one: socket.socket) -> None:
    """Close, whoever may have closed it before."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
