"""A coordinator's own certificate authority: one root, one server certificate, site certificates where asked for.

X.509 (RFC 5280), P-384 keys, ECDSA with SHA-384. Only who may *connect* is decided here; who is who, the roster says.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import IdentityError
from common.identity.keys import PublicKey, SiteKey

AUTHORITY_DAYS = 3652
SERVER_DAYS = 365
_BACKDATED = timedelta(hours=1)  # a site's clock may be a little slow
_LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Authority:
    """The root's key and certificate (PEM)."""

    key: SiteKey
    certificate: bytes

    @classmethod
    def make(cls, federation: str, at: datetime, key: SiteKey | None = None) -> Authority:
        """A new root for ten years; with the ``key`` of an old one, its renewal: what that signed stays good."""
        key = key or SiteKey.generate()
        name = _name(federation, "authority")
        built = (
            _builder(name, name, key.public, at, at + timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public.raw), critical=False)
            .sign(key.raw, hashes.SHA384())
        )
        return cls(key, built.public_bytes(serialization.Encoding.PEM))

    @property
    def whole(self) -> bool:
        """Whether the certificate is the key's."""
        held = parse_certificate(self.certificate).public_key()
        return isinstance(held, ec.EllipticCurvePublicKey) and PublicKey.of(held) == self.key.public

    def certify_server(self, key: PublicKey, hosts: Iterable[str], at: datetime) -> bytes:
        """A certificate (PEM) for one year, not beyond the root's end, for DNS names and IP addresses.

        ``localhost`` brings the loopback addresses along.
        """
        wanted = list(hosts)
        if "localhost" in wanted:
            wanted += _LOOPBACK
        return self._certify(key, "coordinator", at, ExtendedKeyUsageOID.SERVER_AUTH, list(dict.fromkeys(wanted)))

    def certify_site(self, key: PublicKey, alias: str, at: datetime) -> bytes:
        """A certificate (PEM) for one year with which a site shows itself to the server."""
        return self._certify(key, alias, at, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def _certify(
        self, key: PublicKey, name: str, at: datetime, purpose: x509.ObjectIdentifier, hosts: list[str]
    ) -> bytes:
        root = parse_certificate(self.certificate)
        if at >= root.not_valid_after_utc:
            raise IdentityError("the coordinator's authority has expired; run `fedward coordinator renew --authority`")
        federation = root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        end = min(at + timedelta(days=SERVER_DAYS), root.not_valid_after_utc)
        builder = (
            _builder(_name(str(federation), name), root.subject, key, at, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.raw), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public.raw), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(_general, hosts)), critical=False)
        return builder.sign(self.key.raw, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def parse_certificate(pem: bytes | str) -> x509.Certificate:
    """One certificate, and nothing else. Raises :class:`IdentityError`."""
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        (certificate,) = x509.load_pem_x509_certificates(data)
        certificate.extensions  # noqa: B018 -- parsed only when asked for
        certificate.public_key()
        if certificate.public_bytes(serialization.Encoding.PEM).strip() == data.strip():
            return certificate
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension):
        pass
    raise IdentityError("a certificate cannot be read; ask the coordinator for another file")


def days_left(certificate: bytes | str, at: datetime) -> int:
    """Whole days until a certificate (PEM) expires; negative when it has."""
    return (parse_certificate(certificate).not_valid_after_utc - at.astimezone(UTC)).days


def covers(certificate: bytes, hosts: Iterable[str]) -> bool:
    """Whether a server's certificate (PEM) is for all ``hosts``."""
    try:
        named = parse_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return set(map(_general, hosts)) <= set(named)


def check_authority(pem: str, at: datetime) -> x509.Certificate:
    """A root that may sign others, is its own issuer, and valid at ``at``. Raises :class:`IdentityError`."""
    root = parse_certificate(pem)
    try:
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = root.extensions.get_extension_for_class(x509.KeyUsage).value
        may_sign = constraints.ca and usage.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = False
    if not may_sign or not _issued_by(root, root):
        raise IdentityError("the coordinator's certificate is no authority's; ask the coordinator for another kit")
    _check_dates(root, "the coordinator's authority", at)
    return root


def check_site_certificate(pem: str, authority: str, key: PublicKey, at: datetime) -> None:
    """A certificate of ``authority`` for ``key``, valid at ``at``. Raises :class:`IdentityError`."""
    found, root = parse_certificate(pem), parse_certificate(authority)
    held = found.public_key()
    if not isinstance(held, ec.EllipticCurvePublicKey) or PublicKey.of(held) != key or not _issued_by(found, root):
        raise IdentityError("the certificate in this kit is not for this site; ask the coordinator for another kit")
    _check_dates(found, "this site's certificate", at)


def _check_dates(certificate: x509.Certificate, whose: str, at: datetime) -> None:
    if at >= certificate.not_valid_after_utc:
        raise IdentityError(
            f"{whose} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; ask the coordinator to renew it"
        )
    if at < certificate.not_valid_before_utc:
        raise IdentityError(
            f"{whose} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} on; check this machine's clock"
        )


def _issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return isinstance(certificate.signature_hash_algorithm, hashes.SHA384)


def _name(federation: str, name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, at: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.raw)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at.astimezone(UTC) - _BACKDATED)
        .not_valid_after(end.astimezone(UTC))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
