"""What ``fedward explain`` found, parsed out of ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """A mean over patients, with its interval."""

    patients: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Measured:
        value, low, high = (None if raw[key] is None else float(raw[key]) for key in ("value", "low", "high"))
        return cls(int(raw["patients"]), value, low, high)


@dataclass(frozen=True)
class Picture:
    """An image beside its map."""

    site: str
    label: str
    score: float
    png: str


@dataclass(frozen=True)
class Explained:
    """What ``fedward explain`` found of a run's model."""

    method: str
    images: int
    measures: Mapping[str, Measured]
    sites: Mapping[str, Mapping[str, Measured]]
    pictures: tuple[Picture, ...]
    masked: bool
    """Whether a picture has the finding's outline."""

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | None) -> Explained | None:
        """``None`` where nobody asked. Raises :class:`ValueError`, :class:`KeyError`, :class:`TypeError`."""
        if raw is None:
            return None
        shown = [(Picture(str(p["site"]), str(p["label"]), float(p["score"]), _base64(p["png"])), bool(p["masked"]))
                 for p in raw["pictures"]]  # fmt: skip
        return cls(
            str(raw["method"]),
            int(raw["all"]["images"]),
            _measures(raw["all"]),
            {str(site): _measures(found) for site, found in raw["sites"].items()},
            tuple(picture for picture, _ in shown),
            any(masked for _, masked in shown),
        )


def _measures(raw: Mapping[str, Any]) -> dict[str, Measured]:
    return {str(name): Measured.parse(value) for name, value in raw.items() if name != "images"}


def _base64(text: Any) -> str:
    """A picture as it may stand in an attribute."""
    if not isinstance(text, str) or not text.isascii() or not set(text) <= _ALPHABET:
        raise ValueError("a picture is not in base64")
    return text


_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
