"""Methods of personalisation side by side: one model for all, one for each, and what each hospital would run.

    python docs/examples/personalisation.py OUT --children DIR --adults DIR [--settings labels devices hospitals]
        [--methods fedavg ditto fedbn fedprox fedavg-sgd scaffold] [--repeats 2]
    python docs/examples/personalisation.py OUT --phantoms

Settings: `labels`, one source dealt to five hospitals by Dirichlet 0.5 over patients; `devices`, the same to five with
detectors that differ; `hospitals`, two sources as two hospitals. Each method is the study below with one thing
changed, and its run the folder OUT/<setting>-<method>. Fine-tuning starts from the very model that FedAvg ends with, so
that one run is both. Started again it resumes what was interrupted and computes nothing twice; OUT/table.md is written
anew after every run. `--phantoms` plays all of it small, on synthetic images.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.study import Study
from simulations.cli import read_results

STUDY = """
name: personalisation
task: binary
classes: [normal, pneumonia]
seed: 11
image: {size: 64}
augment: {rotate_deg: 7, shift: 0.05, brightness: 0.1}
model: {name: cnn, norm: batch, params: {filters: [16, 32, 32, 64], hidden: [64]}}
training: {batch_size: 32, optimiser: {name: adam, lr: 0.001}}
federation: {rounds: 8}
evaluation: {bootstrap: 1000}
"""
SMALL = {
    "data.phantoms": {"images": 160, "size": 32, "difficulty": 0.3},
    "image.size": 16,
    "model.params": {"filters": [4], "hidden": []},
    "federation.rounds": 1,
    "evaluation.bootstrap": 100,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "labels": {"partition": {"kind": "dirichlet", "alpha": 0.5, "sites": 5}},
    "devices": {"partition": {"kind": "device", "device_shift": 0.5, "sites": 5}},
    "hospitals": {"partition": {"kind": "natural", "column": "source"}},
}
TAKE = {"children": {"pneumonia": 700, "normal": 500}}
"""Of the large source, so that both hospitals are of a size; of the small one all there is."""
SGD = {"training.optimiser": {"name": "sgd", "lr": 0.05}}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"personalisation": {"method": "finetune"}},
    "ditto": {"personalisation": {"method": "ditto"}},
    "fedbn": {"personalisation": {"method": "fedbn"}},
    "fedprox": {"federation.strategy": {"name": "fedprox", "params": {"proximal_mu": 0.01}}},
    "fedavg-sgd": SGD,
    "scaffold": SGD | {"personalisation": {"method": "scaffold"}},
}
ROWS = {
    "alone": ("fedavg", "local"),
    "fedavg": ("fedavg", "federated"),
    "fedprox": ("fedprox", "federated"),
    "fedavg-sgd": ("fedavg-sgd", "federated"),
    "scaffold": ("scaffold", "federated"),
    "finetune": ("fedavg", "personalised"),
    "ditto": ("ditto", "personalised"),
    "fedbn": ("fedbn", "personalised"),
}
"""Row of a table -> the run that it is of, and which of its arms."""
Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Method -> ``results.json`` of each repeat."""


def study(setting: str, method: str, given: argparse.Namespace) -> Study:
    """The study with a setting's partition and a method's own."""
    made = Study.parse(STUDY).derive(name=f"{setting} {method}", **SETTINGS[setting], **METHODS[method])
    if given.phantoms:
        partition = {"kind": "dirichlet" if setting == "hospitals" else made.partition.kind, "column": None, "sites": 2}
        return made.derive(**SMALL, **{f"partition.{key}": value for key, value in partition.items()})
    adults = {"adults": {"pneumonia": 1000, "normal": 1000}} if setting == "hospitals" else {}
    return made.derive(**{"data.take": {**TAKE, **adults}})


def simulate(setting: str, method: str, given: argparse.Namespace) -> Path:
    """Run it, or what is left of it. Raises :class:`subprocess.CalledProcessError`; the command has said why."""
    fedward, run = str(Path(sys.executable).with_name("fedward")), given.out / f"{setting}-{method}"
    if (run / "run.json").exists():
        subprocess.run([fedward, "simulate", "--resume", run], check=True)  # noqa: S603
        return run
    made = study(setting, method, given)
    written = run.with_suffix(".yaml")
    written.write_bytes(made.canonical())
    options = ["--repeats", str(given.repeats), "--out", run]
    options += ["--arms", arms_of(made)]
    if not given.phantoms:
        options += ["--data", f"children={given.children}"]
        options += ["--data", f"adults={given.adults}"] if setting == "hospitals" else []
    subprocess.run([fedward, "simulate", written, *options], check=True)  # noqa: S603
    return run


def arms_of(made: Study) -> str:
    """Hospitals alone are trained once, for FedAvg, and again where a model of one's own is compared with them."""
    personal = made.personalisation
    return "federated,local,personalised" if personal is not None and personal.own_models else "federated"


def aucs(found: Results, row: str) -> dict[str, list[float]]:
    """Hospital -> AUC on its own test patients in each repeat; without hospitals that have but one class."""
    method, arm = ROWS[row]
    values: dict[str, list[float]] = {}
    for result in found[method]:
        for site, facts in result["arms"][arm]["sites"].items():
            value = facts["test"].get("auc", {}).get("value")
            if value is not None:
                values.setdefault(site, []).append(value)
    return values


def differences(found: Results, row: str, a: str, b: str) -> dict[str, list[Mapping[str, float]]]:
    """Hospital -> paired difference of AUC in each repeat, on its own test patients."""
    method, arm = ROWS[row]
    rows: dict[str, list[Mapping[str, float]]] = {}
    for result in found[method]:
        for site, facts in result["arms"][arm]["sites"].items():
            wanted = facts["would_run"] if a == "would_run" else a
            same = [{"value": 0.0, "low": 0.0, "high": 0.0}] if wanted == b else []
            pairs = [d for d in facts["differences"] if (d["a"], d["b"], d["metric"]) == (wanted, b, "auc")]
            rows.setdefault(site, []).extend(d for d in (*same, *pairs) if d["low"] is not None)
    return {site: cells for site, cells in rows.items() if cells}


def table(setting: str, found: Results) -> Iterator[str]:
    """Means over repeats (least–greatest) by method and hospital, then what a model of one's own is worth."""
    rows = [row for row, (method, _) in ROWS.items() if method in found]
    hospitals = list(aucs(found, rows[0]))
    repeats = len(next(iter(found.values())))
    yield f"### {setting}, {repeats} repeat{'s' if repeats > 1 else ''}\n"
    yield f"| AUC on own test patients | {' | '.join(hospitals)} | mean | worst |"
    yield "|" + "---|" * (len(hospitals) + 3)
    for row in rows:
        values = aucs(found, row)
        means = {site: statistics.fmean(values[site]) for site in hospitals if site in values}
        cells = [f"{means[site]:.3f} {spread(values[site])}" if site in means else "·" for site in hospitals]
        yield f"| {row} | {' | '.join(cells)} | {statistics.fmean(means.values()):.3f} | {min(means.values()):.3f} |"
    yield ""
    head = ("method", "hospital", "own − better of all's and alone", "lower bound", "would run", "that − alone")
    yield f"| {' | '.join(head)} | lower bound |"
    yield "|" + "---|" * 7
    for row in rows:
        if ROWS[row][1] == "personalised":
            yield from own_rows(found, row, hospitals)
    yield ""


def own_rows(found: Results, row: str, hospitals: Sequence[str]) -> Iterator[str]:
    """A hospital's own model: means over repeats, of lower bounds too, and the lowest in brackets."""
    best = differences(found, row, "personal", "best")
    gains = differences(found, row, "would_run", "local")
    for site in hospitals:
        chosen = [result["arms"]["personalised"]["sites"][site]["would_run"] for result in found[ROWS[row][0]]]
        runs = ", ".join(f"{name} {chosen.count(name)}×" for name in dict.fromkeys(chosen))
        yield f"| {row} | {site} | {both(best.get(site))} | {runs} | {both(gains.get(site))} |"


def both(cells: Sequence[Mapping[str, float]] | None) -> str:
    if not cells:
        return "· | ·"
    mean, lows = statistics.fmean(cell["value"] for cell in cells), [cell["low"] for cell in cells]
    return f"{mean:+.3f} | {statistics.fmean(lows):+.3f} ({min(lows):+.3f})"


def spread(values: Sequence[float]) -> str:
    return f"({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--children", type=Path, help="the large source, with label normal or pneumonia")
    parser.add_argument("--adults", type=Path, help="the small one")
    parser.add_argument("--phantoms", action="store_true", help="synthetic images, small")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    if not given.phantoms and (given.children is None or given.adults is None):
        parser.error("give --children and --adults, or --phantoms")
    given.out.mkdir(parents=True, exist_ok=True)
    for setting in given.settings:
        for method in given.methods:
            simulate(setting, method, given)
            (given.out / "table.md").write_text("\n".join(tables(given.out)), encoding="utf-8")
    print((given.out / "table.md").read_text(encoding="utf-8"))


def tables(out: Path) -> Iterator[str]:
    """Of every setting of which something is finished in ``out``."""
    for setting in SETTINGS:
        runs = {method: out / f"{setting}-{method}" for method in METHODS}
        found = {method: read_results([run]) for method, run in runs.items() if (run / "report.html").exists()}
        if found:
            yield from table(setting, found)


if __name__ == "__main__":
    main()
