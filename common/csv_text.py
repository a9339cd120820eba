"""Text in a table that a spreadsheet will open: shown, never computed."""

from __future__ import annotations

import re

from common.html import clean

_FORMULA = re.compile(r"(^|[;\t\n])(?=[=+\-@])")
"""Where a cell begins that a spreadsheet would compute. Semicolons and tabs part cells too, as its language has it."""


def cell_text(value: object) -> object:
    """A spreadsheet runs a cell that begins like a formula (CWE-1236): text that does is quoted."""
    return _FORMULA.sub(r"\1'", clean(value)) if isinstance(value, str) else value
