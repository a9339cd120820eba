"""A finished model as sites receive it: five files, and a manifest that the coordinator has signed.

::

    model.safetensors   the weights                     summary.json   test result and thresholds
    model.json          study, kept round, thresholds   study.yaml     the study, in its canonical form
    card.md             the same for people             manifest.json  digests of the others, whose it is; signed

Whoever holds the folder and the coordinator's public key can check it, without a network and years later. A hospital's
own model, of a study with ``personalisation:``, is a package of the same files, made and signed at that hospital.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import PackageError
from common.identity import PublicKey
from common.identity.documents import kind_of
from common.identity.roster import Alias, Moment, Name, Paper

WEIGHTS, CARD, PAGE, SUMMARY, STUDY = "model.safetensors", "model.json", "card.md", "summary.json", "study.yaml"
MANIFEST = "manifest.json"
PARTS = (WEIGHTS, CARD, PAGE, SUMMARY, STUDY)
"""What a package holds, no more and no less, beside its manifest."""
MOST_BYTES = 4 << 20
"""Of every part but the weights."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]


class Part(BaseModel):
    """One file's length and SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: Digest

    @classmethod
    def of(cls, content: bytes | memoryview) -> Part:
        return cls(size=len(content), sha256=hashlib.sha256(content).hexdigest())


class Contents(Paper):
    """What a package holds and of which study it is; its sorts say by whom."""

    signer: ClassVar[str]
    """Who signs it, in errors."""
    remedy: ClassVar[str]

    study: Digest
    """The study's hash."""
    federation: Name
    run: Annotated[str, Field(min_length=1, max_length=200)]
    program: Annotated[str, Field(max_length=32)]
    """Version of fedward where it was made."""
    finished: Moment
    files: dict[str, Part]

    def check(self, contents: Mapping[str, bytes | memoryview]) -> None:
        """Raises :class:`PackageError` unless ``contents`` are this manifest's files, byte for byte."""
        if set(self.files) != set(PARTS) or set(contents) != set(PARTS):
            raise PackageError(f"a package holds {', '.join(PARTS)}, this one other files; {self.remedy}")
        for name in PARTS:
            if Part.of(contents[name]) != self.files[name]:
                raise PackageError(
                    f"{name} is not the file that {self.signer} signed; do not use this model; {self.remedy}"
                )


class Manifest(Contents):
    """Of a model of all sites; signed with the coordinator's identity."""

    kind: ClassVar[str] = "model-package"
    signer: ClassVar[str] = "the coordinator"
    remedy: ClassVar[str] = "ask the coordinator for it"

    roster: Digest | None
    """Hash of the roster when the run began."""
    sites: Annotated[tuple[Alias, ...], Field(min_length=1, max_length=1000)]
    """Those that took part: these receive it."""


class OwnManifest(Contents):
    """Of one hospital's own model; signed with that site's identity, and vouched for by nobody else."""

    kind: ClassVar[str] = "own-model"
    signer: ClassVar[str] = "its hospital"
    remedy: ClassVar[str] = "take another copy of it"

    site: Alias
    """Whose it is."""
    made_from: Digest
    """SHA-256 of the weights file of the model of all sites that came with it."""
    method: Literal["fedbn", "ditto", "finetune"]
    chosen: Literal["global", "personal"] | None
    """Which of the two the site's validation images speak for; ``None``: there is no model of all to choose."""


AnyManifest = Manifest | OwnManifest


def open_manifest(data: bytes) -> tuple[AnyManifest, PublicKey]:
    """A manifest of either sort, and whose key signed it. Raises :class:`IdentityError` as ``Paper.open`` does."""
    return OwnManifest.open(data) if kind_of(data) == OwnManifest.kind else Manifest.open(data)
