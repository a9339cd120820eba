"""The log of a program that runs for months: lines for people on the screen, JSON in a file that is rotated."""

from __future__ import annotations

import json
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path


class JsonLog(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)


def log_to(path: Path) -> None:
    """Send this program's log to ``path`` (10 MB, nine older ones kept, mode 0600) and to standard error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = RotatingFileHandler(path, maxBytes=10_000_000, backupCount=9)
    path.chmod(0o600)
    file.setFormatter(JsonLog())
    screen = logging.StreamHandler()
    screen.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("fedward")
    root.setLevel(logging.INFO)
    root.handlers = [file, screen]
    root.propagate = False
