"""A search's results as files: ``trials.csv``, ``trials.json``, ``best.yaml``."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.csv_text import cell_text
from common.files import write_atomically
from common.html import clean
from common.study import Study
from simulations.search.results import Judged, json_of, ranked
from simulations.search.space import SearchSpec

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


class _Dumper(yaml.SafeDumper):
    """YAML that YAML 1.1 and 1.2 read alike: every text that could be anything else stands in quotes."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _quoted)


def study_yaml(study: Study, heading: Sequence[str]) -> str:
    """``study`` as a study file, under comment lines; parsed again it is the same study."""
    body = yaml.dump(json.loads(study.canonical()), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return "".join(f"# {' '.join(clean(line).split())}\n" for line in heading) + body


def with_weights_from(study: Study, base: Path, folder: Path) -> Study:
    """``study`` as it must stand in ``folder``: its start weights were relative to ``base``."""
    weights = study.model.weights
    if weights is None or Path(weights).is_absolute():
        return study
    return study.derive(**{"model.weights": os.path.relpath(base / weights, folder)})


def write_json(trials: Sequence[Judged], spec: SearchSpec, facts: dict[str, Any], path: Path) -> None:
    found = {**facts, "trials": json_of(trials, spec)}
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False).encode())


def write_csv(trials: Sequence[Judged], spec: SearchSpec, path: Path) -> None:
    """One row a trial, best first; fields in the order of the space file."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    folds = range(1, (spec.folds or 1) + 1)
    table.writerow(
        ["rank", "trial", "status", spec.metric, "deviation", "pooled", "patients", "seconds"]
        + [_cell(name) for name in spec.space]
        + [f"fold_{fold}_{spec.metric}" for fold in folds]
        + ["reason"]
    )
    for rank, one in enumerate(ranked(trials, spec), start=1):
        by_fold = {fit.fold: fit.score(spec.metric) for fit in one.fits}
        table.writerow(
            [
                rank if one.score is not None else "",
                one.trial.number,
                one.status,
                one.score,
                one.deviation,
                one.pooled,
                one.patients,
                round(one.wall_s, 1),
                *(_cell(one.params.get(name)) for name in spec.space),
                *(by_fold.get(fold) for fold in folds),
                _cell(one.reason),
            ]
        )
    write_atomically(path, buffer.getvalue().encode())


def _cell(value: Any) -> Any:
    """As a spreadsheet shows it and never computes it."""
    return json.dumps(value) if isinstance(value, list | dict | bool) else cell_text(value)
