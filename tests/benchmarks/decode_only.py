"""``decode_only.py FOLDER SCRATCH``: what any importer of FOLDER must do, and what this one does besides, bare.

Prints one JSON line of CPU milliseconds an image: ``decode`` (read the file, decode it, window and attributes
included), ``write`` (the pixels to a plain ``.npy``, on the disk), and under ``steps`` single steps of an import.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.home import Home
from client.ingest import dicom
from client.ingest.kinds import Rules
from client.ingest.quality import measure
from client.vault.records import Record, form_of, pixel_bytes, pixel_digest
from client.vault.sealing import DATA_KEY_BYTES, VAULT_ID_BYTES, Kind, Sealer

STEPS_OF = 6
"""Images whose single steps are timed; an import commits as many of ours at a time."""


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds of this process."""
    before = time.process_time()
    work()
    return 1000.0 * (time.process_time() - before)


def pixels_of(path: Path) -> NDArray[Any]:
    (picture,) = dicom.read(path.read_bytes(), Rules()).pictures
    return picture.pixels


def write(pixels: NDArray[Any], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, pixels)
        file.flush()
        os.fsync(file.fileno())


def steps(paths: list[Path], scratch: Path) -> dict[str, float]:
    """CPU milliseconds an image of what an import does with content and pixels, alone and in one process."""
    contents, images = [path.read_bytes() for path in paths], [pixels_of(path) for path in paths]
    sealer = Sealer(os.urandom(DATA_KEY_BYTES), os.urandom(VAULT_ID_BYTES))
    digests = [pixel_digest(image) for image in images]
    records = [Record(image, f"p{number}", {}, "train", digest=digests[number]) for number, image in enumerate(images)]

    def seal() -> None:
        for number, image in enumerate(images, start=1):
            sealer.seal(Kind.PIXELS, number, form_of(image.dtype.name, image.shape), pixel_bytes(image))

    home = Home.init(scratch / "site", alias="bench", synthetic=True)
    with home.exclusive(), home.vault() as vault:
        seal()  # OpenSSL warms up
        found = {
            "digest of the file": timed(lambda: [hashlib.sha256(content).digest() for content in contents]),
            "digest of the pixels": timed(lambda: [pixel_digest(image) for image in images]),
            "blank or not": timed(lambda: [image.min() == image.max() for image in images]),
            "quality": timed(lambda: [measure(image) for image in images]),
            "AES-GCM": timed(seal),
            "adding": timed(lambda: vault.add(records)),
            "MAC of the vault's file": timed(lambda: vault.file_mac(bytes(32))),
        }
    found["SQLite"] = found.pop("adding") - found["AES-GCM"]
    return {name: value / len(images) for name, value in found.items()}


def main(folder: Path, scratch: Path) -> None:
    paths = sorted(folder.iterdir())
    plain = scratch / "plain.npy"
    write(pixels_of(paths[0]), plain)  # imports, which neither side should pay for
    decode = stored = 0.0
    for path in paths:
        plain.unlink()
        start = time.process_time()
        pixels = pixels_of(path)
        decoded = time.process_time()
        write(pixels, plain)
        decode += decoded - start
        stored += time.process_time() - decoded
    each = 1000.0 / len(paths)
    print(json.dumps({"decode": decode * each, "write": stored * each, "steps": steps(paths[:STEPS_OF], scratch)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
