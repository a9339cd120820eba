"""Montgomery's and Shenzhen's chest X-rays as downloaded: ``CXR_png/MCUCXR_0001_0.png``,
``CXR_png/CHNCXR_0001_0.png``.

Jaeger et al. 2014, doi:10.3978/j.issn.2223-4292.2014.11.20. The name's last number is the label: 0 normal, 1
tuberculosis. The other is taken for the patient's: the sets have one radiograph of each. Masks are of the *lungs*,
not of what was found: Montgomery's two (``ManualMask/leftMask`` and ``rightMask``) are joined; Shenzhen's, published
later, are read from ``mask/`` or ``masks/`` as ``CHNCXR_0001_0_mask.png`` or ``CHNCXR_0001_0.png``. Sex and age come
from ``ClinicalReadings/*.txt``; what else is written there is not kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from common.errors import DataError
from common.study import Study
from simulations.datasets.files import Entry, FilesSource, images, key_of, only_labels
from simulations.datasets.source import Inside, Item

IMAGES: Final = "CXR_png"
LABELS: Final = {"0": "normal", "1": "tuberculosis"}
_NAME = re.compile(r"((?:MCU|CHN)CXR_\d+)_([01])")
_SEX = re.compile(r"\b(female|male|f|m)\b", re.IGNORECASE)
_AGE = re.compile(r"\b0*(\d{1,3})\s*(?:Y|yrs?|years?)\b", re.IGNORECASE)
_LARGEST_READING: Final = 4096


def find(path: Path) -> Path | None:
    """The folder that holds ``CXR_png``: ``path``, or the download's own inside it."""
    for base in (path, path / "MontgomerySet", path / "ChinaSet_AllFiles"):
        if any(_NAME.fullmatch(file.stem) for file in images(base / IMAGES)):
            return base
    return None


def open_(study: Study, base: Path) -> FilesSource:
    """The source. Raises :class:`DataError`."""
    only_labels(study, IMAGES, ("label",), "normal, tuberculosis")
    inside = Inside(base)
    entries, other = [], 0
    for file in images(base / IMAGES):
        named = _NAME.fullmatch(file.stem)
        if named is None:
            other += 1
            continue
        masks = [mask for mask in _masks(base, file) if mask.is_file()]
        item = Item(
            key=key_of(inside, base, file),
            patient=named[1],
            patient_known=True,
            labels={"label": (LABELS[named[2]],)},
            attributes={"modality": "DX", "view": "PA", **_person(base / "ClinicalReadings" / f"{file.stem}.txt")},
        )
        entries.append(Entry(item, tuple(key_of(inside, base, mask) for mask in masks)))
    notes = ["masks are of the lungs, not of what was found"] if any(entry.masks for entry in entries) else []
    if other:
        notes.append(f"{other} images in {IMAGES} have no name of this set and are left out")
    return FilesSource("Montgomery and Shenzhen chest X-rays", inside, entries, notes)


def _masks(base: Path, file: Path) -> tuple[Path, ...]:
    both = tuple(base / "ManualMask" / side / file.name for side in ("leftMask", "rightMask"))
    if all(mask.is_file() for mask in both):
        return both
    if any(mask.is_file() for mask in both):
        raise DataError(f"ManualMask: {file.name} has the mask of one lung only; copy both, or neither")
    single = [
        base / folder / name for folder in ("mask", "masks") for name in (f"{file.stem}_mask{file.suffix}", file.name)
    ]
    return tuple(mask for mask in single if mask.is_file())[:1]


def _person(reading: Path) -> dict[str, str]:
    """Sex and age of a clinical reading: ``Patient's Sex: F`` and ``Patient's Age: 027Y``, or ``male 45yrs``."""
    if not reading.is_file() or reading.stat().st_size > _LARGEST_READING:
        return {}
    text = " ".join(reading.read_text(encoding="utf-8", errors="replace").splitlines()[:2])
    sex, age = _SEX.search(text), _AGE.search(text)
    found = {"sex": sex[1][0].upper()} if sex else {}
    return found | ({"age": age[1]} if age else {})
