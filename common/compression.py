"""Updates in fewer bits: what a local fit changed, instead of the weights it ended with.

``fp16`` rounds each difference to half precision: relative error 2^-11, and less than 2^-25 where that is more.
``int8`` sends ``difference / scale`` rounded to whole numbers, with one scale for each tensor, its largest magnitude
divided by 127. What rounding left out is *error feedback*: the sender keeps it and adds it to its next difference
(Seide et al. 2014, Interspeech; Karimireddy et al. 2019, ICML), so that the sum of what was sent never is further from
the sum of what was meant than one rounding. Rounding is half to even, in float32: the same bits everywhere.

Only what training changes is compressed. Buffers and counters travel as they are: a rounded variance may be negative.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError, ReplyRefused
from common.weights import DTYPES, Weights

Compression = Literal["none", "fp16", "int8"]
TYPES = (*DTYPES, "float16", "int8")
"""What a compressed update is made of."""
_STEPS = 127
_SMALLEST = np.float32(np.finfo(np.float32).tiny)
"""A smaller scale would be subnormal, and dividing by it inexact: such a tensor is sent as zeros."""
_TYPE_OF: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "int8": np.dtype(np.int8)}


@dataclass(frozen=True)
class Update:
    """A compressed update: float16 or int8 differences of what was trained, everything else as it is."""

    arrays: Weights
    scales: NDArray[np.float32]
    """``(K,)``: of ``int8`` one for each compressed array, in their order; of ``fp16`` none."""


def compress(
    form: Compression, after: Weights, received: Weights, names: Collection[str], residual: Weights
) -> tuple[Update, dict[str, NDArray[Any]]]:
    """``after - received`` of the trained ``names`` in fewer bits, and what rounding left out of it.

    ``residual`` is what it left out before, by name; empty where nothing was. Raises :class:`ModelError` where a
    difference is not finite, or too large for half precision.
    """
    arrays, scales, left = dict(after), [], {}
    for name in _compressed(received, names):
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray(after[name] - received[name])
            if name in residual:
                values = np.asarray(values + residual[name])
            coded, scale = _half(values) if form == "fp16" else _quantised(values)
        if scale is None:
            raise ModelError(
                f"{name}: training changed it by too much to be sent as {form}, or by what is no number; lower the "
                "learning rate or set training.optimiser.clip_norm"
            )
        arrays[name] = coded
        left[name] = np.asarray(values - _values(coded, scale))
        scales.append(scale)
    return Update(arrays, np.array(scales if form == "int8" else [], dtype=np.float32)), left


def decompress(
    form: Compression, update: Update, received: Weights, names: Collection[str]
) -> dict[str, NDArray[np.generic]]:
    """The weights that ``update`` makes of ``received``. Raises :class:`ReplyRefused` for an update of another model.

    They may be infinite, and are yet to be checked (``server.checks``).
    """
    compressed = _compressed(received, names)
    expected = {name: (array.shape, array.dtype) for name, array in received.items()}
    expected |= {name: (received[name].shape, _TYPE_OF[form]) for name in compressed}
    if {name: (array.shape, array.dtype) for name, array in update.arrays.items()} != expected:
        raise ReplyRefused(f"its update is not the study's model in {form}; the site must build the same study")
    if len(update.scales) != (len(compressed) if form == "int8" else 0):
        raise ReplyRefused(f"its update has {len(update.scales)} scales for {len(compressed)} compressed arrays")
    if any(array.size and array.dtype == np.int8 and int(array.min()) < -_STEPS for array in update.arrays.values()):
        raise ReplyRefused("its update holds -128, which no rounding of ours gives")
    given = update.scales if form == "int8" else np.ones(len(compressed), np.float32)
    scales = dict(zip(compressed, given, strict=True))
    weights: dict[str, NDArray[np.generic]] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name in received:
            array = update.arrays[name]
            weights[name] = np.asarray(received[name] + _values(array, scales[name])) if name in scales else array
    return weights


def _compressed(received: Weights, names: Collection[str]) -> list[str]:
    """In the model's order, which both sides have."""
    return [name for name, array in received.items() if name in names and array.dtype == np.float32]


def _half(values: NDArray[Any]) -> tuple[NDArray[Any], np.float32 | None]:
    coded = np.asarray(values.astype(np.float16))
    return coded, np.float32(1.0) if np.isfinite(coded).all() else None


def _quantised(values: NDArray[Any]) -> tuple[NDArray[Any], np.float32 | None]:
    """Whole numbers from -127 to 127 and their scale; no scale where ``values`` are not finite."""
    largest = np.float32(np.max(np.abs(values), initial=0.0))
    scale = np.float32(largest / np.float32(_STEPS))
    if not np.isfinite(largest) or scale < _SMALLEST:
        return np.zeros(values.shape, np.int8), np.float32(0.0) if np.isfinite(largest) else None
    return np.asarray(np.clip(np.rint(values / scale), -_STEPS, _STEPS).astype(np.int8)), scale


def _values(coded: NDArray[Any], scale: np.float32) -> NDArray[Any]:
    return np.asarray(coded.astype(np.float32) * scale)
