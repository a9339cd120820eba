"""Numbers in words, the same everywhere in a readiness report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from common.html import clean

LONGEST_WORD = 64
SEVERAL = 8


def number(value: int) -> str:
    """``12,345``."""
    return f"{value:,}"


def plural(count: int, noun: str) -> str:
    """``1 image``, ``1,210 patients``."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def percent(part: int, whole: int) -> str:
    """``37%``; one that is not all is never shown as 100%, one that is not none never as 0%."""
    if not whole or part in (0, whole):
        return "100%" if whole and part == whole else "0%"
    share = 100.0 * part / whole
    return "< 1%" if share < 1.0 else "> 99%" if share > 99.0 else f"{share:.0f}%"


def word(text: str, none: str = "not known") -> str:
    """A word of the hospital's, cut to a length that fits a table."""
    return clean(text, LONGEST_WORD) or none


def several(items: Iterable[str]) -> str:
    """``a, b, c and 12 more``."""
    listed: Sequence[str] = list(items)
    more = len(listed) - SEVERAL
    return ", ".join(listed[:SEVERAL]) + (f" and {number(more)} more" if more > 0 else "")


def attribute(name: str) -> str:
    """``field_strength_t`` -> ``field strength (T)``."""
    head, _, unit = name.rpartition("_")
    units = {"mm": "mm", "t": "T", "mas": "mAs"}
    if name == "kvp":
        return "kVp"
    return f"{head.replace('_', ' ')} ({units[unit]})" if head and unit in units else name.replace("_", " ")
