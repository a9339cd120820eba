"""From sites' shares to a sum without masks: what is restored is checked against what its site has signed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

from common.contribution import Row
from common.errors import ReplyRefused
from common.masking import Pair, agree, derive, mask
from common.protocol.secure import UnmaskReply
from common.secagg import Bundle, Group, commitment
from common.shamir import restore

_MOST_TRIES = 1000
"""Choices of shares that are tried where some do not fit: with one liar among ten sites there are ten at most."""


@dataclass
class Shares:
    """Shares as they arrive, until they restore all that is needed."""

    group: Group
    parties: Sequence[str]
    survivors: Sequence[str]
    misfits: set[tuple[str, str]] = field(default_factory=set)
    """(whose secret, who holds the share) of shares that do not fit: one of the two has lied."""
    _seeds: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _keys: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _found: dict[str, bytes] = field(default_factory=dict)

    def add(self, reply: UnmaskReply) -> None:
        """Raises :class:`ReplyRefused`, changing nothing, for shares that this site does not hold."""
        near = self.group.neighbours(reply.site) | {reply.site}
        left = set(self.survivors)
        if set(reply.seeds) != near & left or set(reply.keys) != near & (set(self.parties) - left):
            raise ReplyRefused("it gave other shares than it was asked for")
        for kept, given in ((self._seeds, reply.seeds), (self._keys, reply.keys)):
            for site, share in given.items():
                kept.setdefault(site, {})[self.group.places(site)[reply.site]] = share

    @property
    def restored(self) -> bool:
        """Whether all secrets are known; tries those that are not."""
        wanted: list[tuple[str, Mapping[int, bytes], Callable[[bytes, Bundle], bool]]] = [
            *((site, self._seeds.get(site, {}), _is_seed) for site in self.survivors),
            *((site, self._keys.get(site, {}), _is_key) for site in self.parties if site not in self.survivors),
        ]
        for site, shares, fits in wanted:
            if site not in self._found:
                secret = self._restore(site, shares, fits)
                if secret is None:
                    return False
                self._found[site] = secret
        return True

    def _restore(self, site: str, shares: Mapping[int, bytes], fits: Callable[[bytes, Bundle], bool]) -> bytes | None:
        needed, bundle = self.group.shares_needed(site), self.group.bundles[site]
        for chosen in islice(combinations(sorted(shares), needed), _MOST_TRIES):
            secret = restore({place: shares[place] for place in chosen})
            if secret is not None and fits(secret, bundle):
                self._blame(site, shares, chosen, secret)
                return secret
        return None

    def _blame(self, site: str, shares: Mapping[int, bytes], good: Sequence[int], secret: bytes) -> None:
        """Note the shares that do not lie on the curve of the ``good`` ones."""
        holders = {place: holder for holder, place in self.group.places(site).items()}
        for place in set(shares) - set(good):
            if restore({one: shares[one] for one in (*good[1:], place)}) != secret:
                self.misfits.add((site, holders[place]))

    def unmask(self, total: Row) -> None:
        """Take all masks off ``total``, the sum of the survivors' rows, in place; once everything is restored."""
        group, left = self.group, set(self.survivors)
        for site, secret in self._found.items():
            if site in left:
                mask(total, derive(secret, group.mask_info(self.parties, site)), subtract=True)
                continue
            for peer in sorted(group.neighbours(site) & left):
                key = agree(secret, group.bundles[peer].mask, group.mask_info(self.parties, peer, site))
                mask(total, key, subtract=site > peer)


def _is_seed(secret: bytes, bundle: Bundle) -> bool:
    return commitment(secret) == bundle.seed


def _is_key(secret: bytes, bundle: Bundle) -> bool:
    return Pair.of(secret).public == bundle.mask
