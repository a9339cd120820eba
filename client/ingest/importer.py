"""The order of an import: read, decode in the pool, ask consent, label, compare, seal, remember.

One bad file is listed and the import goes on. Whole files are committed, some 64 MB of them at a time; killed at any
moment, the same command goes on where it was, because a file is known by the keyed digest of its content. A second
import of the same files adds nothing. Masks come after all images: a segmentation object may be met before what it
lies on.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from client.ingest.boxes import BoxSheet, fitted
from client.ingest.child import Role
from client.ingest.consent import OptOut
from client.ingest.import_reasons import (
    BLANK,
    ERASED,
    HARMLESS,
    MASK_UNCLEAR,
    NO_IMAGE,
    NO_PATIENT,
    NOT_STORABLE,
    OTHER_PATIENT,
    OTHER_PERSON,
    SAID_TWICE,
    SAME_FILE,
    SAME_OBJECT,
    SAME_PIXELS,
    TOO_MUCH,
    TWO_SPLITS,
    UNKNOWN,
    WITHHELD,
)
from client.ingest.kinds import Decoded, Identity, Picture, Reason, Refused, Rules
from client.ingest.known import Image, Known, part_name
from client.ingest.labels import Labelled, LabelSheet, normal_id
from client.ingest.masks import MaskFile, MaskFiles, MaskWriter
from client.ingest.masks import fitted as fitted_mask
from client.ingest.pool import Job, Pool
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quality import measure
from client.ingest.relabel import Overlay
from client.ingest.sources import Found
from client.ingest.summary import Summary
from client.vault.records import Box, Record, Row, checked, encode_meta, pixel_digest, row_of
from client.vault.store import Vault
from common.errors import DataError

_IDENTIFIERS = ("sop", "study", "series", "accession")
_LATEST = 2**53  # a generation as long as any will be written
COMMIT_BYTES = 64 * 2**20
COMMIT_S = 5.0


@dataclass(frozen=True)
class Sheets:
    """What the hospital says of its images."""

    labels: LabelSheet | None = None
    opt_out: OptOut | None = None
    boxes: BoxSheet | None = None
    masks: MaskFiles = field(default_factory=MaskFiles, repr=False)


@dataclass(frozen=True)
class _Origin:
    """Where an image comes from; ``name`` never leaves the process."""

    name: str = field(repr=False)
    reference: str
    source: str
    read: Callable[[], bytes] = field(repr=False)
    file: str = field(repr=False)
    """``name`` where it is a file's, else empty."""


@dataclass(frozen=True, eq=False)
class _Mask:
    """A file of masks, to be read when all images are in."""

    origin: _Origin
    read: Callable[[], bytes] = field(repr=False)
    role: Role
    file: MaskFile | None = None
    """Where it is an image file's; else a segmentation object."""


class Importer:
    """Imports into ``vault``; a context manager, whose end ends the decoding processes.

    ``committed`` is called after every transaction, ``told`` after every file.
    """

    def __init__(
        self,
        vault: Vault,
        sheets: Sheets,
        *,
        rules: Rules,
        split: tuple[float, float, float],
        codec: str = "raw",
        workers: int = 1,
        committed: Callable[[Vault], None] = lambda vault: None,
        told: Callable[[Summary], None] = lambda summary: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        vault.migrate()
        self.summary = Summary()
        self._vault, self._sheets, self._shares = vault, sheets, split
        self._codec, self._committed, self._told = codec, committed, told
        self._pool = Pool(rules, workers)
        self._clock = clock
        self._pseudonyms = Pseudonyms(vault.secret)
        self._tombstones = vault.tombstones
        self._known = Known(vault)
        self._overlay = Overlay(sheets.labels, self._pseudonyms) if sheets.labels else None
        withheld = sheets.opt_out.pseudonymous(self._pseudonyms) if sheets.opt_out else frozenset()
        for row in vault.each():
            self._known.remember(row)
            if sheets.opt_out and self._is_withheld(row, withheld, sheets.opt_out):
                self.summary.withheld_rows.append(row.id)
        self._fresh: set[str] = set()  # files that came in with this run
        self._pending: list[Record] = []
        self._pending_bytes = 0
        self._since = clock()
        self._masks: list[_Mask] = []
        self._writer = MaskWriter(vault, self.summary, committed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def run(self, found: Iterable[Found]) -> None:
        """Import ``found``; when it returns, all of it is committed or listed. May be called again.

        Raises :class:`VaultError` (disk full …); what was committed before stays. On an error or Ctrl-C ``summary``
        says what was done until then.
        """
        start = self._clock()
        self._since = start
        self._fresh.clear()
        try:
            try:
                for origin, decoded in self._decoded(self._jobs(found)):
                    with self._listed(origin):
                        self._take(origin, decoded)
                    self._commit_when_due()
                    self._told(self.summary)
            finally:  # a PACS that went away, Ctrl-C: what is decoded is kept
                self._commit()
            self._add_masks()
        finally:
            self.summary.seconds += self._clock() - start
            self._told(self.summary)

    def has(self, sop: str) -> bool:
        """Whether the DICOM object of that SOP Instance UID is in the vault."""
        return self._known.has_object(self._pseudonyms.identifier("sop", sop))

    def reference(self, name: str) -> str:
        """How a file is called in lists: 12 digits that only this site can trace back."""
        return self._pseudonyms.reference(name)

    def _jobs(self, found: Iterable[Found]) -> Iterator[Job]:
        for file in found:
            self.summary.files += 1
            origin = _Origin(file.name, self.reference(file.name), "", file.read, file.name if file.named else "")
            with self._listed(origin):
                content = file.read()
                self.summary.read_bytes += len(content)
                source = self._pseudonyms.of("source", hashlib.sha256(content).digest())
                origin = replace(origin, source=source)
                if not self._is_known(origin):
                    yield Job(key=origin, content=content)

    def _is_withheld(self, row: Row, withheld: Collection[str], opt_out: OptOut) -> bool:
        if row.patient in withheld or row.keys.get("accession") in withheld:
            return True
        return self._overlay is not None and "sop" not in row.keys and self._overlay.withholds(row, opt_out)

    def _is_known(self, origin: _Origin) -> bool:
        """Whether nothing is to be done about a file but to count it.

        Raises :class:`Refused` for another copy, be it that the sheet contradicts itself over the two.
        """
        held = self._known.file(origin.source)
        if held is None:
            return False
        said, contradicted = self._said_of(held, origin)
        if origin.source in self._fresh or held.keys["file"] != self._pseudonyms.names(origin.name)["file"]:
            raise Refused(SAID_TWICE if contradicted else SAME_FILE)
        self.summary.known += 1
        self.summary.other_labels += contradicted
        if "partly" in held.keys and not contradicted:
            return False  # what of it was refused may be right by now
        if isinstance(held, Row) and not held.has_mask:
            self._expect_mask(origin, said.mask if said else "")
        return True

    def _said_of(self, held: Image, origin: _Origin) -> tuple[Labelled | None, bool]:
        """What the sheet says of a file by this name, and whether the image of that content contradicts it."""
        if self._overlay is None:
            return None, False
        try:
            said = self._overlay.find(held, origin.file)
        except Refused:
            return None, True
        return said, said is not None and self._overlay.differs(held, said)

    def _decoded(self, jobs: Iterable[Job]) -> Iterator[tuple[_Origin, Decoded]]:
        """What could be decoded; the rest is listed."""
        for job, result in self._pool.results(jobs):
            if isinstance(result, Refused):
                self._reject(job.key.reference, result.reason)
                self._told(self.summary)
            else:
                self.summary.warnings.update(result.warnings)
                yield job.key, result

    @contextmanager
    def _listed(self, origin: _Origin) -> Iterator[None]:
        try:
            yield
        except Refused as refused:
            self._reject(origin.reference, refused.reason)

    def _take(self, origin: _Origin, decoded: Decoded) -> None:
        """Put the pictures of one file among what is to be committed."""
        held = self._known.file(origin.source)
        if held is not None and (origin.source in self._fresh or "partly" not in held.keys):  # twice in one import
            raise Refused(SAID_TWICE if self._said_of(held, origin)[1] else SAME_FILE)
        if decoded.masks:
            self._masks.append(_Mask(origin, origin.read, "image"))
            return
        identity = decoded.identity
        said = self._sheets.labels.lookup(origin.file, identity) if self._sheets.labels else None
        number = identity.patient or (said.patient if said else "")
        accession = said.accession if said else ""
        if self._sheets.opt_out and self._sheets.opt_out.withheld(identity, number, accession):
            raise Refused(WITHHELD)
        if not number and identity.sop:
            raise Refused(NO_PATIENT)
        if not number and self._sheets.opt_out:
            raise Refused(UNKNOWN)
        patient = self._pseudonyms.patient(number) or self._pseudonyms.of("anonymous", origin.source)
        if patient in self._tombstones:
            raise Refused(ERASED)
        split = self._split(patient, said)
        keys = {"source": origin.source, **self._pseudonyms.names(origin.name)}
        ids = {kind: getattr(identity, kind) for kind in _IDENTIFIERS}
        if said and not identity.sop:  # an examination that only the sheet names
            ids["accession"] = ids["accession"] or said.accession
        keys |= {kind: self._pseudonyms.identifier(kind, number) for kind, number in ids.items()}
        if not number:
            keys["anonymous"] = "yes"
        taken: list[Record] = []
        refused: list[Reason] = []
        for picture in decoded.pictures:
            if self._known.part(origin.source, picture.number) is not None:
                continue  # of a file that was refused in part before
            try:
                taken.append(self._record(origin, identity, picture, said, patient, split, keys))
                self._known.remember(taken[-1])
            except Refused as one:
                refused.append(one.reason)
        # A file is known by its images: one without any stays unknown, and is refused again.
        if any(reason.stage not in HARMLESS for reason in refused):
            taken = [replace(record, keys={**record.keys, "partly": "yes"}) for record in taken]
            for record in taken:
                self._known.remember(record)
        for reason in dict.fromkeys(refused):
            self._reject(origin.reference, reason)
        self._pending += taken
        self._pending_bytes += sum(record.pixels.nbytes for record in taken)
        if taken or held is not None:
            self._fresh.add(origin.source)
            self._expect_mask(origin, said.mask if said else "")

    def _record(
        self,
        origin: _Origin,
        identity: Identity,
        picture: Picture,
        said: Labelled | None,
        patient: str,
        split: str,
        keys: Mapping[str, str],
    ) -> Record:
        pixels = picture.pixels
        if pixels.min() == pixels.max():
            raise Refused(BLANK)
        part = part_name(origin.source, picture.number)
        place = part
        if identity.sop:
            place = self._place(identity.sop, picture.number)
            if (other := self._known.place(place)) is not None:
                raise Refused(SAME_OBJECT if other.patient == patient else OTHER_PERSON)
        digest = pixel_digest(pixels)
        if self._vault.tombstone(digest) in self._tombstones:
            raise Refused(ERASED)
        if (other := self._known.pixels(digest)) is not None:
            raise Refused(SAME_PIXELS if other.patient == patient else OTHER_PATIENT)
        look, measures = measure(pixels)
        if picture.scale != (1.0, 1.0):  # masks and boxes that come later are in source pixels
            measures = {**measures, "scale_down": picture.scale[0], "scale_across": picture.scale[1]}
        labels = dict(said.labels) if said else {}
        if picture.labels and not any(labels.values()):
            labels = {"label": picture.labels}
        own = {**keys, "part": part, "place": place, "look": look}
        record = Record(
            pixels=pixels,
            patient=patient,
            labels=labels,
            split=split,
            attributes={**(said.attributes if said else {}), **picture.attributes},
            keys={kind: value for kind, value in own.items() if value},
            boxes=self._boxes(origin, identity, picture),
            measures=measures,
            digest=digest,
        )
        self._check(record)
        return record

    def _check(self, record: Record) -> None:
        """Refuse what the vault would: there it would stop all that is committed together."""
        try:
            form = checked(record, 1)
        except DataError:
            raise Refused(NOT_STORABLE) from None
        try:
            encode_meta(
                row_of(0, replace(record, keys={**record.keys, "partly": "yes"}), form, self._codec, _LATEST), 1
            )
        except DataError:
            raise Refused(TOO_MUCH) from None

    def _boxes(self, origin: _Origin, identity: Identity, picture: Picture) -> tuple[Box, ...]:
        if self._sheets.boxes is None:
            return ()
        return fitted(self._sheets.boxes.lookup(origin.file, identity), picture)

    def _split(self, patient: str, said: Labelled | None) -> str:
        """The split of a patient: the vault's, the sheet's, or drawn; never two of them."""
        wanted, has = said.split if said else "", self._known.split(patient)
        if wanted and has and wanted != has:
            raise Refused(TWO_SPLITS)
        return has or wanted or self._pseudonyms.split(patient, self._shares)

    def _reject(self, reference: str, reason: Reason) -> None:
        self.summary.rejected.append((reference, reason))

    def _commit_when_due(self) -> None:
        if self._pending_bytes >= COMMIT_BYTES or (self._pending and self._clock() - self._since >= COMMIT_S):
            self._commit()

    def _commit(self) -> None:
        pending, self._pending = self._pending, []
        self._pending_bytes, self._since = 0, self._clock()
        if pending:
            with self._vault.changing() as change:
                rows = [change.insert(record, number, self._codec) for number, record in enumerate(pending, start=1)]
            self.summary.images += len(pending)
            self.summary.unlabelled += sum(not any(record.labels.values()) for record in pending)
            self.summary.anonymous += sum("anonymous" in record.keys for record in pending)
            for row in rows:
                self._known.remember(row)
            self._committed(self._vault)

    def _expect_mask(self, origin: _Origin, said: str) -> None:
        """Note the mask file of an image, to be put on it when all images are in."""
        with self._listed(origin):
            file = self._sheets.masks.find(origin.file, said) if origin.file else None
            if file is not None:
                self._masks.append(_Mask(origin, file.file.read, "mask", file))

    def _add_masks(self) -> None:
        """Put masks on the images that have none, also on those of an import that was killed before it came to this."""
        masks, self._masks = self._masks, []
        users = Counter(one.file for one in masks if one.file is not None and one.file.for_one)
        clear = [one for one in masks if one.file is None or users[one.file] <= 1]
        for one in masks:
            if one.file is not None and users[one.file] > 1:
                self._reject(one.origin.reference, MASK_UNCLEAR)
        jobs = (Job(key=one.origin, content=one.read, role=one.role) for one in clear)
        try:
            for origin, decoded in self._decoded(jobs):
                with self._listed(origin):
                    self._writer.put([(row, fitted_mask(mask, row)) for row, mask in self._placed(origin, decoded)])
                self._told(self.summary)
        finally:
            self._writer.commit()

    def _placed(self, origin: _Origin, decoded: Decoded) -> list[tuple[Row, NDArray[np.uint8]]]:
        """The masks in one file, each with its image.

        A segmentation object is refused as a whole where one of its images is missing. A mask file may cover pictures
        of its image file that were refused: blank slices at a volume's ends.
        """
        if decoded.masks:
            found = [(self._known.place(self._place(one.sop, one.frame)), one.mask) for one in decoded.masks]
        else:
            found = [(self._known.part(origin.source, one.number), one.pixels) for one in decoded.pictures]
        result = [(row, mask) for row, mask in found if isinstance(row, Row)]
        if not result or (decoded.masks and len(result) < len(found)):
            raise Refused(NO_IMAGE)
        return result

    def _place(self, sop: str, number: int) -> str:
        """Where an image of a DICOM object is: the object and its frame."""
        return self._pseudonyms.of("place", f"{normal_id(sop)}/{number}")
