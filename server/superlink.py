"""The coordinator's end of the network: Flower's fleet API over TLS, within an ordinary process.

The server runs in a thread with a loop of its own and touches no signal. It keeps nothing on disk:
a coordinator that is started again has an empty state, and its sites come back by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import FleetError, IdentityError, RunError
from server.fleet_grid import FleetGrid
from server.fleet_guard import Guard, Limits, Member
from server.flower_private import SuperLink

logger = logging.getLogger("fedward.fleet")

_READY_S, _STOP_S = 30.0, 10.0


@dataclass(frozen=True)
class NodeStatus:
    """A site as the coordinator sees it; ``last_seen`` in seconds of the wall clock, of its last signed request."""

    node_id: int
    online: bool
    last_seen: float | None


class Fleet:
    """Sites' way in. ``with Fleet(…) as fleet, fleet.grid() as grid: …``

    ``certificate`` and ``key`` are PEM files (the certificate with its chain); ``nodes`` maps aliases to
    P-384 public keys, PEM or OpenSSH. ``port`` 0 takes a free one: :attr:`port` says which. With
    ``client_ca`` (PEM file) a site must also show a certificate of that authority.

    Raises :class:`IdentityError` for unusable keys or certificates.
    """

    def __init__(
        self,
        nodes: Mapping[str, bytes],
        *,
        host: str,
        port: int,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._files = (certificate, key)
        self._tls = _context(certificate, key, client_ca)
        self._link = SuperLink()
        self._guard = Guard(self._link, limits or Limits())
        self._members: dict[str, Member] = {}
        self._changing = threading.Lock()
        self._running, self._posting = threading.Lock(), threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._host, self._port = host, port
        for alias, public in nodes.items():
            self.register(alias, public)

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return self._port

    @property
    def requests(self) -> Counter[str]:
        """Requests that passed, by the path's last part."""
        return Counter(self._guard.requests)

    @property
    def refusals(self) -> Counter[str]:
        """Requests refused, by reason."""
        return Counter(self._guard.refusals)

    # --- the server -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; returns when the first site could connect. Raises :class:`FleetError`."""
        listener = self._listen()
        protocol = _protocol(self._guard.limits)
        config = uvicorn.Config(
            self._guard,
            http=protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(self._guard.limits.idle_s),
            timeout_graceful_shutdown=round(_STOP_S / 2),
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._server = _Server(config, protocol, self._tls, self._link, self._guard.limits.handshake_s)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener), name="fedward-fleet", daemon=True
        )
        self._thread.start()
        if not self._server.ready.wait(_READY_S) or not self._server.started:
            self.stop()
            raise FleetError(f"the server on {self._host}:{self._port} did not start; see the log")

    def stop(self) -> None:
        """End every connection and free the port. Sites try again until somebody listens there."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(_STOP_S)
        self._server = self._thread = None

    def renew_certificate(self) -> None:
        """Read certificate and key again; connections from now on see the new one. Raises :class:`IdentityError`."""
        _load(self._tls, *self._files)

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # Named as TCP, or asyncio leaves Nagle's delay on: 40 ms an answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise FleetError(
                f"cannot listen on {self._host}:{self._port} ({error.strerror}); "
                "is a coordinator running already, or the address another machine's?"
            ) from None
        self._port = listener.getsockname()[1]
        return listener

    @staticmethod
    def _run(server: _Server, listener: socket.socket) -> None:
        try:
            asyncio.run(server.serve([listener]))
        except Exception:
            logger.exception("the fleet's server failed")
        finally:
            server.ready.set()
            listener.close()

    # --- the roster -------------------------------------------------------------------------------------------

    def register(self, alias: str, key: bytes) -> int:
        """Admit a site, now or in mid-run; a site's earlier key is revoked. Returns its node id.

        Raises :class:`IdentityError` for a key that is not P-384, another site's, or was revoked.
        """
        public, pem = _public(alias, key)
        with self._changing:
            before = self._members.get(alias)
            if before is not None and before.key == pem and not before.revoked:
                return before.node_id
            try:
                node_id = self._link.register(alias, pem)
            except ValueError:
                raise IdentityError(
                    f"{alias}'s key is in use at another site, or was revoked; let the site make a new one"
                ) from None
            if before is not None:
                self._expel(before)
            self._members[alias] = Member(alias, node_id, pem, public)
            self._guard.admit(self._members[alias])
            return node_id

    def revoke(self, alias: str) -> None:
        """Shut a site out at once, an upload in progress included. Raises :class:`IdentityError` for an unknown one."""
        with self._changing:
            member = self._members.pop(alias, None)
            if member is None:
                raise IdentityError(f"no site {alias!r} to revoke; see the roster for its alias")
            self._expel(member)

    def _expel(self, member: Member) -> None:
        self._guard.expel(member)
        self._link.revoke(member.node_id)

    def nodes(self) -> dict[str, NodeStatus]:
        """Every admitted site, by alias."""
        online = self._link.online()
        with self._changing:
            members = sorted(self._members.items())
        return {
            alias: NodeStatus(member.node_id, member.node_id in online, member.last_seen) for alias, member in members
        }

    # --- the run ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def grid(self) -> Iterator[FleetGrid]:
        """A run and its Grid. Raises :class:`RunError` while another is going on: sites work on one study at a time."""
        with self._begun(self._running) as grid:
            yield grid

    @contextlib.contextmanager
    def post(self) -> Iterator[FleetGrid]:
        """A Grid beside the run's, for messages that belong to none; one at a time, too."""
        with self._begun(self._posting) as grid:
            yield grid

    @contextlib.contextmanager
    def _begun(self, lock: threading.Lock) -> Iterator[FleetGrid]:
        if not lock.acquire(blocking=False):
            raise RunError("a run is going on already; stop it, or wait for its end")
        try:
            run = self._link.begin()
            completed = False
            try:
                yield FleetGrid(self._link, run)
                completed = True
            finally:
                self._link.end(run, completed=completed)
        finally:
            lock.release()


class _Server(uvicorn.Server):
    """Uvicorn on our socket, with our TLS, telling when it listens."""

    def __init__(
        self,
        config: uvicorn.Config,
        protocol: type[H11Protocol],
        tls: ssl.SSLContext,
        link: SuperLink,
        handshake_s: float,
    ) -> None:
        super().__init__(config)
        self._protocol = protocol
        self._tls, self._link, self._handshake_s = tls, link, handshake_s
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        def create() -> asyncio.Protocol:
            return self._protocol(config=self.config, server_state=self.server_state, app_state={})

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_quietly)
        self.servers = [
            # Uvicorn's own would wait a minute for a handshake that never comes.
            await loop.create_server(
                create, sock=sock, ssl=self._tls, ssl_handshake_timeout=self._handshake_s, ssl_shutdown_timeout=5.0
            )
            for sock in sockets or []
        ]
        self.started = True
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        self._link.heart()
        return await super().on_tick(counter)


def _quietly(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What strangers' broken connections leave: a line for whoever looks for it, never a traceback each."""
    logger.debug("%s: %r", context.get("message"), context.get("exception"))


def _protocol(limits: Limits) -> type[H11Protocol]:
    """HTTP/1.1 whose request heads must come within ``limits.head_s``; uvicorn would wait for ever."""

    class Protocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel()  # a request is being answered; its body has the gate's own limits
            elif self._late is None and self.conn.their_state is h11.IDLE:
                self._expect_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._cancel()

        def send_400_response(self, msg: str) -> None:
            try:
                super().send_400_response(msg)
            except h11.LocalProtocolError:  # an answer was on its way already
                self.transport.abort()

        def _expect_head(self) -> None:
            self._late = self.loop.call_later(limits.head_s, self.transport.abort)

        def _cancel(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Protocol


def _context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load(context, certificate, key)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise IdentityError(f"the sites' authority {client_ca.name} is not usable: {error.strerror}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        raise IdentityError(
            f"the server's certificate {certificate.name} or its key is not usable ({error.strerror or error}); "
            "renew it with: fedward coordinator renew"
        ) from None


def _public(alias: str, key: bytes) -> tuple[ec.EllipticCurvePublicKey, bytes]:
    load = load_ssh_public_key if key.startswith(b"ecdsa-") else load_pem_public_key
    try:
        public = load(key)
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
        raise IdentityError(f"{alias}'s key is no P-384 public key; let the site send its join request again")
    return public, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
