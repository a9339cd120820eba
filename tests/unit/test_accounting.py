"""What privacy costs: published settings, an accountant of other hands, and laws of composition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from common.accounting import Mechanism, epsilon, noise_multiplier
from common.errors import PrivacyError
from common.privacy import belief, check_units, mechanism_of, promised
from common.study import PrivacySpec, Study
from tests.unit import federation as fed

PUBLISHED = {
    # Abadi et al. 2016, section 3.2: q 0.01, σ 4, 10,000 steps, δ 1e-5: ε 1.26 by moments.
    "abadi": ([Mechanism(4.0, 0.01, 10_000)], 1e-5, {"rdp": (1.0, 1.26)}),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_settings(case: str) -> None:
    spent, delta, bounds = PUBLISHED[case]
    for accountant, (low, high) in bounds.items():
        assert low <= epsilon(spent, delta, accountant) <= high  # type: ignore[arg-type]


GOLDEN = [
    ([Mechanism(1.0, 0.032, 600)], 1e-5, 5.0476, 5.5999),
    ([Mechanism(0.81, 0.032, 600)], 1e-5, 7.9771, 8.9187),
    ([Mechanism(4.0, 1.0, 50)], 1e-5, 8.5959, 9.2350),
    ([Mechanism(2.0, 0.3, 200)], 1e-4, 10.4789, 11.7014),
    ([Mechanism(1.0, 0.032, 300), Mechanism(2.0, 0.1, 100), Mechanism(6.0, 1.0, 3)], 1e-5, 4.5082, 4.9971),
]
"""What Google's dp-accounting 0.6.0 gives: ``PLDAccountant(value_discretization_interval=1e-3)`` and
``RdpAccountant()``, after composing a ``SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(σ)), steps)``.
Recorded, because the package asks for an attrs of 2023 and would hold back everybody's lock."""


@pytest.mark.parametrize(("spent", "delta", "loss_distribution", "renyi"), GOLDEN)
def test_an_independent_accountant_agrees(
    spent: list[Mechanism], delta: float, loss_distribution: float, renyi: float
) -> None:
    """By other hands and, for PRV, by another method: ours is an upper bound and at most 0.02 above."""
    assert loss_distribution - 1e-3 <= epsilon(spent, delta, "prv") <= loss_distribution + 0.02
    assert epsilon(spent, delta, "rdp") == pytest.approx(renyi, rel=0.02)  # on another grid of orders


def test_nothing_costs_nothing_and_what_is_beyond_bounds_is_infinite_or_large() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Mechanism(1.0, 0.5, 0)], 1e-5) == 0.0
    assert epsilon([Mechanism(0.05, 0.5, 1000)], 1e-5) > 1000


@settings(max_examples=8, deadline=None)
@given(
    noise=some.floats(0.6, 8.0),
    rate=some.floats(0.001, 1.0),
    steps=some.integers(1, 100),
    more=some.integers(1, 200),
)
def test_more_steps_less_noise_and_a_higher_rate_cost_more(noise: float, rate: float, steps: int, more: int) -> None:
    def cost(*spent: Mechanism) -> float:
        return epsilon(spent, 1e-5, "rdp")

    once = Mechanism(noise, rate, steps)
    base = cost(once) - 1e-9
    assert cost(Mechanism(noise, rate, steps + more)) >= base
    assert cost(Mechanism(noise * 0.9, rate, steps)) >= base
    assert cost(Mechanism(noise, min(1.0, rate * 1.2), steps)) >= base
    # The parts of a study cost together what it costs whole, in either order, and no more than one by one.
    other = Mechanism(noise, rate, more)
    assert cost(once, other) == pytest.approx(cost(Mechanism(noise, rate, steps + more)), rel=1e-9)
    assert cost(once, other) == pytest.approx(cost(other, once), rel=1e-12)
    assert cost(once, other) <= cost(once) + cost(other) + 1e-9


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.032, 600), (1.0, 0.1, 50), (3.0, 1.0, 20)])
def test_the_noise_meets_the_target_and_is_hardly_more_than_needed(
    accountant: str, target: float, rate: float, steps: int
) -> None:
    found = noise_multiplier(target, 1e-5, rate, steps, accountant)  # type: ignore[arg-type]
    assert epsilon([Mechanism(found, rate, steps)], 1e-5, accountant) <= target  # type: ignore[arg-type]
    assert epsilon([Mechanism(found / 1.01, rate, steps)], 1e-5, accountant) > target  # type: ignore[arg-type]


def test_facts_of_the_issue_hold() -> None:
    assert noise_multiplier(8.0, 1e-5, 0.032, 600, "prv") == pytest.approx(0.810, abs=0.005)
    assert noise_multiplier(8.0, 1e-5, 0.032, 600, "rdp") == pytest.approx(0.849, abs=0.005)


def test_a_target_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"cannot be met in 5000 steps.*raise epsilon, or lower federation.rounds"):
        noise_multiplier(0.001, 1e-9, 1.0, 5000, "rdp")


# --- from a study to a site -----------------------------------------------------------------------


def study(**privacy: object) -> Study:
    given = {"delta": 1e-3, "accountant": "rdp", **privacy}
    return fed.study(**{"model.norm": "group", "training": {"batch_size": 8, "local_steps": 5}, "privacy": given})


def test_each_site_has_its_own_rate_and_noise_and_the_same_steps() -> None:
    small, large = (mechanism_of(study(epsilon=4.0), units) for units in (20, 200))
    assert (small.sample_rate, large.sample_rate) == (8 / 20, 8 / 200)
    assert small.steps == large.steps == 15
    assert small.noise_multiplier > large.noise_multiplier
    for one in (small, large):
        assert epsilon([one], 1e-3, "rdp") <= 4.0
    assert mechanism_of(study(epsilon=4.0), 5).sample_rate == 1.0


def test_a_given_rate_makes_every_site_alike() -> None:
    """Then nothing but the noised sums depends on how many patients a site has."""
    made = study(noise_multiplier=1.1, sample_rate=0.1)
    assert mechanism_of(made, 20) == mechanism_of(made, 900) == Mechanism(1.1, 0.1, 15)
    assert promised(made) == epsilon([Mechanism(1.1, 0.1, 15)], 1e-3, "rdp")
    assert promised(study(epsilon=4.0)) == 4.0


def test_a_delta_that_gives_a_patient_away_is_refused_at_the_site() -> None:
    with pytest.raises(PrivacyError, match=r"privacy.delta 0.001 is not below one over this site's 1000 training pat"):
        mechanism_of(study(epsilon=4.0), 1000)
    check_units(PrivacySpec(epsilon=1.0, delta=1e-3), 999)
    with pytest.raises(PrivacyError):
        check_units(PrivacySpec(epsilon=1.0, delta=1e-3), 0)


def test_belief_is_the_odds_multiplied() -> None:
    assert belief(0.0) == 0.5
    assert belief(math.log(3.0)) == pytest.approx(0.75)
    assert belief(1000.0) == 1.0
