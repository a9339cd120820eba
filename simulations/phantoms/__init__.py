"""Synthetic images with known truth, by modality: the embedded data of every first run.

Nothing here is a patient: every key, patient and source name says "synthetic".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.study import PhantomSpec
from simulations.datasets.source import Item, UnreadableImage
from simulations.phantoms import chest, modalities

Draw = Callable[[Item, int, PhantomSpec, int], tuple[NDArray[Any], NDArray[np.uint8]]]
COLUMNS = ("label", "finding")
"""The label columns of every phantom."""


class PhantomSource:
    """``spec.images`` phantoms of ``spec.kind``, drawn when read.

    The first *n* phantoms of a larger set are the phantoms of a set of *n*,
    except that the last patient may have fewer images.
    """

    synthetic = True
    notes: tuple[str, ...] = ()

    def __init__(self, spec: PhantomSpec, seed: int) -> None:
        self.name = "phantoms (synthetic)" if spec.kind == "chest" else f"{spec.kind} phantoms (synthetic)"
        self._spec, self._seed = spec, seed
        known = spec.kind == "chest"
        self._draw: Draw = chest.draw if known else modalities.draw
        self.items: tuple[Item, ...] = tuple(chest.items(spec, seed) if known else modalities.items(spec, seed))
        self._numbers = {item.key: number for number, item in enumerate(self.items)}

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Pixels, and the mask of what was found, ``(size, size)`` uint8 in {0, 1}.

        Pixels are ``(size, size)`` uint8; of brain MRI ``(size, size, 3)`` with T1, T2 and diffusion as channels; of
        lung CT int16 in Hounsfield units. Raises :class:`UnreadableImage` for a foreign item.
        """
        number = self._numbers.get(item.key)
        if number is None:
            raise UnreadableImage(item.key, "is no phantom of this set; take items from the source's own list")
        return self._draw(self.items[number], number, self._spec, self._seed)
