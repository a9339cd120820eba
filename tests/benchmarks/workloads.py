"""The workloads, each a function from options to figures. ``WORKLOADS`` names them."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import federation_workloads
import import_workloads
import peers
import private_workloads
import search_workloads
import vault_workloads
from commands import FEDWARD, ROOT, Played, simulate
from inputs import RESNET18, SMALL_CNN, TRIVIAL, write_images, write_study
from measuring import Failed, Figure, Measured, at_least, at_most, interleaved, measure, ratios
from options import Options, Workload

HERE = Path(__file__).resolve().parent
TUNING = {
    "BENCH_TUNED": "1",
    # as common.memory tells the allocator
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""The tuned bare loop's environment (``work.TUNED``)."""


def warm_up(folder: Path) -> None:
    """Once before anything is measured: bytecode compiled, libraries in the page cache, on both sides of a ratio."""
    images = write_images(folder / "warm.npz", size=64, train=64, other=32)
    study = write_study(folder / "warm.yaml", model=SMALL_CNN, size=64, sites=2, rounds=1)
    simulate(study, folder, "--arms", "federated", data=images)
    measure([sys.executable, HERE / "bare_loop.py"], env={"BENCH_NPZ": str(images), "BENCH_ROUNDS": "1"})


def same_work(options: Options) -> list[Figure]:
    """fedward against a bare torch loop, and against peers where asked for."""
    sites, rounds = 5, options.scaled(5, 1)
    images = write_images(options.folder / "images.npz", size=64, train=sites * options.scaled(400, 32), other=100)
    study = write_study(options.folder / "same.yaml", model=SMALL_CNN, size=64, sites=sites, rounds=rounds)
    setting = {"BENCH_NPZ": str(images), "BENCH_ROUNDS": str(rounds), "BENCH_SITES": str(sites)}

    def ours() -> Played:
        return simulate(study, options.folder, "--arms", "federated", data=images)

    def bare(**tuning: str) -> Measured:
        return measure([sys.executable, HERE / "bare_loop.py"], env={**setting, **tuning})

    found = interleaved(options.repeat, ours=ours, bare=bare, tuned=lambda: bare(**TUNING))
    plays: list[Played] = found["ours"]
    for play in plays:
        fits = [event for event in play.events if event["event"] == "site" and event["status"] == "ok"]
        if len(fits) != sites * rounds or any(fit["examples"] != options.scaled(400, 32) for fit in fits):
            raise Failed("the simulation did other work than the bare loop")
    bare_cpu = [run.cpu_s for run in found["bare"]]
    tuned_cpu = [run.cpu_s for run in found["tuned"]]
    same = [play.same_work_cpu_s for play in plays]
    whole = [play.measured.cpu_s for play in plays]
    figures = [
        Figure("same work / bare loop", "× CPU", ratios(same, bare_cpu), at_most(1.10), "start-up and training"),
        Figure("whole command / bare loop", "× CPU", ratios(whole, bare_cpu), note="with all that a loop has not"),
        Figure(
            "same work / tuned bare loop",
            "× CPU",
            ratios(same, tuned_cpu),
            note="the loop with fedward's own tricks: what federating itself costs",
        ),
        Figure("peak PSS", "MB", [play.measured.pss_mb for play in plays], at_most(1200)),
        Figure("peak PSS, bare loop", "MB", [run.pss_mb for run in found["bare"]]),
        Figure(
            "start to end of first hospital's first epoch",
            "s",
            [play.first_site_s for play in plays],
            at_most(8),
            "its first step comes before that",
        ),
        Figure("fedward, whole command", "CPU-s", whole),
        *(Figure(f"  of it {name}", "CPU-s", [play.phase(name) for play in plays]) for name in _phases(plays)),
        Figure("bare loop", "CPU-s", bare_cpu),
        Figure("tuned bare loop", "CPU-s", tuned_cpu),
    ]
    if options.peers:
        figures += _against_peers(options, setting, bare_cpu)
    return figures


def _phases(plays: list[Played]) -> list[str]:
    return [phase["name"] for phase in plays[0].results["phases"]]


def _against_peers(options: Options, setting: Mapping[str, str], bare_cpu: list[float]) -> list[Figure]:
    """The same work on Flower with Ray and on NVFlare; against the median of the bare loop of this run."""
    figures = []
    env = {**setting, **peers.ENVIRONMENT, "PYTHONPATH": str(HERE)}
    for peer in peers.PEERS:
        try:
            python = peers.install(peer)
            runs = [measure([python, HERE / "peers" / peer.script], env=env) for _ in range(options.repeat)]
        except Failed as error:
            figures.append(Figure(f"{peer.name} / bare loop", "× CPU", [], note=f"not measured: {error}"))
            continue
        cpu = [run.cpu_s for run in runs]
        figures += [
            Figure(
                f"{peer.name} / bare loop",
                "× CPU",
                [value / statistics.median(bare_cpu) for value in cpu],
                note=f"{peers.version(python, peer)}, {max(run.processes for run in runs)} processes",
            ),
            Figure(f"{peer.name}, peak PSS", "MB", [run.pss_mb for run in runs]),
        ]
    return figures


def sites100(options: Options) -> list[Figure]:
    """Seconds a round with many small sites, with and without evaluation."""
    sites, rounds = options.scaled(100, 4), 6
    images = write_images(options.folder / "many.npz", size=16, train=10 * sites, other=2 * sites)

    def play(every: int) -> Played:
        study = write_study(
            options.folder / f"every{every}.yaml",
            model=TRIVIAL,
            size=16,
            sites=sites,
            rounds=rounds,
            evaluate_every=every,
        )
        return simulate(study, options.folder, "--arms", "federated", data=images)

    found = interleaved(options.repeat, both=lambda: play(1), training=lambda: play(0))
    both, training = found["both"], found["training"]
    return [
        Figure("a round: train and evaluate", "s", [_steady(p) for p in both], at_most(0.5), "median of rounds 2 to 5"),
        Figure("a round: train", "s", [_steady(p) for p in training], at_most(0.5), "median of rounds 2 to 5"),
        Figure("first round: opens, decrypts and prepares", "s", [p.rounds_s[0] for p in both]),
        Figure("peak PSS", "MB", [p.measured.pss_mb for p in both]),
    ]


def _steady(play: Played) -> float:
    """The median round, without the first (which opens every vault) and the last (which is always evaluated)."""
    return statistics.median(play.rounds_s[1:-1])


def sites1000(options: Options) -> list[Figure]:
    """Whether a thousand sites run, and what grows with them."""
    few, many = options.scaled(100, 4), options.scaled(1000, 8)

    def play(sites: int) -> Played:
        images = write_images(options.folder / f"{sites}.npz", size=16, train=10 * sites, other=2 * sites)
        study = write_study(options.folder / f"{sites}.yaml", model=TRIVIAL, size=16, sites=sites, rounds=2)
        return simulate(study, options.folder, "--arms", "federated", data=images)

    found = interleaved(options.repeat, few=lambda: play(few), many=lambda: play(many))
    few_pss, many_pss = ([play.measured.pss_mb for play in found[name]] for name in ("few", "many"))
    figures = [
        Figure(f"peak PSS, {many} sites / {few}", "×", ratios(many_pss, few_pss), at_most(1.1)),
        Figure(f"peak PSS, {many} sites", "MB", many_pss),
        Figure(f"peak PSS, {few} sites", "MB", few_pss),
        Figure(
            "peak PSS a further site",
            "kB",
            [1000 * (a - b) / (many - few) for a, b in zip(many_pss, few_pss, strict=True)],
        ),
    ]
    for name, label in (("few", few), ("many", many)):
        plays: list[Played] = found[name]
        figures += [
            Figure(f"{label} sites: vaults", "s", [play.phase("vaults", "wall_s") for play in plays]),
            Figure(f"{label} sites: a round of training", "s", [play.rounds_s[0] for play in plays]),
            Figure(f"{label} sites: whole command", "s", [play.measured.wall_s for play in plays]),
            Figure(f"{label} sites: vaults on disk", "MB", [play.sizes["sites"] / 1e6 for play in plays]),
            Figure(f"{label} sites: report.html", "MB", [play.sizes["report.html"] / 1e6 for play in plays]),
        ]
    return figures


def epochs(options: Options) -> list[Figure]:
    """An epoch out of a vault against an epoch over tensors in memory, in one process, CPU time."""
    count = options.scaled(2000, 64)
    done = measure([sys.executable, HERE / "epochs.py", str(count), str(options.repeat), options.folder], cwd=ROOT)
    times = json.loads(done.output.strip().splitlines()[-1])
    memory = times["memory"]
    return [
        Figure(
            "first epoch / in memory",
            "× CPU",
            ratios(times["first"], memory),
            at_most(1.3),
            "open, decrypt, prepare, train",
        ),
        Figure("later epoch / in memory", "× CPU", ratios(times["later"], memory), at_most(1.02)),
        Figure("first epoch", "CPU-s", times["first"]),
        Figure("  of it open, decrypt, prepare", "CPU-s", times["view"]),
        Figure("later epoch", "CPU-s", times["later"]),
        Figure("epoch in memory", "CPU-s", memory, note=f"{count} images, 64×64"),
    ]


def workers(options: Options) -> list[Figure]:
    """Two workers with a thread each against one worker with one thread, and with two."""
    sites, rounds = 4, 4
    images = write_images(options.folder / "resnet.npz", size=64, train=sites * options.scaled(96, 8), other=4 * sites)
    study = write_study(options.folder / "resnet.yaml", model=RESNET18, size=64, sites=sites, rounds=rounds)

    def play(*arguments: str) -> Played:
        return simulate(study, options.folder, "--arms", "federated", *arguments, data=images)

    found = interleaved(
        options.repeat,
        one=lambda: play("--workers", "1"),
        two=lambda: play("--workers", "2"),
        threads=lambda: play("--workers", "1", "--threads", "2"),
    )
    steady = {name: [_steady(p) for p in plays] for name, plays in found.items()}
    whole = {name: [p.measured.wall_s for p in plays] for name, plays in found.items()}
    note = "" if (os.cpu_count() or 1) >= 2 else "this machine has one core"
    return [
        Figure("one worker / two workers", "× wall", ratios(steady["one"], steady["two"]), at_least(1.6), note),
        Figure(
            "one worker with two threads / two workers",
            "× wall",
            ratios(steady["threads"], steady["two"]),
            at_least(1.0),
        ),
        *(Figure(f"a round, {_NAMES[name]}", "s", values) for name, values in steady.items()),
        *(Figure(f"whole command, {_NAMES[name]}", "s", values) for name, values in whole.items()),
        *(Figure(f"peak PSS, {_NAMES[name]}", "MB", [p.measured.pss_mb for p in found[name]]) for name in found),
    ]


_NAMES = {"one": "one worker", "two": "two workers", "threads": "one worker with two threads"}


def answering(options: Options) -> list[Figure]:
    """How long ``fedward --help`` takes."""
    times = [measure([FEDWARD, "--help"]).wall_s for _ in range(options.repeat)]
    return [Figure("fedward --help", "s", times, at_most(0.5))]


def quickstart(options: Options) -> list[Figure]:
    """What ``make simulate`` computes once everything is installed."""
    arguments = [] if options.scale == 1.0 else ["--rounds", "1"]
    plays = [simulate(ROOT / "configs" / "quickstart.yaml", options.folder, *arguments) for _ in range(options.repeat)]
    return [
        Figure("fedward simulate configs/quickstart.yaml", "s", [p.measured.wall_s for p in plays], at_most(300)),
        Figure("CPU", "CPU-s", [p.measured.cpu_s for p in plays]),
        *(Figure(f"  of it {name}", "CPU-s", [p.phase(name) for p in plays]) for name in _phases(plays)),
        Figure("peak PSS", "MB", [p.measured.pss_mb for p in plays]),
    ]


WORKLOADS: dict[str, Workload] = {
    "simulate": Workload(
        "5 sites × 400 images of 64×64, small CNN, 5 rounds of one epoch, batch 32, Adam: fedward against a bare torch "
        "loop, one thread each, CPU seconds of the process tree with start-up",
        same_work,
    ),
    "sites100": Workload("100 sites of 10 images of 16×16, trivial model, 6 rounds", sites100),
    "sites1000": Workload("1,000 sites against 100, 10 images of 16×16 each, trivial model, 2 rounds", sites1000, 1),
    "epochs": Workload("small CNN on 2,000 images of 64×64: from a vault against tensors in memory", epochs, 9),
    "workers": Workload(
        "ResNet-18 at 64×64, 4 sites of 96 images, 4 rounds: worker processes against torch threads; "
        "a round is the median of rounds 2 and 3",
        workers,
    ),
    "help": Workload("`fedward --help`", answering, 10),
    "quickstart": Workload("the quick start, all arms, after installation", quickstart, 1),
    **import_workloads.WORKLOADS,
    **vault_workloads.WORKLOADS,
    **federation_workloads.WORKLOADS,
    **private_workloads.WORKLOADS,
    **search_workloads.WORKLOADS,
}
