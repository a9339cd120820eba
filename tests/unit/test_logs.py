"""The log of a program that runs for months."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from common.logs import log_to


def test_every_file_of_a_rotated_log_is_its_owners_alone(tmp_path: Path) -> None:
    root = logging.getLogger("fedward")
    before = root.handlers, root.level, root.propagate
    umask = os.umask(0o022)
    try:
        log_to(tmp_path / "logs" / "agent.log")
        file, screen = root.handlers
        root.removeHandler(screen)
        for _ in range(3):
            root.info("one — line")
            file.doRollover()  # type: ignore[attr-defined]
        file.close()
    finally:
        os.umask(umask)
        root.handlers, root.level, root.propagate = before
    files = list((tmp_path / "logs").iterdir())
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
