"""Tables that people write: CSV and Excel workbooks as they are really saved, read strictly.

CSV: comma, semicolon or tab between cells (told from the header), UTF-8 with or without
byte order mark. XLSX (ECMA-376): one worksheet, the values as last calculated. Which of
the two a file is, its first bytes say, not its name. Whatever would make a row mean
something else than its author thought is refused with its line number: a row with more
or fewer cells than the header, a column named twice, a control character, another
encoding, merged cells, a formula without a result, a number that Excel has rounded.
"""

from __future__ import annotations

import csv
import difflib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from xml.parsers import expat

from common.errors import DataError

MAX_BYTES = 1 << 30
MAX_UNPACKED_BYTES = 1 << 27
"""Of an XLSX file, all parts together, before any is parsed: some 300,000 rows of ten columns."""
MAX_PARTS = 4096
OLDEST = 120
"""An age in years above is a typing error (ChestX-ray14 has 414)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LAST_ROW = 1 << 20
_EXACT_BELOW = 10**15  # Excel keeps 15 digits of a number
_FORMULA = re.compile(rb"<(?:\w+:)?f[\s/>]")
_ROW = re.compile(rb"""<(?:\w+:)?row\s(?:[^>]*?\s)?r\s*=\s*["'](\d+)["']""")
_MERGED = re.compile(rb"<(?:\w+:)?mergeCell[\s/>]")

Line = tuple[int, list[str]]


class Sheet:
    """One table: ``columns`` at once, rows when iterated. Raises :class:`DataError` naming file, line and remedy.

    ``loose`` accepts what ChestX-ray14 has: unnamed columns at the end of rows. ``worksheet``
    names one of a workbook's; else the first that is not hidden.
    """

    def __init__(self, path: Path, *, loose: bool = False, worksheet: str = "") -> None:
        self.name, self._path, self._loose = path.name, path, loose
        if not path.is_file():
            raise DataError(f"{self.name}: no such file; add it, or correct its path")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{self.name}: larger than {MAX_BYTES >> 30} GiB; split the folder into several")
        self._delimiter, self._workbook = ",", self._read_workbook(worksheet)
        first = next(self._lines(), None)
        if first is None:
            raise DataError(f"{self.name}: empty; its first line names the columns (file,label,…)")
        if self._workbook is None:
            self._delimiter = _delimiter(first[1])
        header = next(self._lines())[1]
        self.columns = tuple(self._clean(cell, 1) for cell in header)
        twice = sorted({name for name in self.columns if name and self.columns.count(name) > 1})
        if twice:  # a list without a header begins with somebody's number, which no message repeats
            place = self.columns.index(twice[0]) + 1
            name = f"column {place}" if re.search(r"\d", twice[0]) else f"column {twice[0]!r}"
            raise DataError(f"{self.name}: {name} is named twice; keep one")

    def require(self, column: str, why: str) -> None:
        """Raise :class:`DataError` with a "did you mean" where ``column`` is not among the columns."""
        if column in self.columns:
            return
        folded = {name.casefold(): name for name in self.columns if name}
        close = difflib.get_close_matches(column.casefold(), list(folded), n=1)
        hint = f"did you mean {folded[close[0]]!r}? " if close else ""
        present = ", ".join(name for name in self.columns if name) or "none"
        raise DataError(f"{self.name}: no column {column!r} ({why}); {hint}its columns are: {present}")

    def meanings(self, spellings: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Meaning -> column, for the columns that have one; :class:`DataError` where two have the same.

        ``spellings`` are compared with columns as :func:`squeezed`.
        """
        known = {spelling: meaning for meaning, several in spellings.items() for spelling in several}
        found: dict[str, str] = {}
        for column in self.columns:
            meaning = known.get(squeezed(column), "")
            if meaning in found:
                raise DataError(
                    f"{self.name}: columns {found[meaning]!r} and {column!r} are both the {meaning}; keep one"
                )
            if meaning:
                found[meaning] = column
        return found

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
        """Line number and the cells of ``columns``, stripped; blank lines are passed over."""
        places = [(name, self.columns.index(name)) for name in columns]
        width, lines = len(self.columns), self._lines()
        next(lines)
        for number, cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if self._workbook is not None:  # a workbook does not store the empty cells at a row's end
                cells = cells + [""] * (width - len(cells))
            if len(cells) < width or (len(cells) > width and (not self._loose or any(cells[width:]))):
                raise DataError(
                    f"{self.name} line {number}: {len(cells)} cells, the header names {width}; "
                    + (
                        'put a cell that holds the separator into "quotes"'
                        if self._workbook is None
                        else "name that column in the first row, or empty it"
                    )
                )
            yield number, {name: self._clean(cells[place], number) for name, place in places}

    def _lines(self) -> Iterator[Line]:
        if self._workbook is not None:
            yield from self._workbook
            return
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=self._delimiter, strict=True)
                for cells in reader:
                    yield reader.line_num, cells
        except UnicodeDecodeError:
            raise DataError(f"{self.name}: not UTF-8 text; save it again as 'CSV UTF-8', or as .xlsx") from None
        except csv.Error as error:
            raise DataError(f"{self.name} line {reader.line_num}: not valid CSV: {error}; mend that line") from None
        except OSError as error:
            raise self._unreadable(error) from None

    def _read_workbook(self, worksheet: str) -> list[Line] | None:
        """A workbook's rows, or ``None`` for a file that is none."""
        try:
            with self._path.open("rb") as file:
                start = file.read(8)
            if start == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
                raise DataError(
                    f"{self.name}: an old Excel workbook (.xls) or one with a password; save it as .xlsx without one"
                )
            if not start.startswith(b"PK\x03\x04"):
                if worksheet:
                    raise DataError(f"{self.name}: no Excel workbook, so it has no worksheet; leave its name out")
                return None
            return _Workbook(self.name, self._path, worksheet).lines()
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(f"{self.name}: cannot be read: {error.strerror}; check the file and its rights")

    def _clean(self, cell: str, line: int) -> str:
        cell = cell.strip(" \t\u00a0")
        if _CONTROL.search(cell):
            raise DataError(f"{self.name} line {line}: a cell holds a control character (NUL, line break …); remove it")
        return cell


def _check_markup(archive: zipfile.ZipFile) -> None:
    """Raises :class:`ValueError` for a part that declares a document type, and with it entities.

    Which parser openpyxl takes depends on what else is installed (lxml goes before defusedxml): neither is relied on.
    """

    def refuse(*_: object) -> None:
        raise ValueError("a part of a workbook declares a document type")

    for part in archive.infolist():
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = refuse
        with suppress(expat.ExpatError):  # a picture; or damaged markup, which openpyxl refuses itself
            parser.Parse(archive.read(part), True)


class _Workbook:
    """One XLSX file, read whole by openpyxl, when none of its parts declares entities."""

    def __init__(self, name: str, path: Path, worksheet: str) -> None:
        self._name, self._path, self._worksheet = name, path, worksheet

    def lines(self) -> list[Line]:
        """Rows as Excel numbers them, cells as text, without the empty ones at a row's end."""
        import openpyxl  # type: ignore[import-untyped]

        try:
            with warnings.catch_warnings(), zipfile.ZipFile(self._path) as archive:
                warnings.simplefilter("ignore")  # of styles and extensions that we do not read
                self._check_size(archive)
                _check_markup(archive)
                with closing(openpyxl.load_workbook(archive.fp, read_only=True, data_only=True)) as book:
                    sheet = self._chosen(book)
                    part = archive.read(sheet._worksheet_path)
                    self._check_rows(part)
                    pending = self._formulas(archive) if _FORMULA.search(part) else frozenset()
                    return [
                        (number, self._texts(number, cells, pending))
                        for number, cells in enumerate(_rows_of(sheet), start=1)
                        if cells or number == 1
                    ]
        except DataError:
            raise
        except Exception as error:  # openpyxl has no error of its own; whatever a damaged part raises means the same
            if isinstance(error, OSError) and error.errno:
                raise
            raise DataError(f"{self._name}: not a sound Excel workbook; open and save it again as .xlsx") from None

    def _check_size(self, archive: zipfile.ZipFile) -> None:
        """Before parsing. zipfile never unpacks more of a part than the size that is counted here."""
        parts = archive.infolist()
        if len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > MAX_UNPACKED_BYTES:
            raise DataError(
                f"{self._name}: unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB; save it as 'CSV UTF-8'"
            )

    def _check_rows(self, part: bytes) -> None:
        """What openpyxl would pass over in silence."""
        if _MERGED.search(part):
            raise DataError(f"{self._name}: has merged cells, which leave rows empty; unmerge them")
        numbers = [int(number) for number in _ROW.findall(part)]
        if numbers != sorted(set(numbers)) or (numbers and numbers[-1] > _LAST_ROW):
            raise DataError(f"{self._name}: rows are not in order; open it in Excel and save it again")

    def _chosen(self, book: Any) -> Any:
        sheets = {sheet.title: sheet for sheet in book.worksheets}
        if self._worksheet and self._worksheet not in sheets:
            present = ", ".join(sheets) or "none"
            raise DataError(f"{self._name}: no worksheet {self._worksheet!r}; its worksheets are: {present}")
        visible = [sheet for sheet in sheets.values() if sheet.sheet_state == "visible"]
        if not self._worksheet and not visible:
            raise DataError(f"{self._name}: no worksheet to see; name one of: {', '.join(sheets) or 'none'}")
        return sheets[self._worksheet] if self._worksheet else visible[0]

    def _formulas(self, archive: zipfile.ZipFile) -> frozenset[tuple[int, int]]:
        """Row and column of every formula."""
        import openpyxl

        with closing(openpyxl.load_workbook(archive.fp, read_only=True)) as book:
            rows = enumerate(_rows_of(self._chosen(book)), start=1)
            return frozenset(
                (number, place) for number, cells in rows for place, cell in enumerate(cells) if cell.data_type == "f"
            )

    def _texts(self, number: int, cells: Sequence[Any], pending: frozenset[tuple[int, int]]) -> list[str]:
        texts = [self._text(number, cell, (number, place) in pending) for place, cell in enumerate(cells)]
        while texts and not texts[-1]:
            texts.pop()
        return texts

    def _text(self, number: int, cell: Any, formula: bool) -> str:
        """What Excel's own "save as CSV UTF-8" would write, as far as that is not a matter of language."""
        value = cell.value
        if value is None:
            if formula and cell.data_type == "n":  # a formula whose result is an empty text has another type
                raise self._refused(number, "a formula was never calculated; open the file in Excel and save it")
            return ""
        if cell.data_type == "e":
            raise self._refused(number, "a cell holds an error such as #N/A; mend its formula or empty it")
        if isinstance(value, bool):
            return "TRUE" if value else "FALSE"
        if isinstance(value, int | float):
            if abs(value) >= _EXACT_BELOW:
                raise self._refused(number, "a number of 16 or more digits, which Excel rounds; type it as text")
            if value != int(value):
                return format(value, ".15g")
            zeros = cell.number_format  # "000000" shows 123 as 000123
            return str(int(value)).zfill(len(zeros) if set(zeros) == {"0"} else 0)
        if isinstance(value, datetime):
            return (value.date() if value.time() == time() else value).isoformat()
        return value.isoformat() if isinstance(value, date | time) else str(value)

    def _refused(self, number: int, why: str) -> DataError:
        return DataError(f"{self._name} line {number}: {why}")


def _rows_of(sheet: Any) -> Iterator[Sequence[Any]]:
    """Every row, whatever size the file says it has: some writers say A1."""
    sheet.reset_dimensions()
    rows: Iterator[Sequence[Any]] = sheet.iter_rows(min_row=1, max_row=_LAST_ROW)
    return rows


def squeezed(column: str) -> str:
    """A column's name without what people vary: ``Patient ID``, ``patient_id`` and ``PatientID`` are one."""
    return re.sub(r"[\s_-]", "", column).casefold()


def values(cell: str) -> tuple[str, ...]:
    """The values of a cell: ``"Edema| Pneumonia"`` has two. Empty ones and repetitions are dropped."""
    return tuple(dict.fromkeys(part for part in (part.strip() for part in cell.split("|")) if part))


def plain_age(cell: str) -> str:
    """Age in whole years where the cell says so: ``36.0``, ``036Y`` and ``36`` are ``36``, ``013M`` is ``1``.

    Anything else stays as it is written (``36.5``, ``40-49``).
    """
    match = re.fullmatch(r"0*(\d{1,4})(?:\.0+)?([YMWD]?)", cell)
    if not match:
        return cell
    per_year = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2]]
    return str(int(match[1]) // per_year)


def binned_age(cell: str) -> str:
    """The decade of an age as in :func:`plain_age`: ``0-9``, ``10-19``, … ``80-89``, ``90+``; empty where unknown.

    Ages of 90 and above stand together (HIPAA Safe Harbor, 45 CFR 164.514(b)(2)(i)(C)). A decade
    stays as it is; above :data:`OLDEST`, and anything else, is unknown.
    """
    age = re.sub(r"\.\d+$", "", plain_age(cell.strip()))
    if age in _DECADES:
        return age
    if not re.fullmatch(r"[0-9]{1,3}", age) or int(age) > OLDEST:
        return ""
    return _DECADES[min(int(age) // 10, 9)]


_DECADES = (*(f"{start}-{start + 9}" for start in range(0, 90, 10)), "90+")


def _delimiter(header: Sequence[str]) -> str:
    """The separator of a header that was cut at commas."""
    whole = ",".join(header)
    return max(",;\t", key=lambda mark: (whole.count(mark), mark == ","))
