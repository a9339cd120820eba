"""``vault_reads.py IMAGES REPEAT FOLDER``: batches of 224×224 out of vaults and a memory-mapped array, and verify.

Prints one JSON line of CPU seconds: ``mapped``, ``raw``, ``jpeg-ls`` (each read all images in batches, in an order of
chance), ``verify`` (of the site with raw pixels), each a list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from epochs import timed
from hospital_inputs import pictures
from numpy.typing import NDArray

from client.home import Home
from client.upkeep import verify
from client.vault.records import Record
from client.vault.store import Vault

SIZE, BATCH = 224, 32
PICTURES = 256
"""As many are drawn; the others are these with other levels, so that no two are equal."""


def images(count: int) -> Iterable[NDArray[np.uint8]]:
    drawn = pictures(0, min(count, PICTURES), SIZE)
    for number in range(count):
        shift, which = divmod(number, len(drawn))
        yield drawn[which] - np.uint8(min(shift, 20))


def make_site(directory: Path, count: int, codec: str) -> Home:
    home = Home.init(directory, alias=codec, synthetic=True)
    with home.exclusive(), home.vault() as vault:
        vault.add((Record(image, f"p{n}", {}, "train") for n, image in enumerate(images(count))), codec)
        home.witness.note(vault)
        home.seal(vault)
    return home


def read_mapped(array: NDArray[Any], order: NDArray[np.int64]) -> None:
    for start in range(0, len(order), BATCH):
        batch = array[order[start : start + BATCH]]
        assert batch.shape[1:] == (SIZE, SIZE)


def read_vault(vault: Vault, order: NDArray[np.int64]) -> None:
    ids = (order + 1).tolist()
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        batch = np.empty((len(some), SIZE, SIZE), np.uint8)
        for place, pixels in enumerate(vault.read_many(some)):
            batch[place] = pixels


def main(count: int, repeat: int, folder: Path) -> None:
    plain = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.uint8, (count, SIZE, SIZE))
    for number, image in enumerate(images(count)):
        plain[number] = image
    plain.flush()
    mapped = np.load(folder / "plain.npy", mmap_mode="r")
    homes = {codec: make_site(folder / codec, count, codec) for codec in ("raw", "jpeg-ls")}
    order = np.random.default_rng(0).permutation(count)
    with ExitStack() as opened:
        vaults = {codec: opened.enter_context(home.vault(read_only=True)) for codec, home in homes.items()}
        for codec, vault in vaults.items():
            assert next(iter(vault.each())).codec == codec and len(vault) == count
        parts: dict[str, Callable[[], object]] = {
            "raw": lambda: read_vault(vaults["raw"], order),
            "mapped": lambda: read_mapped(mapped, order),
            "jpeg-ls": lambda: read_vault(vaults["jpeg-ls"], order),
            "verify": lambda: verify(homes["raw"]),
        }
        for part in parts.values():
            part()
        times: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(repeat):
            for name in list(parts) if number % 2 == 0 else list(reversed(parts)):
                times[name].append(timed(parts[name]))
    print(json.dumps(times))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
