"""Central privacy: Flower's arithmetic, the accountant's noise, a bound that finds its quantile, one draw a round."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.differential_privacy import compute_adaptive_noise_params
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import optimize, stats

from client.app import Resident, handle
from client.describe_privacy import central_words, leaves_of_private
from client.leaving import kinds
from common import protocol
from common.accounting import Mechanism, epsilon
from common.central import (
    LEAST_SITES,
    Noise,
    check_sites,
    effect_of,
    effect_words,
    facts,
    noise_of,
    promised,
    spent,
    split,
)
from common.errors import FedwardError, ModelError, PrivacyError, StudyError
from common.models import build
from common.noise import gaussian
from common.protocol import TrainReply
from common.study import Study
from common.weights import Weights, digest, state_of, to_arrays
from server.aggregation import Aggregator, Layout, build_aggregator
from server.asking import Link
from server.central import NoisedMean
from server.package import _central as card_words
from server.plan_cli import plan
from server.rounds import Arm
from server.work import Work
from tests.unit import federation as fed
from tests.unit.test_noise import Keyed, suspicious

SPEC: dict[str, Any] = {"noise_multiplier": 1.5, "delta": 1e-3, "clip": 0.5, "accountant": "rdp"}
SITES = 12
NAMES = [f"site-{number:02}" for number in range(SITES)]


def study(spec: dict[str, Any] | None = None, **changes: Any) -> Study:
    given = {key: value for key, value in {**SPEC, **(spec or {})}.items() if value is not None}
    return fed.study(**{"model.norm": "group", "central_privacy": given, **changes})


def parameters(seed: int, spread: float = 1.0) -> dict[str, np.ndarray[Any, Any]]:
    """Parameters of an imagined model without buffers, each with a dimension: Flower clips none without."""
    made = fed.weights(seed, spread)
    return {name: np.atleast_1d(made[name]) for name in sorted(fed.PARAMETERS)}


def replies(sent: Weights, spreads: list[float]) -> list[TrainReply]:
    """One site's reply for each spread of its update."""
    return [
        TrainReply(
            name, 1, {key: sent[key] + value for key, value in parameters(index + 1, spread).items()}, 1, None, 0.0
        )
        for index, (name, spread) in enumerate(zip(NAMES, spreads, strict=False))
    ]


def count(weights: Weights) -> int:
    return sum(value.size for value in weights.values())


def aggregator(made: Study, sent: Weights, noise: Noise | None = None, key: int = 0) -> tuple[Aggregator, NoisedMean]:
    mean = NoisedMean(made, count(sent), Keyed(key))
    if noise is not None:
        mean.noise = noise
    return build_aggregator(made, Layout.of(sent, sorted(sent)), sites=SITES, central=mean), mean


def one_round(folded: Aggregator, sent: Weights, answers: list[TrainReply], round_: int = 1) -> Weights:
    folded.begin(round_, sent)
    for answer in answers:
        folded.add(answer)
    return folded.finish()


def flowers(wrapper: Any, sent: Weights, answers: list[TrainReply]) -> dict[str, np.ndarray[Any, Any]]:
    """What Flower's wrapper makes of one round."""
    wrapper.configure_train(1, to_arrays(sent), ConfigRecord(), _Nobody())
    messages = [
        Message(RecordDict({"arrays": to_arrays(a.weights), "metrics": MetricRecord({"num-examples": 1})}), 1, "train")
        for a in answers
    ]
    found, _ = wrapper.aggregate_train(1, messages)
    assert isinstance(found, ArrayRecord)
    return {name: array.numpy() for name, array in found.items()}


class _Nobody:
    """A Grid with nodes enough for Flower to begin, to whom nothing is sent."""

    def get_node_ids(self) -> list[int]:
        return list(range(1, SITES + 1))


MIXED = [0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0]


# --- the arithmetic ---------------------------------------------------------------------------------


def test_without_noise_it_is_flowers_fixed_clipping() -> None:
    sent = parameters(0)
    answers = replies(sent, MIXED)
    folded, _ = aggregator(study(), sent, Noise(1.0, 0.0, 0.0))
    ours = one_round(folded, sent, answers)
    wrapper = flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 0.0, 0.5, len(MIXED))
    theirs = flowers(wrapper, sent, answers)
    for name in sent:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=5e-7)


def test_with_the_same_noise_it_is_flowers_fixed_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = parameters(0)
    answers = replies(sent, MIXED)
    folded, _ = aggregator(study(), sent, key=5)
    ours = one_round(folded, sent, answers)
    source = Keyed(5)

    def normal(mean: float, deviation: float, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        drawn = gaussian(source, math.prod(shape), torch.device("cpu")).numpy()
        return mean + deviation * drawn.reshape(shape)

    monkeypatch.setattr(np.random, "normal", normal)
    wrapper = flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.5, 0.5, len(MIXED))
    theirs = flowers(wrapper, sent, answers)
    for name in sent:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_server_optimiser_sees_the_noised_mean_and_nothing_else(name: str) -> None:
    """Noise comes before the step, where Flower's wrapper adds it after: what the step makes of it costs nothing."""
    params = {"fedavgm": {"server_momentum": 0.9}}.get(name, {"eta": 0.05})
    strategy = {"federation.strategy": {"name": name, "params": params}}
    sent = parameters(0)
    answers = replies(sent, MIXED)
    plain, _ = aggregator(study(), sent, key=3)
    mean = one_round(plain, sent, answers)
    folded, _ = aggregator(study(**strategy), sent, key=3)
    found = one_round(folded, sent, answers)
    bare = build_aggregator(fed.study(**strategy), Layout.of(sent, sorted(sent)), sites=1)
    expected = one_round(bare, sent, [TrainReply("site-1", 1, mean, 1, 0.5, 0.0)])
    for key in sent:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    clip=some.floats(1e-3, 1e3),
    spread=some.floats(1e-6, 1e6),
    seed=some.integers(0, 1000),
)
def test_no_site_moves_the_sum_by_more_than_the_bound(clip: float, spread: float, seed: int) -> None:
    """With a site, and with its update zero: the sums, as the noise meets them, differ by at most the bound in L2."""
    sent = parameters(0)
    others = replies(sent, [0.1, 10.0, 0.003])
    update = parameters(seed + 50, spread)
    with_it = TrainReply("x", 1, {key: sent[key] + value for key, value in update.items()}, 1, None, 0.0)
    without = TrainReply("x", 1, sent, 1, None, 0.0)
    sums = []
    for last in (with_it, without):
        mean = NoisedMean(study({"clip": clip}), count(sent))
        total = mean.begin(sent)
        for reply in (*others, last):
            mean.add(reply.weights)
        sums.append({name: value * 4 for name, value in total.mean().items()})
    gap = math.sqrt(sum(float(np.square(sums[0][key] - sums[1][key]).sum()) for key in sent))
    assert gap <= clip
    norm = math.sqrt(sum(float(np.square((with_it.weights[k] - sent[k]).astype(float)).sum()) for k in sent))
    assert gap == pytest.approx(min(norm, clip), rel=1e-4, abs=1e-6)


def test_an_update_within_the_bound_passes_as_it_is() -> None:
    sent = parameters(0)
    folded, _ = aggregator(study({"clip": 100.0}), sent, Noise(1.0, 0.0, 0.0))
    answers = replies(sent, [0.1] * 4)
    found = one_round(folded, sent, answers)
    for name in sent:
        np.testing.assert_allclose(
            found[name], np.mean([a.weights[name] for a in answers], axis=0), rtol=1e-5, atol=1e-6
        )


def test_what_is_not_trained_stays_as_it_was_sent() -> None:
    sent = fed.weights(0)
    mean = NoisedMean(study(), count(sent))
    folded = build_aggregator(study(), fed.layout(sent), sites=SITES, central=mean)
    found = one_round(folded, sent, fed.replies(sent, 5, 1))
    for name in (*fed.BUFFERS, fed.COUNTER):
        np.testing.assert_array_equal(found[name], sent[name])
    assert list(found) == list(sent)
    assert all(not np.array_equal(found[name], sent[name]) for name in fed.PARAMETERS)


def test_the_order_of_arrival_shows_in_nothing() -> None:
    sent = parameters(0)
    answers = replies(sent, MIXED)
    found = []
    for order in (answers, answers[::-1]):
        folded, _ = aggregator(study({"clipping": "adaptive"}), sent, key=1)
        found.append((digest(one_round(folded, sent, order)), folded.state()["central/clip"]))
    assert found[0] == found[1]


# --- the noise --------------------------------------------------------------------------------------


def wide(size: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"a": np.zeros((size, 3), np.float32), "b": np.zeros(size, np.float32)}


def moved(made: Study, sent: Weights, sites: int = SITES) -> torch.Tensor:
    """Sites that learnt nothing: what is left is noise."""
    mean = NoisedMean(made, count(sent))
    mean.begin(sent)
    for _ in range(sites):
        mean.add(sent)
    return torch.from_numpy(np.concatenate([value.ravel() for value in mean.finish().values()]).astype(float))


@pytest.mark.parametrize("clip", [0.5, 3e-3, 200.0])
def test_noise_from_the_systems_entropy_has_the_deviation_that_is_told(clip: float) -> None:
    noise = moved(study({"clip": clip}), wide(40_000))
    deviation = 1.5 * clip / SITES
    assert not suspicious(noise, deviation)
    assert suspicious(noise * 0.97, deviation)
    assert suspicious(noise * 0.1, deviation)


def test_no_seed_repeats_the_noise() -> None:
    found = []
    for _ in range(2):
        np.random.seed(0)  # what Flower's wrapper draws from
        torch.manual_seed(0)
        found.append(moved(study(), wide(10)))
    assert not torch.equal(*found)


def test_noise_too_large_for_the_sum_is_refused_and_so_is_a_bound_that_rounding_fills() -> None:
    with pytest.raises(ModelError, match=r"lower the clipping bound"):
        moved(study({"clip": 1e6, "noise_multiplier": 1e4}), wide(3))
    with pytest.raises(StudyError, match=r"central_privacy.clip 1e-09 is too small for 16 numbers.*use at least"):
        NoisedMean(study({"clip": 1e-9}), 16)


def test_adaptive_clipping_pays_for_its_count_as_the_paper_says() -> None:
    """Andrew et al. 2021, theorem 1, as Flower computes it; and the two together cost what is accounted."""
    for multiplier, counted in ((1.0, 2.0), (6.0, 3.5), (0.3, 10.0)):
        _, theirs = compute_adaptive_noise_params(multiplier, 100, counted)
        assert split(multiplier, counted) == pytest.approx(theirs, rel=1e-12)
        both = [Mechanism(split(multiplier, counted), 1.0, 1), Mechanism(2 * counted, 1.0, 1)]
        assert epsilon(both, 1e-5, "rdp") == pytest.approx(epsilon([Mechanism(multiplier, 1.0, 1)], 1e-5, "rdp"))
    plain = noise_of(study({"clipping": "adaptive"}))
    assert plain.count == 3.0
    assert plain.update == pytest.approx(1.5 * 1.0328, rel=1e-4)
    assert noise_of(study()) == Noise(1.5, 1.5, 0.0)
    with pytest.raises(PrivacyError, match=r"count_noise 0.1 is not above"):
        noise_of(study({"clipping": "adaptive", "noise_multiplier": None, "epsilon": 1.0, "count_noise": 0.1}))


def adapt(mean: NoisedMean, rounds: int, norms: Callable[[int], np.ndarray[Any, Any]]) -> list[float]:
    """The bound after each round, of sites whose updates have such norms."""
    sent, found = wide(1), []
    for round_ in range(rounds):
        mean.begin(sent)
        for norm in norms(round_):
            mean.add({"a": sent["a"], "b": np.array([norm], np.float32)})
        mean.finish()
        found.append(mean.clip)
    return found


@pytest.mark.parametrize(("start", "quantile"), [(0.01, 0.5), (100.0, 0.5), (1.0, 0.8)])
def test_an_adaptive_bound_finds_its_quantile_from_above_and_below(start: float, quantile: float) -> None:
    draw = np.random.default_rng(1)
    spec = {"clipping": "adaptive", "clip": start, "quantile": quantile, "count_noise": 5.0}
    mean = NoisedMean(study(spec), 4, Keyed())
    found = adapt(mean, 120, lambda _: draw.lognormal(0.0, 0.5, 50))
    expected = float(np.exp(0.5 * stats.norm.ppf(quantile)))
    assert np.exp(np.mean(np.log(found[-30:]))) == pytest.approx(expected, rel=0.12)


def test_flowers_adaptive_wrapper_moves_its_bound_away_from_the_quantile() -> None:
    """Why it is not used (decision 0022): all updates are above the bound, and it goes down; all below, and up."""
    sent = parameters(0)
    for spread, away in ((10.0, -1), (1e-6, 1)):
        wrapper = flower.DifferentialPrivacyServerSideAdaptiveClipping(
            flower.FedAvg(), 0.0, 8, initial_clipping_norm=0.5, clipped_count_stddev=0.0
        )
        flowers(wrapper, sent, replies(sent, [spread] * 8))
        assert np.sign(wrapper.clipping_norm - 0.5) == away
        folded, mean = aggregator(study({"clipping": "adaptive"}), sent, Noise(1.0, 0.0, 0.0))
        one_round(folded, sent, replies(sent, [spread] * 8))
        assert np.sign(mean.clip - 0.5) == -away


def test_noise_is_of_the_bound_that_clipped_not_of_the_next() -> None:
    mean = NoisedMean(study({"clipping": "adaptive", "clip": 50.0}), 4, Keyed())
    adapt(mean, 1, lambda _: np.full(SITES, 0.1))
    assert mean.told["clip"] == 50.0
    assert mean.told["noise"] == mean.noise.update * 50.0 / SITES
    assert mean.clip < 50.0


def test_a_bound_that_was_learnt_survives_a_restart() -> None:
    sent = parameters(0)
    made = study({"clipping": "adaptive"}, **{"federation.strategy": {"name": "fedadam", "params": {"eta": 0.05}}})
    folded, mean = aggregator(made, sent, key=2)
    one_round(folded, sent, replies(sent, MIXED))
    again, resumed = aggregator(made, sent)
    again.restore(folded.state())
    assert resumed.clip == mean.clip != 0.5
    assert again.state().keys() == folded.state().keys() > {"central/clip"}


# --- what it costs ----------------------------------------------------------------------------------


def gaussian_epsilon(multiplier: float, rounds: int, delta: float) -> float:
    """Of Gaussian noise, exactly: Balle and Wang 2018, arXiv:1805.06530, theorem 8."""
    mu = math.sqrt(rounds) / multiplier

    def excess(value: float) -> float:
        return float(
            stats.norm.cdf(mu / 2 - value / mu) - math.exp(value) * stats.norm.cdf(-mu / 2 - value / mu) - delta
        )

    return float(optimize.brentq(excess, 0.0, 100.0))


@pytest.mark.parametrize(("multiplier", "rounds"), [(6.0, 50), (1.5, 3), (20.0, 200)])
def test_epsilon_is_that_of_rounds_gaussians_in_which_everybody_takes_part(multiplier: float, rounds: int) -> None:
    made = study({"noise_multiplier": multiplier, "delta": 1e-5, "accountant": "prv"}, **{"federation.rounds": rounds})
    exact = gaussian_epsilon(multiplier, rounds, 1e-5)
    assert exact <= promised(made) <= exact + 0.02
    assert promised(made) == spent(made, rounds) == epsilon([Mechanism(multiplier, 1.0, rounds)], 1e-5, "prv")
    if rounds == 50:
        assert promised(made) == pytest.approx(5.31, abs=0.005)


def test_the_noise_of_an_epsilon_spends_it_over_the_whole_study_and_no_more() -> None:
    made = study({"noise_multiplier": None, "epsilon": 4.0}, **{"federation.rounds": 7})
    assert promised(made) == 4.0
    assert 3.97 < spent(made, 7) <= 4.0
    told = facts(made, 7)
    assert [rounds for rounds, _ in told["spent"]] == [1, 3, 4, 6, 7]
    costs = [cost for _, cost in told["spent"]]
    assert costs == sorted(costs)
    assert costs[-1] == spent(made, 7)
    assert facts(made, 0)["spent"] == []
    json.dumps(told, allow_nan=False)


def test_too_few_sites_and_too_large_a_delta_are_refused_in_words() -> None:
    check_sites(study(), LEAST_SITES)
    with pytest.raises(PrivacyError, match=r"9 are too few: at least 10 are needed, and hundreds.* 0\.17 times the cl"):
        check_sites(study(), 9)
    with pytest.raises(PrivacyError, match=r"delta 0.05 is not below one over 20 sites"):
        check_sites(study({"delta": 0.05}), 20)


def test_what_the_noise_does_to_a_model_is_said() -> None:
    few = effect_of(study({"noise_multiplier": 6.0}), 24, 9_000)
    assert (few.each, few.whole) == (0.25, pytest.approx(0.25 * math.sqrt(9_000)))
    assert effect_words(few) == (
        "With 24 sites the noise on each number of the model is 0.25 times the clipping bound, and on all 9,000 of "
        "them together 24 times as long as the longest mean update can be. Next to nothing will be learnt: it takes "
        "more sites, fewer rounds or a smaller model."
    )
    assert "slowly" in effect_words(effect_of(study(), 100, 9_000))
    assert effect_words(effect_of(study(), 10_000, 9_000)).endswith("can be.")


# --- what a study may ask for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "changes", "refusal"),
    [
        ({"noise_multiplier": None}, {}, "give epsilon .* or noise_multiplier, one of them"),
        ({"epsilon": 3.0}, {}, "one of them"),
        ({"count_noise": 2.0}, {}, "count_noise belongs to clipping: adaptive"),
        ({"clipping": "adaptive", "count_noise": 0.75}, {}, "count_noise must be above 0.75, half the noise"),
        ({"clip": None}, {}, "clip"),
        ({}, {"federation.strategy.name": "krum"}, "krum looks at every site's update by itself"),
        ({}, {"federation.strategy.name": "fedmedian"}, "use one of fedavg, fedprox"),
        ({}, {"model.norm": "batch"}, "batch norm's running statistics"),
        ({}, {"federation.secure_aggregation": {}}, "sees no update that it could clip"),
        ({"noise": "sites"}, {}, "noise: sites needs colluders"),
        ({"colluders": 1}, {}, "else leave it out"),
        ({"noise": "sites", "colluders": 1, "clipping": "adaptive"}, {}, "use clipping: fixed"),
        ({"noise": "sites", "colluders": 1, "accountant": "prv"}, {}, "use accountant: rdp"),
        ({"noise": "sites", "colluders": 1}, {}, "needs federation.secure_aggregation with a whole number"),
        (
            {"noise": "sites", "colluders": 1},
            {"federation.secure_aggregation": {"threshold": 0.7}},
            "needs federation.secure_aggregation with a whole number",
        ),
        (
            {"noise": "sites", "colluders": 8},
            {"federation.secure_aggregation": {"threshold": 8}},
            "colluders 8 leaves nobody of a threshold of 8",
        ),
        ({}, {"survey": ["classes"]}, "counts and sums that no noise covers"),
        ({}, {"image.normalise": "federated"}, "counts and sums that no noise covers"),
        ({}, {"training.class_weighting": "federated"}, "counts and sums that no noise covers"),
        ({}, {"federation.keep": "best"}, "keep: last, or central_privacy.evaluation: exact"),
        ({}, {"federation.early_stopping": {"patience": 2}}, "early_stopping need validation results"),
    ],
)
def test_what_would_void_the_promise_is_refused_with_the_remedy(
    spec: dict[str, Any], changes: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(StudyError, match=refusal):
        study(spec, **changes)


def test_a_study_without_it_is_written_as_before_and_one_with_it_is_another() -> None:
    assert b"central_privacy" not in fed.study().canonical()
    assert study().hash != study(central_privacy=None).hash == fed.study(**{"model.norm": "group"}).hash
    assert study({"evaluation": "exact"}, **{"federation.keep": "best"}).metrics_suppressed is False
    assert study().metrics_suppressed
    assert study().counts_kept


def test_it_goes_with_privacy_of_each_patient_and_either_suppresses() -> None:
    local = {"epsilon": 8.0, "delta": 1e-3, "evaluation": "exact"}
    both = study(privacy=local, training={"batch_size": 8, "local_steps": 2})
    assert both.metrics_suppressed


# --- the round loop ---------------------------------------------------------------------------------


def scripted(made: Study, asked: list[tuple[str, int, str]]) -> fed.Scripted:
    """Sites that learn something, other in each fit; ``asked`` lists each request."""
    fits = iter(range(10_000))

    def answer(alias: str, request: protocol.Request) -> protocol.Reply | None:
        assert isinstance(request, protocol.TrainRequest | protocol.EvaluateRequest)
        asked.append((type(request).__name__, request.task.round, digest(request.weights)))
        if isinstance(request, protocol.EvaluateRequest):
            arrays = fed.counts(made).to_arrays()
            return protocol.StatisticsReply(alias, request.task.round, arrays, 0.0)
        draw = np.random.default_rng(next(fits))
        after = {n: (v + draw.normal(0, 0.1, v.shape)).astype(v.dtype) for n, v in request.weights.items()}
        return TrainReply(alias, request.task.round, after, 1, None, 0.0)

    return fed.Scripted(NAMES, answer)


def test_rounds_tell_of_the_noise_and_of_no_site(tmp_path: Path) -> None:
    made, events = study({"clipping": "adaptive"}), fed.Events()
    grid = scripted(made, [])
    progress = Arm(Link(grid, events.log), Work(made, "federated", 0, grid.sites)).run()
    assert [line["told"] for line in events.of("central-privacy")] == [
        effect_words(effect_of(made, SITES, count(progress.weights)))
    ]
    clips = [record["central"]["clip"] for record in progress.history]
    assert clips[0] == 0.5
    assert len(set(clips)) == 3
    for record in progress.history:
        assert record["central"]["noise"] == noise_of(made).update * record["central"]["clip"] / SITES
        assert record["train_loss"] is None
        for site in record["sites"].values():
            assert (site["status"], site["norm"], site["loss"], site["examples"]) == ("ok", None, None, 1)


@pytest.mark.parametrize("kill", ["train", "evaluate"])
def test_noise_of_a_round_is_drawn_once_whatever_happens(kill: str, tmp_path: Path) -> None:
    """Killed before the noised weights are kept, nothing has left; killed after, the same ones go on."""
    made = study({"evaluation": "exact"})
    asked: list[tuple[str, int, str]] = []
    grid = scripted(made, asked)
    work = Work(made, "federated", 0, grid.sites, checkpoint=tmp_path / "state")

    class Killed(Exception):
        pass

    class Mortal(fed.Bent):
        def push_messages(self, messages: Any) -> Any:
            sending = list(messages)
            for message in sending:
                request = protocol.open_request(message)
                if request.task.round == 2 and message.metadata.message_type.startswith(kill):
                    raise Killed
            return super().push_messages(sending)

    with pytest.raises(Killed):
        Arm(Link(Mortal(grid), fed.Events().log), work).run()
    Arm(Link(grid, fed.Events().log), work).run()
    released = {round_: set() for round_ in (1, 2, 3)}
    for kind, round_, weights in asked:
        if kind == "EvaluateRequest":
            released[round_].add(weights)
    assert all(len(found) == 1 for found in released.values())
    assert sum(kind == "TrainRequest" and round_ == 2 for kind, round_, _ in asked) == SITES


def test_a_run_that_cannot_evaluate_goes_on_from_the_noise_it_drew(tmp_path: Path) -> None:
    made = study({"evaluation": "exact"})
    asked: list[tuple[str, int, str]] = []
    grid = scripted(made, asked)
    work = Work(made, "federated", 0, grid.sites, checkpoint=tmp_path / "state")
    time = fed.FakeTime()
    deaf = fed.Bent(grid, lambda node, reply: [reply] if reply.metadata.message_type.startswith("train") else [])
    with pytest.raises(FedwardError, match="quorum"):
        Arm(Link(deaf, fed.Events().log, time.clock, time.sleep), work).run()
    events = fed.Events()
    progress = Arm(Link(grid, events.log), work).run()
    assert progress.round == 3
    assert len({weights for kind, round_, weights in asked if (kind, round_) == ("EvaluateRequest", 1)}) == 1
    assert sum(kind == "TrainRequest" and round_ == 1 for kind, round_, _ in asked) == SITES
    assert [line["round"] for line in events.of("round")] == [1, 2, 3]


def test_one_hospital_alone_and_pooled_images_get_no_noise() -> None:
    made = study({"evaluation": "exact"})
    for arm in ("local:site-00", "pooled"):
        grid = scripted(made, [])
        events = fed.Events()
        work = Work(made, arm, 0, {"site-00": grid.sites["site-00"]})
        progress = Arm(Link(grid, events.log), work).run()
        assert not work.central
        assert "central" not in progress.history[0]
        assert not events.of("central-privacy")


def test_too_few_sites_and_models_with_statistics_do_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    made = study()
    grid = scripted(made, [])
    few = dict(list(grid.sites.items())[:9])
    with pytest.raises(PrivacyError, match="9 are too few"):
        Arm(Link(grid, fed.Events().log), Work(made, "federated", 0, few))
    normed = build(made.derive(central_privacy=None, **{"model.norm": "batch"}), 0)
    monkeypatch.setattr("server.rounds.build_initial", lambda *_: (normed, None))
    with pytest.raises(ModelError, match=r"running_mean.*may change in training without being parameters"):
        Arm(Link(grid, fed.Events().log), Work(made, "federated", 0, grid.sites))


def test_a_reply_far_above_the_others_is_clipped_not_refused() -> None:
    made = study()
    far = "site-03"

    def answer(alias: str, request: protocol.Request) -> protocol.Reply | None:
        assert isinstance(request, protocol.TrainRequest)
        step = 1e5 if alias == far else 1e-3
        after = {name: (value + step).astype(value.dtype) for name, value in request.weights.items()}
        return TrainReply(alias, request.task.round, after, 1, None, 0.0)

    grid = fed.Scripted(NAMES, answer)
    progress = Arm(Link(grid, fed.Events().log), Work(made, "federated", 0, grid.sites)).run()
    assert all(record["sites"][far]["status"] == "ok" for record in progress.history)
    assert all(float(np.abs(value).max()) < 50.0 for value in progress.weights.values())


# --- the site ---------------------------------------------------------------------------------------


def test_a_site_tells_weights_and_nothing_else(tmp_path: Path) -> None:
    made = study()
    home = fed.make_sites(tmp_path / "sites", made)["site-1"]
    resident = Resident()

    def ask(request: protocol.Request) -> protocol.Reply:
        sealed = protocol.seal(request)
        return protocol.open_reply(handle(fed.request(sealed.content, sealed.kind), lambda: home, resident))

    weights = state_of(build(made, 0))
    task = protocol.Task(made, round=1)
    reply = ask(protocol.TrainRequest(task, weights))
    assert isinstance(reply, TrainReply)
    assert (reply.examples, reply.loss, reply.seconds) == (1, None, 0.0)
    survey = ask(protocol.SurveyRequest(protocol.Task(made)))
    assert isinstance(survey, protocol.SurveyReply)
    assert dict(survey.images) == {"train": 1, "val": 1, "test": 1}
    assert (kinds(made, survey), kinds(made, reply)) == (["whether there are images"], ["weights"])
    assert ask(protocol.EvaluateRequest(task, "val", weights)) == protocol.Refusal("site-1", "privacy-impossible")
    resident.close()


def test_people_are_told_whom_it_protects_against() -> None:
    words = central_words(study({"evaluation": "exact"}))
    assert "not against the coordinator, which sees this site's update as it is" in words
    assert words.endswith("which leave as they are.")
    assert "without noise; neither the number of images" in leaves_of_private(study(), "the weights")
    assert "against all but the coordinator: ε at most" in card_words(study())


# --- before it is launched --------------------------------------------------------------------------


def test_a_plan_says_what_it_costs_and_from_how_many_sites_on_a_model_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = study({"clipping": "adaptive", "noise_multiplier": 6.0}, **{"federation.rounds": 50})
    path = tmp_path / "study.yaml"
    path.write_text(made.canonical().decode())
    plan(path, None, budget=None, delta=None, as_json=True)
    told = json.loads(capsys.readouterr().out)["central_privacy"]
    assert [done for done, _ in told["spent"]] == [1, 2, 5, 10, 20, 50]
    assert told["spent"][-1][1] == spent(made, 50)
    for one in told["effects"]:
        assert one["noise_each"] == noise_of(made).update / one["sites"]
        assert one["noise_whole"] == pytest.approx(one["noise_each"] * math.sqrt(one["parameters"]))
    assert told["effects"][0]["parameters"] == sum(value.size for value in state_of(build(made, 0)).values())
    plan(path, None, budget=None, delta=None, as_json=False)
    words = capsys.readouterr().out
    assert "the coordinator itself sees each update as it is" in words
    assert f"after 50 rounds  {spent(made, 50):>7.3g}" in words
    with pytest.raises(PrivacyError, match=r"--patients and --budget are about each patient"):
        plan(path, "100", budget=None, delta=None, as_json=False)
    both = made.derive(privacy={"epsilon": 8.0, "delta": 1e-3, "accountant": "rdp"}, **{"training.local_steps": 2})
    path.write_text(both.canonical().decode())
    plan(path, None, budget=None, delta=None, as_json=False)
    words = capsys.readouterr().out
    assert words.index("for each patient, at each site by itself") < words.index("by the coordinator's noise")
