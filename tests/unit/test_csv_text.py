"""Words of strangers in tables that a spreadsheet will open, and on a terminal."""

from __future__ import annotations

import csv
import io
import json
from unittest.mock import Mock

import pytest

from client.explain_cli import _table
from common.csv_text import cell_text
from simulations.predict.cli import _tell
from simulations.predict.worklist import Case, Unreadable, Urgency, Worklist, rows

NAME = '=HYPERLINK("http://192.0.2.1/")'


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "a;=1+1", "a\t@x", "a\n=1+1", "=a;+b"])
def test_no_cell_begins_like_a_formula_wherever_cells_are_parted(text: str) -> None:
    """A German Excel parts cells at semicolons, whatever the file's commas say."""
    shown = str(cell_text(text))
    begins = [part[:1] for lines in shown.split("\n") for tabs in lines.split("\t") for part in tabs.split(";")]
    assert not set(begins) & set("=+-@")
    assert shown.replace("'", "") == text


@pytest.mark.parametrize("value", ["chest-1.png", "a; b", "x=1", "", 3, -1.5, None])
def test_what_is_no_formula_stays(value: object) -> None:
    assert cell_text(value) == value


def test_a_coordinators_class_is_no_formula_in_a_hospitals_index() -> None:
    """Classes may have any name, and ``site explain`` writes them beside the pictures."""
    (row,) = csv.DictReader(io.StringIO(_table([("0001.png", 7, NAME, "0.5000")]).decode()))
    assert row["class"] == f"'{NAME}" and row["vault_row"] == "7"


def test_a_strangers_file_name_breaks_neither_json_nor_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files are bytes: what is no UTF-8 comes as a lone surrogate, which no UTF-8 output takes."""
    name = "\udcff\x1b[2J\nrank 1.png"
    found = Worklist([Case(name, 0.5, "normal", {}, 1, 1)], [Unreadable(name, "the file is empty")])
    for row in rows(found):
        assert "\x1b" not in json.dumps(row, ensure_ascii=False).encode().decode()
        assert "\ufffd" in row["case"]
    about = {"cases": 1, "images": 1, "study": "x", "trained_on_synthetic": False, "calibrated": True, "device": "cpu"}
    about |= {"whose": "the coordinator's", "verified": True}
    about |= {"threads": 1, "reading_ms_per_case": 1.0, "model_ms_per_case": 1.0}
    _tell(found, Mock(spec=Urgency, thresholds={"pneumonia": 0.5}), about, None)
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if line.startswith("not scored")]
    assert "rank 1.png: the file is empty" in line and "\x1b" not in told
