"""Compressed updates: in the study, on the wire, at a site that is killed, in a run that is resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.agent import Agent
from client.describe import _leaves as leaves
from client.feedback import RESIDUALS, Residuals
from client.replies import Replies
from common import protocol
from common.compression import Compression, Update, compress, decompress
from common.errors import ProtocolError, ReplyRefused, RoundSpent, StoreError, StudyError
from common.study import Study
from common.weights import digest
from server.work import Work
from simulations.engine import InProcessGrid
from tests.unit import federation as fed
from tests.unit.test_agent import OURS, Site
from tests.unit.test_replies import opened
from tests.unit.test_rounds import NODES, SITES, comparable, kill_in_the_third_round, train, work

INT8 = fed.study(**{"federation.compression": "int8"})
RUN = (INT8.hash, "federated", 0)
RECEIVED = fed.weights(0)


def update(form: Compression = "int8") -> Update:
    return compress(form, fed.weights(1, 0.1, around=RECEIVED), RECEIVED, fed.PARAMETERS, {})[0]


# --- the study ------------------------------------------------------------------------------------------------------


def test_a_study_without_compression_is_written_as_before() -> None:
    plain = fed.study()
    assert b"compression" not in plain.canonical()
    assert fed.study(**{"federation.compression": "none"}).hash == plain.hash != INT8.hash
    assert Study.parse(INT8.canonical().decode()) == INT8
    with pytest.raises(StudyError, match="compression"):
        fed.study(**{"federation.compression": "int4"})
    assert protocol.Task(INT8).compression == "int8"
    assert protocol.Task(INT8, "pooled").compression == protocol.Task(INT8, "local:site-1").compression == "none"


def test_people_read_in_which_form_a_fit_leaves() -> None:
    assert "the model's weights after training here, how many images" in leaves(fed.study())
    assert "rounded to 16 bits each, how many" in leaves(fed.study(**{"federation.compression": "fp16"}))
    assert "rounded to 8 bits each (what rounding left out stays here, encrypted" in leaves(INT8)


# --- the wire -------------------------------------------------------------------------------------------------------


def sent(made: Update) -> Message:
    asked = fed.request(protocol.seal(protocol.SurveyRequest(protocol.Task(INT8))).content, protocol.SURVEY)
    return protocol.answer(protocol.UpdateReply("site-1", 1, made, 12, 0.25, 1.5), asked)


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_a_compressed_reply_comes_out_as_it_went_in(form: Compression) -> None:
    message = sent(update(form))
    found = protocol.open_reply(message)
    assert isinstance(found, protocol.UpdateReply)
    assert digest(found.update.arrays) == digest(update(form).arrays)
    assert np.array_equal(found.update.scales, update(form).scales)
    assert (found.site, found.round, found.examples, found.loss, found.seconds) == ("site-1", 1, 12, 0.25, 1.5)
    kept = protocol.freeze(message)
    assert protocol.freeze(protocol.thaw(kept, message)) == kept


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_is_no_size_is_unreadable(scale: float) -> None:
    scales = update().scales.copy()
    scales[1] = scale
    with pytest.raises(ProtocolError, match="scale"):
        protocol.open_reply(sent(replace(update(), scales=scales)))


def test_scales_that_are_no_row_are_unreadable() -> None:
    with pytest.raises(ProtocolError, match="no row of scales"):
        protocol.open_reply(sent(replace(update(), scales=update().scales[:, None])))


def changed(**arrays: Any) -> Update:
    return replace(update(), arrays={**update().arrays, **{name.replace("_", "."): a for name, a in arrays.items()}})


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (replace(update(), scales=update().scales[:-1]), "4 scales for 5"),
        (replace(update(), scales=np.append(update().scales, np.float32(1))), "6 scales for 5"),
        (update("fp16"), "not the study's model in int8"),
        (changed(fc_weight=np.zeros((2, 4), np.float32)), "not the study's model"),
        (changed(fc_weight=np.zeros((4, 2), np.int8)), "not the study's model"),
        (changed(fc_weight=np.full((2, 4), -128, np.int8)), "-128"),
        (changed(fc_other=np.zeros(2, np.int8)), "not the study's model"),
        (replace(update(), arrays={"fc.weight": np.zeros((2, 4), np.int8)}), "not the study's model"),
    ],
)
def test_an_update_of_another_model_is_refused(made: Update, why: str) -> None:
    with pytest.raises(ReplyRefused, match=why):
        decompress("int8", made, RECEIVED, fed.PARAMETERS)


# --- what a site keeps ----------------------------------------------------------------------------------------------


def left(number: float) -> dict[str, Any]:
    return {"w": np.full(3, number, np.float32), "scale": np.array(number, np.float32)}


def test_a_round_reads_what_the_round_before_left_and_never_its_own(tmp_path: Path) -> None:
    with closing(Residuals(tmp_path / RESIDUALS, opened(tmp_path))) as residuals:
        assert residuals.before(RUN, 1) == {}
        for round_ in (1, 2, 5):  # rounds 3 and 4 went on without this site
            residuals.keep(RUN, round_, left(round_))
        assert digest(residuals.before(RUN, 6)) == digest(left(5))
        assert digest(residuals.before(RUN, 5)) == digest(residuals.before(RUN, 4)) == digest(left(2))
        with pytest.raises(RoundSpent, match="last checkpoint"):
            residuals.before(RUN, 2)
        assert residuals.before((INT8.hash, "federated", 1), 6) == {}
        residuals.keep(RUN, 1, left(1))  # from the start again: what came later is of the run before
        assert digest(residuals.before(RUN, 5)) == digest(left(1))
    assert b"\0\0\x80\x3f" * 3 not in (tmp_path / RESIDUALS).read_bytes(), "1.0, in the clear"
    Residuals.forget(tmp_path / RESIDUALS, INT8.hash)
    with closing(Residuals(tmp_path / RESIDUALS, opened(tmp_path))) as residuals:
        assert residuals.before(RUN, 5) == {}


def test_a_residual_of_another_round_cannot_take_its_place_and_a_new_key_starts_anew(tmp_path: Path) -> None:
    with closing(Residuals(tmp_path / RESIDUALS, opened(tmp_path))) as residuals:
        residuals.keep(RUN, 1, left(1))
        with residuals._database.transaction() as connection:
            connection.execute("UPDATE residual SET round = 2")
        with pytest.raises(StoreError, match="not as it was written"):
            residuals.before(RUN, 3)
    (tmp_path / "other").mkdir()
    with closing(Residuals(tmp_path / RESIDUALS, opened(tmp_path / "other"))) as residuals:
        assert residuals.before(RUN, 3) == {}


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def test_killed_between_residual_and_reply_a_site_sends_the_same_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, images=40)
    study = OURS.derive(**{"federation.compression": "int8"})
    site.survey(study)
    site.approve()

    def request(round_: int) -> protocol.TrainRequest:
        return protocol.TrainRequest(site.task(study, round=round_), site.weights)

    assert isinstance(site.send(request(1)), protocol.UpdateReply)
    lost: list[bytes] = []

    def die(self: Replies, identity: object, reply: bytes) -> None:
        lost.append(reply)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Replies, "keep", die)
        with pytest.raises(Killed):
            site.send(request(2))
        patched.setattr(Residuals, "before", lambda *_: {})
        with pytest.raises(Killed):
            site.send(request(2))
    site.agent.close()
    site.agent = Agent(site.home)
    again = site.send(request(2))
    never, alone = (protocol.open_reply(protocol.thaw(reply, site.message(request(2)))) for reply in lost)
    assert isinstance(again, protocol.UpdateReply) and isinstance(never, protocol.UpdateReply)
    assert isinstance(alone, protocol.UpdateReply)
    assert digest(alone.update.arrays) != digest(never.update.arrays), "of round 2 without what round 1 left out"
    assert digest(again.update.arrays) == digest(never.update.arrays)
    assert np.array_equal(again.update.scales, never.update.scales)
    resent = site.send(request(2))
    assert isinstance(resent, protocol.UpdateReply)
    assert resent.seconds == again.seconds, "kept, not made again"
    path = site.home.state / RESIDUALS
    assert path.stat().st_mode & 0o777 == 0o600
    with site.home.vault(read_only=True) as vault, closing(Residuals(path, vault)) as residuals:
        assert any(value.any() for value in residuals.before((study.hash, "federated", 0), 3).values())
    site.decide(lambda found: found.withdraw(found.records()[0], by="Ann"))
    site.survey(study)
    with site.home.vault(read_only=True) as vault, closing(Residuals(path, vault)) as residuals:
        assert residuals.before((study.hash, "federated", 0), 3) == {}
    site.agent.close()


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessGrid]:
    homes = fed.make_sites(tmp_path_factory.mktemp("compressed") / "sites", INT8)
    with closing(InProcessGrid(list(homes.values()))) as made:
        yield made


def test_a_run_in_eight_bits_is_smaller_and_the_same_when_resumed(grid: InProcessGrid, tmp_path: Path) -> None:
    sizes: list[int] = []

    def weigh(node: int, reply: Message) -> list[Message]:
        if "update" in reply.content:
            sizes.append(protocol.size(reply.content))
        return [reply]

    first = train(fed.Bent(grid, weigh), work(INT8))
    plain = sum(array.nbytes for array in first.weights.values())
    assert len(sizes) == 9 and max(sizes) < 0.55 * plain, "of a tiny model; its names and buffers are as large"
    assert digest(train(grid, work(INT8)).weights) == digest(first.weights), "over what the run before has left"
    interrupted = work(INT8, checkpoint=tmp_path / "checkpoint")
    kill_in_the_third_round(grid, interrupted)
    resumed = train(grid, interrupted)
    assert digest(resumed.weights) == digest(first.weights)
    assert comparable(resumed.history) == comparable(first.history)


def test_a_reply_in_another_form_than_the_studys_is_refused_by_name(grid: InProcessGrid) -> None:
    study = INT8.derive(**{"federation.rounds": 1, "federation.quorum": 0.6})

    def statuses(bend: Callable[[protocol.UpdateReply, Message], protocol.Reply]) -> dict[str, str]:
        def bent(node: int, reply: Message) -> list[Message]:
            found = protocol.open_reply(reply)
            if node == NODES["site-2"] and isinstance(found, protocol.UpdateReply):
                reply.content = protocol.answer(bend(found, reply), fed.request(reply.content, protocol.TRAIN)).content
            return [reply]

        (record,) = train(fed.Bent(grid, bent), Work(study, "federated", 0, NODES)).history
        return {site: facts["status"] for site, facts in record["sites"].items()}

    def plain(found: protocol.UpdateReply, _: Message) -> protocol.Reply:
        return protocol.TrainReply(found.site, 1, RECEIVED, 10, 0.5, 0.1)

    def huge(found: protocol.UpdateReply, _: Message) -> protocol.Reply:
        scales = np.full_like(found.update.scales, 3e38)
        return replace(found, update=replace(found.update, scales=scales))

    assert statuses(plain) == dict.fromkeys(SITES, "ok") | {"site-2": "wrong kind of reply"}
    assert "refused: weights are not finite" in statuses(huge)["site-2"]
