"""Why an import leaves an image out, beyond what is wrong with the file itself: fixed words."""

from __future__ import annotations

from client.ingest.kinds import Reason

SAME_FILE = Reason("duplicate-file", "duplicate", "the same file under another name", "nothing: it is there once")
SAME_OBJECT = Reason("duplicate-object", "duplicate", "the same SOP instance once more", "nothing: it is there once")
SAME_PIXELS = Reason(
    "duplicate-pixels",
    "duplicate",
    "the same pixels as another image of this patient",
    "nothing: they are there once",
)
OTHER_PATIENT = Reason(
    "duplicate-patient",
    "labels",
    "the same pixels as another patient's image",
    "find out whose they are; leave the other one out or `fedward site erase` it",
)
OTHER_PERSON = Reason(
    "object-patient",
    "labels",
    "a SOP instance that is in the vault under another patient",
    "find out whose it is; leave the other one out or `fedward site erase` its patient",
)
SAID_TWICE = Reason(
    "duplicate-conflict",
    "labels",
    "the same file under another name, of which the label sheet says something else",
    "find out which row is right and remove the other one",
)
WITHHELD = Reason("withheld", "consent", "the patient is on the opt-out list", "nothing: the image stays out")
STILL_HERE = Reason(
    "withheld-in-vault",
    "consent",
    "an image in the vault whose patient or examination is on the opt-out list",
    "`fedward site erase` its patient; lay the label sheet over the vault first where that is who names the patient",
)
ERASED = Reason("erased", "consent", "the patient was erased from this vault", "nothing: the image stays out")
UNKNOWN = Reason(
    "unknown-patient",
    "deidentify",
    "nobody says whose image it is, so it cannot be held against the opt-out list",
    "name its patient on the label sheet, or leave the list out",
)
NO_PATIENT = Reason("no-patient", "deidentify", "a DICOM object without a patient's number", "enter it in the PACS")
BLANK = Reason("blank-image", "pixels", "all pixels have one value", "leave it out")
NOT_STORABLE = Reason(
    "not-storable", "pixels", "an image larger than a vault holds", "set longest_side in site.yaml, or leave it out"
)
TOO_MUCH = Reason(
    "too-much-said",
    "labels",
    "more labels and lesion boxes than a vault keeps with one image (64 KiB)",
    "leave some out, or give a mask in place of the boxes",
)
TWO_SPLITS = Reason(
    "two-splits", "labels", "another split than the patient's images in the vault", "correct the sheet's split column"
)
NO_IMAGE = Reason("mask-without-image", "labels", "a mask whose image is not in the vault", "import its image too")
NO_MASK = Reason(
    "mask-missing",
    "labels",
    "the mask that the label sheet names is not among the files",
    "write its name relative to the source, or copy it there",
)
MASK_SHAPE = Reason("mask-shape", "labels", "a mask of another shape than its image", "draw it on the image's pixels")
MASK_UNCLEAR = Reason(
    "mask-ambiguous",
    "labels",
    "several masks could belong to the image, or the mask to several images",
    "put masks into folders as the images are, one a name",
)
HARMLESS = ("duplicate", "consent")
"""Stages that leave an import's exit code 0: what should be in the vault is there."""
