"""What travels: shared records, versions, and errors that name what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from common import protocol
from common.errors import ProtocolError
from tests.unit import federation as fed

STUDY = fed.study()
TASK = protocol.Task(STUDY, round=1)


def sealed(**head: Any) -> protocol.Sealed:
    """A training request whose head says something else."""
    made = protocol.seal(protocol.TrainRequest(TASK, fed.weights(0)))
    fields = made.content["head"]
    assert isinstance(fields, ConfigRecord)
    for name, value in head.items():
        if value is None:
            del fields[name]
        else:
            fields[name] = value
    return made


def opened(**head: Any) -> protocol.Request:
    made = sealed(**head)
    return protocol.open_request(fed.request(made.content, made.kind))


def test_one_request_is_encoded_once_for_all_sites() -> None:
    made = protocol.seal(protocol.TrainRequest(TASK, fed.weights(0)))
    first, second = made.to(1, 30.0), made.to(2, 30.0)
    assert first.content is second.content
    assert (first.metadata.dst_node_id, second.metadata.dst_node_id) == (1, 2)
    assert first.metadata.ttl == 30.0
    assert first.metadata.group_id == "1"


def test_a_seals_size_is_what_its_arrays_take() -> None:
    weights = {"a": np.zeros((100, 10), np.float32), "b": np.array(3)}
    made = protocol.seal(protocol.TrainRequest(TASK, weights))
    payload = 100 * 10 * 4 + 8
    assert payload <= made.bytes <= payload + 2 * 256
    assert protocol.seal(protocol.SurveyRequest(TASK)).bytes == 0


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"protocol": 1}, r"the coordinator speaks protocol 1, this site protocol 2: upgrade the coordinator"),
        ({"protocol": 3}, r"the coordinator speaks protocol 3, this site protocol 2: upgrade this site"),
        ({"protocol": "1"}, r"field 'protocol' is missing or not int"),
        ({"protocol": True}, r"field 'protocol' is missing or not int"),
        ({"protocol": None}, r"field 'protocol' is missing"),
        ({"study": None}, r"field 'study' is missing or not str"),
        ({"study": 3}, r"field 'study' is missing or not str"),
        ({"study": "{"}, r"received study.*another version of fedward\?"),
        ({"study": "[" * 100_000}, r"received study"),
        ({"study": "{}"}, r"received study"),
        ({"study": "name: x" * 400_000}, r"received study: longer than 1 MiB"),
        ({"study": '{"name": "x", "task": "dance"}'}, r"received study"),
        ({"arm": "../../etc"}, r"names an arm with characters"),
        ({"arm": "x" * 200}, r"names an arm with characters"),
        ({"arm": ""}, r"names an arm with characters"),
        ({"repeat": -1}, r"names repeat -1"),
        ({"repeat": 2**40}, r"names repeat"),
        ({"round": 0}, r"names round 0; the study has rounds 1 to 3"),
        ({"round": 4}, r"names round 4; the study has rounds 1 to 3"),
        ({"round": -(2**62)}, r"names round -"),
        ({"round": 1.0}, r"field 'round' is missing or not int"),
        ({"round": True}, r"field 'round' is missing or not int"),
    ],
)
def test_a_request_that_is_not_one_is_one_line(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        opened(**head)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_round_of_training_starts_at_one_and_others_at_zero() -> None:
    made = protocol.seal(protocol.EvaluateRequest(protocol.Task(STUDY), "val", fed.weights(0)))
    found = protocol.open_request(fed.request(made.content, made.kind))
    assert found.task.round == 0


@pytest.mark.parametrize("split", ["", "all", "trai", "TEST", "val\n"])
def test_an_unknown_split_is_refused(split: str) -> None:
    made = protocol.seal(protocol.EvaluateRequest(TASK, split, fed.weights(0)))
    with pytest.raises(ProtocolError, match="names the split"):
        protocol.open_request(fed.request(made.content, made.kind))


def test_an_unknown_kind_and_an_empty_message_are_refused() -> None:
    made = sealed(split="val")
    with pytest.raises(ProtocolError, match=r"unknown kind of request 'evaluate\.other'; upgrade this site"):
        protocol.open_request(fed.request(made.content, "evaluate.other"))
    message = Message(Error(1, "gone"), reply_to=fed.request(made.content, made.kind))
    for decode in (protocol.open_request, protocol.open_reply):
        with pytest.raises(ProtocolError, match="the message is empty"):
            decode(message)
    with pytest.raises(ProtocolError, match="no ConfigRecord named 'head'"):
        protocol.open_reply(fed.request(RecordDict(), "train.fit"))


def reply(**head: Any) -> Message:
    fields = {"protocol": protocol.VERSION, "site": "site-1", "kind": "survey", "images": "{}"} | head
    return fed.request(RecordDict({"head": ConfigRecord(fields)}), protocol.SURVEY)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"images": "[" * 200_000}, r"counts are not a table of splits"),
        ({"images": "[" * 900}, r"counts are not"),
        ({"images": '{"train": 1e400}'}, r"counts are not whole numbers"),
        ({"images": '{"train": NaN}'}, r"counts are not whole numbers"),
        ({"images": '{"train": true}'}, r"counts are not whole numbers"),
        ({"images": '{"train": -1}'}, r"counts are not whole numbers"),
        ({"images": '{"train": 2147483648}'}, r"counts are not whole numbers"),
        ({"images": '{"train": "1"}'}, r"counts are not whole numbers"),
        ({"images": '{"mrs-smith": 1}'}, r"counts are not a table of splits"),
        ({"images": "[1]"}, r"counts are not a table"),
        ({"images": "{"}, r"counts are not JSON"),
        ({"images": "9" * 900}, r"counts are not"),
        ({"site": "../x"}, r"names a site with characters"),
        ({"site": "x" * 65}, r"names a site with characters"),
        ({"site": "a\nb"}, r"names a site with characters"),
        ({"kind": "secret"}, r"site-1 sent an unknown kind of reply"),
        ({"kind": "refusal", "code": "Traceback (most recent call last)"}, r"malformed code"),
        ({"kind": "refusal", "code": "x" * 41}, r"malformed code"),
        ({"kind": "refusal", "code": "ok\n"}, r"malformed code"),
    ],
)
def test_a_reply_that_is_not_one_is_one_line(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        protocol.open_reply(reply(**head))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_error_leaves_a_site_as_its_code_alone() -> None:
    asked = fed.request(sealed().content, protocol.TRAIN)
    message = protocol.answer(protocol.Refusal("site-1", "vault-unusable"), asked)
    head = message.content["head"]
    assert isinstance(head, ConfigRecord)
    assert dict(head) == {"protocol": protocol.VERSION, "site": "site-1", "kind": "refusal", "code": "vault-unusable"}
    assert list(message.content) == ["head"]


def test_received_weights_are_views_that_nobody_can_write_to() -> None:
    found = opened()
    assert isinstance(found, protocol.TrainRequest)
    for value in found.weights.values():
        assert not value.flags.writeable


def test_a_kept_reply_comes_back_as_it_was() -> None:
    asked = fed.request(protocol.seal(protocol.TrainRequest(TASK, fed.weights(0))).content, protocol.TRAIN)
    for reply in (
        protocol.TrainReply("site-1", 1, fed.weights(3), 12, 0.25, 1.5),
        protocol.StatisticsReply("site-1", 1, {"x": np.arange(4), "y": np.zeros((0, 2))}, 0.5),
        protocol.Refusal("site-1", "vault-unusable"),
    ):
        sent = protocol.answer(reply, asked)
        kept = protocol.freeze(sent)
        again = protocol.thaw(kept, asked)
        assert again.content.object_id == sent.content.object_id, "to the coordinator they are the same"
        assert protocol.freeze(again) == kept
    for damaged in (b"", kept[:-1], kept + b"x", b"\xff" * 50):
        with pytest.raises(ProtocolError, match="a kept reply cannot be read"):
            protocol.thaw(damaged, asked)
