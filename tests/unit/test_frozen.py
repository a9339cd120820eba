"""Frozen layers: which parameters are out of training, what stays as in evaluation, what comes back from a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.errors import ModelError, ReplyRefused, StudyError
from common.models import build, build_initial
from common.models.frozen import batch_norms, freeze, training_mode
from common.study import Study
from common.weights import changing_names, frozen_modules, save, state_of, trainable, trainable_names


def study(name: str = "resnet18", frozen: tuple[str, ...] = (), **changes: Any) -> Study:
    raw = {
        "name": "frozen",
        "task": "multiclass",
        "classes": ["a", "b", "c"],
        "image": {"size": 32},
        "training": {"local_steps": 2},
        "model": {"name": name, "norm": "batch", "weights": "w.safetensors", "frozen": list(frozen)},
    }
    made = Study.model_validate(raw)
    return made.derive(**changes) if changes else made


def toy() -> nn.Sequential:
    """A norm layer in each of two stages, dropout, and a last layer."""
    stages = [nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5)) for _ in range(2)]
    stages[1][0] = nn.Conv2d(2, 2, 1)
    return nn.Sequential(*stages, nn.Conv2d(2, 1, 1))


def test_a_prefix_ends_at_a_dot() -> None:
    model = build(study(frozen=("layer1", "conv1", "bn1.weight")), 1)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith(("layer1.", "conv1.")) or name == "bn1.weight"
    }
    assert set(trainable_names(model)) == {name for name, _ in model.named_parameters()} - frozen
    assert sum(p.numel() for p in trainable(model)) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_order_of_prefixes_does_not_count_and_none_leaves_the_hash() -> None:
    assert study(frozen=("layer1", "conv1")).hash == study(frozen=("conv1", "layer1", "conv1")).hash
    assert b"frozen" not in study().canonical().replace(b'"name":"frozen"', b"")


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("layer9",), r"no layer of this model is called 'layer9'; did you mean 'layer"),
        (("backbone",), "it has conv1, bn1, layer1, layer2, layer3, layer4, fc, and layers in them"),
        (("layer",), "no layer of this model is called 'layer'"),
        (("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"), "names the whole model"),
    ],
)
def test_what_cannot_be_frozen(frozen: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(study(frozen=frozen), 1)


def test_frozen_layers_come_from_a_file() -> None:
    with pytest.raises(StudyError, match="frozen needs weights: the file that these layers come from"):
        study().derive(**{"model.weights": None, "model.frozen": ["conv1"]})


def test_a_frozen_last_layer_must_fit_the_classes(tmp_path: Path) -> None:
    save(state_of(build(study(classes=["a", "b", "c", "d"]), 9)), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"fc\.weight would stay as it was drawn"):
        build_initial(study(frozen=("fc",)), 1, tmp_path)
    model, report = build_initial(study(frozen=("layer4",)), 1, tmp_path)
    assert report is not None
    assert report.skipped == ("fc.weight", "fc.bias")
    assert not model.get_parameter("layer4.0.conv1.weight").requires_grad


@given(st.sets(st.sampled_from(["0", "0.0", "0.1", "1.0", "1.1", "0.1.weight"])))
@settings(max_examples=40, deadline=None)
def test_what_comes_back_and_what_stays_share_the_model_without_rest(prefixes: set[str]) -> None:
    model = toy()
    freeze(model, sorted(prefixes))
    before = {name: value.copy() for name, value in state_of(model).items()}
    training_mode(model)
    optimiser = torch.optim.SGD(trainable(model), 0.5)
    for seed in range(2):
        images = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
        model(images).sin().sum().backward()
        optimiser.step()
    after = state_of(model)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed <= set(changing_names(model))
    assert set(trainable_names(model)) <= set(changing_names(model))
    norms = {name for name in ("0.1", "1.1") if f"{name}.running_mean" in changing_names(model)}
    assert norms == set(batch_norms(model)), "a batch norm keeps its statistics where it is frozen, and only there"
    assert {f"{name}.running_mean" for name in norms} <= changed


def test_a_frozen_stage_works_as_in_evaluation() -> None:
    model = toy()
    freeze(model, ["0"])
    training_mode(model)
    assert [module.training for module in model[0].modules()] == [False] * 4
    assert model.training and model[1].training and model[1][2].training
    assert set(frozen_modules(model)) == {"0", "0.0", "0.1"}
    model.eval()
    training_mode(model)
    assert model[1][1].training


@pytest.mark.parametrize(
    "promise",
    [
        {"privacy": {"noise_multiplier": 1.0, "sample_rate": 0.1, "delta": 1e-3}},
        {"federation.secure_aggregation": {}},
        {"central_privacy": {"epsilon": 8.0, "delta": 1e-3, "clip": 1.0}},
    ],
    ids=["privacy", "masks", "central"],
)
def test_batch_norm_may_go_with_a_promise_where_it_is_frozen(promise: dict[str, Any]) -> None:
    whole = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    model = build(study(frozen=whole, **promise), 1)
    assert list(changing_names(model)) == ["fc.weight", "fc.bias"]
    with pytest.raises(ModelError, match=r"batch norm layer4\.0\.bn1 would be trained, which mixes the patients"):
        build(study(frozen=whole[:-1], **promise), 1)
    with pytest.raises(StudyError, match="batch norm"):
        study(**promise)


def test_private_gradients_of_what_is_left_are_those_of_a_loop() -> None:
    from client.clipping import Batch, Ghost, Looped
    from client.private import image_losses

    spec = study(frozen=("conv1", "bn1", "layer1", "layer2", "layer3", "layer4.0", "layer4.1.bn1", "layer4.1.bn2"))
    draw = torch.Generator().manual_seed(3)
    model = build(spec, 1)
    training_mode(model)
    batch = Batch(
        torch.rand(4, 1, 32, 32, generator=draw),
        torch.eye(3)[[0, 1, 2, 0]],
        torch.ones(4),
        torch.tensor([0, 1, 2, 2]),
        3,
    )
    assert Ghost.serves(model)
    found: list[list[Tensor]] = []
    for path in (Ghost(model, image_losses(spec), 0.5), Looped(model, image_losses(spec), 0.5)):
        into = [torch.zeros_like(parameter) for parameter in trainable(model)]
        path.add(batch, into)
        found.append(into)
    assert [tuple(one.shape) for one in found[0]] == [(512, 512, 3, 3), (512, 512, 3, 3), (3, 512), (3,)]
    for ghosted, looped in zip(*found, strict=True):
        torch.testing.assert_close(ghosted, looped, rtol=1e-3, atol=1e-6)
    assert not model.get_parameter("conv1.weight").requires_grad, "as it was"


def test_a_site_that_sends_what_is_frozen_is_refused() -> None:
    from common.protocol import TrainReply
    from server.fits import Fits
    from tests.unit import federation as fed

    made = fed.study(**{"model.weights": "w", "model.frozen": ["features"]})
    model = build(made, 1)
    fits, sent = Fits.__new__(Fits), state_of(model)
    fits._study, fits._trainable = made, trainable_names(model)
    fits._changing = {name: sent[name] for name in changing_names(model)}
    fits._work = type("Named", (), {"task": lambda self, round_: fed.protocol.Task(made, round=round_)})()  # type: ignore
    changed = {name: sent[name] + 1 for name in fits._changing}
    whole = fits._plain(1, sent, TrainReply("site-1", 1, changed, 3, 0.5, 1.0))
    assert whole is not None
    assert set(whole.weights) == set(sent)
    assert whole.weights["features.conv1.weight"] is sent["features.conv1.weight"]
    with pytest.raises(ReplyRefused, match=r"hold features\.conv1\.weight, which the study freezes"):
        fits._plain(1, sent, TrainReply("site-1", 1, sent, 3, 0.5, 1.0))
