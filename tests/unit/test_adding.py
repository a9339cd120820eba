"""A site whose numbers fit by themselves and not beside the others' is named, and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common import protocol
from common.errors import ProtocolError, QuorumError
from common.metrics import FirstPass, Layout, Moments, Outlines, SecondPass, Thresholds
from common.metrics.clustered import _MOST, Ratio
from common.metrics.moments import MOST_SQUARED
from common.metrics.outlines import Overlaps
from common.metrics.paired import Areas, Spread
from common.metrics.subgroup_moments import _MOST as MOST_OF_GROUPS
from common.metrics.subgroup_moments import GroupMoments
from common.study import Study
from server.adding import TOO_LARGE, added, added_of_all
from server.asking import Link
from server.rounds import Arm
from server.testing import test_model as run_test
from server.work import Work
from tests.unit import federation as fed

LAYOUT = Layout("binary", 1, 64)
STUDY = fed.study(**{"federation.rounds": 1, "federation.quorum": 0.6})
UNET = {"name": "unet", "params": {"depth": 1, "width": 4}}
OUTLINING = STUDY.derive(task="segmentation", classes=["lesion"], model=UNET)


def moments(number: int) -> Moments:
    zero = Moments.zero(LAYOUT)
    return replace(zero, squares=zero.squares + number, support=zero.support + 1, patients=1)


KINDS: Mapping[str, tuple[int, Callable[[int], Any]]] = {
    "moments": (MOST_SQUARED, moments),
    "second pass": (MOST_SQUARED, lambda number: SecondPass(moments(number))),
    "decisions": (MOST_SQUARED, lambda number: replace(Spread.zero(LAYOUT), kappa=np.array([number]))),
    "areas": (MOST_SQUARED, lambda number: replace(Areas.zero(LAYOUT), parts=np.array([[0, number]]))),
    "groups": (MOST_OF_GROUPS, lambda number: replace(GroupMoments.zero(LAYOUT), gaps=np.full((2, 2), number))),
    "ratios": (_MOST, lambda number: replace(Ratio.zero((2,)), squares=np.full((3, 2), number))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whose_sums_do_not_fit_beside_the_others_is_named(kind: str) -> None:
    most, of = KINDS[kind]
    parts = {"east": of(5), "north": of(7), "west": of(most)}
    with pytest.raises(ProtocolError):
        sum(parts.values(), of(0))
    total, refused = added(parts, of(0))
    assert refused == ["west"] and total.load == of(12).load
    assert added({"east": of(5), "west": of(most // 2)}, of(0))[1] == []
    assert added({**parts, "south": of(most // 3 * 2)}, of(0))[1] == ["south", "west"]
    with pytest.raises(QuorumError, match=r"^west did not test the model \(refused: its sums are greater"):
        added_of_all(parts, of(0))


def outlined(images: int) -> FirstPass:
    """Two honest images' outlines, or a claim of many more."""
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[:, 1:3, 1:3] = 1
    made = Outlines.of(Overlaps.of(masks * 0.9, masks, np.arange(2)), np.arange(2))
    if images > 2:
        whole = np.full_like(made.dice.below, images << 32)
        claimed = [replace(ratio, below=whole) for ratio in (made.dice, made.iou)]
        made = replace(made, dice=claimed[0], iou=claimed[1], images=np.array([0, images]))
    return FirstPass(fed.counts(OUTLINING, right=3, wrong=1, loss=0.5), made)


def sites(study: Study, statistics: Callable[[str, protocol.Request], Any]) -> fed.Scripted:
    def answer(alias: str, request: protocol.Request) -> protocol.Reply:
        if isinstance(request, protocol.TrainRequest):
            return protocol.TrainReply(alias, 1, request.weights, 10, 0.5, 0.0)
        return protocol.StatisticsReply(alias, 1, statistics(alias, request).to_arrays(), 0.0)

    return fed.Scripted(("east", "north", "west"), answer)


def test_a_round_goes_on_without_the_site_whose_outlines_do_not_fit() -> None:
    grid = sites(OUTLINING, lambda alias, _: outlined((_MOST >> 32) if alias == "west" else 2))
    arm = Arm(Link(grid, fed.Events().log), Work(OUTLINING, "federated", 0, grid.sites)).run()
    (record,) = arm.history
    told = {site: facts["evaluation"] for site, facts in record["sites"].items()}
    assert told == {"east": "ok", "north": "ok", "west": TOO_LARGE}
    assert arm.validation["outline_images"].tolist() == [0, 4]


def test_a_test_names_the_site_whose_sums_of_squares_do_not_fit() -> None:
    layout = Layout.of(STUDY)

    def told(alias: str, request: protocol.Request) -> Any:
        if isinstance(request, protocol.EvaluateRequest):
            return FirstPass(fed.counts(STUDY, right=3, wrong=1, loss=0.5))
        zero = Moments.zero(layout)
        large = MOST_SQUARED if alias == "west" else 1 << 40
        return SecondPass(replace(zero, squares=zero.squares + large, support=zero.support + 2, patients=4))

    grid = sites(STUDY, told)
    work = Work(STUDY, "federated", 0, grid.sites)
    thresholds = Thresholds(np.array([512]), np.array([True]), STUDY.evaluation.bins)
    with pytest.raises(QuorumError, match=r"^west did not test the model \(refused: its sums are greater"):
        run_test(Link(grid, fed.Events().log), work, fed.weights(1), thresholds, grid.sites, own={})
