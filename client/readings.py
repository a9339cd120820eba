"""What a site's readers said of the images of a split, as their columns of the label sheet have it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from client.ingest.readers import PREFIX
from client.site import Site, Split
from client.vault.preparing import choose
from common.labels import Labels, targets
from common.metrics import Layout
from common.metrics.layout import Ints
from common.metrics.paired import UNREAD, read
from common.study import Study


def readings(site: Site, study: Study, split: Split) -> list[Ints]:
    """Each of ``evaluation.readers``: decisions ``(N, Q)`` in the order of the split's view.

    Only on images that all of them have read; elsewhere all are unread, and everywhere where a vault has no such
    column. Raises :class:`DataError` for a reading that the study's classes do not map.
    """
    rows: list[Labels] = []
    for vault in site.vaults:
        rows += [vault.row(number).labels for number in choose(vault, study, split).ids]
    found = [_of(name, rows, study) for name in study.evaluation.readers]
    unread = np.stack([decided == UNREAD for decided in found]).any(axis=0)
    return [np.where(unread, UNREAD, decided) for decided in found]


def _of(name: str, rows: Sequence[Labels], study: Study) -> Ints:
    cells = [row.get(PREFIX + name, row.get(name, ())) for row in rows]
    wanted = targets(study, [{study.data.label_column: cell} for cell in cells]).astype(np.float64)
    if study.task == "binary":
        wanted = wanted[:, 1:]
    return read(wanted, Layout.of(study))
