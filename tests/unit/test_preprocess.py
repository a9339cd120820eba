"""Preprocessing against references of its own: textbook formulas, SciPy, Pillow."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from common.errors import DataError
from common.preprocess import prepare, prepare_mask
from common.study import Study


def study(size: int = 64, channels: int = 1, **preprocess: Any) -> Study:
    return Study.model_validate(
        {
            "name": "preprocess",
            "task": "binary",
            "classes": ["normal", "pneumonia"],
            "image": {"size": size, "channels": channels},
            "preprocess": preprocess,
        }
    )


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Structure of some six pixels, over the whole range of grey."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 3)
    scaled: NDArray[np.uint8] = ((field - field.min()) / np.ptp(field) * 255).astype(np.uint8)
    return scaled


def dicom_window(value: float, centre: float, width: float) -> float:
    """DICOM PS3.3 C.11.2.1.2.1, word for word, output range 0..255."""
    if value <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if value > centre - 0.5 + (width - 1) / 2:
        return 255.0
    return ((value - (centre - 0.5)) / (width - 1) + 0.5) * 255.0


def equalised(grey: NDArray[np.integer[Any]], levels: int) -> NDArray[np.float64]:
    """The textbook's loop, one level after another; the result spans 0..levels - 1."""
    counts = np.bincount(grey.ravel(), minlength=levels)
    first = counts[int(grey.min())]
    table, running = np.zeros(levels), 0
    for level in range(levels):
        running += int(counts[level])
        table[level] = (running - first) / (grey.size - first) * (levels - 1)
    return table[grey]


def test_an_image_of_the_models_size_passes_unchanged() -> None:
    pixels = noise(64, 64)
    assert (prepare(pixels, study())[0] == pixels).all()
    rgb = noise(64, 64, 3)
    assert (prepare(rgb, study(channels=3)) == rgb.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("centre", "width"), [(40.0, 400.0), (-600.0, 1500.0), (50.0, 2.0), (35.5, 80.25)])
def test_window_is_dicoms(centre: float, width: float) -> None:
    values = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    got = prepare(values, study(window={"centre": centre, "width": width}))[0]
    expected = np.array([dicom_window(float(value), centre, width) for value in values.ravel()]).reshape(64, 64)
    assert np.abs(got - expected).max() <= 0.502


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_a_window_of_width_one_is_a_step(width: float) -> None:
    values = np.repeat(np.arange(36, 44, dtype=np.int16), 8).reshape(8, 8)
    got = prepare(values, study(8, window={"centre": 40, "width": width}))[0]
    assert (got == np.where(values > 39.5, 255, 0)).all()


def test_a_uint16_image_is_windowed_in_stored_values() -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    got = prepare(values, study(window={"centre": 1000, "width": 201}))[0]
    assert got.ravel()[[0, 899, 1100, 4095]].tolist() == [0, 0, 255, 255]
    assert 127 <= got.ravel()[1000] <= 129


@pytest.mark.parametrize(("brightest", "white"), [(100, 255), (255, 255), (3000, 4095), (4095, 4095), (40000, 65535)])
def test_uint16_without_a_window_spans_its_own_bits(brightest: int, white: int) -> None:
    pixels = np.linspace(0, brightest, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels[-1, -1] = brightest
    assert np.abs(prepare(pixels, study())[0] - pixels / white * 255).max() <= 0.51


def test_hounsfield_units_without_a_window_are_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"preprocess\.window"):
        prepare(np.zeros((8, 8), np.int16), study())


def test_a_window_on_grey_levels_is_refused() -> None:
    window = {"centre": 40, "width": 400}
    for pixels in (noise(8, 8), noise(8, 8, 3), np.zeros((8, 8, 3), np.int16), np.zeros((8, 8, 3), np.uint16)):
        with pytest.raises(DataError, match="window"):
            prepare(pixels, study(window=window))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8), np.bool_),
        np.zeros((8, 8), np.int32),
        np.zeros((8,), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
    ],
)
def test_other_types_and_shapes_are_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(DataError, match="images are"):
        prepare(pixels, study())


def test_grey_of_rgb_is_rec_601_as_pillows() -> None:
    rgb = noise(64, 64, 3)
    expected = np.asarray(Image.fromarray(rgb).convert("L")).astype(int)
    assert np.abs(prepare(rgb, study())[0].astype(int) - expected).max() <= 1
    grey = noise(64, 64)
    assert (prepare(np.stack([grey] * 3, axis=-1), study())[0] == grey).all()


def test_grey_in_three_channels_is_repeated_through_every_step() -> None:
    grey = noise(50, 70)
    for equalise in ("none", "histogram", "clahe"):
        settings: dict[str, Any] = {"equalise": equalise, "gaussian_sigma": 0.7, "fit": "pad"}
        one, three = prepare(grey, study(**settings)), prepare(grey, study(channels=3, **settings))
        coloured = prepare(np.stack([grey] * 3, axis=-1), study(channels=3, **settings))
        assert (three == one).all()
        assert (coloured == one).all()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_gaussian_filter_is_scipys_at_the_models_size(sigma: float) -> None:
    pixels = noise(64, 64)
    expected = ndimage.gaussian_filter(pixels.astype(np.float64), sigma, mode="reflect")
    assert np.abs(prepare(pixels, study(gaussian_sigma=sigma))[0] - expected).max() <= 1.0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(224, 224), (300, 401), (641, 512), (32, 40)])
def test_sigma_counts_pixels_of_the_models_input(shape: tuple[int, int], sigma: float) -> None:
    """The cheap filter on a reduced picture against SciPy's on the whole source, then resized."""
    pixels = smooth(*shape)
    scaled = [sigma * side / 64 for side in shape]
    blurred = ndimage.gaussian_filter(pixels.astype(np.float32), scaled, mode="reflect")
    how = cv2.INTER_AREA if shape[0] > 64 else cv2.INTER_LINEAR
    expected = cv2.resize(blurred, (64, 64), interpolation=how)
    difference = np.abs(prepare(pixels, study(gaussian_sigma=sigma))[0] - expected)
    assert difference.max() < 2.6
    assert difference.mean() < 0.5
    unfiltered = np.abs(prepare(pixels, study())[0] - expected)
    assert difference.mean() <= unfiltered.mean()


def test_two_resolutions_of_one_scene_filter_alike() -> None:
    fine = smooth(512, 512)
    coarse = cv2.resize(fine, (128, 128), interpolation=cv2.INTER_AREA)
    settings = study(gaussian_sigma=1.5)
    assert np.abs(prepare(fine, settings)[0].astype(int) - prepare(np.asarray(coarse), settings)[0]).max() <= 3


def test_an_absurd_sigma_gives_the_mean_and_no_giant_kernel() -> None:
    pixels = smooth(100, 60)
    filtered = prepare(pixels, study(gaussian_sigma=1e6))[0]
    assert np.abs(filtered - pixels.mean()).max() < 3


def test_histogram_equalisation_is_the_textbooks_and_near_pillows() -> None:
    pixels = (smooth(64, 64) // 3 + 40).astype(np.uint8)
    got = prepare(pixels, study(equalise="histogram"))[0]
    assert np.abs(got - equalised(pixels, 256)).max() <= 0.51
    from PIL import ImageOps

    pillow = np.asarray(ImageOps.equalize(Image.fromarray(pixels))).astype(int)
    share = np.bincount(pixels.ravel()).max() / pixels.size * 255  # Pillow counts levels below v, we count up to v
    assert np.abs(got - pillow).max() <= share + 2
    assert got.min() == 0
    assert got.max() == 255


def test_histogram_equalisation_of_16_bits_keeps_what_8_bits_would_merge() -> None:
    dim = (smooth(64, 64).astype(np.uint16) + noise(64, 64, seed=1) % 2 * 2) // 2 + 32_768  # 128 of 65,536 levels
    got = prepare(dim, study(equalise="histogram"))[0]
    assert np.abs(got - equalised(dim, 65_536) / 257).max() <= 0.51
    assert len(np.unique(got)) > 60


def test_a_flat_image_survives_equalisation() -> None:
    for equalise in ("histogram", "clahe"):
        for pixels in (np.full((9, 9), 77, np.uint8), np.full((9, 9), 7777, np.uint16)):
            assert len(np.unique(prepare(pixels, study(9, equalise=equalise)))) == 1
    assert (prepare(np.full((9, 9), 77, np.uint8), study(9, equalise="histogram")) == 77).all()


def test_clahe_raises_local_contrast_and_its_clip_bounds_it() -> None:
    pixels = (smooth(224, 224) // 6 + 100).astype(np.uint8)
    flat, mild, strong = (
        float(prepare(pixels, study(224, **settings)).std())
        for settings in ({}, {"equalise": "clahe"}, {"equalise": "clahe", "clahe_clip": 40.0})
    )
    assert flat * 1.2 < mild < strong
    expected = cv2.createCLAHE(2.0, (8, 8)).apply(pixels)
    assert (prepare(pixels, study(224, equalise="clahe"))[0] == expected).all()


def test_clahe_tiles_are_never_smaller_than_a_pixel() -> None:
    assert prepare(noise(3, 2), study(8, equalise="clahe", clahe_tiles=1_000_000)).shape == (1, 8, 8)


def test_equalising_colour_keeps_hue() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[..., 0] = smooth(64, 64) // 4 + 60
    rgb[..., 1] = rgb[..., 2] = rgb[..., 0] - 20
    got = prepare(rgb, study(channels=3, equalise="histogram")).astype(int)
    inner = (got.min(axis=0) > 5) & (got.max(axis=0) < 250)  # where nothing was cut at black or white
    assert np.abs((got[0] - got[1])[inner] - 20).max() <= 4
    assert got[1].std() > rgb[..., 1].std() * 2


SEQUENCES = ["T1", "T2", "diffusion"]


@pytest.mark.parametrize("equalise", ["none", "histogram", "clahe"])
def test_sequences_are_pictures_of_their_own(equalise: str) -> None:
    """Each channel comes out as it would alone, whatever the others are; three colours would share their luma."""
    stacked = np.stack([smooth(48, 64, seed=seed) // (seed + 1) for seed in range(3)], axis=-1)
    settings = {"equalise": equalise, "gaussian_sigma": 1.0, "fit": "pad"}
    made = study(channels=3, **settings)
    got = prepare(stacked, made.derive(**{"image.sequences": SEQUENCES}))
    for channel in range(3):
        alone = prepare(np.ascontiguousarray(stacked[..., channel]), study(**settings))
        assert (got[channel] == alone[0]).all()
    assert (equalise == "none") == bool((prepare(stacked, made) == got).all())


def test_a_single_sequence_is_not_repeated_for_three() -> None:
    with pytest.raises(DataError, match=r"one channel, where the study needs T1, T2, diffusion; .* \(H, W, 3\)"):
        prepare(noise(8, 8), study(channels=3).derive(**{"image.sequences": SEQUENCES}))


def test_shrinking_averages_and_enlarging_interpolates() -> None:
    pixels = noise(128, 192)
    expected = pixels.reshape(64, 2, 64, 3).mean(axis=(1, 3))
    assert np.abs(prepare(pixels, study())[0] - expected).max() <= 0.51
    ramp = np.tile(np.array([0, 200], np.uint8), (2, 1))
    got = prepare(ramp, study(8))[0][0].tolist()
    assert got == [0, 0, 25, 75, 125, 175, 200, 200]


def test_a_side_that_shrinks_is_averaged_though_the_other_grows() -> None:
    pixels = np.repeat(noise(1, 640), 4, axis=0)
    expected = pixels[0].reshape(64, 10).mean(axis=1)
    assert np.abs(prepare(pixels, study())[0] - expected).max() <= 1.01


def test_fit_pad_keeps_the_ratio_and_frames_in_black() -> None:
    got = prepare(np.full((100, 50), 200, np.uint8), study(fit="pad"))[0]
    assert (got[:, 16:48] == 200).all()
    assert got[:, :16].max() == got[:, 48:].max() == 0
    assert prepare(np.full((1, 900), 9, np.uint8), study(fit="pad"))[0].any(axis=1).sum() == 1


def test_fit_crop_keeps_the_central_square() -> None:
    pixels = np.zeros((64, 128), np.uint8)
    pixels[:, 32:96] = noise(64, 64)
    assert (prepare(pixels, study(fit="crop"))[0] == pixels[:, 32:96]).all()


def test_a_mask_lies_over_its_image() -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[30:66, 40:100] = 1
    for fit in ("stretch", "pad", "crop"):
        laid = prepare_mask(mask, study(fit=fit))
        assert laid.shape == (64, 64)
        assert laid.dtype == np.uint8
        drawn = prepare(mask * 255, study(fit=fit))[0] > 127
        assert (laid != drawn).mean() < 0.02
    assert (prepare_mask(noise(64, 64) % 2, study()) == noise(64, 64) % 2).all()


@pytest.mark.parametrize(
    "mask", [np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.int16), np.full((8, 8), 255, "u1")]
)
def test_other_masks_are_refused(mask: NDArray[Any]) -> None:
    with pytest.raises(DataError, match="mask"):
        prepare_mask(mask, study())


def test_steps_run_in_the_studys_order() -> None:
    """Equalising before padding: the frame's black does not shift the picture's histogram."""
    pixels = smooth(64, 32)
    got = prepare(pixels, study(equalise="histogram", fit="pad"))[0][:, 16:48]
    assert (got == cv2.equalizeHist(pixels)).all()


def test_the_result_is_its_own_memory_and_the_source_stays_as_it_is() -> None:
    pixels = noise(64, 64)
    before = pixels.copy()
    prepare(pixels, study())[:] = 0
    prepare_mask(pixels % 2, study())[:] = 0
    for settings in ({"gaussian_sigma": 1.0}, {"equalise": "histogram"}, {"equalise": "clahe"}):
        prepare(pixels, study(**settings))
    assert (pixels == before).all()
    pixels.flags.writeable = False
    assert (prepare(pixels, study(gaussian_sigma=1.0)) > 0).any()


def test_pixels_in_any_memory_order_give_the_same() -> None:
    pixels = noise(90, 70)
    settings = study(gaussian_sigma=0.8, equalise="histogram")
    expected = prepare(pixels, settings)
    assert (prepare(np.asfortranarray(pixels), settings) == expected).all()
    assert (prepare(pixels[::-1, ::-1][::-1, ::-1], settings) == expected).all()


def test_opencv_runs_in_one_thread() -> None:
    assert cv2.getNumThreads() == 1
