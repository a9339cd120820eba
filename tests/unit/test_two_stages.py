"""A model that outlines a region and classifies what lies in it, trained as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.evaluation import first_pass, predict
from client.objective import Truth, objective_of, outline_losses
from client.training import FitSeed, LocalFit
from client.vault.keys import create_key_file
from client.vault.prepared import NO_MASK
from client.vault.store import Record
from client.vault.view import View, prepare_view, view_key
from common.errors import ModelError, StudyError
from common.metrics import FirstPass, auc
from common.models import build
from common.models.segment_classify import SegmentClassify, Selection, cut_out
from common.study import Study
from tests.unit import federation as fed
from tests.unit.test_view import vault_of

SIZE = 32
SEED = FitSeed(study=1, repeat=0, site="site-1", round=1)
PARAMS = {"outline_depth": 2, "outline_width": 4, "width": 8, "blocks": [1, 1]}


def study(params: dict[str, Any] | None = None, **changes: Any) -> Study:
    made = {
        "task": "binary",
        "classes": ["normal", "ill"],
        "model": {"name": "segment_classify", "params": {**PARAMS, **(params or {})}},
        "image.size": SIZE,
    }
    return fed.study(**{**made, **changes})


def view(count: int = 48, lacking: int = 5) -> View:
    """A faint square somewhere makes an image ill; a bright bar at the edge, in half of all, means nothing."""
    draw = np.random.default_rng(3)
    images, masks = draw.uniform(0, 0.5, (count, SIZE, SIZE)), np.zeros((count, SIZE, SIZE), dtype=np.uint8)
    ill = np.arange(count) % 2
    for index in range(count):
        top, left = draw.integers(4, SIZE - 12, 2)
        if ill[index]:
            masks[index, top : top + 8, left : left + 8] = 1
        images[index, :3] += draw.integers(0, 2) * 0.5
    images = np.clip(images + 0.3 * masks, 0, 1) * 255
    masks[:lacking] = NO_MASK
    return View(
        torch.from_numpy(images[:, None].astype(np.uint8)),
        torch.eye(2)[torch.from_numpy(ill)],
        torch.arange(count),
        count,
        0,
        torch.from_numpy(masks),
    )


def measured(made: Study, model: torch.nn.Module, data: View) -> FirstPass:
    return first_pass(predict(model, data, made), made)


def test_both_stages_are_learnt_together() -> None:
    made = study(**{"training.local_epochs": 12, "training.optimiser.lr": 0.005, "training.batch_size": 8})
    model, data = build(made, 1), view()
    LocalFit(model, data, made, SEED).run()
    found = measured(made, model, data)
    assert found.outlines is not None
    assert np.nanmax(found.outlines.pooled) > 0.6
    assert float(auc(found.counts)[0]) > 0.9
    assert found.outlines.images.tolist() == [21, 22]  # five have no mask, and count with their labels only
    assert found.counts.images == 48


def test_without_a_stage_the_result_is_another() -> None:
    """Each stage that a parameter removes changes what the model says, and without the first there are no outlines."""
    data, said = view(), {}
    for name, params in {
        "both": {},
        "cut out": {"region": "crop"},
        "no selection": {"select": False},
        "no segmentation": {"region": "none"},
    }.items():
        made = study(params, **{"training.local_epochs": 1})
        model = build(made, 1)
        LocalFit(model, data if made.outlines else without_masks(data), made, SEED).run()
        said[name] = predict(model, data if made.outlines else without_masks(data), made)
        assert (said[name].overlaps is None) == (name == "no segmentation")
    for name in said:
        others = [said[other].scores for other in said if other != name]
        assert all(np.abs(said[name].scores - other).max() > 1e-3 for other in others), name


def without_masks(data: View) -> View:
    return View(data.images, data.targets, data.patients, data.patient_count, data.masked)


def test_images_without_a_mask_teach_classes_only() -> None:
    made, data = study(), view(6, lacking=6)
    logits, outlines = torch.randn(6, 1), torch.randn(6, 1, SIZE, SIZE, requires_grad=True)
    objective, truth = objective_of(made, data.targets), Truth(data.targets, data.masks)
    loss = (objective.total((logits, outlines), truth) / objective.weight(truth)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert outlines.grad is not None
    assert not outlines.grad.any()
    plain = objective_of(study({"region": "none"}), data.targets)
    torch.testing.assert_close(loss.detach(), plain.total(logits, truth) / plain.weight(truth))


def test_the_loss_of_outlines_is_a_mean_over_those_with_a_mask_and_weighs_as_the_study_says() -> None:
    made, data = study(**{"training.outline_weight": 3.0}), view(8, lacking=3)
    logits, outlines = torch.zeros(8, 1), torch.randn(8, 1, SIZE, SIZE)
    objective, truth = objective_of(made, data.targets), Truth(data.targets, data.masks)
    parts = objective.total((logits, outlines), truth) / objective.weight(truth)
    assert data.masks is not None
    expected = 3.0 * outline_losses(outlines[3:], data.masks[3:], made).mean()
    torch.testing.assert_close(parts[1], expected)
    torch.testing.assert_close(parts[0], torch.log(torch.tensor(2.0)))
    pieces = [objective.total((logits[p], outlines[p]), truth[p]) for p in (slice(0, 2), slice(2, 8))]
    torch.testing.assert_close(torch.stack(pieces).sum(0) / objective.weight(truth), parts)


def test_the_classifiers_errors_reach_the_region() -> None:
    for region in ("gate", "crop"):
        model = build(study({"region": region}), 1)
        assert isinstance(model, SegmentClassify)
        model(view(4).floats(torch.arange(4))).square().sum().backward()
        assert model.outline is not None
        assert all(p.grad is not None and p.grad.any() for p in model.outline.last.parameters()), region  # type: ignore[union-attr,operator]


def test_a_region_is_cut_out_around_its_middle() -> None:
    images = torch.zeros(2, 1, SIZE, SIZE)
    images[0, 0, 4:12, 16:24] = 1.0
    cut = cut_out(images, images)
    rows, columns = torch.nonzero(cut[0, 0] > 0.5, as_tuple=True)
    assert abs(float(rows.float().mean()) - 15.5) < 1.0  # in the middle now
    assert abs(float(columns.float().mean()) - 15.5) < 1.0
    assert float(cut[0].sum()) > 2.5 * float(images[0].sum())  # and larger
    torch.testing.assert_close(cut[1], images[1])  # nothing outlined: nothing to see


def test_selection_makes_features_smaller_and_some_nothing() -> None:
    torch.manual_seed(0)
    layer, features = Selection(6), torch.randn(4, 6, 5, 5)
    kept = layer(features)
    assert bool((kept.abs() <= features.abs()).all())
    assert bool(((kept == 0) | (kept.sign() == features.sign())).all())
    share = float((kept == 0).float().mean())
    assert 0.1 < share < 0.9


# --- views -----------------------------------------------------------------------------------------------------------


def records() -> list[Record]:
    def image(index: int) -> Tensor:
        return torch.full((SIZE, SIZE), 40 * index + 9, dtype=torch.uint8)

    return [
        Record(
            pixels=image(index).numpy(),
            patient=str(index),
            labels={"label": ("normal" if index % 2 else "ill",)},
            split="train",
            mask=None if index < 2 else (np.indices((SIZE, SIZE)).sum(0) > 9 * index).astype(np.uint8),
        )
        for index in range(5)
    ]


def test_an_image_without_a_mask_is_in_the_view_and_says_so(tmp_path: Path) -> None:
    made = study()
    create_key_file(tmp_path / "key")
    with vault_of(tmp_path, records()) as vault:
        found = prepare_view(vault, made, "train")
        plain = prepare_view(vault, study({"region": "none"}), "train")
    assert (len(found), found.masked, len(plain)) == (5, 0, 5)
    assert plain.masks is None
    assert found.masks is not None
    known = found.masks.flatten(1)[:, 0] != NO_MASK
    assert known.sum() == 3
    assert (found.masks[~known] == NO_MASK).all()
    for image, mask in zip(found.images[known], found.masks[known], strict=True):
        index = (int(image[0, 0, 0]) - 9) // 40
        assert (mask.numpy() == (np.indices((SIZE, SIZE)).sum(0) > 9 * index)).all()


def test_views_with_and_without_masks_are_not_taken_for_each_other() -> None:
    assert view_key(study()) != view_key(study({"region": "none"}))
    assert view_key(study({"region": "none"})) == view_key(study({"region": "none"}, **{"training.batch_size": 3}))


# --- studies ---------------------------------------------------------------------------------------------------------


def test_what_a_study_cannot_ask() -> None:
    with pytest.raises(ModelError, match="region: must be one of gate, crop, none"):
        build(study({"region": "box"}), 1)
    with pytest.raises(ModelError, match="select: must be true or false"):
        build(study({"select": 1}), 1)
    with pytest.raises(ModelError, match="no multiple of 8"):
        build(study({"outline_depth": 3}, **{"image.size": 36}), 1)
    with pytest.raises(StudyError, match="segment_classify is not trained privately yet"):
        study(privacy={"epsilon": 3.0, "delta": 1e-3}, **{"training.local_steps": 2, "training.local_epochs": None})
    with pytest.raises(StudyError, match="this study trains no outlines"):
        study({"region": "none"}, **{"training.outline_weight": 2.0})
    with pytest.raises(StudyError, match="segmentation needs unet"):
        study(task="segmentation")
