"""One template for every page we write: reports, readiness, ledger.

A page is data: sections of blocks (tables, figures, facts …), frozen and free of
markup, so nothing that is put into one can become markup. The template escapes
everything, a strict Content-Security-Policy forbids scripts and every request,
and the result is one self-contained file. The only exception to escaping is
:class:`Figure`, which takes SVG that our own code has drawn.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from markupsafe import Markup

from common.files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

Tone = Literal["", "good", "bad", "unsure", "muted"]
"""What a value means; the words beside it say the same, colour is never alone."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Cell:
    """One value of a table. ``small`` stands below it, ``title`` explains it, ``shade`` in [0, 1] tints it."""

    text: str
    small: str = ""
    title: str = ""
    tone: Tone = ""
    shade: float | None = None


@dataclass(frozen=True)
class Column:
    """Head of a column; neighbours with one ``group`` share a head above theirs."""

    text: str
    group: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the first cell of a row is its head."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.caption!r}: a row has {len(row)} cells for {len(self.columns)} columns")

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Heads above the columns with the number of columns each spans; empty where no column has one."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans if any(group for group, _ in spans) else []


@dataclass(frozen=True)
class Figure:
    """A drawing: ``svg`` is trusted markup of our own making, ``label`` says in words what it shows."""

    svg: Markup
    label: str
    caption: str
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Row:
    """Blocks side by side where the screen is wide enough."""

    blocks: Sequence[Block]
    kind: ClassVar[str] = "row"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Tone = ""
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Statement:
    """A sentence that is read first: large, with a tone; ``question`` stands above it."""

    text: str
    detail: str = ""
    tone: Tone = ""
    question: str = ""
    kind: ClassVar[str] = "statement"


@dataclass(frozen=True)
class Tiles:
    """Key numbers: ``(value, what it is, remark)``."""

    items: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Facts:
    """Names with their values, as a definition list; in one column where the values are sentences (``wide``)."""

    items: Sequence[tuple[str, str]]
    wide: bool = False
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Code:
    """Text shown exactly as it is."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until asked for."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "details"


Block = Table | Figure | Row | Heading | Paragraph | Statement | Tiles | Facts | Code | Details


@dataclass(frozen=True)
class Section:
    """A part of a page; ``anchor`` (letters and hyphens) names it in links."""

    anchor: str
    heading: str
    blocks: Sequence[Block]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z-]*", self.anchor):
            raise ValueError(f"section anchor must be lower-case letters and hyphens, got {self.anchor!r}")


@dataclass(frozen=True)
class Banner:
    """The first thing on a page: what kind of data it speaks of."""

    kind: Literal["synthetic", "real", "mixed", "plain"]
    title: str
    text: str


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    banner: Banner
    sections: Sequence[Section]
    footer: str = ""


# Control characters, lone surrogates (not encodable) and the bidirectional controls that make
# text read otherwise than it is stored (Unicode TR 36, 3.2).
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str, limit: int | None = None) -> str:
    """``text`` without characters that cannot or must not be shown (U+FFFD instead), at most ``limit`` long."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return _UNSAFE.sub("\ufffd", text)


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(page: Page) -> str:
    """The page as one self-contained HTML document (UTF-8, no request, no script)."""
    environment = _environment()
    source, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        page=page,
        style=Markup(source),  # noqa: S704 - our own style sheet
        policy=CONTENT_SECURITY_POLICY,
    )


def write(page: Page, path: Path) -> None:
    """Render ``page`` into ``path``, whole or not at all. Raises :class:`~common.errors.RunError`."""
    write_atomically(path, render(page).encode())
