"""Label sheets: which labels an image gets, and from which row.

A row names its image by ``file``, ``sop`` (SOP Instance UID), ``accession`` or ``patient``
(spellings: :data:`SPELLINGS`). With a file or a SOP Instance UID it is about one image;
else with an accession number about one examination; else about all images of a patient.
An image takes the narrowest row there is: by sop, then file, accession, patient. What
that row says of the other three must agree with the image, or the image is refused.

Nothing but labels, split, mask and four attributes is read from a sheet; no message
repeats a cell.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from client.ingest.dicom_terms import VIEWS, device_words
from client.ingest.kinds import Identity, Reason, Refused, allowed_attributes, looks_personal
from client.ingest.readers import PREFIX, Readers, settle
from common.errors import DataError
from common.labels import Labels
from common.sheet import Sheet, binned_age, squeezed, values

V = TypeVar("V")

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "sop": ("sop", "sopuid", "sopinstance", "sopinstanceuid"),
    "file": ("file", "filename", "filepath", "path", "image", "imagefile", "imageindex"),
    "accession": ("accession", "accessionnumber"),
    "patient": ("patient", "patientid", "subject", "subjectid"),
    "split": ("split",),
    "mask": ("mask", "maskfile"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage"),
    "view": ("view", "viewposition"),
    "device": ("device", "manufacturermodelname"),
}
"""Columns that have a meaning; case, spaces, ``_`` and ``-`` in a column's name do not count."""

KEYS = ("sop", "file", "accession", "patient")
"""In order of precedence."""
DEFAULT_LABELS = ("label", "finding")
LONGEST_VALUE = 64
MANY_VALUES = 50
"""A label column with more values, nearly one a row, is text about patients and no class."""
NEARLY_ONE_A_ROW = 0.8
_MEANING = {"sop": "SOP Instance UID", "file": "file", "accession": "accession number", "patient": "patient"}
_NO_LABEL = (*KEYS, "split", "mask", "age")
_ATTRIBUTES = ("sex", "age", "view", "device")
_SPLITS = ("", "train", "val", "test")
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}
_MANY_DIGITS = re.compile(r"\d{6}")
_SHORTEST_ID = 4  # patients 0 and 1 do not make the labels 0 and 1 suspicious

MISMATCH = Reason(
    "label-mismatch",
    "labels",
    "the label sheet's row for this image names another file, examination or patient",
    "correct that row",
)
CONFLICT = Reason(
    "label-conflict", "labels", "two rows of the label sheet name this image and differ", "keep one of them"
)
AMBIGUOUS = Reason(
    "label-ambiguous",
    "labels",
    "a row of the label sheet gives a file name that two files have",
    "write the file with its folder, as in a/1.png",
)
_TWO_SPLITS = Reason(
    "split-conflict",
    "labels",
    "the label sheet puts images of this patient into two splits, or some into none",
    "give all images of a patient the same split",
)
DISPUTED = Reason(
    "readers-disagree",
    "labels",
    "the readers differ and there is no consensus",
    "add the consensus, or exclude such images from labels",
)


@dataclass(frozen=True)
class Labelled:
    """What a sheet says of an image. ``repr`` shows nothing of the patient."""

    labels: Labels = field(repr=False)
    patient: str = field(default="", repr=False)
    """As the sheet writes it; empty where it does not. For images that name none."""
    split: str = ""
    """``train``, ``val``, ``test`` or empty."""
    mask: str = field(default="", repr=False)
    """Relative name of the mask's file, ``/`` between steps, never upwards; else empty."""
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    """``sex``, ``age`` (a decade), ``view``, ``device``: for images that do not say so themselves."""
    accession: str = field(default="", repr=False, compare=False)
    """As the sheet writes it: an examination that was withheld need not be named in the image."""


@dataclass(frozen=True)
class Unused:
    """Rows that met no image."""

    rows: int
    lines: tuple[int, ...]
    """The first five."""


@dataclass(eq=False, slots=True)
class SheetRow:
    lines: list[int]
    keys: Mapping[str, str]
    """:data:`KEYS`, normal; empty where the row does not say."""
    labelled: Labelled
    disputed: bool = False
    used: bool = False
    file: str = ""
    """The file that came to this row by its name."""

    def same(self, other: SheetRow) -> bool:
        return (self.keys, self.labelled, self.disputed) == (other.keys, other.labelled, other.disputed)

    @property
    def level(self) -> tuple[str, ...]:
        """The keys by which images find this row: the narrowest that it names."""
        one_image = tuple(key for key in ("sop", "file") if self.keys[key])
        return one_image or (("accession",) if self.keys["accession"] else ("patient",))


class FileNames:
    """Files as sheets name them: with their folders or without.

    A sheet's ``a/1.png`` means the file ``a/1.png``. Where only one of its names ends in
    ``1.png``, it also means ``1.png`` and ``x/a/1.png``, but not ``b/1.png``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._paths = {normal(name) for name in names}
        self._by_base: dict[str, str] = {}
        for path in self._paths:
            base = _base(path)
            self._by_base[base] = "" if base in self._by_base else path

    def find(self, file: str) -> str:
        """The name, in normal form, that means ``file``; empty where none does."""
        path = normal(file)
        if path in self._paths:
            return path
        other = self._by_base.get(_base(path), "")
        shorter, longer = sorted((path, other), key=len)
        return other if other and f"/{longer}".endswith(f"/{shorter}") else ""


class LabelSheet:
    """One label sheet, ready to be asked. :meth:`load` makes it."""

    def __init__(self, name: str, rows: Sequence[SheetRow], dropped: int = 0) -> None:
        """Raises :class:`DataError` with line numbers where rows contradict one another."""
        self._name, self._dropped = name, dropped
        self._index: dict[str, dict[str, SheetRow]] = {key: {} for key in KEYS}
        self._rows = [row for row in rows if self._add(row)]
        self._check_patients()
        self._files = FileNames(self._index["file"])
        self._splits: dict[str, str] = {}

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        label_columns: Sequence[str] | None = None,
        readers: Readers | None = None,
        worksheet: str = "",
    ) -> LabelSheet:
        """Read a CSV or XLSX file; raises :class:`DataError` naming file, line and remedy.

        ``label_columns`` are taken as named and no others; without them ``label`` and
        ``finding``, whichever are there. ``readers`` says which columns hold readings; without
        it two or more columns ``reader_1``, ``reader_2`` … do, and ``consensus``, else ``label``,
        is the final word.
        """
        sheet = Sheet(path, worksheet=worksheet)
        parser = _Parser(sheet, label_columns, readers)
        rows = [parser.row(line, cells) for line, cells in sheet.rows(parser.columns)]
        if not rows:
            raise DataError(f"{sheet.name}: no rows under the header; add one row per image")
        parser.check_values()
        return cls(sheet.name, rows, parser.dropped)

    def __len__(self) -> int:
        """Rows that differ."""
        return len(self._rows)

    @property
    def merged(self) -> int:
        """Rows that repeat another in all that is read."""
        return sum(len(row.lines) - 1 for row in self._rows)

    def lookup(self, file: str, identity: Identity) -> Labelled | None:
        """What the sheet says of the image in ``file`` (relative to the source; empty where it came in none).

        ``None`` without a row for it. Raises :class:`Refused` where it is not certain that the row
        means this image, or where its readers differ.
        """
        own = {
            "sop": normal_id(identity.sop),
            "file": self._files.find(file) if file else "",
            "accession": folded(identity.accession),
            "patient": folded(identity.patient),
        }
        found = [row for key in KEYS if own[key] and (row := self._index[key].get(own[key])) is not None]
        if not found:
            return None
        for row in found:
            row.used = True
        row = found[0]
        own["file"] = _base(normal(file))
        said = {**row.keys, "file": _base(row.keys["file"])}
        if any(own[key] and said[key] and own[key] != said[key] for key in KEYS):
            raise Refused(MISMATCH)
        if any(other.level[-1] in ("sop", "file") and other.labelled != row.labelled for other in found[1:]):
            raise Refused(CONFLICT)
        if "file" in row.level and own["file"] and not (row.keys["sop"] and own["sop"]):
            row.file = row.file or normal(file)
            if row.file != normal(file):
                raise Refused(AMBIGUOUS)
        patient = own["patient"] or row.keys["patient"]
        if patient and self._splits.setdefault(patient, row.labelled.split) != row.labelled.split:
            raise Refused(_TWO_SPLITS)  # the sheet alone need not know that two of its rows are one patient
        if row.disputed:
            raise Refused(DISPUTED)
        return row.labelled

    def settled(self) -> Iterator[tuple[Mapping[str, str], Labelled]]:
        """Every row that differs, but for those whose readers do: its :data:`KEYS`, normal, and what it says."""
        return ((row.keys, row.labelled) for row in self._rows if not row.disputed)

    @property
    def rows(self) -> Sequence[SheetRow]:
        """Every row that differs."""
        return self._rows

    def named(self, file: str) -> SheetRow | None:
        """The row that means the file of this name."""
        return self._index["file"].get(self._files.find(file)) if file else None

    def masks(self) -> set[str]:
        """Names of the mask files, relative to a source."""
        return {row.labelled.mask for row in self._rows if row.labelled.mask}

    def unused(self) -> Unused:
        """Rows that have met no image so far."""
        lines = sorted(line for row in self._rows if not row.used for line in row.lines)
        return Unused(len(lines), tuple(lines[:5]))

    def notes(self) -> tuple[str, ...]:
        """What a data manager should know after an import, one line each, without ids."""
        left, result = self.unused(), []
        if self.merged:
            result.append(f"{self._name}: {_rows(self.merged)} repeating another count once")
        if self._dropped:
            result.append(f"{self._name}: {self._dropped} attributes are no plain, short words and were left out")
        if left.rows:
            more = " …" * (left.rows > len(left.lines))
            result.append(f"{self._name}: {_rows(left.rows)} met no image ({_lines(left.lines)}{more})")
        return tuple(result)

    def _add(self, row: SheetRow) -> bool:
        """Whether ``row`` is new; one that repeats another is counted with it, one that contradicts it refused."""
        known = None
        for key in row.level:
            known = self._index[key].setdefault(row.keys[key], row)
            if not known.same(row):
                raise DataError(
                    f"{self._name} {_lines((known.lines[0], *row.lines))}: the same {_MEANING[key]}, but the rows "
                    "differ; keep one row for it, with several labels in a cell separated by |"
                )
        if known is None or known is row:
            return True
        known.lines.extend(row.lines)
        return False

    def _check_patients(self) -> None:
        first: dict[str, SheetRow] = {}
        for row in self._rows:
            patient = row.keys["patient"]
            other = first.setdefault(patient, row) if patient else row
            if other.labelled.split != row.labelled.split:
                raise DataError(
                    f"{self._name} {_lines((other.lines[0], row.lines[0]))}: one patient in two splits, or in one and "
                    "in none; give all rows of a patient the same split"
                )


class _Parser:
    """From cells to rows, with the rules for what may be a label."""

    def __init__(self, sheet: Sheet, label_columns: Sequence[str] | None, readers: Readers | None) -> None:
        self._sheet, self.dropped = sheet, 0
        self._roles = sheet.meanings(SPELLINGS)
        if not any(key in self._roles for key in KEYS):
            raise DataError(f"{sheet.name}: no column says which image a row means; name one {', '.join(KEYS)}")
        self._labels = _label_columns(sheet, label_columns)
        self._readers, self._final = _readers(sheet, self._labels, readers, bool(label_columns))
        reading: tuple[str, ...] = ()
        if self._readers is not None:
            reading = (*self._readers.columns, *((self._final,) if self._final else ()))
            self._labels.pop("label", None)
        elif not self._labels:
            self._refuse("no label column; name one 'label', or say which with --label-column")
        self.columns = tuple(dict.fromkeys([*self._roles.values(), *self._labels.values(), *reading]))
        self._values: dict[str, dict[str, int]] = {column: {} for column in (*self._labels.values(), *reading)}
        self._filled = dict.fromkeys(self._values, 0)
        self._ids: set[str] = set()
        self._shared: dict[tuple[tuple[str, Any], ...], Any] = {}

    def row(self, line: int, cells: Mapping[str, str]) -> SheetRow:
        said = {role: unicodedata.normalize("NFC", cells[column]) for role, column in self._roles.items()}
        keys = {key: said.get(key, "") for key in KEYS}
        keys["file"] = normal(keys["file"])
        if not any(keys.values()):
            self._refuse(f"line {line}: names no image; fill in {' or '.join(k for k in KEYS if k in self._roles)}")
        self._ids.update(keys.values())
        split = said.get("split", "").lower()
        if split not in _SPLITS:
            self._refuse(f"line {line}: split must be train, val, test or empty; correct it")
        labels = {name: self._cell(column, cells, line) for name, column in self._labels.items()}
        disputed = False
        if self._readers is not None:
            readings = {column: self._cell(column, cells, line) for column in self._readers.columns}
            final = self._cell(self._final, cells, line) if self._final else ()
            label = settle(tuple(readings.values()), final)
            disputed = label is None and self._readers.disagreement == "refuse"
            labels |= {"label": label or (), **{PREFIX + column: cell for column, cell in readings.items()}}
        attributes = self._attributes(said)
        mask = self._inside(said.get("mask", ""), line)
        patient, accession = keys["patient"], keys["accession"]
        labelled = Labelled(self._share(labels), patient, split, mask, self._share(attributes), accession)
        keys |= {"accession": folded(accession), "patient": folded(patient)}
        return SheetRow([line], keys, labelled, disputed)

    def check_values(self) -> None:
        """Refuse label columns that hold text about patients."""
        for column, lines in self._values.items():
            if len(lines) > MANY_VALUES and len(lines) > NEARLY_ONE_A_ROW * self._filled[column]:
                self._refuse(f"column {column!r} has {len(lines)} values, nearly one a row; name a column of classes")
            for value, line in lines.items():
                if len(value) > LONGEST_VALUE or not value.isprintable():
                    self._refuse(f"line {line}: a label of more than {LONGEST_VALUE} printable characters; shorten it")
                if looks_personal(value):
                    self._refuse(f"line {line}: a label looks like a date, a name or a UID; name a column of classes")
                if len(value) >= _SHORTEST_ID and value in self._ids:
                    self._refuse(f"line {line}: a label is the id of an image or patient; name a column of classes")

    def _cell(self, column: str, cells: Mapping[str, str], line: int) -> tuple[str, ...]:
        found = values(cells[column])
        for value in found:
            self._values[column].setdefault(value, line)
        self._filled[column] += bool(found)
        return found

    def _attributes(self, said: Mapping[str, str]) -> dict[str, str]:
        given = {key: said[key] for key in _ATTRIBUTES if said.get(key)}
        meant = {**given}
        if "sex" in given:
            meant["sex"] = _SEXES.get(given["sex"].casefold(), "")
        if "age" in given:
            meant["age"] = binned_age(given["age"])
        kept = {
            key: value
            for key, value in allowed_attributes(meant).items()
            if not (looks_personal(value) or _MANY_DIGITS.search(value)) and _plain(key, value)
        }
        self.dropped += len(given) - len(kept)
        return kept

    def _inside(self, name: str, line: int) -> str:
        path = normal(name)
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in path.split("/"):
            self._refuse(f"line {line}: mask leads out of the folder; write it relative to the images' folder")
        return path

    def _share(self, mapping: dict[str, V]) -> Mapping[str, V]:
        """One object for all rows that say the same: there may be a million."""
        shared: Mapping[str, V] = self._shared.setdefault(tuple(mapping.items()), mapping)
        return shared

    def _refuse(self, problem: str) -> NoReturn:
        raise DataError(f"{self._sheet.name}{' ' if problem.startswith('line ') else ': '}{problem}")


def _plain(key: str, value: str) -> bool:
    """Whether an attribute says what a DICOM object might: a known view, a vendor's or a scanner's name."""
    if key == "view":
        return value.upper() in VIEWS
    return key != "device" or device_words(value)


def normal(name: str) -> str:
    """A file's name as sheets are compared with it: ``/`` between steps, NFC, without empty steps and ``.``."""
    steps = unicodedata.normalize("NFC", name).strip().replace("\\", "/").split("/")
    return "/".join(step for step in steps if step not in ("", "."))


def normal_id(text: str) -> str:
    """An id as sheets are compared with it: NFC, stripped."""
    return unicodedata.normalize("NFC", text).strip()


def folded(text: str) -> str:
    """A patient's or an examination's number as it is compared everywhere: case does not count, nor do zeros at the
    front of a number, which Excel drops. Folding twice changes nothing."""
    text = unicodedata.normalize("NFC", normal_id(text).casefold())
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _label_columns(sheet: Sheet, asked: Sequence[str] | None) -> dict[str, str]:
    """Name of a label -> its column."""
    if not asked:
        return {name: column for column in sheet.columns if (name := squeezed(column)) in DEFAULT_LABELS}
    for column in asked:
        sheet.require(column, "asked for as a label")
        if any(squeezed(column) in SPELLINGS[role] for role in _NO_LABEL):
            raise DataError(f"{sheet.name}: column {column!r} cannot be a label; name a column of classes")
    return {column: column for column in asked}


def _readers(
    sheet: Sheet, labels: Mapping[str, str], asked: Readers | None, labels_only: bool
) -> tuple[Readers | None, str]:
    """Whose readings the sheet holds, and the column of the final word or an empty name."""
    if asked is None:
        columns = tuple(column for column in sheet.columns if re.fullmatch(r"reader_\d+", column))
        if labels_only or len(columns) < 2:
            return None, ""
        asked = Readers(columns)
    must = () if asked.consensus == Readers.consensus else (asked.consensus,)
    for column in (*asked.columns, *must):
        sheet.require(column, "asked for as a reader's")
    if asked.consensus not in sheet.columns:
        return asked, labels.get("label", "")
    if labels.get("label", asked.consensus) != asked.consensus:
        raise DataError(f"{sheet.name}: has both a label and a consensus of readers; rename or remove one")
    return asked, asked.consensus


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _lines(numbers: Sequence[int]) -> str:
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
