"""Whether heat maps show what a model goes by: measured at the site, on images that show a class.

An image is cut into 8 × 8 cells. "Taken away" is a cell that shows the image as blurred by a Gaussian of an eighth of
its side: what was there is gone, and no edge or grey that no image has comes in its place. Maps and random orders take
cells of one size away, so that only the order differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from client.explaining.examples import Example
from client.explaining.heatmaps import HeatMaps
from common.metrics.faithfulness import MEASURES, Faithfulness
from common.randomness import generator

CELLS = 8
"""Along each side of an image."""
_REMOVED = tuple(range(0, CELLS * CELLS + 1, 4))
"""Cells taken away at each step of a deletion curve."""
_ORDERS = 3
"""Random orders beside the map's."""


def measure(
    found: Sequence[Example], maps: HeatMaps, fresh: HeatMaps, *, seed: int, site: str, least: int
) -> Faithfulness:
    """Sums over the patients of ``found``; nothing of fewer than ``least``.

    ``fresh``: maps of the same network with weights that have learnt nothing. ``seed`` and ``site`` name the random
    orders, so that each site's are its own and the same again.
    """
    values = np.full((len(found), len(MEASURES)), np.nan)
    for number, example in enumerate(found):
        one, output = example.pixels[None], torch.tensor([example.output])
        heat = maps.of(one, output)[0].numpy()
        random = generator(seed, "explain", site, number)
        values[number] = [*_against_mask(heat, example.mask), *_deleted(example, heat, maps, random), np.nan]
        values[number, -1] = _resemblance(heat, fresh.of(one, output)[0].numpy())
    return Faithfulness.of(values, np.array([example.patient for example in found], dtype=np.int64), least)


def _against_mask(heat: NDArray[np.float32], mask: NDArray[np.uint8] | None) -> tuple[float, ...]:
    """``pointed``, ``chance``, ``pointed_gain``, ``mass``, ``mass_gain``; a map without heat points nowhere."""
    if mask is None:
        return (np.nan,) * 5
    chance, total = float(mask.mean()), float(heat.sum(dtype=np.float64))
    if total <= 0.0:
        return 0.0, chance, -chance, 0.0, -chance
    hottest = heat == heat.max()  # of several the share that lies inside
    pointed, mass = float(mask[hottest].mean()), float(heat[mask > 0].sum(dtype=np.float64)) / total
    return pointed, chance, pointed - chance, mass, mass - chance


def _deleted(
    example: Example, heat: NDArray[np.float32], maps: HeatMaps, random: np.random.Generator
) -> tuple[float, ...]:
    """``deletion``, ``random``, ``deletion_gain``: of the example's class."""
    cells = cell_numbers(*heat.shape)
    warmth = np.bincount(cells.ravel(), heat.ravel().astype(np.float64)) / np.bincount(cells.ravel())
    orders = [np.argsort(-warmth, kind="stable"), *(random.permutation(len(warmth)) for _ in range(_ORDERS))]
    images = torch.cat([_without(example.pixels, cells, order) for order in orders])
    scores = maps.scores(images)[:, example.output].double().numpy().reshape(len(orders), -1)
    areas = np.trapezoid(scores, np.array(_REMOVED) / len(warmth), axis=1)
    return float(areas[0]), float(areas[1:].mean()), float(areas[1:].mean() - areas[0])


def _without(pixels: Tensor, cells: NDArray[np.int64], order: NDArray[np.int64]) -> Tensor:
    """``(steps, C, H, W)``: the image with ever more cells taken away in ``order``."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    gone = torch.from_numpy(rank[cells])[None] < torch.tensor(_REMOVED)[:, None, None]
    return torch.where(gone[:, None], _blurred(pixels)[None], pixels[None])


def _blurred(pixels: Tensor) -> Tensor:
    wide = pixels.shape[-1] / CELLS
    planes = [cv2.GaussianBlur(plane.numpy(), (0, 0), wide, borderType=cv2.BORDER_REFLECT) for plane in pixels]
    return torch.from_numpy(np.stack(planes))


def cell_numbers(height: int, width: int) -> NDArray[np.int64]:
    """``(height, width)``: the number of each pixel's cell, row by row."""
    down, across = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    return np.asarray(down[:, None] * CELLS + across, dtype=np.int64)


def _resemblance(heat: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Spearman's rank correlation of two maps, cell by cell; NaN where one is the same everywhere."""
    cells = cell_numbers(*heat.shape).ravel()
    one, two = (np.bincount(cells, part.ravel().astype(np.float64)) for part in (heat, other))
    if np.ptp(one) == 0.0 or np.ptp(two) == 0.0:
        return float("nan")
    return float(stats.spearmanr(one, two).statistic)


def merged(parts: Iterable[Faithfulness]) -> Faithfulness:
    """The sum of several sites' sums."""
    return sum(parts, Faithfulness.zero())
