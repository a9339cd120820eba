"""What a hostile review found in importing and relabelling: who stays out, whose an image is, which mask lies on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from client import cli, upkeep
from client.home import Home
from client.ingest.importer import Importer
from client.vault.records import Row
from tests.integration.commandline import Outcome, command
from tests.unit.test_dicom_segmentation import segmentation
from tests.unit.test_importer import dicom, picture, png

RING = (picture(7) > 128).astype(np.uint8) * 255


class Site:
    """A site and a folder of scans."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scans, self.path = folder, folder / "scans", folder / "north"
        self.scans.mkdir()
        Home.init(self.path, alias="north", synthetic=True)

    def write(self, text: str, name: str = "labels.csv") -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def run(self, *arguments: object, sources: tuple[Path, ...] = ()) -> tuple[dict[str, object], Outcome]:
        """Import; the counts that are not 0, and what the command answered."""
        outcome = command("site", "import", *(sources or (self.scans,)), "--json", "--site", self.path, *arguments)
        facts = json.loads(outcome.out)
        return {key: value for key, value in facts.items() if value and key != "seconds"}, outcome

    def label(self, text: str) -> tuple[int, str]:
        outcome = command("site", "label", self.write(text, "later.csv"), "--site", self.path)
        return outcome.code, outcome.out

    def erase(self, patient: str) -> int:
        return upkeep.erase(Home.open(self.path), patient)[0]

    def rows(self) -> list[Row]:
        with Home.open(self.path).vault(read_only=True) as vault:
            return list(vault.each())

    def labels(self) -> list[tuple[str, ...]]:
        return [tuple(row.labels.get("label", ())) for row in self.rows()]

    def masks(self) -> list[int | None]:
        """Pixels of each image's mask, or ``None``."""
        with Home.open(self.path).vault(read_only=True) as vault:
            return [int(vault.read_mask(row.id).sum()) if row.has_mask else None for row in vault.each()]

    def rejected(self) -> list[tuple[str, str]]:
        lines = (self.path / "reports" / "rejected.csv").read_text().splitlines()[1:]
        return [(line.split(",")[0], line.split(",")[2]) for line in lines]

    def entry(self) -> dict[str, object]:
        """The last entry of the audit log."""
        facts: dict[str, object] = json.loads((self.path / "audit.jsonl").read_text().splitlines()[-1])
        return facts


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


# Who stays out


def test_an_opt_out_list_is_held_against_what_is_in_the_vault(site: Site) -> None:
    dicom(site.scans / "1.dcm", 1, "0012")
    dicom(site.scans / "2.dcm", 2, "P2")
    for number in range(4):
        png(site.scans / f"{number}.png", 10 + number)
    rows = "file,patient,accession,label\n1.png,P3,X1,normal\n2.png,P4,X2,normal\n"
    assert site.run("--labels", site.write(rows))[1].code == 0
    no = site.write("patient,accession\n12,\np9,\n,x1\n,a2\n", "no.csv")
    now = site.write(f"{rows}0.png,P9,,normal\n3.png,P5,,normal\n")
    facts, outcome = site.run("--labels", now, "--opt-out", no)
    assert (outcome.code, facts["withheld_in_vault"], facts["known"], "withheld" in facts) == (9, 4, 6, False)
    assert "4 images in the vault are withheld by the opt-out list" in outcome.error
    assert "fedward site erase" in outcome.error
    listed = [int(reference.removeprefix("#")) for reference, code in site.rejected() if code == "withheld-in-vault"]
    names = {command("site", "locate", f"#{row}", site.scans, "--site", site.path).out.strip() for row in listed}
    assert names == {"1.dcm", "2.dcm", "0.png", "1.png"}
    # The remedy is one: what the sheet says of the nameless, then to erase.
    assert site.label(now.read_text())[0] == 0
    assert [site.erase(patient) for patient in ("12", "P9", "P3", "p2")] == [1, 1, 1, 1]
    facts, outcome = site.run("--labels", now, "--opt-out", no)
    assert (outcome.code, facts["withheld"], facts["known"]) == (0, 4, 2)


def test_an_examination_that_only_the_sheet_names_can_be_withheld(site: Site) -> None:
    png(site.scans / "a.png", 1)
    sheet = site.write("file,patient,accession,label\na.png,P1,ACC-1,normal\n")
    facts, outcome = site.run("--labels", sheet, "--opt-out", site.write("accession\nacc-1\n", "no.csv"))
    assert (outcome.code, facts) == (0, {"files": 1, "withheld": 1, "reasons": {"withheld": 1}})


def test_a_patient_is_one_however_the_number_is_written(site: Site) -> None:
    for number, patient in enumerate(("0012", "abc", "ABC")):
        dicom(site.scans / f"{number}.dcm", number, patient)
    png(site.scans / "a.png", 9)
    sheet = site.write("file,patient,label\na.png,12,normal\n")
    site.run("--labels", sheet)
    assert len({row.patient for row in site.rows()}) == 2
    assert len({(row.patient, row.split) for row in site.rows()}) == 2
    assert (site.erase("12"), site.erase("Abc")) == (2, 2)
    assert site.run("--labels", sheet)[0]["reasons"] == {"erased": 4}


# Labels that come later


def test_a_later_sheet_is_refused_what_an_import_would_refuse_it(site: Site) -> None:
    dicom(site.scans / "x" / "1.dcm", 1, "P1")
    dicom(site.scans / "y" / "1.dcm", 2, "P2")
    dicom(site.scans / "x" / "2.dcm", 3, "P3")
    site.run()
    code, out = site.label("file,patient,label\n1.dcm,P9,pneumonia\n2.dcm,p3,pneumonia\n")
    assert (code, site.labels()) == (9, [(), ("pneumonia",), ()])
    assert out.startswith("1 images changed, 1 named by the sheet\n      2 refused (label-mismatch): ")
    code, out = site.label("file,label\n1.dcm,pneumonia\n")
    assert (code, site.labels()[0], "2 refused (label-ambiguous)" in out) == (9, (), True)
    two = "file,patient,reader_1,reader_2\nx/1.dcm,,tumour,normal\n,P1,normal,normal\n"
    code, out = site.label(two)
    assert (code, site.labels()[0], "1 refused (readers-disagree)" in out) == (9, (), True)
    code, out = site.label("accession,file,label\nA9,x/1.dcm,normal\n")
    assert (code, "1 refused (label-mismatch)" in out) == (9, True)
    assert site.label("file,label,split\nx/2.dcm,,test\nx/1.dcm,normal,train\n")[0] == 0
    assert site.labels() == [("normal",), ("pneumonia",), ()], "an empty cell takes nothing away"
    assert site.rows()[1].split == "test"
    assert site.entry()["event"] == "labelled"


def test_a_later_sheet_says_whose_images_are(site: Site) -> None:
    dicom(site.scans / "1.dcm", 1, "P1")
    for number in range(8):
        png(site.scans / f"{number}.png", 10 + number)
    site.run()
    site.erase("P7")
    text = "file,patient,label\n" + "".join(f"{number}.png,{'P7' if number == 7 else 'p1'},a\n" for number in range(8))
    outcome = command("site", "label", site.write(text), "--site", site.path)
    assert (outcome.code, outcome.out) == (9, "8 images changed, 8 named by the sheet\n")
    assert outcome.error.startswith("1 images turn out to be of erased patients: `fedward site erase`")
    rows = site.rows()
    assert len({row.patient for row in rows}) == 2 and not any("anonymous" in row.keys for row in rows)
    assert len({row.split for row in rows if row.patient == rows[0].patient}) == 1
    assert (site.erase("P7"), site.erase("P1")) == (1, 8), "an image of an erased patient can be erased now"


# Two things said of one image


def test_contradictions_are_no_harmless_duplicates(site: Site) -> None:
    dicom(site.scans / "1.dcm", 1, "P1")
    other = pydicom.dcmread(site.scans / "1.dcm")
    other.PatientID = "P2"
    other.save_as(site.scans / "2.dcm")
    for number, name in enumerate(("a", "c")):
        png(site.scans / f"{name}.png", 10 + number)
        shutil.copy(site.scans / f"{name}.png", site.scans / f"{name}2.png")
    rows = "file,patient,label\na.png,P3,normal\na2.png,P4,normal\nc.png,P5,normal\nc2.png,P5,tumour\n"
    facts, outcome = site.run("--labels", site.write(rows))
    assert (outcome.code, facts["images"], facts["refused"]) == (9, 3, 3)
    assert facts["reasons"] == {"duplicate-conflict": 2, "object-patient": 1}
    again, _ = site.run("--labels", site.write(rows))
    assert (again["reasons"], again["known"]) == (facts["reasons"], 3)


def test_a_corrected_sheet_is_noticed(site: Site) -> None:
    png(site.scans / "a.png", 1)
    png(site.scans / "b.png", 2)
    rows = "file,patient,label\na.png,P1,normal\nb.png,P1,normal\n"
    site.run("--labels", site.write(rows))
    assert "other_labels" not in site.run("--labels", site.write(rows))[0]
    corrected = rows.replace("a.png,P1,normal", "a.png,P1,tumour")
    outcome = command("site", "import", site.scans, "--labels", site.write(corrected), "--site", site.path)
    assert (outcome.code, "1 of them are labelled otherwise on this sheet; `fedward site label`" in outcome.out) == (
        0,
        True,
    )
    site.label(corrected)
    assert site.labels() == [("tumour",), ("normal",)]
    assert "other_labels" not in site.run("--labels", site.write(corrected))[0]
    assert site.run("--labels", site.write(corrected.replace("P1", "P2")))[0]["other_labels"] == 2


def test_files_of_one_name_in_two_sources_are_two_patients(site: Site) -> None:
    north, south = site.folder / "n", site.folder / "s"
    png(north / "1.png", 1)
    png(south / "1.png", 2)
    png(south / "2.png", 3)
    (north / "2.png").parent.mkdir(exist_ok=True)
    shutil.copy(south / "2.png", north / "2.png")
    facts, outcome = site.run(sources=(north, south))
    assert (outcome.code, facts["files"], facts["images"], facts["duplicates"]) == (0, 4, 3, 1)
    assert len({row.patient for row in site.rows()}) == 3
    assert site.run(sources=(north, south))[0]["known"] == 4


# What is refused in part, or breaks off


def test_a_file_that_was_refused_in_part_is_refused_in_part_again(site: Site) -> None:
    stack = np.stack([picture(1), np.zeros((48, 48), np.uint8), picture(2)])
    np.savez(site.scans / "a.npz", images=stack)
    shutil.copy(site.scans / "a.npz", site.scans / "b.npz")
    assert site.run()[0]["reasons"] == {"blank-image": 1, "duplicate-file": 1}
    (site.scans / "b.npz").unlink()
    facts, outcome = site.run()
    assert (outcome.code, facts) == (9, {"files": 1, "known": 1, "refused": 1, "reasons": {"blank-image": 1}})
    assert len(site.rows()) == 2


def test_what_a_vault_cannot_hold_stops_nothing_else(site: Site) -> None:
    png(site.scans / "a.png", 1)
    png(site.scans / "b.png", 2)
    lines = "".join(f"a.png,lesion,{number % 40 + number / 10000:.4f},{number % 37},2,2\n" for number in range(3000))
    facts, outcome = site.run("--boxes", site.write(f"file,label,x,y,width,height\n{lines}", "boxes.csv"))
    assert (outcome.code, facts["images"], facts["reasons"]) == (9, 1, {"too-much-said": 1})
    image(site.scans / "c.bmp", picture(1))
    (site.scans / "a.png").unlink()
    assert site.run()[0]["images"] == 1, "what was refused is not there, and its copy is no duplicate"


def test_whatever_ends_an_import_what_came_in_is_on_record(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.importer.COMMIT_BYTES", 1)
    for number in range(4):
        png(site.scans / f"{number}.png", number)
    take, count = Importer._take, iter(range(9))

    def breaks(*arguments: object) -> None:
        if next(count) == 2:
            raise RuntimeError("unforeseen")
        take(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Importer, "_take", breaks)
    with pytest.raises(RuntimeError):
        cli.import_(site.path, [site.scans], cli.Given(), workers=1, as_json=True)
    entry = site.entry()
    assert entry["event"] == "import"
    assert (entry["facts"]["images"], entry["facts"]["outcome"]) == (2, "failed")  # type: ignore[index]
    assert upkeep.verify(Home.open(site.path)).whole_file


# Masks


def test_a_mask_is_of_one_image_and_no_image_itself(site: Site) -> None:
    for name, seed in (("x/1", 1), ("y/1", 2), ("x/2", 3), ("3", 4), ("4", 5), ("5", 6)):
        png(site.scans / f"{name}.png", seed)
    masks = site.scans / "masks"
    for name in ("1.png", "2.png", "3.png", "3.bmp", "4.png"):
        image(masks / name, RING)
    (site.folder / "secret.png").write_bytes((masks / "2.png").read_bytes())
    (masks / "5.png").symlink_to(site.folder / "secret.png")
    facts, outcome = site.run("--masks", masks)
    assert (outcome.code, facts["files"], facts["images"], facts["masks"]) == (9, 6, 6, 2)
    assert facts["reasons"] == {"mask-ambiguous": 3, "outside-source": 1}
    with Home.open(site.path).vault(read_only=True) as vault:
        held = {row.id for row in vault.each() if row.has_mask}
    located = {command("site", "locate", f"#{row}", site.scans, "--site", site.path).out.strip() for row in held}
    assert located == {"x/2.png", "4.png"}
    assert command("site", "import", masks, "--masks", masks, "--site", site.path).code == 3


def test_masks_on_a_sheet_are_no_images(site: Site) -> None:
    png(site.scans / "a.png", 1)
    png(site.scans / "b.png", 2)
    image(site.scans / "m" / "a.png", RING)
    sheet = site.write("file,patient,label,mask\na.png,P1,normal,m/a.png\nb.png,P1,normal,m/b.png\n")
    facts, _ = site.run("--labels", sheet, "--opt-out", site.write("patient\nP9\n", "no.csv"))
    assert (facts["files"], facts["images"], facts["masks"], facts["reasons"]) == (2, 2, 1, {"mask-missing": 1})
    assert site.masks() == [int((RING > 0).sum()), None]


def test_masks_of_a_stack_lie_on_those_of_its_pictures_that_came_in(site: Site) -> None:
    np.savez(site.scans / "a.npz", images=np.stack([picture(1), np.zeros((48, 48), np.uint8), picture(2)]))
    (site.folder / "masks").mkdir()
    masks = np.zeros((3, 48, 48), np.uint8)
    masks[0, :5], masks[2, :7] = 1, 1
    np.savez(site.folder / "masks" / "a.npz", images=masks)
    facts, _ = site.run("--masks", site.folder / "masks")
    assert (facts["masks"], facts["reasons"], site.masks()) == (2, {"blank-image": 1}, [48 * 5, 48 * 7])


def test_masks_survive_a_kill_before_them(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for number, key in enumerate(("sop", "accession", "patient", "file")):
        sop = dicom(site.scans / f"{number}.dcm", number, f"P{number}")
        values = {"sop": sop, "accession": f"A{number}", "patient": f"P{number}", "file": f"{number}.dcm"}
        lines.append(",".join(values[one] if one == key else "" for one in values) + f",normal,m{number}.png\n")
        image(site.scans / f"m{number}.png", RING)
    sheet = site.write("sop,accession,patient,file,label,mask\n" + "".join(lines))

    def killed(importer: Importer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Importer, "_add_masks", killed)
        assert site.run("--labels", sheet)[0]["images"] == 4
    assert site.masks() == [None] * 4
    facts, _ = site.run("--labels", sheet)
    assert (facts["known"], facts["masks"]) == (4, 4)
    assert None not in site.masks()
    facts, _ = site.run("--labels", sheet)
    assert "masks" not in facts and facts["known"] == 4


def test_masks_are_committed_together_and_not_decoded_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        png(site.scans / f"{number}.png", number)
        image(site.folder / "masks" / f"{number}.png", RING)
    site.run("--masks", site.folder / "masks")
    with Home.open(site.path).vault(read_only=True) as vault:
        assert vault.generation == 3, "one transaction for images, one for masks"
    for mask in (site.folder / "masks").iterdir():
        mask.write_bytes(b"damaged")
    facts, outcome = site.run("--masks", site.folder / "masks")
    assert (outcome.code, facts) == (0, {"files": 5, "known": 5})


def test_segmentations_are_taken_whole_and_united(site: Site) -> None:
    sops = [dicom(site.scans / f"{number}.dcm", number, f"P{number}") for number in range(2)]
    top, bottom = np.zeros((2, 1, 48, 48), np.uint8)
    top[0, :5], bottom[0, 40:] = 1, 1

    def write(name: str, frames: np.ndarray, *places: str) -> None:
        made = segmentation(frames, "BINARY", [(sop, None, 1) for sop in places])
        made.SOPInstanceUID = pydicom.uid.generate_uid()
        made.PatientID = "P0"
        made.save_as(site.scans / name, enforce_file_format=True)

    write("a.dcm", np.concatenate([top, top]), sops[0], "1.2.3")
    write("b.dcm", top, sops[0])
    write("c.dcm", bottom, sops[0])
    facts, _ = site.run()
    assert (facts["images"], facts["masks"], facts["reasons"]) == (2, 1, {"mask-without-image": 1})
    assert site.masks() == [48 * 13, None]
    write("d.dcm", np.ones_like(top), sops[0])
    facts, _ = site.run()
    assert ("masks" in facts, facts["warnings"]) == (False, {"other-mask": 1})
    assert site.masks() == [48 * 13, None], "masks of an earlier import stay"
