"""How long one case takes on this machine: preparing its pixels and one forward pass, a case at a time."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from client.app import Resident
from client.training import layout
from common.models import build
from common.preprocess import prepare
from common.weights import load, restore
from server.results import read_card
from simulations.runfolder import Folder

CASES, WARM = 40, 5
"""Cases that are timed, and cases before them that are not."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds a case on the CPU with one thread: the middle and the 90th percentile of ``cases``."""

    run: str
    cases: int
    middle_ms: float
    p90_ms: float
    parameters: int

    def json(self) -> dict[str, object]:
        return {
            "run": self.run,
            "cases": self.cases,
            "middle_ms": round(self.middle_ms, 2),
            "p90_ms": round(self.p90_ms, 2),
            "parameters": self.parameters,
        }


def measure(path: Path, repeats: int) -> Latency:
    """Time the first repeat's model of the run at ``path`` on its test images, decrypted before the clock starts."""
    run = Folder(path)
    folder = run.repeat(0, repeats)
    card = read_card(folder)
    model = build(card.study, card.study.seed)
    restore(model, load(folder / "model.safetensors"))
    model = model.eval().to(memory_format=torch.channels_last)
    pictures = _pictures(run)
    spent = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for number in range(WARM + CASES):
                begun = time.perf_counter()
                image = (
                    torch.from_numpy(prepare(pictures[number % len(pictures)], card.study)).float().div_(255.0)[None]
                )
                model(layout(image if card.basis is None else card.basis.normalised(image)))
                if number >= WARM:
                    spent.append((time.perf_counter() - begun) * 1e3)
    finally:
        torch.set_num_threads(threads)
    spent.sort()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Latency(path.name, len(spent), statistics.median(spent), spent[int(0.9 * (len(spent) - 1))], parameters)


def _pictures(run: Folder) -> list[NDArray[Any]]:
    """Test images of the run's hospitals, decrypted; at most as many as are timed."""
    pictures: list[NDArray[Any]] = []
    with closing(Resident("cpu")) as resident:
        for home in run.hospitals:
            (vault,) = resident.site(home).vaults
            rows = (row.id for row in vault.each() if row.split == "test")
            pictures += [vault.read(row) for row in islice(rows, CASES - len(pictures))]
    return pictures
