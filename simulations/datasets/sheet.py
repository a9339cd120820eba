"""Label sheets: CSV as people really save it, read strictly.

Comma, semicolon or tab between cells (told from the header), UTF-8 with or
without byte order mark. Whatever would make a row mean something else than its
author thought is refused with its line number: a row with more or fewer cells than
the header, a column named twice, a control character, another encoding.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import DataError

MAX_BYTES = 1 << 30
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Sheet:
    """One CSV file: ``columns`` at once, rows when iterated. Raises :class:`DataError` naming file, line and remedy.

    ``loose`` accepts what ChestX-ray14 has: unnamed columns at the end of rows.
    """

    def __init__(self, path: Path, *, loose: bool = False) -> None:
        self.name, self._path, self._loose = path.name, path, loose
        if not path.is_file():
            raise DataError(f"{self.name}: no such file in the folder; add it, or name the folder that holds it")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{self.name}: larger than {MAX_BYTES >> 30} GiB; split the folder into several")
        first = next(self._lines(","), None)
        if first is None:
            raise DataError(f"{self.name}: empty; its first line names the columns (file,label,…)")
        self._delimiter = _delimiter(first[1])
        header = next(self._lines(self._delimiter))[1]
        self.columns = tuple(self._clean(cell, 1) for cell in header)
        twice = sorted({name for name in self.columns if name and self.columns.count(name) > 1})
        if twice:
            raise DataError(f"{self.name}: column {twice[0]!r} is named twice; keep one")

    def require(self, column: str, why: str) -> None:
        """Raise :class:`DataError` with a "did you mean" where ``column`` is not among the columns."""
        if column in self.columns:
            return
        folded = {name.casefold(): name for name in self.columns if name}
        close = difflib.get_close_matches(column.casefold(), list(folded), n=1)
        hint = f"did you mean {folded[close[0]]!r}? " if close else ""
        present = ", ".join(name for name in self.columns if name) or "none"
        raise DataError(f"{self.name}: no column {column!r} ({why}); {hint}its columns are: {present}")

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
        """Line number and the cells of ``columns``, stripped; blank lines are passed over."""
        places = [(name, self.columns.index(name)) for name in columns]
        width, lines = len(self.columns), self._lines(self._delimiter)
        next(lines)
        for number, cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) < width or (len(cells) > width and (not self._loose or any(cells[width:]))):
                raise DataError(
                    f"{self.name} line {number}: {len(cells)} cells, the header names {width}; "
                    'put a cell that holds the separator into "quotes"'
                )
            yield number, {name: self._clean(cells[place], number) for name, place in places}

    def _lines(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=delimiter, strict=True)
                for cells in reader:
                    yield reader.line_num, cells
        except UnicodeDecodeError:
            raise DataError(f"{self.name}: not UTF-8 text; save it again as 'CSV UTF-8'") from None
        except csv.Error as error:
            raise DataError(f"{self.name} line {reader.line_num}: not valid CSV: {error}; mend that line") from None
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}; check the file and its rights") from None

    def _clean(self, cell: str, line: int) -> str:
        cell = cell.strip(" \t\u00a0")
        if _CONTROL.search(cell):
            raise DataError(f"{self.name} line {line}: a cell holds a control character (NUL, line break …); remove it")
        return cell


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


def _delimiter(header: Sequence[str]) -> str:
    """The separator of a header that was cut at commas."""
    whole = ",".join(header)
    return max(",;\t", key=lambda mark: (whole.count(mark), mark == ","))
