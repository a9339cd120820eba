"""What ``fedward privacy plan`` prints; ``privacy_commands`` declares how it is called."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import PrivacyError
from common.privacy import belief, facts, promised, spec_of
from common.study import Study
from common.words import sure
from server import plan_central
from server.plan import BEYOND, Afforded, Cost, WhatIf, afforded, check_budget, costs, examples, what_if

_MOST_SIZES = 12


def plan(path: Path, patients: str | None, *, budget: float | None, delta: float | None, as_json: bool) -> None:
    study = Study.load(path)
    if study.privacy is None:
        if study.central_privacy is None:
            raise PrivacyError(
                f"{path}: this study gives no differential privacy; add privacy: to it (docs/privacy.md)"
            )
        _central_alone(path, study, patients, budget, as_json=as_json)
        return
    if delta is not None and budget is None:
        raise PrivacyError("--delta is the budget's; give --budget EPSILON too")
    sizes = examples(study) if patients is None else _sizes(patients)
    at = study.privacy.delta if delta is None else delta
    if budget is not None:
        check_budget(study, sizes, budget, at)
    if as_json:
        print(json.dumps(_facts(study, costs(study, sizes), budget, at), ensure_ascii=False))
        return
    for line in _said(study, sizes, budget, at, given=patients is not None):
        print(line, flush=True)  # each sum takes a moment


def _said(study: Study, sizes: Sequence[int], budget: float | None, delta: float, *, given: bool) -> Iterator[str]:
    yield from _head(study)
    found = costs(study, sizes)
    yield from _table(study, found, given=given)
    yield from _delta(study, sizes, given=given)
    if budget is not None:
        yield from _budget(study, [afforded(study, one, budget, delta) for one in found], budget, delta)
    yield from _changes(study, found[0], what_if(study, found[0]))
    yield from _tail(study)
    if study.central_privacy is not None:
        yield ""
        yield from plan_central.lines(study, _rows)


def _central_alone(path: Path, study: Study, patients: str | None, budget: float | None, *, as_json: bool) -> None:
    if patients is not None or budget is not None:
        raise PrivacyError(
            f"{path}: --patients and --budget are about each patient, whom this study does not protect: its "
            "central_privacy hides hospitals; leave them out, or add privacy: to the study"
        )
    if as_json:
        told = {"study": study.name, "hash": study.hash, "rounds": study.federation.rounds}
        print(json.dumps(told | {"central_privacy": plan_central.told(study)}, ensure_ascii=False))
        return
    print("\n".join(plan_central.lines(study, _rows)))


def _sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part[:12]) > 0 and len(part) <= 12 for part in parts):
        raise PrivacyError(f"--patients {text}: give whole numbers with commas between, for example 200,1000")
    if len(set(parts)) > _MOST_SIZES:
        raise PrivacyError(f"--patients: at most {_MOST_SIZES} sizes at once; the smallest sites need the most noise")
    return tuple(int(part) for part in parts)


def _facts(study: Study, found: Sequence[Cost], budget: float | None, delta: float) -> dict[str, Any]:
    told: dict[str, Any] = {
        "study": study.name,
        "hash": study.hash,
        "rounds": study.federation.rounds,
        "local_steps": study.training.local_steps,
        "batch_size": study.training.batch_size,
        "privacy": facts(study),
        "sites": [
            {
                "patients": one.units,
                "noise_multiplier": one.mechanism.noise_multiplier,
                "sample_rate": one.mechanism.sample_rate,
                "steps": one.mechanism.steps,
                "epsilon_after_round": {str(done): spent for done, spent in one.spent},
            }
            for one in found
        ],
        "what_if": [asdict(one) for one in what_if(study, found[0])],
    }
    if study.central_privacy is not None:
        told["central_privacy"] = plan_central.told(study)
    if budget is not None:
        bought = [afforded(study, one, budget, delta) for one in found]
        of = {"epsilon": budget, "delta": delta, "counted_to": study.federation.rounds * BEYOND}
        told["budget"] = {
            **of,
            "sites": [{"patients": one.units, "rounds": one.rounds, "noise_for_all": one.noise} for one in bought],
        }
    return told


def _head(study: Study) -> Iterator[str]:
    privacy, bound, rounds = spec_of(study), promised(study), study.federation.rounds
    yield f"{study.name} (hash {study.hash[:12]}): differential privacy for each {privacy.unit}, at each site by itself"
    yield (
        f"epsilon {bound:.3g} at delta {privacy.delta:g} over all {rounds} rounds of {study.training.local_steps} "
        f"steps, {facts(study)['steps']} in all; clip {privacy.clip:g}; accountant {privacy.accountant}"
    )
    yield (
        f"it means: who held it as likely as not that a given {privacy.unit} took part can become "
        f"{sure(belief(bound))} sure of it at most, whatever else is known"
    )


def _table(study: Study, found: Sequence[Cost], *, given: bool) -> Iterator[str]:
    unit = spec_of(study).unit
    yield ""
    if found[0].units is None:
        heads = ["any site"]
        yield "sample_rate is the study's: noise and epsilon are the same whatever the sites' sizes"
    else:
        heads = [f"{one.units:,} {unit}s" for one in found]
        if not given:
            yield "example sizes of a site's training set, as no --patients were given"
    rows = [
        ("drawn in a step, chance q", [f"{one.mechanism.sample_rate:.4g}" for one in found]),
        ("noise, sigma", [f"{one.mechanism.noise_multiplier:.3g}" for one in found]),
    ]
    for place, (done, _) in enumerate(found[0].spent):
        rows.append((f"epsilon after {done} round" + "s" * (done > 1), [f"{one.spent[place][1]:.3g}" for one in found]))
    yield from _rows("", heads, rows)


def _delta(study: Study, sizes: Sequence[int], *, given: bool) -> Iterator[str]:
    """What δ means: (ε, δ) allows, at worst, that each unit is given away outright with probability δ."""
    privacy = spec_of(study)
    yield ""
    if privacy.sample_rate is not None and not given:
        yield f"delta {privacy.delta:g}: no site may have {1 / privacy.delta:,.0f} training {privacy.unit}s or more"
        return
    largest = max(sizes)
    chance = privacy.delta * largest
    yield (
        f"delta {privacy.delta:g}: the promise may fail for one {privacy.unit} with about that chance; among "
        f"{largest:,} at a site it fails for somebody with a chance of at most {chance:.2g}"
    )
    if chance > 0.1:
        yield f"that is much; a tenth of one over the {privacy.unit}s is usual: delta {0.1 / largest:.1g}"


def _budget(study: Study, bought: Sequence[Afforded], budget: float, delta: float) -> Iterator[str]:
    rounds, most = study.federation.rounds, study.federation.rounds * BEYOND
    yield ""
    yield f"a budget of epsilon {budget:g} at delta {delta:g}, of which nothing is spent yet, is good for"
    for one in bought:
        where = "" if one.units is None else f" at {one.units:,} {spec_of(study).unit}s"
        count = f"more than {most}" if one.rounds >= most else str(one.rounds)
        if one.rounds >= rounds:
            yield f"  {count} rounds{where}; the study has {rounds}"
            continue
        remedy = f"all of them with noise {one.noise:.3g}" if one.noise is not None else "no noise brings all within it"
        yield f"  {count} of the {rounds} rounds{where}; {remedy}"
    if any(one.rounds < rounds for one in bought):
        yield (
            f"a site stops when its budget is spent; set privacy.epsilon to {budget:g} (at delta {delta:g}), "
            "take fewer rounds or steps, or a smaller batch_size"
        )


def _changes(study: Study, cost: Cost, changes: Sequence[WhatIf]) -> Iterator[str]:
    where = "" if cost.units is None else f" (at {cost.units:,} {spec_of(study).unit}s)"
    yield ""
    rows = [(one.change, [f"{one.epsilon:.3g}", "" if one.noise is None else f"{one.noise:.3g}"]) for one in changes]
    yield from _rows(f"what if{where}", ["epsilon at this noise", "noise for the same epsilon"], rows)


def _tail(study: Study) -> Iterator[str]:
    yield ""
    yield "each site adds this to what other studies have spent on its patients"
    if spec_of(study).evaluation == "exact":
        yield "validation and test counts leave exactly (evaluation: exact): no epsilon here covers them"


def _rows(corner: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    first = max(len(corner), *(len(name) for name, _ in rows))
    widths = [max(len(head), *(len(cells[place]) for _, cells in rows)) for place, head in enumerate(heads)]
    for name, cells in [(corner, heads), *rows]:
        yield f"{name:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
