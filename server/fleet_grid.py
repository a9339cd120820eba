"""Flower's Grid over the SuperLink of this very process: no socket, no copy of a reply but the one in hand."""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.flower_private import ActiveRun, SuperLink

_POLL_S = 0.05
_SLACK_S = 86_400.0


class FleetGrid(Grid):
    """What :mod:`server.rounds` talks to. One run, one thread at a time."""

    def __init__(self, link: SuperLink, run: ActiveRun) -> None:
        self._link, self._active = link, run

    def set_run(self, run: Run) -> None:
        """The run is what :meth:`server.superlink.Fleet.grid` started; another cannot be set."""
        if run.run_id != self._active.run_id:
            raise ValueError("this Grid belongs to another run")

    @property
    def run(self) -> Run:
        return self._active.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Nodes online now."""
        return sorted(self._link.online())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Ids in order; empty for a message whose node is not on the roster.

        Flower counts a message's time to live by the wall clock, which may be set, or jump over a sleep of this
        machine. Deadlines are the caller's, by a clock that does neither: :meth:`forget` ends a message.
        """
        sent = list(messages)
        for message in sent:
            message.metadata.ttl += _SLACK_S
        return self._link.send(self._active, sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """At most one reply a call, so that a caller never holds more of them than it can fold.

        A reply counts once all of it is here: a site that stops in the middle of its upload holds
        nobody else up.
        """
        self._link.heart()
        for id_ in message_ids:
            reply = self._link.collect(self._active, id_)
            if reply is not None:
                return [reply]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until all have answered or ``timeout`` seconds are over."""
        waiting = [id_ for id_ in self.push_messages(messages) if id_]
        ends = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (ends is None or time.monotonic() < ends):
            for reply in (found := self.pull_messages(waiting)):
                waiting.remove(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if not found:
                time.sleep(_POLL_S)
        self.forget(waiting)
        return replies

    def forget(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for these any more: what is stored for them is freed, late replies are not taken."""
        self._link.forget(message_ids)
