"""Images beside their masks: ``images/`` and ``masks/`` (or ``image``, ``mask``, ``labels``), one mask a name.

A mask has its image's stem, or that with ``_mask`` or ``_seg``. ``label`` is lesion where the mask has a pixel that
is not 0, else normal, so masks are read when the folder is opened. Names tell no patients.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from common.errors import DataError
from common.study import Study
from simulations.datasets.decode import read_image
from simulations.datasets.files import Entry, FilesSource, images, key_of, only_labels
from simulations.datasets.source import Inside, Item, UnreadableImage, shown

_IMAGES: Final = ("images", "image", "imgs")
_MASKS: Final = ("masks", "mask")
_ENDINGS: Final = ("", "_mask", "_seg")


def find(path: Path) -> Path | None:
    """``path`` where a folder of images lies beside one of masks."""
    return path if _pair(path) else None


def open_(study: Study, base: Path) -> FilesSource:
    """The source. Raises :class:`DataError` for an image without a mask, or a mask without an image."""
    only_labels(study, base.name, ("label",), "normal, lesion")
    pair = _pair(base)
    assert pair is not None
    inside = Inside(base)
    masks = {file.stem: file for file in images(pair[1])}
    entries, without = [], []
    for file in images(pair[0]):
        mask = next((masks.pop(file.stem + end) for end in _ENDINGS if file.stem + end in masks), None)
        if mask is None:
            without.append(file.name)
            continue
        key, other = key_of(inside, base, file), key_of(inside, base, mask)
        label: tuple[str, ...] = ()  # of a mask that cannot be read, which is told when its turn comes
        with suppress(UnreadableImage):
            label = ("lesion" if read_image(inside.path(other), key).any() else "normal",)
        entries.append(Entry(Item(key, key, False, {"label": label}), (other,)))
    if without or masks:
        which = without or sorted(file.name for file in masks.values())
        kind = "images have no mask" if without else "masks have no image"
        raise DataError(
            f"{base.name}: {len(which)} {kind}, first {shown(which[0])}; name both alike, or write a labels.csv with a "
            "column mask"
        )
    return FilesSource(f"images with masks {base.name}", inside, entries, ["names tell no patients"])


def _pair(base: Path) -> tuple[Path, Path] | None:
    return next(
        (
            (base / one, base / other)
            for one in _IMAGES
            for other in _MASKS
            if images(base / one) and images(base / other)
        ),
        None,
    )
