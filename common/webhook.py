"""Alerts sent to a URL of the operator's: JSON by POST, signed if wanted, tried again, and never waited for."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import queue
import ssl
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, field_validator

from common.errors import IdentityError
from common.identity import read_file

logger = logging.getLogger("fedward.alerts")

SIGNATURE = "X-Fedward-Signature-256"
"""Header: ``sha256=`` and the HMAC-SHA-256 (RFC 2104) of the body under the secret, in hexadecimal."""
MOST_QUEUED = 100
PAUSES_S = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Before the second attempt, the third …; after the last the alert is given up."""
TIMEOUT_S = 10.0
_LEAST_SECRET, _MOST_SECRET = 16, 4096
_MOST_CA = 1 << 20
_TRY_AGAIN = (408, 425, 429)


class WebhookConfig(BaseModel):
    """``webhook:`` in ``coordinator.yaml`` and ``site.yaml``. Paths are relative to that file's directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """``https://…``; ``http://`` to this machine only."""
    secret_file: str | None = None
    """16 bytes or more with which each alert is signed, in a file that only its owner may read."""
    ca_file: str | None = None
    """PEM; whom to trust in place of the public authorities."""

    @field_validator("url")
    @classmethod
    def _safe(cls, value: str) -> str:
        parts = urlsplit(value)
        host = parts.hostname or ""
        if parts.scheme not in ("https", "http") or not host or not value.isprintable() or " " in value:
            raise ValueError("a webhook is https://HOST/PATH")
        if parts.scheme == "http" and not _is_here(host):
            raise ValueError("a webhook on another machine needs https://")
        return value


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Webhook:
    """Sends in a thread of its own. Where the other end is slow or away, alerts queue, and the oldest are dropped."""

    def __init__(self, config: WebhookConfig, base: Path, *, pauses_s: Sequence[float] = PAUSES_S) -> None:
        """``base``: what the configuration's paths are relative to. Raises :class:`IdentityError`."""
        self._url, self._pauses_s = config.url, tuple(pauses_s)
        self._host = urlsplit(config.url).hostname  # a URL's path is often a secret: it is in no log
        self._secret = _secret(base / config.secret_file) if config.secret_file else None
        self._http = httpx.Client(
            verify=_trust(base / config.ca_file if config.ca_file else None),
            timeout=TIMEOUT_S,
            follow_redirects=False,
            trust_env=config.url.startswith("https:"),  # what may go in the clear to this machine goes to no proxy
        )
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(MOST_QUEUED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fedward-webhook", daemon=True)
        self._thread.start()

    def send(self, told: dict[str, Any]) -> None:
        """Queue one alert; returns at once."""
        while True:
            try:
                return self._queue.put_nowait(told)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()
                    self._queue.task_done()
                    logger.error("the webhook at %s does not keep up; its oldest alert is dropped", self._host)

    def close(self, *, wait_s: float = 5.0) -> None:
        """Let what is queued go, for ``wait_s`` seconds at most."""
        ends = time.monotonic() + wait_s
        while self._queue.unfinished_tasks and time.monotonic() < ends:
            time.sleep(0.05)
        self._stop.set()
        self._thread.join(1.0)
        self._http.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                told = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._deliver(json.dumps(told, ensure_ascii=False).encode())
            self._queue.task_done()

    def _deliver(self, body: bytes) -> None:
        head = {"content-type": "application/json", "user-agent": "fedward"}
        if self._secret is not None:
            head[SIGNATURE] = f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}"
        for pause_s in (*self._pauses_s, None):
            why, again = self._posted(body, head)
            if not why:
                return
            if pause_s is None or not again:
                logger.error("the webhook at %s did not take an alert: %s", self._host, why)
                return
            if self._stop.wait(pause_s):
                return

    def _posted(self, body: bytes, head: dict[str, str]) -> tuple[str, bool]:
        """Why it was not taken, empty where it was; and whether another attempt may help."""
        try:
            # Its body is not read: whatever it says, however slowly, is of no interest.
            with self._http.stream("POST", self._url, content=body, headers=head) as response:
                status = response.status_code
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            return type(error).__name__, True
        except RuntimeError:  # closed meanwhile
            return "closed", False
        if 200 <= status < 300:
            return "", False
        return f"status {status}", status >= 500 or status in _TRY_AGAIN


def _secret(path: Path) -> bytes:
    secret = read_file(path, "webhook's secret", most=_MOST_SECRET, private=True).strip()
    if len(secret) < _LEAST_SECRET:
        raise IdentityError(f"the webhook's secret {path.name} is short; put {_LEAST_SECRET} random bytes there")
    return secret


def _trust(ca: Path | None) -> ssl.SSLContext:
    if ca is None:
        return ssl.create_default_context()
    try:
        text = read_file(ca, "authority", most=_MOST_CA).decode("ascii")
        return ssl.create_default_context(cadata=text)
    except (ValueError, ssl.SSLError):
        raise IdentityError(f"the webhook's authority {ca.name} is no certificate in PEM") from None
