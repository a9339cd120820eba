"""Segmentation at a site: what a fit learns from masks, and what of the outlines is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor, nn

from client.evaluation import first_pass, predict
from client.leaving import kinds
from client.objective import Truth, objective_of, outline_losses
from client.private import PrivateFit
from client.training import FitSeed, LocalFit
from client.vault.view import View
from common import protocol
from common.errors import ProtocolError, StudyError
from common.metrics import GRID, FirstPass, Outlines, Overlaps, choose_outline
from common.models import build
from common.study import Study
from tests.unit import federation as fed

SIZE = 16
SEED = FitSeed(study=1, repeat=0, site="site-1", round=1)


def study(**changes: Any) -> Study:
    made = {
        "task": "segmentation",
        "classes": ["healthy", "lesion"],
        "model": {"name": "unet", "params": {"depth": 2, "width": 4}},
        "image.size": SIZE,
        "evaluation.lesions.smallest": 2,
    }
    return fed.study(**{**made, **changes})


def view(count: int = 24, patients: list[int] | None = None, noise: float = 0.2) -> View:
    """Bright squares on noise, each with its mask; every third image has none."""
    draw = np.random.default_rng(5)
    images = draw.uniform(0.0, noise, (count, SIZE, SIZE))
    masks = np.zeros((count, SIZE, SIZE), dtype=np.uint8)
    for index in range(count):
        if index % 3:
            top, left, side = *draw.integers(0, SIZE - 6, 2), draw.integers(4, 7)
            masks[index, top : top + side, left : left + side] = 1
    images = np.clip(images + 0.6 * masks, 0, 1) * 255
    patients = list(range(count)) if patients is None else patients
    return View(
        torch.from_numpy(images[:, None].astype(np.uint8)),
        torch.eye(2)[(torch.arange(count) % 3 > 0).long()],
        torch.tensor(patients),
        max(patients) + 1,
        0,
        torch.from_numpy(masks),
    )


class Fixed(nn.Module):
    """Says what it was given, whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.at = nn.Parameter(logits), 0

    def forward(self, images: Tensor) -> Tensor:
        found = self.logits[self.at : self.at + len(images)]
        self.at += len(images)
        return found


def drawn(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Probabilities and masks ``(count, 8, 8)``; a third of the masks are empty."""
    draw = np.random.default_rng(seed)
    masks = (draw.random((count, 8, 8)) < 0.3).astype(np.uint8)
    masks[draw.random(count) < 0.33] = 0
    return np.clip(draw.normal(0.2 + 0.5 * masks, 0.3), 0, 1), masks


# --- what is counted -------------------------------------------------------------------------------------------------


def test_dice_and_iou_are_those_of_scikit_learn() -> None:
    probabilities, masks = drawn(1, 40)
    overlaps = Overlaps.of(probabilities, masks, np.arange(40))
    found = Outlines.of(overlaps, np.arange(40))
    having = masks.reshape(40, -1).any(axis=1)
    for at, threshold in enumerate(GRID):
        outlined = probabilities >= threshold
        pairs = [(mask.ravel(), one.ravel()) for mask, one in zip(masks[having], outlined[having], strict=True)]
        dice = np.mean([f1_score(*pair, zero_division=0.0) for pair in pairs])
        iou = np.mean([jaccard_score(*pair, zero_division=0.0) for pair in pairs])
        assert found.dice.value[at] == pytest.approx(dice, abs=1e-9)
        assert found.iou.value[at] == pytest.approx(iou, abs=1e-9)
        assert found.pooled[at] == pytest.approx(f1_score(masks.ravel(), outlined.ravel()), abs=1e-12)
    assert found.images.tolist() == [(~having).sum(), having.sum()]


def test_the_interval_is_that_of_a_mean_over_patients() -> None:
    """One image a patient: the standard error of a mean, on the logit scale."""
    probabilities, masks = drawn(2, 50)
    masks[:, 0, 0] = 1
    overlaps = Overlaps.of(probabilities, masks, np.arange(50))
    at = GRID.index(0.5)
    values = overlaps.dice[:, at]
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(50)
    found = Outlines.of(overlaps, np.arange(50)).metrics(at, 0.95)["dice"]
    reach = 1.959964 * error / (mean * (1 - mean))
    low = 1 / (1 + np.exp(-(np.log(mean / (1 - mean)) - reach)))
    assert found.low == pytest.approx(low, abs=1e-5)
    doubled = Overlaps.joined([overlaps, overlaps])
    twice = Outlines.of(
        Overlaps(np.arange(100), doubled.truth, doubled.predicted, doubled.both), np.tile(np.arange(50), 2)
    ).metrics(at, 0.95)["dice"]
    assert (twice.value, twice.low) == pytest.approx((found.value, found.low))  # the same patients tell no more


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 1000), st.integers(1, 3))
def test_sites_add_up_to_what_all_would_count(owner: list[int], seed: int, least: int) -> None:
    probabilities, masks = drawn(seed, len(owner))
    patients, sites = np.array(owner), np.array(owner) % 2
    whole = Outlines.of(Overlaps.of(probabilities, masks, np.arange(len(owner))), patients)
    parts = []
    for site in (1, 0):
        rows = np.flatnonzero(sites == site)
        overlaps = Overlaps.of(probabilities[rows], masks[rows], np.arange(len(rows)))
        parts.append(Outlines.of(overlaps, patients[rows]))
        released = Outlines.of(overlaps, patients[rows], least)
        assert Outlines.from_arrays(released.to_arrays()).to_arrays().keys() == released.to_arrays().keys()
        for group, images in ((overlaps.having, released.images[1]), (~overlaps.having, released.images[0])):
            enough = len(np.unique(patients[rows][group])) >= least
            assert images == (group.sum() if enough else 0)
        if not released.images[1]:
            assert not any(released.to_arrays()[name].any() for name in ("dice_above", "dice_squares", "truth", "both"))
    merged = (parts[0] + parts[1]).to_arrays()
    for name, value in whole.to_arrays().items():
        np.testing.assert_array_equal(merged[name], value, err_msg=name)


@pytest.mark.parametrize("few", [1, 4])
def test_what_is_outlined_in_few_is_in_no_sum(few: int) -> None:
    """A coordinator's weights may outline one patient alone at .99: sums would be her Dice and her lesion's pixels."""
    masks = np.zeros((20, 4, 4), dtype=np.uint8)
    masks[:10, :2] = 1
    probabilities = np.full(masks.shape, 0.3)
    probabilities[:few][masks[:few] > 0] = 0.995
    probabilities[10 : 10 + few, 0] = 0.97
    overlaps = Overlaps.of(probabilities, masks, np.arange(20))
    found = Outlines.of(overlaps, np.arange(20), 5)
    open_ = np.array(GRID) <= 0.3
    for pixels in (found.predicted, found.both, found.dice.above, found.iou.above, found.dice.squares):
        assert (pixels[..., open_] > 0).all() and not pixels[..., ~open_].any()
    assert (found.dice.withheld == ~open_).all()
    sent = Outlines.from_arrays(found.to_arrays())
    assert GRID[choose_outline(sent)] == 0.3
    assert Outlines.of(overlaps, np.arange(20), few).both[-1] == few * 8


def test_a_threshold_is_the_best_on_validation() -> None:
    masks = np.zeros((3, 4, 4), dtype=np.uint8)
    masks[:, :2] = 1
    overlaps = Overlaps.of(np.where(masks == 1, 0.17, 0.12), masks, np.arange(3))
    assert GRID[choose_outline(Outlines.of(overlaps, np.arange(3)))] == 0.15
    perfect = Overlaps.of(masks * 1.0, masks, np.arange(3))
    assert GRID[choose_outline(Outlines.of(perfect, np.arange(3)))] == 0.5
    assert GRID[choose_outline(Outlines.zero())] == 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"both": lambda v: v + 10**6},
        {"predicted": lambda v: v[::-1]},
        {"truth": lambda v: v * 0},
        {"images": lambda v: v + 1},
        {"images": lambda v: v - 10**6},
        {"dice_above": lambda v: v * 1000},
        {"dice_patients": lambda v: v * 0},
        {"iou_squares": lambda v: v[:1]},
        {"iou_squares": lambda v: v.astype(np.float64)},
        {"more": lambda v: v},
    ],
)
def test_sums_that_no_site_could_have_are_refused(change: dict[str, Any]) -> None:
    made = study()
    found = first_pass(predict(build(made, 1), view(), made), made).to_arrays()
    assert FirstPass.from_arrays(found, made).to_arrays().keys() == found.keys()
    for name, bend in change.items():
        bent = found | {f"outline_{name}": bend(found.get(f"outline_{name}", np.zeros(1)))}
        with pytest.raises(ProtocolError):
            FirstPass.from_arrays(bent, made)


def test_a_study_without_masks_sends_no_outlines() -> None:
    made = study()
    plain = fed.study(task="binary", classes=["a", "b"])
    with pytest.raises(ProtocolError):
        FirstPass.from_arrays(FirstPass.zero(made).to_arrays(), plain)
    with pytest.raises(ProtocolError):
        FirstPass.from_arrays(FirstPass.zero(plain).to_arrays(), made)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_that_sums_of_outlines_leave_is_on_record() -> None:
    """The audit log names what leaves: outlines are more than the counts that every study tells."""
    for key in ("outline_both", "lesion_found_above"):
        reply = protocol.StatisticsReply("site-1", 1, {key: np.zeros(1)}, 0.1)
        assert kinds(study(), reply) == ["counts of scores", "sums of outlines", "seconds"]


def test_an_image_scores_where_its_outline_is_as_large_as_a_lesion() -> None:
    made, data = study(), view(3)
    logits = torch.full((3, 1, SIZE, SIZE), -20.0)
    logits[0, 0, 0, 0] = 3.0  # one bright pixel is none
    logits[1, 0, 0, :2] = torch.tensor([3.0, 1.0])
    found = predict(Fixed(logits), data, made)
    assert found.scores[:, 0] == pytest.approx([0.0, 1 / (1 + np.exp(-1.0)), 0.0], abs=1e-6)
    assert found.targets[:, 0].tolist() == [0.0, 1.0, 1.0]
    assert found.loss == pytest.approx(outline_losses(logits, data.masks, made).numpy(), abs=1e-6)  # type: ignore[arg-type]


def test_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    made, data = study(), view(10)
    model = build(made, 1)
    whole = first_pass(predict(model, data, made), made).to_arrays()
    monkeypatch.setattr("client.evaluation.OUTLINED_PIXELS", 3 * SIZE**2)
    pieces = first_pass(predict(model, data, made), made).to_arrays()
    for name, value in whole.items():
        np.testing.assert_allclose(pieces[name], value, rtol=1e-5, err_msg=name)


def test_no_image_at_all() -> None:
    made = study()
    nobody = View(
        torch.zeros(0, 1, SIZE, SIZE, dtype=torch.uint8),
        torch.zeros(0, 2),
        torch.zeros(0, dtype=torch.int64),
        0,
        0,
        torch.zeros(0, SIZE, SIZE, dtype=torch.uint8),
    )
    found = first_pass(predict(build(made, 1), nobody, made), made)
    assert found.counts.images == 0
    for name, value in FirstPass.zero(made).to_arrays().items():
        np.testing.assert_array_equal(found.to_arrays()[name], value, err_msg=name)


# --- training --------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    masks = torch.zeros(2, 2, 2, dtype=torch.uint8)
    masks[0, 0] = 1
    logits = torch.zeros(2, 1, 2, 2)  # one half everywhere
    # Both 1, together 2 + 2: 1 - (2 + 1) / (4 + 1); an empty mask: 1 - 1 / (2 + 1).
    dice = torch.tensor([0.4, 2 / 3])
    torch.testing.assert_close(outline_losses(logits, masks, study(**{"training.outline_loss": "dice"})), dice)
    torch.testing.assert_close(outline_losses(logits, masks, study()), dice + torch.log(torch.tensor(2.0)))


def test_pieces_of_a_batch_add_up() -> None:
    made, data = study(), view(9)
    logits = torch.randn(9, 1, SIZE, SIZE)
    objective, truth = objective_of(made, data.targets), Truth(data.targets, data.masks)
    parts = [slice(0, 4), slice(4, 9)]
    total = torch.stack([objective.total(logits[part], truth[part]) for part in parts]).sum()
    torch.testing.assert_close(total, objective.total(logits, truth))
    assert float(objective.weight(truth)) == 9.0


@pytest.mark.parametrize("loss", ["dice", "dice_ce"])
def test_a_fit_learns_to_outline(loss: str) -> None:
    made = study(**{"training.local_epochs": 25, "training.optimiser.lr": 0.01, "training.outline_loss": loss})
    model, data = build(made, 1), view(30)
    before = first_pass(predict(model, data, made), made).outlines
    LocalFit(model, data, made, SEED).run()
    after = first_pass(predict(model, data, made), made).outlines
    assert before is not None
    assert after is not None
    assert np.nanmax(before.pooled) < 0.5
    assert np.nanmax(after.pooled) > 0.9


def test_masks_move_with_their_images() -> None:
    """Turned by up to 180°, bright squares keep their masks: else nothing could be learnt."""
    turned = {"augment": {"rotate_deg": 180.0, "shift": 0.3, "flip_horizontal": True}}
    made = study(**{"training.local_epochs": 25, "training.optimiser.lr": 0.01, **turned})
    model, data = build(made, 1), view(30)
    LocalFit(model, data, made, SEED).run()
    found = first_pass(predict(model, data, made), made).outlines
    assert found is not None
    assert np.nanmax(found.pooled) > 0.85


@pytest.mark.parametrize("up", ["transpose", "resize"])
def test_without_noise_a_private_step_is_the_gradient_of_the_mean_over_patients(up: str) -> None:
    made = study(
        privacy={"epsilon": 4.0, "delta": 1e-3, "accountant": "rdp", "clip": 1e9},
        training={"batch_size": 4, "local_steps": 1, "optimiser": {"name": "sgd", "lr": 1.0}},
        **{"model.params": {"depth": 1, "width": 4, "up": up}},
    )
    data, model = view(6, [0, 1, 1, 2, 3, 3]), build(made, 3)
    weights = 1.0 / torch.bincount(data.patients)[data.patients].float()
    assert data.masks is not None
    loss = (outline_losses(model(data.images.float() / 255), data.masks, made) * weights).sum() / 4
    loss.backward()  # type: ignore[no-untyped-call]
    expected = [parameter.detach() - parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    private = build(made, 3)
    run = PrivateFit(private, data, made, 1)
    object.__setattr__(run.mechanism, "noise_multiplier", 0.0)
    run.run()
    for found, wanted in zip(private.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# --- studies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b", "c"]}, "classes: masks outline one kind of finding"),
        ({"model": {"name": "cnn"}}, "model.name: cnn classifies whole images; segmentation needs unet"),
        ({"training.class_weighting": "balanced"}, "training.class_weighting: weighs classes of images"),
        ({"training.label_smoothing": 0.1}, "training.label_smoothing: is for classes of images"),
        ({"survey": ["classes"]}, "survey: counts classes of images"),
        ({"task": "binary"}, "model.name: unet outlines; use task: segmentation"),
        ({"evaluation.lesions.sizes": [0.2, 0.1]}, "sizes: must be two rising shares"),
        ({"model.name": "cnn", "task": "binary"}, "evaluation.lesions: this study draws no outlines"),
        (
            {"model.name": "cnn", "task": "binary", "training.outline_loss": "dice", "evaluation.lesions": {}},
            "training.outline_loss, outline_weight: this study trains no outlines",
        ),
    ],
)
def test_what_a_study_cannot_ask(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message.replace("(", r"\(")):
        study().derive(**changes)


def test_a_study_that_does_not_outline_is_hashed_as_before() -> None:
    plain = fed.study(task="binary", classes=["a", "b"])
    assert b"outline" not in plain.canonical()
    assert b"lesions" not in plain.canonical()
    assert b'"lesions"' in study().canonical()
