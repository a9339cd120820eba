"""An import from end to end, in the importer's own terms: what comes in, what stays out, and what is said of it."""

from __future__ import annotations

import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.ingest.boxes import BoxSheet
from client.ingest.consent import OptOut
from client.ingest.importer import Importer, Sheets
from client.ingest.kinds import Rules
from client.ingest.known import Known
from client.ingest.labels import LabelSheet
from client.ingest.masks import MaskFiles
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.sources import discover
from client.ingest.summary import Summary
from client.vault.keys import create_key_file, provider
from client.vault.records import Row
from client.vault.store import Vault


def picture(seed: int, side: int = 48) -> NDArray[np.uint8]:
    """Something with a shape in it: smooth, and unlike any other seed's."""
    rng = np.random.default_rng(seed)
    return np.asarray(cv2.resize(rng.integers(0, 256, (6, 6), dtype=np.uint8), (side, side)), np.uint8)


def png(path: Path, seed: int, **size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(seed, **size))


def dicom(path: Path, seed: int, patient: str, **tags: object) -> str:
    """A CT slice; its SOP Instance UID."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.PatientID, image.PatientName, image.Modality = patient, "DOE^JOHN", "CT"
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.AccessionNumber = f"A{seed}"
    image.Rows = image.Columns = 48
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleIntercept, image.RescaleSlope = -1024, 1
    image.PixelData = (picture(seed).astype(np.int16) * 4).tobytes()
    for name, value in tags.items():
        setattr(image, name, value)
    image.save_as(path, enforce_file_format=True)
    return str(image.SOPInstanceUID)


@dataclass
class Site:
    """A vault and a folder of scans."""

    path: Path
    scans: Path
    commits: list[int] = field(default_factory=list)

    def open(self) -> Vault:
        return Vault.open(self.path / "v.sqlite", provider("file:vault.key", base=self.path))

    def run(self, sheets: Sheets | None = None, **options: object) -> Summary:
        rules = Rules(**options.pop("rules", {}))  # type: ignore[arg-type]
        sheets = sheets or Sheets()
        sheets.masks.look_at(discover([self.scans], rules))
        with self.open() as vault:
            importer = Importer(
                vault,
                sheets,
                rules=rules,
                split=(0.7, 0.15, 0.15),
                committed=lambda vault: self.commits.append(vault.generation),
                **options,  # type: ignore[arg-type]
            )
            with importer:
                importer.run(sheets.masks.images(discover([self.scans], rules)))
            vault.verify()
            return importer.summary

    def rows(self) -> list[object]:
        with self.open() as vault:
            return list(vault.each())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    create_key_file(tmp_path / "vault.key")
    keys = provider("file:vault.key", base=tmp_path)
    Vault.create(tmp_path / "v.sqlite", keys, synthetic=True, source="test").close()
    (tmp_path / "scans").mkdir()
    return Site(tmp_path, tmp_path / "scans")


def sheet(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def labelled(site: Site, text: str) -> Sheets:
    return Sheets(labels=LabelSheet.load(sheet(site.path / "labels.csv", text)))


def reasons(summary: Summary) -> Counter[str]:
    return Counter(reason.code for _, reason in summary.rejected)


def test_images_with_a_sheet(site: Site) -> None:
    for number in range(4):
        png(site.scans / f"{number}.png", number)
    text = "file,patient,label,sex\n0.png,P1,normal,F\n1.png,P1,normal,F\n2.png,P2,pneumonia,M\n"
    summary = site.run(labelled(site, text))
    assert (summary.files, summary.images, summary.unlabelled, summary.anonymous) == (4, 4, 1, 1)
    with site.open() as vault:
        rows = list(vault.each())
        assert [row.labels.get("label", ()) for row in rows] == [("normal",), ("normal",), ("pneumonia",), ()]
        assert [row.attributes.get("sex") for row in rows] == ["F", "F", "M", None]
        assert len({row.patient for row in rows}) == 3
        assert rows[0].patient == Pseudonyms(vault.secret).patient("P1")
        assert rows[0].split == rows[1].split != ""
        np.testing.assert_array_equal(vault.read(rows[2].id), picture(2))


def test_a_second_import_adds_nothing(site: Site) -> None:
    for number in range(3):
        png(site.scans / f"{number}.png", number)
    site.run()
    before = (site.path / "v.sqlite").read_bytes()
    summary = site.run()
    assert (summary.images, summary.known, summary.rejected) == (0, 3, [])
    assert (site.path / "v.sqlite").read_bytes() == before
    png(site.scans / "new.png", 9)
    assert site.run().images == 1


def test_duplicates_are_left_out_and_listed(site: Site) -> None:
    png(site.scans / "a.png", 1)
    shutil.copy(site.scans / "a.png", site.scans / "b.png")
    cv2.imwrite(str(site.scans / "c.bmp"), picture(1))
    text = "file,patient,label\na.png,P1,normal\nb.png,P1,normal\nc.bmp,P1,normal\n"
    summary = site.run(labelled(site, text))
    assert reasons(summary) == {"duplicate-file": 1, "duplicate-pixels": 1}
    assert (summary.images, summary.refused, summary.duplicates) == (1, 0, 2)
    assert site.run(labelled(site, text)).images == 0


def test_one_picture_of_two_patients_is_refused(site: Site) -> None:
    png(site.scans / "a.png", 1)
    cv2.imwrite(str(site.scans / "b.bmp"), picture(1))
    summary = site.run(labelled(site, "file,patient,label\na.png,P1,normal\nb.bmp,P2,normal\n"))
    assert (reasons(summary), summary.refused) == ({"duplicate-patient": 1}, 1)


def test_bad_files_do_not_stop_the_others(site: Site) -> None:
    png(site.scans / "good.png", 1)
    (site.scans / "empty.png").write_bytes(b"")
    (site.scans / "text.png").write_text("no picture")
    cv2.imwrite(str(site.scans / "black.png"), np.zeros((32, 32), np.uint8))
    whole = (site.scans / "good.png").read_bytes()
    (site.scans / "half.png").write_bytes(whole[: len(whole) // 2])
    (site.scans / "out.png").symlink_to("/etc/hostname")
    summary = site.run()
    assert (summary.files, summary.images, summary.refused) == (6, 1, 5)
    assert {"blank-image", "outside-source"} < set(reasons(summary))
    with site.open() as vault:
        wanted = Pseudonyms(vault.secret).reference("black.png")
    assert [reason.code for reference, reason in summary.rejected if reference == wanted] == ["blank-image"]
    assert site.run().refused == 5, "what was refused is refused again"


def test_dicom_carries_its_own_patient(site: Site) -> None:
    sop = dicom(site.scans / "1.dcm", 1, "MRN-1")
    dicom(site.scans / "2.dcm", 2, "MRN-1")
    dicom(site.scans / "3.dcm", 3, "MRN-2")
    dicom(site.scans / "nobody.dcm", 4, "")
    summary = site.run(labelled(site, f"sop,patient,label\n{sop},MRN-1,tumor\n,MRN-2,normal\n"))
    assert (summary.images, reasons(summary)) == (3, {"no-patient": 1})
    with site.open() as vault:
        rows = list(vault.each())
        assert [row.labels.get("label", ()) for row in rows] == [("tumor",), (), ("normal",)]
        assert rows[0].patient == rows[1].patient != rows[2].patient
        assert [row.dtype for row in rows] == ["int16"] * 3
        assert rows[0].attributes["modality"] == "CT"
        np.testing.assert_array_equal(vault.read(1), picture(1).astype(np.int16) * 4 - 1024)
    content = (site.path / "v.sqlite").read_bytes()
    assert b"MRN-1" not in content and b"DOE" not in content


def test_the_same_object_in_other_bytes_is_a_duplicate(site: Site) -> None:
    dicom(site.scans / "1.dcm", 1, "MRN-1")
    site.run()
    image = pydicom.dcmread(site.scans / "1.dcm")
    image.ImageComments = "sent again"
    image.save_as(site.scans / "2.dcm")
    summary = site.run()
    assert (summary.images, summary.known, reasons(summary)) == (0, 1, {"duplicate-object": 1})


def test_opt_outs_and_erased_patients_stay_out(site: Site) -> None:
    for number, patient in enumerate(("P1", "P2", "P3")):
        dicom(site.scans / f"{number}.dcm", number, patient)
    sheets = Sheets(opt_out=OptOut.load(sheet(site.path / "no.txt", "P2\n")))
    summary = site.run(sheets)
    assert (summary.images, summary.withheld, summary.refused) == (2, 1, 0)
    with site.open() as vault:
        vault.erase([Pseudonyms(vault.secret).patient("P3")])
    summary = site.run(sheets)
    assert (summary.images, summary.known, reasons(summary)) == (0, 1, {"withheld": 1, "erased": 1})


def test_an_erased_picture_does_not_come_back_without_its_name(site: Site) -> None:
    png(site.scans / "a.png", 1)
    site.run(labelled(site, "file,patient,label\na.png,P1,normal\n"))
    with site.open() as vault:
        vault.erase([Pseudonyms(vault.secret).patient("P1")])
    (site.scans / "a.png").rename(site.scans / "b.png")
    cv2.imwrite(str(site.scans / "c.bmp"), picture(1))
    assert reasons(site.run()) == {"erased": 2}


def test_a_patient_keeps_one_split(site: Site) -> None:
    png(site.scans / "a.png", 1)
    site.run(labelled(site, "file,patient,label,split\na.png,P1,normal,test\n"))
    png(site.scans / "b.png", 2)
    png(site.scans / "c.png", 3)
    summary = site.run(labelled(site, "file,patient,label,split\na.png,P1,x,train\nb.png,P1,normal,train\n"))
    assert reasons(summary) == {"two-splits": 1}
    (site.scans / "b.png").rename(site.scans / "d.png")
    site.run(labelled(site, "file,patient,label\nd.png,P1,normal\n"))
    with site.open() as vault:
        mine = [row for row in vault.each() if "anonymous" not in row.keys]
        assert [row.split for row in mine] == ["test", "test"]


def test_masks_by_folder_and_by_sheet(site: Site) -> None:
    masks = site.path / "masks"
    masks.mkdir()
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        png(site.scans / f"{name}.png", seed)
    ring = (picture(7) > 128).astype(np.uint8) * 255
    cv2.imwrite(str(masks / "a.png"), ring)
    cv2.imwrite(str(masks / "b.bmp"), ring[:20, :40])
    summary = site.run(Sheets(masks=MaskFiles(masks)))
    assert (summary.images, summary.masks, reasons(summary)) == (3, 1, {"mask-shape": 1})
    with site.open() as vault:
        rows = list(vault.each())
        assert [row.has_mask for row in rows] == [True, False, False]
        np.testing.assert_array_equal(vault.read_mask(1), ring // 255)
    (masks / "b.bmp").unlink()
    cv2.imwrite(str(masks / "b.png"), ring)
    summary = site.run(Sheets(masks=MaskFiles(masks)))
    assert (summary.known, summary.masks) == (3, 1), "masks may come later"


def test_masks_follow_the_images_scale(site: Site) -> None:
    png(site.scans / "a.png", 1, side=96)
    masks = site.path / "masks"
    masks.mkdir()
    half = np.zeros((96, 96), np.uint8)
    half[:, 48:] = 255
    cv2.imwrite(str(masks / "a.png"), half)
    summary = site.run(Sheets(masks=MaskFiles(masks)), rules={"longest_side": 48})
    assert summary.masks == 1
    with site.open() as vault:
        assert vault.read(1).shape == (48, 48)
        np.testing.assert_array_equal(vault.read_mask(1), half[::2, ::2] // 255)


def test_boxes_are_in_stored_pixels(site: Site) -> None:
    png(site.scans / "a.png", 1, side=96)
    png(site.scans / "b.png", 2, side=96)
    boxes = sheet(site.path / "boxes.csv", "file,label,x,y,width,height\na.png,nodule,10,20,30,40\nb.png,x,90,0,50,5\n")
    summary = site.run(Sheets(boxes=BoxSheet.load(boxes)), rules={"longest_side": 48})
    assert reasons(summary) == {"box-outside": 1}
    with site.open() as vault:
        (row,) = vault.each()
    assert row.boxes == (("nodule", 5.0, 10.0, 15.0, 20.0),)


def test_two_workers_make_the_same_vault(site: Site, tmp_path: Path) -> None:
    for number in range(12):
        png(site.scans / f"{number:02}.png", number)
    site.run(workers=2)
    twice = [row.digest for row in site.rows()]  # type: ignore[attr-defined]
    with site.open() as vault:
        vault.erase({row.patient for row in vault.each()})
    (tmp_path / "v.sqlite").unlink()
    keys = provider("file:vault.key", base=tmp_path)
    Vault.create(tmp_path / "v.sqlite", keys, synthetic=True, source="test").close()
    site.run(workers=1)
    assert [row.digest for row in site.rows()] == twice  # type: ignore[attr-defined]


def test_commits_are_whole_files_and_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.importer.COMMIT_BYTES", 1)
    for number in range(3):
        png(site.scans / f"{number}.png", number)
    site.run()
    assert site.commits == [2, 3, 4]


def test_an_error_on_the_way_keeps_what_was_committed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.importer.COMMIT_BYTES", 1)
    for number in range(4):
        png(site.scans / f"{number}.png", number)

    def stop_after(count: int) -> Callable[[Vault], None]:
        def committed(vault: Vault) -> None:
            if len(vault) == count:
                raise KeyboardInterrupt

        return committed

    with site.open() as vault:
        rules = Rules()
        importer = Importer(vault, Sheets(), rules=rules, split=(1.0, 0.0, 0.0), committed=stop_after(2))
        with pytest.raises(KeyboardInterrupt), importer:
            importer.run(discover([site.scans], rules))
    assert len(site.rows()) == 2
    summary = site.run()
    assert (summary.known, summary.images) == (2, 2)


def test_compression_is_lossless(site: Site) -> None:
    png(site.scans / "a.png", 1)
    site.run(codec="jpeg-ls")
    with site.open() as vault:
        (row,) = vault.each()
        assert row.codec == "jpeg-ls"
        np.testing.assert_array_equal(vault.read(row.id), picture(1))


def test_an_image_takes_some_hundred_bytes_of_memory(site: Site) -> None:
    def known(count: int) -> float:
        tracemalloc.start()
        try:
            with site.open() as vault:
                found = Known(vault)
                for number in range(count):
                    name = {kind: f"{number:06d}{kind:x<26}".encode().hex()[:32] for kind in ("source", "sop", "place")}
                    keys = {**name, "part": f"{name['source']}/0"}
                    digest, patient = f"{number:032x}" * 2, f"{number:032x}"
                    found.remember(Row(number, digest, patient, {}, "train", {}, (8, 8), "uint8", False, keys=keys))
                return tracemalloc.get_traced_memory()[0] / count
        finally:
            tracemalloc.stop()

    assert known(20_000) < 650
