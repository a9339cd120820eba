"""This site's own model, of a study with ``personalisation:``, kept as a package when the study's model comes.

It is made of what rounds left here (``client.personal``), which is erased with the study, and of this site's images:
thresholds, temperature and choice come from its validation split, the result from its test split. All of it stays here,
so no number is withheld; no message takes any of it along. The package is signed with this site's own key, since nobody
else has seen the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import save as encode

from client.choice import FEWEST, Lead, choose, lead
from client.delivery import MODELS, Received, folder_of, keep, opened, own_beside
from client.evaluation import Scores, first_pass
from client.federation import Membership
from client.home import Home
from client.left import OWN_MADE
from client.lesions import second_pass
from client.own_card import page
from client.own_model import kept_weights
from client.site import Site
from common import protocol
from common.basis import Basis
from common.calibration import calibration_json
from common.errors import PackageError, ProtocolError
from common.identity import SiteKey
from common.metrics import (
    GRID,
    FirstPass,
    Question,
    Reference,
    Summary,
    Thresholds,
    choose_outline,
    choose_threshold,
    summarise,
)
from common.package import CARD, MANIFEST, PAGE, STUDY, SUMMARY, WEIGHTS, OwnManifest, Part
from common.results import summary_json, thresholds_json
from common.study import Study
from common.study_personal import PERSONALISED
from common.weights import Weights, load

if TYPE_CHECKING:
    from client.app import Resident

_DIGITS = 6


def own_folder(home: Home, study: Study) -> Path:
    """Where this site's own model of ``study`` lies, or would."""
    return own_beside(home.directory / MODELS / folder_of(study))


def has_own(study: Study) -> bool:
    """Whether sites that trained ``study`` end with a model of their own."""
    return study.personalisation is not None and study.personalisation.own_models


@dataclass(frozen=True)
class _Judged:
    """What this site's images say of one model."""

    validation: Scores
    first: FirstPass
    """Of the validation images."""
    tested: FirstPass
    thresholds: Thresholds
    summary: Summary

    @classmethod
    def of(
        cls, resident: Resident, site: Site, study: Study, weights: Weights, basis: Basis | None, at: Thresholds | None
    ) -> _Judged:
        """``at``: its thresholds, where it has some; else they are chosen here."""
        val, test = (resident.scores(site, study, split, weights, basis) for split in ("val", "test"))
        first, tested = first_pass(val, study), first_pass(test, study)
        thresholds = at or choose_threshold(first.counts, study.evaluation.threshold)
        reference = Reference(tested.counts, thresholds)
        moments = second_pass(test, None, Question(reference)).moments
        return cls(val, first, tested, thresholds, summarise(reference, moments, study.evaluation.confidence))


def keep_own(home: Home, membership: Membership, resident: Resident, study: Study) -> Path | None:
    """Put this site's own model beside the one of all that has come; its folder, ``None`` where nothing is left of it.

    Once it is there, nothing is done. Raises :class:`PackageError`, :class:`StoreError`, :class:`VaultError`.
    """
    folder = own_folder(home, study)
    if folder.exists():
        return folder
    shared = opened(home.directory / MODELS / folder_of(study))
    card = _Card.of(shared)
    task, site = protocol.Task(study, basis=card.basis), resident.site(home.directory)
    of_all = load(shared.folder / WEIGHTS)
    own = kept_weights(task, site, of_all, card.round)
    if own is None:
        return None
    site.note_use(study)
    mine = _Judged.of(resident, site, study, own, card.basis, None)
    theirs, led, chosen = None, None, None
    if card.thresholds is not None:
        theirs = _Judged.of(resident, site, study, of_all, card.basis, card.thresholds)
        least = max(FEWEST, study.evaluation.min_cell)
        led = lead(theirs.validation, mine.validation, fewest=least)
        chosen = choose("global", {"global": theirs.validation, "personal": mine.validation}, fewest=least)
    at = home.clock()
    key = SiteKey.load(membership.key_path)
    summary = _summary(study, shared, site, mine, theirs, led, chosen)
    files: dict[str, bytes] = {
        WEIGHTS: encode({name: own[name] for name in sorted(own)}),
        CARD: json.dumps(card.own(study, mine), indent=1).encode(),
        SUMMARY: json.dumps(summary, indent=1).encode(),
        STUDY: study.canonical(),
        PAGE: page(study, summary, membership.alias, membership.federation, at).encode(),
    }
    assert study.personalisation is not None and study.personalisation.method != "scaffold"
    manifest = OwnManifest(
        federation=membership.federation,
        run=shared.manifest.run,
        study=study.hash,
        site=membership.alias,
        made_from=shared.manifest.files[WEIGHTS].sha256,
        method=study.personalisation.method,
        chosen=chosen,  # type: ignore[arg-type]
        program=metadata.version("fedward"),
        finished=at,
        files={name: Part.of(content) for name, content in files.items()},
    )
    # On record first: killed in between, the log says more than is here, and it is made again.
    facts = {"study": study.hash, "weights": manifest.files[WEIGHTS].sha256, "key": key.public.fingerprint}
    home.record(OWN_MADE, {**facts, "method": manifest.method, "chosen": chosen or ""})
    keep(folder, {**files, MANIFEST: manifest.sign(key)})
    return folder


@dataclass(frozen=True)
class _Card:
    """What the package of the model of all says that its site's own model needs."""

    round: int
    """Whose own models go with it."""
    basis: Basis | None
    thresholds: Thresholds | None
    """``None`` under FedBN, where there is no model of all."""
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, shared: Received) -> _Card:
        """Raises :class:`PackageError` for what no coordinator of this version says."""
        study = shared.study
        personal = study.personalisation
        assert personal is not None
        try:
            facts = json.loads((shared.folder / CARD).read_bytes())
            # Ditto's are trained to the end, whatever is kept of the model of all.
            round_ = shared.summary["rounds" if personal.method == "ditto" else "kept_round"]
            if type(round_) is not int or not 0 <= round_ <= study.federation.rounds:
                raise ValueError
            basis = Basis.from_json(facts.get("basis"), study)
            edges = [facts["thresholds"][name] for name in study.scored_classes] if study.task != "multiclass" else []
            thresholds = None if personal.split else Thresholds.at(edges, study.evaluation.bins)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ProtocolError) as error:
            raise PackageError(
                f"the card of {shared.folder.name} cannot be used ({type(error).__name__}), so this site's own model "
                "cannot be put beside it; upgrade fedward here and at the coordinator"
            ) from None
        return cls(round_, basis, thresholds, facts)

    def own(self, study: Study, mine: _Judged) -> dict[str, Any]:
        """The card of the own model: this one's form, with its thresholds."""
        found: dict[str, Any] = {
            "format": 1,
            "study": json.loads(study.canonical()),
            "study_hash": study.hash,
            "arm": PERSONALISED,
            "repeat": 0,
            "kept_round": self.round,
            "thresholds": thresholds_json(mine.thresholds, study),
            "basis": self.facts.get("basis"),
        }
        if mine.first.outlines is not None:
            found["outline_threshold"] = GRID[choose_outline(mine.first.outlines)]
        return found


def _summary(
    study: Study,
    shared: Received,
    site: Site,
    mine: _Judged,
    theirs: _Judged | None,
    led: Lead | None,
    chosen: str | None,
) -> dict[str, Any]:
    """As of a package of all sites, on this site's test images alone; ``own``: how it stands to the model of all."""
    own: dict[str, Any] = {"site": site.alias, "chosen": chosen}
    if led is not None and theirs is not None:
        own["lead"] = {
            "patients": led.patients,
            "loss": round(led.mean, _DIGITS),
            "needed": round(led.needed, _DIGITS) if led.needed < float("inf") else None,
        }
        own["test_of_all"] = summary_json(theirs.summary, study)["test"]
    assert study.personalisation is not None
    found = {
        "study_hash": study.hash,
        "rounds": shared.summary["rounds"],
        "kept_round": shared.summary["kept_round"],
        "stopped_early": bool(shared.summary.get("stopped_early")),
        "thresholds": thresholds_json(mine.thresholds, study),
        **summary_json(mine.summary, study),
        "calibration": calibration_json(mine.tested.counts, mine.first.counts, study.scored_classes),
        "images": mine.summary.images,
        "patients": mine.summary.patients,
        "synthetic": any(vault.synthetic for vault in site.vaults),
        "own": own,
    }
    return found | ({"basis": shared.summary["basis"]} if "basis" in shared.summary else {})
