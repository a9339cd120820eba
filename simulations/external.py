"""A run's model, at the run's threshold, on images it has not seen: another dataset's, or a hospital's test split."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from client.app import Resident
from client.cli import ask_passphrase
from client.config import SITE_FILE, SiteConfig
from client.evaluation import Scores, first_pass
from client.lesions import second_pass
from common.errors import DataError, RunError
from common.metrics import Found, Question, Reference
from common.results import summary_json
from common.weights import Weights, load
from server.outlines import outlines_json
from server.results import Card, read_card
from server.testing import summed_up
from simulations.datasets import open_source
from simulations.runfolder import Folder
from simulations.sites import Machine, external_site


def evaluate_run(run: Path, data: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Metrics with intervals of ``run``'s model on every labelled image of ``data``.

    ``run`` may be a model that a coordinator has brought to a site. Of a hospital's own site directory the test split
    is used: the model may have been trained on the rest. Images of other sources pass through an encrypted vault in a
    temporary directory, as everywhere.
    """
    if not (run / "model.json").exists():
        raise RunError(f"{run} has no model: {Folder(run).what_now}")
    card = read_card(run)
    study = card.study
    weights = load(run / "model.safetensors")
    if (data / SITE_FILE).is_file() and SiteConfig.load(data).state is not None:
        return _at_home(card, weights, data, device)
    source = open_source(study, data)
    with tempfile.TemporaryDirectory(prefix="fedward-evaluate-") as folder:
        home = Path(folder) / "external"
        images, unreadable = external_site(study, source, home, Machine(device))
        resident = Resident()
        try:
            site = resident.site(home)
            scores = resident.scores(site, study, "test", weights, card.basis)
            lesions = resident.lesions(site, study, "test", weights, card.basis)
        finally:
            resident.close()
    if not len(scores.scores):
        raise DataError(
            f"{source.name} has no image with a label of this study; its classes are {', '.join(study.class_names)}"
        )
    return {
        **measured(scores, card, lesions),
        "source": source.name,
        "synthetic": source.synthetic,
        "images": len(scores.scores),
        "patients": int(scores.patients.max()) + 1,
        "unlabelled": images - len(scores.scores),
        "unreadable": unreadable,
    }


def _at_home(card: Card, weights: Weights, directory: Path, device: str) -> dict[str, Any]:
    """On a real site's test split; that its images were read is on record there."""
    resident = Resident(device, passphrase=ask_passphrase)
    try:
        site = resident.site(directory)
        site.note_use(card.study)
        scores = resident.scores(site, card.study, "test", weights, card.basis)
        lesions = resident.lesions(site, card.study, "test", weights, card.basis)
        (vault,) = site.vaults
        synthetic = vault.synthetic
    finally:
        resident.close()
    if not len(scores.scores):
        raise DataError(f"{site.alias} has no labelled test image for this study; its test split is empty")
    return {
        **measured(scores, card, lesions),
        "source": f"the test split of {site.alias}",
        "synthetic": synthetic,
        "images": len(scores.scores),
        "patients": int(scores.patients.max()) + 1,
        "unlabelled": 0,
        "unreadable": [],
    }


def measured(scores: Scores, card: Card, lesions: Found | None = None) -> dict[str, Any]:
    """Metrics with intervals of a model's ``scores`` at the thresholds of its ``card``, as in ``results.json``.

    ``lesions``: of the same images, in a study that outlines.
    """
    study = card.study
    first = first_pass(scores, study)
    second = second_pass(scores, lesions, Question(Reference(first.counts, card.thresholds), card.outline))
    summary = summed_up(first, second, card.thresholds, card.outline, study)
    return {**summary_json(summary, study), **outlines_json(card.outline, summary, study)}
