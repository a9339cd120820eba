"""What ``fedward site models`` does and prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.delivery import MODELS, Received, received, verify
from client.home import Home
from common.errors import FedwardError, PackageError, one_line
from common.package import PAGE


def models(site: Path, *, verify: bool, as_json: bool) -> None:
    home = Home.open(site)
    found = list(_looked_at(home, check=verify))
    if as_json:
        print(json.dumps({"models": [_facts(*one) for one in found]}, ensure_ascii=False))
    else:
        for model, folder, problem in found:
            print("\n".join(_lines(model, folder, problem, checked=verify)))
        if not found:
            print("no finished model has come yet; each study's comes at its end, while `fedward site up` runs")
    bad = [folder.name for _, folder, problem in found if problem]
    if bad:
        raise PackageError(f"do not use {', '.join(bad)}: remove the folder, and ask the coordinator for the model")


def _looked_at(home: Home, *, check: bool) -> Iterator[tuple[Received | None, Path, str]]:
    """Each model, its folder, and what is wrong with it."""
    for one in received(home):
        if not isinstance(one, Received):
            yield None, one[0], str(one[1])
            continue
        problem = ""
        if check:
            try:
                verify(home, one)
            except FedwardError as error:
                problem = str(error)
        yield one, one.folder, problem


def _facts(model: Received | None, folder: Path, problem: str) -> dict[str, Any]:
    head: dict[str, Any] = {"folder": f"{MODELS}/{folder.name}", "problem": problem or None}
    if model is None:
        return head
    manifest = model.manifest.model_dump(mode="json")
    return {**head, "signed_by": model.signer.fingerprint, "manifest": manifest, "summary": dict(model.summary)}


def _lines(model: Received | None, folder: Path, problem: str, *, checked: bool) -> Iterator[str]:
    yield f"{MODELS}/{folder.name}"
    if model is not None:
        manifest, study = model.manifest, model.study
        yield f"  study     {study.name}, hash {study.hash}"
        yield f"  model     {study.model.name}, {study.task}: {', '.join(study.class_names)}"
        yield f"  trained   by {', '.join(manifest.sites)} of {manifest.federation}"
        yield f"  finished  on {manifest.finished:%Y-%m-%d}"
        yield from (f"  {line}" for line in _card(model))
        yield f"  signed    by the coordinator's key {model.signer.fingerprint}"
        yield f"  card      {MODELS}/{folder.name}/{PAGE}"
    if problem:
        yield f"  PROBLEM   {problem}"
    elif checked:
        yield "  verified  signature, digests and weights are as they were signed, and the audit log knows it"


def _card(model: Received) -> Iterator[str]:
    """Test result and thresholds, as far as the summary has them in the form that this version knows."""
    try:
        for metric, cell in model.summary["test"].items():
            if cell["value"] is not None:
                between = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if cell["low"] is not None else ""
                yield f"test      {one_line(metric)} {cell['value']:.3f}{between}"
        for name, edge in model.summary["thresholds"].items():
            yield f"threshold {one_line(name)} from {edge:.4f}"
    except (KeyError, TypeError, ValueError, AttributeError):
        yield "test      cannot be shown by this version; see the card"
