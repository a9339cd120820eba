"""One way to change a picture's size: by what a model sees, and by what an import stores."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def resized(picture: NDArray[Any], height: int, width: int, *, nearest: bool = False) -> NDArray[Any]:
    """``picture`` ``(H, W)`` or ``(H, W, 3)`` as ``(height, width, …)``; itself where it has that size.

    Area average along a side that shrinks, linear along one that grows; ``nearest`` neighbour for masks.
    """
    least = (min(height, picture.shape[0]), min(width, picture.shape[1]))
    for (down, across), way in ((least, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if (down, across) != picture.shape[:2]:
            way = cv2.INTER_NEAREST_EXACT if nearest else way
            picture = np.asarray(cv2.resize(picture, (across, down), interpolation=way))
    return picture
