"""The house stands as DESIGN draws it: layers, one place for all rooms, nothing private or machine-bound in git."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("client", "common", "server", "simulations")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """Files in git and files that could be added to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    """Tracked files that are text, the lock and the licence aside."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192] and path.name not in {"LICENSE", "requirements.lock"}:
            found.append((path.relative_to(ROOT), data.decode("utf-8")))
    return found


def test_the_import_contracts_hold() -> None:
    # In a process of its own: import-linter sets logging up anew, and later tests would hear no logger any more.
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == EXIT_STATUS_SUCCESS, done.stdout + done.stderr
    assert "Contracts: 2 kept, 0 broken." in done.stdout


def test_every_room_and_the_front_door_are_linted_typed_and_shipped() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(ROOMS)
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == packages
    assert set(PROJECT["tool"]["mypy"]["files"]) == packages | {"fedward.py"}
    assert {
        name.strip("/") for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]
    } == packages | {"fedward.py", "configs/papers"}  # what `fedward reproduce` reads
    for room in ROOMS:
        assert (ROOT / room / "py.typed").is_file()


def test_all_rooms_come_from_one_place() -> None:
    """The names are generic (docs/decisions/0001): another installed ``common`` or ``client`` must never win."""
    homes = {Path(str(importlib.import_module(name).__file__)).resolve() for name in (*ROOMS, "fedward")}
    assert {path.parent if path.name == "fedward.py" else path.parents[1] for path in homes} == {ROOT}


def test_all_rooms_come_from_one_place_when_installed(tmp_path: Path) -> None:
    """From another directory, as the ``fedward`` command sees them; the environment holds nothing by these names."""
    names = (*ROOMS, "fedward")
    code = f"import {', '.join(names)}; print(*(module.__file__ for module in ({', '.join(names)})))"
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, f"not installed: run `make setup`\n{run.stderr}"
    assert {Path(name).parent.parent if "__init__" in name else Path(name).parent for name in run.stdout.split()} == {
        ROOT
    }


LOOKING = (
    "client.cli client.study_cli client.situation client.doctor client.audit_cli client.ledger_cli "
    "server.cli server.run_cli server.doctor"
)


@pytest.mark.parametrize("commands", LOOKING.split())
def test_commands_that_only_look_do_not_wait_for_torch(commands: str) -> None:
    """Monitoring asks ``status --check`` every minute."""
    code = f"import sys, {commands}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "flwr", "opacus"} & set(run.stdout.split())


def test_common_can_be_imported_without_heavy_libraries() -> None:
    """``fedward --help`` and ``fedward study check`` must answer at once."""
    code = "import sys, common.study; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    heavy = {
        "torch",
        "numpy",
        "flwr",
        "ray",
        "cv2",
        "pandas",
        "scipy",
        "sklearn",
        "matplotlib",
        "opacus",
        "torchvision",
    }
    assert not heavy & set(run.stdout.split())


MACHINE_BOUND = {
    "a machine's path": re.compile(r"(?<![\w.$}/-])/(?:root|home|work|opt|mnt|Users)/[\w.-]+"),
    "a temporary file": re.compile(r"(?<![\w.$}/-])/tmp/[\w.-]+"),
    "a registry or mirror": re.compile(
        r"(?:pypi|pythonhosted|npmjs|registry\.|mirror|artifactory|nexus|debian)[\w.-]*\.(?:org|com|io|net|local)\b|index-url"
    ),
    "a private address": re.compile(r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b"),
    "a private key": re.compile("-----BEGIN [A-Z ]*PRIVATE " + "KEY-----"),
}  # fmt: skip


OF_AN_IMAGE = re.compile(r"/opt/fedward|/tmp/")
ABOUT_IMAGES = ("containers", "test_containers")
"""Paths that docker/, its guide and its test may name: of every container, and so of no machine."""


def test_no_file_names_a_machine_or_a_registry() -> None:
    here = Path(__file__).relative_to(ROOT)
    found = [
        f"{path}:{text[: match.start()].count(chr(10)) + 1}: {kind}: {match.group()}"
        for path, text in texts()
        if path != here
        for kind, pattern in MACHINE_BOUND.items()
        for match in pattern.finditer(text)
        if not (path.name == "Makefile" and match.group() == "index-url")  # --no-emit-index-url
        if not (OF_AN_IMAGE.match(match.group()) and (path.parts[0] == "docker" or path.stem in ABOUT_IMAGES))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('open("/home/someone/x")', "a machine's path"),
        ("cd /tmp/build", "a temporary file"),
        ("https://pypi.org/simple", "a registry or mirror"),
        ("--index-url", "a registry or mirror"),
        ("host 192.168.1.4", "a private address"),
    ],
)
def test_the_search_finds_what_it_is_for(line: str, kind: str) -> None:
    assert MACHINE_BOUND[kind].search(line)


def test_the_lock_is_hashed_and_names_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    entries = [entry for entry in re.split(r"\n(?=\S)", lock.strip()) if not entry.startswith("#")]
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
    pinned = {re.split("==", entry)[0].lower() for entry in entries}
    declared = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    assert {re.split(r"[\[<>=~! ;]", name)[0].lower() for name in declared} <= pinned
    assert {"uv", "hatchling"} <= pinned  # what `make setup` itself needs


def test_no_unfinished_work_is_left() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b")
    here = Path(__file__).relative_to(ROOT)
    found = [str(path) for path, text in texts() if path.suffix == ".py" and path != here and marks.search(text)]
    assert not found, found
