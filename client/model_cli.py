"""What ``fedward site models`` and ``export-model`` do and print."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.delivery import MODELS, Received, contents, find, own_beside, received, verify
from client.home import Home
from client.left import EXPORTED
from client.own_card import said_of_choice
from common.errors import FedwardError, PackageError, StoreError, one_line
from common.package import MANIFEST, PAGE, WEIGHTS, OwnManifest


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


def export(site: Path, name: str, out: Path) -> None:
    """Copy a model that was verified to ``out``, a new folder for its owner alone; on record before it is written."""
    home = Home.open(site)
    model = find(home, name)
    verify(home, model)
    files = {**contents(model.folder), MANIFEST: (model.folder / MANIFEST).read_bytes()}
    if out.exists() or out.is_symlink():
        raise StoreError(f"{out} exists already; name a new folder, which only you will be able to open")
    if not out.absolute().parent.is_dir():
        raise StoreError(f"{out.absolute().parent} is no folder; name a place that there is")
    facts = {"study": model.study.hash, "weights": model.manifest.files[WEIGHTS].sha256, "own": model.own}
    home.record(EXPORTED, {**facts, "folder": str(out.absolute())})
    try:
        out.mkdir(mode=0o700)
        for part, content in files.items():
            descriptor = os.open(out / part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise StoreError(f"{out} cannot be written: {error.strerror}; free some space, or name another place") from None
    print(f"{out}: {', '.join(sorted(files))}")
    print(f"signed {_signed(model)}")
    if model.own:
        print("This is your hospital's own model: it can tell about your patients. Do not let it leave the hospital.")


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
        yield from (f"  {line}" for line in _whose(model))
        yield f"  finished  on {manifest.finished:%Y-%m-%d}"
        yield from (f"  {line}" for line in _card(model))
        yield f"  signed    {_signed(model)}"
        yield f"  card      {MODELS}/{folder.name}/{PAGE}"
    if problem:
        yield f"  PROBLEM   {problem}"
    elif checked:
        yield "  verified  signature, digests and weights are as they were signed, and the audit log knows it"


def _whose(model: Received) -> Iterator[str]:
    manifest = model.manifest
    if isinstance(manifest, OwnManifest):
        yield f"whose     {manifest.site}'s own ({manifest.method}), of its part in {manifest.federation}; keep it here"
        try:
            yield f"chosen    {said_of_choice(manifest.chosen, model.summary['own'])}"
        except (KeyError, TypeError, ValueError):
            yield "chosen    cannot be shown by this version; see the card"
        return
    yield f"trained   by {', '.join(manifest.sites)} of {manifest.federation}"
    if model.study.personalisation is not None and model.study.personalisation.own_models:
        beside = own_beside(model.folder)
        none = "none: nothing of it was left here when this came, or it was removed"
        yield f"own       {f'{MODELS}/{beside.name}' if beside.exists() else none}"


def _signed(model: Received) -> str:
    """What a signature says depends on whose it is."""
    if model.own:
        return f"by this site's own key {model.signer.fingerprint}: nobody else has seen it"
    return f"by the coordinator's key {model.signer.fingerprint}"


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
