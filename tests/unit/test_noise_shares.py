"""Noise that sites add in parts: each part's size, what the sum is worth, and that nothing but noised sums leaves."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray

from client.app import _summable
from client.describe_privacy import central_words, leaves_of_private
from client.leaving import kinds
from client.noise_shares import noised_steps
from common import protocol
from common.accounting import Mechanism, epsilon
from common.central import check_colluders, effect_of, facts, noise_of, promised, reliable
from common.contribution import RowLayout
from common.errors import FedwardError, ModelError, PrivacyError, ReplyRefused, StudyError
from common.fixed_point import SCALE
from common.identity import SiteKey
from common.models import build
from common.noise_shares import Shares, concentrated, shares_of
from common.protocol import TrainReply
from common.protocol.secure import MaskedReply, Secured
from common.study import Study
from common.weights import Weights, state_of
from server.aggregation import Layout, build_aggregator
from server.asking import Link, SignedRoster
from server.checks import check_sum
from server.rounds import Arm
from server.work import Work
from tests.unit import federation as fed
from tests.unit import secure_fixtures
from tests.unit.test_agent import OURS, Site
from tests.unit.test_central import count, parameters, wide
from tests.unit.test_discrete import law
from tests.unit.test_noise import Keyed, suspicious

SITES, THRESHOLD, COLLUDERS = 14, 12, 3


def study(spec: dict[str, Any] | None = None, **changes: Any) -> Study:
    given = {
        "noise_multiplier": 2.0,
        "delta": 1e-3,
        "clip": 0.5,
        "accountant": "rdp",
        "noise": "sites",
        "colluders": COLLUDERS,
        **(spec or {}),
    }
    secure = {"federation.secure_aggregation": {"threshold": THRESHOLD}}
    return fed.study(**{"model.norm": "group", "central_privacy": given, **secure, **changes})


def total(rows: list[dict[str, NDArray[np.int64]]], template: Weights, sites: int) -> Any:
    """What a coordinator has once the masks are off."""
    layout = RowLayout.of(template, with_loss=False)
    return layout.read(sum((layout.write_steps(row, sites=sites) for row in rows), np.zeros(layout.length, np.uint64)))


# --- what the sum is worth --------------------------------------------------------------------------


def convolved(deviation: float, summands: int, reach: int) -> NDArray[np.float64]:
    found = np.array([1.0])
    for _ in range(summands):
        found = np.convolve(found, law(deviation, reach))
    return found


@pytest.mark.parametrize(("deviation", "summands", "shift"), [(0.5, 2, 1), (0.6, 3, 1), (0.8, 5, 2), (1.0, 2, 1)])
def test_the_bound_holds_for_sums_of_coarse_noise_and_the_gap_term_is_needed(
    deviation: float, summands: int, shift: int
) -> None:
    """Rényi divergences of the sum and the sum moved by ``shift``, from their exact probabilities: the sum's law is no
    discrete Gaussian, and with so little noise it shows."""
    sums = convolved(deviation, summands, 14)
    moved = np.roll(sums, shift)
    both = (sums > 1e-250) & (moved > 1e-250)
    bound = concentrated(shift, deviation, summands, 1)
    for order in (1.5, 2.0, 4.0, 8.0):
        terms = order * np.log(sums[both]) - (order - 1.0) * np.log(moved[both])
        divergence = float(np.log(np.exp(terms).sum()) / (order - 1.0))
        assert divergence <= order * bound**2 / 2.0
    assert concentrated(shift, deviation, 1, 1) == shift / deviation  # of one alone there is no gap


def test_with_the_noise_that_is_used_the_gap_is_beyond_what_a_float_holds() -> None:
    shares = shares_of(study(), 1_000_000)
    assert concentrated(1.0, shares.deviation, 100, 10**9) == 1.0 / (10.0 * shares.deviation)


@settings(max_examples=40, deadline=None)
@given(
    clip=some.floats(0.01, 1e4),
    multiplier=some.floats(0.3, 100.0),
    colluders=some.integers(0, THRESHOLD - 1),
    size=some.integers(1, 20_000_000),
)
def test_what_can_be_relied_on_is_worth_what_is_accounted(
    clip: float, multiplier: float, colluders: int, size: int
) -> None:
    made = study({"clip": clip, "noise_multiplier": multiplier, "colluders": colluders})
    shares = shares_of(made, size)
    assert shares.honest == reliable(made) == THRESHOLD - colluders
    # As an independent bound has it: Δ / (√n σ), in the steps of the sum.
    worth = math.sqrt(shares.honest) * shares.deviation / (clip * 2.0**shares.bits)
    assert multiplier <= worth <= multiplier * 1.002
    assert shares.multiplier == pytest.approx(worth)
    assert shares.multiplier >= multiplier * (1.0 - 1e-12)
    assert shares.bound * 2.0**shares.bits + math.sqrt(size) / 2.0 <= shares.sensitivity


def test_epsilon_is_renyis_for_those_who_can_be_relied_on() -> None:
    made = study({"noise_multiplier": None, "epsilon": 5.0}, **{"federation.rounds": 9})
    assert promised(made) == 5.0
    z = noise_of(made).multiplier
    assert 4.97 < epsilon([Mechanism(z, 1.0, 9)], 1e-3, "rdp") <= 5.0
    assert shares_of(made, 1000).multiplier == pytest.approx(z, rel=1e-5)
    told = facts(made, 9)
    assert (told["noise"], told["colluders"], told["reliable"]) == ("sites", COLLUDERS, THRESHOLD - COLLUDERS)


def test_a_bound_too_small_for_the_sums_steps_is_refused() -> None:
    with pytest.raises(StudyError, match=r"clip 1e-07 and noise 2 times that do not fit whole steps of 2\^-32"):
        shares_of(study({"clip": 1e-7}), 100)
    with pytest.raises(StudyError, match=r"use a larger clip, or less noise"):
        shares_of(study({"noise_multiplier": 9_000.0}), 10**8)


# --- one site's part --------------------------------------------------------------------------------


def silent(shares: Shares) -> Shares:
    """The same rounding and clipping; noise of one step, to be seen through."""
    return Shares(shares.bits, 1, shares.bound, shares.sensitivity, shares.honest, shares.parameters)


@settings(max_examples=40, deadline=None)
@given(spread=some.floats(1e-6, 1e5), clip=some.floats(0.01, 1e3), seed=some.integers(0, 99))
def test_a_sites_rounded_update_is_never_longer_than_the_sensitivity(spread: float, clip: float, seed: int) -> None:
    """Same noise, update and none: what differs is the update, as it is summed."""
    before = parameters(0)
    after = {name: before[name] + value for name, value in parameters(seed + 1, spread).items()}
    shares = silent(shares_of(study({"clip": clip}), count(before)))
    with_it = noised_steps(after, before, sorted(before), shares, Keyed())
    without = noised_steps(before, before, sorted(before), shares, Keyed())
    unit = 1 << 32 - shares.bits
    gap = [(with_it[name] - without[name]) for name in before]
    assert all((part % unit == 0).all() for part in gap)
    length = math.sqrt(sum(float(((part // unit).astype(float) ** 2).sum()) for part in gap))
    assert length <= shares.sensitivity
    norm = math.sqrt(sum(float(((after[name] - before[name]).astype(float) ** 2).sum()) for name in before))
    steps = 2.0**shares.bits
    assert length == pytest.approx(min(norm, clip) * steps, rel=1e-4, abs=math.sqrt(count(before)))


def test_what_is_not_trained_is_summed_as_it_came() -> None:
    before = {name: value for name, value in fed.weights(0).items() if value.dtype.kind == "f"}
    after = {name: value + 1 for name, value in before.items()}
    found = noised_steps(after, before, fed.PARAMETERS, shares_of(study(), 60))
    for name in fed.BUFFERS:
        np.testing.assert_array_equal(found[name], np.rint(before[name].astype(float) * SCALE))
    assert all(part.dtype == np.int64 for part in found.values())
    assert all(found[name].shape == before[name].shape for name in before)


def test_the_sum_of_sites_that_learnt_nothing_carries_the_noise_that_is_told() -> None:
    """From the system's entropy, through rows, to the mean: σ · clip · √(sites / relied on) / sites."""
    made, before = study(), wide(30_000)
    shares = shares_of(made, count(before))
    rows = [noised_steps(before, before, sorted(before), shares) for _ in range(SITES)]
    folded = build_aggregator(made, Layout.of(before, sorted(before)), sites=SITES)
    folded.begin(1, before)
    sums = total(rows, before, SITES)
    check_sum(sums, SITES, made, before, sorted(before))
    folded.add_sum(sums.arrays, sums.examples)
    noise = torch.from_numpy(np.concatenate([value.ravel() for value in folded.finish().values()]).astype(float))
    deviation = 2.0 * 0.5 * math.sqrt(SITES / (THRESHOLD - COLLUDERS)) / SITES
    assert effect_of(made, SITES, count(before)).each * 0.5 == pytest.approx(deviation)
    assert not suspicious(noise, deviation)
    assert suspicious(noise * 0.97, deviation)


def test_the_mean_is_that_of_clipped_updates_but_for_noise_and_rounding() -> None:
    made = study({"clip": 1.0})
    before = parameters(0)
    shares = silent(shares_of(made, count(before)))
    after = [
        {name: before[name] + value for name, value in parameters(seed, spread).items()}
        for seed, spread in enumerate([0.001, 0.05, 0.1, 1.0, 30.0], 1)
    ]
    rows = [noised_steps(one, before, sorted(before), shares) for one in after]
    sums = total(rows, before, 5)
    for name in before:
        expected = np.zeros_like(before[name], dtype=float)
        for one in after:
            norm = math.sqrt(sum(float(((one[n] - before[n]).astype(float) ** 2).sum()) for n in before))
            expected += (one[name] - before[name]).astype(float) * min(1.0, 1.0 / norm)
        found = sums.arrays[name].reshape(before[name].shape) / SCALE - 5 * before[name].astype(float)
        np.testing.assert_allclose(found, expected, atol=40 * 2.0**-shares.bits)


def test_rows_too_large_to_be_summed_are_refused() -> None:
    layout = RowLayout.of({"a": np.zeros(2, np.float32)}, with_loss=False)
    with pytest.raises(ModelError, match=r"lower central_privacy.clip"):
        layout.write_steps({"a": np.array([1 << 60, 0])}, sites=8)
    row = layout.write_steps({"a": np.array([-(1 << 60), 7])}, sites=7)
    assert row.view(np.int64).tolist() == [-(1 << 60), 7, 1]


def test_a_sum_beyond_clip_and_noise_is_refused() -> None:
    made, before = study(), wide(100)
    rows = [noised_steps(before, before, sorted(before), shares_of(made, count(before))) for _ in range(SITES)]
    rows[0] = {name: part + (1 << 40) for name, part in rows[0].items()}
    with pytest.raises(ReplyRefused, match=r"above central_privacy.clip with its noise, .*: some site did not clip"):
        check_sum(total(rows, before, SITES), SITES, made, before, sorted(before))


# --- what leaves ------------------------------------------------------------------------------------


def test_a_fit_for_a_noised_sum_is_steps_with_noise_and_nothing_else() -> None:
    made = study()
    before = parameters(0)
    task = protocol.Task(made, round=1)
    request = protocol.TrainRequest(task, before)
    first, second = (_summable(before, request, tuple(sorted(before)), 1000.0) for _ in range(2))
    assert all(part.dtype == np.int64 for part in first.values())
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    masked = MaskedReply("site-1", 1, np.zeros(3, np.uint64))
    assert kinds(made, masked) == ["weights, noised and masked"]
    assert made.noised_at_sites
    assert not fed.study().noised_at_sites


def test_kept_encrypted_and_masked_it_is_the_same_number_and_who_drops_out_takes_its_noise_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit as an agent keeps and thaws it, in an attempt of which one of five drops out: the others' exact sum."""
    made = study({"colluders": 1}, **{"federation.secure_aggregation": {"threshold": 4}})
    shares = shares_of(made, count(secure_fixtures.SENT))
    asked = protocol.seal(protocol.TrainRequest(protocol.Task(fed.study(), round=1), secure_fixtures.SENT))
    request = fed.request(asked.content, asked.kind)
    kept: dict[str, dict[str, NDArray[np.int64]]] = {}

    def fitted(name: str, sent: Weights = secure_fixtures.SENT) -> TrainReply:
        if name not in kept:
            kept[name] = noised_steps(plain(name).weights, sent, sorted(sent), shares)
        reply = protocol.answer(TrainReply(name, 1, kept[name], 1, None, 0.0), request)
        thawed = protocol.open_reply(protocol.thaw(protocol.freeze(reply), request))
        assert isinstance(thawed, TrainReply)
        return thawed

    plain = secure_fixtures.update
    monkeypatch.setattr(secure_fixtures, "update", fitted)
    sites = secure_fixtures.Sites(tmp_path)
    sites.bend = lambda name, request, reply: None if name == "eve" and isinstance(reply, MaskedReply) else reply
    found = secure_fixtures.Coordinator(sites, made).collect()
    assert found.survivors == ("ada", "bob", "cat", "dan")
    assert (found.total.examples, found.total.loss) == (4, None)
    for name, value in secure_fixtures.SENT.items():
        expected = sum(kept[site][name] for site in found.survivors)
        np.testing.assert_array_equal(found.total.arrays[name].reshape(value.shape), expected)


class Bare:
    """An agent's part in sums, of one that masks nothing: what is masked can be looked at."""

    def join(self, request: protocol.TrainRequest) -> None:
        """Every sum is its own."""

    def masked(self, request: protocol.TrainRequest, plain: TrainReply) -> MaskedReply:
        row = RowLayout.of(request.weights, with_loss=False).write_steps(plain.weights, sites=SITES)
        return MaskedReply(plain.site, plain.round, row)


def test_an_agent_draws_a_rounds_noise_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    plain = {"training.class_weighting": "none", "federation.early_stopping": None, "federation.keep": "last"}
    secure = {"federation.secure_aggregation": {"threshold": THRESHOLD}}
    made = OURS.derive(central_privacy=study().central_privacy, **plain, **secure, **{"model.norm": "group"})
    weights = state_of(build(made, 1))

    def train(round_: int) -> protocol.Reply:
        site.agent._sums = Bare()  # type: ignore[assignment]
        return site.send(protocol.TrainRequest(site.task(made, round=round_), weights, Secured("0" * 32, {})))

    site.survey(made)
    site.approve()
    first, again = train(1), train(1)
    assert isinstance(first, MaskedReply)
    assert isinstance(again, MaskedReply)
    np.testing.assert_array_equal(first.row, again.row, "the one that was kept")
    assert isinstance(train(2), MaskedReply)
    assert train(1) == protocol.Refusal("north", "round-spent")
    site.agent.close()


@given(roster=some.integers(3, 30), threshold=some.integers(2, 30), colluders=some.integers(0, 30))
def test_no_round_can_become_known_as_two_sums(roster: int, threshold: int, colluders: int) -> None:
    """By counting: each of two lists is unmasked with the help of ``threshold`` sites, honest ones help with one."""
    assume(colluders < threshold <= roster)
    made = study({"colluders": colluders}, **{"federation.secure_aggregation": {"threshold": threshold}})
    twice = 2 * max(0, threshold - colluders) <= roster - colluders
    if not twice:
        check_colluders(made, roster)
        return
    with pytest.raises(PrivacyError, match=r"needs a threshold of at least (\d+) in federation") as caught:
        check_colluders(made, roster)
    found = re.search(r"at least (\d+)", str(caught.value))
    assert found is not None
    least = int(found[1])
    assert 2 * (least - colluders) > roster - colluders >= 2 * (least - 1 - colluders)


def test_sites_themselves_refuse_more_colluders_than_the_masks_withstand(tmp_path: Path) -> None:
    made = study({"colluders": 1}, **{"federation.secure_aggregation": {"threshold": 3}})
    sites = secure_fixtures.Sites(tmp_path)
    with pytest.raises(FedwardError, match="0 of 3 masked updates"):
        secure_fixtures.Coordinator(sites, made).collect()
    refusals = {reply for reply in sites.replies if isinstance(reply, protocol.Refusal)}
    assert refusals == {protocol.Refusal(name, "privacy-impossible") for name in secure_fixtures.NAMES}


def test_a_coordinator_begins_no_such_run() -> None:
    made = study({"colluders": 7})
    keys = {f"site-{number}": SiteKey.generate().public for number in range(17)}
    grid = fed.Scripted(keys, lambda alias, request: None)
    link = Link(grid, fed.Events().log, roster=lambda: SignedRoster(b"", "5" * 64, keys))
    with pytest.raises(PrivacyError, match=r"with 7 colluders of 17 sites needs a threshold of at least 13"):
        Arm(link, Work(made, "federated", 0, grid.sites))


def test_people_are_told_that_the_coordinator_is_not_trusted_with_it() -> None:
    words = central_words(study())
    assert "It protects against the coordinator too, which sees sums only" in words
    assert "9 parts are enough, so that 3 of the other sites may tell the coordinator theirs." in words
    assert "with noise, masked; neither the number of images" in leaves_of_private(study(), "the weights")
