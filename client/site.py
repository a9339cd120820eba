"""A site as a study meets it: its vault, views and device, opened from one directory (``client.config``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.config import SiteConfig
from client.devices import choose_device
from client.home import STUDY_USED, Home
from client.vault.keys import provider
from client.vault.prepared import PreparedView
from client.vault.store import Vault
from client.vault.view import View, ViewCache
from common.errors import DataError
from common.folds import assign
from common.labels import Labels, targets
from common.study import Study
from common.survey import SPLITS, Rows, images_told

Split = Literal["train", "val", "test"]
VIEW_CACHE_BYTES = 4 << 30
VIEWS = "views"
"""Folder of stored views: in a site's state, which an erasure empties, or beside the vault of a simulated one."""


class _Row(NamedTuple):
    """Of a vault's row what is counted here."""

    digest: str
    patient: str
    split: str
    labels: Labels
    has_mask: bool


@dataclass(frozen=True)
class Site:
    """An opened site. Cheap to open and to keep: the vault's rows and views load when first asked for."""

    config: SiteConfig
    directory: Path
    vaults: Sequence[Vault]
    device: torch.device
    views: ViewCache
    folders: Sequence[Path]
    """Where each vault's views lie that are larger than the cache."""
    noted: set[tuple[str, int]] = field(default_factory=set, repr=False)
    """Study and generation of which :meth:`note_use` knows that they are on record."""

    @classmethod
    def open(
        cls,
        directory: Path,
        views: ViewCache,
        *,
        passphrase: Callable[[], str] | None = None,
        device: str | None = None,
    ) -> Site:
        """Open ``directory``; ``device`` goes before its own. Raises :class:`VaultError` or :class:`DeviceError`."""
        config = SiteConfig.load(directory)
        homes = [directory / member for member in config.members] or [directory]
        chosen = choose_device(device or config.device)
        with contextlib.ExitStack() as opened:
            vaults, folders = [], []
            for home in homes:
                own = config if not config.members else SiteConfig.load(home)
                vaults.append(opened.enter_context(_open_vault(home, own, passphrase)))
                folders.append(home / own.state / VIEWS if own.state else (home / own.vault).parent / VIEWS)
            opened.pop_all()  # nothing failed: the site closes them
        return cls(config, directory, tuple(vaults), chosen, views, tuple(folders))

    @property
    def stale(self) -> bool:
        """Whether an import, an erasure or a new key has changed a vault since it was opened: open the site again."""
        return any(vault.replaced or vault.changed for vault in self.vaults)

    def note_use(self, study: Study) -> None:
        """Put on record that ``study`` reads this site's images; once for each state of the vault."""
        if self.config.audit is None or self.config.state is None:
            return
        (vault,) = self.vaults
        if (study.hash, vault.generation) in self.noted:
            return
        facts = {"study": study.hash, "name": study.name, "generation": vault.generation}
        home = Home.open(self.directory)
        if not any(entry.event == STUDY_USED and entry.facts == facts for entry in home.audit.entries()):
            home.record(STUDY_USED, facts)
        self.noted.add((study.hash, vault.generation))

    def memory(self, name: str) -> Path:
        """Where a file of what studies leave it with lies: in its state, of a simulated one beside its vault."""
        return self.folders[0].parent / name

    @property
    def alias(self) -> str:
        return self.config.alias

    def view(self, study: Study, split: Split) -> PreparedView:
        """The prepared view of one split; a pooled site's is all its members'.

        On this site's GPU when it fits there, else in main memory, from where it follows batch by batch; what is
        larger than the cache of views may be, members counted together, on the disk.
        """
        if self.device.type != "cpu":
            try:
                return self._view_on(self.device, study, split)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        return self._view_on(torch.device("cpu"), study, split)

    def _view_on(self, device: torch.device, study: Study, split: Split) -> PreparedView:
        found: list[PreparedView] = []
        room = self.views.cap_bytes
        for vault, folder in zip(self.vaults, self.folders, strict=True):
            found.append(self.views.get(vault, study, split, device, folder=folder, room=room))
            room -= found[-1].bytes
        return View.concatenate(found)

    def images(self, study: Study, least: int = 1) -> Mapping[str, int]:
        """Labelled images per split; where the count is to leave, without groups of fewer than ``least`` patients."""
        return images_told(study, self.labelled(study), least)

    def labelled(self, study: Study) -> Mapping[str, Rows]:
        """Per split, targets and patients of the images that ``study`` uses; none of them is decrypted."""
        found: dict[str, tuple[list[NDArray[np.float32]], list[int]]] = {split: ([], []) for split in SPLITS}
        numbers: dict[tuple[str, str], int] = {}
        for vault in self.vaults:
            rows = [
                _Row(row.digest, row.patient, row.split, row.labels, row.has_mask)
                for row in vault.each()
                if row.split in found
            ]
            wanted = targets(study, [row.labels for row in rows])
            usable = np.asarray(np.isfinite(wanted).any(axis=1), dtype=np.bool_)
            if study.task == "segmentation":
                usable = usable & np.array([row.has_mask for row in rows], dtype=bool)
            used = [row for row, use in zip(rows, usable.tolist(), strict=True) if use]
            for row, split, target in zip(used, assign(study, used, wanted[usable]), wanted[usable], strict=True):
                found[split][0].append(target)
                found[split][1].append(numbers.setdefault((vault.id, row.patient), len(numbers)))
        width = len(study.classes)
        return {
            split: (np.array(values, dtype=np.float32).reshape(-1, width), np.array(patients, dtype=np.int64))
            for split, (values, patients) in found.items()
        }

    def training_units(self, study: Study) -> int:
        """Training patients (or images, where the study protects those) that have a label for the study."""
        found: set[tuple[str, str, int]] = set()
        each_image = study.privacy is not None and study.privacy.unit == "image"
        for vault in self.vaults:
            rows = [(row.patient, row.labels, row.has_mask) for row in vault.each() if row.split == "train"]
            wanted = targets(study, [labels for _, labels, _ in rows])
            for number, ((patient, _, has_mask), target) in enumerate(zip(rows, wanted, strict=True)):
                if np.isfinite(target).any() and (has_mask or study.task != "segmentation"):
                    found.add((vault.id, patient, number if each_image else 0))
        return len(found)

    def require(self, study: Study, split: Split) -> PreparedView:
        """Like :meth:`view`, but an empty split is an error."""
        view = self.view(study, split)
        if len(view) == 0:
            raise DataError(f"{self.alias} has no labelled {split} images for this study; import some or leave it out")
        return view

    def close(self) -> None:
        for vault in self.vaults:
            vault.close()


def _open_vault(home: Path, config: SiteConfig, passphrase: Callable[[], str] | None) -> Vault:
    """A real site's vault is compared with what the site remembers of it; a simulated one has no memory."""
    if config.state is None:
        return Vault.open(home / config.vault, provider(config.key, base=home, passphrase=passphrase))
    site = Home.open(home, passphrase=passphrase)
    vault, _ = site.unchecked(read_only=False)
    try:
        site.witness.check(vault)
    except BaseException:
        vault.close()
        raise
    return vault
