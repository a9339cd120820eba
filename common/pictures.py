"""Pictures side by side, as one drawing for a page. They stand in it as data: a page with them shows what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from common.html import Figure

_GAP, _TEXT, _HEAD = 8, 16, 30
_INK, _SOFT = "#1b2430", "#536070"


@dataclass(frozen=True)
class Shown:
    """A picture, ``png`` in base64, and the words below it."""

    png: str
    words: str


def figure(
    heads: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[Shown | None]],
    caption: str,
    *,
    size: tuple[int, int] = (92, 92),
) -> Figure:
    """One column for each of ``heads`` (two lines each), rows of pictures, each of ``size``: wide, high."""
    (wide, high), columns = size, len(heads)
    width = columns * (wide + _GAP) - _GAP
    height = _HEAD + len(rows) * (high + _TEXT + _GAP)
    parts = [Markup('<svg viewBox="0 0 {} {}" font-size="9.5" text-anchor="middle">').format(width, height)]
    for column, lines in enumerate(heads):
        middle = column * (wide + _GAP) + wide // 2
        parts += [_text(middle, 10 + 11 * number, line, _INK) for number, line in enumerate(lines)]
    for row, pictures in enumerate(rows):
        top = _HEAD + row * (high + _TEXT + _GAP)
        for column, shown in enumerate(pictures):
            if shown is not None:
                left = column * (wide + _GAP)
                parts.append(_picture(left, top, size, shown.png))
                parts.append(_text(left + wide // 2, top + high + 11, shown.words, _SOFT))
    parts.append(Markup("</svg>"))
    said = "; ".join(
        f"{' '.join(lines)}: {', '.join(one.words for row in rows if (one := row[column]) is not None) or 'none'}"
        for column, lines in enumerate(heads)
    )
    return Figure(Markup("\n").join(parts), f"Pictures side by side. {said}", caption)


def _text(x: int, y: int, words: str, colour: str) -> Markup:
    return Markup('<text x="{}" y="{}" fill="{}">{}</text>').format(x, y, colour, escape(words))


def _picture(left: int, top: int, size: tuple[int, int], png: str) -> Markup:
    return Markup(
        '<image x="{}" y="{}" width="{}" height="{}" style="image-rendering:pixelated" '
        'href="data:image/png;base64,{}"/>'
    ).format(left, top, *size, png)
