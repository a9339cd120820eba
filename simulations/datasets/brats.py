"""Brain MRI of several sequences, a folder of NIfTI volumes a patient, as BraTS comes: ``CASE/CASE_t1ce.nii.gz`` ….

Menze et al. 2015, doi:10.1109/TMI.2014.2377694; the names of 2023 (``CASE-t1c.nii.gz``) are understood too. Every
fifth axial slice of the middle 70% becomes an image ``(H, W, 3)`` uint8: T1 (after contrast where there is one), T2,
and FLAIR (or diffusion, ``dwi``) as its channels, each scaled so that the 99.5th percentile of the volume's own brain
is white. The mask is where ``seg`` is not 0, and the label tumor or normal; a slice with fewer than 20 pixels of
tumour is neither and left out. Without a ``seg`` a case has no label. Segmentations are read when the folder is
opened.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.ingest import volumes
from client.ingest.kinds import Picture, Refused, Rules
from common.errors import DataError
from common.study import Study
from simulations.datasets.files import folders, only_labels
from simulations.datasets.source import Inside, Item, UnreadableImage, shown

EVERY: Final = 5
FEWEST: Final = 20
"""Pixels of a segmentation below which a slice shows neither a tumour nor none."""
MIDDLE: Final = (0.15, 0.85)
_RULES: Final = Rules(slices=f"every:{EVERY}")
_CHANNELS: Final = (("t1ce", "t1c", "t1gd", "t1", "t1n"), ("t2", "t2w"), ("flair", "t2f", "dwi"))
_FILE = re.compile(r".+[_-](t1ce|t1c|t1gd|t1n|t1|t2w|t2f|t2|flair|dwi|seg)\.nii(\.gz)?", re.IGNORECASE)
_TIMEPOINT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d+")
_KEPT_CASES: Final = 2


def find(path: Path) -> Path | None:
    """``path`` where a folder in it holds a T1 and a T2."""
    for case in folders(path):
        named = _sequences(case)
        if any(name in named for name in _CHANNELS[0]) and any(name in named for name in _CHANNELS[1]):
            return path
    return None


_Slice = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]


class BratsSource:
    """Slices of all cases; reading keeps the last two cases in memory, so read in the order of the list."""

    synthetic = False

    def __init__(self, study: Study, base: Path) -> None:
        only_labels(study, base.name, ("label",), "normal, tumor")
        self.name = f"MRI sequences {base.name}"
        self._inside = Inside(base)
        self._cases: dict[str, dict[str, Path]] = {}
        self._open: OrderedDict[str, dict[int, _Slice]] = OrderedDict()
        self._places: dict[str, tuple[str, int]] = {}
        items: list[Item] = []
        self._small = 0
        for case in folders(base):
            named = _sequences(case)
            if named:
                self._cases[case.name] = named
                items += self._slices(case.name, named)
        self.items: tuple[Item, ...] = tuple(items)
        self.notes: tuple[str, ...] = (
            f"every {EVERY}th slice of {len(self._cases)} cases; {self._small} with fewer than {FEWEST} pixels of "
            "tumour are left out",
        )

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        if item.key not in self._places:
            raise UnreadableImage(item.key, "is not of this folder; take items from the source's own list")
        case, number = self._places[item.key]
        if case not in self._open:
            self._open[case] = self._stacked(case, item.key)
            if len(self._open) > _KEPT_CASES:
                self._open.popitem(last=False)
        pixels, mask = self._open[case][number]
        return pixels.copy(), None if mask is None else mask.copy()

    def _slices(self, case: str, named: dict[str, Path]) -> list[Item]:
        channels = [next((name for name in several if name in named), "") for several in _CHANNELS]
        if "" in channels:
            missing = " or ".join(_CHANNELS[channels.index("")])
            raise DataError(f"{shown(case)} has no {missing}; a case needs a T1, a T2, and a FLAIR or diffusion volume")
        patient = found[1] if (found := _TIMEPOINT.fullmatch(case)) else case
        pictures = self._volume(case, named, "seg" if "seg" in named else channels[0])
        last = max(pictures)
        items = []
        for number, picture in pictures.items():
            if not MIDDLE[0] * last <= number <= MIDDLE[1] * last:
                continue
            key = f"{case}/slice-{number:03d}"
            label: tuple[str, ...] = ()
            if "seg" in named:
                area = int(picture.pixels.sum())
                if 0 < area < FEWEST:
                    self._small += 1
                    continue
                label = ("tumor",) if area else ("normal",)
            self._places[key] = case, number
            attributes = {**picture.attributes, "modality": "MR", "slice": str(number)}
            items.append(
                Item(key=key, patient=patient, patient_known=True, labels={"label": label}, attributes=attributes)
            )
        return items

    def _volume(self, case: str, named: dict[str, Path], sequence: str) -> dict[int, Picture]:
        """The chosen slices of one volume, by number. Raises :class:`DataError`."""
        file = named[sequence]
        try:
            content = self._inside.path(f"{case}/{file.name}").read_bytes()
            decoded = (volumes.read_mask if sequence == "seg" else volumes.read)(content, _RULES)
        except (Refused, ValueError, OSError) as error:
            why = error.reason.reason if isinstance(error, Refused) else str(error)
            raise DataError(f"{shown(case)}: {file.name}: {why}; copy that case again, or take it out") from None
        return {picture.number: picture for picture in decoded.pictures}

    def _stacked(self, case: str, key: str) -> dict[int, _Slice]:
        """Slice number -> pixels and mask of one case."""
        named = self._cases[case]
        try:
            parts = [
                _white(self._volume(case, named, next(name for name in several if name in named)))
                for several in _CHANNELS
            ]
            masks = self._volume(case, named, "seg") if "seg" in named else {}
        except DataError as error:
            raise UnreadableImage(key, str(error)) from None
        shapes = {(number, one.shape) for part in parts for number, one in part.items()}
        shapes |= {(number, one.pixels.shape) for number, one in masks.items()}
        if len(shapes) > len(parts[0]):
            raise UnreadableImage(key, "the case's volumes differ in shape; export them on one grid")
        return {
            number: (np.dstack([part[number] for part in parts]), masks[number].pixels if masks else None)
            for number in parts[0]
        }


def _white(pictures: dict[int, Picture]) -> dict[int, NDArray[np.uint8]]:
    """8 bits: 0 stays black, and the 99.5th percentile of what is not 0 becomes white."""
    stack = np.stack([picture.pixels for picture in pictures.values()]).astype(np.float32)
    brain = stack[stack > 0]
    top = float(np.percentile(brain, 99.5)) if brain.size else 1.0
    eight = np.asarray(np.clip(stack * (255.0 / top), 0.0, 255.0) + 0.5, np.uint8)
    return dict(zip(pictures, eight, strict=True))


def _sequences(case: Path) -> dict[str, Path]:
    """Sequence -> file of a case's folder."""
    found: dict[str, Path] = {}
    for file in sorted(case.iterdir()):
        named = _FILE.fullmatch(file.name)
        if named and file.is_file() and not file.name.startswith("."):
            if named[1].lower() in found:
                raise DataError(f"{shown(case.name)} has two files of {named[1]}; keep one")
            found[named[1].lower()] = file
    return found
