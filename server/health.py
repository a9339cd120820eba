"""Whether a coordinator works, for health checks: it runs, goes round, and sites' TLS connections succeed."""

from __future__ import annotations

import socket
import ssl

from common.errors import Unhealthy
from common.identity import Address
from server.desk import is_at_work, read_status
from server.provision import Coordinator

STALE_S = 30.0
"""``status.json`` is written every second."""
ANSWER_S = 5.0


def judge(coordinator: Coordinator, at: float) -> str:
    """How it is, in words; ``at``: the time now, in seconds. Raises :class:`Unhealthy`."""
    directory = coordinator.directory
    if not is_at_work(directory):
        raise Unhealthy("the coordinator is not running; start it with `fedward coordinator up`")
    told = read_status(directory)
    if told is None:
        raise Unhealthy("the coordinator has not begun yet, or cannot write status.json; look at its log and the disk")
    age = at - told["at"]
    if abs(age) > STALE_S:
        raise Unhealthy(f"the coordinator has said nothing for {age:.0f} s; look at its log and the disk")
    _greet(coordinator, told["port"])
    online = sum(site["online"] for site in told["sites"].values())
    return f"up, {online} of {len(told['sites'])} sites online"


def _greet(coordinator: Coordinator, port: int) -> None:
    """A TLS handshake, as a site makes it. Raises :class:`Unhealthy`."""
    listens = Address.parse(coordinator.config.listen).host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listens, listens)  # noqa: S104 -- compared, not bound
    context = ssl.create_default_context(cafile=coordinator.authority_path)
    name = Address.parse(coordinator.config.address).host
    try:
        with (
            socket.create_connection((host, port), timeout=ANSWER_S) as plain,
            context.wrap_socket(plain, server_hostname=name),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        raise Unhealthy(
            f"sites do not trust the server's certificate ({error.verify_message}); "
            "run `fedward coordinator renew`, then restart it"
        ) from None
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise Unhealthy(f"nothing answers on {host}, port {port} ({what}); restart it") from None
