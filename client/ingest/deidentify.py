"""Which technical facts of a DICOM object may leave the child process: an allow-list, value by value.

Everything not read here (and everything that is read but has no allowed value) is gone. Words come from the lists in
``dicom_terms``; numbers are parsed and written anew; ages become bands of ten years. What comes nearest to free text
is a device's model: its words must be known ones or short codes, and none may occur in anything else the object says.

``docs/deidentification.md`` has the table against DICOM PS3.15 Annex E.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from client.ingest import dicom_terms as terms
from client.ingest.dicom_decode import LOSSY
from client.ingest.dicom_sequences import sequence
from client.ingest.dicom_tags import Tags, finite, plain
from client.ingest.kinds import allowed_attributes
from client.ingest.pixels import spacing

_AGE = re.compile(r"(\d{1,3})([DWMY])")
_DATE = re.compile(r"(\d{4})[.\-]?(\d{2})[.\-]?(\d{2})")
_KERNEL = re.compile(r"[A-Z][a-z]{0,2}\d{1,3}[a-z]{0,2}|FC\d{2}|[A-FLUY][ABC]?")
_WORD = re.compile(r"[0-9a-z]{3,}")
_NO_CONTRAST = ("", "NO", "NONE", "N", "WITHOUT")
_MOST_MODEL = 32  # characters

# What may hold a name, a number, a date or a place; all other VRs hold numbers, UIDs or bulk data.
_TEXT = frozenset(("AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "UC", "UN", "UR", "UT"))
_ALLOWED = frozenset(
    (
        0x00080008,  # Image Type
        0x00080060,  # Modality
        0x00080070,  # Manufacturer
        0x00081090,  # Manufacturer's Model Name
        0x00180015,  # Body Part Examined
        0x00181020,  # Software Versions: repeats the model
        0x00181210,  # Convolution Kernel
        0x00280004,  # Photometric Interpretation
    )
)


def attributes(tags: Tags, syntax: str, scale: tuple[float, float], device: str) -> dict[str, str]:
    """The attributes of one frame: keys of ``kinds.ATTRIBUTES``, each present only where it is known.

    ``scale`` is stored pixels per source pixel (down, across): ``pixel_spacing_mm`` is that of the stored ones.
    ``device`` is what :func:`device_name` made of the whole object.
    """
    modality = _term(tags.text("Modality"), terms.MODALITIES)
    found = {
        "modality": modality,
        "body_part": _term(tags.text("BodyPartExamined").replace(" ", ""), terms.BODY_PARTS),
        "view": _term(tags.text("ViewPosition"), terms.VIEWS),
        "laterality": _laterality(tags),
        "sex": _term(tags.text("PatientSex"), frozenset(("M", "F", "O"))),
        "age": age_band(tags.text("PatientAge"), tags.text("PatientBirthDate"), _study_date(tags)),
        "device": device,
        "kvp": _number(tags.number("KVP"), 1.0, 1e5),
        "exposure_mas": _number(_exposure(tags), 0.0, 1e5),
        "sequence": sequence(tags, modality),
        "field_strength_t": _number(_tesla(tags), 1e-3, 30.0),
        "slice_thickness_mm": _number(tags.number("SliceThickness"), 1e-4, 1e3),
        "slice_position_mm": _number(_position(tags), -1e5, 1e5),
        "pixel_spacing_mm": _spacing(tags, scale),
        "photometric": _term(tags.text("PhotometricInterpretation"), terms.PHOTOMETRICS),
        "bits": _number(finite(tags.first("BitsStored")), 1.0, 64.0),
        "lossy": _lossy(tags, syntax),
        "kernel": _kernel(tags.text("ConvolutionKernel")),
        "contrast": _contrast(tags),
    }
    return allowed_attributes({key: value for key, value in found.items() if value})


def age_band(age: str, born: str = "", seen: str = "") -> str:
    """``"0-9"`` … ``"80-89"``, ``"90+"`` from Patient's Age (``034Y``) or two dates; empty where neither is usable."""
    years: int | None = None
    if match := _AGE.fullmatch(age.upper()):
        years = int(match[1]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[match[2]]
    elif (birth := _date(born)) and (study := _date(seen)) and study >= birth:
        years = study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))
    if years is None or years > 130:
        return ""
    return "90+" if years >= 90 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def _date(text: str) -> date | None:
    match = _DATE.match(text)
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def _study_date(tags: Tags) -> str:
    return next(filter(None, (tags.text(name) for name in ("StudyDate", "SeriesDate", "AcquisitionDate"))), "")


def device_name(dataset: Dataset) -> str:
    """Vendor, in our own spelling, and model; only the vendor where the model cannot be kept.

    A model is dropped where any of its words is neither a known product word nor a short code such as ``1.5T``, and
    where it shares a word of three or more letters with any text elsewhere in the object (names, identifiers,
    institutions, comments, private tags, file meta information, at any depth).
    """
    tags = Tags(dataset)
    written = " ".join(tags.text("Manufacturer").casefold().replace("-", " ").split())
    vendor = next((name for start, name in terms.VENDORS.items() if written.startswith(start)), "")
    vendor = vendor or ("GE" if written == "ge" else "")
    if not vendor:
        return ""
    words = tags.text("ManufacturerModelName").replace("_", " ").split()
    model = " ".join(words)
    known = all(
        word.casefold() in terms.MODEL_WORDS or terms.MODEL_CODE.fullmatch(word) or word.casefold() == vendor.casefold()
        for word in words
    )
    if not model or len(model) > _MOST_MODEL or not known or _shares_a_word(model, dataset, vendor):
        return vendor
    return model if model.casefold().startswith(vendor.casefold()) else f"{vendor} {model}"


def _shares_a_word(model: str, dataset: Dataset, vendor: str) -> bool:
    """Whether ``model`` has a word of elsewhere, or has one of four letters (of a name: three) inside a word."""
    folded = model.casefold()
    own = set(_WORD.findall(folded)) - {vendor.casefold()}
    for vr, text in _texts(dataset):
        for word in _WORD.findall(text):
            if word in own or ((len(word) >= 4 or vr == "PN") and word in folded and word != vendor.casefold()):
                return True
    return False


def _texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """VR and case-folded text of everything in ``dataset`` that is not on the allow-list, in all its depths.

    Raw bytes are not decoded first: only ASCII words are compared, and all of DICOM's character sets contain ASCII.
    """
    for place in (dataset, getattr(dataset, "file_meta", Dataset())):
        for tag in place.keys():  # noqa: SIM118 - iterating itself would convert every value
            if tag not in _ALLOWED and not _private_creator(tag):
                yield from _element_texts(place, tag)
    preamble = getattr(dataset, "preamble", None)
    if preamble:
        yield "UN", preamble.decode("latin-1").casefold()


def _element_texts(place: Dataset, tag: BaseTag) -> Iterator[tuple[str, str]]:
    element = place.get_item(tag)
    vr = element.VR
    if vr is None:
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            vr = "UN"
    if vr == "SQ":
        items = place[tag].value  # of defined length: still bytes until now
        for item in items if isinstance(items, Sequence) else ():
            yield from _texts(item)
    elif vr in _TEXT and element.value is not None:
        if isinstance(element, RawDataElement):
            value = bytes(element.value).rstrip(b"\0 ")
            if vr != "UN" or b"\0" not in value:  # else a binary private element, not a text
                yield vr, value.decode("latin-1").casefold()
        else:
            yield vr, str(element.value).casefold()


def _private_creator(tag: BaseTag) -> bool:
    return tag.group % 2 == 1 and 0x10 <= tag.element <= 0xFF


def _term(text: str, allowed: frozenset[str]) -> str:
    folded = text.upper()
    return folded if folded in allowed else ""


def _number(value: float | None, least: float, most: float) -> str:
    return f"{value:.5g}" if value is not None and least <= value <= most else ""


def _laterality(tags: Tags) -> str:
    for keyword in ("ImageLaterality", "FrameLaterality", "Laterality"):
        if found := _term(tags.text(keyword), terms.LATERALITIES):
            return found
    return ""


def _exposure(tags: Tags) -> float | None:
    if (micro := tags.number("ExposureInuAs")) is not None:
        return micro / 1000.0
    if (direct := tags.number("Exposure")) is not None:
        return direct
    if (enhanced := tags.number("ExposureInmAs")) is not None:
        return enhanced
    milliseconds, milliamperes = tags.number("ExposureTime"), tags.number("XRayTubeCurrent")
    return None if milliseconds is None or milliamperes is None else milliseconds * milliamperes / 1000.0


def _tesla(tags: Tags) -> float | None:
    value = tags.number("MagneticFieldStrength")
    return value / 10_000.0 if value is not None and value > 100.0 else value  # older devices wrote gauss


def _position(tags: Tags) -> float | None:
    """Millimetres along the slices' normal, from the patient's own origin; comparable within one series only."""
    where, direction = tags.numbers("ImagePositionPatient", 3), tags.numbers("ImageOrientationPatient", 6)
    if where is None or direction is None:
        return tags.number("SliceLocation")
    (a, b, c), (d, e, f) = direction[:3], direction[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    return sum(p * n for p, n in zip(where, normal, strict=True)) + 0.0


def _spacing(tags: Tags, scale: tuple[float, float]) -> str:
    apart = spacing(tags)
    if apart is None or not apart.known:
        return ""
    return "/".join(f"{value / factor:.4g}" for value, factor in zip((apart.down, apart.across), scale, strict=True))


def _lossy(tags: Tags, syntax: str) -> str:
    stated = tags.text("LossyImageCompression")
    if stated == "01" or syntax in LOSSY:
        return "yes"
    return "no" if stated == "00" else ""


def _kernel(text: str) -> str:
    """A kernel that is written the way vendors write kernels, word by word from a list or by its pattern."""
    words = text.replace("_", " ").split()
    known = all(word.upper() in terms.KERNEL_WORDS or _KERNEL.fullmatch(word) for word in words)
    return " ".join(words) if words and len(words) <= 3 and known else ""


def _contrast(tags: Tags) -> str:
    if tags.items("ContrastBolusAgentSequence"):
        return "yes"
    agent = tags.get("ContrastBolusAgent")
    if agent is None:
        return ""
    return "no" if plain(tags.text("ContrastBolusAgent")).upper() in _NO_CONTRAST else "yes"
