"""Every strategy: Flower's numbers, no trace of the order of arrival, the same after a crash."""

from __future__ import annotations

import gc
import itertools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.testing import assert_allclose, assert_array_equal

from common.errors import ModelError, QuorumError, ReplyRefused
from common.protocol import TrainReply
from common.study import STRATEGIES, Study
from common.weights import Weights, digest, to_arrays
from server.aggregation import Aggregator, FixedPointSum, build_aggregator
from server.checkpoints import Progress, load_progress, save_progress
from tests.unit import federation as fed

PARAMS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {"server_momentum": 0.9, "server_learning_rate": 0.7},
    "fedprox": {"proximal_mu": 0.1},
    "fedadam": {"eta": 0.05, "beta_1": 0.8},
    "fedyogi": {"eta": 0.05},
    "fedadagrad": {"eta": 0.05},
    "qfedavg": {"client_learning_rate": 0.1, "q": 0.3},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 1},
    "multikrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "bulyan": {"num_malicious_nodes": 1},
}
REFERENCES: dict[str, type[flower.FedAvg]] = {
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedprox": flower.FedProx,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedadagrad": flower.FedAdagrad,
    "qfedavg": flower.QFedAvg,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
}
ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")
SITES = 7


def study_with(name: str, **params: Any) -> Study:
    return fed.study(**{"federation.strategy": {"name": name, "params": PARAMS[name] | params}})


def fresh(name: str, sites: int = SITES, **params: Any) -> Aggregator:
    return build_aggregator(study_with(name, **params), fed.layout(fed.weights(0)), sites=sites)


def one_round(aggregator: Aggregator, round_: int, sent: Weights, replies: list[TrainReply]) -> Weights:
    aggregator.begin(round_, sent)
    for reply in replies:
        aggregator.add(reply)
    return aggregator.finish()


def three_rounds(aggregator: Aggregator, order: int = 0, sites: int = SITES) -> list[Weights]:
    """Weights after each round; replies arrive in the order that ``order`` names."""
    sent: Weights = fed.weights(0)
    found = []
    for round_ in (1, 2, 3):
        replies = fed.replies(sent, sites, round_)
        random.Random(order + round_).shuffle(replies)
        sent = one_round(aggregator, round_, sent, replies)
        found.append(sent)
    return found


def by_flower(name: str) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Flower's own strategy on the raw replies' parameters, as its ``start`` would drive it."""
    strategy = REFERENCES[name](**PARAMS[name])
    sent: Weights = fed.weights(0)
    found = []
    ours = fresh(name)  # for the buffers that the next round's replies are made around
    for round_ in (1, 2, 3):
        replies = fed.replies(sent, SITES, round_)
        before = {key: sent[key] for key in fed.PARAMETERS}
        if isinstance(strategy, FedOpt):
            strategy.current_arrays = before
        elif round_ == 1 or isinstance(strategy, flower.QFedAvg):
            strategy.current_arrays = to_arrays(before)  # FedAvgM keeps its own from then on
        messages = [
            Message(
                RecordDict(
                    {
                        "arrays": to_arrays({key: reply.weights[key] for key in fed.PARAMETERS}),
                        "metrics": MetricRecord({"num-examples": reply.examples, "train_loss": reply.loss}),
                    }
                ),
                1,
                "train",
            )
            for reply in replies
        ]
        gc.freeze()  # Flower's qfedavg and bulyan collect garbage for every reply, 0.2 s each
        arrays, _ = strategy.aggregate_train(round_, messages)
        gc.unfreeze()
        assert arrays is not None
        found.append({key: array.numpy() for key, array in arrays.items()})
        sent = one_round(ours, round_, sent, replies)
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_three_rounds_equal_flowers_own_strategy_on_the_raw_replies(name: str) -> None:
    for ours, theirs in zip(three_rounds(fresh(name)), by_flower(name), strict=True):
        for key in fed.PARAMETERS:
            assert ours[key].shape == theirs[key].shape
            # Momentum and moments carry float32 rounding along; fixed point itself is exact to 2⁻³².
            assert_allclose(ours[key], theirs[key], rtol=2e-5, atol=2e-6, err_msg=f"{name} {key}")


@pytest.mark.parametrize("name", STRATEGIES)
def test_order_of_arrival_does_not_show_in_a_bit(name: str) -> None:
    first = [digest(found) for found in three_rounds(fresh(name), order=0)]
    for order in (10, 20, 30):
        assert [digest(found) for found in three_rounds(fresh(name), order=order)] == first


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_fresh_aggregator_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = three_rounds(fresh(name))
    sent: Weights = fed.weights(0)
    path = tmp_path / "checkpoint.safetensors"
    for round_ in (1, 2, 3):
        aggregator = fresh(name)  # as after a crash: nothing in memory survives
        saved = load_progress(path, key={})
        if saved is not None:
            aggregator.restore(saved.strategy)
            sent = saved.weights
        sent = one_round(aggregator, round_, sent, fed.replies(sent, SITES, round_))
        state = aggregator.state()
        save_progress(path, Progress(round_, weights=sent, strategy=state), key={})
        read = load_progress(path, key={})
        assert read is not None
        for key, array in state.items():
            assert (read.strategy[key].dtype, read.strategy[key].shape) == (array.dtype, array.shape)
        assert digest(sent) == digest(whole[round_ - 1])


def test_strategies_with_memory_do_remember() -> None:
    """The test above could not fail for a strategy that kept nothing."""
    for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad"):
        aggregator = fresh(name)
        three_rounds(aggregator)
        assert aggregator.state(), name
        forgetful = fresh(name)
        sent = three_rounds(fresh(name))[1]
        kept = one_round(forgetful, 3, sent, fed.replies(sent, SITES, 3))
        assert digest(kept) != digest(three_rounds(fresh(name))[2]), name


@pytest.mark.parametrize("name", STRATEGIES)
def test_norm_layers_buffers_stay_out_of_the_optimiser(name: str) -> None:
    sent: Weights = fed.weights(0)
    for round_, after in enumerate(three_rounds(fresh(name)), 1):
        replies = fed.replies(sent, SITES, round_)
        assert list(after) == list(sent)
        counter = after[fed.COUNTER]
        assert (counter.dtype, counter.shape) == (np.int64, ())
        assert int(counter) == max(int(reply.weights[fed.COUNTER]) for reply in replies)
        stacks = {key: np.stack([reply.weights[key] for reply in replies]) for key in fed.BUFFERS}
        assert after["norm.running_var"].min() >= 0
        for key in fed.BUFFERS:
            assert after[key].dtype == np.float32
            if name in ROBUST:
                assert_array_equal(after[key], np.median(stacks[key], axis=0))
            else:
                mean = np.average(stacks[key].astype(np.float64), axis=0, weights=[r.examples for r in replies])
                assert_allclose(after[key], mean, rtol=1e-6, atol=1e-9)
        for key in fed.PARAMETERS:
            assert (after[key].dtype, after[key].shape) == (np.float32, sent[key].shape)
        sent = after


@pytest.mark.parametrize("name", ROBUST)
def test_one_liar_does_not_move_a_robust_strategy_beyond_the_honest(name: str) -> None:
    sent = fed.weights(0)
    honest = fed.replies(sent, SITES - 1, 1)
    lie = {key: value + np.float32(1e4) if key != fed.COUNTER else value for key, value in sent.items()}
    for place in ("site-0", "site-9"):  # sorted first and last
        liar = TrainReply(place, 1, lie, examples=10_000, loss=0.0, seconds=1.0)
        after = one_round(fresh(name), 1, sent, [*honest, liar])
        for key in (*fed.PARAMETERS, *fed.BUFFERS):
            stack = np.stack([reply.weights[key] for reply in honest])
            assert (after[key] >= stack.min(0) - 1e-6).all(), (name, key)
            assert (after[key] <= stack.max(0) + 1e-6).all(), (name, key)


def test_a_mean_does_follow_a_liar() -> None:
    """The test above could not fail otherwise."""
    sent = fed.weights(0)
    lie = {key: value + np.float32(1e4) if key != fed.COUNTER else value for key, value in sent.items()}
    replies = [*fed.replies(sent, SITES - 1, 1), TrainReply("liar", 1, lie, 100, 0.0, 1.0)]
    assert one_round(fresh("fedavg"), 1, sent, replies)["scale"] > 100


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_reply_at_all_is_a_clear_error(name: str) -> None:
    aggregator = fresh(name)
    aggregator.begin(1, fed.weights(0))
    with pytest.raises(QuorumError, match=r"reply|replies"):
        aggregator.finish()


def test_bulyan_says_how_many_replies_it_needs() -> None:
    sent = fed.weights(0)
    with pytest.raises(QuorumError, match=r"Bulyan cannot work with 6 replies \(it needs 7\).*num_malicious_nodes"):
        one_round(fresh("bulyan"), 1, sent, fed.replies(sent, 6, 1))
    # … before anybody has trained, where it could never have enough.
    with pytest.raises(QuorumError, match=r"6 replies \(it needs 7\)"):
        fresh("bulyan", sites=6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_hospital_alone_can_use_any_strategy(name: str) -> None:
    """The local arm trains the same study with one site."""
    after = three_rounds(fresh(name, sites=1), sites=1)[-1]
    assert all(np.isfinite(value).all() for value in after.values())
    sent: Weights = fed.weights(0)
    reply = fed.replies(sent, 1, 1)
    if name in (*ROBUST, "fedavg", "fedprox"):
        after = one_round(fresh(name, sites=1), 1, sent, reply)
        for key in fed.PARAMETERS:
            assert_allclose(after[key], reply[0].weights[key], atol=1e-7)


def test_a_server_step_that_diverges_is_refused_rather_than_sent() -> None:
    sent = fed.weights(0)
    replies = fed.replies(sent, 3, 1)
    huge = [TrainReply(r.site, 1, r.weights, r.examples, 1e300, r.seconds) for r in replies]
    with pytest.raises(ModelError, match=r"QFedAvg gave weights that are not finite in round 1"):
        one_round(fresh("qfedavg", q=1.0), 1, sent, huge)


def test_a_reply_too_large_for_the_sum_is_refused_and_leaves_it_as_it_was() -> None:
    sent = fed.weights(0)
    good = fed.replies(sent, 3, 1)
    large = dict(good[0].weights) | {"scale": np.array(2e6, np.float32)}
    clean = one_round(fresh("fedavg"), 1, sent, good)
    aggregator = fresh("fedavg")
    aggregator.begin(1, sent)
    for reply in good[:2]:
        aggregator.add(reply)
    with pytest.raises(ReplyRefused, match="too large to add up"):
        aggregator.add(TrainReply("big", 1, large, 1200, 0.1, 1.0))
    aggregator.add(good[2])
    after = aggregator.finish()
    assert digest(after) == digest(clean)


def test_flowers_garbage_collections_do_not_cost_every_reply_a_fifth_of_a_second() -> None:
    sent = fed.weights(0)
    started = time.process_time()
    one_round(fresh("qfedavg"), 1, sent, fed.replies(sent, 40, 1))
    assert time.process_time() - started < 2.0  # 8 s without the remedy
    assert gc.get_freeze_count() == 0


def test_terms_are_rounded_to_the_nearest_step_not_cut_off() -> None:
    step = 2.0**-32
    total = FixedPointSum({"w": np.zeros(4, np.float32)})
    total.add({"w": np.array([0.75, -0.75, 0.25, 1.25], np.float32) * np.float32(step)}, 1)
    assert_array_equal(total.mean()["w"], np.array([1.0, -1.0, 0.0, 1.0]) * step)


def test_sums_of_more_than_one_chunk_and_of_other_memory_orders() -> None:
    """Beyond 2¹⁸ numbers, and a transposed array: what cnn's channels-last convolutions might give."""
    random_ = np.random.default_rng(3)
    long = random_.normal(size=(1 << 18) + 5).astype(np.float32)
    square = random_.normal(size=(6, 9)).astype(np.float32)
    template = {"long": np.zeros_like(long), "square": np.zeros((9, 6), np.float32)}
    total = FixedPointSum(template)
    total.add({"long": long, "square": square.T}, 3)
    total.add({"long": -long, "square": square.T * 2}, 1)
    mean = total.mean()
    assert_allclose(mean["long"], long * 0.5, rtol=1e-6, atol=1e-9)
    assert_allclose(mean["square"], square.T * 1.25, rtol=1e-6)


class Remembering(flower.FedAvg):
    """A researcher's strategy with a memory of its own: an average of the rounds' averages."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = np.zeros((), np.int64)
        self.mean: dict[str, np.ndarray[Any, Any]] = {}
        self.seen: list[int] = []

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        self.seen.append(len(replies))
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.rounds = self.rounds + 1
        for key, array in arrays.items():
            before = self.mean.get(key, np.zeros_like(array.numpy()))
            self.mean[key] = np.asarray(before + (array.numpy() - before) / self.rounds, np.float32)
        return to_arrays(self.mean), metrics

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        return {"rounds": np.asarray(self.rounds), **{f"mean/{key}": value for key, value in self.mean.items()}}

    def restore(self, state: dict[str, np.ndarray[Any, Any]]) -> None:
        if state:
            self.rounds = state["rounds"]
            self.mean = {key.removeprefix("mean/"): value for key, value in state.items() if key != "rounds"}


class AdamOfReplies(flower.FedAdam):
    """A researcher's subclass of one of Flower's: it must see every reply and find its memory again."""

    def __init__(self) -> None:
        super().__init__(eta=0.05)
        self.seen: list[int] = []

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        self.seen.append(len(replies))
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("kind", [Remembering, AdamOfReplies])
def test_an_installed_strategy_sees_every_reply_and_survives_a_crash(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def aggregator() -> Aggregator:
        made.append(kind())
        monkeypatch.setattr("server.aggregation.build_strategy", lambda spec: made[-1])
        return build_aggregator(fed.study(), fed.layout(fed.weights(0)), sites=SITES)

    whole = three_rounds(aggregator())
    assert made[0].seen == [SITES] * 3
    sent: Weights = fed.weights(0)
    state: dict[str, Any] = {}
    for round_ in (1, 2, 3):
        anew = aggregator()
        anew.restore(state)
        sent = one_round(anew, round_, sent, fed.replies(sent, SITES, round_))
        state = anew.state()
        assert digest(sent) == digest(whole[round_ - 1])


def test_an_installed_strategy_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(flower.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            raise KeyError("m_t")

    monkeypatch.setattr("server.aggregation.build_strategy", lambda spec: Broken())
    aggregator = build_aggregator(fed.study(), fed.layout(fed.weights(0)), sites=2)
    sent = fed.weights(0)
    with pytest.raises(ModelError, match=r"strategy Broken failed in round 4 with KeyError"):
        one_round(aggregator, 4, sent, fed.replies(sent, 2, 4))


def test_every_permutation_of_four_sites_gives_one_sum() -> None:
    sent = fed.weights(0)
    replies = fed.replies(sent, 4, 1)
    found = {digest(one_round(fresh("fedavg"), 1, sent, list(order))) for order in itertools.permutations(replies)}
    assert len(found) == 1
