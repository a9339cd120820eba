"""One private fit: what it computes without noise, what it adds with it, and what it never tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.objective import Truth, objective_of
from client.private import PrivateFit, image_losses
from client.vault.view import View
from common.errors import ModelError, PrivacyError, StudyError
from common.models import build
from common.study import Study
from common.study_privacy import LEAST_CLIP
from common.weights import state_of
from tests.unit import federation as fed
from tests.unit.test_noise import Keyed, suspicious

SGD = {"name": "sgd", "lr": 1.0}
NO_NOISE = {"noise_multiplier": 1e-12, "sample_rate": 0.999999999, "clip": 1e9}


def study(task: str = "binary", privacy: dict[str, Any] | None = None, **changes: Any) -> Study:
    classes = {"binary": ["a", "b"], "multiclass": ["a", "b", "c"], "multilabel": ["a", "b", "c"]}[task]
    given = {"delta": 1e-3, "accountant": "rdp", **(privacy or {"epsilon": 4.0})}
    training = {"batch_size": 8, "local_steps": 3, "optimiser": SGD}
    made = {"task": task, "classes": classes, "model.norm": "group", "image.size": 16, "training": training}
    return fed.study(**{**made, "privacy": given, **changes})


def view(made: Study, patients: list[int]) -> View:
    draw = np.random.default_rng(11)
    count = len(patients)
    images = torch.from_numpy(draw.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8))
    if made.task == "multilabel":
        targets = draw.integers(0, 2, (count, 3)).astype(np.float32)
        targets[draw.random((count, 3)) < 0.3] = np.nan
        targets[:, 0] = draw.integers(0, 2, count)
    else:
        targets = np.eye(len(made.classes), dtype=np.float32)[draw.integers(0, len(made.classes), count)]
    return View(images, torch.from_numpy(targets), torch.tensor(patients), max(patients) + 1, 0)


def fit(made: Study, data: View, **given: Any) -> Tensor:
    """How far one round moves the weights, as one vector; σ as the study has it."""
    model = build(made, 3)
    before = flat(model)
    noise = given.pop("noise", None)
    run = PrivateFit(model, data, made, 1, **given)
    if noise is not None:
        object.__setattr__(run.mechanism, "noise_multiplier", noise)
    run.run()
    return flat(model) - before


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


MANY = [0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 6, 7]


@pytest.mark.parametrize(("task", "unit"), [("binary", "patient"), ("multiclass", "image"), ("multilabel", "patient")])
def test_without_noise_and_bound_a_step_is_the_gradient_of_the_mean_over_patients(task: str, unit: str) -> None:
    made = study(task, {"epsilon": 4.0, "unit": unit, "clip": 1e9}, **{"training.local_steps": 1})
    count = 8 if unit == "patient" else len(MANY)
    made = made.derive(**{"training.batch_size": count})  # rate 1: everybody is drawn
    data, model = view(made, MANY), build(made, 3)
    weights = 1.0 / torch.bincount(data.patients)[data.patients].float() if unit == "patient" else torch.ones(count)
    loss = (image_losses(made)(model(data.images.float() / 255), data.targets) * weights).sum() / count
    loss.backward()  # type: ignore[no-untyped-call]
    expected = -torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]
    for microbatch in (None, 1, 2, 5):
        found = fit(made.derive(**{"training.microbatch": microbatch}) if microbatch else made, data, noise=0.0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_loss_of_an_image_is_the_one_of_other_fits(task: str) -> None:
    made = study(task, **{"training.label_smoothing": 0.1})
    data, logits = view(made, MANY), torch.randn(len(MANY), made.outputs)
    objective, truth = objective_of(made, data.targets), Truth(data.targets)
    expected = objective.total(logits, truth) / objective.weight(truth)
    torch.testing.assert_close(image_losses(made)(logits, data.targets).mean(), expected)


def test_a_bound_is_one_that_float32_keeps() -> None:
    """At 1e-43 one patient's clipped gradient measures 1.05 bounds: a huge learning rate makes such sums weights."""
    with pytest.raises(StudyError, match=r"privacy\.clip"):
        study(privacy={"epsilon": 4.0, "clip": 1e-43})
    made = study("binary", {"epsilon": 4.0, "clip": LEAST_CLIP})
    run = PrivateFit(build(made, 3), view(made, [0, 0]), made, 1)
    sums = run._sums(torch.tensor([0]))
    assert 0.99 < float(torch.cat([one.flatten() for one in sums]).double().norm()) / LEAST_CLIP <= 1.0


def test_an_image_does_not_change_anothers_loss() -> None:
    made = study("multilabel")
    data, logits = view(made, MANY), torch.randn(len(MANY), 3)
    whole = image_losses(made)(logits, data.targets)
    alone = torch.cat([image_losses(made)(logits[n : n + 1], data.targets[n : n + 1]) for n in range(len(MANY))])
    torch.testing.assert_close(whole, alone)


def test_noise_has_the_deviation_that_the_accountant_was_told() -> None:
    """σ · clip / batch_size in every coordinate of the step; a tenth of that, or half, would be noticed."""
    privacy = {"noise_multiplier": 1.3, "sample_rate": 1e-12, "clip": 0.7}  # nobody is ever drawn: noise alone
    made = study(privacy=privacy, **{"training.local_steps": 1, "model.params": {"filters": [16], "hidden": [64]}})
    moved = fit(made, view(made, MANY))
    deviation = 1.3 * 0.7 / 8
    assert not suspicious(moved.double(), deviation)
    assert suspicious(moved.double() * 0.1, deviation)
    assert suspicious(moved.double() * 0.95, deviation)
    weak = fit(made, view(made, MANY), noise=0.13)
    assert suspicious(weak.double(), deviation)


def test_a_step_without_anybody_is_a_step() -> None:
    made = study(privacy={"noise_multiplier": 1.0, "sample_rate": 1e-12})
    model = build(made, 3)
    before = flat(model)
    found = PrivateFit(model, view(made, MANY), made, 1).run()
    assert (found.steps, found.examples, found.loss) == (3, 1, None)
    assert (flat(model) != before).all()


def test_an_outlier_moves_the_sum_by_no_more_than_the_bound() -> None:
    """Same draws, same noise, one patient's images black or white: the step differs by twice clip / batch_size."""
    clip = 0.3
    made = study(privacy={"epsilon": 4.0, "clip": clip}, **{"training.local_steps": 1, "training.batch_size": 8})
    data = view(made, MANY)
    moved = []
    for value in (0, 255):
        images = data.images.clone()
        images[data.patients == 3] = value
        other = View(images, data.targets, data.patients, data.patient_count, 0)
        moved.append(fit(made, other, entropy=Keyed()))
    gap = float((moved[0] - moved[1]).norm())
    assert 0.0 < gap <= 2 * clip / 8 * (1 + 1e-4)


def test_two_fits_never_agree_though_the_seed_does_and_a_tests_own_source_repeats() -> None:
    made = study()
    data = view(made, MANY)
    assert not torch.equal(fit(made, data), fit(made, data))
    torch.testing.assert_close(fit(made, data, entropy=Keyed(1)), fit(made, data, entropy=Keyed(1)))
    assert not torch.equal(fit(made, data, entropy=Keyed(1)), fit(made, data, entropy=Keyed(2)))


def test_augmentation_and_dropout_do_not_follow_the_studys_seed() -> None:
    made = study(privacy=None, **{"augment.rotate_deg": 20.0, "model.dropout": 0.5, "training.batch_size": 8})
    data = view(made, MANY)
    state = torch.get_rng_state()
    assert not torch.equal(fit(made, data, noise=0.0), fit(made, data, noise=0.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_fedprox_and_l1_act_on_weights_alone() -> None:
    plain = study(**{"training.local_steps": 2})
    pulled = plain.derive(
        **{
            "training.optimiser.l1": 0.01,
            "federation.strategy": {"name": "fedprox", "params": {"proximal_mu": 5.0}},
            "training.optimiser.lr": 0.01,
        }
    )
    data = view(plain, MANY)
    held = fit(pulled, data, entropy=Keyed())
    free = fit(plain.derive(**{"training.optimiser.lr": 0.01}), data, entropy=Keyed())
    assert not torch.equal(held, free)
    model = build(plain, 3)
    first = pulled.derive(**{"training.local_steps": 1})
    expected = fit(plain.derive(**{"training.local_steps": 1, "training.optimiser.lr": 0.01}), data, entropy=Keyed())
    torch.testing.assert_close(
        fit(first, data, entropy=Keyed()), expected - 0.01 * 0.01 * flat(model).sign(), rtol=0.0, atol=1e-7
    )


def test_more_patients_than_delta_allows_and_layers_that_mix_are_refused() -> None:
    made = study(privacy={"epsilon": 4.0, "delta": 0.2})
    with pytest.raises(PrivacyError, match=r"delta 0.2 is not below one over"):
        PrivateFit(build(made, 3), view(made, MANY), made, 1)
    mixing = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(392, 1))
    with pytest.raises(ModelError, match=r"use model\.norm: group"):
        PrivateFit(mixing, view(study(), MANY), study(), 1)


class Remembers(nn.Module):
    """Keeps a mean of what it saw: a buffer travels, and no noise covers it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 1)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.mean = images.detach().mean().reshape(1)
        result: Tensor = self.layer(images.flatten(1))
        return result


def test_a_layer_that_keeps_what_it_saw_is_refused() -> None:
    made = study(**{"training.batch_size": 8})
    with pytest.raises(ModelError, match="keeps statistics of what it saw"):
        PrivateFit(Remembers(), view(made, MANY), made, 1).run()


def test_the_weights_that_leave_are_a_models() -> None:
    made = study()
    model = build(made, 3)
    PrivateFit(model, view(made, MANY), made, 1).run()
    assert set(state_of(model)) == set(state_of(build(made, 3)))
    assert all(np.isfinite(value).all() for value in state_of(model).values())
    assert not model.training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"epsilon": 1.0}}, "privacy.delta"),
        ({"privacy": {"epsilon": 1.0, "delta": 1.0}}, "privacy.delta"),
        ({"privacy": {"delta": 1e-5}}, "give epsilon .* or noise_multiplier"),
        ({"privacy": {"delta": 1e-5, "epsilon": 1.0, "noise_multiplier": 1.0}}, "give epsilon"),
        ({"privacy": {"delta": 1e-5, "noise_multiplier": 1.0}}, "noise_multiplier needs sample_rate"),
        ({"privacy": {"delta": 1e-5, "epsilon": 1.0, "seed": 3}}, "seed"),
        ({"model.norm": "batch"}, "use model.norm: group"),
        ({"training": {"batch_size": 8, "local_epochs": 1}}, "privacy needs training.local_steps"),
        ({"training.class_weighting": "balanced"}, "class counts"),
        ({"training.class_weighting": "federated"}, "class counts"),
        ({"survey": ["classes"]}, "no noise covers; leave them out"),
        ({"image.normalise": "federated"}, "no noise covers; leave them out"),
        ({"training.optimiser.clip_norm": 1.0}, "privacy.clip bounds"),
        ({"training.schedule": {"kind": "cosine"}}, "schedule.unit: round"),
        ({"federation.compression": "int8"}, "use federation.compression: none"),
        ({"federation.strategy": {"name": "qfedavg"}}, "qfedavg weighs sites by their loss"),
        ({"federation.keep": "best"}, "keep: best and early_stopping need validation results"),
        ({"federation.early_stopping": {"patience": 2}}, "early_stopping need validation results"),
    ],
)
def test_what_would_void_the_promise_is_refused_with_the_remedy(changes: dict[str, Any], words: str) -> None:
    from common.errors import StudyError

    with pytest.raises(StudyError, match=words):
        study().derive(**changes)
