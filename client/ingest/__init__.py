"""From scans to vault: what a hospital points at goes in at one end, de-identified rows come out at the other.

========================  =====================================================================
``kinds``                 what travels between the parts: ``Rules`` in, ``Decoded`` or ``Refused`` out
``sources``               files, folders, ZIPs, DICOMDIR: what there is to read, and safely where
``pool``, ``child``,      a stranger's bytes are only ever parsed in a child process with limits, and what it
``answers``               answers is checked
``sniff``, ``reasons``    what a file is, by its first bytes; why one is refused, in fixed words
``dicom``, ``images``,    one reader a family of formats; each runs in the child
``volumes``, ``arrays``
``pixels``, ``dicom_…``   a DICOM object's parts: decoding, look-up tables, tags, terms, reasons
``segmentation``          masks out of DICOM SEG
``deidentify``            the allow-list: which technical tags may leave the child, and how
``text_in_pixels``        a warning where writing seems to be burned into the pixels
``pseudonyms``            keyed names for patients, files and objects
``labels``, ``readers``,  label sheets; two readers, consensus, Cohen's κ; opt-outs; lesion boxes; labels that come
``consent``, ``boxes``,   later
``relabel``
``quality``               how an image looks, and whether it looks odd
``known``                 what the vault holds, as far as an import must know it
``masks``                 which file is whose mask, and how masks come to lie on images
``importer``, ``summary`` the order of it all: resumable, idempotent, one bad study stops nothing; what it did
``import_reasons``        why it left an image out
``pacs``, ``receive``     DICOMweb and C-STORE
``readiness``             the report on what came in
========================  =====================================================================
"""
