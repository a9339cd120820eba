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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from client.ingest.boxes import BoxSheet, fitted
from client.ingest.child import Role
from client.ingest.consent import OptOut
from client.ingest.kinds import Decoded, Identity, Picture, Reason, Refused, Rules
from client.ingest.labels import Labelled, LabelSheet, normal_id
from client.ingest.pool import Job, Pool
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quality import measure
from client.ingest.sources import Found
from client.vault.records import Box, Record, Row, pixel_digest
from client.vault.store import Vault

SAME_FILE = Reason("duplicate-file", "duplicate", "the same file under another name", "nothing: it is there once")
SAME_OBJECT = Reason("duplicate-object", "duplicate", "the same SOP instance once more", "nothing: it is there once")
SAME_PIXELS = Reason(
    "duplicate-pixels",
    "duplicate",
    "the same pixels as another image of this patient",
    "nothing: they are there once",
)
OTHER_PATIENT = Reason(
    "duplicate-patient",
    "labels",
    "the same pixels as another patient's image",
    "find out whose they are; leave the other one out or `fedward site erase` it",
)
WITHHELD = Reason("withheld", "consent", "the patient is on the opt-out list", "nothing: the image stays out")
ERASED = Reason("erased", "consent", "the patient was erased from this vault", "nothing: the image stays out")
UNKNOWN = Reason(
    "unknown-patient",
    "deidentify",
    "nobody says whose image it is, so it cannot be held against the opt-out list",
    "name its patient on the label sheet, or leave the list out",
)
NO_PATIENT = Reason("no-patient", "deidentify", "a DICOM object without a patient's number", "enter it in the PACS")
BLANK = Reason("blank-image", "pixels", "all pixels have one value", "leave it out")
TWO_SPLITS = Reason(
    "two-splits", "labels", "another split than the patient's images in the vault", "correct the sheet's split column"
)
NO_IMAGE = Reason("mask-without-image", "labels", "a mask whose image is not in the vault", "import its image too")
MASK_SHAPE = Reason("mask-shape", "labels", "a mask of another shape than its image", "draw it on the image's pixels")
HARMLESS = ("duplicate", "consent")
"""Stages that leave an import's exit code 0: what should be in the vault is there."""

_IDENTIFIERS = ("sop", "study", "series", "accession")
COMMIT_BYTES = 64 * 2**20
COMMIT_S = 5.0


@dataclass
class Summary:
    """What an import did."""

    files: int = 0
    read_bytes: int = 0
    images: int = 0
    unlabelled: int = 0
    """Of ``images``, those without any label."""
    anonymous: int = 0
    """Of ``images``, those whose patient is unknown: each file counts as a patient of its own."""
    known: int = 0
    """Files that were in the vault already."""
    masks: int = 0
    seconds: float = 0.0
    rejected: list[tuple[str, Reason]] = field(default_factory=list)
    """Pseudonym of the file's name, and why."""
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def refused(self) -> int:
        """Files or images that should have come in and did not."""
        return sum(reason.stage not in HARMLESS for _, reason in self.rejected)

    @property
    def duplicates(self) -> int:
        return sum(reason.stage == "duplicate" for _, reason in self.rejected)

    @property
    def withheld(self) -> int:
        return sum(reason.stage == "consent" for _, reason in self.rejected)

    def facts(self) -> dict[str, Any]:
        """Counts for the audit log and ``--json``."""
        return {
            "files": self.files,
            "images": self.images,
            "unlabelled": self.unlabelled,
            "anonymous": self.anonymous,
            "known": self.known,
            "masks": self.masks,
            "refused": self.refused,
            "duplicates": self.duplicates,
            "withheld": self.withheld,
            "reasons": dict(sorted(Counter(reason.code for _, reason in self.rejected).items())),
            "warnings": dict(sorted(self.warnings.items())),
        }


@dataclass(frozen=True)
class Sheets:
    """What the hospital says of its images."""

    labels: LabelSheet | None = None
    opt_out: OptOut | None = None
    boxes: BoxSheet | None = None
    masks: Callable[[str, str], Found | None] = field(default=lambda name, mask: None, repr=False)
    """The mask file of an image file, by the image's name and what the label sheet calls its mask (or empty)."""


@dataclass(frozen=True)
class _Origin:
    """Where an image comes from; ``name`` never leaves the process."""

    name: str = field(repr=False)
    reference: str
    source: str
    read: Callable[[], bytes] = field(repr=False)
    file: str = field(repr=False)
    """``name`` where it is a file's, else empty."""


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
        self._files: dict[str, str] = {}  # source -> file, of every image in the vault
        self._digests: dict[str, str] = {}  # pixels -> patient
        self._places: set[str] = set()
        self._objects: set[str] = set()
        self._splits: dict[str, str] = {}
        for row in vault.each():
            self._remember(row.keys, row.digest, row.patient, row.split)
        self._pending: list[Record] = []
        self._pending_bytes = 0
        self._since = clock()
        self._masks: list[tuple[_Origin, Callable[[], bytes], Role]] = []

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
        return self._pseudonyms.of("sop", normal_id(sop)) in self._objects

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
                if self._is_known(origin):
                    self.summary.known += 1
                    self._expect_mask(origin, self._mask_said(origin.file))
                else:
                    yield Job(key=origin, content=content)

    def _is_known(self, origin: _Origin) -> bool:
        if origin.source not in self._files:
            return False
        if self._files[origin.source] != self._pseudonyms.names(origin.name)["file"]:
            self._mask_said(origin.file)  # its row on the sheet has met its image
            raise Refused(SAME_FILE)
        return True

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
        if self._is_known(origin):  # the same file twice in one import
            return
        if decoded.masks:
            self._masks.append((origin, origin.read, "image"))
            return
        identity = decoded.identity
        said = self._sheets.labels.lookup(origin.file, identity) if self._sheets.labels else None
        number = identity.patient or (said.patient if said else "")
        if self._sheets.opt_out and self._sheets.opt_out.withheld(identity, number):
            raise Refused(WITHHELD)
        if not number and identity.sop:
            raise Refused(NO_PATIENT)
        if not number and self._sheets.opt_out:
            raise Refused(UNKNOWN)
        patient = self._pseudonyms.patient(number) or self._pseudonyms.of("anonymous", origin.name)
        if patient in self._tombstones:
            raise Refused(ERASED)
        split = self._split(patient, said)
        keys = {"source": origin.source, **self._pseudonyms.names(origin.name)}
        keys |= {kind: self._pseudonyms.of(kind, normal_id(getattr(identity, kind))) for kind in _IDENTIFIERS}
        if not number:
            keys["anonymous"] = "yes"
        taken: list[Record] = []
        refused: list[Reason] = []
        for picture in decoded.pictures:
            try:
                taken.append(self._record(origin, identity, picture, said, patient, split, keys))
            except Refused as one:
                refused.append(one.reason)
        # A file is known by its images: one without any stays unknown, and is refused again.
        for record in taken:
            self._remember(record.keys, record.digest, patient, split)
            self._pending_bytes += record.pixels.nbytes
        for reason in dict.fromkeys(refused):
            self._reject(origin.reference, reason)
        self._pending += taken
        if taken:
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
        part = f"{origin.source}/{picture.number}"
        place = self._place(identity.sop, picture.number) if identity.sop else part
        if place in self._places:
            raise Refused(SAME_OBJECT)
        digest = pixel_digest(pixels)
        if self._vault.tombstone(digest) in self._tombstones:
            raise Refused(ERASED)
        if digest in self._digests:
            raise Refused(SAME_PIXELS if self._digests[digest] == patient else OTHER_PATIENT)
        self._digests[digest] = patient
        look, measures = measure(pixels)
        if picture.scale != (1.0, 1.0):  # masks and boxes that come later are in source pixels
            measures = {**measures, "scale_down": picture.scale[0], "scale_across": picture.scale[1]}
        labels = dict(said.labels) if said else {}
        if picture.labels and not any(labels.values()):
            labels = {"label": picture.labels}
        own = {**keys, "part": part, "place": place, "look": look}
        return Record(
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

    def _boxes(self, origin: _Origin, identity: Identity, picture: Picture) -> tuple[Box, ...]:
        if self._sheets.boxes is None:
            return ()
        return fitted(self._sheets.boxes.lookup(origin.file, identity), picture)

    def _split(self, patient: str, said: Labelled | None) -> str:
        """The split of a patient: the vault's, the sheet's, or drawn; never two of them."""
        wanted, has = said.split if said else "", self._splits.get(patient, "")
        if wanted and has and wanted != has:
            raise Refused(TWO_SPLITS)
        return has or wanted or self._pseudonyms.split(patient, self._shares)

    def _remember(self, keys: Mapping[str, str], digest: str, patient: str, split: str) -> None:
        if "source" in keys:
            self._files[keys["source"]] = keys["file"]
        if "place" in keys:
            self._places.add(keys["place"])
        if "sop" in keys:
            self._objects.add(keys["sop"])
        self._digests[digest] = patient
        self._splits[patient] = split

    def _reject(self, reference: str, reason: Reason) -> None:
        self.summary.rejected.append((reference, reason))

    def _commit_when_due(self) -> None:
        if self._pending_bytes >= COMMIT_BYTES or (self._pending and self._clock() - self._since >= COMMIT_S):
            self._commit()

    def _commit(self) -> None:
        pending, self._pending = self._pending, []
        self._pending_bytes, self._since = 0, self._clock()
        if pending:
            self._vault.add(pending, self._codec)
            self.summary.images += len(pending)
            self.summary.unlabelled += sum(not any(record.labels.values()) for record in pending)
            self.summary.anonymous += sum("anonymous" in record.keys for record in pending)
            self._committed(self._vault)

    def _mask_said(self, name: str) -> str:
        """What the label sheet calls the mask of a file that was imported before."""
        with suppress(Refused):  # the file's own identity is not known here, and it is in the vault already
            said = self._sheets.labels.lookup(name, Identity()) if self._sheets.labels else None
            return said.mask if said else ""
        return ""

    def _expect_mask(self, origin: _Origin, mask: str) -> None:
        """Note the mask file of an image, to be put on it when all images are in."""
        found = self._sheets.masks(origin.file, mask) if origin.file else None
        if found is not None:
            self._masks.append((origin, found.read, "mask"))

    def _add_masks(self) -> None:
        """Put masks on the images that have none, also on those of an import that was killed before it came to this."""
        if not self._masks:
            return
        bare: dict[str, Row] = {}
        present: set[str] = set()
        for row in self._vault.each():
            for place in (row.keys.get("place", ""), row.keys.get("part", "")):
                present.add(place)
                if not row.has_mask:
                    bare[place] = row
        jobs = (Job(key=origin, content=read, role=role) for origin, read, role in self._masks)
        for origin, decoded in self._decoded(jobs):
            with self._listed(origin), self._vault.changing() as change:
                for place, mask in self._placed(origin, decoded).items():
                    if place not in present:
                        raise Refused(NO_IMAGE)
                    if place in bare:
                        row = bare.pop(place)
                        change.replace(row, _fitted(mask, row))
                        self.summary.masks += 1
            self._committed(self._vault)
            self._told(self.summary)
        self._masks = []

    def _placed(self, origin: _Origin, decoded: Decoded) -> dict[str, NDArray[np.uint8]]:
        """The masks in one file by where they belong; the segments of one image are one mask."""
        result: dict[str, NDArray[np.uint8]] = {}
        for one in decoded.masks:
            place = self._place(one.sop, one.frame)
            result[place] = result[place] | one.mask if place in result else one.mask
        return result or {f"{origin.source}/{picture.number}": picture.pixels for picture in decoded.pictures}

    def _place(self, sop: str, number: int) -> str:
        """Where an image of a DICOM object is: the object and its frame."""
        return self._pseudonyms.of("place", f"{normal_id(sop)}/{number}")


def _fitted(mask: NDArray[np.uint8], row: Row) -> NDArray[np.uint8]:
    """``mask``, drawn on the pixels of the source or of the vault, on those of the vault: nearest neighbour."""
    height, width = row.shape[:2]
    source = round(height / row.measures.get("scale_down", 1.0)), round(width / row.measures.get("scale_across", 1.0))
    near = all(abs(side - wanted) <= 1 for side, wanted in zip(mask.shape, source, strict=True))
    if not near and mask.shape != (height, width):
        raise Refused(MASK_SHAPE)
    if mask.shape != (height, width):
        mask = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    return np.ascontiguousarray(mask)
