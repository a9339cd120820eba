"""A search's folder: what was asked, every finished fit committed whole, and what came of it.

``search.json``: study, space and plan. ``trials/0007/``: ``trial.json`` (its values), and of each fit ``fold-2.npz``
(validation counts) and then ``fold-2.json``, whose presence says that the fit is over. ``sites/``: the virtual
hospitals, without test patients.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import RunError
from common.files import make_folder, sweep_folder, write_atomically
from common.weights import Weights, load, save
from server.checkpoints import Arrays
from simulations.runfolder import SEARCH
from simulations.search.fit import Fit, Outcome

FORMAT = 1
_TRIAL = "trial.json"


@dataclass(frozen=True)
class Trial:
    """What a trial is: its number from 1, its values, and why no study has them, where none does."""

    number: int
    params: Mapping[str, Any]
    refused: str = ""


@dataclass(frozen=True)
class Store:
    """Reads and writes ``path``. Damage is told with its file and remedy, as :class:`RunError`."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / SEARCH

    @property
    def sites(self) -> Path:
        return self.path / "sites"

    def trial_folder(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def propose(self, trial: Trial) -> None:
        """Commit a trial before its first fit: a resumed search tries the same values."""
        folder = self.trial_folder(trial.number)
        make_folder(folder)
        facts = {"number": trial.number, "params": dict(trial.params), "refused": trial.refused}
        write_atomically(folder / _TRIAL, json.dumps(facts, indent=1, ensure_ascii=False).encode())

    def commit(self, outcome: Outcome) -> None:
        """Keep a fit; after a kill at any moment it is there in full, or not at all."""
        fit = outcome.fit
        folder = self.trial_folder(fit.trial)
        if outcome.counts:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **outcome.counts)
            write_atomically(folder / f"fold-{fit.fold}.npz", buffer.getvalue())
        if outcome.weights:
            save(outcome.weights, folder / f"fold-{fit.fold}.safetensors")
        write_atomically(folder / f"fold-{fit.fold}.json", json.dumps(fit.json(), indent=1).encode())

    def trials(self) -> list[Trial]:
        """Those proposed so far, in order."""
        found: list[Trial] = []
        while (path := self.trial_folder(len(found) + 1) / _TRIAL).exists():
            sweep_folder(path.parent)
            raw = self._read(path)
            try:
                found.append(Trial(raw["number"], raw["params"], raw["refused"]))
            except (KeyError, TypeError):
                raise self._damaged(path) from None
        return found

    def fits(self, trial: int) -> dict[int, Fit]:
        """A trial's finished fits, by fold."""
        found = {}
        for path in sorted(self.trial_folder(trial).glob("fold-*.json")):
            try:
                fit = Fit(**self._read(path))
            except TypeError:
                raise self._damaged(path) from None
            found[fit.fold] = fit
        return found

    def counts(self, trial: int, fold: int) -> Arrays:
        """The validation counts of a fit that is done."""
        path = self.trial_folder(trial) / f"fold-{fold}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError):
            raise self._damaged(path) from None

    def weights(self, trial: int, fold: int) -> Weights:
        return load(self.trial_folder(trial) / f"fold-{fold}.safetensors")

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            raw = json.loads(path.read_bytes())
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
        except ValueError:
            raise self._damaged(path) from None
        if not isinstance(raw, dict):
            raise self._damaged(path)
        return raw

    def _damaged(self, path: Path) -> RunError:
        return RunError(f"{path} is damaged; remove {path.parent}, and --resume {self.path} tries that trial again")
