"""The kept model examined at the site: by groups of its test images, and on worse ones. Nothing of an image leaves."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from client.evaluation import Alter, Scores
from client.ingest.kinds import looks_personal
from client.site import Site
from client.vault.preparing import choose
from client.vault.records import Row
from common import protocol
from common.corruptions import corrupted
from common.errors import PrivacyError
from common.metrics import Layout
from common.metrics.subgroup_moments import measure, moments_arrays, open_reference
from common.metrics.subgroups import MOST_GROUPS, NOT_RECORDED, OTHER, SEVERAL, Subgroups, is_name, told
from common.randomness import seed_for
from common.study import Study
from common.study_examined import SITE, band_names

MOST_CHARACTERS = 32
"""Of a value that is told; longer ones are free text."""
_AGE = re.compile(r"(\d{1,3})(?:\.\d+|-\d{1,3}|\+)?")
_OLDEST = 130
_MANY_DIGITS = re.compile(r"\d{5}")


def count_by(request: protocol.EvaluateRequest, site: Site, scores: Scores) -> protocol.Statistics:
    """The first pass by ``request.by``."""
    study = request.task.study
    groups = told(values(site, study, request.by, request.split))
    found = Subgroups.of(
        scores.scores, scores.targets, scores.patients, groups, Layout.of(study), study.evaluation.min_cell
    )
    return found.to_arrays()


def moments_by(request: protocol.MomentsRequest, site: Site, scores: Scores) -> protocol.Statistics:
    """The second pass by ``request.by``. Raises :class:`PrivacyError` where small cells are hidden."""
    study = request.task.study
    if study.evaluation.min_cell > 1:
        raise PrivacyError("sums over a group's patients were asked for; where small cells are hidden, none leave")
    groups, thresholds = open_reference(request.reference, Layout.of(study), MOST_GROUPS)
    mine = told(values(site, study, request.by, request.split))
    return moments_arrays(measure(scores.scores, scores.targets, scores.patients, mine, groups, thresholds))


def values(site: Site, study: Study, by: str, split: str) -> list[str]:
    """The group of each image of the split's view, in its order."""
    if by == SITE:
        return [site.alias] * sum(len(choose(vault, study, split).ids) for vault in site.vaults)
    return [
        value_of(vault.row(row_id), study, by) for vault in site.vaults for row_id in choose(vault, study, split).ids
    ]


def value_of(row: Row, study: Study, by: str) -> str:
    """An image's value of an attribute or a column of labels, in words that may be told."""
    found = row.attributes.get(by, "")
    labels = row.labels.get(by, ())
    if not found and len(set(labels)) > 1:
        return SEVERAL
    text = " ".join((found or (labels[0] if labels else "")).split())
    if by == "age":
        return _band(text, study.evaluation.age_bands)
    if not text:
        return NOT_RECORDED
    plain = (
        is_name(text) and len(text) <= MOST_CHARACTERS and not looks_personal(text) and not _MANY_DIGITS.search(text)
    )
    return text if plain else OTHER


def _band(age: str, edges: tuple[int, ...]) -> str:
    """The study's band of ``52``, of a band of ten years ``50-59``, or of ``90+``: edges are tens."""
    match = _AGE.fullmatch(age)
    if match is None or int(match[1]) > _OLDEST:
        return NOT_RECORDED
    return band_names(edges)[sum(int(match[1]) >= edge for edge in edges)]


def alteration(condition: str, study: Study) -> Alter | None:
    """What ``condition`` (``blur 2``; empty: none) does to a batch of prepared images."""
    if not condition:
        return None
    name, _, level = condition.partition(" ")

    def alter(images: Tensor, rows: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` float32 in [0, 1], ``rows`` their numbers in the view, which name their noise."""
        batch = images.cpu().numpy()
        changed = [
            corrupted(image, name, int(level), seed_for(study.seed, "robustness", row))
            for image, row in zip(batch, rows.tolist(), strict=True)
        ]
        return torch.stack([torch.from_numpy(image) for image in changed]).to(images.device)

    return alter
