"""``data.fold`` in a study, and what a site makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.config import SiteConfig
from client.site import Site
from client.vault.keys import provider
from client.vault.store import Record, Vault
from client.vault.view import ViewCache
from common.errors import StudyError
from common.study import Study
from simulations.sites import make_site

STUDY = Study.load(Path("configs/quickstart.yaml")).derive(**{"image.size": 16})


def fold(number: int, of: int = 3) -> Study:
    return STUDY.derive(**{"data.fold": {"number": number, "of": of}})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    home = tmp_path_factory.mktemp("folds") / "site-1"
    make_site(home, SiteConfig(alias="site-1"))
    rng = np.random.default_rng(5)
    classes = [labels[0] for labels in STUDY.classes.values()]
    keys = provider("file:vault.key", base=home)
    with Vault.create(home / "vault.sqlite", keys, synthetic=True, source="t") as vault:
        vault.add(
            Record(
                rng.integers(0, 255, (16, 16), dtype=np.uint8),
                f"patient-{number // 2}",
                {"label": (classes[number // 2 % 2],)} if number < 38 else {"label": ()},
                ("train", "train", "val", "test")[number // 2 % 4],
                {},
            )
            for number in range(40)
        )
    opened = Site.open(home, ViewCache(1 << 24))
    yield opened
    opened.close()


def test_a_study_without_a_fold_keeps_its_hash():
    assert "fold" not in STUDY.canonical().decode()
    assert fold(1).hash != fold(2).hash != STUDY.hash
    assert Study.parse(fold(2).canonical().decode()) == fold(2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.fold": {"number": 4, "of": 3}}, "number must be 1 to 3, got 4"),
        ({"data.fold": {"number": 1, "of": 1}}, "data.fold.of"),
        ({"data.fold": {"number": 0, "of": 3}}, "data.fold.number"),
        ({"data.fold": {"number": 1, "of": 3}, "evaluation.min_cell": 5}, "min_cell: 1"),
        (
            {
                "data.fold": {"number": 1, "of": 3},
                "training.local_epochs": None,
                "training.local_steps": 5,
                "privacy": {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0},
            },
            "differential privacy",
        ),
    ],
)
def test_a_fold_that_would_mean_something_else_is_refused(changes, said):
    with pytest.raises(StudyError, match=said):
        STUDY.derive(**changes)


def test_folds_share_out_a_sites_development_patients_and_leave_the_test_alone(site):
    whole = {split: site.view(STUDY, split) for split in ("train", "val", "test")}
    for number in (1, 2, 3):
        parts = {split: site.view(fold(number), split) for split in ("train", "val", "test")}
        assert parts["test"].images.equal(whole["test"].images)
        assert len(parts["train"]) + len(parts["val"]) == len(whole["train"]) + len(whole["val"])
        assert site.images(fold(number)) == {split: len(view) for split, view in parts.items()}
    validated = np.concatenate([site.view(fold(number), "val").images.numpy() for number in (1, 2, 3)])
    development = np.concatenate([whole["train"].images.numpy(), whole["val"].images.numpy()])
    assert sorted(image.tobytes() for image in validated) == sorted(image.tobytes() for image in development)


def test_an_operator_is_told(site):
    from client.describe import _images

    assert "dealt to 3 folds" in _images(fold(2), site.images(fold(2)))
    assert "those of fold 2 validate" in _images(fold(2), None)
    assert "fold" not in _images(STUDY, None)
