"""A coordinator that lies to sites which sum under masks: the sites' own code, and whatever it is sent.

Nothing that tells of one site may leave: no share before enough sites have signed the same survivors, never both shares
of one site, one set of survivors for each round, for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.secagg import SecureSums
from common import protocol
from common.contribution import RowLayout
from common.errors import AggregationRefused, AttemptOver, RoundReleased
from common.identity import SiteKey
from common.masking import Pair
from common.protocol import secure
from common.secagg import Bundle, Context, Group, incoming
from common.study_secure import SecureAggregationSpec
from tests.unit.secure_fixtures import KEYS, NAMES, ROSTER, SENT, Sites, study, update

STUDY = study()
OTHER = {name: np.asarray(array + np.float32(1)) for name, array in SENT.items()}


class Attempt:
    """A coordinator at work by hand, phase by phase; each phase may be played falsely."""

    def __init__(self, sites: Sites, *, round_: int = 1, weights: Any = SENT, attempt: str | None = None) -> None:
        self.sites, self.weights = sites, weights
        self.task = protocol.Task(STUDY, round=round_, roster=ROSTER)
        self.id = attempt or os.urandom(16).hex()
        self.context = Context(STUDY.hash, "federated", 0, round_, self.id, ROSTER, incoming(weights, None))
        self.bundles: dict[str, Bundle] = {}
        self.envelopes: dict[str, Any] = {}
        self.rows: dict[str, Any] = {}
        self.signatures: dict[str, bytes] = {}

    def of(self, name: str) -> SecureSums:
        return self.sites.sums[name]

    def keys(self) -> Attempt:
        request = secure.KeysRequest(self.task, self.id, self.context.weights)
        self.bundles = {name: self.of(name).answer(request).bundle for name in self.sites.names}  # type: ignore[union-attr]
        return self

    def share(self, name: str, *bundles: Bundle) -> Any:
        told = bundles or tuple(self.bundles.values())
        return self.of(name).answer(secure.SharesRequest(self.task, self.id, told))

    def shares(self) -> Attempt:
        self.envelopes = {name: self.share(name).envelopes for name in self.sites.names}
        return self

    def train(self, name: str, envelopes: Any = None, weights: Any = None, plain: Any = None) -> Any:
        secured = secure.Secured(self.id, self.envelopes if envelopes is None else envelopes)
        request = protocol.TrainRequest(self.task, self.weights if weights is None else weights, secured)
        return self.of(name).masked(request, plain or update(name, self.weights))

    def trained(self, *names: str) -> Attempt:
        self.rows = {name: self.train(name).row for name in names or self.sites.names}
        return self

    def sign(self, name: str, *survivors: str) -> bytes:
        request = secure.SurvivorsRequest(self.task, self.id, survivors or self.sites.names)
        return self.of(name).answer(request).signature  # type: ignore[union-attr]

    def signed(self, *survivors: str) -> Attempt:
        self.signatures = {name: self.sign(name, *survivors) for name in survivors or self.sites.names}
        return self

    def unmask(self, name: str, *survivors: str, signatures: Any = None) -> secure.UnmaskReply:
        told = self.signatures if signatures is None else signatures
        request = secure.UnmaskRequest(self.task, self.id, survivors or self.sites.names, told)
        return self.of(name).answer(request)  # type: ignore[return-value]

    def group(self) -> Group:
        return Group.of(self.context, SecureAggregationSpec(), self.bundles.values(), len(NAMES))


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path)


def test_played_honestly_it_works(sites: Sites) -> None:
    attempt = Attempt(sites).keys().shares().trained().signed()
    replies = [attempt.unmask(name) for name in NAMES]
    assert all(set(reply.seeds) == set(NAMES) and not reply.keys for reply in replies)
    # Asked again, each phase gives the same: nothing is drawn anew.
    assert attempt.share("ada").envelopes == attempt.envelopes["ada"]
    np.testing.assert_array_equal(attempt.train("ada").row, attempt.rows["ada"])
    assert attempt.unmask("ada") == replies[0]


# --- keys -------------------------------------------------------------------------------------------------------------


def false_bundles(attempt: Attempt) -> Iterator[tuple[str, list[Bundle]]]:
    """What a coordinator might pass on in place of everybody's keys."""
    good, bob = attempt.bundles, attempt.bundles["bob"]
    ours, context = Pair.generate(), attempt.context

    def instead(bundle: Bundle, of: str = "bob") -> list[Bundle]:
        return [bundle if name == of else one for name, one in good.items()]

    yield "in the middle: its own keys under bob's signature", instead(replace(bob, mask=ours.public))
    yield "in the middle: its own sealing key", instead(replace(bob, seal=ours.public))
    yield "another seed", instead(replace(bob, seed=bytes(32)))
    stranger = Bundle.sign(context, "bob", ours, Pair.generate(), bytes(32), SiteKey.generate())
    yield "signed with a key of its own", instead(stranger)
    yield "signed by another site", instead(Bundle.sign(context, "bob", ours, Pair.generate(), bytes(32), KEYS["cat"]))
    for field, value in {"round": 2, "attempt": "f" * 32, "roster": "6" * 64, "weights": "7" * 64, "study": "8" * 64,
                         "arm": "pooled", "repeat": 1}.items():  # fmt: skip
        elsewhere = replace(context, **{field: value})
        yield (
            f"bob's, of another {field}",
            instead(Bundle.sign(elsewhere, "bob", Pair.generate(), Pair.generate(), bytes(32), KEYS["bob"])),
        )
    again = Bundle.sign(context, "mallory", ours, Pair.generate(), bytes(32), SiteKey.generate())
    yield "of a site that is on no roster", [*good.values(), again]
    yield "one site twice", [*good.values(), bob]
    own = Bundle.sign(context, "ada", Pair.generate(), Pair.generate(), bytes(32), KEYS["ada"])
    yield "the site's own keys exchanged for earlier ones of its own", instead(own, "ada")
    yield "without the site itself", [one for name, one in good.items() if name != "ada"]
    yield "too few", [good["ada"], good["bob"], good["cat"]]
    pair = Pair.of(os.urandom(32))
    twins = [Bundle.sign(context, name, pair, Pair.generate(), bytes(32), KEYS[name]) for name in ("bob", "cat")]
    yield "two sites with one key", [*(one for name, one in good.items() if name not in ("bob", "cat")), *twins]
    weak = replace(pair, public=bytes(32))
    yield "a key of low order", instead(Bundle.sign(context, "bob", weak, weak, bytes(32), KEYS["bob"]))


def test_keys_that_their_sites_did_not_sign_for_this_are_refused(sites: Sites) -> None:
    attempt = Attempt(sites).keys()
    tried = 0
    for what, bundles in false_bundles(attempt):
        with pytest.raises(AggregationRefused):
            attempt.share("ada", *bundles)
            pytest.fail(what)
        tried += 1
    assert tried == 19
    attempt.shares()  # and the true ones are good


def test_sites_that_were_told_of_different_weights_share_nothing(sites: Sites) -> None:
    attempt = Attempt(sites).keys()
    other = Attempt(sites, weights=OTHER, attempt=attempt.id)
    # Eve is told the same attempt from other weights: she takes it as another, and signs it so.
    sites.restart("eve")
    request = secure.KeysRequest(attempt.task, attempt.id, other.context.weights)
    attempt.bundles["eve"] = sites.sums["eve"].answer(request).bundle  # type: ignore[union-attr]
    for name in NAMES:
        with pytest.raises(AggregationRefused, match="not signed"):
            attempt.share(name)


def test_other_weights_than_agreed_are_not_trained_from(sites: Sites) -> None:
    attempt = Attempt(sites).keys().shares()
    with pytest.raises(AggregationRefused, match="other weights"):
        attempt.train("ada", weights=OTHER)


def test_an_attempt_is_used_once(sites: Sites) -> None:
    first = Attempt(sites).keys().shares().trained()
    with pytest.raises(AggregationRefused, match="other keys"):
        first.share("ada", *list(first.bundles.values())[:4])
    with pytest.raises(AggregationRefused, match="used before"):
        # The same number from other weights: another attempt in all but name.
        Attempt(sites, weights=OTHER, attempt=first.id).keys()
    second = Attempt(sites).keys()
    with pytest.raises(AttemptOver):
        first.train("ada")
    with pytest.raises(AggregationRefused, match="used before"):
        Attempt(sites, attempt=first.id).keys()
    assert second.bundles["ada"].mask != first.bundles["ada"].mask


# --- shares and rows --------------------------------------------------------------------------------------------------


def test_shares_that_are_missing_altered_or_of_elsewhere_stop_the_site(sites: Sites) -> None:
    before = Attempt(sites).keys().shares()
    attempt = Attempt(sites).keys().shares()
    good = attempt.envelopes

    def with_bobs(share: bytes | None) -> Any:
        row = {to: sealed for to, sealed in good["bob"].items() if to != "ada"}
        return {**good, "bob": row if share is None else {**row, "ada": share}}

    altered = good["bob"]["ada"][:-1] + bytes([good["bob"]["ada"][-1] ^ 1])
    for share in (None, altered, good["bob"]["cat"], good["cat"]["ada"], before.envelopes["bob"]["ada"], bytes(82)):
        with pytest.raises(AggregationRefused, match="share"):
            attempt.train("ada", with_bobs(share))
    attempt.trained()


def test_a_sum_of_too_few_or_of_others_is_not_masked_for(sites: Sites) -> None:
    attempt = Attempt(sites).keys().shares()
    good = attempt.envelopes
    for names in (("ada",), ("ada", "bob"), ("ada", "bob", "cat"), NAMES[1:]):
        with pytest.raises(AggregationRefused, match="a sum of"):
            attempt.train("ada", {name: good[name] for name in names})
    with pytest.raises(AggregationRefused, match="a sum of"):
        attempt.train("ada", {**good, "mallory": good["bob"]})
    four = {name: good[name] for name in NAMES[:4]}
    attempt.train("ada", four)
    with pytest.raises(AggregationRefused, match="other sites"):
        attempt.train("ada", good)


def test_phases_are_not_left_out(sites: Sites) -> None:
    attempt = Attempt(sites)
    calls: list[Callable[[], Any]] = [
        lambda: attempt.share("ada", *attempt.bundles.values()),
        lambda: attempt.train("ada"),
        lambda: attempt.sign("ada"),
        lambda: attempt.unmask("ada"),
    ]
    for number, phase in enumerate((attempt.keys, attempt.shares, attempt.trained)):
        for call in calls[number:]:
            with pytest.raises(AggregationRefused):
                call()
        phase()
    # Agreed to train and not done with it: its row has not left, and no sum holds it.
    other = Attempt(sites).keys().shares()
    secured = secure.Secured(other.id, other.envelopes)
    sites.sums["ada"].join(protocol.TrainRequest(other.task, SENT, secured))
    with pytest.raises(AggregationRefused, match="before this site has given its row"):
        other.sign("ada")


def test_what_the_coordinator_is_sent_is_noise(sites: Sites) -> None:
    """Masked rows, and every sum of some of them, are uniform; what is masked is not."""
    large = {"w": np.zeros(1 << 15, np.float32)}
    attempt = Attempt(sites, weights=large).keys().shares().trained()
    total = np.zeros((1 << 15) + 2, np.uint64)
    for name in NAMES:
        total += attempt.rows[name]
        assert uniform(attempt.rows[name])
        assert uniform(total)
    clear = update("ada", large)
    assert not uniform(RowLayout.of(large, with_loss=True).write(clear.weights, clear.examples, clear.loss, sites=5))


def uniform(row: Any) -> bool:
    """Whether all bytes are as frequent as those of noise: chi-square with 255 degrees below 400, p > 1e-8."""
    counts = np.bincount(row.view(np.uint8), minlength=256)
    return bool(((counts - row.nbytes / 256) ** 2 / (row.nbytes / 256)).sum() < 400)


def test_a_roster_that_changed_ends_the_attempt(sites: Sites) -> None:
    """A site with another key joins, or one is revoked: whom the others agreed with is not whom the site knows now."""
    attempt = Attempt(sites).keys().shares()
    peers = sites.sums["ada"]._peers()
    sites.sums["ada"]._peers = lambda: replace(peers, roster="6" * 64)
    for call in (lambda: attempt.share("ada"), lambda: attempt.train("ada"), lambda: attempt.sign("ada")):
        with pytest.raises(AttemptOver, match="roster has changed"):
            call()


# --- survivors and unmasking ------------------------------------------------------------------------------------------


def test_survivors_are_enough_and_one_set_for_an_attempt(sites: Sites) -> None:
    attempt = Attempt(sites).keys().shares().trained()
    for survivors in (("ada",), ("ada", "bob"), ("ada", "bob", "cat"), NAMES[1:], (*NAMES, "mallory"), ()):
        with pytest.raises(AggregationRefused, match="a sum of"):
            attempt.sign("ada", *(survivors or ("eve",)))
    attempt.sign("ada", *NAMES[:4])
    with pytest.raises(AggregationRefused, match="signed other survivors"):
        attempt.sign("ada", *NAMES)


def test_survivors_whom_no_masks_tie_together_are_not_unmasked(tmp_path: Path) -> None:
    """With neighbours, a ring of twelve from which two arcs are lost: two sums would be had in place of one."""
    names = tuple(f"h{number:02}" for number in range(12))
    context = Context("s", "federated", 0, 1, "a" * 32, ROSTER, "7" * 64)
    bundles = [Bundle(n, *(os.urandom(32) for _ in range(3)), b"") for n in names]  # type: ignore[arg-type]
    group = Group.of(context, SecureAggregationSpec(neighbours=4, threshold=0.51), bundles, 12)
    ring = group._ring
    gone = {ring[0], ring[1], ring[6], ring[7]}
    left = [name for name in names if name not in gone]
    assert len(left) >= group.needed
    assert not group.connected(left)
    with pytest.raises(AggregationRefused, match="fall apart"):
        group.check_survivors(left, names, left[0])
    group.check_survivors([name for name in names if name != ring[0]], names, ring[3])


def test_no_share_leaves_without_enough_true_signatures(sites: Sites) -> None:
    attempt = Attempt(sites).keys().shares().trained()
    four = NAMES[:4]
    earlier = {name: attempt.sign(name, *four) for name in ("bob", "cat")}
    attempt.signatures = {name: attempt.sign(name) for name in ("ada", "dan", "eve")}
    statement = attempt.group().statement(NAMES, NAMES)
    false: list[dict[str, bytes]] = [
        {},
        attempt.signatures,  # three of four
        attempt.signatures | earlier,  # of other survivors
        attempt.signatures | {"bob": attempt.signatures["ada"]},
        attempt.signatures | {"bob": SiteKey.generate().sign(statement)},
        attempt.signatures | {"mallory": SiteKey.generate().sign(statement)},
        attempt.signatures | {"bob": KEYS["cat"].sign(statement)},
        {name: KEYS[name].sign(statement[:-1]) for name in NAMES},
    ]
    for signatures in false:
        with pytest.raises(AggregationRefused):
            attempt.unmask("ada", signatures=signatures)
    # And true ones of the attempt before are none in the next.
    true = {name: KEYS[name].sign(statement) for name in NAMES}
    attempt.unmask("ada", signatures=true)
    following = Attempt(sites).keys().shares().trained()
    with pytest.raises(AggregationRefused):
        following.unmask("ada", signatures=true)


def test_both_shares_of_a_site_cannot_be_had(sites: Sites) -> None:
    """Two survivor sets, shown to two halves of the sites: one of them lacks signatures."""
    attempt = Attempt(sites).keys().shares().trained()
    without = ("ada", "bob", "cat", "dan")
    for_all = {name: attempt.sign(name) for name in ("ada", "bob", "eve")}
    for_four = {name: attempt.sign(name, *without) for name in ("cat", "dan")}
    for name in NAMES:
        with pytest.raises(AggregationRefused):
            attempt.unmask(name, signatures=for_all)
        if name in without:
            with pytest.raises(AggregationRefused):
                attempt.unmask(name, *without, signatures=for_four)


def test_a_round_is_unmasked_for_one_set_for_ever(sites: Sites) -> None:
    first = Attempt(sites).keys().shares().trained().signed()
    first.unmask("ada")
    four = NAMES[:4]
    for restarted in (False, True):
        if restarted:
            sites.restart("ada")
        second = Attempt(sites).keys().shares().trained()
        with pytest.raises(RoundReleased):
            second.sign("ada", *four)
        statement = second.group().statement(NAMES, four)
        with pytest.raises(RoundReleased):
            second.unmask("ada", *four, signatures={name: KEYS[name].sign(statement) for name in four})
        same = second.signed().unmask("ada")
        assert set(same.seeds) == set(NAMES)
    # Another round is another sum.
    other = Attempt(sites, round_=2).keys().shares().trained().signed(*four)
    assert set(other.unmask("ada", *four).keys) == {"eve"}


def test_no_two_rows_of_one_site_go_under_the_same_masks_or_into_one_rounds_sums(sites: Sites) -> None:
    """Its images changed between two questions: the difference would be what a patient adds."""
    changed = replace(update("ada"), examples=update("ada").examples + 1)
    first = Attempt(sites).keys().shares().trained()
    assert (first.train("ada").row == first.rows["ada"]).all()
    with pytest.raises(AttemptOver):
        first.train("ada", plain=changed)
    first.signed().unmask("ada")
    sites.restart("ada")
    second = Attempt(sites).keys().shares()
    second.train("ada", plain=changed)
    with pytest.raises(RoundReleased, match="another update"):
        second.sign("ada")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_it_asks_for_no_site_gives_both_shares_of_one(tmp_path_factory: Any, data: st.DataObject) -> None:
    """A coordinator with all sites' signing keys but ada's, asking at random: the strongest there can be."""
    sites = Sites(tmp_path_factory.mktemp("sites"))
    given_out: dict[str, set[str]] = {}
    sets: set[tuple[str, ...]] = set()
    for _ in range(data.draw(st.integers(1, 3))):
        attempt = Attempt(sites).keys().shares().trained()
        if data.draw(st.booleans()):
            sites.restart("ada")
        for _ in range(data.draw(st.integers(1, 4))):
            survivors = tuple(sorted(data.draw(st.permutations(NAMES))[: data.draw(st.integers(1, 5))]))
            statement = attempt.group().statement(NAMES, survivors)
            signatures = {name: KEYS[name].sign(statement) for name in survivors if name != "ada"}
            for act in (lambda: attempt.sign("ada", *survivors), lambda: attempt.unmask(  # noqa: B023
                "ada", *survivors, signatures=signatures)):  # noqa: B023  # fmt: skip
                try:
                    found = act()
                except AggregationRefused:
                    continue
                if isinstance(found, secure.UnmaskReply):
                    sets.add(survivors)
                    for kind, shares in (("seed", found.seeds), ("key", found.keys)):
                        for site in shares:
                            given_out.setdefault(site, set()).add(kind)
    assert len(sets) <= 1
    assert all(len(kinds) == 1 for kinds in given_out.values())
