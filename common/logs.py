"""The log of a program that runs for months: lines for people on the screen, JSON in a file that is rotated."""

from __future__ import annotations

import json
import logging
import os
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path


class JsonLog(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)


class _Private(RotatingFileHandler):
    """Each file that it begins is its owner's alone, whatever the umask."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.fdopen(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")


def log_to(path: Path) -> None:
    """Send this program's log to ``path`` (10 MB, nine older ones kept, mode 0600) and to standard error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = _Private(path, maxBytes=10_000_000, backupCount=9)
    path.chmod(0o600)  # an earlier version's
    file.setFormatter(JsonLog())
    screen = logging.StreamHandler()
    screen.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("fedward")
    root.setLevel(logging.INFO)
    root.handlers = [file, screen]
    root.propagate = False
