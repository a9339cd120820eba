"""Comparing fingerprints: the one step that no signature can replace."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import IdentityError
from common.identity.keys import PublicKey, same_fingerprint

Ask = Callable[[str], bool]
"""Puts a yes-or-no question to somebody who sits there."""


def compare(who: str, key: PublicKey, typed: str | None, *, yes: bool = False, ask: Ask | None = None) -> None:
    """Let an operator vouch that ``key`` is that of ``who``; returns only if so.

    ``typed`` is the fingerprint as heard by phone. Without it somebody must be there: ``ask`` puts the question, unless
    ``yes`` answers it beforehand. A script cannot say ``yes`` for people: there ``ask`` is ``None``.
    Raises :class:`IdentityError`.
    """
    if typed is not None:
        if not same_fingerprint(typed, key.fingerprint):
            raise IdentityError(
                f"that is not the fingerprint of the key in this file for {who}; compare again, letter by letter: "
                "if it still differs, the file was exchanged on its way"
            )
        return
    if ask is None:
        raise IdentityError(
            f"nobody compared the fingerprint of {who}; call them, and give --fingerprint with what they read out"
        )
    if not yes and not ask(f"Does {who}, called by phone, read out the same fingerprint? [y/N] "):
        raise IdentityError(f"the fingerprint of {who} was not confirmed; nothing was changed")
