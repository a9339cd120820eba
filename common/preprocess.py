"""Per-image preprocessing: from a vault's pixels to what a model sees, as uint8.

The order is the study's (``PreprocessSpec``): window, Gaussian filter, equalise, resize, [0, 1]. A picture
keeps its depth (8 or 16 bits) up to the last step, so a dim 12-bit radiograph can be equalised before it is cut
to 256 grey levels. Grey 0 is black, 255 is 1.0.

Everything here is a pure function of pixels and study: one thread, no random numbers, no clock.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.resize import resized
from common.study import Study, Window

cv2.setNumThreads(1)  # the only place: a site's torch threads are counted, OpenCV's would come on top of them

Picture = NDArray[Any]
"""``(H, W)`` or ``(H, W, 3)`` RGB, uint8 or uint16, black at 0 and white at the type's largest value."""

_LEVELS_16 = 1 << 16
_REDUCED_SIGMA = 1.5  # a Gaussian this wide (pixels) is still sampled well: fewer pixels lose little


def prepare(pixels: NDArray[Any], study: Study) -> NDArray[np.uint8]:
    """The model's input for one image: uint8 ``(channels, size, size)``, 255 stands for 1.0.

    ``pixels`` is ``(H, W)`` grey or ``(H, W, 3)`` RGB, of type uint8, uint16 or int16. The range is taken so:

    * int16 is CT in Hounsfield units and needs ``preprocess.window``;
    * uint16 with a window is windowed in stored values; without one, black is 0 and white is ``2^b - 1`` with
      ``b`` (8 to 16) the fewest bits that hold the image's brightest pixel: a 12-bit detector spans the whole range
      and, unlike with min..max, its images share one scale (but for those that are all below half of it, or with
      a pixel outside it); a window is the way to a scale fixed for certain;
    * uint8 is taken as it is, and refused under a window: its units are no longer Hounsfield's.

    ``preprocess.gaussian_sigma`` is in pixels of the *model's input*, so that hospitals whose images differ in
    resolution filter the same detail. RGB becomes grey by Rec. 601 luma; grey becomes RGB by repetition; an RGB
    image is equalised on its luma. Under ``image.sequences`` the three channels are pictures of their own: each is
    equalised by itself, and a grey image is refused. ``fit: pad`` fills with black, ``fit: crop`` keeps the central
    square.

    The result never shares memory with ``pixels``. Raises :class:`DataError` for what cannot be prepared.
    """
    spec, size, channels = study.preprocess, study.image.size, study.image.channels
    picture = _ranged(_checked(pixels), spec.window)
    if study.image.sequences and picture.ndim == 2:
        raise DataError(
            f"an image of one channel, where the study needs {', '.join(study.image.sequences)}; import them as one "
            "image of shape (H, W, 3)"
        )
    apply = _on_each if study.image.sequences else _on_luma
    if picture.ndim == 3 and channels == 1:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    if spec.gaussian_sigma > 0.0:
        picture = _smoothed(picture, spec.gaussian_sigma, spec.fit, size)
    if spec.equalise == "histogram":
        picture = apply(picture, _equalised)
    elif spec.equalise == "clahe":
        clip, tiles = spec.clahe_clip, spec.clahe_tiles
        picture = apply(_to_8_bits(picture), lambda grey: _clahe(grey, clip, tiles))
    picture = _to_8_bits(_fitted(picture, spec.fit, size, resized))
    result = np.empty((channels, size, size), dtype=np.uint8)
    result[:] = picture if picture.ndim == 2 else picture.transpose(2, 0, 1)
    return result


def prepare_mask(mask: NDArray[Any], study: Study) -> NDArray[np.uint8]:
    """A segmentation mask ``(H, W)`` uint8 in {0, 1} laid over ``prepare``'s output: ``(size, size)`` uint8 in {0, 1}.

    Nearest neighbour at pixel centres; padding is 0. Raises :class:`DataError` for any other shape, type or value.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        raise DataError(f"a mask of type {mask.dtype} and shape {mask.shape}; import masks as (H, W) uint8 of 0 and 1")
    if int(mask.max()) > 1:
        raise DataError("a mask with values other than 0 and 1; import one mask per image, 1 where the finding is")
    fitted = _fitted(np.ascontiguousarray(mask), study.preprocess.fit, study.image.size, _nearest)
    return np.array(fitted, dtype=np.uint8, order="C")


def _checked(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.dtype not in (np.uint8, np.uint16, np.int16):
        raise DataError(f"an image of type {pixels.dtype}; images are uint8, uint16, or int16 (Hounsfield units)")
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise DataError(
            f"an image of shape {pixels.shape}; images are (H, W) grey or (H, W, 3) RGB with pixels in them"
        )
    return np.ascontiguousarray(pixels)


def _ranged(pixels: NDArray[Any], window: Window | None) -> Picture:
    """Units become a range: 0 is black, the type's largest value is white."""
    if pixels.dtype == np.int16 and (window is None or pixels.ndim == 3):
        raise DataError(
            "an int16 image holds Hounsfield units, one channel, and needs a window to become grey levels; "
            "set preprocess.window, for example {centre: 40, width: 400}"
        )
    if window is not None:
        if pixels.dtype == np.uint8 or pixels.ndim == 3:
            raise DataError(
                "an 8-bit or colour image has no Hounsfield units left to window; "
                "remove preprocess.window, or import the original 16-bit images"
            )
        return _windowed(pixels, window)
    if pixels.dtype == np.uint8:
        return pixels
    white = (1 << max(8, int(pixels.max()).bit_length())) - 1
    return pixels if white == _LEVELS_16 - 1 else _rounded(pixels.astype(np.float32) * ((_LEVELS_16 - 1) / white))


def _windowed(pixels: NDArray[Any], window: Window) -> Picture:
    """Linear window of DICOM PS3.3 C.11.2.1.2.1, output range 0..65535. A width of at most 1 is a step."""
    middle, span = window.centre - 0.5, window.width - 1.0
    if span <= 0.0:
        return np.where(pixels > middle, np.uint16(_LEVELS_16 - 1), np.uint16(0))
    return _rounded((pixels.astype(np.float64) - (middle - span / 2)) * ((_LEVELS_16 - 1) / span))


def _rounded(values: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """To the nearest of 0..65535; overwrites ``values``."""
    values += 0.5
    np.clip(values, 0.0, _LEVELS_16 - 1, out=values)
    return values.astype(np.uint16)


def _to_8_bits(picture: Picture) -> NDArray[np.uint8]:
    """Nearest of 256 levels; 65535 = 255 * 257."""
    return picture if picture.dtype == np.uint8 else ((picture.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _smoothed(picture: Picture, sigma: float, fit: str, size: int) -> Picture:
    """Gaussian filter, ``sigma`` in pixels of the model's input; mirrored at the picture's edge.

    A wide filter runs on an area-averaged picture of ``1/k`` the side, ``k`` chosen so that the model's size and a
    well-sampled Gaussian remain; averaging over ``k`` pixels has variance ``(k² - 1) / 12``, which the filter then
    lacks. That is within about two grey levels of the full filter (0.2 on average) and many times cheaper. The kernel
    ends at three sigma, or at the picture's side.
    """
    sides = picture.shape[:2]
    ratio = {"stretch": (0, 1), "pad": (int(np.argmax(sides)),) * 2, "crop": (int(np.argmin(sides)),) * 2}[fit]
    shape, sigmas = [], []
    for axis in (0, 1):
        wide = sigma * sides[ratio[axis]] / size  # in source pixels
        factor = max(1, min(int(wide / _REDUCED_SIGMA), sides[axis] // size))
        length = -(-sides[axis] // factor)
        factor_exact = sides[axis] / length
        shape.append(length)
        sigmas.append(math.sqrt(max(0.0, wide**2 - (factor_exact**2 - 1.0) / 12.0)) / factor_exact)
    radii = [min(int(3.0 * value + 0.5), length) for value, length in zip(sigmas, shape, strict=True)]
    reduced = resized(picture, shape[0], shape[1])
    if radii == [0, 0]:
        return reduced
    # In float32: OpenCV's fixed-point filter for integers costs two to four times as much.
    blurred: NDArray[np.float32] = np.asarray(
        cv2.GaussianBlur(
            reduced.astype(np.float32),
            (2 * radii[1] + 1, 2 * radii[0] + 1),
            sigmaX=max(sigmas[1], 1e-6),
            sigmaY=max(sigmas[0], 1e-6),
            borderType=cv2.BORDER_REFLECT,
        ),
        dtype=np.float32,
    )
    blurred += 0.5  # an average of a picture's values stays in its range: no clipping
    return blurred.astype(picture.dtype)


def _on_luma(picture: Picture, change: Any) -> Picture:
    """Apply ``change`` to a grey picture, or to the luma of an RGB one (hue and saturation kept)."""
    if picture.ndim == 2:
        return np.asarray(change(picture))
    split = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb))
    split[..., 0] = change(np.ascontiguousarray(split[..., 0]))
    return np.asarray(cv2.cvtColor(split, cv2.COLOR_YCrCb2RGB))


def _on_each(picture: Picture, change: Any) -> Picture:
    """Apply ``change`` to each channel as a grey picture."""
    changed = [change(np.ascontiguousarray(picture[..., channel])) for channel in range(picture.shape[2])]
    return np.stack(changed, axis=-1)


def _equalised(grey: Picture) -> Picture:
    """Histogram equalisation: ``(cdf(v) - cdf(min)) / (1 - cdf(min))``, over 256 or 65,536 levels.

    Gonzalez and Woods, Digital Image Processing, 3.3.1, stretched so that the darkest level becomes 0. A picture
    of one level stays as it is.
    """
    if grey.dtype == np.uint8:
        return np.asarray(cv2.equalizeHist(grey))
    cumulative = np.cumsum(np.bincount(grey.ravel(), minlength=_LEVELS_16))
    darkest = int(cumulative[int(grey.min())])
    if darkest == grey.size:
        return grey
    levels = (cumulative - darkest) * ((_LEVELS_16 - 1) / (grey.size - darkest))
    table = np.maximum(levels + 0.5, 0.0, out=levels).astype(np.uint16)  # nearest; below the darkest level unused
    return np.take(table, grey)


def _clahe(grey: NDArray[np.uint8], clip: float, tiles: int) -> NDArray[np.uint8]:
    """Contrast-limited adaptive equalisation (Zuiderveld 1994) on 256 levels.

    ``clip`` is in multiples of a flat histogram's bin. 16-bit pictures come here as 8 bits: with 65,536 bins a tile
    has less than one pixel a bin and the limit would mean nothing. A tile is never smaller than a pixel.
    """
    height, width = grey.shape
    filtered = cv2.createCLAHE(clip, (min(tiles, width), min(tiles, height))).apply(grey)
    return np.asarray(filtered, dtype=np.uint8)


def _fitted(picture: Picture, fit: str, size: int, resize: Any) -> Picture:
    height, width = picture.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        picture = np.ascontiguousarray(picture[top : top + side, left : left + side])
    if fit != "pad" or height == width:
        return np.asarray(resize(picture, size, size))
    longest = max(height, width)
    inner = [max(1, round(side * size / longest)) for side in (height, width)]
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    framed = np.zeros((size, size, *picture.shape[2:]), dtype=picture.dtype)
    framed[top : top + inner[0], left : left + inner[1]] = resize(picture, inner[0], inner[1])
    return framed


def _nearest(picture: Picture, height: int, width: int) -> Picture:
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))
