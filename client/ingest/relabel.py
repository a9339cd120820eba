"""A label sheet laid over images in the vault: their names are pseudonyms by now, so those on the sheet become some.

What an import would refuse is refused here too: a row that names another patient, a name that two files have, rows that
differ, readers without a consensus. Where the file itself is at hand, its own name decides, as in an import.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from client.ingest.consent import OptOut
from client.ingest.import_reasons import TOO_MUCH
from client.ingest.kinds import Reason, Refused
from client.ingest.known import Image
from client.ingest.labels import AMBIGUOUS, CONFLICT, DISPUTED, KEYS, MISMATCH, Labelled, LabelSheet, SheetRow
from client.ingest.pseudonyms import Pseudonyms
from client.vault.records import Row, encode_meta
from client.vault.store import Vault
from common.errors import DataError


class Overlay:
    """Finds a sheet's rows as ``LabelSheet.lookup`` does: by SOP instance, file, accession number, patient.

    Of an image in the vault only the pseudonym of its file's name is known. A row is found by the whole name, or by the
    name without folders where the sheet or the image has none.
    """

    def __init__(self, sheet: LabelSheet, pseudonyms: Pseudonyms) -> None:
        self._sheet, self._pseudonyms = sheet, pseudonyms
        self._came: dict[int, str] = {}

    def meet(self, image: Image) -> None:
        """Note that a file comes to a row by its name; two are one too many. All of a vault's images, before asking."""
        row = self._named(image.keys)
        if row is not None and not (row.keys["sop"] and "sop" in image.keys):
            source = image.keys.get("source", "")
            if self._came.setdefault(id(row), source) != source:
                self._came[id(row)] = "several"

    def find(self, image: Image, file: str | None = None) -> Labelled | None:
        """What the sheet says of ``image``; ``file`` is its file's name, empty where it has none, ``None`` if unknown.

        Raises :class:`Refused` as ``LabelSheet.lookup`` does.
        """
        found = self._rows(image, file)
        if not found:
            return None
        for one in found:
            one.used = True
        row = found[0]
        if not self._agrees(row, image, file):
            raise Refused(MISMATCH)
        if any(other.level[-1] in ("sop", "file") and other.labelled != row.labelled for other in found[1:]):
            raise Refused(CONFLICT)
        if (
            "file" in row.level
            and self._came.get(id(row)) == "several"
            and not (row.keys["sop"] and "sop" in image.keys)
        ):
            raise Refused(AMBIGUOUS)
        if row.disputed:
            raise Refused(DISPUTED)
        return row.labelled

    def withholds(self, image: Image, opt_out: OptOut) -> bool:
        """Whether the sheet says that ``image`` is of somebody on the list. In doubt it is."""
        if not self._names_patients:
            return False
        return any(
            opt_out.listed(row.labelled.patient, row.labelled.accession)
            for row in self._rows(image, None)
            if self._agrees(row, image, None)
        )

    def differs(self, image: Image, said: Labelled) -> bool:
        """Whether the sheet says something else than the vault. An empty cell says nothing."""
        patient = self._pseudonyms.patient(said.patient)
        return (
            any(values and tuple(values) != tuple(image.labels.get(name, ())) for name, values in said.labels.items())
            or bool(said.split and said.split != image.split)
            or bool(patient and patient != image.patient)
        )

    def _rows(self, image: Image, file: str | None) -> list[SheetRow]:
        """Those that name ``image``, the narrowest first."""
        found = []
        for kind in KEYS:
            if kind == "file":
                row = self._named(image.keys) if file is None else self._sheet.named(file)
            else:
                row = self._index[kind].get(_own(image, kind))
            if row is not None:
                found.append(row)
        return found

    def _agrees(self, row: SheetRow, image: Image, file: str | None) -> bool:
        said = {kind: self._pseudonyms.identifier(kind, row.keys[kind]) for kind in ("sop", "accession", "patient")}
        own = {kind: _own(image, kind) for kind in said}
        said["base"] = self._pseudonyms.names(row.keys["file"])["base"]
        own["base"] = image.keys.get("base", "") if file is None else self._pseudonyms.names(file)["base"]
        return not any(own[kind] and said[kind] and own[kind] != said[kind] for kind in said)

    def _named(self, keys: Mapping[str, str]) -> SheetRow | None:
        """The row that means the file of this name, by pseudonyms alone."""
        if not {"file", "base"} <= keys.keys():
            return None
        row = self._files.get(keys["file"])
        if row is not None:
            return row
        row = self._bases.get(keys["base"])
        if row is None:
            return None
        name = row.keys["file"]
        bare = "/" not in name or self._pseudonyms.names(name.rpartition("/")[2])["file"] == keys["file"]
        return row if bare else None

    @cached_property
    def _names_patients(self) -> bool:
        return any(row.keys["patient"] or row.keys["accession"] for row in self._sheet.rows)

    @cached_property
    def _index(self) -> dict[str, dict[str, SheetRow]]:
        result: dict[str, dict[str, SheetRow]] = {kind: {} for kind in KEYS}
        for row in self._sheet.rows:
            for kind in row.level:
                if kind != "file":
                    result[kind][self._pseudonyms.identifier(kind, row.keys[kind])] = row
        return result

    @cached_property
    def _files(self) -> dict[str, SheetRow]:
        return {self._pseudonyms.names(row.keys["file"])["file"]: row for row in self._sheet.rows if row.keys["file"]}

    @cached_property
    def _bases(self) -> dict[str, SheetRow | None]:
        result: dict[str, SheetRow | None] = {}
        for row in self._sheet.rows:
            if row.keys["file"]:
                base = self._pseudonyms.names(row.keys["file"])["base"]
                other = result.setdefault(base, row)
                if other is None or other.keys["file"] != row.keys["file"]:
                    result[base] = None
        return result


@dataclass
class Relabelled:
    """What a label sheet changes in a vault."""

    changed: list[Row] = field(default_factory=list, repr=False)
    met: int = 0
    """Images that the sheet names."""
    refused: Counter[Reason] = field(default_factory=Counter)
    """Images that it names, and that keep what they have."""
    erased: int = 0
    """Images of unknown patients that the sheet gives to a patient who was erased: to be erased too."""


def relabelled(vault: Vault, sheet: LabelSheet, shares: Sequence[float]) -> Relabelled:
    """What ``sheet`` changes: labels, split, attributes, and the patient of images that had none; nothing is written.

    An empty cell takes nothing away. Raises :class:`DataError` where a patient's images would be in two splits.
    """
    pseudonyms = Pseudonyms(vault.secret)
    overlay, done, splits = Overlay(sheet, pseudonyms), Relabelled(), {}
    for row in vault.each():
        overlay.meet(row)
        if "anonymous" not in row.keys:
            splits[row.patient] = row.split
    tombstones = vault.tombstones
    after_splits: dict[str, set[str]] = {}
    for row in vault.each():
        after = row
        try:
            said = overlay.find(row)
            if said is not None:
                after = _after(row, said)
                patient = pseudonyms.patient(said.patient)
                if "anonymous" in row.keys and patient:
                    keys = {kind: value for kind, value in row.keys.items() if kind != "anonymous"}
                    split = said.split or splits.get(patient) or pseudonyms.split(patient, shares)
                    after = replace(after, patient=patient, keys=keys, split=split)
                _storable(after)
                done.met += 1
                done.erased += after.patient in tombstones
        except Refused as refused:
            after = row
            done.refused[refused.reason] += 1
        after_splits.setdefault(after.patient, set()).add(after.split)
        if after != row:
            done.changed.append(after)
    torn = sum(len(found) > 1 for found in after_splits.values())
    if torn:
        raise DataError(f"the sheet puts images of {torn} patients into two splits; give all of a patient's the same")
    return done


def _after(row: Row, said: Labelled) -> Row:
    return replace(
        row,
        labels={**row.labels, **{name: values for name, values in said.labels.items() if values}},
        split=said.split or row.split,
        attributes={**said.attributes, **row.attributes},
    )


def _storable(row: Row) -> None:
    try:
        encode_meta(row, row.id)
    except DataError:
        raise Refused(TOO_MUCH) from None


def _own(image: Image, kind: str) -> str:
    """An image's pseudonym of that kind, or empty."""
    if kind == "patient":
        return "" if "anonymous" in image.keys else image.patient
    return image.keys.get(kind, "")
