"""Sources made of other sources: several as one, or a part of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.labels import targets
from common.randomness import generator
from common.study import Study
from simulations.datasets.source import Item, Source, UnreadableImage, patients_unknown, shown
from simulations.partition import Cohort, split_by_patient

Named = tuple[str, Source]
ATTRIBUTE = "source"
"""The attribute that tells of which source an image is."""


class DerivedSource:
    """Items that stand for other sources' items: ``rows`` are the new item, the source behind it and its item there."""

    def __init__(
        self, name: str, synthetic: bool, notes: Iterable[str], rows: Iterable[tuple[Item, Source, Item]]
    ) -> None:
        self.name, self.synthetic, self.notes = name, synthetic, tuple(notes)
        self._behind: dict[str, tuple[Source, Item]] = {}
        items = []
        for item, source, original in rows:
            items.append(item)
            self._behind[item.key] = source, original
        self.items: tuple[Item, ...] = tuple(items)

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        if item.key not in self._behind:
            raise UnreadableImage(item.key, "is not of this source; take items from the source's own list")
        source, original = self._behind[item.key]
        try:
            return source.read(original)
        except UnreadableImage as error:
            raise UnreadableImage(item.key, error.reason) from None


def joined(study: Study, sources: Sequence[Named]) -> DerivedSource:
    """Several sources as one: keys and patients as ``NAME/…``, the attribute ``source`` is the name.

    Splits are kept. A source without any, beside one with them, is split here: by patient, stratified by class, in
    the shares of ``data.split``. Raises :class:`DataError` for a mixture of synthetic and real images.
    """
    kinds = {source.synthetic for _, source in sources}
    if len(kinds) > 1:
        made = next(name for name, source in sources if source.synthetic)
        raise DataError(f"{made!r} holds synthetic images and others real ones; a result on both would be neither")
    some_split = any(item.split for _, source in sources for item in source.items)
    rows: list[tuple[Item, Source, Item]] = []
    notes: list[str] = []
    for name, source in sources:
        items = source.items
        notes.append(_told(name, source))
        if some_split and items and not any(item.split for item in items):
            items = with_splits(study, items)
            notes.append(f"{name}: has no splits, so its patients were split in the shares of data.split")
        notes += [f"{name}: {note}" for note in source.notes]
        rows += [(_prefixed(item, name), source, original) for item, original in zip(items, source.items, strict=True)]
    return DerivedSource(" + ".join(source.name for _, source in sources), kinds.pop(), notes, rows)


def taken(study: Study, name: str, source: Source, most: Mapping[str, int]) -> DerivedSource:
    """At most so many images of each class in ``most``, and none of other classes; whole patients, drawn by the seed.

    A patient whose images would go above the number of a class is passed over for one with fewer. Raises
    :class:`DataError` where the source has none of a class.
    """
    known = targets(study, [item.labels for item in source.items])
    columns = np.array([study.class_names.index(label) for label in most])
    limits = np.array(list(most.values()))
    has = np.nan_to_num(known) > 0.5
    usable = has[:, columns].any(axis=1) & (has.sum(axis=1) == has[:, columns].sum(axis=1))
    patients: dict[str, list[int]] = {}
    for row in np.flatnonzero(usable).tolist():
        patients.setdefault(source.items[row].patient, []).append(row)
    names = sorted(patients)
    counts, chosen = np.zeros(len(limits), np.int64), set[int]()
    for index in generator(study.seed, "take", name).permutation(len(names)).tolist():
        rows = patients[names[index]]
        more = has[rows][:, columns].sum(axis=0)
        if (counts + more <= limits).all():
            counts += more
            chosen.update(rows)
    missing = [label for label, count in zip(most, counts.tolist(), strict=True) if not count]
    if missing:
        raise DataError(f"data.take: {name} has no image of class {missing[0]!r} to take; leave that class out")
    told = ", ".join(
        f"{count} {label}" + (f" (of {limit} asked for)" if count < limit else "")
        for label, count, limit in zip(most, counts.tolist(), limits.tolist(), strict=True)
    )
    note = f"data.take: {told}, of {len(source.items)} images"
    rows_ = [(item, source, item) for row, item in enumerate(source.items) if row in chosen]
    return DerivedSource(source.name, source.synthetic, [*source.notes, note], rows_)


def with_splits(study: Study, items: Sequence[Item]) -> list[Item]:
    """``items`` with new splits: by patient, stratified by class, in the shares of ``data.split``, by the seed."""
    cohort = Cohort(
        patients=np.array([item.patient for item in items]),
        targets=targets(study, [item.labels for item in items]),
        splits=np.full(len(items), ""),
    )
    splits = split_by_patient(cohort, study.data.split, study.seed)
    return [replace(item, split=split) for item, split in zip(items, splits.tolist(), strict=True)]


def _prefixed(item: Item, name: str) -> Item:
    return replace(
        item,
        key=f"{name}/{item.key}",
        patient=f"{name}/{item.patient}",
        attributes={**item.attributes, ATTRIBUTE: name},
    )


def _told(name: str, source: Source) -> str:
    patients = len({item.patient for item in source.items})
    unknown = patients_unknown(source.items)
    nameless = f", {unknown} of them without a patient" if unknown else ""
    return f"{name}: {source.name}, {len(source.items)} images of {patients} patients{nameless}"


def check_names(names: Iterable[str]) -> None:
    """Raise :class:`DataError` for a name that two sources have: keys and patients would mix."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"two sources are called {shown(twice[0])}; name them: --data one=DIR --data two=DIR")
