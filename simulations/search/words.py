"""A search in words: values, scores, and the last lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.metrics import Summary
from simulations.progress import interval
from simulations.search.results import Judged, ranked
from simulations.search.space import SearchSpec

_SHOWN = 10
METRICS = {"auc": "AUC", "dice": "Dice", "loss": "loss"}


def metric_name(metric: str) -> str:
    return METRICS[metric]


def value_words(value: Any) -> str:
    """A field's value as YAML has it, on one line."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def params_words(params: Mapping[str, Any]) -> str:
    """``lr 0.001, batch_size 32``: the last step of each path tells fields apart, or all of it where it does not."""
    names = short_names(list(params))
    return ", ".join(f"{names[name]} {value_words(value)}" for name, value in params.items())


def short_names(names: Sequence[str]) -> dict[str, str]:
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}


def score_words(metric: str, score: float | None, deviation: float | None) -> str:
    if score is None:
        return "-"
    spread = "" if deviation is None else f" ± {deviation:.4f}"
    return f"{metric_name(metric)} {score:.4f}{spread}"


def chosen_on(best: Judged | None, spec: SearchSpec) -> str:
    """The sentence that stands beside every result."""
    patients = best.patients if best is not None else 0
    folds = f" over {spec.folds} folds" if spec.folds else ""
    what = "Chosen" if spec.space else "Measured"
    return f"{what} on validation of {patients} patients{folds}; not a test result."


def closing(spec: SearchSpec, judged: Sequence[Judged], best: Judged | None, together: Summary | None) -> list[str]:
    """The last lines: best trials first, what failed, of a cross-validation all patients, and what the numbers are."""
    lines = [""]
    done = [one for one in ranked(judged, spec) if one.score is not None]
    for rank, one in enumerate(done[:_SHOWN], start=1):
        values = params_words(one.params)
        head = f"{rank:>3}. trial {one.trial.number:<4}" if spec.space else "cross-validation  "
        lines.append(f"{head} {score_words(spec.metric, one.score, one.deviation)}" + (f"  {values}" if values else ""))
    if len(done) > _SHOWN:
        lines.append(f"… and {len(done) - _SHOWN} more: see the page")
    for status in ("failed", "pruned"):
        count = sum(one.status == status for one in judged)
        if count:
            lines.append(f"{count} of {len(judged)} trials {status}: the page says why")
    if together is not None:
        outlines = {"dice": "Dice", "lesions_found": "lesions found", "false_lesions": "false lesions an image"}
        for metric, name in {**outlines, "auc": "AUC", "sensitivity": "", "specificity": ""}.items():
            if metric in together.overall:
                lines.append(f"out of fold        {name or metric} {interval(together.overall[metric].to_dict())}")
    if best is not None:
        lines.append(chosen_on(best, spec))
    return lines
