"""Laws of what travels: what goes in comes out, and nothing that comes in can do more than be refused."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import protocol
from common.errors import ProtocolError
from common.packing import pack
from common.survey import SPLITS
from common.weights import DTYPES
from tests.unit import federation as fed

STUDY = fed.study()
HEAD = {"protocol": protocol.VERSION, "study": STUDY.canonical().decode(), "arm": "federated", "repeat": 0, "round": 1}
KINDS = (protocol.SURVEY, protocol.TRAIN, protocol.EVALUATE, protocol.MOMENTS)

names = st.text(string.ascii_letters + "._0", min_size=1, max_size=12)
floats = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
counters = hnp.arrays(np.int64, st.just(()))
weights = st.dictionaries(names, floats | counters, min_size=1, max_size=4)
aliases = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(
        (a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes()) for n in a
    )


@given(weights, st.integers(1, 3), st.integers(0, 9), st.sampled_from(["federated", "pooled", "local:site-1"]))
def test_requests_come_out_as_they_went_in(sent: Any, round_: int, repeat: int, arm: str) -> None:
    task = protocol.Task(STUDY, arm, repeat, round_)
    statistics = {"x": np.arange(3, dtype=np.float64)}
    for wanted in (
        protocol.SurveyRequest(task),
        protocol.TrainRequest(task, sent),
        protocol.EvaluateRequest(task, "val", sent),
        protocol.MomentsRequest(task, "test", sent, statistics),
    ):
        sealed = protocol.seal(wanted)
        found = protocol.open_request(fed.request(sealed.content, sealed.kind))
        assert type(found) is type(wanted)
        assert found.task == task
        if not isinstance(found, protocol.SurveyRequest):
            assert same(found.weights, sent)
            assert sealed.bytes > 0
        if isinstance(found, protocol.MomentsRequest):
            assert same(found.reference, statistics)
            assert found.split == "test"


@given(
    aliases,
    weights,
    st.integers(-5, 2**40),
    st.integers(-(2**60), 2**60),
    st.floats(),
    st.floats(0, 1e9),
    st.fixed_dictionaries({}, optional={split: st.integers(0, 2**31 - 1) for split in SPLITS}),
)
def test_replies_come_out_as_they_went_in(
    site: str, sent: Any, round_: int, examples: int, loss: float, seconds: float, images: dict[str, int]
) -> None:
    asked = fed.request(protocol.seal(protocol.SurveyRequest(protocol.Task(STUDY))).content, protocol.SURVEY)
    statistics = {"x": np.arange(4, dtype=np.int64), "y": np.zeros((0, 2))}
    for wanted in (
        protocol.SurveyReply(site, images),
        protocol.TrainReply(site, round_, sent, examples, loss, seconds),
        protocol.StatisticsReply(site, round_, statistics, seconds),
        protocol.Refusal(site, "vault-unusable"),
    ):
        message = protocol.answer(wanted, asked)
        assert message.metadata.reply_to_message_id == asked.metadata.message_id
        found = protocol.open_reply(message)
        assert type(found) is type(wanted)
        assert found.site == site
        if isinstance(wanted, protocol.TrainReply) and isinstance(found, protocol.TrainReply):
            assert same(found.weights, sent)
            assert (found.round, found.examples, found.seconds) == (round_, examples, seconds)
            assert repr(found.loss) == repr(loss)  # NaN too: whether it may touch the model is the checks' business
        if isinstance(wanted, protocol.StatisticsReply) and isinstance(found, protocol.StatisticsReply):
            assert same(found.statistics, statistics)
        if isinstance(found, protocol.SurveyReply):
            assert dict(found.images) == images


values = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["train", "statistics", "refusal", "survey", "site-1", "[" * 500, '{"train": 1}', "federated"])
    | st.binary(max_size=20)
    | st.lists(st.integers(0, 5), max_size=3)
)
fields = st.sampled_from(
    (
        *("protocol", "study", "arm", "repeat", "round", "split", "site"),
        *("kind", "code", "images", "examples", "loss", "seconds", "other"),
    )
)


@st.composite
def arrays(draw: st.DrawFn) -> ArrayRecord:
    """Packed arrays whose envelope, table and bytes need not fit each other."""
    record = ArrayRecord()
    for name in draw(st.lists(st.sampled_from(["packed", "packed", "w"]), max_size=2, unique=True)):
        good = pack({"w": draw(floats)}, DTYPES)["packed"]
        record[name] = Array(
            dtype=draw(st.sampled_from([good.dtype, good.dtype, "float64", "object", ""])),
            shape=draw(st.sampled_from([tuple(good.shape), tuple(good.shape), (2**40,), (-1,), ()])),
            stype=draw(st.sampled_from([good.stype, good.stype, "pickle"])),
            data=draw(st.sampled_from([good.data, good.data[:-1], b"", good.data[:10]]) | st.binary(max_size=90)),
        )
    return record


@st.composite
def contents(draw: st.DrawFn, base: dict[str, Any]) -> RecordDict:
    """A message in which anything may be missing, of another type, or nonsense."""
    head = dict(base) if draw(st.booleans()) else {}
    head |= draw(st.dictionaries(fields, values, max_size=4))
    facts = draw(st.dictionaries(fields, st.integers(-(2**63), 2**63 - 1) | st.floats(), max_size=4))
    content = RecordDict()
    for name in ("head", "weights", "statistics", "facts"):
        good: Any = {"head": ConfigRecord(head), "facts": MetricRecord(facts)}.get(name) or draw(arrays())
        made = draw(st.sampled_from([good] * 5 + [MetricRecord({"protocol": protocol.VERSION}), None]))
        if made is not None:
            content[name] = made
    return content


@given(contents(HEAD), st.sampled_from([*KINDS, "train", "evaluate.other", "query.x"]))
def test_any_request_is_decoded_or_a_protocol_error(content: RecordDict, kind: str) -> None:
    try:
        found = protocol.open_request(fed.request(content, kind))
    except ProtocolError as error:
        assert "\n" not in str(error)
        return
    assert 0 <= found.task.round <= found.task.study.federation.rounds
    assert found.task.repeat >= 0


@given(contents({"protocol": protocol.VERSION, "site": "site-1", "kind": "train", "round": 1}))
def test_any_reply_is_decoded_or_a_protocol_error(content: RecordDict) -> None:
    try:
        found = protocol.open_reply(fed.request(content, protocol.TRAIN))
    except ProtocolError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return
    assert found.site
