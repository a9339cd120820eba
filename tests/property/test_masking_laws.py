"""Laws of secret shares, masks and rows: any enough restore, too few tell nothing, everything cancels but the sum."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import shamir
from common.contribution import RowLayout, clipped
from common.errors import AggregationRefused, ModelError
from common.masking import Pair, agree, derive, mask, seal, unseal
from common.protocol.secure import UnmaskReply
from common.secagg import Bundle, Context, Group, commitment
from common.study_secure import SecureAggregationSpec
from common.weights import delta_norm
from server.aggregation import FixedPointSum
from server.unmasking import Shares
from tests.unit import federation as fed

secrets_ = st.binary(min_size=32, max_size=32)
numbers = hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(-1000.0, 1000.0, width=32))


@given(secrets_, st.integers(1, 6), st.data())
def test_any_enough_shares_restore_the_secret(secret: bytes, threshold: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(1, 1000), min_size=threshold, max_size=9, unique=True))
    shares = shamir.share(secret, threshold, places)
    chosen = data.draw(st.permutations(places))[:threshold]
    assert shamir.restore({place: shares[place] for place in chosen}) == secret


@given(secrets_, secrets_, st.integers(2, 5))
def test_too_few_shares_fit_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    """Shamir's proof, done: with one share less, a last share can be named that makes them any secret."""
    shares = shamir.share(secret, threshold, range(1, threshold + 1))
    known = {place: shares[place] for place in range(1, threshold)}
    # The value at the last place of the only curve through the known shares and ``other`` at 0.
    points = {
        0: int.from_bytes(other, "big"),
        **{place: int.from_bytes(share, "big") for place, share in known.items()},
    }
    value = _interpolated(points, threshold)
    assert shamir.restore({**known, threshold: value.to_bytes(shamir.SHARE_BYTES, "big")}) == other


def _interpolated(points: dict[int, int], at: int) -> int:
    """The reference: Lagrange's formula as in the textbook."""
    total = 0
    for x, y in points.items():
        factors = [((at - other), (x - other)) for other in points if other != x]
        above = below = 1
        for top, bottom in factors:
            above, below = above * top % shamir.PRIME, below * bottom % shamir.PRIME
        total += y * above * pow(below, -1, shamir.PRIME)
    return total % shamir.PRIME


def test_the_prime_is_one_and_shares_are_spread_over_it() -> None:
    for base in (2, 3, 5, 7, 11, 13):
        assert pow(base, shamir.PRIME - 1, shamir.PRIME) == 1
    # The first share of one secret, many times: its leading byte takes all values alike (chi-square, 255 degrees).
    firsts = [shamir.share(bytes(32), 2, (1, 2))[1][1] for _ in range(4096)]
    counts = np.bincount(firsts, minlength=256)
    assert ((counts - 16) ** 2 / 16).sum() < 400  # p < 1e-8


def test_a_stream_is_chacha20_and_taking_it_off_is_the_inverse() -> None:
    key = derive(os.urandom(32), b"test")
    size = (1 << 19) + 77  # more than one piece
    expected = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * size))
    row = np.zeros(size, np.uint64)
    mask(row, key)
    assert row.tobytes() == expected
    before = np.arange(size, dtype=np.uint64)
    after = before.copy()
    mask(after, key)
    mask(after, key, subtract=True)
    np.testing.assert_array_equal(after, before)


def test_keys_are_agreed_on_and_bound_to_what_they_are_for() -> None:
    one, two = Pair.generate(), Pair.generate()
    key = agree(one.private, two.public, b"a")
    assert key == agree(two.private, one.public, b"a") != agree(one.private, two.public, b"b")
    sealed = seal(key, b"share")
    assert unseal(key, sealed) == b"share"
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), seal(derive(key, b"other"), b"share"), b""):
        with pytest.raises(AggregationRefused):
            unseal(key, wrong)
    with pytest.raises(AggregationRefused, match="no secret"):
        agree(one.private, bytes(32), b"a")


class Party:
    """A site's secrets in one attempt."""

    def __init__(self, name: str) -> None:
        self.name, self.mask, self.seed = name, Pair.generate(), os.urandom(32)
        self.bundle = Bundle(name, self.mask.public, Pair.generate().public, commitment(self.seed), b"")

    def masked(self, row: Any, group: Group, parties: list[str]) -> Any:
        row = row.copy()
        mask(row, derive(self.seed, group.mask_info(parties, self.name)))
        for peer in group.neighbours(self.name) & set(parties):
            key = agree(self.mask.private, group.bundles[peer].mask, group.mask_info(parties, self.name, peer))
            mask(row, key, subtract=peer < self.name)
        return row

    def dealt(self, group: Group, survives: bool) -> dict[str, bytes]:
        """Holder -> its share of what of this site is to be restored."""
        places, secret = group.places(self.name), self.seed if survives else self.mask.private
        shares = shamir.share(secret, group.shares_needed(self.name), places.values())
        return {holder: shares[place] for holder, place in places.items()}


def context(**changes: Any) -> Context:
    return Context(**{"study": "s", "arm": "federated", "repeat": 0, "round": 1, "attempt": "a" * 32, "roster": "r",
                      "weights": "w", **changes})  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 12), st.sampled_from([None, 4, 6]), st.data())
def test_masks_cancel_for_any_graph_order_and_survivors(count: int, near: int | None, data: st.DataObject) -> None:
    parties = {f"site-{number}": Party(f"site-{number}") for number in range(count)}
    spec = SecureAggregationSpec(neighbours=near)
    group = Group.of(context(), spec, [party.bundle for party in parties.values()], count)
    names = sorted(parties)
    joined = sorted(data.draw(st.permutations(names))[: data.draw(st.integers(max(3, group.needed), count))])
    survivors = sorted(data.draw(st.permutations(joined))[: data.draw(st.integers(group.needed, len(joined)))])
    rows = {name: np.frombuffer(os.urandom(40), np.uint64) for name in survivors}
    total = np.zeros(5, np.uint64)
    for name in data.draw(st.permutations(survivors)):
        total += parties[name].masked(rows[name], group, joined)
    shares = Shares(group, joined, survivors)
    dealt = {name: party.dealt(group, name in survivors) for name, party in parties.items()}
    for holder in survivors:
        near_by = group.neighbours(holder) | {holder}
        seeds, keys = (
            {name: dealt[name][holder] for name in near_by & those}
            for those in (set(survivors), set(joined) - set(survivors))
        )
        shares.add(UnmaskReply(holder, seeds, keys))
    if not shares.restored or not group.connected(survivors):
        assert near is not None, "a complete graph restores whatever the threshold allows"
        return
    shares.unmask(total)
    np.testing.assert_array_equal(total, sum(rows.values(), np.zeros(5, np.uint64)))


def test_sites_that_were_told_different_things_get_noise() -> None:
    """Other weights to one of three sites (arXiv:2111.07380): its masks cancel with nobody's, and all is uniform."""
    parties = {name: Party(name) for name in ("a", "b", "c")}
    groups = {
        name: Group.of(context(weights=told), SecureAggregationSpec(), [p.bundle for p in parties.values()], 3)
        for name, told in (("a", "w"), ("b", "w"), ("c", "another"))
    }
    size = 1 << 16

    def unmasked(those: dict[str, Group]) -> Any:
        total = np.zeros(size, np.uint64)
        for name, party in parties.items():
            total += party.masked(np.zeros(size, np.uint64), those[name], list(parties))
            mask(total, derive(party.seed, those[name].mask_info(list(parties), name)), subtract=True)
        return total

    assert not unmasked(dict.fromkeys(parties, groups["a"])).any(), "told the same, all masks cancel"
    assert uniform(unmasked(groups))


def uniform(row: Any) -> bool:
    """Whether all bytes are as frequent as those of noise: chi-square with 255 degrees below 400, p > 1e-8."""
    counts = np.bincount(row.view(np.uint8), minlength=256)
    expected = row.nbytes / 256
    return bool(((counts - expected) ** 2 / expected).sum() < 400)


@given(st.lists(st.tuples(numbers, st.integers(1, 5000), st.floats(0, 50)), min_size=1, max_size=6))
def test_rows_sum_to_the_plain_sum_bit_for_bit(sites: list[tuple[Any, int, float]]) -> None:
    width = min(values.size for values, _, _ in sites)
    template = {"w": np.zeros(width, np.float32), "b": np.zeros((), np.float32)}
    layout, plain = RowLayout.of(template, with_loss=True), FixedPointSum(template)
    total = np.zeros(layout.length, np.uint64)
    for values, examples, loss in sites:
        weights = {"w": values[:width], "b": np.array(values[0])}
        total += layout.write(weights, examples, loss, sites=len(sites))
        plain.add(weights, examples)
    found = layout.read(total)
    summed = FixedPointSum(template)
    summed.add_sum(found.arrays, found.examples)
    assert {n: a.tobytes() for n, a in summed.mean().items()} == {n: a.tobytes() for n, a in plain.mean().items()}
    examples = sum(n for _, n, _ in sites)
    assert found.examples == examples
    assert found.loss is not None
    assert abs(found.loss - sum(n * loss for _, n, loss in sites) / examples) <= 2.0**-33 * len(sites) + 1e-12


@given(st.integers(1, 1 << 31), st.floats(allow_nan=True, allow_infinity=True, width=32), st.integers(2, 1000))
@example(1000, 1.5e6, 5)  # one such row would do, five would not
@example(1000, -1.5e6, 2)
@example(1000, 4.0e5, 5)
def test_what_could_overflow_is_not_masked(examples: int, value: float, sites: int) -> None:
    layout = RowLayout.of({"w": np.zeros(1, np.float32)}, with_loss=False)
    weights = {"w": np.array([value], np.float32)}
    if abs(value) * examples * sites < 2**31 - 1 and examples < 1 << 31:
        row = layout.write(weights, examples, None, sites=sites)
        total = layout.read(np.uint64(sites) * row)  # as many such sites: the sum is what it should be
        np.testing.assert_allclose(
            total.arrays["w"] / 2.0**32, sites * examples * value, rtol=1e-6, atol=sites * 2.0**-33
        )
    else:
        with pytest.raises(ModelError, match="too large"):
            layout.write(weights, examples, None, sites=sites)


def test_a_model_that_counts_is_refused() -> None:
    with pytest.raises(ModelError, match="num_batches_tracked"):
        RowLayout.of(fed.weights(0), with_loss=True)


@given(st.integers(0, 1000), st.floats(0.01, 10.0))
def test_a_clipped_update_is_within_the_bound_and_points_the_same_way(seed: int, most: float) -> None:
    before, after = fed.weights(seed), fed.weights(seed + 1)
    found = clipped(after, before, fed.PARAMETERS, most)
    norm = delta_norm(after, before, fed.PARAMETERS)
    if norm <= most:
        assert found is after
        return
    assert delta_norm(found, before, fed.PARAMETERS) <= most * (1 + 1e-4) + 1e-5
    for name in fed.PARAMETERS:
        np.testing.assert_allclose(
            found[name] - before[name], (after[name] - before[name]) * (most / norm), rtol=1e-3, atol=1e-5
        )
    assert all(found[name] is after[name] for name in fed.BUFFERS)


def test_every_key_is_for_one_thing() -> None:
    """What keys are derived for names the attempt in full, who and whom, and among whom: no two are the same."""
    bundles = [Party(name).bundle for name in ("a", "b", "c", "d")]
    spec = SecureAggregationSpec()
    group = Group.of(context(), spec, bundles, 4)
    others = [
        Group.of(context(**{field: value}), spec, bundles, 4)
        for field, value in {
            "study": "x",
            "arm": "x",
            "repeat": 1,
            "round": 2,
            "attempt": "b" * 32,
            "roster": "x",
            "weights": "x",
        }.items()
    ]
    others.append(Group.of(context(), spec, [Party("a").bundle, *bundles[1:]], 4))
    others.append(Group.of(context(), spec, bundles[:3], 3))
    infos = [group.share_info("a", "b"), group.share_info("b", "a"), group.mask_info("abc", "a"),
             group.mask_info("abc", "a", "b"), group.mask_info("abcd", "a", "b"), group.mask_info("abc", "a", "c"),
             group.statement("abcd", "abc"), group.statement("abc", "abc"), group.statement("abcd", "abd")]  # fmt: skip
    for other in others:
        infos += [
            other.share_info("a", "b"),
            other.mask_info("abc", "a"),
            other.mask_info("abc", "a", "b"),
            other.statement("abcd", "abc"),
        ]
    assert len(set(infos)) == len(infos)
    assert group.mask_info("cba", "b", "a") == group.mask_info("abc", "a", "b"), "both of a pair derive the same"


@given(st.integers(3, 60), st.floats(0.51, 1.0) | st.integers(2, 40) | st.none())
def test_two_lists_with_enough_signatures_share_an_honest_signer(roster: int, threshold: float | int | None) -> None:
    """However many the coordinator lets begin, and with as many conspirators as are said to do no harm."""
    spec = SecureAggregationSpec(threshold=threshold)
    bad = spec.colluders(roster)
    for present in spec.sums(roster):
        needed = spec.needed(roster, present)
        assert needed <= present
        assert 2 * needed > present, "without conspirators two lists always have a signer in common"
        if bad:
            assert 2 * (needed - bad) > present - bad, "of the honest ones one has signed both"
            assert needed - bad >= 2, "a sum of fewer would be one site's"
