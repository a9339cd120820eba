"""From a study's ``privacy:`` to the noise of one site, and to words about what it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from common.accounting import Mechanism, epsilon, noise_multiplier
from common.errors import PrivacyError
from common.study import Study
from common.study_privacy import PrivacySpec


def spec_of(study: Study) -> PrivacySpec:
    """The study's privacy, where the caller knows that it has one."""
    if study.privacy is None:
        raise PrivacyError("this study gives no differential privacy; add privacy: to it")
    return study.privacy


def steps_of(study: Study, rounds: int | None = None) -> int:
    """Steps that each site takes in ``rounds``, or in the whole study."""
    return (study.federation.rounds if rounds is None else rounds) * (study.training.local_steps or 0)


def mechanism_of(study: Study, units: int) -> Mechanism:
    """What the whole study does at a site with ``units`` training patients (or images).

    Raises :class:`PrivacyError` where the site has too few for the study's δ, or its ε cannot be met.
    """
    privacy = spec_of(study)
    check_units(privacy, units)
    rate = privacy.sample_rate or min(1.0, study.training.batch_size / units)
    steps = steps_of(study)
    if privacy.noise_multiplier is not None:
        return Mechanism(privacy.noise_multiplier, rate, steps)
    assert privacy.epsilon is not None
    return Mechanism(noise_multiplier(privacy.epsilon, privacy.delta, rate, steps, privacy.accountant), rate, steps)


def check_units(privacy: PrivacySpec, units: int) -> None:
    """Raises :class:`PrivacyError` where δ would allow to give one of ``units`` away entirely."""
    if units < 1 or privacy.delta >= 1.0 / units:
        raise PrivacyError(
            f"privacy.delta {privacy.delta:g} is not below one over this site's {units} training {privacy.unit}s: it "
            f"would allow to publish one of them; use a delta below {1.0 / max(units, 1):.1g}"
        )


def promised(study: Study) -> float:
    """ε of the whole study at every site: a fact of the study alone, whatever a site holds."""
    privacy = spec_of(study)
    if privacy.epsilon is not None:
        return privacy.epsilon
    return epsilon([mechanism_of(study, 1)], privacy.delta, privacy.accountant)


def facts(study: Study) -> dict[str, Any]:
    """What reports and model cards say of a study's privacy, from the study alone."""
    privacy = spec_of(study)
    return {
        "unit": privacy.unit,
        "epsilon": promised(study),
        "delta": privacy.delta,
        "clip": privacy.clip,
        "accountant": privacy.accountant,
        "steps": steps_of(study),
        "sample_rate": privacy.sample_rate,
        "noise_multiplier": privacy.noise_multiplier,
        "evaluation": privacy.evaluation,
    }


def site_facts(study: Study, units: int, rounds: int) -> Mapping[str, Any]:
    """σ, q, steps and ε of one site after ``rounds``, rounds done twice counted twice. For those who may know them."""
    privacy, planned = spec_of(study), mechanism_of(study, units)
    done = Mechanism(planned.noise_multiplier, planned.sample_rate, steps_of(study, rounds))
    return {
        "noise_multiplier": done.noise_multiplier,
        "sample_rate": done.sample_rate,
        "steps": done.steps,
        "epsilon": epsilon([done], privacy.delta, privacy.accountant),
    }


def belief(epsilon_: float) -> float:
    """How sure at most one can become that somebody took part who thought it as likely as not: e^ε / (1 + e^ε)."""
    return 1.0 / (1.0 + math.exp(-epsilon_))
