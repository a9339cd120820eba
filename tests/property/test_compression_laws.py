"""Laws of compressed updates: how far off one is, and that what rounding leaves out is never lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from common.compression import Compression, Update, compress, decompress
from common.errors import ModelError
from tests.unit import federation as fed

SCALES = (1e-30, 1e-6, 1.0, 1e4)
updates = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), elements=st.floats(-1, 1, width=32)
)


def told(form: Compression, value: Any, residual: Any = None) -> tuple[Update, Any, Any]:
    """The update of one array from zero, what it is read as, and what it leaves out."""
    zero = {"w": np.zeros(value.shape, np.float32)}
    update, left = compress(form, {"w": value}, zero, ["w"], {} if residual is None else {"w": residual})
    return update, decompress(form, update, zero, ["w"])["w"], left["w"]


@given(updates, st.sampled_from(SCALES))
def test_eight_bits_are_off_by_at_most_half_a_step(value: Any, size: float) -> None:
    value = np.asarray(value * np.float32(size))
    update, read, left = told("int8", value)
    step = float(np.max(np.abs(value), initial=0.0)) / 127
    assert np.all(np.abs(read.astype(float) - value) <= step * 0.5001 + 127 * np.finfo(np.float32).tiny)
    assert update.arrays["w"].dtype == np.int8
    assert np.array_equal(read + left, value) or np.allclose(read.astype(float) + left, value, rtol=1e-6, atol=0)


@given(updates, st.sampled_from(SCALES))
def test_sixteen_bits_are_off_by_2_to_the_minus_11_of_each_number(value: Any, size: float) -> None:
    value = np.asarray(value * np.float32(size))
    _, read, _ = told("fp16", value)
    assert np.all(np.abs(read.astype(float) - value) <= np.maximum(np.abs(value.astype(float)) * 2.0**-11, 2.0**-25))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_with_feedback_the_sum_sent_is_one_rounding_from_the_sum_meant(seed: int, rounds: int) -> None:
    random = np.random.default_rng(seed)
    sent, meant, residual, step = np.zeros(50), np.zeros(50), None, 0.0
    for _ in range(rounds):
        value = (random.normal(size=50) * random.choice([0.01, 1.0])).astype(np.float32)
        update, read, residual = told("int8", value, residual)
        sent, meant, step = sent + read, meant + value, float(update.scales[0])
    assert np.all(np.abs(sent - meant) <= 0.5001 * step + 1e-6 * rounds)


def test_without_feedback_it_drifts() -> None:
    value = np.array([1.0, 0.003], np.float32)  # less than half a step beside 1
    residual, sent, alone = None, 0.0, 0.0
    for _ in range(100):
        _, read, residual = told("int8", value, residual)
        sent, alone = sent + float(read[1]), alone + float(told("int8", value)[1][1])
    assert alone == 0.0
    assert sent == pytest.approx(0.3, abs=0.5 / 127)


@given(st.sampled_from(["fp16", "int8"]), st.integers(0, 99))
def test_buffers_and_counters_travel_as_they_are_and_equal_fits_give_equal_bytes(form: Compression, seed: int) -> None:
    received = fed.weights(seed)
    after = fed.weights(seed + 1, 0.1, around=received)
    update, _ = compress(form, after, received, fed.PARAMETERS, {})
    again, _ = compress(form, after, received, fed.PARAMETERS, {})
    assert all(update.arrays[name].tobytes() == again.arrays[name].tobytes() for name in after)
    assert update.scales.tobytes() == again.scales.tobytes()
    read = decompress(form, update, received, fed.PARAMETERS)
    assert list(read) == list(received)
    for name in (*fed.BUFFERS, fed.COUNTER):
        assert np.array_equal(read[name], after[name])
    for name in fed.PARAMETERS:
        assert (read[name].dtype, read[name].shape) == (np.float32, after[name].shape)


@pytest.mark.parametrize("form", ["fp16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_sent(form: Compression, value: float) -> None:
    with pytest.raises(ModelError, match="changed it by too much"):
        told(form, np.array([1.0, value], np.float32))


def test_what_is_too_large_for_half_precision_is_not_cut() -> None:
    with pytest.raises(ModelError, match="fp16"):
        told("fp16", np.array([1e5], np.float32))
