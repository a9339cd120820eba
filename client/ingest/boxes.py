"""Lesion boxes from a sheet: rectangles with a label, several an image.

A box is in pixels of the source image, before the import shrinks it. The origin is the
image's upper left corner, the outer corner of its first pixel; x runs to the right, y
downwards. A box covers ``x ≤ column < x + width`` and ``y ≤ row < y + height``: the whole
of an image 512 wide is ``0, 0, 512, …`` (as in COCO and ChestX-ray14; Pascal VOC counts
from 1 and includes the last pixel, so there subtract 1 from the upper left corner).

Columns: ``file`` or ``sop`` as in label sheets, ``label``, and either ``x, y, width, height``
or the corners ``x1, y1, x2, y2``. ChestX-ray14's ``BBox_List_2017.csv`` is read as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ingest.kinds import Identity, Picture, Reason, Refused, looks_personal
from client.ingest.labels import LONGEST_VALUE, SPELLINGS, FileNames, Unused, normal, normal_id
from client.vault.records import Box
from common.errors import DataError
from common.sheet import Sheet

_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "sop": SPELLINGS["sop"],
    "file": SPELLINGS["file"],
    "label": ("label", "finding", "findinglabel"),
    "x": ("x", "bbox[x"),  # the header of ChestX-ray14 reads "Bbox [x,y,w,h]", which commas cut into four
    "y": ("y",),
    "width": ("width", "w"),
    "height": ("height", "h", "h]"),
    "x1": ("x1", "xmin"),
    "y1": ("y1", "ymin"),
    "x2": ("x2", "xmax"),
    "y2": ("y2", "ymax"),
}
_SIZED, _CORNERS = ("x", "y", "width", "height"), ("x1", "y1", "x2", "y2")
_SLACK = 1.0  # pixels by which a hand-drawn box, rounded, may overlap the border
_OUTSIDE = Reason(
    "box-outside",
    "labels",
    "a lesion box reaches out of the image",
    "correct the box; it is in pixels of the source image, from its upper left corner",
)


@dataclass(eq=False)
class _Image:
    boxes: list[Box] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    used: bool = False


class BoxSheet:
    """One sheet of boxes. :meth:`load` makes it."""

    def __init__(self, images: Mapping[str, Mapping[str, _Image]]) -> None:
        self._images = images
        self._files = FileNames(images["file"])

    @classmethod
    def load(cls, path: Path, *, worksheet: str = "") -> BoxSheet:
        """Read a CSV or XLSX file; raises :class:`DataError` naming file, line and remedy."""
        sheet = Sheet(path, loose=True, worksheet=worksheet)
        columns = sheet.meanings(_SPELLINGS)
        form = next((form for form in (_SIZED, _CORNERS) if all(name in columns for name in form)), None)
        if form is None or "label" not in columns or not {"sop", "file"} & set(columns):
            raise DataError(
                f"{sheet.name}: needs the columns file or sop, label, and {', '.join(_SIZED)} or "
                f"{', '.join(_CORNERS)}; name them in the first line"
            )
        images: dict[str, dict[str, _Image]] = {"sop": {}, "file": {}}
        for line, cells in sheet.rows(list(columns.values())):
            row = {name: cells[column] for name, column in columns.items()}
            keys = {"sop": normal_id(row.get("sop", "")), "file": normal(row.get("file", ""))}
            named = {key: name for key, name in keys.items() if name}
            known = {id(image): image for key, name in named.items() if (image := images[key].get(name))}
            if not named or len(known) > 1:
                raise DataError(f"{sheet.name} line {line}: file and sop must name one image; mend that row")
            image = next(iter(known.values()), _Image())
            for key, name in named.items():
                images[key][name] = image
            box = _box(row, form, f"{sheet.name} line {line}")
            image.lines.append(line)
            if box not in image.boxes:
                image.boxes.append(box)
        return cls(images)

    def lookup(self, file: str, identity: Identity) -> tuple[Box, ...]:
        """Boxes of the image in ``file``, in source pixels: by SOP Instance UID, else by file as in label sheets."""
        image = self._images["sop"].get(normal_id(identity.sop)) or self._images["file"].get(self._files.find(file))
        if image is None:
            return ()
        image.used = True
        return tuple(sorted(image.boxes, key=lambda box: (box.x, box.y, box.width, box.height, box.label)))

    def unused(self) -> Unused:
        """Rows whose image was not asked for so far."""
        images = [image for by_name in self._images.values() for image in by_name.values()]
        lines = sorted({line for image in images if not image.used for line in image.lines})
        return Unused(len(lines), tuple(lines[:5]))


def fitted(boxes: Iterable[Box], picture: Picture) -> tuple[Box, ...]:
    """``boxes`` in stored pixels of ``picture``, cut at its border.

    Raises :class:`Refused` for a box that reaches out of the image by more than one pixel.
    """
    down, across = picture.scale
    rows, columns = picture.pixels.shape[:2]
    result = []
    for box in boxes:
        left, top = box.x * across, box.y * down
        right, bottom = (box.x + box.width) * across, (box.y + box.height) * down
        slack_x, slack_y = max(_SLACK, _SLACK * across), max(_SLACK, _SLACK * down)
        if left < -slack_x or top < -slack_y or right > columns + slack_x or bottom > rows + slack_y:
            raise Refused(_OUTSIDE)
        left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, columns), min(bottom, rows)
        if right <= left or bottom <= top:
            raise Refused(_OUTSIDE)
        result.append(Box(box.label, left, top, right - left, bottom - top))
    return tuple(result)


def mask_from(boxes: Iterable[Box], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A weak mask ``(H, W)`` uint8: 1 where the centre of a pixel lies in a box, given in pixels of ``shape``."""
    mask = np.zeros(shape, dtype=np.uint8)
    for box in boxes:
        top, bottom = ceil(box.y - 0.5), ceil(box.y + box.height - 0.5)
        left, right = ceil(box.x - 0.5), ceil(box.x + box.width - 0.5)
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return mask


def _box(row: Mapping[str, str], form: tuple[str, ...], where: str) -> Box:
    label = row["label"]
    if not label or len(label) > LONGEST_VALUE or not label.isprintable():
        raise DataError(f"{where}: a box needs a label of at most {LONGEST_VALUE} printable characters; mend it")
    if looks_personal(label):
        raise DataError(f"{where}: a box's label looks like a date, a name or a UID; name a finding")
    try:
        x, y, third, fourth = (float(row[name]) for name in form)
    except ValueError:
        raise DataError(f"{where}: {', '.join(form)} must be numbers with a decimal point; mend that row") from None
    if form == _CORNERS:
        third, fourth = third - x, fourth - y
    if not all(map(isfinite, (x, y, third, fourth))) or third <= 0 or fourth <= 0:
        raise DataError(f"{where}: a box without an area, or a corner that is no finite number; mend that row")
    return Box(label, x, y, third, fourth)
