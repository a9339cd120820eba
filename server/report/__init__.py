"""From results to pages and tables: ``report.html`` and ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_metrics_csv", "write_report"]


def write_report(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write ``report.html`` into the folder ``out``, whole or not at all.

    ``results`` are parsed ``results.json`` of runs: one is reported by itself, repeats of
    one study are summarised, different runs compared. Raises :class:`~common.errors.RunError`.
    """
    from common.html import write
    from server.report.results import parse
    from server.report.several import page

    write(page([parse(raw) for raw in results]), out / "report.html")


def write_metrics_csv(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write every metric of every run as one line of a CSV table, whole or not at all."""
    from common.files import write_atomically
    from server.report.csvtable import metrics_csv
    from server.report.results import parse

    write_atomically(path, metrics_csv([parse(raw) for raw in results]).encode())
