"""Scores and losses against torch's own, masks included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from client import evaluation
from client.evaluation import predict
from client.vault.view import View
from common.metrics import Counts, Layout
from common.models import build
from common.study import Study
from tests.unit import federation as fed

CLASSES = {"binary": ["a", "b"], "multiclass": ["a", "b", "c"], "multilabel": ["a", "b", "c"]}


def study(task: str, **changes: Any) -> Study:
    return fed.study(**{"task": task, "classes": CLASSES[task], "image.size": 16} | changes)


def view(made: Study, count: int) -> View:
    draw = np.random.default_rng(2)
    images = torch.from_numpy(draw.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8))
    if made.task == "multilabel":
        targets = draw.integers(0, 2, (count, 3)).astype(np.float32)
        targets[draw.random((count, 3)) < 0.4] = np.nan
    else:
        targets = np.eye(len(made.classes), dtype=np.float32)[draw.integers(0, len(made.classes), count)]
    return View(images, torch.from_numpy(targets), torch.arange(count) // 2, (count + 1) // 2, 0)


class Fixed(nn.Module):
    """A model that says what the test wants, image by image; a parameter tells where it computes."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.at = logits, 0
        self.here = nn.Parameter(torch.zeros(()))
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert images.dtype == torch.float32
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
        part = self.logits[self.at : self.at + len(images)]
        self.at += len(images)
        self.sizes.append(len(images))
        return part


def logits(made: Study, count: int) -> torch.Tensor:
    return 5 * torch.randn(count, made.outputs, generator=torch.Generator().manual_seed(3))


def test_binary() -> None:
    made = study("binary")
    data, raw = view(made, 30), logits(made, 30)
    found = predict(Fixed(raw), data, made)
    assert found.scores.shape == found.targets.shape == (30, 1)
    assert (found.scores.dtype, found.loss.dtype, found.patients.dtype) == (np.float64, np.float64, np.int64)
    np.testing.assert_allclose(found.scores, raw.double().sigmoid().numpy(), rtol=1e-12)
    np.testing.assert_array_equal(found.targets[:, 0], data.targets[:, 1].numpy())
    expected = functional.binary_cross_entropy_with_logits(raw[:, 0], data.targets[:, 1], reduction="none")
    np.testing.assert_allclose(found.loss, expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.patients, np.arange(30) // 2)


def test_multiclass() -> None:
    made = study("multiclass", **{"training.class_weighting": "balanced", "training.label_smoothing": 0.3})
    data, raw = view(made, 30), logits(made, 30)
    found = predict(Fixed(raw), data, made)
    np.testing.assert_allclose(found.scores, raw.double().softmax(1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.scores.sum(1), 1.0, rtol=1e-12)
    # what a site reports is the plain loss, whatever it trained with: sites must be comparable
    expected = functional.cross_entropy(raw, data.targets.argmax(1), reduction="none")
    np.testing.assert_allclose(found.loss, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_multilabel_loss_is_the_mean_over_known_classes() -> None:
    made = study("multilabel")
    data, raw = view(made, 30), logits(made, 30)
    data.targets[0] = torch.nan  # in no view, but no reason to fail
    found = predict(Fixed(raw), data, made)
    np.testing.assert_allclose(found.scores, raw.double().sigmoid().numpy(), rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(found.targets), torch.isnan(data.targets).numpy())
    for row in range(30):
        known = ~torch.isnan(data.targets[row])
        if known.any():
            expected = functional.binary_cross_entropy_with_logits(raw[row][known], data.targets[row][known])
            assert found.loss[row] == pytest.approx(float(expected), rel=1e-5)
        else:
            assert found.loss[row] == 0.0


@pytest.mark.parametrize("task", CLASSES)
def test_masked_images_do_not_show_in_counts(task: str) -> None:
    made = study(task)
    data, raw = view(made, 12), logits(made, 12)
    data.targets[:3] = torch.nan
    found = predict(Fixed(raw), data, made)
    counts = Counts.of(found.scores, found.targets, found.patients, found.loss, Layout.of(made))
    rows = ~np.isnan(found.targets).all(1)
    assert rows.sum() <= 9
    assert counts.images == rows.sum()
    assert counts.loss == pytest.approx(found.loss[rows].sum(), abs=1e-5)


def test_extreme_logits_stay_probabilities_with_finite_losses() -> None:
    made = study("binary")
    raw = torch.tensor([[1000.0], [-1000.0], [88.0], [-200.0]])
    data = view(made, 4)
    found = predict(Fixed(raw), data, made)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert np.isfinite(found.loss).all()


@pytest.mark.parametrize("task", CLASSES)
def test_no_image_at_all(task: str) -> None:
    made = study(task)
    found = predict(Fixed(logits(made, 0)), view(made, 0), made)
    assert found.scores.shape == found.targets.shape == (0, made.outputs)
    counts = Counts.of(found.scores, found.targets, found.patients, found.loss, Layout.of(made))
    assert counts.images == 0
    assert set(vars(found)) == {"scores", "targets", "patients", "loss", "overlaps"}
    assert found.overlaps is None


def test_batches_do_not_show_and_large_images_come_in_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made = study("binary")
    data, raw = view(made, 30), logits(made, 30)
    whole, parts = Fixed(raw), Fixed(raw)
    expected = predict(whole, data, made)
    assert whole.sizes == [30]
    monkeypatch.setattr(evaluation, "MOST_PIXELS", 7 * 16 * 16)
    found = predict(parts, data, made)
    assert parts.sizes == [7, 7, 7, 7, 2]
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(vars(found)[name], value)


def test_a_real_model_is_left_in_evaluation_mode_and_unchanged() -> None:
    made = study("binary", **{"model.dropout": 0.5})
    model, data = build(made, 1), view(made, 20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = predict(model, data, made), predict(model.train(), data, made)
    np.testing.assert_array_equal(first.scores, second.scores)  # no dropout
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
