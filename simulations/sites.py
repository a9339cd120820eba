"""From one dataset to virtual hospitals on disk: a directory with an encrypted vault for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.config import SiteConfig
from client.peers import acquaint, acquainted
from client.vault.keys import create_key_file, provider
from client.vault.store import Record, Vault
from common.errors import DataError
from common.labels import targets
from common.randomness import seed_for
from common.study import Study
from server.asking import SignedRoster
from simulations.datasets import Item, Source, UnreadableImage
from simulations.devices import Device, apply, device_for
from simulations.heterogeneity import Heterogeneity, image_features, measure
from simulations.partition import Cohort, Shard, partition

POOLED = "pooled"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Machine:
    """How virtual sites use this computer."""

    device: str = "cpu"
    threads: int = 1


@dataclass
class Prepared:
    """What the report needs to know about the data; JSON in the run's folder."""

    source: str
    synthetic: bool
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    heterogeneity: dict[str, Any] = field(default_factory=dict)
    images_without_patient: int = 0
    unlabelled: int = 0
    unreadable: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Features:
    """Cheap image features by item, collected while images pass by on their way into a vault."""

    def __init__(self, count: int) -> None:
        self._rows: dict[int, np.ndarray[Any, Any]] = {}
        self._count = count

    def add(self, index: int, pixels: np.ndarray[Any, Any]) -> None:
        self._rows[index] = image_features(pixels)

    def table(self) -> np.ndarray[Any, Any]:
        """``(N, F)``; rows of images that could not be read are zero."""
        width = len(next(iter(self._rows.values())))
        table = np.zeros((self._count, width))
        for index, row in self._rows.items():
            table[index] = row
        return table


def cohort_of(study: Study, items: Sequence[Item]) -> Cohort:
    """The arrays that the partitioners work on."""
    columns = sorted({column for item in items for column in item.attributes})
    return Cohort(
        patients=np.array([item.patient for item in items]),
        targets=targets(study, [item.labels for item in items]),
        splits=np.array([item.split for item in items]),
        attributes={column: np.array([item.attributes.get(column, "") for item in items]) for column in columns},
    )


def labelled_items(study: Study, source: Source) -> list[Item]:
    """The items that have a target in this study: what a partition is about. The others are counted and left out.

    Raises :class:`DataError` where there is none.
    """
    if not source.items:
        raise DataError(f"{source.name} holds no images; check the path and its label sheet")
    known = np.isfinite(targets(study, [item.labels for item in source.items]))
    items = [item for item, row in zip(source.items, known, strict=True) if row.any()]
    if not items:
        raise DataError(
            f"{source.name} has no image with a label of this study; its classes are {', '.join(study.class_names)}"
        )
    return items


@dataclass(frozen=True, eq=False)
class Deal:
    """Which labelled images go to which hospital and split, before any of them is read."""

    items: Sequence[Item]
    cohort: Cohort
    shards: Sequence[Shard]
    splits: tuple[str, ...] = SPLITS

    def only(self, *splits: str) -> Deal:
        """The same hospitals without the images of other splits."""
        kept = [(shard, np.isin(shard.splits, splits)) for shard in self.shards]
        shards = [replace(shard, indices=shard.indices[rows], splits=shard.splits[rows]) for shard, rows in kept]
        return replace(self, shards=shards, splits=splits)

    @property
    def dealt(self) -> list[Item]:
        """The images that hospitals get."""
        return [self.items[index] for shard in self.shards for index in shard.indices.tolist()]


def deal(study: Study, source: Source) -> Deal:
    """Deal ``source`` out as ``study.partition`` says. Raises :class:`DataError`, also where it cannot be done."""
    items = labelled_items(study, source)
    cohort = cohort_of(study, items)
    return Deal(items, cohort, partition(cohort, study.partition, study.data.split, study.class_names, study.seed))


def prepare_sites(study: Study, source: Source, root: Path, machine: Machine, given: Deal | None = None) -> Prepared:
    """Deal ``source`` out (or as ``given``) and write ``root/<site>/`` for each hospital and for the pooled arm.

    Unreadable images are listed and left out; more than ``data.max_unreadable`` of them is
    a :class:`DataError`. On any error ``root`` is removed: nothing half-written stays.
    """
    given = given or deal(study, source)
    items, cohort, shards = given.items, given.cohort, list(given.shards)
    prepared = Prepared(source.name, source.synthetic, notes=list(source.notes))
    prepared.images_without_patient = sum(not item.patient_known for item in items)
    prepared.unlabelled = len(source.items) - len(items)
    features = Features(len(items))
    try:
        root.mkdir(parents=True, mode=0o700)
        for number, shard in enumerate(shards):
            shift = device_for(number, len(shards), study.partition.device_shift, study.seed)
            home = root / shard.site
            make_site(home, SiteConfig(alias=shard.site, device=machine.device, threads=machine.threads))
            with Vault.create(
                home / "vault.sqlite",
                provider("file:vault.key", base=home),
                synthetic=source.synthetic,
                source=source.name,
            ) as vault:
                vault.add(_records(study, source, items, shard, shift, features, prepared.unreadable))
            shards[number] = shard = _readable(shard, items, prepared.unreadable)
            _describe(prepared, study, cohort, shard, shift)
            allowed = study.data.max_unreadable * len(items)
            if len(prepared.unreadable) > allowed:
                first = prepared.unreadable[0]
                raise DataError(
                    f"{len(prepared.unreadable)} of {len(items)} images cannot be read (the study allows "
                    f"{study.data.max_unreadable:.0%}), first {first['file']}: {first['reason']}; "
                    "mend them, or raise data.max_unreadable"
                )
        members = tuple(f"../{shard.site}" for shard in shards)
        make_site(
            root / POOLED, SiteConfig(alias=POOLED, members=members, device=machine.device, threads=machine.threads)
        )
        _check_splits(prepared, given.splits)
        if study.federation.secure_aggregation is not None:
            acquaint(root / shard.site for shard in shards)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    prepared.heterogeneity = _heterogeneity(measure(shards, cohort, features.table(), study.seed))
    return prepared


def roster_of(study: Study, root: Path) -> SignedRoster:
    """Who the hospitals under ``root`` are to each other, where ``study`` has them sum under masks."""
    return SignedRoster(b"", *acquainted(root)) if study.federation.secure_aggregation is not None else SignedRoster()


def _readable(shard: Shard, items: Sequence[Item], unreadable: Sequence[Mapping[str, str]]) -> Shard:
    lost = {row["file"] for row in unreadable}
    kept = np.array([items[index].key not in lost for index in shard.indices.tolist()], dtype=bool)
    return replace(shard, indices=shard.indices[kept], splits=shard.splits[kept])


def _heterogeneity(measured: Heterogeneity) -> dict[str, Any]:
    found: dict[str, Any] = {"size_gini": measured.size_gini}
    for name, distance in (("label_js", measured.labels), ("feature_shift", measured.features)):
        raw = distance.to_json() if distance is not None else {}
        found |= {name: raw.get("mean"), f"{name}_iid": raw.get("iid_mean"), f"{name}_pairs": raw.get("pairwise")}
    return found


def make_site(home: Path, config: SiteConfig) -> None:
    """A site's directory with its own key; pooled sites read their members' keys."""
    home.mkdir(mode=0o700)
    if not config.members:
        create_key_file(home / "vault.key")
    config.save(home)


def _records(
    study: Study,
    source: Source,
    items: Sequence[Item],
    shard: Shard,
    shift: Device,
    features: Features,
    unreadable: list[dict[str, str]],
) -> Iterator[Record]:
    for index, split in zip(shard.indices.tolist(), shard.splits.tolist(), strict=True):
        item = items[index]
        try:
            pixels, mask = source.read(item)
        except UnreadableImage as error:
            unreadable.append({"file": item.key, "reason": error.reason})
            continue
        pixels = apply(pixels, shift, seed_for(study.seed, "device", item.key))
        features.add(index, pixels)
        yield Record(pixels, item.patient, item.labels, split, item.attributes, mask)


def _describe(prepared: Prepared, study: Study, cohort: Cohort, shard: Shard, shift: Device) -> None:
    site: dict[str, Any] = {"images": {}, "patients": {}, "classes": {}, "origin": shard.origin or None, "device": None}
    if not shift.identity:
        site["device"] = shift.describe()
    for split in SPLITS:
        rows = shard.indices[shard.splits == split]
        labelled = rows[~np.isnan(cohort.targets[rows]).all(1)]
        site["images"][split] = len(labelled)
        site["patients"][split] = len(np.unique(cohort.patients[labelled]))
        counts = np.nansum(cohort.targets[labelled], axis=0)
        site["classes"][split] = {name: int(n) for name, n in zip(study.class_names, counts, strict=True)}
    prepared.sites[shard.site] = site


def _check_splits(prepared: Prepared, splits: Iterable[str]) -> None:
    for split in splits:
        empty = [site for site, facts in prepared.sites.items() if not facts["images"][split]]
        if empty and split == "train":
            raise DataError(
                f"{', '.join(empty[:5])} would have no training image; use fewer sites, a larger partition.alpha or "
                "partition.min_per_site"
            )
        if len(empty) == len(prepared.sites):
            raise DataError(f"no site has a {split} image; give data.split a share for it, or more images")


def external_site(study: Study, source: Source, home: Path, machine: Machine) -> tuple[int, list[dict[str, str]]]:
    """One site at ``home`` whose vault holds every row of ``source`` as test images: (images, unreadable)."""
    count = len(source.items)
    shard = Shard("external", np.arange(count), np.array(["test"] * count))
    unreadable: list[dict[str, str]] = []
    make_site(home, SiteConfig(alias="external", device=machine.device, threads=machine.threads))
    keys = provider("file:vault.key", base=home)
    with Vault.create(home / "vault.sqlite", keys, synthetic=source.synthetic, source=source.name) as vault:
        vault.add(_records(study, source, source.items, shard, Device(), Features(count), unreadable))
    if len(unreadable) > study.data.max_unreadable * count:
        first = unreadable[0]
        raise DataError(
            f"{len(unreadable)} of {count} images cannot be read (the study allows {study.data.max_unreadable:.0%}), "
            f"first {first['file']}: {first['reason']}; mend them, or take them out of the label sheet"
        )
    return count - len(unreadable), unreadable
