"""The opt-out list: patients who withheld consent. Whoever stands on it never enters a vault.

A list that cannot be read for certain stops the import. Where in doubt an image is
withheld: ids are compared without regard to case, and numbers without zeros at the
front (Excel drops them), so ``00012`` on either side withholds ``12``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from client.ingest.kinds import Identity
from client.ingest.labels import SPELLINGS, folded
from client.ingest.pseudonyms import Pseudonyms
from common.errors import DataError
from common.sheet import Sheet


@dataclass(frozen=True)
class OptOut:
    """Who is withheld. ``repr`` shows nobody."""

    patients: frozenset[str] = field(default=frozenset(), repr=False)
    """As :func:`folded`."""
    accessions: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def load(cls, path: Path, *, worksheet: str = "") -> OptOut:
        """Read a text file of one patient id a line, or a CSV or XLSX file with a column ``patient`` or ``accession``.

        An empty file withholds nobody (``len`` is 0; say so). Raises :class:`DataError` for a file
        that is missing or not understood throughout; the import must then stop.
        """
        try:
            if path.is_file() and not path.stat().st_size:
                return cls()
        except OSError as error:
            raise DataError(f"{path.name}: cannot be read: {error.strerror}; check the file and its rights") from None
        sheet = Sheet(path, worksheet=worksheet)
        meanings = sheet.meanings({key: SPELLINGS[key] for key in ("patient", "accession")})
        found: dict[str, set[str]] = {"patient": set(), "accession": set()}
        if not meanings:  # a plain list: its first line is a patient, too
            if len(sheet.columns) != 1 or not sheet.columns[0]:
                raise DataError(
                    f"{sheet.name}: the first line is neither one patient id nor names a column patient or accession; "
                    "write one id a line, or name the columns"
                )
            meanings = {"patient": sheet.columns[0]}
            found["patient"].add(folded(sheet.columns[0]))
        for line, cells in sheet.rows(list(meanings.values())):
            ids = {key: folded(cells[column]) for key, column in meanings.items()}
            if not any(ids.values()):
                raise DataError(f"{sheet.name} line {line}: neither patient nor accession; fill one in or remove it")
            for key, value in ids.items():
                found[key].add(value)
        return cls(frozenset(found["patient"] - {""}), frozenset(found["accession"] - {""}))

    def __len__(self) -> int:
        """Different patients and examinations on the list."""
        return len(self.patients) + len(self.accessions)

    def withheld(self, identity: Identity, patient: str = "", accession: str = "") -> bool:
        """Whether an image must not be imported; ``patient`` and ``accession`` are what a label sheet says of it.

        An image of which nobody knows the patient can be on no list: the importer must say how many those are.
        """
        return self.listed(identity.patient, identity.accession) or self.listed(patient, accession)

    def listed(self, patient: str, accession: str) -> bool:
        """Whether that patient or examination is on the list; an empty one never is."""
        return folded(patient) in self.patients or folded(accession) in self.accessions

    def pseudonymous(self, pseudonyms: Pseudonyms) -> frozenset[str]:
        """Those of the list's patients and examinations, to be looked for in a vault."""
        accessions = (pseudonyms.identifier("accession", number) for number in self.accessions)
        return frozenset([*map(pseudonyms.patient, self.patients), *accessions])
