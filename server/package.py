"""The finished model of a run, made ready for its sites: a card in plain words, the result, and the signed manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from common import central
from common.errors import RunError
from common.files import write_atomically
from common.package import MANIFEST, PAGE, PARTS, STUDY, SUMMARY, Manifest, Part
from common.privacy import promised, steps_of
from common.study import Study
from server.desk import RESULTS, RunFolder
from server.provision import Coordinator

_SUMMARY = ("rounds", "kept_round", "stopped_early", "thresholds", "test", "per_class", "roc")
_IF_ANY = ("confusion", "confusion_matrix", "calibration", "basis")


def package(folder: RunFolder, coordinator: Coordinator) -> tuple[Manifest, bytes]:
    """The manifest of a finished run, and as signed; made at the first call, and the same ever after.

    Raises :class:`RunError` for a run whose files are missing or damaged.
    """
    path = folder.path / MANIFEST
    if not path.exists():
        try:
            _make(folder, coordinator)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"run.json or {RESULTS} of run {folder.name} is damaged ({type(error).__name__}); "
                "restore it from a backup"
            ) from None
    signed = _read(path)
    manifest, _ = Manifest.open(signed, coordinator.key.public)
    return manifest, signed


def contents(folder: RunFolder) -> dict[str, bytes]:
    """Every file of the package but the manifest."""
    return {name: _read(folder.path / name) for name in PARTS}


def _make(folder: RunFolder, coordinator: Coordinator) -> None:
    facts, study = folder.facts, folder.study
    summary = _summary(folder.path / RESULTS, study)
    sites = folder.trained
    if not sites:
        raise RunError(f"run {folder.name} does not say which sites took part; launch it anew")
    finished = datetime.fromisoformat(facts["finished"])
    page = "\n".join(_page(study, summary, coordinator.config.name, sites, finished)) + "\n"
    write_atomically(folder.path / SUMMARY, json.dumps(summary, indent=1).encode(), mode=0o600)
    write_atomically(folder.path / PAGE, page.encode(), mode=0o600)
    files = contents(folder)
    manifest = Manifest(
        federation=coordinator.config.name,
        run=folder.name,
        study=study.hash,
        roster=facts.get("roster"),
        sites=sites,
        program=metadata.version("fedward"),
        finished=finished,
        files={name: Part.of(content) for name, content in files.items()},
    )
    write_atomically(folder.path / MANIFEST, manifest.sign(coordinator.key), mode=0o600)


def _summary(path: Path, study: Study) -> dict[str, Any]:
    """What of a run's result every site may have: nothing of one site's alone, nothing of single rounds."""
    try:
        arm: Mapping[str, Any] = json.loads(_read(path))["arms"]["federated"]
        found = {"study_hash": study.hash, **{key: arm[key] for key in _SUMMARY}}
        return found | {key: arm[key] for key in _IF_ANY if key in arm}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}); restore it from a backup") from None


def _page(
    study: Study, summary: Mapping[str, Any], federation: str, sites: tuple[str, ...], finished: datetime
) -> Iterator[str]:
    """The card for people, in Markdown; after Mitchell et al. 2019, Model Cards for Model Reporting."""
    colours = ", ".join(study.image.sequences) or ("grey" if study.image.channels == 1 else "three channels")
    yield f"# {study.name}"
    yield f"\n{study.description or 'The study does not describe itself.'}\n"
    yield "## What it is\n"
    yield f"- {study.model.name} for {study.task} classification: {', '.join(study.class_names)}"
    yield f"- images of {study.image.size} × {study.image.size} pixels, {colours}, preprocessed as `{STUDY}` says"
    for channel, (mean, deviation) in enumerate(_normalised(summary), 1):
        which = f" of channel {channel}" if study.image.channels > 1 else ""
        yield f"- then the mean {mean:.6f}{which} is taken off pixels in [0, 1], and divided by {deviation:.6f}"
    for name, edge in summary["thresholds"].items():
        yield f"- an image counts as {name} from a score of {edge:.4f} on, chosen on the validation images"
    yield "\n## How it was trained\n"
    yield f"- by {len(sites)} hospitals of {federation}: {', '.join(sites)}"
    yield f"- for {summary['rounds']} rounds, kept: round {summary['kept_round']}; finished on {finished.date()}"
    yield f"- {_privacy(study)}"
    if study.central_privacy is not None:
        yield f"- {_central(study)}"
    if study.norms_stay:
        yield "- without norm layers: each hospital trained and kept its own, and without these the model is of no use"
    yield f"- purpose: {study.governance.purpose or 'the study does not say'}"
    yield f"- ethics: {study.governance.ethics_reference or 'the study does not say'}"
    yield f"- contact: {study.governance.contact or 'the study does not say'}"
    yield f"- study {study.hash}"
    yield "\n## How well it did\n"
    yield "On the sites' test patients together, with intervals at the confidence that the study names:\n"
    yield from _rows(summary["test"])
    if len(study.scored_classes) > 1:
        for name, metrics in summary["per_class"].items():
            yield f"\nOf {name}:\n"
            yield from _rows(metrics)
    if any(cell["value"] is None and cell["low"] is not None for cell in _cells(summary)):
        yield "\nWithheld: counts of few patients do not leave the sites, so the value itself is not known; it lies"
        yield "between the bounds, and the more test patients there are the closer they come."
    yield "\n## What it is not for\n"
    yield "- It is the result of research and no medical device: no diagnosis may rest on it."
    yield "- What holds for these hospitals' patients and machines need not hold for others': test it on your own first"
    yield "  (`fedward evaluate`)."
    yield "- Weights can tell about the patients they were trained on: pass them on only where the study allows it."


def _cells(summary: Mapping[str, Any]) -> Iterator[Mapping[str, float | None]]:
    """Every metric's value and interval."""
    for metrics in (summary["test"], *summary["per_class"].values()):
        yield from metrics.values()


def _normalised(summary: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Mean and standard deviation of each channel, where the study has pixels normalised."""
    basis = summary.get("basis") or {"mean": [], "deviation": []}
    return list(zip(basis["mean"], basis["deviation"], strict=True))


def _privacy(study: Study) -> str:
    privacy = study.privacy
    if privacy is None:
        return "without differential privacy: nothing bounds what the weights tell of a patient"
    counts = "of the tests below, exact counts left" if privacy.evaluation == "exact" else "no test counts left"
    return (
        f"with differential privacy for each {privacy.unit} at each hospital: ε at most {promised(study):.3g}, "
        f"δ {privacy.delta:.3g} over the whole study ({steps_of(study)} steps, gradients clipped to {privacy.clip:g}, "
        f"{privacy.accountant} accountant); {counts}"
    )


def _central(study: Study) -> str:
    found = central.facts(study, 0)
    against = "against all but the coordinator"
    if found["noise"] == "sites":
        against = f"also against the coordinator together with {found['colluders']} of the other hospitals"
    counts = "of the tests below, exact counts left" if found["evaluation"] == "exact" else "no test counts left"
    return (
        f"with differential privacy for each hospital as a whole, {against}: ε at most "
        f"{found['epsilon']:.3g}, δ {found['delta']:.3g} over the whole study (updates clipped to {found['clip']:g}"
        f"{' at first' if found['clipping'] == 'adaptive' else ''}, noise {found['update_noise']:.3g} times that on "
        f"their sum, {found['accountant']} accountant); {counts}"
    )


def _rows(metrics: Mapping[str, Mapping[str, float | None]]) -> Iterator[str]:
    yield "| metric | value | interval |\n|---|---|---|"
    for metric, cell in metrics.items():
        value, low, high = (cell[key] for key in ("value", "low", "high"))
        between = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        if value is not None:
            yield f"| {metric.replace('_', ' ')} | {value:.3f} | {between} |"
        elif between:
            yield f"| {metric.replace('_', ' ')} | withheld | {between}, bounds |"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; restore it from a backup") from None
