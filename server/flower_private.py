"""Flower's private modules, as the coordinator uses them: named here and nowhere else on this side.

Everything below was written against flwr 1.41. :func:`check` says in one line when another version
is installed; a test calls it, so that an upgrade fails there and not in the middle of a study.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from common import objects
from common.errors import ProtocolError

VERSION = "1.41"


def _wrong(detail: str) -> ProtocolError:
    return ProtocolError(
        f"fedward's coordinator is written for flwr {VERSION}, and here is flwr {metadata.version('flwr')} ({detail}); "
        f"install 'flwr>={VERSION},<1.42'"
    )


try:
    from flwr.app import Error, Message
    from flwr.app.message import make_message, remove_content_from_message
    from flwr.app.metadata import Metadata
    from flwr.common.constant import (
        HEARTBEAT_DEFAULT_INTERVAL,
        NOOP_ACCOUNT_NAME,
        NOOP_FLWR_AID,
        SUPERLINK_NODE_ID,
        SYSTEM_TIME_TOLERANCE,
        TIMESTAMP_HEADER,
        ErrorCode,
        Status,
        SubStatus,
    )
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        PullMessagesResponse,
        PushMessagesRequest,
    )
    from flwr.proto.message_pb2 import (
        PullObjectRequest,
        PullObjectResponse,
        PushObjectRequest,
        PushObjectResponse,
    )
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.supercore.constant import (
        FLEET_HTTP_PUBLIC_KEY_HEADER,
        FLEET_HTTP_SIGNATURE_HEADER,
        FLWR_IN_MEMORY_DB_NAME,
        NOOP_FEDERATION_ID,
        NodeStatus,
        TaskType,
    )
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        iterate_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
except ImportError as error:
    raise _wrong(str(error)) from None

PUBLIC_KEY_HEADER, SIGNATURE_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER.lower(), FLEET_HTTP_SIGNATURE_HEADER.lower()
STAMP_HEADER = TIMESTAMP_HEADER.lower()
CLOCK_AHEAD_S = float(SYSTEM_TIME_TOLERANCE)
MEDIA_TYPE = PROTOBUF_MEDIA_TYPE
SERVER_NODE = SUPERLINK_NODE_ID
MOST_INFLATED = (1 << 30) + (16 << 20)
"""Bytes of a reply's arrays; a site keeps no larger one."""
COORDINATOR_INTERVAL_S = float(HEARTBEAT_DEFAULT_INTERVAL)

_EXPECTED: dict[Any, tuple[str, ...]] = {
    create_app: ("config", "superlink_lifespan_class"),
    InMemoryLinkState.create_node: (
        "self", "owner_aid", "owner_name", "public_key", "heartbeat_interval", "location", "name",
    ),
    InMemoryLinkState.delete_node: ("self", "owner_aid", "node_id"),
    InMemoryLinkState.activate_node: ("self", "node_id", "heartbeat_interval"),
    InMemoryLinkState.get_node_info: ("self", "node_ids", "owner_aids", "statuses"),
    InMemoryLinkState.store_message_and_object_tree: ("self", "message", "object_tree", "session_id"),
    InMemoryLinkState.store_object: ("self", "run_id", "session_id", "object_id", "object_content"),
    InMemoryLinkState.get_object: ("self", "run_id", "object_id"),
    InMemoryLinkState.start_session: ("self", "run_id"),
    InMemoryLinkState.delete_messages: ("self", "message_ins_ids"),
    InMemoryLinkState.claim_task: ("self", "task_id"),
    InMemoryLinkState.activate_task: ("self", "task_id"),
    InMemoryLinkState.finish_task: ("self", "task_id", "sub_status", "details"),
    InMemoryLinkState.cleanup_run: ("self", "run_id"),
    InMemoryObjectStore.put: ("self", "object_id", "object_content"),
    InMemoryObjectStore.get: ("self", "object_id"),
    InMemoryObjectStore.delete: ("self", "object_id"),
    InMemoryObjectStore.get_object_tree: ("self", "object_id"),
    inflate_object_from_contents: ("object_id", "object_contents", "keep_object_contents", "objects"),
}  # fmt: skip
_ATTRIBUTES = (
    "lock", "nodes", "message_ins_store", "message_res_store", "message_ins_id_to_message_res_id",
    "task_token_store", "task_token_to_task_id", "lock_task_store", "object_store", "federation_manager",
)  # fmt: skip


def check() -> None:
    """Raise :class:`ProtocolError` unless the installed Flower is the one this file is written for."""
    if not metadata.version("flwr").startswith(f"{VERSION}."):
        raise _wrong("another version")
    for function, names in _EXPECTED.items():
        found = tuple(inspect.signature(function).parameters)
        if found != names:
            raise _wrong(f"{function.__qualname__} takes {', '.join(found)}")
    state = SuperLink().state
    missing = [name for name in _ATTRIBUTES if not hasattr(state, name)]
    if missing:
        raise _wrong(f"no {', '.join(missing)} in its state")


# --- what fleet requests say ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A message handed to a site: its id, its run, and every object that the site may fetch for it."""

    message_id: str
    run_id: int
    objects: frozenset[str]


@dataclass(frozen=True)
class Pushed:
    """A reply that a site announces: who sends it, what it answers, and the objects it will be made of."""

    message_id: str
    source: int
    target: int
    reply_to: str
    run_id: int
    root: str
    objects: frozenset[str]


def read_offers(body: bytes) -> list[Offer]:
    """The messages in a pull's answer."""
    answer = PullMessagesResponse.FromString(body)
    return [
        Offer(message.metadata.message_id, message.metadata.run_id, _ids(tree))
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True)
    ]


def read_pushed(body: bytes) -> Pushed:
    """The one reply in a push. Raises ``ValueError`` for anything else."""
    request = _parsed(PushMessagesRequest, body)
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise ValueError("a push holds one reply")
    facts, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    return Pushed(
        facts.message_id,
        facts.src_node_id,
        facts.dst_node_id,
        facts.reply_to_message_id,
        facts.run_id,
        tree.object_id,
        _ids(tree),
    )


@dataclass(frozen=True)
class ObjectRequest:
    """A ``pull-object``, or a ``push-object`` with the object and the upload that it belongs to."""

    node_id: int
    run_id: int
    object_id: str
    session: str = ""
    content: bytes = b""


def read_pushed_object(body: bytes) -> ObjectRequest:
    """Raises ``ValueError``."""
    found = _parsed(PushObjectRequest, body)
    return ObjectRequest(found.node.node_id, found.run_id, found.object_id, found.session_id, found.object_content)


def read_wanted_object(body: bytes) -> ObjectRequest:
    """Raises ``ValueError``."""
    found = _parsed(PullObjectRequest, body)
    return ObjectRequest(found.node.node_id, found.run_id, found.object_id)


def read_activation(body: bytes) -> bytes:
    """The key in an ``activate-node``. Raises ``ValueError``."""
    return bytes(_parsed(ActivateNodeRequest, body).public_key)


def _parsed(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise ValueError(str(error)) from None


def _ids(tree: Any) -> frozenset[str]:
    return frozenset(node.object_id for node in iterate_object_tree(tree))


# --- the SuperLink of this process ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActiveRun:
    run: Run
    task_id: int

    @property
    def run_id(self) -> int:
        return int(self.run.run_id)


class SuperLink:
    """Flower's SuperLink in memory: its ASGI app, its nodes, and one run at a time."""

    def __init__(self) -> None:
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # what sites provoke is counted at the gate
        config = SuperLinkLifespanConfig(
            control_address="127.0.0.1:0",
            health_server_address=None,
            host="127.0.0.1",
            port=0,
            insecure=True,
            certificates=None,
            superexec_auth_secret=None,
            authn_plugin=NoOpControlAuthnPlugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type="grpc-rere",
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            database=FLWR_IN_MEMORY_DB_NAME,
            isolation="process",
            runtime_dependency_install=False,
        )
        # Its lifespan would open more sockets and start subprocesses; nothing here needs them.
        self.app = create_app(config, lambda *_: None)  # type: ignore[arg-type]
        state = self.app.state.linkstate_factory.state()
        if not isinstance(state, InMemoryLinkState):
            raise _wrong(f"its state in memory is a {type(state).__name__}")
        self.state = state
        self._woken = threading.Lock()
        self._beat = time.time()

    def register(self, alias: str, key: bytes) -> int:
        """Admit a node by its public key (PEM). Returns its id. Raises ``ValueError`` for a key that ever was here."""
        return int(self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, COORDINATOR_INTERVAL_S, name=alias))

    def revoke(self, node_id: int) -> None:
        self.state.delete_node(NOOP_FLWR_AID, node_id)

    def online(self) -> frozenset[int]:
        """Nodes that have sent a heart-beat within the last two intervals."""
        return frozenset(node.node_id for node in self.state.get_node_info(statuses=[NodeStatus.ONLINE]))

    def release(self, node_id: int) -> None:
        """Let a node that is still listed online connect anew: its agent was killed, or lost the connection."""
        with self.state.lock:  # not deactivate_node, after which the node counts as gone at once
            node = self.state.nodes.get(node_id)
            if node is not None and node.status == NodeStatus.ONLINE:
                node.status = NodeStatus.OFFLINE

    def redeliver(self, node_id: int) -> None:
        """Hand out again what this node has not answered: its last agent took it along."""
        with self.state.lock:
            for id_, message in self.state.message_ins_store.items():
                if message.metadata.dst_node_id == node_id:
                    reply_id = self.state.message_ins_id_to_message_res_id.get(id_)
                    if reply_id is None or self._contents(reply_id) is None:
                        message.metadata.delivered_at = ""

    def give(self, wanted: ObjectRequest) -> bytes:
        """The answer to a ``pull-object``: the object, or that it is not here yet, or unknown."""
        content = self.state.get_object(wanted.run_id, wanted.object_id)
        answer = PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )
        return bytes(answer.SerializeToString())

    def take(self, pushed: ObjectRequest) -> bytes:
        """The answer to a ``push-object``. Raises ``ValueError`` for content that is not what its id says."""
        stored = self.state.store_object(pushed.run_id, pushed.session, pushed.object_id, pushed.content)
        return bytes(PushObjectResponse(stored=stored).SerializeToString())

    def answered(self, message_id: str) -> None:
        """A reply has been announced: the message is not handed out any more."""
        with self.state.lock:
            message = self.state.message_ins_store.get(message_id)
            if message is not None and not message.metadata.delivered_at:
                message.metadata.delivered_at = "answered"

    def withdraw(self, message_id: str) -> bool:
        """Drop a reply of which a part never came, so that another may take its place. False for a whole one."""
        with self.state.lock:
            reply_id = self.state.message_ins_id_to_message_res_id.get(message_id)
            if reply_id is None:
                return True
            if self._contents(reply_id) is not None:
                return False
            del self.state.message_ins_id_to_message_res_id[message_id], self.state.message_res_store[reply_id]
        self.state.object_store.delete(reply_id)
        return True

    def heart(self, patience_s: float = 5.0) -> None:
        """Called often. After a sleep of this machine nobody is offline yet: sites could not reach us meanwhile.

        A clock that was set looks the same, and is treated the same.
        """
        with self._woken:
            now = time.time()
            gap, self._beat = now - self._beat, now
            if abs(gap) < patience_s:
                return
        with self.state.lock:
            for node in self.state.nodes.values():
                if node.status in (NodeStatus.ONLINE, NodeStatus.OFFLINE) and node.online_until > now - gap:
                    node.online_until += gap

    def begin(self) -> ActiveRun:
        """Start the one run of this process. It needs no task heart-beats: its ServerApp is this process."""
        state = self.state
        state.federation_manager.ensure_default_federations_exist(flwr_aid=NOOP_FLWR_AID)
        run_id = state.create_run(
            "fedward/study", "1.0.0", "0" * 64, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
        if task_id is None or not state.claim_task(task_id) or not state.activate_task(task_id):
            raise _wrong("a run does not start")
        with state.lock_task_store:  # a token expires when its process sleeps for a minute; nobody uses this one
            record = state.task_token_store.pop(task_id)
            state.task_token_to_task_id.pop(record.token, None)
        # Flower stamps messages with what this process is.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, SUPERLINK_NODE_ID
        return ActiveRun(state.get_run_info(run_ids=[run_id])[0], task_id)

    def end(self, run: ActiveRun, *, completed: bool) -> None:
        self.state.finish_task(run.task_id, SubStatus.COMPLETED if completed else SubStatus.FAILED, "")
        self.state.cleanup_run(run.run_id)
        assert self.state.get_run_status({run.run_id})[run.run_id].status == Status.FINISHED

    def send(self, run: ActiveRun, messages: Sequence[Message]) -> list[str]:
        """Store messages and their objects, each object once. Ids in order; empty for a message nobody may get."""
        ids: list[str] = []
        session = self.state.start_session(run.run_id)
        with no_object_id_recompute():
            missing: dict[str, None] = {}
            objects: dict[str, Any] = {}
            for message in messages:
                # Flower's own stamp is that of whichever run this process began last.
                facts = message.metadata.__dict__
                facts["_run_id"], facts["_src_task_id"] = run.run_id, run.task_id
                facts["_message_id"] = message.object_id
                bare = message_from_proto(message_to_proto(remove_content_from_message(message)))
                stored, wanted = self.state.store_message_and_object_tree(bare, get_object_tree(message), session)
                ids.append(message.metadata.message_id if stored else "")
                if stored:
                    missing.update(dict.fromkeys(wanted))
                    objects.update(get_all_nested_objects(message))
            for object_id in missing:
                self.state.store_object(run.run_id, session, object_id, objects[object_id].deflate())
        return ids

    def collect(self, run: ActiveRun, message_id: str) -> Message | None:
        """The reply to a message once it is whole, an error once there can be none, ``None`` until then.

        A site that is offline may come back and still bring its reply: how long to wait for that, the caller knows.
        What was stored for both is freed. A reply is only taken for what its address on the way in
        said: the one within it is the site's own writing.
        """
        state = self.state
        with state.lock:
            sent = state.message_ins_store.get(message_id)
            reply_id = state.message_ins_id_to_message_res_id.get(message_id)
            node = state.nodes.get(sent.metadata.dst_node_id) if sent else None
            left = sent.metadata.created_at + sent.metadata.ttl - time.time() if sent else 0.0
        if sent is None or left <= 0:
            return self._failed(run, message_id, ErrorCode.MESSAGE_UNAVAILABLE)
        if reply_id is not None:
            contents = self._contents(reply_id)
            if contents is not None:
                try:
                    reply, _ = objects.inflate(reply_id, contents, MOST_INFLATED)
                except Exception:  # whatever a site may have put there
                    reply = None
                if not isinstance(reply, Message) or not _same_addresses(reply, sent):
                    return self._failed(run, message_id, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
                reply.metadata.__dict__["_message_id"] = reply_id
                self.forget([message_id])
                return reply
        if node is None or node.status == NodeStatus.UNREGISTERED:
            return self._failed(run, message_id, ErrorCode.NODE_UNAVAILABLE)
        return None

    def forget(self, message_ids: Iterable[str]) -> None:
        """Free what is stored for messages, answered or not; a late reply to one of them is not taken."""
        ids = set(message_ids)
        with self.state.lock:
            answers = self.state.message_ins_id_to_message_res_id
            replies = {answers[id_] for id_ in ids if id_ in answers}
            self.state.delete_messages(ids)
        for id_ in ids | replies:
            self.state.object_store.delete(id_)

    def _contents(self, message_id: str) -> dict[str, bytes] | None:
        """The objects of a message, or ``None`` while one of them is still on its way."""
        store, found = self.state.object_store, {}
        with contextlib.suppress(Exception):  # a tree whose objects another reply's end has freed: never whole
            for node in iterate_object_tree(store.get_object_tree(message_id)):
                content = store.get(node.object_id)
                if not content:
                    return None
                found[node.object_id] = content
            return found
        return None

    def _failed(self, run: ActiveRun, message_id: str, code: int) -> Message:
        self.forget([message_id])
        facts = Metadata(
            run_id=run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=message_id,
            group_id="",
            created_at=time.time(),
            ttl=0,
            message_type="system",
        )
        return make_message(metadata=facts, error=Error(code, ""))


def _same_addresses(reply: Message, sent: Message) -> bool:
    got, asked = reply.metadata, sent.metadata
    return (got.reply_to_message_id, got.src_node_id, got.run_id, got.message_type) == (
        asked.message_id,
        asked.dst_node_id,
        asked.run_id,
        asked.message_type,
    )
