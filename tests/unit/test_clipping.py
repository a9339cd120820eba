"""Sums of clipped per-patient gradients: every path against one patient at a time, and the bound itself."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn
from torch.nn import functional

from client import layer_gradients
from client.clipping import MARGIN, Batch, Ghost, Looped, Vmapped, choose_clipping
from common.errors import ModelError
from common.models import build
from common.weights import trainable
from tests.unit import federation as fed

MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"model.params": {"filters": [4, 8], "hidden": [8]}},
    "cnn, no norm": {"model.params": {"filters": [4, 8, 8, 8, 8], "hidden": [8]}, "model.norm": "none"},
    "cnn, 5 × 5, three channels": {
        "model.params": {"filters": [4, 4], "kernel": 5, "hidden": []}, "image.channels": 3,
    },
    "resnet18": {"model.name": "resnet18", "model.params": {}},
    "densenet121": {"model.name": "densenet121", "model.params": {}},
}  # fmt: skip
GROUPS = ([3, 1, 0, 2, 4], [0, 2, 1, 0, 2], [0, 0, 0, 0, 0])


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits[:, 0], targets[:, 1], reduction="none")


def model(name: str) -> nn.Module:
    made = fed.study(**{"model.norm": "group", **MODELS[name]})
    return build(made, 3).double().to(memory_format=torch.channels_last).train()


def batch(unit: list[int], *, size: int = 32, channels: int = 1, dtype: torch.dtype = torch.float64) -> Batch:
    draw = torch.Generator().manual_seed(len(unit))
    images = torch.rand((len(unit), channels, size, size), generator=draw, dtype=dtype)
    targets = torch.eye(2)[torch.randint(0, 2, (len(unit),), generator=draw)].to(dtype)
    units = torch.tensor(unit)
    share = 1.0 / torch.bincount(units)[units].to(dtype)
    return Batch(images.contiguous(memory_format=torch.channels_last), targets, share, units, int(units.max()) + 1)


def total(path: Any, made: Batch) -> Tensor:
    into = [torch.zeros_like(parameter) for parameter in path.parameters]
    path.add(made, into)
    return torch.cat([part.flatten() for part in into])


CASES = [(name, unit, clip) for name in MODELS if "cnn" in name for unit in GROUPS for clip in (0.01, 1e9)]
LARGE = [(name, [0, 0, 1], 0.01) for name in MODELS if "cnn" not in name]


@pytest.mark.parametrize(
    ("name", "unit", "clip"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE)], ids=str
)
def test_every_path_gives_the_sum_of_one_patient_at_a_time(name: str, unit: list[int], clip: float) -> None:
    """In float64 to 1e-10: the paths compute the same number, whatever the grouping, clipped and not."""
    net = model(name)
    made = batch(unit, size=16 if "resnet" in name else 32, channels=3 if "three" in name else 1)
    assert isinstance(choose_clipping(net, losses, clip), Ghost)
    expected = total(Looped(net, losses, clip, piece=2), made)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(total(Ghost(net, losses, clip), made), expected, rtol=0.0, atol=1e-10)
    if name.startswith("cnn"):
        torch.testing.assert_close(total(Vmapped(net, losses, clip), made), expected, rtol=0.0, atol=1e-10)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


NEWER: dict[str, tuple[type, dict[str, Any]]] = {
    "vit": (Vmapped, {"model.name": "vit", "model.params": {"dim": 8, "depth": 2, "heads": 2, "mlp": 12}}),
    "rows": (Vmapped, {"model.name": "cnn_rnn", "model.params": {"filters": [4, 4], "state": 5}}),
    "series": (
        Vmapped,
        {
            "model.name": "cnn_rnn",
            "model.params": {"filters": [4, 4], "state": 5, "sequence": "channels"},
            "image.channels": 3,
        },
    ),
    "depthwise": (Vmapped, {"model.name": "efficientnet_lite0", "model.params": {}}),
    "attention": (Ghost, {"model.params": {"filters": [4, 8], "hidden": [8], "attention": "se"}}),
}


@pytest.mark.parametrize("name", NEWER)
@pytest.mark.parametrize("clip", [0.01, 1e9])
def test_transformers_series_and_attention_have_gradients_of_each_patient(name: str, clip: float) -> None:
    path, change = NEWER[name]
    net = build(fed.study(**{"model.norm": "group", **change}), 3).double().train()
    with torch.no_grad():  # a fresh transformer's last layer is zero, and hides all before it
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    made = batch([0, 2, 1, 0, 2], channels=3 if name == "series" else 1)
    chosen = choose_clipping(net, losses, clip)
    assert type(chosen) is path
    expected = total(Looped(net, losses, clip, piece=2), made)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(total(chosen, made), expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", ["cnn", "cnn, 5 × 5, three channels"])
def test_a_large_convolution_image_by_image_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, made = model(name), batch([0, 1, 0, 2], channels=3 if "three" in name else 1)
    expected = total(Looped(net, losses, 0.01, piece=2), made)
    monkeypatch.setattr(layer_gradients, "LARGE", 0)
    torch.testing.assert_close(total(Ghost(net, losses, 0.01), made), expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", ["cnn", "cnn, no norm", "resnet18"])
def test_a_pass_leaves_nothing_in_memory(name: str) -> None:
    """What the hooks keep must not keep the pass, which keeps the hooks: no collector sees that circle."""
    net = model(name)
    path = Ghost(net, losses, 1.0)
    kept: list[weakref.ref[Tensor]] = []
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.GroupNorm)]
    handles = [layer.register_forward_hook(lambda _, given, out: kept.append(weakref.ref(out))) for layer in layers]
    total(path, batch([0, 1]))
    for handle in handles:
        handle.remove()
    assert len(kept) == len(layers)
    assert not any(reference() is not None for reference in kept)


def test_a_norm_that_sees_the_images_first_is_served() -> None:
    """Its pass keeps no statistics: its input asks for no gradient."""
    net = nn.Sequential(
        nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(1)
    ).double()
    made = batch([0, 1, 1], size=8, channels=3)
    net(made.images)
    assert Ghost.serves(net)
    expected = total(Looped(net, losses, 0.1), made)
    torch.testing.assert_close(total(Ghost(net, losses, 0.1), made), expected, rtol=0.0, atol=1e-10)


def test_without_a_bound_it_is_the_gradient_of_the_mean() -> None:
    """One image a patient: divided by the patients, torch's own gradient of the mean loss."""
    net, made = model("cnn"), batch([0, 1, 2, 3, 4])
    losses(net(made.images), made.targets).mean().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in trainable(net)])  # type: ignore[union-attr]
    for parameter in net.parameters():
        parameter.grad = None
    torch.testing.assert_close(total(Ghost(net, losses, 1e9), made) / 5, expected, rtol=0.0, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(
    unit=some.lists(some.integers(0, 5), min_size=1, max_size=8),
    clip=some.sampled_from([1e-6, 0.1, 1.0, 50.0]),
    scale=some.sampled_from([1.0, 1e3, 1e-3]),
    dtype=some.sampled_from([torch.float32, torch.float64]),
)
def test_no_patient_adds_more_than_the_bound(unit: list[int], clip: float, scale: float, dtype: torch.dtype) -> None:
    """Any grouping, any size of loss; alone in float32, and as a difference between neighbours in float64."""
    net = model("cnn").to(dtype)

    def scaled(logits: Tensor, targets: Tensor) -> Tensor:
        return scale * losses(logits, targets)

    numbers = sorted(set(unit))
    unit = [numbers.index(number) for number in unit]
    made = batch(unit, dtype=dtype)
    path = Ghost(net, scaled, clip)
    whole = total(path, made)
    for number in range(made.units):
        gone = torch.zeros(made.units, dtype=torch.bool)
        gone[number] = True
        alone, rest = total(path, made.without(~gone)), made.without(gone)
        assert float(alone.norm()) <= clip
        if rest.units and dtype == torch.float64:  # one patient more or less moves the sum by at most the bound
            assert float((whole - total(path, rest)).norm()) <= clip


def test_the_order_of_images_does_not_matter() -> None:
    net, made = model("cnn"), batch([0, 1, 1, 2])
    turned = torch.arange(4).flip(0)
    again = Batch(made.images[turned], made.targets[turned], made.share[turned], made.unit[turned], made.units)
    path = Ghost(net, losses, 0.1)
    torch.testing.assert_close(total(path, again), total(path, made), rtol=0.0, atol=1e-12)


def test_a_gradient_above_the_bound_is_cut_to_it_and_one_below_is_left_alone() -> None:
    net, made = model("cnn"), batch([0, 0])
    free = total(Ghost(net, losses, 1e9), made)
    for clip in (0.5 * float(free.norm()), 2.0 * float(free.norm())):
        found = total(Ghost(net, losses, clip), made)
        expected = free * min(1.0, clip / (float(free.norm()) * (1 + MARGIN)))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("path", [Looped, Ghost, Vmapped])
def test_an_image_that_gives_no_finite_gradient_adds_nothing_and_spoils_nothing(path: Any) -> None:
    net, made = model("cnn"), batch([0, 1, 1, 2])
    made.images[1] = torch.inf
    gone = torch.tensor([False, True, False])
    expected = total(Looped(net, losses, 0.1), made.without(gone))
    found = total(path(net, losses, 0.1), made)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)
    made.images[:] = torch.nan
    assert not total(path(net, losses, 0.1), made).any()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.out(self.inner(self.inner(images.flatten(1)).relu()))
        return result


def test_other_layers_go_through_torch_func_and_shared_ones_are_refused_by_the_fast_path() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, groups=1), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.LazyLinear(1))
    net.double()(batch([0], size=8).images)
    path = choose_clipping(net, losses, 0.05)
    assert isinstance(path, Vmapped)
    made = batch([0, 0, 1], size=8)
    torch.testing.assert_close(total(path, made), total(Looped(net, losses, 0.05), made), rtol=0.0, atol=1e-10)
    with pytest.raises(ModelError, match="Linear twice in a pass"):
        total(Ghost(Twice().double(), losses, 1.0), batch([0, 1], size=4))
    torch.testing.assert_close(
        total(Vmapped(twice := Twice().double(), losses, 0.1), batch([0, 1], size=4)),
        total(Looped(twice, losses, 0.1), batch([0, 1], size=4)), rtol=0.0, atol=1e-10,
    )  # fmt: skip


def test_a_model_that_torch_func_cannot_take_apart_is_refused_in_words() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3))[:, None] * self.weight * (2.0 if bool(images.sum() > 1) else 1.0)

    with pytest.raises(ModelError, match="gives no per-image gradients"):
        total(Vmapped(Counts(), losses, 1.0), batch([0, 1], size=4))


def test_parameters_that_are_not_trained_take_no_part() -> None:
    net = model("cnn")
    frozen = next(net.parameters())
    frozen.requires_grad_(False)
    made = batch([0, 0, 1])
    torch.testing.assert_close(
        total(Ghost(net, losses, 0.05), made), total(Looped(net, losses, 0.05), made), rtol=0.0, atol=1e-10
    )
    assert not frozen.requires_grad
