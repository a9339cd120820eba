"""What a study leaves a site with from round to round, kept by round: encrypted, and committed before a reply is.

Round r begins with what the last round before it left, never with its own: killed in between, or asked again after its
reply was dropped, a round begins as it did the first time and gives the same. Everything is under a key that only the
site's vault gives, and is bound to its run and round.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray

from client.sqlite_file import KEY_TABLE, Database, FileKey
from client.vault.store import Vault
from common.errors import RoundSpent, StoreError
from common.weights import Weights, parse

logger = logging.getLogger("fedward.client")

_NONCE_BYTES = 12
_RUN = "study = ? AND arm = ? AND repeat = ?"

Run = tuple[str, str, int]
"""Study's hash, arm, repeat."""
Arrays = dict[str, NDArray[Any]]


class Kept:
    """One file of arrays by run and round; each call is one transaction. A kind of it names its table and itself."""

    table: str
    what: str
    """In messages, as "what rounding left out"."""

    def __init__(self, path: Path, vault: Vault) -> None:
        """Opens or makes the file. Under a vault with a new data key it starts anew. Raises :class:`StoreError`."""
        self._database = Database(path, self._tables(), page_bytes=1 << 16)
        self._name = f"fedward {self.table}s 1\0".encode()
        with self._database.transaction() as connection:
            self._key = FileKey.of(connection, vault, self._name, lambda: self._give_up(connection))

    @classmethod
    def _tables(cls) -> tuple[str, str]:
        return (
            KEY_TABLE,
            f"CREATE TABLE {cls.table} (study TEXT NOT NULL, arm TEXT NOT NULL, repeat INTEGER NOT NULL, "
            "round INTEGER NOT NULL, data BLOB, PRIMARY KEY (study, arm, repeat, round))",
        )

    @classmethod
    def forget(cls, path: Path, study: str) -> None:
        """Erase what was kept of a study that has ended. Raises :class:`StoreError`."""
        if not path.exists():
            return
        with closing(Database(path, cls._tables())) as database:
            with database.transaction() as connection:
                gone = connection.execute(f"DELETE FROM {cls.table} WHERE study = ?", (study,)).rowcount  # noqa: S608
            if gone:
                database.shrink()

    def before(self, run: Run, round_: int) -> Arrays:
        """What the last round before ``round_`` left; empty where there is none.

        Raises :class:`RoundSpent` where that is not kept any more, :class:`StoreError` where it is not as written.
        """
        return self._one(run, round_, "round < ?")

    def at(self, run: Run, round_: int) -> Arrays:
        """What ``round_`` itself left; empty where it left nothing. Raises as :meth:`before`."""
        return self._one(run, round_, "round = ?")

    def _one(self, run: Run, round_: int, which: str) -> Arrays:
        with self._database.transaction("DEFERRED") as connection:
            found = connection.execute(
                f"SELECT round, data FROM {self.table} WHERE {_RUN} AND {which} ORDER BY round DESC LIMIT 1",  # noqa: S608
                (*run, round_),
            ).fetchone()
        if found is None:
            return {}
        last, sealed = found
        if sealed is None:
            raise RoundSpent(
                f"round {round_} of study {run[0][:12]} is long past, and {self.what} before it is gone; "
                "the coordinator must go on from its last checkpoint"
            )
        try:
            plain = self._key.cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self._bound(run, last))
        except (InvalidTag, ValueError, TypeError):
            raise StoreError(
                f"{self._database.path.name} is not as it was written; move it away, and {self.what} starts anew"
            ) from None
        return parse(plain, self._database.path.name)

    def keep(self, run: Run, round_: int, left: Weights, *, oldest: int | None = None) -> None:
        """Commit what ``round_`` left. Later rounds are of a run that was since gone back on, and go.

        Kept in full are rounds from ``oldest`` on; by default this one and the last before it.
        """
        from safetensors.numpy import save

        arrays = {name: np.asarray(array, order="C") for name, array in left.items()}  # a counter may be a scalar
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._key.cipher.encrypt(nonce, save(arrays), self._bound(run, round_))
        with self._database.transaction() as connection:
            connection.execute(f"DELETE FROM {self.table} WHERE {_RUN} AND round > ?", (*run, round_))  # noqa: S608
            connection.execute(f"INSERT OR REPLACE INTO {self.table} VALUES (?, ?, ?, ?, ?)", (*run, round_, sealed))  # noqa: S608
            if oldest is None:
                last = f"SELECT max(round) FROM {self.table} WHERE {_RUN} AND round < ?"  # noqa: S608
                oldest = connection.execute(last, (*run, round_)).fetchone()[0] or 0
            connection.execute(
                f"UPDATE {self.table} SET data = NULL WHERE {_RUN} AND round < ?",  # noqa: S608
                (*run, oldest),
            )

    def close(self) -> None:
        """May be called twice."""
        self._database.close()

    def _give_up(self, connection: Connection) -> None:
        if connection.execute(f"DELETE FROM {self.table}").rowcount:  # noqa: S608
            logger.info("the vault has a new key: %s earlier is given up", self.what)

    def _bound(self, run: Run, round_: int) -> bytes:
        """Associated data: what another run or round left cannot take this one's place."""
        return self._name + json.dumps([*run, round_]).encode()
