"""Whether a model is whole, and who vouches for it: asked before anything is scored with it.

A package is believed because somebody compared its signer's fingerprint by phone: at a hospital the agent has, when the
model came, and the audit log has it; elsewhere whoever types the fingerprint. A signature without that shows that a
package was not altered since, by whomever. A run's folder has no signature at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.config import SITE_FILE, SiteConfig
from client.delivery import MODELS, Received, opened, verify
from client.home import Home
from common.errors import FedwardError, IdentityError, PackageError, RunError
from common.identity import same_fingerprint
from common.package import MANIFEST, OwnManifest

UNVERIFIED = "The model is not verified."


@dataclass(frozen=True)
class Trust:
    """What is known of a model's origin."""

    verified: bool
    whose: str
    """In words."""
    signer: str | None = None
    """Fingerprint of the key that signed it."""

    @property
    def notice(self) -> str:
        """What every line of a worklist must say of it; empty where there is nothing to warn of."""
        return "" if self.verified else UNVERIFIED


def check(folder: Path, *, site: Path | None, signed_by: str | None, unverified: bool) -> Trust:
    """Who vouches for the model in ``folder``.

    ``site`` is a hospital whose audit log may know it; in a site's ``models/`` it is that site. ``signed_by`` is the
    fingerprint of its signer, as somebody read it out. ``unverified`` goes without either, never without a whole model.
    Raises :class:`PackageError` for one that was altered, that its site does not know, or for which nobody vouches;
    :class:`IdentityError` for another signer; :class:`RunError` for a run's folder without ``unverified``.
    """
    home = _around(folder)
    if not (folder / MANIFEST).exists():
        return _unsigned(folder, home, signed_by, unverified)
    model = opened(folder)
    model.check()
    if signed_by is not None:
        if not same_fingerprint(signed_by, model.signer.fingerprint):
            raise IdentityError(
                f"{folder} is signed with the key {model.signer.fingerprint}, and that is not the fingerprint that you "
                "typed; compare again, letter by letter: if it still differs, do not use the model"
            )
        return _vouched(model, "whose fingerprint you typed")
    if home is not None:
        verify(home, model)
        return _vouched(model, f"as the audit log of {home.config.alias} knows")
    if site is not None and (known := _real(site)) is not None:
        try:
            verify(known, model)
        except FedwardError:
            if not unverified:
                raise
        else:
            return _vouched(model, f"as the audit log of {known.config.alias} knows")
    if not unverified:
        raise PackageError(
            f"{folder} is whole, as the key {model.signer.fingerprint} signed it, and nobody here has compared that "
            f"fingerprint with {_signer(model)} by phone: give --signed-by with what they read out, or --unverified"
        )
    return Trust(False, f"{_whose(model)}, as nobody has confirmed", model.signer.fingerprint)


def _unsigned(folder: Path, home: Home | None, signed_by: str | None, unverified: bool) -> Trust:
    if home is not None:
        raise PackageError(
            f"{folder} has no signature, and every model in a site's {MODELS}/ has one; do not use it: remove the "
            "folder, and ask the coordinator for the model"
        )
    if signed_by is not None:
        raise PackageError(f"{folder} has no signature, so no fingerprint vouches for it; ask for the signed package")
    if not unverified:
        raise RunError(
            f"{folder} is signed by nobody: nothing shows whose model it is, nor that it is whole; "
            "add --unverified if you know both, as of a run of your own"
        )
    return Trust(False, "signed by nobody")


def _vouched(model: Received, why: str) -> Trust:
    return Trust(True, f"{_whose(model)}, {why}", model.signer.fingerprint)


def _whose(model: Received) -> str:
    manifest = model.manifest
    if isinstance(manifest, OwnManifest):
        chosen = "" if manifest.chosen != "global" else ", NOT chosen by its validation"
        return f"{manifest.site}'s own model ({manifest.method}{chosen}), signed by {manifest.site} alone"
    return f"of {len(manifest.sites)} hospitals of {manifest.federation}, signed by its coordinator"


def _signer(model: Received) -> str:
    manifest = model.manifest
    return manifest.site if isinstance(manifest, OwnManifest) else f"the coordinator of {manifest.federation}"


def _around(folder: Path) -> Home | None:
    """The real site in whose ``models/`` the folder lies."""
    models = folder.absolute().parent
    return _real(models.parent) if models.name == MODELS else None


def _real(directory: Path) -> Home | None:
    """A site with an audit log; a simulated one has none."""
    if not (directory / SITE_FILE).is_file() or SiteConfig.load(directory).state is None:
        return None
    return Home.open(directory)
