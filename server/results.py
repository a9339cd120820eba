"""What came of an arm: its kept model, thresholds and test result, as JSON and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from common import central, privacy
from common.basis import Basis
from common.calibration import calibration_json
from common.errors import ProtocolError, RunError
from common.files import write_atomically
from common.metrics import GRID, FirstPass, Thresholds, choose_outline, choose_threshold
from common.results import summary_json, thresholds_json
from common.study import Study
from common.weights import Weights, save
from server.checkpoints import Progress
from server.examined import examined_json
from server.examining import Examined
from server.outlines import outlines_json
from server.testing import Tested
from server.work import Work

FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """A finished arm: its kept model, and what became of its rounds."""

    work: Work
    progress: Progress
    validation: FirstPass
    """Of the kept model, by which thresholds were chosen."""
    thresholds: Thresholds
    outline: int | None = None
    """In a study that outlines: which of ``common.metrics.GRID`` a pixel's probability must reach."""

    @property
    def weights(self) -> Weights:
        return self.progress.kept

    @property
    def name(self) -> str:
        return self.work.arm


def finish(work: Work, progress: Progress) -> Trained:
    """An arm whose rounds are over, with thresholds from the kept model's validation counts."""
    found = FirstPass.from_arrays(progress.validation, work.study)
    thresholds = choose_threshold(found.counts, work.study.evaluation.threshold)
    outline = None if found.outlines is None else choose_outline(found.outlines)
    return Trained(work, progress, found, thresholds, outline)


def head_json(study: Study, repeat: int) -> dict[str, Any]:
    """What ``results.json`` of any run begins with: its study, and the program that ran it."""
    return {
        "format": FORMAT,
        "fedward": metadata.version("fedward"),
        "study_hash": study.hash,
        "study": study.model_dump(mode="json"),
        "task": study.task,
        "classes": list(study.class_names),
        "seed": study.seed,
        "repeat": repeat,
    }


def privacy_json(arm: Trained) -> dict[str, Any]:
    """What is known of a private arm's privacy without knowing its sites (:func:`common.privacy.facts`)."""
    rounds, redone = arm.progress.round, arm.progress.facts.get("rounds_redone", 0)
    return {**privacy.facts(arm.work.study), "rounds": rounds, "rounds_redone": redone}


def central_json(arm: Trained) -> dict[str, Any]:
    """What an arm under central privacy promises and spent (:func:`common.central.facts`), and what its noise did."""
    study = arm.work.study
    told = central.facts(study, arm.progress.round)
    record = next((one["central"] for one in reversed(arm.progress.history) if "central" in one), None)
    if record is None:
        words = "The secure sum of every round was lost, and the model is as it was at first."
        return {**told, "sites": 0, "last_clip": told["clip"], "effect": words}
    effect = central.effect_of(study, record["sites"], record["parameters"])
    return {**told, "sites": effect.sites, "last_clip": record["clip"], "effect": central.effect_words(effect)}


def _promises(arm: Trained) -> dict[str, Any]:
    """``privacy`` and ``central_privacy``, where the arm was trained under them."""
    return {
        **({"privacy": privacy_json(arm)} if arm.work.study.privacy is not None else {}),
        **({"central_privacy": central_json(arm)} if arm.work.central else {}),
    }


def arm_json(arm: Trained, tested: Tested, examined: Examined | None = None) -> dict[str, Any]:
    """Training history and test result of one arm, as in ``results.json``; of the kept model what else was asked."""
    study, progress = arm.work.study, arm.progress
    return {
        **_promises(arm),
        "rounds": progress.round,
        "kept_round": progress.facts["kept_round"],
        "stopped_early": progress.facts["stopped_early"],
        "thresholds": thresholds_json(arm.thresholds, study),
        **({"basis": arm.work.basis.json()} if arm.work.basis else {}),
        **summary_json(tested.overall, study),
        **outlines_json(arm.outline, tested.overall, study),
        "calibration": calibration_json(tested.overall.reference.counts, arm.validation.counts, study.scored_classes)
        if study.task != "segmentation"  # an image's score is then the edge of its outline, and no probability
        else {},
        **(examined_json(examined, tested.overall, study) if examined is not None else {}),
        "history": progress.history,
    }


def write_model(folder: Path, arm: Trained) -> None:
    """``model.safetensors`` (weights only: equal weights are equal bytes) and ``model.json`` beside it."""
    study = arm.work.study
    save(arm.weights, folder / "model.safetensors")
    card = {
        "format": FORMAT,
        "study": json.loads(study.canonical()),
        "study_hash": study.hash,
        "arm": arm.name,
        "repeat": arm.work.repeat,
        "kept_round": arm.progress.facts["kept_round"],
        "thresholds": thresholds_json(arm.thresholds, study),
        **({} if arm.outline is None else {"outline_threshold": GRID[arm.outline]}),
        "basis": arm.work.basis.json() if arm.work.basis else None,
        **_promises(arm),
    }
    write_atomically(folder / "model.json", json.dumps(card, indent=1).encode())


@dataclass(frozen=True)
class Card:
    """What is needed to use a run's model: how images are prepared, and from which score on one is positive."""

    study: Study
    thresholds: Thresholds
    basis: Basis | None
    """Normalisation that it was trained with, where the study has one."""
    outline: int | None = None
    """As :attr:`Trained.outline`."""


def read_card(folder: Path) -> Card:
    """The card of a run's model. Raises :class:`RunError` where there is none, or the model is not whole."""
    path = folder / "model.json"
    try:
        card: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        study = Study.parse(json.dumps(card["study"], ensure_ascii=False), str(path))
        edges = [card["thresholds"][name] for name in study.scored_classes] if study.task != "multiclass" else []
        outline = GRID.index(card["outline_threshold"]) if study.outlines else None
        basis = Basis.from_json(card.get("basis"), study)
        if study.norms_stay and card["arm"] == "federated":
            raise RunError(
                f"the model in {folder} scores nothing by itself: its norm layers are each hospital's own "
                "(personalisation: fedbn) and never left; a run of another method has a model for others"
            )
        return Card(study, Thresholds.at(edges, study.evaluation.bins), basis, outline)
    except FileNotFoundError:
        raise RunError(f"{folder} has no model yet; finish it with `fedward simulate --resume {folder}`") from None
    except (ValueError, KeyError, TypeError, ProtocolError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}); run the simulation again") from None
