"""Which layout a path has. The first of :data:`LAYOUTS` that recognises it opens it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.study import Study
from simulations.datasets import folder, kermany, medmnist, nih, vaults
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
)
"""In order of recognition. A label sheet comes first: whoever writes one into a download means it. Then vaults, whose
``site.yaml`` no download has; then the public layouts."""


def open_source(study: Study, data: Path | None) -> Source:
    """The images of a simulation: phantoms where ``data`` is ``None``, else what lies at that path.

    Raises :class:`DataError` naming the layouts that are recognised where none matches.
    """
    if data is None:
        from simulations.phantoms import COLUMNS, PhantomSource  # draws with OpenCV: not needed for anything else

        if study.data.label_column not in COLUMNS:
            raise DataError(
                f"data.label_column: phantoms (synthetic) have no column {study.data.label_column!r}; "
                f"use {' or '.join(COLUMNS)}, or give --data DIR"
            )
        return PhantomSource(study.data.phantoms, study.seed)
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
