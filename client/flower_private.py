"""Flower's private modules, as a site uses them: named here and nowhere else on this side.

Everything below was written against flwr 1.41: the fleet's messages, how a message is taken apart
into objects and put together again, and how a node signs. :func:`check` says in one line when
another version is installed.
"""

from __future__ import annotations

import inspect
from base64 import b64encode
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common import objects
from common.errors import ProtocolError

VERSION = "1.41"


def _wrong(detail: str) -> ProtocolError:
    return ProtocolError(
        f"fedward's site agent is written for flwr {VERSION}, and here is flwr {metadata.version('flwr')} ({detail}); "
        f"install 'flwr>={VERSION},<1.42'"
    )


try:
    from flwr.app import Error, Message
    from flwr.app.message import remove_content_from_message
    from flwr.common.constant import TIMESTAMP_HEADER, ErrorCode
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        ActivateNodeResponse,
        DeactivateNodeRequest,
        DeactivateNodeResponse,
        PullMessagesRequest,
        PullMessagesResponse,
        PushMessagesRequest,
        PushMessagesResponse,
    )
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
    from flwr.proto.message_pb2 import (
        PullObjectRequest,
        PullObjectResponse,
        PushObjectRequest,
        PushObjectResponse,
    )
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectUnavailableError,
        inflate_object_from_contents,
        pull_objects,
        push_objects,
    )
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
except ImportError as error:
    raise _wrong(str(error)) from None

__all__ = [
    "MEDIA_TYPE", "ActivateNodeRequest", "ActivateNodeResponse", "DeactivateNodeRequest",
    "DeactivateNodeResponse", "Message", "Node", "ObjectPullError", "ObjectUnavailableError",
    "PullMessagesRequest", "PullMessagesResponse", "PullObjectRequest", "PullObjectResponse",
    "PushMessagesRequest", "PushMessagesResponse", "PushObjectRequest", "PushObjectResponse",
    "SendNodeHeartbeatRequest", "SendNodeHeartbeatResponse", "check", "failed", "get_all_nested_objects",
    "get_object_tree", "inflate", "message_from_proto", "message_to_proto", "no_object_id_recompute",
    "public_bytes", "pull_objects", "push_objects", "remove_content_from_message", "settle", "sign",
]  # fmt: skip

MEDIA_TYPE = PROTOBUF_MEDIA_TYPE

_EXPECTED: dict[Any, tuple[str, ...]] = {
    push_objects: ("objects", "push_object_fn", "object_ids_to_push", "keep_objects", "max_concurrent_pushes"),
    pull_objects: (
        "object_ids", "pull_object_fn", "max_concurrent_pulls", "max_time", "max_tries_per_object",
        "initial_backoff", "backoff_cap",
    ),
    inflate_object_from_contents: ("object_id", "object_contents", "keep_object_contents", "objects"),
    message_from_proto: ("message_proto",),
    message_to_proto: ("message",),
    get_object_tree: ("obj",),
    get_all_nested_objects: ("obj",),
}  # fmt: skip


def check() -> None:
    """Raise :class:`ProtocolError` unless the installed Flower is the one this file is written for."""
    if not metadata.version("flwr").startswith(f"{VERSION}."):
        raise _wrong("another version")
    for function, names in _EXPECTED.items():
        found = tuple(inspect.signature(function).parameters)
        if found != names:
            raise _wrong(f"{function.__qualname__} takes {', '.join(found)}")


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half as Flower names a node by it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sign(key: ec.EllipticCurvePrivateKey, seconds: float) -> dict[str, str]:
    """Headers that prove who asks, for the wall clock's ``seconds``."""
    stamp = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    signature = key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_bytes(key)).decode("ascii"),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
    }


def inflate(
    message_id: str, contents: dict[str, bytes], most_bytes: int, known: objects.Arrays
) -> tuple[Message, objects.Arrays]:
    """Put a message together; ``contents`` is emptied on the way. Its arrays by their ids, too: ``known`` ones and new.

    Raises ``ValueError`` for what is none, and for one whose arrays would hold more than ``most_bytes``.
    """
    try:
        message, arrays = objects.inflate(message_id, contents, most_bytes, known)
    except Exception as error:  # whatever a coordinator may have put there
        raise ValueError(f"{type(error).__name__} in a message's objects") from None
    if not isinstance(message, Message) or not message.has_content():
        raise ValueError("not a message with content")
    message.metadata.__dict__["_message_id"] = message_id
    return message, arrays


def failed(request: Message) -> Message:
    """The reply when there is none: a code, never a text."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ""), reply_to=request)


def settle(reply: Message, request: Message) -> Message:
    """Date a reply like its request, and number it.

    A site's clock may be hours off, and then Flower would find the reply out of date. And the same
    reply gets the same number whenever it is made: what a killed agent uploaded needs no second time.
    """
    facts = reply.metadata.__dict__
    facts["_created_at"], facts["_ttl"] = request.metadata.created_at, request.metadata.ttl
    with no_object_id_recompute():
        facts["_message_id"] = reply.object_id
    return reply
