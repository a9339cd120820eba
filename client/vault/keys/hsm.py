"""``pkcs11:``: an AES key that never leaves a hardware security module (RFC 7512, PKCS #11 3.0).

The intermediate key is made here and encrypted inside the module: with AES-GCM where token and key allow
it, else with AES key wrap (RFC 3394). What was used is the token's first byte; the envelope authenticates it.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes

from client.vault.keys.base import KEY_BYTES
from client.vault.keys.secret_files import read_secret, secret_path
from client.vault.keys.service import ServiceKey
from common.errors import KeyUnavailable

if TYPE_CHECKING:
    import pkcs11

_EXAMPLE = "pkcs11:token=TOKEN;object=KEY?module-path=/PATH/TO/MODULE.so&pin-source=file:PIN_FILE"
_PATH_ATTRIBUTES = frozenset({"token", "serial", "object", "id", "type"})
_QUERY_ATTRIBUTES = frozenset({"module-path", "pin-source"})
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_GCM, _KEY_WRAP = b"\x01", b"\x02"
_NONCE_BYTES, _TAG_BITS = 12, 128

_one_at_a_time = threading.Lock()
"""Being logged in is a state of the process, not of a session (PKCS #11, section 5.6)."""

_refused: set[bytes] = set()
"""PINs that a token refused, as keyed digests: a resident process must not give one again and again."""
_digest_key = os.urandom(32)

_REMEDIES = {
    "NoSuchToken": "has no such token: see that it is plugged in and that its label and serial are right",
    "TokenNotPresent": "has no token in its slot; plug it in",
    "DeviceRemoved": "lost its token meanwhile; plug it in again",
    "MultipleTokensReturned": "has several such tokens; add serial= to the key's URI",
    "NoSuchKey": "has no such AES key for this user; make it, or correct object= or id= in its URI",
    "MultipleObjectsReturned": "has several such keys; add id= to the key's URI",
    "PinIncorrect": "refused the PIN, which is not tried again, as modules lock after a few; correct it",
    "PinInvalid": "refused the PIN, which is not tried again, as modules lock after a few; correct it",
    "PinLenRange": "refused the PIN, which is not tried again, as modules lock after a few; correct it",
    "PinLocked": "has locked its PIN after too many wrong ones; have its security officer set a new one",
    "PinExpired": "asks for a new PIN; have it changed",
    "UserPinNotInitialized": "has no user PIN yet; have its security officer set one",
}
_WRONG_KEY = frozenset(
    # What modules say to a ciphertext that does not authenticate; the last two are SoftHSM's and others' way.
    {
        "EncryptedDataInvalid",
        "EncryptedDataLenRange",
        "WrappedKeyInvalid",
        "WrappedKeyLenRange",
        "DataInvalid",
        "ArgumentsBad",
        "GeneralError",
        "FunctionFailed",
    }
)


@dataclass(frozen=True)
class HsmKey(ServiceKey):
    """An AES key in a PKCS #11 module. Log-in, session and the module itself end with every use.

    Not for a process that uses the same module for something else: ending it ends that too.
    """

    uri: str
    module: Path
    token: str | None
    """Label of the token; at least one of label and serial number finds it."""
    serial: bytes | None
    label: str | None
    """Label of the key; at least one of label and id finds it."""
    id: bytes | None
    ask_pin: Callable[[], str] = field(repr=False)

    @property
    def place(self) -> str:
        return f"the key in the HSM behind {self.module.name}"

    def issue(self, context: bytes) -> tuple[bytes, bytes]:
        key = os.urandom(KEY_BYTES)
        with self._session() as (session, held):
            return key, _encrypt(session, held, key)

    def redeem(self, token: bytes, context: bytes) -> bytes:
        with self._session() as (session, held):
            try:
                return _decrypt(session, held, token)
            except RuntimeError as error:
                if type(error).__name__ in _WRONG_KEY:
                    raise self.does_not_open() from None
                raise

    @contextlib.contextmanager
    def _session(self) -> Iterator[tuple[pkcs11.Session, Any]]:
        try:
            import pkcs11
        except ImportError:
            raise KeyUnavailable("pkcs11: keys need python-pkcs11; run: pip install 'fedward[pkcs11]'") from None
        if not self.module.is_file():
            raise KeyUnavailable(f"there is no PKCS #11 module {self.module}; correct module-path in the key's URI")
        with _one_at_a_time:
            try:
                library = pkcs11.lib(str(self.module))
                try:
                    token = library.get_token(token_label=self.token, token_serial=self.serial)
                    refuse_last_try(token.flags)
                    pin = _checked(self.ask_pin())
                    known = hmac.digest(_digest_key, f"{self.uri}\0{pin}".encode(), "sha256")
                    if known in _refused:
                        raise KeyUnavailable(
                            f"the HSM behind {self.module.name} refused this PIN before; correct it, "
                            "or start again if it is right now"
                        )
                    try:
                        opened = token.open(user_pin=pin)
                    except pkcs11.PinIncorrect:
                        _refused.add(known)
                        raise
                    with opened as session:
                        yield session, self._key(session)
                finally:
                    # Also so that the next use sees tokens plugged in since, and a forked child starts anew.
                    library.finalize()
            except pkcs11.PKCS11Error as error:
                # Its text is not shown: a vendor's may quote anything.
                kind = type(error).__name__
                remedy = _REMEDIES.get(kind) or f"failed ({kind}); see its log"
                raise KeyUnavailable(f"the HSM behind {self.module.name} {remedy}") from None

    def _key(self, session: pkcs11.Session) -> Any:
        from pkcs11 import Attribute, KeyType, MultipleObjectsReturned, NoSuchKey, ObjectClass

        wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
        if self.label is not None:
            wanted[Attribute.LABEL] = self.label
        if self.id is not None:
            wanted[Attribute.ID] = self.id
        # Not session.get_key: of several keys it leaves the search open, which then fails when it is collected.
        found = list(session.get_objects(wanted))
        if len(found) != 1:
            raise MultipleObjectsReturned if found else NoSuchKey
        return found[0]


def refuse_last_try(flags: int) -> None:
    """Never give a PIN that would lock the token if it is wrong: a person has to, who knows that it is right."""
    from pkcs11 import TokenFlag

    if flags & TokenFlag.USER_PIN_LOCKED:
        raise KeyUnavailable("the HSM has locked its PIN; have its security officer set a new one")
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise KeyUnavailable(
            "one more wrong PIN would lock the HSM, so none is tried; log in once with the module's own tool"
        )


def _encrypt(session: pkcs11.Session, held: Any, key: bytes) -> bytes:
    from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass

    mechanisms = session.token.slot.get_mechanisms()
    if Mechanism.AES_GCM in mechanisms and held[Attribute.ENCRYPT] and held[Attribute.DECRYPT]:
        nonce = os.urandom(_NONCE_BYTES)
        parameters = GCMParams(nonce, None, _TAG_BITS)
        return _GCM + nonce + bytes(held.encrypt(key, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))
    if Mechanism.AES_KEY_WRAP in mechanisms and held[Attribute.WRAP] and held[Attribute.UNWRAP]:
        passing = session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.VALUE: key,
                **_of_this_session(),
            }
        )
        return _KEY_WRAP + bytes(held.wrap_key(passing, mechanism=Mechanism.AES_KEY_WRAP))
    raise KeyUnavailable(
        "the HSM's key neither encrypts (AES-GCM) nor wraps (AES key wrap); make one that is allowed to"
    )


def _decrypt(session: pkcs11.Session, held: Any, token: bytes) -> bytes:
    from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass

    used, rest = token[:1], token[1:]
    if used == _GCM and held[Attribute.DECRYPT] and len(rest) == _NONCE_BYTES + KEY_BYTES + _TAG_BITS // 8:
        parameters = GCMParams(rest[:_NONCE_BYTES], None, _TAG_BITS)
        sealed = rest[_NONCE_BYTES:]
        return bytes(held.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))
    if used == _KEY_WRAP and held[Attribute.UNWRAP] and len(rest) == KEY_BYTES + 8:
        passing = held.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            rest,
            mechanism=Mechanism.AES_KEY_WRAP,
            store=False,
            template=_of_this_session(),
        )
        return bytes(passing[Attribute.VALUE])
    return b""  # not of this key; the envelope refuses it


def _of_this_session() -> dict[pkcs11.Attribute, bool]:
    """What the intermediate key is inside the module: readable, and gone with the session."""
    from pkcs11 import Attribute

    return {Attribute.TOKEN: False, Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False}


def hsm_key(uri: str, base: Path, ask: Callable[[], str] | None) -> HsmKey:
    """The provider that ``uri`` names. Nothing is loaded or asked yet.

    The PIN comes from the file in ``pin-source``, or else ``ask`` asks the operator for it.
    """
    path, _, query = uri.removeprefix("pkcs11:").partition("?")
    found = _attributes(path, ";", _PATH_ATTRIBUTES) | _attributes(query, "&", _QUERY_ATTRIBUTES)
    module = Path(unquote(found.get("module-path", "")))
    if not module.is_absolute() or not {"token", "serial"} & set(found) or not {"object", "id"} & set(found):
        raise KeyUnavailable(f"a pkcs11: key's URI is {_EXAMPLE}; correct it")
    if found.get("type", "secret-key") != "secret-key":
        raise KeyUnavailable("a pkcs11: key is an AES key, type=secret-key; correct its URI")
    if "pin-source" in found:
        source = unquote(found["pin-source"])
        if source.startswith("|"):
            raise KeyUnavailable("pin-source names a file, not a command; correct the key's URI")
        ask = partial(_pin, secret_path(source.removeprefix("file:"), base))
    if ask is None:
        raise KeyUnavailable("the PIN of a pkcs11: key comes from pin-source=file:PATH; add it to the key's URI")
    return HsmKey(
        uri,
        module,
        token=unquote(found["token"]) if "token" in found else None,
        serial=unquote_to_bytes(found["serial"]) if "serial" in found else None,
        label=unquote(found["object"]) if "object" in found else None,
        id=unquote_to_bytes(found["id"]) if "id" in found else None,
        ask_pin=ask,
    )


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, str]:
    """The attributes of one component (RFC 7512, section 2.3), still percent-encoded; each at most once."""
    found: dict[str, str] = {}
    for attribute in filter(None, text.split(separator)):
        name, equals, value = attribute.partition("=")
        if name == "pin-value":
            raise KeyUnavailable("a pkcs11: key's URI never holds the PIN; put it into a file, named by pin-source")
        if not equals or not value or name not in known or name in found or _PERCENT.search(value):
            raise KeyUnavailable(
                f"a pkcs11: key's URI has the attributes {', '.join(sorted(_PATH_ATTRIBUTES))} and after ? "
                f"{', '.join(sorted(_QUERY_ATTRIBUTES))}, each once and none empty; correct it"
            )
        found[name] = value
    return found


def _pin(file: Path) -> str:
    content = read_secret(file, "PIN file", remedy="put the token's user PIN there", most=256)
    return content.rstrip(b"\r\n").decode(errors="surrogateescape")


def _checked(pin: str) -> str:
    """The PIN, if it is text at all: no try is wasted on an empty file."""
    try:
        pin.encode()
    except UnicodeError:  # its message would quote the PIN
        pin = ""
    if not pin:
        raise KeyUnavailable("the PIN is empty or not text; give the token's user PIN")
    return pin
