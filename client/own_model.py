"""The model that a site would call its own: with its norm layers, drawn to the shared one, or fine-tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.evaluation import predict
from client.personal import opened, run_of
from client.site import Site
from client.steering import Steering
from client.training import FitSeed, LocalFit
from common.errors import ProtocolError
from common.protocol import Task
from common.study import Study
from common.weights import Weights, digest, restore, state_of

if TYPE_CHECKING:
    from client.app import Resident

_BEGUN_WITH = ""
"""Kept with a fine-tuned model, under a name that no tensor has: the digest of what it was begun with, as bytes."""


def own_weights(task: Task, site: Site, resident: Resident, weights: Weights, round_: int) -> Weights:
    """The site's own model after ``round_``, of which the shared ``weights`` are; these, where it has none.

    A fine-tuned one is made when it is first asked for, and kept. Raises :class:`ProtocolError` of a study without.
    """
    personal = task.personal
    if personal is None or not personal.own_models:
        raise ProtocolError("a site's own model is asked for, and its study has none; upgrade the coordinator")
    found = kept_weights(task, site, weights, round_)
    if found is None and personal.method == "finetune":
        found = finetune(task, site, resident, weights)
        with opened(site) as kept:
            kept.keep(run_of(task), round_, {**found, _BEGUN_WITH: _begun_with(task, weights)})
    return weights if found is None else found


def kept_weights(task: Task, site: Site, weights: Weights, round_: int) -> Weights | None:
    """As :func:`own_weights`, of what is kept alone; ``None`` where that is nothing.

    A fine-tuned model that was begun with other weights, of a run that was since gone back on, is none.
    """
    personal, run = task.personal, run_of(task)
    assert personal is not None and personal.own_models
    with opened(site) as kept:
        left = kept.at(run, round_) if personal.method == "finetune" else kept.before(run, round_ + 1)
    if not left:
        return None
    if personal.method == "finetune":
        begun_with = left.pop(_BEGUN_WITH, None)
        return left if begun_with is not None and np.array_equal(begun_with, _begun_with(task, weights)) else None
    return {**weights, **left} if personal.split else left


def _begun_with(task: Task, weights: Weights) -> NDArray[np.uint8]:
    """Of all that fine-tuning begins with and the study does not say: the weights, and all sites' numbers."""
    basis = "" if task.basis is None else task.basis.digest
    return np.frombuffer(bytes.fromhex(digest(weights) + basis), np.uint8)


def finetune(task: Task, site: Site, resident: Resident, weights: Weights) -> Weights:
    """``weights`` after as many epochs here as lower the mean loss on this site's validation images most.

    Each epoch is a fit of its own, with a fresh optimiser and a constant learning rate. Without validation images
    nothing says when to stop, so nothing is changed. Memory: three times the model.
    """
    personal, study = task.personal, task.study
    assert personal is not None
    train, judge = site.require(study, "train"), site.view(study, "val")
    if not len(judge):
        return weights
    model = resident.model(study, site.device)
    restore(model, weights)
    best, least = weights, float(predict(model, judge, study, task.basis).loss.mean())
    short = _one_epoch(study)
    for epoch in range(1, personal.most_epochs + 1):
        seed = FitSeed(study.seed, task.repeat, site.alias, study.federation.rounds + epoch)
        LocalFit(model, train, short, seed, task.basis, Steering()).run()
        loss = float(predict(model, judge, study, task.basis).loss.mean())
        if loss < least:
            best, least = state_of(model), loss
    return best


def _one_epoch(study: Study) -> Study:
    """``study`` with fits of one epoch, at fine-tuning's learning rate throughout."""
    assert study.personalisation is not None
    rate = study.personalisation.lr or study.training.optimiser.lr
    changes = {
        "training.local_epochs": 1,
        "training.local_steps": None,
        "training.schedule": {"kind": "constant"},
        "training.optimiser.lr": rate,
    }
    return study.derive(**changes)
