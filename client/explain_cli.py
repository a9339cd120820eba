"""What ``fedward site explain`` does and prints: pictures of a hospital's own images, where its operator wants them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from client.app import Resident
from client.cli import ask_passphrase
from client.delivery import find, verify
from client.explaining.examples import Example, examples
from client.explaining.faithfulness import measure
from client.explaining.heatmaps import METHODS, HeatMaps, Method
from client.explaining.pictures import picture
from client.home import Home
from common.basis import Basis
from common.csv_text import cell_text
from common.errors import DataError, StoreError, StudyError
from common.metrics.faithfulness import Faithfulness
from common.models import build
from common.package import CARD, WEIGHTS
from common.randomness import seed_for
from common.weights import load, restore

EXPLAINED = "explained"
"""Event of the audit log: pictures of patients were written in the clear, how many and where."""
INDEX = "index.csv"
_WORDS = (
    ("pointed", "hottest point inside the finding"),
    ("chance", "of a random point"),
    ("deletion", "score left, hottest parts taken away first"),
    ("random", "parts taken away in random order"),
    ("fresh", "likeness to a network that learnt nothing"),
)


def explain(
    directory: Path, name: str, *, out: Path, method: str | None, images: int, device: str, as_json: bool
) -> None:
    """Heat maps of at most ``images`` test images for a model that has come, written into the new folder ``out``.

    The model is verified first, as by ``site models --verify``; the audit log has the pictures before they are written.
    Raises :class:`PackageError`, :class:`StudyError`, :class:`ModelError`, :class:`DataError`, :class:`StoreError`.
    """
    if method is not None and method not in METHODS:
        raise StudyError(f"--method: unknown method {method!r}; known: {', '.join(METHODS)}")
    wanted: Method | None = next((known for known in METHODS if known == method), None)
    home = Home.open(directory)
    model = find(home, name)
    verify(home, model)
    study = model.study
    basis = Basis.from_json(json.loads((model.folder / CARD).read_bytes()).get("basis"), study)
    _require_free(out)
    resident = Resident(device, passphrase=ask_passphrase)
    try:
        site = resident.site(directory)
        trained, fresh = (build(study, seed).to(site.device) for seed in (0, seed_for(study.seed, "explain", "fresh")))
        restore(trained, load(model.folder / WEIGHTS))
        maps, unlearnt = (HeatMaps(one, study, wanted, basis) for one in (trained, fresh))
        site.note_use(study)
        found = list(examples(site, study, "test", images))
        if not found:
            raise DataError(f"{site.alias} has no labelled test image that shows a class of this study")
        facts = {"study": study.hash, "weights": model.manifest.files[WEIGHTS].sha256, "pictures": len(found)}
        home.record(EXPLAINED, {**facts, "method": maps.method, "folder": str(out.absolute())})
        _write(out, found, maps)
        measured = measure(found, maps, unlearnt, seed=study.seed, site=site.alias, least=1)
    finally:
        resident.close()
    confidence = study.evaluation.confidence
    if as_json:
        told = {"folder": str(out), "pictures": len(found), "method": maps.method}
        print(json.dumps({**told, "faithfulness": measured.to_dict(confidence)}, ensure_ascii=False))
        return
    print(f"{len(found)} pictures by {maps.method} in {out}; {INDEX} says which vault row each is of")
    print("\n".join(_lines(measured, confidence)))
    print("These are images of patients, in the clear. Remove the folder when you are done; nothing else keeps them.")


def _require_free(out: Path) -> None:
    """Raises :class:`StoreError` for a folder that is there: what lies in it, and who may read it, is not known."""
    if out.exists() or out.is_symlink():
        raise StoreError(f"{out} exists already; name a new folder, which only you will be able to open")
    if not out.absolute().parent.is_dir():
        raise StoreError(f"{out.absolute().parent} is no folder; name a place that there is")


def _write(out: Path, found: Sequence[Example], maps: HeatMaps) -> None:
    """Pictures and their index, for the operator's eyes alone; nothing is left of what could not be finished."""
    written: list[Path] = []
    made = False
    try:
        out.mkdir(mode=0o700)
        made = True
        rows = []
        for number, one in enumerate(found, start=1):
            image, output = one.pixels[None], torch.tensor([one.output])
            score = float(maps.scores(image)[0, one.output])
            written.append(out / f"{number:04d}.png")
            _create(written[-1], picture(one.pixels, maps.of(image, output)[0], one.mask))
            rows.append((written[-1].name, one.row, one.label, f"{score:.4f}"))
        written.append(out / INDEX)
        _create(written[-1], _table(rows))
    except BaseException as error:
        if made:
            for path in written:
                path.unlink(missing_ok=True)
            out.rmdir()
        if isinstance(error, OSError):
            raise StoreError(
                f"{out} cannot be written: {error.strerror}; free some space, or name another place"
            ) from None
        raise


def _create(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _table(rows: Sequence[tuple[str, int, str, str]]) -> bytes:
    """The index as CSV. Names of classes are the coordinator's words."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "vault_row", "class", "score"))
    writer.writerows([cell_text(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _lines(measured: Faithfulness, confidence: float) -> Iterator[str]:
    for name, words in _WORDS:
        one = measured.interval(name, confidence)
        if one.value is not None:
            between = "" if one.low is None or one.high is None else f" [{one.low:.3f}, {one.high:.3f}]"
            yield f"  {words:<44}{one.value:.3f}{between}"
