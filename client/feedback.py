"""Error feedback: what rounding left out of a site's updates, kept for its next one (``common.compression``)."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from client.kept import Kept
from client.site import Site
from common.compression import Update, compress
from common.protocol import TrainRequest
from common.weights import Weights

RESIDUALS = "residuals.sqlite"


class Residuals(Kept):
    """What each round's rounding left out."""

    table = "residual"
    what = "what rounding left out"


def compressed(request: TrainRequest, site: Site, after: Weights, names: Collection[str]) -> Update:
    """What a fit changed, as the study's ``federation.compression`` wants it sent.

    Raises :class:`ModelError` for what cannot be compressed, :class:`StoreError` and :class:`RoundSpent` as
    :class:`Residuals` does.
    """
    task = request.task
    if task.compression == "fp16":
        return compress(task.compression, after, request.weights, names, {})[0]
    run = (task.study.hash, task.arm, task.repeat)
    with closing(Residuals(site.memory(RESIDUALS), site.vaults[0])) as residuals:
        update, left = compress(task.compression, after, request.weights, names, residuals.before(run, task.round))
        residuals.keep(run, task.round, left)
    return update
