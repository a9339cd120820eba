"""Why a file is refused before, or while, it is decoded: fixed words. Those of DICOM are in ``dicom_reasons``."""

from __future__ import annotations

from client.ingest.kinds import Reason

UNKNOWN = Reason(
    "unknown-format",
    "parse",
    "is no image in a known format",
    "export it as DICOM, PNG, JPEG, TIFF, BMP, PNM, WebP, GIF, JPEG 2000, NIfTI or .npz",
)
EMPTY = Reason("empty-file", "parse", "the file is empty", "copy it again")
POINTER = Reason(
    "lfs-pointer", "parse", "is a Git LFS pointer, not an image", "fetch the real file with `git lfs pull`"
)
PAGE = Reason("web-page", "parse", "is a web page, perhaps of a login", "log in and download the file itself")
ARCHIVE = Reason("nested-archive", "parse", "is an archive inside the source", "unpack it and import the folder")
COMPRESSED = Reason("compressed", "parse", "is compressed, and no NIfTI volume", "unpack it")
LARGE = Reason(
    "too-large",
    "source",
    "is larger, or would unpack to more, than the import rules allow",
    "split it, or raise largest_bytes in site.yaml",
)
PIXELS = Reason(
    "too-many-pixels",
    "decode",
    "one image has more pixels than the import rules allow",
    "scale it down, or raise largest_pixels in site.yaml",
)
FRAMES = Reason(
    "too-many-frames",
    "decode",
    "holds more frames, slices or images than the import rules allow",
    "split the file, or raise largest_frames in site.yaml",
)
DAMAGED = Reason("damaged", "decode", "the file is damaged or cut short", "copy or export it again")
FLOATING = Reason("floating-point", "decode", "has floating-point pixels", "save it with 8 or 16 bits")
DEEP = Reason("out-of-range", "decode", "has values outside 0 to 65535", "save it with 16 bits")
PAIR = Reason(
    "volume-pair", "parse", "is the header of a pair of files (.hdr, .img)", "convert it to one .nii or .nii.gz file"
)
SERIES = Reason(
    "volume-series", "parse", "holds more than one volume (time, echoes or vectors)", "split it, one volume a file"
)
DATATYPE = Reason("volume-datatype", "parse", "has colour or complex values", "save it with integers or real numbers")
GEOMETRY = Reason(
    "volume-geometry", "parse", "says no usable orientation or voxel size", "correct its header (sform, qform, pixdim)"
)
VALUES = Reason("volume-empty", "pixels", "has no value above 0", "check the export")
PICKLED = Reason("pickled", "parse", "holds Python objects", "save plain arrays of numbers (allow_pickle=False)")
SPLITS = Reason(
    "data-set",
    "parse",
    "is a public data set with splits of its own",
    "simulate hospitals with it: fedward simulate --data FILE; or save one split's images and labels",
)
NAMELESS = Reason("no-images", "parse", "holds no array of images", "name the array `images`, and its labels `labels`")
SHAPE = Reason("array-shape", "parse", "has an array of no image's shape", "save (N, H, W), (N, H, W, 3) or (H, W)")
LABELS = Reason(
    "array-labels",
    "labels",
    "labels are not one number or short word for each image",
    "save `labels` as (N,) integers or text",
)
PERSONAL = Reason(
    "personal-labels", "labels", "a label looks like a date, a name or a UID", "save the classes as `labels`"
)
MEMORY = Reason(
    "decode-memory",
    "decode",
    "decoding it takes more memory than the import rules allow",
    "scale it down, or raise memory_mib in site.yaml",
)
FAILED = Reason("decode-failed", "decode", "the decoder gave it up", "export it in another format")
MASKLESS = Reason("not-a-mask", "parse", "is an image, not a segmentation", "give a DICOM SEG, NIfTI or image file")
IDENTITY = Reason(
    "identity-too-long",
    "parse",
    "names its patient, study or image with more than a thousand characters",
    "correct its header, or export it again",
)
UNREADABLE = Reason("unreadable", "source", "the file cannot be read", "correct its permissions, or copy it again")
TIMEOUT = Reason(
    "decode-timeout",
    "decode",
    "decoding it takes longer than the import rules allow",
    "export it in another format, or raise seconds in site.yaml",
)
CRASHED = Reason(
    "decode-crashed",
    "decode",
    "the decoder ended on it, or the machine ran out of memory",
    "export it in another format; import with fewer workers where memory is short",
)
NONSENSE = Reason("decode-nonsense", "decode", "the decoder's answer makes no sense", "export it in another format")

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Reason))
"""Every reason, for documentation and tests."""
