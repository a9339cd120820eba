"""What a site's people have said about studies.

A study asks by its first message and waits until people approve its hash. ``client.judgement`` says what their
decisions come to; here they are kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from sqlite3 import Connection
from typing import Literal, get_args

from client.home import Home
from client.judgement import OVER, Decision, Federation, Now, Pause, Record, Verdict, judge, judge_delivery, standing
from client.policy import POLICY_FILE, Policy, PolicyFile, Role
from client.replies import Database
from common.errors import ApprovalError, PolicyError
from common.study import Study

APPROVALS_FILE = Path("federation") / "approvals.sqlite"
"""Below a site's directory."""
ROLES: tuple[str, ...] = get_args(Role)
MOST_UNDECIDED = 32
"""Studies that wait for a decision; a coordinator that asks for more loses its oldest. And the most that are taken
down within a day: each is a line of the audit log, which a coordinator must not be able to fill a disk with."""
SHORTEST_PREFIX = 6
EVENTS = {
    "approve": "study-approved",
    "refuse": "study-refused",
    "withdraw": "study-withdrawn",
    "finish": "study-finished",
}
"""What the audit log calls each kind of decision."""

_TABLES = (
    "CREATE TABLE study (id INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL UNIQUE, text TEXT NOT NULL, "
    "asked TEXT NOT NULL, federation TEXT NOT NULL)",
    "CREATE TABLE decision (id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL REFERENCES study (hash), "
    "kind TEXT NOT NULL, at TEXT NOT NULL, role TEXT NOT NULL, person TEXT NOT NULL, why TEXT NOT NULL, "
    "rule INTEGER NOT NULL, federation TEXT NOT NULL)",
    "CREATE TABLE pause (one INTEGER PRIMARY KEY CHECK (one = 1), at TEXT NOT NULL, person TEXT NOT NULL, "
    "why TEXT NOT NULL)",
)


@dataclass
class _Cache:
    state: tuple[int, ...] = ()
    pause: Pause | None = None
    records: dict[str, Record | None] = field(default_factory=dict)


class Approvals:
    """The decisions of one site, on its disk; for the agent, which reads at every request, and the command line."""

    def __init__(self, home: Home) -> None:
        """Nothing is opened yet. Later failures are :class:`~client.replies.StoreError`."""
        self._home = home
        self._database = Database(home.directory / APPROVALS_FILE, _TABLES)
        self._policy = PolicyFile(home.directory / POLICY_FILE)
        self._cache = _Cache()

    def seen(self, study: Study, federation: Federation) -> Verdict:
        """A request of ``study`` came: the verdict, now. To be asked at every request; writes only what is new."""
        cache = self._fresh()
        if study.hash not in cache.records:
            with self._database.transaction("DEFERRED") as connection:
                cache.records[study.hash] = _record(connection, study.hash)
        record = cache.records[study.hash]
        if record is None or record.federation != federation:
            if record is None and self._asked_lately() >= MOST_UNDECIDED:
                return Verdict("too-many", f"{MOST_UNDECIDED} studies were asked for within a day; try again tomorrow")
            record = self._remember(study, federation)
        now = self._now(federation, cache.pause)
        verdict = judge(study, record, now)
        if verdict.state == "pending" and not record.decisions and isinstance(now.policy, Policy):
            rule = now.policy.automatic(study, federation.coordinator)
            if rule is not None:
                decision = Decision("approve", now.at, "rule", f"rule {rule} of {POLICY_FILE}", federation, rule=rule)
                verdict = judge(study, self._decide(study.hash, decision), now)
        return verdict

    def delivery(self, study: Study, federation: Federation) -> str | None:
        """The code to refuse the study's finished model with, now; ``None`` for one that may come."""
        pause = self._fresh().pause
        with self._database.transaction("DEFERRED") as connection:
            record = _record(connection, study.hash)
        return judge_delivery(study, record, self._now(federation, pause))

    def finish(self, study: str, federation: Federation) -> None:
        """The study's model is here: its approvals end. Called again, nothing."""
        with self._database.transaction("DEFERRED") as connection:
            record = _record(connection, study)
        if record is not None and not (record.decisions and record.decisions[-1].kind == "finish"):
            self._decide(study, Decision("finish", self._home.clock(), "", "its coordinator", federation))

    def over(self, study: str) -> bool:
        """Whether a study has ended here, so that its kept replies are of no more use."""
        with self._database.transaction("DEFERRED") as connection:
            record = _record(connection, study)
        return record is not None and self.verdict(record).state in OVER

    def records(self) -> list[Record]:
        """All studies that were asked for, the latest first."""
        with self._database.transaction("DEFERRED") as connection:
            names = connection.execute("SELECT hash FROM study ORDER BY id DESC").fetchall()
            return [found for (name,) in names if (found := _record(connection, name)) is not None]

    def find(self, prefix: str) -> Record:
        """The one study whose hash starts so. Raises :class:`ApprovalError`."""
        prefix = prefix.strip().lower()
        if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_PREFIX},64}}", prefix):
            raise ApprovalError(
                f"a study is named by {SHORTEST_PREFIX} or more digits of its hash, as `site studies` lists"
            )
        with self._database.transaction("DEFERRED") as connection:
            found = connection.execute(
                "SELECT hash FROM study WHERE substr(hash, 1, ?) = ?", (len(prefix), prefix)
            ).fetchall()
            record = _record(connection, found[0][0]) if len(found) == 1 else None
        if record is None:
            problem = (
                f"{len(found)} studies' hashes start so; give more digits" if found else "`site studies` lists those"
            )
            raise ApprovalError(f"no one study {prefix}: {problem}")
        return record

    def verdict(self, record: Record) -> Verdict:
        """On the study and roster of ``record``, now."""
        return judge(record.study, record, self._now(record.federation, self._fresh().pause))

    def policy(self) -> Policy | PolicyError:
        """The site's policy now, or why there is none."""
        return self._policy.now()

    def approve(self, record: Record, *, role: str, by: str) -> Verdict:
        """Approve ``record``, with the roster that stands in it: what was shown, though another may have come since.

        Raises :class:`ApprovalError` where that would not count: a study that the policy objects to or that expired, a
        role that the policy does not ask for, one person in two roles.
        """
        policy, at, study = self.policy(), self._home.clock(), record.study
        if isinstance(policy, PolicyError):
            raise policy
        if role not in policy.approvals_needed:
            needed = " and ".join(policy.approvals_needed)
            raise ApprovalError(
                f"{POLICY_FILE} asks for approvals as {needed}; one as {role[:40]} would count for nothing"
            )
        decision = Decision("approve", at, role, _person(by), record.federation)
        alone = judge(
            study, Record(record.hash, record.text, at, record.federation), Now(record.federation, policy, at)
        )
        if alone.state in ("objected", "expired"):
            raise ApprovalError(f"{alone.why}; ask the coordinator for another study, or change {POLICY_FILE}")
        given = reversed(standing(self.find(record.hash).decisions)[1])
        other = next((one for one in given if one.by.casefold() == decision.by.casefold()), None)
        if other is not None and other.role != role:
            raise ApprovalError(f"{by} has approved it as {other.role}; somebody else must as {role}")
        return self._verdict_after(record, decision)

    def refuse(self, record: Record, *, by: str, why: str) -> Verdict:
        """Refuse the study. Raises :class:`ApprovalError` without a reason."""
        if not why.strip():
            raise ApprovalError("say why: the coordinator's people will ask")
        return self._verdict_after(record, self._no("refuse", record, by, why))

    def withdraw(self, record: Record, *, by: str, why: str = "") -> Verdict:
        """Take every approval back, in mid-run too; approvals given later count anew."""
        return self._verdict_after(record, self._no("withdraw", record, by, why))

    def pause(self, *, by: str, why: str = "") -> None:
        """Stop answering requests, whatever the study."""
        at = self._home.clock()
        with self._database.transaction() as connection:
            values = (at.isoformat(), _person(by), _reason(why))
            connection.execute("INSERT OR REPLACE INTO pause VALUES (1, ?, ?, ?)", values)
            self._home.audit.append("site-paused", {"by": by, "why": why}, at)

    def resume(self, *, by: str) -> bool:
        """Answer again; whether the site was paused."""
        at = self._home.clock()
        with self._database.transaction() as connection:
            paused = connection.execute("DELETE FROM pause").rowcount > 0
            if paused:
                self._home.audit.append("site-resumed", {"by": _person(by)}, at)
        return paused

    @property
    def paused(self) -> Pause | None:
        return self._fresh().pause

    def close(self) -> None:
        """May be called twice."""
        self._database.close()

    def _no(self, kind: Literal["refuse", "withdraw"], record: Record, by: str, why: str) -> Decision:
        return Decision(kind, self._home.clock(), "", _person(by), record.federation, _reason(why))

    def _verdict_after(self, record: Record, decision: Decision) -> Verdict:
        after = self._decide(record.hash, decision)
        return judge(after.study, after, self._now(after.federation, self._fresh().pause))

    def _now(self, federation: Federation, pause: Pause | None) -> Now:
        return Now(federation, self._policy.now(), self._home.clock(), pause)

    def _fresh(self) -> _Cache:
        """What is known, emptied when anybody has changed the file."""
        state = self._database.state()
        if state != self._cache.state:
            with self._database.transaction("DEFERRED") as connection:
                found = connection.execute("SELECT at, person, why FROM pause").fetchone()
            pause = None if found is None else Pause(datetime.fromisoformat(found[0]), found[1], found[2])
            self._cache = _Cache(state, pause)
        return self._cache

    def _asked_lately(self) -> int:
        """How many studies were first asked for within a day."""
        since = self._home.clock() - timedelta(days=1)
        with self._database.transaction("DEFERRED") as connection:
            times = connection.execute("SELECT asked FROM study").fetchall()
        return sum(datetime.fromisoformat(asked) > since for (asked,) in times)

    def _remember(self, study: Study, federation: Federation) -> Record:
        at = self._home.clock()
        with self._database.transaction() as connection:
            known = _record(connection, study.hash)
            if known is not None and known.federation == federation:
                return known
            connection.execute(
                "INSERT INTO study (hash, text, asked, federation) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (hash) DO UPDATE SET federation = excluded.federation",
                (study.hash, study.canonical().decode(), at.isoformat(), _text(federation)),
            )
            connection.execute(
                "DELETE FROM study WHERE hash NOT IN (SELECT study FROM decision) AND id NOT IN "
                "(SELECT id FROM study WHERE hash NOT IN (SELECT study FROM decision) ORDER BY id DESC LIMIT ?)",
                (MOST_UNDECIDED,),
            )
            facts = {"study": study.hash, "name": study.name, **federation.facts()}
            self._home.audit.append("study-asked" if known is None else "study-asked-with-new-roster", facts, at)
            record = _record(connection, study.hash)
        assert record is not None
        return record

    def _decide(self, study: str, decision: Decision) -> Record:
        """Write a decision down. The audit log first: a kill between the two leaves no approval without its entry."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO decision (study, kind, at, role, person, why, rule, federation) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(study, decision.kind, decision.at.isoformat(), decision.role, decision.by, decision.why),
                    *(decision.rule, _text(decision.federation)),
                ),
            )
            record = _record(connection, study)
            if record is None:
                raise ApprovalError(f"study {study[:12]} has gone; it must be asked for again")
            self._home.audit.append(EVENTS[decision.kind], decision.facts(study), decision.at)
        return record


def _record(connection: Connection, study: str) -> Record | None:
    found = connection.execute("SELECT text, asked, federation FROM study WHERE hash = ?", (study,)).fetchone()
    if found is None:
        return None
    query = "SELECT kind, at, role, person, federation, why, rule FROM decision WHERE study = ? ORDER BY id"
    decisions = tuple(
        Decision(kind, datetime.fromisoformat(at), role, by, _federation(seen), why, rule)
        for kind, at, role, by, seen, why, rule in connection.execute(query, (study,))
    )
    return Record(study, found[0], datetime.fromisoformat(found[1]), _federation(found[2]), decisions)


def _text(federation: Federation) -> str:
    return json.dumps({**vars(federation), "sites": dict(sorted(federation.sites.items()))}, ensure_ascii=False)


def _federation(text: str) -> Federation:
    return Federation(**json.loads(text))


def _person(name: str) -> str:
    name = " ".join(name.split())
    if not 2 <= len(name) <= 100 or not name.isprintable():
        raise ApprovalError("name who decides, in 2 to 100 characters: --by 'A. Name'")
    return name


def _reason(text: str) -> str:
    text = " ".join(text.split())
    if len(text) > 500 or not text.isprintable():
        raise ApprovalError("give the reason in at most 500 printable characters")
    return text
