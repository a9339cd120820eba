"""One local fit: what a site does with the weights of a round, in place, on whatever device it has.

On the CPU the arithmetic is float32; on CUDA it is bf16 autocast, parameters staying
float32. Memory is channels-last on both. Shuffling, dropout and augmentation draw from seeds
named by study, repeat, site and round, so that a site's fit depends on nothing else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.objective import Truth, objective_of
from client.optimiser import make_optimiser, step
from client.steering import Steering
from client.vault.prepared import PreparedView
from common.augment import Augmenter
from common.basis import Basis
from common.errors import DataError, DeviceError, StudyError
from common.models.frozen import batch_norms, training_mode
from common.randomness import seed_for
from common.study import ScheduleSpec, Study
from common.weights import trainable


@dataclass(frozen=True)
class Fit:
    """``examples``: distinct images trained on; ``loss``: mean over all steps' images; ``steps`` taken.

    A private fit says 1 and ``None``.
    """

    examples: int
    loss: float | None
    steps: int


@dataclass(frozen=True)
class FitSeed:
    """What a fit's randomness is named by."""

    study: int
    repeat: int
    site: str
    round: int

    def of(self, purpose: str) -> torch.Generator:
        """A CPU generator: CUDA draws the same numbers."""
        return torch.Generator().manual_seed(seed_for(self.study, self.repeat, self.site, self.round, purpose))


def learning_rate(
    base: float, schedule: ScheduleSpec, *, epoch: float, epochs: float, round_: int, rounds: int
) -> float:
    """Learning rate at ``epoch`` of ``epochs`` (or round of rounds) of the whole study."""
    at, end = (epoch, epochs) if schedule.unit == "epoch" else (float(round_ - 1), float(rounds))
    if schedule.kind == "exponential":
        return base * schedule.gamma ** math.floor(at / schedule.every)
    if schedule.kind == "cosine":
        share = min(1.0, at / end) if end else 0.0
        return base * (schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * share)))
    return base


def batches(count: int, size: int, generator: torch.Generator, *, drop_single: bool) -> Iterator[Tensor]:
    """Shuffled index batches over one epoch. A last batch of one joins its neighbour where a norm layer needs two."""
    order = torch.randperm(count, generator=generator)
    for part in pieces(count, size, drop_single=drop_single):
        yield order[part]


def pieces(count: int, size: int, *, drop_single: bool) -> list[slice]:
    """0 … ``count`` in pieces of ``size``, the last one shorter, or longer by one where it may not be a single."""
    cuts = list(range(0, count, size))
    if drop_single and len(cuts) > 1 and count - cuts[-1] == 1:
        cuts.pop()
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], count], strict=True)]


class LocalFit:
    """Trains a resident model in place for one round."""

    def __init__(
        self,
        model: nn.Module,
        view: PreparedView,
        study: Study,
        seed: FitSeed,
        basis: Basis | None = None,
        steering: Steering | None = None,
    ) -> None:
        """``basis``: what the study takes from its survey, where it does."""
        self.basis, self.steering = basis, steering
        self.model, self.view, self.study, self.seed = model, view, study, seed
        self.device = device_of(model)
        self.spec = study.training
        self.microbatch = self.spec.microbatch or self.spec.batch_size
        self.objective = objective_of(study, view.targets.to(self.device), basis)
        self.augment = Augmenter(study.augment)
        self.parameters = trainable(model)
        self.has_batch_norm = any(True for _ in batch_norms(model))
        self.proximal_mu = proximal_mu(study) if steering is None else 0.0
        self.per_round = self._epochs_per_round()
        if self.has_batch_norm and len(view) < 2:
            raise DataError("batch norm needs at least two training images; use model.norm: group")
        if self.has_batch_norm and self.microbatch < 2:
            raise StudyError("training.batch_size, microbatch: batch norm needs at least two; use model.norm: group")

    def run(self) -> Fit:
        """Fit and leave the new weights in the model."""
        training_mode(self.model)
        self.anchor = [p.detach().clone() for p in self.parameters] if self.proximal_mu else []
        optimiser = make_optimiser(self.model, self.spec.optimiser)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        seen = steps = 0
        noise = self.seed.of("augment")
        # Dropout draws from the global generator: give it a named seed and hand the old state back.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self._seed_dropout()
            for epoch, indices in self._schedule():
                self._set_rate(optimiser, epoch)
                loss = self._step_with_memory(optimiser, indices, noise)
                total += loss * len(indices)
                seen += len(indices)
                steps += 1
        self.model.eval()
        return Fit(min(seen, len(self.view)), float(total) / seen, steps)

    def _seed_dropout(self) -> None:
        # Not torch.manual_seed: on the CPU that would reseed every CUDA device, which is not forked then.
        seed = seed_for(self.seed.study, self.seed.repeat, self.seed.site, self.seed.round, "dropout")
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def _schedule(self) -> Iterator[tuple[float, Tensor]]:
        """(epochs since this fit began, indices of the next batch)."""
        shuffle = self.seed.of("shuffle")
        count, size = len(self.view), self.spec.batch_size
        epochs, steps, done = self.spec.epochs, 0, 0
        while epochs is None or done < epochs:
            seen = 0
            for indices in batches(count, size, shuffle, drop_single=self.has_batch_norm):
                yield done + seen / count, indices
                seen += len(indices)
                steps += 1
                if epochs is None and steps == self.spec.local_steps:
                    return
            done += 1

    def _epochs_per_round(self) -> float:
        """Passes over the images in one fit, in part where steps are counted."""
        if self.spec.epochs is not None:
            return float(self.spec.epochs)
        count = len(self.view)
        ends = [part.stop for part in pieces(count, self.spec.batch_size, drop_single=self.has_batch_norm)]
        whole, rest = divmod(self.spec.local_steps or 0, len(ends))
        return whole + (ends[rest - 1] / count if rest else 0.0)

    def _set_rate(self, optimiser: torch.optim.Optimizer, epoch: float) -> None:
        federation, per_round = self.study.federation, self.per_round
        rate = learning_rate(
            self.spec.optimiser.lr,
            self.spec.schedule,
            epoch=(self.seed.round - 1) * per_round + epoch,
            epochs=federation.rounds * per_round,
            round_=self.seed.round,
            rounds=federation.rounds,
        )
        for group in optimiser.param_groups:
            group["lr"] = rate

    def _step_with_memory(self, optimiser: torch.optim.Optimizer, indices: Tensor, noise: torch.Generator) -> Tensor:
        """One optimiser step; when the GPU's memory is too small, the same step in smaller pieces."""
        while True:
            state = noise.get_state()
            try:
                return self._step(optimiser, indices, noise)
            except torch.OutOfMemoryError:
                optimiser.zero_grad()
                noise.set_state(state)
                smallest = 2 if self.has_batch_norm else 1
                if self.microbatch <= smallest:
                    raise DeviceError(
                        f"batches of {smallest} do not fit in the GPU's memory; "
                        "use a smaller model or image size, or device: cpu"
                    ) from None
                self.microbatch = max(smallest, min(self.microbatch, len(indices)) // 2)
                torch.cuda.empty_cache()

    def _step(self, optimiser: torch.optim.Optimizer, indices: Tensor, noise: torch.Generator) -> Tensor:
        optimiser.zero_grad()
        images, truth = self._batch(indices, noise)
        weight = self.objective.weight(truth)
        total = torch.zeros((), device=self.device)
        for part in pieces(len(indices), self.microbatch, drop_single=self.has_batch_norm):
            with precision(self.device):
                outputs = self.objective.outputs(self.model, layout(images[part]))
            loss = (self.objective.total(outputs, truth[part]) / weight).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        penalty = self._penalty()
        if penalty is not None:
            penalty.backward()  # type: ignore[no-untyped-call]
        if self.steering is not None:
            self.steering.gradients()
        if self.spec.optimiser.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.spec.optimiser.clip_norm)
        step(optimiser)
        if self.steering is not None:
            self.steering.stepped(optimiser.param_groups[0]["lr"])
        return total

    def _batch(self, indices: Tensor, noise: torch.Generator) -> tuple[Tensor, Truth]:
        """Images as the model sees them, augmented, their masks moved with them, and what is known of them."""
        images, truth = batch_of(self.view, indices, self.device, self.augment, noise)
        return images if self.basis is None else self.basis.normalised(images), truth

    def _penalty(self) -> Tensor | None:
        """L1 (Tibshirani 1996) and FedProx's proximal term (Li et al. 2020, μ/2·‖w − w₀‖²)."""
        terms: list[Tensor] = []
        if self.spec.optimiser.l1:
            terms.append(self.spec.optimiser.l1 * torch.stack([p.abs().sum() for p in self.parameters]).sum())
        if self.proximal_mu:
            gaps = [(p - a).square().sum() for p, a in zip(self.parameters, self.anchor, strict=True)]
            terms.append(0.5 * self.proximal_mu * torch.stack(gaps).sum())
        return torch.stack(terms).sum() if terms else None


def batch_of(
    view: PreparedView, rows: Tensor, device: torch.device, augment: Augmenter, noise: torch.Generator
) -> tuple[Tensor, Truth]:
    """The images ``rows`` on ``device``, augmented, and what is known of them; masks move with their images."""
    where = rows.to(view.device)
    images, targets, masks = view.floats(where).to(device), view.targets[where].to(device), view.masks_of(where)
    if masks is None:
        return augment.apply(images, noise), Truth(targets)
    images, masks = augment.apply_with_masks(images, masks.to(device), noise)
    return images, Truth(targets, masks)


def proximal_mu(study: Study) -> float:
    """FedProx's μ, 0 for other strategies. Raises :class:`StudyError` where the study does not say it."""
    strategy = study.federation.strategy
    if strategy.name != "fedprox":
        return 0.0
    value = strategy.params.get("proximal_mu")
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise StudyError("federation.strategy.params: fedprox needs proximal_mu, a number of at least 0")
    return float(value)


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes; a view that is too large for the GPU stays in main memory and follows in batches."""
    return next(model.parameters()).device


def precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast on CUDA, plain float32 on the CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def layout(images: Tensor) -> Tensor:
    """Channels-last memory: what tensor cores want, and 1.5 times cheaper for small convolutions on the CPU too."""
    return images.contiguous(memory_format=torch.channels_last)
