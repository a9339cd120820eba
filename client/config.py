"""``site.yaml``: what a hospital's installation is made of. Nothing here is chosen by a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from client.ingest.kinds import Rules
from common.errors import VaultError
from common.files import write_atomically
from common.webhook import WebhookConfig

SITE_FILE = "site.yaml"


class SiteConfig(BaseModel):
    """``site.yaml``. Paths are relative to its directory.

    A *pooled* site has no vault of its own but lists members: the simulation's comparison arm that sees everybody's
    images, impossible in a real federation. ``state`` and ``audit`` are what a hospital's site has and a simulated
    one has not: its memory of the vault, and its log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    vault: str = "vault.sqlite"
    key: str = "file:vault.key"
    previous_key: str | None = None
    """Only while ``rotate-key`` is at work: the vault opens under either."""
    members: tuple[str, ...] = ()
    device: str = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    state: str | None = None
    audit: str | None = None
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test for patients to whom no label sheet gives a split."""
    compression: Literal["none", "jpeg-ls"] = "none"
    rules: Rules = Field(default=Rules(), alias="import")
    webhook: WebhookConfig | None = None
    """Where this site's alerts go beside its log."""
    unreachable_hours: Annotated[float, Field(gt=0.0)] = 12.0
    """A coordinator that has not answered for so long is an alert."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if abs(sum(self.split) - 1.0) > 1e-6 or min(self.split) < 0.0:
            raise ValueError(f"split must be three shares (train, val, test) that sum to 1, got {list(self.split)}")
        return self

    def save(self, directory: Path) -> None:
        """Write ``directory/site.yaml`` atomically; what is as by default is left out."""
        kept = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        write_atomically(directory / SITE_FILE, yaml.safe_dump(kept, sort_keys=False).encode(), mode=0o600)

    @classmethod
    def load(cls, directory: Path) -> SiteConfig:
        """Raises :class:`VaultError` naming the line to mend."""
        path = directory / SITE_FILE
        try:
            return cls.model_validate(_yaml(path))
        except FileNotFoundError:
            raise VaultError(
                f"{directory.name or directory} is not a site: it has no {SITE_FILE}; make one with `fedward site init`"
            ) from None
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            key = ".".join(map(str, found["loc"])) or "the file"
            raise VaultError(
                f"{directory.name}/{SITE_FILE} is not usable: {key}: {found['msg']}; mend that line"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            first = str(error).splitlines()[0].strip()
            raise VaultError(f"{directory.name}/{SITE_FILE} cannot be read: {first}; mend it") from None


def _yaml(path: Path) -> object:
    """Through libyaml where PyYAML has it: 10 times quicker, which a simulation of hundreds of sites notices."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506 (both are safe)
