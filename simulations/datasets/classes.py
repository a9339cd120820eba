"""One folder a class: ``[SPLIT/]CLASS/*.png``, as brain tumour sets and cut-out patches come.

The folder's name is ``label`` and ``finding``. Where they are those of brain tumour sets (``glioma``, ``meningioma``,
``pituitary``, ``notumor``, each also with ``_tumor``), ``label`` is tumor or normal and ``finding`` the kind; other
names, such as ``yes`` and ``no``, are for the study to map. A ``SPLIT`` is train or Training, val, valid or
validation, test or Testing; without one for validation, a share of the training images validates. File names tell no
patient, so each image is its own, and a split of such a download may well part a patient's images:
``data.group_duplicates`` finds those that are copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.study import Study
from simulations.datasets.files import Entry, FilesSource, folders, images, key_of, only_labels, validates
from simulations.datasets.source import Inside, Item

SPLITS: Final = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
TUMOURS: Final = ("glioma", "meningioma", "pituitary")
_NOT_CLASSES: Final = frozenset(("images", "image", "masks", "mask"))


def find(path: Path) -> Path | None:
    """``path`` where it holds two or more folders of images, or splits of such."""
    return path if _classes(path) else None


def open_(study: Study, base: Path) -> FilesSource:
    """The source."""
    inside = Inside(base)
    found = _classes(base)
    kinds = {name: _plain(name) for _, _, name in found}
    brain = set(kinds.values()) <= {*TUMOURS, "notumor"} and not set(kinds.values()).isdisjoint(TUMOURS)
    only_labels(study, base.name, ("label", "finding"), ", ".join(kinds))
    parts = {split for split, _, _ in found}
    entries = []
    for split, folder, name in found:
        finding = label = name
        if brain:
            tumour = kinds[name] in TUMOURS
            finding, label = (kinds[name], "tumor") if tumour else ("normal", "normal")
        for file in images(folder):
            key = key_of(inside, base, file)
            drawn = split == "train" and "val" not in parts and validates(study, "classes", key)
            entries.append(
                Entry(
                    Item(
                        key=key,
                        patient=key,
                        patient_known=False,
                        labels={"label": (label,), "finding": (finding,)},
                        split="val" if drawn else split,
                        attributes={"modality": "MR"} if brain else {},
                    )
                )
            )
    note = "file names tell no patients: every image counts as its own, and copies are found by data.group_duplicates"
    return FilesSource(f"folders of classes {base.name}", inside, entries, [note])


def _classes(base: Path) -> list[tuple[str, Path, str]]:
    """Split, folder and class of every folder of images; nothing where there are fewer than two classes."""
    found = []
    inner = [(SPLITS[part.name.lower()], part) for part in folders(base) if part.name.lower() in SPLITS]
    for split, part in inner or [("", base)]:
        found += [(split, folder, folder.name) for folder in folders(part) if images(folder)]
    names = {name for _, _, name in found}
    return found if len(names) > 1 and not {name.lower() for name in names} & _NOT_CLASSES else []


def _plain(name: str) -> str:
    """``no_tumor`` and ``notumor`` are one, and so are ``glioma_tumor`` and ``glioma``."""
    squeezed = name.lower().replace("_", "").replace("-", "").replace(" ", "")
    return squeezed if squeezed == "notumor" else squeezed.removesuffix("tumor")
