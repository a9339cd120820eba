"""Weights from a user's local file: what fits, what is adapted, what is refused and with which words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import ModelError
from common.models import build, build_initial, load_weights
from common.models.pretrained import fit_weights
from common.study import Study
from common.weights import digest, save, state_of

Tensors = dict[str, Tensor]


def study(name: str = "resnet18", classes: int = 3, **changes: Any) -> Study:
    raw = {
        "name": "pretrained",
        "task": "multilabel",
        "classes": [f"c{index}" for index in range(classes)],
        "image": {"size": 32, "channels": 3},
        "model": {"name": name, "norm": "batch"},
    }
    base = Study.model_validate(raw)
    return base.derive(**changes) if changes else base


@pytest.fixture(scope="module")
def published() -> Tensors:
    """A ResNet-18 with batch normalisation and another number of classes, as torchvision would publish it."""
    return dict(build(study(classes=5), 99).state_dict())


def copy(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("nested", [False, True])
def test_same_model_loads_wholly(suffix: str, nested: bool, published: Tensors, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(published, path)
    else:
        torch.save({"state_dict": published, "epoch": 3} if nested else published, path)
    model = build(study(classes=5), 1)
    report = load_weights(model, path)
    assert report.skipped == report.summed == ()
    assert set(report.loaded) == set(published)
    assert all(torch.equal(model.state_dict()[name], published[name]) for name in published)


def test_a_run_s_model_loads_into_the_same_cnn(tmp_path: Path) -> None:
    spec = study("cnn", **{"model.norm": "group"})
    trained = state_of(build(spec, 7))
    save(trained, tmp_path / "model.safetensors")
    fresh = build(spec, 8)
    load_weights(fresh, tmp_path / "model.safetensors")
    assert digest(state_of(fresh)) == digest(trained)


def test_other_number_of_classes_leaves_the_head_fresh(published: Tensors) -> None:
    model = build(study(), 1)
    head = model.get_parameter("fc.weight").detach().clone()
    report = fit_weights(model, copy(published), "file")
    assert report.skipped == ("fc.weight", "fc.bias")
    assert "fc.weight, fc.bias left fresh: the file has another number of classes" in str(report)
    assert torch.equal(model.get_parameter("fc.weight"), head)
    assert torch.equal(model.get_parameter("layer4.1.conv2.weight"), published["layer4.1.conv2.weight"])


def test_three_channels_are_summed_for_one(published: Tensors) -> None:
    """A grey image as three equal channels through the file's convolution gives what the sum gives."""
    model = build(study(classes=5, **{"image.channels": 1}), 1).eval()
    report = fit_weights(model, copy(published), "file")
    assert report.summed == ("conv1.weight",)
    three = build(study(classes=5), 1).eval()
    three.load_state_dict(published)
    grey = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(grey), three(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_a_one_channel_file_does_not_fit_three_channels() -> None:
    given = dict(build(study(**{"image.channels": 1}), 1).state_dict())
    with pytest.raises(ModelError, match=r"conv1\.weight \(64, 1, 7, 7\) for \(64, 3, 7, 7\); use .*image\.channels"):
        fit_weights(build(study(), 1), given, "file")


def test_densenet_names_of_old_torchvision_files() -> None:
    spec = study("densenet121")
    given = dict(build(spec, 5).state_dict())
    old = {}
    for name, tensor in given.items():
        if name.endswith("num_batches_tracked"):
            continue  # those files are older than the counters, too
        for word in ("norm", "conv"):
            for digit in "12":
                if "denselayer" in name:
                    name = name.replace(f".{word}{digit}.", f".{word}.{digit}.")
        old[name] = tensor
    assert any(".norm.1." in name for name in old)
    model = build(spec, 6)
    fit_weights(model, old, "file")
    assert digest(state_of(model)) == digest(state_of(build(spec, 5)))


def test_data_parallel_prefix_is_dropped(published: Tensors) -> None:
    model = build(study(classes=5), 1)
    fit_weights(model, {f"module.{name}": tensor for name, tensor in published.items()}, "file")
    assert torch.equal(model.get_parameter("conv1.weight"), published["conv1.weight"])


def test_half_precision_files_become_float32(published: Tensors) -> None:
    model = build(study(classes=5), 1)
    half = {name: t.half() if t.is_floating_point() else t for name, t in published.items()}
    fit_weights(model, half, "file")
    assert model.get_parameter("conv1.weight").dtype == torch.float32


def changed(tensors: Tensors, **changes: Tensor | None) -> Tensors:
    result = copy(tensors)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del result[key]
        else:
            result[key] = tensor
    return result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1__weight": None}, r"file: does not fit this model: lacks conv1\.weight; name the model"),
        ({"extra__weight": torch.zeros(1)}, r"has besides extra\.weight"),
        ({"bn1__weight": torch.zeros(5)}, r"bn1\.weight \(5,\) for \(64,\)"),
        ({"bn1__weight": torch.full((64,), float("nan"))}, r"bn1\.weight holds numbers that are not finite"),
        ({"bn1__weight": torch.full((64,), 1e300, dtype=torch.float64)}, "not finite in torch.float32"),
        ({"bn1__weight": torch.zeros(64, dtype=torch.int64)}, r"bn1\.weight is torch\.int64"),
        ({"fc__weight": None}, r"lacks fc\.weight"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_kept(
    change: dict[str, Tensor | None], message: str, published: Tensors
) -> None:
    model = build(study(classes=5), 1)
    before = digest(state_of(model))
    with pytest.raises(ModelError, match=message):
        fit_weights(model, changed(published, **change), "file")
    assert digest(state_of(model)) == before


def test_at_most_four_names_are_listed() -> None:
    with pytest.raises(ModelError, match=r"lacks conv1\.weight, .* and \d+ more, has besides features") as caught:
        fit_weights(build(study(), 1), dict(build(study("cnn", **{"model.norm": "none"}), 1).state_dict()), "file")
    assert len(str(caught.value)) < 600


def test_norms_are_not_mixed(published: Tensors) -> None:
    with pytest.raises(ModelError, match=r"trained with batch normalisation.* use norm: batch"):
        fit_weights(build(study(**{"model.norm": "group"}), 1), copy(published), "file")
    grouped = dict(build(study(**{"model.norm": "group"}), 1).state_dict())
    with pytest.raises(ModelError, match="without batch normalisation; use norm: group"):
        fit_weights(build(study(), 1), grouped, "file")


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    torch.save({"conv1.weight": Bomb(str(target))}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="holds more than tensors, and loading it could run code"):
        load_weights(build(study("cnn"), 1), tmp_path / "evil.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.h5", b"", "use .safetensors, .pt or .pth"),
        ("w.safetensors", b"\xff" * 40, "cannot be read as weights"),
        ("w.pth", b"not a zip", "holds more than tensors|cannot be read as weights"),
        ("w.pt", b"", "cannot be read as weights"),
    ],
)
def test_unreadable_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_weights(build(study("cnn"), 1), tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3, "lr": 0.1}, {"state_dict": {}}])
def test_files_that_hold_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="state dict"):
        load_weights(build(study("cnn"), 1), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing_file(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such weights file; model\.weights is relative to the study file"):
        load_weights(build(study("cnn"), 1), tmp_path / f"absent{suffix}")


def test_initial_model_reads_the_path_relative_to_the_study(published: Tensors, tmp_path: Path) -> None:
    save_file(published, tmp_path / "r18.safetensors")
    model, report = build_initial(study(**{"model.weights": "r18.safetensors"}), 1, tmp_path)
    assert report is not None
    assert report.skipped == ("fc.weight", "fc.bias")
    assert torch.equal(model.get_parameter("conv1.weight"), published["conv1.weight"])
    plain, nothing = build_initial(study(), 1, tmp_path)
    assert nothing is None
    assert digest(state_of(plain)) == digest(state_of(build(study(), 1)))


def test_published_torchvision_layout_loads(tmp_path: Path) -> None:
    import torchvision.models

    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    report = load_weights(build(study(), 1), tmp_path / "resnet18.pth")
    assert report.skipped == ("fc.weight", "fc.bias")
    assert len(report.loaded) == len(theirs.state_dict()) - 2
