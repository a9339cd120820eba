"""What validation says of a round's model: which one is kept, and when a run has learnt all it will."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.errors import DataError
from common.metrics import Counts, FirstPass, Outlines, auc, auc_bounds
from server.asking import Link
from server.checkpoints import Progress
from server.work import Work


def judge(
    link: Link, work: Work, progress: Progress, round_: int, found: FirstPass, record: dict[str, Any], last: bool
) -> None:
    """Record the validation result; keep the best model where the study says so; stop early.

    Raises :class:`DataError` where several sites have no validation image between them.
    """
    federation, facts, counts = work.study.federation, progress.facts, found.counts
    facts["stopped_early"] = False
    if not counts.images:
        _without_validation(link, work, progress, round_, found, last)
        return
    loss = counts.loss / counts.images
    area, bounds = _area(counts)
    record["val_auc"], record["val_loss"] = area, loss
    if bounds is not None:
        record["val_auc_bounds"] = bounds
    if found.outlines is not None:
        record["val_dice"] = pooled_dice(found.outlines)
    stopping = federation.early_stopping
    by_outline = work.study.task == "segmentation"
    if by_outline:
        area = record["val_dice"]
    # Where validation lacks a class there is no AUC: the loss decides then, and in every later round too. So it
    # does where small cells are hidden: the AUC's bounds move with the blocks more than with the model.
    by_loss = (
        area is None
        or (work.study.evaluation.min_cell > 1 and not by_outline)
        or (stopping is not None and stopping.metric == "loss")
    )
    score = -loss if facts.setdefault("judged_by", "loss" if by_loss else "auc") == "loss" else area
    best = facts.get("best_score")
    if score is not None and (best is None or (score, -loss) > (best, -facts["best_loss"])):
        facts["best_score"], facts["best_loss"], facts["best_round"] = score, loss, round_
        if federation.keep == "best":
            keep(progress, round_, found)
    # Patience counts from the last step that was worth min_delta, as small steps may add up to one.
    bar, delta = facts.get("bar"), stopping.min_delta if stopping is not None else 0.0
    improved = score is not None and (bar is None or score > bar + delta)
    facts["bar"], facts["stale"] = (score, 0) if improved else (bar, facts.get("stale", 0) + 1)
    stop = stopping is not None and facts["stale"] >= stopping.patience and not last
    facts["stopped_early"] = stop
    if federation.keep == "last" and (last or stop):
        keep(progress, round_, found)
    progress.done = stop


def keep(progress: Progress, round_: int, found: FirstPass) -> None:
    """The model of now is the one that is kept, with what validation found."""
    progress.kept = progress.weights
    progress.validation = found.to_arrays()
    progress.facts["kept_round"] = round_


def pooled_dice(outlines: Outlines) -> float | None:
    """Dice of all pixels at the best of the thresholds; ``None`` where there is neither mask nor outline."""
    best = np.nanmax(outlines.pooled, initial=-1.0)
    return None if best < 0.0 else float(best)


def _without_validation(link: Link, work: Work, progress: Progress, round_: int, found: FirstPass, last: bool) -> None:
    """A hospital alone may have no validation image: it keeps its last model, at a threshold of 0.5."""
    if len(work.sites) > 1:
        raise DataError(
            f"the sites of the {work.arm} arm have no validation image, so neither a model nor a threshold "
            "can be chosen; give data.split a larger validation share"
        )
    if last:
        link.events.emit("unvalidated", **work.named, round=round_)
        keep(progress, round_, found)


def _area(counts: Counts) -> tuple[float | None, tuple[float, float] | None]:
    """Mean AUC over the classes, or its bounds where hidden small cells leave no more; neither where a class lacks."""
    low, high = auc_bounds(counts)
    if np.isnan(low).any():
        return None, None
    if counts.exact:
        return float(auc(counts).mean()), None
    return None, (round(float(low.mean()), 6), round(float(high.mean()), 6))
