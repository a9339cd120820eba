"""Whatever a hospital's files say of a person stays out: planted everywhere, looked for everywhere, found nowhere.

Planted: in every text, date, time, name, number and UID that DICOM's dictionary knows, in its sequences, in file meta
information, preamble, private tags, overlays, curves, icons, behind the pixels and inside their JPEG; in what PNG,
JPEG, TIFF, GIF, NIfTI and NumPy files carry beside pixels; in names of files, folders and ZIP members; in label sheets
and opt-out lists. Some files are taken and some refused, at every stage of an import. Looked for: in all that a site's
commands write and say, in what they decrypt, and in what the processes show of themselves while they run.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import config, uid
from pydicom.datadict import DicomDictionary  # type: ignore[attr-defined]
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate

import fedward
from client.vault.keys import provider
from client.vault.store import Vault
from tests.integration.commandline import command
from tests.unit import dicom_objects
from tests.unit.test_vectors import Reader

pytestmark = pytest.mark.slow

ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "latin-1", "iso2022_jp", "shift_jis", "euc_jp")
SWITCHES = re.compile(rb"\x1b[-($)][@-Z]")
"""From alphabet to alphabet, in ISO 2022: where they stand depends on what stands before."""
STEMS = re.compile(rb"qz[0-9]{5}xjw|1\.2\.826\.0\.1\.3680043\.9\.77[0-9]{6}|134751\.[0-9]{6}")
"""What most markers look like: they are found in one pass."""
ROOT = Path(fedward.__file__).parent

# --- markers ---------------------------------------------------------------------------------------


@dataclass
class Markers:
    """Texts that stand for a person's details; each is planted once, and must be found where it was planted."""

    kept: dict[str, str] = field(default_factory=dict)
    """Marker -> where it is."""
    free: dict[str, set[bytes]] = field(default_factory=dict)
    """Those not of a common make, as :func:`spelled`."""

    def text(self, where: str) -> str:
        """Fit for every VR of text: ten capital letters and digits."""
        return self._new(f"QZ{len(self.kept):05d}XJW", where)

    def uid(self, where: str) -> str:
        return self._new(f"1.2.826.0.1.3680043.9.{77_000_000 + len(self.kept)}", where)

    def whole(self, where: str) -> str:
        return self._new(str(730_000_000 + 7919 * len(self.kept)), where)

    def date(self, where: str) -> str:
        return self._new((date(1911, 1, 1) + timedelta(days=len(self.kept) % 30_000)).strftime("%Y%m%d"), where)

    def time(self, where: str) -> str:
        return self._new(f"134751.{100_000 + len(self.kept)}", where)

    def said(self, text: str, where: str) -> str:
        """Any text that is nobody else's."""
        self.free[text] = spelled(text)
        return self._new(text, where)

    def _new(self, marker: str, where: str) -> str:
        self.kept.setdefault(marker, where)
        return marker


def spelled(marker: str) -> set[bytes]:
    """All ways to write a marker that are looked for in text that :func:`unfolded` made."""
    found = set()
    for text in (marker, marker.casefold(), marker.upper()):
        for encoding in ENCODINGS:
            with contextlib.suppress(UnicodeEncodeError):
                found.add(SWITCHES.sub(b"", text.encode(encoding)).lower())
    return found


def unfolded(content: bytes) -> bytes:
    """``content`` and what is written in it as UTF-16, ISO 2022, hexadecimal or base64, in ASCII's small letters."""
    parts = [content, content.replace(b"\0", b""), SWITCHES.sub(b"", content)]
    for run in re.findall(rb"[0-9A-Fa-f]{16,}", content):
        for start in (0, 1):
            part = run[start:]
            parts.append(binascii.unhexlify(part[: len(part) // 2 * 2]))
    for run in re.findall(rb"[A-Za-z0-9+/_-]{11,}", content):
        for start in range(4):
            part = run[start:].translate(bytes.maketrans(b"-_", b"+/"))
            parts.append(base64.b64decode(part + b"A" * (-len(part) % 4 + 4 * (len(part) % 4 == 1))))
    return b"\0\0".join(parts).lower()


def found_in(content: bytes, markers: Markers) -> set[str]:
    """Which markers stand anywhere in ``content``."""
    text = unfolded(content)
    alike = set(STEMS.findall(text))
    for run in re.findall(rb"[0-9]{8,}", re.sub(rb"[0-9a-f]{32,}", b" ", text)):  # digits of a digest are no number
        alike |= {run[at : at + size] for size in (8, 9) for at in range(len(run) - size + 1)}
    found = {marker for marker in (one.decode().upper() for one in alike) if marker in markers.kept}
    return found | {marker for marker, forms in markers.free.items() if any(form in text for form in forms)}


def test_the_search_finds_a_marker_however_it_is_written() -> None:
    markers = Markers()
    made = [markers.text(""), markers.date(""), markers.whole(""), markers.uid(""), markers.time("")]
    made += [markers.said(text, "") for text in ("山田頗里", "Müller-Łódź")]
    for marker in made:
        raw = marker.encode()
        for content in (
            raw,
            raw.hex().encode(),
            raw.hex().upper().encode(),
            *(base64.b64encode(b"x" * shift + raw) for shift in range(3)),
            base64.urlsafe_b64encode(b"??" + raw),
            marker.casefold().encode(),
            marker.encode("utf-16-le"),
            marker.encode("utf-16-be"),
        ):
            assert found_in(b"some {" + content + b"} text", markers) == {marker}, content
    digest = "a" * 20 + made[1] + "b" * 20
    assert found_in(digest.encode(), markers) == set()


# --- what a hospital has ----------------------------------------------------------------------------

# What makes an object an image, and what is allowed to be kept when it holds one of a few words or a number.
KEEP = {
    "SpecificCharacterSet",
    "SOPClassUID",
    "Modality",
    "TransferSyntaxUID",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "LossyImageCompression",
    "PhotometricInterpretation",
    "PresentationLUTShape",
    "PixelPresentation",
    "VOILUTFunction",
    "PatientSex",
    "PatientAge",
    "ImageType",
    "FrameType",
    "ConversionType",
    "DerivationDescription",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleType",
    "RescaleIntercept",
    "RescaleSlope",
    "WindowCenter",
    "WindowWidth",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelSpacingCalibrationType",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "FloatingPointPixelData",
}
FULL, DEEP = ("cr", "ct", "mr", "dx"), "cr"
"""Objects with a marker in every attribute, and the one with three in every sequence too."""
STRUCTURAL_GROUPS = (0x0000, 0x0002, 0x0004, 0x5200, 0x7FE0, 0xFFFE)
TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


def everything(made: Dataset, markers: Markers, name: str) -> None:
    """Into every attribute of the data dictionary (PS3.6) that can hold a person's detail, a marker of its own."""
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in STRUCTURAL_GROUPS or not keyword or keyword in KEEP or keyword in made:
            continue
        where, vr = f"{name}: {keyword}", vr.split(" or ")[0]
        value: Any
        if vr in TEXTS:
            value = markers.text(where)
        elif vr == "UI":
            value = markers.uid(where)
        elif vr == "DA":
            value = markers.date(where)
        elif vr == "TM":
            value = markers.time(where)
        elif vr == "DT":
            value = markers.date(where) + markers.time(where)
        elif vr == "IS" and "Number" in keyword:
            value = markers.whole(where)
        elif name == DEEP and vr == "SQ" and tag >> 16 not in (0x0028, 0x0018, 0x0040) and "LUT" not in keyword:
            value = [deep(markers, where, depth=3)]
        else:
            continue
        made.add_new(tag, vr, value)


def deep(markers: Markers, where: str, depth: int) -> Dataset:
    """A sequence's item with a name, and further sequences in it."""
    made = dicom_objects.item(PatientName=markers.text(f"{where}, depth {depth}"))
    if depth > 1:
        made.ReferencedStudySequence = [deep(markers, where, depth - 1)]
    else:
        made.ConceptNameCodeSequence = [dicom_objects.item(CodeMeaning=markers.text(f"{where}, a code's meaning"))]
    return made


def picture(seed: int, side: int = 48, dtype: str = "uint8") -> NDArray[Any]:
    """Smooth, and unlike any other seed's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR)).astype(dtype)


def dicom(markers: Markers, name: str, seed: int, patient: str, modality: str, sop_class: str, **tags: Any) -> bytes:
    """One object with everything in it."""
    ct = modality == "CT"
    pixels = picture(seed, dtype="int16") * 4 if ct else picture(seed, dtype="uint16")
    made = dicom_objects.dataset(pixels, modality, sop_class)
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(made, keyword, markers.uid(f"{name}: {keyword}"))
    made.PatientID = markers.said(patient, f"{name}: PatientID") if patient else ""
    made.PatientSex, made.BurnedInAnnotation = "F", "NO"
    made.Manufacturer, made.ManufacturerModelName = "SIEMENS", f"SOMATOM {markers.text(f'{name}: model')}"
    made.ImageType = ["ORIGINAL", "PRIMARY", markers.text(f"{name}: ImageType")]
    if ct:
        made.RescaleIntercept, made.RescaleSlope = -1024, 1
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientName = "=".join(
        markers.said(part, f"{name}: PatientName")
        for part in (f"QZ{name}LATIN^Maßgård", f"山田頗里{name}^太郎", f"やまだゑ{name}^たろう")
    )
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    outside(made, markers, name)
    if name in FULL:
        everything(made, markers, name)
    else:
        made.InstitutionName, made.StudyDescription = (
            markers.text(f"{name}: institution"),
            markers.text(f"{name}: study"),
        )
    return dicom_objects.content(made)


def outside(made: FileDataset, markers: Markers, name: str) -> None:
    """Everything that is not in the data dictionary proper."""

    def new(where: str) -> str:
        return markers.text(f"{name}: {where}")

    made.preamble = new("preamble").encode().ljust(128, b"\0")
    meta: Any = made.file_meta
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    meta.ImplementationVersionName = new("ImplementationVersionName")
    for keyword in ("Source", "Sending", "Receiving"):
        setattr(meta, f"{keyword}ApplicationEntityTitle", new(f"{keyword}ApplicationEntityTitle"))
    meta.PrivateInformationCreatorUID = markers.uid(f"{name}: PrivateInformationCreatorUID")
    meta.PrivateInformation = new("PrivateInformation").encode()
    for group in (0x0009, 0x0029):
        block = made.private_block(group, new("private creator"), create=True)
        block.add_new(0x01, "LO", new("private text"))
        block.add_new(0x02, "PN", new("private name"))
        block.add_new(0x03, "UN", new("private bytes").encode() + b"\0\1")
        block.add_new(0x04, "SQ", [deep(markers, f"{name}: private sequence", 2)])
    for group in (0x6000, 0x6002):
        for element, vr, value in (
            (0x0010, "US", 8),
            (0x0011, "US", 16),
            (0x0022, "LO", new("overlay description")),
            (0x0040, "CS", "G"),
            (0x0050, "SS", [1, 1]),
            (0x0100, "US", 1),
            (0x0102, "US", 0),
            (0x1500, "LO", new("overlay label")),
            (0x3000, "OW", new("overlay data").encode().ljust(16, b"\0")),
            (0x4000, "LT", new("overlay comments")),
        ):
            made.add_new((group, element), vr, value)
    for element, vr, value in (
        (0x0022, "LO", new("curve description")),
        (0x0030, "SH", new("axis units")),
        (0x2500, "LO", new("curve label")),
        (0x3000, "OW", new("curve data").encode()),
    ):
        made.add_new((0x5000, element), vr, value)
    icon = dicom_objects.item(
        Rows=2,
        Columns=8,
        BitsAllocated=8,
        ImageComments=new("icon"),
        PixelData=(new("icon's pixels") + "······")[:16].encode("cp437"),
    )
    made.IconImageSequence = [icon]
    made.WindowCenter, made.WindowWidth = [128, 99], [256, 99]
    made.WindowCenterWidthExplanation = [new("a window's explanation"), new("another window's explanation")]
    made.ReferencedImageSequence = [
        dicom_objects.item(
            ReferencedSOPClassUID=made.SOPClassUID, ReferencedSOPInstanceUID=markers.uid(f"{name}: referenced image")
        )
    ]
    made.DataSetTrailingPadding = new("trailing padding").encode()


def jpeg_in_dicom(markers: Markers, name: str, seed: int, patient: str) -> bytes:
    """An object whose compressed pixels carry a comment and EXIF."""
    made = dicom_objects.dataset(
        picture(seed), "CR", dicom_objects.CR, PatientID=markers.said(patient, f"{name}: PatientID")
    )
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(made, keyword, markers.uid(f"{name}: {keyword}"))
    meta: Any = made.file_meta
    meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    made.LossyImageCompression, made.BurnedInAnnotation = "01", "NO"
    outside(made, markers, name)
    made.PixelData = encapsulate([picture_file(markers, name, "JPEG", seed)])
    made["PixelData"].is_undefined_length = True
    return dicom_objects.content(made)


def picture_file(markers: Markers, name: str, kind: str, seed: int) -> bytes:
    """A picture with everything that its format can say beside pixels."""

    def new(where: str) -> str:
        return markers.text(f"{name}: {where}")

    image, file = Image.fromarray(picture(seed)), io.BytesIO()
    if kind == "GIF":
        image.save(file, kind, comment=new("comment").encode())
        return file.getvalue()
    exif = Image.Exif()
    for tag, where in ((270, "description"), (315, "artist"), (33432, "copyright"), (316, "host"), (305, "software")):
        exif[tag] = new(f"EXIF {where}")
    if kind != "TIFF":  # Pillow does not write these directories there
        exif.get_ifd(0x8769).update({0x9286: b"ASCII\0\0\0" + new("EXIF comment").encode(), 0xA430: new("EXIF owner")})
        day = markers.said(f"1931:02:{seed % 28 + 1:02}", f"{name}: GPS date")
        exif.get_ifd(0x8825).update({29: day, 27: new("GPS method").encode()})
    if kind == "PNG":
        texts = PngInfo()
        texts.add_text("Author", new("tEXt"))
        texts.add_text("Comment", new("zTXt"), zip=True)
        texts.add_itxt("Title", new("iTXt"), "en", new("iTXt keyword"))
        image.save(file, kind, pnginfo=texts, exif=exif)
        file.write(new("behind the end").encode())
    elif kind == "JPEG":
        image.save(file, kind, comment=new("COM").encode(), exif=exif, quality=95)
    else:
        exif[285] = new("page's name")
        exif[700] = new("XMP").encode()
        exif[33723] = new("IPTC").encode()
        image.save(file, kind, exif=exif)
    return file.getvalue()


def nifti(markers: Markers, name: str, seed: int) -> bytes:
    volume = np.stack([picture(seed + layer, dtype="int16") for layer in range(3)], axis=2)
    made = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        volume, np.eye(4)
    )
    for key in ("descrip", "aux_file", "intent_name", "db_name"):
        made.header[key] = markers.text(f"{name}: {key}").encode()
    for code in (2, 4, 6):  # DICOM, AFNI, comment
        text = markers.text(f"{name}: extension {code}").encode()
        made.header.extensions.append(nibabel.nifti1.Nifti1Extension(6 if code == 2 else code, text))
    return bytes(made.to_bytes())


def arrays(markers: Markers, name: str, seed: int) -> bytes:
    file = io.BytesIO()
    names = np.array([markers.text(f"{name}: names") for _ in range(2)])
    held: dict[str, Any] = {"images": np.stack([picture(seed), picture(seed + 1)]), "patients": names}
    held[markers.text(f"{name}: an array's own name")] = names
    np.savez(file, **held)
    return file.getvalue()


@dataclass(frozen=True)
class Hospital:
    """What is given to the commands."""

    folder: Path
    markers: Markers
    erased: str
    """Number of the patient who is erased, as typed."""

    @property
    def scans(self) -> Path:
        return self.folder / "scans"


def hospital(folder: Path) -> Hospital:
    markers, scans = Markers(), folder / "scans"

    def place(name: str, content: bytes) -> str:
        """Write a file into a folder with a patient's name; its name as a sheet writes it."""
        ward = markers.said(f"Ward of Øst-{name} QZ^Anna", f"{name}: folder")
        path = f"{ward}/{markers.text(f'{name}: file name')}-{name}"
        (scans / path).parent.mkdir(parents=True, exist_ok=True)
        (scans / path).write_bytes(content)
        return path

    lut = {"LUTDescriptor": [0, 0, 16], "LUTData": np.arange(65536, dtype="<u2").tobytes()}
    explained = dicom_objects.item(
        **lut, LUTExplanation=markers.text("dx: an explanation of a LUT"), ModalityLUTType="US"
    )
    japanese = {"SpecificCharacterSet": ["ISO 2022 IR 100", "ISO 2022 IR 87"]}
    one = markers.said("QZ-MRN-4711-A", "number of patient one")
    sheet: list[tuple[str, str]] = []  # file, patient
    objects: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("cr", one, "CR", dicom_objects.CR, {}),
        ("ct", one, "CT", dicom_objects.CT, {"ConvolutionKernel": markers.text("ct: kernel")}),
        ("mr", "QZ-MRN-4712-B", "MR", dicom_objects.MR, japanese),
        ("dx", "QZ-MRN-4713-C", "DX", "1.2.840.10008.5.1.4.1.1.1.1", {"VOILUTSequence": [explained]}),
        ("withheld", "QZ-MRN-4714-D", "CR", dicom_objects.CR, {}),
        ("mismatch", "QZ-MRN-4715-E", "CR", dicom_objects.CR, {}),
        ("burned", "QZ-MRN-4716-F", "CR", dicom_objects.CR, {"BurnedInAnnotation": "YES"}),
        ("us", "QZ-MRN-4717-G", "US", dicom_objects.US, {"BurnedInAnnotation": ""}),
        ("nobody", "", "CR", dicom_objects.CR, {}),
        ("report", "QZ-MRN-4718-H", "SR", "1.2.840.10008.5.1.4.1.1.88.11", {}),
        ("blank", "QZ-MRN-4719-I", "CR", dicom_objects.CR, {"PixelData": bytes(2 * 48 * 48)}),
        ("bombs", "QZ-MRN-4720-J", "CR", dicom_objects.CR, {"Rows": 60_000, "Columns": 60_000}),
        ("unscaled", "QZ-MRN-4721-K", "CT", dicom_objects.CT, {"RescaleSlope": None}),
    ]
    for seed, (name, patient, modality, sop_class, tags) in enumerate(objects, start=100):
        made = dicom(markers, name, seed, patient, modality, sop_class, **tags)
        file = place(f"{name}.dcm", made)
        if name == "mismatch":
            sheet.append((file, markers.text("sheet: another patient than the object's")))
        elif name == "cr":
            place("copy.dcm", made)
            place("cut.dcm", made[: len(made) // 2])
    place("jpeg.dcm", jpeg_in_dicom(markers, "jpeg", 200, "QZ-MRN-4722-L"))
    for seed, kind in enumerate(("PNG", "JPEG", "TIFF", "GIF"), start=300):
        content = picture_file(markers, kind.lower(), kind, seed)
        sheet.append((place(f"picture.{kind.lower()}", content), markers.text(f"{kind}: patient on the sheet")))
        place(f"cut.{kind.lower()}", content[: len(content) * 2 // 3])
    sheet.append((place("volume.nii", nifti(markers, "nifti", 400)), markers.text("nifti: patient on the sheet")))
    sheet.append((place("arrays.npz", arrays(markers, "npz", 500)), one))
    place("anybody.png", picture_file(markers, "anybody", "PNG", 600))
    place("letter.pdf", f"%PDF-1.4 Dear {markers.text('letter: name')}".encode())
    place("empty.dcm", b"")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = markers.text("zip: comment").encode()
        member = f"{markers.text('zip: folder')}/{markers.text('zip: member')}.dcm"
        archive.writestr(member, dicom(markers, "zipped", 700, "QZ-MRN-4723-M", "CR", dicom_objects.CR))
        archive.writestr(
            f"{markers.text('zip: nested')}.zip", b"PK\3\4" + markers.text("zip: in a nested one").encode()
        )
        member = f"{markers.text('zip: folder of a picture')}/1.jpeg"
        archive.writestr(member, picture_file(markers, "zipped jpeg", "JPEG", 701))
    zipped = place("all.zip", packed.getvalue())
    sheet.append((f"{zipped}/{member}", markers.text("zip: patient on the sheet")))
    (scans / markers.text("a link's name")).symlink_to(folder / "bad.csv")
    mask, texts = (picture(800) > 128).astype(np.uint8) * 255, PngInfo()
    texts.add_text("Author", markers.text("mask: tEXt"))
    (folder / "masks").mkdir()
    Image.fromarray(mask).save((folder / "masks" / Path(sheet[1][0]).name).with_suffix(".png"), pnginfo=texts)
    labels(folder, markers, sheet)
    return Hospital(folder, markers, one)


def labels(folder: Path, markers: Markers, sheet: list[tuple[str, str]]) -> None:
    """Label sheets with columns that nobody asked for, and one that is refused; an opt-out list; lesion boxes."""

    def cells(*more: str) -> list[str]:
        return [markers.text("sheet: a name"), markers.date("sheet: a date of birth"), *more]

    header = [
        "name",
        "born",
        markers.text("sheet: heading of a column"),
        "file",
        "patient",
        "label",
        "sex",
        "age",
        "view",
    ]
    rows = [
        [*cells(""), file, patient, "normal", "F", "57", markers.text("sheet: view") + ":1"] for file, patient in sheet
    ]
    rows += [[*cells(""), "", patient, "pneumonia", "", "", ""] for patient in ("QZ-MRN-4711-A", "QZ-MRN-4712-B")]
    rows += [
        [
            *cells(""),
            f"{markers.text('sheet: file that is not there')}.png",
            markers.text("sheet: nobody"),
            "normal",
            "",
            "",
            "",
        ]
    ]
    write(folder / "labels.csv", [header, *rows])
    named = [
        [file, patient, markers.said(f"QZDOE{n:03}^JOHN", "bad sheet: a name as a label")]
        for n, (file, patient) in enumerate(sheet)
    ]
    write(folder / "bad.csv", [["file", "patient", "label"], *named])
    write(folder / "opt-out.csv", [["patient", "name"], ["QZ-MRN-4714-D", markers.text("opt-out: name")]])
    write(
        folder / "bad-boxes.csv",
        [
            ["file", "label", "x", "y", "width", "height"],
            [sheet[1][0], "mass", markers.text("boxes: a cell"), "1", "2", "3"],
        ],
    )


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


# --- the commands, watched --------------------------------------------------------------------------


@dataclass
class Seen:
    """All that a hospital's data could have come into, by place."""

    places: dict[str, bytes] = field(default_factory=dict)
    children: int = 0
    """Of the commands, looked at while they ran."""

    def add(self, place: str, content: bytes) -> None:
        if content not in self.places.get(place, b""):
            self.places[place] = self.places.get(place, b"") + content + b"\0\0"

    def look_at_files(self, folder: Path, place: str) -> None:
        """Names and content of all files below ``folder``."""
        for path in folder.rglob("*"):
            self.add(f"names in {place}", os.fsencode(path.relative_to(folder)))
            with contextlib.suppress(OSError):
                if path.is_file():
                    self.add(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@dataclass
class Operator:
    """Types commands; notes what they print, leave behind and show of themselves."""

    folder: Path
    seen: Seen = field(default_factory=Seen)

    def types(self, *arguments: object, code: int, typed: str = "") -> None:
        """Runs ``fedward site ARGUMENTS``, ``typed`` at its standard input.

        A patient's number may stand in the arguments of ``erase`` itself; its children, and all else, are looked at.
        """
        title = f"fedward site {arguments[0]}"
        argv = [sys.executable, str(ROOT / "fedward.py"), "site", *map(str, arguments)]
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(temporary), "SQLITE_TMPDIR": str(temporary)},
        )
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process.pid, over, temporary, title))
        watcher.start()
        try:
            out, err = process.communicate(typed.encode(), timeout=120)
        finally:
            process.kill()
            over.set()
            watcher.join()
        self.seen.add(f"output of {title}", out)
        self.seen.add(f"errors of {title}", err)
        assert process.returncode == code, (title, process.returncode, out, err)

    def _watch(self, pid: int, over: threading.Event, temporary: Path, title: str) -> None:
        looked: set[int] = set()
        while not over.wait(0.02):
            self.seen.look_at_files(temporary, "temporary files")
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(pid).children(recursive=True):
                    looked.add(child.pid)
                    for name in ("cmdline", "environ", "comm"):
                        with contextlib.suppress(OSError):
                            self.seen.add(
                                f"{name} of a child of {title}", Path(f"/proc/{child.pid}/{name}").read_bytes()
                            )
            for journal in (self.folder / "site").glob("*-journal"):
                with contextlib.suppress(OSError):
                    self.seen.add("journal", journal.read_bytes())
        self.seen.children += len(looked)


def decrypted(seen: Seen, vault: Path, key: Path) -> int:
    """All that the vault holds, by this project's reader and by the format's document; how many images."""
    reader = Reader(vault, {"key": str(key)})
    seen.add("manifest", json.dumps(reader.manifest).encode())
    for row_id, seal, cipher in reader.images:
        seen.add("labels as stored", reader.part(0, row_id, seal, cipher))
    with Vault.open(vault, provider(f"file:{key}", base=vault.parent), read_only=True) as opened:
        for row in opened.each():
            seen.add("rows", json.dumps(vars(row), default=str, ensure_ascii=False).encode())
            seen.add("pixels", opened.read(row.id).tobytes())
            if row.has_mask:
                seen.add("masks", opened.read_mask(row.id).tobytes())
        seen.add("source", opened.source.encode())
    return len(reader.images)


@dataclass(frozen=True)
class Day:
    """One day at a hospital."""

    hospital: Hospital
    seen: Seen
    stages: Counter[str]
    images: tuple[int, int]
    """Before and after a patient was erased."""


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    folder = tmp_path_factory.mktemp("hospital")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, config.settings.writing_validation_mode = config.settings.writing_validation_mode, config.IGNORE
        try:
            given = hospital(folder)
        finally:
            config.settings.writing_validation_mode = before
    operator, site = Operator(folder), folder / "site"
    seen, vault, key = operator.seen, site / "vault.sqlite", site / "keys" / "vault.key"
    sheets = ("--labels", folder / "labels.csv", "--opt-out", folder / "opt-out.csv", "--masks", folder / "masks")
    operator.types("init", site, "--synthetic", code=0)
    operator.types("import", given.scans, "--labels", folder / "bad.csv", "--site", site, code=3)
    operator.types("import", given.scans, "--boxes", folder / "bad-boxes.csv", "--site", site, code=3)
    operator.types("import", given.scans, *sheets, "--workers", 2, "--site", site, code=9)
    with (site / "reports" / "rejected.csv").open() as file:
        stages = Counter(row["stage"] for row in csv.DictReader(file))
    images = decrypted(seen, vault, key)
    seen.look_at_files(site, "site after the import")
    operator.types("import", given.scans, *sheets, "--site", site, "--json", code=9)
    operator.types("label", folder / "labels.csv", "--site", site, code=0)
    operator.types("label", folder / "bad.csv", "--site", site, code=3)
    operator.types("info", "--json", "--site", site, code=0)
    operator.types("erase", "--patient", given.erased, "--yes", "--site", site, code=0)
    operator.types("erase", "--patient", "-", "--yes", "--site", site, code=0, typed="QZ-MRN-4712-B\n")
    left = decrypted(seen, vault, key)
    operator.types("import", given.scans, *sheets, "--site", site, code=9)
    assert decrypted(seen, vault, key) == left, "an erased patient came back"
    operator.types("verify", "--site", site, code=0)
    operator.types("doctor", "--site", site, code=0)
    operator.types("backup", folder / "backup.tar", "--site", site, code=0)
    seen.look_at_files(site, "site at the end")
    seen.add("backup", (folder / "backup.tar").read_bytes())
    with tarfile.open(folder / "backup.tar") as archive:
        seen.add("names in the backup", "\n".join(archive.getnames()).encode())
    return Day(given, seen, stages, (images, left))


def test_every_marker_is_where_it_was_planted(day: Day) -> None:
    """Or its absence elsewhere would say nothing."""
    parts = [path.relative_to(day.hospital.folder).as_posix().encode() for path in day.hospital.scans.rglob("*")]
    for path in (
        *day.hospital.scans.rglob("*"),
        *day.hospital.folder.glob("*.csv"),
        *day.hospital.folder.glob("masks/*"),
    ):
        if path.is_file() and not path.is_symlink():
            parts.append(path.read_bytes())
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                parts += [
                    *(name.encode() for name in archive.namelist()),
                    *(archive.read(name) for name in archive.namelist()),
                ]
        if path.suffix == ".npz":
            with np.load(path) as file:
                parts += [file[name].tobytes().replace(b"\0\0\0", b"") + name.encode() for name in file.files]
        if path.suffix == ".png":
            with contextlib.suppress(OSError, SyntaxError), Image.open(path) as image:
                parts.append(repr(image.info).encode())
    planted = found_in(b"\0".join(parts), day.hospital.markers)
    assert sorted(where for marker, where in day.hospital.markers.kept.items() if marker not in planted) == []
    for name in ("cr", "ct", "mr", "dx"):
        assert sum(where.startswith(f"{name}: ") for where in day.hospital.markers.kept.values()) >= 35
    assert len(day.hospital.markers.kept) > 5000


def test_files_were_taken_and_refused_at_every_stage(day: Day) -> None:
    assert set(day.stages) == {"source", "parse", "decode", "pixels", "deidentify", "labels", "consent", "duplicate"}
    before, after = day.images
    assert before >= 12
    assert 0 < after < before
    assert day.seen.children >= 4, "decoding processes were looked at"


def test_no_marker_is_found_anywhere(day: Day) -> None:
    leaks = [
        f"{place}: {marker!r} ({day.hospital.markers.kept[marker]})"
        for place, content in day.seen.places.items()
        for marker in sorted(found_in(content, day.hospital.markers))
    ]
    assert leaks == []


def test_all_places_were_looked_at(day: Day) -> None:
    places = day.seen.places.keys()
    for place in (
        "manifest",
        "labels as stored",
        "rows",
        "pixels",
        "masks",
        "source",
        "backup",
        "names in the backup",
        "output of fedward site info",
        "errors of fedward site import",
        "cmdline of a child of fedward site import",
        "environ of a child of fedward site import",
        *(
            f"site at the end/{name}"
            for name in (
                "vault.sqlite",
                "audit.jsonl",
                "state/vault.json",
                "reports/rejected.csv",
                "reports/readiness.html",
                "site.yaml",
            )
        ),
    ):
        assert place in places, place


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("array", "QZDOE^JOHN"),
        ("array", "QZMRN 1931-02-03"),
        ("box", "QZDOE^JOHN"),
        ("box", "QZMRN 1931-02-03"),
        ("device", "QZ Ward of Dr Doe"),
        ("view", "QZ as Dr Doe asked"),
    ],
)
def test_what_no_label_sheet_may_say_nobody_else_may(place: str, text: str, tmp_path: Path) -> None:
    """The label column of a sheet takes no names and dates, a DICOM object's device and view only known words.

    So with labels inside an array file, labels of lesion boxes, and the columns ``device`` and ``view`` of a sheet.
    """
    scans = tmp_path / "scans"
    scans.mkdir()
    Image.fromarray(picture(1)).save(scans / "a.png")
    if place == "array":
        names = np.array([f"{text}{number}" for number in range(2)])
        np.savez(scans / "b.npz", images=np.stack([picture(2), picture(3)]), labels=names)
    device, view = (text if place == name else "" for name in ("device", "view"))
    write(tmp_path / "labels.csv", [["file", "label", "device", "view"], ["a.png", "normal", device, view]])
    write(tmp_path / "boxes.csv", [["file", "label", "x", "y", "width", "height"], ["a.png", text, "1", "2", "3", "4"]])
    site = tmp_path / "site"
    assert command("site", "init", site, "--synthetic").code == 0
    boxes = ("--boxes", tmp_path / "boxes.csv") if place == "box" else ()
    outcome = command("site", "import", scans, "--labels", tmp_path / "labels.csv", *boxes, "--site", site)
    seen = Seen()
    decrypted(seen, site / "vault.sqlite", site / "keys" / "vault.key")
    seen.look_at_files(site, "site")
    seen.add("output", (outcome.out + outcome.err + command("site", "info", "--json", "--site", site).out).encode())
    assert [where for where, content in seen.places.items() if text.encode() in content] == []
