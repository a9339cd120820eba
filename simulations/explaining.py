"""``fedward explain RUN``: what a run's model looked at, on its virtual hospitals' test patients.

Each hospital makes its heat maps and measures them; what is put together are their sums. Pictures are made of
computer-made images; of others only where the user says that they are public.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client.app import Resident
from client.explaining.examples import Example, examples
from client.explaining.faithfulness import measure, merged
from client.explaining.heatmaps import METHODS, HeatMaps, Method
from client.explaining.pictures import picture
from common.errors import RunError, StudyError
from common.files import write_atomically
from common.metrics.faithfulness import Faithfulness
from common.models import build
from common.randomness import seed_for
from common.study import Study
from common.weights import load, restore
from server.report import write_report
from server.report.explained import sentences
from server.report.explanations import Explained as Explanations
from server.results import Card, read_card
from simulations.cli import read_results
from simulations.runfolder import Folder

SHOWN = 6
"""Pictures in a report."""


@dataclass(frozen=True)
class Explained:
    """What came of one run."""

    method: Method
    sites: Mapping[str, Faithfulness]
    pictures: Sequence[Mapping[str, Any]]

    def json(self, confidence: float) -> dict[str, Any]:
        """As it stands in ``results.json``, beside what else is known of the run."""
        return {
            "method": self.method,
            "all": merged(self.sites.values()).to_dict(confidence),
            "sites": {site: found.to_dict(confidence) for site, found in self.sites.items()},
            "pictures": list(self.pictures),
        }


def explain(run: Path, *, method: str | None, images: int, public: bool, device: str, as_json: bool) -> None:
    """Measure, write it into the run's results and report, and print it.

    ``images``: of each hospital at most. Raises :class:`RunError`, :class:`StudyError`, :class:`ModelError`.
    """
    folder = Folder(run)
    if not folder.finished:
        raise RunError(f"{run} has no result to explain: {folder.what_now}")
    if method is not None and method not in METHODS:
        raise StudyError(f"--method: unknown method {method!r}; known: {', '.join(METHODS)}")
    first = run / "repeat-1" if (run / "repeat-1").is_dir() else run  # whose model is the run's
    results = read_results([first])[0]
    card = read_card(run)
    pictured = bool(results["synthetic"]) or public
    resident = Resident(device)
    try:
        trained, fresh = (build(card.study, seed) for seed in _seeds(card.study))
        restore(trained, load(run / "model.safetensors"))
        found = _explained(resident, folder.hospitals, card, (trained, fresh), method, images, pictured)
    finally:
        resident.close()
    results["explanations"] = found.json(card.study.evaluation.confidence)
    write_atomically(first / "results.json", json.dumps(results, indent=1).encode())
    write_report([results], first)
    if first != run:
        write_report(read_results([run]), run)
    if as_json:
        print(json.dumps({**results["explanations"], "pictures": len(found.pictures)}))
        return
    told = Explanations.parse(results["explanations"])
    assert told is not None
    print("\n".join(sentences(told)))
    if not pictured:
        print("no pictures: the images are not computer-made; --public says that they may be shown", file=sys.stderr)
    print(f"\nreport: {first / 'report.html'}")


def _seeds(study: Study) -> tuple[int, int]:
    """Of the network that gets the run's weights, and of the one that has learnt nothing."""
    return 0, seed_for(study.seed, "explain", "fresh")


def _explained(
    resident: Resident,
    homes: Sequence[Path],
    card: Card,
    models: tuple[nn.Module, nn.Module],
    method: str | None,
    images: int,
    pictured: bool,
) -> Explained:
    study = card.study
    sites: dict[str, Faithfulness] = {}
    pictures: list[dict[str, Any]] = []
    maps: HeatMaps | None = None
    for home in homes:
        site = resident.site(home)
        placed = [model.to(site.device) for model in models]
        wanted: Method | None = next((known for known in METHODS if known == method), None)
        maps, fresh = (HeatMaps(model, study, wanted, card.basis) for model in placed)
        found = list(examples(site, study, "test", images))
        sites[site.alias] = measure(
            found, maps, fresh, seed=study.seed, site=site.alias, least=study.evaluation.min_cell
        )
        if pictured:
            share = -(-SHOWN // len(homes))
            pictures += [_shown(site.alias, one, maps) for one in islice(found, share)]
    if maps is None or not any(found.images for found in sites.values()):
        raise RunError("no hospital has a test image that shows a class to explain; the study needs more test patients")
    return Explained(maps.method, sites, pictures[:SHOWN])


def _shown(site: str, example: Example, maps: HeatMaps) -> dict[str, Any]:
    one, output = example.pixels[None], torch.tensor([example.output])
    heat, score = maps.of(one, output)[0], float(maps.scores(one)[0, example.output])
    png = base64.b64encode(picture(example.pixels, heat, example.mask)).decode()
    return {"site": site, "label": example.label, "score": score, "masked": example.mask is not None, "png": png}
