"""The workloads of ``fedward site import``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands import Imported, import_into, new_site, script
from hospital_inputs import first_of, write_arrays, write_radiographs
from inputs import TRIVIAL, write_study
from measuring import Failed, Figure, Measured, at_least, at_most, interleaved, ratios
from options import Options, Workload


def _imported(options: Options, source: Path, workers: int = 1) -> Imported:
    """All of ``source`` into a new site, which is removed."""
    site = new_site(options.folder / "site")
    found = import_into(site, source, workers=workers)
    if found.images != len(list(source.iterdir())):
        raise Failed(f"{found.images} of {len(list(source.iterdir()))} files were imported")
    shutil.rmtree(site)
    return found


def _further(many: Sequence[float], few: Sequence[float], images: int) -> list[float]:
    """What one image more costs, start-up and end left out; ``images`` more were in ``many``."""
    return [(above - below) / images for above, below in zip(many, few, strict=True)]


def _import(options: Options, *, jpeg2000: bool, many: int, few: int) -> list[Figure]:
    """An image more in an import against the same image decoded, and decoded and written, in one plain process."""
    every = write_radiographs(options.folder / "files", many, jpeg2000=jpeg2000)
    some = first_of(every, few)

    def alone() -> dict[str, object]:
        scratch = options.folder / "scratch"
        scratch.mkdir()
        try:
            return script("decode_only.py", every, scratch)[1]
        finally:
            shutil.rmtree(scratch)

    _imported(options, some)  # bytecode, and libraries in the page cache
    found = interleaved(
        options.repeat, many=lambda: _imported(options, every), alone=alone, few=lambda: _imported(options, some)
    )
    cpu = {name: [run.measured.cpu_s for run in found[name]] for name in ("many", "few")}
    ours = [1000 * value for value in _further(cpu["many"], cpu["few"], many - few)]
    decode = [run["decode"] for run in found["alone"]]
    write = [run["write"] for run in found["alone"]]
    both = [a + b for a, b in zip(decode, write, strict=True)]
    steps = {name: [run["steps"][name] for run in found["alone"]] for name in found["alone"][0]["steps"]}
    rest = [ours[n] - decode[n] - sum(values[n] for values in steps.values()) for n in range(options.repeat)]
    starts = [total - few * value / 1000 for total, value in zip(cpu["few"], ours, strict=True)]
    return [
        Figure("import / decode and write", "× CPU", ratios(ours, both), at_most(1.3), "an image more, one worker"),
        Figure("import / decode", "× CPU", ratios(ours, decode)),
        Figure("import, an image more", "CPU-ms", ours),
        Figure("decode, an image", "CPU-ms", decode, note="this import's own decoder, in one process"),
        Figure("write, an image", "CPU-ms", write, note="to a plain .npy, on the disk"),
        *(Figure(f"  of the import {name}", "CPU-ms", values) for name, values in steps.items()),
        Figure(
            "  of the import all else", "CPU-ms", rest, note="to the child and back, checks, new pages, bookkeeping"
        ),
        Figure("start and end of an import", "CPU-s", starts),
        Figure("peak PSS", "MB", *_memory([run.measured for run in found["many"]])),
    ]


def _memory(runs: Sequence[Measured]) -> tuple[list[float], None, str]:
    """Peaks, no aim, and why there are none."""
    if any(run.unread for run in runs):
        return [], None, "not measured: the kernel hides a site's processes from others; run the bench as root"
    return [run.pss_mb for run in runs], None, ""


def import_raw(options: Options) -> list[Figure]:
    return _import(options, jpeg2000=False, many=options.scaled(40, 3), few=options.scaled(8, 1))


def import_j2k(options: Options) -> list[Figure]:
    return _import(options, jpeg2000=True, many=options.scaled(14, 2), few=options.scaled(2, 1))


def import_workers(options: Options) -> list[Figure]:
    """Wall time of an image more with one decoding process and with two."""
    return [
        *_workers(options, "JPEG 2000", jpeg2000=True, many=options.scaled(14, 2), few=options.scaled(2, 1)),
        *_workers(options, "uncompressed", jpeg2000=False, many=options.scaled(40, 3), few=options.scaled(8, 1)),
    ]


def _workers(options: Options, name: str, *, jpeg2000: bool, many: int, few: int) -> list[Figure]:
    every = write_radiographs(options.folder / "files", many, jpeg2000=jpeg2000)
    some = first_of(every, few)
    _imported(options, some, 2)
    found = interleaved(
        options.repeat,
        one=lambda: _imported(options, every, 1),
        two=lambda: _imported(options, every, 2),
        one_few=lambda: _imported(options, some, 1),
        two_few=lambda: _imported(options, some, 2),
    )
    shutil.rmtree(every)
    shutil.rmtree(some)
    wall = {key: [run.measured.wall_s for run in runs] for key, runs in found.items()}
    one = _further(wall["one"], wall["one_few"], many - few)
    two = _further(wall["two"], wall["two_few"], many - few)
    cores = [
        (all_.measured.cpu_s - few_.measured.cpu_s) / (all_.measured.wall_s - few_.measured.wall_s)
        for all_, few_ in zip(found["two"], found["two_few"], strict=True)
    ]
    note = "" if (os.cpu_count() or 1) >= 2 else "this machine has one core"
    return [
        Figure(f"{name}: one worker / two workers", "× wall", ratios(one, two), at_least(1.7), note),
        Figure(f"{name}: an image more, one worker", "ms", [1000 * value for value in one]),
        Figure(f"{name}: an image more, two workers", "ms", [1000 * value for value in two]),
        Figure(f"{name}: cores at work, two workers", "CPU-s/s", cores, note="less than 2 where others are at work"),
        Figure(f"{name}: whole command, one worker", "s", wall["one"], note=f"{many} images"),
        Figure(f"{name}: whole command, two workers", "s", wall["two"], note=f"{many} images"),
    ]


CAP_MB = 4
"""What a view may take; that of 10,000 images of 64×64 takes 41."""


def vault_100k(options: Options) -> list[Figure]:
    """What grows with the vault: importing, opening, training."""
    each, stages = options.scaled(2500, 50), (4, 20, 40)  # images a file; files in the vault after each import
    study = write_study(options.folder / "study.yaml", model=TRIVIAL, size=64, sites=1, rounds=1)
    imports: list[list[Imported]] = []
    opened: list[dict[str, Any]] = []
    trained: list[tuple[Measured, dict[str, Any]]] = []
    for _ in range(options.repeat):
        site = new_site(options.folder / "site")
        with (site / "site.yaml").open("a") as config:
            config.write("split: [1.0, 0.0, 0.0]\n")
        runs: list[Imported] = []
        for before, after in zip((0, *stages), stages, strict=False):
            source = write_arrays(options.folder / "arrays", files=after - before, each=each, first=before)
            runs.append(import_into(site, source))
            shutil.rmtree(source)
            if runs[-1].images != each * (after - before):
                raise Failed(f"{runs[-1].images} of {each * (after - before)} images were imported")
            if after in (stages[0], stages[-1]):
                opened.append(script("opening.py", site, 5)[1])
                trained.append(script("epoch_stored.py", site, study, 0 if options.scale < 1 else CAP_MB))
                if trained[-1][1]["kind"] != "StoredView" or trained[-1][1]["images"] != each * after:
                    raise Failed("the epoch was not one over all images, from the disk")
        imports.append(runs)
    labels = [f"{each * files:,} images" for files in stages]
    by_stage = [[runs[stage] for runs in imports] for stage in range(len(stages))]
    small_opened, large_opened = opened[0::2], opened[1::2]
    small_trained, large_trained = trained[0::2], trained[1::2]
    peaks = [_memory([run.measured for run in runs]) for runs in by_stage]
    epochs = [_memory([measured for measured, _ in runs]) for runs in (small_trained, large_trained)]
    told = [[_since_start(run) for _, run in runs] for runs in (small_trained, large_trained)]
    first, last = labels[0], labels[-1]
    figures = [
        Figure(f"importing: peak PSS, {last} / {first}", "×", ratios(peaks[-1][0], peaks[0][0]), at_most(1.5)),
        *(Figure(f"  to {label}", "MB", *peak) for label, peak in zip(labels, peaks, strict=True)),
        *(
            Figure(f"  an image more: {name}", "bytes", _growth(small_opened, large_opened, what))
            for what, name in (("opened", "the open vault"), ("known", "the importer"), ("report", "the report"))
        ),
        Figure(
            "importing, an image",
            "CPU-ms",
            [1000 * sum(run.measured.cpu_s for run in runs) / (each * stages[-1]) for runs in imports],
            note="start and end of three imports included",
        ),
        Figure(
            f"opening, {last}",
            "s",
            [value for run in large_opened for value in run["wall_s"]],
            at_most(1.0),
            "with the site's memory of it, second and later times in a process",
        ),
        Figure(f"opening, {last}", "CPU-s", [value for run in large_opened for value in run["cpu_s"]]),
        Figure(f"opening, {first}", "CPU-s", [value for run in small_opened for value in run["cpu_s"]]),
        Figure(
            f"an epoch: peak PSS, {last} / {first}",
            "×",
            ratios(epochs[1][0], epochs[0][0]),
            at_most(1.5),
            "most of either is torch",
        ),
        *(
            Figure(f"  an image more: {name}", "bytes", _growth(told[0], told[1], what))
            for what, name in (("view", "making the view"), ("epoch", "making the view and training"))
        ),
    ]
    for label, runs_of, peak in ((first, told[0], epochs[0]), (last, told[1], epochs[1])):
        figures += [
            Figure(f"an epoch, {label}", "MB", *peak),
            Figure("  of it the view made (resident)", "MB", [run["view"] for run in runs_of]),
            Figure("  and the epoch (resident)", "MB", [run["epoch"] - run["view"] for run in runs_of]),
            Figure(f"an epoch, {label}: making the view", "CPU-s", [run["view_cpu_s"] for run in runs_of]),
            Figure(f"an epoch, {label}: training", "CPU-s", [run["epoch_cpu_s"] for run in runs_of]),
        ]
    return figures


def _since_start(told: dict[str, Any]) -> dict[str, Any]:
    """Peaks of an epoch without what the process, torch in it, took before it opened the vault."""
    return {**told, **{name: told[name] - told["before"] for name in ("view", "epoch")}}


def _growth(small: Sequence[dict[str, Any]], large: Sequence[dict[str, Any]], what: str) -> list[float]:
    """Bytes that an image more takes."""
    return [1e6 * (b[what] - a[what]) / (b["images"] - a["images"]) for a, b in zip(small, large, strict=True)]


WORKLOADS = {
    "import-raw": Workload(
        "uncompressed digital X-rays of 2500×2048, 12 bits, imported with one worker, against the same decoder in one "
        "process that writes plain files; CPU time of the process tree that an image more costs",
        import_raw,
        5,
    ),
    "import-j2k": Workload("the same for JPEG 2000, lossless", import_j2k),
    "import-workers": Workload(
        "import with one and two decoding processes, wall time of an image more", import_workers
    ),
    "vault-100k": Workload(
        "100,000 images of 64×64 imported from files of 2,500 in three steps, the vault opened, and one epoch of a "
        f"trivial model over a view on the disk ({CAP_MB} MB of it may be in memory)",
        vault_100k,
        1,
    ),
}
