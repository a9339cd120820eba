"""Words that both sides' status pages share."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """In its largest unit: ``42 s``, ``7 min``, ``5 h``, ``3 days``."""
    seconds = max(0.0, seconds)
    for least, unit, name in ((172_800, 86_400, "days"), (7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def sure(share: float) -> str:
    """How sure somebody may be of something: ``73.1%``, ``almost completely``."""
    return f"{share:.1%}" if share < 0.9995 else "almost completely"


def older(theirs: str, ours: str) -> str:
    """By two versions of fedward, which is behind: ``theirs``, ``ours``, or neither (empty)."""
    if theirs == ours:
        return ""
    return "theirs" if _numbers(theirs) < _numbers(ours) else "ours"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]
