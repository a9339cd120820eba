"""The report that every import leaves behind: is this vault ready for a study, and what should be looked at first?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.ingest.readiness_counts import Readiness, examine
from common.files import write_atomically
from common.html import render

if TYPE_CHECKING:
    from client.ingest.labels import LabelSheet
    from client.ingest.summary import Summary
    from client.vault.store import Vault

__all__ = ["Readiness", "examine", "write_readiness"]


def write_readiness(path: Path, vault: Vault, summary: Summary, labels: LabelSheet | None) -> None:
    """Write the report on ``vault`` after the import that ``summary`` tells of: one HTML page, mode 0600.

    It names images by their numbers in the vault; no patient, file or pseudonym is in it. Raises
    :class:`~common.errors.RunError` where it cannot be written, :class:`VaultError` where the vault cannot be read.
    """
    from client.ingest.readiness_page import page

    # Of a second import nothing is asked again, so the sheet cannot tell which of its rows are idle.
    notes = labels.notes() if labels is not None and not summary.known else ()
    write_atomically(path, render(page(examine(vault), summary, notes)).encode(), mode=0o600)
