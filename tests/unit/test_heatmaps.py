"""Heat maps against their definitions, written out; and pictures of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from client.explaining.heatmaps import METHODS, HeatMaps, default_method
from client.explaining.pictures import picture
from common.basis import Basis
from common.errors import ModelError
from common.models import build
from common.study import MODELS, SEGMENTERS, Study


def study(name: str = "cnn", **changes: Any) -> Study:
    raw = {
        "name": "maps",
        "task": "multiclass",
        "classes": ["a", "b", "c"],
        "image": {"size": 32},
        "model": {"name": name},
    }
    made = Study.model_validate(raw)
    return made.derive(**changes) if changes else made


def stirred(spec: Study) -> nn.Module:
    """Fresh weights, moved: some networks begin with a last layer of zeros."""
    model = build(spec, 1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model


def images(spec: Study, count: int = 3) -> Tensor:
    shape = (count, spec.image.channels, spec.image.size, spec.image.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(4))


WANTED = torch.tensor([0, 2, 1])
CLASSIFIERS = [name for name in MODELS if name not in SEGMENTERS]


def by_hand(model: nn.Module, layer: str, batch: Tensor, wanted: Tensor, *, placed: bool) -> Tensor:
    """Grad-CAM's equations 1 and 2, or HiResCAM's equation 4, and the enlargement."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, given, output: kept.append(output))
    logits = model.eval()(batch)
    handle.remove()
    (maps,) = kept
    (gradient,) = torch.autograd.grad(logits.gather(1, wanted[:, None]).sum(), maps)
    weights = gradient if placed else gradient.mean((2, 3), keepdim=True)
    coarse = (weights * maps).sum(1, keepdim=True).relu().detach()
    large = functional.interpolate(coarse, batch.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return large / large.flatten(1).amax(1).clamp(min=1e-30)[:, None, None]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("cnn", "features"),
        ("cnn_rnn", "features"),
        ("resnet18", "layer4"),
        ("densenet121", "features"),
        ("efficientnet_lite0", "blocks"),
    ],
)
@pytest.mark.parametrize("method", ["grad-cam", "hirescam"])
def test_maps_of_the_last_feature_maps_are_their_papers(name: str, layer: str, method: Any) -> None:
    spec = study(name, **{"image.size": 64})
    model = stirred(spec)
    found = HeatMaps(model, spec, method).of(images(spec), WANTED)
    expected = by_hand(model, layer, images(spec), WANTED, placed=method == "hirescam")
    assert found.shape == (3, 64, 64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_where_a_mean_goes_on_both_are_one_map() -> None:
    """HiResCAM's own theorem: of a network that ends in a global mean it is Grad-CAM."""
    spec = study("resnet18", **{"image.size": 64})
    model = stirred(spec)
    one, other = (HeatMaps(model, spec, method).of(images(spec), WANTED) for method in ("grad-cam", "hirescam"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_integrated_gradients_see_only_pixels_that_speak_for_the_class() -> None:
    """Of a linear model they are weight times pixel, exactly; what speaks against the class is cold."""
    spec = study(**{"image.size": 8})
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    batch = images(spec)
    found = HeatMaps(linear, spec, "integrated-gradients").of(batch, WANTED)
    weights = linear[1].weight.detach()[WANTED].reshape(3, 8, 8)
    expected = (weights * batch[:, 0]).clamp(min=0.0)
    torch.testing.assert_close(found, expected / expected.flatten(1).amax(1)[:, None, None], rtol=1e-4, atol=1e-5)


def test_attention_is_rolled_out_from_the_last_layer_to_the_first() -> None:
    spec = study("vit", **{"model.params": {"dim": 12, "depth": 3, "heads": 2}})
    model = stirred(spec).eval()
    batch = images(spec)
    tokens = torch.cat([model.class_token.expand(3, -1, -1), model.conv_proj(batch).flatten(2).mT], 1)  # type: ignore[operator,union-attr]
    tokens = tokens + model.get_parameter("encoder.pos_embedding")
    rolled = torch.eye(17)
    for block in model.get_submodule("encoder.layers").children():
        weights = block.self_attention.weights_of(block.ln_1(tokens)).mean(1)  # type: ignore[operator,union-attr]
        rolled = (0.5 * weights + 0.5 * torch.eye(17)) @ rolled
        tokens = block(tokens)
    torch.testing.assert_close(rolled.sum(-1), torch.ones(3, 17))
    coarse = rolled[:, 0, 1:].reshape(3, 1, 4, 4)
    large = functional.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)[:, 0].detach()
    found = HeatMaps(model, spec).of(batch, WANTED)
    torch.testing.assert_close(found, large / large.flatten(1).amax(1)[:, None, None], rtol=1e-4, atol=1e-5)
    assert torch.equal(found, HeatMaps(model, spec).of(batch, WANTED.flip(0))), "it knows no class"


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_has_a_map_between_0_and_1_and_stays_as_it_is(name: str, channels: int) -> None:
    params = {"sequence": "channels"} if (name, channels) == ("cnn_rnn", 3) else {}
    spec = study(name, **{"image.channels": channels, "model.params": params, "model.dropout": 0.5})
    model = stirred(spec)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    maps = HeatMaps(model, spec)
    found = maps.of(images(spec), WANTED)
    assert found.shape == (3, 32, 32) and not found.requires_grad
    assert float(found.min()) >= 0.0 and {float(one.max()) for one in found} <= {0.0, 1.0}
    torch.testing.assert_close(found, maps.of(images(spec), WANTED))
    scores = maps.scores(images(spec))
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_layers_and_normalisation_are_no_hindrance() -> None:
    spec = study(
        "resnet18", **{"image.normalise": "federated", "model.weights": "w", "model.frozen": ["conv1", "layer4"]}
    )
    basis = Basis((0.5,), (0.25,), ())
    model = stirred(spec.derive(**{"model.frozen": []}))
    plain = HeatMaps(model, study("resnet18")).of((images(spec) - 0.5) / 0.25, WANTED)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    given = images(spec)
    torch.testing.assert_close(HeatMaps(model, spec, None, basis).of(given, WANTED), plain, rtol=1e-4, atol=1e-5)
    HeatMaps(model, spec, None, basis).scores(given)
    assert torch.equal(given, images(spec)), "normalising changed a copy"


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("cnn", "rollout", "cnn has no attention to roll out"),
        ("vit", "grad-cam", "where vit has its last feature maps is not known; use integrated-gradients or rollout"),
    ],
)
def test_methods_that_a_model_has_not(name: str, method: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        HeatMaps(stirred(study(name)), study(name), method)


def test_outlines_need_no_heat_map() -> None:
    outlined = Study.model_validate({"name": "o", "task": "segmentation", "classes": ["a"], "model": {"name": "unet"}})
    with pytest.raises(ModelError, match="shows by itself what it found"):
        HeatMaps(nn.Identity(), outlined)


def test_each_method_is_some_model_s_or_can_be_asked_for() -> None:
    assert {default_method(study(name)) for name in CLASSIFIERS} <= set(METHODS)
    assert default_method(study()) == "integrated-gradients" and default_method(study("vit")) == "rollout"
    assert default_method(study("resnet18")) == "grad-cam"


def test_a_picture_is_the_image_and_beside_it_the_image_under_heat() -> None:
    pixels = torch.full((1, 40, 64), 0.5)
    heat = torch.zeros(40, 64)
    heat[:, 32:] = 1.0
    mask = np.zeros((40, 64), np.uint8)
    mask[10:20, 4:14] = 1
    for drawn in (None, mask):
        with Image.open(io.BytesIO(picture(pixels, heat, drawn))) as opened:
            opened.load()
            found = np.asarray(opened).astype(int)
            assert opened.format == "PNG" and not opened.info, "pixels, and no word about them"
        assert found.shape == (280, 2 * 448, 3), "seven times enlarged, to at least 256 a side"
        assert (found[:, :448] == 128).all()
        hot = found[:, 448 + 224 :]
        assert (hot[..., 0] > hot[..., 2] + 20).all()
        assert ((found[:, 448 : 448 + 224] != 128).any()) == (drawn is not None)
