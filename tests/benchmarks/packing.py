"""``packing.py IMAGES REPEAT [FOLDER]``: lossless compression of the grey images in FOLDER, or of phantoms.

Prints one JSON line: ``images``, ``plain`` and ``packed`` bytes; CPU seconds to ``pack`` (and check) and to ``unpack``
them all, each a list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from epochs import timed
from numpy.typing import NDArray

from client.vault.codecs import JPEG_LS, pack, unpack
from client.vault.records import form_of
from common.study import PhantomSpec
from simulations.phantoms import PhantomSource


def images(count: int, folder: Path | None) -> list[NDArray[Any]]:
    if folder is None:
        source = PhantomSource(PhantomSpec(images=count, size=224), 1)
        return [source.read(item)[0] for item in source.items[:count]]
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    return [np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) for path in paths[:: max(1, len(paths) // count)]]


def main(count: int, repeat: int, folder: Path | None) -> None:
    plain = images(count, folder)
    packed = [pack(image, JPEG_LS) for image in plain]
    forms = [form_of(image.dtype.name, image.shape) for image in plain]
    arrays = [np.frombuffer(data, np.uint8) for codec, data in packed if codec == JPEG_LS]
    assert len(arrays) == len(plain), "an image was not compressed"
    times: dict[str, list[float]] = {"pack": [], "unpack": []}
    for _ in range(repeat):
        times["pack"].append(timed(lambda: [pack(image, JPEG_LS) for image in plain]))
        times["unpack"].append(timed(lambda: [unpack(data, form) for data, form in zip(arrays, forms, strict=True)]))
    sizes = {"plain": sum(image.nbytes for image in plain), "packed": sum(len(data) for data in arrays)}
    print(json.dumps({"images": len(plain), **sizes, **times}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
