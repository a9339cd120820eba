"""The in-process Grid: what is not asked for is not worked on, and what was given up blocks nobody."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from flwr.app import Message, RecordDict

from simulations.engine import InProcessGrid


def message(node: int) -> Message:
    return Message(RecordDict(), node, "query.survey")


def test_a_pushed_message_waits_until_its_reply_is_asked_for(tmp_path: Path) -> None:
    grid = InProcessGrid([tmp_path / "nowhere"])
    (id_,) = grid.push_messages([message(1000)])
    assert not list(grid.pull_messages(["another"]))
    (reply,) = grid.pull_messages([id_])
    assert reply.metadata.reply_to_message_id == id_
    assert reply.content["head"]["kind"] == "refusal"
    assert not list(grid.pull_messages([id_]))
    grid.close()


def test_forgotten_messages_are_never_worked_on_and_make_room(tmp_path: Path) -> None:
    grid = InProcessGrid([tmp_path / "nowhere"])
    ids = list(grid.push_messages([message(1000), message(1000)]))
    stuck: Future[Message] = Future()
    grid._futures["late"] = (stuck, message(1000))
    grid.forget([ids[0], "late", "never heard of"])
    assert stuck.cancelled()
    assert not grid._futures
    assert not list(grid.pull_messages([ids[0]]))
    assert len(list(grid.pull_messages([ids[1]]))) == 1
    grid.close()


def test_nodes_are_the_directories(tmp_path: Path) -> None:
    grid = InProcessGrid([tmp_path / "a", tmp_path / "b"])
    assert list(grid.get_node_ids()) == [1000, 1001]
    grid.close()
