"""Simulated detectors: the identity changes nothing, each setting does what it says, kinds of arrays stay."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import DataError
from simulations.devices import Device, apply, device_for

RANGES = {"uint8": (0, 255), "uint16": (0, 4095), "int16": (-1024, 3071)}


def image(dtype: str, shape: tuple[int, ...] = (48, 40)) -> NDArray[np.generic]:
    low, high = RANGES[dtype]
    values = np.random.default_rng(5).integers(low + 200 * (high > 255), high - 55, shape)
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", list(RANGES))
@pytest.mark.parametrize("shape", [(48, 40), (48, 40, 3)])
def test_identity_is_bit_exact_and_a_shift_keeps_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    pixels = image(dtype, shape)
    before = pixels.copy()
    assert apply(pixels, Device(), 1) is pixels
    shifted = apply(pixels, device_for(2, 5, 1.0, seed=3), 1)
    assert shifted.dtype == pixels.dtype and shifted.shape == shape
    assert (shifted != pixels).mean() > 0.5
    assert (pixels == before).all()


@pytest.mark.parametrize("dtype", list(RANGES))
def test_inversion_is_exact_and_its_own_inverse(dtype: str) -> None:
    pixels = image(dtype)
    inverted = apply(pixels, Device(invert=True), 0)
    assert (inverted.astype(int) == sum(RANGES[dtype]) - pixels.astype(int)).all()
    assert (apply(inverted, Device(invert=True), 0) == pixels).all()


def test_gain_scales_and_saturates() -> None:
    pixels = np.array([[0, 10, 100, 200]], dtype=np.uint8)
    assert apply(pixels, Device(gain=1.5), 0).tolist() == [[0, 15, 150, 255]]


def test_gamma_is_a_power_of_the_range() -> None:
    pixels = np.array([[0, 64, 255]], dtype=np.uint8)
    assert apply(pixels, Device(gamma=2.0), 0).tolist() == [[0, round(64 * 64 / 255), 255]]


@pytest.mark.parametrize("device", [Device(blur_sigma=0.03), Device(resolution=0.4)])
def test_blur_and_coarse_resolution_lose_detail_and_keep_the_mean(device: Device) -> None:
    pixels = image("uint16", (64, 64))
    shifted = apply(pixels, device, 0).astype(float)
    assert np.abs(np.diff(shifted)).mean() < 0.7 * np.abs(np.diff(pixels.astype(float))).mean()
    assert shifted.mean() == pytest.approx(pixels.mean(), rel=0.02)


def test_noise_has_its_sigma_and_its_seed() -> None:
    pixels = np.full((200, 200), 2000, dtype=np.uint16)
    one = apply(pixels, Device(noise_sigma=0.02), 1)
    assert one.astype(float).std() == pytest.approx(0.02 * 4095, rel=0.03)
    assert (one == apply(pixels, Device(noise_sigma=0.02), 1)).all()
    assert (one != apply(pixels, Device(noise_sigma=0.02), 2)).any()


def test_noise_of_a_grey_image_in_three_channels_stays_grey() -> None:
    pixels = np.repeat(image("uint8")[:, :, None], 3, axis=2)
    shifted = apply(pixels, Device(noise_sigma=0.05), 1)
    assert (shifted[..., 0] == shifted[..., 1]).all() and (shifted[..., 0] == shifted[..., 2]).all()


def test_relative_blur_does_not_depend_on_image_size() -> None:
    edge = np.zeros((256, 256), dtype=np.uint8)
    edge[:, 128:] = 255
    large, small = apply(edge, Device(blur_sigma=0.02), 0), apply(edge[::2, ::2], Device(blur_sigma=0.02), 0)
    assert np.abs(large[::2, ::2].astype(int) - small).max() <= 40
    assert 10 <= int(((large[0] > 25) & (large[0] < 230)).sum()) <= 16  # 2 · 1.28 σ, σ = 5.1 pixels


def test_one_pixel_and_float_images() -> None:
    assert apply(np.array([[7]], dtype=np.uint8), Device(blur_sigma=0.01, resolution=0.5), 0).shape == (1, 1)
    with pytest.raises(DataError, match="float64"):
        apply(np.zeros((4, 4)), Device(gain=2.0), 0)
    with pytest.raises(DataError, match=r"\(4, 4, 2\)"):
        apply(np.zeros((4, 4, 2), dtype=np.uint8), Device(gain=2.0), 0)


def test_devices_are_distinct_deterministic_and_follow_the_strength() -> None:
    for strength in (0.2, 0.6, 1.0):
        devices = [device_for(index, 40, strength, seed=1) for index in range(40)]
        assert len(set(devices)) == 40
        assert devices == [device_for(index, 40, strength, seed=1) for index in range(40)]
    assert device_for(3, 40, 0.5, seed=1) != device_for(3, 40, 0.5, seed=2)
    assert all(device_for(index, 4, 0.0, seed=1).identity for index in range(4))
    weak, strong = device_for(1, 4, 0.1, seed=1), device_for(1, 4, 0.7, seed=1)
    assert weak.noise_sigma < strong.noise_sigma and weak.resolution > strong.resolution


@pytest.mark.parametrize(("sites", "expected"), [(1, 0), (2, 1), (4, 1), (8, 2), (100, 25)])
def test_inversion_is_for_some_sites_at_high_strength_only(sites: int, expected: int) -> None:
    for seed in range(3):
        assert sum(device_for(index, sites, 1.0, seed).invert for index in range(sites)) == expected
        assert not any(device_for(index, sites, 0.7, seed).invert for index in range(sites))


def test_description_in_plain_words() -> None:
    assert Device().describe() == "unchanged"
    device = Device(gain=1.12, gamma=0.91, blur_sigma=0.004, noise_sigma=0.021, resolution=0.6, invert=True)
    assert device.describe() == (
        "gain +12%, gamma 0.91, blur 0.40% of the image's size, noise 2.1% of the range, 60% resolution, inverted"
    )


@pytest.mark.parametrize(
    "wrong", [{"gain": 0.0}, {"gamma": -1.0}, {"blur_sigma": -0.1}, {"noise_sigma": 2.0}, {"resolution": 0.0}]
)
def test_impossible_devices_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"device.{next(iter(wrong))} must be"):
        Device(**wrong)  # type: ignore[arg-type]


def test_site_and_strength_are_checked() -> None:
    with pytest.raises(ValueError, match="site_index"):
        device_for(5, 5, 0.5, 0)
    with pytest.raises(ValueError, match="strength"):
        device_for(0, 5, 1.5, 0)
