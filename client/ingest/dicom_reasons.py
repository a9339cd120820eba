"""Why a DICOM object is refused: fixed words, so that nothing of a file can travel in them."""

from __future__ import annotations

from client.ingest.kinds import Reason

_CONVERT = "export it from the PACS as uncompressed, JPEG 2000, JPEG-LS, RLE or JPEG (8 bit, or lossless)"
_DAMAGED = "fetch it from the PACS again, or open it in a viewer to see whether the original is damaged"

NOT_DICOM = Reason(
    "not-dicom", "parse", "the file is not a DICOM object", "leave it out of the folder, or export it as DICOM"
)
UNREADABLE = Reason("dicom-unreadable", "parse", "the DICOM object is damaged or cut short", _DAMAGED)
NOT_AN_IMAGE = Reason(
    "not-an-image",
    "parse",
    "the object is not an image (a report, plan, dose, waveform, document, presentation state, directory or the like)",
    "nothing to do: only images, and segmentations of them, are imported",
)
UNKNOWN_OBJECT = Reason(
    "unknown-object",
    "parse",
    "the object does not say what kind it is, or is of a vendor's own kind",
    "export it from the PACS as a standard DICOM image (SOP Class UID)",
)
NO_PIXELS = Reason(
    "no-pixel-data",
    "parse",
    "the object is an image without pixels (an empty shell)",
    "fetch the study from the PACS again, with its pixel data",
)
NO_SOP = Reason(
    "no-sop-instance-uid",
    "parse",
    "the object has no SOP Instance UID, so it could not be told from its copies",
    "export it from the PACS again; every DICOM object must have one",
)
VIDEO = Reason("video", "parse", "the object is a video", "export the frames that matter as single images")
NO_SYNTAX = Reason(
    "no-transfer-syntax",
    "parse",
    "the object does not say how its pixels are encoded (Transfer Syntax UID) and it cannot be told from them",
    "export it from the PACS as a DICOM file with its file meta information",
)
UNSUPPORTED_SYNTAX = Reason(
    "unsupported-compression", "decode", "the pixels are compressed in a way that is not decoded here", _CONVERT
)
JPEG_12_BIT = Reason(
    "jpeg-extended-12-bit",
    "decode",
    "the pixels are compressed as 12-bit JPEG Extended, for which there is no decoder under a free permissive licence",
    _CONVERT,
)
BAD_FRAMES = Reason(
    "bad-number-of-frames",
    "parse",
    "Number of Frames is not a positive whole number",
    "mend the tag at its source, or export the study from the PACS again",
)
TOO_MANY_FRAMES = Reason(
    "too-many-frames",
    "parse",
    "the object has more frames than the site's import rules allow",
    "raise largest_frames in site.yaml if the object is genuine",
)
BAD_DIMENSIONS = Reason(
    "bad-dimensions",
    "parse",
    "Rows, Columns, Samples per Pixel or the bit depths are missing or impossible",
    "mend the tags at their source, or export the study from the PACS again",
)
TOO_LARGE = Reason(
    "too-many-pixels",
    "parse",
    "an image of the object has more pixels than the site's import rules allow",
    "raise largest_pixels in site.yaml if the object is genuine",
)
UNSUPPORTED_DEPTH = Reason(
    "unsupported-depth",
    "pixels",
    "the pixels are not 8 or 16 bits wide (32 bits, floating point or single bits)",
    "export the images that the doses, maps or masks were made from",
)
UNSUPPORTED_COLOURS = Reason(
    "unsupported-colours",
    "pixels",
    "the photometric interpretation or palette is not one that becomes grey or RGB",
    "export it from the PACS as MONOCHROME2 or RGB",
)
UNDECODABLE = Reason("undecodable-pixels", "decode", "the pixels cannot be decoded", _DAMAGED)
SIZE_MISMATCH = Reason(
    "size-mismatch",
    "decode",
    "the compressed image has another size than the object states",
    "mend the object at its source; it may be somebody else's image",
)
NO_MEMORY = Reason(
    "out-of-memory",
    "decode",
    "decoding needs more memory than the site's import rules allow",
    "raise memory_mib in site.yaml, or import fewer frames (frames: middle)",
)
BITS_MISMATCH = Reason(
    "bits-mismatch",
    "pixels",
    "pixels have values beyond the bits that the object states as stored",
    "mend Bits Stored at its source; the extra bits may hold an overlay with text",
)
BAD_PIXEL_TAGS = Reason(
    "bad-pixel-tags",
    "pixels",
    "a lookup table, window, rescale or palette of the object is malformed",
    "mend the tags at their source, or export the study from the PACS again",
)
CT_WITHOUT_RESCALE = Reason(
    "ct-without-rescale",
    "pixels",
    "the CT image has no rescale slope and intercept, so its values are not Hounsfield units",
    "export the original CT images from the PACS",
)
BEYOND_HOUNSFIELD = Reason(
    "beyond-hounsfield",
    "pixels",
    "rescaled values of the CT image lie far outside what 16 bits of Hounsfield units hold",
    "mend rescale slope and intercept at their source",
)
ODD_SPACING = Reason(
    "odd-pixel-shape",
    "pixels",
    "the pixels are over eight times as long as wide, or made square they would be more than largest_pixels",
    "export the images at square pixels",
)
BURNED_IN = Reason(
    "burned-in-text",
    "deidentify",
    "the object says that a patient's details are written into its pixels (Burned In Annotation YES)",
    "mask the text at its source and export it with Burned In Annotation NO",
)
BURNED_IN_UNKNOWN = Reason(
    "burned-in-unknown",
    "deidentify",
    "ultrasound, secondary captures, screenshots and images of unknown kind often have a patient's details written "
    "into their pixels, and this object does not say that it has not",
    "check the images, mask text where there is any, and export them with Burned In Annotation NO",
)
SEGMENTATION_REFERENCES = Reason(
    "segmentation-without-references",
    "parse",
    "the segmentation does not say for each of its frames which image it lies on",
    "export it with a Derivation Image Sequence in every frame",
)
SEGMENTATION_KIND = Reason(
    "unsupported-segmentation",
    "pixels",
    "the segmentation is neither binary, fractional nor a label map, or its frames do not fit its description",
    "export it as a binary DICOM segmentation",
)

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Reason))
"""Every reason, for documentation and tests."""
