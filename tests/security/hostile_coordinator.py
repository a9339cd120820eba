"""A coordinator gone bad: the genuine keys and certificate, and a server that says whatever its script says.

It speaks TLS itself, so every byte that leaves the site is seen in the clear (:attr:`HostileCoordinator.left`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

from client import flower_private as flower
from common import objects as flower_objects
from common import protocol
from server.provision import Coordinator

NODE, RUN = 7, 11
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 0  # Flower stamps messages with these
Answer = bytes | tuple[int, dict[str, str], bytes]


def object_of(kind: str, body: bytes, *children: str) -> tuple[str, bytes]:
    """An object as Flower deflates it, named by its hash, whatever stands in it."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


@dataclass
class Offer:
    """One message: what is announced, what it is made of, and what came back."""

    announced: Any
    tree: Any
    objects: dict[str, bytes]
    done: threading.Event = field(default_factory=threading.Event)
    reply: Message | None = None

    @classmethod
    def of(cls, message: Message, *, node: int = NODE, **facts: Any) -> Offer:
        """As an honest coordinator would offer ``message``, to ``node``, but for the ``facts`` of its announcement."""
        values = message.metadata.__dict__
        values |= {"_dst_node_id": node, "_src_node_id": 1, "_run_id": RUN, "_message_id": ""}
        with flower.no_object_id_recompute():
            values["_message_id"] = message.object_id
            announced = flower.message_to_proto(flower.remove_content_from_message(message))
            objects = {id_: made.deflate() for id_, made in flower.get_all_nested_objects(message).items()}
            offer = cls(announced, flower.get_object_tree(message), objects)
        for name, value in facts.items():
            setattr(offer.announced.metadata, name, value)
        return offer

    def graft(self, record: str, objects: dict[str, bytes]) -> Offer:
        """The same message with ``record`` replaced by the last of ``objects``; every hash is right."""
        added, (replaced, _) = dict(objects), list(objects.items())[-1]
        root = self.objects.pop(self.tree.object_id)
        dict_id = self.tree.children[0].object_id
        body = self.objects.pop(dict_id).split(b"\0", 1)[1]
        names = json.loads(body) | {record: replaced}
        new_dict, content = object_of("RecordDict", json.dumps(names).encode(), *dict.fromkeys(names.values()))
        added[new_dict] = content
        head, facts = root.split(b"\0", 1)
        del head
        message_id, whole = object_of("Message", facts, new_dict)
        self.objects |= {**added, message_id: whole}
        self.tree = ObjectTree(object_id=message_id, children=[ObjectTree(object_id=id_) for id_ in self.objects])
        self.announced.metadata.message_id = message_id
        return self


class HostileCoordinator:
    """Listens where the coordinator would. :attr:`script` maps a fleet path to what answers in its place."""

    def __init__(self, coordinator: Coordinator, port: int) -> None:
        self.left: list[tuple[str, bytes]] = []
        self.script: dict[str, Callable[[bytes], Answer]] = {}
        self._offer: Offer | None = None
        self._uploads: dict[str, bytes] = {}
        self._wanted: set[str] = set()
        self._root = ""
        hostile = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                path = self.path.removeprefix("/v1/fleet/")
                head = f"{self.requestline}\n{self.headers}".encode()
                hostile.left.append((path, head + body))
                answer = hostile.answer(path, body)
                status, headers, content = answer if isinstance(answer, tuple) else (200, {}, answer)
                with contextlib.suppress(OSError):
                    self.send_response_only(status)
                    for name, value in {"content-length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            def do_GET(self) -> None:
                hostile.left.append((self.path, f"{self.requestline}\n{self.headers}".encode()))
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.allow_reuse_address = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(coordinator.certificate_path, coordinator.server_key_path)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.server_bind()
        self._server.server_activate()

    @contextlib.contextmanager
    def listening(self) -> Iterator[HostileCoordinator]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    # --- what it says ---------------------------------------------------------------------------------------

    def answer(self, path: str, body: bytes) -> Answer:
        scripted = self.script.get(path)
        if scripted is not None:
            return scripted(body)
        made = getattr(self, "_" + path.replace("-", "_"), None)
        return (404, {}, b"") if made is None else made(body).SerializeToString()  # type: ignore[no-any-return]

    def _activate_node(self, _: bytes) -> Any:
        return flower.ActivateNodeResponse(node_id=NODE)

    def _deactivate_node(self, _: bytes) -> Any:
        return flower.DeactivateNodeResponse()

    def _send_node_heartbeat(self, _: bytes) -> Any:
        return flower.SendNodeHeartbeatResponse(success=True)

    def _pull_messages(self, _: bytes) -> Any:
        offer, found = self._offer, flower.PullMessagesResponse()
        if offer is not None and not self._root and not offer.done.is_set() and offer.announced is not None:
            self._root = "offered"
            found.messages_list.append(offer.announced)
            found.message_object_trees.append(offer.tree)
        return found

    def _pull_object(self, body: bytes) -> Any:
        wanted = flower.PullObjectRequest.FromString(body).object_id
        content = self._offer.objects.get(wanted) if self._offer else None
        return flower.PullObjectResponse(
            object_found=content is not None, object_available=content is not None, object_content=content or b""
        )

    def _push_messages(self, body: bytes) -> Any:
        pushed = flower.PushMessagesRequest.FromString(body)
        ids = list(dict.fromkeys(flower_objects.object_ids(pushed.message_object_trees[0])))
        self._root, self._wanted, self._uploads = pushed.message_object_trees[0].object_id, set(ids), {}
        return flower.PushMessagesResponse(objects_to_push=ids, session_id="s")

    def _push_object(self, body: bytes) -> Any:
        pushed = flower.PushObjectRequest.FromString(body)
        self._uploads[pushed.object_id] = pushed.object_content
        if self._offer is not None and self._wanted <= set(self._uploads):
            self._offer.reply = (
                flower.inflate(self._root, dict(self._uploads), 1 << 30, {})[0] if self._has_content() else None
            )
            self._offer.done.set()
        return flower.PushObjectResponse(stored=True)

    def _has_content(self) -> bool:
        # An error has no record below it.
        return len(self._uploads) > 1

    # --- asking ---------------------------------------------------------------------------------------------

    def offer(self, offer: Offer, timeout_s: float = 60.0) -> Message | None:
        """The site's reply, or ``None`` for an error without content."""
        self._root, self._offer = "", offer
        assert offer.done.wait(timeout_s), "the site does not answer"
        self._offer = None
        return offer.reply

    def ask(self, asked: protocol.Request | Message, **facts: Any) -> protocol.Reply | None:
        message = asked if isinstance(asked, Message) else protocol.seal(asked).to(NODE, 600.0)
        reply = self.offer(Offer.of(message, **facts))
        return None if reply is None else protocol.open_reply(reply)

    def polls(self, more: int = 1, timeout_s: float = 60.0) -> None:
        """Wait until the site has asked again: it is alive and has come to the end of what it was doing."""
        seen, ends = self._polled(), time.monotonic() + timeout_s
        while self._polled() < seen + more:
            assert time.monotonic() < ends, "the site does not ask any more"
            time.sleep(0.02)

    def _polled(self) -> int:
        return sum(path == "pull-messages" for path, _ in self.left)


def message(content: RecordDict, kind: str) -> Message:
    return Message(content, NODE, kind, ttl=600.0, group_id="1")
