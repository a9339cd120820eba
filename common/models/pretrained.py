"""Weights from a local file, as torchvision publishes them or as a run wrote them.

Nothing in a file is executed: ``.safetensors`` holds numbers only, and ``.pt`` / ``.pth`` files are read with
``weights_only=True``. Batch normalisation absorbs that published networks saw images normalised by ImageNet's mean
and deviation while ours are in [0, 1]: the two differ by an affine map per channel.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import ModelError

_SHOWN = 4
_OTHER_NAMES = (
    (re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)$"), r"\1\2"),  # DenseNet before torch 0.4
    (re.compile(r"^(.*\.mlp)\.linear_1\.(.+)$"), r"\1.0.\2"),  # torchvision's transformers before 0.14
    (re.compile(r"^(.*\.mlp)\.linear_2\.(.+)$"), r"\1.3.\2"),
    (re.compile(r"(?<![^.])_"), ""),  # EfficientNet's published conversions
    (re.compile(r"^(.*\.self_attention\.in_proj)_(weight|bias)$"), r"\1.\2"),  # see vit.py
)
"""What files call by names that are not the model's."""
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did, by names in the model."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    """The classifier's parameters where the file's has another number of classes: they keep their fresh values."""
    summed: tuple[str, ...]
    """First convolution, summed over its three input channels for one-channel images."""

    def __str__(self) -> str:
        notes = [f"{len(self.loaded)} tensors loaded"]
        if self.skipped:
            notes.append(f"{', '.join(self.skipped)} left fresh: the file has another number of classes")
        if self.summed:
            notes.append(f"{', '.join(self.summed)} summed over three channels for one-channel images")
        return "; ".join(notes)


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Fill ``model`` in place from ``path`` (``.safetensors``, ``.pt`` or ``.pth``), wholly or not at all.

    The file is a state dict, or a mapping that holds one under ``state_dict``. Raises :class:`ModelError` for a file
    that cannot be read, non-finite numbers, and names or shapes that do not fit; the first few are named.
    """
    return fit_weights(model, _read(path), str(path))


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> LoadReport:
    """:func:`load_weights` for tensors already read; ``where`` names their file in errors."""
    own = model.state_dict()
    given = _renamed(weights, own)
    head = _head(model)
    skipped = tuple(
        name for name in head if name in given and name in own and given[name].shape[:1] != own[name].shape[:1]
    )
    given = {name: tensor for name, tensor in given.items() if name not in skipped}
    # Files older than torch 0.4.1 have no counters; only a cumulative average would need them, and no model uses one.
    missing = [name for name in own if name not in given and name not in skipped and not name.endswith(_COUNTER)]
    unexpected = [name for name in given if name not in own]
    _refuse_other_norm(missing, unexpected, where)
    if missing or unexpected:
        found = [
            f"{kind} {_listed(names)}" for kind, names in (("lacks", missing), ("has besides", unexpected)) if names
        ]
        raise ModelError(
            f"{where}: does not fit this model: {', '.join(found)}; "
            "name the model that the file was made for in model.name and model.params"
        )
    fitted, summed = _fitted(model, own, given, where)
    with torch.no_grad():
        for name, tensor in fitted.items():
            own[name].copy_(tensor)
    return LoadReport(tuple(fitted), skipped, summed)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ModelError(f"{path}: not a weights file; use .safetensors, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such weights file; model.weights is relative to the study file") from None
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: holds more than tensors, and loading it could run code; "
            "save its state dict with safetensors.torch.save_file where you trust it"
        ) from None
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(
            f"{path}: cannot be read as weights ({type(error).__name__}: {reason}); obtain it anew"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path}: holds no state dict; save model.state_dict()")
    strange = [
        str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if strange:
        raise ModelError(f"{path}: not a state dict: {_listed(strange)} hold no tensors; save model.state_dict() alone")
    return dict(content)


def _renamed(weights: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """By the model's names: without ``DataParallel``'s prefix, and as :data:`_OTHER_NAMES` says."""
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""
    given = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    for pattern, name in _OTHER_NAMES:
        given = {old if old in own else pattern.sub(name, old): tensor for old, tensor in given.items()}
    return given


def _head(model: nn.Module) -> tuple[str, ...]:
    """Names of the last fully connected layer's parameters."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return (f"{linear[-1]}.weight", f"{linear[-1]}.bias") if linear else ()


def _first_convolution(model: nn.Module) -> tuple[str, ...]:
    """Name of the first convolution's weight, if it sees one channel."""
    found = next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    return (f"{found[0]}.weight",) if found is not None and found[1].in_channels == 1 else ()


def _refuse_other_norm(missing: Collection[str], unexpected: Collection[str], where: str) -> None:
    """The norm layers' names are the same for both kinds, so that only running statistics tell them apart."""
    statistics = ("running_mean", "running_var", _COUNTER)
    if unexpected and not missing and all(name.endswith(statistics) for name in unexpected):
        raise ModelError(
            f"{where}: was trained with batch normalisation, whose parameters mean nothing to this study's model.norm; "
            "use norm: batch"
        )
    if missing and not unexpected and all(name.endswith(statistics) for name in missing):
        raise ModelError(f"{where}: was trained without batch normalisation; use norm: group")


def _fitted(
    model: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The file's tensors in the model's shapes and types, and which of them were summed over channels."""
    one_channel = _first_convolution(model)
    fitted: dict[str, Tensor] = {}
    summed: list[str] = []
    misshaped: list[str] = []
    for name, tensor in given.items():
        target = own[name]
        if tensor.is_floating_point() != target.is_floating_point():
            raise ModelError(f"{where}: {name} is {tensor.dtype}, the model has {target.dtype}; obtain another file")
        value = tensor.to(target.dtype)
        if not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{where}: {name} holds numbers that are not finite in {target.dtype}; obtain another file"
            )
        if name in one_channel and value.ndim == 4 and value.shape[1] == 3:
            value = value.sum(1, keepdim=True)
            summed.append(name)
        if value.shape != target.shape:
            misshaped.append(f"{name} {tuple(value.shape)} for {tuple(target.shape)}")
        fitted[name] = value
    if misshaped:
        raise ModelError(
            f"{where}: does not fit this model: {_listed(misshaped)}; "
            "use the model.name, model.params, image.size and image.channels it was trained with"
        )
    return fitted, tuple(summed)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
