"""Tables from a hospital: workbooks, label sheets, opt-out lists and boxes, honest and hostile."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl  # type: ignore[import-untyped]
import pytest

import common.sheet
from client.ingest.boxes import Box, BoxSheet, fitted, mask_from
from client.ingest.consent import OptOut
from client.ingest.kinds import Identity, Picture, Refused
from client.ingest.labels import Labelled, LabelSheet, Unused, folded
from common.errors import DataError
from common.sheet import Sheet, binned_age

ROOT = Path(__file__).parents[2]
NOBODY = Identity()


def saved(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str | bytes], Path]:
    return lambda text: saved(tmp_path / "sheet.csv", text)


@pytest.fixture
def xlsx(tmp_path: Path) -> Callable[..., Path]:
    """A workbook of one worksheet, as openpyxl writes it; ``change`` may touch it before it is saved."""

    def write(rows: Sequence[Sequence[object]], change: Callable[[Any], None] = lambda book: None) -> Path:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        change(book)
        book.save(tmp_path / "sheet.xlsx")
        return tmp_path / "sheet.xlsx"

    return write


def patched(path: Path, part: str, change: Callable[[str], str]) -> Path:
    """``path`` with one part of its ZIP rewritten."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    before = parts[part].decode()
    parts[part] = change(before).encode()
    assert parts[part] != before.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def as_excel(path: Path) -> Path:
    """``path`` with its texts in a table of their own, as Excel writes them; openpyxl leaves them in their cells."""
    texts: list[str] = []

    def share(match: re.Match[str]) -> str:
        texts.append(match[2])
        return f'{match[1]} t="s"><v>{len(texts) - 1}</v></c>'

    patched(
        path,
        "xl/worksheets/sheet1.xml",
        lambda xml: re.sub(r'(<c r="\w+") t="inlineStr"><is><t>(.*?)</t></is></c>', share, xml),
    )
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    added = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kind}"/></Types>'
    patched(path, "[Content_Types].xml", lambda xml: xml.replace("</Types>", added))
    place = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(path, "a") as archive:
        table = "".join(f"<si><t>{text}</t></si>" for text in texts)
        archive.writestr("xl/sharedStrings.xml", f'<?xml version="1.0"?><sst xmlns="{place}">{table}</sst>')
    return path


def cells(path: Path, **options: Any) -> list[dict[str, str]]:
    sheet = Sheet(path, **options)
    return [dict(row) for _, row in sheet.rows(sheet.columns)]


def refused(action: Callable[[], object], message: str) -> str:
    with pytest.raises(DataError, match=message) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


def code(sheet: LabelSheet, file: str = "", **identity: str) -> str:
    """The code for which an image is refused."""
    with pytest.raises(Refused) as caught:
        sheet.lookup(file, Identity(**identity))
    assert caught.value.reason.stage == "labels"
    return caught.value.reason.code


def label(sheet: LabelSheet, file: str = "", **identity: str) -> tuple[str, ...] | None:
    found = sheet.lookup(file, Identity(**identity))
    return None if found is None else found.labels["label"]


# --- workbooks --------------------------------------------------------------------------------------------------------


def test_cells_of_a_workbook_are_read_as_the_same_sheet_saved_as_csv(xlsx: Callable[..., Path]) -> None:
    def formats(book: Any) -> None:
        book.active["A3"].number_format = "000000"

    path = xlsx(
        [
            ["patient", "label", "age", "seen", "ok"],
            [12345.0, "normal", 36.5, date(2024, 1, 31), True],
            [123, " x ", 0.1 + 0.2, datetime(2024, 1, 31, 12, 30), False],
            [None, None, None, None, None],
            ["00042", "y", -7, None, None],
        ],
        formats,
    )
    assert cells(path) == [
        {"patient": "12345", "label": "normal", "age": "36.5", "seen": "2024-01-31", "ok": "TRUE"},
        {"patient": "000123", "label": "x", "age": "0.3", "seen": "2024-01-31T12:30:00", "ok": "FALSE"},
        {"patient": "00042", "label": "y", "age": "-7", "seen": "", "ok": ""},
    ]
    assert [line for line, _ in Sheet(path).rows(["label"])] == [2, 3, 5]


def test_the_first_visible_worksheet_or_the_named_one(xlsx: Callable[..., Path], tmp_path: Path) -> None:
    def more(book: Any) -> None:
        book.active.sheet_state = "hidden"
        book.create_sheet("second").append(["a"])
        book.create_sheet("third").append(["b"])

    path = xlsx([["hidden"]], more)
    assert Sheet(path).columns == ("a",)
    assert Sheet(path, worksheet="third").columns == ("b",)
    refused(lambda: Sheet(path, worksheet="fourth"), "no worksheet 'fourth'; its worksheets are: Sheet, second, third")
    refused(lambda: Sheet(saved(tmp_path / "x.csv", "a\n"), worksheet="a"), "no Excel workbook")


def test_a_workbook_is_known_by_its_bytes_not_its_name(xlsx: Callable[..., Path], tmp_path: Path) -> None:
    path = xlsx([["file", "label"], ["a.png", "x"]]).rename(tmp_path / "labels.csv")
    assert cells(path) == [{"file": "a.png", "label": "x"}]


def test_a_declared_size_of_one_cell_does_not_hide_the_rest(xlsx: Callable[..., Path]) -> None:
    path = xlsx([["file", "label"], ["a.png", "x"]])
    patched(path, "xl/worksheets/sheet1.xml", lambda xml: re.sub(r'(<dimension ref=)"[^"]*"', r'\1"A1"', xml))
    assert cells(path) == [{"file": "a.png", "label": "x"}]


def test_empty_cells_at_the_end_of_a_row_are_no_columns(xlsx: Callable[..., Path]) -> None:
    assert cells(xlsx([["a", "b", None, ""], ["1"], [None, "2", None]])) == [{"a": "1", "b": ""}, {"a": "", "b": "2"}]
    refused(lambda: cells(xlsx([["a"], ["1", "2"]])), "line 2: 2 cells, the header names 1; name that column")


def test_a_formula_counts_by_its_result_and_one_without_is_refused(xlsx: Callable[..., Path]) -> None:
    rows = [["file", "label"], ["a.png", '=IF(1=1,"x","")'], ["b.png", "y"]]
    part = "xl/worksheets/sheet1.xml"
    refused(lambda: cells(xlsx(rows)), "line 2: a formula was never calculated")
    old, new = r'<c r="B2"( [^>]*)?>(<f>.*?</f>)<v ?/?>(</v>)?', r'<c r="B2" t="str">\2<v>x</v>'
    calculated = patched(xlsx(rows), part, lambda xml: re.sub(old, new, xml))
    assert [row["label"] for row in cells(calculated)] == ["x", "y"]
    empty = patched(calculated, part, lambda xml: xml.replace("<v>x</v>", "<v></v>"))
    assert [row["label"] for row in cells(empty)] == ["", "y"]


def test_what_a_workbook_may_not_hold(xlsx: Callable[..., Path], tmp_path: Path) -> None:
    head = ["file", "label"]
    refused(lambda: cells(xlsx([head, ["a", "#N/A"]])), "line 2: a cell holds an error such as #N/A")
    refused(lambda: cells(xlsx([head, [1234567890123456, "x"]])), "line 2: a number of 16 or more digits")
    refused(lambda: cells(xlsx([head, ["a", "b\x0bc".replace("\x0b", "\n")]])), "line 2: a cell holds a control")
    refused(lambda: Sheet(xlsx([["a", "a"]])), "'a' is named twice")
    refused(lambda: Sheet(xlsx([])), "empty; its first line names the columns")
    merged = xlsx([head, ["a", "x"], ["b", None]], lambda book: book.active.merge_cells("B2:B3"))
    refused(lambda: cells(merged), "merged cells")
    old = saved(tmp_path / "old.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512))
    refused(lambda: Sheet(old), "old Excel workbook .* or one with a password")
    refused(lambda: Sheet(saved(tmp_path / "x.xlsx", b"PK\x03\x04 nothing")), "not a sound Excel workbook")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("content.xml", "<a/>")
    refused(lambda: Sheet(saved(tmp_path / "x.ods", stream.getvalue())), "not a sound Excel workbook")
    word = patched(xlsx([head]), "[Content_Types].xml", lambda xml: xml.replace("spreadsheetml.sheet.main", "word"))
    refused(lambda: Sheet(word), "not a sound Excel workbook")


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "' + "&b;" * 10 + '"><!ENTITY d "' + "&c;" * 10 + '">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY d SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("doctype", [BOMB, OUTSIDE])
@pytest.mark.parametrize(
    "part",
    ["[Content_Types].xml", "xl/workbook.xml", "xl/sharedStrings.xml", "xl/styles.xml", "xl/worksheets/sheet1.xml"],
)
def test_no_part_of_a_workbook_may_define_entities(xlsx: Callable[..., Path], part: str, doctype: str) -> None:
    path = as_excel(xlsx([["file", "label"], ["a.png", "x"]]))
    assert cells(path) == [{"file": "a.png", "label": "x"}]

    def plant(xml: str) -> str:
        end = xml.index("?>") + 2 if xml.startswith("<?xml") else 0
        return xml[:end] + doctype + xml[end:]

    refused(lambda: Sheet(patched(path, part, plant)), "not a sound Excel workbook")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(xlsx: Callable[..., Path]) -> None:
    path = xlsx([["file", "label"]])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("xl/media/x", "w") as part:
        for _ in range(129):
            part.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    started = time.monotonic()
    refused(lambda: Sheet(path), "unpacks to more than 128 MiB; save it as 'CSV UTF-8'")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("number", ["2000000000", "1048577", "1"])
def test_rows_that_no_reader_would_find_are_refused_at_once(xlsx: Callable[..., Path], number: str) -> None:
    path = xlsx([["file", "label"], ["a.png", "x"]])
    patched(
        path,
        "xl/worksheets/sheet1.xml",
        lambda xml: xml.replace('<row r="2"', f'<row spans="1:2" r="{number}"').replace('r="A2"', f'r="A{number}"'),
    )
    started = time.monotonic()
    refused(lambda: cells(path), "rows are not in order")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_workbook_is_read_or_refused(xlsx: Callable[..., Path], seed: int) -> None:
    path = xlsx([["file", "label"], ["a.png", "x"], [3, date(2024, 1, 1)]])
    whole, rng = as_excel(path).read_bytes(), np.random.default_rng(seed)
    for _ in range(15):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged[: int(rng.integers(100, len(damaged) + 1))] if rng.random() < 0.3 else damaged))
        try:
            cells(path)
        except DataError as error:
            assert "\n" not in str(error)


# --- csv --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_other_encodings_are_refused_with_the_remedy(csv: Callable[[str | bytes], Path], encoding: str) -> None:
    path = csv("file,label\na.png,é\n".encode(encoding))
    refused(lambda: LabelSheet.load(path), "not UTF-8 text; save it again|control character")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spreadsheet_habits(csv: Callable[[str | bytes], Path], ending: str, mark: str, separator: str) -> None:
    rows = ["Patient ID,Label,SEX", "7,x|y,female", ""]
    sheet = LabelSheet.load(csv(mark + ending.join(rows).replace(",", separator)))
    assert sheet.lookup("a.png", Identity(patient="7")) == Labelled(
        {"label": ("x", "y")}, patient="7", attributes={"sex": "F"}
    )


def test_a_list_without_a_header_does_not_put_a_number_into_messages(csv: Callable[[str | bytes], Path]) -> None:
    for text in ("P4711,P4711\n", "P4711\n1,2\n", "P4711,x\n"):
        with pytest.raises(DataError) as caught:
            LabelSheet.load(csv(text))
        assert "4711" not in str(caught.value)


def test_ages_become_decades() -> None:
    given = {"36": "30-39", "036Y": "30-39", "36.0": "30-39", "36.9": "30-39", "0": "0-9", "013M": "0-9", "9": "0-9"}
    given |= {"89": "80-89", "90": "90+", "104": "90+", "120": "90+", "121": "", "414": "", "": "", "old": "", "-3": ""}
    given |= {"40-49": "40-49", "90+": "90+", "35-44": "", "1990-01-01": "", "300D": "0-9"}
    assert {age: binned_age(age) for age in given} == given


# --- which row --------------------------------------------------------------------------------------------------------

KEYED = (
    "sop,file,accession,patient,label\n"
    "1.2,,,,by sop\n"
    ",a/1.png,,,by file\n"
    ",,A1,,by accession\n"
    ",,,P1,by patient\n"
    "1.3,b/2.png,A2,P2,by all\n"
)


def test_the_narrowest_row_wins(csv: Callable[[str | bytes], Path]) -> None:
    sheet = LabelSheet.load(csv(KEYED))
    assert len(sheet) == 5
    assert label(sheet, "x.png", sop="9", accession="A9", patient="P9") is None
    assert label(sheet, "x.png", sop="9", accession="A9", patient="P1") == ("by patient",)
    assert label(sheet, "x.png", sop="9", accession="A1", patient="P1") == ("by accession",)
    assert label(sheet, "a/1.png", sop="9", accession="A1", patient="P1") == ("by file",)
    assert sheet.unused() == Unused(2, (2, 6))
    assert label(sheet, "x.png", sop=" 1.2 ", accession="A1", patient="P1") == ("by sop",)
    assert label(sheet, "b/2.png") == ("by all",)
    assert label(sheet, sop="1.3") == ("by all",)
    assert label(sheet, patient="P2") is None, "a row about one image says nothing of the patient's others"
    assert label(sheet, accession="A2") is None
    assert sheet.unused() == Unused(0, ())


def test_a_row_must_be_true_in_all_that_it_names(csv: Callable[[str | bytes], Path]) -> None:
    sheet = LabelSheet.load(csv(KEYED))
    for identity in ({"patient": "P1"}, {"accession": "A1"}, {"patient": "P2", "accession": "a3"}):
        assert code(sheet, "2.png", sop="1.3", **identity) == "label-mismatch"
    assert code(sheet, "other.png", sop="1.3") == "label-mismatch"
    assert code(sheet, "b/2.png", sop="1.4") == "label-mismatch"
    assert code(sheet, "a/1.png", sop="1.2") == "label-conflict"


@pytest.mark.parametrize(
    ("named", "file", "found"),
    [
        ("a/1.png", "a/1.png", True),
        ("a\\1.png", "a/1.png", True),
        (".\\a//1.png", "a/1.png", True),
        ("D:\\export\\a\\1.png", "a/1.png", True),
        ("a/1.png", "1.png", True),
        ("1.png", "x/1.png", True),
        ("a/1.png", "x/a/1.png", True),
        ("a/1.png", "b/1.png", False),
        ("a/1.png", "a/1.PNG", False),
        ("a/1.png", "xa/1.png", False),
        ("1.png", "21.png", False),
        ("u\u0308.png", "\u00fc.png", True),
        ("\u00fc.png", "u\u0308.png", True),
    ],
)
def test_files_with_their_folders_or_without(
    csv: Callable[[str | bytes], Path], named: str, file: str, found: bool
) -> None:
    sheet = LabelSheet.load(csv(f"file,label\n{named},x\nc/9.png,y\n"))
    assert (label(sheet, file) == ("x",)) is found


def test_a_base_name_of_two_rows_means_neither(csv: Callable[[str | bytes], Path]) -> None:
    sheet = LabelSheet.load(csv("file,label\na/1.png,x\nb/1.png,y\n"))
    assert label(sheet, "1.png") is None
    assert label(sheet, "q/a/1.png") is None
    assert label(sheet, "b/1.png") == ("y",)


def test_two_files_of_one_row_are_one_too_many(csv: Callable[[str | bytes], Path]) -> None:
    sheet = LabelSheet.load(csv("file,sop,label\n1.png,,x\n2.dcm,1.2,y\n"))
    assert label(sheet, "a/1.png") == label(sheet, "a/1.png") == ("x",)
    assert code(sheet, "b/1.png") == "label-ambiguous"
    assert label(sheet, "a/2.dcm", sop="1.2") == label(sheet, "b/2.dcm", sop="1.2") == ("y",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,x\nb,y\na,y\n", "lines 2, 4: the same file, but the rows differ; keep one row"),
        ("file,label\na/1,x\n.\\a\\1,y\n", "lines 2, 3: the same file"),
        ("sop,file,label\n1.2,a,x\n1.2,b,x\n", "lines 2, 3: the same SOP Instance UID"),
        ("sop,file,label\n1.2,a,x\n1.3,a,x\n", "lines 2, 3: the same file"),
        ("patient,label\nP,x\nP,y\n", "lines 2, 3: the same patient"),
        ("accession,label,sex\nA,x,F\nA,x,M\n", "lines 2, 3: the same accession number"),
        ("file,patient,label,split\na,P,x,train\nb,P,x,test\n", "lines 2, 3: one patient in two splits"),
        (
            "file,patient,label,split\na,P,x,\nb,P,x,test\n",
            "lines 2, 3: one patient in two splits, or in one and in no",
        ),
        ("label,age\nx,3\n", "no column says which image a row means; name one sop, file, accession, patient"),
        ("file,note\na,x\n", "no label column; name one 'label', or say which with --label-column"),
        ("file,path,label\na,b,x\n", "columns 'file' and 'path' are both the file; keep one"),
        ("file,label\n", "no rows under the header"),
        ("file,patient,label\n,,x\n", "line 2: names no image; fill in file or patient"),
        ("file,label,split\na,x,training\n", "line 2: split must be train, val, test or empty"),
        ("file,label,mask\na,x,../m.png\n", "line 2: mask leads out of the folder"),
        ("file,label,mask\na,x,C:\\m.png\n", "line 2: mask leads out of the folder"),
        ("file,label,mask\na,x,/m.png\n", "line 2: mask leads out of the folder"),
        ("file,label\na," + "x" * 65 + "\n", "line 2: a label of more than 64 printable"),
        ("file,label\na,x\u200by\n", "line 2: a label of more than 64 printable"),
        ("file,label\na,seen 3.4.2024\n", "line 2: a label looks like a date"),
        ("file,label\na,x|2024-03-04\n", "line 2: a label looks like a date"),
        ("file,label\na,20240304\n", "line 2: a label looks like a date"),
        ("file,label\na,DOE^JANE\n", "line 2: a label looks like a date, a name"),
        ("file,label\na,1.2.840.10008\n", "line 2: a label looks like a date, a name or a UID"),
        ("file,patient,label\na,P4711,x\nb,P1,P4711\n", "line 3: a label is the id of an image or patient"),
        ("file,label\n" + "".join(f"{n}.png,n{n}\n" for n in range(51)), "'label' has 51 values, nearly one a row"),
    ],
)
def test_a_sheet_that_contradicts_itself_or_tells_too_much(
    csv: Callable[[str | bytes], Path], text: str, message: str
) -> None:
    said = refused(lambda: LabelSheet.load(csv(text)), message)
    assert "P4711" not in said and "DOE" not in said and "2024" not in said


def test_labels_that_are_fine(csv: Callable[[str | bytes], Path]) -> None:
    many = "".join(f"{n}.png,{n % 60}\n" for n in range(120))
    assert len(LabelSheet.load(csv("file,label\n" + many))) == 120
    for value in ("0", "J18.9", "233604007", "BI-RADS 4a", "1/2", "Pneumonie, beidseitig", "T2N0M0", "肺炎"):
        sheet = LabelSheet.load(csv(f'file,patient,label\na,0,"{value}"\n'))
        assert label(sheet, "a") == (value,)


def test_rows_that_repeat_one_another_count_once(csv: Callable[[str | bytes], Path]) -> None:
    sheet = LabelSheet.load(csv("file,label,note\na,x,1\nb,y,2\n./a,x,3\na,x,4\n"))
    assert (len(sheet), sheet.merged) == (2, 2)
    assert label(sheet, "b") == ("y",)
    assert sheet.unused() == Unused(3, (2, 4, 5))
    assert sheet.notes() == (
        "sheet.csv: 2 rows repeating another count once",
        "sheet.csv: 3 rows met no image (lines 2, 4, 5)",
    )


def test_images_that_the_sheet_calls_one_patient_or_two(csv: Callable[[str | bytes], Path]) -> None:
    sheet = LabelSheet.load(csv("file,label,split\na,x,train\nb,x,test\nc,x,train\n"))
    assert label(sheet, "a", patient="P") == label(sheet, "c", patient="P") == ("x",)
    assert code(sheet, "b", patient="P") == "split-conflict"


def test_only_what_a_row_may_say_is_kept(csv: Callable[[str | bytes], Path]) -> None:
    sheet = LabelSheet.load(
        csv(
            "file,Patient-ID,label,finding,note,age,Gender,View Position,device,mask,split\n"
            "a,P1,x,y|z,secret,093Y,male,PA,Siemens,masks\\a.png,TRAIN\n"
            "b,P2,x,,secret,414,?,seen 3.4.2024,SN-1234567,,\n"
        )
    )
    first = sheet.lookup("a", NOBODY)
    assert first == Labelled(
        {"label": ("x",), "finding": ("y", "z")},
        "P1",
        "train",
        "masks/a.png",
        {"age": "90+", "sex": "M", "view": "PA", "device": "Siemens"},
    )
    assert repr(first) == "Labelled(split='train')"
    second = sheet.lookup("b", NOBODY)
    assert second is not None and dict(second.attributes) == {}
    assert sheet.notes() == ("sheet.csv: 4 attributes are no plain, short words and were left out",)


def test_label_columns_as_asked(csv: Callable[[str | bytes], Path]) -> None:
    path = csv("file,label,grade,sex\na,x,4,F\n")
    found = LabelSheet.load(path, label_columns=["grade", "sex"]).lookup("a", NOBODY)
    assert found is not None and found.labels == {"grade": ("4",), "sex": ("F",)}
    refused(lambda: LabelSheet.load(path, label_columns=["grad"]), "no column 'grad'.*did you mean 'grade'")
    refused(lambda: LabelSheet.load(path, label_columns=["file"]), "column 'file' cannot be a label")


def test_zeros_that_excel_dropped_and_case_do_not_part_a_patient(xlsx: Callable[..., Path]) -> None:
    sheet = LabelSheet.load(
        xlsx([["patient", "accession", "label"], [123, None, "x"], ["ab", None, "y"], [None, "A7", "z"]])
    )
    assert label(sheet, patient="00123") == label(sheet, patient="123") == ("x",)
    assert label(sheet, patient="AB") == ("y",)
    assert label(sheet, accession="a7") == ("z",)
    assert label(sheet, patient="1230") is None
    refused(
        lambda: LabelSheet.load(xlsx([["patient", "label"], ["012", "x"], [12, "y"]])), "lines 2, 3: the same patient"
    )


@pytest.mark.parametrize("text", ["0012", "000", " Ab ", "é", "É", "00x", "٠٠١٢", "ß", "İ"])
def test_folding_twice_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text) != ""


def test_a_hundred_thousand_rows_load_in_seconds(csv: Callable[[str | bytes], Path]) -> None:
    path = csv("file,patient,label,sex\n" + "".join(f"d/{n}.png,P{n // 3},x{n % 5},F\n" for n in range(100_000)))
    started = time.process_time()
    sheet = LabelSheet.load(path)
    loaded = time.process_time()
    assert all(label(sheet, f"d/{n}.png") == (f"x{n % 5}",) for n in range(0, 100_000, 10))
    asked = time.process_time()
    assert loaded - started < 15 and asked - loaded < 2


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_examples_in_the_document_mean_what_it_says(csv: Callable[[str | bytes], Path]) -> None:
    text = (ROOT / "docs" / "label-sheets.md").read_text(encoding="utf-8")
    examples = re.findall(r"```csv\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == 3
    files = LabelSheet.load(csv(examples[0]))
    found = files.lookup("images/3.png", NOBODY)
    assert found == Labelled({"label": ("pneumonia",)}, "P002", "test", attributes={"age": "90+", "sex": "M"})
    studies = LabelSheet.load(csv(examples[1]))
    said = [studies.lookup("", Identity(accession=f"A-{number}")) for number in (1001, 1002, 1003)]
    assert [item.labels["finding"] for item in said if item] == [("Edema", "Pneumonia"), ("No Finding",), ()]
    readers = LabelSheet.load(csv(examples[2]))
    assert label(readers, sop="1.2.826.0.1.10") == ("normal",)
    assert label(readers, sop="1.2.826.0.1.11") == ("pneumonia",)
    assert code(readers, sop="1.2.826.0.1.12") == "readers-disagree"
    assert f"{common.sheet.MAX_UNPACKED_BYTES >> 20} MiB" in text


# --- who withheld consent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["P1\nP2\n", "\ufeffP1\r\n\r\n P2 \r\nP2\r\n", "patient\nP1\nP2\n", "x;PatientID\n1;P1\n2;P2\n"]
)
def test_whoever_is_on_the_list_is_withheld(csv: Callable[[str | bytes], Path], text: str) -> None:
    listed = OptOut.load(csv(text))
    assert len(listed) == 2
    assert listed.withheld(Identity(patient="P1"))
    assert listed.withheld(NOBODY, "P2")
    assert listed.withheld(Identity(patient="other"), " p2 ")
    assert not listed.withheld(Identity(patient="P12", accession="P1"), "P3")
    assert not listed.withheld(NOBODY)
    assert "P1" not in repr(listed).upper()


def test_examinations_can_be_withheld_and_zeros_do_not_count(xlsx: Callable[..., Path]) -> None:
    listed = OptOut.load(xlsx([["Patient ID", "Accession Number"], [123, None], [None, "A1"], ["0", None]]))
    assert len(listed) == 3
    assert listed.withheld(Identity(patient="000123"))
    assert listed.withheld(Identity(patient="000"))
    assert listed.withheld(Identity(patient="9", accession="A1"))
    assert listed.withheld(NOBODY, "P9", "a1"), "an examination that only the label sheet names"
    assert not listed.withheld(NOBODY, "P9", "A2")
    assert not listed.withheld(Identity(patient="1230"))


def test_a_list_that_is_not_understood_stops_the_import(csv: Callable[[str | bytes], Path], tmp_path: Path) -> None:
    assert len(OptOut.load(csv(""))) == 0
    assert len(OptOut.load(csv("patient\n"))) == 0
    assert len(OptOut.load(csv("P1"))) == 1
    for text, message in (
        ("name,born\nx,y\n", "the first line is neither one patient id nor names a column"),
        ("\nP1\n", "the first line is neither"),
        ("P1\nP2,P3\n", "line 2: 2 cells, the header names 1"),
        ("patient,accession,note\n,,x\n", "line 2: neither patient nor accession"),
        ("patient,PatientID\nP1,P1\n", "are both the patient"),
        ("P1\n".encode("utf-16"), "not UTF-8 text"),
    ):
        said = refused(lambda text=text: OptOut.load(csv(text)), message)  # type: ignore[misc]
        assert "P1" not in said
    refused(lambda: OptOut.load(tmp_path / "gone.txt"), "no such file")
    refused(lambda: OptOut.load(tmp_path), "no such file")


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_boxes_by_size_or_corners_or_as_chestxray14_has_them(csv: Callable[[str | bytes], Path]) -> None:
    box = Box("Mass", 10.0, 20.5, 30.0, 40.0)
    for text in (
        "file,label,x,y,width,height\na/1.png,Mass,10,20.5,30,40\n",
        "Image,Label,xmin,ymin,xmax,ymax\na\\1.png,Mass,10,20.5,40,60.5\n",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n1.png,Mass,10,20.5,30,40,,,\n",
        "file,sop,label,x,y,w,h\na/1.png,1.2,Mass,10,20.5,30,40\na/1.png,1.2,Mass,10,20.5,30,40\n",
    ):
        sheet = BoxSheet.load(csv(text))
        assert sheet.unused().lines[0] == 2
        assert sheet.lookup("a/1.png", NOBODY) == (box,)
        assert sheet.lookup("b.png", NOBODY) == ()
        assert sheet.unused() == Unused(0, ())
    assert sheet.lookup("z.dcm", Identity(sop="1.2")) == (box,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label,x,y,width\na,m,1,2,3\n", "needs the columns file or sop, label, and x, y, width, height or"),
        ("label,x,y,width,height\nm,1,2,3,4\n", "needs the columns"),
        ("file,label,x,y,w,h\na,m,1,2,3,four\n", "line 2: .* must be numbers"),
        ("file,label,x,y,w,h\na,m,1,2,3,nan\n", "line 2: a box without an area, or"),
        ("file,label,x,y,w,h\na,m,inf,2,3,4\n", "line 2: a box without an area, or"),
        ("file,label,x,y,w,h\na,m,1,2,0,4\n", "line 2: a box without an area"),
        ("file,label,x1,y1,x2,y2\na,m,5,5,4,9\n", "line 2: a box without an area"),
        ("file,label,x,y,w,h\na,,1,2,3,4\n", "line 2: a box needs a label"),
        ("file,label,x,y,w,h\n,m,1,2,3,4\n", "line 2: file and sop must name one image"),
        ("file,sop,label,x,y,w,h\na,1,m,1,2,3,4\nb,2,m,1,2,3,4\na,2,m,1,2,3,4\n", "line 4: file and sop must name one"),
    ],
)
def test_boxes_that_cannot_be_meant(csv: Callable[[str | bytes], Path], text: str, message: str) -> None:
    refused(lambda: BoxSheet.load(csv(text)), message)


def test_boxes_follow_the_image_as_it_is_stored() -> None:
    picture = Picture(np.zeros((50, 100), np.uint8), scale=(0.5, 0.25))  # the source was 100 by 400
    assert fitted([Box("m", 40, 10, 80, 20)], picture) == (Box("m", 10.0, 5.0, 20.0, 10.0),)
    assert fitted([Box("m", 0, 0, 400.9, 100.9)], picture) == (Box("m", 0.0, 0.0, 100.0, 50.0),)
    for box in (Box("m", 0, 0, 410, 100), Box("m", -9, 0, 20, 10), Box("m", 400.5, 0, 0.5, 9), Box("m", 0, 90, 1, 20)):
        with pytest.raises(Refused) as caught:
            fitted([box], picture)
        assert caught.value.reason.code == "box-outside"
    assert fitted([], picture) == ()


def test_a_weak_mask_holds_the_pixels_whose_centre_is_inside() -> None:
    mask = mask_from([Box("m", 1, 0, 2, 1), Box("n", 0.6, 2.4, 1.0, 1.0), Box("o", 3, 3, 99, 99)], (5, 5))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, [[0, 1, 1, 0, 0], [0] * 5, [0, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]])
