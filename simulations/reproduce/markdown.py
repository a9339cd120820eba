"""A page as Markdown: the same blocks, for a repository and for those who read in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.html import Block, Cell, Code, Details, Facts, Heading, Page, Paragraph, Row, Statement, Table, Tiles, clean


def markdown(page: Page) -> str:
    """The page as GitHub-flavoured Markdown. Figures are left out, folded blocks too: the page itself has them."""
    lines = [f"# {_text(page.title)}", "", _text(page.subtitle), ""]
    lines += [f"**{_text(page.banner.title)}.** {_text(page.banner.text)}", ""]
    for section in page.sections:
        lines += [f"## {_text(section.heading)}", ""]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join([*lines, _text(page.footer), ""])


def _block(block: Block) -> Iterator[str]:
    match block:
        case Table():
            yield from _table(block)
        case Facts():
            yield from (_fact(name, value) for name, value in block.items)
            yield ""
        case Statement():
            yield from (f"**{_text(block.text)}**", "", _text(block.detail), "")
        case Paragraph():
            yield from (_text(block.text), "")
        case Heading():
            yield from (f"### {_text(block.text)}", "")
        case Code():
            yield from ("```sh", clean(block.text), "```", "")
        case Tiles():
            yield from (
                f"- {_text(label)}: {_text(value)} {_text(remark)}".rstrip() for value, label, remark in block.items
            )
            yield ""
        case Row():
            for inner in block.blocks:
                yield from _block(inner)
        case Details():
            return


def _fact(name: str, value: str) -> str:
    """A line of a list; of a numbered one where the name is a number."""
    return f"{name} {_text(value)}" if re.fullmatch(r"\d+\.", name) else f"- {_text(name)}: {_text(value)}"


def _table(table: Table) -> Iterator[str]:
    yield from (f"### {_text(table.caption)}", "")
    for group, _ in table.groups:
        if group:
            yield f"- {_text(group)}"
    if table.groups:
        yield ""
    yield "| " + " | ".join(_text(column.text) for column in table.columns) + " |"
    yield "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|"
    for row in table.rows:
        yield "| " + " | ".join(_cell(cell) for cell in row) + " |"
    yield ""
    if table.note:
        yield from (_text(table.note), "")


def _cell(cell: Cell) -> str:
    small = f"<br><small>{_text(cell.small)}</small>" if cell.small else ""
    return f"{_text(cell.text)}{small}"


def _text(text: str) -> str:
    """Text that stays text: one line, no markup, no bar that ends a cell."""
    line = " ".join(clean(text).split())
    for sign in "\\`*_<>|[]":
        line = line.replace(sign, f"\\{sign}")
    return line
