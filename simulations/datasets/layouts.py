"""Which layout a path has. The first of :data:`LAYOUTS` that recognises it opens it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.study import Study
from simulations.datasets import (
    brats,
    classes,
    derived,
    folder,
    kermany,
    luna,
    masked,
    medmnist,
    mura,
    nih,
    tuberculosis,
    vaults,
)
from simulations.datasets.source import Source, one_line, shown


@dataclass(frozen=True)
class Layout:
    """``find`` returns what ``open`` takes (a file or folder), or ``None`` where the path has another layout."""

    description: str
    find: Callable[[Path], Path | None]
    open: Callable[[Study, Path], Source]


def _npz(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() == ".npz" else None
    files = sorted(path.glob("*.npz"))
    if len(files) > 1:
        raise DataError(f"{shown(path.name)} holds {len(files)} .npz files; name the one you mean")
    return files[0] if files else None


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "a folder with labels.csv",
        lambda path: path if (path / folder.SHEET).is_file() else None,
        folder.FolderSource,
    ),
    Layout("vaults (a run, a folder of sites, or one site with site.yaml)", vaults.find, vaults.VaultSource),
    Layout("NIH ChestX-ray14 (Data_Entry_2017*.csv beside images*/)", nih.find, nih.NihSource),
    Layout("Kermany's chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}", kermany.find, kermany.KermanySource),
    Layout("a MedMNIST .npz file", _npz, medmnist.MedMnistSource),
    Layout("Montgomery or Shenzhen (CXR_png/)", tuberculosis.find, tuberculosis.open_),
    Layout("MURA ({train,valid}/XR_…/patient…/study…_positive/)", mura.find, mura.open_),
    Layout("BraTS (CASE/CASE_{t1ce,t2,flair,seg}.nii.gz)", brats.find, brats.BratsSource),
    Layout("LUNA16 patches (candidates*.csv beside patches/)", luna.find, luna.open_),
    Layout("images/ beside masks/", masked.find, masked.open_),
    Layout("one folder a class, within train/ and test/ or without", classes.find, classes.open_),
)
"""In order of recognition. A label sheet comes first: whoever writes one into a download means it. Then vaults, whose
``site.yaml`` no download has; then the public layouts; general ones last."""


_NAME = re.compile(r"\w[\w .-]{0,59}")
"""What a source may be called: it stands before its keys and patients, and is an attribute of its images."""


def open_source(study: Study, data: Path | Sequence[Path] | None) -> Source:
    """The images of a simulation: phantoms where ``data`` is ``None``, else what lies at that path or those paths.

    Each path may be ``NAME=PATH``; without it, a source is called as its folder or file. The study's ``data.take`` is
    applied to each (:func:`simulations.datasets.derived.taken`). Several, or one with a name of its own, become one
    whose images know where they are from (:func:`~simulations.datasets.derived.joined`). With
    ``data.group_duplicates`` near-duplicates are one patient (:func:`simulations.datasets.duplicates.grouped`). Raises
    :class:`DataError` naming the layouts that are recognised where none matches.
    """
    take = study.data.take
    if data is None:
        if take:
            raise DataError("data.take: phantoms (synthetic) are drawn, not taken; set data.phantoms.images")
        if study.data.group_duplicates:
            raise DataError("data.group_duplicates: phantoms (synthetic) are each drawn once; leave it out")
        return _phantoms(study)
    given = [data] if isinstance(data, Path) else list(data)
    if not given:
        raise DataError("no data given; give --data DIR, or leave it out for phantoms")
    named = [_named(path) for path in given]
    derived.check_names(name for name, _, _ in named)
    strange = [name for name in take if name not in {known for known, _, _ in named}]
    if strange:
        known = ", ".join(name for name, _, _ in named)
        raise DataError(
            f"data.take: no source is called {strange[0]!r}; there are: {known}; name it: --data {strange[0]}=DIR"
        )
    sources = [(name, _opened(study, path)) for name, path, _ in named]
    sources = [
        (name, derived.taken(study, name, source, take[name]) if name in take else source) for name, source in sources
    ]
    source = sources[0][1] if len(sources) == 1 and not named[0][2] else derived.joined(study, sources)
    if not study.data.group_duplicates:
        return source
    from simulations.datasets.duplicates import grouped  # compares with OpenCV and SciPy: not needed for anything else

    return grouped(study, source)


def _named(given: Path) -> tuple[str, Path, bool]:
    """Name and path of a source, and whether the name was given as ``NAME=PATH``."""
    name, equals, rest = str(given).partition("=")
    if equals and rest and _NAME.fullmatch(name) and not _there(given):
        return name, Path(rest).expanduser(), True
    if not _there(given):
        return given.name, given, False
    return given.stem if given.is_file() else given.resolve().name, given, False


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _phantoms(study: Study) -> Source:
    from simulations.phantoms import COLUMNS, PhantomSource  # draws with OpenCV: not needed for anything else

    if study.data.label_column not in COLUMNS:
        raise DataError(
            f"data.label_column: phantoms (synthetic) have no column {study.data.label_column!r}; "
            f"use {' or '.join(COLUMNS)}, or give --data DIR"
        )
    return PhantomSource(study.data.phantoms, study.seed)


def _opened(study: Study, data: Path) -> Source:
    shown_path = one_line(str(data))
    try:
        if not data.exists():
            raise DataError(f"{shown_path}: no such file or folder; give the folder that holds the images")
        for layout in LAYOUTS:
            found = layout.find(data)
            if found is not None:
                return layout.open(study, found)
    except OSError as error:
        raise DataError(
            f"{shown_path}: cannot be read: {error.strerror or error}; check the path and its rights"
        ) from None
    if data.name == folder.SHEET:
        raise DataError(f"{shown_path}: is the sheet itself; give the folder that holds it")
    if data.suffix == ".sqlite":
        raise DataError(f"{shown_path}: is the vault itself; give the site's directory, which holds site.yaml")
    raise DataError(f"{shown_path}: no known layout; expected {'; '.join(layout.description for layout in LAYOUTS)}")
