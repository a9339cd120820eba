"""``fedward predict``, behind the front door."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from client.app import Resident
from client.cli import ask_passphrase
from common.errors import DataError, RunError, one_line
from common.files import write_atomically
from simulations.predict.cases import Cases, FolderCases, VaultCases
from simulations.predict.model import Model
from simulations.predict.trust import Trust, check
from simulations.predict.worklist import NOTICE, SYNTHETIC, Urgency, Worklist, make, rows, table

_MOST_SHOWN = 20


def predict(
    model_folder: Path,
    images: Path | None,
    *,
    site: Path | None,
    out: Path | None,
    normal: str | None,
    workers: int | None,
    device: str,
    signed_by: str | None,
    unverified: bool,
    as_json: bool,
) -> None:
    """Score the images and write the worklist: to ``out``, else to standard output."""
    if (images is None) == (site is None):
        raise RunError("name the folder of the images, or a site's directory with --site; one of the two")
    Model.require(model_folder)
    trust = check(model_folder, site=site, signed_by=signed_by, unverified=unverified)
    model = Model(model_folder, device)
    urgency = Urgency(model, normal)
    with _cases(model, images, site, workers or os.cpu_count() or 1) as cases:
        found = make(model, urgency, cases)
        if not found.cases:
            first = f": {one_line(found.unreadable[0].case)}: {found.unreadable[0].reason}" if found.unreadable else ""
            raise DataError(f"none of {len(found.unreadable)} files could be scored{first}")
        about = _about(model, trust, urgency, found, cases)
    notice = " ".join(filter(None, [NOTICE, SYNTHETIC if model.synthetic else "", trust.notice]))
    text = table(found, urgency.study, notice, calibrated=bool(model.temperatures.values))
    if out is not None:
        write_atomically(out, text.encode(), mode=0o600)  # it says something of patients
    if as_json:
        for row in rows(found):
            print(json.dumps(row, ensure_ascii=False))
        print(json.dumps({"event": "finished", **about, "notice": notice}, ensure_ascii=False))
        return
    if out is None:
        sys.stdout.write(text)
    _tell(found, urgency, about, out)


@contextlib.contextmanager
def _cases(model: Model, images: Path | None, site: Path | None, workers: int) -> Iterator[Cases]:
    study = model.card.study
    if images is not None:
        yield FolderCases(study, images, workers)
        return
    assert site is not None
    resident = Resident(passphrase=ask_passphrase)
    try:
        opened = resident.site(site)
        if len(opened.vaults) != 1:
            raise DataError(f"{site}: a pooled site has no vault of its own; give one of its members'")
        opened.note_use(study)  # a real site's audit log says that this study's model read its images
        yield VaultCases(study, opened.vaults[0])
    finally:
        resident.close()


def _about(model: Model, trust: Trust, urgency: Urgency, found: Worklist, cases: Cases) -> dict[str, object]:
    count = len(found.cases)
    return {
        "cases": count,
        "images": sum(case.images for case in found.cases),
        "unreadable": len(found.unreadable),
        "study": urgency.study.name,
        "study_hash": urgency.study.hash,
        "verified": trust.verified,
        "whose": trust.whose,
        "signed_by": trust.signer,
        "normal": urgency.normal,
        "trained_on_synthetic": model.synthetic,
        "calibrated": bool(model.temperatures.values),
        "thresholds": urgency.thresholds,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "reading_ms_per_case": round(1000 * cases.reading_s / count, 3),
        "model_ms_per_case": round(1000 * model.scoring_s / count, 3),
    }


def _tell(found: Worklist, urgency: Urgency, about: dict[str, object], out: Path | None) -> None:
    """On standard error, beside the worklist."""

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    say(f"{about['cases']} cases, {about['images']} images, by {about['study']}")
    say(f"the model: {about['whose']}{'' if about['verified'] else ': NOT VERIFIED'}")
    if about["trained_on_synthetic"]:
        say("the model was trained on SYNTHETIC images: of patients it says nothing")
    if not about["calibrated"]:
        say("the model has no temperature: its scores order cases and are no calibrated probabilities")
    for name, edge in urgency.thresholds.items():
        say(f"an image counts as {name} from a score of {edge:.4f} on")
    for one in found.unreadable[:_MOST_SHOWN]:
        say(f"not scored: {one_line(one.case)}: {one.reason}")
    if len(found.unreadable) > _MOST_SHOWN:
        say(f"… and {len(found.unreadable) - _MOST_SHOWN} more: they stand at the worklist's end")
    device = about["device"] if about["device"] != "cpu" else f"CPU, {about['threads']} threads"
    say(f"a case took {about['reading_ms_per_case']} ms to read and prepare, {about['model_ms_per_case']} ms in the "
        f"model ({device})")  # fmt: skip
    if out is not None:
        say(f"worklist: {out}")
    say(NOTICE)
