"""Which page fits these runs: one, repeats of one study, or a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence

from common.errors import RunError
from common.html import Page
from server.report import charts
from server.report.comparison import comparison
from server.report.page import one_run
from server.report.repeats import repeats
from server.report.results import Run


def page(runs: Sequence[Run]) -> Page:
    """The page for these runs: one, repeats of one study, or a comparison."""
    if not runs:
        raise RunError("there are no results to report: name at least one run that has finished")
    with charts.drawing():
        if len(runs) == 1:
            return one_run(runs[0])
        groups = grouped(runs)
        return repeats(groups[0]) if len(groups) == 1 else comparison(groups)


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in seed or repeat alone belong together; anything else is another experiment.

    Where the same seed and repeat comes twice (an engine compared with itself, say) every
    run of that group stands by itself.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        study = {key: value for key, value in run.study.items() if key != "seed"}
        key = json.dumps([study, run.source, run.engine, run.device, run.synthetic], sort_keys=True)
        groups.setdefault(key, []).append(run)
    result: list[list[Run]] = []
    for group in groups.values():
        distinct = len({(run.seed, run.repeat) for run in group}) == len(group)
        result += [sorted(group, key=lambda run: (run.repeat, run.seed))] if distinct else [[run] for run in group]
    return result
