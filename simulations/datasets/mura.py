"""MURA, radiographs of the arm as downloaded:
``MURA-v1.1/{train,valid}/XR_WRIST/patient00001/study1_positive/image1.png``.

Rajpurkar et al. 2018, arXiv:1712.06957. A study's folder says what its readers found, and its images have that label:
``positive`` is abnormal, ``negative`` normal; the two CSV files say the same and are not read. ``valid``, whose
patients are others, is the test split, and of ``train`` a share of the patients validates: the published test set is
not public.
"""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import DataError
from common.study import Study
from simulations.datasets.files import Entry, FilesSource, folders, images, key_of, only_labels, validates
from simulations.datasets.source import Inside, Item, shown

LABELS = {"positive": "abnormal", "negative": "normal"}
_PART = re.compile(r"XR_([A-Z]+)")
_STUDY = re.compile(r"study\d+_(positive|negative)")


def find(path: Path) -> Path | None:
    """The folder that holds ``train`` or ``valid`` with ``XR_…`` in it."""
    for base in (path, path / "MURA-v1.1"):
        if any(_PART.fullmatch(part.name) for split in ("train", "valid") for part in folders(base / split)):
            return base
    return None


def open_(study: Study, base: Path) -> FilesSource:
    """The source. Raises :class:`DataError` for a study's folder that names no result."""
    only_labels(study, "MURA", ("label",), "normal, abnormal")
    inside = Inside(base)
    entries = []
    for published in ("train", "valid"):
        for part in folders(base / published):
            named = _PART.fullmatch(part.name)
            for patient in folders(part) if named else ():
                split = "test" if published == "valid" else "val" if validates(study, "mura", patient.name) else "train"
                for one in folders(patient):
                    result = _STUDY.fullmatch(one.name)
                    if result is None or named is None:
                        raise DataError(f"MURA: {shown(one.name)} is no study's folder; it is named study1_positive")
                    entries += [
                        Entry(
                            Item(
                                key=key_of(inside, base, file),
                                patient=patient.name,
                                patient_known=True,
                                labels={"label": (LABELS[result[1]],)},
                                split=split,
                                attributes={"modality": "DX", "body_part": named[1]},
                            )
                        )
                        for file in images(one)
                    ]
    if not entries:
        raise DataError("MURA: the folders hold no images; unpack the download again")
    return FilesSource("MURA", inside, entries)
