"""The page of a real federation's run, beside its results: by the same report as a simulation's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import RunError
from server.desk import RESULTS

PAGE, TABLE = "report.html", "metrics.csv"


def write_pages(folder: Path) -> Path:
    """Write ``report.html`` and ``metrics.csv`` into a run's folder, from its ``results.json``; where the page is.

    Raises :class:`RunError` where there are no results, or where they are damaged or cannot be written.
    """
    from server.report import write_metrics_csv, write_report

    results = [_read(folder / RESULTS)]
    write_report(results, folder)
    write_metrics_csv(results, folder / TABLE)
    return folder / PAGE


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"run {path.parent.name} has no results yet; they come when its model has been tested") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged; restore it from a backup")
    return found
