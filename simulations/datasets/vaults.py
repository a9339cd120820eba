"""Vaults that exist: a run's virtual hospitals, or sites' own directories, as a source of images.

Recognised by ``site.yaml``: in the path itself (one site), in ``sites/*/`` (a run), or in ``*/``
(a folder of sites). Pooled sites, which only list members, are passed over. An image is read
by decrypting it, so the key that a site's ``site.yaml`` names must be there; whatever is wrong
with a vault is its own :class:`VaultError`, never an image that is left out.

An image's key is ``ALIAS/ROW``, its patient ``ALIAS/PATIENT``: two sites may use one number for
two people. The attribute ``site`` is the site's alias, so ``partition: {kind: natural, column:
site}`` plays the same hospitals again. A vault does not say which patients were named and which
stand for an image without one: all count as known.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from client.vault.keys import provider
from client.vault.store import Row, Vault
from common.errors import DataError, VaultError
from common.study import Study
from simulations.datasets.source import Item, one_line, shown

if TYPE_CHECKING:
    from client.config import SiteConfig

SITE_FILE = "site.yaml"
OPEN_VAULTS = 32
"""File handles kept while images are read; a thousand sites would use them all up."""
_ORIGIN = ", from the vaults of "


def find(path: Path) -> Path | None:
    """``path`` where sites' directories are found there."""
    return path if any(_homes(path)) else None


def _homes(path: Path) -> Iterator[Path]:
    """The sites' directories at ``path``, in no order."""
    if (path / SITE_FILE).is_file():
        yield path
        return
    for pattern in (f"sites/*/{SITE_FILE}", f"*/{SITE_FILE}"):
        found = False
        for file in path.glob(pattern):
            found = True
            yield file.parent
        if found:
            return


@dataclass(frozen=True)
class _Place:
    """Where an image lies: which site's vault, in which state it was listed, which row."""

    home: Path
    config: SiteConfig
    state: tuple[str, int]  # the vault's id and generation
    row: int
    has_mask: bool


class VaultSource:
    """All images of one or more vaults, with the labels, splits and attributes they hold.

    Opening lists the rows and closes each vault again; reading keeps the last few open until
    :meth:`close`, or until the source is no longer used. Raises :class:`VaultError` (missing,
    damaged, altered, locked) and :class:`DataError` for sites that contradict each other.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, study: Study, path: Path) -> None:
        """``study`` is not needed: a vault holds whatever labels it was given."""
        from client.config import SiteConfig

        self._places: dict[str, _Place] = {}
        self._open: OrderedDict[Path, Vault] = OrderedDict()
        # Closes on garbage collection and at exit too: a source has no other end.
        self._close = weakref.finalize(self, _close_all, self._open)
        folder = path.resolve()
        configs = [(home, SiteConfig.load(home)) for home in sorted(_homes(folder))]
        own = [(home, config) for home, config in configs if not config.members]
        if not own:
            raise DataError(f"{shown(folder.name)}: a pooled site has no vault of its own; give the run's folder")
        items: list[Item] = []
        seen: dict[str, Path] = {}
        vaults: dict[str, tuple[Path, bool, str]] = {}
        for home, config in own:
            if config.alias in seen:
                raise DataError(
                    f"{shown(home.name)} and {shown(seen[config.alias].name)} are both site {config.alias!r}; "
                    "keep one of them, or give each its own alias in site.yaml"
                )
            seen[config.alias] = home
            with _opened(home, config) as vault:
                if vault.id in vaults:
                    raise DataError(
                        f"{shown(home.name)} and {shown(vaults[vault.id][0].name)} hold copies of one vault, "
                        "so its patients would count twice; leave one of them out"
                    )
                vaults[vault.id] = home, vault.synthetic, vault.source
                items += [self._item(home, config, vault, row) for row in vault.rows()]
        self.items: tuple[Item, ...] = tuple(items)
        self.synthetic = _all_or_none({home.name: synthetic for home, synthetic, _ in vaults.values()})
        self.name = _name([source for _, _, source in vaults.values()], folder.name)

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`; also int16 (Hounsfield). Raises :class:`VaultError`."""
        place = self._places[item.key]
        vault = self._vault(place)
        return vault.read(place.row), vault.read_mask(place.row) if place.has_mask else None

    def close(self) -> None:
        """Close the vaults; reading opens them again."""
        _close_all(self._open)

    def _item(self, home: Path, config: SiteConfig, vault: Vault, row: Row) -> Item:
        key = f"{config.alias}/{row.id}"
        self._places[key] = _Place(home, config, (vault.id, vault.generation), row.id, row.has_mask)
        return Item(
            key=key,
            patient=f"{config.alias}/{row.patient}",
            patient_known=True,
            labels=row.labels,
            split=row.split,
            attributes={**row.attributes, "site": config.alias},
        )

    def _vault(self, place: _Place) -> Vault:
        vault = self._open.pop(place.home, None) or _opened(place.home, place.config)
        self._open[place.home] = vault
        if (vault.id, vault.generation) != place.state:
            raise VaultError(f"vault {vault.path} was changed while it was read; start again")
        if len(self._open) > OPEN_VAULTS:
            self._open.popitem(last=False)[1].close()
        return vault


def _opened(home: Path, config: SiteConfig) -> Vault:
    return Vault.open(home / config.vault, provider(config.key, base=home))


def _close_all(vaults: OrderedDict[Path, Vault]) -> None:
    while vaults:
        with suppress(VaultError):  # collected in another thread: SQLite frees the handle itself
            vaults.popitem()[1].close()


def _all_or_none(synthetic: dict[str, bool]) -> bool:
    """Whether all images are synthetic; a mixture could be labelled neither."""
    kinds = set(synthetic.values())
    if len(kinds) > 1:
        made = next(home for home, flag in synthetic.items() if flag)
        real = next(home for home, flag in synthetic.items() if not flag)
        raise DataError(
            f"{shown(made)} holds synthetic images and {shown(real)} real ones; a result on both would be neither: "
            "use one kind"
        )
    return kinds.pop()


def _name(sources: list[str], folder: str) -> str:
    """Where the images came from at first, and by way of which folder; vaults of vaults do not add up."""
    first = list(dict.fromkeys(source.split(_ORIGIN)[0] for source in sources))
    more = f" and {len(first) - 2} more" if len(first) > 2 else ""
    return one_line(f"{' + '.join(first[:2])}{more}{_ORIGIN}{folder}")
