"""``epochs.py IMAGES REPEAT FOLDER``: CPU seconds of an epoch from a vault, from its kept view, and from memory.

Prints one JSON line: ``first``, ``view`` (its part before training), ``later``, ``memory``, each a list.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from inputs import SMALL_CNN, write_images, write_study
from torch import nn

from client.app import Resident
from client.site import Site
from client.training import FitSeed, LocalFit
from client.vault.prepared import PreparedView
from client.vault.view import ViewCache
from common.models import build
from common.study import Study
from simulations.datasets import open_source
from simulations.sites import Machine, prepare_sites

CACHE_BYTES = 1 << 30


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    before = time.process_time()
    work()
    return time.process_time() - before


def in_memory(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> None:
    """One epoch by hand over float images that lie ready, with the same model, memory layout and optimiser."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    objective = nn.BCEWithLogitsLoss()
    order, total = torch.randperm(len(images)), torch.zeros(())
    for start in range(0, len(images), 32):
        chosen = order[start : start + 32]
        batch = images[chosen].contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        loss = objective(model(batch), targets[chosen])
        loss.backward()
        optimiser.step()
        total += loss.detach() * len(chosen)
    assert torch.isfinite(total)


def main(count: int, repeat: int, folder: Path) -> None:
    torch.set_num_threads(1)
    Resident()  # what a process that trains for fedward sets up, the loop by hand then has too
    data = write_images(folder / "epoch.npz", size=64, train=count, other=16)
    study = Study.load(write_study(folder / "epoch.yaml", model=SMALL_CNN, size=64, sites=1, rounds=1))
    prepare_sites(study, open_source(study, data), folder / "sites", Machine())
    home = folder / "sites" / "site-1"
    model = build(study, 0).to(memory_format=torch.channels_last)
    seed = FitSeed(study.seed, 0, "site-1", 1)

    def first(seconds: list[float]) -> PreparedView:
        before = time.process_time()
        site = Site.open(home, ViewCache(CACHE_BYTES))
        view = site.require(study, "train")
        seconds.append(time.process_time() - before)
        LocalFit(model, view, study, seed).run()
        site.close()
        return view

    view = first([])  # imports and allocations that neither side should pay for
    images, targets = view.floats(torch.arange(len(view))), view.targets[:, 1:].contiguous()
    assert len(view) == count
    in_memory(model, images, targets)
    times: dict[str, list[float]] = {"first": [], "view": [], "later": [], "memory": []}
    for number in range(repeat):
        parts: dict[str, Callable[[], object]] = {
            "first": lambda: first(times["view"]),
            "memory": lambda: in_memory(model, images, targets),
            "later": lambda: LocalFit(model, view, study, seed).run(),
        }
        for name in list(parts) if number % 2 == 0 else list(reversed(parts)):
            times[name].append(timed(parts[name]))
    print(json.dumps(times))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
