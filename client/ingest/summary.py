"""What an import did, in counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from client.ingest.import_reasons import HARMLESS
from client.ingest.kinds import Reason


@dataclass
class Summary:
    """What an import did."""

    files: int = 0
    """Without mask files."""
    read_bytes: int = 0
    images: int = 0
    unlabelled: int = 0
    """Of ``images``, those without any label."""
    anonymous: int = 0
    """Of ``images``, those whose patient is unknown: each file counts as a patient of its own."""
    known: int = 0
    """Files that were in the vault already."""
    other_labels: int = 0
    """Of ``known``, those of which the label sheet says something else than the vault."""
    masks: int = 0
    seconds: float = 0.0
    rejected: list[tuple[str, Reason]] = field(default_factory=list)
    """Pseudonym of the file's name, and why."""
    withheld_rows: list[int] = field(default_factory=list)
    """Images that were in the vault before and are on the opt-out list now."""
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
            "other_labels": self.other_labels,
            "masks": self.masks,
            "refused": self.refused,
            "duplicates": self.duplicates,
            "withheld": self.withheld,
            "withheld_in_vault": len(self.withheld_rows),
            "reasons": dict(sorted(Counter(reason.code for _, reason in self.rejected).items())),
            "warnings": dict(sorted(self.warnings.items())),
        }
