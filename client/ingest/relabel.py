"""A label sheet laid over images in the vault: their names are pseudonyms by now, so those on the sheet become some."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from client.ingest.labels import Labelled, LabelSheet
from client.ingest.pseudonyms import Pseudonyms

Find = Callable[[Mapping[str, str], str], Labelled | None]
"""From an image's keys and its patient's pseudonym to what the sheet says of it."""


def finder(sheet: LabelSheet, pseudonyms: Pseudonyms) -> Find:
    """Finds rows as ``LabelSheet.lookup`` does: by SOP instance, file, accession number, patient, in this order.

    A file is found by its name with all its folders, or by the bare name where the sheet gives no folder.
    """
    index: dict[tuple[str, str], Labelled | None] = {}
    for keys, labelled in sheet.settled():
        names = pseudonyms.names(keys["file"]) if keys["file"] else {}
        if "/" in keys["file"]:
            names.pop("base")
        if "base" in names and ("base", names["base"]) in index:
            index["base", names["base"]] = None
            names.pop("base")
        others = {kind: pseudonyms.of(kind, keys[kind]) for kind in ("sop", "accession", "patient") if keys[kind]}
        wider = bool(keys["sop"] or keys["file"]), bool(keys["accession"])
        if any(wider):
            others.pop("patient", None)
        if wider[0]:
            others.pop("accession", None)
        index |= dict.fromkeys({**names, **others}.items(), labelled)

    def find(keys: Mapping[str, str], patient: str) -> Labelled | None:
        for kind in ("sop", "file", "base", "accession"):
            if kind in keys and (said := index.get((kind, keys[kind]))) is not None:
                return said
        return index.get(("patient", patient))

    return find
