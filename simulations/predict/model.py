"""A finished model and what makes its scores probabilities: a run's folder, or a package that a coordinator made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.devices import choose_device
from client.evaluation import predict
from client.vault.prepared import NO_MASK
from client.vault.view import View
from common.errors import RunError
from common.models import build
from common.package import SUMMARY
from common.weights import check_like, load, restore, state_of
from server.results import Card, read_card
from simulations.runfolder import Folder

Floats = NDArray[np.float64]
_RESULTS = "results.json"


@dataclass(frozen=True)
class Temperatures:
    """What each score column's logits are divided by (Guo et al. 2017); empty where nothing is known."""

    values: Sequence[float] = ()

    def probabilities(self, scores: Floats) -> Floats:
        """``scores`` ``(N, C)`` calibrated; as they are where there is no temperature."""
        if not self.values:
            return scores
        clipped = np.clip(scores, 2.0**-52, 1 - 2.0**-52)
        logits = (np.log(clipped) - np.log1p(-clipped)) / np.asarray(self.values)
        return np.asarray(1 / (1 + np.exp(-logits)))


class Model:
    """Scores prepared images; what is not the model's is the card's."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Raises :class:`RunError` for a folder without a whole model, :class:`DeviceError`."""
        self.require(folder)
        self.card: Card = read_card(folder)
        self.device = choose_device(device)
        facts = _facts(folder)
        self.temperatures = _temperatures(facts, self.card)
        self.synthetic = bool(facts.get("synthetic"))
        """Whether it was trained on images that nobody's body has made, as far as its folder says."""
        self.scoring_s = 0.0
        weights = load(folder / "model.safetensors")
        model = build(self.card.study, 0)
        check_like(weights, state_of(model))
        restore(model, weights)
        self._model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def require(folder: Path) -> None:
        """Raises :class:`RunError` for a folder without a model."""
        if not (folder / "model.json").exists():
            raise RunError(f"{folder} has no model: {Folder(folder).what_now}")

    def scores(self, images: Sequence[NDArray[np.uint8]]) -> Floats:
        """``(N, C)`` of images ``(C, H, W)``, as an evaluation has them; C = 1 for binary and segmentation."""
        started = time.perf_counter()
        study, count = self.card.study, len(images)
        pixels = torch.from_numpy(np.stack(images))
        size = study.image.size
        masks = torch.full((count, size, size), NO_MASK, dtype=torch.uint8) if study.outlines else None
        targets = torch.full((count, len(study.classes)), torch.nan)
        view = View(pixels, targets, torch.arange(count), count, 0, masks)
        found = predict(self._model, view.to(self.device), study, self.card.basis).scores
        self.scoring_s += time.perf_counter() - started
        return found


def _facts(folder: Path) -> dict[str, Any]:
    """What a package's summary, or a run's results, says of the model: ``calibration``, ``synthetic``."""
    for name in (SUMMARY, _RESULTS):
        path = folder / name
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_bytes())
            if name == _RESULTS:
                arm = json.loads((folder / "model.json").read_bytes())["arm"]
                found = {"synthetic": found["synthetic"], **found["arms"].get(arm, {})}
            return {key: found[key] for key in ("synthetic", "calibration") if key in found}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged ({type(error).__name__}); restore it from a copy") from None
    return {}


def _temperatures(facts: Mapping[str, Any], card: Card) -> Temperatures:
    """One for each score column, or none at all: probabilities that are calibrated for some classes mislead."""
    found = facts.get("calibration", {})
    values = [found.get(name, {}).get("scaled", {}).get("temperature") for name in card.study.scored_classes]
    if not values or None in values:
        return Temperatures()
    if not all(isinstance(value, float | int) and 0.0 < value < math.inf for value in values):
        raise RunError("the model's folder names a temperature that is none; restore it from a copy")
    return Temperatures([float(value) for value in values])
