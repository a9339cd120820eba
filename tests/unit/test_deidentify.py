"""What leaves the reader: pixels, allowed attributes and an identity, and nothing else of what a file says."""

from __future__ import annotations

import contextlib
import pickle
import traceback
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from client.ingest import dicom_terms
from client.ingest.deidentify import age_band
from client.ingest.dicom import read
from client.ingest.dicom_sequences import SEQUENCES
from client.ingest.kinds import ATTRIBUTES, Refused, Rules, allowed_attributes
from tests.unit.dicom_objects import CR, CT, MR, content, dataset, decoded, item

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def attributes(modality: str = "CR", sop_class: str = CR, **tags: Any) -> dict[str, str]:
    return dict(decoded(dataset(GREY, modality, sop_class, **tags)).pictures[0].attributes)


# --- each attribute -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "tags", "expected"),
    [
        ("body_part", {"BodyPartExamined": "CHEST"}, "CHEST"),
        ("body_part", {"BodyPartExamined": "Chest "}, "CHEST"),
        ("body_part", {"BodyPartExamined": "MULLERS KNEE"}, ""),
        ("view", {"ViewPosition": "PA"}, "PA"),
        ("view", {"ViewPosition": "DOE"}, ""),
        ("laterality", {"ImageLaterality": "L"}, "L"),
        ("laterality", {"Laterality": "r"}, "R"),
        ("laterality", {"Laterality": "X"}, ""),
        ("sex", {"PatientSex": "F"}, "F"),
        ("sex", {"PatientSex": "female"}, ""),
        ("age", {"PatientAge": "034Y"}, "30-39"),
        ("age", {"PatientBirthDate": "19500701", "StudyDate": "20200630"}, "60-69"),
        ("age", {"PatientBirthDate": "19500701", "StudyDate": "20200701"}, "70-79"),
        ("kvp", {"KVP": 120}, "120"),
        ("kvp", {"KVP": -3}, ""),
        ("exposure_mas", {"Exposure": 12, "ExposureInuAs": 12345}, "12.345"),
        ("exposure_mas", {"Exposure": 12}, "12"),
        ("exposure_mas", {"ExposureTime": 500, "XRayTubeCurrent": 200}, "100"),
        ("slice_thickness_mm", {"SliceThickness": 1.25}, "1.25"),
        ("slice_position_mm", {"SliceLocation": 17.5}, "17.5"),
        (
            "slice_position_mm",
            {"ImagePositionPatient": [1, 2, 30], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SliceLocation": 9},
            "30",
        ),
        (
            "slice_position_mm",
            {"ImagePositionPatient": [1, 2, 30], "ImageOrientationPatient": [0, 1, 0, 0, 0, 1]},
            "1",
        ),
        ("pixel_spacing_mm", {"PixelSpacing": [0.143, 0.143]}, "0.143/0.143"),
        ("photometric", {}, "MONOCHROME2"),
        ("bits", {}, "8"),
        ("lossy", {"LossyImageCompression": "01"}, "yes"),
        ("lossy", {"LossyImageCompression": "00"}, "no"),
        ("lossy", {}, ""),
        ("kernel", {"ConvolutionKernel": "B30f"}, "B30f"),
        ("kernel", {"ConvolutionKernel": ["Br40d", "3"]}, "Br40d"),
        ("kernel", {"ConvolutionKernel": "BONEPLUS"}, "BONEPLUS"),
        ("kernel", {"ConvolutionKernel": "FC08"}, "FC08"),
        ("kernel", {"ConvolutionKernel": "DOE^JANE"}, ""),
        ("contrast", {"ContrastBolusAgent": "Omnipaque 350 for Mrs Doe"}, "yes"),
        ("contrast", {"ContrastBolusAgent": "NONE"}, "no"),
        ("contrast", {}, ""),
        ("field_strength_t", {"MagneticFieldStrength": 1.5}, "1.5"),
        ("field_strength_t", {"MagneticFieldStrength": 15000}, "1.5"),
        ("modality", {}, "CR"),
    ],
)
def test_attribute(key: str, tags: dict[str, Any], expected: str) -> None:
    assert attributes(**tags).get(key, "") == expected


@pytest.mark.parametrize(
    ("maker", "model", "expected"),
    [
        ("SIEMENS", "SOMATOM Definition AS+", "Siemens SOMATOM Definition AS+"),
        ("Siemens Healthineers", "Prisma_fit", "Siemens"),
        ("GE MEDICAL SYSTEMS", "LightSpeed VCT", "GE"),  # VCT is not on the list
        ("GE MEDICAL SYSTEMS", "DISCOVERY MR750w", "GE DISCOVERY MR750w"),
        ("Philips Medical Systems", "Ingenia 1.5T", "Philips Ingenia 1.5T"),
        ("Philips", "Philips Ingenia", "Philips Ingenia"),
        ("FUJIFILM Corporation", "", "Fujifilm"),
        ("Dr. Müller's own scanner", "Aera", ""),
        ("", "Aera", ""),
        ("SIEMENS", "Aera of Jane Doe", "Siemens"),
        ("SIEMENS", "Aera 19500701", "Siemens"),
        ("SIEMENS", "Aera 1.2.840.10008", "Siemens"),
    ],
)
def test_device(maker: str, model: str, expected: str) -> None:
    assert attributes(Manufacturer=maker, ManufacturerModelName=model).get("device", "") == expected


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientName": "Avanto^Maria"},
        {"PatientName": "Vant^Jan"},
        {"PatientID": "AVANTO"},
        {"InstitutionAddress": "12, avanto street"},
        {"OtherPatientIDsSequence": [item(PatientID="avanto-7")]},
        {"RequestAttributesSequence": [item(ScheduledProtocolCodeSequence=[item(CodeMeaning="see Avanto")])]},
    ],
)
def test_a_model_that_shares_a_word_with_anything_else_is_dropped(tags: dict[str, Any]) -> None:
    made: dict[str, Any] = {"Manufacturer": "SIEMENS", "ManufacturerModelName": "Avanto"}
    assert attributes(**made)["device"] == "Siemens Avanto"
    assert attributes(**made, **tags)["device"] == "Siemens"


def test_a_model_that_shares_a_word_with_private_elements_or_file_meta_is_dropped() -> None:
    def made() -> Any:
        return dataset(GREY, Manufacturer="SIEMENS", ManufacturerModelName="Avanto")

    private = made()
    private.private_block(0x0009, "SOMEBODY", create=True).add_new(1, "LO", "Mr Avanto")
    unknown = made()
    unknown.private_block(0x0009, "SOMEBODY", create=True).add_new(1, "UN", b"Mr Avanto ")
    meta = made()
    meta.file_meta.SourceApplicationEntityTitle = "AVANTO"
    preamble = made()
    preamble.preamble = b"avanto".ljust(128, b"\0")
    creator = made()
    creator.private_block(0x0009, "AVANTO HEADER", create=True).add_new(1, "LO", "x")
    for changed in (private, unknown, meta, preamble):
        assert decoded(changed).pictures[0].attributes["device"] == "Siemens"
    assert decoded(creator).pictures[0].attributes["device"] == "Siemens Avanto"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "FLAIR"),
        ({"SeriesDescription": "T2 FLAIR AX"}, "FLAIR"),
        ({"SeriesDescription": "ep2d_diff_3scan_trace_p2_ADC"}, "ADC"),
        ({"SeriesDescription": "DWI b1000"}, "DWI"),
        ({"ImageType": ["DERIVED", "PRIMARY", "ADC"]}, "ADC"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION"]}, "DWI"),
        ({"DiffusionBValue": 800.0}, "DWI"),
        ({"ProtocolName": "t1_mpr_sag"}, "T1"),
        ({"ProtocolName": "T1 SE tra + KM"}, "T1C"),
        ({"ProtocolName": "t1_se_tra", "ContrastBolusAgent": "Dotarem"}, "T1C"),
        ({"SeriesDescription": "T2* hemo"}, "T2S"),
        ({"SeriesDescription": "t2_tse_sag"}, "T2"),
        ({"SeriesDescription": "PD fat sat"}, "PD"),
        ({"SeriesDescription": "STIR cor"}, "STIR"),
        ({"SeriesDescription": "3D TOF"}, "TOF"),
        ({"SeriesDescription": "SWI_Images"}, "SWI"),
        ({"SeriesDescription": "localizer"}, "LOCALISER"),
        ({"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 15}, "T1"),
        ({"ScanningSequence": "SE", "RepetitionTime": 4000, "EchoTime": 100}, "T2"),
        ({"ScanningSequence": "SE", "RepetitionTime": 2000, "EchoTime": 20}, "PD"),
        ({"ScanningSequence": ["SE", "IR"], "RepetitionTime": 9000, "EchoTime": 100, "InversionTime": 2500}, "FLAIR"),
        ({"ScanningSequence": "GR", "RepetitionTime": 500, "EchoTime": 15}, ""),
        ({"SeriesDescription": "Frau Doe, Knie"}, ""),
        ({}, ""),
    ],
)
def test_sequence(tags: dict[str, Any], expected: str) -> None:
    assert attributes("MR", MR, **tags).get("sequence", "") == expected
    assert expected in ("", *SEQUENCES)


@given(st.integers(0, 130), st.sampled_from("YMWD"))
def test_ages_are_bands(number: int, unit: str) -> None:
    band = age_band(f"{number:03d}{unit}")
    years = number // {"Y": 1, "M": 12, "W": 52, "D": 365}[unit]
    if band == "90+":
        assert years >= 90
    else:
        low, high = (int(end) for end in band.split("-"))
        assert low <= years <= high == low + 9 and low % 10 == 0
    assert allowed_attributes({"age": band})


@pytest.mark.parametrize("age", ["", "34", "999Y", "-34Y", "034X", "034Y "])
def test_ages_that_are_none(age: str) -> None:
    assert age_band(age, "19991332", "20200101") == age_band(age, "20300101", "20200101") == ""


@pytest.mark.parametrize("words", [dicom_terms.BODY_PARTS, dicom_terms.VIEWS, dicom_terms.MODALITIES])
def test_every_term_is_an_allowed_value(words: frozenset[str]) -> None:
    assert all(allowed_attributes({"view": word}) for word in words)


@given(st.text(max_size=64), st.sampled_from(["BodyPartExamined", "ViewPosition", "PatientSex", "ConvolutionKernel"]))
def test_whatever_a_tag_says_only_known_words_pass(text: str, keyword: str) -> None:
    made = dataset(GREY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(made, keyword, text.replace("\\", "").encode("ascii", "ignore").decode())
    found = decoded(made).pictures[0].attributes
    assert set(found) <= set(ATTRIBUTES)
    known = dicom_terms.BODY_PARTS | dicom_terms.VIEWS | {"M", "F", "O"}
    for key in ("body_part", "view", "sex"):
        assert found.get(key, "M") in known


# --- the marker test ------------------------------------------------------------------------------------


def marked() -> tuple[FileDataset, dict[str, str]]:
    """An image in which identifying texts stand in every place that a file has, and what was put where.

    Half of the places are free text from which an attribute is made. Most markers are words of their own; dates and
    numbers are as they would be.
    """
    made = dataset(np.arange(1024, dtype=np.uint16).reshape(32, 32), "CT", CT, RescaleSlope=1, RescaleIntercept=-1024)
    markers: dict[str, str] = {}

    def mark(place: str, text: str = "") -> str:
        markers[place] = text or f"QZ{len(markers):02d}XMARKER"
        return markers[place]

    made.PatientName = f"{mark('patient family name', 'Zyxwvson')}^{mark('patient given name', 'Qwertina')}"
    made.OtherPatientNames = mark("other patient name")
    made.PatientBirthName = mark("birth name")
    made.PatientMotherBirthName = mark("mother's birth name")
    made.PatientBirthDate = mark("birth date", "19471123")
    made.PatientBirthTime = mark("birth time", "043217")
    made.PatientAddress = mark("address")
    made.PatientTelephoneNumbers = mark("telephone", "0307654321")
    made.PatientComments = mark("patient comments")
    made.AdditionalPatientHistory = mark("history")
    made.Occupation = mark("occupation", "QZOCCUPATION")
    made.EthnicGroup = mark("ethnic group", "QZETHNIC")
    made.MilitaryRank = mark("military rank")
    made.OtherPatientIDsSequence = [item(PatientID=mark("other patient id"), IssuerOfPatientID=mark("issuer of id"))]
    made.StudyDate, made.StudyTime = mark("study date", "20190607"), mark("study time", "134559.123")
    made.SeriesDate, made.AcquisitionDateTime = mark("series date", "20190608"), mark("acquisition", "20190609101112")
    made.StudyID = mark("study id", "QZSTUDY77")
    made.StudyDescription = mark("study description")
    made.SeriesDescription = f"t1 {mark('series description')}"
    made.ProtocolName = f"thorax {mark('protocol name')}"
    made.ImageComments = mark("image comments")
    made.InstitutionName = mark("institution")
    made.InstitutionAddress = mark("institution address")
    made.InstitutionalDepartmentName = mark("department")
    made.ReferringPhysicianName = f"{mark('referring physician')}^Dr"
    made.PerformingPhysicianName = mark("performing physician")
    made.NameOfPhysiciansReadingStudy = mark("reading physician")
    made.OperatorsName = mark("operator")
    made.StationName = mark("station", "QZSTATION")
    made.DeviceSerialNumber = mark("device serial number")
    made.DeviceUID = mark("device uid", "1.2.826.0.1.99.1")
    made.FrameOfReferenceUID = mark("frame of reference uid", "1.2.826.0.1.99.2")
    made.Manufacturer = f"SIEMENS {mark('manufacturer')}"
    made.ManufacturerModelName = f"Avanto {mark('model')}"
    made.SoftwareVersions = mark("software version")
    made.ConvolutionKernel = mark("kernel", "QZKERNEL")
    made.BodyPartExamined = mark("body part", "QZBODY")
    made.ViewPosition = mark("view", "QZVIEW")
    made.ContrastBolusAgent = mark("contrast agent")
    made.ImageType = ["ORIGINAL", "PRIMARY", mark("image type", "QZTYPE")]
    made.RequestAttributesSequence = [
        item(
            RequestedProcedureID=mark("nested once", "QZPROCEDURE"),
            ScheduledProtocolCodeSequence=[item(CodeMeaning=mark("nested twice"), CodeValue="1")],
        )
    ]
    block = made.private_block(0x0029, mark("private creator"), create=True)
    block.add_new(1, "LO", mark("private text"))
    block.add_new(2, "UN", mark("private bytes").encode())
    block.add_new(3, "SQ", [item(PatientName=mark("private sequence"))])
    made.add_new((0x6000, 0x0010), "US", 32)
    made.add_new((0x6000, 0x0011), "US", 32)
    made.add_new((0x6000, 0x0022), "LO", mark("overlay description"))
    made.add_new((0x6000, 0x1500), "LO", mark("overlay label"))
    made.add_new((0x6000, 0x3000), "OW", mark("overlay data").encode().ljust(128, b"\0"))
    made.add_new((0xFFFC, 0xFFFC), "OB", mark("trailing padding").encode().ljust(16, b"\0"))
    made.file_meta.SourceApplicationEntityTitle = mark("file meta AE title", "QZAETITLE")
    made.file_meta.PrivateInformationCreatorUID = mark("file meta creator uid", "1.2.826.0.1.99.3")
    made.file_meta.PrivateInformation = mark("file meta private").encode() + b"\0"
    made.file_meta.ImplementationVersionName = mark("implementation", "QZIMPLEMENT")
    made.preamble = mark("preamble").encode().ljust(128, b"\0")
    made.PatientID = mark("patient id", "QZPATIENT42")
    made.AccessionNumber = mark("accession number", "QZACCESS1")
    made.SOPInstanceUID = mark("sop instance uid", "1.2.826.0.1.99.4")
    made.StudyInstanceUID = mark("study uid", "1.2.826.0.1.99.5")
    made.SeriesInstanceUID = mark("series uid", "1.2.826.0.1.99.6")
    return made, markers


def spelled(marker: str) -> list[bytes]:
    """A marker as it could stand in memory: as it is, in small and in capital letters, in 16 bits a character."""
    forms = {marker, marker.casefold(), marker.upper()}
    return [form.encode() for form in forms] + [form.encode("utf-16-le") for form in forms]


def found_in(haystack: bytes, markers: dict[str, str]) -> list[str]:
    return [place for place, marker in markers.items() if any(form in haystack for form in spelled(marker))]


@pytest.mark.parametrize("rules", [{}, {"longest_side": 32}])
def test_no_marker_leaves_an_accepted_object_but_in_its_identity(rules: dict[str, Any]) -> None:
    made, markers = marked()
    source = content(made)
    assert len(markers) >= 55
    assert found_in(source, markers) == list(markers)  # all of them are in the file
    result = read(source, Rules(**rules))
    identity = {"patient id", "accession number", "sop instance uid", "study uid", "series uid"}
    assert set(found_in(pickle.dumps(result.identity), markers)) == identity
    parts = [pickle.dumps((picture.attributes, picture.labels, picture.number)) for picture in result.pictures]
    parts += [picture.pixels.tobytes() for picture in result.pictures]
    parts += [pickle.dumps(result.warnings), repr(result).encode(), repr(result.identity).encode()]
    assert found_in(b"".join(parts), markers) == []
    (picture,) = result.pictures
    assert picture.attributes["device"] == "Siemens"
    assert picture.attributes["age"] == "70-79"
    assert picture.attributes["contrast"] == "yes"
    assert not {"kernel", "body_part", "view"} & set(picture.attributes)


@pytest.mark.parametrize(
    "tags",
    [
        {"BurnedInAnnotation": "YES"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"},
        {"Rows": 33},
        {"BitsStored": 3, "HighBit": 7},
        {"WindowCenter": 5, "RescaleSlope": 0},
        {"NumberOfFrames": 3},
    ],
)
def test_no_marker_is_in_a_refusal(tags: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    made, markers = marked()
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    source = content(made)
    with pytest.raises(Refused) as caught:
        read(source, Rules())
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(caught.value.reason)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    written = capfd.readouterr()
    assert found_in((shown + written.out + written.err).encode(), markers) == []


def test_no_marker_is_in_a_refusal_of_a_file_that_is_cut_short(capfd: pytest.CaptureFixture[str]) -> None:
    made, markers = marked()
    source = content(made)
    for end in range(200, len(source), max(1, len(source) // 40)):
        try:
            read(source[:end], Rules())
        except Refused as refused:
            assert found_in(str(refused.reason).encode(), markers) == []
    written = capfd.readouterr()
    assert found_in((written.out + written.err).encode(), markers) == []


def test_an_overlay_in_the_unused_bits_of_pixels_is_not_shown() -> None:
    """Old-style overlays (0x60xx,0x0102 not 0) live above Bits Stored: pydicom masks them in uncompressed pixels."""
    stored = np.full((16, 16), 5, dtype=np.uint16)
    stored[4:8] |= 0x1000
    made = dataset(stored, BitsStored=12)
    np.testing.assert_array_equal(decoded(made).pictures[0].pixels, np.full((16, 16), 5, dtype=np.uint16))


def test_pydicoms_log_and_warnings_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    made, markers = marked()
    source = bytearray(content(made))
    at = source.index(b"IS") if b"IS" in source else 0
    source[at : at + 2] = b"??"
    with caplog.at_level("DEBUG"), contextlib.suppress(Refused):
        read(bytes(source), Rules())
    assert found_in(caplog.text.encode(), markers) == []
