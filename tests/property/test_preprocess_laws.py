"""Laws of preprocessing and augmentation that hold for every image and every spec."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.augment import Augmenter
from common.preprocess import prepare, prepare_mask
from common.study import AugmentSpec, Study


@st.composite
def images(draw: st.DrawFn) -> NDArray[Any]:
    """Grey or RGB, every type, from 1 × 1, also very long."""
    sides = st.integers(1, 90) | st.sampled_from([1, 2, 700])
    shape: tuple[int, ...] = (draw(sides), draw(sides))
    dtype = np.dtype(draw(st.sampled_from(["uint8", "uint16", "int16"])))
    if dtype != np.int16 and draw(st.booleans()):
        shape = (*shape, 3)
    info = np.iinfo(dtype)
    low = draw(st.integers(info.min, info.max))
    high = draw(st.integers(low, info.max))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    return generator.integers(low, high, shape, dtype=dtype, endpoint=True)


@st.composite
def studies(draw: st.DrawFn, pixels: NDArray[Any]) -> Study:
    window = None
    if pixels.dtype == np.int16 or (pixels.dtype == np.uint16 and pixels.ndim == 2 and draw(st.booleans())):
        finite = st.floats(-1e9, 1e9)
        window = {"centre": draw(finite), "width": draw(st.floats(1e-3, 1e9))}
    return Study.model_validate(
        {
            "name": "laws",
            "task": "binary",
            "classes": ["no", "yes"],
            "image": {"size": draw(st.integers(8, 72)), "channels": draw(st.sampled_from([1, 3]))},
            "preprocess": {
                "window": window,
                "gaussian_sigma": draw(st.just(0.0) | st.floats(0.0, 8.0)),
                "equalise": draw(st.sampled_from(["none", "histogram", "clahe"])),
                "clahe_clip": draw(st.floats(0.1, 50.0)),
                "clahe_tiles": draw(st.integers(1, 20)),
                "fit": draw(st.sampled_from(["stretch", "pad", "crop"])),
            },
        }
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_image_becomes_the_models_input_and_always_the_same_one(data: st.DataObject) -> None:
    pixels = data.draw(images())
    study = data.draw(studies(pixels))
    before = pixels.copy()
    result = prepare(pixels, study)
    assert result.shape == (study.image.channels, study.image.size, study.image.size)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert result.tobytes() == prepare(pixels.copy(), study).tobytes()
    assert (pixels == before).all()
    if study.image.channels == 3 and pixels.ndim == 2:
        assert (result == result[0]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(8, 64), st.sampled_from(["stretch", "pad", "crop"]))
def test_masks_stay_masks(height: int, width: int, size: int, fit: str) -> None:
    study = Study.model_validate(
        {"name": "m", "task": "binary", "classes": ["a", "b"], "image": {"size": size}, "preprocess": {"fit": fit}}
    )
    full = prepare_mask(np.ones((height, width), np.uint8), study)
    assert full.shape == (size, size)
    assert full.any()
    assert (full == (prepare(np.full((height, width), 255, np.uint8), study)[0] > 0)).all()
    assert not prepare_mask(np.zeros((height, width), np.uint8), study).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 255), st.floats(0.0, 4.0))
def test_without_equalising_a_flat_image_stays_flat(height: int, width: int, grey: int, sigma: float) -> None:
    study = Study.model_validate(
        {"name": "f", "task": "binary", "classes": ["a", "b"], "preprocess": {"gaussian_sigma": sigma}}
    )
    assert (prepare(np.full((height, width), grey, np.uint8), study) == grey).all()


specs = st.builds(
    AugmentSpec,
    rotate_deg=st.sampled_from([0.0, 10.0, 180.0]),
    shift=st.sampled_from([0.0, 0.1, 0.5]),
    zoom=st.sampled_from([0.0, 0.2, 0.99]),
    flip_horizontal=st.booleans(),
    flip_vertical=st.booleans(),
    brightness=st.sampled_from([0.0, 0.3, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(specs, st.integers(0, 4), st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_augmented_images_keep_shape_type_and_range(
    spec: AugmentSpec, batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    source = torch.rand((batch, channels, height, width), generator=torch.Generator().manual_seed(seed))
    before = source.clone()
    augmenter = Augmenter(spec)
    result = augmenter.apply(source, torch.Generator().manual_seed(seed))
    assert result.shape == source.shape
    assert result.dtype == source.dtype
    assert torch.isfinite(result).all()
    assert ((result >= 0.0) & (result <= 1.0)).all()
    assert torch.equal(source, before)
    assert torch.equal(result, augmenter.apply(source, torch.Generator().manual_seed(seed)))


@settings(max_examples=30, deadline=None)
@given(specs, st.integers(1, 7), st.integers(0, 99))
def test_two_microbatches_are_changed_as_their_batch(spec: AugmentSpec, cut: int, seed: int) -> None:
    source = torch.rand((8, 1, 16, 16), generator=torch.Generator().manual_seed(seed))
    augmenter = Augmenter(spec)
    whole = augmenter.apply(source, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    parts = [augmenter.apply(part, generator) for part in (source[:cut], source[cut:])]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.booleans(), st.booleans(), st.integers(0, 999))
def test_flips_are_exact(horizontal: bool, vertical: bool, seed: int) -> None:
    source = torch.rand((16, 2, 7, 9), generator=torch.Generator().manual_seed(seed))
    spec = AugmentSpec(flip_horizontal=horizontal, flip_vertical=vertical)
    result = Augmenter(spec).apply(source, torch.Generator().manual_seed(seed))
    for image, changed in zip(source, result, strict=True):
        allowed = [image]
        if horizontal:
            allowed += [image.flip(-1)]
        if vertical:
            allowed += [one.flip(-2) for one in list(allowed)]
        assert any(torch.equal(changed, one) for one in allowed)
