"""Mistakes as a user makes them: one line with a remedy, exit code not 0, no traceback, nothing half-written."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.commandline import STUDY, command, images, refused, rows, saved


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return saved(tmp_path / "tiny.yaml", STUDY)


# -- the study file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [tiny\ntask: binary\n", ["bad.yaml:2", "not valid YAML", "fix that line"]),
        ("", ["bad.yaml", "empty", "configs/quickstart.yaml"]),
        (STUDY + "modle: {}\n", ["bad.yaml", "modle", "did you mean 'model'?"]),
        (STUDY.replace("rounds: 1", "round: 1"), ["bad.yaml", "federation.round", "did you mean 'rounds'?"]),
        (STUDY.replace("rounds: 1", "rounds: 0"), ["bad.yaml", "federation.rounds", "greater than 0"]),
        (STUDY.replace("name: fedadam", "name: fedadamm"), ["bad.yaml", "strategy.name", "did you mean 'fedadam'?"]),
        (STUDY.replace("eta:", "etaa:"), ["bad.yaml", "strategy.params.etaa", "did you mean 'eta'?"]),
        (STUDY.replace("name: cnn", "name: cmn"), ["bad.yaml", "model.name", "did you mean 'cnn'?"]),
        (STUDY.replace("filters:", "filter:"), ["bad.yaml", "model.params.filter", "did you mean 'filters'?"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_study_names_file_key_and_remedy(text: str, words: list[str], tmp_path: Path) -> None:
    bad = saved(tmp_path / "bad.yaml", text)
    for arguments in (("simulate", bad, "--out", tmp_path / "run"), ("study", "check", bad)):
        error = refused(2, *arguments)
        assert [word for word in words if word not in error] == [], error
    assert not (tmp_path / "run").exists()


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    assert "no such study file" in refused(2, "simulate", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert "cannot be read" in refused(2, "simulate", tmp_path, "--out", tmp_path / "run")
    assert "name a study file" in refused(2, "simulate", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--arms", "bogus"), 2, ["--arms", "'bogus'", "federated, local, pooled"]),
        (("--arms", ","), 2, ["--arms", "federated, local, pooled"]),
        (("--engine", "bogus"), 2, ["--engine", "'bogus'", "inprocess, ray"]),
        (("--device", "gpu"), 5, ["'gpu'", "auto, cpu or cuda:N"]),
        (("--device", "cuda:99"), 5, ["cuda:99"]),
    ],
)
def test_a_wrong_option(options: tuple[str, str], code: int, words: list[str], study: Path, tmp_path: Path) -> None:
    error = refused(code, "simulate", study, "--out", tmp_path / "run", *options)
    assert [word for word in words if word not in error] == [], error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "--rounds", "0"),
        ("simulate", "--workers", "none"),
        ("simulate", "--repeats", "0"),
        ("simulate", "--bogus"),
        ("evaluate", "run"),
        ("bogus",),
    ],
)
def test_usage_errors_exit_2(arguments: tuple[str, ...]) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("Usage: ")
    assert "\nError: " in outcome.err


@pytest.mark.parametrize("arguments", [("-h",), ("--help",), ("simulate", "-h"), ("study", "check", "--help")])
def test_help(arguments: tuple[str, ...]) -> None:
    outcome = command(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage: " in outcome.out
    assert "\\[" not in outcome.out
    assert "Usage: " in command().err  # without arguments: help, but not what was asked for


# -- data ----------------------------------------------------------------------------------


def torn(folder: Path) -> Path:
    """A patient's images in several splits."""
    splits, labels = ("train", "val", "test"), ("normal", "pneumonia")
    return images(folder, [f"{n}.png,{labels[n % 2]},p{n // 3},{splits[n % 3]}" for n in range(60)])


def without_sheet(folder: Path) -> Path:
    (images(folder, rows(3)) / "labels.csv").unlink()
    return folder


DATA: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "nowhere": (lambda path: path, ["data", "no such file or folder"]),
    "without a sheet": (without_sheet, ["data", "no known layout", "labels.csv"]),
    "empty sheet": (lambda path: saved(images(path, []) / "labels.csv", "").parent, ["labels.csv", "empty"]),
    "no rows": (lambda path: images(path, []), ["labels.csv", "no rows", "one row per image"]),
    "missing column": (lambda path: images(path, rows(), "file,labl,patient,split"), ["labels.csv", "'label'", "labl"]),
    "label outside": (
        lambda path: images(path, [*rows(), "60.png,tumour,p60,"]),
        ["'tumour'", "classes", "data.other or data.uncertain"],
    ),
    "patient in two splits": (torn, ["20 patients", "more than one split", "p0", "put each patient into one"]),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_unusable_data(case: str, study: Path, tmp_path: Path) -> None:
    make, words = DATA[case]
    error = refused(3, "simulate", study, "--data", make(tmp_path / "data"), "--out", tmp_path / "run")
    assert [word for word in words if word not in error] == [], error
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_counted_and_listed_up_to_the_studys_share(study: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "data", rows(), bad=("3.png", "4.png"))
    error = refused(3, "simulate", study, "--data", data, "--out", tmp_path / "run")
    assert "2 of 60 images cannot be read (the study allows 1%)" in error
    assert "first 3.png: is no image" in error or "first 4.png: is no image" in error
    assert "data.max_unreadable" in error
    assert not (tmp_path / "run").exists()

    saved(study, STUDY.replace("data: {", "data: {max_unreadable: 0.05, "))
    outcome = command("simulate", study, "--data", data, "--out", tmp_path / "run", "--arms", "federated")
    assert outcome.code == 0, outcome.err
    assert "2 unreadable images left out" in outcome.err
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["file"] for row in found["unreadable"]} == {"3.png", "4.png"}
    assert sum(sum(site["images"].values()) for site in found["sites"].values()) == 58
    page = (tmp_path / "run" / "report.html").read_text()
    assert "3.png" in page
    assert "4.png" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sites: 500", ["500 sites", "use at most"]),
        ("sites: 20, min_per_class: 1, min_per_site: 30", ["min_per_site 30", "fewer sites"]),
        ("sites: 2, min_per_class: 50", ["min_per_class 50", "'normal'", "fewer sites"]),
    ],
)
def test_sites_that_would_be_empty_or_lack_a_class(change: str, words: list[str], study: Path, tmp_path: Path) -> None:
    saved(study, STUDY.replace("sites: 2, min_per_site: 2", change))
    error = refused(3, "simulate", study, "--out", tmp_path / "run")
    assert [word for word in words if word not in error] == [], error
    assert not (tmp_path / "run").exists()


# -- the run's folder ----------------------------------------------------------------------


def test_a_folder_in_use_is_left_alone(study: Path, finished: Path, unfinished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    saved(other / "mine.txt", "precious")
    for out, words in (
        (finished, "holds a finished run; choose another --out"),
        (unfinished, f"continue it with --resume {unfinished}"),
        (other, "exists and is not empty; choose another --out"),
        (other / "mine.txt", "exists and is a file; choose another --out"),
        (other / "mine.txt" / "run", "Not a directory"),
    ):
        before = sorted(out.rglob("*"))
        assert words in refused(8, "simulate", study, "--out", out)
        assert sorted(out.rglob("*")) == before
    assert (other / "mine.txt").read_text() == "precious"


def test_resuming_what_cannot_be_resumed(finished: Path, unfinished: Path, tmp_path: Path) -> None:
    assert "it has no run.json" in refused(8, "simulate", "--resume", tmp_path)
    assert "it has no run.json" in refused(8, "simulate", "--resume", tmp_path / "none")
    assert "leave out --rounds, --device" in refused(
        8, "simulate", "--resume", unfinished, "--rounds", 3, "--device", "cpu"
    )
    assert "leave out STUDY" in refused(8, "simulate", tmp_path / "study.yaml", "--resume", unfinished)
    manifest = unfinished / "run.json"
    good = manifest.read_text()
    for text, words in (
        (good[:100], "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({**json.loads(good), "format": 99}), "has format 99"),
        (json.dumps({**json.loads(good), "plan": {"bogus": 1}}), "is damaged"),
    ):
        manifest.write_text(text)
        error = refused(8, "simulate", "--resume", unfinished)
        assert words in error
        assert "start the run anew" in error
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "report.html").unlink()
    (copy / "run.json").write_bytes(b"\xff\xfe")
    assert "is damaged" in refused(8, "simulate", "--resume", copy)


def test_a_finished_run_is_shown_and_not_computed_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    outcome = command("simulate", "--resume", finished)
    assert outcome.code == 0
    assert "finished already" in outcome.err
    assert "federated" in outcome.out
    assert f"report: {finished / 'report.html'}" in outcome.out
    as_json = command("simulate", "--resume", finished, "--json")
    assert json.loads(as_json.out)["event"] == "finished"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_one_process_at_a_time_plays_a_run(unfinished: Path) -> None:
    before = (unfinished / "events.jsonl").read_bytes()
    with (unfinished / "events.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process" in refused(8, "simulate", "--resume", unfinished)
    assert (unfinished / "events.jsonl").read_bytes() == before


# -- evaluate and report -------------------------------------------------------------------


def test_evaluate_takes_every_row_and_prints_json(finished: Path, tmp_path: Path) -> None:
    splits = ("train", "val", "test", "train")
    data = images(tmp_path / "data", [row + splits[n % 4] for n, row in enumerate(rows(40))])
    outcome = command("evaluate", finished, "--data", data, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert len(outcome.out.splitlines()) == 1
    assert found["images"] == 40
    assert sum(map(sum, found["confusion"]["pneumonia"])) == 40
    assert found["test"].keys() == {
        "auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1",
    }  # fmt: skip
    assert all(cell.keys() == {"value", "low", "high"} for cell in found["test"].values())
    plain = command("evaluate", finished, "--data", data).out
    assert "40 images of 40 patients from folder data" in plain
    for name, cell in found["test"].items():
        assert f"{name:<20}{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" in plain


def test_evaluate_refuses_and_leaves_no_temporary_files(
    finished: Path, unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    good = images(tmp_path / "good", rows(20))
    damaged = shutil.copytree(finished, tmp_path / "damaged", ignore=shutil.ignore_patterns("sites", "state"))
    (damaged / "model.safetensors").write_bytes(b"damaged")
    for code, run, data, words in (
        (8, unfinished, good, "it is not finished"),
        (8, tmp_path, good, "it is not a run's folder"),
        (2, damaged, good, "model.safetensors: not a readable"),
        (3, finished, tmp_path / "none", "no such file or folder"),
        (3, finished, images(tmp_path / "cats", rows(20, ("cat", "dog"))), "'cat' (10 images), 'dog' (10 images)"),
        (3, finished, images(tmp_path / "unknown", rows(20, ("unknown",))), "its classes are normal, pneumonia"),
        (3, finished, images(tmp_path / "bad", rows(20), bad=("7.png",)), "1 of 20 images cannot be read"),
    ):
        assert words in refused(code, "evaluate", run, "--data", data)
    (damaged / "model.json").write_text("{}")
    assert "model.json is damaged" in refused(8, "evaluate", damaged, "--data", good)
    assert "cuda:99" in refused(5, "evaluate", finished, "--data", good, "--device", "cuda:99")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "format None"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1}', "'arms' is missing"),
        (None, "it is not finished"),
    ],
)
def test_report_on_damaged_results(text: str | None, words: str, unfinished: Path, tmp_path: Path) -> None:
    if text is not None:
        saved(unfinished / "results.json", text)
    for arguments in ((), ("--out", tmp_path / "page")):
        error = refused(8, "report", unfinished, *arguments)
        assert words in error
        assert str(unfinished) in error
    assert not (tmp_path / "page").exists()
    assert not (unfinished / "report.html").exists()


def test_report_on_other_mistakes(finished: Path, tmp_path: Path) -> None:
    assert "it is not a run's folder" in refused(8, "report", tmp_path)
    assert "it is not a run's folder" in refused(8, "report", tmp_path / "none")
    assert "add --out DIR" in refused(8, "report", finished, finished)
    file = saved(tmp_path / "file", "mine")
    assert "choose another --out" in refused(8, "report", finished, "--out", file)
    assert "it is not a run's folder" in refused(8, "report", file)
    assert file.read_text() == "mine"
    outcome = command("report", finished, "--out", tmp_path / "page")
    assert outcome.out == f"{tmp_path / 'page' / 'report.html'}\n"
    assert (tmp_path / "page" / "metrics.csv").exists()
