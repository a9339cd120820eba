"""Who is who in a federation: keys, fingerprints, signed papers, the roster, certificates.

A party, site or coordinator, is its ECDSA P-384 key (:class:`SiteKey`, :class:`PublicKey`): the same with which a
site's node proves itself to Flower. A *paper* is a small signed JSON document (:class:`Request`, :class:`Kit`,
:class:`Roster`): it may travel by mail, since whoever alters it breaks its signature, and whoever writes another one in
its place has another key, whose fingerprint does not stand a comparison by phone.
"""

from __future__ import annotations

from common.identity.addresses import Address
from common.identity.certificates import Authority, check_authority, check_site_certificate, covers, days_left
from common.identity.documents import Opened, open_document, sign_document
from common.identity.keys import PublicKey, SiteKey, fingerprint, same_fingerprint
from common.identity.papers import Handover, Kit, Request
from common.identity.phone import compare
from common.identity.roster import Entry, Roster, lookalike
from common.identity.storage import locked, make_private_folder, read_file

__all__ = [
    "Address",
    "Authority",
    "Entry",
    "Handover",
    "Kit",
    "Opened",
    "PublicKey",
    "Request",
    "Roster",
    "SiteKey",
    "check_authority",
    "check_site_certificate",
    "compare",
    "covers",
    "days_left",
    "fingerprint",
    "locked",
    "lookalike",
    "make_private_folder",
    "open_document",
    "read_file",
    "same_fingerprint",
    "sign_document",
]
