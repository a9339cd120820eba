"""The survey over real sites: what they tell, what is kept of it, who lies, and what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from client.describe import _surveyed
from client.policy import TEMPLATE, Policy
from client.site import Site
from client.survey import pixel_sums, take
from client.training import FitSeed, LocalFit
from client.vault.view import View, ViewCache
from common import protocol
from common.basis import Basis
from common.errors import DataError, ProtocolError, QuorumError, RunError, StudyError
from common.models import build
from common.study import Study
from common.survey import SPLITS, PixelSums, Survey, images_told
from common.weights import digest, state_of
from server import survey as surveys
from server.app import federate
from server.asking import Link
from server.results import read_card
from server.rounds import Arm
from server.survey_findings import findings
from server.survey_page import page, write_page
from server.work import Work
from simulations.engine import InProcessGrid
from simulations.external import evaluate_run
from tests.unit import federation as fed
from tests.unit.page_laws import assert_sound
from tests.unit.survey_fixtures import SIZE, survey_study

SITES = ("site-1", "site-2", "site-3")
NODES = {alias: 1000 + index for index, alias in enumerate(SITES)}
OURS = fed.study(**{"image.normalise": "federated", "training.class_weighting": "federated", "model.norm": "group"})


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fed.make_sites(tmp_path_factory.mktemp("survey") / "sites", OURS)


@pytest.fixture
def grid(homes: dict[str, Path]) -> Iterator[InProcessGrid]:
    with closing(InProcessGrid(list(homes.values()))) as made:
        yield made


def work(**more: Any) -> Work:
    return Work(OURS, "federated", 0, NODES, **more)


def link(grid: Any, events: fed.Events | None = None) -> Link:
    return Link(grid, (events or fed.Events()).log)


# --- the study ------------------------------------------------------------------------------------------------------


def test_a_study_says_what_it_surveys_and_options_ask_for_what_they_need() -> None:
    plain = fed.study()
    assert plain.surveyed == ()
    assert fed.study(survey=["pixels", "classes"]).survey == ("classes", "pixels")
    assert fed.study(survey=["pixels", "classes"]).hash == fed.study(survey=["classes", "pixels", "pixels"]).hash
    assert fed.study(**{"image.normalise": "federated"}).surveyed == ("pixels",)
    assert fed.study(**{"training.class_weighting": "federated"}).surveyed == ("classes",)
    with pytest.raises(StudyError, match="survey"):
        fed.study(survey=["names"])
    assert b"survey" not in plain.canonical() and b"normalise" not in plain.canonical(), "hashes stay as they were"
    assert len({plain.hash, OURS.hash, fed.study(survey=["classes"]).hash}) == 3
    assert Study.parse(OURS.canonical().decode()) == OURS


def test_people_read_what_a_survey_would_tell() -> None:
    assert _surveyed(fed.study()) == ""
    text = _surveyed(OURS.derive(**{"evaluation.min_cell": 10}))
    for words in ("images and patients of each class", "all pixels", "fewer than 10 patients", "Every site is sent"):
        assert words in text
    assert "Every site" not in _surveyed(fed.study(survey=["classes"]))


def test_a_policy_must_name_what_a_survey_tells() -> None:
    asking = OURS.derive(**{"evaluation.min_cell": 10})
    assert not Policy.decode(TEMPLATE.encode()).objections(asking)
    older = re.sub(r"(?m)^statistics: \[.*?\]", "statistics: [survey, scores, moments]", TEMPLATE)
    (objection,) = Policy.decode(older.encode()).objections(asking)
    assert objection.code == "policy-statistics"
    assert "its survey asks for classes, pixels" in objection.text
    unwritten = "\n".join(line for line in TEMPLATE.splitlines() if not line.startswith("statistics"))
    assert Policy.decode(unwritten.encode()).objections(asking), "what is left out allows nothing"


# --- a site ---------------------------------------------------------------------------------------------------------


def test_a_site_tells_what_its_images_are(homes: dict[str, Path]) -> None:
    site = Site.open(homes["site-1"], ViewCache(1 << 30))
    told = take(site, OURS)
    assert told.classes is not None
    view = site.view(OURS, "train")
    assert isinstance(view, View)
    assert told.pixels is not None
    wide = view.images.numpy().astype(np.int64)
    assert (told.pixels.total, told.pixels.squares) == ((int(wide.sum()),), (int((wide**2).sum()),))
    images = site.images(OURS)
    for number, split in enumerate(SPLITS):
        own = site.view(OURS, split)  # type: ignore[arg-type]
        assert told.classes.images[number, :, 1].tolist() == own.targets.sum(0).int().tolist()
        assert told.classes.images[number].sum() == images[split]
    Survey.from_arrays(told.to_arrays(), OURS, images)
    assert take(site, fed.study()) == Survey(None, None)
    site.close()


def test_everybodys_survey_is_the_pooled_sites(homes: dict[str, Path]) -> None:
    views, total = ViewCache(1 << 30), Survey.zero(OURS)
    for home in homes.values():
        with closing(Site.open(home, views)) as site:
            total += take(site, OURS)
    with closing(Site.open(homes["site-1"].parent / "pooled", views)) as site:
        pooled = take(site, OURS)
    assert pooled.pixels == total.pixels
    assert {n: a.tolist() for n, a in pooled.to_arrays().items()} == {
        n: a.tolist() for n, a in total.to_arrays().items()
    }


def test_pixels_of_too_few_patients_are_not_summed() -> None:
    made = survey_study("binary", 2, 4)
    images = torch.randint(0, 256, (5, 1, SIZE, SIZE), dtype=torch.uint8)
    for patients, told in (([0, 1, 2, 2, 2], 0), ([0, 1, 2, 3, 3], 5)):
        view = View(images, torch.eye(2)[[0, 1, 0, 1, 0]], torch.tensor(patients), max(patients) + 1, 0)
        assert pixel_sums(view, made).images == told


def test_a_small_class_is_not_the_difference_of_total_and_test() -> None:
    """``Counts`` leaves a small class out; so does the number of images that is told of those splits."""
    made = survey_study("binary", 2, 3)
    targets = np.eye(2, dtype=np.float32)[[0, 0, 0, 0, 1, 1]]
    rows = {split: (targets, np.array([0, 1, 2, 3, 4, 4])) for split in SPLITS}
    assert images_told(made, rows, 3) == {"train": 6, "val": 4, "test": 4}
    assert images_told(made, rows, 6) == {"train": 0, "val": 0, "test": 0}
    assert images_told(made, rows, 1) == {"train": 6, "val": 6, "test": 6}


def test_a_fit_normalises_and_weighs_with_everybodys_numbers() -> None:
    made = OURS
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (20, 1, 32, 32), dtype=torch.uint8, generator=generator)
    view = View(images, torch.eye(2)[torch.arange(20) % 2], torch.arange(20), 20, 0)
    seed = FitSeed(7, 0, "s", 1)

    def fitted(study: Study, basis: Basis | None) -> str:
        model = build(study, 1)
        LocalFit(model, view, study, seed, basis).run()
        return digest(state_of(model))

    plain = fed.study(**{"model.norm": "group"})
    one = Basis((0.4,), (0.2,), (0.8, 1.4))
    assert fitted(made, one) == fitted(made, one)
    assert len({fitted(made, one), fitted(made, replace(one, mean=(0.5,))), fitted(plain, None)}) == 3
    assert fitted(made, one) != fitted(made, replace(one, class_weights=(1.4, 0.8)))
    floats = view.floats(torch.arange(3))
    wanted = (floats - 0.4) / 0.2
    torch.testing.assert_close(one.normalised(floats.clone()), wanted)
    with pytest.raises(ProtocolError, match="class weights"):
        fitted(made, None)


# --- the coordinator ------------------------------------------------------------------------------------------------


def test_a_survey_is_asked_for_once_and_kept(grid: InProcessGrid, tmp_path: Path) -> None:
    events = fed.Events()
    first = surveys.take(link(grid, events), work(checkpoint=tmp_path / "state" / "checkpoint.safetensors"))
    assert first is not None
    assert list(first.sites) == list(SITES)
    kept = tmp_path / "state" / "survey.json"
    # Kept: later ones, with other sites or none at all, use the same numbers.
    nobody = replace(work(checkpoint=kept.with_name("checkpoint.safetensors")), sites={})
    again = surveys.take(link(None, events), nobody)
    assert again is not None
    assert again.basis == first.basis
    assert len(events.of("survey")) == 1
    other = replace(nobody, study=OURS.derive(seed=8))
    with pytest.raises(RunError, match="another study"):
        surveys.take(link(None), other)
    kept.write_text(kept.read_text().replace('"total"', "").replace("[", "[-1,", 3))
    with pytest.raises(RunError, match="is damaged"):
        surveys.take(link(None), nobody)
    assert surveys.take(link(None), replace(nobody, study=fed.study())) is None


def test_a_run_trains_with_its_survey_and_its_model_can_be_used(
    grid: InProcessGrid, homes: dict[str, Path], tmp_path: Path
) -> None:
    result = federate(link(grid), OURS, tmp_path, base=Path())
    card = read_card(tmp_path)
    assert card.basis is not None
    assert result["arms"]["federated"]["basis"] == card.basis.json()
    assert (tmp_path / "survey.html").exists()
    # All rows of the sites' vaults are tested here, so the numbers differ from the run's; without the basis they would
    # be those of another model.
    found = evaluate_run(tmp_path, homes["site-1"].parent)
    assert found["images"] == 60
    told = json.loads((tmp_path / "model.json").read_text())
    told["basis"]["mean"] = [0.9]
    told["basis"]["deviation"] = [0.1]
    (tmp_path / "model.json").write_text(json.dumps(told))
    assert evaluate_run(tmp_path, homes["site-1"].parent)["test"] != found["test"]
    for broken in (None, {"mean": [2.0], "deviation": [0.1], "class_weights": [1, 1]}, {"mean": []}, 3):
        (tmp_path / "model.json").write_text(json.dumps({**told, "basis": broken}))
        with pytest.raises(RunError, match="damaged"):
            read_card(tmp_path)


def test_without_the_surveys_numbers_nothing_is_trained(grid: InProcessGrid) -> None:
    with pytest.raises(QuorumError, match="protocol-mismatch"):
        Arm(link(grid), work()).run()
    strange = Basis((0.5,), (0.2,), ())
    with pytest.raises(QuorumError, match="protocol-mismatch"):
        Arm(link(grid), work(basis=strange)).run()


HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a field missing": {"pixels": np.zeros(3, np.int64)},
    "negative": lambda told: told | {"images": told["images"] - 1},
    "floats": lambda told: {name: array.astype(np.float64) for name, array in told.items()},
    "NaN": lambda told: told | {"pixels": np.full(3, np.nan)},
    "huge": lambda told: told | {"pixels": np.array([4, 1 << 62, 1 << 62])},
    "more than there are": lambda told: told | {"images": told["images"] * 1000},
    "images without patients": lambda told: told | {"patients": told["patients"] * 0},
    "withheld twice": lambda told: told | {"withheld": np.ones_like(told["withheld"]) * 2},
    "told and withheld": lambda told: told | {"withheld": (told["patients"] > 0).astype(np.int64)},
    "another number of classes": lambda told: told | {"images": np.zeros((3, 9, 2), np.int64)},
    "brighter than white": lambda told: told | {"pixels": told["pixels"] * np.array([1, 9, 9])},
    "no spread at all": lambda told: told | {"pixels": told["pixels"] * np.array([1, 1, 0])},
    "other images": lambda told: told | {"pixels": told["pixels"] + np.array([1, 0, 0])},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_site_that_surveys_nonsense_is_named_and_does_not_count(what: str, grid: InProcessGrid) -> None:
    def bend(node: int, reply: Message) -> list[Message]:
        told = protocol.open_reply(reply)
        if node != NODES["site-2"] or not isinstance(told, protocol.SurveyReply) or told.statistics is None:
            return [reply]
        made = HOSTILE[what]
        statistics = made(dict(told.statistics)) if callable(made) else made
        asked = Message(reply.content, node, protocol.SURVEY)
        asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
        return [protocol.answer(replace(told, statistics=statistics), asked)]

    events = fed.Events()
    with pytest.raises(QuorumError, match=r"2 of 3 sites .* \(site-2: refused: "):
        surveys.take(link(fed.Bent(grid, bend), events), work())
    (line,) = events.of("survey")
    assert list(line["silent"]) == ["site-2"]
    assert line["silent"]["site-2"].startswith("refused: ")
    less = replace(work(), study=OURS.derive(**{"federation.quorum": 0.6}))
    found = surveys.take(link(fed.Bent(grid, bend)), less)
    assert found is not None
    assert list(found.sites) == ["site-1", "site-3"]
    assert any("no answer, or none that counts: site-2" in one.text for one in findings(found))


def test_a_survey_under_another_name_does_not_count(grid: InProcessGrid) -> None:
    swapped = replace(work(), sites={"site-1": NODES["site-2"], "site-2": NODES["site-1"], "site-3": NODES["site-3"]})
    with pytest.raises(QuorumError, match="answers under another name"):
        surveys.take(link(grid), swapped)


# --- what is made of it ---------------------------------------------------------------------------------------------


def survey_of(made: Study, *own: tuple[list[list[int]], PixelSums], patients: int | None = None) -> surveys.Surveyed:
    """Sites with ``images[split][class]``, as many patients."""
    sites = {}
    for number, (images, pixels) in enumerate(own, 1):
        counts = np.zeros((3, len(made.classes), 2), np.int64)
        counts[:, :, 1] = images
        arrays = {"images": counts, "patients": counts, "withheld": np.zeros_like(counts), **pixels.to_arrays()}
        whole = {split: int(sum(images[index])) for index, split in enumerate(SPLITS)}
        sites[f"site-{number}"] = surveys.Told(whole, Survey.from_arrays(arrays, made, whole))
    return surveys.Surveyed(made, sites, {})


def grey(images: int, level: int, other: int) -> PixelSums:
    """Half the pixels of one grey level, half of another."""
    half = images * SIZE**2 // 2
    return PixelSums(images, 2 * half, ((level + other) * half,), ((level**2 + other**2) * half,))


def test_what_stands_out_is_said_with_a_remedy() -> None:
    made = survey_study("binary", 2, 1)
    even = ([[50, 50], [10, 10], [10, 10]], grey(100, 80, 180))
    assert findings(survey_of(made, even, even)) == []
    odd = survey_of(
        made,
        even,
        ([[30, 0], [0, 0], [10, 0]], grey(30, 20, 40)),
        ([[4, 0], [4, 0], [4, 0]], grey(4, 80, 180)),
    )
    said = "\n".join(one.text for one in findings(odd))
    for words in (
        "no validation images: site-2",
        "no training image of c1: site-2 and site-3",
        "rarer or more frequent than over all sites: site-2 and site-3",
        "darker or brighter than over all sites: site-2",
        "contrast than over all sites: site-2",
        "training images: 100 at site-1, 4 at site-3",
    ):
        assert words in said
    none = survey_of(made, ([[50, 0], [10, 0], [10, 0]], grey(50, 80, 180)))
    assert findings(none)[0].tone == "bad"
    assert "no site has a training image of c1" in findings(none)[0].text


def test_too_little_to_train_with_is_said_with_a_remedy() -> None:
    made = survey_study("binary", 2, 1)
    with pytest.raises(DataError, match="min_cell"):
        Basis.of(made, Survey.zero(made))
    counted = survey_of(made, ([[50, 50]] * 3, PixelSums.zero(made))).together
    with pytest.raises(DataError, match="sums of pixels"):
        Basis.of(made, counted)
    with pytest.raises(DataError, match="blank"):
        Basis.of(made, survey_of(made, ([[50, 50]] * 3, grey(100, 7, 7))).together)
    rare = survey_of(made, ([[100_000, 1], [1, 1], [1, 1]], grey(100_001, 80, 180))).together
    with pytest.raises(DataError, match="too rare"):
        Basis.of(made, rare)


@pytest.mark.parametrize(
    ("task", "classes", "channels"), [("binary", 2, 1), ("multiclass", 3, 3), ("multilabel", 40, 1)]
)
def test_the_page_is_well_formed_and_shows_what_is_withheld(
    task: str, classes: int, channels: int, tmp_path: Path
) -> None:
    made = survey_study(task, classes, 5, channels=channels)
    counts = np.zeros((3, classes, 2), np.int64)
    counts[:, 0, :] = 12
    if task != "multilabel":
        counts[:, :, 0] = 0
    withheld = np.zeros_like(counts)
    withheld[0, 1, 1] = 1
    pixels = PixelSums(20, 20 * SIZE**2, (20 * SIZE**2 * 100,) * channels, (20 * SIZE**2 * 12_000,) * channels)
    arrays = {"images": counts, "patients": counts, "withheld": withheld, **pixels.to_arrays()}
    images = {"train": 20 if task != "multilabel" else 24, "val": 24, "test": 24}
    images["train"] = 20
    if task == "multilabel":
        counts[0, 0, :] = 10
    told = surveys.Told(images, Survey.from_arrays(arrays, made, images))
    bare = surveys.Told({"train": 0}, Survey.zero(made))
    found = surveys.Surveyed(made, {"<b>north": told, "south": bare}, {"west": "no answer before the deadline"})
    write_page(found, tmp_path / "survey.html")
    text = (tmp_path / "survey.html").read_text()
    assert_sound(text)
    assert "withheld" in text and "&lt;b&gt;north" in text and "no answer before the deadline" in text
    assert page(found).sections[0].anchor == "verdict"
