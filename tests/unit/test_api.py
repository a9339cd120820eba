"""``simulations.simulate`` and ``Simulation``: arguments, data frames, figures. Whole runs are in tests/integration."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulations
from common.errors import DeviceError, FedwardError, RunError, StudyError
from common.study import FederationSpec, Study
from simulations import api
from simulations.outcome import Simulation
from tests.unit import fake_results

SMALL: dict[str, Any] = {"name": "s", "task": "binary", "classes": ["normal", "pneumonia"]}


# -- arguments -----------------------------------------------------------------------------


def test_a_study_may_be_given_in_any_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "of" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("name: s\ntask: binary\nclasses: [normal, pneumonia]\n")
    study = Study.load(path)
    for given in (study, SMALL, path.read_text(), "{name: s, task: binary, classes: [normal, pneumonia]}"):
        assert api.read_study(given) == (study, Path("study"))
    assert api.read_study(path) == (study, path)
    assert api.read_study("of/mine.yaml") == (study, Path("of/mine.yaml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert api.read_study("~/of/mine.yaml") == (study, path)


def test_a_mapping_may_hold_what_python_has() -> None:
    mapping = SMALL | {
        "seed": np.int64(5),
        "federation": FederationSpec(rounds=3),
        "governance": {"expires": dt.date(2030, 1, 2)},
        "image": {"size": np.int32(32)},
    }
    study, _ = api.read_study(mapping)
    assert (study.seed, study.federation.rounds, study.image.size) == (5, 3, 32)
    assert study.governance.expires == dt.date(2030, 1, 2)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({**SMALL, "federation": {"round": 3}}, "did you mean 'rounds'"),
        ({**SMALL, "seed": True}, "study: seed"),
        ({**SMALL, (1, 2): 3}, "study: not plain data"),
        ("gone.yaml", "gone.yaml: no such study file"),
        ("name: s\nname: t\n", "study"),
        (7, "study: a int; give a Study, a study file's path, a mapping or YAML text"),
        (None, "study: a NoneType; give"),
    ],
)
def test_a_mistaken_study_is_said(study: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        simulations.simulate(study)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"engine": "spark"}, StudyError, "unknown engine 'spark'; known: inprocess, ray"),
        ({"arms": ["federated", "loocal"]}, StudyError, "unknown arm 'loocal'; known: federated, local, pooled"),
        ({"arms": ()}, StudyError, "unknown arm"),
        ({"repeats": 0}, RunError, "repeats must be a whole number ≥ 1, got 0"),
        ({"workers": 1.5}, RunError, "workers must be a whole number ≥ 1"),
        ({"threads": True}, RunError, "threads must be a whole number ≥ 1"),
        ({"device": "tpu"}, DeviceError, "tpu"),
        ({"data": "nowhere"}, FedwardError, "nowhere: no such file or folder"),
        ({"study": {**SMALL, "model": {"params": {"filter": [8]}}}}, FedwardError, "filter"),
    ],
)
def test_a_mistaken_option_is_said_and_leaves_nothing(
    options: dict[str, Any], kind: type[FedwardError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        simulations.simulate(**{"study": SMALL, **options})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty; choose another"):
        simulations.simulate(SMALL, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# -- scripts and processes -----------------------------------------------------------------


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys, simulations; before = set(sys.modules); simulations.simulate; "
        "heavy = {'torch', 'flwr', 'pandas', 'matplotlib', 'numpy', 'pydantic', 'cv2'}; "
        "print(sorted(heavy & before), sorted({'torch', 'flwr', 'pandas', 'matplotlib'} & set(sys.modules))); "
        "print('simulate' in dir(simulations), hasattr(simulations, 'simulation'))"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[] []", "True False"], done.stderr


def test_where_a_script_calls_is_seen(tmp_path: Path) -> None:
    """Only a call that every reading of the main script repeats is at its top level."""
    (tmp_path / "helper.py").write_text("from simulations.api import _called_at_top_level as top\nimported = top()\n")
    (tmp_path / "script.py").write_text(
        "from simulations.api import _called_at_top_level as top\n"
        "def work():\n"
        "    return top()\n"
        "import helper\n"
        "print(top(), work(), helper.imported)\n"
        "if __name__ == '__main__':\n"
        "    print(top(), work())\n"
        "if True:\n"
        "    if 'x' != __name__:\n"
        "        print(top())\n"
    )
    for command in (["script.py"], ["-m", "script"]):
        done = python(*command, cwd=tmp_path)
        assert done.stdout.splitlines() == ["True True True", "False False", "False"], done.stderr
    code = "from simulations.api import _called_at_top_level as top; print(top())"
    assert python("-c", code, cwd=tmp_path).stdout == "False\n"


def test_an_unguarded_script_with_workers_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import simulations\nsimulations.simulate('s.yaml', out='run', workers=2)\n")
    done = python("script.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("common.errors.RunError: with workers > 1 each worker process reads")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_worker_that_reads_the_script_does_not_simulate(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing, simulations\n"
        "try:\n"
        "    simulations.simulate('gone.yaml')\n"
        "except Exception as error:\n"
        "    print(__name__, error, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print, args=('child ran',))\n"
        "    child.start()\n"
        "    child.join()\n"
    )
    lines = python("script.py", cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith("__main__ gone.yaml: no such study file")
    assert lines[1].startswith("__mp_main__ with workers > 1 each worker process reads this script again")
    assert lines[2] == "child ran"


# -- what came of it -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    return fake_results.results()


@pytest.fixture(scope="module")
def run(raw: dict[str, Any]) -> Simulation:
    return Simulation(Path("runs/one"), [raw])


def test_metrics_have_every_result_of_the_run(run: Simulation, raw: dict[str, Any]) -> None:
    frame = run.metrics
    assert list(frame.columns) == ["repeat", "arm", "site", "tested_on", "metric", "value", "low", "high"]
    assert not frame.duplicated(["repeat", "arm", "site", "tested_on", "metric"]).any()

    def cells(**where: str) -> dict[str, float]:
        found = frame
        for column, value in where.items():
            found = found[found[column] == value]
        return dict(zip(found["metric"], found["value"], strict=True))

    def values(metrics: dict[str, Any]) -> dict[str, float]:
        return {name: np.nan if cell["value"] is None else cell["value"] for name, cell in metrics.items()}

    arms = raw["arms"]
    for arm in ("federated", "local", "pooled"):
        assert cells(arm=arm, site="all") == pytest.approx(values(arms[arm]["test"]), nan_ok=True)
    for site in raw["sites"]:
        own = cells(arm="federated", site=site, tested_on=site)
        assert own == pytest.approx(values(arms["federated"]["sites"][site]["test"]), nan_ok=True)
        alone = arms["local"]["sites"][site]
        assert cells(arm="local", site=site, tested_on="all") == pytest.approx(values(alone["all_test"]), nan_ok=True)
        assert cells(arm="local", site=site, tested_on=site) == pytest.approx(values(alone["test"]), nan_ok=True)
    assert set(frame["site"]) == {"all", *raw["sites"]}


def test_an_undefined_number_is_nan_in_a_float_column(raw: dict[str, Any]) -> None:
    nothing = dict.fromkeys(("value", "low", "high"))
    arms = {"federated": {**raw["arms"]["federated"], "test": {"auc": nothing}, "per_class": {}, "sites": {}}}
    frame = Simulation(Path("r"), [{**raw, "arms": arms, "differences": []}]).metrics
    assert frame[["value", "low", "high"]].dtypes.tolist() == [np.float64] * 3
    assert frame[["value", "low", "high"]].isna().to_numpy().all()
    assert len(frame) == 1


def test_history_sites_and_differences(run: Simulation, raw: dict[str, Any]) -> None:
    history = run.history
    federated = history[history["arm"] == "federated"]
    assert federated["train_loss"].tolist() == [e["train_loss"] for e in raw["arms"]["federated"]["history"]]
    assert federated.loc[federated["kept"], "round"].tolist() == [raw["arms"]["federated"]["kept_round"]]
    assert set(history.loc[history["arm"] == "local", "site"]) == set(raw["sites"])
    sites = run.sites.set_index(["site", "split"])
    for name, site in raw["sites"].items():
        for split, images in site["images"].items():
            row = sites.loc[(name, split)]
            assert (row["images"], row["patients"]) == (images, site["patients"][split])
            assert row["n_normal"] + row["n_pneumonia"] == images
    differences = run.differences
    assert len(differences) == len(raw["differences"])
    assert differences["value"].tolist() == pytest.approx([d["value"] for d in raw["differences"]], nan_ok=True)
    comparisons = run.comparisons
    assert len(comparisons) == sum(len(row["overall"]) for row in raw["comparisons"])
    auc = comparisons[comparisons["metric"] == "auc"].set_index("b")
    for row in raw["comparisons"]:
        of = row["overall"]["auc"]
        assert auc.loc[row["b"], ["value", "p", "p_holm"]].tolist() == pytest.approx(
            [of["value"], of["p"], of["p_holm"]]
        )
    per_class = run.per_class
    assert set(per_class["class"]) == {"pneumonia"}
    assert set(per_class["arm"]) == {"federated", "pooled"}


def test_a_frame_may_be_changed_without_changing_the_run(run: Simulation) -> None:
    frame = run.metrics
    frame["value"] = 0.0
    assert run.metrics["value"].max() > 0.0


def test_repeats_are_told_apart() -> None:
    run = Simulation(Path("r"), [fake_results.results(repeat=i, seed=7 + i) for i in range(3)])
    assert sorted(set(run.metrics["repeat"])) == [0, 1, 2]
    assert sorted(set(run.history["repeat"])) == [0, 1, 2]
    assert "mean over 3 repeats" in run._repr_html_()
    assert run.roc(repeat=2).axes
    with pytest.raises(RunError, match="repeat 3 is not in this run; it has repeats 0 to 2"):
        run.roc(repeat=3)


def test_figures_are_the_reports_and_say_that_images_are_synthetic(run: Simulation, raw: dict[str, Any]) -> None:
    for figure in (run.roc(), run.learning_curves(), run.partition()):
        assert figure.get_suptitle() == "synthetic images"
        assert vars(figure)["_repr_png_"]().startswith(b"\x89PNG")
    assert run.roc().axes[0].get_title("left") == "ROC: pneumonia"
    assert [axes.get_title("left") for axes in run.learning_curves().axes] == ["Validation AUC", "Training loss"]
    assert {label.get_text() for label in run.partition().axes[0].get_yticklabels()} == set(raw["sites"])
    assert Simulation(Path("r"), [{**raw, "synthetic": False}]).roc().get_suptitle() == ""


def test_many_hospitals_are_drawn_by_their_ends() -> None:
    run = Simulation(Path("r"), [fake_results.results(sites=40)])
    axes = run.partition().axes[0]
    assert axes.get_title("left") == "Images by class: the 10 largest and 10 smallest"
    assert len(axes.get_yticklabels()) == 20


def test_roc_of_a_class() -> None:
    run = Simulation(Path("r"), [fake_results.multiclass()])
    assert run.roc("viral pneumonia").axes[0].get_title("left") == "ROC: viral pneumonia"
    assert run.roc().axes[0].get_title("left") == "ROC: normal"
    with pytest.raises(RunError, match="no ROC curve of class 'virus'; classes that have one: normal, bacterial"):
        run.roc("virus")


def test_curves_that_were_not_recorded(raw: dict[str, Any]) -> None:
    arm = {**raw["arms"]["federated"], "roc": {}, "history": []}
    run = Simulation(Path("r"), [{**raw, "arms": {"federated": arm}}])
    with pytest.raises(RunError, match="there is no ROC curve; classes that have one: none"):
        run.roc()
    with pytest.raises(RunError, match="no round was recorded"):
        run.learning_curves()


def test_the_table_of_a_notebook_names_what_it_shows_and_runs_nothing(raw: dict[str, Any]) -> None:
    run = Simulation(Path("<b>runs</b>"), [{**raw, "source": "folder <script>alert(1)</script>"}])
    table = run._repr_html_()
    assert "SYNTHETIC images" in table
    assert table.count("<th>") == 1 + 3 + 7  # a corner, three arms, seven metrics
    assert "<script" not in table
    assert "<b>runs" not in table
    assert "SYNTHETIC images" in repr(run)


def test_an_unfinished_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="it is not a run's folder"):
        Simulation.open(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="continue it with `fedward simulate --resume"):
        Simulation.open(os.fspath(tmp_path))
