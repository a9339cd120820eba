"""What ``fedward site`` does and prints; ``commands`` declares how it is called."""

from __future__ import annotations

import csv
import getpass
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import memory
from client.home import READINESS, REJECTED, Home
from client.ingest.import_reasons import HARMLESS, STILL_HERE
from client.ingest.importer import Importer, Sheets
from client.ingest.kinds import Reason, Rules
from client.ingest.labels import LabelSheet
from client.ingest.sources import Found, discover
from client.ingest.summary import Summary
from common.errors import DataError, FedwardError, ImportRefused, Interrupted, KeyUnavailable, VaultError
from common.files import write_atomically

_PROGRESS_S = 1.0
_SHOWN = ("modality", "body_part", "view", "sex", "age", "device", "sequence")
"""Attributes that ``site info`` shows to people; ``--json`` has all."""


@dataclass(frozen=True)
class Given:
    """What the operator says of the images."""

    labels: Path | None = None
    label_columns: list[str] | None = None
    readers: str | None = None
    consensus: str | None = None
    disagreement: str = "refuse"
    worksheet: str = ""
    opt_out: Path | None = None
    boxes: Path | None = None
    masks: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Those, and the folder, that may lie among the images."""
        return [path for path in (self.labels, self.opt_out, self.boxes, self.masks) if path is not None]


@dataclass(frozen=True)
class Login:
    """How to log in to a PACS."""

    user: str | None
    password_file: Path | None
    token_file: Path | None
    ca: Path | None


@dataclass(frozen=True)
class Wanted:
    """Which studies to fetch, as typed."""

    modality: str | None
    since: str | None
    until: str | None


def ask_passphrase() -> str:
    """Ask at the terminal. Raises :class:`KeyUnavailable` where nobody can answer."""
    return _ask("passphrase of the vault: ")


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise KeyUnavailable("nobody is at the terminal to type the passphrase; use another key provider for services")
    return getpass.getpass(prompt)


def ask_new_passphrase() -> str:
    """Ask twice for a new one."""
    typed = _ask("new passphrase: ")
    if _ask("once more: ") != typed:
        raise KeyUnavailable("the two passphrases differ; try again")
    return typed


def user() -> str:
    """Who is logged in here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"user {os.getuid()}"


def opened(site: Path) -> Home:
    """The site, with this process's memory kept out of core dumps from now on."""
    memory.protect()
    return Home.open(site, passphrase=ask_passphrase)


def init(directory: Path, *, name: str | None, key: str, compression: str, synthetic: bool) -> None:
    memory.protect()
    home = Home.init(
        directory,
        alias=name or directory.resolve().name,
        key=key,
        synthetic=synthetic,
        compression=compression,
        passphrase=ask_new_passphrase if key.startswith("passphrase:") else ask_passphrase,
    )
    print(f"site {home.config.alias} in {directory}: an empty vault, its key in {home.config.key}")
    if home.config.key.startswith("file:"):
        print("keep a copy of the key file elsewhere: without it the vault cannot be opened by anybody")
    print(f"next: fedward site import SCANS --labels SHEET --site {directory}")


def import_(site: Path, sources: Sequence[Path], given: Given, *, workers: int, as_json: bool) -> None:
    home = opened(site)
    rules, ignored = home.config.rules, given.files
    if given.masks and any(source.resolve().is_relative_to(given.masks.resolve()) for source in sources):
        raise DataError(f"{given.masks} holds the images, not only masks; put the masks into a folder of their own")
    sheets = open_sheets(given, rules)
    progress = Progress(sheets.masks.look_at(discover(sources, rules, ignored=ignored)), quiet=as_json)
    with importing(home, sheets, progress, workers=workers, as_json=as_json) as importer:
        importer.run(sheets.masks.images(discover(sources, rules, ignored=ignored)))


@contextmanager
def importing(home: Home, sheets: Sheets, progress: Progress, *, workers: int, as_json: bool) -> Iterator[Importer]:
    """An importer into the site's vault; at its end the reports are written and the outcome is told.

    Raises :class:`ImportRefused` where something should have come in and did not.
    """
    from client.ingest.readiness import write_readiness

    stopped: FedwardError | None = None
    outcome = "failed"
    with home.exclusive(), home.vault() as vault:
        importer = Importer(
            vault,
            sheets,
            rules=home.config.rules,
            split=home.config.split,
            codec="raw" if home.config.compression == "none" else home.config.compression,
            workers=workers,
            committed=home.witness.note,
            told=progress.tell,
        )
        summary = importer.summary
        usable = True
        try:
            with importer:
                yield importer
            outcome = "done"
        except KeyboardInterrupt:
            stopped = Interrupted("the import was stopped; what is in the vault stays, the same command goes on")
            outcome = "stopped"
        except DataError as error:  # a PACS that went away
            stopped = error
            outcome = "stopped"
        except VaultError:  # a full disk, a damaged vault: sealing it would hide what is wrong
            usable = False
            raise
        finally:  # whatever has gone wrong, what was committed is on record
            progress.end()
            if usable:
                write_rejected(home, [*summary.rejected, *((f"#{row}", STILL_HERE) for row in summary.withheld_rows)])
                facts = {**summary.facts(), "outcome": outcome, "generation": vault.generation}
                home.record("import", facts)
                home.seal(vault)
        _print_summary(home, summary, sheets, as_json=as_json)
        write_readiness(home.reports / READINESS, vault, summary, sheets.labels)
    if not as_json:
        print(f"report: {home.reports / READINESS}")
    if stopped is not None:
        raise stopped
    problems = []
    if summary.withheld_rows:
        problems.append(
            f"{len(summary.withheld_rows)} images in the vault are withheld by the opt-out list: erase their patients "
            "with `fedward site erase`"
        )
    if summary.refused:
        problems.append(f"{summary.refused} images or files were refused")
    if problems:
        raise ImportRefused(f"{'; '.join(problems)}; {home.reports / REJECTED} lists each with its remedy")


def open_sheets(given: Given, rules: Rules) -> Sheets:
    """Read all that the operator gave. Raises :class:`DataError` before any image is touched."""
    from client.ingest.boxes import BoxSheet
    from client.ingest.consent import OptOut
    from client.ingest.masks import MaskFiles

    labels = None if given.labels is None else open_labels(given)
    return Sheets(
        labels=labels,
        opt_out=None if given.opt_out is None else OptOut.load(given.opt_out),
        boxes=None if given.boxes is None else BoxSheet.load(given.boxes),
        masks=MaskFiles(given.masks, labels.masks() if labels else (), rules),
    )


def open_labels(given: Given) -> LabelSheet:
    """The label sheet."""
    from client.ingest.readers import Readers

    assert given.labels is not None
    readers = None
    if given.readers is not None or given.consensus is not None or given.disagreement != "refuse":
        if given.disagreement not in ("refuse", "exclude"):
            raise DataError(f"--disagreement takes refuse or exclude, not {given.disagreement!r}")
        default = Readers()
        names = tuple(name.strip() for name in (given.readers or "").split(",") if name.strip())
        readers = Readers(
            columns=names or default.columns,
            consensus=given.consensus or default.consensus,
            disagreement="exclude" if given.disagreement == "exclude" else "refuse",
        )
    return LabelSheet.load(given.labels, label_columns=given.label_columns, readers=readers, worksheet=given.worksheet)


def write_rejected(home: Home, rejected: Iterable[tuple[str, Reason]]) -> None:
    """``reports/rejected.csv``: of the last import."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["reference", "stage", "code", "reason", "remedy"])
    for reference, reason in rejected:
        table.writerow([reference, reason.stage, reason.code, reason.reason, reason.remedy])
    home.reports.mkdir(mode=0o700, exist_ok=True)
    write_atomically(home.reports / REJECTED, text.getvalue().encode(), mode=0o600)


class Progress:
    """One line on the terminal, renewed; every ten seconds a line where there is none."""

    def __init__(self, total: int | None, *, quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def tell(self, summary: Summary) -> None:
        now = time.monotonic()
        if self._quiet or now - self._last < (_PROGRESS_S if self._terminal else 10 * _PROGRESS_S):
            return
        self._last = now
        seconds = max(now - self._start, 1e-9)
        of = f" of {self._total}" if self._total is not None else ""
        line = (
            f"{summary.files}{of} files, {summary.images} images, {summary.refused} refused, "
            f"{summary.files / seconds:.0f} files/s, {summary.read_bytes / seconds / 2**20:.0f} MiB/s"
        )
        print(
            f"\r\x1b[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        if self._terminal and not self._quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _print_summary(home: Home, summary: Summary, sheets: Sheets, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**summary.facts(), "seconds": round(summary.seconds, 3)}))
        return
    rate = summary.files / summary.seconds if summary.seconds else 0.0
    print(f"{summary.images} images added from {summary.files} files in {summary.seconds:.1f} s ({rate:.0f} files/s)")
    for count, words in (
        (summary.known, "files were in the vault already"),
        (
            summary.other_labels,
            "of them are labelled otherwise on this sheet; `fedward site label` lays it over the vault",
        ),
        (summary.duplicates, "duplicates left out"),
        (summary.withheld, "images left out: consent withheld, or erased"),
        (summary.unlabelled, "images without labels; `fedward site label` can add them"),
        (summary.anonymous, "images of unknown patients: each file counts as a patient"),
        (summary.masks, "masks"),
        (summary.refused, f"refused: {home.reports / REJECTED}"),
        (len(summary.withheld_rows), "images in the vault are withheld by the opt-out list: erase their patients"),
    ):
        if count:
            print(f"{count:>7} {words}")
    for code, count in sorted(summary.warnings.items()):
        print(f"{count:>7} warnings: {code}")
    # Of a second import nothing is asked again, so the sheet cannot tell which of its rows are idle.
    for note in sheets.labels.notes() if sheets.labels and not summary.known else ():
        print(note)


def label(site: Path, given: Given) -> None:
    from client import upkeep

    sheet = open_labels(given)
    done = upkeep.label(opened(site), sheet)
    print(f"{len(done.changed)} images changed, {done.met} named by the sheet")
    for reason, count in sorted(done.refused.items(), key=lambda pair: pair[0].code):
        print(f"{count:>7} refused ({reason.code}): {reason.reason}; {reason.remedy}")
    problems = []
    if done.erased:
        problems.append(f"{done.erased} images turn out to be of erased patients: `fedward site erase` those once more")
    if done.refused:
        problems.append(f"{done.refused.total()} images named by the sheet keep what they have")
    if problems:
        raise ImportRefused("; ".join(problems))


def info(site: Path, *, as_json: bool) -> None:
    from client import upkeep

    found = upkeep.info(opened(site))
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(
        f"site {found['site']}{' (synthetic images)' if found['synthetic'] else ''}, vault {found['vault'][:8]}…, "
        f"generation {found['generation']}, key {found['key']}:"
    )
    print(
        f"{found['images']} images of {found['patients']} patients, {found['unlabelled']} without labels, "
        f"{found['masks']} masks, {found['boxes']} lesion boxes, {found['erased_patients']} patients erased"
    )
    stored = found["stored"]
    if stored["of"]:
        print(
            f"{stored['bytes'] / 2**20:.1f} MiB of pixels stored, "
            f"{stored['of'] / max(1, stored['bytes']):.2f} times as much raw"
        )
    shown = {name: counts for name, counts in found["attributes"].items() if name in _SHOWN}
    for name, counts in {**found["classes"], **shown, "split": found["splits"]}.items():
        listed = ", ".join(f"{value} {count}" for value, count in list(counts.items())[:8])
        print(f"{name}: {listed}{' …' if len(counts) > 8 else ''}")


def verify(site: Path, *, accept: bool) -> None:
    from client import upkeep

    home = opened(site)
    if accept:
        upkeep.accept(home)
    found = upkeep.verify(home)
    print(
        f"{found.images} images, generation {found.generation}, {found.entries} audit entries: all as they were written"
    )
    if not found.whole_file:
        print(
            "the file as a whole was not compared: a command was killed before it could seal it; import again to do so"
        )


def erase(site: Path, patient: str, *, yes: bool) -> None:
    from client import upkeep

    number = sys.stdin.readline().strip() if patient == "-" else patient
    home = opened(site)
    if not yes:
        if not sys.stdin.isatty():
            raise DataError("erasing cannot be undone; add --yes where nobody is there to ask")
        if input("erase this patient's images for good? [y/N] ").strip().lower() not in ("y", "yes"):
            raise Interrupted("nothing was erased")
    erased, studies = upkeep.erase(home, number)
    print(f"{erased} images erased; the patient stays out of every later import")
    if not erased:
        print(
            "no image of this number is in the vault: was it typed as the hospital's systems write it, with leading "
            "zeros and letters?",
            file=sys.stderr,
        )
    for study in studies:
        print(f"the patient's images were used by study {study['name']} ({study['study'][:12]}…): tell its coordinator")
    if erased:
        print(
            "older backups still hold them; left-over disk blocks become unreadable with "
            "`fedward site rotate-key --reencrypt`"
        )


def rotate_key(site: Path, key: str | None, *, reencrypt: bool) -> None:
    from client import upkeep

    home = opened(site)
    target = key or home.config.key
    asked = ask_new_passphrase if target.startswith("passphrase:") else None
    before = home.config.key
    done = upkeep.rotate_key(home, key, reencrypt=reencrypt, passphrase=asked)
    print(f"the vault is locked by {done.config.key}" + ("; every image was encrypted anew" if reencrypt else ""))
    if before.startswith("file:") and before != done.config.key:
        print(f"{before.removeprefix('file:')} opens older backups only: move it to where they are kept, or destroy it")


def backup(site: Path, target: Path) -> None:
    from client.backup import backup as write

    size = write(opened(site), target)
    print(f"{target}: {size / 2**20:.1f} MiB; the key is not in it, keep that elsewhere")


def restore(source: Path, directory: Path, *, key: str | None) -> None:
    from client.backup import restore as read

    memory.protect()
    home = read(source, directory, key=key, passphrase=ask_passphrase)
    print(f"site {home.config.alias} restored to {directory}")


def doctor(site: Path, *, as_json: bool) -> None:
    from client.doctor import examine
    from common.doctor import tell

    memory.protect()
    tell(examine(site, passphrase=ask_passphrase), "the site", as_json=as_json)


def locate(site: Path, reference: str, sources: Sequence[Path]) -> None:
    from client.ingest.pseudonyms import Pseudonyms

    home = opened(site)
    number = reference.removeprefix("#")
    with home.vault(read_only=True) as vault:
        pseudonyms = Pseudonyms(vault.secret)
        wanted = None
        if number.isdecimal() and len(number) < len(pseudonyms.reference("x")):
            wanted = next((row.keys.get("file", "") for row in vault.each() if row.id == int(number)), "")
    for found in discover(sources, home.config.rules):
        meant = (
            pseudonyms.reference(found.name) == reference
            if wanted is None
            else pseudonyms.names(found.name)["file"] == wanted
        )
        if meant:
            print(found.name)
            return
    raise DataError("no file of these sources is meant; name the sources as they were imported")


def pull(site: Path, pacs: str, wanted: Wanted, login: Login, given: Given, *, workers: int, as_json: bool) -> None:
    from client.ingest.pacs import Pacs, Query

    query = Query.parse(wanted.modality, wanted.since, wanted.until)
    home = opened(site)
    progress = Progress(None, quiet=as_json)
    with (
        Pacs.connect(pacs, read_login(login), home.config.rules) as server,
        importing(home, open_sheets(given, home.config.rules), progress, workers=workers, as_json=as_json) as importer,
    ):
        importer.run(server.find(query, importer.has))


def read_login(login: Login) -> Any:
    """User and password, a token, or nothing; secrets come from files or the terminal, never from the command line."""
    from client.ingest.pacs import Login as PacsLogin

    if login.user and login.token_file:
        raise DataError("give --user or --token-file, not both")
    password = ""
    if login.user:
        password = _secret(login.password_file) if login.password_file else _ask(f"password of {login.user}: ")
    token = _secret(login.token_file) if login.token_file else ""
    return PacsLogin(user=login.user or "", password=password, token=token, ca=login.ca)


def _secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path} cannot be read; name a file that holds one line of text") from None


def receive(
    site: Path, given: Given, *, host: str, port: int, title: str, callers: list[str], for_s: float | None
) -> None:
    from client.ingest.receive import Receiver

    home = opened(site)
    progress = Progress(None, quiet=False)
    with (
        importing(home, open_sheets(given, home.config.rules), progress, workers=1, as_json=False) as importer,
        Receiver(host, port, title=title, callers=callers, rules=home.config.rules) as receiver,
    ):
        print(f"listening on {host}:{receiver.port} as {title}; Ctrl-C ends", file=sys.stderr, flush=True)
        for batch in receiver.batches(for_s):
            known = len(importer.summary.rejected)
            importer.run([Found(one.name, one.read, named=False) for one in batch])
            # An object that was refused and sent again in one batch was refused.
            listed = sorted(importer.summary.rejected[known:], key=lambda pair: pair[1].stage not in HARMLESS)
            refused = dict(listed)
            for one in batch:
                one.done(refused.get(importer.reference(one.name)))
