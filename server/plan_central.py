"""What central privacy will cost the hospitals and do to the model, before anything is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from common.central import LEAST_SITES, Effect, effect_of, facts, noise_of, promised, short, spec_of, spent
from common.privacy import belief
from common.study import Study
from common.words import sure
from server.plan import shown

_EXAMPLES = (LEAST_SITES, 30, 100, 300, 1000, 10_000)

Rows = Callable[[str, Sequence[str], Sequence[tuple[str, Sequence[str]]]], Iterable[str]]


def effects(study: Study) -> list[Effect]:
    """What the noise does to the mean, for some numbers of sites."""
    parameters = _trained(study)
    least = 0
    if study.noised_by_sites:
        secure = study.federation.secure_aggregation
        least = int(secure.threshold or 0) if secure is not None else 0
    return [effect_of(study, sites, parameters) for sites in _EXAMPLES if sites >= least]


def told(study: Study) -> dict[str, Any]:
    """For ``--json``."""
    return {
        **facts(study, study.federation.rounds),
        "spent": [[done, spent(study, done)] for done in shown(study.federation.rounds)],
        "effects": [
            {"sites": one.sites, "parameters": one.parameters, "noise_each": one.each, "noise_whole": one.whole}
            for one in effects(study)
        ],
    }


def lines(study: Study, rows: Rows) -> Iterator[str]:
    """In words; ``rows`` lays out a table."""
    central, bound, rounds, noise = spec_of(study), promised(study), study.federation.rounds, noise_of(study)
    found = effects(study)
    if central.noise == "coordinator":
        whose, sees = "the coordinator's", "; the coordinator itself sees each update as it is"
    else:
        whose, sees = "the sites' own", f"; so can the coordinator, and {central.colluders} sites that help it, no more"
    yield f"{study.name} (hash {study.hash[:12]}): differential privacy for each hospital, by {whose} noise"
    yield (
        f"epsilon {bound:.3g} at delta {central.delta:g} over all {rounds} rounds; clip {central.clip:g}, "
        f"{central.clipping}; noise {noise.update:.3g} times the bound on the sum; accountant {central.accountant}"
    )
    yield (
        "it means: who sees all models, and held it as likely as not that a given hospital's images had a say, can "
        f"become {sure(belief(bound))} sure of it at most{sees}"
    )
    yield ""
    yield from rows(
        "",
        ["epsilon"],
        [(f"after {done} round" + "s" * (done > 1), [f"{spent(study, done):.3g}"]) for done in shown(rounds)],
    )
    yield ""
    yield f"what the noise does to {found[0].parameters:,} trained numbers; with less than 1 below, it can learn well"
    yield from rows(
        "",
        [f"{one.sites:,} sites" for one in found],
        [
            ("noise on each number, in clipping bounds", [short(one.each) for one in found]),
            ("all of it, to the longest mean update", [short(one.whole) for one in found]),
        ],
    )


def _trained(study: Study) -> int:
    """How many numbers the study's model trains."""
    import torch

    from common.models import BUILDERS, build

    with torch.device("meta" if study.model.name in BUILDERS else "cpu"):
        model = build(study, 0)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
