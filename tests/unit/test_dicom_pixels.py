"""From stored values to pictures: rescale, windows, inversion, padding, colours, spacing, size."""

from __future__ import annotations

import io
import time
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from client.ingest import dicom_luts, pixels
from client.ingest.dicom_tags import Tags
from client.ingest.kinds import Rules
from common.randomness import generator
from tests.unit.dicom_objects import CR, CT, code_of, content, dataset, decoded, item, pixels_of, real

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's
        yield


def scaled(values: NDArray[Any], low: float, high: float, white: int) -> NDArray[Any]:
    return np.rint((values.astype(np.float64) - low) / (high - low) * white)


# --- windows and lookup tables, against pydicom ------------------------------------------------------


@pytest.mark.parametrize("function", ["", "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048.0, 4096.0), (1000.0, 333.0), (-50.5, 900.0), (700.0, 1.0)])
@pytest.mark.parametrize("rescale", [None, (2.5, -300.0)])
def test_windows_are_pydicoms_over_the_whole_range(
    function: str, centre: float, width: float, rescale: tuple[float, float] | None
) -> None:
    tags: dict[str, Any] = {"WindowCenter": centre, "WindowWidth": width, "BitsStored": 12}
    if function:
        tags["VOILUTFunction"] = function
    low, high = 0.0, 4095.0
    if rescale:
        tags |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
        low, high = rescale[1], 4095.0 * rescale[0] + rescale[1]
    made = dataset(RAMP, **tags)
    expected = scaled(apply_voi_lut(apply_modality_lut(RAMP, made), made), low, high, 65535)
    found = pixels_of(made)
    assert found.dtype == np.uint16
    assert np.abs(found - expected).max() <= 1  # rounding of their other order of operations
    (inverted,) = decoded(dataset(RAMP, PhotometricInterpretation="MONOCHROME1", **tags)).pictures
    assert np.abs(65535 - inverted.pixels.astype(np.int64) - found).max() <= 1


def test_of_several_windows_the_first_counts() -> None:
    one = pixels_of(dataset(RAMP, WindowCenter=[1000, 40], WindowWidth=[500, 80]))
    np.testing.assert_array_equal(one, pixels_of(dataset(RAMP, WindowCenter=1000, WindowWidth=500)))


def test_eight_bits_stay_eight_bits() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(pixels_of(dataset(grey)), grey)
    assert pixels_of(dataset(grey, WindowCenter=100, WindowWidth=50)).dtype == np.uint8
    np.testing.assert_array_equal(pixels_of(dataset(grey, PhotometricInterpretation="MONOCHROME1")), 255 - grey)


@pytest.mark.parametrize(("name", "window"), [("RG3_UNCR.dcm", True), ("MR2_UNCR.dcm", True), ("MR_small.dcm", True)])
def test_real_windows_are_pydicoms(name: str, window: bool) -> None:
    made = pydicom.dcmread(real(name))
    stored = made.pixel_array
    values = apply_voi_lut(apply_modality_lut(stored, made), made).astype(np.float64)
    ends = np.array([0, (1 << made.BitsStored) - 1]) - (1 << made.BitsStored - 1) * made.PixelRepresentation
    low, high = (float(end) * made.get("RescaleSlope", 1) + made.get("RescaleIntercept", 0) for end in ends)
    expected = scaled(values, low, high, 65535)
    if made.PhotometricInterpretation == "MONOCHROME1":
        expected = 65535 - expected
    (picture,) = decoded(made).pictures
    assert np.abs(picture.pixels - expected).max() <= 1


def test_a_real_voi_lut_is_pydicoms() -> None:
    made = pydicom.dcmread(real("vlut_04.dcm"))
    stored = made.pixel_array
    table = made.VOILUTSequence[0]
    white = (1 << table.LUTDescriptor[2]) - 1
    expected = scaled(apply_voi_lut(stored, made), 0, white, 255)
    found = pixels.picture(stored, made, Tags(made), hounsfield=False)
    np.testing.assert_array_equal(found, 255 - expected if "1" in made.PhotometricInterpretation else expected)


def test_a_real_modality_lut_is_pydicoms() -> None:
    made = pydicom.dcmread(real("mlut_18.dcm"))
    stored = made.pixel_array
    values = dicom_luts.modality_values(Tags(made), dicom_luts.stored_values(stored.dtype))
    np.testing.assert_array_equal(values[stored.view(np.uint16)], apply_modality_lut(stored, made))
    assert pixels.picture(stored, made, Tags(made), hounsfield=False).max() <= 65535


def test_per_frame_values_of_an_enhanced_object_are_each_frames_own() -> None:
    stored = np.stack([RAMP, RAMP])
    groups = [
        item(FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=200)], PlanePositionSequence=[item()])
        for centre in (500, 3000)
    ]
    made = dataset(stored, BitsStored=12, PerFrameFunctionalGroupsSequence=groups)
    made.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[item(SliceThickness=3.5)])]
    first, second = decoded(made).pictures
    assert (first.pixels[16, 0] > 65000, second.pixels[16, 0]) == (True, 0)  # the value 1024
    assert first.attributes["slice_thickness_mm"] == second.attributes["slice_thickness_mm"] == "3.5"
    assert [picture.attributes["frame"] for picture in (first, second)] == ["0", "1"]


# --- without a window -------------------------------------------------------------------------------


def test_without_a_window_stored_values_stay() -> None:
    np.testing.assert_array_equal(pixels_of(dataset(RAMP, BitsStored=12)), RAMP)
    np.testing.assert_array_equal(
        pixels_of(dataset(RAMP, BitsStored=12, PhotometricInterpretation="MONOCHROME1")), 4095 - RAMP
    )
    np.testing.assert_array_equal(
        pixels_of(dataset(RAMP, BitsStored=12, RescaleSlope=-1.0, RescaleIntercept=4095)), 4095 - RAMP
    )


def test_negative_values_are_shifted_to_begin_at_nought() -> None:
    signed = RAMP.astype(np.int16) - 1000
    np.testing.assert_array_equal(pixels_of(dataset(signed)), RAMP)
    np.testing.assert_array_equal(pixels_of(dataset(signed + 1000)), RAMP)


def test_padding_is_black_and_does_not_count() -> None:
    signed = RAMP.astype(np.int16) - 1000
    signed[0, :5] = -2000
    found = pixels_of(dataset(signed, PixelPaddingValue=-2000))
    assert (found[0, :5] == 0).all()
    assert found[1, 0] == 64 - 5 and found.max() == 4095 - 5  # the least of what is left is now 0
    stored = RAMP.copy()
    stored[0] = 4095
    white = dataset(stored, PhotometricInterpretation="MONOCHROME2", BitsStored=12, PixelPaddingValue=4000)
    white.PixelPaddingRangeLimit = 4095
    found = pixels_of(white)
    assert (found[stored >= 4000] == 0).all() and (found[stored < 4000] == stored[stored < 4000]).all()
    windowed = dataset(stored, PixelPaddingValue=4095, WindowCenter=2000, WindowWidth=4000, BitsStored=12)
    assert (pixels_of(windowed)[0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(9, 16),
    signed=st.booleans(),
    inverted=st.booleans(),
    window=st.none() | st.tuples(st.floats(-5e4, 5e4), st.floats(1.0, 1e5)),
    rescale=st.none() | st.tuples(st.floats(0.01, 50.0), st.floats(-1e4, 1e4)),
)
def test_brighter_stays_brighter(
    bits: int,
    signed: bool,
    inverted: bool,
    window: tuple[float, float] | None,
    rescale: tuple[float, float] | None,
) -> None:
    least = -(1 << bits - 1) if signed else 0
    stored = np.linspace(least, least + (1 << bits) - 1, 256).astype(np.int16 if signed else np.uint16).reshape(16, 16)
    tags: dict[str, Any] = {"BitsStored": bits}
    if window:
        tags |= {"WindowCenter": f"{window[0]:.6g}", "WindowWidth": f"{window[1]:.6g}"}
    if rescale:
        tags |= {"RescaleSlope": f"{rescale[0]:.6g}", "RescaleIntercept": f"{rescale[1]:.6g}"}
    found = pixels_of(dataset(stored, PhotometricInterpretation=f"MONOCHROME{1 if inverted else 2}", **tags))
    steps = np.diff(found.ravel().astype(np.int64))
    assert (steps <= 0 if inverted else steps >= 0).all()
    assert found.dtype == np.uint16


# --- CT -----------------------------------------------------------------------------------------------


def ct(stored: NDArray[Any], **tags: Any) -> Any:
    return dataset(stored, "CT", CT, **({"RescaleSlope": 1, "RescaleIntercept": -1024} | tags))


def test_ct_becomes_hounsfield_units_whatever_its_window() -> None:
    found = pixels_of(ct(RAMP, WindowCenter=40, WindowWidth=80))
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, RAMP.astype(np.int16) - 1024)


def test_real_ct_is_pydicoms() -> None:
    made = pydicom.dcmread(real("CT_small.dcm"))
    expected = apply_modality_lut(made.pixel_array, made)
    np.testing.assert_array_equal(pixels_of(made), np.where(made.pixel_array == -2000, -1024, expected))


def test_ct_padding_is_air() -> None:
    stored = RAMP.astype(np.int16)
    stored[0] = -2000
    for padding in (-2000, 63536):  # written as signed, or as unsigned
        made = ct(stored)
        made.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
        found = pixels_of(made)
        assert (found[0] == -1024).all() and (found[1:] == stored[1:] - 1024).all()


def test_ct_that_is_not_in_hounsfield_units() -> None:
    bare = ct(RAMP)
    del bare.RescaleSlope, bare.RescaleIntercept
    assert code_of(bare) == "ct-without-rescale"
    assert code_of(ct(RAMP, RescaleSlope=50)) == "beyond-hounsfield"
    assert pixels_of(ct(RAMP, RescaleType="Z_EFF")).dtype == np.uint16  # a map derived from CT
    assert decoded(ct(RAMP, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])).pictures[0].attributes["sequence"] == (
        "LOCALISER"
    )


def test_only_values_that_occur_make_a_ct_impossible() -> None:
    np.testing.assert_array_equal(pixels_of(ct(RAMP, RescaleSlope=8)), RAMP.astype(np.int64) * 8 - 1024)


# --- colour -------------------------------------------------------------------------------------------


def colour() -> NDArray[np.uint8]:
    return generator("dicom colour").integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_colour_is_rgb_of_eight_bits_and_grey_where_it_is_grey() -> None:
    np.testing.assert_array_equal(pixels_of(dataset(colour())), colour())
    wide = colour().astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels_of(dataset(wide)), colour())
    planar = dataset(colour(), PlanarConfiguration=1)
    planar.PixelData = colour().transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(pixels_of(planar), colour())
    grey = np.repeat(colour()[..., :1], 3, axis=2)
    np.testing.assert_array_equal(pixels_of(dataset(grey)), grey[..., 0])
    last = grey.copy()
    last[39, 29, 2] ^= 1
    np.testing.assert_array_equal(pixels_of(dataset(last)), last)


def test_palettes_are_pydicoms_in_either_byte_order() -> None:
    found = {}
    names = ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm", "gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm")
    for name in (*names, "examples_palette.dcm", "OT-PAL-8-face.dcm"):
        made = pydicom.dcmread(real(name), force=True)
        made.BurnedInAnnotation = "NO"
        if "TransferSyntaxUID" not in made.file_meta:
            made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        stored = np.asarray(made.pixel_array, dtype=made.pixel_array.dtype.newbyteorder("="))
        found[name] = pixels.picture(stored, made, Tags(made), hounsfield=False)
        if made.original_encoding[1]:
            expected = pydicom.pixels.apply_color_lut(stored, made)
            np.testing.assert_array_equal(found[name], expected >> 8 if expected.dtype == np.uint16 else expected)
    np.testing.assert_array_equal(found[names[0]], found[names[1]])
    np.testing.assert_array_equal(found[names[2]], found[names[3]])


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"PhotometricInterpretation": "CMYK"}, "unsupported-colours"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported-colours"),
        ({"PhotometricInterpretation": ""}, "unsupported-colours"),
        ({"PixelPresentation": "COLOR"}, "unsupported-colours"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "bad-pixel-tags"),
        ({"WindowCenter": 10, "WindowWidth": 0.5}, "bad-pixel-tags"),
        ({"WindowCenter": 10}, "bad-pixel-tags"),
        ({"WindowCenter": 10, "WindowWidth": 20, "VOILUTFunction": "CUBIC"}, "bad-pixel-tags"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0, "WindowCenter": 1, "WindowWidth": 2}, "bad-pixel-tags"),
        ({"RescaleSlope": 2}, "bad-pixel-tags"),
        ({"BitsStored": 11}, "bits-mismatch"),
    ],
)
def test_what_cannot_be_followed_is_refused(tags: dict[str, Any], code: str) -> None:
    made = dataset(RAMP, **tags)
    if tags.get("BitsStored") == 11:  # pydicom itself masks uncompressed pixels
        with pytest.raises(Exception, match="bits-mismatch"):
            pixels.picture(RAMP, made, Tags(made), hounsfield=False)
    else:
        assert code_of(made) == code


@pytest.mark.parametrize(
    ("descriptor", "entries"),
    [([100, 0, 16], 99), ([0, 0, 16], 100), ([100, 0, 7], 100), ([100, 0, 17], 100), ([100, 0], 100), ([1, 0, 16], 0)],
)
@pytest.mark.parametrize("kind", ["ModalityLUTSequence", "VOILUTSequence"])
def test_a_table_that_lies_is_refused(descriptor: list[int], entries: int, kind: str) -> None:
    table = item(LUTDescriptor=descriptor)
    table.add_new("LUTData", "OW", np.arange(entries, dtype=np.uint16).tobytes())
    made = dataset(RAMP, **{kind: [table]})
    assert code_of(made) == "bad-pixel-tags"


@pytest.mark.parametrize("written", ["US", "SS"])
@pytest.mark.parametrize("kind", ["ModalityLUTSequence", "VOILUTSequence"])
def test_the_first_value_of_a_table_is_signed_where_the_pixels_are(written: str, kind: str) -> None:
    stored = np.arange(-128, 128, dtype=np.int16).reshape(16, 16)
    table = item()
    first = -128 if written == "SS" else 65536 - 128
    table.add_new("LUTDescriptor", written, [256, first, 16])
    table.add_new("LUTData", "OW", (np.arange(256, dtype=np.uint16) * 257).tobytes())
    expected = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    np.testing.assert_array_equal(pixels_of(dataset(stored, **{kind: [table]})), expected)


# --- spacing and size ---------------------------------------------------------------------------------


def test_pixels_become_square_and_the_scale_says_how() -> None:
    (picture,) = decoded(dataset(RAMP, PixelSpacing=[0.5, 0.25])).pictures
    assert (picture.pixels.shape, picture.scale) == ((128, 64), (2.0, 1.0))
    assert picture.attributes["pixel_spacing_mm"] == "0.25/0.25"
    (picture,) = decoded(dataset(RAMP, PixelAspectRatio=[1, 2])).pictures
    assert (picture.pixels.shape, picture.scale) == ((64, 128), (1.0, 2.0))
    assert "pixel_spacing_mm" not in picture.attributes
    (picture,) = decoded(dataset(RAMP, PixelSpacing=[0.5, 0.499])).pictures
    assert (picture.pixels.shape, picture.scale) == ((64, 64), (1.0, 1.0))
    assert code_of(dataset(RAMP, PixelSpacing=[9.0, 1.0])) == "odd-pixel-shape"
    assert code_of(dataset(RAMP, PixelSpacing=[4.0, 1.0]), largest_pixels=8192) == "odd-pixel-shape"
    for nonsense in ([0.0, 1.0], [-1.0, 1.0]):
        assert decoded(dataset(RAMP, PixelSpacing=nonsense)).pictures[0].scale == (1.0, 1.0)


def test_longest_side_shrinks_and_never_enlarges() -> None:
    wide = np.repeat(RAMP, 2, axis=1)
    (picture,) = decoded(dataset(wide, ImagerPixelSpacing=[0.1, 0.1]), longest_side=32).pictures
    assert (picture.pixels.shape, picture.scale) == ((16, 32), (0.25, 0.25))
    assert picture.attributes["pixel_spacing_mm"] == "0.4/0.4"
    assert decoded(dataset(wide), longest_side=512).pictures[0].pixels.shape == (64, 128)
    (picture,) = decoded(dataset(RAMP, PixelSpacing=[0.5, 0.25]), longest_side=64).pictures
    assert (picture.pixels.shape, picture.scale) == ((64, 32), (1.0, 0.5))
    (picture,) = decoded(dataset(RAMP, "CT", CT, RescaleSlope=1, RescaleIntercept=-2000), longest_side=32).pictures
    assert picture.pixels.dtype == np.int16 and picture.pixels.min() < -1900


@pytest.mark.parametrize(("frames", "numbers"), [("all", [0, 1, 2, 3]), ("first", [0]), ("middle", [2])])
def test_frames(frames: str, numbers: list[int]) -> None:
    stack = np.stack([np.full((8, 8), value, dtype=np.uint8) for value in (10, 20, 30, 40)])
    pictures = decoded(dataset(stack), frames=frames).pictures
    assert [picture.number for picture in pictures] == numbers
    assert [int(picture.pixels[0, 0]) for picture in pictures] == [10 * number + 10 for number in numbers]


def test_an_uncompressed_radiograph_costs_little_more_than_its_parts() -> None:
    """Generous, for busy machines: decoding, one table look-up and the text detector, no float64 a pixel."""
    from client.ingest import dicom
    from client.ingest.text_in_pixels import detect

    stored = generator("dicom speed").integers(0, 4096, (2500, 2048), dtype=np.uint16)
    source = content(dataset(stored, "CR", CR, BitsStored=12, WindowCenter=2000, WindowWidth=3000))
    table = np.arange(65536, dtype=np.uint16)

    def best(action: Any) -> float:
        def once() -> float:
            start = time.perf_counter()
            action()
            return time.perf_counter() - start

        return min(once() for _ in range(5))

    parts = best(lambda: (np.take(table, pydicom.dcmread(io.BytesIO(source)).pixel_array), detect(stored)))
    assert best(lambda: dicom.read(source, Rules())) < 2.5 * parts + 0.01
