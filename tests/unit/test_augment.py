"""Augmentation: what each change does to an image, and that draws are the caller's."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from common.augment import Augmenter
from common.study import AugmentSpec


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 32, size: int = 64) -> Tensor:
    """Smooth images, so that resampling twice loses little."""
    rough = torch.rand((count, 1, size, size), generator=seeded(7)).numpy()
    field = ndimage.gaussian_filter(rough, (0, 0, 3, 3))
    field = (field - field.min()) / (field.max() - field.min())
    return torch.from_numpy(field)


def test_an_inactive_spec_returns_the_input_itself_and_draws_nothing() -> None:
    images, generator = batch(2), seeded()
    masks = images[:, 0] > 0.5
    assert Augmenter(AugmentSpec()).apply(images, generator) is images
    same, still = Augmenter(AugmentSpec()).apply_with_masks(images, masks, generator)
    assert same is images
    assert still is masks
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_rotation_turns_about_the_centre_by_up_to_its_angle() -> None:
    images = batch(24)
    result = Augmenter(AugmentSpec(rotate_deg=30.0)).apply(images, seeded())
    angles = (2 * torch.rand((24, 7), generator=seeded())[:, 0] - 1) * 30.0
    assert angles.abs().max() > 20.0
    for image, turned, angle in zip(images, result, angles, strict=True):
        expected = ndimage.rotate(image[0].numpy(), float(angle), reshape=False, order=1, mode="nearest")
        assert abs(expected - turned[0].numpy()).max() < 0.01


def test_rotation_by_a_quarter_turn_keeps_pixels_square_on_wide_images() -> None:
    spot = torch.zeros((1, 1, 21, 41))
    spot[0, 0, 10, 28] = 1.0  # eight to the right of the centre
    augmenter = Augmenter(AugmentSpec(rotate_deg=180.0))
    seeds = (
        s for s in range(4000) if abs(abs(float(torch.rand((1, 7), generator=seeded(s))[0, 0]) - 0.5) - 0.25) < 2e-4
    )
    turned = augmenter.apply(spot, seeded(next(seeds)))[0, 0]
    row, column = divmod(int(turned.argmax()), 41)
    assert column == 20
    assert abs(row - 10) == 8


def test_shift_moves_by_a_share_of_the_side() -> None:
    images = batch(16)
    result = Augmenter(AugmentSpec(shift=0.1)).apply(images, seeded())
    draws = 2 * torch.rand((16, 7), generator=seeded()) - 1
    for image, moved, draw in zip(images, result, draws, strict=True):
        by = (float(-draw[2]) * 6.4, float(-draw[1]) * 6.4)
        expected = ndimage.shift(image[0].numpy(), by, order=1, mode="nearest")
        assert abs(expected - moved[0].numpy()).max() < 0.01


def test_zoom_shows_between_its_bounds_and_keeps_the_centre() -> None:
    disc = torch.zeros((64, 1, 65, 65))
    across = torch.arange(65) - 32
    disc[:] = ((across[:, None] ** 2 + across[None, :] ** 2) < 16**2).float()
    result = Augmenter(AugmentSpec(zoom=0.25)).apply(disc, seeded())
    radii = (result.sum(dim=(1, 2, 3)) / math.pi).sqrt() / 16
    assert 0.74 < float(radii.min()) < 0.8
    assert 1.2 < float(radii.max()) < 1.26
    columns = (result * across.float()).sum(dim=(1, 2, 3)) / result.sum(dim=(1, 2, 3))
    assert float(columns.abs().max()) < 0.05


def test_about_half_are_flipped_and_the_two_flips_are_independent() -> None:
    images = batch(400, 8)
    result = Augmenter(AugmentSpec(flip_horizontal=True, flip_vertical=True)).apply(images, seeded())
    kinds = [images, images.flip(-1), images.flip(-2), images.flip(-1, -2)]
    counts = [int((result == kind).all(dim=3).all(dim=2).all(dim=1).sum()) for kind in kinds]
    assert sum(counts) == 400
    assert min(counts) > 70


def test_a_flip_within_a_resampling_is_the_same_flip() -> None:
    images = batch(32)
    alone = Augmenter(AugmentSpec(flip_horizontal=True, flip_vertical=True)).apply(images, seeded())
    almost = AugmentSpec(flip_horizontal=True, flip_vertical=True, rotate_deg=1e-6)
    assert torch.allclose(Augmenter(almost).apply(images, seeded()), alone, atol=1e-4)


def test_switching_one_change_on_leaves_the_others_draws() -> None:
    images = batch(8)
    flip = Augmenter(AugmentSpec(flip_horizontal=True)).apply(images, seeded())
    both = Augmenter(AugmentSpec(flip_horizontal=True, brightness=0.2)).apply(images, seeded())
    ratio = both.sum(dim=(1, 2, 3)) / flip.sum(dim=(1, 2, 3))
    expected = 1 + 0.2 * (2 * torch.rand((8, 7), generator=seeded())[:, 6] - 1)
    bright = (flip * expected[:, None, None, None]).clamp(max=1)
    assert torch.allclose(both, bright)
    assert float(ratio.std()) > 0.01


def test_brightness_keeps_black_and_never_passes_white() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).expand(64, 1, 1, 3).clone()
    result = Augmenter(AugmentSpec(brightness=0.5)).apply(images, seeded())[:, 0, 0]
    assert float(result[:, 0].abs().max()) == 0.0
    assert float(result[:, 2].max()) == 1.0
    assert 0.25 <= float(result[:, 1].min()) < 0.3
    assert 0.7 < float(result[:, 1].max()) <= 0.75


def test_the_border_is_continued() -> None:
    white = torch.ones((16, 1, 32, 32))
    spec = AugmentSpec(rotate_deg=45.0, shift=0.3, zoom=0.5)
    assert torch.allclose(Augmenter(spec).apply(white, seeded()), white)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_masks_move_with_their_images_and_stay_of_their_values(dtype: torch.dtype) -> None:
    images = batch(16)
    masks = (images[:, 0] > 0.5).to(dtype)
    spec = AugmentSpec(rotate_deg=20.0, shift=0.1, zoom=0.1, flip_horizontal=True, flip_vertical=True)
    changed, moved = Augmenter(spec).apply_with_masks(images, masks, seeded())
    assert moved.dtype == dtype
    assert set(moved.float().unique().tolist()) == {0.0, 1.0}
    assert float(((changed[:, 0] > 0.5) != moved.bool()).float().mean()) < 0.04
    flip = AugmentSpec(flip_horizontal=True)
    changed, moved = Augmenter(flip).apply_with_masks(images, masks, seeded())
    assert torch.equal((changed[:, 0] > 0.5).to(dtype), moved)


def test_brightness_leaves_masks_alone() -> None:
    images = batch(4)
    masks = images[:, 0] > 0.5
    _, same = Augmenter(AugmentSpec(brightness=0.5)).apply_with_masks(images, masks, seeded())
    assert torch.equal(same, masks)


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="do not lie over"):
        Augmenter(AugmentSpec(shift=0.1)).apply_with_masks(batch(4), torch.zeros(4, 32, 32), seeded())


def test_half_precision_images_are_resampled_in_full() -> None:
    images = batch(4)
    spec = AugmentSpec(rotate_deg=10.0, shift=0.1, brightness=0.1)
    half = Augmenter(spec).apply(images.to(torch.bfloat16), seeded())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), Augmenter(spec).apply(images, seeded()), atol=0.02)


def test_autocast_does_not_move_the_grid() -> None:
    images = batch(4)
    augmenter = Augmenter(AugmentSpec(rotate_deg=10.0, shift=0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augmenter.apply(images, seeded())
    assert torch.equal(inside, augmenter.apply(images, seeded()))


@pytest.mark.gpu
def test_cpu_and_cuda_agree() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = batch(32)
    masks = (images[:, 0] > 0.5).to(torch.uint8)
    spec = AugmentSpec(rotate_deg=20, shift=0.1, zoom=0.1, flip_horizontal=True, flip_vertical=True, brightness=0.2)
    here, mask_here = Augmenter(spec).apply_with_masks(images, masks, seeded())
    there, mask_there = Augmenter(spec).apply_with_masks(images.cuda(), masks.cuda(), seeded())
    assert torch.allclose(here, there.cpu(), atol=1e-4)
    assert float((mask_here != mask_there.cpu()).float().mean()) < 1e-3
    with pytest.raises(ValueError, match="CPU generator"):
        Augmenter(spec).apply(images.cuda(), torch.Generator("cuda"))
