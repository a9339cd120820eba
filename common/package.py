"""A finished model as sites receive it: five files, and a manifest that the coordinator has signed.

::

    model.safetensors   the weights                     summary.json   test result and thresholds
    model.json          study, kept round, thresholds   study.yaml     the study, in its canonical form
    card.md             the same for people             manifest.json  digests of the others, who took part; signed

Whoever holds the folder and the coordinator's public key can check it, without a network and years later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from common.errors import PackageError
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


class Manifest(Paper):
    """What a package holds, and of which study by whom it is; signed with the coordinator's identity."""

    kind: ClassVar[str] = "model-package"

    federation: Name
    run: Annotated[str, Field(min_length=1, max_length=200)]
    study: Digest
    """The study's hash."""
    roster: Digest | None
    """Hash of the roster when the run began."""
    sites: Annotated[tuple[Alias, ...], Field(min_length=1, max_length=1000)]
    """Those that took part: these receive it."""
    program: Annotated[str, Field(max_length=32)]
    """Version of fedward at the coordinator."""
    finished: Moment
    files: dict[str, Part]

    def check(self, contents: Mapping[str, bytes | memoryview]) -> None:
        """Raises :class:`PackageError` unless ``contents`` are this manifest's files, byte for byte."""
        if set(self.files) != set(PARTS) or set(contents) != set(PARTS):
            raise PackageError(f"a package holds {', '.join(PARTS)}, this one other files; ask the coordinator")
        for name in PARTS:
            if Part.of(contents[name]) != self.files[name]:
                raise PackageError(
                    f"{name} is not the file that the coordinator signed; do not use this model, and call them"
                )
