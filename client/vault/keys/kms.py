"""``awskms:``: AWS Key Management Service, through boto3 and its standard chain of credentials.

Intermediate keys come from GenerateDataKey and go back through Decrypt, both with the context as KMS's
encryption context, so that every use is in CloudTrail with the id of the vault (its last 32 digits).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from client.vault.keys.service import LOOPBACK, ServiceKey
from common.errors import KeyUnavailable

_EXAMPLE = "awskms:arn:aws:kms:REGION:ACCOUNT:key/ID or awskms:alias/NAME"
_ARN = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]+")
_ALIAS = re.compile(r"alias/[A-Za-z0-9/_-]+")

_REMEDIES = {
    "AccessDeniedException": "is refused to these credentials; allow them kms:GenerateDataKey and kms:Decrypt on it",
    "NotFoundException": "does not exist in this region and account; correct the key's URI",
    "DisabledException": "is disabled; have it enabled",
    "KMSInvalidStateException": "cannot be used in its present state, it may be pending deletion; cancel that",
    "InvalidKeyUsageException": "is not for encryption; name a symmetric key of usage ENCRYPT_DECRYPT",
    "ThrottlingException": "is asked too often; try again later",
}
_BAD_CREDENTIALS = frozenset(
    {
        "401",  # a gateway's bare status
        "403",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


@dataclass(frozen=True)
class KmsKey(ServiceKey):
    """A symmetric key of AWS KMS. Credentials are looked up at every use and not kept."""

    uri: str
    key: str
    region: str | None
    """From the ARN; ``None``: the environment's or the profile's."""

    @property
    def place(self) -> str:
        return f"the AWS KMS key {self.key}"

    def issue(self, context: bytes) -> tuple[bytes, bytes]:
        answer = self._ask("generate_data_key", KeySpec="AES_256", EncryptionContext=_encryption_context(context))
        return answer.get("Plaintext", b""), answer.get("CiphertextBlob", b"")

    def redeem(self, token: bytes, context: bytes) -> bytes:
        answer = self._ask("decrypt", CiphertextBlob=token, EncryptionContext=_encryption_context(context))
        key: bytes = answer.get("Plaintext", b"")
        return key

    def _ask(self, verb: str, **parameters: object) -> dict[str, Any]:
        try:
            import boto3  # type: ignore[import-untyped]
            from botocore.config import Config  # type: ignore[import-untyped]
            from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
        except ImportError:
            raise KeyUnavailable("awskms: keys need boto3; run: pip install 'fedward[awskms]'") from None
        # At DEBUG botocore logs whole answers, with the intermediate key in them.
        logging.getLogger("botocore").setLevel(logging.INFO)
        config = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2})
        try:
            client = boto3.session.Session().client("kms", region_name=self.region, config=config)
            try:
                self._check_endpoint(client.meta.endpoint_url)
                answer: dict[str, Any] = getattr(client, verb)(KeyId=self.key, **parameters)
            finally:
                client.close()
        except ClientError as error:
            raise self._refusal(str(error.response.get("Error", {}).get("Code", ""))) from None
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise self._unreachable(type(error).__name__) from None
        return answer

    def _check_endpoint(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise KeyUnavailable("AWS KMS is asked over https:// only (http:// on this machine); mend AWS_ENDPOINT_URL")

    def _refusal(self, code: str) -> KeyUnavailable:
        if code in ("InvalidCiphertextException", "IncorrectKeyException"):
            return self.does_not_open()
        if code in _BAD_CREDENTIALS:
            return KeyUnavailable(
                f"AWS does not accept the credentials ({code}); renew them, or see that the clock is right"
            )
        return KeyUnavailable(f"{self.place} {_REMEDIES.get(code) or f'cannot be used ({code}); see CloudTrail'}")

    def _unreachable(self, kind: str) -> KeyUnavailable:
        """``kind`` is the class of botocore's error; its text may quote a profile's or a helper's output."""
        if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"):
            return KeyUnavailable(f"there are no AWS credentials ({kind}); set AWS_PROFILE or give the machine a role")
        if kind == "NoRegionError":
            return KeyUnavailable("no AWS region is set; set AWS_REGION, or name the key by its ARN")
        if kind == "SSLError":
            return KeyUnavailable(
                "AWS KMS's endpoint shows no certificate that is accepted; correct AWS_ENDPOINT_URL, "
                "or name your authority's file in AWS_CA_BUNDLE"
            )
        return KeyUnavailable(f"cannot reach AWS KMS ({kind}); see whether the network lets this machine out to it")


def kms_key(uri: str) -> KmsKey:
    """The provider that ``uri`` (``awskms:ARN`` or ``awskms:alias/NAME``) names. Nothing is sent yet."""
    key = uri.removeprefix("awskms:")
    arn = _ARN.fullmatch(key)
    if arn is None and _ALIAS.fullmatch(key) is None:
        raise KeyUnavailable(f"an awskms: key's URI is {_EXAMPLE}; correct it")
    return KmsKey(uri, key, arn[1] if arn else None)


def _encryption_context(context: bytes) -> dict[str, str]:
    return {"fedward": f"wrap 1: {context.hex()}"}
