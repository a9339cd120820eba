"""The workloads of the vault: reading it, training from it, compressing what is in it."""

from __future__ import annotations

import os
from pathlib import Path

from commands import ROOT, script
from measuring import Figure, at_least, at_most, ratios
from options import Options, Workload

SHARED = Path(os.environ.get("FEDWARD_SHARED", ROOT.parent / "shared")) / "data"
"""Real images, where this checkout has them beside it."""


def vault_read(options: Options) -> list[Figure]:
    """Batches out of a vault against batches out of a memory-mapped array; and how quick ``verify`` is."""
    count = options.scaled(4000, 64)
    times = script("vault_reads.py", count, options.repeat, options.folder)[1]
    megabytes = count * 224 * 224 / 1e6
    rates = {name: [megabytes / seconds for seconds in values] for name, values in times.items()}
    return [
        Figure("verify", "MB/CPU-s", rates["verify"], at_least(500), "manifest, tags, digests, the file's MAC"),
        Figure("vault / mapped array", "× CPU", ratios(times["raw"], times["mapped"])),
        Figure("vault with jpeg-ls / mapped array", "× CPU", ratios(times["jpeg-ls"], times["mapped"])),
        Figure("vault", "MB/CPU-s", rates["raw"]),
        Figure("vault with jpeg-ls", "MB/CPU-s", rates["jpeg-ls"]),
        Figure("mapped array", "MB/CPU-s", rates["mapped"], note="in the page cache, as the vaults are"),
    ]


def view_streamed(options: Options) -> list[Figure]:
    """An epoch from an encrypted view on the disk against an epoch over tensors in memory."""
    count = options.scaled(1000, 64)
    times = script("streamed.py", count, options.repeat, options.folder)[1]
    return [
        Figure(
            "epoch from the disk / tensors in memory",
            "× CPU",
            ratios(times["stored"], times["memory"]),
            at_most(1.10),
            "from the page cache",
        ),
        Figure("epoch from the disk / from a view in memory", "× CPU", ratios(times["stored"], times["held"])),
        Figure("epoch from the disk", "CPU-s", times["stored"], note=f"{count} images, 64×64"),
        Figure("epoch from a view in memory", "CPU-s", times["held"]),
        Figure("epoch over tensors in memory", "CPU-s", times["memory"]),
        Figure("writing the view to the disk", "CPU-s", times["build"], note="open, decrypt, prepare, seal"),
    ]


def compression(options: Options) -> list[Figure]:
    """What lossless compression saves, and takes."""
    count = options.scaled(500, 10)
    found = {"Guangzhou": SHARED / "chest-xray-guangzhou", "NIH": SHARED / "chest-xray-nih"}
    sets: dict[str, Path | None] = {name: folder for name, folder in found.items() if folder.is_dir()}
    figures = []
    for name, folder in (sets or {"phantoms": None}).items():
        done = script("packing.py", count, options.repeat, *([folder] if folder else []))[1]
        megabytes, note = done["plain"] / 1e6, f"{done['images']} images, 8 bits" + (", once JPEG" if folder else "")
        figures += [
            Figure(f"{name}: raw / jpeg-ls", "× bytes", [done["plain"] / done["packed"]], note=note),
            Figure(f"{name}: packing, with its check", "MB/CPU-s", [megabytes / seconds for seconds in done["pack"]]),
            Figure(f"{name}: unpacking", "MB/CPU-s", [megabytes / seconds for seconds in done["unpack"]]),
        ]
    return figures


WORKLOADS = {
    "vault-read": Workload(
        "images of 224×224 read in batches of 32 in an order of chance, and verified", vault_read, 5
    ),
    "view-streamed": Workload(
        "the quick start's CNN, an epoch over 1,000 images of 64×64: from a view that may take no memory against "
        "tensors in memory, one process, CPU time",
        view_streamed,
        7,
    ),
    "compression": Workload("JPEG-LS on chest X-rays of at most 256 pixels a side, or phantoms", compression),
}
