"""A site's encrypted dataset: one SQLite file, every image sealed with AES-256-GCM.

Read in this order to judge it:

========================  =====================================================================
``client.vault.keys``      who holds the key that wraps a vault's data key
``client.vault.sealing``   every use of the data key: derived keys, nonces, associated data
``client.vault.manifest``  what the file says of itself, and how a changed set of rows shows
``client.vault.records``   what an image is: pixels, labels, patient; and its encoding
``client.vault.database``  SQLite: schema, locking, durability, errors
``client.vault.store``     ``Vault``: create, open, add, read, verify
========================  =====================================================================

What somebody who has the file but not the key learns: that it is a fedward vault, its
random id, the scheme of its key provider (``file``), how many images it holds and in
which order they came, which of them have a mask, and how many bytes each takes (hence
roughly its height times width). Nothing else is stored in the clear: not labels,
patients, splits, attributes, digests, pixel types, the name of the source or the generation.

What somebody who can also write to the file can do: destroy it, or put back a complete
older copy of it (see ``Vault.generation``). Any other change is refused on open or, at the
latest, by the read that meets it; no read ever returns a value that was not put in.

Out of scope: who can read this process's memory has the key and the images. Python
cannot wipe either; ``Vault.close`` drops the references it holds.
"""
