"""What a workload is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measuring import Figure


@dataclass(frozen=True)
class Options:
    """``scale`` below 1 shrinks every workload for a smoke test: its figures then mean nothing."""

    folder: Path
    repeat: int = 3
    peers: bool = False
    scale: float = 1.0

    def scaled(self, number: int, least: int) -> int:
        return max(least, round(number * self.scale))


@dataclass(frozen=True)
class Workload:
    """``what`` says in a line what is run; ``default_repeat`` how often where ``--repeat`` is not given."""

    what: str
    run: Callable[[Options], list[Figure]]
    default_repeat: int = 3
