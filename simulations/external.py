"""External validation: a run's model on all rows of a further labelled dataset, at the run's threshold."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from client.app import Resident
from common.errors import DataError, RunError
from common.metrics import Counts, Layout, Moments, Reference, summarise
from common.weights import load
from server.results import read_card, summary_json
from simulations.datasets import open_source
from simulations.runfolder import Folder
from simulations.sites import Machine, external_site


def evaluate_run(run: Path, data: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Metrics with intervals of ``run``'s model on every labelled image of ``data``.

    The images pass through an encrypted vault in a temporary directory, as everywhere.
    """
    if not (run / "model.json").exists():
        raise RunError(f"{run} has no model: {Folder(run).what_now}")
    study, thresholds = read_card(run)
    source = open_source(study, data)
    with tempfile.TemporaryDirectory(prefix="fedward-evaluate-") as folder:
        home = Path(folder) / "external"
        images, unreadable = external_site(study, source, home, Machine(device))
        resident = Resident()
        try:
            site = resident.site(home)
            scores = resident.scores(site, study, "test", load(run / "model.safetensors"))
        finally:
            resident.close()
    if not len(scores.scores):
        raise DataError(
            f"{source.name} has no image with a label of this study; its classes are {', '.join(study.class_names)}"
        )
    counts = Counts.of(scores.scores, scores.targets, scores.patients, scores.loss, Layout.of(study))
    reference = Reference(counts, thresholds)
    moments = Moments.of(scores.scores, scores.targets, scores.patients, reference)
    found = summary_json(summarise(reference, moments, study.evaluation.confidence), study)
    return {
        **found,
        "source": source.name,
        "synthetic": source.synthetic,
        "images": len(scores.scores),
        "patients": int(scores.patients.max()) + 1,
        "unlabelled": images - len(scores.scores),
        "unreadable": unreadable,
    }
