"""Which MR sequence an image was made with, as one of a few words of our own."""

from __future__ import annotations

import re

from client.ingest.dicom_tags import Tags

SEQUENCES = ("T1", "T1C", "T2", "T2S", "PD", "FLAIR", "STIR", "DWI", "ADC", "SWI", "TOF", "PERFUSION", "LOCALISER")
"""``T1C``: T1 after contrast. ``T2S``: T2*. ``LOCALISER`` also of CT."""

# In this order: "t2_flair_tra" is FLAIR, "ep2d_diff_adc" is ADC.
_WORDS = (
    ("LOCALISER", r"\b(locali[sz]er|localis|loc|scout|survey|topogram|surview|plan scan)\b"),
    ("ADC", r"\b(e?adc|apparent diffusion)\b"),
    ("DWI", r"\b(dwi|dti|diff|diffusion|trace ?w?|ep b\d+)\b|\bb ?(500|800|1000)\b"),
    ("PERFUSION", r"\b(perf|perfusion|pwi|dsc|dce|asl|cbf|cbv|mtt)\b"),
    ("SWI", r"\b(swi|swan|swip|susceptibility)\b"),
    ("TOF", r"\b(tof|mra|angio)\b"),
    ("FLAIR", r"flair|\bdark ?fluid\b"),
    ("STIR", r"\bstir\b|\btirm\b"),
    ("T2S", r"t2 ?(\*|star)|\bt2s\b|\bhemo\b"),
    ("T1", r"\bt1|\bmp ?rage\b|\bbravo\b|\bspgr\b|\bvibe\b"),
    ("PD", r"\bpd\b|\bproton\b|\bpdw\b"),
    ("T2", r"\bt2"),
)
_CONTRAST = re.compile(r"\b(gd|gad|gado|post|km|ce|contrast|\+c|c\+|dotarem|gadovist)\b|\+ ?c\b")


def sequence(tags: Tags, modality: str) -> str:
    """One of :data:`SEQUENCES`, or empty where nothing says so.

    From Image Type and b-value, then from words in the descriptions, then from echo, repetition and inversion
    times of spin echoes (T1: TR < 1000, TE < 30; T2: TR ≥ 2000, TE ≥ 70; PD: TR ≥ 1000, TE < 40 milliseconds).
    """
    kinds = {kind.upper() for kind in tags.texts("ImageType")}
    if modality == "CT":
        return "LOCALISER" if "LOCALIZER" in kinds else ""
    if modality != "MR":
        return ""
    if "ADC" in kinds:
        return "ADC"
    if "DIFFUSION" in kinds or (tags.number("DiffusionBValue") or 0.0) > 0.0:
        return "DWI"
    described = " ".join(tags.text(name) for name in ("SeriesDescription", "ProtocolName", "SequenceName"))
    words = re.sub(r"[_\-/.]+", " ", described.casefold())
    for name, pattern in _WORDS:
        if re.search(pattern, words):
            return _with_contrast(name, tags, words)
    return _with_contrast(_from_times(tags), tags, words)


def _from_times(tags: Tags) -> str:
    echo, repetition, inversion = (tags.number(name) for name in ("EchoTime", "RepetitionTime", "InversionTime"))
    kinds = tags.texts("ScanningSequence")
    if echo is None or repetition is None or "SE" not in kinds:
        return ""
    if "IR" in kinds and (inversion or 0.0) > 1500.0 and repetition > 5000.0:
        return "FLAIR"
    if "IR" in kinds:
        return "STIR" if 0.0 < (inversion or 0.0) < 300.0 else ""
    if repetition < 1000.0 and echo < 30.0:
        return "T1"
    if repetition >= 2000.0 and echo >= 70.0:
        return "T2"
    return "PD" if repetition >= 1000.0 and echo < 40.0 else ""


def _with_contrast(name: str, tags: Tags, words: str) -> str:
    agent = tags.text("ContrastBolusAgent").upper() not in ("", "NO", "NONE", "N", "WITHOUT")
    return "T1C" if name == "T1" and (agent or _CONTRAST.search(words)) else name
