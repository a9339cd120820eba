"""What a reply must satisfy before it may touch the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.errors import ReplyRefused
from common.protocol import TrainReply
from common.study import FederationSpec
from server.checks import ReplyChecks
from tests.unit import federation as fed

SENT = fed.weights(0)
GOOD = fed.replies(SENT, 1, 2)[0]


def checks(**spec: Any) -> ReplyChecks:
    return ReplyChecks(FederationSpec(**spec), fed.PARAMETERS)


def judge(reply: TrainReply, made: ReplyChecks | None = None) -> float:
    return (made or checks()).judge(reply, site="site-1", round_=2, sent=SENT)


def changed(name: str, value: Any) -> TrainReply:
    return replace(GOOD, weights=dict(GOOD.weights) | {name: value})


def moved(length: float) -> TrainReply:
    """A reply whose parameters moved by ``length``."""
    return replace(GOOD, weights=dict(SENT) | {"scale": np.asarray(SENT["scale"] + np.float32(length), np.float32)})


def test_a_good_reply_gives_its_norm_over_the_parameters_alone() -> None:
    expected = np.sqrt(
        sum(np.sum((GOOD.weights[n].astype(np.float64) - SENT[n].astype(np.float64)) ** 2) for n in fed.PARAMETERS)
    )
    assert judge(GOOD) == pytest.approx(expected, rel=1e-12)


WRONG = {
    "another site's name": (replace(GOOD, site="site-2"), "another site's name"),
    "an old round": (replace(GOOD, round=1), "answers round 1, not 2"),
    "a coming round": (replace(GOOD, round=3), "answers round 3, not 2"),
    "no examples": (replace(GOOD, examples=0), "trained on 0 examples"),
    "negative examples": (replace(GOOD, examples=-5), "trained on -5 examples"),
    "too many examples": (replace(GOOD, examples=1 << 31), "trained on 2147483648 examples"),
    "a loss that is no number": (replace(GOOD, loss=float("nan")), "loss is not finite"),
    "an infinite loss": (replace(GOOD, loss=float("inf")), "loss is not finite"),
    "a negative loss": (replace(GOOD, loss=-0.1), "loss -0.1 is negative"),
    "NaN": (changed("fc.weight", np.full((2, 4), np.nan, np.float32)), "not finite in 'fc.weight'"),
    "infinity in a buffer": (changed("norm.running_mean", np.full(4, np.inf, np.float32)), "not finite in"),
    "a wrong shape": (changed("norm.bias", np.zeros(5, np.float32)), r"shape of 'norm.bias' is \(5,\) instead of"),
    "a broadcastable shape": (changed("norm.bias", np.zeros(1, np.float32)), r"shape of"),
    "a counter with a dimension": (changed(fed.COUNTER, np.array([3])), "shape of"),
    "a wrong type": (changed("norm.bias", np.zeros(4, np.float64)), "type of 'norm.bias' is float64 instead of"),
    "a float counter": (changed(fed.COUNTER, np.array(3.0, np.float32)), "type of"),
    "a missing name": (
        replace(GOOD, weights={n: v for n, v in GOOD.weights.items() if n != "fc.weight"}),
        "missing 'fc.weight'",
    ),
    "an extra name": (changed("backdoor", np.zeros(1, np.float32)), "unexpected 'backdoor'"),
    "no weights": (replace(GOOD, weights={}), "missing 'conv.weight'"),
    "a negative variance": (changed("norm.running_var", np.full(4, -1e-6, np.float32)), "variance .* is negative"),
    "a counter about to overflow": (changed(fed.COUNTER, np.array(2**63 - 1)), "counter .* outside"),
    "a counter below zero": (changed(fed.COUNTER, np.array(-(2**63))), "counter .* outside"),
    "a norm above the bound": (moved(1001.0), r"norm 1e\+03 is above the bound 1e\+03"),
    "the largest floats": (
        changed("fc.weight", np.full((2, 4), np.finfo(np.float32).max, np.float32)),
        "above the bound",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_refused(what: str) -> None:
    reply, message = WRONG[what]
    made = checks()
    with pytest.raises(ReplyRefused, match=message):
        judge(reply, made)
    assert made.norms == []
    made.next_round()
    assert made.cap == 1000.0  # a refused reply bounds nobody


def test_the_bound_is_a_multiple_of_the_previous_rounds_accepted_median() -> None:
    made = checks(first_norm_cap=50.0, norm_factor=4.0)
    for length in (1.0, 3.0, 40.0):
        made.accepted(judge(moved(length), made))
    # … and of this round's it is not: the verdict may not depend on who came first.
    assert judge(moved(45.0), made) == pytest.approx(45.0, rel=1e-6)
    made.next_round()
    assert made.cap == pytest.approx(12.0, rel=1e-6)
    with pytest.raises(ReplyRefused, match="above the bound"):
        judge(moved(12.1), made)
    made.accepted(judge(moved(2.0), made))
    made.next_round()
    assert made.cap == pytest.approx(8.0, rel=1e-6)


def test_a_round_in_which_nothing_moved_does_not_lock_everybody_out() -> None:
    made = checks(first_norm_cap=50.0)
    made.accepted(judge(moved(0.0), made))
    made.next_round()
    assert made.cap == 50.0


def test_a_bound_that_was_kept_is_the_bound_that_goes_on() -> None:
    made = checks()
    made.accepted(judge(moved(0.1), made))
    made.next_round()
    again = ReplyChecks(FederationSpec(), fed.PARAMETERS, cap=float(repr(made.cap)))
    assert again.cap == made.cap
    with pytest.raises(ReplyRefused, match="above the bound"):
        judge(moved(1.1), again)


def test_counters_may_grow_and_new_ones_begin() -> None:
    judge(changed(fed.COUNTER, np.array(int(SENT[fed.COUNTER]) + 1000)))
    judge(changed(fed.COUNTER, np.array(0)))


def test_a_tiny_update_is_never_far_above_a_tinier_one() -> None:
    """Where training stalls, ten times the median is next to nothing; refusing 1% of the model would end the run."""
    made = ReplyChecks(FederationSpec(), ("w",), cap=1e-6)
    sent = {"w": np.full(100, 1.0, np.float32)}  # norm 10
    near = {"w": sent["w"] + np.float32(0.009)}  # update of norm 0.09
    far = {"w": sent["w"] + np.float32(0.02)}  # update of norm 0.2
    assert made.judge(TrainReply("a", 1, near, 5, 0.1, 0.0), site="a", round_=1, sent=sent) == pytest.approx(
        0.09, rel=1e-3
    )
    with pytest.raises(ReplyRefused, match="above the bound"):
        made.judge(TrainReply("a", 1, far, 5, 0.1, 0.0), site="a", round_=1, sent=sent)
