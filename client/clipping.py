"""Sums of clipped per-patient gradients: the one number of differentially private training that needs care.

Every path gives ``Σ_p g_p · min(1, clip / ‖g_p‖)`` where ``g_p`` is the gradient of one patient's images (or of one
image: "unit" below is whichever the study protects) over all trainable parameters. :class:`Ghost` never holds a large
layer's per-image gradients: it takes their norms from inputs and output gradients (ghost clipping, Li et al. 2022,
arXiv:2110.05679; for each layer whichever is cheaper, Bu et al. 2022, arXiv:2205.10683) and sums with the factors
without a second pass (book-keeping, Bu et al. 2023, arXiv:2210.00038). :class:`Vmapped` serves any other model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from client.layer_gradients import Statistics, columns_of, convolved, rows_of, statistics_of
from common.errors import ModelError
from common.weights import trainable

Losses = Callable[[Tensor, Tensor], Tensor]
"""What a model says of B images, and their targets (or masks), to each image's own loss ``(B,)``."""

MARGIN = 1e-3
"""Norms count as this part larger than float32 gives them, so that rounding cannot push a unit above the bound."""


@dataclass(frozen=True)
class Batch:
    """Whole units, all images of each: ``unit`` ``(B,)`` int64 in ``[0, units)``, every number at least once.

    ``share`` ``(B,)`` float32 weighs each image's loss: one over its unit's images.
    """

    images: Tensor
    targets: Tensor
    share: Tensor
    unit: Tensor
    units: int

    def without(self, gone: Tensor) -> Batch:
        """The batch but for the units where ``gone`` ``(units,)`` bool."""
        rows = torch.nonzero(~gone[self.unit]).flatten()
        number = (~gone).cumsum(0) - 1
        images, targets, share = self.images[rows], self.targets[rows], self.share[rows]
        return Batch(images, targets, share, number[self.unit[rows]], int((~gone).sum()))


class Clipping(Protocol):
    """One way to the sum."""

    def add(self, batch: Batch, into: Sequence[Tensor]) -> None:
        """Add the clipped gradients of the batch's units to ``into``: one tensor for each that is trained.

        A unit whose gradient is not finite adds nothing.
        """


def choose_clipping(model: nn.Module, losses: Losses, clip: float) -> Clipping:
    """The fastest path that serves the model."""
    return (Ghost if Ghost.serves(model) else Vmapped)(model, losses, clip)


def factors(squares: Tensor, clip: float) -> Tensor:
    """What gradients of these squared norms ``(units,)`` are multiplied by."""
    norms = squares.clamp(min=0.0).sqrt() * (1.0 + MARGIN)
    return (clip / norms.clamp(min=1e-30)).clamp(max=1.0)


class Looped:
    """One unit at a time by plain backpropagation, ``piece`` images together: for units too large for the others."""

    def __init__(self, model: nn.Module, losses: Losses, clip: float, piece: int = 32) -> None:
        self.model, self.losses, self.clip, self.piece = model, losses, clip, piece
        self.parameters = trainable(model)

    def add(self, batch: Batch, into: Sequence[Tensor]) -> None:
        for number in range(batch.units):
            rows = torch.nonzero(batch.unit == number).flatten()
            total = [torch.zeros_like(parameter) for parameter in self.parameters]
            for part in torch.split(rows, self.piece):
                losses = self.losses(self.model(batch.images[part]), batch.targets[part])
                found = torch.autograd.grad((losses * batch.share[part]).sum(), self.parameters)
                for gradient, more in zip(total, found, strict=True):
                    gradient += more
            squares = torch.stack([gradient.double().square().sum() for gradient in total]).sum()
            if squares.isfinite():
                for place, gradient in zip(into, total, strict=True):
                    place.add_(gradient * factors(squares, self.clip))


class Vmapped:
    """Per-image gradients, all held at once, of any model that ``torch.func`` can transform."""

    def __init__(self, model: nn.Module, losses: Losses, clip: float) -> None:
        self.clip, self.parameters = clip, trainable(model)
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

        def loss(parameters: dict[str, Tensor], image: Tensor, target: Tensor, share: Tensor) -> Tensor:
            logits = torch.func.functional_call(model, parameters, (image[None],))
            return losses(logits, target[None])[0] * share

        self.gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0), randomness="different")

    def add(self, batch: Batch, into: Sequence[Tensor]) -> None:
        parameters = {name: held.detach() for name, held in zip(self.names, self.parameters, strict=True)}
        try:
            found = self.gradients(parameters, batch.images, batch.targets, batch.share)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0][:120]
            raise ModelError(
                f"this model gives no per-image gradients ({reason}); privacy needs layers that work out of place and "
                "mix no images of a batch"
            ) from error
        parts = [_Held(place, found[name]) for place, name in enumerate(self.names)]
        _add_clipped(self, parts, batch, self.clip, into)


class Ghost:
    """Convolutions, fully connected layers and group norms, each used once in a pass."""

    def __init__(self, model: nn.Module, losses: Losses, clip: float) -> None:
        self.model, self.losses, self.clip = model, losses, clip
        self.parameters = trainable(model)
        self.places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        self.layers = [module for module in model.modules() if _own(module)]

    @staticmethod
    def serves(model: nn.Module) -> bool:
        """Whether every trainable parameter belongs to one layer of a kind that this path knows."""
        layers = [module for module in model.modules() if _own(module)]
        owned = [id(parameter) for module in layers for parameter in _own(module)]
        return all(_known(module) for module in layers) and len(owned) == len(set(owned))

    def add(self, batch: Batch, into: Sequence[Tensor]) -> None:
        with _frozen(self.parameters), self._taking_apart(_Pairs.of(batch)) as parts:
            losses = self.losses(self.model(batch.images), batch.targets)
            (losses * batch.share).sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            _add_clipped(self, parts, batch, self.clip, into)

    @contextmanager
    def _taking_apart(self, pairs: _Pairs | None) -> Iterator[list[_Part]]:
        """One pass forward and back fills the list; each layer's gradients are taken while the processor holds them."""
        parts: list[_Part] = []
        used: set[nn.Module] = set()

        def forward(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if module in used:
                raise ModelError(f"the model uses one {type(module).__name__} twice in a pass; give each use its own")
            used.add(module)
            seen = given[0].detach()
            statistics = statistics_of(module, seen, output) if isinstance(module, nn.GroupNorm) else None
            if not output.requires_grad:  # a first layer: no gradient has reason to go further back
                output.requires_grad_()
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: backward(module, seen, gradient, statistics)
            )

        @torch.no_grad()
        def backward(module: nn.Module, given: Tensor, gradient: Tensor, statistics: Statistics | None) -> None:
            if statistics is not None:
                parts.extend(self._norm_parts(module, given, gradient, statistics))
            else:
                parts.extend(self._parts(module, given, gradient, pairs))

        handles = [layer.register_forward_hook(forward) for layer in self.layers]
        try:
            yield parts
        finally:
            for handle in handles:
                handle.remove()

    def _norm_parts(
        self, module: nn.Module, given: Tensor, gradient: Tensor, statistics: Statistics
    ) -> Iterator[_Part]:
        """A group norm's parameters: Σ_t g_t, and Σ_t g_t · (x_t − mean) / deviation from it and Σ_t g_t · x_t."""
        weight, bias = (self.places.get(id(getattr(module, name))) for name in ("weight", "bias"))
        sums = rows_of(module, gradient).sum(1)
        if bias is not None:
            yield _Held(bias, sums)
        if weight is not None:
            mean, inverse = (torch.repeat_interleave(one, sums.shape[1] // one.shape[1], 1) for one in statistics)
            yield _Held(weight, (rows_of(module, given * gradient).sum(1) - mean * sums) * inverse)

    def _parts(self, module: nn.Module, given: Tensor, gradient: Tensor, pairs: _Pairs | None) -> Iterator[_Part]:
        """The parameters of a convolution or fully connected layer, from its input and the gradient of its output."""
        weight, bias = (self.places.get(id(getattr(module, name))) for name in ("weight", "bias"))
        if bias is not None:
            yield _Held(bias, rows_of(module, gradient).sum(1))
        if weight is None:
            return
        if isinstance(module, nn.Conv2d):
            # Held: P · D numbers an image to write and read; ghosted: T² · (P + D) products, and the sum's apart.
            # Where they cost the same was measured, with 64 to 512 channels.
            rows = rows_of(module, gradient)
            if 10 * rows.shape[1] ** 2 >= module.weight.numel():
                yield _Held(weight, convolved(module, given, gradient, each=True))
                return

            def total(scale: Tensor) -> Tensor:
                return convolved(module, given, gradient * scale[:, None, None, None], each=False)

            yield _Ghosted(weight, columns_of(module, given), rows, pairs, total)
        else:
            inputs, rows = rows_of(module, given), rows_of(module, gradient)
            yield _Ghosted(
                weight, inputs, rows, pairs, lambda scale: torch.einsum("b,bti,btj->ij", scale, rows, inputs)
            )


class _Part(Protocol):
    """One parameter's part of a batch's gradients."""

    @property
    def place(self) -> int:
        """Which of the parameters it is."""

    def squares(self, batch: Batch) -> Tensor:
        """``(units,)`` float64: the squared norm of each unit's gradient."""

    def total(self, scale: Tensor) -> Tensor:
        """The sum of the images' gradients, each times its ``scale`` ``(B,)``, in the parameter's shape."""


@dataclass(frozen=True)
class _Held:
    """Each image's gradient ``(B, *shape)`` itself."""

    place: int
    gradients: Tensor

    def squares(self, batch: Batch) -> Tensor:
        flat, unit = self.gradients.flatten(1), batch.unit
        if batch.units < len(flat):
            flat = flat.new_zeros(batch.units, flat.shape[1]).index_add_(0, unit, flat)
            unit = torch.arange(batch.units, device=unit.device)
        squares: Tensor = torch.linalg.vector_norm(flat, dim=1).double().square()
        return squares.new_zeros(batch.units).index_add_(0, unit, squares)

    def total(self, scale: Tensor) -> Tensor:
        return (scale @ self.gradients.flatten(1)).view(self.gradients.shape[1:])


@dataclass(frozen=True)
class _Pairs:
    """Images ``first`` and ``second`` of one ``unit``, each with itself too; ``weight`` 2 where they are two."""

    first: Tensor
    second: Tensor
    unit: Tensor
    weight: Tensor

    @classmethod
    def of(cls, batch: Batch) -> _Pairs | None:
        """All pairs; ``None`` where every unit is one image."""
        if batch.units == len(batch.unit):
            return None
        first, second = torch.nonzero(torch.triu(batch.unit[:, None] == batch.unit), as_tuple=True)
        return cls(first, second, batch.unit[first], torch.where(first == second, 1.0, 2.0).double())


@dataclass(frozen=True)
class _Ghosted:
    """Gradients ``G_i = Σ_t r_it ⊗ a_it``, never made: ``<G_i, G_j> = Σ_ts (r_it · r_js)(a_it · a_js)``.

    ``inputs`` a ``(B, T, D)``, ``rows`` r ``(B, T, P)``.
    """

    place: int
    inputs: Tensor
    rows: Tensor
    pairs: _Pairs | None
    sum_of: Callable[[Tensor], Tensor]

    def squares(self, batch: Batch) -> Tensor:
        if self.pairs is None:
            products = _products(self.inputs, self.inputs, self.rows, self.rows)
            return products.new_zeros(batch.units).index_add_(0, batch.unit, products)
        first, second = self.pairs.first, self.pairs.second
        products = _products(self.inputs[first], self.inputs[second], self.rows[first], self.rows[second])
        return products.new_zeros(batch.units).index_add_(0, self.pairs.unit, products * self.pairs.weight)

    def total(self, scale: Tensor) -> Tensor:
        return self.sum_of(scale)


def _products(a: Tensor, b: Tensor, r: Tensor, s: Tensor) -> Tensor:
    if a.shape[1] == 1:
        return (a * b).sum((1, 2), dtype=torch.float64) * (r * s).sum((1, 2), dtype=torch.float64)
    return (torch.bmm(a, b.mT) * torch.bmm(r, s.mT)).sum((1, 2), dtype=torch.float64)


def _add_clipped(path: Clipping, parts: Sequence[_Part], batch: Batch, clip: float, into: Sequence[Tensor]) -> None:
    squares = torch.stack([part.squares(batch) for part in parts]).sum(0)
    lost = ~squares.isfinite()
    if bool(lost.any()):  # 0 · NaN is NaN: these units must not be in the sum at all
        rest = batch.without(lost)
        if rest.units:
            with torch.enable_grad():
                path.add(rest, into)
        return
    scale = factors(squares, clip).to(batch.share.dtype)[batch.unit]
    for part in parts:
        into[part.place].add_(part.total(scale))


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]


def _known(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, nn.GroupNorm)


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Backpropagation inside spends nothing on the parameters."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
