"""Models by name: ``build(study, seed)`` gives a network whose first weights depend on seed and model only.

Every model maps images ``(B, channels, size, size)`` float32 in [0, 1] to logits
``(B, study.outputs)``, in segmentation ``(B, 1, size, size)``, and works out of place,
so that Opacus can take per-sample gradients of it. A researcher's own model is an installed
entry point of group ``fedward.models``: a function ``fn(study) -> torch.nn.Module``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import ModelError
from common.models.cnn import build_cnn
from common.models.cnn_rnn import build_cnn_rnn
from common.models.densenet import build_densenet121
from common.models.efficientnet import build_efficientnet_lite0
from common.models.frozen import check_norms, freeze
from common.models.pretrained import LoadReport, load_weights
from common.models.resnet import build_resnet18, build_resnet50
from common.models.segment_classify import build_segment_classify
from common.models.unet import build_unet
from common.models.vit import build_vit
from common.randomness import seed_for
from common.study import Study
from common.weights import changing_names

__all__ = ["LoadReport", "build", "build_initial", "load_weights"]

ENTRY_POINTS = "fedward.models"
_RANDOM_STATE = threading.RLock()
"""Torch's global random state is one for all threads, and a simulation starts its arms in several."""
BUILDERS: Mapping[str, Callable[[Study], nn.Module]] = {
    "cnn": build_cnn,
    "resnet18": build_resnet18,
    "resnet50": build_resnet50,
    "densenet121": build_densenet121,
    "efficientnet_lite0": build_efficientnet_lite0,
    "unet": build_unet,
    "vit": build_vit,
    "cnn_rnn": build_cnn_rnn,
    "segment_classify": build_segment_classify,
}


def build(study: Study, seed: int) -> nn.Module:
    """The study's model on the CPU, in training mode, with fresh weights; ``study.model.frozen`` is out of training.

    Torch's global random state is as before afterwards. ``study.model.weights`` is
    *not* read here: a hospital builds the model too, receives its weights from the
    coordinator, and must not open a path that a study names. The side that starts a
    federation calls :func:`build_initial`.

    Raises :class:`ModelError` for parameters the model does not know or cannot use, and for layers that are to be
    frozen and are not there.
    """
    name = study.model.name
    with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every CUDA device, which the fork above does not restore.
        torch.default_generator.manual_seed(seed_for(seed, "initial weights"))
        model = BUILDERS[name](study) if name in BUILDERS else _installed(study, name)
    freeze(model, study.model.frozen)
    check_norms(model, study)
    return model


def build_initial(study: Study, seed: int, base: Path) -> tuple[nn.Module, LoadReport | None]:
    """The model a federation starts from: :func:`build`, then ``study.model.weights`` where the study has one.

    ``base`` is the directory that a relative path is relative to: the study file's.
    """
    model = build(study, seed)
    if study.model.weights is None:
        return model, None
    report = load_weights(model, base / study.model.weights)
    fresh = [name for name in report.skipped if name not in changing_names(model)]
    if fresh:
        raise ModelError(
            f"model.frozen: {fresh[0]} would stay as it was drawn, for the file has another number of classes; "
            "leave the last layer out of model.frozen"
        )
    return model, report


def _installed(study: Study, name: str) -> nn.Module:
    found = list(metadata.entry_points(group=ENTRY_POINTS, name=name))
    if len(found) != 1:
        owners = ", ".join(sorted(entry.value for entry in found)) or "none"
        raise ModelError(
            f"model.name {name!r}: {len(found)} entry points of group {ENTRY_POINTS!r} have this name ({owners}); "
            "exactly one installed package must provide it"
        )
    where = f"model.name {name!r} (entry point {found[0].value})"
    try:
        model = found[0].load()(study)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{where}: failed to build with {type(error).__name__}: {error}; mend that package") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where}: gave {type(model).__name__}; it must return a torch.nn.Module")
    _check_output(model, study, where)
    return model


def _check_output(model: nn.Module, study: Study, where: str) -> None:
    """One forward pass of two black images: a wrong shape shows before any site has trained."""
    size, was_training = study.image.size, model.training
    images = torch.zeros(2, study.image.channels, size, size)
    expected = (2, study.outputs, size, size) if study.task == "segmentation" else (2, study.outputs)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:
        raise ModelError(
            f"{where}: images of shape {tuple(images.shape)} fail with {type(error).__name__}: {error}; "
            "mend that package, or change image.size or image.channels"
        ) from error
    finally:
        model.train(was_training)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != expected:
        raise ModelError(f"{where}: output is {shape}, the study needs logits {expected}; mend that package")
