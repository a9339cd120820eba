"""``vault:``: the transit engine of HashiCorp Vault or OpenBao, over HTTPS.

Intermediate keys come from ``datakey/plaintext/NAME`` and go back through ``decrypt/NAME``. Not from
``encrypt/NAME``: that one makes a missing key, and a mistyped name would lock a vault with a key nobody
knows of. Sources: the transit and AppRole pages of both products' API documentation; Vault's command line
for the meaning of the variables.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from client.vault.keys.secret_files import is_word, read_word, secret_path
from client.vault.keys.service import LOOPBACK, ServiceKey
from common.errors import KeyUnavailable

_CONNECT_S, _READ_S, _WHOLE_S, _PAUSE_S = 5.0, 10.0, 30.0, 0.3
_LARGEST_ANSWER = 65_536
_EXAMPLE = "vault:https://HOST:8200/transit/keys/NAME"
_CIPHERTEXT = re.compile(r"vault:v[0-9]+:[A-Za-z0-9+/=]+")
_HOST = re.compile(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+")
_KEY_PATH = re.compile(r"(?:v1/)?((?:[A-Za-z0-9_.-]+/)+)keys/([A-Za-z0-9_.-]+)")


@dataclass(frozen=True)
class TransitKey(ServiceKey):
    """A key of a transit engine. Address, certificates and token are looked up at every use; none is kept."""

    uri: str
    address: str
    """``https://HOST:PORT``, or ``http:`` to this machine."""
    mount: str
    key: str
    base: Path
    """Where relative file names in variables start."""

    @property
    def place(self) -> str:
        return f"the key {self.key} of {self.address}"

    def issue(self, context: bytes) -> tuple[bytes, bytes]:
        data = self._ask(f"{self.mount}/datakey/plaintext/{self.key}", {"bits": 256})
        ciphertext = data.get("ciphertext")
        whole = isinstance(ciphertext, str) and _CIPHERTEXT.fullmatch(ciphertext) is not None
        return _decoded(data.get("plaintext")), str(ciphertext).encode() if whole else b""

    def redeem(self, token: bytes, context: bytes) -> bytes:
        try:
            ciphertext = token.decode("ascii")
        except UnicodeDecodeError:
            raise self.does_not_open() from None
        return _decoded(self._ask(f"{self.mount}/decrypt/{self.key}", {"ciphertext": ciphertext}).get("plaintext"))

    def _ask(self, path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        with _client(self.address) as client:
            headers = {"X-Vault-Token": self._token(client)}
            status, answer = self._post(client, path, body, headers)
        data = answer.get("data")
        if status == 200 and isinstance(data, dict):
            return data
        raise self._refusal(status, answer)

    def _token(self, client: httpx.Client) -> str:
        """``VAULT_TOKEN_FILE``, else AppRole by two files, else ``VAULT_TOKEN``."""
        file = os.environ.get("VAULT_TOKEN_FILE")
        if file:
            return read_word(secret_path(file, self.base), "Vault token file", remedy="put a token there")
        role, secret = (os.environ.get(name) for name in ("VAULT_ROLE_ID_FILE", "VAULT_SECRET_ID_FILE"))
        if role and secret:
            ids = {
                "role_id": read_word(secret_path(role, self.base), "AppRole role id file", remedy="put it there"),
                "secret_id": read_word(secret_path(secret, self.base), "AppRole secret id file", remedy="put it there"),
            }
            status, answer = self._post(client, "auth/approle/login", ids, {})
            granted = answer.get("auth")
            token = granted.get("client_token") if status == 200 and isinstance(granted, dict) else None
            if not isinstance(token, str) or not is_word(token.encode(errors="replace")):
                if status in (400, 403, 404):
                    raise KeyUnavailable(
                        f"{self.address} refused the log-in by AppRole ({status}); issue a new secret id and write it "
                        "to the file in VAULT_SECRET_ID_FILE, or have auth/approle enabled"
                    )
                raise self._refusal(status, answer)
            return token
        if role or secret:
            raise KeyUnavailable("AppRole needs both VAULT_ROLE_ID_FILE and VAULT_SECRET_ID_FILE; set the other one")
        token = os.environ.get("VAULT_TOKEN", "").strip()
        if not token:
            raise KeyUnavailable(
                f"no token for {self.address}: set VAULT_TOKEN_FILE, or VAULT_ROLE_ID_FILE and VAULT_SECRET_ID_FILE"
            )
        if not is_word(os.fsencode(token)):
            raise KeyUnavailable("VAULT_TOKEN is not one word of printable characters; set it again")
        return token

    def _post(
        self, client: httpx.Client, path: str, body: Mapping[str, object], headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, object]]:
        """Status and JSON of one answer; asked once more where the connection failed, never after an answer."""
        sent = {"X-Vault-Request": "true", "Accept-Encoding": "identity", **headers}
        if os.environ.get("VAULT_NAMESPACE"):
            sent["X-Vault-Namespace"] = os.environ["VAULT_NAMESPACE"]
        for attempt in (1, 2):
            try:
                with client.stream("POST", f"/v1/{path}", json=body, headers=sent) as response:
                    return response.status_code, self._read(response)
            except (httpx.TransportError, UnicodeError) as error:  # UnicodeError: a host that DNS cannot name
                broken = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
                if attempt == 2 or not broken or _tls_error(error) is not None:
                    raise self._unreachable(error) from None
                time.sleep(_PAUSE_S)
        raise AssertionError("unreachable")

    def _read(self, response: httpx.Response) -> Mapping[str, object]:
        if 300 <= response.status_code < 400:
            raise KeyUnavailable(
                f"{self.address} answers with a redirection, which is not followed; name the active node's own address"
            )
        content = b""
        until = time.monotonic() + _WHOLE_S
        for piece in response.iter_raw():
            content += piece
            if len(content) > _LARGEST_ANSWER or time.monotonic() > until:
                break
        try:
            answer = json.loads(content) if content else {}
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise KeyUnavailable(
                f"{self.address} does not answer as Vault or OpenBao do (status {response.status_code}); "
                "correct the address in the key's URI"
            )
        return answer

    def _unreachable(self, error: Exception) -> KeyUnavailable:
        tls = _tls_error(error)
        if isinstance(tls, ssl.SSLCertVerificationError):
            # verify_message is OpenSSL's own text, e.g. "certificate has expired"
            return KeyUnavailable(
                f"the certificate of {self.address} is not accepted: {tls.verify_message.rstrip('.')}; have it "
                "renewed, or name the file of the authority that signed it in VAULT_CACERT"
            )
        if tls is not None:
            return KeyUnavailable(f"{self.address} does not speak TLS as it should; correct the address or its port")
        if isinstance(error, httpx.TimeoutException):
            return KeyUnavailable(f"{self.address} does not answer in time; see whether it runs and can be reached")
        return KeyUnavailable(f"cannot reach {self.address}; see whether it runs and whether a firewall is between")

    def _refusal(self, status: int, answer: Mapping[str, object]) -> KeyUnavailable:
        """What a status other than success means. The server's words choose the remedy and are not repeated."""
        words = str(answer.get("errors", "")).lower()
        if "encryption key not found" in words:
            text = f"{self.address} has no key {self.key}; make it (bao write -f {self.mount}/keys/{self.key}), " + (
                "or if it was deleted, restore it from the service's backup"
            )
        elif "too old" in words or "too new" in words:
            text = (
                f"{self.place} no longer has the version that locked this vault; lower its min_decryption_version "
                "or restore the service's backup"
            )
        elif "message authentication failed" in words or "ciphertext" in words:
            return self.does_not_open()
        elif "key derivation" in words or "not supported for key type" in words:
            text = f"{self.place} is not of a type that encrypts; make one of type aes256-gcm96, not derived"
        elif status == 403:
            text = (
                f"{self.address} refuses the token (403): it has expired or its policy lacks update on "
                f"{self.mount}/datakey/plaintext/{self.key} and {self.mount}/decrypt/{self.key}; issue a new token"
            )
        elif status == 404:
            text = f"{self.address} has nothing at {self.mount}/; correct the path in the key's URI or VAULT_NAMESPACE"
        elif status == 503:
            text = f"{self.address} is sealed or under maintenance (503); have its operators unseal it"
        else:
            text = f"{self.place} cannot be used: the service answered {status}; see its log"
        return KeyUnavailable(text)


def transit_key(uri: str, base: Path) -> TransitKey:
    """The provider that ``uri`` (``vault:https://HOST:8200/transit/keys/NAME``) names.

    Without a host (``vault:transit/keys/NAME``) the address is ``VAULT_ADDR``'s. Nothing is sent yet.
    """
    rest = uri.removeprefix("vault:")
    wrong = KeyUnavailable(f"a vault: key's URI is {_EXAMPLE}; correct it")
    try:
        if "://" in rest:
            parts = urlsplit(rest)
            path = parts.path
        else:
            address = os.environ.get("VAULT_ADDR", "").rstrip("/")
            if not address:
                raise KeyUnavailable(f"VAULT_ADDR is not set; set it, or name the host in the key's URI: {_EXAMPLE}")
            parts = urlsplit(address)
            path = rest
            if parts.path:
                raise KeyUnavailable("VAULT_ADDR holds more than https://HOST:PORT; shorten it")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise KeyUnavailable(f"a vault: key's URI holds no user or password; leave them out: {_EXAMPLE}")
    found = _KEY_PATH.fullmatch(path.lstrip("/"))
    if (
        found is None
        or not host
        or not _HOST.fullmatch(host)
        or parts.query
        or parts.fragment
        or ".." in path.split("/")
    ):
        raise wrong
    if parts.scheme != "https" and not (parts.scheme == "http" and host in LOOPBACK):
        raise KeyUnavailable("a vault: key is asked for over https:// only (http:// on this machine); correct its URI")
    address = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}" + (f":{port}" if port else "")
    return TransitKey(uri, address, found[1].rstrip("/"), found[2], base)


def _client(address: str) -> httpx.Client:
    """A client that trusts the system's authorities, or those of ``VAULT_CACERT``; always verifies."""
    authority = os.environ.get("VAULT_CACERT") or None
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise KeyUnavailable(
            "VAULT_CACERT does not name a file of PEM certificates that can be read; correct it"
        ) from None
    limits = httpx.Timeout(_READ_S, connect=_CONNECT_S)
    # trust_env: a proxy from the environment must not see the token that goes to http://127.0.0.1.
    return httpx.Client(base_url=address, verify=context, timeout=limits, trust_env=False)


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The TLS error that ``error`` was raised from, if any."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""
