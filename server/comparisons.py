"""How two deciders differ, as it stands in ``results.json``; p-values corrected for being many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from common.metrics.many import benjamini_hochberg, holm
from common.metrics.paired import Comparison, Contrast
from common.study import Study

Row = dict[str, Any]


def comparison_json(found: Comparison, names: tuple[str, str], on: str, study: Study) -> Row:
    """``names``: of the first and the second; ``on``: whose test patients, ``all`` or a site's."""
    classes = study.scored_classes
    asked = ["all"] if study.task == "multiclass" else classes
    return {
        "a": names[0],
        "b": names[1],
        "on": on,
        "images": found.images,
        "patients": found.patients,
        "clustered": found.clustered,
        "withheld": found.withheld,
        "overall": _contrasts(found.overall),
        "per_class": {name: _contrasts(found.per_class[at]) for at, name in enumerate(classes)}
        if len(classes) > 1
        else {},
        "agreement": {
            name: {**found.agreement[at].to_dict(), "observed": found.observed[at]} for at, name in enumerate(asked)
        },
    }


def correct(rows: Sequence[Row]) -> None:
    """Add ``p_holm`` and ``p_false_discovery`` to every p-value in ``rows``.

    A family is what a reader looks through for the striking ones: one metric of one class, for all comparisons on
    everybody's patients; and apart from these, for all on hospitals' own.
    """
    families: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        for name, contrasts in (("", row["overall"]), *row["per_class"].items()):
            for metric, contrast in contrasts.items():
                if contrast["p"] is not None:
                    families[name, metric, row["on"] == "all"].append(contrast)
    for family in families.values():
        p = [contrast["p"] for contrast in family]
        for contrast, strict, lenient in zip(family, holm(p), benjamini_hochberg(p), strict=True):
            contrast |= {"p_holm": strict, "p_false_discovery": lenient, "family": len(family)}


def _contrasts(found: Mapping[str, Contrast]) -> dict[str, Row]:
    return {metric: _contrast(one) for metric, one in found.items()}


def _contrast(one: Contrast) -> Row:
    return {
        **one.difference.to_dict(),
        "first": one.first.to_dict(),
        "second": one.second.to_dict(),
        "p": one.p,
        "test": one.test,
        **({"mcnemar": asdict(one.mcnemar)} if one.mcnemar is not None else {}),
        **({"p_bounds": list(one.p_bounds)} if one.p_bounds is not None else {}),
    }
