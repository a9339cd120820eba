"""Laws of the fixed-point sum and of the bound on norms: no order shows, and the mean is the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ReplyRefused
from common.study import FederationSpec
from common.weights import delta_norm
from server.aggregation import FixedPointSum
from server.checks import ReplyChecks
from tests.unit import federation as fed

Array = np.ndarray[Any, Any]
FLOAT32 = np.finfo(np.float32)

moderate = st.floats(-1000.0, 1000.0, width=32)
tiny = st.sampled_from([0.0, -0.0, float(FLOAT32.tiny), float(FLOAT32.smallest_subnormal), 2.0**-33, -(2.0**-32), 1.5])


@st.composite
def sites(draw: st.DrawFn, numbers: st.SearchStrategy[float] = moderate) -> list[tuple[dict[str, Array], int]]:
    """Some sites' weights of one layout (a tensor without a dimension among them), each with its examples."""
    width = draw(st.integers(0, 5))
    count = draw(st.integers(1, 6))

    def one() -> tuple[dict[str, Array], int]:
        arrays = {
            "a": draw(hnp.arrays(np.float32, (2, width), elements=numbers)),
            "b": np.array(draw(numbers), np.float32),
        }
        return arrays, draw(st.integers(1, 10_000))

    return [one() for _ in range(count)]


def summed(replies: list[tuple[dict[str, Array], int]]) -> FixedPointSum:
    total = FixedPointSum(replies[0][0])
    for arrays, examples in replies:
        total.add(arrays, examples)
    return total


def bits(arrays: dict[str, Array]) -> dict[str, tuple[bytes, tuple[int, ...], str]]:
    return {name: (value.tobytes(), value.shape, value.dtype.name) for name, value in arrays.items()}


@given(sites(moderate | tiny), st.randoms(use_true_random=False))
def test_shuffled_arrivals_give_the_same_bits(replies: list[tuple[dict[str, Array], int]], random: Any) -> None:
    shuffled = list(replies)
    random.shuffle(shuffled)
    assert bits(summed(replies).mean()) == bits(summed(shuffled).mean())


@given(sites(moderate | tiny))
def test_the_mean_is_float64s_mean_to_two_to_the_minus_32(replies: list[tuple[dict[str, Array], int]]) -> None:
    examples = [n for _, n in replies]
    for name, found in summed(replies).mean().items():
        stack = np.stack([arrays[name].astype(np.float64) for arrays, _ in replies])
        expected = np.average(stack, axis=0, weights=examples)
        # half a step for each reply, and half a unit in the last place of float32 (a denormal's is 2⁻¹⁴⁹)
        step = 2.0**-33 * len(replies) / sum(examples) + 1e-12
        assert (np.abs(found - expected) <= step + np.abs(expected) * 2.0**-23).all()
        assert found.dtype == np.float32


@given(sites(tiny))
def test_denormals_and_signed_zeros_do_no_harm(replies: list[tuple[dict[str, Array], int]]) -> None:
    for value in summed(replies).mean().values():
        assert np.isfinite(value).all()


@given(
    sites(),
    st.floats(width=32, allow_nan=True, allow_infinity=True).filter(lambda x: not abs(x) < 2.0**20),
    st.integers(2048, 1 << 31),
)
def test_what_would_overflow_is_refused_and_the_sum_is_as_it_was(
    replies: list[tuple[dict[str, Array], int]], value: float, examples: int
) -> None:
    total = summed(replies)
    before = bits(total.mean())
    count = total.examples
    large = {name: array.copy() for name, array in replies[0][0].items()}
    large["b"] = np.array(value, np.float32)
    with pytest.raises(ReplyRefused, match="too large"):
        total.add(large, examples)
    assert (bits(total.mean()), total.examples) == (before, count)
    total.add(*replies[0])
    assert bits(total.mean()) == bits(summed([*replies, replies[0]]).mean())


@given(st.integers(1, 24), st.integers(1, 200), st.booleans())
def test_right_below_the_limit_nothing_wraps(power: int, parts: int, negative: bool) -> None:
    """The largest sums that are taken: the sign and the size are those of exact arithmetic."""
    value = np.float32((-1.0 if negative else 1.0) * 2.0**power * (1 - 2.0**-24))
    total = FixedPointSum({"w": np.zeros(1, np.float32)})
    taken = 0
    examples = max(1, int(2.0**31 / abs(float(value)) / parts))
    for _ in range(parts + 2):
        try:
            total.add({"w": np.array([value])}, examples)
            taken += 1
        except ReplyRefused:
            break
    if taken:
        np.testing.assert_allclose(total.mean()["w"], value, rtol=2e-7)


@given(st.lists(st.floats(1e-6, 5.0), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_the_next_rounds_bound_does_not_depend_on_the_order(lengths: list[float], random: Any) -> None:
    sent = fed.weights(0)

    def bound(order: list[float]) -> tuple[float, list[bool]]:
        checks = ReplyChecks(FederationSpec(first_norm_cap=3.0), fed.PARAMETERS)
        verdicts = {}
        for length in order:
            moved = dict(sent) | {"scale": np.asarray(sent["scale"] + np.float32(length))}
            reply = fed.TrainReply("s", 1, moved, 5, 0.1, 0.1)
            try:
                norm = checks.judge(reply, site="s", round_=1, sent=sent)
                assert norm == delta_norm(moved, sent, fed.PARAMETERS)
                checks.accepted(norm)
                verdicts[length] = True
            except ReplyRefused:
                verdicts[length] = False
        checks.next_round()
        return checks.cap, [verdicts[length] for length in sorted(verdicts)]

    shuffled = list(lengths)
    random.shuffle(shuffled)
    assert bound(lengths) == bound(shuffled)
