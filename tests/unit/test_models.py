"""Models: shapes, seeds, equality with torchvision, per-sample gradients, parameters and their errors."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import common.models
from common.errors import ModelError
from common.models import BUILDERS, build
from common.models.attention import SqueezeExcitation
from common.models.cnn import build_cnn
from common.models.cnn_rnn import GRU
from common.models.norms import groups_for, norm_layer
from common.models.pretrained import fit_weights
from common.models.vit import SelfAttention
from common.randomness import seed_for
from common.study import MODELS, SEGMENTERS, Study
from common.weights import digest, state_of


def study(name: str = "cnn", **changes: Any) -> Study:
    outlines = name in SEGMENTERS
    base = Study.model_validate(
        {
            "name": "models",
            "task": "segmentation" if outlines else "multiclass",
            "classes": ["a"] if outlines else ["a", "b", "c"],
            "image": {"size": 32, "channels": 1},
            "model": {"name": name if name in MODELS else "cnn"},
        }
    )
    return base.derive(**changes) if changes else base


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(spec: Study, batch: int = 2) -> Tensor:
    shape = (batch, spec.image.channels, spec.image.size, spec.image.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def test_every_name_a_study_may_use_has_a_builder() -> None:
    assert set(BUILDERS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_the_study_s_shape(name: str, channels: int) -> None:
    spec = study(name, **{"image.channels": channels, "model.dropout": 0.3})
    logits = build(spec, 1)(images(spec))
    assert logits.shape == ((2, 1, 32, 32) if name in SEGMENTERS else (2, 3))
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())


def test_binary_task_has_one_logit() -> None:
    spec = study(task="binary", classes=["normal", "pneumonia"])
    assert build(spec, 1)(images(spec)).shape == (2, 1)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vit", "cnn_rnn"])
def test_weights_depend_on_seed_and_model_only(name: str) -> None:
    spec = study(name)
    torch.rand(17)
    first = digest(state_of(build(spec, 5)))
    torch.rand(3)
    assert digest(state_of(build(spec.derive(**{"training.batch_size": 7, "name": "other"}), 5))) == first
    assert digest(state_of(build(spec, 6))) != first


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build(study("resnet18"), 3)
    assert torch.equal(torch.get_rng_state(), before)


# --- the cnn ---------------------------------------------------------------------------------------------------------


def plain_benchmark_net() -> nn.Sequential:
    """The network of the benchmark's bare loop: conv, ReLU, pool; 1024-128-64-2."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (32, 64, 64, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    head = [nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def test_cnn_without_norm_is_bit_for_bit_the_benchmark_s_network() -> None:
    spec = study(task="multilabel", classes=["a", "b"], **{"image.size": 64, "model.norm": "none"})
    ours, theirs = build(spec, 1), plain_benchmark_net()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    batch = images(spec, 4) - 0.5
    for model in (ours, theirs):
        model(batch).square().sum().backward()
    assert torch.equal(ours(batch), theirs(batch))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)  # type: ignore[arg-type]


def test_pooling_after_every_two_convolutions() -> None:
    spec = study(**{"model.params": {"pool_every": 2}, "image.size": 64})
    model = build(spec, 1)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if name.endswith("weight")}
    assert shapes["classifier.fc1.weight"] == (128, 64 * 16 * 16)
    assert shapes["classifier.fc2.weight"] == (64, 128)
    assert shapes["classifier.fc3.weight"] == (3, 64)
    assert [shapes[f"features.conv{i}.weight"][:2] for i in (1, 2, 3, 4)] == [(32, 1), (64, 32), (64, 64), (64, 64)]
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 2


def test_dropout_stands_before_each_fully_connected_layer() -> None:
    names = [name for name, _ in build(study(**{"model.dropout": 0.2}), 1).named_modules() if "classifier." in name]
    assert names == [
        f"classifier.{part}" for part in ("dropout1", "fc1", "relu1", "dropout2", "fc2", "relu2", "dropout3", "fc3")
    ]


def test_dropout_is_quiet_in_evaluation() -> None:
    spec = study(**{"model.dropout": 0.5})
    model = build(spec, 1).eval()
    assert torch.equal(model(images(spec)), model(images(spec)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.params": {"fliters": [8]}}, r"model\.params\.fliters: unknown key for cnn; did you mean 'filters'\?"),
        ({"model.params": {"zzz": 1}}, "known here: filters, pool_every, kernel, attention, hidden"),
        ({"model.params": {"filters": []}}, "list of 1 to 16 integers"),
        ({"model.params": {"filters": 8}}, r"model\.params\.filters: must be a list .*, got 8"),
        ({"model.params": {"filters": [8, 0]}}, "integers from 1 to 4096"),
        ({"model.params": {"kernel": 4}}, "must be odd"),
        ({"model.params": {"kernel": True}}, "must be an integer from 1 to 15"),
        ({"model.params": {"pool_every": 5}}, "from 1 to 4, got 5"),
        ({"image.size": 15}, "15 is too small for cnn with 4 poolings, which need at least 16"),
        ({"image.size": 1024, "model.params": {"pool_every": 4}}, "16777216 × 128 weights; reduce image.size"),
    ],
)
def test_cnn_refuses_what_it_cannot_build(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(study(**changes), 1)


def test_smallest_image_of_the_default_cnn() -> None:
    spec = study(**{"image.size": 16})
    assert build(spec, 1)(images(spec)).shape == (2, 3)


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "blocks"), [("cnn", 4), ("resnet18", 8), ("resnet50", 16), ("cnn_rnn", 4)])
def test_channel_attention_stands_in_every_block_and_weighs_channels(name: str, blocks: int) -> None:
    model = build(study(name, **{"model.params": {"attention": "se"}}), 1)
    found = [module for module in model.modules() if isinstance(module, SqueezeExcitation)]
    assert len(found) == blocks
    one = found[0]
    maps = torch.rand(2, one.excite.out_features, 5, 5) + 0.5
    gates = one(maps).detach() / maps
    assert torch.allclose(gates, gates[:, :, :1, :1].expand_as(gates), atol=1e-6), "one number a channel"
    assert 0.0 < float(gates.min()) < float(gates.max()) < 1.0
    assert not torch.allclose(gates[0], gates[1]), "of each image's own"


def test_attention_is_a_word_that_is_known() -> None:
    with pytest.raises(ModelError, match=r"model\.params\.attention: must be one of none, se, got 'cbam'"):
        build(study("resnet18", **{"model.params": {"attention": "cbam"}}), 1)


# --- the cnn with a recurrent layer ----------------------------------------------------------------------------------


def test_the_recurrent_layer_is_torch_s_gru() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        theirs = nn.GRU(7, 5, batch_first=True)
        torch.default_generator.manual_seed(3)
        ours = GRU(7, 5)
    assert digest(state_of(ours)) == digest(state_of(theirs))
    steps = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(1)) - 0.5
    torch.testing.assert_close(ours(steps), theirs(steps)[0], rtol=1e-6, atol=1e-7)
    ours(steps).square().sum().backward()
    theirs(steps)[0].square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)


SERIES = {"image.channels": 3, "model.params": {"sequence": "channels"}}


def test_a_series_gives_each_picture_to_the_same_convolutions_in_order() -> None:
    spec = study("cnn_rnn", **SERIES)
    model = build(spec, 1).eval()
    assert model.get_parameter("features.conv1.weight").shape[1] == 1
    batch = images(spec)
    batch[:, 1] = batch[:, 0]
    logits, swapped, reversed_ = (model(batch[:, order]) for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]))
    assert torch.equal(logits, swapped), "two pictures that are alike"
    assert not torch.allclose(logits, reversed_, atol=1e-6), "the order of a series has a meaning"


def test_rows_are_read_from_head_to_foot() -> None:
    spec = study("cnn_rnn", **{"image.size": 64})
    model = build(spec, 1).eval()
    assert model.get_parameter("rnn.weight_ih_l0").shape == (3 * 64, 64 * 4), "a row of 4 positions, 64 channels each"
    seen: list[Tensor] = []
    model.get_submodule("rnn").register_forward_hook(lambda module, given, output: seen.append(given[0]))
    maps = model.get_submodule("features")(images(spec))
    model(images(spec))
    assert torch.equal(seen[0][:, 1].reshape(2, 64, 4), maps[:, :, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.params": {"sequence": "channels"}}, "reads a series, and image.channels is 1"),
        ({"model.params": {"sequence": "slices"}}, "must be one of rows, channels, got 'slices'"),
        ({"model.params": {"hidden": [8]}}, "unknown key for cnn_rnn"),
        ({"image.size": 15}, "15 is too small for cnn_rnn with 4 poolings"),
    ],
)
def test_cnn_rnn_refuses_what_it_cannot_build(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(study("cnn_rnn", **changes), 1)


# --- the vision transformer ------------------------------------------------------------------------------------------

VIT = {"image.channels": 3, "model.params": {"dim": 48, "depth": 2, "heads": 4, "mlp": 80}}


def torchvision_vit(seed: int | None = None) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(11, "initial weights") if seed is None else seed)
        return VisionTransformer(32, 8, 2, 4, 48, 80, num_classes=3)


def test_fresh_transformer_is_torchvision_s_to_the_bit() -> None:
    for (key, mine), other in zip(
        build(study("vit", **VIT), 11).state_dict().items(), torchvision_vit().state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other), key


def test_torchvision_s_transformer_loads_and_gives_the_same_logits_and_gradients() -> None:
    theirs, ours = torchvision_vit(), build(study("vit", **VIT), 1)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    report = fit_weights(ours, theirs.state_dict(), "file")
    assert len(report.loaded) == len(theirs.state_dict())
    batch = images(study("vit", **VIT), 3)
    torch.testing.assert_close(ours(batch), theirs(batch), rtol=1e-5, atol=1e-6)
    for model in (ours, theirs):
        model(batch).square().sum().backward()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5, msg=key)


def test_names_of_older_transformer_files_load() -> None:
    theirs, ours = torchvision_vit(4), build(study("vit", **VIT), 1)
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert any("linear_2" in name for name in old)
    fit_weights(ours, old, "file")
    assert torch.equal(
        ours.get_parameter("encoder.layers.encoder_layer_1.mlp.3.weight"),
        theirs.get_parameter("encoder.layers.encoder_layer_1.mlp.3.weight"),
    )


def test_attention_weights_can_be_had_and_sum_to_one() -> None:
    model = build(study("vit", **VIT), 1)
    layer = model.get_submodule("encoder.layers.encoder_layer_0.self_attention")
    assert isinstance(layer, SelfAttention)
    tokens = torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(2))
    theirs = nn.MultiheadAttention(48, 4, batch_first=True)
    renamed = {name.replace("in_proj.", "in_proj_"): value for name, value in layer.state_dict().items()}
    theirs.load_state_dict(renamed)
    mixed, weights = theirs(tokens, tokens, tokens, average_attn_weights=False)
    torch.testing.assert_close(layer.weights_of(tokens), weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer(tokens), mixed, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 17))


def test_vit_b_16_by_its_params() -> None:
    params = {"patch": 16, "dim": 768, "depth": 12, "heads": 12}
    with torch.device("meta"):
        model = build(study("vit", **{"image.channels": 3, "image.size": 224, "model.params": params}), 1)
    assert sum(p.numel() for p in model.parameters()) == 85_798_656 + 3 * 769, "torchvision's, but for the head"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.params": {"patch": 7}}, "7 does not divide image.size 32"),
        ({"model.params": {"heads": 5}}, "5 does not divide model.params.dim 192"),
        ({"model.params": {"patch": 4}, "image.size": 256}, "4096 patches an image are too many, at most 4095"),
        ({"model.norm": "batch"}, "batch: vit has layer norms and no others; leave model.norm out"),
    ],
)
def test_vit_refuses_what_it_cannot_build(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(study("vit", **changes), 1)


# --- torchvision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_same_names_outputs_and_gradients_as_torchvision(name: str) -> None:
    import torchvision.models

    spec = study(name, **{"image.channels": 3, "model.norm": "batch"})
    theirs = getattr(torchvision.models, name)(weights=None, num_classes=3)
    ours = build(spec, 1)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    batch = images(spec, 3) * 2 - 1
    trained = [model.train()(batch) for model in (ours, theirs)]
    assert torch.equal(*trained)
    for model, logits in zip((ours, theirs), trained, strict=True):
        logits.square().sum().backward()
        model.eval()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = float(other.grad.norm()) + 1e-12
        assert float((mine.grad - other.grad).norm()) <= 1e-4 * scale, key  # type: ignore[operator]
    with torch.no_grad():  # running statistics were updated alike
        assert torch.equal(ours(batch), theirs(batch))


def test_efficientnet_is_the_published_one_in_names_outputs_and_gradients() -> None:
    """Of the package that its weights were published for, random depth and dropout turned off."""
    from efficientnet_lite_pytorch import EfficientNet

    size = 70  # odd and even maps on the way down: 35, 18, 9, 5, 3
    theirs = EfficientNet.from_name(
        "efficientnet-lite0", image_size=size, num_classes=3, dropout_rate=0.0, drop_connect_rate=0.0
    )
    spec = study("efficientnet_lite0", **{"image.channels": 3, "image.size": size, "model.norm": "batch"})
    ours = build(spec, 1)
    assert fit_weights(ours, theirs.state_dict(), "theirs").skipped == ()
    assert list(ours.state_dict()) == [key.replace("._", ".").removeprefix("_") for key in theirs.state_dict()]
    batch = images(spec, 3) * 2 - 1
    trained = [model.train()(batch) for model in (ours, theirs)]
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-5)
    for logits in trained:
        logits.square().sum().backward()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = float(other.grad.norm()) + 1e-12
        assert float((mine.grad - other.grad).norm()) <= 1e-3 * scale, key  # type: ignore[operator]
    fit_weights(ours, theirs.state_dict(), "theirs")  # their running means move a hundredth a step, ours a tenth
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(batch), theirs.eval()(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_fresh_weights_are_drawn_as_torchvision_draws_them(name: str) -> None:
    import torchvision.models

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(11, "initial weights"))
        theirs = getattr(torchvision.models, name)(weights=None, num_classes=3)
    ours = build(study(name, **{"image.channels": 3, "model.norm": "batch"}), 11)
    # Drawn in the same order from the same stream, so this holds to the last bit.
    for (key, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, other), key


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_group_norm_keeps_the_names_and_has_no_buffers(name: str) -> None:
    grouped, batch = (build(study(name, **{"model.norm": norm}), 1) for norm in ("group", "batch"))
    assert [key for key, _ in grouped.named_parameters()] == [key for key, _ in batch.named_parameters()]
    assert not list(grouped.buffers())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in grouped.modules())


def test_one_channel_network_has_one_input_channel() -> None:
    assert build(study("resnet18"), 1).get_parameter("conv1.weight").shape == (64, 1, 7, 7)
    assert build(study("densenet121"), 1).get_parameter("features.conv0.weight").shape == (64, 1, 7, 7)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet18", {"model.norm": "none"}, "use norm: group or norm: batch"),
        ("efficientnet_lite0", {"model.norm": "none"}, "use norm: group or norm: batch"),
        ("efficientnet_lite0", {"model.params": {"width": 2}}, "width"),
        ("densenet121", {"model.norm": "none"}, "use norm: group or norm: batch"),
        (
            "resnet50",
            {"model.params": {"filters": [8]}},
            r"params\.filters: unknown key for resnet50; known here: attention",
        ),
        ("densenet121", {"image.size": 28}, "28 is too small for densenet121, which needs at least 29"),
    ],
)
def test_published_networks_refuse_what_they_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(study(name, **changes), 1)


def test_smallest_image_of_densenet() -> None:
    spec = study("densenet121", **{"image.size": 29})
    assert build(spec, 1)(images(spec)).shape == (2, 3)


# --- per-sample gradients --------------------------------------------------------------------------------------------


def opacus_wrapped(model: nn.Module) -> nn.Module:
    from opacus import GradSampleModule

    return GradSampleModule(model, loss_reduction="sum")


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus hooks layers whose input is an image
@pytest.mark.parametrize(
    ("name", "channels"),
    [("cnn", 1), ("cnn", 3), ("resnet18", 1), ("resnet18", 3), ("resnet50", 1), ("densenet121", 1)],
)
def test_opacus_gradients_equal_a_loop_over_samples(name: str, channels: int) -> None:
    """To 1%: fifty layers of fresh weights amplify float32's rounding to 0.2%."""
    spec = study(name, **{"image.channels": channels})
    batch = images(spec, 2)
    plain = build(spec, 1)
    wrapped = opacus_wrapped(build(spec, 1))
    wrapped(batch).square().sum().backward()
    together = {key.removeprefix("_module."): p.grad_sample for key, p in wrapped.named_parameters()}  # type: ignore[attr-defined]
    for index in range(2):
        plain.zero_grad()
        plain(batch[index : index + 1]).square().sum().backward()
        for key, parameter in plain.named_parameters():
            alone = parameter.grad
            assert alone is not None
            difference = float((together[key][index] - alone).norm())
            assert difference <= 1e-2 * float(alone.norm()) + 1e-6, key


@pytest.mark.parametrize("name", MODELS)
def test_nothing_works_in_place(name: str) -> None:
    for key, module in build(study(name, **{"model.dropout": 0.1}), 1).named_modules():
        assert not getattr(module, "inplace", False), key


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (7, 1), (8, 2), (32, 8), (37, 1), (64, 16), (96, 24), (128, 32), (2048, 32)]
)
def test_groups_of_group_norm(channels: int, groups: int) -> None:
    assert groups_for(channels) == groups


def test_group_norm_of_any_width_divides() -> None:
    for channels in range(1, 600):
        assert channels % groups_for(channels) == 0
        assert math.prod(norm_layer("group", channels)(torch.ones(1, channels, 2, 2)).shape) == channels * 4


def test_batch_norm_refuses_one_value_per_channel_as_documented() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        build(study("resnet18", **{"model.norm": "batch", "image.size": 32}), 1)(torch.zeros(1, 1, 32, 32))


# --- entry points ----------------------------------------------------------------------------------------------------


class Installed:
    """What ``importlib.metadata`` gives for an installed package's entry point."""

    def __init__(self, function: Callable[[Study], Any]) -> None:
        self.name, self.value, self._function = "mine", "package.models:mine", function

    def load(self) -> Callable[[Study], Any]:
        return self._function


def with_installed(monkeypatch: pytest.MonkeyPatch, *functions: Callable[[Study], Any]) -> Study:
    def entry_points(**select: str) -> list[Installed]:
        assert select["group"] == "fedward.models"
        return [Installed(function) for function in functions]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    return study(**{"model.name": "mine"})


def test_installed_model_is_built_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_installed(monkeypatch, build_cnn)
    assert digest(state_of(build(spec, 3))) == digest(state_of(build(spec, 3)))
    assert build(spec, 3).training


def broken(_: Study) -> nn.Module:
    raise RuntimeError("no idea")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(1024, 5)),
            r"output is \(2, 5\), the study needs .*\(2, 3\)",
        ),
        (lambda spec: nn.Linear(3, 3), r"images of shape \(2, 1, 32, 32\) fail with RuntimeError"),
        (lambda spec: "model", "gave str; it must return a torch.nn.Module"),
        (broken, "failed to build with RuntimeError: no idea; mend that package"),
    ],
)
def test_installed_model_that_does_not_fit(
    function: Callable[[Study], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=message):
        build(with_installed(monkeypatch, function), 1)


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"2 entry points .* exactly one installed package must provide it"):
        build(with_installed(monkeypatch, build_cnn, build_cnn), 1)


def test_a_study_s_weights_path_is_not_opened_by_build() -> None:
    spec = study(**{"model.weights": "/nowhere/at/all.pth"})
    assert digest(state_of(build(spec, 1))) == digest(state_of(build(study(), 1)))
    assert common.models.build_initial.__doc__


def test_models_built_side_by_side_have_the_weights_of_models_built_in_turn() -> None:
    """Torch's global random state is one for all threads; the simulation builds its arms' models in several."""
    wanted = study("cnn")
    alone = [digest(state_of(build(wanted, seed))) for seed in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                found = list(pool.map(lambda seed: digest(state_of(build(wanted, seed))), range(4)))
                assert found == alone
    finally:
        sys.setswitchinterval(interval)
