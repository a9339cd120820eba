"""A run's folder: what stands where in it, who may write there, and how it stays whole or goes away again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import Interrupted, RunError

if TYPE_CHECKING:
    from simulations.datasets import Item, Source


SEARCH = "search.json"
"""In a folder that is no run's but a search's or a cross-validation's (``simulations.search``)."""


@contextlib.contextmanager
def taken_up(manifest: Path, what: str) -> Iterator[dict[str, Any]]:
    """What a ``what`` ("run", "search") was begun with, for the block to make it from again.

    Raises :class:`RunError` where there is none, and where the block cannot be made from it.
    """
    try:
        yield json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        why = f"it has no {manifest.name}" if isinstance(error, FileNotFoundError) else error.strerror
        raise RunError(
            f"{manifest.parent} is not a {what} that can be resumed: {why}; name the {what}'s folder, or start it anew"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{manifest} is damaged ({type(error).__name__}); start the {what} anew") from None


@dataclass(frozen=True)
class Folder:
    """``runs/<id>/``."""

    path: Path

    @property
    def sites(self) -> Path:
        return self.path / "sites"

    @property
    def hospitals(self) -> list[Path]:
        """The virtual hospitals' directories, by name; the pooled one has no images of its own."""
        return sorted(home for home in self.sites.iterdir() if (home / "vault.sqlite").exists())

    @property
    def manifest(self) -> Path:
        return self.path / "run.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What the virtual sites have to say when something goes wrong inside one; absent while nothing does."""
        return self.path / "sites.log"

    @property
    def finished(self) -> bool:
        """Whether results and report are there: they are written last, the results last of all with repeats."""
        return self.results.exists() and self.page.exists()

    @property
    def what_now(self) -> str:
        """The remedy where a result is missing."""
        if self.manifest.exists():
            return f"it is not finished; continue it with `fedward simulate --resume {self.path}`"
        return "it is not a run's folder; name one that `fedward simulate` made"

    def repeat(self, number: int, repeats: int) -> Path:
        return self.path if repeats == 1 else self.path / f"repeat-{number + 1}"

    def checkpoints(self, number: int) -> Path:
        return self.path / "state" / f"repeat-{number + 1}"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else may play this run during the block. Raises :class:`RunError` where somebody does."""
        with self.events.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.path} is being run by another process; wait for it to end, or stop it") from None
            except OSError:
                pass  # a file system without locks
            yield


@contextlib.contextmanager
def fresh(out: Path) -> Iterator[Folder]:
    """``out``, made for the block, which fills it; whatever goes wrong, all that was made is removed again.

    Raises :class:`RunError` where ``out`` is in use or cannot be written, :class:`Interrupted` for Ctrl-C.
    """
    made: list[Path] = []
    claimed = False
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(_in_use(out))
        made = [path for path in (out, *out.parents) if not path.exists()]
        out.mkdir(parents=True, exist_ok=not made)
        claimed = True
        yield Folder(out)
    except BaseException as error:
        if claimed:
            _remove(out, made)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"stopped before anything was finished; {out} is as it was before") from None
        if isinstance(error, OSError):
            raise RunError(
                f"cannot write to {out}: {error.strerror}; free some space there, or choose another --out"
            ) from None
        raise


def _in_use(out: Path) -> str:
    if Folder(out).finished:
        return f"{out} holds a finished run; choose another --out, or remove it"
    if Folder(out).manifest.exists():
        return f"{out} holds an unfinished run; continue it with --resume {out}, or choose another --out"
    kind = "is not empty" if out.is_dir() else "is a file"
    return f"{out} exists and {kind}; choose another --out"


def _remove(out: Path, made: Sequence[Path]) -> None:
    """Empty ``out`` and take away the folders in ``made``; a second Ctrl-C waits until that is done."""
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        with contextlib.suppress(OSError):
            for path in out.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            for path in made:
                path.rmdir()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SAMPLE = 16
_ROW = 512
"""Bytes that an image takes in a vault beside its pixels, at least."""


def require_space(out: Path, source: Source, items: Sequence[Item]) -> None:
    """Raise :class:`RunError` before anything is written where the disk of ``out`` cannot hold vaults of ``items``.

    A low estimate from the decoded size of a few images, evenly spread: a vault keeps source pixels, whatever the
    compression of their files. What it lets pass may still fill the disk; that is told when it happens.
    """
    from simulations.datasets import UnreadableImage

    sizes = []
    for item in items[:: max(1, len(items) // _SAMPLE)]:
        with contextlib.suppress(UnreadableImage):
            pixels, mask = source.read(item)
            sizes.append(pixels.nbytes + (mask.nbytes if mask is not None else 0) + _ROW)
    if not sizes:
        return
    needed = len(items) * sum(sizes) // len(sizes)
    home = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(home).free
    if free < needed:
        raise RunError(
            f"{out} needs about {needed >> 20} MB for the vaults, {free >> 20} MB are free; free some space or choose "
            "another --out"
        )


class _SiteLog(logging.FileHandler):
    """A log that never stands in the way: what cannot be written (a full disk) is dropped."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Nothing: logging would print a traceback."""


@contextlib.contextmanager
def site_log(path: Path | None) -> Iterator[None]:
    """Send what virtual sites log to ``path`` instead of the terminal. The file is made by its first line."""
    if path is None:
        yield
        return
    logger = logging.getLogger("fedward")
    handler = _SiteLog(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        with contextlib.suppress(OSError):
            handler.close()


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


def disk_trouble(error: BaseException) -> str | None:
    """The system's words where ``error``, or what it was raised for, is a disk that takes no more; else ``None``."""
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    cause = error.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.errno in _DISK else None
