"""Heat maps: for each image how much each place of it spoke for a class.

- ``grad-cam`` (Selvaraju et al. 2017, arXiv:1610.02391): the last feature maps, each weighed by the class's mean
  gradient over it. As coarse as these maps are; of a series the mean over its pictures.
- ``hirescam`` (Draelos and Carin 2020, arXiv:2011.08891): the same weighed place by place. Where only a mean over the
  maps goes on, as in ResNets, it is Grad-CAM; where each place has weights of its own, as in ``cnn``, a mean gradient
  says little of any place. That a place spoke for a class does not mean that it shows it.
- ``integrated-gradients`` (Sundararajan et al. 2017, arXiv:1703.01365): gradients along the way from black to the
  image; the part that speaks for the class, summed over channels. Sharp, noisy, and of any model.
- ``rollout`` (Abnar and Zuidema 2020, arXiv:2005.00928): what a transformer's class token takes from each patch through
  all layers. It knows no class: of one image it is the same map for all.

Gradients are captum's. Maps are scaled so that their highest point is 1; a map without any is 0 everywhere.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.training import device_of
from common.basis import Basis
from common.errors import ModelError
from common.models.vit import SelfAttention
from common.study import Study

Method = Literal["grad-cam", "hirescam", "integrated-gradients", "rollout"]
METHODS: tuple[Method, ...] = get_args(Method)
LAYERS = {
    "cnn": "features",
    "cnn_rnn": "features",
    "resnet18": "layer4",
    "resnet50": "layer4",
    "densenet121": "features",
    "efficientnet_lite0": "blocks",
}
"""Where a model's last feature maps come out."""
_PLACED = {"cnn", "cnn_rnn"}
"""Models that weigh each place of these maps by itself."""
_STEPS = 32
"""Points on the way from black to the image."""
_TOGETHER = 64


def default_method(study: Study) -> Method:
    """Rollout for transformers, Grad-CAM where a mean over the last feature maps goes on, else integrated gradients."""
    if study.model.name == "vit":
        return "rollout"
    return "grad-cam" if study.model.name in LAYERS.keys() - _PLACED else "integrated-gradients"


class HeatMaps:
    """Heat maps of one model, which is left in evaluation mode."""

    def __init__(
        self, model: nn.Module, study: Study, method: Method | None = None, basis: Basis | None = None
    ) -> None:
        """Raises :class:`ModelError` for a method that this model has not."""
        if study.task == "segmentation":
            raise ModelError("a model that outlines shows by itself what it found; explanations are of classifications")
        self.method = method or default_method(study)
        if self.method == "rollout" and not any(isinstance(module, SelfAttention) for module in model.modules()):
            raise ModelError(f"{study.model.name} has no attention to roll out; use integrated-gradients")
        if self.method in ("grad-cam", "hirescam") and study.model.name not in LAYERS:
            raise ModelError(
                f"where {study.model.name} has its last feature maps is not known; use integrated-gradients"
                + (" or rollout" if study.model.name == "vit" else "")
            )
        self.model, self.study, self.basis = model.eval(), study, basis
        self.device = device_of(model)

    def scores(self, images: Tensor) -> Tensor:
        """Probabilities ``(B, outputs)`` float32 of images ``(B, C, H, W)`` in [0, 1]."""
        with torch.inference_mode():
            parts = [self._logits(part.to(self.device)).float() for part in torch.split(images, _TOGETHER)]
        logits = torch.cat(parts).cpu()
        return logits.softmax(1) if self.study.task == "multiclass" else logits.sigmoid()

    def of(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Maps ``(B, H, W)`` float32 in [0, 1] of ``images`` ``(B, C, H, W)``, each for one output ``(B,)`` int64."""
        made = {
            "grad-cam": self._grad_cam,
            "hirescam": self._hirescam,
            "integrated-gradients": self._integrated,
            "rollout": self._rollout,
        }
        maps = torch.cat(
            [
                made[self.method](part.to(self.device), wanted.to(self.device)).cpu()
                for part, wanted in zip(torch.split(images, _TOGETHER), torch.split(outputs, _TOGETHER), strict=True)
            ]
        )
        highest = maps.flatten(1).amax(1)[:, None, None]
        return torch.where(highest > 0, maps / highest.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)

    def _logits(self, images: Tensor) -> Tensor:
        # A copy: normalising changes what it is given.
        logits: Tensor = self.model(images if self.basis is None else self.basis.normalised(images.clone()))
        return logits

    def _grad_cam(self, images: Tensor, outputs: Tensor) -> Tensor:
        from captum.attr import LayerGradCam  # type: ignore[import-untyped]

        found = LayerGradCam(self._logits, self._layer).attribute(
            _followed(images), target=outputs, relu_attributions=True
        )
        return _enlarged(found.detach(), images)

    def _hirescam(self, images: Tensor, outputs: Tensor) -> Tensor:
        from captum.attr import LayerGradientXActivation

        found = LayerGradientXActivation(self._logits, self._layer).attribute(_followed(images), target=outputs)
        return _enlarged(found.detach().sum(1, keepdim=True).relu(), images)

    @property
    def _layer(self) -> nn.Module:
        return self.model.get_submodule(LAYERS[self.study.model.name])

    def _integrated(self, images: Tensor, outputs: Tensor) -> Tensor:
        from captum.attr import IntegratedGradients

        found = IntegratedGradients(self._logits).attribute(
            images, target=outputs, n_steps=_STEPS, internal_batch_size=_TOGETHER
        )
        assert isinstance(found, Tensor)
        return found.detach().float().clamp(min=0.0).sum(1)

    def _rollout(self, images: Tensor, outputs: Tensor) -> Tensor:
        rolled: list[Tensor] = []

        def take(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(module, SelfAttention)
            weights = module.weights_of(given[0]).mean(1)
            # The residual carries each token past the layer: half of what comes out.
            step = 0.5 * (weights + torch.eye(weights.shape[-1], device=weights.device))
            rolled.append(step @ rolled[-1] if rolled else step)

        layers = [module for module in self.model.modules() if isinstance(module, SelfAttention)]
        handles = [layer.register_forward_pre_hook(take) for layer in layers]
        try:
            with torch.inference_mode():
                self._logits(images)
        finally:
            for handle in handles:
                handle.remove()
        taken = rolled[-1][:, 0, 1:]  # by the class token, of each patch
        side = math.isqrt(taken.shape[-1])
        return _enlarged(taken.reshape(len(images), 1, side, side), images).clone()  # out of inference mode


def _followed(images: Tensor) -> Tensor:
    """With gradients asked for: of layers that are all frozen nothing else asks for any."""
    return images.clone().requires_grad_()


def _enlarged(coarse: Tensor, images: Tensor) -> Tensor:
    """Maps ``(B, 1, h, w)``, or of a series one for each picture, as large as the images: ``(B, H, W)``."""
    together = coarse.reshape(len(images), -1, *coarse.shape[-2:]).mean(1, keepdim=True)
    return functional.interpolate(together.float(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
