"""How non-IID a partition is: in labels, in sizes, in the look of the images.

Each distance comes with what it would be if the same patients were dealt to the same
sites at random, because small sites differ by chance alone: 0.1 says nothing without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.randomness import generator
from simulations.partition import Cohort, Shard

PAIRWISE_SITES = 50  # up to here every pair of sites is compared and listed
SAMPLED_PAIRS = 1000  # of more sites
PERMUTATIONS = 100
QUANTILES = 64

FEATURES = (
    "mean", "deviation", "5th percentile", "25th percentile", "median", "75th percentile", "95th percentile",
    "gradient energy", "fine detail", "low frequencies", "colour",
)  # fmt: skip


@dataclass(frozen=True)
class Distance:
    """A distance between sites, with its reference."""

    mean: float
    """Over pairs of sites (a sample of ``SAMPLED_PAIRS`` beyond ``PAIRWISE_SITES`` sites)."""
    iid_mean: float
    """The mean expected of sites of these sizes with patients by chance (permutations of patients)."""
    iid_high: float
    """The 95th percentile of the same: a ``mean`` above it is more than chance."""
    pairwise: tuple[tuple[float | None, ...], ...] | None
    """``(S, S)``; ``None`` for many sites; an entry is ``None`` where a site has nothing to compare."""

    @property
    def beyond_chance(self) -> bool:
        return self.mean > self.iid_high

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "iid_mean": self.iid_mean,
            "iid_high": self.iid_high,
            "beyond_chance": self.beyond_chance,
            "pairwise": None if self.pairwise is None else [list(row) for row in self.pairwise],
        }


@dataclass(frozen=True)
class Heterogeneity:
    """A partition's heterogeneity; distances are ``None`` where fewer than two sites can be compared."""

    sites: tuple[str, ...]
    images: tuple[int, ...]
    """Images of each site."""
    class_images: tuple[tuple[int, ...], ...]
    """``(S, C)`` labelled images of each class."""
    size_gini: float
    """Gini coefficient of the sites' images: 0 all equal, towards 1 one site has everything."""
    labels: Distance | None
    """Jensen–Shannon distance of label distributions, base 2, in [0, 1] (Lin 1991; its square is
    the divergence). In a multi-label cohort "no class" is one more label."""
    features: Distance | None
    """Mean over features of the Wasserstein-1 distance, in standard deviations of all images."""

    def to_json(self) -> dict[str, Any]:
        return {
            "sites": list(self.sites),
            "images": list(self.images),
            "class_images": [list(row) for row in self.class_images],
            "size_gini": self.size_gini,
            "labels": None if self.labels is None else self.labels.to_json(),
            "features": None if self.features is None else self.features.to_json(),
        }


def measure(
    shards: Sequence[Shard], cohort: Cohort, features: NDArray[np.floating[Any]] | None, seed: int = 0
) -> Heterogeneity:
    """Heterogeneity of ``shards``; ``features`` ``(N, F)`` are :func:`image_features` of the cohort's
    images, ``None`` to leave the look of the images out. ``seed`` is of the permutations.
    Raises :class:`DataError` where the features do not fit the cohort or are not finite.
    """
    count = len(cohort.patients)
    site = np.full(count, -1, dtype=np.int64)
    for index, shard in enumerate(shards):
        site[shard.indices] = index
    kept = np.flatnonzero(site >= 0)
    _, owner = np.unique(cohort.patients[kept], return_inverse=True)
    site = site[kept]
    targets = cohort.targets[kept]
    known = ~np.isnan(targets).all(axis=1)
    marks = np.nan_to_num(targets).astype(np.float64)
    class_images = _sums(marks, site, len(shards))
    images = np.bincount(site, minlength=len(shards))
    if (marks[known].sum(axis=1) != 1.0).any():
        marks = np.column_stack([marks, known & (marks.sum(axis=1) == 0.0)])

    def permuted() -> Iterator[NDArray[np.int64]]:
        return _permutations(images, owner, seed)

    labels = _distance(lambda sites: _label_points(marks, sites, len(shards)), _jensen_shannon, site, permuted)
    shift = None
    if features is not None:
        if features.ndim != 2 or len(features) != count or not np.isfinite(features).all():
            raise DataError(
                f"heterogeneity: features must be finite and of shape ({count}, F), one row per image, "
                f"got {features.shape}; compute them with image_features"
            )
        spread = _Spread(features[kept], len(shards))
        shift = _distance(spread.points, _wasserstein, site, permuted)
    return Heterogeneity(
        sites=tuple(shard.site for shard in shards),
        images=tuple(images.tolist()),
        class_images=tuple(tuple(row) for row in class_images.astype(np.int64).tolist()),
        size_gini=gini(images),
        labels=labels,
        features=shift,
    )


def gini(sizes: NDArray[Any]) -> float:
    """Gini coefficient of non-negative ``sizes`` ``(S,)``: mean absolute difference over twice the mean."""
    ordered = np.sort(np.asarray(sizes, dtype=np.float64))
    total, count = ordered.sum(), len(ordered)
    if total == 0.0:
        return 0.0
    ranks = np.arange(1, count + 1)
    return float(((2 * ranks - count - 1) * ordered).sum() / (count * total))


# -- distances between sites -----------------------------------------------------------------

Points = NDArray[np.float64]
"""``(S, …)`` what is compared of each site; a row with NaN has nothing to compare."""


def _distance(
    points: Callable[[NDArray[np.int64]], Points],
    between: Callable[[Points, Points], NDArray[np.float64]],
    site: NDArray[np.int64],
    permuted: Callable[[], Iterator[NDArray[np.int64]]],
) -> Distance | None:
    """Mean distance over pairs of sites, and the same for permuted patients."""
    actual = points(site)
    count = len(actual)
    everything = count <= PAIRWISE_SITES
    if everything:
        first, second = np.triu_indices(count, 1)
    else:
        rng = generator("heterogeneity", "pairs", count)
        first = rng.integers(0, count, SAMPLED_PAIRS)
        second = (first + rng.integers(1, count, SAMPLED_PAIRS)) % count
    values = between(actual[first], actual[second])
    if not np.isfinite(values).any():
        return None
    chance = []
    for sites in permuted():
        shuffled = points(sites)
        drawn = between(shuffled[first], shuffled[second])
        if np.isfinite(drawn).any():
            chance.append(float(np.nanmean(drawn)))
    pairwise = None
    if everything:
        table = np.zeros((count, count))
        table[first, second] = table[second, first] = values
        own = np.isnan(actual).reshape(count, -1).any(axis=1)
        table[own, own] = np.nan
        pairwise = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in table)
    return Distance(float(np.nanmean(values)), float(np.mean(chance)), float(np.quantile(chance, 0.95)), pairwise)


def _permutations(sizes: NDArray[np.int64], owner: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.int64]]:
    """Sites of all images after whole patients were dealt at random, in line, to sites of these
    ``sizes``: a site's number of images stays, but for half a patient at its borders."""
    images = np.bincount(owner)
    ends = np.cumsum(sizes)[:-1]
    rng = generator(seed, "heterogeneity", "permutations")
    of_patient = np.empty(len(images), dtype=np.int64)
    for _ in range(PERMUTATIONS):
        line = rng.permutation(len(images))
        middle = np.cumsum(images[line]) - images[line] / 2.0
        of_patient[line] = np.searchsorted(ends, middle, side="right")
        yield of_patient[owner]


def _sums(values: NDArray[np.float64], site: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """``(S, C)`` column sums of each site."""
    return np.stack([np.bincount(site, weights=column, minlength=count) for column in values.T], axis=1)


def _label_points(marks: NDArray[np.float64], site: NDArray[np.int64], count: int) -> Points:
    """``(S, C)`` each site's label distribution."""
    sums = _sums(marks, site, count)
    totals = sums.sum(axis=1, keepdims=True)
    result: Points = np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0.0)
    return result


def _jensen_shannon(one: Points, other: Points) -> NDArray[np.float64]:
    """``(P,)`` distance, base 2, of distributions ``(P, C)``."""
    middle = (one + other) / 2.0
    divergence = (_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2.0
    distance: NDArray[np.float64] = np.sqrt(np.clip(divergence, 0.0, 1.0))
    return distance


def _relative_entropy(one: Points, middle: Points) -> NDArray[np.float64]:
    ratio = np.divide(one, middle, out=np.ones_like(one), where=one > 0.0)
    result: NDArray[np.float64] = (one * np.log2(ratio)).sum(axis=1)
    return result


class _Spread:
    """Quantiles of standardised features per site; features are sorted once for all permutations."""

    def __init__(self, features: NDArray[np.floating[Any]], sites: int) -> None:
        values = features.astype(np.float64)
        scale = values.std(axis=0)
        # A constant feature has no shift; its rounding noise must not be blown up to one.
        varies = scale > 1e-9 * np.maximum(np.abs(values).max(axis=0, initial=0.0), 1e-300)
        values = (values[:, varies] - values[:, varies].mean(axis=0)) / scale[varies]
        self.order = np.argsort(values, axis=0, kind="stable").T.copy()  # (F, N)
        self.sorted = np.take_along_axis(values.T, self.order, axis=1)
        self.sites = sites

    def points(self, site: NDArray[np.int64]) -> Points:
        """``(S, F, Q)`` inverse distribution functions at the middles of ``QUANTILES`` equal steps."""
        sizes = np.bincount(site, minlength=self.sites)
        start = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        step = (np.arange(QUANTILES) + 0.5) / QUANTILES
        at = start[:, None] + np.floor(step * sizes[:, None]).astype(np.int64)
        at[sizes == 0] = 0
        small = site.astype(np.int16) if self.sites < 1 << 15 else site  # sorted by radix
        result = np.empty((self.sites, len(self.order), QUANTILES))
        for index, (order, values) in enumerate(zip(self.order, self.sorted, strict=True)):
            by_site = np.argsort(small[order], kind="stable")
            result[:, index] = values[by_site][at]
        result[sizes == 0] = np.nan
        return result


def _wasserstein(one: Points, other: Points) -> NDArray[np.float64]:
    """``(P,)`` mean over features of the distance between quantile functions ``(P, F, Q)``."""
    if one.shape[1] == 0:
        return np.zeros(len(one))
    result: NDArray[np.float64] = np.abs(one - other).mean(axis=(1, 2))
    return result


# -- cheap features of one image -------------------------------------------------------------


def image_features(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """``FEATURES`` of one image, ``(F,)`` float32, for the look of a site's images.

    ``pixels``: ``(H, W)`` or ``(H, W, 3)`` of an integer type, scaled by that type's range.
    Brightness and contrast are read from at most 64 × 64 pixels spread over the image,
    gradient and fine detail from a patch of at most 64 × 64 neighbouring pixels in its middle.
    """
    height, width = pixels.shape[:2]
    spread = pixels[:: -(-height // 64), :: -(-width // 64)]
    top, left = max(0, (height - 64) // 2), max(0, (width - 64) // 2)
    patch, colour = pixels[top : top + 64, left : left + 64], 0.0
    limits = np.iinfo(pixels.dtype)
    scale = np.float32(1.0 / (limits.max - limits.min))
    spread, patch = spread.astype(np.float32), patch.astype(np.float32)
    if pixels.ndim == 3:
        red, green, blue = spread[:, :, 0], spread[:, :, 1], spread[:, :, 2]
        widest = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
        colour = float(widest.mean() * scale)
        spread = (red + green + blue) / np.float32(3.0)
        patch = (patch[:, :, 0] + patch[:, :, 1] + patch[:, :, 2]) / np.float32(3.0)
    rows, columns = spread.shape
    ordered = np.sort(spread, axis=None)
    mean, deviation = float(ordered.mean()), float(ordered.std())
    percentiles = ordered[(np.array((0.05, 0.25, 0.5, 0.75, 0.95)) * (len(ordered) - 1)).astype(np.int64)]
    across, down = np.diff(patch, axis=1), np.diff(patch, axis=0)
    gradient = _power(across) + _power(down)
    fine = _power(np.diff(across, axis=1)) + _power(np.diff(down, axis=0))
    tall, wide = max(1, rows // 8), max(1, columns // 8)
    blocks = spread[: rows // tall * tall, : columns // wide * wide].reshape(rows // tall, tall, columns // wide, wide)
    low = float(blocks.mean(axis=(1, 3)).std())
    intensities = np.array([mean - limits.min, deviation, *(percentiles - limits.min), gradient**0.5, fine**0.5])
    return np.array([*(intensities * scale), low / deviation if deviation > 0.0 else 0.0, colour], dtype=np.float32)


def _power(values: NDArray[np.float32]) -> float:
    return float(np.dot(values.ravel(), values.ravel())) / max(values.size, 1)
