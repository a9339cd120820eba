"""A DICOM object becomes pictures or masks, a few technical attributes and an identity, or is refused.

``read`` runs in a child process: what it is given may be damaged or hostile. Whatever goes wrong inside pydicom or a
decoder ends as :class:`Refused` with fixed words: an exception's own text could quote a patient's name.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pydicom
from pydicom import config, uid
from pydicom.dataset import FileDataset

from client.ingest import dicom_decode as decode
from client.ingest import dicom_reasons as reasons
from client.ingest.dicom_tags import Tags, plain, raw_value
from client.ingest.kinds import Decoded, Identity, Picture, Reason, Refused, Rules

_T = TypeVar("_T")

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_IDENTITY = ("PatientID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber")
_RISKY_MODALITIES = frozenset(("", "US", "IVUS", "BDUS", "SC", "OT", "DOC"))
_RISKY_CLASSES = ("Secondary Capture", "Ultrasound", "US Volume", "Hardcopy")
_RISKY_TYPES = frozenset(("SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "DOSE_INFO", "LABEL", "OVERVIEW", "REPORT"))
_CAPTURED = frozenset(("WSD", "SD", "SI", "DF", "DRW"))
_VIDEO = "Video "
_PREAMBLE = 128
_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")  # groups 0002 and 0008, in either byte order


def read(content: bytes, rules: Rules) -> Decoded:
    """The pictures (or, of a segmentation, the masks) in one whole DICOM file; preamble and file meta may be missing.

    Every :class:`Picture` has its attributes and scale; warnings are ``text-in-pixels``, ``lossy`` and
    ``recognisable-face`` (tagged so). An identity without a patient is for the importer to judge. Raises
    :class:`Refused`, and nothing else.
    """
    return _guarded(lambda: _read(content, rules), reasons.UNREADABLE)


def identify(source: bytes | bytearray | memoryview | Path) -> Identity:
    """Who and what an object is, from a file or a start of one that reaches its pixels, which are not read.

    What lies beyond a shorter start is missing from the identity.

    Raises :class:`Refused`, and nothing else, where it is not a DICOM object or has no SOP Instance UID.
    """
    return _guarded(lambda: _identify(source), reasons.UNREADABLE)


def _read(content: bytes, rules: Rules) -> Decoded:
    dataset = _parsed(content)
    sop_class = plain(raw_value(dataset, "SOPClassUID"))
    kind = _kind(dataset, sop_class)
    identity = _identity(dataset)
    if kind.startswith(_VIDEO):
        raise Refused(reasons.VIDEO)
    if not decode.has_pixels(dataset):
        raise Refused(reasons.NO_PIXELS)
    syntax = decode.transfer_syntax(dataset)
    count = decode.check_shape(dataset, rules)
    if sop_class == _SEGMENTATION:
        from client.ingest.segmentation import masks

        return Decoded(identity=identity, masks=masks(dataset, syntax, count))
    _check_burned_in(dataset, kind)
    pictures, warned = _pictures(dataset, syntax, count, sop_class, rules)
    return Decoded(identity=identity, pictures=pictures, warnings=warned)


def _pictures(
    dataset: FileDataset, syntax: uid.UID, count: int, sop_class: str, rules: Rules
) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    # Here, because they load OpenCV, which ``identify`` does not need.
    from client.ingest import deidentify, pixels, text_in_pixels

    pixels.check(dataset)
    wanted = {"all": range(count), "first": range(1), "middle": range(count // 2, count // 2 + 1)}[rules.frames]
    modality = plain(raw_value(dataset, "Modality")).upper()
    found, text, device = [], False, deidentify.device_name(dataset)
    # Text is the same on all frames of a loop or slices of a volume, or on the first, or on the last.
    looked_at = {wanted[0], wanted[len(wanted) // 2], wanted[-1]}
    frames = _decoded(decode.frames(dataset, syntax, count, wanted))
    for number, stored in zip(wanted, frames, strict=True):
        tags = Tags(dataset, number)
        with _as_refused(reasons.BAD_PIXEL_TAGS):
            hounsfield = pixels.is_hounsfield(modality, sop_class, tags)
            picture = pixels.picture(stored, dataset, tags, hounsfield=hounsfield)
        text = text or (number in looked_at and text_in_pixels.detect(picture))
        picture, scale = pixels.fitted(picture, rules, pixels.spacing(tags))
        attributes = deidentify.attributes(tags, str(syntax), scale, device)
        if count > 1:
            attributes["frame"] = str(number)
        found.append(Picture(picture, number, attributes, scale=scale))
    lossy = found[0].attributes.get("lossy") == "yes"
    face = plain(raw_value(dataset, "RecognizableVisualFeatures")).upper() == "YES"
    warned = {"text-in-pixels": text, "lossy": lossy, "recognisable-face": face}
    return tuple(found), tuple(code for code, applies in warned.items() if applies)


def _decoded(frames: Iterator[_T]) -> Iterator[_T]:
    """``frames`` with whatever goes wrong while decoding as a refusal."""
    while True:
        with _as_refused(reasons.UNDECODABLE):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _parsed(content: bytes | bytearray | memoryview) -> FileDataset:
    head = bytes(content[: _PREAMBLE + 4])
    if head[_PREAMBLE:] != b"DICM" and not head.startswith(_STARTS):
        raise Refused(reasons.NOT_DICOM)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if not len(dataset) and not len(dataset.file_meta):
        raise Refused(reasons.UNREADABLE)
    return dataset


def _kind(dataset: FileDataset, sop_class: str) -> str:
    """The name that the standard gives to the object's class. Raises :class:`Refused` where it holds no image."""
    meta = getattr(dataset, "file_meta", None)
    stated = sop_class or (plain(raw_value(meta, "MediaStorageSOPClassUID")) if meta is not None else "")
    name, kind = uid.UID(stated).name, uid.UID(stated).type
    if stated == _SEGMENTATION or (kind == "SOP Class" and ("Image Storage" in name or "US Volume" in name)):
        if sop_class:
            return name
        stated = ""
    if stated.startswith("1.2.840.10008.") or "DirectoryRecordSequence" in dataset:
        raise Refused(reasons.NOT_AN_IMAGE)
    raise Refused(reasons.UNKNOWN_OBJECT)


def _identity(dataset: FileDataset) -> Identity:
    patient, sop, study, series, accession = (plain(raw_value(dataset, name)) for name in _IDENTITY)
    if not sop:
        raise Refused(reasons.NO_SOP)
    return Identity(patient, sop, study, series, accession)


def _check_burned_in(dataset: FileDataset, kind: str) -> None:
    stated = plain(raw_value(dataset, "BurnedInAnnotation")).upper()
    if stated == "YES":
        raise Refused(reasons.BURNED_IN)
    if stated == "NO":
        return
    tags = Tags(dataset)
    types = {value.upper() for value in (*tags.texts("ImageType"), *tags.texts("FrameType"))}
    if (
        tags.text("Modality").upper() in _RISKY_MODALITIES
        or any(name in kind for name in _RISKY_CLASSES)
        or types & _RISKY_TYPES
        or tags.text("ConversionType").upper() in _CAPTURED
    ):
        raise Refused(reasons.BURNED_IN_UNKNOWN)


def _identify(source: bytes | bytearray | memoryview | Path) -> Identity:
    names = [*_IDENTITY, "SOPClassUID"]
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(_PREAMBLE + 4)
            file.seek(0, os.SEEK_SET)
            dataset = _headed(head, file, names)
    else:
        dataset = _headed(bytes(source[: _PREAMBLE + 4]), io.BytesIO(source), names)
    return _identity(dataset)


def _headed(head: bytes, file: io.BufferedIOBase, names: list[str]) -> FileDataset:
    if head[_PREAMBLE:] != b"DICM" and not head.startswith(_STARTS):
        raise Refused(reasons.NOT_DICOM)
    return pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=names)


@contextmanager
def _as_refused(reason: Reason) -> Iterator[None]:
    try:
        yield
    except (Refused, MemoryError):
        raise
    except Exception:
        raise Refused(reason) from None


def _guarded(action: Callable[[], _T], reason: Reason) -> _T:
    """What ``action`` returns. What it raises is raised anew, outside of any handler: no file's text hangs on to it."""
    try:
        with _quiet():
            return action()
    except Refused as refused:
        reason = refused.reason
    except MemoryError:
        reason = reasons.NO_MEMORY
    except Exception:  # noqa: S110 - the reason stands already
        pass
    raise Refused(reason)


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom's warnings and log lines quote values; validating each would also cost time."""
    logger, mode = logging.getLogger("pydicom"), config.settings.reading_validation_mode
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        config.settings.reading_validation_mode = config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode = mode
            logger.setLevel(level)
