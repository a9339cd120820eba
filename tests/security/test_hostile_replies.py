"""What leaves a site when something goes wrong in it, and what a hostile coordinator can make it do: decline."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import client.app
from client.app import Directories, Resident, handle, make_app
from client.stock import locate_by_config
from common import protocol
from common.errors import FedwardError, VaultError
from common.models import build
from common.packing import pack
from common.weights import DTYPES, digest, state_of
from tests.unit import federation as fed

SECRET = "Hansen^Erika 1957-03-08 /srv/pacs/4711.dcm"
STUDY = fed.study()
TASK = protocol.Task(STUDY, round=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fed.make_sites(tmp_path_factory.mktemp("hostile") / "sites", STUDY)["site-1"]


@pytest.fixture
def resident() -> Iterator[Resident]:
    made = Resident()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A site's log is its own; this one is read by nobody."""
    logger = logging.getLogger("fedward.client")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, True
    yield
    logger.propagate = propagate
    logger.removeHandler(handler)


def weights() -> dict[str, np.ndarray[Any, Any]]:
    return state_of(build(STUDY, 1))


def message(request: protocol.Request) -> Message:
    sealed = protocol.seal(request)
    return fed.request(sealed.content, sealed.kind)


def everything_in(reply: Message) -> bytes:
    """All that travels: metadata, every record, every array's bytes."""
    parts = [repr(vars(reply.metadata)).encode()]
    for name, record in reply.content.items():
        parts.append(name.encode())
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                parts += [key.encode(), repr((array.dtype, array.shape, array.stype)).encode(), array.data]
        else:
            parts.append(json.dumps(dict(record), ensure_ascii=False, default=repr).encode())
    return b"\n".join(parts)


def ask(home: Path, resident: Resident, asked: Message) -> protocol.Reply:
    """The reply to a message; that none of the secret's words is in it is checked every time."""
    reply = handle(asked, lambda: home, resident)
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    sent = everything_in(reply)
    for word in ("Hansen", "Erika", "03-08", "/srv/pacs", "Traceback", str(home)):
        assert word.encode() not in sent, word
    return protocol.open_reply(reply)


def train_request() -> Message:
    return message(protocol.TrainRequest(TASK, weights()))


REQUESTS: dict[str, Callable[[], Message]] = {
    "survey": lambda: message(protocol.SurveyRequest(TASK)),
    "train": train_request,
    "evaluate": lambda: message(protocol.EvaluateRequest(TASK, "val", weights())),
}
INSIDE = {"survey": "images", "train": "require", "evaluate": "view"}


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(SECRET), "internal-error"),
        (KeyError(SECRET), "internal-error"),
        (MemoryError(SECRET), "internal-error"),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), "internal-error"),
        (OSError(5, SECRET, SECRET), "internal-error"),
        (RecursionError(SECRET), "internal-error"),
        (VaultError(SECRET), "vault-unusable"),
        (FedwardError(SECRET), "error"),
    ],
)
def test_an_error_leaves_as_a_code_whatever_it_says(
    what: str,
    error: Exception,
    code: str,
    home: Path,
    resident: Resident,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(client.app.Site, INSIDE[what], fail)
    with caplog.at_level(logging.ERROR):
        assert ask(home, resident, REQUESTS[what]()) == protocol.Refusal("site-1", code)
    assert "Hansen" in caplog.text  # where the operator can read it
    monkeypatch.undo()
    assert not isinstance(ask(home, resident, REQUESTS[what]()), protocol.Refusal)


def test_an_error_before_the_site_is_known_names_no_site(
    resident: Resident, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(tmp_path / "4711", resident, train_request()) == protocol.Refusal("unknown", "vault-unusable")

    def locate() -> Path:
        raise RuntimeError(SECRET)

    reply = handle(train_request(), locate, resident)
    assert protocol.open_reply(reply) == protocol.Refusal("unknown", "internal-error")
    assert b"Hansen" not in everything_in(reply)
    assert "Hansen" in caplog.text


def test_an_error_while_the_answer_is_encoded_leaves_as_a_code_too(
    home: Path, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.app, "changing_names", lambda model: (SECRET,))
    monkeypatch.setattr(client.app.OwnPart, "end", lambda part: {SECRET: np.zeros(3, np.float64)})
    assert ask(home, resident, train_request()) == protocol.Refusal("site-1", "model-invalid")
    monkeypatch.setattr(client.app.OwnPart, "end", lambda part: {SECRET: None})
    assert ask(home, resident, train_request()) == protocol.Refusal("site-1", "internal-error")


def test_a_reply_holds_no_more_than_it_should(home: Path, resident: Resident) -> None:
    """Weights, and numbers about them: no path, no file name, no patient, no label text."""
    rows = resident.site(home).vaults[0].rows()
    named = {value.encode() for row in rows for value in (row.patient, row.digest, *row.labels["label"])}
    assert len(named) > 20
    for what in REQUESTS:
        reply = handle(REQUESTS[what](), lambda: home, resident)
        records = {name: sorted(record) for name, record in reply.content.items()}
        assert set(records) <= {"head", "facts", "weights", "statistics"}
        assert set(records["head"]) <= {"protocol", "site", "kind", "round", "images", "program"}
        assert set(records.get("facts", [])) <= {"examples", "loss", "seconds"}
        sent = everything_in(reply)
        for word in (*named, b"phantom", b"sqlite", str(home.parent).encode()):
            assert word not in sent


# --- a hostile coordinator --------------------------------------------------------------------------


def changed(what: str, **head: Any) -> Message:
    """A request whose head was tampered with; ``None`` removes a field."""
    asked = REQUESTS[what]()
    record = asked.content["head"]
    assert isinstance(record, ConfigRecord)
    for name, value in head.items():
        if value is None:
            del record[name]
        else:
            record[name] = value
    return asked


def other_study(**changes: Any) -> Message:
    return message(protocol.TrainRequest(protocol.Task(fed.study(**changes), round=1), weights()))


def with_arrays(record: ArrayRecord, name: str = "weights", what: str = "train") -> Message:
    asked = REQUESTS[what]()
    asked.content[name] = record
    return asked


def packed(named: dict[str, Any], **fields: Any) -> ArrayRecord:
    """As it travels, but for ``fields`` of the envelope."""
    good = pack(named, DTYPES)["packed"]
    facts = {"dtype": good.dtype, "shape": good.shape, "stype": good.stype, "data": good.data} | fields
    return ArrayRecord({"packed": Array(**facts)})


def table(text: bytes) -> ArrayRecord:
    """Packed arrays of that table, and 64 bytes."""
    data = len(text).to_bytes(8, "little") + text + bytes(-(len(text) + 8) % 64) + bytes(64)
    return ArrayRecord({"packed": Array("uint8", (len(data),), "fedward.packed.1", data)})


def moments(reference: dict[str, Any]) -> Message:
    return message(protocol.MomentsRequest(TASK, "val", weights(), reference))


HOSTILE: dict[str, tuple[Callable[[], Message], str]] = {
    "another version": (lambda: changed("train", protocol=protocol.VERSION + 1), "version-mismatch"),
    "no study": (lambda: changed("survey", study=None), "protocol-mismatch"),
    "garbage": (lambda: changed("survey", study="\x00\xff" * 99), "protocol-mismatch"),
    "an oversized study": (lambda: changed("survey", study="{" + " " * (40 << 20) + "}"), "protocol-mismatch"),
    "a nested study": (lambda: changed("survey", study='{"a":' * 50_000), "protocol-mismatch"),
    "a YAML bomb": (
        lambda: changed("survey", study="a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]"),
        "protocol-mismatch",
    ),
    "code in YAML": (
        lambda: changed("survey", study="!!python/object/apply:os.system ['touch pwned']"),
        "protocol-mismatch",
    ),
    "an unknown split": (lambda: changed("evaluate", split="../train"), "protocol-mismatch"),
    "an unknown model": (
        lambda: changed("survey", study=STUDY.canonical().decode().replace('"cnn"', '"os.system"')),
        "protocol-mismatch",
    ),
    "an unknown strategy": (
        lambda: changed("survey", study=STUDY.canonical().decode().replace('"fedavg"', '"x.y"')),
        "protocol-mismatch",
    ),
    "a round of another time": (lambda: changed("train", round=-(2**60)), "protocol-mismatch"),
    "an arm that is a path": (lambda: changed("train", arm="../../x"), "protocol-mismatch"),
    "an unknown request": (
        lambda: fed.request(train_request().content, "train.everything"),
        "protocol-mismatch",
    ),
    "no content": (lambda: Message(Error(1, "x"), reply_to=train_request()), "protocol-mismatch"),
    "an empty message": (lambda: fed.request(RecordDict(), protocol.TRAIN), "protocol-mismatch"),
    "weights as numbers": (
        lambda: fed.request(
            RecordDict({"head": train_request().content["head"], "weights": MetricRecord()}), "train.fit"
        ),
        "protocol-mismatch",
    ),
    "a pickle": (
        lambda: with_arrays(packed({}, stype="pickle", shape=(13,), data=b"cos\nsystem\n.")),
        "protocol-mismatch",
    ),
    "a pickle that says it is packed": (
        lambda: with_arrays(packed({}, shape=(13,), data=b"cos\nsystem\n.")),
        "protocol-mismatch",
    ),
    "objects": (lambda: with_arrays(table(b'[["w","|O",[8]]]')), "protocol-mismatch"),
    "an array larger than its bytes": (
        lambda: with_arrays(table(b'[["w","<f4",[274877906944]]]')),
        "protocol-mismatch",
    ),
    "a negative shape": (lambda: with_arrays(table(b'[["w","<f4",[-4]]]')), "protocol-mismatch"),
    "one name twice": (lambda: with_arrays(table(b'[["w","<f4",[1]],["w","<f4",[0]]]')), "protocol-mismatch"),
    "more arrays than a model has": (lambda: with_arrays(table(b"[" + b"0," * 30_000 + b"0]")), "protocol-mismatch"),
    "weights of another model": (lambda: with_arrays(packed({"w": np.zeros(3, np.float32)})), "model-invalid"),
    "weights of another shape": (
        lambda: with_arrays(packed({name: value[..., None] for name, value in weights().items()})),
        "model-invalid",
    ),
    "weights that are no numbers": (
        lambda: with_arrays(
            packed({n: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for n, v in weights().items()}),
            what="evaluate",
        ),
        "model-invalid",
    ),
    "classes that nobody has": (
        lambda: other_study(classes={"normal": ["a"], "pneumonia": ["b"]}),
        "data-invalid",
    ),
    "a column that nobody has": (lambda: other_study(**{"data.label_column": "name"}), "data-invalid"),
    "fedprox without its mu": (lambda: other_study(**{"federation.strategy.name": "fedprox"}), "study-invalid"),
    "a model it cannot build": (lambda: other_study(**{"model.params.filters": [4] * 9}), "model-invalid"),
    "no reference": (lambda: moments({}), "protocol-mismatch"),
    "a reference of nonsense": (
        lambda: moments({name: np.full(3, -1) for name in ("layout", "size", "low_at", "low_n", "position")}),
        "protocol-mismatch",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_request_is_declined_with_a_code(what: str, home: Path, resident: Resident) -> None:
    make, code = HOSTILE[what]
    asked = make()
    found = protocol.open_reply(handle(asked, lambda: home, resident))
    assert isinstance(found, protocol.Refusal), found
    assert found.code == code
    assert not Path("pwned").exists()


def test_a_path_in_a_study_is_not_opened_by_a_site(
    home: Path, resident: Resident, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``model.weights`` is the coordinator's file; a site that opened it could be asked for any of its own."""
    study = fed.study(**{"model.weights": str(tmp_path / "passwd")})
    opened: list[str] = []
    real = Path.open

    def spy(self: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", spy)
    found = ask(home, resident, message(protocol.TrainRequest(protocol.Task(study, round=1), weights())))
    assert isinstance(found, protocol.TrainReply)
    assert not [name for name in opened if "passwd" in name]


def test_hostile_requests_change_nothing_at_the_site(home: Path, tmp_path: Path) -> None:
    """Neither its files nor what it answers afterwards."""
    copy = tmp_path / "site"
    shutil.copytree(home, copy)

    def files() -> dict[str, str]:
        return {
            str(path.relative_to(copy)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(copy.rglob("*"))
            if path.is_file()
        }

    clean, resident = Resident(), Resident()
    expected = ask(copy, clean, train_request())
    before = files()
    for make, _ in HOSTILE.values():
        handle(make(), lambda: copy, resident)
    found = ask(copy, resident, train_request())
    assert isinstance(expected, protocol.TrainReply)
    assert isinstance(found, protocol.TrainReply)
    assert digest(found.weights) == digest(expected.weights)
    assert files() == before
    clean.close()
    resident.close()


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["protocol", "study", "arm", "repeat", "round", "split"]),
        st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=40) | st.binary(max_size=40) | st.booleans(),
        max_size=3,
    ),
    st.sampled_from([protocol.SURVEY, protocol.EVALUATE, protocol.MOMENTS, "query.other"]),
)
def test_no_head_makes_a_site_fail_unexpectedly(home: Path, head: dict[str, Any], kind: str) -> None:
    """Every nonsense has its own code: ``internal-error`` would mean that something got too far in."""
    made = changed("evaluate", **head)
    resident = Resident()
    try:
        found = protocol.open_reply(handle(fed.request(made.content, kind), lambda: home, resident))
    finally:
        resident.close()
    assert not isinstance(found, protocol.Refusal) or found.code != "internal-error"


# --- who is asked -----------------------------------------------------------------------------------


class Config:
    """What a handler sees of Flower's context."""

    def __init__(self, node: dict[str, Any], run: dict[str, Any] | None = None) -> None:
        self.node_config, self.run_config, self.run_id = node, run or {}, 7


def test_a_simulated_node_without_a_site_is_refused(tmp_path: Path) -> None:
    places = Directories([tmp_path / "a", tmp_path / "b"])
    assert places(Config({"partition-id": 1})) == tmp_path / "b"  # type: ignore[arg-type]
    with pytest.raises(VaultError, match=r"node 2 plays no site; this run has 2"):
        places(Config({"partition-id": 2}))  # type: ignore[arg-type]


def test_a_node_finds_its_site_by_its_own_configuration_first(tmp_path: Path) -> None:
    """The run's configuration comes from the coordinator; the node's from the hospital."""
    both = Config({"site-dir": str(tmp_path), "partition-id": 0}, {"run": "/elsewhere"})
    assert locate_by_config(both) == tmp_path  # type: ignore[arg-type]
    virtual = Config({"partition-id": 0}, {"run": str(tmp_path)})
    assert locate_by_config(virtual) == tmp_path / "sites" / "site-1"  # type: ignore[arg-type]
    with pytest.raises(FedwardError, match="this node has no site"):
        locate_by_config(Config({}))  # type: ignore[arg-type]


def test_the_app_answers_every_kind_of_request(home: Path) -> None:
    app = make_app(lambda context: home)
    for make in REQUESTS.values():
        reply = app(make(), Context(1, 1, {}, RecordDict(), {}))
        assert not isinstance(protocol.open_reply(reply), protocol.Refusal)
