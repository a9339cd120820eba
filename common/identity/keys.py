"""A party's key and its fingerprint.

ECDSA on P-384 with SHA-384 (FIPS 186-5). A private key is kept as an OpenSSH file, which Flower's SuperNode reads; a
public key is written as one OpenSSH line. Fingerprints are the first 100 bits of the SHA-256 of the public key (DER,
SubjectPublicKeyInfo) in Crockford's base 32, an alphabet without I, L, O and U that is made for reading out: to find
a second key with a given fingerprint takes 2¹⁰⁰ attempts.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import IdentityError
from common.files import write_atomically
from common.identity.storage import read_file

_KIND = "ecdsa-sha2-nistp384"
_POINT = 97  # bytes, uncompressed
_MOST_LINE = 256
_MOST_FILE = 4096
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUPS, _GROUP = 5, 4
_BITS = 5 * _GROUPS * _GROUP
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1"})
_ECDSA = ec.ECDSA(hashes.SHA384())


@dataclass(frozen=True)
class PublicKey:
    """A party, as others know it. Two are equal when their keys are."""

    openssh: str
    """``ecdsa-sha2-nistp384 AAAA…``, without a comment: one spelling for every key."""
    _key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: object) -> PublicKey:
        """From its OpenSSH line. Raises :class:`IdentityError`: other curve, point off the curve, other spelling."""
        if isinstance(text, str) and len(text) <= _MOST_LINE and text.startswith(f"{_KIND} "):
            try:
                # Only the point is taken from the line: the rest has to be as it is written here (RFC 5656, 3.1).
                point = base64.b64decode(text.removeprefix(f"{_KIND} "), validate=True)[-_POINT:]
                found = cls.of(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point))
            except ValueError:  # no base 64, no point of the curve
                found = None
            if found is not None and found.openssh == text:
                return found
        raise IdentityError(f"a public key is not one OpenSSH line of kind {_KIND}; ask its owner for a new file")

    @classmethod
    def of(cls, key: ec.EllipticCurvePublicKey) -> PublicKey:
        """Of a key that a library holds. Raises :class:`IdentityError` for another curve than P-384."""
        if not isinstance(key.curve, ec.SECP384R1):
            raise IdentityError(f"a key is on the curve {key.curve.name}; only P-384 is used, make a new one")
        line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return cls(line.decode("ascii"), key)

    @property
    def pem(self) -> bytes:
        """As Flower registers nodes: PEM, SubjectPublicKeyInfo."""
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def raw(self) -> ec.EllipticCurvePublicKey:
        """The library's object, for certificates and connections."""
        return self._key

    @property
    def fingerprint(self) -> str:
        """For the phone, e.g. ``7G3K-90QX-4MTR-AB2E-ZW0C``."""
        der = self._key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        bits = int.from_bytes(hashlib.sha256(der).digest(), "big") >> (256 - _BITS)
        letters = "".join(_CROCKFORD[bits >> shift & 31] for shift in range(_BITS - 5, -1, -5))
        return "-".join(letters[start : start + _GROUP] for start in range(0, len(letters), _GROUP))

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether the private half signed ``data``; ``signature`` is DER."""
        try:
            self._key.verify(signature, data, _ECDSA)
        except InvalidSignature:
            return False
        return True


class SiteKey:
    """A party's private key: a site's, or the coordinator's. It never leaves the machine where it was made."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey.of(key.public_key())

    @classmethod
    def generate(cls) -> SiteKey:
        """A new one, from the system's entropy."""
        return cls(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def load(cls, path: Path) -> SiteKey:
        """From an OpenSSH or PKCS #8 file that nobody else may read. Raises :class:`IdentityError`."""
        content = read_file(path, "private key", most=_MOST_FILE, private=True)
        openssh = content.startswith(b"-----BEGIN OPENSSH ")
        load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
        try:
            key = load(content, password=None)
        except (ValueError, TypeError, RuntimeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError(f"{path} holds no usable private key; restore it from a backup, or make a new identity")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write it to ``path`` as OpenSSH, atomically, for its owner alone."""
        form = serialization.PrivateFormat.OpenSSH
        kept = self._key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        write_atomically(path, kept, mode=0o600)

    @property
    def pem(self) -> bytes:
        """PKCS #8: what TLS libraries read."""
        form = serialization.PrivateFormat.PKCS8
        return self._key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    @property
    def raw(self) -> ec.EllipticCurvePrivateKey:
        """The library's object, for certificates and connections."""
        return self._key

    def sign(self, data: bytes) -> bytes:
        """A DER signature."""
        return self._key.sign(data, _ECDSA)


def fingerprint(key: PublicKey) -> str:
    """What two people compare by phone: five groups of four letters and digits, 100 bits."""
    return key.fingerprint


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints, as typed, are the same whole one.

    Case, dashes and blanks do not count, nor does a letter O for a zero, or I or L for a one.
    """
    read = _read(one)
    return read is not None and read == _read(other)


def _read(typed: str) -> str | None:
    if not typed.isascii():
        return None
    letters = "".join(typed.split()).replace("-", "").upper().translate(_READ_AS)
    return letters if len(letters) == _GROUPS * _GROUP and set(letters) <= set(_CROCKFORD) else None
