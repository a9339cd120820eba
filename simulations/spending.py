"""What a private simulation cost its virtual hospitals, whose patients we may count: σ, q, steps and ε of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import PrivacyError
from common.privacy import mechanism_of, site_facts, spec_of
from common.study import Study
from simulations.sites import POOLED

Sites = Mapping[str, Mapping[str, Any]]
"""Alias -> what ``run.json`` says of a hospital: ``images`` and ``patients`` by split."""


def units_of(study: Study, site: Mapping[str, Any]) -> int:
    """Training patients of a hospital, or its images where the study protects those."""
    return int(site["patients" if spec_of(study).unit == "patient" else "images"]["train"])


def check(study: Study, sites: Sites) -> None:
    """Raises :class:`PrivacyError` naming the first hospital that cannot give what the study promises."""
    if study.privacy is None:
        return
    for alias, site in sites.items():
        try:
            mechanism_of(study, units_of(study, site))
        except PrivacyError as error:
            raise PrivacyError(f"{alias}: {error}") from None


def add_spending(study: Study, sites: Sites, arms: Mapping[str, Any]) -> None:
    """Put into each private arm of ``results.json`` what it cost each site; rounds done twice are counted twice."""
    if study.privacy is None:
        return
    units = {alias: units_of(study, site) for alias, site in sites.items()}

    def add(found: dict[str, Any], those: Mapping[str, int]) -> None:
        rounds = found["privacy"]["rounds"] + found["privacy"]["rounds_redone"]
        found["privacy"]["sites"] = {alias: site_facts(study, count, rounds) for alias, count in those.items()}

    for name, found in arms.items():
        if name == "local":
            for alias, alone in found["sites"].items():
                add(alone, {alias: units[alias]})
        else:
            add(found, {POOLED: sum(units.values())} if name == POOLED else units)
