"""All that a finished search leaves for its reader: tables, the best study and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_atomically
from common.metrics import Summary
from common.results import summary_json
from simulations import environment
from simulations.search.files import study_yaml, with_weights_from, write_csv, write_json
from simulations.search.page import write_page
from simulations.search.pooled import out_of_fold
from simulations.search.results import Judged, importance, ranked
from simulations.search.run import Search
from simulations.search.words import chosen_on, params_words, score_words

BEST, PAGE, JSON, CSV = "best.yaml", "search.html", "trials.json", "trials.csv"


def write_results(search: Search, judged: Sequence[Judged]) -> tuple[Judged | None, Summary | None]:
    """Write everything into the search's folder, the page last.

    Returns the best trial, where there is one, and of a cross-validation all patients out of fold.
    """
    folder, spec = search.store.path, search.spec
    order = ranked(judged, spec)
    best = order[0] if order and order[0].score is not None else None
    matters = importance(judged, spec, search.seed)
    together = out_of_fold(search, best) if best is not None and not spec.space else None
    facts = _facts(search, best, matters)
    if together is not None:
        facts["out_of_fold"] = summary_json(together, search.study)["test"]
    write_csv(judged, spec, folder / CSV)
    write_json(judged, spec, facts, folder / JSON)
    if best is not None and spec.space:
        _write_best(search, best, folder / BEST)
    write_page(search, order, best, matters, together, folder / PAGE)
    return best, together


def _facts(search: Search, best: Judged | None, matters: Mapping[str, float]) -> dict[str, Any]:
    return {
        "fedward": environment.version(),
        "study": search.study.name,
        "study_hash": search.study.hash,
        "source": search.prepared.source,
        "synthetic": search.prepared.synthetic,
        "spec": search.spec.model_dump(mode="json"),
        "note": chosen_on(best, search.spec),
        "importance": dict(matters),
        "environment": environment.describe(),
        **search.stopwatch.json(),
    }


def _write_best(search: Search, best: Judged, path: Path) -> None:
    study = with_weights_from(search.study.derive(**best.params), Path(search.plan.base), path.parent.resolve())
    heading = [
        f"Trial {best.trial.number} of a search over {search.study.name}: "
        f"{score_words(search.spec.metric, best.score, best.deviation)} ({params_words(best.params)}).",
        chosen_on(best, search.spec),
    ]
    write_atomically(path, study_yaml(study, heading).encode())
