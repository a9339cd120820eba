"""``streamed.py IMAGES REPEAT FOLDER``: CPU seconds of an epoch from a view on the disk, held, and over plain tensors.

Prints one JSON line: ``stored``, ``held``, ``memory`` and ``build`` (of the stored view, once), each a list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from epochs import in_memory, timed
from inputs import write_images, write_study

from client.app import Resident
from client.site import Site
from client.training import FitSeed, LocalFit
from client.vault.stored_view import StoredView
from client.vault.view import ViewCache
from common.models import build
from common.study import Study
from simulations.datasets import open_source
from simulations.sites import Machine, prepare_sites

QUICKSTART_CNN = "{name: cnn, norm: group, params: {filters: [32, 64, 64, 64], hidden: [128, 64]}}"
"""That of ``configs/quickstart.yaml``; its augmentation, which plain tensors have not, is left out."""


def main(count: int, repeat: int, folder: Path) -> None:
    torch.set_num_threads(1)
    Resident()  # what a process that trains for fedward sets up, the loop by hand then has too
    data = write_images(folder / "streamed.npz", size=64, train=count, other=16)
    study = Study.load(write_study(folder / "streamed.yaml", model=QUICKSTART_CNN, size=64, sites=1, rounds=1))
    prepare_sites(study, open_source(study, data), folder / "sites", Machine())
    home = folder / "sites" / "site-1"
    model = build(study, 0).to(memory_format=torch.channels_last)
    seed = FitSeed(study.seed, 0, "site-1", 1)
    sites = [Site.open(home, ViewCache(cap)) for cap in (1 << 30, 0)]
    held = sites[0].require(study, "train")
    build_s = timed(lambda: sites[1].require(study, "train"))
    stored = sites[1].require(study, "train")
    assert isinstance(stored, StoredView) and len(stored) == len(held) == count
    images, targets = held.floats(torch.arange(count)), held.targets[:, 1:].contiguous()
    in_memory(model, images, targets)  # imports and allocations that no side should pay for
    parts: dict[str, Callable[[], object]] = {
        "stored": lambda: LocalFit(model, stored, study, seed).run(),
        "memory": lambda: in_memory(model, images, targets),
        "held": lambda: LocalFit(model, held, study, seed).run(),
    }
    for part in parts.values():
        part()
    times: dict[str, list[float]] = {"build": [build_s], **{name: [] for name in parts}}
    for number in range(repeat):
        for name in list(parts) if number % 2 == 0 else list(reversed(parts)):
            times[name].append(timed(parts[name]))
    for site in sites:
        site.close()
    print(json.dumps(times))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
