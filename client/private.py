"""One differentially private local fit (DP-SGD, Abadi et al. 2016, arXiv:1607.00133; per patient).

In each step every patient is drawn by itself with probability q; the gradients of a patient's images are averaged and
clipped to ``clip`` in L2 over all trainable parameters; the sum over the drawn patients gets Gaussian noise of
σ · clip, and is divided by the *expected* number of patients. No drawn patient, noise alone: the step is taken all the
same. What the optimiser, FedProx's term and L1 make of that number is computed from it and from the weights alone.

Who is drawn, the noise, augmentation and dropout come from the system's entropy. Augmentation as well: with a seed
that others know, one patient more would shift the draws of all after it, and its influence would have no bound.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.clipping import Batch, Clipping, Looped, Losses, choose_clipping
from client.objective import outline_losses
from client.optimiser import make_optimiser, step
from client.training import Fit, batch_of, device_of, layout, learning_rate, proximal_mu
from client.vault.prepared import PreparedView
from common.accounting import Mechanism
from common.augment import Augmenter
from common.errors import DeviceError, ModelError
from common.models.frozen import batch_norms, training_mode
from common.noise import Entropy, SystemEntropy, gaussian, generator, poisson
from common.privacy import mechanism_of, spec_of
from common.study import Study
from common.weights import trainable

_TOGETHER = 32
_HELD_BYTES = 1 << 30
"""Images that go through a model together, where the study says nothing; fewer where gradients are held of each."""


class PrivateFit:
    """Trains a resident model in place for one round. Two runs never give the same weights."""

    def __init__(
        self, model: nn.Module, view: PreparedView, study: Study, round_: int, *, entropy: Entropy | None = None
    ) -> None:
        """``entropy`` is for tests: no study and no site can name one.

        Raises :class:`PrivacyError` where the site cannot give what the study promises, :class:`ModelError` for a
        model that mixes the images of a batch.
        """
        self.model, self.view, self.study, self.round = model, view, study, round_
        self.privacy, self.spec = spec_of(study), study.training
        self.device = device_of(model)
        self.entropy = entropy or SystemEntropy()
        self.parameters = trainable(model)
        _require_separate(model)
        units = view.patients.cpu() if self.privacy.unit == "patient" else torch.arange(len(view))
        self.rows = _rows_by_unit(units)
        self.mechanism: Mechanism = mechanism_of(study, len(self.rows))
        losses = image_losses(study)
        self.clipping: Clipping = choose_clipping(model, losses, self.privacy.clip)
        self.microbatch = self.spec.microbatch or min(_TOGETHER, _affordable(self.parameters))
        self.large = Looped(model, losses, self.privacy.clip)
        self.augment = Augmenter(study.augment)
        self.proximal_mu = proximal_mu(study)

    def run(self) -> Fit:
        """Fit and leave the new weights in the model. Says of the images neither how many nor how well."""
        training_mode(self.model)
        anchor = [parameter.detach().clone() for parameter in self.parameters]
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        optimiser = make_optimiser(self.model, self.spec.optimiser)
        self._set_rate(optimiser)
        steps = self.spec.local_steps or 0
        with _unseeded(self.device, self.entropy), _exact():
            for _ in range(steps):
                sums = self._sums(poisson(self.entropy, len(self.rows), self.mechanism.sample_rate))
                self._release(sums, anchor)
                step(optimiser)
        self.model.eval()
        if any(not torch.equal(before, after) for before, after in zip(buffers, self.model.buffers(), strict=True)):
            raise ModelError("the model keeps statistics of what it saw, which no noise covers; use model.norm: group")
        return Fit(1, None, steps)

    @property
    def spends(self) -> Mechanism:
        """What this one round does to its units."""
        return replace(self.mechanism, steps=self.spec.local_steps or 0)

    def _set_rate(self, optimiser: torch.optim.Optimizer) -> None:
        rounds = self.study.federation.rounds
        rate = learning_rate(
            self.spec.optimiser.lr, self.spec.schedule, epoch=0.0, epochs=1.0, round_=self.round, rounds=rounds
        )
        for group in optimiser.param_groups:
            group["lr"] = rate

    def _release(self, sums: Sequence[Tensor], anchor: Sequence[Tensor]) -> None:
        """Into the parameters' gradients: (sum + noise) / expected units. After this nothing is secret."""
        deviation = self.mechanism.noise_multiplier * self.privacy.clip
        sizes = [total.numel() for total in sums]
        noise = torch.split(gaussian(self.entropy, sum(sizes), self.device).mul_(deviation), sizes)
        for parameter, total, part, before in zip(self.parameters, sums, noise, anchor, strict=True):
            noised = part.view(total.shape).add_(total)  # in float64, as is the noise
            gradient = noised.div_(self.spec.batch_size).to(parameter.dtype)
            if self.spec.optimiser.l1:
                gradient += self.spec.optimiser.l1 * parameter.detach().sign()
            if self.proximal_mu:
                gradient += self.proximal_mu * (parameter.detach() - before)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)

    def _sums(self, drawn: Tensor) -> list[Tensor]:
        """Clipped gradients of the drawn units, summed; in smaller pieces where the GPU's memory is too small."""
        while True:
            try:
                sums = [torch.zeros_like(parameter) for parameter in self.parameters]
                for chunk in _chunks([self.rows[unit] for unit in drawn.tolist()], self.microbatch):
                    self._add(chunk, sums)
                return sums
            except torch.OutOfMemoryError:
                if self.microbatch == 1:
                    raise DeviceError(
                        "one image does not fit in the GPU's memory; use a smaller model or image size, or device: cpu"
                    ) from None
                self.microbatch //= 2
                torch.cuda.empty_cache()

    def _add(self, chunk: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
        rows = torch.cat(list(chunk))
        sizes = torch.tensor([len(images) for images in chunk])
        images, truth = batch_of(self.view, rows, self.device, self.augment, generator(self.entropy))
        share = torch.repeat_interleave(1.0 / sizes.float(), sizes).to(self.device)
        unit = torch.repeat_interleave(torch.arange(len(chunk)), sizes).to(self.device)
        batch = Batch(layout(images), truth.targets if truth.masks is None else truth.masks, share, unit, len(chunk))
        self.large.piece = self.microbatch
        (self.clipping if len(rows) <= self.microbatch else self.large).add(batch, sums)


def image_losses(study: Study) -> Losses:
    """Each image's own loss, unmoved by the others in its batch: of several labels the mean over the known ones.

    In segmentation the targets are masks ``(B, H, W)``.
    """
    smoothing, task = study.training.label_smoothing, study.task

    def multiclass(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets.argmax(1), label_smoothing=smoothing, reduction="none")

    def labels(logits: Tensor, targets: Tensor) -> Tensor:
        wanted = targets[:, 1:] if task == "binary" else targets
        known = ~torch.isnan(wanted)
        smooth = torch.where(known, wanted, 0.0) * (1 - smoothing) + 0.5 * smoothing
        losses = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return (losses * known).sum(1) / known.sum(1).clamp(min=1)

    def outlines(logits: Tensor, masks: Tensor) -> Tensor:
        return outline_losses(logits, masks, study)

    return {"multiclass": multiclass, "segmentation": outlines}.get(task, labels)


def _require_separate(model: nn.Module) -> None:
    """Raises :class:`ModelError` for a layer whose output for one image depends on the others."""
    if any(True for _ in batch_norms(model)):
        raise ModelError("batch norm mixes the patients of a batch; use model.norm: group")


def _rows_by_unit(units: Tensor) -> list[Tensor]:
    """The rows of each unit, from ``units`` ``(N,)``: which of 0 … U - 1 each row belongs to."""
    order = torch.argsort(units, stable=True)
    return list(torch.split(order, torch.bincount(units).tolist()))


def _chunks(units: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Units together, about as many images in each chunk and at most ``most``; a unit that has more goes alone."""
    total = sum(map(len, units))
    enough = math.ceil(total / max(1, math.ceil(total / most)))
    chunk: list[Tensor] = []
    held = 0
    for rows in units:
        if chunk and (held >= enough or held + len(rows) > most):
            yield chunk
            chunk, held = [], 0
        chunk.append(rows)
        held += len(rows)
    if chunk:
        yield chunk


def _affordable(parameters: Sequence[Tensor]) -> int:
    """Images whose gradients fit in a GiB together."""
    return max(1, _HELD_BYTES // (4 * max(1, sum(parameter.numel() for parameter in parameters))))


@contextlib.contextmanager
def _unseeded(device: torch.device, entropy: Entropy) -> Iterator[None]:
    """Dropout draws from torch's global generators: give them unknown states, and hand the old ones back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(generator(entropy).initial_seed())
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(generator(entropy).initial_seed())
        yield


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """Float32 that is float32: norms and sums must agree, which TF32's ten bits would not give."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
