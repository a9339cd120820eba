"""``coordinator.yaml``: how a coordinator is called, where sites reach it and where it listens."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from common import strict_yaml
from common.errors import IdentityError
from common.files import write_atomically
from common.identity import Address, read_file
from common.identity.addresses import parse_host
from common.identity.roster import Name
from common.webhook import WebhookConfig

CONFIG = "coordinator.yaml"
_MOST_BYTES = 1 << 16


class CoordinatorConfig(BaseModel):
    """``coordinator.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    """Of the federation; in every certificate, so it stays."""
    address: str
    """``host:port`` as sites reach it."""
    listen: str = "0.0.0.0:8443"
    also: tuple[str, ...] = ()
    """Further names and IP addresses under which sites reach it."""
    site_certificates: bool = False
    """Give each site a certificate too, for mutual TLS."""
    webhook: WebhookConfig | None = None
    """Where alerts go beside the log."""

    @field_validator("address", "listen")
    @classmethod
    def _whole(cls, value: str) -> str:
        return str(Address.parse(value))

    @field_validator("address")
    @classmethod
    def _reachable(cls, value: str) -> str:
        if Address.parse(value).host in ("0.0.0.0", "::"):  # noqa: S104 -- compared, not bound
            raise ValueError("the address is where sites reach the coordinator, not where it listens")
        return value

    @field_validator("also")
    @classmethod
    def _hosts(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(parse_host, values))

    @property
    def hosts(self) -> list[str]:
        """Names and IP addresses that the server's certificate must be for."""
        return [Address.parse(self.address).host, *self.also]

    def save(self, directory: Path) -> None:
        """Write ``directory/coordinator.yaml`` atomically."""
        kept = self.model_dump(mode="json", exclude_defaults=True)
        write_atomically(directory / CONFIG, yaml.safe_dump(kept, sort_keys=False).encode(), mode=0o600)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raises :class:`IdentityError` naming the line to mend."""
        path = directory / CONFIG
        if not path.exists():
            raise IdentityError(
                f"{directory} is no coordinator's directory: it has no {CONFIG}; "
                "name it with --dir, or make one with `fedward coordinator init`"
            )
        try:
            text = read_file(path, "configuration", most=_MOST_BYTES).decode("utf-8")
            return cls.model_validate(strict_yaml.load(text))
        except UnicodeDecodeError:
            raise IdentityError(f"{path} is not text; restore it from a backup") from None
        except strict_yaml.StrictYamlError as error:
            raise IdentityError(f"{path}{error}") from None
        except ValidationError as error:
            raise not_usable(str(path), error) from None


def not_usable(what: str, error: ValidationError) -> IdentityError:
    """The first of what pydantic found wrong with ``what``, in one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, found["loc"])) or "the whole"
    return IdentityError(f"{what} is not usable: {key}: {found['msg']}; mend that")
