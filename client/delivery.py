"""Finished models that a coordinator has brought: checked, kept whole in ``models/``, listed, checked again.

A package (``common.package``) is believed for its signature, by the key that this site has confirmed by phone; its
weights are read as arrays of the study's own names, shapes and types, and nothing in it is ever executed. Beside them
lie this site's own models (``client.own_package``), which are believed because the audit log knows that they were made
here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.federation import Membership
from client.home import Home
from client.left import OWN_MADE, RECEIVED
from client.vault import database
from common.errors import (
    FedwardError,
    IdentityError,
    ModelError,
    PackageError,
    ReplyRefused,
    StoreError,
    StudyError,
    one_line,
)
from common.identity import PublicKey, make_private_folder
from common.models import build
from common.package import (
    CARD,
    MANIFEST,
    MOST_BYTES,
    PARTS,
    STUDY,
    SUMMARY,
    WEIGHTS,
    AnyManifest,
    Manifest,
    OwnManifest,
    open_manifest,
)
from common.protocol import DeliveryRequest
from common.study import Study
from common.weights import Weights, check_like, parse, state_of

MODELS = "models"
"""Below a site's directory."""
_LEAST_HASH = 6
_HEADER_BYTES = 1 << 20
"""Room for the names and shapes before a weights file's numbers."""


@dataclass(frozen=True)
class Received:
    """A model in ``models/``."""

    folder: Path
    manifest: AnyManifest
    signer: PublicKey
    study: Study
    summary: Mapping[str, Any]
    """``summary.json``: rounds, thresholds, test result."""

    @property
    def own(self) -> bool:
        """Whether it is a hospital's own, signed by that hospital alone."""
        return isinstance(self.manifest, OwnManifest)

    def check(self) -> None:
        """Every file again: as it was signed, of the study that was signed, weights that fit. Whose key it was, the
        caller has to find out. Raises :class:`PackageError`.
        """
        files = contents(self.folder)
        self.manifest.check(files)
        _check_contents(files, self.study, state_of(build(self.study, 0), copy=False))
        if self.manifest.study != self.study.hash:
            raise PackageError(f"{self.folder.name} holds another study than its manifest names; do not use it")


def receive(home: Home, membership: Membership, request: DeliveryRequest) -> str:
    """Check a finished model and keep it; SHA-256 of its weights file. The same one again changes nothing.

    Raises :class:`PackageError` for one that is not what this site's coordinator signed, or another than is here;
    :class:`StoreError` where it cannot be written.
    """
    study = request.task.study
    try:
        manifest, _ = Manifest.open(request.manifest, membership.coordinator)
    except IdentityError as error:
        raise PackageError(str(error)) from None
    if (manifest.study, manifest.federation) != (study.hash, membership.federation):
        raise PackageError("the model that came is of another study or federation than its message says")
    if membership.alias not in manifest.sites:
        raise PackageError("the model that came is not for this site, which took no part in it")
    files = {name: array.data for name, array in request.files.items()}
    models = home.directory / MODELS
    folder = models / folder_of(study)
    if folder.exists():
        present = opened(folder)
        if present.manifest.files != manifest.files:
            raise PackageError(f"another model of study {study.hash[:12]} is here already; call the coordinator")
        present.manifest.check(contents(folder))
        return present.manifest.files[WEIGHTS].sha256
    template = state_of(build(study, 0), copy=False)
    _check_sizes(files, template)
    manifest.check(files)
    _check_contents(files, study, template)
    # On record first: killed in between, the log says more than is here, and the model comes again.
    facts = {"study": study.hash, "run": manifest.run, "roster": manifest.roster}
    home.record(
        RECEIVED,
        {**facts, "weights": manifest.files[WEIGHTS].sha256, "coordinator": membership.coordinator.fingerprint},
    )
    keep(folder, {**files, MANIFEST: memoryview(request.manifest)})
    return manifest.files[WEIGHTS].sha256


def folder_of(study: Study) -> str:
    """The name of a study's folder in ``models/``."""
    return f"{study.name.replace(' ', '-')}-{study.hash[:12]}"


def own_beside(folder: Path) -> Path:
    """Where a site's own model lies, or would, beside that of all in ``folder``."""
    return folder.with_name(f"{folder.name}-own")


def find(home: Home, name: str) -> Received:
    """The one model whose folder is ``name`` (a path to it does), or whose study's hash begins so.

    Of a hash the model of all is meant. Raises :class:`PackageError`.
    """
    found = [one for one in received(home) if isinstance(one, Received)]
    wanted = Path(name).name
    fitting = [
        one
        for one in found
        if one.folder.name == wanted or (len(name) >= _LEAST_HASH and one.study.hash.startswith(name) and not one.own)
    ]
    if len(fitting) != 1:
        there = ", ".join(one.folder.name for one in found) or "none yet"
        raise PackageError(
            f"{len(fitting)} models in {MODELS}/ go by {one_line(name)}; name a folder or a study's hash: {there}"
        )
    return fitting[0]


def received(home: Home) -> Iterator[Received | tuple[Path, FedwardError]]:
    """Every model in ``models/``, by name; one that cannot be read with the reason."""
    models = home.directory / MODELS
    for folder in sorted(models.iterdir()) if models.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                yield opened(folder)
            except FedwardError as error:
                yield folder, error


def opened(folder: Path) -> Received:
    """The model in ``folder``, its manifest's signature checked, its files not. Raises :class:`FedwardError`."""
    found = {name: _read(folder / name) for name in (MANIFEST, STUDY, SUMMARY)}
    manifest, signer = open_manifest(found[MANIFEST])
    study = Study.parse(found[STUDY].decode("utf-8", "replace"), str(folder / STUDY))
    return Received(folder, manifest, signer, study, _json(found[SUMMARY], SUMMARY))


def verify(home: Home, model: Received) -> None:
    """Check everything again: the files, the signature, and that the log has this model come, or made here.

    Raises :class:`PackageError`, :class:`ModelError`.
    """
    model.check()
    signer = model.signer.fingerprint
    facts = {"study": model.study.hash, "weights": model.manifest.files[WEIGHTS].sha256}
    if model.own:
        event, facts["key"] = OWN_MADE, signer
        no = "it was not made by this site's agent: do not use it"
    else:
        event, facts["coordinator"] = RECEIVED, signer
        no = "it was not brought by this site's agent: do not use it"
    if not any(entry.event == event and facts.items() <= entry.facts.items() for entry in home.audit.entries()):
        raise PackageError(f"the audit log does not know {model.folder.name} with the signature of {signer}; {no}")


def _check_sizes(files: Mapping[str, memoryview], template: Weights) -> None:
    """Before anything is read in full."""
    if set(files) != set(PARTS):
        raise PackageError(f"a package holds {', '.join(PARTS)}, this one other files; ask the coordinator")
    numbers = sum(array.nbytes for array in template.values())
    for name, content in files.items():
        most = numbers + _HEADER_BYTES if name == WEIGHTS else MOST_BYTES
        if content.nbytes > most:
            raise PackageError(f"{name} has {content.nbytes} bytes, where at most {most} are expected")


def _check_contents(files: Mapping[str, bytes | memoryview], study: Study, template: Weights) -> None:
    try:
        if Study.parse(bytes(files[STUDY]).decode(), STUDY).hash != study.hash:
            raise PackageError(f"{STUDY} in the package is another study")
        card = _json(bytes(files[CARD]), CARD)
        summary = _json(bytes(files[SUMMARY]), SUMMARY)
        if card.get("study_hash") != study.hash or summary.get("study_hash") != study.hash:
            raise PackageError("the package's card or result is another study's")
        check_like(parse(bytes(files[WEIGHTS]), WEIGHTS), template)
    except (UnicodeDecodeError, StudyError, ModelError, ReplyRefused) as error:
        raise PackageError(f"the package does not fit its study: {error}") from None


def _json(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PackageError(f"{name} in a package is not a JSON object; ask the coordinator")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """A package's files but the manifest, unchecked. Raises :class:`PackageError`."""
    return {name: _read(folder / name) for name in PARTS}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackageError(
            f"{path} cannot be read: {error.strerror}; remove the folder {path.parent.name}, "
            "and ask the coordinator for the model"
        ) from None


def keep(folder: Path, files: Mapping[str, bytes | memoryview]) -> None:
    """All files or none, on the disk when this returns. What was killed and left half-made goes first.

    Raises :class:`StoreError`.
    """
    models, made = folder.parent, None
    try:
        make_private_folder(models)
        for left in models.glob(".*.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=models, prefix=f".{folder.name}.new-"))
        for name, content in files.items():
            descriptor = os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        database.sync_directory(made)
        os.replace(made, folder)  # noqa: PTH105
        database.sync_directory(models)
    except OSError as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise StoreError(f"{folder} cannot be written: {error.strerror}; free some space, it comes again") from None
