"""What the command line makes of its options, and how it reads runs back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import DeviceError, ModelError, RunError, StudyError
from common.study import Study
from simulations.cli import check_device, check_parts, given, parse_arms, read_results, refuse_changes
from simulations.run import default_out
from tests.unit import fake_results


def study(**changes: object) -> Study:
    made = Study.parse("name: A study v1.2\ntask: binary\nclasses: [normal, pneumonia]\n")
    return made.derive(**changes)


def test_arms_come_in_the_order_of_reports() -> None:
    assert parse_arms("pooled, federated") == ("federated", "pooled")
    assert parse_arms("local,local") == ("local",)
    for wrong in ("", ",", "federated,none"):
        with pytest.raises(StudyError, match=r"--arms: .*known: federated, local, pooled"):
            parse_arms(wrong)


def test_only_given_options_count() -> None:
    assert given({"a": None, "b": 0, "c": ""}) == {"b": 0, "c": ""}
    refuse_changes({"--rounds": None, "--seed": None})
    with pytest.raises(RunError, match="leave out --rounds, --seed"):
        refuse_changes({"--rounds": 3, "--seed": 0, "--arms": None})


def test_parts_are_checked_in_the_studys_name() -> None:
    check_parts(study(), Path("a.yaml"))
    with pytest.raises(StudyError, match=r"a\.yaml: federation\.strategy\.params\.mom: "):
        check_parts(study(**{"federation.strategy": {"name": "fedavg", "params": {"mom": 1}}}), Path("a.yaml"))
    with pytest.raises((StudyError, ModelError), match=r"a\.yaml: model\.params\.depth: "):
        check_parts(study(**{"model.params": {"depth": 3}}), Path("a.yaml"))


def test_devices_are_never_replaced_by_another() -> None:
    assert check_device("cpu") == "cpu"
    for wrong in ("gpu", "cuda:99", ""):
        with pytest.raises(DeviceError):
            check_device(wrong)


def test_a_runs_folder_is_named_after_time_and_study() -> None:
    assert default_out(study(), lambda: "20260101-120000") == Path("runs/20260101-120000-a-study-v1-2")


def test_repeats_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / f"repeat-{number}").mkdir()
        result = fake_results.results(repeat=number - 1)
        (tmp_path / f"repeat-{number}" / "results.json").write_text(json.dumps(result))
    (tmp_path / "repeat-x").mkdir()
    (tmp_path / "repeat-x" / "results.json").write_text("{")
    (tmp_path / "results.json").write_text("{")  # a summary of the repeats, which are read themselves
    assert [result["repeat"] for result in read_results([tmp_path])] == [0, 1, 9]


def test_results_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no results: it is not a run's folder"):
        read_results([tmp_path / "none"])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"it is not finished; continue it with `fedward simulate --resume "):
        read_results([tmp_path])
    (tmp_path / "results.json").write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"results\.json is damaged"):
        read_results([tmp_path])
    (tmp_path / "results.json").unlink()
    (tmp_path / "results.json").mkdir()
    with pytest.raises(RunError, match=r"results\.json cannot be read"):
        read_results([tmp_path])
