"""The survey: asked once before a run's first round, kept beside its checkpoint, the same for all that follows.

A resumed run and a site that comes late use the numbers that were measured then: asked again, sites would answer
with others, and what was trained with the first ones could not go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from common import protocol
from common.basis import Basis
from common.errors import ProtocolError, QuorumError, RunError
from common.files import sweep, write_atomically
from common.study import Study
from common.survey import Survey
from server.asking import Answer, Link
from server.desk import SURVEY
from server.recall import Call
from server.work import Work

_FORMAT = 1


@dataclass(frozen=True)
class Told:
    """One site's answer."""

    images: Mapping[str, int]
    """Per split."""
    survey: Survey


@dataclass(frozen=True)
class Surveyed:
    """All answers, and what they come to."""

    study: Study
    sites: Mapping[str, Told]
    silent: Mapping[str, str]
    """Sites that did not answer, or not so that it could count: why."""

    @property
    def together(self) -> Survey:
        """All sites' sums."""
        return reduce(add, (told.survey for told in self.sites.values()), Survey.zero(self.study))

    @property
    def basis(self) -> Basis | None:
        """What training takes from it. Raises :class:`DataError` where it gives nothing."""
        return Basis.of(self.study, self.together)


def prepare(link: Link, work: Work) -> Work:
    """``work`` with what its study takes from the survey. Raises as :func:`take`, and :class:`DataError`."""
    found = take(link, work)
    return work if found is None else replace(work, basis=found.basis)


def take(link: Link, work: Work) -> Surveyed | None:
    """The survey of ``work``: the one that was kept, or asked for now; ``None`` where the study has none.

    Raises :class:`QuorumError` where too few sites answer, :class:`RunError` for a kept one that is damaged.
    """
    if not work.study.surveyed:
        return None
    path = work.checkpoint.with_name(SURVEY.name) if work.checkpoint is not None else None
    found = _load(path, work) if path is not None else None
    if found is None:
        found = _ask(link, work)
        if path is not None:
            _save(path, work, found)
    return found


def _ask(link: Link, work: Work) -> Surveyed:
    study = work.study
    sites: dict[str, Told] = {}
    silent: dict[str, str] = {}
    request = protocol.SurveyRequest(work.task(0), measure=True)
    deadline_s = work.deadline_s or study.federation.deadline_s
    link.watch.surveys(True)
    for answer in Call(link, request, work.sites, deadline_s, lambda: work.quorum - len(sites)).answers():
        try:
            sites[answer.site] = _told(answer, study)
        except ProtocolError as error:
            silent[answer.site] = str(error)
    link.watch.surveys(False)
    found = Surveyed(study, dict(sorted(sites.items())), dict(sorted(silent.items())))
    link.events.emit("survey", arm=work.arm, repeat=work.repeat, sites=list(found.sites), silent=found.silent)
    if len(sites) < work.quorum:
        listed = "; ".join(f"{site}: {why}" for site, why in list(found.silent.items())[:5])
        raise QuorumError(
            f"{len(sites)} of {work.quorum} sites that the quorum asks for answered the survey of the {work.arm} arm "
            f"({listed}); mend them, then resume"
        )
    return found


def _told(answer: Answer, study: Study) -> Told:
    """Raises :class:`ProtocolError` for what cannot count."""
    reply = answer.reply
    if not isinstance(reply, protocol.SurveyReply):
        raise ProtocolError(answer.reason or "wrong kind of reply")
    if reply.site != answer.site:
        raise ProtocolError("refused: it answers under another name")
    try:
        return Told(reply.images, Survey.from_arrays(reply.statistics or {}, study, reply.images))
    except ProtocolError as error:
        raise ProtocolError(f"refused: {error}") from None


def _key(work: Work) -> dict[str, Any]:
    return {"study": work.study.hash, "arm": work.arm, "repeat": work.repeat}


def _save(path: Path, work: Work, found: Surveyed) -> None:
    sites = {
        site: {"images": dict(told.images)}
        | {"statistics": {name: array.tolist() for name, array in told.survey.to_arrays().items()}}
        for site, told in found.sites.items()
    }
    kept = {"format": _FORMAT, **_key(work), "sites": sites, "silent": dict(found.silent)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path.parent}: {error.strerror}; free some space") from None
    write_atomically(path, json.dumps(kept).encode())


def _load(path: Path, work: Work) -> Surveyed | None:
    sweep(path)
    try:
        kept = json.loads(path.read_bytes())
        if kept["format"] != _FORMAT or {name: kept[name] for name in _key(work)} != _key(work):
            raise RunError(f"{path} is of another study or version; resume with what the run was started with")
        sites = {str(site): Told(told["images"], _survey(told, work.study)) for site, told in kept["sites"].items()}
        return Surveyed(work.study, sites, dict(kept["silent"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ProtocolError) as error:
        raise RunError(
            f"{path} is damaged or cannot be read ({type(error).__name__}); restore it from a backup, or start the "
            "run anew under another name"
        ) from None


def _survey(told: Mapping[str, Any], study: Study) -> Survey:
    arrays = {name: np.array(values, dtype=np.int64) for name, values in told["statistics"].items()}
    return Survey.from_arrays(arrays, study, told["images"])
