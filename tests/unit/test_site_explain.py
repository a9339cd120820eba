"""``fedward site explain``: pictures of patients, only where the operator says, only for a model that is verified."""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from client.explaining import heatmaps
from common.package import CARD, WEIGHTS
from fedward import app
from tests.unit.test_agent import OURS, Site
from tests.unit.test_delivery import Run

FOLDER = f"tiny-{OURS.hash[:12]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("explain"))
    made.survey()
    made.approve()
    made.send(Run(made).request())
    yield made
    made.agent.close()


def typed(site: Site, model: str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(
        app, ["site", "explain", model, "--out", str(out), "--site", str(site.home.directory), "--device", "cpu", *more]
    )


@pytest.mark.parametrize("name", [FOLDER, OURS.hash[:6], f"models/{FOLDER}"])
def test_pictures_are_for_the_operator_alone_and_on_record_with_their_place(
    site: Site, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "maps"
    before = len(site.events("explained"))
    found = typed(site, name, out, "--images", "3")
    assert found.exit_code == 0, found.output
    assert "images of patients, in the clear" in found.output
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert sorted(path.name for path in out.iterdir()) == ["0001.png", "0002.png", "0003.png", "index.csv"]
    with (out / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    with site.home.vault(read_only=True) as vault:
        for row in rows:
            image = vault.row(int(row["vault_row"]))
            assert (image.split, row["class"]) == ("test", "pneumonia")
            assert 0.0 <= float(row["score"]) <= 1.0
            with Image.open(out / row["file"]) as opened:
                assert opened.width == 2 * opened.height
    facts = site.events("explained")
    assert len(facts) == before + 1
    assert facts[-1]["folder"] == str(out) and facts[-1]["pictures"] == 3
    assert facts[-1]["study"] == OURS.hash


def test_as_json_it_tells_no_image_by_itself(site: Site, tmp_path: Path) -> None:
    found = typed(site, FOLDER, tmp_path / "maps", "--images", "2", "--json")
    told = json.loads(found.stdout)
    assert set(told) == {"folder", "pictures", "method", "faithfulness"}
    assert told["faithfulness"]["deletion"]["patients"] <= 2


def test_a_folder_that_is_there_is_not_written_to(site: Site, tmp_path: Path) -> None:
    before = len(site.events("explained"))
    for there in (tmp_path, tmp_path / "absent" / "maps"):
        assert typed(site, FOLDER, there).exit_code != 0
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert typed(site, FOLDER, tmp_path / "link").exit_code != 0
    assert not (tmp_path / "elsewhere").exists()
    assert len(site.events("explained")) == before


def test_a_model_that_was_changed_is_not_used(site: Site, tmp_path: Path) -> None:
    for part in (WEIGHTS, CARD):
        path = site.home.directory / "models" / FOLDER / part
        kept = path.read_bytes()
        try:
            path.write_bytes(kept[:-1] + b"x")
            found = typed(site, FOLDER, tmp_path / "maps")
            assert found.exit_code != 0
            assert not (tmp_path / "maps").exists()
        finally:
            path.write_bytes(kept)


@pytest.mark.parametrize("name", ["tiny", OURS.hash[:5], "tiny-000000000000", ""])
def test_a_model_is_named_for_certain(site: Site, tmp_path: Path, name: str) -> None:
    found = typed(site, name, tmp_path / "maps")
    assert found.exit_code != 0
    assert FOLDER in str(found.exception)


def test_what_cannot_be_finished_leaves_no_picture(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(self: heatmaps.HeatMaps, *given: object) -> object:
        calls.append(given)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return real(self, *given)  # type: ignore[arg-type]

    real = heatmaps.HeatMaps.of
    monkeypatch.setattr(heatmaps.HeatMaps, "of", full)
    found = typed(site, FOLDER, tmp_path / "maps")
    assert "No space left" in str(found.exception)
    assert not (tmp_path / "maps").exists()
    assert site.events("explained"), "what was begun is on record all the same"
